"""What ranks carry out: one list for the lowering that refuses and the search that leaves out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from whet.capture.joint import capture_joint
from whet.errors import SearchError
from whet.machine import topology
from whet.parallel import blocks, executable
from whet.parallel.library import Library
from whet.parallel.limits import EXECUTED, SIMULATED
from whet.parallel.pins import Pins
from whet.parallel.placed import Optimizer
from whet.parallel.program import NotExecutable
from whet.parallel.search import Search


class Row(nn.Module):
    """Four equal blocks, with or without statistics over the batch."""

    def __init__(self, *, norm):
        super().__init__()
        self.rows = nn.ModuleList(nn.Linear(64, 64) for _ in range(4))
        self.norm = nn.BatchNorm1d(64) if norm else nn.Identity()

    def forward(self, x):
        for row in self.rows:
            x = torch.relu(self.norm(row(x)))
        return x


def library(machine="host", *, norm=False, pins=()):
    module = Row(norm=norm)
    x = torch.randn(16, 64)
    joint = capture_joint(module, (x,), lambda y, t: ((y - t) ** 2).mean(), (x,))
    model = blocks.model(joint.graph, joint.gradients, 16, small=0)
    return Library.of(model, topology(machine), Optimizer(), Pins.of(list(pins)))


def found(made, limits, pins=(), budget=2.0):
    return Search(made, pins=Pins.of(list(pins)), limits=limits, budget=budget).run()


def test_what_is_found_within_the_limits_is_lowered():
    made = library()
    limits = executable.limits(made)
    assert limits == EXECUTED
    assert found(made, SIMULATED).best.schedule == "zero_bubble"
    best = found(made, limits)
    assert executable.refusal(made, best.best) is None
    for s, _ in best.baselines.values():
        assert limits.allow(s)


def test_each_thing_that_is_left_out_is_refused_by_the_lowering():
    made = library()
    best = found(made, EXECUTED, ["stages=2"]).best
    beyond = (
        replace(best, schedule="zero_bubble"), best.everywhere(offload=frozenset({"optimizer"})),
        best.everywhere(shares=(1.0,)),
    )  # fmt: skip
    for s in beyond:
        assert not EXECUTED.allow(s)
        assert SIMULATED.allow(s)
        assert isinstance(executable.refusal(made, s), NotExecutable)
    assert len(EXECUTED.left_out()) == len(beyond)
    assert SIMULATED.left_out() == []


def test_statistics_of_the_batch_leave_one_microbatch():
    made = library(norm=True)
    limits = executable.limits(made)
    assert limits.microbatches == 1
    assert "batch" in limits.left_out()[-1]
    best = found(made, limits)
    assert best.best.microbatches == 1
    assert "pipeline" in best.baselines
    assert executable.refusal(made, best.best) is None


@pytest.mark.parametrize(
    ("pins", "held"),
    [
        (("offload=none",), lambda s: not any(p.offload for p in s.parts)),
        (("style=lean",), lambda s: {p.recipe.style for p in s.parts} == {"lean"}),
        (("replicas=even", "schedule=gpipe"), lambda s: not any(p.shares for p in s.parts)),
        (("stages=2", "cuts=1"), lambda s: [p.first for p in s.parts] == [0, 1]),
    ],
)
def test_pins_hold(pins, held):
    assert held(found(library(pins=pins), SIMULATED, pins).best)


@pytest.mark.parametrize("pin", ["schedule=zero_bubble", "offload=optimizer", "replicas=uneven"])
def test_pins_beyond_the_limits_are_refused(pin):
    with pytest.raises(SearchError, match="simulated only") as fault:
        found(library(pins=[pin]), EXECUTED, [pin])
    assert "--no-runnable" in fault.value.hint


def test_a_kind_of_machine_alone_has_even_replicas():
    made = library("a100-t4")
    assert all(not p.shares for p in found(made, EXECUTED).best.parts)
