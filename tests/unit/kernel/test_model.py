"""What the cost model makes of measurements, and of what was learnt elsewhere."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from whet.kernel.model import CostModel, ModelError, Ranker, grades, shape_of
from whet.search import Cost, Scored

GRID = list(itertools.product(range(8), range(8), range(3)))


def features(states):
    return np.asarray(states, dtype=np.float64)


def seconds(state, shift=0.0):
    a, b, c = state
    return math.exp(0.1 * (a - 5 - shift) ** 2 + 0.05 * (b - 2) ** 2 + 0.3 * (c != 1))


def scored(states, of=seconds):
    return [Scored(s, Cost(of(s))) for s in states]


def draw(count, seed=0):
    rng = np.random.default_rng(seed)
    return [GRID[k] for k in rng.permutation(len(GRID))[:count]]


def test_it_predicts_what_it_was_not_shown():
    model = CostModel(features)
    model.learn(scored(draw(60)))
    mean, doubt = model.predict(GRID)
    truth = np.log([seconds(s) for s in GRID])
    fast = truth < np.median(truth)  # the slow ones need not be told apart
    assert np.corrcoef(mean[fast], truth[fast])[0, 1] > 0.95
    assert (doubt > 0).all()


def test_it_finds_the_best_in_few_trials():
    model = CostModel(features)
    known = draw(10)
    model.learn(scored(known))
    for _ in range(4):
        left = [s for s in GRID if s not in known]
        chosen = [left[k] for k in model.pick(left, 4)]
        assert len(set(chosen)) == 4
        known += chosen
        model.learn(scored(chosen))
    assert min(known, key=seconds) == min(GRID, key=seconds)


def test_what_failed_is_kept_away_from():
    def of(state):
        return math.inf if state[0] > 4 else seconds(state)

    model = CostModel(features)
    model.learn(scored(draw(80), of))
    left = [s for s in GRID if s not in draw(80)]
    chosen = [left[k] for k in model.pick(left, 8)]
    assert sum(math.isinf(of(s)) for s in chosen) <= 1


def test_trees_mend_an_estimate_for_a_task_that_nobody_measured():
    def task(seed):
        x = np.random.default_rng(seed).normal(size=(1000, 3))
        return x, np.exp2(x[:, 0]) * np.exp(np.where(x[:, 1] > 0, 1.0, 0.0)) * 10.0**seed

    mended = Ranker.train([task(0), task(1)], base=0)
    x, seconds = task(2)
    order = np.corrcoef(mended.score(x), np.log(seconds))[0, 1]
    assert order > 0.95 > np.corrcoef(x[:, 0], np.log(seconds))[0, 1]


def test_all_failed():
    model = CostModel(features)
    model.learn(scored(draw(5), lambda s: math.inf))
    assert len(set(model.pick(GRID, 4))) == 4


def test_nothing_to_pick_from():
    assert list(CostModel(features).pick([], 4)) == []
    assert len(set(CostModel(features).pick(GRID[:2], 4))) == 2


@pytest.fixture(scope="module")
def ranker():
    pytest.importorskip("lightgbm")
    return Ranker.train([(features(GRID), np.asarray([seconds(s) for s in GRID]))], trees=60)


def test_a_ranker_orders_other_tasks(ranker):
    score = ranker.score(features(GRID))
    truth = np.asarray([seconds(s, shift=0.5) for s in GRID])
    pairs = [
        (a, b)
        for a, b in itertools.combinations(range(0, len(GRID), 3), 2)
        if abs(math.log(truth[a] / truth[b])) > 0.5
    ]
    right = sum((score[a] < score[b]) == (truth[a] < truth[b]) for a, b in pairs)
    assert right > 0.85 * len(pairs)


def test_a_prior_that_is_right_saves_trials(ranker):
    model = CostModel(features, ranker)
    first = [GRID[k] for k in model.pick(GRID, 4)]
    assert min(map(seconds, first)) < 1.2 * min(map(seconds, GRID))
    model.learn(scored(first))
    model.learn(scored(draw(12)))
    model.predict(GRID)
    assert model.belief > 0


def test_a_prior_that_is_wrong_is_dropped(ranker):
    def of(state):
        return 1 / seconds(state)

    model = CostModel(features, ranker)
    model.learn(scored(draw(40), of))
    model.predict(GRID)
    assert model.belief == 0
    left = [s for s in GRID if s not in draw(40)]
    best = min(of(left[k]) for k in model.pick(left, 8))
    assert best < 1.5 * min(map(of, GRID))


def test_training_is_reproducible(ranker):
    again = Ranker.train([(features(GRID), np.asarray([seconds(s) for s in GRID]))], trees=60)
    assert again.text == ranker.text


def test_a_shape_learnt_elsewhere_is_where_fitting_starts():
    shape = shape_of(features(GRID), np.asarray([seconds(s) for s in GRID]))
    model = CostModel(features, shape=shape)
    model.learn(scored(draw(6)))
    model.pick(GRID, 2)
    assert model.shape == shape  # too few measurements to change it


def test_grades_follow_speed():
    found = grades(np.asarray([1.0, 2.0, 4.0, math.inf]))
    assert list(found) == [30, 15, 7, 0]
    assert not grades(np.asarray([math.inf, math.inf])).any()


@pytest.mark.parametrize(
    "tasks",
    [
        [],
        [(np.zeros((1, 2)), np.ones(1))],
        [(np.zeros((2, 2)), np.ones(2)), (np.zeros((2, 3)), np.ones(2))],
    ],
)
def test_nothing_to_train_on(tasks):
    with pytest.raises(ModelError, match="needs tasks to learn from"):
        Ranker.train(tasks)
