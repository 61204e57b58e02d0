"""Lanes: independent steps beside one another, and every wait that they need."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

from whet.backend.lowered import Lowered, lower
from whet.capture.torch import capture
from whet.capture.zoo import load
from whet.run.cuda import Pretended
from whet.run.lanes import MOST, forked, lanes


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Linear(8, n) for n in (3, 4, 5, 6, 7))
        self.last = nn.Linear(25, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = torch.cat([torch.relu(part(x)) for part in self.parts], -1)
        return self.last(found) + found[:, :2]


class Stream:
    """What has ended before what is launched next, in a lane."""

    def __init__(self, before: set[int]) -> None:
        self.before = set(before)

    def wait_event(self, event: set[int]) -> None:
        self.before |= event

    def record_event(self) -> set[int]:
        return set(self.before)


class Watched(Pretended):
    """Knows for each step which others have surely ended when it begins."""

    def __init__(self) -> None:
        super().__init__()
        self.known: list[set[int]] = []
        self.joined: set[int] = set()

    def fork(self, count: int) -> list[Any]:
        self.known, self.joined = [], set()
        return [Stream(set()) for _ in range(count)]

    @contextmanager
    def on(self, stream: Any) -> Iterator[None]:  # type: ignore[override]
        self.known.append(set(stream.before))
        yield
        stream.before.add(len(self.known) - 1)

    def join(self, streams: Any) -> None:
        self.joined = set().union(*(s.before for s in streams))


def body(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> Lowered:
    with torch.no_grad():
        graph = capture(model, inputs).graph
    return lower(graph, lambda cluster, kernels: kernels[0])


def held_to(low: Lowered, inputs: tuple[torch.Tensor, ...], model: nn.Module) -> int:
    """Every step waits for what it reads, all have ended at the end, and results are the same."""
    device = Watched()
    run = forked(low, device)
    assert run is not None
    named = dict(model.named_parameters()) | dict(model.named_buffers())
    with torch.no_grad():
        derived = low.derive(named | dict(low.graph.constants))
        got, want = run(*inputs, *derived), low.function()(*inputs, *derived)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    made = {step.target: k for k, step in enumerate(low.body)}
    for step, known in zip(low.body, device.known, strict=True):
        assert {made[s] for s in step.operands if s in made} <= known, step
    assert device.joined == set(range(len(low.body)))
    return len(set(lanes(low)))


def test_branches_are_lanes() -> None:
    model, x = Branches().eval(), torch.randn(5, 8)
    assert held_to(body(model, (x,)), (x,), model) == MOST


def test_a_chain_is_one_lane() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)).eval()
    low = body(model, (torch.randn(2, 4),))
    assert set(lanes(low)) == {0}
    assert forked(low, Pretended()) is None


@pytest.mark.parametrize("name", ["nasnet_a", "llama_prefill"])
def test_networks_in_lanes(name: str) -> None:
    model = load(name, scale="small")
    low = body(model.module, model.inputs)
    assert held_to(low, model.inputs, model.module) > 1
