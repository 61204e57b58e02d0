"""Budgets: what runs out, who notices, and that an inner purse is part of the outer."""

from __future__ import annotations

import mmap

import pytest

from tests.unit.search.spaces import Clock
from whet.errors import SearchError
from whet.search import Budget, StopReason
from whet.search.budget import resident


def test_a_fresh_budget_has_no_reason_to_stop():
    assert Budget().stop() is None
    assert Budget(seconds=1, candidates=1, nodes=1, clock=Clock()).stop() is None


def test_time_is_counted_from_the_making():
    clock = Clock()
    budget = Budget(seconds=10, clock=clock)
    clock.now += 9.9
    assert budget.stop() is None
    assert budget.seconds_left == pytest.approx(0.1)
    clock.now += 0.2
    assert budget.stop() is StopReason.BUDGET
    assert budget.seconds_left == 0


def test_nodes_and_candidates_are_told_apart():
    budget = Budget(candidates=2, nodes=100)
    budget.spend(candidates=1, nodes=99)
    assert budget.stop() is None
    budget.spend(nodes=5)
    assert (budget.stop(), budget.nodes_left) == (StopReason.NODE_LIMIT, 0)
    budget = Budget(candidates=1)
    budget.spend(candidates=1)
    assert budget.stop() is StopReason.BUDGET


def test_an_inner_budget_spends_from_the_outer_one():
    clock = Clock()
    outer = Budget(seconds=10, candidates=5, nodes=50, clock=clock)
    inner = outer.part(seconds=100, candidates=100, nodes=20)
    assert (inner.seconds_left, inner.candidates_left, inner.nodes_left) == (10, 5, 20)
    inner.spend(candidates=5, nodes=1)
    assert inner.stop() is outer.stop() is StopReason.BUDGET
    assert outer.nodes_left == 49


def test_memory_is_counted_from_the_making():
    held = [100.0]
    outer = Budget(gauge=lambda: held[0])
    inner = outer.part(memory=50).part(candidates=3)
    held[0] = 150
    assert (inner.stop(), inner.memory_left) == (None, 0)
    held[0] = 151
    assert inner.stop() is StopReason.BUDGET
    assert outer.stop() is None
    held[0] = 0
    assert inner.stop() is None


def test_what_the_process_holds_is_known():
    before = resident()
    held = mmap.mmap(
        -1, 64 << 20
    )  # pages of its own: memory that was freed before is not used again
    held.write(b"1" * len(held))
    assert len(held) / 2 < resident() - before < 4 * len(held)


@pytest.mark.parametrize("which", [0, 1])
def test_cancelling_one_stops_both(which):
    outer = Budget()
    pair = outer, outer.part()
    pair[which].cancel()
    assert pair[0].cancelled
    assert {budget.stop() for budget in pair} == {StopReason.INTERRUPTED}


@pytest.mark.parametrize("bad", [{"seconds": -1}, {"nodes": float("nan")}, {"batch": 0}])
def test_a_nonsensical_limit_is_refused(bad):
    with pytest.raises(SearchError, match="a budget cannot be this"):
        Budget(**bad)
