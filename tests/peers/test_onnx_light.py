"""The nine networks that ship with the onnx package, against ONNX Runtime.

As shipped every weight of theirs is 0.02 and every answer uniform, which proves nothing: here each
constant is replaced by seeded random values scaled by fan-in. What is compared is the answer and
the logits before its softmax.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from whet.capture.onnx import load_onnx
from whet.ir.interp import FLOAT32, FLOAT64, evaluate

FOLDER = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
QUICK = ("squeezenet", "shufflenet", "inception_v1")
LONG = ("bvlc_alexnet", "densenet121", "inception_v2", "resnet50", "vgg19", "zfnet512")
# Measured: 4e-7 to 4e-6 between float32 evaluations of these depths.
TOLERANCE = 1e-5


def network(name: str) -> Any:
    """The network with random weights, and its logits as a second output."""
    model = onnx.load(str(FOLDER / f"light_{name}.onnx"))
    random = np.random.default_rng(0)
    model.ir_version = 8  # from 4 on an initializer need not be an input as well
    graph = model.graph
    shapes = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    users: dict[str, list[tuple[str, int]]] = {}
    results: dict[str, str] = {}
    for n in graph.node:
        results |= dict.fromkeys(n.output, n.op_type)
        for k, i in enumerate(n.input):
            users.setdefault(i, []).append((n.op_type, k))
    through = {n.input[0]: n.output[0] for n in graph.node if n.op_type == "Unsqueeze"}

    def drawn(value: str, shape: tuple[int, ...]) -> Any:
        used = users.get(through.get(value, value), [("", 0)])[0]
        # Variances and factors stay around one, all else around zero.
        if used[0] == "Mul" or (used[0] == "BatchNormalization" and used[1] in (1, 4)):
            return random.random(shape, np.float32) + np.float32(0.5)
        spread = 0.1 if len(shape) == 1 else np.sqrt(2 / np.prod(shape[1:]))
        return random.standard_normal(shape, np.float32) * np.float32(spread)

    replaced = 0
    kept = []
    for n in graph.node:
        if n.op_type != "ConstantOfShape":
            kept.append(n)
            continue
        data = drawn(n.output[0], tuple(shapes[n.input[0]]))
        graph.initializer.append(onnx.numpy_helper.from_array(data, n.output[0]))
        replaced += 1
    for t in graph.initializer:
        old = onnx.numpy_helper.to_array(t)
        if old.dtype == np.float32 and old.size and (old == old.flat[0]).all() and old.ndim:
            t.CopyFrom(onnx.numpy_helper.from_array(drawn(t.name, old.shape), t.name))
            replaced += 1
    assert replaced > 10
    del graph.node[:]
    graph.node.extend(kept)
    answer = graph.output[0].name
    while results[answer] in ("Softmax", "Reshape"):
        answer = next(n for n in graph.node if answer in n.output).input[0]
    kind = onnx.helper.make_tensor_value_info(answer, onnx.TensorProto.FLOAT, None)
    graph.output.append(kind)
    return model


def relative(found: torch.Tensor, right: torch.Tensor) -> float:
    """Norm of the difference over the norm of what is right."""
    a, b = found.double(), right.double()
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(n, marks=pytest.mark.full) for n in LONG)])
def test_light_network_equals_onnx_runtime(name: str) -> None:
    model = network(name)
    source = model.SerializeToString()
    captured = load_onnx(source)
    assert not captured.foreign
    assert len(captured.parameters) > 10
    x = torch.randn(captured.graph.inputs[0].shape, generator=torch.Generator().manual_seed(1))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    fed = session.get_inputs()[0].name
    theirs = [torch.from_numpy(a) for a in session.run(None, {fed: x.numpy()})]
    feeds = captured.feeds((x,))
    ours = {ring: evaluate(captured.graph, feeds, ring) for ring in (FLOAT32, FLOAT64)}
    module = captured.module(x)
    assert len(theirs) == 2
    for k, right in enumerate(ours[FLOAT64]):
        assert float(right.std()) > 0  # not the uniform answer of the weights as shipped
        assert relative(theirs[k], right) <= TOLERANCE
        assert relative(ours[FLOAT32][k], right) <= TOLERANCE
        assert relative(module[k], right) <= TOLERANCE
    # The module in float64 is the oracle of a whole model: it has no rounding of float32 left.
    wide = captured.module.double()(x.double())
    assert all(relative(w, r) <= 1e-12 for w, r in zip(wide, ours[FLOAT64], strict=True))
