"""Groups of operators in generated kernels: right, decided once, never in place of what works."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from whet.backend.lowered import body_nodes
from whet.backend.piece import Value
from whet.capture.torch import capture
from whet.fuse.seed import seed
from whet.fuse.space import Rates
from whet.ir.graph import Graph
from whet.machine import Machine
from whet.run import tuned
from whet.run.calling import Runner
from whet.run.choice import Chooser
from whet.run.fusing import Priced, decide, fused
from whet.run.measure import Timing
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
    monkeypatch.setattr(tuned, "PASS_S", 0.0)


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
    monkeypatch.setattr(tuned.Rehearsal, "wrong", lambda self, want: 1.0)
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


def test_what_waited_for_a_thread_is_timed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []
    seconds = {"library": [4e-5] * 9, "slow": [9e-5] * 9, "waited": [8e-3, 2e-5, 2e-5]}

    def timed(calls: dict[str, object], **_: object) -> dict[str, Timing]:
        asked.append(tuple(calls))
        return {n: Timing((seconds[n].pop(0),) * 3) for n in calls}

    monkeypatch.setattr(tuned, "interleaved", timed)
    best, calm = tuned.best_times(dict.fromkeys(seconds, lambda: None))
    assert best == {"library": 4e-5, "slow": 9e-5, "waited": 2e-5}
    assert calm
    assert asked == [("library", "slow", "waited"), ("library", "waited"), ("waited",)]


def test_times_in_doubt_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def timed(calls: dict[str, object], **_: object) -> dict[str, Timing]:
        return {n: Timing((8e-3 if n == LIBRARY else 1e-6,) * 3) for n in calls}

    monkeypatch.setattr(tuned, "interleaved", timed)
    model, x, store = nn.Linear(8, 16), torch.randn(64, 8), Store.memory()
    graph = graph_of(model, x)
    t = tuner(store)
    native(graph, t.choose, None, seed(graph, body_nodes(graph)), t)
    assert t.measured == 1
    assert store.keys(tuned.KIND) == []


def test_what_a_library_leaves_of_a_group_is_tuned(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library is said to be fastest wherever it competes."""

    def timed(calls: dict[str, object], **_: object) -> dict[str, Timing]:
        return {n: Timing((1e-3 if n == LIBRARY else 2e-3,) * 3) for n in calls}

    monkeypatch.setattr(tuned, "interleaved", timed)

    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(24, 40)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return torch.tanh(F.softplus(self.one(x))) * torch.exp(y)

    torch.manual_seed(0)
    model, x, y = Gate(), torch.randn(6, 24), torch.randn(6, 40)
    graph, t = graph_of(model, x, y), tuner(Store.memory())
    built, lowered = native(graph, t.choose, None, seed(graph, body_nodes(graph)), t)
    assert sorted({c.name for c in built.calls}) == ["aten", "generated"]
    assert any("softplus+tanh" in c.operators for c in built.calls)
    run = Runner.of(built).bind(lowered.derive(dict(model.named_parameters())))
    with torch.no_grad():
        torch.testing.assert_close(run([x, y])[0], model(x, y), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_groups_write_into_their_places() -> None:
    """Stacked and concatenated values need no copies, products and chains alike."""

    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 16), nn.Linear(8, 16)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            a, b = F.relu(self.a(x)), torch.tanh(x)
            return torch.stack([a, torch.sigmoid(self.b(x))], 1), torch.cat([b, torch.exp(x)], 1)

    torch.manual_seed(0)
    model, x = Heads(), torch.randn(5, 8)
    graph, t = graph_of(model, x), tuner(Store.memory())
    built, lowered = native(graph, t.choose, None, seed(graph, body_nodes(graph)), t)
    assert not any("stack" in c.operators or "concat" in c.operators for c in built.calls)
    run = Runner.of(built).bind(lowered.derive(dict(model.named_parameters())))
    for got, want in zip(run([x]), model(x), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


class Pooled(nn.Module):
    """Two convolutions side by side, pooled where they lie together, then what only stores."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 16, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.cat([self.a(x), self.b(x)], 1)
        return F.max_pool2d(y[:, 4:], 3, 2), torch.tanh(y)


@torch.no_grad()
def test_groups_are_decided_together_before_they_are_asked_for() -> None:
    model, x = Pooled(), torch.randn(1, 3, 19, 19)
    graph, t = graph_of(model, x), tuner(Store.memory())
    partition = seed(graph, body_nodes(graph))
    decide(graph, partition, t)
    known = dict(t.decided)
    assert len(known) >= 3
    for _, operands, results in t.groups.values():  # channels last, of a part of an image too
        for v in (*operands, *results):
            assert not isinstance(v, Value) or v.node in graph.inputs or v.strides[1] == 1
    built, lowered = native(graph, t.choose, None, partition, t)
    assert known.items() <= t.decided.items()
    run = Runner.of(built).bind(lowered.derive(dict(model.named_parameters())))
    for got, want in zip(run([x]), model(x), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_where_time_is_short_the_first_draft_runs_and_is_not_kept() -> None:
    model, x, store = Pooled(), torch.randn(1, 3, 19, 19), Store.memory()
    graph = graph_of(model, x)
    t = tuner(store, budget=Budget(seconds=0), last=Budget(seconds=600))
    built, lowered = native(graph, t.choose, None, seed(graph, body_nodes(graph)), t)
    assert t.failures[tuned.FIRST] == t.measured >= 3
    assert not t.undecided
    assert store.keys(tuned.KIND) == []
    run = Runner.of(built).bind(lowered.derive(dict(model.named_parameters())))
    torch.testing.assert_close(run([x])[0], model(x)[0], rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_the_heavy_have_several_drafts_and_the_light_the_first() -> None:
    model, x = nn.Sequential(*(nn.Linear(n, n + 8) for n in range(8, 72, 8))), torch.randn(64, 8)
    graph = graph_of(model, x)
    now = [0.0]
    t = tuner(Store.memory(), budget=Budget(seconds=0, clock=lambda: now[0]))
    t.last = Budget(seconds=2 * tuned.QUICK_S * 7.9, clock=lambda: now[0])
    made: list[tuple[int | None, int]] = []

    def measure(groups: dict[str, object], most: int | None = None) -> None:
        made.append((most, len(groups)))
        now[0] += 2 * tuned.QUICK_S * len(groups)
        t.decided |= dict.fromkeys(groups, Decision(LIBRARY, 1.0, {}))
        t.groups |= groups  # type: ignore[arg-type]

    t._measure = measure  # type: ignore[method-assign, assignment]
    decide(graph, seed(graph, body_nodes(graph)), t)
    assert made == [(None, 6), (1, 2)]
    assert len(t.hasty) == 2
    t.settle(Budget())
    assert made[2:] == [(None, 2)]
    assert not t.hasty


@torch.no_grad()
def test_groups_decided_in_haste_are_decided_again_while_there_is_time() -> None:
    model, x, store = Pooled(), torch.randn(1, 3, 19, 19), Store.memory()
    graph = graph_of(model, x)
    partition, every = seed(graph, body_nodes(graph)), tuner(Store.memory())
    decide(graph, partition, every)
    short = Budget(seconds=1.5 * tuned.QUICK_S * every.measured, clock=lambda: 0.0)
    t = tuner(store, budget=Budget(seconds=0), last=short)
    decide(graph, partition, t)
    hasty = len(t.hasty)
    assert hasty == t.failures[tuned.FIRST] >= 3
    t.settle(Budget(seconds=0))
    assert len(t.hasty) == hasty
    t.settle(Budget(seconds=600))
    assert not t.hasty
    assert tuned.FIRST not in t.failures
    assert t.measured == 2 * hasty
