"""A case of `gradient_cases.py` with numbers, and its exact gradients, by central differences in float64.

The judge is ONNX's reference evaluator, with steps of 1e-5 to both sides of every element. Before, its answer is compared with
that of ONNX Runtime in the model's own type. Look at `problem`.
"""
import dataclasses
import math

import numpy as np
import onnx
import onnx.parser
import onnx.shape_inference
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

STEP = 1e-5
# The size that each open dimension gets.
OPEN = {"N": 3, "T": 5, "H": 6, "W": 7}
REAL = (TensorProto.FLOAT, TensorProto.FLOAT16)


class Erf(OpRun):
    """In float64: the evaluator's own rounds to float32."""

    op_domain = ""

    def _run(self, x):
        return (np.vectorize(math.erf, otypes=[np.float64])(x).astype(x.dtype),)


@dataclasses.dataclass
class Problem:
    """A case with numbers: the model that both programs are given, what it is fed, the exact gradients."""

    model: onnx.ModelProto
    feeds: dict
    exact: dict


def drawn(case, name, shape, rng):
    if name in case.positive:
        return np.abs(rng.standard_normal(shape)) + 0.5
    return rng.standard_normal(shape)


def parsed(case, body, tensors):
    """A model with these tensors in its file, and outputs of the types that they come out with."""
    inputs = ", ".join(f"{t} {n}" for n, t in case.inputs.items())
    ir = 8 if case.opset <= 17 else 10
    header = f'<ir_version: {ir}, opset_import: ["": {case.opset}{case.domains}]>'
    results = ", ".join(f"float {o}" for o in case.outputs)
    model = onnx.parser.parse_model(f"{header} g ({inputs}) => ({results}) {{ {body} }} {case.functions}")
    made = made_by_nodes(model.graph)
    model.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(v), n) for n, v in tensors.items() if n not in made and n not in case.inputs
    )
    return model


def made_by_nodes(graph):
    made = {o for n in graph.node for o in n.output}
    for node in graph.node:
        for a in node.attribute:
            if a.type == onnx.AttributeProto.GRAPH:
                made |= made_by_nodes(a.g)
    return made


def input_values(case, rng):
    feeds = {}
    for name, kind in case.inputs.items():
        element, _, dims = kind.rstrip("]").partition("[")
        shape = [OPEN.get(d.strip()) or int(d) for d in dims.split(",")] if dims else []
        if element == "bool":
            feeds[name] = np.ones(shape, bool)
        elif element == "int64":
            feeds[name] = rng.integers(0, 4, shape) if shape else np.int64(3)
        else:
            feeds[name] = rng.standard_normal(shape).astype(dict(float=np.float32, double=np.float64, float16=np.float16)[element])
    return {n: np.asarray(v) for n, v in feeds.items()}


def seeded(model, feeds, values):
    """Every real output times an input of its own shape, with that shape as the model's inference has it."""
    inferred = onnx.shape_inference.infer_shapes(stripped(model))
    known = {v.name: v.type for v in [*inferred.graph.value_info, *inferred.graph.output]}
    # A size that inference can't say is that of the values, by the name of the dimension that has it.
    inputs = [(i, feeds[i.name].shape) for i in model.graph.input]
    named = {n: d.dim_param for i, shape in inputs for d, n in zip(i.type.tensor_type.shape.dim, shape) if d.dim_param}
    names = [o.name for o in model.graph.output]
    replace(model.graph.output, [])
    for name in names:
        kind = known[name].tensor_type if name in known else None
        dims = [d.dim_value or d.dim_param for d in kind.shape.dim] if kind and kind.HasField("shape") else [0] * values[name].ndim
        shape = [named.get(n, n) for n in values[name].shape]
        dims = [d if d and not str(d).startswith("unk__") else n for d, n in zip(dims, shape)]
        element = helper.np_dtype_to_tensor_dtype(values[name].dtype)
        model.graph.input.append(helper.make_tensor_value_info(f"{name}.seed", element, dims))
        model.graph.node.append(helper.make_node("Mul", [name, f"{name}.seed"], [f"{name}.seeded"]))
        model.graph.output.append(helper.make_tensor_value_info(f"{name}.seeded", element, dims))
    return model


def stripped(model):
    """Without the outputs' types, for inference to fill in."""
    model = copied(model)
    replace(model.graph.output, [onnx.ValueInfoProto(name=o.name) for o in model.graph.output])
    return model


def ran(model, feeds):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    wanted = {i.name for i in session.get_inputs()}
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(None, {n: v for n, v in feeds.items() if n in wanted})))


def problem(case, seed):
    rng = np.random.default_rng(seed)
    feeds = input_values(case, rng)
    given = {n: v for n, v in case.wrt.items() if v is not None}
    weights = {n: v if isinstance(v, np.ndarray) else np.asarray(drawn(case, n, v, rng)) for n, v in given.items()}
    weights = {n: v.astype(case.dtype) for n, v in weights.items()}
    plain = parsed(case, case.body, weights | case.constants)
    wanted = {n: weights.get(n, feeds.get(n)) for n in case.wrt}
    judge = parsed(case, case.judge or case.body, weights | case.constants)
    return posed(plain, feeds, wanted, rng, judge, case.value_limit, case.exact)


def posed(model, feeds, wanted, rng, judge=None, value_limit=1e-4, exact=None):
    """The problem of a model, and the values of what is wanted. `judge` is what stands for it in the differences."""
    values = ran(stripped(model), feeds)
    seeds = {n: (np.ones_like(v) if exact else rng.standard_normal(v.shape).astype(v.dtype)) for n, v in values.items()}
    exact = exact or differences(copied(judge or model), wanted, feeds, seeds, values, value_limit)
    return Problem(seeded(copied(model), feeds, values), feeds | {f"{n}.seed": np.asarray(s) for n, s in seeds.items()}, exact)


def doubled(tensor):
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name)


def double(graph):
    """The same in float64, bodies and constants included."""
    for value in [*graph.input, *graph.output, *graph.value_info]:
        if value.type.tensor_type.elem_type in REAL:
            value.type.tensor_type.elem_type = TensorProto.DOUBLE
    for tensor in graph.initializer:
        if tensor.data_type in REAL:
            tensor.CopyFrom(doubled(tensor))
    for node in graph.node:
        for a in node.attribute:
            if a.type == onnx.AttributeProto.GRAPH:
                double(a.g)
            elif a.type == onnx.AttributeProto.TENSOR and a.t.data_type in REAL:
                a.t.CopyFrom(doubled(a.t))
            elif node.op_type == "Cast" and a.name == "to" and a.i in REAL:
                a.i = TensorProto.DOUBLE
    return graph


def differences(model, wanted, feeds, seeds, values, value_limit):
    """Central differences of the loss for each element of what is wanted."""
    evaluator = ReferenceEvaluator(free(model, wanted), new_ops=[Erf])
    real = lambda v: v.astype(np.float64) if v.dtype.kind == "f" else v
    point = {n: np.array(real(v)) for n, v in (feeds | wanted).items()}

    def answers():
        return evaluator.run(None, {n: point[n] for n in evaluator.input_names})

    for name, value in zip(evaluator.output_names, answers()):
        off = np.abs(value - values[name]).max(initial=0) / max(1, np.abs(values[name]).max(initial=0))
        if value.shape != values[name].shape or not off <= value_limit:
            raise RuntimeError(f"the judge's value of {name} is off by {off:.1e}")

    def loss():
        return sum(float((v * real(seeds[n])).sum()) for n, v in zip(evaluator.output_names, answers()))

    gradients = {}
    for name in wanted:
        slopes = np.zeros(point[name].shape)
        for place in np.ndindex(slopes.shape):
            here = point[name][place]
            ends = []
            for step in (STEP, -STEP):
                point[name][place] = here + step
                ends.append(loss())
            point[name][place] = here
            slopes[place] = (ends[0] - ends[1]) / (2 * STEP)
        gradients[name] = slopes
    return gradients


def free(model, wanted):
    """In float64, with what is wanted as inputs."""
    without_constants(model.graph, wanted)
    double(model.graph)
    kept = [t for t in model.graph.initializer if t.name not in wanted]
    replace(model.graph.initializer, kept)
    present = {i.name for i in model.graph.input}
    for name, value in wanted.items():
        if name not in present:
            model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.DOUBLE, value.shape))
    return model


def without_constants(graph, wanted):
    """`Constant` nodes of wanted names are gone, wherever they stand: readers find the input of that name outside."""
    replace(graph.node, [n for n in graph.node if not (n.op_type == "Constant" and n.output[0] in wanted)])
    for node in graph.node:
        for a in node.attribute:
            if a.type == onnx.AttributeProto.GRAPH:
                without_constants(a.g, wanted)


def replace(field, kept):
    """A repeated field of a message holds copies of these and nothing else."""
    kept = [copied(m) for m in kept]
    del field[:]
    field.extend(kept)


def copied(message):
    return type(message).FromString(message.SerializeToString())
