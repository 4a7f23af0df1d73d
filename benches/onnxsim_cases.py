"""Gradients of small models by this program and by onnxsim's `graph_grad`, both judged by `gradient_judge.py`.

    python benches/onnxsim_cases.py                    # all: two tables in Markdown
    python benches/onnxsim_cases.py Conv kink          # only subjects with one of these in them
    python benches/onnxsim_cases.py --why              # with reasons for refusals

Needs numpy, onnx, onnxruntime and onnxsim, and this program built (`--program` names it); torch and onnxscript for exports. The
models are those of `gradient_cases.py` and `gradient_exports.py`. Every output is multiplied by an input of random numbers (its
cotangent) and the loss is the sum of all. This program makes the gradients with `grad --gradients-only --loss sum`. onnxsim gets the
model with its weights as inputs, as its own tests do, and all shapes; first as it is, then with constants hoisted, functions inlined
and simplified by itself, then as operator set 17, then with open sizes fixed: the first graph that runs counts. Both gradient graphs
run in ONNX Runtime.

*Agrees* is an error of at most 1e-4: the largest difference between gradients over the largest element of the exact one (over 1 if
that is smaller), the worse of two draws of numbers. *Refuses* is an error message in place of a graph, or a graph that doesn't load.
Cells of sums are agrees / refuses / wrong. Exit code 1 where this program doesn't agree.
"""
import argparse
import collections
import dataclasses
import glob
import importlib.metadata
import importlib.util
import math
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import onnx
import onnx.inliner
import onnx.shape_inference
import onnx.version_converter
import onnxruntime
import onnxsim
from onnx import TensorProto, helper, numpy_helper
from onnxsim import graph_grad, qat_graph

import gradient_cases
from gradient_judge import copied, problem, ran, replace

ROOT = pathlib.Path(__file__).parent.parent
LIMIT = 1e-4
# Random numbers for every case.
DRAWS = (0, 1)
OURS, THEIRS = "onnx-merge", "onnxsim"


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
    model = copied(model)
    for tensor in model.graph.initializer:
        if tensor.name in wanted:
            model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    replace(model.graph.initializer, [t for t in model.graph.initializer if t.name not in wanted])
    return model


def hoisted(model):
    """With the values of `Constant` nodes in the file's list of tensors."""
    model = copied(model)
    constant = lambda node: node.op_type == "Constant" and node.attribute[0].name == "value"
    for node in filter(constant, model.graph.node):
        node.attribute[0].t.name = node.output[0]
        model.graph.initializer.append(node.attribute[0].t)
    replace(model.graph.node, [n for n in model.graph.node if not constant(n)])
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
    model = copied(model)
    replace(model.graph.output, [onnx.ValueInfoProto(name=o) for n in model.graph.node for o in n.output if o])
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


def both(p, program, folder, options=()):
    """Ours and the peer's."""
    wanted = list(p.exact)
    return (
        judged(lambda: ours(p.model, wanted, p.feeds, program, folder, options), p.exact),
        judged(lambda: peer(p.model, wanted, p.feeds), p.exact),
    )


def outcomes(case, program, folder):
    """The worse of all draws."""
    options = ["--shape", case.shape] if case.shape else []
    pairs = [both(problem(case, seed), program, folder, options) for seed in DRAWS]
    return tuple(worse(a, b) for a, b in zip(*pairs))


def sums(found):
    count = collections.Counter(o.kind for o in found)
    return " / ".join(str(count[k]) for k in ("agrees", "refuses", "wrong"))


def cells(found):
    """The sums, and the worst error of those that agree."""
    worst = max((o.error for o in found if o.kind == "agrees"), default=None)
    return f"{sums(found)} | {'' if worst is None else f'{worst:.0e}'}"


def told(outcome):
    if outcome.kind == "agrees":
        return f"agrees, {outcome.error:.0e}" + (f" ({outcome.form})" if outcome.form else "")
    return f"**{outcome.kind}**" if outcome.kind == "wrong" else outcome.kind


def explain(where, who, outcome, why):
    if outcome.kind == "wrong" or (why and outcome.kind == "refuses"):
        print(f"{where}, {who} {outcome.kind}, {outcome.error:.1e}: {outcome.why[:260]}", file=sys.stderr, flush=True)


def refusals(program, folder, why):
    """Malformed models: how many each of the two refuses."""
    count = collections.Counter()
    for described in gradient_cases.MALFORMED:
        model, names = gradient_cases.malformed_model(*described)

        def theirs():
            given = with_free_weights(model, names)
            values = [*given.graph.input, *given.graph.output, *given.graph.value_info]
            shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}
            graph_grad.build_backward(qat_graph.GraphBuilder("bw_"), list(given.graph.node), shapes, {"y": "dy"}, names[:1])

        feeds = {"x": np.array(1.0, np.float32)}
        for who, make in ((OURS, lambda: ours(model, names, feeds, program, folder)), (THEIRS, theirs)):
            try:
                make()
                print(f"malformed {described}: {who} gives a graph", file=sys.stderr)
            except (Refused, graph_grad.UnsupportedOpError) as e:
                count[who] += 1
                if why:
                    print(f"malformed {described}, {who}: {str(e)[:200]}", file=sys.stderr)
    return count


class Bench:
    def __init__(self, args, folder):
        self.args, self.folder, self.failed = args, folder, False

    def asks(self, subject):
        return not self.args.subjects or any(s.lower() in subject.lower() for s in self.args.subjects)

    def pair(self, case):
        where = f"{case.subject}: {' '.join(case.body.split())[:60]} {list(case.wrt.values())}"[:160]
        return self.noted(where, outcomes(case, self.args.program, self.folder))

    def noted(self, where, found):
        for who, outcome in zip((OURS, THEIRS), found):
            explain(where, who, outcome, self.args.why)
        self.failed |= found[0].kind != "agrees"
        return found

    def of_its_tests(self):
        print(f"| operator | cases | {OURS} | worst error | {THEIRS} | worst error |\n|---|---|---|---|---|---|", flush=True)
        by_subject, every = collections.defaultdict(list), []
        for case in gradient_cases.PEERS:
            by_subject[case.subject].append(case)

        def line(name, pairs):
            ours_, theirs = zip(*pairs) if pairs else ((), ())
            print(f"| {name} | {len(pairs)} | {cells(ours_)} | {cells(theirs)} |", flush=True)

        for subject, cases in by_subject.items():
            if self.asks(subject):
                pairs = [self.pair(c) for c in cases]
                every += pairs
                line(subject, pairs)
        line("all", every)

    def further(self):
        print(f"| beyond its tests | {OURS} | {THEIRS} |\n|---|---|---|", flush=True)
        for group, cases in gradient_cases.FURTHER.items():
            wanted = [c for c in cases if self.asks(c.subject) or self.asks(group)]
            self.group(group, ((c.subject, self.pair(c)) for c in wanted))
        if self.asks("exports") and importlib.util.find_spec("torch"):
            import gradient_exports

            found = ((name, both(p, self.args.program, self.folder)) for name, p in gradient_exports.problems())
            self.group("exports", ((name, self.noted(name, pair)) for name, pair in found))

    def group(self, name, rows):
        pairs = []
        for subject, pair in rows:
            pairs.append(pair)
            print(f"| {subject} | {told(pair[0])} | {told(pair[1])} |", flush=True)
        if pairs:
            print(f"| *{name}*, {len(pairs)} | {sums([p[0] for p in pairs])} | {sums([p[1] for p in pairs])} |", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("subjects", nargs="*")
    parser.add_argument("--program", default=str(ROOT / "target/release/onnx-merge"))
    parser.add_argument("--why", action="store_true")
    args = parser.parse_args()
    library = glob.glob(str(pathlib.Path(onnxruntime.__file__).parent / "capi/libonnxruntime*"))
    os.environ.setdefault("ORT_DYLIB_PATH", library[0])
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    versions = [f"{n} {importlib.metadata.version(n)}" for n in ("onnxsim", "onnx", "onnxruntime")]
    print(f"{', '.join(versions)}; {len(graph_grad.supported_ops())} operators of graph_grad\n")
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(args, pathlib.Path(name))
        bench.of_its_tests()
        if bench.asks("malformed"):
            count = refusals(args.program, bench.folder, args.why)
            said = f"{OURS} refuses {count[OURS]}, {THEIRS} {count[THEIRS]}"
            print(f"\n{len(gradient_cases.MALFORMED)} malformed models: {said}\n", flush=True)
        bench.further()
    sys.exit(bench.failed)


if __name__ == "__main__":
    main()
