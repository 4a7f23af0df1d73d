//! `inspect` and `diff`.

use crate::transcript::Sandbox;

#[test]
fn inspect_shows_weights_interfaces_and_the_pairing() {
    let sandbox = Sandbox::digits().fixtures(&["digits_small_cnn.onnx"]);
    sandbox.transcript(
        "$ onnx-merge inspect digits_small_cnn.onnx digits_cnn.onnx
         digits_small_cnn.onnx
         input [..] image [..] float32 [..] 1×1×8×8
         output [..] logits [..] float32 [..] 1×10
         weight [..] role [..] shape [..] matrix [..] depth [..] rank 95 % [..] from [..] to [..] users
         conv1.weight     conv    12×1×3×3    12×1·3×3       0 [..] in0     h1       1
         ...
         fc1.weight     linear       48×96       48×96       2 [..] h2·2×2     h3       1
         ...
         8 weights: 4 matrices, 4 vectors and others, 0 tied; 7882 numbers, 7882 of them trainable, 7788 in matrices
         ...
         out4        output         10       4     fc2.weight              –         1
         from digits_cnn.onnx
         interfaces: in0 (1) ← in0 (1), h1 (12) ← h1 (16), h2 (24) ← h2 (32), h3 (48) ← h4 (64), out4 (10) ← out5 (10)
         target weight [..]
         conv1.weight              conv1.weight   conv1.weight, [..]
         conv2.weight              conv2.weight   conv2.weight, [..]
         fc1.weight                           –       fc1.weight, [..]
         fc2.weight                  fc2.weight       fc2.weight, [..]
         $ onnx-merge inspect digits_mlp.onnx --format dot
         digraph parameters {
         ...
         w0 [shape=box, label=\"fc1.weight\\nlinear 48×64\"];
         ...
         i0 -> w0;
         ...
         }
         $ onnx-merge inspect digits_mlp.onnx --format mermaid
         flowchart TD
         ...
         w0[\"fc1.weight<br/>linear 48×64\"]
         ...
         $ onnx-merge inspect digits_mlp.onnx --json
         {
         ...
         \"name\": \"image\",
         ...
         \"rank_95\": [..]
         ...
         }",
    );
}

#[test]
fn inspect_draws_a_page_and_overwrites_no_model() {
    let sandbox = Sandbox::digits();
    sandbox.transcript(
        "$ onnx-merge inspect digits_mlp.onnx digits_cnn.onnx --html out.html --executor tract
         out.html shows it in any browser
         $ exists out.html
         $ onnx-merge inspect digits_mlp.onnx digits_cnn.onnx --html digits_cnn.onnx
         error: the output digits_cnn.onnx is the input digits_cnn.onnx: inputs are never overwritten
         ...
         [exit 2]
         $ onnx-merge inspect digits_mlp.onnx --html out.html --json
         ...
         [exit 2]",
    );
}

#[test]
fn inspect_refuses_what_it_cannot_read_or_match() {
    let sandbox =
        Sandbox::digits().file("text.onnx", "not a model").file("model.ort", b"\x18\0\0\0ORTM\0\0\0\0");
    sandbox.transcript(
        "$ onnx-merge inspect model.ort
         error: model.ort: is in ONNX Runtime's own ORT format
         hint: use the .onnx file that it was converted from
         [exit 3]
         $ onnx-merge inspect nothing.onnx
         error: nothing.onnx: [..]
         [exit 3]
         $ onnx-merge inspect text.onnx
         error: text.onnx: [..]
         ...
         [exit 3]
         $ onnx-merge inspect digits_mlp.onnx digits_cnn.onnx --map fc1*=nothing
         error: --map 'fc1*=nothing': 'nothing' matches no weight matrix of the source
         hint: its matrices are called fc1.weight, [..]
         [exit 2]
         $ onnx-merge inspect digits_mlp.onnx --map a=b
         ...
         [exit 2]",
    );
}

#[test]
fn diff_tells_weights_from_everything_else() {
    let sandbox = Sandbox::digits();
    sandbox.transcript(
        "$ onnx-merge diff digits_mlp.onnx digits_mlp.onnx
         0 of 6 tensors differ; everything else is the same, byte by byte
         $ onnx-merge diff digits_mlp.onnx digits_cnn.onnx
         tensor [..]
         fc1.weight [..] became float32[64, 64]
         ...
         [..] tensors differ; and so does something else: [..]
         $ onnx-merge diff digits_mlp.onnx digits_mlp.onnx --json
         {
         ...
         \"rest_identical\": true,
         ...
         }
         $ onnx-merge diff digits_mlp.onnx
         ...
         [exit 2]",
    );
}
