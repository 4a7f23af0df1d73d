"""Makes `sparse.onnx` and `sparse.npz`: steps of a network with an embedding table, by PyTorch with sparse gradients.

    python sparse.py            # needs torch, numpy, onnx

The table is read twice, by `ids` of each row and by one `key`. Batches look rows up several times, and some ids count from the
end; PyTorch gets those counted from the front. `sgd.*` are steps of SGD, `adam.*` steps of SparseAdam for the table and of Adam for the
rest, both without weight decay; `rows` and `values` are the gradient of the table in the first step, as far as PyTorch has it in rows:
where it adds up what both reads give, it puts a few entries of one row together.
"""
import os

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper

HERE = os.path.dirname(os.path.abspath(__file__))
ROWS, WIDTH, CLASSES, STEPS = 13, 5, 3, 4
RATE = 0.05
# So small that it makes no difference where in the formula it stands.
EPSILON = 1e-12

rng = np.random.default_rng(3)
TABLE = rng.normal(size=(ROWS, WIDTH)).astype(np.float32)
WEIGHT = rng.normal(size=(WIDTH, CLASSES)).astype(np.float32)
BATCHES = [
    {
        "ids": np.array([[1, 4, 4, 0], [1, -1, 2 + step, 0], [12, -3, 5, 0]], np.int64),
        "key": np.array([4, step, -13], np.int64),
        "label": np.array([0, 2, step % 3], np.int64),
    }
    for step in range(STEPS)
]


def model():
    def gather(ids, y):
        return helper.make_node("Gather", ["table", ids], [y], axis=0)

    nodes = [
        gather("ids", "words"),
        helper.make_node("ReduceMean", ["words", "one"], ["mean"], keepdims=0),
        gather("key", "wanted"),
        helper.make_node("Mul", ["mean", "wanted"], ["both"]),
        helper.make_node("MatMul", ["both", "weight"], ["logits"]),
    ]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "sparse",
        [info("ids", TensorProto.INT64, ["rows", 4]), info("key", TensorProto.INT64, ["rows"])],
        [info("logits", TensorProto.FLOAT, ["rows", CLASSES])],
        [
            numpy_helper.from_array(TABLE, "table"),
            numpy_helper.from_array(WEIGHT, "weight"),
            numpy_helper.from_array(np.array([1], np.int64), "one"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def train(name, optimizers, found):
    table = torch.nn.Embedding(ROWS, WIDTH, sparse=True)
    table.weight.data = torch.tensor(TABLE)
    weight = torch.nn.Parameter(torch.tensor(WEIGHT))
    optimizers = optimizers(table.weight, weight)
    for step, batch in enumerate(BATCHES):
        ids, key = (torch.tensor(batch[k] % ROWS) for k in ("ids", "key"))
        loss = F.cross_entropy((table(ids).mean(1) * table(key)) @ weight, torch.tensor(batch["label"]))
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        if step == 0 and name == "sgd":
            gradient = table.weight.grad
            assert gradient.is_sparse and not gradient.is_coalesced()
            found["rows"], found["values"] = gradient._indices()[0].numpy(), gradient._values().numpy()
        for optimizer in optimizers:
            optimizer.step()
        for key, value in (("table", table.weight), ("weight", weight), ("loss", loss)):
            found[f"{name}.{step}.{key}"] = value.detach().numpy().copy()


if __name__ == "__main__":
    onnx.save(model(), os.path.join(HERE, "sparse.onnx"))
    arrays = {f"in.{step}.{k}": v for step, batch in enumerate(BATCHES) for k, v in batch.items()}
    train("sgd", lambda t, w: [torch.optim.SGD([t, w], lr=RATE)], arrays)
    settings = {"lr": RATE, "eps": EPSILON}
    train("adam", lambda t, w: [torch.optim.SparseAdam([t], **settings), torch.optim.Adam([w], **settings)], arrays)
    np.savez(os.path.join(HERE, "sparse.npz"), **arrays)
