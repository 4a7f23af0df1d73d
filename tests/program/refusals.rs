//! What bad input gets: a clear message, the documented exit code, no output, and the old one untouched.

use crate::transcript::Sandbox;
use onnx_merge::onnx::{Builder, DType, Fact, Model, Node, Tensor, WORKING_OPSET};
use onnx_protobuf::{Message, ModelProto};

/// Types one command that must be refused with just these lines, without and with an older output in its place.
fn refused(sandbox: &Sandbox, command: &str, answer: &str) {
    sandbox.transcript(&format!("$ {command}\n{answer}\n$ missing out.onnx\n"));
    std::fs::write(sandbox.path("out.onnx"), "old").unwrap();
    sandbox.transcript(&format!("$ {command}\n{answer}\n"));
    assert_eq!(std::fs::read(sandbox.path("out.onnx")).unwrap(), b"old", "{command}");
    std::fs::remove_file(sandbox.path("out.onnx")).unwrap();
    let left: Vec<_> = std::fs::read_dir(sandbox.path(""))
        .unwrap()
        .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with(".onnx-merge") || name.contains("merge.toml"))
        .collect();
    assert!(left.is_empty(), "{command} left {left:?}");
}

const QUICK: &str =
    "-o out.onnx --data digits_train100.npz --val digits_val.npz --steps 4 --executor tract -q";

/// The program refuses a target file with these bytes.
fn target_refused(bytes: &[u8], answer: &str) {
    let sandbox = Sandbox::digits().file("bad.onnx", bytes);
    refused(&sandbox, &format!("onnx-merge digits_cnn.onnx bad.onnx {QUICK}"), answer);
}

/// The same with the fixture's protobuf changed.
fn changed_target_refused(change: impl FnOnce(&mut ModelProto), answer: &str) {
    let sandbox = Sandbox::digits();
    let mut model =
        ModelProto::parse_from_bytes(&std::fs::read(sandbox.path("digits_mlp.onnx")).unwrap()).unwrap();
    change(&mut model);
    target_refused(&model.write_to_bytes().unwrap(), answer);
}

#[test]
fn files_that_are_missing_empty_or_no_models() {
    let sandbox = Sandbox::digits();
    refused(
        &sandbox,
        &format!("onnx-merge nothing.onnx digits_mlp.onnx {QUICK}"),
        "error: nothing.onnx: No such file or directory (os error 2)\n...\n[exit 3]",
    );
    refused(
        &sandbox,
        &format!("onnx-merge digits_test.npz digits_mlp.onnx {QUICK}"),
        "error: digits_test.npz: [..]\n...\n[exit 3]",
    );
    target_refused(b"", "error: bad.onnx: [..]empty[..]\n...\n[exit 3]");
    target_refused(b"hello, I am no model\n", "error: bad.onnx: [..]\n...\n[exit 3]");
    let whole = std::fs::read(sandbox.path("digits_cnn.onnx")).unwrap();
    for cut in [1, 100, whole.len() / 2, whole.len() - 1] {
        target_refused(&whole[..cut], "error: bad.onnx: [..]\n...\n[exit 3]");
    }
}

#[test]
fn rounding_on_a_processor() {
    refused(
        &Sandbox::digits(),
        &format!("onnx-merge digits_cnn.onnx digits_mlp.onnx {QUICK} --precision f16"),
        "error: --precision f16 is for GPUs, and a CPU's executor was asked for\nhint: leave one of the two [..]\n[exit 2]",
    );
}

/// A small model: rows of `width` numbers in, something out.
fn model(
    width: usize,
    make: impl FnOnce(&mut Builder, &onnx_merge::onnx::ValueId) -> onnx_merge::onnx::ValueId,
) -> Model {
    let mut b = Builder::new("small");
    let x = b.input("x", Fact::new(DType::F32, &[1, width]));
    let y = make(&mut b, &x);
    b.output_as("y", &y);
    Model::new(b.finish().0, WORKING_OPSET)
}

fn table_sandbox(bad: &Model) -> Sandbox {
    let good = model(4, |b, x| {
        let w = b.initializer("w", Tensor::f32(&[4, 2], &[0.1; 8]));
        b.matmul(x, &w)
    });
    let x: Vec<f32> = (0..40).map(|i| (i % 7) as f32).collect();
    Sandbox::new().model("good.onnx", &good).model("bad.onnx", bad).npz(
        "d.npz",
        &[("x", &Tensor::f32(&[10, 4], &x)), ("y", &Tensor::i64(&[10], &[0, 1, 0, 1, 0, 1, 0, 1, 0, 1]))],
    )
}

#[test]
fn targets_that_cannot_be_trained() {
    let weightless = model(4, |b, x| b.op("Relu", &[x]));
    refused(
        &table_sandbox(&weightless),
        "onnx-merge good.onnx bad.onnx -o out.onnx --data d.npz --executor tract -q",
        "error: bad.onnx: has no trainable weights\nhint: [..]\n[exit 3]",
    );
}

#[test]
fn outputs_without_rows_are_named_with_their_shapes() {
    let chosen = model(4, |b, x| {
        let w = b.initializer("w", Tensor::f32(&[4, 2], &[0.1; 8]));
        let y = b.matmul(x, &w);
        let class = b.fresh("class");
        b.push(Node::new("ArgMax", &[&y], &[&class]).with("axis", 1i64));
        b.set_fact(&class, Fact::new(DType::I64, &[1, 1]));
        class
    });
    refused(
        &table_sandbox(&chosen),
        "onnx-merge good.onnx bad.onnx -o out.onnx --data d.npz --executor tract -q",
        "error: bad.onnx: tensor 'y': no output has real values, one row for each of the batch's [..]: int64 [..]\n\
         hint: end the model in the real numbers [..]\n[exit 3]",
    );
}

#[test]
fn models_that_answer_at_random() {
    // Only ONNX Runtime runs random nodes.
    let Ok(library) = std::env::var("ORT_DYLIB_PATH") else { return };
    let noisy = model(4, |b, x| {
        let w = b.initializer("w", Tensor::f32(&[4, 2], &[0.1; 8]));
        let y = b.matmul(x, &w);
        let noise = b.fresh("noise");
        b.push(Node::new("RandomNormalLike", &[&y], &[&noise]));
        b.set_fact(&noise, Fact::new(DType::F32, &[1, 2]));
        b.add(&y, &noise)
    });
    refused(
        &table_sandbox(&noisy),
        &format!("onnx-merge tune bad.onnx -o out.onnx --data d.npz --executor ort --ort-lib '{library}' -q"),
        "...\nerror: bad.onnx: node [..](RandomNormalLike): gives something else in each run[..]\nhint: [..]\n[exit 3]",
    );
}

#[test]
fn models_of_text() {
    let spoken = model(4, |b, x| {
        let w = b.initializer("w", Tensor::f32(&[4, 2], &[0.1; 8]));
        b.input("words", Fact::new(DType::Str, &[1, 1]));
        b.matmul(x, &w)
    });
    refused(
        &table_sandbox(&spoken),
        "onnx-merge good.onnx bad.onnx -o out.onnx --data d.npz --executor tract -q",
        "error: [..]'words'[..]\nhint: only what works on numbers can be trained[..]\n[exit 3]",
    );
}

#[test]
fn what_tract_cannot_do_is_named_with_a_way_out() {
    let odd = model(4, |b, x| {
        let w = b.initializer("w", Tensor::f32(&[4, 2], &[0.1; 8]));
        let y = b.matmul(x, &w);
        let unique = b.fresh("unique");
        b.push(Node::new("Unique", &[&y], &[&unique]));
        b.set_fact(&unique, Fact::new(DType::F32, &[2]));
        unique
    });
    refused(
        &table_sandbox(&odd),
        "onnx-merge good.onnx bad.onnx -o out.onnx --data d.npz --executor tract -q",
        "error: bad.onnx: [..](Unique)[..]\nhint: ONNX Runtime runs more than tract[..]\n[exit 5]",
    );
}

#[test]
fn an_operator_without_a_gradient_is_named() {
    // Optional values have no gradient, and only ONNX Runtime runs them.
    let Ok(library) = std::env::var("ORT_DYLIB_PATH") else { return };
    let stuck = model(4, |b, x| {
        let w = b.initializer("w", Tensor::f32(&[4, 2], &[0.1; 8]));
        let y = b.matmul(x, &w);
        let (perhaps, whole) = (b.fresh("perhaps"), b.fresh("whole"));
        b.push(Node::new("Optional", &[&y], &[&perhaps]));
        b.push(Node::new("OptionalGetElement", &[&perhaps], &[&whole]));
        b.set_fact(&whole, Fact::new(DType::F32, &[1, 2]));
        whole
    });
    refused(
        &table_sandbox(&stuck),
        &format!(
            "onnx-merge good.onnx bad.onnx -o out.onnx --data d.npz --executor ort --ort-lib '{library}' -q"
        ),
        "...\nerror: [..](OptionalGetElement): has no gradient[..]\n...\n[exit 3]",
    );
}

#[test]
fn tensors_that_contradict_themselves() {
    changed_target_refused(
        |m| m.graph.mut_or_insert_default().initializer[0].dims[0] += 1,
        "error: bad.onnx: [..]\n...\n[exit 3]",
    );
    changed_target_refused(
        |m| m.graph.mut_or_insert_default().initializer[0].dims = vec![i64::MAX, i64::MAX],
        "error: bad.onnx: [..]\n...\n[exit 3]",
    );
    changed_target_refused(
        |m| {
            let raw = &mut m.graph.mut_or_insert_default().initializer[0].raw_data;
            let mut bytes = raw.to_vec();
            bytes[..4].copy_from_slice(&f32::NAN.to_le_bytes());
            *raw = bytes;
        },
        "error: bad.onnx: [..]NaN[..]\n...\n[exit 3]",
    );
}

#[test]
fn external_data_that_is_missing_or_outside() {
    for (location, answer) in [
        ("weights.bin", "error: bad.onnx: [..]weights.bin[..]\n...\n[exit 3]"),
        ("../weights.bin", "error: bad.onnx: [..]\n...\n[exit 3]"),
        ("/etc/hostname", "error: bad.onnx: [..]\n...\n[exit 3]"),
    ] {
        changed_target_refused(
            |m| {
                let tensor = &mut m.graph.mut_or_insert_default().initializer[0];
                tensor.raw_data.clear();
                tensor.data_location = onnx_protobuf::tensor_proto::DataLocation::EXTERNAL.into();
                let mut entry = onnx_protobuf::StringStringEntryProto::new();
                (entry.key, entry.value) = ("location".into(), location.into());
                tensor.external_data = vec![entry];
            },
            answer,
        );
    }
}

/// Training data `x`, `y` is refused by the digits' models.
fn data_refused(x: &Tensor, y: &Tensor, answer: &str) {
    let sandbox = Sandbox::digits().npz("d.npz", &[("x", x), ("y", y)]);
    let command =
        "onnx-merge digits_cnn.onnx digits_mlp.onnx -o out.onnx --data d.npz --steps 4 --executor tract -q";
    refused(&sandbox, command, answer);
}

fn images(rows: usize) -> Tensor {
    Tensor::f32(&[rows, 1, 8, 8], &vec![0.5; rows * 64])
}

fn classes(rows: usize) -> Tensor {
    Tensor::i64(&[rows], &(0..rows as i64).map(|i| i % 10).collect::<Vec<_>>())
}

#[test]
fn data_that_does_not_fit_the_model() {
    data_refused(
        &Tensor::f32(&[8, 1, 9, 8], &[0.5; 576]),
        &classes(8),
        "error: d.npz: a row of 'x' is 1×9×8, but the model's input '[..]' is [..]\n...\n[exit 3]",
    );
    data_refused(&images(8), &classes(7), "error: d.npz: there are 8 rows of 'x', but 7 labels\n[exit 3]");
    data_refused(&images(0), &classes(0), "error: d.npz: there are no rows in it\n[exit 3]");
    let mut pixels = vec![0.5; 8 * 64];
    pixels[3 * 64 + 5] = f32::INFINITY;
    data_refused(
        &Tensor::f32(&[8, 1, 8, 8], &pixels),
        &classes(8),
        "error: d.npz: 'x' has a NaN or infinity in row 3\n[exit 3]",
    );
}

#[test]
fn words_that_the_vocabulary_has_not_got() {
    let mut b = Builder::new("words");
    let words = b.input("words", Fact::new(DType::I64, &[1, 2]));
    let table = b.initializer("embedding", Tensor::f32(&[5, 3], &[0.5; 15]));
    let weights = b.initializer("head", Tensor::f32(&[3, 2], &[0.1; 6]));
    let rows = b.op("Gather", &[&table, &words]);
    let mean = b.mean(&rows, &[1], false);
    let y = b.matmul(&mean, &weights);
    b.output_as("y", &y);
    let labels = Tensor::i64(&[2], &[0, 1]);
    let data = |last: i64| Tensor::i64(&[2, 2], &[0, -5, 4, last]);
    let sandbox = Sandbox::new()
        .model("m.onnx", &Model::new(b.finish().0, WORKING_OPSET))
        .npz("fine.npz", &[("x", &data(1)), ("y", &labels)])
        .npz("high.npz", &[("x", &data(5)), ("y", &labels)])
        .npz("low.npz", &[("x", &data(-6)), ("y", &labels)]);
    for (file, word) in [("high.npz", 5), ("low.npz", -6)] {
        let answer = format!(
            "error: {file}: 'x' holds {word} in row 1, but the model's input 'words' counts the entries of 'embedding', \
             which has 5 (0 to 4)
             hint: words must be numbered as for the model[..]
             [exit 3]"
        );
        let options = "--executor tract -q";
        refused(
            &sandbox,
            &format!("onnx-merge tune m.onnx -o out.onnx --data fine.npz --val {file} {options}"),
            &answer,
        );
        sandbox.transcript(&format!("$ onnx-merge eval m.onnx --data {file} --executor tract\n{answer}"));
    }
}

#[test]
fn labels_out_of_range() {
    for wrong in [10, -1, i64::MAX] {
        let y = Tensor::i64(&[8], &[0, 1, 2, wrong, 4, 5, 6, 7]);
        let answer = format!(
            "error: d.npz: the label of row 3 is {wrong}, but the model tells 10 classes apart (0 to 9)\n...\n[exit 3]"
        );
        data_refused(&images(8), &y, &answer);
    }
    data_refused(&images(8), &Tensor::f32(&[8, 3], &[0.5; 24]), "error: d.npz: [..]\n...\n[exit 3]");
}

#[test]
fn data_files_that_are_broken() {
    let command = |data: &str| {
        format!(
            "onnx-merge digits_cnn.onnx digits_mlp.onnx -o out.onnx --data {data} --steps 4 --executor tract -q"
        )
    };
    let sandbox = Sandbox::digits()
        .file("empty.npz", "")
        .file("text.npz", "not an archive")
        .file("x.npy", b"\x93NUMPY\x01\x00\xff\xff")
        .file("words.csv", "a,b\n1,two\nthree,4\n")
        .file("data.bin", "?");
    for (data, answer) in [
        ("nothing.npz", "error: nothing.npz: No such file or directory (os error 2)\n[exit 3]"),
        ("empty.npz", "error: empty.npz: the file is empty\n[exit 3]"),
        ("text.npz", "error: text.npz: not a readable .npz archive [..]\nhint: [..]\n[exit 3]"),
        ("x.npy", "error: x.npy: not a NumPy array: it is cut off within the header\n[exit 3]"),
        ("words.csv", "error: words.csv: line 3, column 'a': 'three' is not a number\n[exit 3]"),
        ("data.bin", "error: data.bin: no data format known by this name\nhint: [..]\n[exit 3]"),
    ] {
        refused(&sandbox, &command(data), answer);
    }
}

#[test]
fn patterns_that_match_nothing() {
    let sandbox = Sandbox::digits();
    refused(
        &sandbox,
        &format!("onnx-merge digits_cnn.onnx digits_mlp.onnx {QUICK} --map 'nope*=conv*'"),
        "error: [..]nope*[..]\n...\n[exit 2]",
    );
    refused(
        &sandbox,
        &format!("onnx-merge digits_cnn.onnx digits_mlp.onnx {QUICK} --freeze 'nope*'"),
        "error: --freeze 'nope*' matches no weight of digits_mlp.onnx\nhint: [..]\n[exit 2]",
    );
}

#[test]
fn executors_that_are_not_there() {
    let run = "digits_cnn.onnx digits_mlp.onnx -o out.onnx --data digits_train100.npz --steps 4 -q";
    let elf = [b"\x7fELF\x02\x01\x01".as_slice(), &[0; 64]].concat();
    let sandbox = Sandbox::digits()
        .file("garbage.so", "not a library")
        .file("libonnxruntime.so.1.10.0", &elf)
        .file("libonnxruntime.so.1.30.0", &elf);
    for library in ["garbage.so", "nothing.so", "libonnxruntime.so.1.10.0", "libonnxruntime.so.1.30.0"] {
        refused(
            &sandbox,
            &format!("onnx-merge {run} --ort-lib {library}"),
            &format!("error: executor ort: [..]{library}[..]\n...\n[exit 5]"),
        );
    }
    refused(
        &sandbox,
        &format!("VK_ICD_FILENAMES=/nowhere VK_DRIVER_FILES=/nowhere onnx-merge {run} --executor wgpu"),
        "error: executor wgpu: [..]\n...\n[exit 5]",
    );
}

#[test]
fn outputs_that_cannot_be_written() {
    let sandbox = Sandbox::digits();
    let run =
        "onnx-merge digits_cnn.onnx digits_mlp.onnx --data digits_train100.npz --steps 4 --executor tract -q";
    sandbox.transcript(&format!(
        "$ {run} -o nowhere/out.onnx
        error: nowhere: No such file or directory (os error 2)
        hint: the output's folder must exist and be writable
        [exit 3]
        $ {run} -o digits_test.npz/out.onnx
        error: digits_test.npz: not a directory
        hint: the output's folder must exist and be writable
        [exit 3]
        $ {run} -o .
        error: . is a folder, not a file to write
        [exit 2]
        $ {run}
        error: an output is missing
        hint: say where to write the better model: -o out.onnx
        [exit 2]
        "
    ));
}

#[test]
fn an_output_that_is_an_input() {
    let sandbox = Sandbox::digits();
    std::fs::hard_link(sandbox.path("digits_mlp.onnx"), sandbox.path("link.onnx")).unwrap();
    let before = std::fs::read(sandbox.path("digits_mlp.onnx")).unwrap();
    for output in ["digits_mlp.onnx", "./digits_cnn.onnx", "link.onnx"] {
        sandbox.transcript(&format!(
            "$ onnx-merge digits_cnn.onnx digits_mlp.onnx -o {output} --data digits_train100.npz --steps 4
            error: the output {output} is the input [..]: inputs are never overwritten
            hint: name another file
            [exit 2]"
        ));
    }
    for option in ["--report", "--log", "--profile"] {
        sandbox.transcript(&format!(
            "$ onnx-merge digits_cnn.onnx digits_mlp.onnx -o out.onnx --data digits_train100.npz {option} digits_mlp.onnx
            error: the output digits_mlp.onnx is the input digits_mlp.onnx: inputs are never overwritten
            hint: name another file
            [exit 2]"
        ));
    }
    assert_eq!(std::fs::read(sandbox.path("digits_mlp.onnx")).unwrap(), before);
}

/// A disk that is full, made by a limit on the size of files.
#[cfg(unix)]
#[test]
fn an_output_place_that_is_full() {
    let sandbox = Sandbox::digits().file("out.onnx", "old");
    let program = env!("CARGO_BIN_EXE_onnx-merge");
    let script = format!(
        "trap '' XFSZ; ulimit -f 8; exec {program} digits_cnn.onnx digits_mlp.onnx -o out.onnx \
         --data digits_train100.npz --val digits_val.npz --steps 60 --method finetune --executor tract -q"
    );
    let output = std::process::Command::new("bash")
        .args(["-c", &script])
        .current_dir(sandbox.path(""))
        .output()
        .expect("bash starts");
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{message}");
    assert!(message.contains("File too large"), "{message}");
    assert_eq!(std::fs::read(sandbox.path("out.onnx")).unwrap(), b"old");
}

#[test]
fn options_that_do_nothing() {
    let sandbox = Sandbox::digits();
    for (options, why) in [
        ("--method kd --start fitted", "--start does nothing here: no arm of this method has an adapter"),
        (
            "--method finetune --made-rows 50",
            "--made-rows does nothing here: nothing learns from rows without labels [..]",
        ),
        (
            "--method features --gate 0.5",
            "--gate does nothing here: no arm of this method carries weights[..]",
        ),
        ("--start fitted --gate 0.5", "--gate does nothing here: what is fitted has its gate open"),
        ("--cycle 5", "--cycle does nothing here: [..]"),
        ("--size 8", "--size does nothing here: only the images of a folder are resized[..]"),
    ] {
        refused(
            &sandbox,
            &format!("onnx-merge digits_cnn.onnx digits_mlp.onnx {QUICK} {options}"),
            &format!("error: {why}\nhint: leave it out[..]\n[exit 2]"),
        );
    }
    // Control arms have an adapter.
    sandbox.transcript(&format!(
        "$ onnx-merge digits_cnn.onnx digits_mlp.onnx {QUICK} --method kd --ablate --rank 8 --significance 1\n...\n"
    ));
}

#[test]
fn options_that_do_nothing_in_a_configuration_are_noted() {
    let sandbox = Sandbox::digits();
    sandbox.transcript(
        "$ onnx-merge digits_cnn.onnx digits_mlp.onnx -o out.onnx --data digits_train100.npz --val digits_val.npz \
             --method lpka --rank 8 --lr 0.01 --steps 60 --executor tract
         ...
         $ onnx-merge --config merge.toml --method kd -o other.onnx
         ...
         note: --rank does nothing: no arm of this method has an adapter
         ...",
    );
}
