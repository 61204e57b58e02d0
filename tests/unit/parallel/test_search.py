"""Pins, refusals, baselines that are tuned, bounds, and where a sweep's best plan changes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from whet.capture.joint import capture_joint
from whet.capture.training import captured
from whet.errors import SearchError
from whet.machine import topology
from whet.parallel import blocks, explain
from whet.parallel.bound import Bound
from whet.parallel.expert import Family, Member, tuned
from whet.parallel.library import Library
from whet.parallel.pins import Pins
from whet.parallel.placed import Optimizer
from whet.parallel.search import Search


class Feed(nn.Module):
    def __init__(self, dim, hidden):
        super().__init__()
        self.up, self.down = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x):
        return self.down(torch.relu(self.up(x)))


@pytest.fixture(scope="module")
def model():
    with torch.device("meta"):
        module = Feed(256, 1024)
        x, t = torch.randn(64, 256), torch.randn(64, 256)
    joint = capture_joint(module, (x,), lambda y, t: ((y - t) ** 2).mean(), (t,))
    return blocks.model(joint.graph, joint.gradients, 64, whole=True)


def search(model, machine="h100x8", pins=(), **more):
    pinned = Pins.of(list(pins))
    library = Library.of(model, topology(machine), Optimizer(), pinned)
    return library, Search(library, pins=pinned, budget=3.0, **more)


def test_the_result_is_no_worse_than_any_seed_and_no_better_than_the_bound(model):
    library, one = search(model)
    found = one.run()
    assert {"data", "fsdp", "tensor"} <= set(found.baselines)
    for _, ran in found.baselines.values():
        assert found.simulated.seconds <= ran.seconds
        assert ran.seconds >= found.bound
    assert found.gap >= 0
    assert found.simulated.fits
    bound = Bound(model, library.cluster, library.optimizer)
    assert bound.hope(found.best) <= found.simulated.seconds
    assert bound.seconds(range(4)) == pytest.approx(2 * bound.seconds())


def test_pins_are_kept_and_the_rest_is_found(model):
    pins = ("tensor=4", "microbatches=2", "zero=2", "recompute=true", "up.weight=1:tensor")
    library, one = search(model, pins=pins)
    found = one.run()
    part = found.best.parts[0]
    assert (part.recipe.size("tensor"), part.recipe.size("data")) == (4, 2)
    assert (found.best.microbatches, part.zero, part.recompute) == (2, 2, True)
    choices = library.choices_of(part, 0, 2)
    up = next(p for p in choices if p.op == "parameter" and p.name == "up.weight")
    assert choices[up].result.on("tensor") == (1, 1)
    (reason,) = explain.reasons(library, found.best)
    assert reason.cuts["up.weight"] == "dim 1 along tensor"
    assert "ms" in str(reason)


@pytest.mark.parametrize(
    ("pins", "text"),
    [
        (("tensor=3",), "do not fit the machine"),
        (("stages=2",), "a stage has a block at least"),
        (("microbatches=5",), "the batch does not divide"),
        (("nothing.*=whole",), "no parameter has such a name"),
        (("up.bias=7:tensor", "tensor=8"), "no strategy satisfies the pins"),
    ],
)
def test_pins_that_cannot_be_are_refused(model, pins, text):
    _, one = search(model, pins=pins)
    with pytest.raises(SearchError, match=text):
        one.run()


@pytest.mark.parametrize(
    "pin", ["tensor", "tensor=x", "zero=4", "recompute=1", "schedule=none", "colour=1", "a.b=0:x"]
)
def test_what_is_no_pin_is_refused(pin):
    with pytest.raises(SearchError):
        Pins.of([pin])


def test_too_little_memory_is_said_with_what_came_nearest(model):
    library, one = search(model, "h100x8,device.memory=0.0001")
    with pytest.raises(SearchError, match="no strategy fits in memory") as fault:
        one.run()
    assert "GiB" in fault.value.got
    assert "came nearest" in fault.value.got
    assert library.cluster.device(0).memory < 1 << 20


def test_a_family_is_tuned_over_its_degrees_and_microbatches():
    """The best member under a cost of its fields alone is found wherever it lies."""
    family = Family("3d", 1024, tuple(range(64)), 8, [1.0] * 32, True)

    def rate(s):
        p = s.parts[0]
        off = abs(s.groups - 8) + abs(p.recipe.size("tensor") - 4) + abs(s.microbatches - 64)
        return False, off + (0 if p.recompute else 1) + (s.chunks != 2)

    best = tuned(family, rate, lambda: False)
    assert best == family.strategy(Member(8, 4, 64, 2, 1, True)) or rate(best)[1] <= 1


def test_a_sweep_says_where_the_best_plan_changes():
    family = Family("fsdp", 64, tuple(range(8)), 8, [1.0], True)
    first = family.strategy(next(family.starts()))
    other = first.everywhere(zero=(first.parts[0].zero + 1) % 4)
    points = [(25.0, first, 1.0), (50.0, first, 0.9), (100.0, other, 0.5)]
    (line,) = explain.changes(points)
    assert line.startswith("between 50 and 100: ")


def test_tables_of_a_recommender_are_cut_by_its_experts_and_by_nothing_else():
    given = captured("models:dlrm:small", 64, "float32")
    library, one = search(given)
    found = one.run()
    for family, dim in (("rows", 0), ("columns", 1)):
        strategy, ran = found.baselines[family]
        assert ran.seconds >= found.simulated.seconds
        part = strategy.parts[0]
        rows = {
            n.name: (len(n.shape), c.result.cuts)
            for place in range(part.first, part.last)
            for n, c in library.choices_of(part, place, strategy.microbatches).items()
            if n.op == "parameter"
        }
        assert any(name.startswith("tables") for name in rows)
        for name, (rank, cuts) in rows.items():
            if rank > 1:  # a bias lies as what it is added to, whichever is cheaper
                assert [d for d, _, _ in cuts] == ([dim] if name.startswith("tables") else [])
