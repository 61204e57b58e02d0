"""What follows about whole numbers, and what is not believed to follow."""

from __future__ import annotations

from whet.ir.types import Poly
from whet.rewrite.integers import Integers, negation
from whet.rewrite.witness import Witnesses

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


def test_an_example_that_was_seen_answers_again() -> None:
    """A second no is not asked for, a yes always is; an example with other numbers is none."""
    integers = Integers({"A", "B"})
    known = frozenset({X, A - 1 - X})
    assert not integers.implied(known, A - 2 - X)
    asked = integers.queries
    assert not integers.implied(known, A - 2 - X - X + X)
    assert not integers.implied(known, A * B - B - 1 - X * B)
    assert integers.queries <= asked + 1
    assert integers.implied(known, A * B - B - X * B)
    assert not integers.implied(known | {A - 5}, A - 2 - X)


def test_what_a_solver_takes_for_numbers_is_looked_at() -> None:
    """Its products and quotients are unknowns of their own: what they say may be no example."""
    seen = Witnesses({"A"})
    seen.keep({"A": 3, "@x": 2}, [A - X], A * X - 7)
    assert seen.against([A - X], A * X - 7)
    assert not seen.against([A - X], A * X - 6)
    seen.keep({"A": 0}, [A], A - 1)  # A is at least 1
    seen.keep({"A": 4, "@x": 0}, [-X], A // X - 9)  # divided by 0
    assert not seen.against([-X], A // X - 9)
    assert not seen.against([A - 4], A * X - 7)
