"""The operators of `benches/wgpu`, by PyTorch eager on its GPU: reads the cases as JSON, prints seconds as JSON.

Run by the bench when ONNX_MERGE_TORCH names a Python that has torch; never by the program itself. Seconds are per run, of
many in a row, by CUDA's events (by the host's clock without a GPU).
"""
import json
import sys
import time

import torch
import torch.nn.functional as F

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
torch.backends.cuda.matmul.allow_tf32 = False
torch.backends.cudnn.allow_tf32 = False


def rand(*shape):
    return torch.rand(*shape, device=DEVICE) * 2 - 1


def conv(case, dtype=torch.float32):
    n, c, size, o, k, stride, group = (case[f] for f in ("n", "c", "size", "o", "kernel", "stride", "group"))
    x, w = rand(n, c, size, size).to(dtype), rand(o, c // group, k, k).to(dtype)
    settings = dict(stride=[stride] * 2, padding=[k // 2] * 2, dilation=[1, 1], groups=group)
    if case["pass"] == "forward":
        return lambda: F.conv2d(x, w, stride=stride, padding=k // 2, groups=group)
    g = rand(*F.conv2d(x, w, stride=stride, padding=k // 2, groups=group).shape).to(dtype)
    mask = [case["pass"] == "input", case["pass"] == "weight", False]
    backward = torch.ops.aten.convolution_backward
    return lambda: backward(
        g, x, w, None, settings["stride"], settings["padding"], settings["dilation"], False, [0, 0], group, mask
    )


def layer_norm(case):
    x, scale, bias = rand(case["rows"], case["cols"]), rand(case["cols"]), rand(case["cols"])
    if case["pass"] == "forward":
        return lambda: F.layer_norm(x, (case["cols"],), scale, bias)
    g = rand(*x.shape)
    _, mean, rstd = torch.ops.aten.native_layer_norm(x, [case["cols"]], scale, bias, 1e-5)
    backward = torch.ops.aten.native_layer_norm_backward
    mask = [case["pass"] == "input", case["pass"] == "weight", False]
    return lambda: backward(g, x, [case["cols"]], mean, rstd, scale, bias, mask)


def softmax(case):
    x = rand(case["rows"], case["cols"])
    if case["pass"] == "forward":
        return lambda: torch.softmax(x, -1)
    g = rand(*x.shape)
    # As on our side, from x.
    return lambda: torch.ops.aten._softmax_backward_data(g, torch.softmax(x, -1), -1, torch.float32)


def rms_norm(case):
    x, scale = rand(case["rows"], case["cols"]).requires_grad_(case["pass"] != "forward"), rand(case["cols"])
    if case["pass"] == "forward":
        return lambda: F.rms_norm(x, (case["cols"],), scale, 1e-5)
    g = rand(*x.shape)
    return lambda: torch.autograd.grad(F.rms_norm(x, (case["cols"],), scale, 1e-5), x, g)


def cross_entropy(case):
    x = rand(case["rows"], case["cols"]).requires_grad_()
    labels = torch.arange(case["rows"], device=DEVICE) * 7919 % case["cols"]
    return lambda: torch.autograd.grad(F.cross_entropy(x, labels), x)


def product(case, dtype=torch.float32):
    lead = [] if case["batch"] == 1 else [case["batch"]]
    a, b = rand(*lead, case["m"], case["k"]), rand(*lead, case["k"], case["n"])
    a, b = a.to(dtype), b.to(dtype)
    return lambda: a @ b


def matrix(make):
    def of(case):
        x, y = rand(case["rows"], case["cols"]), rand(case["rows"], case["cols"])
        return make(case, x, y)

    return of


KINDS = {
    "product": product,
    "conv": conv,
    "half_product": lambda case: product(case, torch.float16),
    "half_conv": lambda case: conv(case, torch.float16),
    "layer_norm": layer_norm,
    "softmax": softmax,
    "rms_norm": rms_norm,
    "cross_entropy": cross_entropy,
    "add_gelu": matrix(lambda case, x, y: lambda: x + F.gelu(y)),
    "negate": matrix(lambda case, x, y: lambda: -x),
    "sum": matrix(lambda case, x, y: lambda: x.sum(case["axis"])),
    "transpose": matrix(lambda case, x, y: lambda: x.t().contiguous()),
}


def seconds(f):
    for _ in range(3):
        f()
    if DEVICE == "cpu":
        begun = time.perf_counter()
        f()
        return time.perf_counter() - begun
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

    def runs(count):
        start.record()
        for _ in range(count):
            f()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1e3

    count = max(3, min(500, int(0.15 / max(runs(3) / 3, 1e-6))))
    return runs(count) / count


def main():
    print(json.dumps([seconds(KINDS[case["kind"]](case)) for case in json.load(sys.stdin)]))


if __name__ == "__main__":
    main()
