"""Expressions: what is simplified when they are built, and what is read off them."""

from __future__ import annotations

import math

import pytest

from whet.ir.expr import (
    ONE,
    ZERO,
    Call,
    Index,
    Load,
    Num,
    Reduce,
    Select,
    affine,
    call,
    free,
    loads,
    rebuild,
    select,
    show,
    substitute,
    walk,
)
from whet.ir.record import Record
from whet.ir.types import Poly

i, j, k = Index("i"), Index("j"), Index("k")
N = Poly.symbol("N")
X = Load("x", (i, j))


@pytest.mark.parametrize(
    ("built", "simple"),
    [
        (call("+", i, ZERO), i), (call("+", ZERO, i), i), (call("-", i, ZERO), i),
        (call("*", i, ONE), i), (call("*", ONE, i), i), (call("*", i, ZERO), ZERO),
        (call("//", i, ONE), i), (call("/", X, ONE), X), (call("%", i, ONE), ZERO),
        (call("+", Num(2), Num(3)), Num(5)), (call("**", Num(2), Num(3)), Num(8)),
        (call("//", Num(7), Num(2)), Num(3)), (call("%", Num(7), Num(2)), ONE),
        (call("*", Num(N), Num(2)), Num(N * 2)), (call("//", Num(N * 4), Num(2)), Num(N * 2)),
        (call("-", i), Call("*", (Num(-1), i))),
        (call("<", Num(1), Num(2)), ONE), (call("==", Num(N), Num(N)), ONE),
        (call("<=", Num(N), Num(N)), ONE), (call("not", ZERO), ONE),
        (call("and", ONE, X), X), (call("and", X, ZERO), ZERO),
        (call("or", ZERO, X), X), (call("or", X, ONE), ONE),
        (select(ONE, X, ZERO), X), (select(ZERO, X, i), i),
    ],
    ids=show,
)  # fmt: skip
def test_known_arithmetic_is_carried_out(built, simple):
    assert built == simple


@pytest.mark.parametrize(
    "kept",
    [
        call("*", X, ZERO),  # x may be NaN
        call("+", X, Num(0.0)),  # -0.0 + 0.0 is 0.0
        call("/", Num(1), Num(3)),  # not a whole number
        call("<", Num(N), Num(3)),
        call("*", Num(0.5), Num(4)),
        Select(call("<", i, Num(3)), X, ZERO),
    ],
    ids=show,
)
def test_what_is_not_known_stays(kept):
    assert not isinstance(kept, Num)
    assert rebuild(kept, lambda e: e) == kept


@pytest.mark.parametrize(
    ("e", "form"),
    [
        (i, ({"i": 1}, 0)),
        (Num(N), ({}, N)),
        (call("-", call("*", i, Num(2)), call("+", j, Num(3))), ({"i": 2, "j": -1}, -3)),
        (call("-", i, i), ({}, 0)),
        (call("*", Num(N), call("+", i, ONE)), ({"i": N}, N)),
        (call("*", i, j), None),
        (call("//", i, Num(2)), None),
        (Load("ids", (i,)), None),
        (Num(0.5), None),
    ],
    ids=lambda x: show(x) if not isinstance(x, tuple) and x is not None else "",
)
def test_affine_forms(e, form):
    assert affine(e) == form


def test_free_axes_are_those_that_nobody_binds():
    e = Reduce("sum", ("j",), call("*", X, Load("z", (Load("ids", (k,)), j))))
    assert free(e) == {"i", "k"}
    assert [x.tensor for x in loads(e)] == ["x", "z", "ids"]
    assert len(list(walk(e))) == 9


def test_substitution_reaches_indices_and_simplifies():
    e = Load("x", (call("+", i, j),), ZERO)
    assert substitute(e, {"j": ZERO}) == Load("x", (i,), ZERO)
    test = Select(call("<", i, Num(3)), Load("x", (i,)), ZERO)
    assert substitute(test, {"i": Num(5)}) == ZERO


TEXTS = [
    "x[i + 1]", "(x[i * 2 - 3] or 0)", "sum[j](x[j] * x[i])", "[i < 3]", "(x[i] if i <= 3 else 0)",
    "exp(x[i]) / (1 + exp(x[i]))", "x[i] - (x[i] - 1)", "(1 + x[i])**2", "maximum(x[i], 0)",
    "x[i] * (-1)", "2 - i % 3 // 2", "(x[i] if i == 2 or not i < 1 and 0 < i else inf)",
    "(x[i] if (not (i < 1 or 3 < i)) and i == 2 else 0)",
    "x[x[i]]", "max[j]((x[j] if j <= i else -inf))",
]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_what_is_shown_reads_back_the_same(text):
    def read(body):
        return Record(f"y = f(x[i])\ny[i] = {body}".replace("[j]", "[j: I]", 1)).bind([(5,)], {})

    body = read(text).lets[0].body
    assert read(show(body)).lets[0].body == body


def test_numbers_that_need_brackets():
    assert show(call("*", X, Num(-1))) == "x[i, j] * (-1)"
    assert show(call("*", i, Num(N + 1))) == "i * (1 + N)"
    assert show(call("/", X, Num(N * 2))) == "x[i, j] / (2*N)"
    assert show(Num(math.inf)) == "inf"
    assert show(Load("x", ())) == "x[()]"
