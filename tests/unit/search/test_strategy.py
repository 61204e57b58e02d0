"""Each strategy where it shines, and the one before it does not."""

from __future__ import annotations

import pytest

from tests.unit.search.spaces import Graph, Wander, line
from whet.errors import SearchError
from whet.search import Annealing, Beam, BestFirst, Budget, Greedy, StopReason, search

HILL = [5, 4, 5.1, 1]  # a local optimum at 1, and the best behind a hill


def test_greedy_stops_at_a_local_optimum():
    outcome = search(line(HILL), Greedy(), Budget())
    assert (outcome.best.state, outcome.stop) == (1, StopReason.CONVERGED)


def test_greedy_without_moves_is_saturated():
    assert search(line([1]), Greedy(), Budget()).stop is StopReason.SATURATED


@pytest.mark.parametrize(("slack", "best"), [(1.2, 1), (1.3, 3)])
def test_best_first_climbs_as_high_as_its_slack(slack, best):
    outcome = search(line(HILL), BestFirst(slack=slack), Budget())
    assert outcome.best.state == best
    assert outcome.stop is (StopReason.CONVERGED if best == 1 else StopReason.SATURATED)


def test_best_first_expands_every_state_once():
    space = line(HILL)
    outcome = search(space, BestFirst(slack=10), Budget())
    assert sorted(space.priced) == [0, 1, 2, 3]
    assert outcome.rounds == 4


def test_patience_is_counted_in_rounds_without_progress():
    space = line([5, 4, *range(6, 30)])
    for strategy in (BestFirst(slack=100, patience=3), Beam(patience=3)):
        outcome = search(space, strategy, Budget())
        assert (outcome.rounds, outcome.stop) == (4, StopReason.CONVERGED)


def test_a_wide_beam_finds_what_a_narrow_one_misses():
    #        0 -> 1 (cheap, leads nowhere)     0 -> 2 (dear) -> 3 (best)
    space = Graph({0: [1, 2], 1: [4], 2: [3]}, {0: 5, 1: 3, 2: 6, 3: 1, 4: 4})
    assert search(space, Beam(width=1), Budget()).best.state == 1
    assert search(space, Beam(width=2), Budget()).best.state == 3


def test_annealing_crosses_a_hill_and_repeats_itself():
    seconds = [10, 9.9, *[10.4] * 3, 8, 7]
    assert search(line(seconds), Greedy(), Budget()).best.state == 1
    strategy = Annealing(seed=1, temperature=0.2, rounds=400)
    runs = [search(line(seconds), strategy, Budget()) for _ in range(2)]
    assert runs[0].best.state == 6
    assert (runs[0].proposed, runs[0].stop) == (400, StopReason.CONVERGED)
    assert (runs[0].best, runs[0].repeated) == (runs[1].best, runs[1].repeated)


def test_annealing_samples_an_endless_stream():
    outcome = search(Wander(size=100), Annealing(rounds=300, window=4), Budget())
    assert outcome.best.state < 20
    assert outcome.rounds == 300


def test_annealing_goes_on_when_a_draw_is_refuted():
    space = Graph({0: [1, 2]}, {0: 2, 1: 1, 2: 1.5}, frozenset({(0, 1)}))
    outcomes = [search(space, Annealing(seed=seed, rounds=30), Budget()) for seed in range(9)]
    assert all(outcome.best.state == 2 for outcome in outcomes)
    assert any(outcome.refuted > 0 for outcome in outcomes)


def test_uphill_moves_are_taken_as_often_as_metropolis_says():
    # From 1 s a neighbour of 1.1 s is accepted with exp(-0.1 / 0.1) = 0.368 while it is hot.
    taken = 0
    for seed in range(1000):
        space = Graph({0: [1], 1: [2]}, {0: 1.0, 1: 1.1, 2: 9.0})
        strategy = Annealing(seed=seed, temperature=0.1, final=0.1, rounds=2)
        taken += 2 in (search(space, strategy, Budget()), space.priced)[1]
    assert taken == pytest.approx(368, abs=50)


@pytest.mark.parametrize(
    "make",
    [
        lambda: BestFirst(slack=0.9),
        lambda: Beam(width=0),
        lambda: Annealing(temperature=-1),
        lambda: Annealing(temperature=0.1, final=0.2),
        lambda: Annealing(sample=0),
    ],
)
def test_a_nonsensical_strategy_is_refused(make):
    with pytest.raises(SearchError, match="a strategy cannot be this"):
        make()
