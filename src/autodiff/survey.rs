//! What a model's values are, asked for in one run without handing any of them out.
//!
//! Beside each value stand its shape and its first element, which are enough for its type, and small however large a batch is.
//! An executor then frees a value as soon as nobody reads it any more. Look at [`survey`].

use super::facts::ask_for;
use crate::error::{Error, Result};
use crate::onnx::{Fact, Facts, Model, Names, Node, Tensor, ValueId};
use crate::runtime::{Executor, Value};

/// The first version of ONNX's operators that the nodes below are of.
const FROM_OPSET: i64 = 13;

/// Types and shapes of the values `wanted`, which nodes of `model` make; `feeds` in the order of its inputs.
///
/// # Errors
/// Where the executor doesn't run the model so: perhaps one of the values is no tensor.
pub fn survey(
    executor: &dyn Executor,
    model: &Model,
    feeds: &[Value],
    wanted: &[ValueId],
    known: &Facts,
) -> Result<Facts> {
    if model.opset() < FROM_OPSET {
        return Err(Error::usage("the model's operators are too old to add others"));
    }
    let mut model = model.clone();
    let mut names = Names::of(&model.graph);
    let [none, one, flat] = ["survey_none", "survey_one", "survey_flat"].map(|hint| names.fresh(hint));
    for (id, number) in [(&none, 0), (&one, 1), (&flat, -1)] {
        model.graph.initializers.insert(id.clone(), Tensor::i64(&[1], &[number]));
    }
    let (mut outputs, mut asked) = (vec![], vec![]);
    for value in wanted {
        let [shape, line, first] =
            ["shape", "line", "first"].map(|hint| names.fresh(&format!("survey_{hint}")));
        asked.push([
            Node::new("Shape", &[value], &[&shape]),
            Node::new("Reshape", &[value, &flat], &[&line]),
            Node::new("Slice", &[&line, &none, &one], &[&first]),
        ]);
        outputs.extend([shape, first]);
    }
    // ONNX Runtime begins with what comes last in the file and goes back to what that needs: early values are asked for last, or it
    // would come to them when all others have been made.
    model.graph.nodes.extend(asked.into_iter().rev().flatten());
    ask_for(&mut model.graph, outputs);
    let results = executor.compile_once(&model, known)?.run(feeds)?;
    let fact = |(value, pair): (&ValueId, &[Value])| -> Result<(ValueId, Fact)> {
        let [shape, first] = pair else { return Err(Error::usage("a run gave too little")) };
        let shape: Option<Vec<usize>> =
            shape.to_host()?.to_i64().iter().map(|&size| usize::try_from(size).ok()).collect();
        let shape = shape.ok_or_else(|| Error::tensor(value.as_str(), "has a negative size"))?;
        Ok((value.clone(), Fact::new(first.fact().dtype, &shape)))
    };
    wanted.iter().zip(results.chunks(2)).map(fact).collect()
}
