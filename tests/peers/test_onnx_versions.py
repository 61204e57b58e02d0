"""Operators in versions that ONNX's own node tests no longer cover, against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from whet.backend.library import run_opaque
from whet.capture.onnx import load_onnx
from whet.ir.interp import FLOAT32, evaluate

F32, I64 = np.float32, np.int64
IMAGE = (1, 2, 7, 6)

# operator, version, shape of the input, further inputs (constants), attributes
CASES: list[tuple[str, int, tuple[int, ...], list[Any], dict[str, Any]]] = [
    ("Upsample", 9, (1, 2, 3, 4), [F32([1, 1, 2, 3])], {"mode": "nearest"}),
    ("Upsample", 9, (1, 2, 3, 4), [F32([1, 1, 2, 2])], {"mode": "linear"}),
    ("Resize", 10, (1, 2, 4, 6), [F32([1, 1, 0.5, 0.5])], {"mode": "nearest"}),
    ("Resize", 10, (1, 2, 5, 6), [F32([1, 1, 0.6, 1.7])], {"mode": "nearest"}),
    ("Resize", 10, (1, 2, 4, 6), [F32([1, 1, 0.5, 2])], {"mode": "linear"}),
    ("Resize", 11, (1, 2, 4, 6), [F32([]), F32([1, 1, 1.5, 0.5])], {"mode": "linear"}),
    ("Resize", 13, (1, 2, 5, 6), [F32([]), F32([1, 1, 1.7, 0.6])], {"mode": "nearest"}),
    ("Resize", 13, (1, 2, 5, 6), [F32([]), F32([1, 1, 1.7, 2.5])], {"mode": "cubic"}),
    ("Softmax", 7, (2, 3, 4), [], {}),
    ("Softmax", 11, (2, 3, 4), [], {"axis": 2}),
    ("LogSoftmax", 11, (2, 3, 4), [], {"axis": 0}),
    ("Hardmax", 11, (2, 3, 4), [], {"axis": 1}),
    ("Flatten", 9, (2, 3, 4), [], {"axis": 2}),
    ("ArgMax", 11, (3, 4), [], {"axis": -1, "keepdims": 0}),
    ("ReduceMean", 11, (2, 3, 4), [], {"axes": [-1, 0]}),
    ("ReduceL2", 11, (2, 3, 4), [], {"axes": [1], "keepdims": 0}),
    ("ReduceLogSumExp", 11, (2, 3, 4), [], {"axes": [0, 2]}),
    ("Slice", 9, (5, 6), [], {"starts": [-4, 1], "ends": [-1, 1000]}),
    ("Slice", 11, (5, 6), [I64([-1, 4]), I64([-9, 0]), I64([0, 1]), I64([-2, -1])], {}),
    ("Split", 11, (6, 4), [], {"axis": 0, "split": [1, 3, 2]}),
    ("Pad", 9, (2, 3, 4), [], {"pads": [0, 1, 2, 0, 2, 1], "mode": "reflect"}),
    ("Pad", 11, (2, 3, 4), [I64([0, 1, -1, 0, 2, 1]), F32(1.5)], {}),
    ("Pad", 13, (2, 3, 4), [I64([0, 1, 2, 0, 2, 1])], {"mode": "edge"}),
    ("Clip", 9, (3, 4), [], {"min": -0.5}),
    ("Gemm", 9, (3, 4), [np.arange(8, dtype=F32).reshape(4, 2), F32([[1], [2], [3]])],
     {"alpha": 0.5, "beta": 2.0}),
    ("Gemm", 11, (3, 4), [np.arange(8, dtype=F32).reshape(2, 4), F32([1, 2])], {"transB": 1}),
    ("PRelu", 9, (2, 3, 4), [F32([[0.1], [0.2], [0.3]])], {}),
    ("LRN", 9, (1, 5, 3, 3), [], {"size": 3, "alpha": 0.3, "beta": 0.6, "bias": 1.5}),
    ("LpNormalization", 9, (3, 4), [], {"axis": 0, "p": 1}),
    ("InstanceNormalization", 9, (2, 3, 4, 4), [F32([1, 2, 3]), F32([0, 1, 2])], {}),
    ("TopK", 11, (3, 5), [I64([2])], {"axis": 1, "largest": 0}),
    ("CumSum", 11, (3, 5), [I64(1)], {"reverse": 1, "exclusive": 1}),
    ("DepthToSpace", 9, (1, 8, 2, 3), [], {"blocksize": 2}),
    ("Trilu", 14, (3, 5), [I64(-1)], {"upper": 0}),
    ("Einsum", 12, (3, 4), [np.ones((4, 2), F32)], {"equation": "...i, i j -> j ..."}),
    ("MaxPool", 8, IMAGE, [], {"kernel_shape": [3, 2], "auto_pad": "SAME_LOWER"}),
    ("MaxPool", 10, IMAGE, [], {"kernel_shape": [2, 2], "dilations": [2, 3], "pads": [1, 0, 0, 1]}),
    ("MaxPool", 12, IMAGE, [], {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
    ("AveragePool", 7, IMAGE, [], {"kernel_shape": [3, 3], "pads": [1, 0, 2, 1]}),
    ("AveragePool", 7, IMAGE, [],
     {"kernel_shape": [3, 3], "pads": [1, 0, 2, 1], "count_include_pad": 1}),
    ("AveragePool", 7, IMAGE, [],
     {"kernel_shape": [3, 2], "auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ("AveragePool", 11, IMAGE, [],
     {"kernel_shape": [2, 4], "pads": [1, 1, 1, 1], "strides": [3, 3], "ceil_mode": 1}),
    ("LpPool", 11, IMAGE, [], {"kernel_shape": [2, 3], "p": 3, "pads": [1, 0, 0, 1]}),
    ("GlobalLpPool", 2, IMAGE, [], {"p": 1}),
    ("Conv", 7, IMAGE, [np.ones((4, 1, 3, 2), F32)],
     {"group": 2, "auto_pad": "SAME_LOWER", "strides": [2, 3]}),
    ("Conv", 11, IMAGE, [np.ones((2, 2, 2, 2), F32), F32([1, 2])],
     {"pads": [0, 1, 2, 3], "dilations": [2, 1]}),
    ("ConvTranspose", 7, IMAGE, [np.ones((2, 3, 3, 2), F32), F32([1, 2, 3])],
     {"strides": [2, 3], "pads": [1, 0, 0, 1], "output_padding": [1, 0]}),
    ("ConvTranspose", 11, IMAGE, [np.ones((2, 1, 3, 3), F32)],
     {"strides": [2, 2], "output_shape": [15, 12], "group": 2}),
    ("ConvTranspose", 11, IMAGE, [np.ones((2, 1, 3, 3), F32)],
     {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    ("GRU", 7, (4, 2, 3),
     [np.linspace(-1, 1, 36, dtype=F32).reshape(1, 12, 3),
      np.linspace(1, -1, 48, dtype=F32).reshape(1, 12, 4)], {"hidden_size": 4}),
    ("LSTM", 7, (4, 2, 3),
     [np.linspace(-1, 1, 48, dtype=F32).reshape(1, 16, 3),
      np.linspace(1, -1, 64, dtype=F32).reshape(1, 16, 4), np.ones((1, 32), F32) / 7,
      np.array([4, 2], np.int32), np.ones((1, 2, 4), F32) / 3, np.ones((1, 2, 4), F32) / 5,
      np.linspace(-1, 1, 12, dtype=F32).reshape(1, 12)],
     {"hidden_size": 4, "direction": "reverse"}),
]  # fmt: skip
OUTPUTS = {"TopK": 2, "GRU": 2, "LSTM": 3, "Split": 3}


@pytest.mark.parametrize(
    ("op", "opset", "shape", "more", "attributes"),
    CASES,
    ids=[f"{c[0]}-{c[1]}-{k}" for k, c in enumerate(CASES)],
)
def test_a_version_equals_onnx_runtime(
    op: str, opset: int, shape: tuple[int, ...], more: list[Any], attributes: dict[str, Any]
) -> None:
    names = [f"t{k}" for k in range(len(more))]
    outputs = [f"y{k}" for k in range(OUTPUTS.get(op, 1))]
    node = helper.make_node(op, ["x", *names], outputs, **attributes)
    graph = helper.make_graph(
        [node], "one", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_empty_tensor_value_info(n) for n in outputs],
        [numpy_helper.from_array(np.asarray(t), n) for t, n in zip(more, names, strict=True)],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", max(opset, 7))]
    bare = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    x = torch.randn(shape)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(bare.SerializeToString(), options)
    right = session.run(None, {"x": x.numpy()})
    for info, value in zip(graph.output, right, strict=True):
        kind = helper.np_dtype_to_tensor_dtype(value.dtype)
        info.CopyFrom(helper.make_tensor_value_info(info.name, kind, value.shape))
    made = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    captured = load_onnx(made.SerializeToString())
    found = evaluate(captured.graph, captured.feeds((x,)), FLOAT32, run_opaque)
    again = captured.module(x)
    for answer in (found, again if isinstance(again, tuple) else (again,)):
        for a, b in zip(answer, right, strict=True):
            torch.testing.assert_close(a, torch.from_numpy(b), rtol=1e-4, atol=1e-5)
