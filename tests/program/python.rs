//! The Python module, beside the program.

use crate::transcript::{Sandbox, python};
use std::path::Path;
use std::process::Command;

/// Everything that the module offers, once.
const SCRIPT: &str = r#"
import json, os
import jsonschema, numpy as np, onnx, onnx_merge

arrays = {part: np.load(f"digits_{part}.npz") for part in ("train100", "val", "test")}
rows = {part: (a["x"], a["y"]) for part, a in arrays.items()}
events = []
report = onnx_merge.merge(
    "digits_cnn.onnx", onnx.load("digits_small_cnn.onnx"), data=rows["train100"], val=rows["val"], test="digits_test.npz",
    method="lpka", start="fitted", steps=24, executor="tract", progress=events.append,
)
assert report and report.outcome == "gain" and report.gains["test"]["n"] == 500, str(report)
assert "test: 83.00 % -> " in str(report) and " ± " in str(report), str(report)
kinds = [event["event"] for event in events]
jsonschema.validate(dict(report), json.load(open(os.environ["SCHEMA"])))
assert kinds.count("step") == 24 and kinds[-1] == "end", kinds
onnx.checker.check_model(report.proto())

before = onnx_merge.evaluate("digits_small_cnn.onnx", rows["test"], executor="tract")
after = onnx_merge.evaluate(report.model, rows["test"], executor="tract")
gain = after["accuracy"] - before["accuracy"]
assert abs(gain - report.gains["test"]["mean"]) < 1e-9, (before, after)

kept = onnx_merge.tune("digits_mlp.onnx", {"image": rows["val"][0], "y": rows["val"][1]}, steps=2, min_gain=0.9,
                       output="kept.onnx", executor="tract", progress=False)
assert not kept and kept.model == open("digits_mlp.onnx", "rb").read()

pair = onnx_merge.inspect("digits_mlp.onnx", "digits_cnn.onnx")
assert pair["pairing"], pair.keys()
step, state = onnx_merge.grad("digits_mlp.onnx", executor="tract")
onnx.checker.check_model(onnx.load_model_from_string(step))
assert any(name.endswith(".m") for name in state), list(state)
assert onnx_merge.grad("digits_mlp.onnx", gradients_only=True, executor="tract")[1] is None

try:
    onnx_merge.tune(b"not a model", rows["val"])
    raise AssertionError("nonsense was taken for a model")
except onnx_merge.Error as error:
    assert error.code == 3 and "model.onnx" not in error.message, error
print("all of it works")
"#;

#[test]
fn the_python_module_runs_the_program() {
    let Some(python) = python() else { return };
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let sandbox = Sandbox::digits().fixtures(&["digits_small_cnn.onnx"]);
    std::fs::write(sandbox.path("script.py"), SCRIPT).unwrap();
    let output = Command::new(python)
        .arg("script.py")
        .current_dir(sandbox.path("."))
        .env("PYTHONPATH", root.join("python"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("SCHEMA", root.join("docs/report.schema.json"))
        .env("ONNX_MERGE_PROGRAM", env!("CARGO_BIN_EXE_onnx-merge"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "all of it works", "{said}");
}
