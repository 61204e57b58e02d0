"""Groups of operators in generated kernels: right, decided once, never in place of what works."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from whet.backend.lowered import body_nodes
from whet.capture.torch import capture
from whet.fuse.seed import seed
from whet.fuse.space import Rates
from whet.ir.graph import Graph
from whet.machine import Machine
from whet.run import tuned
from whet.run.calling import Runner
from whet.run.choice import Chooser
from whet.run.fusing import Priced, fused
from whet.run.native import native
from whet.run.tuned import LIBRARY, Decision, Tuner
from whet.search import Budget
from whet.search.reason import Reason
from whet.store import Store


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.LayerNorm(8)
        self.out = nn.Linear(8, 24)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.conv(x)).mean((2, 3))
        return torch.softmax(self.out(self.norm(y)), -1)


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drafts are told apart by a guess, so that nothing depends on the clock."""
    monkeypatch.setattr(tuned, "BUDGET_S", 0.0)


def graph_of(model: nn.Module, *inputs: Tensor) -> Graph:
    with torch.no_grad():
        return capture(model.eval(), inputs).graph


def tuner(store: Store, **options: object) -> Tuner:
    machine = Machine.detect()
    return Tuner(store, machine, Chooser(store, machine, False), 1, **options)  # type: ignore[arg-type]


@torch.no_grad()
def test_generated_groups_compute_the_model() -> None:
    torch.manual_seed(0)
    model, x = Block(), torch.randn(4, 3, 9, 9)
    graph, store = graph_of(model, x), Store.memory()
    t = tuner(store)
    partition = seed(graph, body_nodes(graph))
    values = dict(model.named_parameters())
    built, lowered = native(graph, t.choose, None, partition, t)
    assert "generated" in [c.name for c in built.calls]
    assert not t.failures
    run = Runner.of(built).bind(lowered.derive(values))
    torch.testing.assert_close(run([x])[0], model(x), rtol=1e-5, atol=1e-6)

    again = tuner(store)  # the store knows
    native(graph, again.choose, None, partition, again)
    assert again.measured == 0
    assert again.hits == t.measured > 0


@torch.no_grad()
def test_without_time_the_library_runs() -> None:
    model, x = Block(), torch.randn(4, 3, 9, 9)
    graph = graph_of(model, x)
    t = tuner(Store.memory(), budget=Budget(seconds=0))
    native(graph, t.choose, None, seed(graph, body_nodes(graph)), t)
    assert t.measured == 0


@torch.no_grad()
def test_a_draft_that_computes_something_else_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuned._Trial, "wrong", lambda self, want: 1.0)
    model, x = nn.Softmax(-1), torch.randn(8, 16)
    graph = graph_of(model, x)
    t = tuner(Store.memory())
    native(graph, t.choose, None, seed(graph, body_nodes(graph)), t)
    assert t.failures["wrong: chain"] == 1


@torch.no_grad()
def test_kernels_say_what_holds_them() -> None:
    x = torch.randn(64, 64)
    graph = graph_of(nn.Sequential(nn.Linear(64, 64), nn.ReLU()), x)
    t = tuner(Store.memory())
    price = Priced(t, Rates(), body_nodes(graph))
    (closed,) = seed(graph, body_nodes(graph)).clusters

    def said(**resources: float) -> str:
        return price.reason(closed, Decision("vectorize(i)", 1e-3, resources))

    t.target = t.target.__class__(t.target.isa, 64, 32, 2, l2=1 << 20)
    assert Reason.of(said(parallel=1)) is Reason.PARALLELISM
    assert Reason.of(said(parallel=8, scratch=1 << 21)) is Reason.SCRATCH
    assert Reason.of(said(parallel=8)) in (Reason.BANDWIDTH, Reason.COMPUTE)
    assert Reason.of(price.reason(closed, Decision(LIBRARY, 1e-6, {}))) is Reason.OVERHEAD


@torch.no_grad()
def test_the_search_for_a_partition_ends_with_its_budget() -> None:
    x = torch.randn(64, 64)
    graph = graph_of(nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64), nn.Softmax(-1)), x)
    t = tuner(Store.memory())
    assert fused(graph, t).partition == seed(graph, body_nodes(graph))
    found = fused(graph, t, Budget(candidates=2))
    assert found.outcome is not None
    assert found.outcome.best.seconds <= found.outcome.start.seconds
