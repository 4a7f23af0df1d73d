"""Runs the program, and turns what goes in and comes out into Python's own things."""

import contextlib
import importlib.util
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile

from ._progress import follower

#: Exit codes that come with a report: a gain, the target kept, unverified, interrupted.
REPORTED = (0, 4, 6, 130)
#: Seconds between two looks at the log.
LOOK = 0.1


class Error(RuntimeError):
    """What the program refused, in its own words. ``code`` is its exit code: 2 usage, 3 input, 5 executor."""

    def __init__(self, message, code, hints=()):
        super().__init__("\n".join([message, *(f"hint: {hint}" for hint in hints)]))
        self.message, self.code, self.hints = message, code, tuple(hints)


class Report(dict):
    """What a run found out: the object that ``--json`` prints, with its fields as attributes.

    ``report.outcome`` is ``"gain"``, ``"no-gain"`` (the target was kept) or ``"unverified"``; ``report.gains["test"]`` has
    ``mean`` and ``stderr``; ``report.model`` the bytes of the model that was written.
    """

    def __init__(self, fields, model, summary):
        super().__init__(fields)
        self._model, self._summary = model, summary

    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def __bool__(self):
        return self["outcome"] == "gain"

    @property
    def model(self):
        """The model as bytes."""
        return self._model if isinstance(self._model, bytes) else pathlib.Path(self._model).read_bytes()

    def proto(self):
        """The model as ``onnx.ModelProto`` (needs the package ``onnx``)."""
        import onnx

        return onnx.load_model_from_string(self.model)

    def __str__(self):
        return self._summary

    __repr__ = __str__


def merge(source, target, data=None, *, output=None, val=None, test=None, progress=None, **options):
    """Moves knowledge from ``source`` into ``target``, trained on ``data``, and keeps it if ``val`` says it is better.

    ``output`` is where to write the model; without it, the report alone has it. ``progress`` is ``True`` (a bar in a notebook
    or on a terminal), ``False``, or a function that is called with every event of docs/following-a-run.md;
    unless given, there is a bar where somebody can see it.
    """
    return _train([("source", source), ("target", target)], [], data, output, val, test, progress, options)


def tune(target, data, *, output=None, val=None, test=None, progress=None, **options):
    """Trains ``target`` alone: all its weights, or with ``low_rank=8`` deltas of that rank."""
    return _train([("target", target)], ["tune"], data, output, val, test, progress, options)


def evaluate(model, data, **options):
    """Accuracy and loss of a model on data, as a dictionary."""
    with _Folder() as folder:
        words = ["eval", folder.model("model", model), "--data", folder.data("data", data)]
        return json.loads(_run([*words, *_words(options, folder), "--json"]))


def inspect(model, source=None, **options):
    """The parameter graph of a model, or of a target and a source with their pairing, as a dictionary."""
    with _Folder() as folder:
        words = ["inspect", folder.model("target", model)]
        if source is not None:
            words.append(folder.model("source", source))
        return json.loads(_run([*words, *_words(options, folder), "--format", "json"]))


def grad(model, output=None, **options):
    """A training-step graph of standard operators for ``model``, as bytes, with its first state as a dictionary of arrays.

    With ``output`` both are written there too, as ``onnx-merge grad -o`` does. Options that only make sense for a whole
    step leave the state out: with ``gradients_only=True`` it is ``None``.
    """
    with _Folder() as folder:
        path = pathlib.Path(output) if output is not None else folder.path("step.onnx")
        _run(["grad", folder.model("model", model), "-o", str(path), *_words(options, folder)])
        state = path.with_suffix(".npz")
        return path.read_bytes(), _arrays(state) if state.exists() and not options.get("gradients_only") else None


def _train(models, words, data, output, val, test, progress, options):
    with _Folder() as folder:
        words = words + [folder.model(name, model) for name, model in models]
        out = pathlib.Path(output) if output is not None else folder.path("out.onnx")
        words += ["-o", str(out)]
        for name, rows in (("data", data), ("val", val), ("test", test)):
            if rows is not None:
                words += [f"--{name}", folder.data(name, rows)]
        log = folder.path("log.jsonl")
        words += [*_words(options, folder), "--json", "--quiet", "--log", str(log)]
        with follower(progress, log) as look:
            fields = json.loads(_run(words, look))
        if fields["outcome"] == "interrupted":
            raise KeyboardInterrupt(f"the best so far is in {out}" if output is not None else "")
        return Report(fields, out if output is not None else out.read_bytes(), _summary(fields))


class _Folder(contextlib.AbstractContextManager):
    """A temporary folder for what isn't in files."""

    def __enter__(self):
        self._folder = tempfile.TemporaryDirectory(prefix="onnx-merge-")
        return self

    def __exit__(self, *error):
        self._folder.cleanup()

    def path(self, name):
        return pathlib.Path(self._folder.name, name)

    def model(self, name, model):
        """The path of a model, written to the folder where it isn't a file."""
        if isinstance(model, (str, os.PathLike)):
            return os.fspath(model)
        content = model.SerializeToString() if hasattr(model, "SerializeToString") else model
        if not isinstance(content, (bytes, bytearray, memoryview)):
            raise TypeError(f"{name}: a path, bytes or onnx.ModelProto is needed, not {type(model).__name__}")
        path = self.path(f"{name}.onnx")
        path.write_bytes(content)
        return str(path)

    def data(self, name, rows):
        """The path of data, written to the folder where they are arrays."""
        if isinstance(rows, (str, os.PathLike)):
            return os.fspath(rows)
        import numpy

        if not isinstance(rows, dict):
            rows = dict(zip(("x", "y"), rows if isinstance(rows, (tuple, list)) else (rows,)))
        path = self.path(f"{name}.npz")
        numpy.savez(path, **{key: numpy.asarray(array) for key, array in rows.items()})
        return str(path)


#: Options that take data.
DATA_OPTIONS = ("unlabelled", "src_data")


def _words(options, folder):
    """Keywords as the command line has them."""
    words = []
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        if name in DATA_OPTIONS and value is not None:
            words += [flag, folder.data(name, value)]
        elif value is True:
            words.append(flag)
        elif value is not None and value is not False:
            for one in value if isinstance(value, (list, tuple)) else [value]:
                # In one word: some options may stand without a value.
                words.append(f"{flag}={one}")
    return words


def _arrays(path):
    import numpy

    with numpy.load(path) as arrays:
        return dict(arrays)


def _program():
    """The program: the one that ``ONNX_MERGE_PROGRAM`` names, the one installed beside this package, or one on the path."""
    named = os.environ.get("ONNX_MERGE_PROGRAM")
    if named:
        return named
    name = "onnx-merge" + (sysconfig.get_config_var("EXE") or "")
    folders = [sysconfig.get_path("scripts"), os.path.dirname(sys.executable)]
    if hasattr(sysconfig, "get_preferred_scheme"):
        folders.append(sysconfig.get_path("scripts", sysconfig.get_preferred_scheme("user")))
    found = shutil.which(name, path=os.pathsep.join(folders)) or shutil.which(name)
    if found is None:
        raise FileNotFoundError("onnx-merge isn't installed beside this package: pip install --force-reinstall onnx-merge")
    return found


def _environment():
    """This process's, with the ONNX Runtime that Python would import."""
    environment = dict(os.environ, ORT_DISABLE_TELEMETRY="1")
    package = importlib.util.find_spec("onnxruntime")
    if "ORT_DYLIB_PATH" not in environment and package is not None and package.origin:
        folder = pathlib.Path(package.origin).parent / "capi"
        libraries = [p for pattern in ("libonnxruntime.so*", "libonnxruntime*.dylib", "onnxruntime.dll")
                     for p in sorted(folder.glob(pattern))]
        if libraries:
            environment["ORT_DYLIB_PATH"] = str(libraries[0])
    return environment


def _run(words, look=None):
    """Runs the program to its end and returns what it printed."""
    # A session of its own: Ctrl-C on the terminal comes here alone, and is passed on once.
    process = subprocess.Popen(
        [_program(), *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=_environment(),
        start_new_session=os.name == "posix",
    )
    interrupted = False
    while True:
        try:
            printed, said = process.communicate(timeout=LOOK if look else None)
            break
        except subprocess.TimeoutExpired:
            look()
        except KeyboardInterrupt:
            if interrupted:
                process.kill()
                raise
            interrupted = True
            process.send_signal(signal.SIGINT)
    if look:
        look()
    said = said.decode(errors="replace")
    if process.returncode not in REPORTED or (interrupted and not printed):
        if interrupted:
            raise KeyboardInterrupt
        raise _error(said, process.returncode)
    # Warnings are for people.
    sys.stderr.write(said)
    return printed


def _error(said, code):
    lines = said.strip().splitlines()
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    hints = [line.removeprefix("hint: ") for line in lines if line.startswith("hint: ")]
    return Error(errors[-1] if errors else said.strip() or f"onnx-merge ended with {code}", code, hints)


def _summary(fields):
    """One line for each part of the data that wasn't trained on, and the outcome."""
    percent = fields["metric"]["name"] == "accuracy"
    show = lambda v: f"{100 * v:.2f} %" if percent else f"{v:.5g}"
    lines = []
    for part, name in (("val", "validation"), ("test", "test")):
        before, after, gain = fields["untouched"][part], fields["shipped"][part], fields["gains"][part]
        if before is None or after is None:
            continue
        sure = ""
        if gain and gain["stderr"] is not None:
            unit = 100 if percent else 1
            sure = f" (gain {unit * gain['mean']:+.4g} ± {unit * gain['stderr']:.2g})"
        lines.append(f"{name}: {show(before)} -> {show(after)}{sure}")
    kept = {"gain": "better than its target", "no-gain": "nothing was better: the target's weights were kept",
            "unverified": "unverified: there were no data"}
    return "\n".join([f"onnx_merge.Report: {fields['method']}, {kept.get(fields['outcome'], fields['outcome'])}", *lines])
