"""Times a step of a network with a large embedding table under ONNX Runtime, dense and with --sparse, and its memory.

    python benches/sparse_step.py [--program target/release/onnx-merge] [--rows 30000] [--width 256] [--batch 32] [--length 64]

Each kind of step runs in a process of its own; their steps are timed in turns, the fastest of each counts. The next state is written
into arrays that are kept, as a training loop would do.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time

import numpy as np

KINDS = [(optimizer, sparse) for optimizer in ("sgd", "momentum", "adamw") for sparse in (False, True)]


def network(path, rows, width, length):
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)

    def weight(name, *shape):
        return numpy_helper.from_array(rng.normal(0, 0.1, shape).astype(np.float32), name)

    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["words"]),
        helper.make_node("ReduceMean", ["words", "one"], ["mean"], keepdims=0),
        helper.make_node("Gemm", ["mean", "w1", "b1"], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["active"]),
        helper.make_node("Gemm", ["active", "w2", "b2"], ["y"]),
    ]
    weights = [weight("table", rows, width), weight("w1", width, 128), weight("b1", 128), weight("w2", 128, 10), weight("b2", 10)]
    graph = helper.make_graph(
        nodes,
        "words",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", length])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 10])],
        [*weights, numpy_helper.from_array(np.array([1], np.int64), "one")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)


def serve(step, batch, length, rows):
    """Takes steps, one for each line on stdin; answers with milliseconds, at the end with the peak of memory in MB."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(step, options, providers=["CPUExecutionProvider"])
    first = np.load(step.replace(".onnx", ".npz"))
    value = lambda array: ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))
    state = {name: [value(first[name]), value(first[name])] for name in first.files}
    rng = np.random.default_rng(1)
    print("ready", flush=True)
    for count, line in enumerate(sys.stdin):
        binding = session.io_binding()
        binding.bind_ortvalue_input("ids", value(rng.integers(0, rows, (batch, length))))
        binding.bind_ortvalue_input("label", value(rng.integers(0, 10, batch)))
        binding.bind_ortvalue_input("lr", value(np.array(0.01, np.float32)))
        binding.bind_output("loss")
        for name, pair in state.items():
            binding.bind_ortvalue_input(name, pair[count % 2])
            binding.bind_ortvalue_output(f"{name}.next", pair[1 - count % 2])
        begun = time.perf_counter()
        session.run_with_iobinding(binding)
        print(1000 * (time.perf_counter() - begun), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--program", default="target/release/onnx-merge")
    for name, default in (("rows", 30000), ("width", 256), ("batch", 32), ("length", 64), ("turns", 20)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--serve")
    args = parser.parse_args()
    if args.serve:
        return serve(args.serve, args.batch, args.length, args.rows)
    with tempfile.TemporaryDirectory() as folder:
        model = os.path.join(folder, "model.onnx")
        network(model, args.rows, args.width, args.length)
        servers = []
        for optimizer, sparse in KINDS:
            step = os.path.join(folder, f"{optimizer}{sparse}.onnx")
            command = [args.program, "grad", model, "-o", step, "--optimizer", optimizer, "--weight-decay", "0"]
            subprocess.run(command + ["--sparse"] * sparse, check=True, stdout=subprocess.DEVNULL)
            sizes = ["--batch", str(args.batch), "--length", str(args.length), "--rows", str(args.rows)]
            command = [sys.executable, __file__, "--serve", step, *sizes]
            server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            server.stdout.readline()
            servers.append(server)
        best, memory = [float("inf")] * len(KINDS), [0.0] * len(KINDS)
        for _ in range(args.turns):
            for i, server in enumerate(servers):
                server.stdin.write("\n")
                server.stdin.flush()
                took, peak = map(float, server.stdout.readline().split())
                best[i], memory[i] = min(best[i], took), max(memory[i], peak)
        for server in servers:
            server.stdin.close()
            server.wait()
        for (optimizer, sparse), took, peak in zip(KINDS, best, memory):
            print(f"{optimizer:9} {'sparse' if sparse else 'dense':7} {took:7.1f} ms {peak:6.0f} MB")


if __name__ == "__main__":
    main()
