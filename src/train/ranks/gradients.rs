//! The step's gradients from those of each rank's rows.

use super::Ranks;
use crate::error::Result;
use crate::onnx::{DType, Fact, Tensor};
use crate::runtime::Value;
use crate::train::accumulate::bundles;

/// Numbers that are summed at once: a network's many small tensors are not worth a round each, and large ones need not all
/// be held twice.
const BUCKET: usize = 1 << 20;

/// Σ `weight`·gradient over all ranks, for tensors like those of `like`; a rank that had no rows has no `gradients`. What
/// comes out is the same on all ranks, bit by bit.
pub fn sum_gradients(
    ranks: &Ranks,
    gradients: Vec<Value>,
    like: &[Value],
    weight: f64,
) -> Result<Vec<Value>> {
    let facts: Vec<Fact> = like.iter().map(Value::fact).collect();
    let mut sums = vec![];
    let mut gradients = gradients.into_iter();
    for facts in bundles(&facts, Fact::len, BUCKET) {
        let mine =
            gradients.by_ref().take(facts.len()).map(|g| g.to_host()).collect::<Result<Vec<Tensor>>>()?;
        let wide = facts.iter().any(|fact| fact.dtype == DType::F64);
        let tensors =
            if wide { summed_wide(ranks, facts, &mine, weight) } else { summed(ranks, facts, &mine, weight) };
        sums.extend(tensors.into_iter().map(Value::host));
    }
    Ok(sums)
}

fn summed(ranks: &Ranks, facts: &[Fact], mine: &[Tensor], weight: f64) -> Vec<Tensor> {
    let all = facts.iter().map(Fact::len).sum();
    let mut numbers = Vec::with_capacity(all);
    for tensor in mine {
        numbers.extend(tensor.to_f32().iter().map(|v| v * weight as f32));
    }
    numbers.resize(all, 0.0);
    let sums = ranks.sum(numbers);
    cut(facts, |fact, range| Tensor::f32(&fact.shape, &sums[range]).cast(fact.dtype))
}

fn summed_wide(ranks: &Ranks, facts: &[Fact], mine: &[Tensor], weight: f64) -> Vec<Tensor> {
    let mut numbers: Vec<f64> = mine.iter().flat_map(|t| t.to_f64()).map(|v| v * weight).collect();
    numbers.resize(facts.iter().map(Fact::len).sum(), 0.0);
    let sums = ranks.sum_wide(numbers);
    cut(facts, |fact, range| Tensor::from_f64(fact.dtype, &fact.shape, &sums[range]))
}

/// A tensor for each fact, made of its range of all numbers.
fn cut(facts: &[Fact], tensor: impl Fn(&Fact, std::ops::Range<usize>) -> Tensor) -> Vec<Tensor> {
    let mut end = 0;
    let next = |fact: &Fact| {
        let start = end;
        end += fact.len();
        tensor(fact, start..end)
    };
    facts.iter().map(next).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_of_all_sizes_and_types_come_back_weighted_and_in_order() -> Result<()> {
        let shapes: [&[usize]; 5] = [&[3], &[1 << 20, 2], &[], &[1000, 1000], &[2, 2]];
        let of = |value: f64, dtype: DType, shape: &[usize]| {
            Value::host(Tensor::from_f64(dtype, shape, &vec![value; shape.iter().product()]))
        };
        for dtype in [DType::F32, DType::F64] {
            let mine: Vec<Value> = shapes.iter().enumerate().map(|(i, s)| of(i as f64, dtype, s)).collect();
            let ranks = Ranks::default();
            let sums = sum_gradients(&ranks, mine.clone(), &mine, 0.5)?;
            for (i, (sum, before)) in sums.iter().zip(&mine).enumerate() {
                assert_eq!(sum.fact(), before.fact());
                assert!(sum.to_host()?.to_f64().iter().all(|v| *v == 0.5 * i as f64), "{dtype} {i}");
            }
            let none = sum_gradients(&ranks, vec![], &mine, 0.0)?;
            assert_eq!(none.len(), mine.len());
            assert!(none[3].to_host()?.to_f64().iter().all(|v| *v == 0.0));
        }
        Ok(())
    }
}
