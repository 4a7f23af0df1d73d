"""Measures what `grad --recompute` saves and costs under ONNX Runtime (docs/grad.md).

    python benches/recompute.py target/release/onnx-merge MODEL.onnx:ROWS …      # needs numpy, onnxruntime

For each model the gradients of a sum are written without recomputation, within half and a third of what that is estimated to take, and
with as little as possible; with `--train-bn` as the first argument batches are normalised by their own statistics. Memory is the most that
one run adds to a process that has loaded the session and its inputs, less the outputs, without ONNX Runtime's arena, so that
freed memory isn't counted. Time is processor time, least of three runs, variants in turns. Gradients are compared with those without.
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
    rng = np.random.default_rng(0)
    feeds = {}
    for value in session.get_inputs():
        wide = value.type == "tensor(int64)"
        feeds[value.name] = rng.integers(0, 10, value.shape) if wide else rng.normal(0, 0.5, value.shape).astype(np.float32)
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
            command = [program, "grad", model, "--loss", "sum", "--gradients-only", "--batch", rows, "-o", path, "--json"]
            told = subprocess.run([*command, *flags, *options], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
            return path, json.loads(told.stdout)["recompute"]

        least = write("least.onnx", "--recompute")
        whole = least[1]["peak_without"]
        variants = {
            "no": (write("whole.onnx")[0], {"peak": whole, "nodes": 0, "share": 0.0}),
            "1/2": write("half.onnx", "--recompute", f"{whole // 2}B"),
            "1/3": write("third.onnx", "--recompute", f"{whole // 3}B"),
            "least": least,
        }
        taken = {
            name: int(subprocess.run([sys.executable, __file__, path], stdout=subprocess.PIPE, check=True).stdout)
            for name, (path, _) in variants.items()
        }
        loaded = {name: session(path) for name, (path, _) in variants.items()}
        results, times = {}, {name: [] for name in variants}
        for _ in range(3):
            for name, (run, feeds) in loaded.items():
                begun = time.process_time()
                results[name] = run.run(None, feeds)
                times[name].append(time.process_time() - begun)
        for name, (_, saving) in variants.items():
            pairs = list(zip(results["no"], results[name]))
            off = max(np.linalg.norm(a - b) / (np.linalg.norm(a) + 1e-30) for a, b in pairs)
            same = "same bits" if all(a.tobytes() == b.tobytes() for a, b in pairs) else f"{off:.1e}"
            print(
                f"| {os.path.basename(model)} × {rows} | {name} | {saving['peak'] / 1e6:.0f} | {taken[name] / 1e6:.0f} "
                f"| {saving['nodes']} ({100 * saving['share']:.0f} %) | {min(times[name]):.2f} "
                f"| {min(times[name]) / min(times['no']):.2f} | {same} |",
                flush=True,
            )


if __name__ == "__main__":
    if len(sys.argv) == 2:
        peak(sys.argv[1])
    else:
        program, *rest = sys.argv[1:]
        flags = [flag for flag in rest if flag.startswith("--")]
        print("| network × rows | recompute | estimated, MB | measured, MB | nodes twice | step, s | ratio | gradients |\n|---|---|---|---|---|---|---|---|")
        for model in (model for model in rest if not model.startswith("--")):
            compare(program, *model.rsplit(":", 1), flags)
