//! Where a model's answer is: an output with values for each row, or the logits behind its final softmax.
//!
//! Training looks at logits, as cross-entropy from them is exact where probabilities saturate. Look at [`find_head`].

use crate::error::Error;
use crate::onnx::{Builder, Fact, Facts, Graph, Node, Tensor, ValueId, infer::normalise_axis};
use std::collections::HashSet;

/// What the model answers with.
#[derive(Default)]
pub struct Head {
    /// The declared output.
    pub output: ValueId,
    /// The value the loss looks at: the output, or for a model that ends in a softmax the logits before it.
    pub answer: ValueId,
    /// Numbers a row.
    pub width: usize,
    /// Whether `answer` is logits as far as the graph shows (it ended in a softmax).
    pub softmax: bool,
}

impl Head {
    /// Whether nothing of the model's outputs is an answer for each row.
    pub fn is_empty(&self) -> bool {
        self.width == 0
    }

    /// Of one number z a row, the logit of the second of two classes or the sigmoid of that, makes the logits 0 and z.
    pub fn tell_two_apart(&mut self, graph: &mut Graph, facts: &mut Facts, rows: usize) {
        if self.width != 1 {
            return;
        }
        let sigmoid = maker(graph, facts, &self.answer).filter(|node| node.is("Sigmoid"));
        let logit = sigmoid.and_then(|node| node.input(0)).unwrap_or(&self.answer).clone();
        let mut b = Builder::on(std::mem::take(graph), std::mem::take(facts));
        let logit = b.reshape(&logit, &[rows, 1]);
        let zero = b.constant(Tensor::zeros(b.dtype(&logit), &[rows, 1]));
        self.answer = b.concat(&[&zero, &logit], 1);
        (*graph, *facts) = b.finish();
        (self.width, self.softmax) = (2, true);
    }
}

/// The first float output with a row for each of the batch's; behind a final softmax, what went into it.
///
/// Where there is none, the first whose rows lie side by side, several lines each: boxes of all images in one list. Those
/// that `by_rows` names have been seen to be such; of a single row it is any output. The answer is then a reshaped copy that
/// is added to the graph.
pub fn find_head(
    graph: &mut Graph,
    facts: &mut Facts,
    batch: usize,
    by_rows: &HashSet<ValueId>,
) -> Option<Head> {
    let real = |id: &ValueId| facts.get(id).filter(|f| f.dtype.is_float() && !f.is_empty());
    let fits = |id: &ValueId| real(id).is_some_and(|f| f.shape.first() == Some(&batch));
    let divides = |id: &ValueId| real(id).is_some_and(|f| f.len().is_multiple_of(batch));
    let find = |wanted: &dyn Fn(&ValueId) -> bool| graph.outputs.iter().map(|o| o.id.clone()).find(wanted);
    if let Some(output) = find(&fits) {
        let logits = logits_before(graph, facts, &output).filter(fits);
        let softmax = logits.is_some();
        let answer = logits.unwrap_or_else(|| output.clone());
        let width = facts.get(&answer)?.shape[1..].iter().product();
        return Some(Head { output, answer, width, softmax });
    }
    let output = find(&|id| (batch == 1 || by_rows.contains(id)) && divides(id))?;
    let fact = facts.get(&output)?.clone();
    let mut shape = vec![batch];
    match batch {
        1 => shape.extend(&fact.shape),
        _ => shape.extend([fact.shape[0] / batch].iter().chain(&fact.shape[1..])),
    }
    let answer = reshaped(graph, facts, &output, &Fact::new(fact.dtype, &shape));
    Some(Head { output, answer, width: fact.len() / batch, softmax: false })
}

/// A copy of a value in another shape.
fn reshaped(graph: &mut Graph, facts: &mut Facts, value: &ValueId, fact: &Fact) -> ValueId {
    let (rows, sizes) = (ValueId::new("merge.rows"), ValueId::new("merge.rows.shape"));
    let dims: Vec<i64> = fact.shape.iter().map(|&d| d as i64).collect();
    let dims = Tensor::i64(&[dims.len()], &dims);
    graph.nodes.push(Node::new("Reshape", &[value, &sizes], &[&rows]));
    facts.insert(sizes.clone(), Fact::of(&dims));
    facts.insert(rows.clone(), fact.clone());
    graph.initializers.insert(sizes, dims);
    rows
}

/// What to do where nothing that the model gives can be compared with labels.
pub const REAL_ANSWER: &str = "end the model in the real numbers that its answer is made from: onnx.utils.extract_model cuts it off there";

/// Why [`find_head`] found none.
pub fn no_answer(graph: &Graph, facts: &Facts, batch: usize) -> Error {
    let names: Vec<&str> = graph.outputs.iter().map(|o| o.id.as_str()).collect();
    let shape = |id| facts.get(id).map_or("unknown".into(), |f| format!("{} {:?}", f.dtype, f.shape));
    let shapes: Vec<String> = graph.outputs.iter().map(|o| shape(&o.id)).collect();
    let what =
        format!("no output has real values, one row for each of the batch's {batch}: {}", shapes.join(", "));
    Error::tensor(names.join(", "), what).hint(REAL_ANSWER)
}

/// The logits that `output` is the softmax (or its logarithm) of, a row each; `None` where it doesn't end in one that
/// covers whole rows.
pub fn logits_before(graph: &Graph, facts: &Facts, output: &ValueId) -> Option<ValueId> {
    let rows = rows_of(facts, output)?;
    let node = maker(graph, facts, output)?;
    let input = node.input(0).filter(|_| node.is("Softmax") || node.is("LogSoftmax"))?;
    let fact = facts.get(input).filter(|f| f.dtype.is_float() && !f.is_empty())?;
    let axis = normalise_axis(node.int_or("axis", -1), fact.rank())?;
    let whole_rows = fact.len() == rows * fact.shape[axis] && axis >= usize::from(fact.rank() > 1);
    (whole_rows && rows_of(facts, input) == Some(rows)).then(|| input.clone())
}

/// The node that computes a value; those behind it leave the elements and their order as they are.
fn maker<'a>(graph: &'a Graph, facts: &Facts, value: &ValueId) -> Option<&'a Node> {
    let producers = graph.producers();
    let length = |id: &ValueId| facts.get(id).map(Fact::len);
    let mut at = value;
    loop {
        let node = &graph.nodes[*producers.get(at)?];
        match node.input(0).filter(|input| passes(node) && length(input) == length(at)) {
            Some(input) => at = input,
            None => return Some(node),
        }
    }
}

/// Rows of an answer: its first dimension; a vector is one row.
pub fn rows_of(facts: &Facts, value: &ValueId) -> Option<usize> {
    let shape = &facts.get(value)?.shape;
    Some(if shape.len() < 2 { 1 } else { shape[0] })
}

/// Operators that leave the elements and their order as they are.
fn passes(node: &Node) -> bool {
    ["Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"].iter().any(|op| node.is(op))
}

#[cfg(all(test, feature = "tract"))]
mod tests {
    use super::*;
    use crate::error::Result;
    use crate::onnx::{DType, Model, WORKING_OPSET, save};
    use crate::runtime::{Executor, TractExecutor, Value};
    use crate::train::network::Network;

    /// A model of single rows of four numbers, whose six answers are made into something else; opened for four rows.
    fn opened(make: impl FnOnce(&mut Builder, &ValueId) -> ValueId) -> Result<Network> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.onnx");
        let mut b = Builder::new("lines");
        let x = b.input("x", Fact::new(DType::F32, &[1, 4]));
        let w = b.initializer("w", Tensor::f32(&[4, 6], &[0.25; 24]));
        let y = b.matmul(&x, &w);
        let y = make(&mut b, &y);
        b.output_as("y", &y);
        save(&Model::new(b.finish().0, WORKING_OPSET), &path)?;
        Network::open(&path, 4, None, &TractExecutor::new(1)?)
    }

    #[test]
    fn lines_of_all_rows_are_taken_apart() -> Result<()> {
        let network = opened(|b, y| b.reshape(y, &[2, 3]))?;
        let head = &network.head;
        assert_eq!((network.batch, head.width), (4, 6));
        assert_eq!(network.facts[&head.answer].shape, [4, 2, 3]);
        assert_eq!(head.output, "y".into());
        Ok(())
    }

    #[test]
    fn a_single_number_tells_two_classes_apart() -> Result<()> {
        let answers = |sigmoid: bool| -> Result<Vec<f64>> {
            let mut network = opened(|b, y| {
                let one = b.slice(y, &[0], &[1], &[1]);
                let one = if sigmoid { b.op("Sigmoid", &[&one]) } else { one };
                b.reshape(&one, &[1])
            })?;
            assert_eq!(network.head.width, 1);
            network.tell_two_apart();
            assert_eq!((network.head.width, network.head.softmax), (2, true));
            let (model, facts) = network.forward(&[])?;
            let x = Tensor::f32(&[4, 4], &(0..16).map(|i| i as f32).collect::<Vec<_>>());
            let outputs = TractExecutor::new(1)?.compile(&model, &facts)?.run(&[Value::host(x)])?;
            Ok(outputs[0].to_host()?.to_f64())
        };
        assert_eq!(answers(true)?, [0.0, 1.5, 0.0, 5.5, 0.0, 9.5, 0.0, 13.5]);
        assert_eq!(answers(false)?, answers(true)?);
        Ok(())
    }

    #[test]
    fn what_a_single_row_gives_is_its_answer_whatever_its_shape() -> Result<()> {
        let network = opened(|b, y| {
            let rows = b.constant(Tensor::i64(&[1], &[0]));
            b.op_with("ReduceMean", &[y, &rows], &[("keepdims", 0i64.into())])
        })?;
        let head = &network.head;
        assert_eq!((network.batch, head.width), (1, 6), "{:?}", network.single_rows_because());
        assert_eq!(network.facts[&head.answer].shape, [1, 6]);
        Ok(())
    }
}
