//! What a trained adapter attends to, for people: a small program beside the update step that is run once, on its state.
//!
//! Knows what layers say of themselves ([`Attended`]), nothing of reports. Look at [`Lens`].

use super::update::{facts_of, run_once};
use crate::error::Result;
use crate::onnx::{Builder, Facts, Graph, Tensor, ValueId};
use crate::runtime::{Executor, Value};

/// Attention inside one piece of the adapter, as a value of a graph.
pub(super) struct Attended {
    /// The target's side: the layer, or the layers that write an interface.
    pub target: String,
    pub source: Columns,
    /// Rows of the target's side × columns; a row sums to about one.
    pub value: ValueId,
}

/// What the columns of an attention are.
#[derive(Clone)]
pub(super) enum Columns {
    /// Channels of what these layers write.
    Channels(String),
    /// Tokens of several source weights, so many of each.
    Weights(Vec<(String, usize)>),
}

/// A graph from the update program's state to the attention in it.
#[derive(Clone)]
pub struct Lens {
    graph: Graph,
    facts: Facts,
    /// State inputs of the update program, in the order of the graph's inputs.
    inputs: Vec<ValueId>,
    labels: Vec<(String, Columns)>,
}

/// A matrix of attention: rows of the target × columns of the source.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    pub target: String,
    pub source: String,
    /// Names of rows and columns; empty for channels.
    pub row_names: Vec<String>,
    pub column_names: Vec<String>,
    pub rows: usize,
    pub columns: usize,
    /// Row-major.
    pub values: Vec<f32>,
}

impl Lens {
    /// `emit` writes the attention in terms of the state inputs that it declares, and returns those.
    pub(super) fn new(emit: impl FnOnce(&mut Builder) -> (Vec<ValueId>, Vec<Attended>)) -> Self {
        let mut b = Builder::new("lens");
        let (inputs, attended) = emit(&mut b);
        let mut labels = vec![];
        for (i, part) in attended.into_iter().enumerate() {
            b.output_as(&format!("seen/{i}"), &part.value);
            labels.push((part.target, part.source));
        }
        let (graph, facts) = b.finish();
        Self { facts: facts_of(&graph, facts), graph, inputs, labels }
    }

    /// Reads the attention out of a state: a matrix for each interface map, and one that shows, for all weights with
    /// token layers, which source weights their tokens attend to.
    pub fn read(
        &self,
        executor: &dyn Executor,
        state: impl Fn(&ValueId) -> Result<Tensor>,
    ) -> Result<Vec<Seen>> {
        if self.labels.is_empty() {
            return Ok(vec![]);
        }
        let feeds = self.inputs.iter().map(|id| state(id).map(Value::host)).collect::<Result<Vec<_>>>()?;
        let matrices = run_once(executor, self.graph.clone(), self.facts.clone(), &feeds)?;
        let (mut seen, mut shares) = (vec![], vec![]);
        for ((target, columns), matrix) in self.labels.iter().zip(matrices) {
            match columns {
                Columns::Channels(source) => seen.push(Seen {
                    target: target.clone(),
                    source: source.clone(),
                    row_names: vec![],
                    column_names: vec![],
                    rows: matrix.shape()[0],
                    columns: matrix.shape()[1],
                    values: matrix.to_f32().into_owned(),
                }),
                Columns::Weights(weights) => shares.push((target.clone(), by_weight(&matrix, weights))),
            }
        }
        seen.extend(between_layers(&shares));
        Ok(seen)
    }
}

/// The mean over rows of what falls on each weight's tokens.
fn by_weight(matrix: &Tensor, weights: &[(String, usize)]) -> Vec<(String, f32)> {
    let (rows, columns) = (matrix.shape()[0], matrix.shape()[1]);
    let values = matrix.to_f32();
    let mut first = 0;
    let mut shares = vec![];
    for (name, tokens) in weights {
        let own = first..(first + tokens).min(columns);
        let sum: f32 = (0..rows).map(|r| values[r * columns..][own.clone()].iter().sum::<f32>()).sum();
        shares.push((name.clone(), sum / rows.max(1) as f32));
        first = own.end;
    }
    shares
}

/// One matrix of all layers: target weights × source weights.
fn between_layers(shares: &[(String, Vec<(String, f32)>)]) -> Option<Seen> {
    let mut columns: Vec<String> = vec![];
    for (name, _) in shares.iter().flat_map(|(_, row)| row) {
        if !columns.contains(name) {
            columns.push(name.clone());
        }
    }
    let share =
        |row: &[(String, f32)], column: &String| row.iter().find(|(n, _)| n == column).map_or(0.0, |s| s.1);
    let values = shares.iter().flat_map(|(_, row)| columns.iter().map(move |c| share(row, c))).collect();
    (!shares.is_empty()).then(|| Seen {
        target: "weights of the target".into(),
        source: "weights of the source".into(),
        row_names: shares.iter().map(|(target, _)| target.clone()).collect(),
        rows: shares.len(),
        columns: columns.len(),
        column_names: columns,
        values,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_attention_is_summed_by_source_weight() {
        let matrix = Tensor::f32(&[2, 3], &[0.5, 0.25, 0.25, 0.1, 0.1, 0.8]);
        let row = by_weight(&matrix, &[("a".into(), 2), ("b".into(), 1)]);
        assert_eq!(row.len(), 2);
        assert!((row[0].1 - 0.475).abs() < 1e-6 && (row[1].1 - 0.525).abs() < 1e-6, "{row:?}");
        let other = vec![("b".into(), 0.4), ("c".into(), 0.6)];
        let all = between_layers(&[("x".into(), row), ("y".into(), other)]).unwrap();
        assert_eq!((all.rows, all.columns), (2, 3));
        assert_eq!(all.values[3..], [0.0, 0.4, 0.6]);
    }
}
