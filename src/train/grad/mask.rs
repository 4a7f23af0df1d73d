//! Random truths as a graph: a pure function of step, seed and place, in arithmetic of whole numbers that runtimes do alike.
//!
//! ONNX's own random operators go on from a state inside the session: a step that is taken again, or after a restart, would drop
//! something else.

use crate::onnx::{Attr, Builder, DType, Tensor, ValueId};

/// Numbers here are of 31 bits: products of two then fit int64, and runtimes agree about what casts to and from uint64 make of them.
const RANGE: i64 = 1 << 31;

/// Truths of `shape`, each false with the chance `ratio`, independent of each other and from `step` (int64, from 0) to step.
/// `key` tells apart what is to be independent.
pub fn kept(b: &mut Builder, step: &ValueId, key: [u64; 2], shape: &[usize], ratio: f64) -> ValueId {
    let scalar = |b: &mut Builder, value: i64| b.constant(Tensor::i64(&[], &[value]));
    let start = scalar(b, start(key));
    let stride = scalar(b, STRIDE);
    let walked = b.mul(step, &stride);
    let walked = b.add(&walked, &start);
    let walked = low_bits(b, &walked);
    let offset = mixed(b, &walked);
    let [zero, one, count] = [0, 1, shape.iter().product::<usize>() as i64].map(|number| scalar(b, number));
    let places = b.op("Range", &[&zero, &count, &one]);
    let places = b.add(&places, &offset);
    let places = low_bits(b, &places);
    let numbers = mixed(b, &places);
    let limit = scalar(b, ((ratio.clamp(0.0, 1.0) * RANGE as f64) as i64).min(RANGE - 1));
    let kept = b.op("GreaterOrEqual", &[&numbers, &limit]);
    b.reshape(&kept, shape)
}

/// Odd, so that steps visit all numbers before one comes again.
const STRIDE: i64 = 0x1e37_79b1;

/// A number for a key (SplitMix64 of both of its parts).
fn start(key: [u64; 2]) -> i64 {
    let mix = |state: u64| {
        let z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    (mix(mix(key[0]) ^ key[1]) % RANGE as u64) as i64
}

/// As unsigned numbers: only these are shifted, and tract has int64 in a type of its own at places, which it can add, multiply and
/// cast but not take apart.
fn low_bits(b: &mut Builder, x: &ValueId) -> ValueId {
    let x = b.cast(x, DType::U64);
    let all = b.scalar_like(&x, (RANGE - 1) as f64);
    b.op("BitwiseAnd", &[&x, &all])
}

/// From uint64 to int64, a bijection each of whose bits depends on all of its input's: shifts and products, as in Murmur's last step.
fn mixed(b: &mut Builder, x: &ValueId) -> ValueId {
    let mut x = folded(b, x, 15);
    for (factor, bits) in [(0x2c1b_3c6d, 12), (0x297a_2d39, 15)] {
        // Few runtimes multiply unsigned numbers.
        let signed = b.cast(&x, DType::I64);
        let factor = b.constant(Tensor::i64(&[], &[factor]));
        let product = b.mul(&signed, &factor);
        let product = low_bits(b, &product);
        x = folded(b, &product, bits);
    }
    b.cast(&x, DType::I64)
}

/// x ⊕ (x >> bits).
fn folded(b: &mut Builder, x: &ValueId, bits: u32) -> ValueId {
    let bits = b.scalar_like(x, f64::from(bits));
    let high = b.op_with("BitShift", &[x, &bits], &[("direction", Attr::from("RIGHT"))]);
    b.op("BitwiseXor", &[x, &high])
}

#[cfg(all(test, feature = "tract"))]
mod tests {
    use super::*;
    use crate::onnx::{Fact, Model, WORKING_OPSET};
    use crate::runtime::{Executor, TractExecutor, Value};

    const SHAPE: [usize; 2] = [64, 250];
    const COUNT: f64 = 16_000.0;

    fn masks(key: [u64; 2], ratio: f64, steps: &[i64]) -> crate::Result<Vec<Vec<f64>>> {
        let mut b = Builder::new("mask");
        let step = b.input("step", Fact::new(DType::I64, &[]));
        let kept = kept(&mut b, &step, key, &SHAPE, ratio);
        let kept = b.cast(&kept, DType::F32);
        b.output_as("kept", &kept);
        let (graph, facts) = b.finish();
        let mut program = TractExecutor::new(1)?.compile(&Model::new(graph, WORKING_OPSET), &facts)?;
        let mut run = |&step: &i64| -> crate::Result<Vec<f64>> {
            Ok(program.run(&[Value::host(Tensor::i64(&[], &[step]))])?[0].to_host()?.to_f64())
        };
        steps.iter().map(&mut run).collect()
    }

    fn share(pairs: impl Iterator<Item = (f64, f64)>) -> f64 {
        let (count, alike) = pairs.fold((0.0, 0.0), |(n, s), (a, b)| (n + 1.0, s + f64::from(a == b)));
        alike / count
    }

    /// A fair coin's share of heads is within 0.02 of a half at 16,000 throws but once in two million times.
    #[test]
    fn elements_steps_and_keys_are_independent() -> crate::Result<()> {
        let steps: Vec<i64> = (0..20).chain([1_000_000, 1 << 40]).collect();
        let found = masks([3, 0], 0.5, &steps)?;
        let near = |what: &str, share: f64| assert!((share - 0.5).abs() < 0.02, "{what}: {share}");
        for (mask, step) in found.iter().zip(&steps) {
            near(&format!("kept at step {step}"), mask.iter().sum::<f64>() / COUNT);
            for distance in [1, 2, 3, 16, 64, SHAPE[1]] {
                let pairs = mask.iter().zip(&mask[distance..]).map(|(a, b)| (*a, *b));
                near(&format!("{distance} apart at step {step}"), share(pairs));
            }
        }
        for (i, (a, b)) in found.iter().zip(&found[1..]).enumerate() {
            near(&format!("steps {i} and the next"), share(a.iter().copied().zip(b.iter().copied())));
        }
        for key in [[4, 0], [3, 1], [0, 3]] {
            let other = masks(key, 0.5, &[0])?;
            near(&format!("key {key:?}"), share(found[0].iter().copied().zip(other[0].iter().copied())));
        }
        assert_eq!(found[1], masks([3, 0], 0.5, &[1])?[0]);
        Ok(())
    }

    #[test]
    fn the_ratio_is_left_out() -> crate::Result<()> {
        for ratio in [0.0, 0.1, 0.9, 1.0] {
            let kept = masks([9, 9], ratio, &[5])?[0].iter().sum::<f64>() / COUNT;
            assert!((kept - (1.0 - ratio)).abs() < 0.015, "{ratio}: {kept}");
        }
        Ok(())
    }
}
