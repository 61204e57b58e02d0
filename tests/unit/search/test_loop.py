"""The loop: what it counts, when it ends, and what it returns when it is cut short."""

from __future__ import annotations

import math

import pytest

from tests.unit.search.spaces import Clock, Graph, interrupting, line
from whet.errors import SearchError
from whet.search import (
    Beam,
    BestFirst,
    Budget,
    Candidate,
    Cost,
    Greedy,
    Scored,
    Source,
    StopReason,
    search,
)


def test_the_whole_of_a_small_search():
    space = line([5, 4, 3, 6, 1])
    outcome = search(space, Greedy(), Budget())
    assert (outcome.best.state, outcome.stop) == (2, StopReason.CONVERGED)
    assert (outcome.rounds, outcome.start.seconds) == (3, 5)
    assert (outcome.proposed, outcome.scored, outcome.repeated) == (5, 3, 2)
    assert space.priced == [0, 1, 2, 3]
    assert set(outcome.phases) == {"propose", "check", "cost", "keep"}
    assert str(outcome).startswith("5000 ms (measured) -> 3000 ms (measured): Converged after 3")


def test_refuted_candidates_are_counted_and_never_priced():
    space = Graph({0: [1, 2], 2: [1]}, {0: 3, 1: 1, 2: 2}, frozenset({(0, 1)}))
    outcome = search(space, Greedy(), Budget())
    # One way to state 1 is forbidden, the other is not.
    assert (outcome.best.state, outcome.refuted) == (1, 1)
    space.forbidden = frozenset({(0, 1), (2, 1)})
    assert search(space, Greedy(), Budget()).best.state == 2


def test_equal_states_are_priced_once_even_within_a_batch():
    space = Graph({0: [1, 1, 1, 2]}, {0: 3, 1: 2, 2: 1})
    outcome = search(space, Beam(), Budget())
    assert space.priced == [0, 1, 2]
    assert (outcome.proposed, outcome.scored, outcome.repeated) == (4, 2, 2)


def test_prices_are_asked_for_in_batches():
    sizes = []
    space = Graph({0: range(1, 11)}, dict.fromkeys(range(11), 1.0))
    inner = space.cost
    space.cost = lambda cs: sizes.append(len(cs)) or inner(cs)
    search(space, Greedy(), Budget(batch=4))
    assert sizes == [1, 4, 4, 2]


@pytest.mark.parametrize("limit", range(8))
def test_no_more_candidates_than_the_budget_allows(limit):
    space = line([9, 8, 7, 6, 5, 4, 3])
    outcome = search(space, BestFirst(), Budget(candidates=limit))
    assert outcome.proposed == limit
    assert outcome.stop is StopReason.BUDGET


def test_what_was_drawn_when_time_runs_out_is_still_priced():
    clock = Clock()
    space = line([9, 8, 7, 6])
    inner = space.check
    space.check = lambda c: setattr(clock, "now", clock.now + 1) or inner(c)
    outcome = search(space, Greedy(), Budget(seconds=1, clock=clock))
    assert (outcome.stop, outcome.proposed, outcome.best.state) == (StopReason.BUDGET, 1, 1)


def test_phases_are_timed():
    clock = Clock()
    space = line([2, 1])
    inner = space.cost
    space.cost = lambda cs: setattr(clock, "now", clock.now + 3) or inner(cs)
    outcome = search(space, Greedy(), Budget(clock=clock))
    assert outcome.phases == {"propose": 0, "check": 0, "cost": 6, "keep": 0}


def test_a_space_reaches_its_node_limit():
    space = line([3, 2, 1])
    inner = space.propose

    def growing(kept, budget):
        budget.spend(nodes=10)
        return inner(kept, budget)

    space.propose = growing
    outcome = search(space, Greedy(), Budget(nodes=15))
    assert (outcome.stop, outcome.rounds) == (StopReason.NODE_LIMIT, 2)


@pytest.mark.parametrize(("phase", "after"), [("propose", 2), ("check", 2), ("cost", 3)])
def test_control_c_ends_with_the_best_so_far(phase, after):
    budget = Budget()
    outcome = search(interrupting(line([9, 8, 7, 6]), phase, after), Greedy(), budget.part())
    assert (outcome.stop, outcome.best.state) == (StopReason.INTERRUPTED, 1)
    assert budget.stop() is StopReason.INTERRUPTED, "the outer search stops too"


def test_control_c_before_there_is_an_answer_passes_through():
    with pytest.raises(KeyboardInterrupt):
        search(interrupting(line([1, 2]), "cost", 1), Greedy(), Budget())


def test_cancelling_stops_between_candidates():
    space, budget = line([9, 8, 7, 6]), Budget()
    inner = space.check
    space.check = lambda c: budget.cancel() or inner(c)
    outcome = search(space, Greedy(), budget)
    assert (outcome.stop, outcome.proposed, outcome.best.state) == (StopReason.INTERRUPTED, 1, 1)


def test_an_empty_budget_returns_the_start():
    outcome = search(line([2, 1]), Greedy(), Budget(seconds=0))
    assert (outcome.best.state, outcome.stop, outcome.rounds) == (0, StopReason.BUDGET, 0)


def test_a_prediction_does_not_replace_the_measured_start():
    space = Graph({0: [1, 2]}, {0: 3, 1: 1, 2: 2})
    measured = {0, 2}

    def cost(cs):
        return [
            Scored(
                c.after,
                Cost(
                    space.seconds[c.after],
                    source=Source.MEASURED if c.after in measured else Source.PREDICTED,
                ),
            )
            for c in cs
        ]

    space.cost = cost
    assert search(space, BestFirst(), Budget()).best.state == 2


def test_a_start_that_cannot_run_is_improved_upon():
    outcome = search(line([math.inf, math.inf, 3]), BestFirst(), Budget())
    assert outcome.best.state == 2


def test_a_space_that_prices_something_else_is_refused():
    space = line([2, 1])
    inner = space.cost
    space.cost = lambda cs: inner(cs[:1] if cs[0].how == "start" else cs[:0])
    with pytest.raises(SearchError, match=r"Graph\.cost did not price") as error:
        search(space, Greedy(), Budget())
    assert "expected: 1 states" in str(error.value)


def test_candidates_are_drawn_only_after_the_last_was_checked():
    order = []
    space = line([1, 2])

    def propose(kept, budget):
        for name in "ab":
            order.append(name)
            yield Candidate(0, 1, name)

    space.propose = propose
    space.check = lambda c: order.append(f"check {c.how}")
    search(space, Greedy(), Budget())
    assert order == ["a", "check a", "b"], "b leads where a did, and needs no check"
