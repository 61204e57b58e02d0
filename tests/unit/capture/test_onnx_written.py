"""Graphs written as ONNX: every operator of the table, read back and run by ONNX Runtime."""

from __future__ import annotations

import pytest
import torch

from tests.unit.ir.cases import case, every
from whet.backend.library import run_opaque
from whet.capture import zoo
from whet.capture.onnx import load_onnx
from whet.capture.onnx.file import write_model
from whet.capture.onnx.spelled import ROWS
from whet.capture.onnx.writer import Writer, held, write_graph
from whet.capture.torch import capture
from whet.errors import UnsupportedError
from whet.ir.graph import Graph, leaf, opaque
from whet.ir.interp import FLOAT64, NATIVE, evaluate
from whet.ir.types import DType, Poly, TensorType

# What ONNX has no way to say: of two arguments, and whose sign decides the quadrant.
SILENT = {"atan2"}
ROWED = [
    pytest.param(n, k, marks=() if k == 0 else pytest.mark.full)
    for n, k in every() if n not in SILENT
]  # fmt: skip


def one(name, k, dtype):
    """A case as a graph of one node."""
    found = case(name, k)
    node = found.node(dtype)
    inputs = [a for a in dict.fromkeys(node.operands) if a.op == "input"]
    return found, Graph(tuple(inputs), (node,))


def session(path):
    onnxruntime = pytest.importorskip("onnxruntime")
    onnxruntime.set_default_logger_severity(3)
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def answers(path, feeds):
    """What ONNX Runtime makes of a file."""
    made = session(path)
    taken = {v.name: feeds[v.name].numpy() for v in made.get_inputs()}
    return [torch.from_numpy(t) for t in made.run(None, taken)]


def apart(got, want):
    """The largest difference, relative to the largest element; what is infinite has to be so."""
    got, want = got.double(), want.double()
    assert got.shape == want.shape
    same = got.isfinite() == want.isfinite()
    assert bool(same.all())
    got, want = got[want.isfinite()], want[want.isfinite()]
    return float((got - want).abs().max() / want.abs().max().clamp(min=1)) if want.numel() else 0.0


@pytest.mark.parametrize(("name", "k"), ROWED)
def test_an_operator_is_read_back_as_it_was(name, k, tmp_path):
    found, graph = one(name, k, torch.float64)
    path = tmp_path / "m.onnx"
    write_model(write_graph(graph, {}), path)
    back = load_onnx(path)
    want = evaluate(graph, found.feeds(), FLOAT64)[0]
    results = evaluate(back.graph, {**back.parameters, **found.feeds()}, FLOAT64)
    got = back.answer(results, tuple(found.feeds()[n.name] for n in graph.inputs))
    assert apart(got, want) < 1e-12


@pytest.mark.parametrize(("name", "k"), ROWED)
def test_a_runtime_computes_an_operator(name, k, tmp_path):
    found, graph = one(name, k, torch.float32)
    path = tmp_path / "m.onnx"
    write_model(write_graph(graph, {}), path)
    want = evaluate(graph, found.feeds(torch.float32), NATIVE)[0]
    got = answers(path, found.feeds(torch.float32))[0]
    assert got.dtype == want.dtype
    assert apart(got, want) < 1e-5


@pytest.mark.parametrize("name", ["squeezenet", "llama_prefill", "dlrm", "lstm", "moe"])
def test_a_network_runs_under_onnx_runtime(name, tmp_path):
    _network(name, tmp_path)


@pytest.mark.full
@pytest.mark.parametrize("name", zoo.names())
def test_every_network_runs_under_onnx_runtime(name, tmp_path):
    _network(name, tmp_path)


def _network(name, tmp_path):
    entry = zoo.load(name, scale="small")
    found = capture(entry.module.eval(), entry.inputs)
    path = tmp_path / "m.onnx"
    write_model(write_graph(found.graph, found.parameters), path)
    feeds = found.feeds(entry.inputs)
    wanted = evaluate(found.graph, feeds, NATIVE, run_opaque)
    for got, want in zip(answers(path, feeds), wanted, strict=True):
        assert apart(got, want) < 1e-5


@pytest.mark.parametrize("name", ["softmax", "layer_norm", "conv2d", "attention", "embedding"])
def test_a_record_says_what_its_row_says(name, tmp_path, monkeypatch):
    """Every part of an operator is written out from its record: the same without the rows."""
    monkeypatch.delitem(ROWS, name)
    for k in (k for n, k in every() if n == name):
        found, graph = one(name, k, torch.float32)
        path = tmp_path / f"{k}.onnx"
        write_model(write_graph(graph, {}), path)
        want = evaluate(graph, found.feeds(torch.float32), NATIVE)[0]
        assert apart(answers(path, found.feeds(torch.float32))[0], want) < 1e-5


def test_what_cannot_be_written_is_named():
    x = leaf("input", "x", TensorType(DType.f32, (4,)))
    sort = opaque("aten.sort.default", [x], "aten.sort.default(%0)", [x.type])
    with pytest.raises(UnsupportedError, match="aten.sort.default has no record"):
        write_graph(Graph((x,), (sort,)), {})
    open_ = leaf("input", "x", TensorType(DType.f32, (Poly.symbol("n"),)))
    with pytest.raises(UnsupportedError, match="fixed sizes"):
        write_graph(Graph((open_,), (open_,)), {})
    weight = leaf("parameter", "w", x.type)
    with pytest.raises(UnsupportedError, match="w has no data to write"):
        held(weight, torch.empty(4, device="meta"))
    _, graph = one("atan2", 0, torch.float32)
    with pytest.raises(UnsupportedError, match="ONNX has no function atan2"):
        Writer().node(graph.outputs[0], ["a", "b"])
