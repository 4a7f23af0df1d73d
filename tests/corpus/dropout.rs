//! Steps of `grad` whose `Dropout` nodes drop, on every executor: the same elements everywhere, in the loss and in its gradient.

use crate::torch_refs::executors;
use onnx_merge::onnx::{Builder, DType, Dim, Fact, Model, Tensor, ValueId, WORKING_OPSET, read, save};
use onnx_merge::runtime::{Executor, Value};
use onnx_merge::train::grad::optimizer::{Optimizer, Rule};
use onnx_merge::train::grad::{Built, Form, LossKind, Request, build};
use std::collections::HashMap;

const ROWS: usize = 20;
const WIDTH: usize = 100;

/// `dropout(x · w)` twice over, element by element, for any number of rows; its losses are sums.
fn built(form: Form, seed: u64, executor: &dyn Executor) -> Built {
    let mut b = Builder::new("drop");
    let x = b.input("x", Fact::new(DType::F32, &[1, WIDTH]));
    let w = b.initializer("w", Tensor::f32(&[WIDTH], &[1.0; WIDTH]));
    let mut y = b.mul(&x, &w);
    for ratio in [0.2, 0.5] {
        let ratio = b.constant(Tensor::scalar(DType::F32, ratio));
        y = b.op("Dropout", &[&y, &ratio]);
    }
    b.output_as("y", &y);
    let mut model = Model::new(b.finish().0, WORKING_OPSET);
    for info in model.graph.inputs.iter_mut().chain(&mut model.graph.outputs) {
        info.shape.as_mut().unwrap()[0] = Dim::Named("N".into());
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("drop.onnx");
    save(&model, &path).unwrap();
    let request = Request { dropout: Some(seed), ..Request::new(LossKind::Sum, form) };
    build(&read(&path).unwrap(), &request, executor).unwrap()
}

/// The outputs by name. Inputs that aren't given are the first state's.
fn run(built: &Built, given: &[(&str, &Tensor)], executor: &dyn Executor) -> HashMap<String, Tensor> {
    let of = |name: &str| {
        let given = given.iter().find(|(own, _)| *own == name).map(|(_, t)| (*t).clone());
        given.unwrap_or_else(|| built.state.iter().find(|(own, _)| own == name).unwrap().1.clone())
    };
    let inputs: Vec<(ValueId, Tensor)> =
        built.model.graph.required_inputs().map(|i| (i.id.clone(), of(i.id.as_str()))).collect();
    let facts = inputs.iter().map(|(id, t)| (id.clone(), Fact::of(t))).collect();
    let feeds: Vec<Value> = inputs.into_iter().map(|(_, t)| Value::host(t)).collect();
    let outputs = executor.compile(&built.model, &facts).unwrap().run(&feeds).unwrap();
    let names = built.model.graph.outputs.iter().map(|o| o.id.to_string());
    names.zip(outputs.iter().map(|o| o.to_host().unwrap())).collect()
}

#[test]
fn the_gradient_goes_through_the_mask_of_the_loss() {
    let ones = Tensor::f32(&[ROWS, WIDTH], &[1.0; ROWS * WIDTH]);
    let mut seen: Vec<Vec<f64>> = vec![];
    for executor in executors() {
        let gradients = built(Form::Gradients, 1, &*executor);
        assert_eq!(gradients.open, ["N"]);
        let inputs: Vec<&str> = gradients.model.graph.inputs.iter().map(|i| i.id.as_str()).collect();
        assert_eq!(inputs, ["x", "step"]);
        let at = |step: i64| {
            let outputs = run(&gradients, &[("x", &ones), ("step", &Tensor::i64(&[], &[step]))], &*executor);
            (outputs["loss"].to_f64()[0], outputs["w.grad"].to_f64())
        };
        let (loss, gradient) = at(3);
        // Where all of x and w are 1, the loss and the sum of its derivatives are both that of what is kept, by 1 / (0.8 · 0.5).
        assert!((loss - gradient.iter().sum::<f64>()).abs() < 1e-2, "{loss}");
        let whole = (ROWS * WIDTH) as f64;
        assert!((loss / whole - 1.0).abs() < 0.15, "{loss} of {whole}");
        assert!(gradient.iter().all(|g| (g / 2.5 - (g / 2.5).round()).abs() < 1e-5));
        assert_eq!(at(3).1, gradient);
        assert_ne!(at(4).1, gradient);
        let other = built(Form::Gradients, 2, &*executor);
        let step = Tensor::i64(&[], &[3]);
        let outputs = run(&other, &[("x", &ones), ("step", &step)], &*executor);
        assert_ne!(outputs["w.grad"].to_f64(), gradient);
        seen.push(gradient);
    }
    // Other sums of whole numbers of 2.5: exact.
    assert!(seen.windows(2).all(|pair| pair[0] == pair[1]), "executors drop different elements");
}

#[test]
fn a_step_counts_and_moves_by_what_its_count_keeps() {
    let ones = Tensor::f32(&[ROWS, WIDTH], &[1.0; ROWS * WIDTH]);
    let rate = Tensor::scalar(DType::F32, 1.0);
    for executor in executors() {
        let gradients = built(Form::Gradients, 1, &*executor);
        for rule in [Rule::Sgd, Rule::Adamw { beta1: 0.9, beta2: 0.999, epsilon: 1e-8 }] {
            let optimizer = Optimizer { rule, weight_decay: 0.0, clip: 0.0 };
            let step = built(Form::Step(optimizer), 1, &*executor);
            assert!(step.state.iter().any(|(name, first)| name == "step" && first.to_i64()[..] == [0]));
            for count in [0, 5] {
                let count = Tensor::i64(&[], &[count]);
                let next = run(&step, &[("x", &ones), ("lr", &rate), ("step", &count)], &*executor);
                assert_eq!(next["step.next"].to_i64()[0], count.to_i64()[0] + 1);
                let expected = run(&gradients, &[("x", &ones), ("step", &count)], &*executor);
                assert_eq!(next["loss"].to_f64(), expected["loss"].to_f64());
                if rule == Rule::Sgd {
                    let moved = next["w.next"].to_f64().into_iter().zip(expected["w.grad"].to_f64());
                    assert!(moved.into_iter().all(|(w, g)| (w - (1.0 - g)).abs() < 1e-4));
                }
            }
        }
    }
}
