"""Schedules around the drafts: many, distinct, replayable, and all of them right."""

from __future__ import annotations

import random

import numpy as np
import pytest

from tests.property.test_schedule import clusters, data
from whet.ir.graph import Graph, apply, leaf
from whet.ir.types import DType, TensorType
from whet.kernel.interpret import run
from whet.kernel.lower import lower
from whet.kernel.schedule import Illegal, read, show
from whet.kernel.schedule import apply as applied
from whet.kernel.text import parse
from whet.kernel.vary import ENTRIES, WRITTEN, Variations, divisors, entries, written
from whet.machine.target import Target

TARGET = Target("avx2", 32, 16, 2)


def variations(name: str) -> Variations:
    k = lower(clusters()[name])
    return Variations(k, frozenset(b.name for b in k.inputs if b.name == "x1"), TARGET)


def product() -> Variations:
    """Large enough to be cut into tiles."""
    a = leaf("input", "a", TensorType(DType.f32, (40, 48)))
    w = leaf("parameter", "w", TensorType(DType.f32, (96, 48)))
    k = lower(Graph((a,), (apply("relu", apply("linear", a, w, None)),)))
    return Variations(k, frozenset({"x1"}), TARGET)


@pytest.mark.parametrize("name", ["linear", "window", "norm", "softmax", "pool", "heads"])
def test_every_schedule_computes_the_kernel(name: str) -> None:
    v = variations(name)
    arrays = data(v.kernel, 0)
    want = run(v.kernel, arrays)
    rng = random.Random(0)
    found = {d.kernel.digest: d for d in (v.scattered(rng) for _ in range(24))}
    assert len(found) > 10
    for d in list(found.values())[:8]:
        again = applied(v.kernel, read(show(d.schedule)))
        assert not isinstance(again, Illegal)
        assert again == d.kernel
        assert written(d.kernel) <= WRITTEN
        assert entries(d.kernel.body) <= ENTRIES
        got = run(d.kernel, arrays)
        for y in want:
            np.testing.assert_allclose(got[y], want[y], rtol=1e-9, atol=1e-9, err_msg=str(d))


def test_a_mutant_is_another_kernel_and_a_crossing_neither_parent() -> None:
    v, rng = product(), random.Random(1)
    a, b = v.known[0], v.tiled(rng)
    assert b is not None
    for _ in range(10):
        child = v.mutant(a, rng)
        assert child is not None
        assert child.kernel != a.kernel
    crossings = [c for c in (v.crossing(a, b, rng) for _ in range(20)) if c is not None]
    assert crossings
    assert all(c.kernel not in (a.kernel, b.kernel) for c in crossings)


def test_neighbours_differ_in_one_number() -> None:
    v = product()
    of = next(d for d in v.known if "split" in show(d.schedule) or "peel" in show(d.schedule))
    found = list(v.neighbours(of))
    assert found
    assert all(d.kernel != of.kernel for d in found)


def test_the_same_numbers_give_the_same_schedules() -> None:
    one, two = ([v.scattered(random.Random(7)).schedule] for v in map(variations, ["norm"] * 2))
    assert one == two


def test_what_is_written_out_and_entered() -> None:
    k = parse(
        """x: input[f32, 8, 4, 6]
y: output[f32, 8, 4, 6]
for i in range(8):
    for j in parallel(4):
        for r in unroll(6):
            y[i, j, r] = x[i, j, r]
"""
    )
    assert (written(k), entries(k.body)) == (6, 8)
    assert divisors(12) == [1, 2, 3, 4, 6, 12]
