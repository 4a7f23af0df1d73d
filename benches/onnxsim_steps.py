"""The steps of `benches/steps.rs`, by onnxsim's training loop (`graph_grad`): prints one line of JSON for one case.

    python benches/onnxsim_steps.py model digits_cnn 64 2 200        # kind, case, batch, threads, steps

Run by the bench when ONNX_MERGE_ONNXSIM names a Python that has torch and onnxsim; never by the program itself. The same
networks as in `torch_steps.py`, exported by onnxsim with their loss inside, differentiated by it and run with its Adam in ONNX
Runtime, on as many threads as the others get. Figures are those of `torch_steps.py`.
"""
import io
import json
import sys
import time

BEGUN = time.time()

import torch_steps
import numpy as np
import onnxruntime
import torch
import torch.nn as nn


class WithLoss(nn.Module):
    """The squared error of the probabilities: it has no gradient for cross-entropy (LogSoftmax, logarithms of sums overflow).

    Beside the network the loss takes no time."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x, y):
        wrong = torch.softmax(self.model(x), -1) - y
        return (wrong * wrong).sum()


def on_threads(threads):
    """Sessions are made inside onnxsim, which leaves the number of threads to ONNX Runtime."""
    make = onnxruntime.InferenceSession

    def session(model, sess_options=None, **settings):
        options = sess_options or onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        return make(model, options, **settings)

    onnxruntime.InferenceSession = session


def training_loop(module, x, y):
    """By way of the older exporter: onnxsim's own way in, through the newer one, refuses these networks."""
    import onnx
    import onnxsim

    torch.backends.mha.set_fastpath_enabled(False)
    file = io.BytesIO()
    settings = dict(training=torch.onnx.TrainingMode.PRESERVE, dynamo=False, opset_version=17)
    torch.onnx.export(module, (x, y), file, input_names=["x", "y"], output_names=["loss"], **settings)
    model, _ = onnxsim.simplify(onnx.load_from_string(file.getvalue()), skip_fuse_bn=True)
    hoist_constants(model.graph)
    model = onnx.shape_inference.infer_shapes(model)
    statistics = {i for n in model.graph.node if n.op_type == "BatchNormalization" for i in n.input[3:5]}
    params = [
        i.name for i in model.graph.initializer
        if i.data_type == onnx.TensorProto.FLOAT and i.name not in statistics and np.prod(i.dims) > 1
    ]
    return onnxsim.compile_training_loop(model, "loss", params)


def hoist_constants(graph):
    """Constants as initializers, and reshapes for flattening: forms that it knows."""
    import onnx

    kept = []
    for node in graph.node:
        if node.op_type == "Constant":
            tensor = node.attribute[0].t
            tensor.name = node.output[0]
            graph.initializer.append(tensor)
            continue
        if node.op_type == "Flatten":
            shape = f"{node.output[0]}.shape"
            graph.initializer.append(onnx.numpy_helper.from_array(np.array([0, -1]), shape))
            node = onnx.helper.make_node("Reshape", [node.input[0], shape], [node.output[0]])
        kept.append(node)
    del graph.node[:]
    graph.node.extend(kept)


def main():
    case, batch, threads, steps = sys.argv[2], *map(int, sys.argv[3:6])
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    on_threads(threads)
    idle = torch_steps.anonymous()
    model = torch_steps.models()[case]().eval()
    x = torch.rand(batch, *torch_steps.shape_of(case))
    y = torch.nn.functional.one_hot(torch.randint(0, 10, (batch,)), 10).float()
    loop = training_loop(WithLoss(model).eval(), x, y)
    feeds = {"x": x.numpy(), "y": y.numpy()}

    def step():
        loss = loop(feeds, lr=1e-3)
        if not np.isfinite(loss):
            raise SystemExit("the loss is not finite")

    print(json.dumps(torch_steps.timed(step, steps, BEGUN, idle)))


if __name__ == "__main__":
    main()
