"""torch's own exporter and our importer, one after the other: every model of the zoo comes back."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from pathlib import Path

import pytest
import torch
import torch.utils._pytree as pytree
from torch import Tensor

from whet.backend.library import run_opaque
from whet.capture import zoo
from whet.capture.onnx import load_onnx
from whet.ir.interp import FLOAT64, evaluate

QUICK = ("memchain", "squeezenet", "lstm")
# The exporter folds constants and batch norms in float32: that much the file itself is off.
TOLERANCE = 1e-6


def exported(model: zoo.ZooModel, file: Path) -> Path:
    """The model as an ONNX file; the exporter's chatter is dropped."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(model.module, model.inputs, dynamo=True, verbose=False)
        assert program is not None
        program.save(str(file))
    return file


def relative(found: Tensor, right: Tensor) -> float:
    """Norm of the difference over the norm of what is right."""
    a, b = found.double(), right.double()
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.full) for n in zoo.names()]
)
def test_an_exported_model_comes_back(name: str, tmp_path: Path) -> None:
    model = zoo.load(name, scale="small")
    captured = load_onnx(exported(model, tmp_path / "model.onnx"))
    inputs = model.inputs[: len(captured.graph.inputs)]
    wide = copy.deepcopy(model.module).double()
    with torch.no_grad():
        right = wide(*(x.double() if x.is_floating_point() else x for x in model.inputs))
    found = evaluate(captured.graph, captured.feeds(inputs), FLOAT64, run_opaque)
    again = captured.module(*inputs)
    for a, b, r in zip(found, pytree.tree_leaves(again), pytree.tree_leaves(right), strict=True):
        assert a.shape == b.shape == r.shape
        assert relative(a, r) <= TOLERANCE
        assert relative(b, r) <= 1e-5
