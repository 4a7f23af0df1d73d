"""Measures what `grad --recompute` saves and costs under ONNX Runtime (docs/grad.md).

    python benches/recompute.py target/release/onnx-merge [--train-bn] MODEL.onnx:ROWS …      # needs numpy, onnxruntime

For each model a training step (SGD, on the sum of the outputs) is written without recomputation, within half and a quarter of what that is
estimated to take, and with as little as possible. Memory is the most that one run adds to a process that has loaded the session and its
inputs, less the outputs, without ONNX Runtime's arena and with freed memory given back at once. Time is processor time, least of five runs,
variants in turns. Next weights are compared with those without.
"""
import json
import os
import subprocess
import sys
import tempfile
import time

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import numpy as np
import onnxruntime


def session(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
    feeds = dict(np.load(path.replace(".onnx", ".npz")))
    rng = np.random.default_rng(0)
    for value in session.get_inputs():
        if value.name not in feeds:
            wide = value.type == "tensor(int64)"
            drawn = rng.integers(0, 10, value.shape) if wide else rng.normal(0, 0.5, value.shape).astype(np.float32)
            feeds[value.name] = np.array(1e-3, np.float32) if value.name == "lr" else drawn
    return session, feeds


def status(key):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":"))


def peak(path):
    """Bytes that one run takes beside its outputs; in a process of its own."""
    loaded, feeds = session(path)
    before = status("VmRSS")
    with open("/proc/self/clear_refs", "w") as refs:
        refs.write("5")
    outputs = loaded.run(None, feeds)
    print(status("VmHWM") - before - sum(output.nbytes for output in outputs))


def compare(program, model, rows, flags):
    with tempfile.TemporaryDirectory() as folder:

        def write(name, *options):
            path = os.path.join(folder, name)
            command = [program, "grad", model, "--loss", "sum", "--optimizer", "sgd", "--batch", rows, "-o", path, "--json"]
            told = subprocess.run([*command, *flags, *options], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
            return path, json.loads(told.stdout)["recompute"]

        def taken(path):
            alone = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
            return int(subprocess.run([sys.executable, __file__, path], env=alone, stdout=subprocess.PIPE, check=True).stdout)

        least = write("least.onnx", "--recompute")
        whole = least[1]["peak_without"]
        variants = {
            "no": (write("whole.onnx")[0], {"peak": whole, "nodes": 0, "share": 0.0}),
            "1/2": write("half.onnx", "--recompute", f"{whole // 2}B"),
            "1/4": write("quarter.onnx", "--recompute", f"{whole // 4}B"),
            "least": least,
        }
        memory = {name: taken(path) for name, (path, _) in variants.items()}
        loaded = {name: session(path) for name, (path, _) in variants.items()}
        results, times = {}, {name: [] for name in variants}
        for _ in range(5):
            for name, (run, feeds) in loaded.items():
                begun = time.process_time()
                results[name] = run.run(None, feeds)
                times[name].append(time.process_time() - begun)
        for name, (_, saving) in variants.items():
            pairs = list(zip(results["no"], results[name]))
            off = max(np.abs(a - b).max() / (np.abs(a).max() + 1e-30) for a, b in pairs)
            same = "same bits" if all(a.tobytes() == b.tobytes() for a, b in pairs) else f"{off:.0e}"
            ratio = min(times[name]) / min(times["no"])
            print(
                f"| {os.path.basename(model)} × {rows} | {name} | {saving['peak'] / 1e6:.0f} | {memory[name] / 1e6:.0f} "
                f"| {saving['nodes']} ({100 * saving['share']:.0f} %) | {min(times[name]):.2f} | {ratio:.2f} | {same} |",
                flush=True,
            )


if __name__ == "__main__":
    if len(sys.argv) == 2:
        peak(sys.argv[1])
    else:
        program, *rest = sys.argv[1:]
        flags = [flag for flag in rest if flag.startswith("--")]
        print("| network × rows | recompute | estimated, MB | measured, MB | nodes twice | step, s | ratio | next weights |")
        print("|---|---|---|---|---|---|---|---|")
        for model in (model for model in rest if not model.startswith("--")):
            compare(program, *model.rsplit(":", 1), flags)
