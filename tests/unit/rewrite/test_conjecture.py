"""The language of conjectures, and the formulas in it."""

from __future__ import annotations

import ast

import pytest

from whet.ir.types import Poly
from whet.rewrite import formula
from whet.rewrite.conjecture import Conjecture, Form, Statement, build
from whet.rewrite.formula import ConjectureError, Unbound

MERGE = Conjecture(
    "merge: (linear(x[*B, K], w.i[O.i, K]) for i in range(N)) == (slice(linear(x, "
    "concat(*(w.j for j in range(N)), axis=0)), -1, sum(O.j for j in range(i)), "
    "sum(O.j for j in range(i + 1)), 1) for i in range(N))"
)


def expression(text: str) -> ast.expr:
    return ast.parse(text, mode="eval").body


def test_both_sides_are_graphs_over_symbols() -> None:
    s = Statement(Conjecture("bias: linear(x[*B, K], w[O, K]) + c[O] == linear(x, w, c)"),
                  Form(ranks=(("B", 2),)))  # fmt: skip
    leaves = s.leaves(s.symbols)
    (left,) = build(s.sides.left, leaves, s.symbols)
    (right,) = build(s.sides.right, leaves, s.symbols)
    assert left.shape == tuple(map(Poly.symbol, ("B0", "B1", "O")))
    assert left.type == right.type
    assert (left.op, right.op) == ("add", "linear")


def test_families_unroll_to_any_width() -> None:
    s = Statement(MERGE, Form(4, (("B", 1),)))
    assert len(s.sides.left) == len(s.sides.right) == 4
    assert {"O.0", "O.3"} <= set(s.sides.sizes)
    leaves = s.leaves(s.symbols)
    last = build(s.sides.right, leaves, s.symbols)[3]
    assert str(last.attr("stop")) == "O.0 + O.1 + O.2 + O.3"


def test_names_that_stand_for_tuples_take_their_length_from_the_record() -> None:
    c = Conjecture("c: conv2d(x[N, C, H, W], w[O, C, R, Q], groups=1, stride=S, padding=p, "
                   "dilation=(1, 1)) == conv2d(x, w, None, 1, S, p, (1, 1))")  # fmt: skip
    scope = Statement(c).symbols
    assert scope["S"] == (Poly.symbol("S0"), Poly.symbol("S1"))
    assert c.sides().scalars == ("p",)
    assert "S" in c.sides().sizes


def test_axes_are_structural() -> None:
    c = Conjecture(
        "p: permute(permute(x[*B], dims=p), dims=q) == permute(x, tuple(p[j] for j in q))"
    )
    assert c.sides().structural == ("q", "p")


def test_what_a_formula_divides_by_is_fixed() -> None:
    c = Conjecture("d: x[N] / s == x * s + 0 * rms_norm(x, None, size=(N,), eps=1 / s)")
    assert c.sides().structural == ("s",)


def test_forms_are_part_of_the_statement() -> None:
    form = Form(2, (("B", 1),), (("a", 0),), ("c",), ("m[0]",))
    assert str(form) == "width 2, rank of B 1, a = 0, without c, m[0] is 1"
    assert Statement(MERGE, Form(2, (("B", 1),))).text.endswith("[width 2, rank of B 1]")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no colon", "not a conjecture"),
        ("a: x[N] + 0", "not a conjecture"),
        ("a: x[N] + == x", "does not parse"),
        ("a: frobnicate(x[N]) == x", "not part of a conjecture"),
        ("a: x + 0 == x", "no shape where it first occurs"),
        ("a: softmax(x[N]) == x", "other attributes"),
        ("a: linear(x[N]) == x", "lacks an operand"),
    ],
)
def test_errors_say_what_and_where(text: str, message: str) -> None:
    with pytest.raises(ConjectureError, match=message):
        Conjecture(text)


def test_two_names_never_share_a_symbol() -> None:
    s = Statement(Conjecture("a: x[*B, B0] + 0 == x"), Form(ranks=(("B", 1),)))
    with pytest.raises(ConjectureError, match="B0"):
        _ = s.symbols


def test_formulas_compute_with_numbers_and_symbols() -> None:
    assert formula.evaluate(expression("sum(O.j for j in range(2)) + 1"), {"O.0": 2, "O.1": 3}) == 6
    scope = {"p": (2, 0, 1), "q": (1, 0, 2)}
    composed = formula.evaluate(expression("tuple(p[j] for j in q)"), scope)
    assert composed == (0, 2, 1)
    assert str(formula.evaluate(expression("2*N + 1"), {"N": Poly.symbol("N")})) == "1 + 2*N"
    assert formula.evaluate(expression("a <= b < 5"), {"a": 1, "b": 4}) is True
    with pytest.raises(Unbound):
        formula.evaluate(expression("N"), {})
    with pytest.raises(ConjectureError, match="not a formula"):
        formula.evaluate(expression("open('x')"), {})


def test_formulas_are_solved_for_one_unknown() -> None:
    assert formula.solve(expression("G*C"), 12, {"G": 3}) == {"C": 4}
    assert formula.solve(expression("G*C"), 13, {"G": 3}) is None
    assert formula.solve(expression("2*D"), 8, {}) == {"D": 4}
    assert formula.solve(expression("N"), 5, {"N": 5}) == {}
    assert formula.solve(expression("N"), 5, {"N": 4}) is None
    with pytest.raises(Unbound):
        formula.solve(expression("G*C"), 12, {})
    with pytest.raises(Unbound):
        formula.solve(expression("N*N"), 9, {})
