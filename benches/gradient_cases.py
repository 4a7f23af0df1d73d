"""Small models whose gradients `onnxsim_cases.py` asks of two programs: what they hold, and what is known of them.

`PEERS` are the operators, attributes and shapes that the tests of onnxsim's `graph_grad` try, written anew; `MALFORMED` the
models that those tests expect to be refused; `FURTHER` what lies outside of them, by subject. A body is in ONNX's textual
syntax; the weights to differentiate with respect to stand in it by name.
"""
import dataclasses
import string

import numpy as np
import onnx.helper
from onnx import TensorProto


@dataclasses.dataclass
class Case:
    """A model, and which of its values are wanted the gradients of."""

    subject: str
    body: str
    # The tensors that gradients are asked for, by name: their shapes, or their values.
    wrt: dict
    # Other tensors of the file, by name.
    constants: dict = dataclasses.field(default_factory=dict)
    # Types of other inputs, as in `float[N, 4]`; integers are below 4, conditions true.
    inputs: dict = dataclasses.field(default_factory=dict)
    outputs: tuple = ("y",)
    opset: int = 17
    domains: str = ""
    functions: str = ""
    # What is differentiated numerically instead, where ONNX's reference evaluator hasn't the operator, is wrong about an
    # attribute, or the gradient is by agreement another than the slope (straight through a rounding).
    judge: str | None = None
    # The gradients themselves, where no differences show them: conventions at kinks, as PyTorch has them.
    exact: dict | None = None
    # Element type of floats in the file.
    dtype: type = np.float32
    # Values that stay positive, or keep away from zero.
    positive: tuple = ()
    # Largest error of the model's own output beside the judge's.
    value_limit: float = 1e-4
    # Sizes of an input that this program is told with --shape.
    shape: str | None = None


def attributes(settings):
    if not settings:
        return ""
    text = lambda v: f'"{v}"' if isinstance(v, str) else str(v)
    return "<" + ", ".join(f"{k} = {text(v)}" for k, v in settings.items()) + "> "


def one(operator, *operands, judged=None, judge=None, positive="", outputs="y", opset=17, subject=None, **settings):
    """One node. Operands are shapes of what is differentiated (`a`, `b`, … in turn), arrays, or None for an omitted one. The
    judge is the same node with the attributes `judged`, or the body `judge`."""
    names, wrt, constants = [], {}, {}
    for letter, operand in zip(string.ascii_lowercase, operands):
        names.append("" if operand is None else letter)
        if isinstance(operand, tuple):
            wrt[letter] = operand
        elif operand is not None:
            constants[letter] = np.asarray(operand)
    body = lambda settings: f"{outputs} = {operator} {attributes(settings)}({', '.join(names)})"
    judge = judge if judged is None else body(judged)
    return Case(subject or operator, body(settings), wrt, constants, judge=judge, positive=tuple(positive), opset=opset)


def ints(*values):
    return np.array(values, np.int64)


def f32(*values):
    return np.array(values, np.float32)


def float_scalar(value):
    return np.array(value, np.float32)


# What broadcasts to what, and the shape that a cotangent is summed to.
BROADCASTS = [((4, 3), (3,)), ((4, 1), (1, 3)), ((3,), (4, 3)), ((2, 3, 4), (4,)), ((1, 3, 1), (2, 1, 4))]
REDUCED = [
    ((4, 3), (3,)), ((4, 3), (1, 3)), ((4, 3), (4, 1)), ((2, 3, 4), (4,)), ((2, 3, 4), (1, 3, 1)), ((2, 3, 4), ()),
    ((2, 3, 4), (2, 3, 4)),
]
EXPLICIT_UPPER = dict(strides=[2, 2], pads=[1, 0, 1, 1])
EXPLICIT_LOWER = dict(strides=[2, 2], pads=[1, 1, 1, 0])


def arithmetic():
    for operator in ("Add", "Sub", "Mul", "Div"):
        divisor = "b" if operator == "Div" else ""
        yield one(operator, (3, 4), (3, 4), positive=divisor)
        for a, b in BROADCASTS:
            yield one(operator, a, b, positive=divisor)
    yield from (one("Add", whole, part) for whole, part in REDUCED)
    for operator in ("Neg", "Identity", "Relu", "Sigmoid", "Tanh", "Erf", "Exp"):
        yield one(operator, (3, 4))
    yield from (one(operator, (3, 4), positive="a") for operator in ("Sqrt", "Log"))
    yield one("Clip", (3, 4), float_scalar(-0.5), float_scalar(0.5))
    yield one("Clip", (3, 4), float_scalar(-0.25))
    # Not among its published tests as they are stored; from its table of operators.
    yield one("Elu", (3, 4))
    yield one("Elu", (3, 4), alpha=0.5)
    yield one("LeakyRelu", (3, 4))
    yield one("LeakyRelu", (3, 4), alpha=0.3)
    yield one("PRelu", (3, 4), (1,))
    yield one("PRelu", (3, 4), ())
    yield one("Softplus", (3, 4))


def products():
    for a, b in [((3, 4), (4, 5)), ((2, 3, 4), (2, 4, 5)), ((1, 3, 4), (2, 4, 5)), ((2, 3, 4), (4, 5)), ((3, 4), (4,))]:
        yield one("MatMul", a, b)
    for settings in (
        {}, dict(alpha=0.75), dict(beta=0.5), dict(alpha=1.5, beta=-0.25), dict(transB=1), dict(transA=1),
        dict(transA=1, transB=1, alpha=0.5, beta=2.0),
    ):
        a, b = ((4, 3) if "transA" in settings else (3, 4)), ((5, 4) if "transB" in settings else (4, 5))
        yield one("Gemm", a, b, (5,), **settings)
    conv = lambda *shapes, **settings: one("Conv", *shapes, **settings)
    yield conv((1, 2, 4, 4), (3, 2, 3, 3))
    yield conv((1, 1, 4, 4), (2, 1, 3, 3), (2,))
    yield conv((1, 2, 3, 3), (3, 2, 1, 1))
    yield conv((1, 2, 5, 5), (2, 2, 3, 3), strides=[2, 2], pads=[1, 1, 1, 1])
    yield conv((1, 1, 5, 5), (1, 1, 2, 2), dilations=[2, 2])
    yield conv((1, 4, 3, 3), (4, 2, 2, 2), group=2)
    yield conv((1, 3, 3, 3), (3, 1, 2, 2), (3,), group=3)
    yield conv((1, 2, 7), (2, 2, 3), strides=[2])
    yield conv((1, 1, 3, 3, 3), (2, 1, 2, 2, 2))
    yield conv((1, 2, 5, 6), (2, 2, 3, 3), strides=[2, 2], auto_pad="SAME_UPPER", judged=EXPLICIT_UPPER)
    yield conv((1, 2, 5, 6), (2, 2, 3, 3), strides=[2, 2], auto_pad="SAME_LOWER", judged=EXPLICIT_LOWER)
    yield conv((1, 2, 5, 5), (2, 2, 3, 3), auto_pad="VALID", judged={})
    yield conv((1, 1, 5, 6), (2, 1, 3, 3), strides=[2, 2], auto_pad="SAME_UPPER", judged=EXPLICIT_UPPER)


def pools():
    both = [
        ((1, 2, 4, 4), dict(kernel_shape=[2, 2], strides=[2, 2])),
        ((1, 2, 5, 5), dict(kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])),
        ((1, 2, 7), dict(kernel_shape=[3], strides=[2])),
        ((1, 1, 4, 4, 4), dict(kernel_shape=[2, 2, 2], strides=[2, 2, 2])),
        ((1, 2, 5, 5), dict(kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)),
    ]
    three = dict(kernel_shape=[3, 3])
    for operator in ("MaxPool", "AveragePool"):
        yield from (one(operator, shape, **settings) for shape, settings in both)
        for auto, explicit in (("SAME_UPPER", EXPLICIT_UPPER), ("SAME_LOWER", EXPLICIT_LOWER)):
            yield one(operator, (1, 2, 5, 6), **three, strides=[2, 2], auto_pad=auto, judged=three | explicit)
    yield one("MaxPool", (1, 1, 5, 5), kernel_shape=[2, 2], dilations=[2, 2])
    yield one("MaxPool", (1, 1, 4, 4), kernel_shape=[2, 2], strides=[2, 2], outputs="y, indices")
    yield one("AveragePool", (1, 1, 4, 4), kernel_shape=[2, 2], strides=[1, 1], pads=[0, 0, 1, 1])
    yield one("AveragePool", (1, 2, 5, 5), **three, strides=[2, 2], pads=[1, 1, 1, 1], count_include_pad=1)
    yield one("GlobalAveragePool", (2, 3, 4, 4))
    yield one("GlobalAveragePool", (2, 3, 5))


def norms():
    for shape, axis, settings in [((2, 3, 4), (4,), {}), ((2, 3, 4), (3, 4), dict(axis=1)), ((2, 3, 4), (4,), dict(epsilon=0.001))]:
        yield one("LayerNormalization", shape, axis, axis, **settings)
    yield one("LayerNormalization", (2, 3, 4), (4,))
    for shape, settings in [((2, 3, 4, 4), {}), ((2, 5, 7), {}), ((4, 3), {}), ((2, 3, 4, 4), dict(epsilon=0.01))]:
        yield one("BatchNormalization", shape, *[(shape[1],)] * 4, positive="e", **settings)
    yield one(
        "BatchNormalization", (1, 2, 3, 3), (2,), (2,), f32(0.1, -0.2), f32(0.5, 1.5), outputs="y, mean, variance", training_mode=1
    )
    for shape, settings in [((2, 3, 4, 4), {}), ((2, 5, 3, 3), {}), ((2, 3, 5), {}), ((2, 3, 4, 4), dict(epsilon=0.001))]:
        yield one("InstanceNormalization", shape, (shape[1],), (shape[1],), **settings)
    yield one("Softmax", (3, 4))
    yield one("Softmax", (3, 4), axis=0)


def shapes():
    yield one("Transpose", (2, 3, 4))
    yield one("Transpose", (2, 3, 4), perm=[1, 0, 2])
    yield one("Reshape", (2, 3, 4), ints(6, 4))
    yield one("ReduceSum", (2, 3, 4), ints(1), keepdims=1)
    yield one("ReduceSum", (2, 3, 4), ints(1), keepdims=0)
    yield one("ReduceSum", (2, 3), keepdims=0)
    yield one("ReduceSum", (3, 3), ints(0), keepdims=0)
    yield one("ReduceMean", (2, 3, 4), axes=[2], keepdims=1)
    yield one("ReduceMean", (2, 3, 4), axes=[1], keepdims=0)
    yield one("ReduceMean", (3, 4), keepdims=0)
    yield one("Gather", (5, 3), ints(0, 2, 4))
    yield one("Gather", (4, 2), ints(1, 1, 3))
    yield one("Gather", (2, 5, 3), ints(-1, 0), axis=-2)
    yield one("Gather", (4, 3), np.int64(2))
    yield one("Gather", (5, 3), np.array([[0, 1], [2, 3]], np.int64))
    yield Case("Split", "p, q = Split <axis = 1> (a)\n y = Add(p, q)", dict(a=(4, 6)))
    for axis, shape in ((-1, (2, 6)), (0, (6, 4))):
        body = f"p, q = Split <axis = {axis}> (a, sizes)\n y = Identity(q)"
        yield Case("Split", body, dict(a=shape), dict(sizes=ints(2, 4)))
    mask = np.array([1, 0, 1, 0, 0, 1, 0, 1, 1, 1, 0, 0], bool).reshape(3, 4)
    yield one("Where", mask, (3, 4), (3, 4))
    yield one("Where", mask[0], (4,), (3, 4))
    yield Case("Where", "bad = IsNaN(a)\n y = Where(bad, zero, a)", dict(a=(3, 4)), dict(zero=float_scalar(0)))
    yield one("Squeeze", (2, 1, 4), ints(1))
    yield one("Unsqueeze", (2, 4), ints(1))
    yield one("DepthToSpace", (2, 8, 3, 3), blocksize=2, mode="CRD")
    yield one("DepthToSpace", (2, 8, 3, 3), blocksize=2, mode="DCR")
    # Not among its published tests as they are stored; from its table of operators.
    yield one("Concat", (2, 3), (2, 4), axis=1)
    yield one("Concat", (2, 3), (1, 3), (3, 3), axis=0)
    yield one("Expand", (3, 1), ints(2, 3, 4))
    yield one("Expand", (4,), ints(3, 4))
    yield one("Pad", (2, 3), ints(1, 0, 2, 1))
    yield one("Pad", (2, 3), ints(0, 1, 0, 1), float_scalar(2.5))
    yield one("Slice", (4, 6), ints(1), ints(3), ints(0))
    yield one("Slice", (4, 6), ints(0, -5), ints(4, 100), ints(0, 1), ints(2, 2))
    yield one("Dropout", (3, 4))


def blocks():
    yield Case("blocks", "t = Mul(a, b)\n u = Add(t, a)\n y = Mul(u, a)", dict(a=(3, 4), b=(3, 4)))
    gelu = """
        h = MatMul(x, w)  hb = Add(h, b)  s = Mul(hb, root)  e = Erf(s)  ep = Add(e, one)  hh = Mul(half, ep)
        g = Mul(hb, hh)  p = MatMul(g, v)  pb = Add(p, c)  y = Add(pb, x)"""
    numbers = dict(half=float_scalar(0.5), one=float_scalar(1.0), root=float_scalar(0.70710678))
    yield Case("blocks", gelu, dict(x=(4, 6), w=(6, 8), b=(8,), v=(8, 6), c=(6,)), numbers)
    attention = """
        t = Transpose <perm = [0, 2, 1]> (k)  l = MatMul(q, t)  s = Mul(l, scale)  p = Softmax(s)  y = MatMul(p, v)"""
    yield Case("blocks", attention, dict(q=(2, 3, 4), k=(2, 3, 4), v=(2, 3, 4)), dict(scale=float_scalar(0.5)))
    chain = "h = MatMul(a, w)  n = LayerNormalization(h, s, b)  y = Relu(n)"
    yield Case("blocks", chain, dict(a=(2, 4), w=(4, 4), s=(4,), b=(4,)))
    yield Case("two seeds", "h = Mul(a, a)  y = Tanh(h)", dict(a=(3, 4)), outputs=("y", "h"))
    yield Case("idle weight", "y = Relu(a)  z = Identity(b)", dict(a=(3, 4), b=(3, 4)))
    yield one("Sin", (3, 4))
    yield Case("Sin", "y = Relu(a)  z = Sin(a)", dict(a=(3, 4)))
    branches = """
        y = If <then_branch = t () => (float[3, 4] p) { p = Identity(a) },
                else_branch = e () => (float[3, 4] q) { q = Neg(a) }> (c)"""
    yield Case("If", branches, dict(a=(3, 4)), inputs=dict(c="bool"))
    pair = "q = QuantizeLinear(a, scale, zero)  y = DequantizeLinear(q, scale, zero)"
    small = dict(scale=float_scalar(0.05), zero=np.int8(0))
    yield Case("Q/DQ", pair, dict(a=(2, 3)), small, judge="y = Identity(a)", value_limit=0.03)


PEERS = [*arithmetic(), *products(), *pools(), *norms(), *shapes(), *blocks()]


def malformed():
    """Nodes that ONNX doesn't allow, as (operator, shapes of the inputs, shape that the output is said to have, attributes)."""
    conv = lambda a, b, y, **settings: ("Conv", [a, b], y, settings)
    five, kernel, out = (1, 2, 5, 5), (2, 2, 3, 3), (1, 2, 3, 3)
    yield conv((2, 3), (3, 4), (2, 4))
    yield conv((1, 4, 5, 5), (4, 2, 3, 3), (1, 4, 3, 3), group=3)
    yield conv((1, 4, 5, 5), kernel, out)
    yield conv(five, kernel, out, kernel_shape=[2, 2])
    yield conv(five, kernel, out, auto_pad="SAME")
    yield conv(five, kernel, out, strides=[2])
    yield conv(five, kernel, (1, 2, 4, 4))
    yield "Conv", [(1, 2, 4, 4), (3, 2, 3, 3), (1, 3)], (1, 3, 2, 2), {}
    for operator in ("MaxPool", "AveragePool"):
        pool = lambda **settings: (operator, [five], (1, 2, 2, 2), settings)
        yield pool()
        yield pool(kernel_shape=[3, 3], strides=[2])
        yield pool(kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME")
        yield operator, [(1, 1, 1)], (1, 1, 3), dict(kernel_shape=[1], pads=[1, 1])
    image = (1, 3, 4, 4)
    yield "BatchNormalization", [(3,)] * 5, (3,), {}
    for wrong in range(1, 5):
        yield "BatchNormalization", [image, *[(2,) if i == wrong else (3,) for i in range(1, 5)]], image, {}
    yield "InstanceNormalization", [(4, 3), (3,), (3,)], (4, 3), {}
    for wrong in (1, 2):
        yield "InstanceNormalization", [image, *[(2,) if i == wrong else (3,) for i in (1, 2)]], image, {}


MALFORMED = list(malformed())

MLP = "h = Gemm(x, w, b)  t = Tanh(h)  y = MatMul(t, v)"
MLP_WEIGHTS = dict(w=(4, 6), b=(6,), v=(6, 3))
HEAD = "h = MatMul(x, w)  n = ReduceMean <axes = [1], keepdims = 1> (h)  d = Sub(h, n)  y = Softmax <axis = 1> (d)"


def sizes_and_types():
    yield Case("open batch, dense layers", MLP, MLP_WEIGHTS, inputs=dict(x="float[N, 4]"))
    conv = "c = Conv <pads = [1, 1, 1, 1]> (x, w, b)  y = Relu(c)"
    yield Case("open batch, convolution", conv, dict(w=(3, 2, 3, 3), b=(3,)), inputs=dict(x="float[N, 2, 6, 6]"))
    attention = """
        q = MatMul(x, w)  k = MatMul(x, u)  t = Transpose <perm = [0, 2, 1]> (k)
        l = MatMul(q, t)  p = Softmax <axis = -1> (l)  y = MatMul(p, x)"""
    yield Case("open batch and length, attention", attention, dict(w=(4, 4), u=(4, 4)), inputs=dict(x="float[N, T, 4]"))
    image = dict(x="float[N, 2, H, W]")
    subject = "open height and width, convolution (given with --shape)"
    yield Case(subject, "y = Conv(x, w)", dict(w=(3, 2, 3, 3)), inputs=image, shape="x=?,2,6,7")
    flat = "s = Shape(x)  i = Gather(s, zero)  n = Concat <axis = 0> (i, rest)  r = Reshape(x, n)  y = MatMul(r, w)"
    yield Case(
        "open batch, shape computed from it", flat, dict(w=(12, 3)), dict(zero=ints(0), rest=ints(-1)), dict(x="float[N, 3, 4]")
    )
    double = dict(inputs=dict(x="double[3, 4]"), dtype=np.float64)
    yield Case("float64", MLP, MLP_WEIGHTS, **double)
    yield Case("float16", MLP, MLP_WEIGHTS, inputs=dict(x="float16[3, 4]"), dtype=np.float16, value_limit=2e-2)
    for opset in (9, 11, 13, 15):
        yield Case(f"opset {opset}", HEAD, dict(w=(4, 5)), inputs=dict(x="float[3, 4]"), opset=opset)
    newer = HEAD.replace("<axes = [1], keepdims = 1> (h)", "<keepdims = 1> (h, axes)")
    for opset in (18, 21, 23):
        yield Case(f"opset {opset}", newer, dict(w=(4, 5)), dict(axes=ints(1)), dict(x="float[3, 4]"), opset=opset)


def control_flow():
    body = """
        h = MatMul(x, v)
        y = If <then_branch = t () => (float[3, 4] p) {{ p = Mul(h, w) }}, else_branch = e () => (float[3, 4] q) {{ q = Tanh(h) }}> ({})"""
    weights, x = dict(w=(4,), v=(4, 4)), dict(x="float[3, 4]")
    yield Case("If, condition computed", body.format("c"), weights, inputs=x | dict(c="bool"))
    yield Case("If, condition constant", body.format("c"), weights, dict(c=np.array(True)), x)
    loop = """
        y = Loop <body = l (int64 i, bool go, float[3, 4] s) => (bool on, float[3, 4] n) {
            on = Identity(go)  m = MatMul(s, w)  n = Tanh(m) }> (trips, start, x)"""
    yield Case("Loop, number of trips fixed", loop, dict(w=(4, 4)), dict(trips=np.int64(3), start=np.array(True)), x)
    yield Case("Loop, number of trips an input", loop, dict(w=(4, 4)), dict(start=np.array(True)), x | dict(trips="int64"))
    scan = """
        last, y = Scan <num_scan_inputs = 1, body = l (float[4] s, float[4] r) => (float[4] n, float[4] o) {
            p = Mul(s, w)  q = Add(p, r)  n = Tanh(q)  o = Identity(n) }> (s0, x)"""
    yield Case("Scan", scan, dict(w=(4,), s0=(4,)), inputs=x)
    yield Case("LSTM", "y, h, c = LSTM <hidden_size = 3> (x, w, r, b)", dict(w=(1, 12, 2), r=(1, 12, 3), b=(1, 24)),
               inputs=dict(x="float[4, 2, 2]"))
    yield Case("LSTM, both directions", 'y, h, c = LSTM <hidden_size = 3, direction = "bidirectional"> (x, w, r)',
               dict(w=(2, 12, 2), r=(2, 12, 3)), inputs=dict(x="float[4, 2, 2]"))
    yield Case("GRU", "y, h = GRU <hidden_size = 3, linear_before_reset = 1> (x, w, r, b)", dict(w=(1, 9, 2), r=(1, 9, 3), b=(1, 18)),
               inputs=dict(x="float[4, 2, 2]"))
    yield Case("RNN", "y, h = RNN <hidden_size = 3> (x, w, r)", dict(w=(1, 3, 2), r=(1, 3, 3)), inputs=dict(x="float[4, 2, 2]"))


def quantised():
    q, dq = "QuantizeLinear({}, scale, zero)", "DequantizeLinear({}, scale, zero)"
    small = dict(scale=float_scalar(0.05), zero=np.int8(0))
    pair = lambda value: f"i{value} = {q.format(value)}  d{value} = {dq.format('i' + value)}"
    yield Case(
        "Q/DQ of a weight and an activation", f"{pair('x')}  {pair('w')}  y = MatMul(dx, dw)", dict(w=(4, 5)), small,
        dict(x="float[3, 4]"), judge="i = QuantizeLinear(x, scale, zero)  d = DequantizeLinear(i, scale, zero)  y = MatMul(d, w)",
        value_limit=0.5, opset=19,
    )
    yield Case(
        "Q/DQ, elements beyond the range", "i = QuantizeLinear(w, scale, zero)  y = DequantizeLinear(i, scale, zero)",
        dict(w=f32(-9, -1, 0.3, 7)), small, exact=dict(w=[0, 1, 1, 0]),
    )
    per_channel = dict(scale=f32(0.05, 0.04, 0.06), zero=np.zeros(3, np.int8))
    body = "i = QuantizeLinear <axis = 0> (w, scale, zero)  d = DequantizeLinear <axis = 0> (i, scale, zero)  y = Conv(x, d)"
    yield Case("Q/DQ by channel", body, dict(w=(3, 2, 2, 2)), per_channel, dict(x="float[1, 2, 4, 4]"), judge="y = Conv(x, w)",
               value_limit=0.5)
    yield Case(
        "weights stored as integers: biases", "d = DequantizeLinear(k, scale, zero)  h = MatMul(x, d)  y = Add(h, b)", dict(b=(5,)),
        small | dict(k=np.arange(-10, 10, dtype=np.int8).reshape(4, 5)), dict(x="float[3, 4]"),
        judge="f = Cast <to = 1> (k)  d = Mul(f, scale)  h = MatMul(x, d)  y = Add(h, b)",
        # ONNX Runtime makes another product of it.
        value_limit=5e-3,
    )
    dynamic = """
        xi, xs, xz = DynamicQuantizeLinear(h)  m = MatMulInteger(xi, k, xz)  f = Cast <to = 1> (m)
        s = Mul(xs, ks)  p = Mul(f, s)  y = Relu(p)"""
    k = np.random.default_rng(3).integers(-20, 20, (4, 5)).astype(np.int8)
    yield Case("dynamic quantisation, layer before", "h = MatMul(x, w)" + dynamic, dict(w=(4, 4)), dict(k=k, ks=float_scalar(0.03)),
               dict(x="float[3, 4]"), judge="h = MatMul(x, w)  kf = Cast <to = 1> (k)  p = MatMul(h, kf)  s = Mul(p, ks)  y = Relu(s)",
               value_limit=0.1)


def structure():
    x = dict(x="float[3, 4]")
    function = """
        <domain: "own", opset_import: ["": 17]> dense (i, m, n) => (o) { p = MatMul(i, m)  s = Add(p, n)  o = Tanh(s) }"""
    yield Case("model-local function", "h = own.dense(x, w, b)  y = own.dense(h, w, b)", dict(w=(4, 4), b=(4,)), inputs=x,
               domains=', "own": 1', functions=function)
    yield Case("weights in Constant nodes", "w = Constant <value = float[4] {0.5, -1.0, 2.0, 0.25}> ()  y = Mul(x, w)",
               dict(w=f32(0.5, -1, 2, 0.25)), inputs=x)
    yield Case("weight used twice, once transposed", "h = MatMul(x, w)  t = Transpose(w)  r = Tanh(h)  y = MatMul(r, t)",
               dict(w=(4, 5)), inputs=x)
    yield Case("integer input, embedding of a batch", "e = Gather(w, i)  h = MatMul(e, v)  y = Tanh(h)", dict(w=(4, 5), v=(5, 2)),
               inputs=dict(i="int64[2, 3]"))
    inside = """
        y = If <then_branch = t () => (float[3, 4] p) { k = Constant <value = float[4] {0.5, -1.0, 2.0, 0.25}> ()  p = Mul(x, k) },
                else_branch = e () => (float[3, 4] q) { q = Neg(x) }> (c)"""
    yield Case("weight inside a branch", inside, dict(k=f32(0.5, -1, 2, 0.25)), inputs=x | dict(c="bool"))
    sequence = """
        h = MatMul(x, w)  s = SplitToSequence <axis = 1> (h, two)  p = SequenceAt(s, zero)  q = SequenceAt(s, one)  y = Mul(p, q)"""
    places = dict(two=np.int64(2), zero=np.int64(0), one=np.int64(1))
    yield Case("sequence of tensors", sequence, dict(w=(4, 4)), places, x)
    yield Case("several outputs", "y = MatMul(x, w)  z = Tanh(y)  k = ArgMax(z)", dict(w=(4, 4)), inputs=x, outputs=("y", "z"))
    w = np.linspace(-1, 1, 16, dtype=np.float32).reshape(4, 4)
    yield Case("the gradient of an input", "h = MatMul(x, w)  y = Tanh(h)", dict(x=None), dict(w=w), x)


def vendor():
    """Operators of ONNX Runtime, judged by their definitions."""
    rows, wide = dict(x="float[3, 4]"), dict(w=(4, 5))
    numbers = dict(half=float_scalar(0.5), one=float_scalar(1), two=float_scalar(1.702), root=float_scalar(np.sqrt(0.5)))
    numbers |= dict(k=float_scalar(0.044715), r=float_scalar(np.sqrt(2 / np.pi)))

    def case(subject, body, judge, wrt, inputs=rows, **constants):
        body = body.replace(subject, f"com.microsoft.{subject}")
        subject = f"com.microsoft {subject}"
        return Case(subject, body, wrt, numbers | constants, inputs, domains=', "com.microsoft": 1', judge=judge)

    dense, biased = "h = MatMul(x, w)  ", "m = MatMul(x, w)  h = Add(m, b)  "
    erf_gelu = "s = Mul(h, root)  e = Erf(s)  e1 = Add(e, one)  g = Mul(h, e1)  y = Mul(g, half)"
    tanh_gelu = """
        x3 = Mul(h, h)  x4 = Mul(x3, h)  x5 = Mul(x4, k)  s = Add(h, x5)  s2 = Mul(s, r)  t = Tanh(s2)
        t1 = Add(t, one)  g = Mul(h, t1)  y = Mul(g, half)"""
    product = "t = Transpose(w)  m = MatMul(x, t)  y = Mul(m, half)"
    yield case("FusedMatMul", "y = FusedMatMul <transB = 1, alpha = 0.5> (x, w)", product, dict(w=(5, 4)))
    gemm, activation = "g = Gemm(x, w, b)  y = Relu(g)", 'activation = "Relu"'
    yield case("FusedGemm", f"y = FusedGemm <{activation}> (x, w, b)", gemm, dict(w=(4, 5), b=(5,)))
    conv, image = "c = Conv <pads = [1, 1, 1, 1]> (x, w, b)  y = Relu(c)", dict(x="float[1, 2, 4, 4]")
    yield case("FusedConv", f"y = FusedConv <{activation}, pads = [1, 1, 1, 1]> (x, w, b)", conv, dict(w=(3, 2, 3, 3), b=(3,)), image)
    yield case("Gelu", dense + "y = Gelu(h)", dense + erf_gelu, wide)
    yield case("FastGelu", dense + "y = FastGelu(h)", dense + tanh_gelu, wide)
    yield case("BiasGelu", "m = MatMul(x, w)  y = BiasGelu(m, b)", biased + erf_gelu, wide | dict(b=(5,)))
    yield case("QuickGelu", dense + "y = QuickGelu(h)", dense + "s = Mul(h, two)  g = Sigmoid(s)  y = Mul(h, g)", wide)
    skipped = dense + "s = Add(x, h)  y = LayerNormalization <epsilon = 0.001> (s, g, b)"
    norm = dense + "y = SkipLayerNormalization <epsilon = 0.001> (x, h, g, b)"
    sentence = dict(x="float[2, 3, 4]")
    yield case("SkipLayerNormalization", norm, skipped, dict(w=(4, 4), g=(4,), b=(4,)), sentence)
    heads = "q = MatMul(x, wq)  keys = MatMul(x, wk)  v = MatMul(x, wv)  "
    split = lambda n: f"r{n} = Reshape({n}, four)  t{n} = Transpose <perm = [0, 2, 1, 3]> (r{n})"
    attention = heads + f"""
        {split('q')}  {split('keys')}  {split('v')}  kt = Transpose <perm = [0, 1, 3, 2]> (tkeys)  l = MatMul(tq, kt)  s = Mul(l, root)
        p = Softmax(s)  o = MatMul(p, tv)  ot = Transpose <perm = [0, 2, 1, 3]> (o)  y = Reshape(ot, three)"""
    fused = heads + "y = MultiHeadAttention <num_heads = 2> (q, keys, v)"
    weights = dict(wq=(4, 4), wk=(4, 4), wv=(4, 4))
    yield case("MultiHeadAttention", fused, attention, weights, sentence, four=ints(2, 3, 2, 2), three=ints(2, 3, 4))


def operators():
    """Operators that the peer has no rule for, or not in this form."""
    for name in ("Sin", "Cos", "Atan", "Abs", "Reciprocal", "HardSigmoid", "HardSwish", "Selu", "Celu", "Mish", "Softsign", "LogSoftmax",
                 "ReduceMax", "ReduceL2", "ReduceLogSumExp", "GlobalMaxPool", "Flatten"):
        shape = (2, 3, 4, 4) if name == "GlobalMaxPool" else (3, 4)
        yield one(name, shape, opset=18 if name == "Mish" else 17)
    half, one_, root = (f"k{i} = Constant <value = float {{{v}}}> ()" for i, v in enumerate((0.5, 1.0, np.sqrt(0.5))))
    gelu = f"{half}  {one_}  {root}  s = Mul(a, k2)  e = Erf(s)  e1 = Add(e, k1)  g = Mul(a, e1)  y = Mul(g, k0)"
    yield one("Gelu", (3, 4), opset=20, judge=gelu)
    yield one("Pow", (3, 4), (3, 4), positive="a")
    yield one("Max", (3, 4), (3, 4))
    yield one("Einsum", (3, 4), (5, 4), equation="ij,kj->ik")
    yield one("ConvTranspose", (1, 2, 3, 3), (2, 3, 3, 3), (3,), strides=[2, 2])
    yield one("Resize", (1, 2, 3, 3), None, f32(1, 1, 2, 2), mode="linear")
    groups = """
        gs = Constant <value = int64[3] {2, 2, 18}> ()  whole = Constant <value = int64[4] {2, 4, 3, 3}> ()  r = Reshape(a, gs)
        k1 = Constant <value = float[2] {1, 1}> ()  k0 = Constant <value = float[2] {0, 0}> ()  n = InstanceNormalization(r, k1, k0)
        m = Reshape(n, whole)  cs = Constant <value = int64[4] {1, 4, 1, 1}> ()  s = Reshape(b, cs)  t = Reshape(c, cs)
        p = Mul(m, s)  y = Add(p, t)"""
    yield one("GroupNormalization", (2, 4, 3, 3), (4,), (4,), num_groups=2, opset=21, judge=groups)
    yield one("RMSNormalization", (3, 4), (4,), opset=23)
    yield one("PRelu", (2, 3, 4), (3, 1), subject="PRelu by channel")
    yield one("Pad", (4, 5), ints(1, 1, 1, 1), mode="reflect", subject="Pad, reflecting")
    cropped = "from = Constant <value = int64[1] {1}> ()  to = Constant <value = int64[1] {9}> ()  s = Slice(a, from, to)\n"
    cropped += "p = Constant <value = int64[4] {0, 0, 0, 1}> ()  y = Pad(s, p)"
    yield one("Pad", (4, 5), ints(-1, 0, 0, 1), subject="Pad, negative", judge=cropped)
    yield one("Slice", (4, 6), ints(-1), ints(-10), ints(1), ints(-2), subject="Slice, backwards")
    flat = "f = Flatten <axis = 1> (a)  e = Exp(f)  t = ReduceSum <axes = [1]> (e)  d = Div(e, t)\n"
    flat += "s = Shape(a)  y = Reshape(d, s)"
    yield one("Softmax", (2, 3, 4), opset=11, axis=1, subject="Softmax of opset 11 over two axes", judge=flat)
    yield one("GatherElements", (3, 4), np.array([[0, 1, 0, 2], [2, 2, 1, 1]], np.int64), axis=0)
    yield one("GatherND", (3, 4), np.array([[0, 1], [2, 3], [0, 1]], np.int64))
    yield one("ScatterElements", (3, 4), np.array([[0, 1, 0, 2]], np.int64), (1, 4), axis=0)
    yield one("ScatterND", (4, 3), np.array([[1], [3]], np.int64), (2, 3))
    yield one("CumSum", (3, 4), np.int64(1))
    yield one("Tile", (2, 3), ints(2, 1))
    yield one("Trilu", (4, 4))
    yield one("SpaceToDepth", (1, 2, 4, 4), blocksize=2)
    yield one("GridSample", (1, 2, 4, 4), np.random.default_rng(5).uniform(-0.9, 0.9, (1, 3, 3, 2)).astype(np.float32), opset=16)
    yield one("TopK", (3, 5), ints(2), outputs="y, indices")
    yield one("SoftmaxCrossEntropyLoss", (3, 5), ints(0, 4, 2))
    yield one("Det", (2, 3, 3))


def kinks():
    """Where the slope jumps, or a product would be infinity times zero: the answers are PyTorch's (that of `Where` is NaN there)."""

    def here(subject, body, a, exact, **constants):
        return Case(f"kink: {subject}", body, dict(a=f32(*a)), constants, exact=dict(a=exact))

    bounds = dict(low=float_scalar(-1), high=float_scalar(1))
    yield here("Relu at 0", "y = Relu(a)", (-1, 0, 2), [0, 0, 1])
    yield here("LeakyRelu at 0", "y = LeakyRelu <alpha = 0.1> (a)", (-1, 0, 2), [0.1, 0.1, 1])
    yield here("Clip at its bounds", "y = Clip(a, low, high)", (-2, -1, 0, 1, 2), [0, 0, 1, 0, 0], **bounds)
    yield here("HardSigmoid at its ends", "y = HardSigmoid <alpha = 0.25> (a)", (-2, 0, 2), [0, 0.25, 0])
    yield here("HardSwish at its ends", "y = HardSwish(a)", (-3, 0, 3), [0, 0.5, 1])
    three = "e = Elu(a)  s = Selu(a)  c = Celu(a)  p = Add(e, s)  y = Add(p, c)"
    yield here("Elu, Selu, Celu at 0", three, (0,), [2 + 1.6732632 * 1.050701])
    yield here("Abs at 0", "y = Abs(a)", (-1, 0, 1), [-1, 0, 1])
    yield here("root of Relu", "r = Relu(a)  y = Sqrt(r)", (-1, 4), [0, 0.25])
    other = "s = Sqrt(a)  y = Where(c, s, zero)"
    yield here("Where, infinite slope on the other side", other, (0, 4), [0, 0.25], c=np.array([False, True]), zero=float_scalar(0))
    yield here("Softplus, large", "y = Softplus(a)", (-200, 0, 200), [0, 0.5, 1])
    yield here("Elu, large", "y = Elu(a)", (-200, -1, 200), [0, np.exp(-1), 1])
    ties = dict(a=f32(1, 1, 1, 0).reshape(1, 1, 4))
    body = "y = MaxPool <kernel_shape = [2]> (a)"
    yield Case("kink: MaxPool, ties in overlapping windows", body, ties, exact=dict(a=[[[1, 1, 1, 0]]]))


FURTHER = {
    "sizes and types": list(sizes_and_types()),
    "control flow and recurrence": list(control_flow()),
    "quantisation": list(quantised()),
    "structure": list(structure()),
    "ONNX Runtime's operators": list(vendor()),
    "further operators": list(operators()),
    "kinks and infinities": list(kinks()),
}


def malformed_model(operator, inputs, output, settings):
    """A model whose file says what it likes about shapes; the tensors are its weights, `x` a number that it is multiplied by."""
    names = string.ascii_lowercase[: len(inputs)]
    rng = np.random.default_rng(0)
    weights = [onnx.numpy_helper.from_array(rng.uniform(0.5, 1.5, shape).astype(np.float32), n) for n, shape in zip(names, inputs)]
    nodes = [onnx.helper.make_node(operator, list(names), ["made"], **settings), onnx.helper.make_node("Mul", ["made", "x"], ["y"])]
    value = lambda name, shape: onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
    graph = onnx.helper.make_graph(nodes, "malformed", [value("x", [])], [value("y", output)], weights, value_info=[value("made", output)])
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), list(names)
