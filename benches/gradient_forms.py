"""Times the forms of gradients that docs/autodiff.md compares: weights of convolutions, and max-pooling.

    python benches/gradient_forms.py      # needs numpy, onnx, onnxruntime

One thread, best of seven runs, milliseconds. Every form of a case is checked against the first.
"""
import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import time

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper


class Graph:
    """Emits nodes, as the program's own builder does."""

    def __init__(self, **inputs):
        self.nodes, self.constants, self.count = [], [], 0
        self.inputs = [helper.make_tensor_value_info(k, TensorProto.FLOAT, v) for k, v in inputs.items()]

    def ints(self, *values):
        return self.constant(np.array(values, np.int64))

    def constant(self, array):
        self.count += 1
        self.constants.append(numpy_helper.from_array(array, f"c{self.count}"))
        return f"c{self.count}"

    def op(self, op, *inputs, outputs=1, **attributes):
        self.count += 1
        names = [f"v{self.count}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op, inputs, names, **attributes))
        return names[0] if outputs == 1 else names

    def reshape(self, x, *shape):
        return self.op("Reshape", x, self.ints(*shape))

    def transpose(self, x, *perm):
        return self.op("Transpose", x, perm=perm)

    def slice(self, x, starts, ends, axes, steps):
        return self.op("Slice", x, self.ints(*starts), self.ints(*ends), self.ints(*axes), self.ints(*steps))

    def milliseconds(self, outputs, feeds):
        read = {name for node in self.nodes for name in node.input}
        inputs = [i for i in self.inputs if i.name in read]
        outputs = [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for o in outputs]
        graph = helper.make_graph(self.nodes, "form", inputs, outputs, self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
        feeds = {i.name: feeds[i.name] for i in inputs}
        result, best = session.run(None, feeds)[-1], np.inf
        for _ in range(7):
            start = time.perf_counter()
            session.run(None, feeds)
            best = min(best, time.perf_counter() - start)
        return best * 1e3, result


def convolution(n, c, h, m, k, s, p, depthwise=False):
    """n × c × h × h to m channels, kernel k, stride s, padding p."""
    o = (h + 2 * p - k) // s + 1
    end = s * (o - 1) + k - h - p  # padding after, so that the windows end exactly there
    group = c if depthwise else 1
    shapes = dict(x=(n, c, h, h), dy=(n, m, o, o), w=(m, c // group, k, k))
    feeds = {name: np.random.randn(*shape).astype("f") for name, shape in shapes.items()}
    steps = range(k)

    def padded(g, x, rows, columns):
        pads = [0] * 8
        for axis in (rows, columns):
            if axis is not None:
                pads[axis], pads[axis + 4] = p, max(end, 0)
        return g.op("Pad", x, g.ints(*pads)) if any(pads) else x

    def tap(g, x, i, j, axis):
        return g.slice(x, (i, j), (i + s * (o - 1) + 1, j + s * (o - 1) + 1), (axis, axis + 1), (s, s))

    def cotangents(g):
        return g.reshape(g.transpose("dy", 1, 0, 2, 3), m, n * o * o)

    def forward(g):
        return g.op("Conv", "x", "w", strides=[s, s], pads=[p] * 4, group=group)

    def data(g):
        return g.op("ConvTranspose", "dy", "w", strides=[s, s], group=group, output_padding=[max(-end, 0)] * 2,
                    pads=[p, p, max(end, 0), max(end, 0)])

    def role_swap(g):
        size = h + min(end, 0)
        x = "x" if end >= 0 else g.slice("x", (0, 0), (size, size), (2, 3), (1, 1))
        x = g.transpose(g.reshape(x, n, group, c // group, size, size), 2, 1, 0, 3, 4)
        x = g.reshape(x, c // group, group * n, size, size)
        dw = g.op("Conv", x, g.transpose("dy", 1, 0, 2, 3), dilations=[s, s], group=group,
                  pads=[p, p, max(end, 0), max(end, 0)])
        return g.transpose(dw, 1, 0, 2, 3)

    def columns(g):
        x = g.transpose(padded(g, "x", 2, 3), 1, 0, 2, 3)
        stacked = g.op("Concat", *(tap(g, x, i, j, 2) for i in steps for j in steps), axis=0)
        dw = g.op("Gemm", cotangents(g), g.reshape(stacked, k * k * c, n * o * o), transB=1)
        return g.transpose(g.reshape(dw, m, k, k, c), 0, 3, 1, 2)

    def taps(g):
        x, dy = padded(g, g.transpose("x", 0, 2, 3, 1), 1, 2), cotangents(g)
        seen = [g.reshape(tap(g, x, i, j, 1), n * o * o, c) for i in steps for j in steps]
        return g.reshape(g.op("Concat", *(g.reshape(g.op("MatMul", dy, v), m, c, 1) for v in seen), axis=2), m, c, k, k)

    def pointwise(g):
        x = g.transpose(g.reshape("x", n, c, h * h), 0, 2, 1)
        product = g.op("MatMul", g.reshape("dy", n, m, h * h), x)
        return g.reshape(g.op("ReduceSum", product, g.ints(0), keepdims=0), m, c, 1, 1)

    def rows(g):
        x, dy = g.transpose(padded(g, "x", 2, None), 1, 0, 2, 3), g.reshape(g.transpose("dy", 1, 0, 2, 3), c, n * o, o)
        parts = []
        for i in steps:
            lines = g.reshape(g.slice(x, (i,), (i + s * (o - 1) + 1,), (2,), (s,)), c, n * o, h)
            parts.append(g.reshape(g.op("MatMul", g.transpose(lines, 0, 2, 1), dy), c, 1, h * o))
        sums = np.zeros((h, o, k), "f")
        for window in range(o):
            for t in steps:
                if 0 <= window * s + t - p < h:
                    sums[window * s + t - p, window, t] = 1
        products = g.reshape(g.op("Concat", *parts, axis=1), c * k, h * o)
        return g.reshape(g.op("MatMul", products, g.constant(sums.reshape(h * o, k))), c, 1, k, k)

    forms = [role_swap, rows] if depthwise else [role_swap, columns, taps]
    forms += [pointwise] if k == s == 1 and p == 0 else []
    report(f"conv {n}x{c}x{h} to {m}, kernel {k}, stride {s}", shapes, feeds, [forward, data], forms)


def max_pool(n, c, h, k, s, p):
    o = (h + 2 * p - k) // s + 1
    shapes = dict(x=(n, c, h, h), dy=(n, c, o, o))
    feeds = {name: np.random.randn(*shape).astype("f") for name, shape in shapes.items()}
    window = dict(kernel_shape=[k, k], strides=[s, s], pads=[p] * 4)

    def forward(g):
        return g.op("MaxPool", "x", **window)

    def with_indices(g):
        y, indices = g.op("MaxPool", "x", outputs=2, **window)
        indices = g.op("Mod", g.reshape(indices, n * c, o * o), g.constant(np.array(h * h)))
        zeros = g.op("ConstantOfShape", g.ints(n * c, h * h))
        attributes = {} if s >= k else dict(reduction="add")
        dx = g.op("ScatterElements", zeros, indices, g.reshape("dy", n * c, o * o), axis=1, **attributes)
        return y, g.reshape(dx, n, c, h, h)

    def comparison(g):
        y, wide = g.op("MaxPool", "x", **window), o * k
        x = "x" if wide == h else g.slice("x", (0, 0), (wide, wide), (2, 3), (1, 1))
        repeat = g.constant(np.repeat(np.eye(o, dtype="f"), k, 1))
        repeated = lambda v: g.reshape(g.op("MatMul", g.reshape(v, n * c * o, o), repeat), n * c * o, 1, wide)
        won = g.op("Cast", g.op("Equal", g.reshape(x, n * c * o, k, wide), repeated(y)), to=1)
        shared = g.op("AveragePool", g.reshape(won, n, c, wide, wide), kernel_shape=[k, k], strides=[s, s])
        share = g.op("Div", "dy", g.op("Mul", shared, g.constant(np.array(k * k, "f"))))
        dx = g.reshape(g.op("Mul", won, repeated(share)), n, c, wide, wide)
        return y, dx if wide == h else g.op("Pad", dx, g.ints(0, 0, 0, 0, 0, 0, h - wide, h - wide))

    forms = [with_indices] + ([comparison] if k == s and p == 0 else [])
    report(f"max_pool {n}x{c}x{h}, kernel {k}, stride {s}", shapes, feeds, [forward], forms)


def report(name, shapes, feeds, others, forms):
    line, first = [], None
    for form in others + forms:
        graph = Graph(**shapes)
        made = form(graph)
        took, result = graph.milliseconds(made if isinstance(made, tuple) else (made,), feeds)
        if form in forms:
            first = result if first is None else first
            assert np.allclose(first, result, rtol=1e-3, atol=1e-2), form.__name__
        line.append(f"{form.__name__} {took:.2f}")
    print(f"{name}: {', '.join(line)}", flush=True)


if __name__ == "__main__":
    for case in [(32, 1, 28, 16, 3, 1, 1), (32, 3, 64, 32, 3, 2, 1), (8, 3, 112, 64, 7, 2, 3), (32, 16, 28, 32, 3, 1, 1),
                 (32, 64, 28, 64, 3, 1, 1), (32, 64, 28, 128, 3, 2, 1), (8, 256, 14, 256, 3, 1, 1),
                 (32, 64, 28, 128, 1, 1, 0)]:
        convolution(*case)
    for n, c, h, k, p in [(32, 96, 28, 3, 1), (32, 240, 14, 5, 2), (32, 960, 7, 3, 1), (8, 32, 112, 3, 1)]:
        convolution(n, c, h, c, k, 1, p, depthwise=True)
    for case in [(32, 16, 28, 2, 2, 0), (32, 64, 28, 2, 2, 0), (8, 64, 112, 3, 2, 1)]:
        max_pool(*case)
