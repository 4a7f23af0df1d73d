"""Times training steps of recurrent layers over long sequences, in ONNX Runtime and in PyTorch.

    python benches/recurrent_steps.py target/release/onnx-merge      # needs numpy, onnx, onnxruntime; torch if it is there

A layer of 64 inputs and a classifier over its last state, batch 32. For each case: nodes of the step graph, seconds to make it
and to make a session of it, milliseconds of a step (best of ten), and of PyTorch's step (forward, backward, AdamW) of the same
network. Everything is processor time, on one thread, so that other work on the machine matters less.
"""
import os
import subprocess
import sys
import tempfile
import time

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
INPUTS, BATCH, CLASSES = 64, 32, 10
CASES = [("LSTM", 64, 28), ("LSTM", 64, 100), ("LSTM", 64, 500), ("LSTM", 128, 28), ("LSTM", 128, 100), ("LSTM", 128, 500),
         ("GRU", 128, 100), ("RNN", 128, 100)]


def network(kind, hidden, steps, path):
    rng = np.random.default_rng(0)
    bound = hidden**-0.5
    shapes = {"W": (1, GATES[kind] * hidden, INPUTS), "R": (1, GATES[kind] * hidden, hidden),
              "B": (1, 2 * GATES[kind] * hidden), "head": (CLASSES, hidden), "bias": (CLASSES,)}
    weights = [numpy_helper.from_array(rng.uniform(-bound, bound, s).astype("float32"), n) for n, s in shapes.items()]
    weights.append(numpy_helper.from_array(np.array([0]), "first"))
    attributes = {"linear_before_reset": 1} if kind == "GRU" else {}
    nodes = [helper.make_node(kind, ["x", "W", "R", "B"], ["", "last"], hidden_size=hidden, **attributes),
             helper.make_node("Squeeze", ["last", "first"], ["state"]),
             helper.make_node("Gemm", ["state", "head", "bias"], ["logits"], transB=1)]
    value = lambda name, *shape: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
    graph = helper.make_graph(nodes, kind, [value("x", steps, BATCH, INPUTS)], [value("logits", BATCH, CLASSES)], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)


def best(step, tries=10):
    step()
    times = []
    for _ in range(tries):
        begun = time.process_time()
        step()
        times.append(time.process_time() - begun)
    return min(times) * 1e3


def ours(program, model, step, feeds):
    """Nodes, seconds to build, seconds to make a session, milliseconds of a step."""
    before = os.times()
    subprocess.run([program, "grad", model, "-o", step, "--executor", "ort"], check=True, capture_output=True)
    after = os.times()
    build = after.children_user + after.children_system - before.children_user - before.children_system
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    begun = time.process_time()
    session = onnxruntime.InferenceSession(step, options)
    made = time.process_time() - begun
    feeds = {**feeds, "lr": np.array(0.001, "float32"), **np.load(step.replace(".onnx", ".npz"))}
    return len(onnx.load(step).graph.node), build, made, best(lambda: session.run(None, feeds))


def theirs(kind, hidden, feeds):
    try:
        import torch
    except ImportError:
        return None
    torch.set_num_threads(1)
    layer, head = getattr(torch.nn, kind)(INPUTS, hidden), torch.nn.Linear(hidden, CLASSES)
    optimizer = torch.optim.AdamW([*layer.parameters(), *head.parameters()], lr=0.001)
    x, label = torch.tensor(feeds["x"]), torch.tensor(feeds["label"])

    def step():
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(head(layer(x)[0][-1]), label).backward()
        optimizer.step()

    return best(step)


def main(program):
    print("| layer | steps | nodes | build, s | session, s | step, ms | PyTorch, ms |\n|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        model, step = f"{folder}/model.onnx", f"{folder}/step.onnx"
        for kind, hidden, steps in CASES:
            network(kind, hidden, steps, model)
            rng = np.random.default_rng(1)
            feeds = {"x": rng.normal(size=(steps, BATCH, INPUTS)).astype("float32"), "label": rng.integers(0, CLASSES, BATCH)}
            nodes, build, made, took = ours(program, model, step, feeds)
            torch = theirs(kind, hidden, feeds)
            torch = f"{torch:.1f}" if torch else "–"
            print(f"| {kind} {hidden} | {steps} | {nodes} | {build:.2f} | {made:.2f} | {took:.1f} | {torch} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
