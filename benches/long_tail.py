"""Every model of some folders through `inspect`, `grad` and three steps of `tune`: what works, what is refused, what fails.

    python benches/long_tail.py FOLDER|FILE…               # prints a table in Markdown, totals below
    python benches/long_tail.py --light                    # with the light models that come with the package onnx
    python benches/long_tail.py FOLDER --only mnist        # files whose name has this in it
    python benches/long_tail.py FOLDER --slopes            # gradients against the slope of their loss, too

Needs numpy, onnx and onnxruntime, and this program built (`--program` names it). Each command is a process of its own that gets
`--seconds` of time and `--gigabytes` of address space. Training rows are made: random numbers in each input's shape (open sizes
are the first of a few with which ONNX Runtime runs the model), and as labels classes where the first real output is a matrix,
else values near what the model answers.

*ok* is the exit code for success, with the file that was asked for. *refused* is exit code 3 or 5 with an error, a hint and no
output. All else is FAIL: panics (also those of executors, which the program catches), signals, the limits, a refusal without
a hint, other exit codes. Exit code 1 where anything failed.

With `--slopes` a column says how far the gradients are from the slopes of their own loss (`gradient_slopes.py`): the relative
difference for the worst of a few weights.
"""
import argparse
import collections
import concurrent.futures
import concurrent.futures.process
import glob
import json
import multiprocessing
import os
import pathlib
import re
import resource
import subprocess
import sys
import tempfile
import time

import numpy as np
import onnx
import onnxruntime

import gradient_slopes

ROOT = pathlib.Path(__file__).parent.parent
ROWS = 4
# Sizes that are tried for dimensions which the file leaves open.
OPEN_SIZES = (8, 32, 64, 1, 224, 512)
# The exit codes of a command that did what was asked, and those of a refusal (docs/in-pipelines.md).
DONE = {"inspect": {0}, "grad": {0}, "tune": {0, 4}}
REFUSED = {3, 5}


def files(paths, only):
    found = []
    for path in map(pathlib.Path, paths):
        inside = sorted(p for p in path.iterdir() if p.suffix in (".onnx", ".ort")) if path.is_dir() else [path]
        found += [p for p in inside if only in p.name]
    return found


def light():
    """Models of ONNX's own tests whose weights are made by nodes."""
    return sorted(glob.glob(str(pathlib.Path(onnx.__file__).parent / "backend/test/data/light/*.onnx")))


class Facts:
    """What the file says, as far as it can be read: nodes, inputs, the first real output."""

    def __init__(self, path):
        self.nodes = "?"
        self.inputs, self.output = [], None
        try:
            graph = onnx.load(path, load_external_data=False).graph
        except Exception:
            return
        self.nodes = len(graph.node)
        given = {t.name for t in graph.initializer}
        self.inputs = [i for i in graph.input if i.name not in given]
        outputs = [o for o in graph.output if o.type.tensor_type.elem_type in REAL]
        self.output = outputs[0] if outputs else None

    def open(self):
        """Whether sizes besides the batch are left to the data."""
        return any(d is None for i in self.inputs for d in sizes(i)[1:])


REAL = {getattr(onnx.TensorProto, name) for name in ("FLOAT", "FLOAT16", "DOUBLE", "BFLOAT16")}


def sizes(info):
    """The sizes of an input; `None` where the file leaves one open."""
    dims = info.type.tensor_type.shape.dim
    return [d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None for d in dims]


def made_up(info, count, size, whole, rng):
    """`count` rows for an input: of its shape without the first dimension, or with it where `whole` inputs are a row."""
    declared = sizes(info)
    shape = [count] + [d or size for d in (declared if whole else declared[1:])]
    try:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)
    except KeyError:
        dtype = np.dtype("float32")
    if dtype.kind in "iub":
        return rng.integers(0, 2, shape).astype(dtype)
    # NumPy's files know no bfloat16.
    return rng.random(shape).astype(dtype if dtype.kind == "f" else "float32")


def answer_to(path, facts, feeds):
    """What the first real output answers in ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 2
    session = onnxruntime.InferenceSession(str(path), options)
    return np.asarray(session.run([facts.output.name], feeds)[0], "float32")


def answer_of_a_row(path, facts, size, rng):
    """What is answered to one row, and whether all that goes into one run is that row; `None` where nothing runs."""
    rows = [(sizes(i) or [1])[0] or 1 for i in facts.inputs]
    feeds = {i.name: made_up(i, n, size, False, rng) for i, n in zip(facts.inputs, rows)}
    feeds = {i.name: feeds[i.name] if sizes(i) else feeds[i.name].reshape(()) for i in facts.inputs}
    try:
        answer = answer_to(path, facts, feeds)
    except Exception:
        return None
    if answer.ndim and len(answer) == rows[0]:
        return answer[0], False
    return (answer[0] if answer.ndim > 1 and len(answer) == 1 else answer), rows[0] > 1


def tried(path):
    """The first size for open dimensions with which the model runs, what it answers, and whether a run is one row."""
    facts, rng = Facts(path), np.random.default_rng(0)
    for size in OPEN_SIZES if facts.open() else OPEN_SIZES[:1]:
        found = answer_of_a_row(path, facts, size, rng) if facts.inputs and facts.output else None
        if found:
            return (size, *found)
    return None


def rows(path, facts, folder):
    """Writes training rows that fit the model; returns the file, what the labels are to be used for, and the size of
    open dimensions."""
    rng = np.random.default_rng(0)
    try:
        # In a process of its own: some models end ONNX Runtime's.
        with concurrent.futures.ProcessPoolExecutor(1) as pool:
            found = pool.submit(tried, path).result()
    except concurrent.futures.process.BrokenProcessPool:
        found = None
    declared = tuple(d or 1 for d in sizes(facts.output)[1:]) if facts.output else ()
    size, answer, whole = found or (OPEN_SIZES[0], np.zeros(declared, "float32"), False)
    count = ROWS if whole else max([(sizes(i) or [0])[0] or 0 for i in facts.inputs] + [ROWS])
    arrays = {i.name: made_up(i, count, size, whole, rng) for i in facts.inputs}
    task = "classify" if answer.ndim == 1 and answer.size > 1 else "regress"
    if task == "classify":
        labels = rng.integers(0, answer.size, count)
    else:
        labels = answer + 0.1 * rng.standard_normal((count, *answer.shape)).astype("float32")
    data = folder / "rows.npz"
    np.savez(data, label=labels, **arrays)
    return data, task, size


def commands(model, data, task, folder):
    loss = "ce" if task == "classify" else "mse"
    out = {"grad": folder / "grad.onnx", "tune": folder / "tuned.onnx"}
    return {
        "inspect": (["inspect", model, "--json"], None),
        "grad": (["grad", model, "--gradients-only", "--loss", loss, "-o", out["grad"]], out["grad"]),
        "tune": (
            ["tune", model, "-o", out["tune"], "--data", data, "--val", data, "--label", "label", "--task", task]
            + ["--steps", "3", "--batch", "2", "-q"],
            out["tune"],
        ),
    }


def run(name, words, out, args):
    """Runs one command; returns its verdict, a reason, and what it said on stdout."""
    limit = int(args.gigabytes * 2**30)

    def confine():
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    words = [args.program, *map(str, words)] + (["--executor", args.executor] if args.executor else [])
    try:
        done = subprocess.run(words, capture_output=True, timeout=args.seconds, preexec_fn=confine)
    except subprocess.TimeoutExpired:
        return "FAIL", f"more than {args.seconds:.0f} s", b""
    return *judged(name, done, out), done.stdout


def slope(graph, size, seconds):
    """For a cell: the largest difference of slope and gradient, and the weight. In a process of its own, which may take its time."""
    out = multiprocessing.SimpleQueue()

    def measure():
        try:
            found = gradient_slopes.worst(graph, size)
            out.put(f"{found[0]:.0e} {found[1]}" if found else "nothing to see")
        except Exception as e:
            out.put(f"not run: {type(e).__name__}")

    process = multiprocessing.Process(target=measure)
    process.start()
    process.join(seconds)
    if process.is_alive() or process.exitcode:
        process.kill()
        return "not run"
    return out.get()


def judged(name, done, out):
    """What came of a command that ended: a verdict, and a reason."""
    said = done.stderr.decode(errors="replace")
    errors = re.findall(r"^error: (.*)", said, re.M)
    last = (errors or said.strip().splitlines() or [""])[-1]
    code, there = done.returncode, out is None or out.exists()
    if code < 0:
        return "FAIL", f"signal {-code}: {last}"
    if "panicked at" in said or "internal failure" in said:
        return "FAIL", f"panic: {last}"
    if code in DONE[name]:
        return ("ok", "") if there else ("FAIL", "no output")
    if code not in REFUSED or not errors:
        return "FAIL", f"exit code {code}: {last}"
    if out is not None and out.exists():
        return "FAIL", f"refused, but there is an output: {last}"
    if not re.search(r"^hint: ", said, re.M):
        return "FAIL", f"no hint: {last}"
    return "refused", f"{last} ({code})"


def short(reason, path, folder):
    """Without the paths of this run, and fit for a cell of a table."""
    for place in (str(path), str(path.parent) + "/", str(folder) + "/"):
        reason = reason.replace(place, path.name if place == str(path) else "")
    return reason.replace("|", "/").replace("\n", " ")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("paths", nargs="*")
    parser.add_argument("--light", action="store_true")
    parser.add_argument("--only", default="")
    parser.add_argument("--program", default=str(ROOT / "target/release/onnx-merge"))
    parser.add_argument("--slopes", action="store_true")
    parser.add_argument("--executor", default="")
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--gigabytes", type=float, default=8)
    args = parser.parse_args()
    library = glob.glob(str(pathlib.Path(onnxruntime.__file__).parent / "capi/libonnxruntime*"))
    os.environ.setdefault("ORT_DYLIB_PATH", library[0])
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    paths = files(args.paths + (light() if args.light else []), args.only)
    if not paths:
        parser.error("no model is there")
    heads = ["file", "nodes", "weights", *DONE, *(["slopes"] if args.slopes else []), "seconds"]
    print("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads), flush=True)
    totals = collections.defaultdict(collections.Counter)
    for path in paths:
        with tempfile.TemporaryDirectory() as folder:
            folder, facts, cells, begun = pathlib.Path(folder), Facts(path), [], time.time()
            data, task, size = rows(path, facts, folder)
            weights = "?"
            for name, (words, out) in commands(path, data, task, folder).items():
                verdict, reason, said = run(name, words, out, args)
                if (name, verdict) == ("inspect", "ok"):
                    weights = json.loads(said)["totals"]["parameters"]
                totals[name][verdict] += 1
                cells.append(f"{verdict}: {short(reason, path, folder)}" if reason else verdict)
            if args.slopes:
                graph = folder / "grad.onnx"
                cells.append(slope(graph, size, args.seconds) if graph.exists() else "")
            line = [path.name, facts.nodes, weights, *cells, f"{time.time() - begun:.1f}"]
        print("| " + " | ".join(map(str, line)) + " |", flush=True)
    sums = [", ".join(f"{n} {v}" for v, n in sorted(totals[name].items(), key=lambda x: x[0].lower())) for name in DONE]
    print(f"| **{len(paths)} files** | | | " + " | ".join(sums) + (" | |" if args.slopes else "") + " | |")
    sys.exit(any(totals[name]["FAIL"] for name in DONE))


if __name__ == "__main__":
    main()
