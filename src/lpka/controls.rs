//! Empty twins of a source: as large, as structured, but without its knowledge. What they transfer is the adapter's own doing.

use super::Side;
use super::parameters::normal;
use crate::onnx::{DType, Tensor, ValueId};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use std::collections::HashMap;

/// The source with the values of each weight shuffled within it.
pub fn shuffled<'a>(side: &Side<'a>, seed: u64) -> Side<'a> {
    each(side, seed ^ 0x7368_7566, |tensor, _, random| {
        let mut values = tensor.to_f64();
        values.shuffle(random);
        values
    })
}

/// The source as if freshly initialised: matrices normal with the standard deviation √(2 / fan-in) of rectifier networks,
/// scales one, shifts and biases zero.
pub fn untrained<'a>(side: &Side<'a>, seed: u64) -> Side<'a> {
    each(side, seed ^ 0x756e_7472, |tensor, weight, random| {
        let matrix = weight.view.as_ref();
        match (matrix, weight.role) {
            (Some(view), _) => {
                let std = (2.0 / view.cols().max(1) as f64).sqrt();
                (0..tensor.len()).map(|_| std * normal(random)).collect()
            }
            (None, crate::params::Role::NormScale | crate::params::Role::RunningStat) => tensor.to_f64(),
            (None, _) => vec![0.0; tensor.len()],
        }
    })
}

/// Every weight of the parameter graph by `make`, in the graph's order so that the result depends on the seed alone.
fn each<'a>(
    side: &Side<'a>,
    seed: u64,
    make: impl Fn(&Tensor, &crate::params::Weight, &mut ChaCha8Rng) -> Vec<f64>,
) -> Side<'a> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut weights: HashMap<ValueId, Tensor> = side.weights.clone();
    for weight in &side.graph.weights {
        let Some(tensor) = side.weights.get(&weight.name).filter(|t| t.dtype().is_float()) else { continue };
        let values = make(tensor, weight, &mut random);
        weights.insert(
            weight.name.clone(),
            Tensor::from_f64(tensor.dtype(), tensor.shape(), &values).cast(DType::F32),
        );
    }
    Side { graph: side.graph, weights }
}
