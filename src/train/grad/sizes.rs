//! The open dimensions of a model's inputs, and the working graph for chosen sizes of them.
//!
//! Knows executors, nothing of losses. Look at [`Symbol`] and [`Working`].

use crate::autodiff::facts::{example_inputs, probe};
use crate::autodiff::prepare::{self, Lifting};
use crate::error::{Error, Result};
use crate::onnx::{Dim, Facts, Graph, Model, Tensor, ValueId};
use crate::runtime::Executor;
use std::collections::HashMap;

/// The seed of the inputs that working graphs are probed with.
pub const PROBED: u64 = 7;

/// Axes of inputs that are left open, or are to be, and are of one size.
#[derive(Clone, Debug, PartialEq)]
pub struct Symbol {
    pub name: String,
    pub places: Vec<(ValueId, usize)>,
    /// Whether it counts rows.
    pub batch: bool,
    /// Whether the file fixes it: other sizes take a rewritten graph.
    pub baked: bool,
}

/// The model for inputs of fixed shapes, with facts of all its values.
pub struct Working {
    pub model: Model,
    pub facts: Facts,
}

/// The open dimensions of a graph's inputs. Those of one name are one; with `one_batch` all that count rows are, too.
pub fn symbols(graph: &Graph, one_batch: bool) -> Vec<Symbol> {
    let axes = prepare::batch_axes(graph);
    let mut found: Vec<Symbol> = vec![];
    for input in graph.required_inputs() {
        for (k, dim) in input.shape.iter().flatten().enumerate() {
            let batch = axes.get(&input.id) == Some(&k);
            let name = match dim {
                Dim::Known(_) => continue,
                Dim::Named(name) => name.clone(),
                Dim::Unknown if batch => "batch".to_owned(),
                Dim::Unknown => format!("{}_{k}", input.id),
            };
            let place = (input.id.clone(), k);
            match found.iter_mut().find(|s| s.name == name || (one_batch && batch && s.batch)) {
                Some(symbol) => {
                    symbol.places.push(place);
                    symbol.batch |= batch;
                }
                None => found.push(Symbol { name, places: vec![place], batch, baked: false }),
            }
        }
    }
    found
}

/// The batch that the file fixes, and its size; `None` where some input leaves it open.
pub fn baked_batch(graph: &Graph) -> Option<(Symbol, usize)> {
    let axes = prepare::batch_axes(graph);
    let inputs = graph.required_inputs().filter_map(|i| Some((i, *axes.get(&i.id)?)));
    let dims = inputs.map(|(i, axis)| match i.shape.as_ref()?.get(axis)? {
        Dim::Known(size) => Some(((i.id.clone(), axis), *size)),
        _ => None,
    });
    let (places, sizes): (Vec<_>, Vec<usize>) = dims.collect::<Option<Vec<_>>>()?.into_iter().unzip();
    let size = *sizes.first()?;
    Some((Symbol { name: "batch".into(), places, batch: true, baked: true }, size))
}

/// The model with the given sizes of its open dimensions.
pub fn sized(model: &Model, sizes: &[(&Symbol, usize)]) -> Model {
    let mut model = model.clone();
    for (symbol, size) in sizes {
        for input in &mut model.graph.inputs {
            for (k, dim) in input.shape.iter_mut().flatten().enumerate() {
                if symbol.places.iter().any(|(id, axis)| *id == input.id && *axis == k) {
                    *dim = Dim::Known(*size);
                }
            }
        }
    }
    model
}

impl Working {
    /// A model all of whose input shapes are known.
    ///
    /// # Errors
    /// When the executor can't run it on inputs of these shapes.
    pub fn of(model: &Model, executor: &dyn Executor) -> Result<Self> {
        let mut model = model.clone();
        model.graph.outputs.iter_mut().for_each(|o| o.shape = None);
        let example = example_inputs(&model.graph, 1, PROBED)?;
        let (model, probed) = prepare::settle(&model, executor, &example)?;
        Ok(Self { model, facts: probed.facts })
    }

    /// The model with the given sizes of its dimensions, one of which the file may fix.
    ///
    /// # Errors
    /// As [`Self::of`] and [`Self::lifted`] say.
    pub fn with(
        model: &Model,
        sizes: &[(&Symbol, usize)],
        executor: &dyn Executor,
        name: &str,
    ) -> Result<Self> {
        let (baked, open): (Vec<_>, Vec<_>) = sizes.iter().partition(|(symbol, _)| symbol.baked);
        let model = sized(model, &open);
        match baked.first() {
            Some((_, batch)) => Self::lifted(&model, *batch, executor, name),
            None => Self::of(&model, executor),
        }
    }

    /// A model whose batch the file fixes, for `batch` rows instead.
    ///
    /// # Errors
    /// [`Error::Model`] where its rows can't be shown to be independent, or where an output has none.
    pub fn lifted(model: &Model, batch: usize, executor: &dyn Executor, name: &str) -> Result<Self> {
        let lifted = prepare::lift(model, batch, executor)?;
        if let Lifting::SingleRows { why } = &lifted.lifting {
            return Err(Error::model(name, format!("can't be run on {batch} rows at once: {why}"))
                .hint("leave out --batch to use the batch that the file fixes"));
        }
        let lost =
            model.graph.outputs.iter().find(|o| !lifted.model.graph.outputs.iter().any(|l| l.id == o.id));
        if let Some(lost) = lost.filter(|o| o.dtype.is_none_or(|d| d.is_float())) {
            let what = format!("has an output '{}' without a row for each row of the batch", lost.id);
            return Err(
                Error::model(name, what).hint("leave out --batch to use the batch that the file fixes")
            );
        }
        let probed = probe(executor, &lifted.model, &lifted.example)?;
        let model = prepare::specialise(&lifted.model, &probed)?;
        let facts = probe(executor, &model, &lifted.example)?.facts;
        Ok(Self { model, facts })
    }
}

/// Values to feed every input of a graph of known shapes: those given, made up ones for the others.
pub fn feeds(graph: &Graph, given: &[(ValueId, Tensor)], seed: u64) -> Result<Vec<(ValueId, Tensor)>> {
    let mut made: HashMap<ValueId, Tensor> = example_inputs(graph, 1, seed)?;
    made.extend(given.iter().cloned());
    Ok(graph.required_inputs().filter_map(|i| Some((i.id.clone(), made.remove(&i.id)?))).collect())
}
