"""Small networks as PyTorch's two exporters write them, as problems for `gradient_judge.py`. Needs torch and onnxscript."""
import contextlib
import io
import os

import numpy as np
import onnx
import torch
import torch.nn as nn
from onnx import TensorProto, numpy_helper

from gradient_judge import posed


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.lstm, self.tag = nn.Embedding(6, 4), nn.LSTM(4, 3, batch_first=True), nn.Linear(3, 2)

    def forward(self, ids):
        return self.tag(self.lstm(self.embed(ids))[0])


class Encoder(nn.Module):
    """A layer of a transformer, of two heads."""

    def __init__(self, width=4):
        super().__init__()
        self.into, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.inner = nn.Sequential(nn.Linear(width, 6), nn.GELU(), nn.Linear(6, width))

    def forward(self, x):
        q, k, v = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in self.into(self.first(x)).chunk(3, -1))
        weights = torch.softmax(q @ k.transpose(-1, -2) / 2**0.5, -1)
        x = x + self.out((weights @ v).transpose(1, 2).flatten(2))
        return x + self.inner(self.second(x))


def networks():
    image = torch.randn(2, 2, 8, 8)
    yield "dense layers", nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), torch.randn(3, 4)
    yield "convolution, batch norm, pool", nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 2)
    ), image
    yield "inverted residual block", nn.Sequential(
        nn.Conv2d(2, 6, 1), nn.BatchNorm2d(6), nn.ReLU6(), nn.Conv2d(6, 6, 3, 2, 1, groups=6), nn.ReLU6(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(6, 2),
    ), image
    yield "transformer layer", Encoder(), torch.randn(2, 3, 4)
    yield "embedding and LSTM", Tagger(), torch.randint(0, 6, (2, 3))


def exported(model, x, dynamo):
    torch.backends.mha.set_fastpath_enabled(False)
    settings = dict(input_names=["x"], output_names=["y"], opset_version=18, verbose=False, dynamo=dynamo)
    settings |= dict(external_data=False) if dynamo else dict(training=torch.onnx.TrainingMode.PRESERVE)
    file = io.BytesIO()
    # Exporters tell their whole graph.
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        torch.onnx.export(model, (x,), file, **settings)
    return onnx.load_from_string(file.getvalue())


def learned(model):
    """Tensors of the file that are real numbers, more than one, and neither running statistics nor first states."""
    others = {"BatchNormalization": (3, 4), "LSTM": (5, 6)}
    fixed = {n.input[i] for n in model.graph.node for i in others.get(n.op_type, ()) if i < len(n.input)}
    real = [t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT and t.name not in fixed]
    return {t.name: numpy_helper.to_array(t) for t in real if np.prod(t.dims) > 1}


def problems():
    """Names and problems."""
    torch.manual_seed(0)
    for name, model, x in networks():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.running_mean, -0.1, 0.1)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
        for exporter in ("dynamo", "TorchScript"):
            graph = exported(model.eval(), x, exporter == "dynamo")
            yield f"{name}, {exporter}", posed(graph, {"x": x.numpy()}, learned(graph), np.random.default_rng(0))
