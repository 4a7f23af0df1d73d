"""The steps of `benches/steps.rs`, by PyTorch eager: prints one line of JSON for one case.

    python benches/torch_steps.py model digits_cnn 64 2 200        # kind, case, batch, threads, steps
    python benches/torch_steps.py adapter digits_small_cnn 64 2 200

    python benches/torch_steps.py export FOLDER [NAME…]            # the larger networks, or these, as ONNX files

Run by the bench when ONNX_MERGE_TORCH names a Python that has torch; never by the program itself. `seconds` is the
fastest step (noise only ever adds), `median` the middle one, `first` the time from the start of the process to the end
of the first step, `peak` the largest resident memory of the process in bytes, `idle` what PyTorch alone holds apart
from files' pages, before the model is made.
"""
import json
import os
import pathlib
import resource
import statistics
import sys
import time

BEGUN = time.time()

import torch
import torch.nn as nn
import torch.nn.functional as F

DEVICE = os.environ.get("ONNX_MERGE_BENCH_DEVICE", "cpu")
# float32 throughout, as on our side.
torch.backends.cuda.matmul.allow_tf32 = False
torch.backends.cudnn.allow_tf32 = False

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "fixtures"))


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def anonymous():
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("RssAnon:"))
    return int(line.split()[1]) * 1024


def models():
    """The fixtures' architectures, without what only making them needs."""
    import types

    absent = {name: types.ModuleType(name) for name in ("onnx", "sklearn", "sklearn.datasets")}
    absent["sklearn.datasets"].load_digits = None
    sys.modules.update(absent)
    import make

    for name in absent:
        del sys.modules[name]

    return {
        "digits_cnn": make.Cnn,
        "digits_small_cnn": make.SmallCnn,
        "digits_mlp": make.Mlp,
        "digits_transformer": make.Transformer,
        **LARGE,
        **torchvision_models(),
    }


class Block(nn.Module):
    """ResNet's basic block."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        conv = lambda i, o, k, s: nn.Sequential(nn.Conv2d(i, o, k, s, k // 2, bias=False), nn.BatchNorm2d(o))
        self.a, self.b = conv(inputs, outputs, 3, stride), conv(outputs, outputs, 3, 1)
        self.short = nn.Identity() if inputs == outputs else conv(inputs, outputs, 1, stride)

    def forward(self, x):
        return F.relu(self.b(F.relu(self.a(x))) + self.short(x))


class ResNet18(nn.Module):
    """ResNet-18 for 3 × 32 × 32 images: a 3 × 3 stem without pooling."""

    shape = (3, 32, 32)

    def __init__(self):
        super().__init__()
        widths = [64, 64, 128, 256, 512]
        blocks = [nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
        for i in range(4):
            blocks += [Block(widths[i], widths[i + 1], 1 if i == 0 else 2), Block(widths[i + 1], widths[i + 1], 1)]
        self.body, self.head = nn.Sequential(*blocks), nn.Linear(512, 10)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))


class Encoder(nn.Module):
    """Six transformer layers of width 512 with 8 heads over 128 vectors of 64 numbers."""

    shape = (128, 64)

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(64, 512)
        make = lambda: nn.TransformerEncoderLayer(512, 8, 2048, 0.0, F.gelu, batch_first=True, norm_first=True)
        self.layers, self.head = nn.ModuleList(make() for _ in range(6)), nn.Linear(512, 10)

    def forward(self, x):
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(1))


class MobileNet(nn.Module):
    """MobileNetV2 for 3 × 64 × 64 images: depthwise convolutions between pointwise ones."""

    shape = (3, 64, 64)

    def __init__(self):
        super().__init__()
        from torchvision.models import mobilenet_v2

        self.body = mobilenet_v2(num_classes=10)

    def forward(self, x):
        return self.body(x)


LARGE = {"resnet18": ResNet18, "encoder": Encoder, "mobilenet": MobileNet}
# Where the adapter into a network comes from.
SOURCES = {"mobilenet_v2": "resnet50"}


def torchvision_models():
    """The pair of the paper's experiment; nothing where torchvision isn't installed."""
    try:
        from torchvision import models
    except ImportError:
        return {}
    return {name: getattr(models, name) for name in ("resnet50", "mobilenet_v2")}


def export(folder, names):
    """Batch normalisation keeps its running statistics (as in training by this program) and its nodes."""
    pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
    # Its fused kernel for inference can't be exported.
    torch.backends.mha.set_fastpath_enabled(False)
    for name, make in {**LARGE, **torchvision_models()}.items():
        if names and name not in names:
            continue
        model, shape = make().eval(), getattr(make, "shape", (3, 224, 224))
        settings = dict(training=torch.onnx.TrainingMode.PRESERVE, dynamo=False, opset_version=18)
        axes = {"x": {0: "n"}, "y": {0: "n"}}
        torch.onnx.export(
            model, (torch.rand(2, *shape),), f"{folder}/{name}.onnx", input_names=["x"], output_names=["y"],
            dynamic_axes=axes, **settings,
        )


class Map(nn.Module):
    """P = softmax(c·prior + (codes_t W_q)(codes_s W_k)ᵀ/√d) + R, between two channel spaces."""

    def __init__(self, target, source, rank=16, width=32):
        super().__init__()
        self.register_buffer("prior", 6.0 * torch.eye(target, source))
        self.register_buffer("codes_t", torch.randn(target, min(rank, target)))
        self.register_buffer("codes_s", torch.randn(source, min(rank, source)))
        self.query = nn.Linear(self.codes_t.shape[1], width)
        self.key = nn.Linear(self.codes_s.shape[1], width)
        self.free = nn.Parameter(torch.zeros(target, source))

    def forward(self):
        scores = self.query(self.codes_t) @ self.key(self.codes_s).T / self.query.out_features**0.5
        return torch.softmax(self.prior + scores, -1) + self.free


class Adapter(nn.Module):
    """W′ = W + g·(P_out B)(P_in A)ᵀ for each matrix; vectors are trained directly."""

    def __init__(self, target, source, rank=16):
        super().__init__()
        # Depthwise kernels are no matrices between channels: trained directly, as vectors are.
        is_matrix = lambda p: p.dim() > 1 and p.shape[1] > 1
        matrices = lambda model: [p for p in model.parameters() if is_matrix(p)]
        self.own = nn.ParameterList(p.detach().clone() for p in target.parameters())
        ours, theirs = matrices(target), matrices(source)
        spread = (len(theirs) - 1) / (len(ours) - 1)
        pairs = [(t, theirs[round(i * spread)]) for i, t in enumerate(ours)]
        self.places = [i for i, p in enumerate(target.parameters()) if is_matrix(p)][: len(pairs)]
        # One map a hidden channel space; the last matrix's rows and the first one's columns correspond as they are.
        self.maps = nn.ModuleList(Map(t.shape[0], s.shape[0], rank) for t, s in pairs[:-1])
        self.gates = nn.ParameterList(nn.Parameter(torch.tensor(0.5)) for _ in pairs)
        for i, (t, s) in enumerate(pairs):
            taps = t[0].numel() // t.shape[1]
            r = min(rank, s.shape[0], s[0].numel())
            inn = pairs[i - 1][1].shape[0] if i else t.shape[1]
            per_channel = t[0].numel() // (pairs[i - 1][0].shape[0] if i else t.shape[1])
            self.register_buffer(f"left{i}", torch.randn(s.shape[0], r))
            self.register_buffer(f"right{i}", torch.randn(inn, max(taps, per_channel) * r))

    def forward(self):
        maps = [m() for m in self.maps]
        out = list(self.own)
        for i, place in enumerate(self.places):
            own, left, right = self.own[place], getattr(self, f"left{i}"), getattr(self, f"right{i}")
            rows = maps[i] @ left if i < len(maps) else left
            cols = (maps[i - 1] @ right if i else right).reshape(-1, left.shape[1])
            out[place] = own + self.gates[i] * (rows @ cols.T).reshape(own.shape)
        return out


def shape_of(case):
    return LARGE[case].shape if case in LARGE else (1, 8, 8)


def model_step(kinds, case, batch):
    model = kinds[case]().train().to(DEVICE)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=1e-4)
    x, y = torch.rand(batch, *shape_of(case), device=DEVICE), torch.randint(0, 10, (batch,), device=DEVICE)

    def step():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def adapter_step(kinds, case, _):
    adapter = Adapter(kinds[case](), kinds[SOURCES.get(case, "digits_cnn")]()).to(DEVICE)
    optimizer = torch.optim.AdamW(adapter.parameters(), 1e-3, weight_decay=1e-4)
    merged = adapter()
    gradients = [torch.randn_like(w) * 1e-3 for w in merged]
    held = {"merged": merged}

    def step():
        optimizer.zero_grad()
        torch.autograd.backward(held["merged"], gradients)
        optimizer.step()
        held["merged"] = adapter()
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        return 0.0

    return step


def timed(step, steps, started, idle):
    """The figures of `step`, in a process that `started` then and took `idle` bytes before it."""
    step()
    first = time.time() - started
    for _ in range(steps // 10):
        step()
    times = []
    for _ in range(steps):
        begun = time.perf_counter()
        step()
        times.append(time.perf_counter() - begun)
    return dict(seconds=min(times), median=statistics.median(times), first=first, idle=idle, peak=peak())


def main():
    if sys.argv[1] == "export":
        return export(sys.argv[2], sys.argv[3:])
    kind, case, batch, threads, steps = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6])
    torch.set_num_threads(threads)
    kinds = models()
    warm = nn.Parameter(torch.zeros(1, device=DEVICE))
    warm.sum().backward()
    torch.optim.AdamW([warm]).step()
    idle = anonymous()
    step = {"model": model_step, "adapter": adapter_step}[kind](kinds, case, batch)
    print(json.dumps(timed(step, steps, BEGUN, idle) | dict(torch=torch.__version__)))


if __name__ == "__main__":
    main()
