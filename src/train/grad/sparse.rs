//! Gradients of embedding tables as rows: of a large table a step reads few rows, and all others have a gradient of zeros.
//!
//! [`reads`] tells which weights are tables that nothing but lookups read. Differentiating stops at what the lookups give; its
//! cotangents are the rows of the gradient ([`gathered`]), an entry for each id that was looked up. [`Touched`] is what an
//! optimiser makes of them: it works at any size, as it comes after sizes were opened.

use super::weights::Chosen;
use crate::autodiff::rules::{self, Kind, from_front};
use crate::error::{Error, Result};
use crate::onnx::{Attr, Builder, DType, Fact, Facts, Graph, Node, Tensor, ValueId, node_reads};
use crate::patterns::Patterns;
use std::collections::{HashMap, HashSet};
use std::path::Path;

/// Marks those of `weights` whose gradients are to be rows: tables that the globs `asked` name (none: no table). Gives those that
/// stay dense though they were named, or are tables, with why.
///
/// # Errors
/// [`Error::Usage`] for a glob that names no weight, [`Error::Model`] where no table could have such a gradient.
pub fn choose(
    weights: &mut [Chosen],
    graph: &Graph,
    asked: &[String],
    path: &Path,
) -> Result<Vec<(ValueId, String)>> {
    let mut dense: Vec<(ValueId, String)> = vec![];
    for glob in asked {
        let pattern = Patterns::new(&[glob])?;
        let mut named = weights.iter_mut().filter(|w| pattern.matches(w.name.as_str())).peekable();
        if named.peek().is_none() {
            return Err(Error::usage(format!("--sparse '{glob}' matches none of the weights"))
                .hint("`onnx-merge inspect` lists the weights' names"));
        }
        for weight in named {
            match reads(graph, &weight.name) {
                Ok(_) => weight.sparse = true,
                Err(why) if glob != "*" || is_table(graph, &weight.name) => {
                    dense.retain(|(name, _)| *name != weight.name);
                    dense.push((weight.name.clone(), why));
                }
                Err(_) => {}
            }
        }
    }
    if asked.is_empty() || weights.iter().any(|w| w.sparse) {
        return Ok(dense);
    }
    let error = Error::model(path, "has no embedding table whose gradient could be rows of it (--sparse)");
    Err(match dense.first() {
        Some((table, why)) => error.hint(format!("'{table}' can't be one: {why}")),
        None => error.hint("leave out --sparse"),
    })
}

/// A lookup of a table's rows.
pub struct Read {
    ids: ValueId,
    /// What the lookup gives: `[…ids, …row]`.
    pub found: ValueId,
}

/// A gradient that is zero but for some rows. A row that was looked up twice has two entries, which add up.
#[derive(Clone, Debug)]
pub struct Rows {
    /// Int64 `[n]`, counted from the front.
    pub indices: ValueId,
    /// `[n, …row]`.
    pub values: ValueId,
}

/// Writes fused lookups out, so that [`reads`] sees them. One whose index of the mask is used stays: that has no definition.
pub fn taken_apart(graph: Graph, facts: Facts) -> Result<(Graph, Facts)> {
    let mut b = Builder::on(graph, facts);
    let nodes = std::mem::take(&mut b.graph_mut().nodes);
    let mut read: HashSet<ValueId> = nodes.iter().flat_map(node_reads).collect();
    read.extend(b.graph().outputs.iter().map(|output| output.id.clone()));
    for node in nodes {
        let fused = node.qualified_op() == "com.microsoft::EmbedLayerNormalization"
            && !node.output(1).is_some_and(|mask| read.contains(mask));
        match rules::kind(&node) {
            Some(Kind::Composed(forward)) if fused => {
                b.set_scope(&node.label());
                let made = forward(&mut b, &node)?;
                b.set_scope("");
                for (output, value) in node.outputs.iter().zip(made) {
                    if let (Some(output), Some(value)) = (output, value) {
                        b.keep(Node::new("Identity", &[&value], &[output]));
                    }
                }
            }
            _ => b.keep(node),
        }
    }
    Ok(b.finish())
}

/// The lookups of a table, in the graph's order.
///
/// # Errors
/// Why its gradient can't be had as rows.
pub fn reads(graph: &Graph, table: &ValueId) -> std::result::Result<Vec<Read>, String> {
    let mut found = vec![];
    for node in graph.nodes.iter().filter(|node| node_reads(node).contains(table)) {
        match lookup(node, table) {
            Some(read) => found.push(read),
            None => return Err(format!("'{}' ({}) reads it, too", node.label(), node.qualified_op())),
        }
    }
    match found.iter().all(|read| graph.initializers.contains_key(&read.ids)) {
        true => Err("no lookup reads it at rows that differ from step to step".into()),
        false => Ok(found),
    }
}

/// Whether some node looks up rows of `weight` that aren't the same in every step.
pub fn is_table(graph: &Graph, weight: &ValueId) -> bool {
    let varies = |read: Read| !graph.initializers.contains_key(&read.ids);
    graph.nodes.iter().filter_map(|node| lookup(node, weight)).any(varies)
}

fn lookup(node: &Node, table: &ValueId) -> Option<Read> {
    let rows = node.is("Gather") && node.int_or("axis", 0) == 0 && node.input(0) == Some(table);
    let (ids, found) = (node.input(1)?, node.output(0)?);
    (rows && ids != table).then(|| Read { ids: ids.clone(), found: found.clone() })
}

/// The gradient of a table of this `shape` from the cotangents of what its lookups give; `None` where none has one.
pub fn gathered(
    b: &mut Builder,
    shape: &[usize],
    reads: &[Read],
    cotangents: &HashMap<ValueId, ValueId>,
) -> Option<Rows> {
    let (mut indices, mut values) = (vec![], vec![]);
    for read in reads {
        let Some(cotangent) = cotangents.get(&read.found) else { continue };
        let count = b.fact(&read.ids).len();
        let ids = b.cast(&read.ids, DType::I64);
        let ids = b.reshape(&ids, &[count]);
        indices.push(from_front(b, &ids, shape[0]));
        values.push(b.reshape(cotangent, &[&[count], &shape[1..]].concat()));
    }
    if indices.is_empty() {
        return None;
    }
    let [indices, values] = [indices, values].map(|parts| b.concat(&parts.iter().collect::<Vec<_>>(), 0));
    Some(Rows { indices, values })
}

/// No rows of a table.
pub fn none_of(b: &mut Builder, table: &Tensor) -> Rows {
    let empty = [&[0], &table.shape()[1..]].concat();
    let indices = b.constant(Tensor::i64(&[0], &[]));
    Rows { indices, values: b.constant(Tensor::zeros(table.dtype(), &empty)) }
}

/// The rows of a table that a step moves. Emits nothing that depends on how many they are.
pub struct Touched {
    indices: ValueId,
    /// Int64 `[n]`: for each entry the last one of the same row.
    last: ValueId,
    /// `[n, width]`: at the last entry of each row the sum of all its entries, zeros at the others. So its norm is the gradient's.
    pub sums: ValueId,
    row: Vec<usize>,
}

impl Touched {
    /// `shape` is the table's.
    pub fn of(b: &mut Builder, rows: &Rows, shape: &[usize]) -> Self {
        let (size, row) = (shape[0], shape[1..].to_vec());
        let count = b.fact(&rows.indices).len();
        let [zero, one] = [0, 1].map(|number| b.constant(Tensor::i64(&[], &[number])));
        let length = b.op("Shape", &[&rows.indices]);
        let length = gather(b, &length, &zero);
        let order = b.op("Range", &[&zero, &length, &one]);
        b.set_fact(&order, Fact::new(DType::I64, &[count]));
        let unseen = b.expand(&zero, &[size]);
        let reduction = [("axis", Attr::Int(0)), ("reduction", Attr::from("max"))];
        let last = b.op_with("ScatterElements", &[&unseen, &rows.indices, &order], &reduction);
        let last = gather(b, &last, &rows.indices);
        let width: usize = row.iter().product();
        let values = reshaped(b, &rows.values, &[width]);
        let sums = sums_at(b, &last, &values);
        Self { indices: rows.indices.clone(), last, sums, row }
    }

    /// From a change of the sums (the limit of their norm) to the gradient's row for each entry: `[n, …row]`.
    pub fn gradient(&self, b: &mut Builder, sums: &ValueId) -> ValueId {
        let each = gather(b, sums, &self.last);
        reshaped(b, &each, &self.row)
    }

    /// For each entry its row of `state`, of the table's shape.
    pub fn read(&self, b: &mut Builder, state: &ValueId) -> ValueId {
        gather(b, state, &self.indices)
    }

    /// The `state` with these rows put in. Entries of one row are the same to the bit, so that it doesn't matter which is written last.
    pub fn write(&self, b: &mut Builder, state: &ValueId, rows: &ValueId) -> ValueId {
        let places = b.unsqueeze(&self.indices, &[1]);
        b.op("ScatterND", &[state, &places, rows])
    }
}

fn gather(b: &mut Builder, from: &ValueId, places: &ValueId) -> ValueId {
    b.op_with("Gather", &[from, places], &[("axis", Attr::Int(0))])
}

/// Each entry of `value` in the shape `row`.
fn reshaped(b: &mut Builder, value: &ValueId, row: &[usize]) -> ValueId {
    if b.shape(value)[1..] == *row {
        return value.clone();
    }
    let dims: Vec<i64> = std::iter::once(-1).chain(row.iter().map(|&d| d as i64)).collect();
    let dims = b.ints(&dims);
    b.op("Reshape", &[value, &dims])
}

/// `values` (`[n, width]`) added up at `places` (`[n]`) of zeros of their shape. Element by element, as ONNX
/// Runtime loses parts of sums of rows (`autodiff::rules::index`).
fn sums_at(b: &mut Builder, places: &ValueId, values: &ValueId) -> ValueId {
    let fact = b.fact(values).clone();
    let places = b.unsqueeze(places, &[1]);
    let zero = b.constant(Tensor::scalar(fact.dtype, 0.0));
    let shape = b.op("Shape", &[values]);
    let [places, zeros] = [&places, &zero].map(|value| {
        let spread = b.op("Expand", &[value, &shape]);
        let dtype = b.dtype(value);
        b.set_fact(&spread, Fact::new(dtype, &fact.shape));
        spread
    });
    let attrs = [("axis", Attr::Int(0)), ("reduction", Attr::from("add"))];
    b.op_with("ScatterElements", &[&zeros, &places, values], &attrs)
}
