"""Stages of about equal time, and what a plan file says."""

from __future__ import annotations

import itertools
import random

from whet.parallel.expert import divisors
from whet.parallel.strategy import balanced


def worst(times, cuts):
    return max(sum(times[k][a:b]) for k, (a, b) in enumerate(itertools.pairwise(cuts)))


def test_stages_are_balanced_as_well_as_can_be():
    draw = random.Random(1)
    for _ in range(60):
        n, parts = draw.randint(3, 8), draw.randint(1, 3)
        row = [draw.randint(1, 9) for _ in range(n)]
        speeds = [draw.choice((1, 2, 5)) for _ in range(parts)]
        times = [[w * s for w in row] for s in speeds]
        cuts = balanced(times)
        assert cuts[0] == 0
        assert cuts[-1] == n
        assert all(a < b for a, b in itertools.pairwise(cuts))
        best = min(worst(times, (0, *c, n)) for c in itertools.combinations(range(1, n), parts - 1))
        assert worst(times, cuts) == best


def test_divisors():
    assert divisors(12) == [1, 2, 3, 4, 6, 12]
