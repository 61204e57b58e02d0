"""Conjectures that somebody else states: read, decided, derived."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from whet.rewrite.conjecture import Conjecture, Statement
from whet.rewrite.decide import Decider, derivation
from whet.rewrite.formula import ConjectureError
from whet.rewrite.prove import Prover
from whet.rewrite.rule import Verdict
from whet.rewrite.stated import stated

X = ["n", "c", "h", "w"]
CONV = "conv2d({}, {}, groups={}, stride=({}, {}), padding=({}, {}), dilation=(1, 1))"


def conv(x: str, w: str, groups: object = 1, stride: object = 1, padding: object = 0) -> str:
    return CONV.format(x, w, groups, stride, stride, padding, padding)


def entry(
    inputs: Mapping[str, object], lhs: object, rhs: object, **more: object
) -> dict[str, object]:
    return {"name": "stated", "inputs": inputs, "lhs": lhs, "rhs": rhs, **more}


K = {"x": X, "w": ["o", "i", "r", "q"], "v": ["o", "i", "r", "q"]}
XY = {**K, "y": X}
A = {"x": ["a", "b"], "y": ["a", "b"], "z": ["a", "b"]}
TRUE = [
    entry(A, "x * (y + z)", "add(mul(x, y), mul(x, z))"),
    entry(A, "concat(relu(x), relu(y), axis=t)", "relu(concat(x, y, axis=t))"),
    entry({"x": ["a", "b"], "y": ["c", "d"]}, "matmul(x, y)",
          "permute(matmul(permute(y, dims=(1, 0)), permute(x, dims=(1, 0))), dims=(1, 0))"),
    entry({"x": ["m", "k"], "y": ["k", "n"], "z": ["k", "p"]}, ["matmul(x, y)", "matmul(x, z)"],
          "t = matmul(x, concat(y, z, axis=1)); a = slice(t, axis=1, start=0, stop=n, step=1);"
          "b = slice(t, axis=1, start=n, stop=n + p, step=1); return (a, b)"),
    entry(K, f"concat({conv('x', 'w', 1, 's', 'p')}, {conv('x', 'v', 1, 's', 'p')}, axis=1)",
          conv("x", "concat(w, v, axis=0)", 1, "s", "p")),
    entry(XY, f"concat({conv('x', 'w', 'g')}, {conv('y', 'v', 'g')}, axis=1)",
          conv("concat(x, y, axis=1)", "concat(w, v, axis=0)", "2*g")),
    entry({"x": ["a", "b"], "y": ["c", "b"], "z": ["d", "b"], "u": ["e", "b"]},
          "concat(x, y, axis=0) + concat(z, u, axis=0)", "concat(x + z, y + u, axis=0)"),
]  # fmt: skip
FALSE = [
    entry({"x": ["m", "m"], "y": ["m", "m"]}, "matmul(x, y)", "matmul(y, x)"),
    entry(K, f"concat({conv('x', 'w', 2)}, {conv('x', 'v', 2)}, axis=1)",
          conv("x", "concat(w, v, axis=0)", 2)),
    entry(K, conv("x", "w", 2), conv("x", "w", 1)),
    entry(K, conv("x", "w", 1, 2), conv("x", "w", 1, 1)),
    entry(K, conv("x", "w", 1, 1, "p"), conv("x", "w", 1, 1, "p + 1")),
    entry(A, "relu(x - y)", "relu(x) - relu(y)"),
    entry({"x": X, "w": ["c", 1, 3, 3]}, conv("x", "w", "c"), conv("x", "w", 1)),
]  # fmt: skip


@pytest.fixture(scope="module")
def decider() -> Decider:
    return Decider(rules={})


@pytest.mark.parametrize("claim", TRUE, ids=range(len(TRUE)))
def test_what_is_true_is_proven(claim: dict[str, object], decider: Decider) -> None:
    found = decider.decide(claim)
    assert (found.verdict, found.covers[:10]) == ("proven", "all-shapes"), found


@pytest.mark.parametrize("claim", FALSE, ids=range(len(FALSE)))
def test_what_is_false_is_refuted(claim: dict[str, object], decider: Decider) -> None:
    found = decider.decide(claim)
    assert found.verdict == "refuted", found
    assert found.counterexample


MANY = [
    claim
    for name in ("conjectures.json", "substitutions.json", "elsewhere.json")
    for claim in json.loads(Path(__file__).with_name(name).read_text(encoding="utf-8"))
]
"""Laws of tensors; substitutions as other optimizers have them, with constants, groups, margins and
several outputs; laws of layouts, windows, attention and norms, which no scope was made for: true,
true under their condition, or false, as `want` says."""


@pytest.mark.parametrize("part", range(6))
def test_many_laws_are_decided(
    part: int, decider: Decider, count: Callable[[int, int], int]
) -> None:
    wrong = [
        (claim["name"], found.verdict, found.reason or found.counterexample)
        for claim in MANY[part :: 6 * count(5, 1)]
        if (found := decider.decide(claim)).verdict != claim["want"]
    ]
    assert not wrong


class Endless(Prover):
    """Never comes to an end, and loses the first exception, as callbacks do."""

    lost = 0

    def prove(self, statement: Statement) -> Verdict:
        while True:
            try:
                while True:
                    pass
            except BaseException:
                self.lost += 1
                if self.lost > 1:
                    self.lost -= 1
                    raise


def test_what_takes_too_long_is_left_open() -> None:
    claim = entry({"x": X, "w": ["o", "i", "r", "q"], "v": ["o", "i", "r", "q"]},
                  conv("x", "w + v", "g", "s", "p"),
                  f"{conv('x', 'w', 'g', 's', 'p')} + {conv('x', 'v', 'g', 's', 'p')}")  # fmt: skip
    ever = Endless()
    found = Decider(rules={}, prover=ever, seconds=0.02).decide(claim)
    assert (found.verdict, found.reason) == ("unknown", "not settled in 0.02 s")
    assert ever.lost == 1, "an exception that a callback loses comes again"
    os.kill(os.getpid(), signal.SIGPROF)  # as late as it may be, it does no harm


def test_equations_in_a_condition_say_what_a_name_is(decider: Decider) -> None:
    halves = "concat(slice(x, 0, 0, i, 1), slice(x, 0, j, k, 1), axis=0)"
    found = decider.decide(entry({"x": ["k"]}, halves, "x", **{"if": "i == j and j <= k"}))
    assert (found.verdict, found.guard[:7]) == ("proven", "i == j ")


def test_nothing_is_stated_where_a_side_does_not_exist(decider: Decider) -> None:
    pairs = "reshape(reshape(x, size=(k//2, 2)), size=(k,))"
    assert decider.decide(entry({"x": ["k"]}, "x", pairs)).verdict == "proven"
    assert decider.decide(entry({"x": ["k"]}, "x", f"2 * {pairs}")).verdict == "refuted"


def test_guards_say_what_sizes_are_forced_to_be(decider: Decider) -> None:
    assert decider.decide(TRUE[2]).guard == "b == c"
    assert "c == g*Q0" in decider.decide(TRUE[5]).guard
    assert decider.decide(TRUE[6]).guard == "a == d and c == e"


def test_a_size_may_be_called_like_a_tensor() -> None:
    claim = stated(entry({"w": ["w", "h"]}, "permute(w, dims=(1, 0))", "permute(w, dims=(1, 0))"))
    assert "w_[W, H]" in claim.conjecture.text


def test_conditions_are_kept() -> None:
    claim = stated(entry(A, "slice(x, axis=0, start=i, stop=j, step=1)", "x", **{"if": "i <= j"}))
    assert claim.conjecture.condition is not None


@pytest.mark.parametrize(
    ("claim", "says"),
    [
        ({"name": "n", "inputs": {}, "lhs": "x"}, "lacks a field"),
        (entry(A, "x +", "x"), "does not parse"),
        (entry(A, "(x, y)", "x"), "other numbers of outputs"),
        (entry({"x": "ab"}, "x", "x"), "list of sizes"),
        (entry(A, "foo(x)", "x"), "not part of a conjecture"),
    ],
)
def test_what_cannot_be_read_says_why(claim: dict[str, object], says: str) -> None:
    with pytest.raises(ConjectureError, match=says):
        stated(claim)


def test_derivations_name_the_rules() -> None:
    rules = {c.name: c for c in map(Conjecture, (
        "distribute: mul(x[*B], add(y[*B], z[*B])) == add(mul(x, y), mul(x, z))",
        "associate: add(add(x[*B], y[*B]), z[*B]) == add(x, add(y, z))",
    ))}  # fmt: skip
    claim = Statement(Conjecture("c: x[M] * y[M] + x * (z[M] + u[M]) == x * (y + z) + x * u"))
    found = derivation(claim, rules, Prover())
    assert found is not None
    assert {n.removesuffix(" (backward)") for n in found} == {"distribute", "associate"}
    other = Statement(Conjecture("o: x[M] + y[M] == y + x + x"))
    assert derivation(other, rules, Prover()) is None
