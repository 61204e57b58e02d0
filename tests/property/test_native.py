"""Random models as native programs compute what they do in float64; `bench.fuzz` has the many."""

from __future__ import annotations

import pytest

from bench.fuzz import check, page
from bench.fuzz.models import model


# 24 begins at the largest whole number; 101 selects lanes by a scalar; 110 sees otherwise what it
# computes again; 418 pads at the end only: an index by itself, and yet out of bounds.
@pytest.mark.parametrize("seed", [*range(6), 24, 101, 110, 418])
def test_random_models(seed: int) -> None:
    found = check(model(seed))
    assert not found.wrong, found.reason


@pytest.mark.full
@pytest.mark.parametrize("seed", range(8, 60))
def test_more_random_models(seed: int) -> None:
    found = check(model(seed))
    assert not found.wrong, found.reason


def test_a_model_is_the_same_every_time() -> None:
    first, second = model(3), model(3)
    assert first.graph == second.graph
    assert first.values.keys() == second.values.keys()
    assert len(first.operators) >= 5


def test_a_page_tells_what_was_wrong() -> None:
    row = {"seed": 7, "reason": "relative error 1.0e+00"}
    counts = {"models": 9, "operators": 80, "generated": 30, "wrong": 1}
    text = page({**counts, "worst": 1e-6, "without": {}, "records": [row]})
    assert "9 random models of 80 operators" in text
    assert "1 wrong" in text
    assert "30 groups of operators in generated kernels" in text
    assert "seed 7: relative error 1.0e+00" in text
