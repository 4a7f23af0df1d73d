//! Keeps tract from leaving out what it must not: a value that was expanded before a matrix product.
//!
//! tract takes `Expand` away in front of a product, since axes of one row fit any other there. That is wrong for an axis that is summed
//! over (tract 0.23: `declutter_broadcast` of its `EinSum`): where the other factor has its real length, the product fails;
//! where both were expanded, one term is left of the sum. Gathering row 0 again and again is the same value, and stays. Knows the
//! operators that stand between the two; look at [`written_out`].

use crate::onnx::{Attr, Facts, Graph, Model, Node, Tensor, ValueId};
use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

const PRODUCTS: [&str; 5] = ["MatMul", "Gemm", "Einsum", "Conv", "ConvTranspose"];

/// `model` with gathers in place of expansions that reach a product. Those of unknown shape are left as they are.
pub fn written_out<'a>(model: &'a Model, facts: &Facts) -> Cow<'a, Model> {
    let reaching = expansions(&model.graph);
    if reaching.is_empty() {
        return Cow::Borrowed(model);
    }
    let mut model = model.clone();
    let mut nodes = vec![];
    for node in std::mem::take(&mut model.graph.nodes) {
        let gathers = match node.output(0) {
            Some(output) if reaching.contains(output) => gathers(&node, facts, &mut model.graph),
            _ => None,
        };
        nodes.extend(gathers.unwrap_or_else(|| vec![node]));
    }
    model.graph.nodes = nodes;
    Cow::Owned(model)
}

/// Outputs of expansions that reach a product through nothing but what changes one value.
fn expansions(graph: &Graph) -> HashSet<ValueId> {
    let mut wanted: HashSet<&ValueId> = HashSet::new();
    let mut found = HashSet::new();
    for node in graph.nodes.iter().rev() {
        let constant =
            |id: &Option<ValueId>| id.as_ref().is_none_or(|id| graph.initializers.contains_key(id));
        if node.domain.is_empty() && PRODUCTS.contains(&node.op.as_str()) {
            wanted.extend(node.inputs.iter().flatten());
        } else if node.outputs.iter().flatten().any(|id| wanted.contains(id)) {
            if matches!(node.op.as_str(), "Expand" | "Tile") {
                found.extend(node.output(0).cloned());
            }
            if node.inputs.iter().skip(1).all(constant) {
                wanted.extend(node.input(0));
            }
        }
    }
    found
}

/// What expands `node`'s input to its output, an axis at a time.
fn gathers(node: &Node, facts: &Facts, graph: &mut Graph) -> Option<Vec<Node>> {
    let (input, output) = (node.input(0)?, node.output(0)?);
    let (from, to) = (&facts.get(input)?.shape, &facts.get(output)?.shape);
    let missing = to.len().checked_sub(from.len())?;
    let padded: Vec<usize> = std::iter::repeat_n(1, missing).chain(from.iter().copied()).collect();
    let axes: Vec<usize> = (0..to.len()).filter(|&a| padded[a] != to[a]).collect();
    if axes.iter().any(|&a| padded[a] != 1) || (axes.is_empty() && missing == 0) {
        return None;
    }
    let name = |what: &str| ValueId::new(format!("{output}/{what}"));
    let mut steps: HashMap<usize, ValueId> = HashMap::new();
    let mut nodes = vec![];
    let mut value = input.clone();
    if missing > 0 {
        let (shape, reshaped) = (name("shape"), name("padded"));
        let dims: Vec<i64> = padded.iter().map(|&d| d as i64).collect();
        graph.initializers.insert(shape.clone(), Tensor::i64(&[dims.len()], &dims));
        nodes.push(Node::new("Reshape", &[&value, &shape], &[&reshaped]));
        value = reshaped;
    }
    for &axis in &axes {
        let zeros = steps.entry(to[axis]).or_insert_with(|| {
            let zeros = name(&format!("zeros{}", to[axis]));
            graph.initializers.insert(zeros.clone(), Tensor::i64(&[to[axis]], &vec![0; to[axis]]));
            zeros
        });
        let spread = name(&format!("axis{axis}"));
        let mut gather = Node::new("Gather", &[&value, zeros], &[&spread]);
        gather.attrs.insert("axis".into(), Attr::Int(axis as i64));
        nodes.push(gather);
        value = spread;
    }
    nodes.last_mut()?.outputs = vec![Some(output.clone())];
    Some(nodes)
}
