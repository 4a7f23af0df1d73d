"""Writes small networks into a folder, as the common exporters and converters leave them, for `long_tail.py`.

    python benches/exported_models.py FOLDER                 # all
    python benches/exported_models.py FOLDER unet mlp        # only these
    python benches/long_tail.py FOLDER

Needs what `torch_models.py` needs; onnxsim, onnxconverter-common, scikit-learn with skl2onnx where they are installed. Files are
called NETWORK.EXPORTER.CONVERTER.onnx. What an exporter or a converter can't do is said on stderr and leaves no file.
"""
import argparse
import contextlib
import os
import pathlib
import sys
import warnings

warnings.filterwarnings("ignore")

import numpy as np
import onnx
import onnxruntime
import torch
import torch.nn as nn
import torch_models
from onnxruntime import GraphOptimizationLevel as Level
from onnxruntime import quantization


class Encoder(nn.Module):
    """Two layers of attention over 16 tokens of 12 numbers."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(12, 32)
        self.place = nn.Parameter(0.1 * torch.randn(16, 32))
        layer = lambda: nn.TransformerEncoderLayer(32, 4, 64, 0.0, batch_first=True, activation="gelu")
        self.layers, self.out = nn.ModuleList([layer(), layer()]), nn.Linear(32, 5)

    def forward(self, x):
        x = self.embed(x) + self.place
        for layer in self.layers:
            x = layer(x)
        return self.out(x.mean(1))


def mlp():
    return nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 4)), (torch.randn(2, 20),)


WHOLE = ("resnet18", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "shufflenet_v2", "squeezenet", "regnet_y_400mf")
NETWORKS = {name: torch_models.NETWORKS[name] for name in (*WHOLE, "unet", "lstm", "detector")}
NETWORKS |= {"mlp": mlp, "encoder": lambda: (Encoder(), (torch.randn(2, 16, 12),))}
# Converters run on these.
CONVERTED = ("mobilenet_v3_small", "shufflenet_v2", "unet", "lstm", "detector", "mlp", "encoder")


def dynamo(model, inputs, path):
    torch_models.export(model, inputs, "dynamo", path)


def torchscript(model, inputs, path):
    """As it is by default: constants folded, batch normalisation merged into convolutions; with an open batch."""
    names = [f"input{i}" for i in range(len(inputs))]
    axes = {name: {0: "batch"} for name in [*names, "output"]}
    settings = dict(input_names=names, output_names=["output"], dynamic_axes=axes, opset_version=17)
    torch.backends.mha.set_fastpath_enabled(False)
    torch.onnx.export(model, inputs, str(path), dynamo=False, **settings)


def preserved(model, inputs, path):
    """Dropout and batch normalisation as they are."""
    torch_models.export(model, inputs, "TorchScript", path)


EXPORTERS = {"dynamo": dynamo, "torchscript": torchscript, "preserved": preserved}


def simplified(path, out, feeds):
    import onnxsim

    onnx.save(onnxsim.simplify(onnx.load(path))[0], out)


def optimised(level):
    def convert(path, out, feeds):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level, options.optimized_model_filepath = level, str(out)
        options.log_severity_level = 4
        onnxruntime.InferenceSession(str(path), options)

    return convert


def halved(**settings):
    def convert(path, out, feeds):
        from onnxconverter_common import float16

        onnx.save(float16.convert_float_to_float16(onnx.load(path), **settings), out)

    return convert


def dynamic(path, out, feeds):
    quantization.quantize_dynamic(str(path), str(out))


def static(**settings):
    class Reader(quantization.CalibrationDataReader):
        def __init__(self, feeds):
            self.rest = iter([feeds])

        def get_next(self):
            return next(self.rest, None)

    def convert(path, out, feeds):
        quantization.quantize_static(str(path), str(out), Reader(feeds), **settings)

    return convert


def external(path, out, feeds):
    onnx.save(onnx.load(path), out, save_as_external_data=True, location=out.name + ".data", size_threshold=0)


CONVERTERS = {
    "onnxsim": simplified,
    "ort_basic": optimised(Level.ORT_ENABLE_BASIC),
    "ort_extended": optimised(Level.ORT_ENABLE_EXTENDED),
    "ort_all": optimised(Level.ORT_ENABLE_ALL),
    "float16": halved(),
    "float16_io": halved(keep_io_types=True),
    "int8_dynamic": dynamic,
    "int8_qdq": static(quant_format=quantization.QuantFormat.QDQ),
    "int8_qdq_channels": static(quant_format=quantization.QuantFormat.QDQ, per_channel=True),
    "int8_operators": static(quant_format=quantization.QuantFormat.QOperator),
    "external": external,
}


def scikit(folder, only):
    from skl2onnx import to_onnx
    from sklearn.linear_model import LogisticRegression
    from sklearn.neural_network import MLPClassifier, MLPRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(0)
    x, y = rng.random((60, 8)).astype("float32"), rng.integers(0, 3, 60)
    small = dict(hidden_layer_sizes=(12, 6), max_iter=5)
    models = {
        "sk_mlp_classifier": (MLPClassifier(**small), {}),
        "sk_mlp_classifier_array": (MLPClassifier(**small), {"zipmap": False}),
        "sk_mlp_regressor": (MLPRegressor(**small), {}),
        "sk_scaled_mlp": (make_pipeline(StandardScaler(), MLPClassifier(**small)), {"zipmap": False}),
        "sk_logistic": (LogisticRegression(), {"zipmap": False}),
    }
    for name, (model, options) in models.items():
        if only and name not in only:
            continue
        model.fit(x, y)
        options = {id(model): options} if options else None
        onnx.save(to_onnx(model, x[:1], options=options, target_opset=17), folder / f"{name}.skl2onnx.onnx")


@contextlib.contextmanager
def told(what):
    """Failures of others in a line; exporters print their whole graph."""
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            yield
    except Exception as e:
        reason = str(e).strip().splitlines() or [""]
        print(f"{what}: {type(e).__name__}: {reason[0][:200]}", file=sys.stderr, flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("networks", nargs="*")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    for name, make in NETWORKS.items():
        if args.networks and name not in args.networks:
            continue
        model, inputs = torch_models.prepared(make, torch.float32)
        feeds = {f"input{i}": x.numpy() for i, x in enumerate(inputs)}
        for exporter, export in EXPORTERS.items():
            path = args.folder / f"{name}.{exporter}.onnx"
            with told(path.name):
                export(model, inputs, path)
            if name not in CONVERTED or exporter == "preserved" or not path.exists():
                continue
            for converter, convert in CONVERTERS.items():
                out = args.folder / f"{name}.{exporter}.{converter}.onnx"
                with told(out.name):
                    convert(path, out, feeds)
        print(name, file=sys.stderr, flush=True)
    with told("scikit-learn"):
        scikit(args.folder, args.networks)


if __name__ == "__main__":
    main()
