//! Operators in the forms of old operator sets: upgraded, they give what ONNX Runtime makes of the old form, and their
//! gradients agree with central differences.

use crate::differences::{Manner, Miss, Subject, compare};
use crate::kernels::Given::{Fixed, Missing, Real};
use crate::kernels::{Case, case, ort, run};
use onnx_merge::autodiff::prepare::upgrade;
use onnx_merge::onnx::{Attr, DType, Tensor};

fn ints(values: &[i64]) -> Attr {
    Attr::Ints(values.to_vec())
}

fn cases() -> Vec<Case> {
    let image = Real(&[2, 3, 4, 5]);
    let at = |opset: i64, case: Case| case.opset(opset);
    let reduce =
        |name| case(name, &[("axes", ints(&[1, -1])), ("keepdims", Attr::Int(0))], &[Real(&[2, 3, 4])]);
    let mut all = vec![
        at(
            7,
            case(
                "AveragePool",
                &[
                    ("kernel_shape", ints(&[2, 2])),
                    ("pads", ints(&[1, 0, 0, 1])),
                    ("count_include_pad", Attr::Int(1)),
                ],
                std::slice::from_ref(&image),
            ),
        ),
        at(
            7,
            case(
                "BatchNormalization",
                &[("epsilon", Attr::Float(1e-2))],
                &[
                    image.clone(),
                    Real(&[3]),
                    Real(&[3]),
                    Real(&[3]),
                    Fixed(Tensor::f32(&[3], &[0.5, 1.0, 2.0])),
                ],
            ),
        ),
        at(
            7,
            case(
                "BatchNormalization spatial",
                &[("spatial", Attr::Int(1))],
                &[
                    image.clone(),
                    Real(&[3]),
                    Real(&[3]),
                    Real(&[3]),
                    Fixed(Tensor::f32(&[3], &[0.5, 1.0, 2.0])),
                ],
            ),
        ),
        at(
            9,
            case(
                "BatchNormalization",
                &[],
                &[
                    image.clone(),
                    Real(&[3]),
                    Real(&[3]),
                    Real(&[3]),
                    Fixed(Tensor::f32(&[3], &[0.5, 1.0, 2.0])),
                ],
            ),
        ),
        at(7, case("Clip", &[("min", Attr::Float(-0.3)), ("max", Attr::Float(0.4))], &[Real(&[3, 4])])),
        at(7, case("Clip without bounds", &[], &[Real(&[3, 4])])),
        at(7, case("Concat", &[("axis", Attr::Int(1))], &[Real(&[2, 3]), Real(&[2, 1])])),
        at(
            7,
            case(
                "Conv",
                &[("auto_pad", "SAME_LOWER".into()), ("strides", ints(&[2, 2]))],
                &[image.clone(), Real(&[4, 3, 3, 3]), Real(&[4])],
            ),
        ),
        at(
            7,
            case(
                "ConvTranspose",
                &[("output_shape", ints(&[9, 10])), ("strides", ints(&[2, 2]))],
                &[image.clone(), Real(&[3, 2, 3, 3])],
            ),
        ),
        at(7, case("Dropout", &[("ratio", Attr::Float(0.7))], &[Real(&[3, 4])])),
        at(10, case("Dropout of opset 10", &[("ratio", Attr::Float(0.7))], &[Real(&[3, 4])])),
        at(12, case("Dropout ratio as input", &[], &[Real(&[3, 4]), Fixed(Tensor::f32(&[], &[0.6]))])),
        at(7, case("Elu", &[("alpha", Attr::Float(0.7))], &[Real(&[3, 4])])),
        at(7, case("Flatten", &[("axis", Attr::Int(2))], std::slice::from_ref(&image))),
        at(
            7,
            case(
                "Gemm",
                &[("alpha", Attr::Float(0.5)), ("beta", Attr::Float(2.0)), ("transB", Attr::Int(1))],
                &[Real(&[2, 3]), Real(&[4, 3]), Real(&[4])],
            ),
        ),
        at(11, case("Gemm without C", &[], &[Real(&[2, 3]), Real(&[3, 4])])),
        at(
            7,
            case(
                "GRU reset after the product",
                &[("hidden_size", Attr::Int(3)), ("linear_before_reset", Attr::Int(1))],
                &[Real(&[4, 2, 5]), Real(&[1, 9, 5]), Real(&[1, 9, 3]), Real(&[1, 18])],
            )
            .outputs(2),
        ),
        at(
            7,
            case(
                "GRU both ways",
                &[("hidden_size", Attr::Int(3)), ("direction", "bidirectional".into())],
                &[
                    Real(&[4, 2, 5]),
                    Real(&[2, 9, 5]),
                    Real(&[2, 9, 3]),
                    Real(&[2, 18]),
                    Fixed(Tensor::i64(&[2], &[3, 4]).cast(DType::I32)),
                    Real(&[2, 2, 3]),
                ],
            )
            .outputs(2),
        ),
        at(7, case("HardSigmoid", &[("alpha", Attr::Float(0.3))], &[Real(&[3, 4])])),
        at(
            7,
            case(
                "InstanceNormalization",
                &[("epsilon", Attr::Float(1e-2))],
                &[image.clone(), Real(&[3]), Real(&[3])],
            ),
        ),
        at(
            7,
            case(
                "LpPool",
                &[("kernel_shape", ints(&[2, 2])), ("p", Attr::Int(2))],
                std::slice::from_ref(&image),
            ),
        ),
        at(
            7,
            case(
                "LSTM with peepholes, backwards",
                &[("hidden_size", Attr::Int(3)), ("direction", "reverse".into())],
                &[
                    Real(&[4, 2, 5]),
                    Real(&[1, 12, 5]),
                    Real(&[1, 12, 3]),
                    Real(&[1, 24]),
                    Missing,
                    Real(&[1, 2, 3]),
                    Real(&[1, 2, 3]),
                    Real(&[1, 9]),
                ],
            )
            .outputs(3),
        ),
        at(
            7,
            case(
                "LSTM coupled, clipped",
                &[("hidden_size", Attr::Int(3)), ("input_forget", Attr::Int(1)), ("clip", Attr::Float(0.8))],
                &[Real(&[4, 2, 5]), Real(&[1, 12, 5]), Real(&[1, 12, 3]), Real(&[1, 24])],
            )
            .outputs(3),
        ),
        at(7, case("LogSoftmax over the tail", &[("axis", Attr::Int(1))], &[Real(&[2, 3, 4])])),
        at(8, case("Max", &[], &[Real(&[2, 3]), Real(&[3])])),
        at(
            8,
            case(
                "MaxPool",
                &[("kernel_shape", ints(&[3, 2])), ("strides", ints(&[1, 2])), ("pads", ints(&[1, 0, 1, 0]))],
                std::slice::from_ref(&image),
            ),
        ),
        at(8, case("Mean", &[], &[Real(&[2, 3]), Real(&[3]), Real(&[2, 1])])),
        at(
            9,
            case(
                "OneHot values",
                &[("axis", Attr::Int(1))],
                &[Fixed(Tensor::i64(&[3], &[0, 2, 1])), Fixed(Tensor::i64(&[], &[3])), Real(&[2])],
            ),
        ),
        at(7, case("PRelu", &[], &[Real(&[2, 3, 4]), Real(&[3, 1])])),
        at(
            7,
            case(
                "Pad with a value",
                &[("pads", ints(&[0, 1, 2, 0])), ("value", Attr::Float(0.5))],
                &[Real(&[3, 4])],
            ),
        ),
        at(
            7,
            case(
                "Pad by reflection",
                &[("pads", ints(&[1, 0, 1, 2])), ("mode", "reflect".into())],
                &[Real(&[3, 4])],
            ),
        ),
        at(7, case("Pow", &[], &[Fixed(Tensor::f32(&[2, 2], &[0.5, 1.5, 2.0, 0.7])), Real(&[2, 2])])),
        at(
            10,
            case(
                "Resize",
                &[("mode", "linear".into())],
                &[image.clone(), Fixed(Tensor::f32(&[4], &[1.0, 1.0, 2.0, 1.5]))],
            ),
        ),
        at(
            11,
            case(
                "Resize by sizes",
                &[("mode", "linear".into()), ("coordinate_transformation_mode", "half_pixel".into())],
                &[
                    image.clone(),
                    Fixed(Tensor::f32(&[0], &[])),
                    Fixed(Tensor::f32(&[0], &[])),
                    Fixed(Tensor::i64(&[4], &[2, 3, 8, 6])),
                ],
            ),
        ),
        at(
            7,
            case(
                "RNN",
                &[("hidden_size", Attr::Int(3)), ("activations", Attr::Strs(vec!["Relu".into()]))],
                &[Real(&[4, 2, 5]), Real(&[1, 3, 5]), Real(&[1, 3, 3]), Real(&[1, 6])],
            )
            .outputs(2),
        ),
        at(
            10,
            case(
                "RoiAlign",
                &[
                    ("output_height", Attr::Int(2)),
                    ("output_width", Attr::Int(2)),
                    ("sampling_ratio", Attr::Int(2)),
                ],
                &[
                    image.clone(),
                    Fixed(Tensor::f32(&[1, 4], &[0.3, 0.4, 3.1, 2.7])),
                    Fixed(Tensor::i64(&[1], &[1])),
                ],
            ),
        ),
        at(
            9,
            case(
                "Scatter",
                &[("axis", Attr::Int(1))],
                &[Real(&[2, 4]), Fixed(Tensor::i64(&[2, 2], &[0, 3, 2, 1])), Real(&[2, 2])],
            ),
        ),
        at(
            7,
            case(
                "Slice",
                &[("starts", ints(&[1, 0])), ("ends", ints(&[1000, -1])), ("axes", ints(&[1, 2]))],
                &[Real(&[2, 3, 4])],
            ),
        ),
        at(
            7,
            case(
                "Slice without axes",
                &[("starts", ints(&[0, 1])), ("ends", ints(&[1, 3]))],
                &[Real(&[2, 3, 4])],
            ),
        ),
        at(
            10,
            case(
                "Slice by inputs",
                &[],
                &[
                    Real(&[2, 5]),
                    Fixed(Tensor::i64(&[1], &[-1])),
                    Fixed(Tensor::i64(&[1], &[-6])),
                    Fixed(Tensor::i64(&[1], &[1])),
                    Fixed(Tensor::i64(&[1], &[-2])),
                ],
            ),
        ),
        at(7, case("Softmax over the tail", &[], &[Real(&[2, 3, 4])])),
        at(11, case("Softmax over the tail", &[("axis", Attr::Int(2))], std::slice::from_ref(&image))),
        at(7, case("Softmax along the last axis", &[("axis", Attr::Int(2))], &[Real(&[2, 3, 4])])),
        at(
            7,
            case("Split", &[("axis", Attr::Int(1)), ("split", ints(&[1, 3]))], &[Real(&[2, 4])]).outputs(2),
        ),
        at(7, case("Split evenly", &[("axis", Attr::Int(-1))], &[Real(&[2, 4])]).outputs(2)),
        at(7, case("Squeeze", &[("axes", ints(&[0, 2]))], &[Real(&[1, 3, 1, 2])])),
        at(7, case("Unsqueeze", &[("axes", ints(&[0, 2]))], &[Real(&[3, 2])])),
        at(8, case("Sum", &[], &[Real(&[2, 3]), Real(&[3])])),
        at(7, case("Tile", &[], &[Real(&[2, 3]), Fixed(Tensor::i64(&[2], &[2, 3]))])),
        at(7, case("TopK", &[("k", Attr::Int(2)), ("axis", Attr::Int(1))], &[Real(&[2, 5])]).outputs(2)),
        at(10, case("TopK", &[], &[Real(&[2, 5]), Fixed(Tensor::i64(&[1], &[3]))]).outputs(2)),
        at(
            7,
            case(
                "Upsample by nearest",
                &[("mode", "nearest".into()), ("scales", Attr::Floats(vec![1.0, 1.0, 2.0, 3.0]))],
                std::slice::from_ref(&image),
            ),
        ),
        at(
            7,
            case(
                "Upsample linearly",
                &[("mode", "linear".into()), ("scales", Attr::Floats(vec![1.0, 1.0, 2.0, 2.0]))],
                std::slice::from_ref(&image),
            ),
        ),
        at(
            9,
            case(
                "Upsample",
                &[("mode", "nearest".into())],
                &[image, Fixed(Tensor::f32(&[4], &[1.0, 1.0, 2.0, 2.0]))],
            ),
        ),
        at(12, case("SoftmaxCrossEntropyLoss", &[], &[Real(&[3, 4]), Fixed(Tensor::i64(&[3], &[0, 3, 1]))])),
        at(
            12,
            case("NegativeLogLikelihoodLoss", &[], &[Real(&[3, 4]), Fixed(Tensor::i64(&[3], &[0, 3, 1]))]),
        ),
        at(17, case("LayerNormalization", &[], &[Real(&[2, 3, 4]), Real(&[4]), Real(&[4])])),
    ];
    for name in [
        "ReduceL1",
        "ReduceL2",
        "ReduceLogSumExp",
        "ReduceMax",
        "ReduceMean",
        "ReduceMin",
        "ReduceProd",
        "ReduceSum",
        "ReduceSumSquare",
    ] {
        all.push(at(7, reduce(name)));
        all.push(at(11, reduce(name)));
    }
    all
}

#[test]
fn positions_normalised_by_themselves_become_arithmetic() {
    let Some(executor) = ort() else { return };
    let case = case(
        "BatchNormalization",
        &[("spatial", Attr::Int(0)), ("epsilon", Attr::Float(0.5))],
        &[
            Real(&[2, 3, 2]),
            Real(&[3, 2]),
            Real(&[3, 2]),
            Real(&[3, 2]),
            Fixed(Tensor::f32(&[3, 2], &[0.5, 1.0, 2.0, 3.5, 0.0, 8.5])),
        ],
    )
    .opset(7);
    let (model, point, _) = case.model();
    let y = run(&*executor, &upgrade(&model).unwrap(), &point).unwrap().remove(0).to_f64();
    let value = |i: usize| point[&model.graph.inputs[i].id].to_f64();
    let (x, scale, bias, mean) = (value(0), value(1), value(2), value(3));
    let deviations = [1.0f64, 1.5, 2.5, 4.0, 0.5, 9.0].map(f64::sqrt);
    for (i, y) in y.iter().enumerate() {
        let k = i % 6;
        let expected = (x[i] - mean[k]) / deviations[k] * scale[k] + bias[k];
        assert!((y - expected).abs() < 1e-5, "{y} for {expected}");
    }
}

#[test]
fn old_forms_mean_the_same_upgraded_and_have_their_gradients() {
    let Some(executor) = ort() else {
        println!("skipped: ONNX Runtime isn't here");
        return;
    };
    let mut failures = vec![];
    let mut passed = 0;
    for case in cases() {
        let name = format!("{} of opset {}", case.name, case.opset);
        let (model, point, varied) = case.model();
        let checked = upgrade(&model).map_err(|e| e.to_string()).and_then(|new| {
            let (before, after) = (run(&*executor, &model, &point)?, run(&*executor, &new, &point)?);
            for (a, b) in before.iter().zip(&after) {
                let far =
                    a.to_f64().iter().zip(&b.to_f64()).any(|(a, b)| (a - b).abs() > 1e-5 * (1.0 + a.abs()));
                if a.shape() != b.shape() || far {
                    return Err("the upgraded form gives something else".into());
                }
            }
            // Kinks lie closer than the step of float32: another direction, then.
            let subject = || Subject { model: &new, point: point.clone(), varied: varied.clone() };
            let manner = Manner { step: 3e-3, ..Manner::of(DType::F32) };
            let mut said = String::new();
            for seed in 1..5 {
                match compare(&*executor, &subject(), manner, seed) {
                    Ok(o) if o.error <= manner.tolerance && o.reached == varied.len() => return Ok(()),
                    Ok(o) => {
                        said = format!(
                            "{} for {}, {} of {} reached",
                            o.analytic,
                            o.numeric,
                            o.reached,
                            varied.len()
                        )
                    }
                    Err(Miss::Forward(e)) => return Err(format!("doesn't run: {e}")),
                    Err(Miss::Gradient(e)) => return Err(format!("no gradient: {e}")),
                    Err(Miss::Backward(e)) => return Err(format!("its gradient doesn't run: {e}")),
                    Err(_) => said = "nothing to compare".into(),
                }
            }
            Err(said)
        });
        match checked {
            Ok(()) => passed += 1,
            Err(why) => failures.push(format!("{name}: {why}")),
        }
    }
    println!("{passed} old forms agree");
    failures.iter().for_each(|failure| println!("FAILED {failure}"));
    assert!(failures.is_empty(), "{} old forms fail", failures.len());
}
