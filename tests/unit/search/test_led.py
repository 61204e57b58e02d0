"""A search led by an advisor, and those that are not."""

from __future__ import annotations

import pytest

from tests.unit.search.spaces import line
from whet.errors import SearchError
from whet.search import (
    Budget,
    Candidate,
    Cost,
    Evolution,
    Led,
    Sampling,
    Scored,
    StopReason,
    search,
)


class Grid:
    """Pairs of numbers; the cost grows with the distance from one of them."""

    def __init__(self, size=20, goal=(13, 5)):
        self.size, self.goal = size, goal
        self.priced = []

    def start(self):
        return (0, 0)

    def propose(self, kept, budget):
        for k in kept:
            for a in range(self.size):
                for b in range(self.size):
                    yield Candidate(k.state, (a, b), (a, b))

    def check(self, c):
        return None

    def cost(self, cs):
        self.priced += [c.after for c in cs]
        (x, y) = self.goal
        return [
            Scored(c.after, Cost(1.0 + (c.after[0] - x) ** 2 + (c.after[1] - y) ** 2)) for c in cs
        ]


class Oracle:
    """An advisor that knows the goal."""

    def __init__(self, goal):
        self.goal, self.learnt = goal, []

    def learn(self, found):
        self.learnt += [s.state for s in found]

    def pick(self, states, count):
        (x, y) = self.goal
        order = sorted(
            range(len(states)), key=lambda k: abs(states[k][0] - x) + abs(states[k][1] - y)
        )
        return order[:count]


def test_it_goes_where_the_advisor_points():
    space, advisor = Grid(), Oracle((13, 5))
    outcome = search(space, Led(advisor, first=4, epsilon=0.0), Budget(candidates=8, batch=4))
    assert outcome.best.state == (13, 5)
    assert len(space.priced) == 9


def test_the_advisor_is_taught_every_price_once():
    space, advisor = Grid(size=5, goal=(1, 1)), Oracle((4, 4))
    outcome = search(space, Led(advisor, first=3, batch=2), Budget(batch=2))
    assert outcome.stop is StopReason.SATURATED
    assert sorted(advisor.learnt) == sorted(set(advisor.learnt)) == sorted(space.priced)
    assert len(space.priced) == 25


def test_a_wrong_advisor_is_not_the_end():
    space = Grid()
    found = search(
        space, Led(Oracle((0, 19)), epsilon=0.5, seed=1), Budget(candidates=120, batch=4)
    )
    assert found.best.seconds < 30


def test_patience():
    space = Grid(size=50, goal=(0, 0))
    found = search(space, Led(Oracle((49, 49)), patience=2, epsilon=0.0), Budget())
    assert found.stop is StopReason.CONVERGED
    assert len(space.priced) == 1 + 12 + 4


@pytest.mark.parametrize("strategy", [Sampling(seed=3), Evolution(seed=3)])
def test_without_a_model(strategy):
    space = Grid()
    found = search(space, strategy, Budget(candidates=300, batch=4))
    assert found.stop is StopReason.BUDGET
    assert found.best.seconds < found.start.seconds
    again = search(Grid(), strategy, Budget(candidates=300, batch=4))
    assert again.best == found.best


def test_evolution_beats_sampling_where_neighbours_are_alike():
    class Near(Grid):
        def propose(self, kept, budget):
            for k in kept:
                for dx in (-2, -1, 0, 1, 2):
                    for dy in (-2, -1, 0, 1, 2):
                        yield Candidate(k.state, (k.state[0] + dx, k.state[1] + dy), (dx, dy))

    far = (40, 60)
    evolved = search(Near(goal=far), Evolution(seed=0), Budget(candidates=600, batch=8))
    sampled = search(Near(goal=far), Sampling(seed=0), Budget(candidates=600, batch=8))
    assert evolved.best.seconds < sampled.best.seconds / 2


def test_nothing_to_propose():
    for strategy in (Sampling(), Evolution(), Led(Oracle((0, 0)))):
        assert search(line([1]), strategy, Budget()).stop is StopReason.SATURATED


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [(Led, {"batch": 0}), (Evolution, {"children": 0}), (Sampling, {"window": 0})],
)
def test_what_a_strategy_cannot_be(kind, wrong):
    arguments = (Oracle((0, 0)),) if kind is Led else ()
    with pytest.raises(SearchError, match="a strategy cannot be this"):
        kind(*arguments, **wrong)
