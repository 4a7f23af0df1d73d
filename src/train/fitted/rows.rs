//! The rows that a fit looks at.

use crate::error::Result;
use crate::onnx::Tensor;
use crate::runtime::Value;
use crate::train::examples::Examples;
use crate::train::guide::Guide;
use crate::train::network::Network;
use crate::train::session::Split;

/// Some rows of the training data and of the rows without labels.
pub struct Rows<'a> {
    examples: &'a Examples,
    parts: Vec<(Split, Vec<usize>)>,
}

impl<'a> Rows<'a> {
    /// The first `count`.
    pub fn some(examples: &'a Examples, count: usize) -> Self {
        let mut left = count;
        let mut part = |split| {
            let some = examples.rows(split).min(left);
            left -= some;
            (split, (0..some).collect())
        };
        let parts = vec![part(Split::Train), part(Split::Unlabelled)];
        Self { examples, parts }
    }

    /// A guide's answer and views on all rows.
    pub fn observe(&self, guide: &mut Guide, weights: Option<&[Value]>) -> Result<Vec<Tensor>> {
        let mut all: Vec<(Vec<usize>, Vec<f32>)> = vec![];
        for (split, rows) in self.parts.iter().filter(|(_, rows)| !rows.is_empty()) {
            let places = self.examples.places(*split, rows);
            let seen = guide.observe(*split, &places, None, weights)?;
            all.resize_with(seen.len(), Default::default);
            for ((shape, values), part) in all.iter_mut().zip(&seen) {
                *shape = part.shape()[1..].to_vec();
                values.extend(part.to_f32().iter());
            }
        }
        let tensor = |(shape, values): &(Vec<usize>, Vec<f32>)| {
            let width: usize = shape.iter().product();
            Tensor::f32(&[&[values.len() / width.max(1)], &shape[..]].concat(), values)
        };
        Ok(all.iter().map(tensor).collect())
    }

    /// Rows that one run of the target takes, and the places of theirs among all, until there are `enough`.
    pub fn batches(&self, size: usize, enough: usize) -> Vec<(Split, &[usize], usize)> {
        let mut at = 0;
        let mut batches = vec![];
        for (split, rows) in &self.parts {
            for some in rows.chunks(size.max(1)) {
                if at >= enough {
                    break;
                }
                batches.push((*split, some, at));
                at += some.len();
            }
        }
        batches
    }

    /// The target's inputs for a batch, what is wanted of it (of all rows' `wanted`), and which rows count, where the batch is
    /// smaller than a run.
    pub fn feeds(
        &self,
        target: &Network,
        (split, rows, at): (Split, &[usize], usize),
        wanted: &Tensor,
    ) -> Result<(Vec<Value>, [Value; 2])> {
        let size = target.batch.max(1);
        let width: usize = wanted.shape()[1..].iter().product();
        let mut part = wanted.to_f32()[at * width..(at + rows.len()) * width].to_vec();
        part.resize(size * width, 0.0);
        let mut counts = vec![1.0; rows.len()];
        counts.resize(size, 0.0);
        let shape = [&[size], &wanted.shape()[1..]].concat();
        let inputs = self.examples.inputs(split, rows, target)?;
        let more = [Tensor::f32(&shape, &part), Tensor::f32(&[size], &counts)];
        Ok((inputs.into_iter().map(Value::host).collect(), more.map(Value::host)))
    }
}
