"""The zoo, imported: every model computes from its records what it computes in torch."""

from __future__ import annotations

import time

import pytest
import torch
from torch.utils import _pytree as pytree

from whet.backend.library import run_opaque
from whet.capture import zoo
from whet.capture.torch import capture
from whet.ir.interp import FLOAT64, evaluate

# The calls that no record computes; all else of the zoo is in the table.
FOREIGN = {"moe": {"aten.topk.default"}}


@pytest.mark.parametrize("name", zoo.names())
def test_zoo_model_equals_its_graph(name: str) -> None:
    model = zoo.load(name, scale="small", dtype=torch.float64)
    with torch.no_grad():
        want = model.module(*model.inputs)
    captured = capture(model.module, model.inputs)
    results = evaluate(captured.graph, captured.feeds(model.inputs), FLOAT64, run_opaque)
    got = captured.answer(results, model.inputs)
    for a, b in zip(pytree.tree_leaves(got), pytree.tree_leaves(want), strict=True):
        assert float((a - b).abs().max() / b.abs().max()) <= 1e-12
    assert {f.target for f in captured.foreign} == FOREIGN.get(name, set())


@pytest.mark.full
@pytest.mark.parametrize("name", zoo.names())
def test_zoo_model_imports_at_full_size(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    model = zoo.load(name)
    began = time.perf_counter()
    captured = capture(model.module, model.inputs)
    seconds = time.perf_counter() - began
    assert {f.target for f in captured.foreign} == FOREIGN.get(name, set())
    unread = set(captured.parameters) - {n.name for n in captured.graph.parameters}
    assert {name.rpartition(".")[2] for name in unread} <= {"num_batches_tracked"}
    calls = ", ".join(f"{n} {op.removeprefix('aten.')}" for op, n in captured.coverage.items())
    with capsys.disabled():
        print(f"\n{name}: {len(captured.graph.nodes)} nodes in {seconds:.2f} s: {calls}")
