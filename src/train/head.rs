//! Where a model's answer is: an output with values for each row, or the logits behind its final softmax.
//!
//! Training looks at logits, as cross-entropy from them is exact where probabilities saturate. Look at [`find_head`].

use crate::data::{Answer, Layout};
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
    /// Of a row's answer.
    pub shape: Vec<usize>,
    /// Where classes lie in it: on the softmax's axis, or as labels say. All are of one label a row until then.
    pub layout: Layout,
    /// Whether `answer` is logits as far as the graph shows (it ended in a softmax).
    pub softmax: bool,
    /// Outputs that might be meant as well.
    pub others: Vec<ValueId>,
}

impl Head {
    /// Whether nothing of the model's outputs is an answer for each row.
    pub fn is_empty(&self) -> bool {
        self.width() == 0
    }

    /// Numbers a row.
    pub fn width(&self) -> usize {
        self.layout.width()
    }

    /// What labels are compared with.
    pub fn known(&self) -> Answer {
        Answer { shape: self.shape.clone(), softmax: self.softmax.then_some(self.layout) }
    }

    /// Whether another's answer says the same things in the same places.
    pub fn corresponds_to(&self, other: &Head) -> bool {
        self.width() == other.width() && (other.layout.positions() == 1 || self.layout == other.layout)
    }

    /// Of one number for each label, the logit of the second of two classes or the sigmoid of that, makes the logits 0 and z.
    fn tell_two_apart(&mut self, graph: &mut Graph, facts: &mut Facts, rows: usize) {
        let logit = logit_before(graph, facts, &self.answer);
        let layout = Layout { before: 1, classes: 1, after: self.width() };
        let mut b = Builder::on(std::mem::take(graph), std::mem::take(facts));
        self.answer = both_logits(&mut b, &logit, layout, rows);
        (*graph, *facts) = b.finish();
        (self.layout, self.softmax) = (Layout { classes: 2, ..layout }, true);
        self.shape.insert(0, 2);
    }

    /// Classes lie as labels say. A single one is told from its absence.
    pub fn lay_out(&mut self, layout: Layout, graph: &mut Graph, facts: &mut Facts, rows: usize) {
        match layout.classes {
            1 => self.tell_two_apart(graph, facts, rows),
            _ => self.layout = layout,
        }
    }

    /// What the model gives is compared with numbers as it is, chances too.
    pub fn take_as_it_is(&mut self) {
        if self.softmax {
            (self.answer, self.softmax) = (self.output.clone(), false);
        }
        self.layout = Layout::rows(self.width());
    }
}

/// The first float output with a row for each of the batch's, or the one that is `named`; behind a final softmax, what went into it.
///
/// Where there is none, the first whose rows lie side by side, several lines each: boxes of all images in one list. Those
/// that `by_rows` names have been seen to be such; of a single row it is any output. The answer is then a reshaped copy that
/// is added to the graph.
pub fn find_head(
    graph: &mut Graph,
    facts: &mut Facts,
    batch: usize,
    by_rows: &HashSet<ValueId>,
    named: Option<&str>,
) -> Option<Head> {
    let real = |id: &ValueId| facts.get(id).filter(|f| f.dtype.is_float() && !f.is_empty());
    let fits = |id: &ValueId| real(id).is_some_and(|f| f.shape.first() == Some(&batch));
    let divides = |id: &ValueId| real(id).is_some_and(|f| f.len().is_multiple_of(batch));
    let side_by_side = |id: &ValueId| (batch == 1 || by_rows.contains(id)) && divides(id);
    let find = |wanted: &dyn Fn(&ValueId) -> bool| -> Vec<ValueId> {
        let outputs = graph.outputs.iter().map(|o| o.id.clone());
        outputs.filter(|id| named.is_none_or(|name| id.as_str() == name) && wanted(id)).collect()
    };
    let mut others = find(&fits);
    if others.is_empty() {
        others = find(&side_by_side);
    }
    let output = if others.is_empty() { return None } else { others.remove(0) };
    let fact = facts.get(&output)?.clone();
    if !fits(&output) {
        let mut shape = vec![batch];
        match batch {
            1 => shape.extend(&fact.shape),
            _ => shape.extend([fact.shape[0] / batch].iter().chain(&fact.shape[1..])),
        }
        let answer = reshaped(graph, facts, &output, &Fact::new(fact.dtype, &shape));
        let layout = Layout::rows(fact.len() / batch);
        return Some(Head { output, answer, shape: shape[1..].to_vec(), layout, softmax: false, others });
    }
    let shape = fact.shape[1..].to_vec();
    let (answer, layout) = match logits_before(graph, facts, &output, batch) {
        Some((logits, layout)) if fits(&logits) => (logits, Some(layout)),
        // Lines of all rows, one after the other, until behind the softmax.
        Some((logits, layout)) => (reshaped(graph, facts, &logits, &fact), Some(layout)),
        None => (output.clone(), None),
    };
    let softmax = layout.is_some();
    let layout = layout.unwrap_or(Layout::rows(shape.iter().product()));
    Some(Head { output, answer, shape, layout, softmax, others })
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
pub fn no_answer(graph: &Graph, facts: &Facts, batch: usize, named: Option<&str>) -> Error {
    let names: Vec<&str> = graph.outputs.iter().map(|o| o.id.as_str()).collect();
    let shape = |id| facts.get(id).map_or("unknown".into(), |f| format!("{} {:?}", f.dtype, f.shape));
    let shapes: Vec<String> = graph.outputs.iter().map(|o| shape(&o.id)).collect();
    if let Some(named) = named {
        let what = match names.iter().position(|name| *name == named) {
            None => format!("the model has no output '{named}'"),
            Some(at) => format!(
                "output '{named}' is {}, which is not real values, one row for each of the batch's {batch}",
                shapes[at]
            ),
        };
        return Error::usage(what).hint(format!("its outputs are {}", names.join(", ")));
    }
    let what =
        format!("no output has real values, one row for each of the batch's {batch}: {}", shapes.join(", "));
    Error::tensor(names.join(", "), what).hint(REAL_ANSWER)
}

/// The logits that `output` is the softmax (or its logarithm) of, and where in a row it runs over classes; `None` where it doesn't
/// end in one that keeps to `rows` rows.
pub fn logits_before(
    graph: &Graph,
    facts: &Facts,
    output: &ValueId,
    rows: usize,
) -> Option<(ValueId, Layout)> {
    let node = maker(graph, facts, output)?;
    let input = node.input(0).filter(|_| node.is("Softmax") || node.is("LogSoftmax"))?;
    let fact = facts.get(input).filter(|f| f.dtype.is_float() && !f.is_empty())?;
    let axis = normalise_axis(node.int_or("axis", -1), fact.rank())?;
    let Layout { before, classes, after } = Layout::along(&fact.shape, axis);
    let within_rows = before.is_multiple_of(rows) && axis >= usize::from(fact.rank() > 1);
    within_rows.then(|| (input.clone(), Layout { before: before / rows, classes, after }))
}

/// The logit that `output` is the sigmoid of, or it itself.
pub fn logit_before(graph: &Graph, facts: &Facts, output: &ValueId) -> ValueId {
    let sigmoid = maker(graph, facts, output).filter(|node| node.is("Sigmoid"));
    sigmoid.and_then(|node| node.input(0)).unwrap_or(output).clone()
}

/// Emits the logits 0 and z of two classes, on axis 1, of the one number z for each label that lies as `layout` says.
pub fn both_logits(b: &mut Builder, logit: &ValueId, layout: Layout, rows: usize) -> ValueId {
    let logit = b.reshape(logit, &layout.shape(rows));
    let zero = b.constant(Tensor::zeros(b.dtype(&logit), &layout.shape(rows)));
    b.concat(&[&zero, &logit], 1)
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
    use crate::train::network::{Network, Purpose};

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
        Network::open(&path, 4, Purpose::default(), &TractExecutor::new(1)?)
    }

    #[test]
    fn lines_of_all_rows_are_taken_apart() -> Result<()> {
        let network = opened(|b, y| b.reshape(y, &[2, 3]))?;
        let head = &network.head;
        assert_eq!((network.batch, head.width()), (4, 6));
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
            assert_eq!(network.head.width(), 1);
            network.lay_out(Layout::rows(1));
            assert_eq!((network.head.width(), network.head.softmax), (2, true));
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
    fn a_softmax_over_positions_shows_where_classes_lie() -> Result<()> {
        let network = opened(|b, y| {
            let lines = b.reshape(y, &[2, 3]);
            let chances = b.softmax(&lines, 1);
            b.reshape(&chances, &[1, 2, 3])
        })?;
        let head = &network.head;
        assert_eq!(head.layout, Layout { before: 2, classes: 3, after: 1 });
        assert_eq!((head.softmax, network.facts[&head.answer].shape[0]), (true, network.batch));
        assert_ne!(head.answer, head.output);
        let mut network = opened(|b, y| {
            let columns = b.reshape(y, &[1, 3, 2]);
            b.softmax(&columns, 1)
        })?;
        assert_eq!(network.head.layout, Layout { before: 1, classes: 3, after: 2 });
        network.head.take_as_it_is();
        assert_eq!((network.head.layout, &network.head.answer), (Layout::rows(6), &network.head.output));
        Ok(())
    }

    #[test]
    fn each_number_of_a_mask_tells_two_classes_apart() -> Result<()> {
        let mut network = opened(|b, y| {
            let mask = b.reshape(y, &[1, 2, 3]);
            b.op("Sigmoid", &[&mask])
        })?;
        network.lay_out(Layout { before: 1, classes: 1, after: 6 });
        assert_eq!(network.head.layout, Layout { before: 1, classes: 2, after: 6 });
        assert_eq!(network.facts[&network.head.answer].shape, [network.batch, 2, 6]);
        Ok(())
    }

    #[test]
    fn what_a_single_row_gives_is_its_answer_whatever_its_shape() -> Result<()> {
        let network = opened(|b, y| {
            let rows = b.constant(Tensor::i64(&[1], &[0]));
            b.op_with("ReduceMean", &[y, &rows], &[("keepdims", 0i64.into())])
        })?;
        let head = &network.head;
        assert_eq!((network.batch, head.width()), (1, 6), "{:?}", network.single_rows_because());
        assert_eq!(network.facts[&head.answer].shape, [1, 6]);
        Ok(())
    }
}
