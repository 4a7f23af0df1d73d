"""Gradients of small models by this program and by onnxsim's `graph_grad`, both judged against central differences.

    python benches/onnxsim_cases.py                    # all: two tables in Markdown, and what each of the two refuses
    python benches/onnxsim_cases.py Conv kink          # only subjects with one of these in them
    python benches/onnxsim_cases.py --why              # with the reasons

Needs numpy, onnx, onnxruntime and onnxsim, and this program built (`--program` names it). The models are those of
`gradient_cases.py`. Every output is multiplied by an input of random numbers (its cotangent) and the loss is the sum of all. This
program makes the gradients with `grad --gradients-only --loss sum`. onnxsim gets the model with its weights as inputs, as its own
tests do, and all shapes; first as it is, then with constants hoisted, functions inlined and simplified by itself, then as operator
set 17, then with open sizes fixed: the first graph that runs counts. Both gradient graphs run in ONNX Runtime.

The judge is ONNX's reference evaluator in float64, steps of 1e-5 to both sides of every element. Before, its answer is
compared with that of ONNX Runtime. *Agrees* is an error of at most 1e-4: the largest difference between gradients over the
largest element of the exact one (over 1 if that is smaller). *Refuses* is an error message in place of a graph. Exit code 1
where this program is wrong, or refuses what it isn't known to.
"""
import argparse
import collections
import dataclasses
import glob
import importlib.metadata
import math
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import onnx
import onnx.inliner
import onnx.parser
import onnx.shape_inference
import onnx.version_converter
import onnxruntime
import onnxsim
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from onnxsim import graph_grad, qat_graph

import gradient_cases
from gradient_cases import Case

ROOT = pathlib.Path(__file__).parent.parent
LIMIT = 1e-4
STEP = 1e-5
# The size that each open dimension gets.
OPEN = {"N": 3, "T": 5, "H": 6, "W": 7}
DRAWS = (0, 1)


class Erf(OpRun):
    """In float64: the evaluator's own rounds to float32."""

    op_domain = ""

    def _run(self, x):
        return (np.vectorize(math.erf, otypes=[np.float64])(x).astype(x.dtype),)


class Refused(Exception):
    pass


@dataclasses.dataclass
class Outcome:
    """Of one program on one case: `agrees`, `refuses` or `wrong`, and how far off or why."""

    kind: str
    error: float = 0.0
    why: str = ""
    # The form of the model that it needs.
    form: str = ""


@dataclasses.dataclass
class Problem:
    """A case with numbers: the model that both programs are given, what it is fed, the exact gradients."""

    model: onnx.ModelProto
    feeds: dict
    exact: dict


# Making models.


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


def seeded(case, model, values):
    """Every real output times an input of its own shape, with that shape as the model's inference has it."""
    inferred = onnx.shape_inference.infer_shapes(stripped(model))
    known = {v.name: v.type for v in [*inferred.graph.value_info, *inferred.graph.output]}
    del model.graph.output[:]
    for name in case.outputs:
        kind = known[name].tensor_type if name in known else None
        dims = [d.dim_value or d.dim_param for d in kind.shape.dim] if kind and kind.HasField("shape") else [0] * values[name].ndim
        # A size that inference can't say is that of the values, by the name of the dimension that has it.
        named = {size: letter for letter, size in OPEN.items() if any(letter in t for t in case.inputs.values())}
        shape = [named.get(n, n) for n in values[name].shape]
        dims = [d if d and not str(d).startswith("unk__") else n for d, n in zip(dims, shape)]
        element = helper.np_dtype_to_tensor_dtype(values[name].dtype)
        model.graph.input.append(helper.make_tensor_value_info(f"{name}.seed", element, dims))
        model.graph.node.append(helper.make_node("Mul", [name, f"{name}.seed"], [f"{name}.seeded"]))
        model.graph.output.append(helper.make_tensor_value_info(f"{name}.seeded", element, dims))
    return model


def stripped(model):
    """Without the outputs' types, for inference to fill in."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    names = [o.name for o in model.graph.output]
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names)
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
    values = ran(retyped(case, plain), feeds)
    seeds = {n: rng.standard_normal(v.shape).astype(v.dtype) for n, v in values.items()}
    if case.exact:
        seeds = {n: np.ones_like(s) for n, s in seeds.items()}
    model = seeded(case, plain, values)
    exact = case.exact or differences(case, weights, feeds, seeds, values)
    return Problem(model, feeds | {f"{n}.seed": np.asarray(s) for n, s in seeds.items()}, exact)


def retyped(case, model):
    """For a run: the outputs' types are left to ONNX Runtime."""
    return onnx.shape_inference.infer_shapes(stripped(model)) if not case.domains else stripped(model)


# The judge.


def doubled(tensor):
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name)


REAL = (TensorProto.FLOAT, TensorProto.FLOAT16)


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


def differences(case, weights, feeds, seeds, values):
    """Central differences of the loss for each element of what is wanted."""
    wanted = {n: weights.get(n, feeds.get(n)) for n in case.wrt}
    tensors = weights | {n: v for n, v in case.constants.items()}
    model = parsed(case, case.judge or case.body, tensors)
    model = without_constants(model, wanted)
    evaluator = ReferenceEvaluator(free(model, wanted), new_ops=[Erf])
    real = lambda v: v.astype(np.float64) if v.dtype.kind == "f" else v
    point = {n: np.array(real(v)) for n, v in (feeds | wanted).items()}
    inputs = [i for i in evaluator.input_names]

    def answers():
        return evaluator.run(None, {n: point[n] for n in inputs})

    for name, value in zip(evaluator.output_names, answers()):
        off = np.abs(value - values[name]).max(initial=0) / max(1, np.abs(values[name]).max(initial=0))
        if value.shape != values[name].shape or not off <= case.value_limit:
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


def without_constants(model, wanted):
    """A `Constant` node of a wanted name gone, wherever it stands: its reader finds the input of that name outside."""

    def clear(graph):
        kept = [n for n in graph.node if not (n.op_type == "Constant" and n.output[0] in wanted)]
        for node in kept:
            for a in node.attribute:
                if a.type == onnx.AttributeProto.GRAPH:
                    clear(a.g)
        kept = [onnx.NodeProto.FromString(n.SerializeToString()) for n in kept]
        del graph.node[:]
        graph.node.extend(kept)

    clear(model.graph)
    return model


def free(model, wanted):
    """In float64, with what is wanted as inputs."""
    double(model.graph)
    kept = [t for t in model.graph.initializer if t.name not in wanted]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    present = {i.name for i in model.graph.input}
    for name, value in wanted.items():
        if name not in present:
            model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.DOUBLE, value.shape))
    return model


# The two programs.


def ours(model, wanted, feeds, program, folder, options=()):
    path, graph = folder / "model.onnx", folder / "gradients.onnx"
    onnx.save(model, path)
    graph.unlink(missing_ok=True)
    wrt = [a for n in wanted for a in ("--wrt", n)]
    command = [program, "grad", path, "--gradients-only", "--loss", "sum", "--executor", "ort", "-o", graph, *wrt, *options]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = [l for l in done.stderr.splitlines() if l.strip()]
        if done.returncode not in (2, 3, 5) or not lines:
            raise RuntimeError(f"exit code {done.returncode}: {done.stderr.strip()[-300:]}")
        raise Refused(next((l for l in lines if "error" in l), lines[0]))
    found = ran(onnx.load(graph), feeds)
    return {n: found[f"{n}.grad"] for n in wanted}, ""


def static_shapes(model, values):
    """As the model says, else as they are in a run."""
    inferred = onnx.shape_inference.infer_shapes(model)
    graph = inferred.graph
    shapes = {
        v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in [*graph.input, *graph.output, *graph.value_info]
        if v.type.HasField("tensor_type") and v.type.tensor_type.HasField("shape")
    }
    seen = {n: list(v.shape) for n, v in values.items()}
    return seen | shapes | {t.name: list(t.dims) for t in graph.initializer}


def peers_graph(model, wanted, values):
    """The model's nodes, then those of `graph_grad`, as its own tests put them together."""
    shapes = static_shapes(model, values)
    graph = model.graph
    b = qat_graph.GraphBuilder("bw_")
    b.initializer.extend(graph.initializer)
    seeds = {o.name: f"{o.name}.one" for o in graph.output}
    gradients = graph_grad.build_backward(b, list(graph.node), shapes, seeds, list(wanted))
    ones = [helper.make_tensor_value_info(s, o.type.tensor_type.elem_type, shapes[o.name]) for o, s in zip(graph.output, seeds.values())]
    nodes = [*graph.node, *b.nodes, *(helper.make_node("Identity", [gradients[n]], [f"{n}.grad"]) for n in wanted)]
    types = {i.name: i.type.tensor_type.elem_type for i in graph.input}
    outputs = [helper.make_tensor_value_info(f"{n}.grad", types.get(n, TensorProto.FLOAT), None) for n in wanted]
    built = helper.make_graph(nodes, "gradients", [*graph.input, *ones], outputs, list(b.initializer))
    opsets = [*model.opset_import, *(helper.make_opsetid(d, 1) for d in sorted({f.domain for f in b.functions}))]
    functions = [*model.functions, *b.functions]
    whole = helper.make_model(built, opset_imports=opsets, functions=functions, ir_version=model.ir_version)
    return onnx.inliner.inline_local_functions(whole) if functions else whole


def with_free_weights(model, wanted):
    """With what is wanted as inputs."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    kept = []
    for tensor in model.graph.initializer:
        if tensor.name in wanted:
            model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
        else:
            kept.append(tensor)
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    return model


def hoisted(model):
    """With the values of `Constant` nodes in the file's list of tensors."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    kept = []
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            node.attribute[0].t.name = node.output[0]
            model.graph.initializer.append(node.attribute[0].t)
        else:
            kept.append(onnx.NodeProto.FromString(node.SerializeToString()))
    del model.graph.node[:]
    model.graph.node.extend(kept)
    return model


def prepared(model, wanted, feeds):
    """The forms that the peer is offered, each made only if those before were refused."""
    yield "", lambda: with_free_weights(model, wanted)

    def simplified(**settings):
        plain = hoisted(onnx.inliner.inline_local_functions(model))
        return hoisted(onnxsim.simplify(with_free_weights(plain, wanted), check_n=0, **settings)[0])

    yield "simplified", simplified
    yield "simplified, as operator set 17", lambda: onnx.version_converter.convert_version(simplified(), 17)
    sizes = {i.name: list(feeds[i.name].shape) for i in model.graph.input}
    yield "simplified, of fixed sizes", lambda: simplified(overwrite_input_shapes=sizes)


def everything(model, feeds):
    """All values of a run, as far as ONNX Runtime gives them."""
    model = stripped(model)
    names = [o for n in model.graph.node for o in n.output if o]
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names)
    return {n: np.asarray(v) for n, v in ran(model, feeds).items() if not isinstance(v, list)}


def peer(model, wanted, feeds):
    """The gradients, and the form that they took."""
    values = {t.name: numpy_helper.to_array(t) for t in hoisted(model).graph.initializer}
    fed = feeds | {n: values[n] for n in wanted if n in values}
    ones = {f"{n}.seeded.one": np.ones_like(v) for n, v in seeds_of(feeds).items()}
    refusals = []
    for name, make in prepared(model, wanted, fed):
        try:
            form = make()
            found = ran(peers_graph(form, wanted, everything(form, fed)), fed | ones)
            return {n: found[f"{n}.grad"] for n in wanted}, name
        except Exception as e:
            refusals.append(f"{type(e).__name__}: {e}")
    raise Refused(refusals[0])


def seeds_of(feeds):
    return {n.removesuffix(".seed"): v for n, v in feeds.items() if n.endswith(".seed")}


# Judging.


def judged(make, exact):
    try:
        found, form = make()
    except Refused as e:
        return Outcome("refuses", why=" ".join(str(e).split()))
    except Exception as e:
        return Outcome("wrong", math.inf, f"{type(e).__name__}: {' '.join(str(e).split())}")
    worst = 0.0
    for name, gradient in exact.items():
        gradient = np.asarray(gradient, np.float64)
        if found[name].shape != gradient.shape:
            return Outcome("wrong", math.inf, f"{name} has shape {found[name].shape}, not {gradient.shape}")
        off = np.abs(found[name] - gradient).max(initial=0) / max(1, np.abs(gradient).max(initial=0))
        worst = max(worst, float(off) if np.isfinite(off) else math.inf)
    return Outcome("agrees" if worst <= LIMIT else "wrong", worst, form=form)


def worse(a, b):
    order = ("agrees", "refuses", "wrong")
    return max(a, b, key=lambda o: (order.index(o.kind), o.error))


def outcomes(case, program, folder):
    """Ours and the peer's, the worse of all draws."""
    pairs = []
    options = ["--shape", case.shape] if case.shape else []
    for seed in DRAWS:
        p = problem(case, seed)
        wanted = list(case.wrt)
        pairs.append((
            judged(lambda: ours(p.model, wanted, p.feeds, program, folder, options), p.exact),
            judged(lambda: peer(p.model, wanted, p.feeds), p.exact),
        ))
    return tuple(worse(a, b) for a, b in zip(*pairs))


def cells(found):
    """`agrees / refuses / wrong` and the worst error of those that agree."""
    count = collections.Counter(o.kind for o in found)
    worst = max((o.error for o in found if o.kind == "agrees"), default=None)
    numbers = " / ".join(str(count[k]) for k in ("agrees", "refuses", "wrong"))
    return f"{numbers} | {'' if worst is None else f'{worst:.0e}'}"


def told(outcome):
    if outcome.kind == "agrees":
        return f"agrees, {outcome.error:.0e}" + (f" ({outcome.form})" if outcome.form else "")
    return f"**{outcome.kind}**" if outcome.kind == "wrong" else outcome.kind


def explain(where, pair, why):
    for who, outcome in zip(("onnx-merge", "onnxsim"), pair):
        if outcome.kind == "wrong" or (why and outcome.kind == "refuses"):
            print(f"{where}, {who} {outcome.kind} ({outcome.error:.1e}) {outcome.why[:260]}", file=sys.stderr, flush=True)


def refusals(program, folder, why):
    """Malformed models: how many each of the two refuses."""
    count = collections.Counter()
    for described in gradient_cases.MALFORMED:
        model, names = gradient_cases.malformed_model(*described)
        feeds = {"x": np.array(1.0, np.float32)}

        def theirs():
            free_model = with_free_weights(model, names)
            shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in [*free_model.graph.input, *free_model.graph.output, *free_model.graph.value_info]}
            graph_grad.build_backward(qat_graph.GraphBuilder("bw_"), list(free_model.graph.node), shapes, {"y": "dy"}, names[:1])

        for who, make in (("ours", lambda: ours(model, names, feeds, program, folder)), ("peer", theirs)):
            try:
                make()
                print(f"malformed {described}: {who} gives a graph", file=sys.stderr)
            except (Refused, graph_grad.UnsupportedOpError) as e:
                count[who] += 1
                if why:
                    print(f"malformed {described}, {who}: {str(e)[:200]}", file=sys.stderr)
            except Exception as e:
                print(f"malformed {described}: {who} {type(e).__name__}: {str(e)[:200]}", file=sys.stderr)
    return count


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("subjects", nargs="*")
    parser.add_argument("--program", default=str(ROOT / "target/release/onnx-merge"))
    parser.add_argument("--why", action="store_true")
    args = parser.parse_args()
    library = glob.glob(str(pathlib.Path(onnxruntime.__file__).parent / "capi/libonnxruntime*"))
    os.environ.setdefault("ORT_DYLIB_PATH", library[0])
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    asked = lambda subject: not args.subjects or any(s.lower() in subject.lower() for s in args.subjects)
    versions = [f"{n} {importlib.metadata.version(n)}" for n in ("onnxsim", "onnx", "onnxruntime")]
    print(f"{', '.join(versions)}; {len(graph_grad.supported_ops())} operators of graph_grad\n")
    failed = False
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)

        def run(case, where):
            nonlocal failed
            try:
                pair = outcomes(case, args.program, folder)
            except Exception as e:
                print("UNJUDGED", where, type(e).__name__, str(e)[:300], file=sys.stderr)
                return (Outcome("unjudged"), Outcome("unjudged"))
            explain(where, pair, args.why)
            failed |= pair[0].kind != "agrees"
            return pair

        print("| operator | cases | onnx-merge | worst error | onnxsim | worst error |\n|---|---|---|---|---|---|", flush=True)
        by_subject, all_pairs = {}, []
        for case in gradient_cases.PEERS:
            by_subject.setdefault(case.subject, []).append(case)
        for subject, cases in by_subject.items():
            if asked(subject):
                pairs = [run(c, f"{subject}: {c.body.strip()[:70]} {c.wrt}") for c in cases]
                all_pairs += pairs
                print(f"| {subject} | {len(pairs)} | {cells([p[0] for p in pairs])} | {cells([p[1] for p in pairs])} |", flush=True)
        if all_pairs:
            print(f"| all | {len(all_pairs)} | {cells([p[0] for p in all_pairs])} | {cells([p[1] for p in all_pairs])} |\n")
        if asked("malformed"):
            count = refusals(args.program, folder, args.why)
            print(f"malformed models: {len(gradient_cases.MALFORMED)}, refused by onnx-merge {count['ours']}, by onnxsim {count['peer']}\n", flush=True)
        print("| beyond its tests | onnx-merge | onnxsim |\n|---|---|---|", flush=True)
        for group, cases in gradient_cases.FURTHER.items():
            for case in cases:
                if asked(case.subject) or (args.subjects and asked(group)):
                    pair = run(case, case.subject)
                    print(f"| {case.subject} | {told(pair[0])} | {told(pair[1])} |", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
