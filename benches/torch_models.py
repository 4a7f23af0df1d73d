"""Gradients of whole networks as PyTorch exports them, against PyTorch's autograd.

    python benches/torch_models.py                  # all, with both exporters; prints a table in Markdown
    python benches/torch_models.py resnet18 lstm    # only these

Needs torch, torchvision, transformers, onnx, onnxscript and onnxruntime, and this program built (`--program` names it).
Each network has random weights, batch normalisation the statistics of one batch. It is exported, differentiated by
`onnx-merge grad --gradients-only --loss sum`, and its gradients run in ONNX Runtime (float64 convolutions, for which that
has no kernel, in ONNX's reference evaluator). They are judged by PyTorch's gradients in float64, whatever the model is in;
beside them stands how far PyTorch's own float32 gradients are from those. An error is ‖g − g'‖ / ‖g'‖, of the worst
weight, in the first of three random networks in which no unit on a kink (of a ReLU, of a maximum) goes another way by rounding;
weights whose gradient is zero in exact arithmetic, such as biases of attention keys, count by ‖g‖ in thousandths
of the largest gradient.
"""
import argparse
import contextlib
import copy
import glob
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time
import warnings

warnings.filterwarnings("ignore")

import numpy as np
import onnx
import onnxruntime
import torch
import torch.nn as nn
import torch.nn.functional as F

ROOT = pathlib.Path(__file__).parent.parent
# Random networks, of which one has to pass.
SEEDS = (3, 4, 5)
# The largest error that passes, by type, where the file itself is as exact.
LIMITS = {torch.float32: 1e-4, torch.float64: 1e-9}


def torchvision_model(name, size=64, **settings):
    def make():
        import torchvision

        return getattr(torchvision.models, name)(weights=None, **settings), (torch.randn(2, 3, size, size),)

    return make


class Logits(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, ids):
        out = self.model(input_ids=ids, attention_mask=torch.ones_like(ids))
        return out.logits if hasattr(out, "logits") else out.last_hidden_state.tanh()


def bert(activation="gelu"):
    def make():
        from transformers import BertConfig, BertModel

        config = BertConfig(
            vocab_size=200, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=128,
            max_position_embeddings=32, hidden_act=activation, attn_implementation="eager",
        )
        return Logits(BertModel(config, add_pooling_layer=False)), (torch.randint(0, 200, (2, 12)),)

    return make


def gpt():
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=200, n_positions=32, n_embd=64, n_layer=3, n_head=4, use_cache=False, attn_implementation="eager"
    )
    return Logits(GPT2LMHeadModel(config)), (torch.randint(0, 200, (2, 12)),)


class UNet(nn.Module):
    """Two levels, transposed convolutions on the way up."""

    def __init__(self, width=8):
        super().__init__()
        block = lambda i, o: nn.Sequential(
            nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU(), nn.Conv2d(o, o, 3, padding=1), nn.ReLU()
        )
        self.a, self.b, self.c = block(3, width), block(width, 2 * width), block(2 * width, 4 * width)
        self.up_b, self.up_a = (nn.ConvTranspose2d(k * width, k * width // 2, 2, 2) for k in (4, 2))
        self.d, self.e, self.out = block(4 * width, 2 * width), block(2 * width, width), nn.Conv2d(width, 2, 1)

    def forward(self, x):
        a = self.a(x)
        b = self.b(F.max_pool2d(a, 2))
        c = self.c(F.max_pool2d(b, 2))
        d = self.d(torch.cat([self.up_b(c), b], 1))
        return self.out(self.e(torch.cat([self.up_a(d), a], 1)))


class Tagger(nn.Module):
    """Tags for the words of a sentence, by two layers of bidirectional LSTM."""

    def __init__(self):
        super().__init__()
        self.embed, self.tag = nn.Embedding(100, 24), nn.Linear(64, 7)
        self.lstm = nn.LSTM(24, 32, 2, batch_first=True, bidirectional=True)

    def forward(self, ids):
        return self.tag(self.lstm(self.embed(ids))[0])


class Detector(nn.Module):
    """YOLO in small: split and joined stages, pooled pyramids, an upsampling neck, boxes as expectations over bins."""

    def __init__(self, width=8, classes=3, bins=4):
        super().__init__()
        self.bins, self.classes = bins, classes
        conv = lambda i, o, k=3, s=1: nn.Sequential(
            nn.Conv2d(i, o, k, s, k // 2, bias=False), nn.BatchNorm2d(o), nn.SiLU()
        )
        self.stem, self.split = conv(3, width, 3, 2), conv(width, 2 * width, 3, 2)
        self.inner, self.join = conv(width, width), conv(3 * width, 2 * width, 1)
        self.down, self.pyramid = conv(2 * width, 4 * width, 3, 2), conv(16 * width, 4 * width, 1)
        self.neck = conv(6 * width, 2 * width, 1)
        heads = 4 * bins + classes
        self.fine, self.coarse = nn.Conv2d(2 * width, heads, 1), nn.Conv2d(4 * width, heads, 1)

    def forward(self, x):
        left, right = self.split(self.stem(x)).chunk(2, 1)
        fine = self.join(torch.cat([left, right, right + self.inner(right)], 1))
        coarse = self.down(fine)
        pools = [coarse]
        for _ in range(3):
            pools.append(F.max_pool2d(pools[-1], 5, 1, 2))
        coarse = self.pyramid(torch.cat(pools, 1))
        up = F.interpolate(coarse, scale_factor=2.0, mode="nearest")
        fine = self.neck(torch.cat([up, fine], 1))
        out = torch.cat([self.fine(fine).flatten(2), self.coarse(coarse).flatten(2)], 2)
        boxes, classes = out.split([4 * self.bins, self.classes], 1)
        bins = torch.arange(self.bins, dtype=x.dtype).view(1, 1, -1, 1)
        boxes = (boxes.unflatten(1, (4, self.bins)).softmax(2) * bins).sum(2)
        return torch.cat([boxes, classes.sigmoid()], 1)


NETWORKS = {
    "resnet18": torchvision_model("resnet18"),
    "mobilenet_v2": torchvision_model("mobilenet_v2"),
    "mobilenet_v3_small": torchvision_model("mobilenet_v3_small"),
    "efficientnet_b0": torchvision_model("efficientnet_b0"),
    "shufflenet_v2": torchvision_model("shufflenet_v2_x0_5"),
    "densenet121": torchvision_model("densenet121"),
    "squeezenet": torchvision_model("squeezenet1_1"),
    "googlenet": torchvision_model("googlenet", aux_logits=False, init_weights=True),
    "regnet_y_400mf": torchvision_model("regnet_y_400mf"),
    "convnext_tiny": torchvision_model("convnext_tiny"),
    "vit_b_16": torchvision_model("vit_b_16", 32, image_size=32),
    "swin_t": torchvision_model("swin_t"),
    "bert": bert(),
    "gpt": gpt,
    "unet": lambda: (UNet(), (torch.randn(2, 3, 16, 16),)),
    "lstm": lambda: (Tagger(), (torch.randint(0, 100, (2, 9)),)),
    "detector": lambda: (Detector(), (torch.randn(2, 3, 32, 32),)),
}
# In float64, as far as executors have kernels for it.
DOUBLE = {"bert": bert("relu"), "gpt": gpt, "unet": NETWORKS["unet"]}


def prepared(make, dtype, seed=3):
    """A network without dropout, with the statistics of one batch in its batch normalisation."""
    torch.manual_seed(seed)
    model, inputs = make()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
    with torch.no_grad():
        # Exporters merge weights of equal values, such as all shifts that are still zero.
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
        model.train()(*inputs)
    return model.eval().to(dtype), tuple(x.to(dtype) if x.is_floating_point() else x for x in inputs)


def autograd(model, inputs):
    """The gradient of the sum of all outputs for each parameter."""
    model.zero_grad()
    out = model(*inputs)
    sum(o.sum() for o in (out if isinstance(out, (tuple, list)) else [out])).backward()
    return {n: np.zeros(p.shape) if p.grad is None else p.grad.double().numpy() for n, p in model.named_parameters()}


def export(model, inputs, exporter, path):
    names = [f"input{i}" for i in range(len(inputs))]
    # Its fused kernel for inference can't be exported.
    torch.backends.mha.set_fastpath_enabled(False)
    settings = dict(input_names=names, opset_version=18, verbose=False)
    if exporter == "TorchScript":
        settings |= dict(dynamo=False, training=torch.onnx.TrainingMode.PRESERVE, do_constant_folding=False)
    else:
        settings |= dict(dynamo=True, optimize=exporter == "dynamo", external_data=False)
    # Exporters tell their whole graph where they fail.
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        torch.onnx.export(model, inputs, str(path), **settings)


def differentiate(program, path, out, executor):
    """Runs the program; returns seconds of wall and of processor time."""
    children = lambda: sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    begun, used = time.time(), children()
    command = [program, "grad", path, "--gradients-only", "--loss", "sum", "-o", out, "--executor", executor]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "failed")
    return time.time() - begun, children() - used


def run(path, inputs, reference):
    """What the graph gives, by name."""
    feeds = {f"input{i}": x.numpy() for i, x in enumerate(inputs)}
    if reference:
        from onnx.reference import ReferenceEvaluator

        session = ReferenceEvaluator(str(path))
        names = session.output_names
    else:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(str(path), options)
        names = [o.name for o in session.get_outputs()]
    feeds = {k: v for k, v in feeds.items() if k in [i.name for i in onnx.load(path).graph.input]}
    return dict(zip(names, session.run(None, feeds)))


def gradients_of(path, inputs, reference):
    """The gradients that the graph gives, by name of the weight."""
    return {n.removesuffix(".grad"): g for n, g in run(path, inputs, reference).items() if n.endswith(".grad")}


def difference(path, inputs, reference, model):
    """How far the file's first output is from the model's own: exporters store some constants in float32, whatever the model is in."""
    with torch.no_grad():
        own = model(*inputs)
    own = (own[0] if isinstance(own, (tuple, list)) else own).numpy()
    stored = next(iter(run(path, inputs, reference).values()))
    return float(np.linalg.norm(stored - own) / np.linalg.norm(own))


def matched(path, gradients, parameters):
    """The gradients under the parameters' names: exporters rename and transpose some."""
    model = onnx.load(path)
    values = {i.name: onnx.numpy_helper.to_array(i) for i in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            values[node.output[0]] = onnx.numpy_helper.to_array(node.attribute[0].t)
    if any(n.op_type == "LSTM" for n in model.graph.node):
        gradients = {**gradients, **lstm_parts(gradients)}
        values = {**values, **lstm_parts(values)}
    found = {}
    for name, gradient in gradients.items():
        value = values[name]
        candidates = [name, name.removeprefix("model."), *parameters]
        for candidate in candidates:
            parameter = parameters.get(candidate)
            if parameter is None or parameter.size != value.size:
                continue
            if parameter.ndim == 2 and np.array_equal(parameter.T, value):
                gradient = gradient.T
            elif not np.array_equal(parameter.reshape(-1), value.reshape(-1)):
                continue
            # One that is used in two places may be stored twice.
            found[candidate] = found.get(candidate, 0) + gradient.reshape(parameter.shape)
            break
    return found


def lstm_parts(tensors):
    """ONNX stacks the directions, both biases one after the other, and orders gates i o f c; PyTorch orders them i f g o."""
    parts = {}
    for name, tensor in tensors.items():
        if tensor.ndim not in (2, 3) or tensor.shape[0] not in (1, 2) or tensor.dtype.kind != "f":
            continue
        for d, whole in enumerate(tensor):
            halves = np.split(whole, 2) if whole.ndim == 1 and whole.shape[0] % 8 == 0 else [whole]
            for h, half in enumerate(halves):
                if half.shape[0] % 4 == 0:
                    i, o, f, c = np.split(half, 4)
                    parts[f"{name}[{d},{h}]"] = np.concatenate([i, f, c, o])
    return parts


def error(found, exact):
    """The worst weight's error, and its name."""
    largest = max(np.linalg.norm(g) for g in exact.values())
    worst = (0.0, "")
    for name, gradient in found.items():
        norm = np.linalg.norm(exact[name])
        scale = norm if norm > 1e-9 * largest else 1e3 * largest
        worst = max(worst, (float(np.linalg.norm(gradient - exact[name]) / scale), name))
    return worst


def judge(name, make, dtype, seed, exporter, program, folder):
    model, inputs = prepared(make, dtype, seed)
    double, inputs64 = prepared(make, dtype, seed)
    exact = autograd(double.double(), tuple(x.double() if x.is_floating_point() else x for x in inputs64))
    own = error(autograd(model, inputs), exact)[0]
    parameters = {n: p.detach().numpy() for n, p in model.named_parameters()}
    path, graph = folder / "model.onnx", folder / "gradients.onnx"
    # The optimiser of the newer exporter may fold weights into each other: compared are those that are left as they are.
    export(copy.deepcopy(model), inputs, exporter, path)
    reference = dtype == torch.float64 and name == "unet"
    wall, cpu = differentiate(program, path, graph, "tract" if reference else "ort")
    found = matched(path, gradients_of(graph, inputs, reference), parameters)
    nodes = len(onnx.load(path).graph.node), len(onnx.load(graph).graph.node)
    # The gradients of a file can't be nearer than what they are the gradients of.
    limit = max(LIMITS[dtype], 2 * difference(path, inputs, reference, model))
    worst = error(found, exact)
    return dict(found=found, exact=exact, own=own, nodes=nodes, wall=wall, cpu=cpu, worst=worst, limit=limit)


def judged(name, make, dtype, seed, exporter, program):
    with tempfile.TemporaryDirectory() as folder:
        r = judge(name, make, dtype, seed, exporter, program, pathlib.Path(folder))
        # Weights that are folded into each other can't be compared: the graph before that shows the same gradients.
        if len(r["found"]) < len(r["exact"]) and exporter == "dynamo":
            exporter = "unoptimised"
            r = judge(name, make, dtype, seed, exporter, program, pathlib.Path(folder))
    r["exporter"] = exporter.replace("unoptimised", "dynamo, unoptimised")
    r["good"] = r["worst"][0] <= r["limit"] and len(r["found"]) == len(r["exact"])
    return r


def row(name, make, dtype, exporter, program):
    # Where a unit sits on a kink, rounding decides which way its gradient goes. A wrong rule is wrong for all seeds.
    for seed in SEEDS:
        r = judged(name, make, dtype, seed, exporter, program)
        if r["good"]:
            break
    weights, total = len(r["found"]), len(r["exact"])
    kind = "float64" if dtype == torch.float64 else "float32"
    cells = [
        name, r["exporter"], kind, *r["nodes"], f"{weights}/{total}" if weights < total else total,
        f"{r['worst'][0]:.1e}", f"{r['own']:.1e}", SEEDS.index(seed) + 1, f"{r['wall']:.2f}", f"{r['cpu']:.2f}",
    ]
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)
    if not r["good"]:
        print(f"{name}, {exporter}: {r['worst']}, without a gradient: "
              f"{sorted(set(r['exact']) - set(r['found']))[:5]}", file=sys.stderr, flush=True)
    return r["good"]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("networks", nargs="*")
    parser.add_argument("--program", default=str(ROOT / "target/release/onnx-merge"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    library = glob.glob(str(pathlib.Path(onnxruntime.__file__).parent / "capi/libonnxruntime*"))
    os.environ.setdefault("ORT_DYLIB_PATH", library[0])
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    print("| network | exporter | type | nodes | nodes with gradients | weights | worst error | PyTorch's own | tries | build, s | of that CPU, s |")
    print("|" + "---|" * 11, flush=True)
    wanted = [(n, m, torch.float32) for n, m in NETWORKS.items()] + [(n, m, torch.float64) for n, m in DOUBLE.items()]
    failures = 0
    for name, make, dtype in wanted:
        if args.networks and name not in args.networks:
            continue
        for exporter in ("dynamo", "TorchScript"):
            try:
                failures += not row(name, make, dtype, exporter, args.program)
            except Exception as e:
                failures += 1
                why = str(e).strip().splitlines()[0] if str(e).strip() else ""
                print(f"{name}, {exporter}, {dtype}: {type(e).__name__}: {why}", file=sys.stderr, flush=True)
    sys.exit(failures > 0)


if __name__ == "__main__":
    main()
