"""Writes a long network: residual blocks of convolution, batch normalisation, ReLU and a sum, then a classifier.

    python benches/long_graph.py OUT.onnx [--blocks 2500] [--channels 4] [--size 8] [--rows data.npz]

Four nodes a block and four around them: 2500 blocks are 10,004 nodes and 7,503 weights. With `--rows` made rows of ten classes
are written, too, for `tune` and the main job.
"""

import argparse

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def network(blocks, channels, size):
    rng = np.random.default_rng(0)
    nodes, weights = [], []

    def weight(name, *shape, scale=None, all=1.0):
        value = np.full(shape, all) if scale is None else rng.normal(0, scale, shape)
        weights.append(numpy_helper.from_array(value.astype(np.float32), name))
        return name

    nodes.append(helper.make_node("Conv", ["x", weight("stem", channels, 1, 3, 3, scale=0.3)], ["b0"], pads=[1] * 4))
    for i in range(blocks):
        convolution = weight(f"b{i}.conv", channels, channels, 3, 3, scale=0.1)
        statistics = [
            # Small, so that the sums of all blocks stay small.
            weight(f"b{i}.scale", channels, all=1 / blocks),
            weight(f"b{i}.bias", channels, scale=0.01),
            weight(f"b{i}.mean", channels, scale=0.01),
            weight(f"b{i}.var", channels),
        ]
        nodes += [
            helper.make_node("Conv", [f"b{i}", convolution], [f"b{i}.c"], pads=[1] * 4),
            helper.make_node("BatchNormalization", [f"b{i}.c", *statistics], [f"b{i}.n"]),
            helper.make_node("Relu", [f"b{i}.n"], [f"b{i}.r"]),
            helper.make_node("Add", [f"b{i}", f"b{i}.r"], [f"b{i + 1}"]),
        ]
    nodes += [
        helper.make_node("GlobalAveragePool", [f"b{blocks}"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", weight("head", channels, 10, scale=0.3), weight("head.bias", 10)], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "long",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1, size, size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 10])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def rows(path, size, count=64):
    rng = np.random.default_rng(1)
    x = rng.normal(0, 1, (count, 1, size, size)).astype(np.float32)
    np.savez(path, x=x, y=np.arange(count) % 10)


if __name__ == "__main__":
    arguments = argparse.ArgumentParser()
    arguments.add_argument("out")
    arguments.add_argument("--blocks", type=int, default=2500)
    arguments.add_argument("--channels", type=int, default=4)
    arguments.add_argument("--size", type=int, default=8)
    arguments.add_argument("--rows")
    given = arguments.parse_args()
    onnx.save(network(given.blocks, given.channels, given.size), given.out)
    if given.rows:
        rows(given.rows, given.size)
