"""onnx-merge from Python: moves knowledge from one ONNX model into another, and trains ONNX files as they are.

    import onnx_merge
    report = onnx_merge.merge("src.onnx", "tgt.onnx", data=(x, y), val=(x_val, y_val), output="out.onnx")
    print(report)                     # what was gained, and how sure that is
    better = report.model             # the better model's bytes

Models are paths, bytes or ``onnx.ModelProto``; data are paths, or NumPy arrays: ``(x, y)``, or a dictionary of arrays by the
names of the models' inputs with the labels as ``y``. Every option of the command line is a keyword: ``--min-gain 0.01``
is ``min_gain=0.01``, ``--ablate`` is ``ablate=True``, an option that can be given several times takes a list.

The work is done by the program ``onnx-merge`` in a process of its own: other Python threads go on meanwhile, and Ctrl-C ends the
run as it does on the command line, keeping the best so far.
"""

from ._program import Error, Report, evaluate, grad, inspect, merge, tune

__all__ = ["Error", "Report", "evaluate", "grad", "inspect", "merge", "tune"]
