"""Writes ONNX's operator test cases as files, from the generators of the Python package `onnx`.

    python dump_node_tests.py FOLDER [OPERATOR...]

makes FOLDER/CASE/model.onnx and FOLDER/CASE/test_data_set_K/{input,output}_N.pb for every case (or the cases that use
one of the operators), in the layout of the ONNX backend tests. Values that are no tensors are left out.
"""

import pathlib
import sys

import numpy
import onnx
from onnx import numpy_helper
from onnx.backend.test.case import node as cases


def main(folder: pathlib.Path, operators: set[str]) -> None:
    written = left_out = 0
    for case in cases.collect_testcases(None):
        used = {node.op_type for node in case.model.graph.node}
        if operators and not operators & used:
            continue
        place = folder / case.name
        place.mkdir(parents=True, exist_ok=True)
        onnx.save(case.model, place / "model.onnx")
        for number, (inputs, outputs) in enumerate(case.data_sets or []):
            data_set = place / f"test_data_set_{number}"
            data_set.mkdir(exist_ok=True)
            for kind, values in (("input", inputs), ("output", outputs)):
                for position, value in enumerate(values):
                    tensor = as_tensor(value)
                    if tensor is None:
                        left_out += 1
                    else:
                        (data_set / f"{kind}_{position}.pb").write_bytes(tensor.SerializeToString())
        written += 1
    print(f"{written} cases in {folder}, {left_out} values that are no tensors left out")


def as_tensor(value: object) -> onnx.TensorProto | None:
    if isinstance(value, onnx.TensorProto):
        return value
    if isinstance(value, (numpy.ndarray, numpy.generic)):
        return numpy_helper.from_array(numpy.asarray(value))
    return None


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(pathlib.Path(sys.argv[1]), set(sys.argv[2:]))
