"""A Gaussian process: what few measurements say of the states that were not measured.

    y(x) = m(x) + f(x) + noise        f ~ GP(0, s² k)
    k(a, b) = (1 + √5 r + 5 r² / 3) exp(-√5 r),   r² = Σ ((aᵢ - bᵢ) / ℓᵢ)²        Matérn 5/2

after Rasmussen and Williams, Gaussian Processes for Machine Learning (2006), sections 2.2, 4.2 and
5.4.1: scale s² in closed form, lengths ℓ and the noise's share by coordinate steps uphill in the
marginal likelihood under a log-normal prior. With some hundreds of points a fit takes milliseconds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]

LENGTH = 1.5  # the prior's median, in standard deviations of a feature
SPREAD = 0.9  # standard deviation of the prior of log length
NOISE = 0.02  # of the first guess, as a share of the variance
LEAST_NOISE = 1e-4
_STEPS = (0.6, 1.6)


@dataclass(frozen=True, slots=True)
class Shape:
    """Hyperparameters: a length for each feature, and the share of noise."""

    lengths: tuple[float, ...]
    noise: float = NOISE

    @classmethod
    def prior(cls, features: int) -> Shape:
        """Where a search for better ones starts."""
        return cls((LENGTH,) * features)


class Process:
    """A Gaussian process fitted to points.

    Args:
        points: (n, d), each feature of about unit variance.
        values: (n,), finite, their mean function already taken off.
        shape: hyperparameters, as they are.
    """

    def __init__(self, points: Array, values: Array, shape: Shape) -> None:
        self.points, self.shape = points, shape
        self._scaled = points / np.asarray(shape.lengths)
        covariance = _matern(self._scaled, self._scaled)
        covariance[np.diag_indices_from(covariance)] += shape.noise
        self._factor = np.linalg.cholesky(covariance)
        white = _solve(self._factor, values)
        self._weights = _solve(self._factor.T, white)
        self.variance = float(white @ white) / max(len(values), 1) + 1e-12
        self._half_log_det = float(np.log(np.diag(self._factor)).sum())

    @property
    def misfit(self) -> float:
        """Negative log of the posterior of the hyperparameters, but for a constant."""
        logs = (np.log(self.shape.lengths) - np.log(LENGTH)) / SPREAD
        fit = 0.5 * len(self.points) * np.log(self.variance) + self._half_log_det
        return float(fit + 0.5 * (logs @ logs))

    def predict(self, points: Array) -> tuple[Array, Array]:
        """Means and standard deviations of f at points (m, d): two arrays (m,)."""
        cross = _matern(points / np.asarray(self.shape.lengths), self._scaled)
        shrunk = _solve(self._factor, cross.T)
        left = np.maximum(1.0 - (shrunk * shrunk).sum(0), 1e-9)
        return cross @ self._weights, np.sqrt(self.variance * left)


def fit(points: Array, values: Array, shape: Shape | None = None, rounds: int = 2) -> Process:
    """The process whose hyperparameters explain the values best, near those given.

    Args:
        points: (n, d).
        values: (n,).
        shape: where to start; those of an earlier fit make it cheap.
        rounds: passes over the coordinates; 0 takes `shape` as it is.
    """
    best = Process(points, values, shape or Shape.prior(points.shape[1]))
    for _ in range(rounds):
        for k in range(len(best.shape.lengths)):
            for step in _STEPS:
                lengths = list(best.shape.lengths)
                lengths[k] *= step
                best = _better(best, points, values, replace(best.shape, lengths=tuple(lengths)))
        for step in (0.3, 3.0):
            noise = max(LEAST_NOISE, best.shape.noise * step)
            best = _better(best, points, values, replace(best.shape, noise=noise))
    return best


def _better(best: Process, points: Array, values: Array, shape: Shape) -> Process:
    try:
        other = Process(points, values, shape)
    except np.linalg.LinAlgError:  # lengths so long that all points are one
        return best
    return other if other.misfit < best.misfit else best


def _matern(a: Array, b: Array) -> Array:
    squared = (a * a).sum(1)[:, None] + (b * b).sum(1) - 2.0 * (a @ b.T)
    r = np.sqrt(5.0 * np.maximum(squared, 0.0))
    result: Array = (1.0 + r + r * r / 3.0) * np.exp(-r)
    return result


def _solve(a: Any, b: Any) -> Array:
    result: Array = np.linalg.solve(a, b)
    return result
