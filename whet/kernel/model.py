"""The cost model of a search: what was learnt elsewhere, and what this task says of itself.

    log seconds of a state = a · prior(features) + b + residual(features)

The prior is a ranking model over features that mean the same on every task (`Ranker`: only the
order within a task counts, for no task's seconds are another's). The residual
is a Gaussian process over the task's own measurements, and has the doubt that the search explores
by. How far the prior is believed, `a`, is fitted to the measurements as they come in, so that its
share decays where it is wrong.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from whet.errors import WhetError
from whet.kernel.process import Array, Process, Shape, fit
from whet.search import Scored

TOP = 0.75  # what is slower than this share of the states need not be told apart
REFIT = 8  # measurements between two looks at the hyperparameters
CROWD = 1.0  # features nearer than this, in standard deviations, are one place to look
ALONE = 2.0  # the same while all that is known was learnt elsewhere, and may be wrong here
TRUST = 8  # measurements after which what was learnt elsewhere counts half
ENOUGH = 3  # states that ran, before anything is said of the others
LEVELS = 31  # grades of relevance that lambdarank tells apart


class ModelError(WhetError):
    """A model that cannot be trained or read."""


class Prior(Protocol):
    """Scores of states, small for fast ones; their scale means nothing."""

    def score(self, features: Array) -> Array: ...


@dataclass(frozen=True, slots=True)
class Ranker:
    """Boosted trees (LightGBM) that order the states of a task.

    Where no feature says what a state should take, they are grown for the order alone (Burges 2010,
    LambdaMART). Where one does, they learn by which factor it is wrong, relative to the task's
    other states: a good estimate orders states of tasks that nobody measured, and the trees need
    only mend it.

    Attributes:
        text: the trees.
        base: which feature is the binary logarithm of estimated seconds, if one is.
    """

    text: str
    base: int | None = None

    @classmethod
    def train(
        cls,
        tasks: Sequence[tuple[Array, Array]],
        *,
        base: int | None = None,
        trees: int = 200,
        seed: int = 0,
    ) -> Ranker:
        """Learns the order of states within each task.

        Args:
            tasks: features (n, d) and seconds (n,), infinite for what did not run, of each.
            base: see the class.
            trees: how many; training time is linear in it.
            seed: the same seed and tasks give the same model.

        Raises:
            ModelError: no task has two states, or features differ in number.
        """
        usable = [(x, s) for x, s in tasks if len(s) > 1]
        if not usable or len({x.shape[1] for x, _ in usable}) != 1:
            raise ModelError(
                "a ranking model needs tasks to learn from",
                expected="tasks of two states or more, with the same features",
                got=[x.shape for x, _ in tasks],
            )
        lightgbm = _lightgbm()
        x = np.concatenate([x for x, _ in usable])
        common = {
            "learning_rate": 0.1, "feature_fraction": 0.8, "seed": seed, "deterministic": True,
            "force_row_wise": True, "num_threads": 1, "verbosity": -1,
        }  # fmt: skip
        if base is None:
            y = np.concatenate([grades(s) for _, s in usable])
            data = lightgbm.Dataset(x, y, group=[len(s) for _, s in usable])
            own = {
                "objective": "lambdarank", "lambdarank_truncation_level": 64, "num_leaves": 31,
                "label_gain": [2.0 ** (g / 4) - 1 for g in range(LEVELS)], "min_data_in_leaf": 5,
            }  # fmt: skip
        else:
            y = np.concatenate([missing(s, x[:, base]) for x, s in usable])
            data = lightgbm.Dataset(x, y)
            own = {
                "objective": "regression", "num_leaves": 31, "feature_fraction": 0.5,
                "min_data_in_leaf": min(100, max(5, len(y) // 50)),
            }  # fmt: skip
        booster = lightgbm.train(common | own, data, num_boost_round=trees)
        return cls(booster.model_to_string(), base)

    @property
    def features(self) -> int:
        """How many it reads.

        Raises:
            ModelError: LightGBM is not installed, or the text is no model.
        """
        return int(_booster(self.text).num_feature())

    def score(self, features: Array) -> Array:
        """Scores (n,) of features (n, d)."""
        found = np.asarray(_booster(self.text).predict(features, num_threads=1), dtype=np.float64)
        return -found if self.base is None else features[:, self.base] * math.log(2) + found


def missing(seconds: Array, estimate: Array) -> Array:
    """By which factor an estimate is too small, as logarithms about the task's median.

    Args:
        seconds: (n,), infinite for what did not run: that counts as the slowest that did.
        estimate: (n,), binary logarithms.
    """
    ran = np.isfinite(seconds)
    if not ran.any():
        return np.zeros(len(seconds))
    logs = np.log(np.where(ran, seconds, seconds[ran].max())) - estimate * math.log(2)
    result: Array = logs - np.median(logs)
    return result


def grades(seconds: Array) -> Array:
    """Relevance of each state of a task: 0 for the slowest half or what did not run, more for fast.

    Grades follow the share of the best state's speed that a state reaches.
    """
    finite = seconds[np.isfinite(seconds)]
    if not finite.size:
        return np.zeros(len(seconds))
    speed = np.where(np.isfinite(seconds), finite.min() / seconds, 0.0)
    return np.asarray(np.floor(speed * (LEVELS - 1)), dtype=np.float64)


@functools.lru_cache(maxsize=4)
def _booster(text: str) -> Any:
    lightgbm = _lightgbm()
    try:
        return lightgbm.Booster(model_str=text)
    except lightgbm.basic.LightGBMError as fault:
        raise ModelError("this is no model of LightGBM", got=fault) from fault


def _lightgbm() -> Any:
    try:
        import lightgbm
    except ImportError as fault:
        raise ModelError(
            "the ranking model needs LightGBM", got=fault, hint="pip install whet[tune]"
        ) from fault
    return lightgbm


@dataclass
class CostModel:
    """An advisor of `whet.search.Led`.

    Args:
        features: of states, (n, d); features of one task need not have unit variance.
        prior: what was learnt elsewhere, if anything was.
        relations: the features that the prior reads, where they are others.
        shape: hyperparameters of the residual that suited another task of the same features.

    Attributes:
        belief: how far the prior is believed at the moment: its coefficient, in the residual's
            standard deviations.
    """

    features: Callable[[Sequence[Any]], Array]
    prior: Prior | None = None
    relations: Callable[[Sequence[Any]], Array] | None = None
    shape: Shape | None = None
    belief: float = field(default=0.0, init=False)
    _x: list[Array] = field(default_factory=list, init=False)
    _scores: list[float] = field(default_factory=list, init=False)
    _seconds: list[float] = field(default_factory=list, init=False)
    _scale: tuple[Array, Array] | None = field(default=None, init=False)
    _fitted: int = field(default=0, init=False)

    def learn(self, found: Sequence[Scored[Any]]) -> None:
        """Take in measurements."""
        if found:
            states = [s.state for s in found]
            self._x += list(self.features(states))
            self._scores += list(self._score(states))
            self._seconds += [s.seconds for s in found]

    def predict(self, states: Sequence[Any]) -> tuple[Array, Array]:
        """Log seconds and their doubt, (n,) each; only their order means something before
        anything was measured."""
        return self._predict(self.features(states), self._score(states))

    def _score(self, states: Sequence[Any]) -> Array:
        """What the prior says of states."""
        if self.prior is None:
            return np.zeros(len(states))
        return self.prior.score((self.relations or self.features)(states))

    def pick(self, states: Sequence[Any], count: int) -> Sequence[int]:
        """Places of the `count` states with the most expected improvement, unlike one another.

        Expected improvement after Jones, Schonlau and Welch (1998), section 4.1.
        """
        if not states:
            return []
        x = self.features(states)
        if self._scale is None:  # what a state's features are like, before any is chosen
            self._scale = x.mean(0), np.where(x.std(0) > 1e-9, x.std(0), 1.0)
        mean, doubt = self._predict(x, self._score(states))
        ran = [s for s in self._seconds if math.isfinite(s)]
        if len(ran) < ENOUGH:
            order, crowd = np.argsort(mean, kind="stable"), ALONE
        else:
            gain = _improvement(math.log(min(ran)) - mean, doubt)
            order, crowd = np.argsort(-gain, kind="stable"), CROWD
        return _apart(x / self._scale[1], order, count, crowd)

    def _predict(self, x: Array, prior: Array) -> tuple[Array, Array]:
        seconds = np.asarray(self._seconds)
        ran = np.isfinite(seconds)
        if ran.sum() < ENOUGH:
            return prior, np.ones(len(x))
        known = np.asarray(self._x)
        # What did not run counts as the slowest that did; the slow ones need not be told apart.
        logs = np.log(np.where(ran, seconds, seconds[ran].max()))
        logs = np.minimum(logs, max(np.quantile(logs, TOP), logs.min() + 0.7))
        mean_known, mean_new = self._mean(logs, prior)
        center, scale = self._scale or (known.mean(0), known.std(0) + 1e-9)
        process = self._process((known - center) / scale, logs - mean_known)
        residual, doubt = process.predict((x - center) / scale)
        return mean_new + residual, doubt

    def _mean(self, logs: Array, prior: Array) -> tuple[Array, Array]:
        """The mean function at known and at new states: the prior scaled to what was measured."""
        base = float(np.median(logs))
        if self.prior is None:
            return np.full(len(logs), base), np.full(len(prior), base)
        scores = np.asarray(self._scores)
        center = float(scores.mean())
        spread = scores - center
        # Ridge: with few measurements the prior is believed as much as it explains of them.
        slope = float(spread @ (logs - logs.mean())) / (float(spread @ spread) + 1e-6)
        slope = max(slope, 0.0) * TRUST / (TRUST + len(logs))
        self.belief = slope
        base = float(logs.mean())
        return base + slope * spread, base + slope * (prior - center)

    def _process(self, points: Array, values: Array) -> Process:
        stale = self.shape is None or len(values) - self._fitted >= REFIT
        process = fit(points, values, self.shape, rounds=2 if stale else 0)
        if stale:
            self.shape, self._fitted = process.shape, len(values)
        return process


def shape_of(features: Array, seconds: Array, *, most: int = 256, seed: int = 0) -> Shape:
    """Hyperparameters that suit a task which was measured: where another such task may start.

    Args:
        features: (n, d).
        seconds: (n,), infinite for what did not run.
        most: states looked at; drawn at random where there are more.
        seed: of that draw.
    """
    rng = np.random.default_rng(seed)
    some = rng.permutation(np.flatnonzero(np.isfinite(seconds)))[:most]
    x, logs = features[some], np.log(seconds[some])
    points = (x - features.mean(0)) / np.where(features.std(0) > 1e-9, features.std(0), 1.0)
    return fit(points, logs - np.median(logs), rounds=4).shape


def _improvement(gap: Array, doubt: Array) -> Array:
    """Expected improvement where the mean lies `gap` below the best, give or take `doubt`."""
    z = gap / doubt
    density = np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    below = np.asarray([0.5 * math.erfc(-v / math.sqrt(2)) for v in z])
    result: Array = gap * below + doubt * density
    return result


def _apart(x: Array, order: NDArray[np.intp], count: int, crowd: float) -> list[int]:
    """The first places of `order` that crowd none before them; then the first of the others."""
    chosen: list[int] = []
    for k in order[: 200 * count]:
        if len(chosen) == count:
            break
        if all(np.square(x[k] - x[c]).sum() > crowd**2 for c in chosen):
            chosen.append(int(k))
    taken = set(chosen)
    others = (int(k) for k in order if int(k) not in taken)
    return [*chosen, *islice(others, count - len(chosen))]
