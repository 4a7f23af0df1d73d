"""Makes the PyTorch references beside this file.

    python make.py            # needs torch, numpy, onnx (and onnxscript for the exported networks)

`operators.npz` has two arrays for each small case: `NAME.model`, an ONNX model as bytes, and `NAME.data`, all numbers
one after another as float32: the values of the graph's inputs, those of its outputs as PyTorch computes them, the
cotangents of the outputs, and PyTorch's cotangents of the inputs (NaN for those that get none).
`network_*.onnx` are exported networks; their .npz hold `in.X`, `value.Y`, `seed.Y` and `grad.W` by name.
"""
import os

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper

HERE = os.path.dirname(os.path.abspath(__file__))
torch.manual_seed(7)
torch.set_num_threads(1)
CASES = []


def case(name, node, inputs, function, opset=18, fixed=(), outputs=("y",), initializers=()):
    """`inputs`: name -> tensor; `function` takes them in order; `fixed` ones get no gradient."""
    CASES.append((name, node, inputs, function, opset, fixed, outputs, initializers))


def r(*shape):
    return torch.randn(*shape)


def spread(*shape):
    """All elements well apart, so that no maximum is in doubt."""
    n = int(np.prod(shape))
    return ((torch.randperm(n).float() + 0.5) / n * 4 - 2).reshape(shape)


def op(name, inputs, outputs=("y",), **attributes):
    return helper.make_node(name, list(inputs), list(outputs), **attributes)


# Convolutions -------------------------------------------------------------------------------------------------

def conv(name, x, w, bias=True, stride=1, pad=(0, 0), dilation=1, group=1):
    """`pad`: (begin, end), the same for every axis."""
    n = len(x) - 2
    tensors = {"x": r(*x), "w": r(*w)}
    if bias:
        tensors["b"] = r(w[0])

    def function(x, w, b=None):
        x = F.pad(x, list(pad) * n)
        return [F.conv1d, F.conv2d, F.conv3d][n - 1](x, w, b, stride, 0, dilation, group)

    attributes = dict(strides=[stride] * n, pads=[pad[0]] * n + [pad[1]] * n, dilations=[dilation] * n, group=group)
    case(name, op("Conv", tensors, **attributes), tensors, function)


conv("conv_one_channel", (2, 1, 8, 8), (3, 1, 3, 3), pad=(1, 1))
conv("conv_few_channels_stride", (2, 3, 8, 9), (4, 3, 3, 3), stride=2, pad=(1, 0))
conv("conv_many_channels", (2, 9, 6, 6), (5, 9, 3, 3), pad=(1, 1))
conv("conv_many_channels_stride_remainder", (2, 8, 8, 8), (4, 8, 3, 3), stride=3)
conv("conv_dilation", (1, 8, 9, 9), (3, 8, 3, 3), dilation=2, pad=(2, 1), bias=False)
conv("conv_dilation_stride", (2, 2, 11, 10), (3, 2, 3, 2), dilation=2, stride=2, pad=(1, 2))
conv("conv_large_kernel", (1, 2, 12, 12), (2, 2, 7, 7), stride=2, pad=(3, 3))
conv("conv_pointwise", (2, 5, 12, 12), (4, 5, 1, 1))
conv("conv_pointwise_small", (2, 9, 3, 3), (4, 9, 1, 1))
conv("conv_pointwise_stride", (2, 9, 6, 6), (4, 9, 1, 1), stride=2)
conv("conv_depthwise", (2, 6, 7, 7), (6, 1, 3, 3), group=6, pad=(1, 1))
conv("conv_depthwise_stride", (2, 4, 8, 7), (4, 1, 3, 3), group=4, stride=2, pad=(1, 1))
conv("conv_depthwise_multiplier", (2, 3, 6, 6), (6, 1, 3, 3), group=3)
conv("conv_grouped", (2, 4, 6, 6), (6, 2, 3, 3), group=2, pad=(0, 1))
conv("conv_grouped_wide", (1, 16, 5, 5), (4, 8, 3, 3), group=2, stride=2, pad=(1, 1))
conv("conv_1d", (2, 4, 12), (5, 4, 3), stride=2, pad=(1, 1))
conv("conv_1d_wide", (2, 8, 12), (5, 8, 3), dilation=2, pad=(4, 0))
conv("conv_1d_depthwise", (2, 3, 9), (3, 1, 4), group=3, pad=(3, 0))
conv("conv_3d", (1, 2, 5, 6, 5), (3, 2, 2, 3, 2), stride=2, pad=(1, 0))
conv("conv_3d_depthwise", (1, 3, 4, 5, 5), (3, 1, 2, 3, 3), group=3, pad=(1, 1))


def conv_transpose(name, x, w, stride=1, pad=0, grow=0, dilation=1, group=1):
    n = len(x) - 2
    tensors = {"x": r(*x), "w": r(*w), "b": r(w[1] * group)}

    def function(x, w, b):
        f = [F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d][n - 1]
        return f(x, w, b, stride, pad, grow, group, dilation)

    attributes = dict(strides=[stride] * n, pads=[pad] * 2 * n, dilations=[dilation] * n, group=group)
    if grow:
        attributes["output_padding"] = [grow] * n
    case(name, op("ConvTranspose", tensors, **attributes), tensors, function)


conv_transpose("conv_transpose", (2, 3, 5, 5), (3, 4, 3, 3))
conv_transpose("conv_transpose_stride", (2, 3, 4, 5), (3, 4, 3, 3), stride=2, pad=1, grow=1)
conv_transpose("conv_transpose_dilation", (1, 8, 4, 4), (8, 9, 3, 3), stride=2, dilation=2, grow=1)
conv_transpose("conv_transpose_grouped", (2, 4, 4, 4), (4, 3, 2, 2), stride=2, group=2)
conv_transpose("conv_transpose_1d", (2, 3, 6), (3, 2, 4), stride=2, pad=1)

# Pooling ------------------------------------------------------------------------------------------------------


def pool(name, kind, x, kernel, stride, pad=0, ceil=False, dilation=1, include=False):
    n = len(x) - 2
    attributes = dict(kernel_shape=[kernel] * n, strides=[stride] * n, pads=[pad] * 2 * n, ceil_mode=int(ceil))
    if kind == "MaxPool":
        attributes["dilations"] = [dilation] * n
        function = lambda v: [F.max_pool1d, F.max_pool2d, F.max_pool3d][n - 1](v, kernel, stride, pad, dilation, ceil)
    else:
        attributes["count_include_pad"] = int(include)
        function = lambda v: [F.avg_pool1d, F.avg_pool2d, F.avg_pool3d][n - 1](v, kernel, stride, pad, ceil, include)
    tensors = {"x": spread(*x)}
    case(name, op(kind, tensors, **attributes), tensors, function)


pool("max_pool", "MaxPool", (2, 3, 8, 8), 2, 2)
pool("max_pool_remainder", "MaxPool", (2, 2, 7, 9), 2, 2)
pool("max_pool_overlapping", "MaxPool", (2, 2, 8, 8), 3, 2, pad=1)
pool("max_pool_ceil", "MaxPool", (1, 2, 8, 8), 3, 2, ceil=True)
pool("max_pool_dilation", "MaxPool", (1, 2, 9, 9), 3, 1, pad=1, dilation=2)
pool("max_pool_1d", "MaxPool", (2, 2, 11), 3, 2)
pool("max_pool_3d", "MaxPool", (1, 2, 4, 6, 4), 2, 2)
pool("average_pool", "AveragePool", (2, 3, 8, 8), 2, 2)
pool("average_pool_overlapping", "AveragePool", (2, 2, 7, 8), 3, 2, pad=1)
pool("average_pool_include_pad", "AveragePool", (2, 2, 7, 8), 3, 2, pad=1, include=True)
pool("average_pool_1d", "AveragePool", (2, 2, 9), 3, 1)
pool("average_pool_3d", "AveragePool", (1, 2, 4, 5, 4), 2, 1)

x = {"x": spread(2, 3, 5, 4)}
case("global_average_pool", op("GlobalAveragePool", x), x, lambda x: x.mean((2, 3), keepdim=True))
case("global_max_pool", op("GlobalMaxPool", x), x, lambda x: x.amax((2, 3), keepdim=True))
case("global_lp_pool", op("GlobalLpPool", x, p=3), x, lambda x: x.abs().pow(3).sum((2, 3), keepdim=True).pow(1 / 3))
case("lp_pool", op("LpPool", x, kernel_shape=[2, 2], strides=[2, 1], p=2), x,
     lambda x: F.avg_pool2d(x * x, 2, (2, 1), divisor_override=1).sqrt())
case("lp_pool_3", op("LpPool", x, kernel_shape=[3, 3], p=3, pads=[1, 1, 1, 1]), x,
     lambda x: F.avg_pool2d(x.abs() ** 3, 3, 1, 1, divisor_override=1).pow(1 / 3))

# Normalisation ------------------------------------------------------------------------------------------------

bn = {"x": r(3, 4, 3, 2), "s": r(4), "b": r(4), "m": r(4), "v": torch.rand(4) + 0.5}
case("batch_normalization", op("BatchNormalization", bn, epsilon=1e-3), bn,
     lambda x, s, b, m, v: (x - m.view(1, 4, 1, 1)) / (v.view(1, 4, 1, 1) + 1e-3).sqrt() * s.view(1, 4, 1, 1)
     + b.view(1, 4, 1, 1))
bn1 = {"x": r(3, 4), "s": r(4), "b": r(4), "m": r(4), "v": torch.rand(4) + 0.5}
case("batch_normalization_rank_2", op("BatchNormalization", bn1), bn1,
     lambda x, s, b, m, v: (x - m) / (v + 1e-5).sqrt() * s + b)
ln = {"x": r(2, 3, 6), "s": r(6), "b": r(6)}
case("layer_normalization", op("LayerNormalization", ln), ln, lambda x, s, b: F.layer_norm(x, (6,), s, b, 1e-5))
ln2 = {"x": r(2, 3, 4), "s": r(3, 4)}
case("layer_normalization_axis", op("LayerNormalization", ln2, axis=1, epsilon=1e-2), ln2,
     lambda x, s: F.layer_norm(x, (3, 4), s, None, 1e-2))
inn = {"x": r(2, 3, 4, 3), "s": r(3), "b": r(3)}
case("instance_normalization", op("InstanceNormalization", inn), inn, lambda x, s, b: F.instance_norm(x, weight=s, bias=b))
gn = {"x": r(2, 6, 3, 2), "s": r(6), "b": r(6)}
case("group_normalization", op("GroupNormalization", gn, num_groups=2), gn,
     lambda x, s, b: F.group_norm(x, 2, s, b), opset=21)
rms = {"x": r(3, 5), "s": r(5)}
case("rms_normalization", op("RMSNormalization", rms, epsilon=1e-5), rms, lambda x, s: F.rms_norm(x, (5,), s, 1e-5), opset=23)
lrn = {"x": r(2, 6, 2, 3)}
case("lrn", op("LRN", lrn, size=3, alpha=0.3, beta=0.7, bias=1.5), lrn,
     lambda x: F.local_response_norm(x, 3, 0.3, 0.7, 1.5))
lp = {"x": r(3, 4, 2)}
case("lp_normalization", op("LpNormalization", lp, axis=1, p=2), lp, lambda x: F.normalize(x, 2, 1))
case("lp_normalization_1", op("LpNormalization", lp, axis=-1, p=1), lp, lambda x: F.normalize(x, 1, -1))
mv = {"x": r(2, 3, 2, 3)}
case("mean_variance_normalization", op("MeanVarianceNormalization", mv), mv,
     lambda x: (x - x.mean((0, 2, 3), keepdim=True)) / x.std((0, 2, 3), keepdim=True, unbiased=False))

# Softmax and losses -------------------------------------------------------------------------------------------

s = {"x": r(3, 4, 2) * 3}
case("softmax", op("Softmax", s, axis=1), s, lambda x: F.softmax(x, 1))
case("log_softmax", op("LogSoftmax", s, axis=-1), s, lambda x: F.log_softmax(x, -1))
scores, labels = r(5, 4), torch.tensor([0, 3, 1, 2, 3])
image, image_labels = r(2, 3, 2, 2), torch.tensor([[[0, 2], [1, 1]], [[2, 0], [0, 1]]])
weights = torch.rand(3) + 0.5


def nll(log_p, t, w, reduction="mean", ignore=None):
    """Written out, because PyTorch has no gradient for class weights."""
    weight = w[t] if ignore is None else w[t] * (t != ignore)
    cost = -weight * log_p.gather(1, t.unsqueeze(1)).squeeze(1)
    return cost if reduction == "none" else cost.sum() if reduction == "sum" else cost.sum() / weight.sum()


for reduction in ("mean", "sum", "none"):
    t = {"x": scores, "t": labels}
    case(f"softmax_cross_entropy_{reduction}", op("SoftmaxCrossEntropyLoss", t, reduction=reduction), t,
         lambda x, t, reduction=reduction: F.cross_entropy(x, t, reduction=reduction), fixed=("t",))
    t = {"x": image, "t": image_labels, "w": weights}
    case(f"nll_weighted_ignore_{reduction}",
         op("NegativeLogLikelihoodLoss", t, reduction=reduction, ignore_index=1), t,
         lambda x, t, w, reduction=reduction: nll(x, t, w, reduction, 1),
         fixed=("t",))
t = {"x": image, "t": image_labels, "w": weights}
case("softmax_cross_entropy_weighted", op("SoftmaxCrossEntropyLoss", t, outputs=("y", "log")), t,
     lambda x, t, w: (nll(F.log_softmax(x, 1), t, w), F.log_softmax(x, 1)), fixed=("t",), outputs=("y", "log"))

# Recurrent layers ---------------------------------------------------------------------------------------------


def recurrent(name, kind, directions, steps=4, batch=2, size=3, hidden=3, states=True, **attributes):
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind]
    g = gates * hidden
    tensors = {"x": r(steps, batch, size), "w": r(directions, g, size), "r": r(directions, g, hidden),
               "b": r(directions, 2 * g)}
    names = ["x", "w", "r", "b"]
    batch_first = attributes.get("layout", 0) == 1
    if batch_first:
        tensors["x"] = tensors["x"].transpose(0, 1).contiguous()
    if states:
        tensors["h"] = r(directions, batch, hidden)
        names += ["", "h"]
        if kind == "LSTM":
            tensors["c"] = r(directions, batch, hidden)
            names.append("c")
    # PyTorch's gates are in the order i, f, g, o and r, z, n; ONNX's are i, o, f, c and z, r, h.
    order = {"LSTM": [0, 2, 3, 1], "GRU": [1, 0, 2], "RNN": [0]}[kind]

    def function(x, w, rr, b, h=None, c=None):
        module = getattr(torch.nn, kind)(size, hidden, bidirectional=directions == 2)
        sort = lambda m: torch.cat([m[k * hidden:(k + 1) * hidden] for k in order])
        parameters = {}
        for d in range(directions):
            end = "_reverse" if d else ""
            parameters |= {f"weight_ih_l0{end}": sort(w[d]), f"weight_hh_l0{end}": sort(rr[d]),
                           f"bias_ih_l0{end}": sort(b[d, :g]), f"bias_hh_l0{end}": sort(b[d, g:])}
        x = x.transpose(0, 1) if batch_first else x
        state = () if h is None else ((h, c) if c is not None else h,)
        y, last = torch.func.functional_call(module, parameters, (x, *state))
        y = y.reshape(steps, batch, directions, hidden).transpose(1, 2)
        last = last if kind == "LSTM" else (last,)
        return (y.permute(2, 0, 1, 3), *(v.transpose(0, 1) for v in last)) if batch_first else (y, *last)

    if kind == "GRU":
        attributes["linear_before_reset"] = 1
    outputs = ("y", "yh", "yc") if kind == "LSTM" else ("y", "yh")
    attributes["direction"] = "bidirectional" if directions == 2 else "forward"
    node = helper.make_node(kind, names, list(outputs), hidden_size=hidden, **attributes)
    case(name, node, tensors, function, outputs=outputs)


for kind in ("LSTM", "GRU", "RNN"):
    recurrent(kind.lower(), kind, 1)
    recurrent(f"{kind.lower()}_bidirectional", kind, 2, states=False)
    recurrent(f"{kind.lower()}_batch_first", kind, 2, states=False, layout=1)

# Resize -------------------------------------------------------------------------------------------------------


def resize(name, x, scales, mode, torch_mode, **attributes):
    constants = [numpy_helper.from_array(np.array(scales, np.float32), "scales")]
    align = attributes.get("coordinate_transformation_mode") == "align_corners"
    extra = {} if torch_mode == "nearest" else dict(align_corners=align)
    tensors = {"x": r(*x)}
    sizes = [int(np.floor(d * s)) for d, s in zip(x, scales)][2:]
    antialias = bool(attributes.get("antialias", 0))
    node = helper.make_node("Resize", ["x", "", "scales"], ["y"], mode=mode, **attributes)
    case(name, node, tensors,
         lambda v: F.interpolate(v, size=sizes, mode=torch_mode, antialias=antialias, **extra), initializers=constants)


resize("resize_nearest", (1, 2, 3, 4), (1, 1, 2, 2), "nearest", "nearest",
       coordinate_transformation_mode="asymmetric", nearest_mode="floor")
resize("resize_linear", (1, 2, 3, 4), (1, 1, 2, 3), "linear", "bilinear", coordinate_transformation_mode="half_pixel")
resize("resize_linear_align_corners", (1, 2, 3, 4), (1, 1, 3, 2), "linear", "bilinear",
       coordinate_transformation_mode="align_corners")
resize("resize_linear_shrink", (1, 2, 6, 8), (1, 1, 0.5, 0.5), "linear", "bilinear",
       coordinate_transformation_mode="half_pixel")
resize("resize_cubic", (1, 2, 4, 5), (1, 1, 2, 2), "cubic", "bicubic", coordinate_transformation_mode="half_pixel")
resize("resize_linear_antialias", (1, 2, 8, 6), (1, 1, 0.5, 0.5), "linear", "bilinear", antialias=1,
       exclude_outside=1, coordinate_transformation_mode="half_pixel")


# Whole networks, as torch.onnx exports them -------------------------------------------------------------------

class Cnn(torch.nn.Module):
    def __init__(self):
        super().__init__()
        n = torch.nn
        self.body = n.Sequential(n.Conv2d(1, 4, 3, padding=1), n.BatchNorm2d(4), n.ReLU(), n.MaxPool2d(2),
                                 n.Conv2d(4, 8, 3, stride=2, padding=1), n.SiLU(), n.Conv2d(8, 8, 3, groups=8, padding=1),
                                 n.GELU(), n.AdaptiveAvgPool2d(1), n.Flatten(), n.Linear(8, 3))

    def forward(self, x):
        return self.body(x)


class Mlp(torch.nn.Module):
    def __init__(self):
        super().__init__()
        n = torch.nn
        self.body = n.Sequential(n.Flatten(), n.Linear(16, 12), n.ReLU(), n.Linear(12, 8), n.Tanh(), n.Linear(8, 3),
                                 n.LogSoftmax(1))

    def forward(self, x):
        return self.body(x)


class Transformer(torch.nn.Module):
    """One pre-norm encoder block over embedded tokens, written out."""

    def __init__(self, width=8, heads=2):
        super().__init__()
        n = torch.nn
        self.heads = heads
        self.embed, self.position = n.Embedding(11, width), n.Parameter(torch.randn(6, width))
        self.norm1, self.norm2, self.norm3 = n.LayerNorm(width), n.LayerNorm(width), n.LayerNorm(width)
        self.qkv, self.out = n.Linear(width, 3 * width), n.Linear(width, width)
        self.up, self.down, self.head = n.Linear(width, 16), n.Linear(16, width), n.Linear(width, 3)

    def forward(self, tokens):
        x = self.embed(tokens) + self.position
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        weights = torch.softmax(q @ k.transpose(-1, -2) / (width // self.heads) ** 0.5, -1)
        x = x + self.out((weights @ v).transpose(1, 2).reshape(batch, length, width))
        x = x + self.down(F.gelu(self.up(self.norm2(x))))
        return self.head(self.norm3(x).mean(1))


def export(name, module, x):
    """The exported network, and the gradients of its initializers that are parameters of the module."""
    module.eval()
    for parameter in module.parameters():  # equal ones would be tied by the exporter
        torch.nn.init.normal_(parameter, std=0.5)
    for _, buffer in module.named_buffers():
        if buffer.dtype.is_floating_point:
            buffer.copy_(torch.rand_like(buffer) + 0.5)
    path = os.path.join(HERE, name + ".onnx")
    torch.onnx.export(module, (x,), path, dynamo=False, opset_version=18, input_names=["x"], output_names=["y"],
                      do_constant_folding=False, keep_initializers_as_inputs=False)
    parameters = dict(module.named_parameters())
    y = module(x)
    seed = torch.randn_like(y)
    grads = torch.autograd.grad(y, list(parameters.values()), seed)
    by_name = dict(zip(parameters, grads))
    arrays = {"in.x": x.numpy(), "value.y": y.detach().numpy(), "seed.y": seed.numpy()}
    names = {t.name for t in onnx.load(path).graph.initializer}
    arrays |= {f"grad.{p}": g.numpy() for p, g in by_name.items() if p in names}
    print(name, len(arrays) - 3, "of", len(grads), "parameters")
    np.savez_compressed(os.path.join(HERE, name + ".npz"), **arrays)


def make(name, node, tensors, function, opset, fixed, outputs, initializers):
    tensors = {k: v.clone() for k, v in tensors.items()}
    free = [k for k in tensors if k not in fixed]
    for k in free:
        tensors[k].requires_grad_()
    ys = function(*tensors.values())
    ys = ys if isinstance(ys, tuple) else (ys,)
    seeds = [torch.randn_like(y) for y in ys]
    grads = torch.autograd.grad(ys, [tensors[k] for k in free], seeds)
    by_name = dict(zip(free, grads))
    cotangents = [by_name.get(k, torch.full(v.shape, float("nan"))) for k, v in tensors.items()]
    data = [v.detach().float().flatten() for v in (*tensors.values(), *ys, *seeds, *cotangents)]
    types = {torch.float32: TensorProto.FLOAT, torch.int64: TensorProto.INT64}
    info = lambda k, v: helper.make_tensor_value_info(k, types[v.dtype], list(v.shape))
    graph = helper.make_graph([node], name, [info(k, v) for k, v in tensors.items()],
                              [info(k, y) for k, y in zip(outputs, ys)], list(initializers))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8 if opset < 21 else 10)
    onnx.checker.check_model(model)
    model = np.frombuffer(model.SerializeToString(), np.uint8)
    return {f"{name}.model": model, f"{name}.data": torch.cat(data).numpy()}


if __name__ == "__main__":
    arrays = {}
    for arguments in CASES:
        arrays |= make(*arguments)
    np.savez_compressed(os.path.join(HERE, "operators.npz"), **arrays)
    export("network_cnn", Cnn(), torch.randn(2, 1, 8, 8))
    export("network_mlp", Mlp(), torch.randn(3, 1, 4, 4))
    export("network_transformer", Transformer(), torch.randint(0, 11, (2, 6)))
