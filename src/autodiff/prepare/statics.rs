//! Which values are the same in every run of a model of fixed input shapes, whatever its data and weights.

use crate::onnx::{Graph, Node, Tensor, ValueId, node_reads};
use std::collections::HashSet;

/// What may change from run to run.
#[derive(Default)]
pub struct Statics {
    /// Values that depend on data or weights.
    live: HashSet<ValueId>,
    /// Values whose shape depends on data.
    varying: HashSet<ValueId>,
}

/// Float constants of up to this many elements are scales, bounds and exponents as far as integers computed from
/// them are concerned; longer ones are weights.
const MOST_SCALES: usize = 8;

/// Whether some value of the graph has a shape that depends on data or weights.
pub fn has_varying_shapes(graph: &Graph) -> bool {
    !Statics::of(graph).varying.is_empty()
}

impl Statics {
    pub fn of(graph: &Graph) -> Self {
        let mut statics = Self::default();
        statics.live.extend(graph.required_inputs().map(|i| i.id.clone()));
        let weight = |t: &Tensor| t.dtype().is_float() && t.site.is_some() && t.len() > MOST_SCALES;
        statics.live.extend(graph.initializers.iter().filter(|(_, t)| weight(t)).map(|(id, _)| id.clone()));
        for node in &graph.nodes {
            statics.visit(node);
        }
        statics
    }
    /// Whether a value is the same in every run.
    pub fn is_fixed(&self, id: &ValueId) -> bool {
        !self.live.contains(id) && !self.varying.contains(id)
    }
    /// Whether a value has the same shape in every run.
    pub fn has_fixed_shape(&self, id: &ValueId) -> bool {
        !self.varying.contains(id)
    }

    fn visit(&mut self, node: &Node) {
        let reads = node_reads(node);
        let default = node.domain.is_empty();
        let asks_shape = default && matches!(node.op.as_str(), "Shape" | "Size");
        let varying_input = reads.iter().any(|r| self.varying.contains(r));
        let live = match asks_shape {
            true => varying_input,
            false => {
                let of_live = reads.iter().any(|r| self.live.contains(r));
                varying_input || draws(node) || is_quantising(node) || of_live
            }
        };
        let shape_from_data =
            shape_inputs(node).iter().any(|&i| node.input(i).is_some_and(|r| self.live.contains(r)));
        let varying =
            !asks_shape && (varying_input || shape_from_data || (live && shape_depends_on_values(node)));
        // Each body of an `If` sees the values around it as they are. What loops compute changes with the iteration, and
        // probes keep no values of it.
        for branch in node.subgraphs().filter(|_| node.is("If")) {
            branch.nodes.iter().for_each(|inner| self.visit(inner));
        }
        for output in node.outputs.iter().flatten() {
            if live {
                self.live.insert(output.clone());
            }
            if varying {
                self.varying.insert(output.clone());
            }
        }
    }
}

/// A node that gives something else in each run, bodies of nodes included.
pub fn random_node(graph: &Graph) -> Option<&Node> {
    graph.nodes.iter().find_map(|node| match draws(node) {
        true => Some(node),
        false => node.subgraphs().find_map(random_node),
    })
}

/// Whether a node, or one inside it, gives something else each time.
pub fn is_random(node: &Node) -> bool {
    draws(node) || node.subgraphs().any(|inner| random_node(inner).is_some())
}

fn draws(node: &Node) -> bool {
    let drops = node.is("Dropout") && node.input(2).is_some();
    node.op.starts_with("Random") || matches!(node.op.as_str(), "Bernoulli" | "Multinomial") || drops
}

/// A node that rounds data or weights, however few: they are no scales, and a gradient goes straight through.
fn is_quantising(node: &Node) -> bool {
    matches!(node.op.as_str(), "QuantizeLinear" | "DynamicQuantizeLinear")
}

/// Operators whose outputs' shapes depend on the values of their inputs as a whole.
fn shape_depends_on_values(node: &Node) -> bool {
    let op = node.op.as_str();
    let listed =
        matches!(op, "NonZero" | "Compress" | "Unique" | "NonMaxSuppression" | "StringSplit" | "If" | "Loop");
    node.domain.is_empty()
        && (listed || op.contains("Sequence") && op != "ReverseSequence" || op.starts_with("Optional"))
}

/// Inputs whose values determine the shape of the output.
fn shape_inputs(node: &Node) -> &'static [usize] {
    if !node.domain.is_empty() {
        return &[];
    }
    match node.op.as_str() {
        "Reshape" | "Expand" | "Tile" | "TopK" | "OneHot" | "Unsqueeze" | "Squeeze" | "Split"
        | "CenterCropPad" | "AffineGrid" => &[1],
        op if op.starts_with("Reduce") => &[1],
        "ConstantOfShape" | "HannWindow" | "HammingWindow" | "BlackmanWindow" => &[0],
        "Range" => &[0, 1, 2],
        "Slice" => &[1, 2, 3, 4],
        "Pad" => &[1, 3],
        "Resize" => &[2, 3],
        "Col2Im" | "DFT" => &[1, 2],
        "STFT" => &[1, 3],
        "MaxUnpool" => &[2],
        _ => &[],
    }
}
