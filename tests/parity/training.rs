//! A small convolutional network's training step on every executor: the same losses, the same weights.

use super::executors;
use onnx_merge::Result;
use onnx_merge::onnx::{Attr, Builder, DType, Fact, Model, Tensor, ValueId, WORKING_OPSET};
use onnx_merge::runtime::{Runner, State, StepProgram, Value};

const BATCH: usize = 4;

/// Numbers in [−½, ½) that look random and are the same everywhere.
fn noise(shape: &[usize], seed: u64) -> Tensor {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let count = shape.iter().product();
    let values: Vec<f32> = (0..count)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
        })
        .collect();
    Tensor::f32(shape, &values)
}

/// conv 3×3 → ReLU → linear → ½ Σ (y − t)² / n, its gradient written out, and a step of gradient descent.
fn program() -> StepProgram {
    let mut b = Builder::new("step");
    let x = b.input("x", Fact::new(DType::F32, &[BATCH, 2, 8, 8]));
    let t = b.input("t", Fact::new(DType::F32, &[BATCH, 3]));
    let kernel = b.input("kernel", Fact::new(DType::F32, &[4, 2, 3, 3]));
    let weight = b.input("weight", Fact::new(DType::F32, &[256, 3]));
    let pads = [("pads", Attr::from(vec![1, 1, 1, 1]))];

    let conv = b.op_with("Conv", &[&x, &kernel], &pads);
    let hidden = b.op("Relu", &[&conv]);
    let flat = b.reshape(&hidden, &[BATCH, 256]);
    let y = b.matmul(&flat, &weight);
    let error = b.sub(&y, &t);
    let square = b.mul(&error, &error);
    let sum = b.sum_all(&square);
    let loss = b.mul_scalar(&sum, 0.5 / BATCH as f64);
    b.output_as("loss", &loss);

    let dy = b.mul_scalar(&error, 1.0 / BATCH as f64);
    let flat_t = b.transpose_matrix(&flat);
    let dweight = b.matmul(&flat_t, &dy);
    let weight_t = b.transpose_matrix(&weight);
    let dflat = b.matmul(&dy, &weight_t);
    let dhidden = b.reshape(&dflat, &[BATCH, 4, 8, 8]);
    let zero = b.scalar_like(&conv, 0.0);
    let open = b.op("Greater", &[&conv, &zero]);
    let dconv = b.where_(&open, &dhidden, &zero);
    // The weight gradient of a convolution is the convolution of the input with the cotangent, roles swapped.
    let x_t = b.transpose(&x, &[1, 0, 2, 3]);
    let dconv_t = b.transpose(&dconv, &[1, 0, 2, 3]);
    let dkernel_t = b.op_with("Conv", &[&x_t, &dconv_t], &pads);
    let dkernel = b.transpose(&dkernel_t, &[1, 0, 2, 3]);
    b.output_as("kernel.grad", &dkernel);

    let mut state = vec![];
    for (input, gradient, shape, seed) in
        [(kernel, dkernel, &[4usize, 2, 3, 3][..], 1), (weight, dweight, &[256, 3], 2)]
    {
        let change = b.mul_scalar(&gradient, 0.02);
        let next = b.sub(&input, &change);
        let output = b.output_as(&format!("{input}.next"), &next);
        state.push(State { input, output, initial: noise(shape, seed) });
    }
    let (graph, facts) = b.finish();
    StepProgram { model: Model::new(graph, WORKING_OPSET), facts, state }
}

#[test]
fn a_training_step_gives_the_same_numbers_everywhere() -> Result<()> {
    let program = program();
    let mut reference: Option<Vec<Vec<f64>>> = None;
    for executor in executors::all() {
        let name = executor.name();
        let mut runner = Runner::new(executor, &program)?;
        let (x, t, loss) =
            (runner.feed(&"x".into())?, runner.feed(&"t".into())?, runner.fetch(&"loss".into())?);
        let mut losses = vec![];
        for step in 0..20 {
            runner.set(x, Value::host(noise(&[BATCH, 2, 8, 8], 10 + step % 3)))?;
            runner.set(t, Value::host(noise(&[BATCH, 3], 20 + step % 3)))?;
            losses.push(runner.run()?.scalar(loss)?);
        }
        assert!(losses[19] < 0.5 * losses[1], "{name}: {losses:?}");
        let mut numbers = vec![losses];
        for id in ["kernel", "weight"].map(ValueId::from) {
            numbers.push(runner.state(&id)?.to_f64());
        }
        match &reference {
            None => reference = Some(numbers),
            Some(reference) => {
                for (a, b) in reference.iter().flatten().zip(numbers.iter().flatten()) {
                    assert!((a - b).abs() <= 1e-4 * (1.0 + a.abs()), "{name}: {a} and {b}");
                }
            }
        }
    }
    Ok(())
}

#[test]
fn the_gradient_agrees_with_central_differences() -> Result<()> {
    let program = program();
    for executor in executors::all() {
        let mut runner = Runner::new(executor, &program)?;
        let feeds = [
            ("x".into(), Value::host(noise(&[BATCH, 2, 8, 8], 10))),
            ("t".into(), Value::host(noise(&[BATCH, 3], 20))),
        ];
        let outputs = runner.step(&feeds)?;
        let gradient = outputs[&"kernel.grad".into()].to_host()?.to_f64();
        let start = program.state[0].initial.to_f64();
        let mut loss_at = |values: &[f64]| -> Result<f64> {
            runner.reset()?;
            runner.set_state(&"kernel".into(), &Tensor::from_f64(DType::F32, &[4, 2, 3, 3], values))?;
            runner.step(&feeds)?[&"loss".into()].scalar()
        };
        // Steps small enough that no unit of these passes its kink.
        for i in [0, 71] {
            let mut moved = [start.clone(), start.clone()];
            moved[0][i] += 1e-3;
            moved[1][i] -= 1e-3;
            let numeric = (loss_at(&moved[0])? - loss_at(&moved[1])?) / 2e-3;
            assert!(
                (numeric - gradient[i]).abs() < 2e-2 * (0.1 + numeric.abs()),
                "{i}: {numeric} {}",
                gradient[i]
            );
        }
    }
    Ok(())
}
