//! Products of matrices that kernels of ours are faster at, with the nodes around them that these do as well: transposes of their
//! operands and of their result, and a bias.

use super::kernels::product::{PERMUTATIONS, PRODUCT};
use crate::onnx::kernels::DOMAIN;
use crate::onnx::{DType, Fact, Facts, Graph, Node, ValueId};
use onnx_merge_kernels::Vectors;
use std::collections::{HashMap, HashSet};

/// Rows and depth below which nothing is gained, and multiplications of a matrix.
const FEW: [usize; 2] = [4, 8];
const SMALL: usize = 1 << 17;

/// Columns below which nothing is gained: packing the rows takes as long as the product.
fn few_columns() -> usize {
    if Vectors::here() == Vectors::Avx512 { 16 } else { 32 }
}

/// Puts [`PRODUCT`]s in place of nodes. Transposes that nobody reads any more are still there.
pub fn swap_in(graph: &mut Graph, facts: &Facts) {
    let look = Look {
        facts,
        producers: graph.producers(),
        consumers: graph.consumers(),
        outputs: graph.outputs.iter().map(|output| &output.id).collect(),
        graph,
    };
    let mut new: HashMap<usize, Node> = HashMap::new();
    let mut gone: HashSet<usize> = HashSet::new();
    for (i, node) in graph.nodes.iter().enumerate() {
        if let Some(product) = look.product(node) {
            let (place, node, absorbed) = look.complete(i, product);
            gone.extend(absorbed);
            new.insert(place, node);
        }
    }
    let nodes = std::mem::take(&mut graph.nodes).into_iter().enumerate();
    let kept = nodes.filter(|(i, _)| !gone.contains(i));
    graph.nodes = kept.map(|(i, node)| new.remove(&i).unwrap_or(node)).collect();
}

struct Look<'a> {
    graph: &'a Graph,
    facts: &'a Facts,
    producers: HashMap<&'a ValueId, usize>,
    consumers: HashMap<ValueId, Vec<usize>>,
    outputs: HashSet<&'a ValueId>,
}

/// An operand as it lies in memory, and in which order its axes are read.
struct Operand<'a> {
    value: &'a ValueId,
    order: Vec<i64>,
}

impl<'a> Operand<'a> {
    /// With the last two axes swapped where it's `turned`.
    fn new(value: &'a ValueId, mut order: Vec<i64>, turned: bool) -> Self {
        if turned {
            let n = order.len();
            order.swap(n - 2, n - 1);
        }
        Self { value, order }
    }
    fn is_turned(&self) -> bool {
        !self.order.is_sorted()
    }
    /// Whether one of the matrices' axes is dense.
    fn is_readable(&self) -> bool {
        let last = self.order.len() as i64 - 1;
        self.order.iter().rev().take(2).any(|&axis| axis == last)
    }
}

impl<'a> Look<'a> {
    fn fact(&self, id: &ValueId) -> Option<&'a Fact> {
        let fact = self.facts.get(id)?;
        let dense = fact.dtype == DType::F32 && fact.shape.len() >= 2 && !fact.shape.contains(&0);
        dense.then_some(fact)
    }

    /// The product that a node is, if it's one that pays.
    fn product(&self, node: &'a Node) -> Option<Node> {
        let is_gemm = node.is("Gemm");
        if !is_gemm && !node.is("MatMul") {
            return None;
        }
        let turned = |name: &str| is_gemm && node.int_or(name, 0) != 0;
        let b = self.operand(node.input(1)?, turned("transB"))?;
        let a = match b.order.len() {
            // All rows of A in one product, which they must be next to each other for.
            2 if self.fact(node.input(0)?)?.shape.len() > 2 => self.as_given(node.input(0)?, false)?,
            _ => self.operand(node.input(0)?, turned("transA"))?,
        };
        let result = &self.fact(node.output(0)?)?.shape;
        let columns = *result.last()?;
        let bias = if is_gemm { node.input(2) } else { None };
        let unscaled = node.float_or("alpha", 1.0) == 1.0 && node.float_or("beta", 1.0) == 1.0;
        let one_row = |id: &ValueId| {
            self.facts.get(id).is_some_and(|fact| {
                fact.shape.iter().product::<usize>() == columns && fact.shape.last() == Some(&columns)
            })
        };
        if (is_gemm && !unscaled) || !bias.is_none_or(one_row) {
            return None;
        }
        let depth_axis = *a.order.last()?;
        let depth = self.facts.get(a.value)?.shape[usize::try_from(depth_axis).ok()?];
        let rows: usize = match b.order.len() {
            2 => result[..result.len() - 1].iter().product(),
            _ => result[result.len() - 2],
        };
        let few = rows < FEW[0] || depth < FEW[1] || columns < few_columns();
        if few || rows * depth * columns < SMALL {
            return None;
        }
        let inputs: Vec<&ValueId> = [a.value, b.value].into_iter().chain(bias).collect();
        let mut product = Node::new(PRODUCT, &inputs, &[node.output(0)?]);
        for (name, operand) in PERMUTATIONS.iter().zip([&a, &b]) {
            if operand.is_turned() {
                product = product.with(name, operand.order.clone());
            }
        }
        DOMAIN.clone_into(&mut product.domain);
        product.name.clone_from(&node.name);
        Some(product)
    }

    fn as_given(&self, value: &'a ValueId, turned: bool) -> Option<Operand<'a>> {
        let rank = self.fact(value)?.shape.len();
        Some(Operand::new(value, (0..rank as i64).collect(), turned))
    }

    /// An operand, from before its transpose where it has one.
    fn operand(&self, value: &'a ValueId, turned: bool) -> Option<Operand<'a>> {
        let rank = self.fact(value)?.shape.len();
        let transpose = self.producers.get(value).map(|&i| &self.graph.nodes[i]);
        let before = transpose.filter(|node| node.is("Transpose")).and_then(|node| {
            let before = Operand::new(node.input(0)?, order_of(node, rank), turned);
            before.is_readable().then_some(before)
        });
        before.or_else(|| self.as_given(value, turned))
    }

    /// With the bias that is added to node `i`'s result, or the transpose after it: where the product goes, itself, and the nodes that go.
    fn complete(&self, i: usize, mut product: Node) -> (usize, Node, Option<usize>) {
        let Some((reader, node)) = product.output(0).and_then(|id| self.only_reader(id)) else {
            return (i, product, None);
        };
        let Some(result) = node.output(0) else { return (i, product, None) };
        if let Some(bias) = self.bias(node, &product) {
            product.inputs.push(Some(bias.clone()));
        } else if let Some(order) = self.turned_result(node, &product) {
            product = product.with(PERMUTATIONS[2], order);
        } else {
            return (i, product, None);
        }
        product.outputs = vec![Some(result.clone())];
        (reader, product, Some(i))
    }

    fn only_reader(&self, id: &ValueId) -> Option<(usize, &'a Node)> {
        match self.consumers.get(id)?[..] {
            [reader] if !self.outputs.contains(id) => Some((reader, &self.graph.nodes[reader])),
            _ => None,
        }
    }

    /// What `node` adds to each row of a product that has no bias.
    fn bias(&self, node: &'a Node, product: &Node) -> Option<&'a ValueId> {
        let made = product.output(0)?;
        let other = node.inputs.iter().flatten().find(|id| *id != made).filter(|_| node.is("Add"))?;
        let columns = self.facts.get(made)?.shape.last()?;
        (product.inputs.len() == 2 && self.facts.get(other)?.shape == [*columns]).then_some(other)
    }

    /// The order in which `node` puts the axes of a product, where columns stay the last.
    fn turned_result(&self, node: &Node, product: &Node) -> Option<Vec<i64>> {
        let rank = self.facts.get(product.output(0)?)?.shape.len();
        let order = order_of(node, rank);
        // As above: all rows of one product lie next to each other.
        if rank > 2 && self.facts.get(product.input(1)?)?.shape.len() == 2 {
            return None;
        }
        (node.is("Transpose") && order.last() == Some(&(rank as i64 - 1))).then_some(order)
    }
}

fn order_of(transpose: &Node, rank: usize) -> Vec<i64> {
    transpose.ints("perm").map_or_else(|| (0..rank as i64).rev().collect(), <[i64]>::to_vec)
}
