"""Rewrites and strategies that are searched together, and plans that stand on rewrites."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from whet.capture import planned, rewritten
from whet.capture.training import training
from whet.cli.parallelize import optimizer
from whet.machine import topology
from whet.parallel import executable, planfile
from whet.parallel.library import Library
from whet.parallel.search import Search
from whet.parallel.strategy import Part, Recipe, Strategy

NAMES = ("relu of concat", "matmul is linear", "divide product of two")
RULES = {name: rewritten.RULES[name] for name in NAMES}


class Towers(nn.Module):
    """Two towers of unequal width, joined by a product."""

    def __init__(self, dim, one, two):
        super().__init__()
        self.one, self.two = nn.Linear(dim, one, bias=False), nn.Linear(dim, two, bias=False)
        self.out = nn.Linear(one + two, dim, bias=False)

    def forward(self, x, y):
        return self.out(torch.cat([torch.relu(self.one(x)), torch.relu(self.two(y))], -1))


def mean(y, target):
    return ((y - target) ** 2).mean()


def large(batch):
    with torch.device("meta"):
        rows = [torch.randn(batch, 2048) for _ in range(3)]
        return Towers(2048, 16384, 8192), tuple(rows[:2]), tuple(rows[2:]), mean


def small(batch):
    rows = [torch.randn(batch, 8) for _ in range(3)]
    return Towers(8, 32, 16), tuple(rows[:2]), tuple(rows[2:]), mean


def joined(name, batch, machine, dtype, looks):
    """What is found together, and the step without; seconds are looks at the clock."""
    step = training(f"tests.unit.capture.test_rewritten:{name}", batch, dtype)
    library = Library.of(step.model, topology(machine), optimizer(dtype))
    ticks = itertools.count()

    def searching(there, seconds, also):
        return Search(there, seeds=not also, budget=seconds, also=also, clock=lambda: next(ticks))

    found = searching(library, looks, ()).run()
    return step, rewritten.together(
        step, library, found, searching, budget=2 * looks, rules=RULES
    )  # fmt: skip


def alone(step, dtype):
    """Seconds of a step on one device."""
    library = Library.of(step.model, topology("h100x8,devices=1"), optimizer(dtype))
    part = Part(0, len(step.model.order), (0,), Recipe((("data", 1), ("tensor", 1))))
    return library.simulator.simulate(library.place(Strategy((part,)))).seconds


def test_a_rewrite_that_is_neutral_on_one_device_wins_on_eight():
    step, found = joined("large", 512, "h100x8", "bfloat16", 60)
    assert [s.name for s in rewritten.steps(found.step)] == ["relu of concat"]
    assert found.found.simulated.seconds < 0.97 * found.without
    assert alone(found.step, "bfloat16") == pytest.approx(alone(step, "bfloat16"), rel=0.02)
    assert found.looked >= len(RULES)
    assert "relu of concat (1 places)" in str(found)


def test_a_plan_says_its_rewrites_and_is_refused_for_another_model():
    step = training("tests.unit.capture.test_rewritten:small", 16, "float32")
    there = rewritten.again(step, NAMES[:1])
    assert there.joint.graph != step.joint.graph
    kept = rewritten.applied(step, there.rewrites)
    assert kept.joint.graph == there.joint.graph
    assert kept.reference == step.joint.graph

    library = Library.of(kept.model, topology("host:2"), optimizer("float32"))
    found = Search(library, budget=2.0, limits=executable.limits(library)).run()
    source = {
        "model": "tests.unit.capture.test_rewritten:small", "dtype": "float32",
        "machine": "host:2",
    }  # fmt: skip
    data = planfile.data(library, found, source, rewrites=rewritten.rows(kept))
    assert [(r["rule"], r["places"]) for r in data["rewrites"]] == [("relu of concat", 1)]
    text = planfile.write(data)
    plan = planned.planned(text)
    assert plan.training.model.layers == kept.model.layers
    proof = planned.refuse(plan)
    assert proof.error < 1e-9

    other = "tests.unit.capture.test_rewritten:large"
    with pytest.raises(planfile.PlanFileError, match="for something else"):
        planned.planned(text, model=other)
