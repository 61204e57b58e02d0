"""What follows about whole numbers, and what is not believed to follow."""

from __future__ import annotations

from whet.ir.types import Poly
from whet.rewrite.integers import Integers, negation

A, B, C, X = (Poly.symbol(n) for n in ("A", "B", "C", "@x"))


def test_products_are_linear_with_lemmas() -> None:
    """x < A implies x*C + c < A*C for c < C."""
    c = Poly.symbol("@c")
    known = frozenset({X, A - 1 - X, c, C - 1 - c})
    integers = Integers({"A", "C"})
    assert integers.implied(known, A * C - 1 - (X * C + c))
    assert not integers.implied(known, A * C - 2 - (X * C + c))


def test_facts_that_are_only_spoken_of_are_not_believed() -> None:
    """A bound that is asked for must not count as known while it is being proven."""
    quotient = (X * A) // B
    known = frozenset({X})
    assert not Integers({"A", "B"}).implied(known, A - 1 - quotient)
    assert Integers({"A", "B"}).implied(known | {B - 1 - X}, A - 1 - quotient)


def test_what_is_unrelated_is_not_asked_about() -> None:
    integers = Integers({"A", "B"})
    y = Poly.symbol("@y")
    assert not integers.implied(frozenset({X, A - 1 - X}), y)
    assert integers.feasible(frozenset({X, A - 1 - X, y}))
    assert not integers.feasible(frozenset({X, A - 1 - X, y, negation(y)}))
    assert not integers.feasible(frozenset({-1, X}))


def test_plain_answers_need_no_solver() -> None:
    integers = Integers({"A", "B"})
    assert integers.implied(frozenset(), A + B - 2)
    assert integers.implied(frozenset({X}), X + A)
    assert integers.queries == 0
    assert integers.decided(frozenset({X}), X + 1) is True
    assert integers.decided(frozenset({X}), -X - 1) is False
    assert integers.decided(frozenset({X}), X - 1) is None
