"""Writes models of several gigabytes with external data, and looks at what training them takes.

    python benches/large_model.py FOLDER                      # writes model.onnx, model.data and rows.npz: 3.2 GB
    python benches/large_model.py FOLDER --watch COMMAND…     # runs a command there; its private memory and what it read and wrote

Twelve products of 8,192 × 8,192 numbers, named w00 to w11, and a last one of 8,192 × 10.
"""

import pathlib
import subprocess
import sys
import time

WIDTH, LAYERS, CLASSES = 8192, 12, 10


def write(folder):
    import numpy as np
    from onnx import TensorProto, helper, save

    rng = np.random.default_rng(0)
    shapes = {f"w{i:02}": (WIDTH, WIDTH) for i in range(LAYERS)} | {"head": (WIDTH, CLASSES)}
    weights, nodes, value, at = [], [], "x", 0
    with open(folder / "model.data", "wb") as data:
        for name, shape in shapes.items():
            # Cheap numbers: the same block again and again, each row turned a bit.
            block = rng.normal(0, (2 / WIDTH) ** 0.5, (256, shape[1])).astype(np.float32)
            for k in range(shape[0] // 256):
                data.write(np.roll(block, 7 * k, axis=1).tobytes())
            length = 4 * shape[0] * shape[1]
            weight = TensorProto(name=name, dims=shape, data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
            for key, entry in {"location": "model.data", "offset": at, "length": length}.items():
                weight.external_data.add(key=key, value=str(entry))
            weights.append(weight)
            at += length
            nodes.append(helper.make_node("MatMul", [value, name], [f"{name}.product"]))
            value = f"{name}.product"
            if name != "head":
                nodes.append(helper.make_node("Relu", [value], [f"{name}.out"]))
                value = f"{name}.out"
    batch = lambda name, width: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", width])
    graph = helper.make_graph(nodes, "large", [batch("x", WIDTH)], [batch(value, CLASSES)], weights)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), folder / "model.onnx")
    np.savez(folder / "rows.npz", x=rng.normal(0, 1, (8, WIDTH)).astype(np.float32), y=np.arange(8) % CLASSES)


def watch(folder, command):
    began = time.time()
    process = subprocess.Popen(command, cwd=folder)
    most, io = 0, {}
    while process.poll() is None:
        try:
            status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
            most = max(most, *(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon")))
            io = dict(line.split(": ") for line in pathlib.Path(f"/proc/{process.pid}/io").read_text().splitlines())
        except (OSError, TypeError, ValueError):
            pass
        time.sleep(0.004)
    seconds = time.time() - began
    print(f"most private memory {most / 1000:.0f} MB, {seconds:.1f} s, exit code {process.returncode};", end=" ")
    print(f"read {int(io.get('read_bytes', 0)) / 1e6:.0f} MB, wrote {int(io.get('write_bytes', 0)) / 1e6:.0f} MB")


if __name__ == "__main__":
    folder = pathlib.Path(sys.argv[1])
    if "--watch" in sys.argv:
        watch(folder, sys.argv[sys.argv.index("--watch") + 1 :])
    else:
        folder.mkdir(parents=True, exist_ok=True)
        write(folder)
