//! Kernels that ONNX Runtime is given, and operands reshaped for it, against its own kernels.

use crate::wgpu::{distance, noise};
use onnx_merge::Result;
use onnx_merge::autodiff;
use onnx_merge::onnx::{
    Attr, Builder, DType, Fact, Facts, Forms, Graph, Model, Tensor, ValueId, WORKING_OPSET,
};
use onnx_merge::runtime::{Executor, ExecutorChoice, ExecutorOptions, Value, open};
use std::sync::Arc;

fn onnx_runtime() -> Option<Arc<dyn Executor>> {
    let options = ExecutorOptions { threads: Some(2), ..ExecutorOptions::default() };
    open(ExecutorChoice::Ort, &options).map_err(|error| println!("skipped: {error}")).ok()
}

/// What a graph gives; where only its inputs' facts are known, by ONNX Runtime's own kernels.
fn run(ort: &dyn Executor, graph: &Graph, facts: &Facts) -> Result<Vec<Tensor>> {
    let model = Model::new(graph.clone(), WORKING_OPSET);
    let feeds = graph.inputs.iter().enumerate().map(|(i, input)| {
        let fact = &facts[&input.id];
        let values = noise(&fact.shape, i as u32);
        Value::host(match fact.dtype {
            DType::Bool => Tensor::from_f64(
                DType::Bool,
                &fact.shape,
                &values.to_f64().iter().map(|&v| f64::from(u8::from(v > 0.0))).collect::<Vec<_>>(),
            ),
            _ => values,
        })
    });
    let feeds: Vec<Value> = feeds.collect();
    let outputs = ort.compile(&model, facts)?.run(&feeds)?;
    outputs.iter().map(Value::to_host).collect()
}

/// Asserts that a graph gives the same by kernels of ours and by ONNX Runtime's.
pub fn agree(what: &str, build: impl Fn(&mut Builder) -> Result<Vec<ValueId>>) -> Result<()> {
    let Some(ort) = onnx_runtime() else { return Ok(()) };
    let mut b = Builder::new("case");
    for output in build(&mut b)? {
        b.output(&output);
    }
    let (graph, facts) = b.finish();
    let mut inputs = facts.clone();
    inputs.retain(|id, _| graph.inputs.iter().any(|input| input.id == *id));
    let (found, expected) = (run(&*ort, &graph, &facts)?, run(&*ort, &graph, &inputs)?);
    for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
        let apart = distance(found, expected);
        assert!(apart <= 1e-5, "{what}, output {i}: {apart:e} apart");
    }
    Ok(())
}

fn image(b: &mut Builder, name: &str, shape: &[usize]) -> ValueId {
    b.input(name, Fact::new(DType::F32, shape))
}

fn window(strides: [i64; 2], dilations: [i64; 2], pads: [i64; 4], group: usize) -> Vec<(&'static str, Attr)> {
    vec![
        ("strides", Attr::Ints(strides.to_vec())),
        ("dilations", Attr::Ints(dilations.to_vec())),
        ("pads", Attr::Ints(pads.to_vec())),
        ("group", Attr::Int(group as i64)),
    ]
}

/// Images, kernels, strides, dilations, padding.
type Geometry = ([usize; 4], [usize; 4], [i64; 2], [i64; 2], [i64; 4]);

const DEPTHWISE: [Geometry; 8] = [
    ([2, 6, 2, 2], [6, 1, 3, 3], [1, 1], [1, 1], [1, 1, 1, 1]),
    ([2, 6, 14, 14], [6, 1, 3, 3], [1, 1], [1, 1], [1, 1, 1, 1]),
    ([3, 6, 15, 14], [6, 1, 3, 3], [2, 2], [1, 1], [1, 1, 1, 1]),
    ([1, 4, 20, 37], [4, 1, 5, 3], [1, 2], [1, 1], [2, 0, 2, 1]),
    ([2, 4, 20, 21], [4, 1, 3, 3], [1, 1], [2, 3], [2, 3, 2, 3]),
    ([2, 4, 20, 21], [4, 1, 3, 2], [3, 2], [2, 1], [1, 0, 0, 1]),
    ([2, 5, 4, 4], [5, 1, 4, 4], [1, 1], [1, 1], [0, 0, 0, 0]),
    ([2, 3, 9, 9], [6, 1, 3, 3], [1, 1], [1, 1], [1, 1, 1, 1]),
];

#[test]
fn depthwise_convolutions_and_their_gradients() -> Result<()> {
    for (x, w, strides, dilations, pads) in DEPTHWISE {
        for biased in [false, true] {
            agree(&format!("{x:?} by {w:?}, biased: {biased}"), |b| {
                b.forms = Forms::Kernels { products: true };
                let mut inputs = vec![image(b, "x", &x), image(b, "w", &w)];
                if biased {
                    inputs.push(image(b, "bias", &w[..1]));
                }
                let attrs = window(strides, dilations, pads, x[1]);
                let y = b.op_with("Conv", &inputs.iter().collect::<Vec<_>>(), &attrs);
                let shape = b.shape(&y);
                let seed = image(b, "seed", &shape);
                let gradients = autodiff::backward(b, &[(y.clone(), seed)], &inputs)?;
                Ok([y].into_iter().chain(inputs.iter().map(|id| gradients[id].clone())).collect())
            })?;
        }
    }
    Ok(())
}

#[test]
fn transposed_convolutions_of_single_channels() -> Result<()> {
    for (x, w, strides, dilations, pads) in DEPTHWISE.into_iter().filter(|(x, w, ..)| x[1] == w[0]) {
        agree(&format!("{x:?} by {w:?}, transposed"), |b| {
            let inputs = [image(b, "x", &x), image(b, "w", &w), image(b, "bias", &w[..1])];
            let mut attrs = window(strides, dilations, pads, x[1]);
            attrs.push(("output_padding", Attr::Ints(strides.map(|s| s - 1).to_vec())));
            let inputs: Vec<&ValueId> = inputs.iter().collect();
            Ok(vec![b.op_with("ConvTranspose", &inputs, &attrs)])
        })?;
    }
    Ok(())
}

#[test]
fn choices_between_tensors_and_numbers() -> Result<()> {
    let shapes: [&[usize]; 4] = [&[3, 50_000], &[70, 1, 1], &[1], &[]];
    for shape in shapes {
        for (x, y) in [(shape, shape), (shape, &[][..]), (&[1][..], shape), (&[][..], &[][..])] {
            if x.len().max(y.len()) > shape.len() {
                continue;
            }
            agree(&format!("{shape:?}: {x:?} or {y:?}"), |b| {
                let condition = b.input("condition", Fact::new(DType::Bool, shape));
                let (x, y) = (image(b, "x", x), image(b, "y", y));
                Ok(vec![b.op("Where", &[&condition, &x, &y])])
            })?;
        }
    }
    Ok(())
}

/// What isn't chosen may be anything.
#[test]
fn what_is_not_chosen_leaves_no_trace() -> Result<()> {
    let Some(ort) = onnx_runtime() else { return Ok(()) };
    let mut b = Builder::new("case");
    let condition = b.input("condition", Fact::new(DType::Bool, &[3]));
    let (x, y) = (image(&mut b, "x", &[3]), image(&mut b, "y", &[3]));
    let chosen = b.op("Where", &[&condition, &x, &y]);
    b.output(&chosen);
    let (graph, facts) = b.finish();
    let feeds = [
        Tensor::from_f64(DType::Bool, &[3], &[1.0, 0.0, 0.0]),
        Tensor::f32(&[3], &[1.0, f32::NAN, f32::INFINITY]),
        Tensor::f32(&[3], &[f32::NAN, 2.0, 3.0]),
    ];
    let outputs = ort.compile(&Model::new(graph, WORKING_OPSET), &facts)?.run(&feeds.map(Value::host))?;
    let values: Vec<Vec<f64>> = outputs.iter().map(|v| Ok(v.to_host()?.to_f64())).collect::<Result<_>>()?;
    assert_eq!(values, [[1.0, 2.0, 3.0]]);
    Ok(())
}

#[test]
fn operands_of_fewer_axes_than_the_result() -> Result<()> {
    let results: [&[usize]; 3] = [&[20, 30, 1, 1], &[100, 1], &[4, 8, 8, 1]];
    for shape in results {
        for op in ["Add", "Sub", "Mul", "Div", "Max"] {
            agree(&format!("{op} of {shape:?}"), |b| {
                let x = image(b, "x", shape);
                let (scalar, one, last) =
                    (image(b, "scalar", &[]), image(b, "one", &[1]), image(b, "last", &shape[1..]));
                Ok([&scalar, &one, &last].map(|other| b.op(op, &[&x, other])).to_vec())
            })?;
        }
    }
    Ok(())
}

/// Kernel, strides, dilations, padding on both sides.
type Window = ([i64; 2], [i64; 2], [i64; 2], [i64; 4]);

#[test]
fn gradients_of_max_pooling() -> Result<()> {
    let windows: [Window; 5] = [
        ([2, 2], [2, 2], [1, 1], [0; 4]),
        ([3, 3], [2, 2], [1, 1], [1; 4]),
        ([2, 3], [1, 3], [2, 1], [0, 1, 1, 0]),
        ([3, 2], [3, 2], [1, 1], [0; 4]),
        ([5, 5], [1, 1], [1, 1], [2; 4]),
    ];
    for (kernel, strides, dilations, pads) in windows {
        for ceil in [false, true] {
            let gradient = |forms: Forms| -> Result<Option<Vec<Tensor>>> {
                let Some(ort) = onnx_runtime() else { return Ok(None) };
                let mut b = Builder::new("case");
                b.forms = forms;
                let x = image(&mut b, "x", &[2, 5, 13, 17]);
                let mut attrs = window(strides, dilations, pads, 1);
                attrs.retain(|(name, _)| *name != "group");
                attrs
                    .extend([("kernel_shape", Attr::Ints(kernel.to_vec())), ("ceil_mode", Attr::from(ceil))]);
                let y = b.op_with("MaxPool", &[&x], &attrs);
                let shape = b.shape(&y);
                let seed = image(&mut b, "seed", &shape);
                let gradients = autodiff::backward(&mut b, &[(y, seed)], std::slice::from_ref(&x))?;
                b.output(&gradients[&x]);
                let (graph, facts) = b.finish();
                run(&*ort, &graph, &facts).map(Some)
            };
            let (Some(found), Some(expected)) =
                (gradient(Forms::Kernels { products: true })?, gradient(Forms::Products)?)
            else {
                return Ok(());
            };
            let apart = distance(&found[0], &expected[0]);
            assert!(apart <= 1e-5, "windows of {kernel:?} by {strides:?}: {apart:e} apart");
        }
    }
    Ok(())
}

/// Rows of a table that ids look up: none, some of them often, and enough for threads to share out.
#[test]
fn gradients_of_lookups() -> Result<()> {
    for (shape, axis, lookups) in [([7, 3], 0, 40), ([5, 9], 1, 4), ([900, 96], 0, 3000), ([3, 1], 0, 0)] {
        for known in [false, true] {
            agree_in_forms(&format!("{lookups} of {shape:?} along {axis}, known: {known}"), |b| {
                let table = image(b, "table", &shape);
                let size = shape[axis as usize] as i64;
                let places: Vec<i64> = (0..lookups).map(|i| (i * i * 31) % size - i % 2 * size).collect();
                let places = b.constant(Tensor::i64(&[places.len()], &places));
                let places = if known { places } else { b.op("Identity", &[&places]) };
                let taken = b.op_with("Gather", &[&table, &places], &[("axis", Attr::Int(axis))]);
                (taken, vec![table])
            })?;
        }
    }
    Ok(())
}

/// The gradients of what `build` makes of some inputs, and itself, in forms for kernels of ours and in others by ONNX Runtime's.
fn agree_in_forms(what: &str, build: impl Fn(&mut Builder) -> (ValueId, Vec<ValueId>)) -> Result<()> {
    let made = |forms: Forms, ours: bool| -> Result<Option<Vec<Tensor>>> {
        let Some(ort) = onnx_runtime() else { return Ok(None) };
        let mut b = Builder::new("case");
        b.forms = forms;
        let (y, inputs) = build(&mut b);
        let shape = b.shape(&y);
        let seed = image(&mut b, "seed", &shape);
        let gradients = autodiff::backward(&mut b, &[(y.clone(), seed)], &inputs)?;
        b.output(&y);
        inputs.iter().for_each(|id| b.output(&gradients[id]));
        let (graph, mut facts) = b.finish();
        facts.retain(|id, _| ours || graph.inputs.iter().any(|input| input.id == *id));
        run(&*ort, &graph, &facts).map(Some)
    };
    let ours = made(Forms::Kernels { products: true }, true)?;
    let Some((found, expected)) = ours.zip(made(Forms::Products, false)?) else { return Ok(()) };
    for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
        let apart = distance(found, expected);
        assert!(apart <= 2e-5, "{what}, output {i}: {apart:e} apart");
    }
    Ok(())
}

const CONVOLUTIONS: [Geometry; 11] = [
    ([2, 16, 14, 14], [24, 16, 3, 3], [1, 1], [1, 1], [1, 1, 1, 1]),
    ([3, 16, 15, 14], [20, 16, 3, 3], [2, 2], [1, 1], [1, 1, 1, 1]),
    ([5, 3, 33, 30], [17, 3, 7, 7], [2, 2], [1, 1], [3, 3, 3, 3]),
    ([1, 8, 40, 37], [33, 8, 5, 3], [1, 2], [1, 1], [2, 0, 2, 1]),
    ([2, 8, 40, 21], [13, 8, 3, 3], [1, 1], [2, 3], [2, 3, 2, 3]),
    ([2, 8, 40, 21], [13, 8, 3, 2], [3, 2], [2, 1], [1, 0, 0, 1]),
    ([2, 30, 8, 8], [40, 30, 1, 1], [1, 1], [1, 1], [0; 4]),
    ([3, 30, 17, 17], [40, 30, 1, 1], [2, 2], [1, 1], [0; 4]),
    ([3, 30, 17, 17], [40, 30, 1, 1], [3, 3], [1, 1], [1, 1, 0, 0]),
    ([9, 64, 4, 4], [32, 64, 3, 3], [1, 1], [1, 1], [1, 1, 1, 1]),
    // More windows than one product is made of.
    ([5, 4, 40, 40], [8, 4, 3, 3], [1, 1], [1, 1], [1, 1, 1, 1]),
];

#[test]
fn convolutions_of_many_channels_and_their_gradients() -> Result<()> {
    for (x, w, strides, dilations, pads) in CONVOLUTIONS {
        for biased in [false, true] {
            agree_in_forms(&format!("{x:?} by {w:?}, biased: {biased}"), |b| {
                let mut inputs = vec![image(b, "x", &x), image(b, "w", &w)];
                if biased {
                    inputs.push(image(b, "bias", &w[..1]));
                }
                let attrs = window(strides, dilations, pads, 1);
                (b.op_with("Conv", &inputs.iter().collect::<Vec<_>>(), &attrs), inputs)
            })?;
            agree_in_forms(&format!("{x:?} by {w:?}, transposed, biased: {biased}"), |b| {
                let coarse = [x[0], w[0], x[2], x[3]];
                let mut inputs = vec![image(b, "x", &coarse), image(b, "w", &w)];
                if biased {
                    inputs.push(image(b, "bias", &w[1..2]));
                }
                let mut attrs = window(strides, dilations, pads, 1);
                attrs.push(("output_padding", Attr::Ints(strides.map(|s| s - 1).to_vec())));
                (b.op_with("ConvTranspose", &inputs.iter().collect::<Vec<_>>(), &attrs), inputs)
            })?;
        }
    }
    Ok(())
}

#[test]
fn products_of_matrices() -> Result<()> {
    let shapes: [(&[usize], &[usize]); 8] = [
        (&[70, 65], &[65, 60]),
        (&[300, 64], &[64, 17]),
        (&[64, 1000], &[1000, 64]),
        (&[3, 40, 64], &[64, 48]),
        (&[2, 3, 64, 64], &[2, 3, 64, 70]),
        (&[2, 1, 64, 64], &[3, 64, 70]),
        (&[64, 70], &[5, 70, 64]),
        (&[2, 1, 50, 64], &[1, 1, 64, 64]),
    ];
    for (x, y) in shapes {
        for (turns_x, turns_y) in [(false, false), (true, false), (false, true), (true, true)] {
            agree_in_forms(&format!("{x:?} by {y:?}, turned: {turns_x}, {turns_y}"), |b| {
                let turned = |b: &mut Builder, name: &str, shape: &[usize], turns: bool| {
                    let mut stored = shape.to_vec();
                    if turns {
                        let n = stored.len();
                        stored.swap(n - 2, n - 1);
                    }
                    let stored = image(b, name, &stored);
                    let operand = if turns { b.transpose_matrix(&stored) } else { stored.clone() };
                    (stored, operand)
                };
                let ((x, x_matrix), (y, y_matrix)) = (turned(b, "x", x, turns_x), turned(b, "y", y, turns_y));
                let columns = b.shape(&y_matrix)[b.shape(&y_matrix).len() - 1];
                let bias = image(b, "bias", &[columns]);
                let product = b.matmul(&x_matrix, &y_matrix);
                (b.add(&product, &bias), vec![x, y, bias])
            })?;
        }
    }
    Ok(())
}

/// Heads of attention: operands and results with their axes in another order.
#[test]
fn products_of_permuted_operands() -> Result<()> {
    let heads = |b: &mut Builder, name: &str| {
        let given = image(b, name, &[2, 70, 3, 64]);
        (b.transpose(&given, &[0, 2, 1, 3]), given)
    };
    agree_in_forms("heads", |b| {
        let ((q, q_given), (k, k_given), (v, v_given)) = (heads(b, "q"), heads(b, "k"), heads(b, "v"));
        let kt = b.transpose(&k, &[0, 1, 3, 2]);
        let scores = b.matmul(&q, &kt);
        let seen = b.matmul(&scores, &v);
        (b.transpose(&seen, &[0, 2, 1, 3]), vec![q_given, k_given, v_given])
    })?;
    agree_in_forms("sequence first", |b| {
        let given = image(b, "x", &[70, 3, 64]);
        let (x, w) = (b.transpose(&given, &[1, 0, 2]), image(b, "w", &[64, 80]));
        let product = b.matmul(&x, &w);
        (b.transpose(&product, &[1, 0, 2]), vec![given, w])
    })?;
    agree_in_forms("of Gemm", |b| {
        let (x, y, bias) = (image(b, "x", &[70, 65]), image(b, "y", &[80, 70]), image(b, "bias", &[1, 80]));
        let attrs = [("transA", Attr::Int(1)), ("transB", Attr::Int(1))];
        (b.op_with("Gemm", &[&x, &y, &bias], &attrs), vec![x, y, bias])
    })
}
