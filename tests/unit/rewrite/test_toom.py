"""Convolutions with fewer products: the matrices, and the rules that are made of them."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whet.rewrite.conjecture import Conjecture, Form, Statement
from whet.rewrite.prove import Floating, Prover
from whet.rewrite.refute import refute
from whet.rewrite.rule import Rule
from whet.rewrite.toom import BLOCKS, RECASTS, convolution, matrices

numbers = st.fractions(min_value=-9, max_value=9, max_denominator=7)


@pytest.mark.parametrize(("m", "r"), [(1, 3), (2, 3), (4, 3), (2, 5), (3, 2), (3, 1)])
@given(data=st.data())
def test_few_products_make_a_convolution(m: int, r: int, data: st.DataObject) -> None:
    a, g, b = matrices(m, r)
    n = m + r - 1
    d = data.draw(st.lists(numbers, min_size=n, max_size=n))
    w = data.draw(st.lists(numbers, min_size=r, max_size=r))

    def times(matrix: tuple[tuple[Fraction, ...], ...], vector: list[Fraction]) -> list[Fraction]:
        return [
            sum((c * v for c, v in zip(row, vector, strict=True)), Fraction(0)) for row in matrix
        ]

    products = [x * y for x, y in zip(times(g, w), times(b, d), strict=True)]
    assert len(products) == n < m * r or m == 1 or r == 1
    direct = [sum((d[i + k] * w[k] for k in range(r)), Fraction(0)) for i in range(m)]
    assert times(a, products) == direct


def test_points_run_out() -> None:
    with pytest.raises(ValueError, match="points"):
        matrices(4, 5)


@pytest.mark.parametrize("name", RECASTS)
def test_rules_are_proven_for_all_sizes(name: str) -> None:
    found = Prover().prove(Statement(RECASTS[name], Form()))
    assert isinstance(found, Rule)
    assert found.proof.coverage == "all-shapes"
    moves = Floating.BIT_EXACT if "block" not in name else Floating.CANCELLING
    assert found.proof.floating is moves


@pytest.mark.parametrize("at", range(0, 60, 7))
def test_a_wrong_sign_is_refuted(at: int) -> None:
    left, _, right = BLOCKS[0].text.partition(" == ")
    signs = [k for k in range(len(right)) if right[k : k + 3] in (" + ", " - ")]
    places = [k for k in signs if right[k - 2 : k] not in ("*P", "*Q")]  # of values, not of sizes
    k = places[at % len(places)]
    other = " - " if right[k : k + 3] == " + " else " + "
    wrong = Conjecture(f"{left} == {right[:k]}{other}{right[k + 3 :]}")
    counterexample, _ = refute(Statement(wrong, Form()), 8)
    assert counterexample is not None


def test_other_blocks_can_be_stated() -> None:
    for m, r in ((4, 3), (2, 5), (3, 3)):
        c = convolution(m, r, bias=False)
        counterexample, trials = refute(Statement(c, Form()), 2)
        assert counterexample is None
        assert trials > 0
