"""What holds of every search, on random spaces."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.search.spaces import Graph
from whet.search import (
    Annealing,
    Beam,
    BestFirst,
    Budget,
    Cost,
    Greedy,
    Journal,
    Source,
    StopReason,
    replay,
    search,
)

SIZE = 12
states = st.integers(0, SIZE - 1)
seconds = st.floats(0.001, 10.0) | st.just(float("inf"))

graphs = st.builds(
    Graph,
    st.dictionaries(states, st.lists(states, max_size=5), max_size=SIZE),
    st.lists(seconds, min_size=SIZE, max_size=SIZE).map(lambda s: dict(enumerate(s))),
    st.frozensets(st.tuples(states, states), max_size=20),
    st.sampled_from(Source),
)

strategies = st.one_of(
    st.just(Greedy()),
    st.builds(BestFirst, st.floats(1, 3), st.integers(1, 9)),
    st.builds(Beam, st.integers(1, 4), st.integers(1, 9)),
    st.builds(
        Annealing,
        st.integers(0, 9),
        st.sampled_from([0.0, 0.01, 1.0]),
        st.just(0.001),
        st.integers(1, 30),
        st.none() | st.integers(1, 3),
        st.integers(1, 8),
    ),
)


@given(graphs, strategies, st.integers(0, 30), st.integers(1, 5))
def test_never_worse_than_the_start_and_never_forbidden(space, strategy, candidates, batch):
    outcome = search(space, strategy, Budget(candidates=candidates, batch=batch))
    assert outcome.best == outcome.start or outcome.best.cost.beats(outcome.start.cost)
    assert outcome.best.seconds == min(space.seconds[state] for state in space.priced)
    reached = {0}
    for _ in range(SIZE):
        reached |= {
            after
            for before in reached
            for after in space.moves.get(before, ())
            if (before, after) not in space.forbidden
        }
    assert set(space.priced) <= reached
    assert len(space.priced) == len(set(space.priced)), "a state is priced once"


@given(graphs, strategies, st.integers(0, 30), st.integers(1, 5))
def test_budgets_are_kept_to_the_candidate(space, strategy, candidates, batch):
    free = search(space, strategy, Budget(candidates=1000))
    outcome = search(space, strategy, Budget(candidates=candidates, batch=batch))
    assert outcome.proposed == min(candidates, free.proposed)
    assert outcome.proposed == outcome.refuted + outcome.scored + outcome.repeated
    if candidates <= free.proposed:
        assert outcome.stop in (StopReason.BUDGET, free.stop)
    else:
        assert outcome.stop is free.stop
        assert outcome.best == free.best


@given(graphs, st.integers(0, 99))
def test_annealing_at_zero_temperature_is_greedy(space, seed):
    cold = Annealing(seed, temperature=0.0, sample=None)
    greedy, annealed = (search(space, s, Budget()) for s in (Greedy(), cold))
    assert annealed.best == greedy.best
    assert (annealed.rounds, annealed.stop) == (greedy.rounds, greedy.stop)
    assert (annealed.proposed, annealed.refuted) == (greedy.proposed, greedy.refuted)


@given(graphs, strategies, st.integers(0, 40), st.integers(1, 5))
def test_replay_reaches_the_same_state(space, strategy, candidates, batch):
    journal = Journal()
    outcome = search(space, strategy, Budget(candidates=candidates, batch=batch), journal)
    priced = list(space.priced)
    assert replay(journal, space) == outcome.best
    assert space.priced == priced, "nothing is priced again"


costs = st.builds(
    Cost, st.floats(0, 1e3), st.integers(0, 1 << 40), st.sampled_from(Source), st.floats(0, 1)
)


@given(costs, costs)
def test_sums_of_costs_commute_and_never_gain_belief(a, b):
    assert a + b == b + a
    assert (a + b).source.doubt >= max(a.source.doubt, b.source.doubt)
    assert not (a.beats(b) and b.beats(a))
