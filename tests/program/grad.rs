//! `onnx-merge grad` and `pack`: gradients and training steps as files, and weights put back.

use crate::transcript::{Sandbox, python};
use onnx_merge::onnx::{Attr, Builder, DType, Dim, Fact, Model, Tensor, WORKING_OPSET, read};
use std::path::{Path, PathBuf};
use std::process::Command;

#[test]
fn gradients_and_steps_are_written() {
    let sandbox = Sandbox::digits();
    sandbox.transcript(
        "$ onnx-merge grad digits_cnn.onnx --gradients-only -o gradients.onnx --executor tract
         gradients.onnx: the loss and the gradients of 10 weights, [..] nodes, open: batch
         $ onnx-merge grad digits_cnn.onnx --wrt '*.bias' --loss mse --batch 4 --gradients-only -o biases.onnx --executor tract
         biases.onnx: the loss and the gradients of 5 weights, [..] nodes, fixed shapes
         $ onnx-merge grad digits_cnn.onnx --wrt image --wrt '*.bias' --gradients-only -o saliency.onnx --executor tract
         saliency.onnx: the loss and the gradients of 5 weights and 1 value, [..] nodes, open: batch
         $ onnx-merge grad digits_mlp.onnx --optimizer momentum -o step.onnx --executor tract
         step.onnx: a training step of 6 weights, [..] nodes, open: batch
         step.npz: its first state, 12 arrays",
    );
    let names = |file: &str| {
        let model = read(sandbox.path(file)).unwrap().model;
        let outputs = model.graph.outputs.iter().map(|o| o.id.to_string()).collect::<Vec<_>>();
        (model.graph.required_inputs().cloned().collect::<Vec<_>>(), outputs)
    };
    let (inputs, outputs) = names("gradients.onnx");
    assert_eq!(inputs.iter().map(|i| i.id.as_str()).collect::<Vec<_>>(), ["image", "label"]);
    assert!(inputs.iter().all(|i| i.shape.as_ref().unwrap()[0] == Dim::Named("batch".into())));
    assert_eq!(outputs[0], "loss");
    assert!(outputs.len() == 11 && outputs[1..].iter().all(|o| o.ends_with(".grad")), "{outputs:?}");
    let (_, outputs) = names("saliency.onnx");
    assert_eq!((outputs.len(), outputs[6].as_str()), (7, "image.grad"));
    let (inputs, _) = names("biases.onnx");
    let label = inputs.last().unwrap();
    assert_eq!((label.dtype, label.fact().unwrap().shape), (Some(DType::F32), vec![4, 10]));
    let (inputs, outputs) = names("step.onnx");
    let inputs: Vec<&str> = inputs.iter().map(|i| i.id.as_str()).collect();
    let state = &inputs[3..];
    assert_eq!(&inputs[..3], ["image", "label", "lr"]);
    for name in state {
        assert!(outputs.contains(&format!("{name}.next")), "{name}: {outputs:?}");
    }
    assert_eq!((state.len(), outputs.len()), (12, 13));
}

#[test]
fn what_makes_no_sense_is_refused_with_what_to_do() {
    let mut b = Builder::new("shifted");
    let x = b.input("x", Fact::new(DType::F32, &[2, 3]));
    let w = b.initializer("w", Tensor::f32(&[3, 3], &[0.5; 9]));
    let y = b.matmul(&x, &w);
    let strange = b.op_full("com.example", "Strange", &[Some(&y)], &[("power", Attr::Int(2))], 1).remove(0);
    b.graph_mut().outputs.push(onnx_merge::onnx::ValueInfo {
        id: strange,
        dtype: Some(DType::F32),
        shape: None,
    });
    let model = Model::new(b.finish().0, 18);
    Sandbox::digits().model("strange.onnx", &model).transcript(
        "$ onnx-merge grad digits_mlp.onnx --wrt 'nothing.*' -o g.onnx --executor tract
         error: --wrt 'nothing.*' matches no float weight, input or value of digits_mlp.onnx
         hint: `onnx-merge inspect` lists their names
         [exit 2]
         $ onnx-merge grad digits_mlp.onnx --wrt image -o g.onnx --executor tract
         error: --wrt: 'image' is no weight, and a step changes weights
         hint: --gradients-only gives the gradient of an input or of a value inside
         [exit 2]
         $ onnx-merge grad digits_mlp.onnx --train-bn -o g.onnx --executor tract
         error: digits_mlp.onnx: has no batch normalisation whose running statistics could be trained (--train-bn)
         hint: exporters fold it into convolutions unless they are told to keep it: torch.onnx.export(…, dynamo=False, \
         training=torch.onnx.TrainingMode.PRESERVE)
         [exit 3]
         $ onnx-merge grad digits_mlp.onnx --gradients-only
         error: an output is missing
         hint: say where to write the graph: -o step.onnx
         [exit 2]
         $ onnx-merge grad digits_mlp.onnx -o digits_mlp.onnx
         error: the output digits_mlp.onnx is the input digits_mlp.onnx: inputs are never overwritten
         hint: name another file
         [exit 2]
         $ onnx-merge grad digits_mlp.onnx -o g.onnx --shape nope=1,2 --executor tract
         error: --shape nope: the model has no such input, only image
         [exit 2]
         $ onnx-merge grad digits_mlp.onnx -o g.onnx --of nope --executor tract
         error: --of 'nope': the model has no such output of real values
         hint: it has logits
         [exit 2]
         $ onnx-merge grad strange.onnx -o g.onnx --executor tract
         ...
         [exit 5]
         $ missing g.onnx",
    );
}

/// The mean of looked up rows of `word.weight`, times `out.weight`, or once more times the table itself.
fn lookups(tied: bool) -> Model {
    let mut b = Builder::new("lookups");
    let ids = b.input("ids", Fact::new(DType::I64, &[2, 3]));
    let table = b.initializer("word.weight", Tensor::f32(&[7, 4], &[0.5; 28]));
    let rows = b.op_with("Gather", &[&table, &ids], &[("axis", Attr::Int(0))]);
    let mean = b.mean(&rows, &[1], false);
    let logits = match tied {
        true => {
            let turned = b.transpose(&table, &[1, 0]);
            b.matmul(&mean, &turned)
        }
        false => {
            let out = b.initializer("out.weight", Tensor::f32(&[4, 7], &[0.1; 28]));
            b.matmul(&mean, &out)
        }
    };
    b.output_as("logits", &logits);
    Model::new(b.finish().0, WORKING_OPSET)
}

#[test]
fn tables_have_gradients_of_rows_where_they_can() {
    let sandbox = Sandbox::new().model("m.onnx", &lookups(false)).model("tied.onnx", &lookups(true));
    sandbox.transcript(
        "$ onnx-merge grad m.onnx --sparse --gradients-only -o g.onnx --executor tract
         g.onnx: the loss and the gradients of 2 weights, [..] nodes, open: batch
         $ onnx-merge grad m.onnx --sparse='*.weight' -o step.onnx --executor tract
         note: 'out.weight' keeps a dense gradient: 'MatMul' (MatMul) reads it, too
         step.onnx: a training step of 2 weights, [..] nodes, open: batch
         step.npz: its first state, 7 arrays
         $ onnx-merge grad tied.onnx --sparse -o t.onnx --executor tract
         error: tied.onnx: has no embedding table whose gradient could be rows of it (--sparse)
         hint: 'word.weight' can't be one: 'Transpose' (Transpose) reads it, too
         [exit 3]
         $ onnx-merge grad m.onnx --sparse=words -o t.onnx --executor tract
         error: --sparse 'words' matches none of the weights
         hint: `onnx-merge inspect` lists the weights' names
         [exit 2]
         $ missing t.onnx",
    );
    let outputs = read(sandbox.path("g.onnx")).unwrap().model.graph.outputs;
    let names: Vec<&str> = outputs.iter().map(|o| o.id.as_str()).collect();
    assert_eq!(names, ["loss", "word.weight.grad.rows", "word.weight.grad.values", "out.weight.grad"]);
}

/// The README's Python, beside a step graph of the fixtures' model.
#[test]
fn ten_lines_of_python_train_and_pack_puts_the_weights_back() {
    // The second one fixes its batch to 1.
    for (model, weights) in [("digits_mlp.onnx", 6), ("digits_small_cnn.onnx", 8)] {
        readme_trains(model, weights);
    }
}

/// Trains a model with the README's script as it stands.
fn readme_trains(model: &str, weights: usize) {
    let Some(python) = python() else { return };
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = std::fs::read_to_string(root.join("README.md")).unwrap();
    let script = readme.split("```python\n").nth(1).and_then(|rest| rest.split("```").next());
    let script = script.expect("the README shows how to train in Python");
    assert!(script.lines().filter(|line| !line.trim().is_empty()).count() <= 12, "{script}");
    let sandbox = Sandbox::new().fixtures(&[model, "digits_train100.npz"]);
    sandbox.transcript(&format!(
        "$ onnx-merge grad {model} -o step.onnx --executor tract
         step.onnx: a training step of {weights} weights, [..] nodes, open: batch
         ...
         $ copy digits_train100.npz train.npz"
    ));
    std::fs::write(sandbox.path("train.py"), script).unwrap();
    let output = Command::new(&python)
        .arg("train.py")
        .current_dir(sandbox.path("."))
        .env("ORT_DISABLE_TELEMETRY", "1")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let losses: Vec<f64> = String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .filter_map(|line| line.split_whitespace().last()?.parse().ok())
        .collect();
    let (first, last) = (losses[0], losses[losses.len() - 1]);
    println!("loss {first} at first, {last} at last");
    assert!(last < 0.5 * first, "{losses:?}");
    sandbox.transcript(&format!(
        "$ onnx-merge pack {model} trained.npz -o trained.onnx
         trained.onnx: {weights} weights written
         $ onnx-merge diff {model} trained.onnx
         ...
         {weights} of {weights} tensors differ; everything else is the same, byte by byte
         $ onnx-merge eval trained.onnx --data train.npz --executor tract
         trained.onnx: accuracy 100.00 %, [..]"
    ));
    onnx_values_match(&sandbox.path("trained.onnx"), &sandbox.path("trained.npz"));
}

#[test]
fn rows_that_can_not_be_told_apart_keep_the_batch_that_the_file_fixes() {
    let mut b = Builder::new("mixed");
    let x = b.input("x", Fact::new(DType::F32, &[2, 3]));
    let w = b.initializer("w", Tensor::f32(&[3, 3], &[0.1; 9]));
    let y = b.matmul(&x, &w);
    let mean = b.mean(&y, &[0], true);
    let y = b.add(&y, &mean);
    b.output_as("y", &y);
    Sandbox::new().model("m.onnx", &Model::new(b.finish().0, WORKING_OPSET)).transcript(
        "$ onnx-merge grad m.onnx -o step.onnx --executor tract
         note: these sizes are fixed: batch = 2 (can't be run on 3 rows at once: [..])
         hint: choose others with --batch N and --shape NAME=SIZES
         step.onnx: a training step of 1 weight, [..] nodes, fixed shapes
         step.npz: its first state, 4 arrays",
    );
}

fn onnx_values_match(model: &PathBuf, archive: &Path) {
    let model = read(model).unwrap().model;
    let arrays = onnx_merge::data::read_npz(archive).unwrap();
    for (id, tensor) in &model.graph.initializers {
        let (_, array) = arrays.iter().find(|(name, _)| name == id.as_str()).unwrap();
        assert_eq!(tensor.bytes(), array.bytes(), "{id}");
    }
}

/// The fixture in float16, inputs and outputs included.
fn half(path: &Path) -> Model {
    let mut model = read(path).unwrap().model;
    let graph = &mut model.graph;
    for tensor in graph.initializers.values_mut().filter(|t| t.dtype() == DType::F32) {
        *tensor = tensor.cast(DType::F16);
    }
    graph.inputs.iter_mut().chain(&mut graph.outputs).for_each(|info| info.dtype = Some(DType::F16));
    model
}

#[test]
fn half_precision_models_are_trained_in_float32_and_written_back_in_half() {
    let sandbox = Sandbox::digits().fixtures(&["digits_small_cnn.onnx"]);
    let model = half(&sandbox.path("digits_small_cnn.onnx"));
    let sandbox = sandbox.model("half.onnx", &model);
    sandbox.transcript(
        "$ onnx-merge tune half.onnx -o out.onnx --data digits_train100.npz --val digits_val.npz --steps 200 --executor tract
         ...
         out.onnx is better than its target. 8 of its tensors changed; [..]
         $ onnx-merge diff half.onnx out.onnx
         ...
         8 of 8 tensors differ; everything else is the same, byte by byte
         $ onnx-merge grad half.onnx --gradients-only -o gradients.onnx --executor tract
         gradients.onnx: the loss and the gradients of 8 weights, [..]",
    );
    let trained = read(sandbox.path("out.onnx")).unwrap().model;
    assert!(trained.graph.initializers.values().all(|t| t.dtype() != DType::F32));
    let gradients = read(sandbox.path("gradients.onnx")).unwrap().model.graph;
    assert!(gradients.outputs.iter().all(|o| o.dtype == Some(DType::F32)));
    assert_eq!(gradients.inputs[0].dtype, Some(DType::F16));
}

#[test]
fn only_weights_of_the_model_are_packed() {
    let two = Tensor::f32(&[2], &[1.0, 2.0]);
    Sandbox::digits().npz("a.npz", &[("nope", &two)]).npz("b.npz", &[("net.0.bias", &two)]).transcript(
        "$ onnx-merge pack digits_mlp.onnx a.npz -o out.onnx
         error: a.npz: digits_mlp.onnx has no weight nope
         hint: `onnx-merge inspect` lists the weights' names
         [exit 3]
         $ onnx-merge pack digits_mlp.onnx b.npz -o out.onnx
         ...
         [exit 3]
         $ missing out.onnx",
    );
}
