"""Gradient graphs against the slope of their own loss: for a few weights a step along the gradient and one back.

    python benches/long_tail.py FOLDER --slopes          # the column «slopes»

For weights of the largest gradients, and some others, the loss is taken at w ± ε g/‖g‖ by the graph itself, in float32; the slope
is to be ‖g‖. Steps are 0.03 to 0.00001 of ‖w‖, and the one with the smallest difference counts: long ones cross kinks, short ones
drown in rounding. Weights whose steps change the loss by less than rounding does say nothing, nor do models with random numbers
inside.
"""
import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

STEPS = (3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5)
# Of each kind.
WEIGHTS = 3
# What rounding may make of a loss, relative to it.
NOISE = 3e-6


def session(model):
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 2
    return onnxruntime.InferenceSession(model.SerializeToString(), options)


def made_up(info, rng, size):
    """Numbers for an input: two rows of it, `size` where other dimensions are open; 0 and 1 for integers."""
    dims = info.type.tensor_type.shape.dim
    shape = [d.dim_value if d.dim_value > 0 else (2 if i == 0 else size) for i, d in enumerate(dims)]
    dtype = onnx.helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)
    if dtype.kind in "iub":
        return rng.integers(0, 2, shape).astype(dtype)
    return rng.random(shape).astype(dtype)


def varies(tensor):
    """Whether its elements aren't all one number: others may be the same tensor."""
    value = numpy_helper.to_array(tensor)
    return value.size > 1 and np.ptp(value) > 0


def worst(path, size):
    """The largest relative difference of slope and gradient, and the weight; `None` where no weight says anything."""
    rng = np.random.default_rng(1)
    model = onnx.load(path)
    given = {t.name: t for t in model.graph.initializer}
    feeds = {i.name: made_up(i, rng, size) for i in model.graph.input if i.name not in given}
    names = [o.name for o in model.graph.output]
    loss_name = names[0]
    whole = session(model)
    found = dict(zip(names, whole.run(None, feeds)))
    loss = float(found[loss_name])
    if loss != float(whole.run([loss_name], feeds)[0]):
        return None
    norms = {n.removesuffix(".grad"): float(np.linalg.norm(np.float64(g))) for n, g in found.items() if n.endswith(".grad")}
    # Equal tensors are stored once, such as those of layers that began as copies: one can't be moved without the others.
    merged = {np.shape(found[f"{n}.grad"]) for n in norms if n not in given}
    alone = {n for n in norms if n in given and tuple(given[n].dims) not in merged and varies(given[n])}
    norms = {n: v for n, v in norms.items() if n in alone and np.isfinite(v) and v > 0}
    chosen = sorted(norms, key=norms.get)[-WEIGHTS:] + list(rng.permutation(sorted(norms))[:WEIGHTS])
    for name in dict.fromkeys(chosen):
        model.graph.input.append(onnx.helper.make_tensor_value_info(name, given[name].data_type, given[name].dims))
    del model.graph.output[1:]
    moved = session(model)
    result = None
    for name in dict.fromkeys(chosen):
        value, gradient = numpy_helper.to_array(given[name]), np.float64(found[f"{name}.grad"])
        length = float(np.linalg.norm(np.float64(value))) or 1.0
        off = []
        for step in STEPS:
            reach = step * length
            there = [(value + s * reach * gradient / norms[name]).astype(value.dtype) for s in (1, -1)]
            ends = [float(moved.run([loss_name], feeds | {name: v})[0]) for v in there]
            if 2 * reach * norms[name] > NOISE * max(abs(loss), 1e-3) / 0.02:
                off.append(abs((ends[0] - ends[1]) / (2 * reach) / norms[name] - 1))
        if off and (result is None or min(off) > result[0]):
            result = min(off), name
    return result
