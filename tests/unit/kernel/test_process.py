"""Gaussian processes against their definition."""

from __future__ import annotations

import numpy as np
import pytest

from whet.kernel.process import Process, Shape, fit


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_it_is_the_conditional_of_a_joint_normal(rng):
    """Means and deviations against the textbook formula with an explicit inverse."""
    points, values, new = rng.normal(size=(12, 3)), rng.normal(size=12), rng.normal(size=(5, 3))
    shape = Shape((0.7, 1.3, 2.0), noise=0.1)

    def kernel(a, b):
        r = np.sqrt(5 * (((a[:, None] - b[None]) / np.array(shape.lengths)) ** 2).sum(-1))
        return (1 + r + r * r / 3) * np.exp(-r)

    inverse = np.linalg.inv(kernel(points, points) + 0.1 * np.eye(12))
    scale = values @ inverse @ values / 12
    cross = kernel(new, points)
    mean, deviation = Process(points, values, shape).predict(new)
    np.testing.assert_allclose(mean, cross @ inverse @ values, rtol=1e-9)
    expected = scale * (1 - np.einsum("ij,jk,ik->i", cross, inverse, cross))
    np.testing.assert_allclose(deviation**2, expected, rtol=1e-6)


def test_it_doubts_what_is_far_away(rng):
    points = rng.uniform(-1, 1, size=(30, 2))
    process = fit(points, points[:, 0])
    _, near = process.predict(points)
    _, far = process.predict(points + 20)
    assert near.max() < 0.3 * far.min()


def test_fitting_finds_what_matters(rng):
    """A feature that explains nothing gets a long length; and what is held out is predicted."""
    points = rng.normal(size=(80, 3))
    values = np.sin(2 * points[:, 0]) + 0.5 * points[:, 1]
    process = fit(points, values, rounds=4)
    first, second, third = process.shape.lengths
    assert third > 2 * first
    assert third > second
    assert process.misfit < Process(points, values, Shape.prior(3)).misfit
    new = rng.normal(size=(200, 3)) * 0.8
    mean, _ = process.predict(new)
    truth = np.sin(2 * new[:, 0]) + 0.5 * new[:, 1]
    assert np.abs(mean - truth).mean() < 0.1 * np.abs(truth).mean()


def test_equal_points_with_unequal_values(rng):
    """Measurements repeat with noise; the noise is found, and the mean lies between."""
    points = np.repeat(rng.normal(size=(10, 2)), 4, axis=0)
    values = points[:, 0] + 0.3 * rng.normal(size=40)
    process = fit(points, values, rounds=4)
    assert process.shape.noise > 0.02
    assert np.isfinite(process.predict(points)[0]).all()


def test_rounds_of_zero_take_the_shape_as_it_is(rng):
    shape = Shape((1.0, 2.0), noise=0.05)
    points = rng.normal(size=(8, 2))
    assert fit(points, points[:, 0], shape, rounds=0).shape == shape
