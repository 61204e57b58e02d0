"""0-1 programs against brute force, and selections whose constraints come to light late."""

from __future__ import annotations

import itertools
import random

import pytest

from whet.errors import SearchError
from whet.search import (
    BestFirst,
    Budget,
    Constraint,
    Cost,
    Greedy,
    Journal,
    Selection,
    Source,
    Status,
    StopReason,
    minimize,
    replay,
    search,
)


def brute(costs, constraints):
    """The least cost of any choice, by trying all of them."""
    choices = itertools.product((0, 1), repeat=len(costs))
    chosen = ({j for j, x in enumerate(xs) if x} for xs in choices)
    return min(
        (sum(costs[j] for j in c) for c in chosen if all(row.holds(c) for row in constraints)),
        default=None,
    )


@pytest.mark.parametrize("seed", range(20))
def test_the_solver_equals_brute_force(seed):
    rng = random.Random(seed)
    n = rng.randint(1, 8)
    costs = [rng.randint(-5, 9) for _ in range(n)]
    kinds = (
        Constraint.exactly_one,
        Constraint.at_least_one,
        Constraint.not_all,
        lambda some: Constraint.implies(rng.randrange(n), some),
    )
    rows = [
        rng.choice(kinds)(rng.sample(range(n), rng.randint(1, n))) for _ in range(rng.randint(0, 6))
    ]
    solution, value = minimize(costs, rows), brute(costs, rows)
    if value is None:
        assert solution.status is Status.INFEASIBLE
        assert not solution.found
    else:
        assert (solution.status, solution.value) == (Status.OPTIMAL, value)
        assert all(row.holds(solution.chosen) for row in rows)
        assert solution.bound == pytest.approx(value)


def test_nothing_to_choose():
    assert minimize([], []).chosen == frozenset()
    assert minimize([1.0, -1.0], []).chosen == {1}


def knapsacks(n=60):
    """A program that takes far longer than it is given: equal-sum market split rows."""
    rng = random.Random(0)
    rows = []
    for _ in range(6):
        terms = {j: float(rng.randint(1, 100)) for j in range(n)}
        half = sum(terms.values()) // 2
        rows.append(Constraint(terms, half, half))
    return [rng.random() for _ in range(n)], rows


def test_a_time_limit_is_kept_and_reported():
    costs, rows = knapsacks()
    solution = minimize(costs, rows, seconds=0.2)
    assert solution.status is Status.TIMEOUT
    assert solution.chosen == frozenset()
    # The same, where a choice is at hand: anything above half.
    rows = [Constraint(row.terms, low=row.low) for row in rows]
    solution = minimize(costs, rows, seconds=0.0, start=range(60))
    assert solution.status in (Status.FEASIBLE, Status.TIMEOUT)
    assert all(row.holds(solution.chosen) for row in rows) == solution.found


@pytest.mark.parametrize(
    ("costs", "rows", "says"),
    [
        ([1.0, float("inf")], [], "column 1"),
        ([1.0], [Constraint.exactly_one([0, 3])], "0 <= column < 1"),
    ],
)
def test_a_program_that_is_none_is_refused(costs, rows, says):
    with pytest.raises(SearchError) as error:
        minimize(costs, rows)
    assert says in str(error.value)


# An extraction: every class needs a member; e-nodes 1 and 3 are cheap and lead to each other.
#   column   0 1 2 3
#   class    a a b b        1 needs b, 3 needs a
COSTS = [5.0, 1.0, 6.0, 1.0]
ROWS = [Constraint.exactly_one([0, 1]), Constraint.implies(1, [2, 3])]
ROWS += [Constraint.implies(3, [0, 1]), Constraint.exactly_one([2, 3])]


def acyclic(chosen):
    return Constraint.not_all([1, 3]) if {1, 3} <= chosen else None


def test_a_cycle_is_cut_when_it_shows():
    space = Selection(COSTS, ROWS, [0, 2], cut=acyclic)
    outcome = search(space, Greedy(), Budget())
    assert outcome.best.state == {0, 3}
    assert outcome.best.cost == Cost(6.0, source=Source.PREDICTED)
    assert (outcome.refuted, outcome.scored, outcome.stop) == (1, 1, StopReason.SATURATED)
    assert space.bound == 6.0


def test_more_answers_come_in_order_and_the_true_price_decides():
    true = {frozenset({0, 2}): 9.0, frozenset({0, 3}): 8.0, frozenset({1, 2}): 4.0}

    def price(choices):
        return [Cost(true[chosen]) for chosen in choices]

    space = Selection(COSTS, ROWS, [0, 2], cut=acyclic, price=price, answers=10)
    journal = Journal()
    outcome = search(space, BestFirst(), Budget(), journal)
    assert outcome.best.state == {1, 2}
    assert outcome.best.cost.source is Source.MEASURED
    assert outcome.scored + outcome.repeated == 3, "every choice that stands, once"
    again = Selection(COSTS, ROWS, [0, 2], cut=acyclic, answers=10)
    assert replay(journal, again) == outcome.best


def test_a_cut_that_cuts_nothing_is_refused():
    space = Selection(COSTS, ROWS, [0, 2], cut=lambda chosen: Constraint({}))
    with pytest.raises(SearchError, match="a cut has to exclude"):
        search(space, Greedy(), Budget())


def test_where_there_is_no_choice_the_start_remains():
    space = Selection([1.0], [Constraint({0: 1.0}, 2.0)], [0])
    outcome = search(space, Greedy(), Budget())
    assert (outcome.best.state, outcome.stop) == ({0}, StopReason.SATURATED)
