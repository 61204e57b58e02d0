"""Every shipped conjecture is proven, within a budget of questions, and the proofs can be kept."""

from __future__ import annotations

import dataclasses

import pytest

from whet.rewrite.conjecture import Conjecture, Form, Statement
from whet.rewrite.conjectures import CONJECTURES
from whet.rewrite.forms import forms
from whet.rewrite.formula import ConjectureError
from whet.rewrite.prove import Prover, derive, prove, recheck
from whet.rewrite.rule import Floating, Proof, Rule, Unknown

EVERY = [(c, f) for c in CONJECTURES.values() for f in forms(c)]
MERGE = CONJECTURES["merge linears"]


@pytest.fixture(scope="module")
def prover() -> Prover:
    return Prover()


@pytest.mark.parametrize(("c", "form"), EVERY, ids=[f"{c.name} [{f}]" for c, f in EVERY])
def test_shipped_conjectures_are_proven(c: Conjecture, form: Form, prover: Prover) -> None:
    verdict = prover.prove(Statement(c, form))
    assert isinstance(verdict, Rule), str(verdict)
    assert verdict.proof.trials > 0  # it withstood attempts to refute it first
    assert verdict.proof.queries <= 200


def test_there_are_enough_of_them() -> None:
    assert len(CONJECTURES) >= 50
    assert all("\n" not in c.text for c in CONJECTURES.values())


def rule(name: str, form: Form | None = None) -> Rule:
    c = CONJECTURES[name]
    found = prove(Statement(c, form or next(iter(forms(c)))))
    assert isinstance(found, Rule)
    return found


@pytest.mark.parametrize(
    ("name", "floating"),
    [
        ("merge linears", Floating.BIT_EXACT),
        ("hoist linear over select", Floating.BIT_EXACT),
        ("matmul is linear", Floating.BIT_EXACT),
        ("permute of permute", Floating.BIT_EXACT),
        ("associate right", Floating.REASSOCIATING),
        ("fold batch norm into conv", Floating.REASSOCIATING),
        ("layer norm from pieces", Floating.CANCELLING),
    ],
)
def test_what_it_does_to_rounding(name: str, floating: Floating) -> None:
    assert rule(name).proof.floating is floating


def test_more_exponentials_may_overflow() -> None:
    found = prove("quotient of powers: exp(x[N] - y[N]) == exp(x) / exp(y)")
    assert isinstance(found, Rule)
    assert found.proof.floating is Floating.OVERFLOW_RISK


def test_movement_holds_for_every_element_type() -> None:
    assert rule("slice of slice").proof.moves_only
    assert not rule("bias of linear").proof.moves_only


def test_coverage_says_no_more_than_was_proven() -> None:
    assert rule("associate right", Form(ranks=(("B", 0),))).proof.coverage == (
        "all-shapes (rank of B 0)"
    )
    assert rule("fold batch norm into conv").proof.coverage == "all-shapes"
    assert rule("reshape of reshape").proof.coverage == "bounded(B = (4, 12))"


def test_conditions_are_facts_of_the_proof() -> None:
    found = rule("concat of slices")
    assert len(found.proof.facts) == 2


@pytest.mark.parametrize("width", [2, 5, 8])
def test_families_are_proven_at_each_width(width: int) -> None:
    proof = rule("merge linears", Form(width, (("B", 1),))).proof
    assert f"width {width}" in proof.coverage
    assert proof.queries <= 4 * width**2 + 20


def test_a_proof_is_kept_as_text() -> None:
    proof = rule("compose linears").proof
    assert Proof.parse(str(proof)) == proof
    with pytest.raises(ConjectureError, match="not a proof"):
        Proof.parse("{}")


def test_stored_proofs_are_not_searched_again() -> None:
    kept: dict[str, str] = {}
    statement = Statement(CONJECTURES["attention"])
    first, second = Prover(kept), Prover(kept)
    assert isinstance(first.prove(statement), Rule)
    assert len(kept) == 1
    assert isinstance(second.prove(statement), Rule)
    assert (first.queries > 0, second.queries) == (True, 0)


def test_rules_are_rechecked() -> None:
    found = rule("hoist linear over slice")
    assert recheck(found)
    forged = dataclasses.replace(found.proof, coverage="all-shapes")
    assert not recheck(Rule(found.statement, forged))


def test_a_proof_of_something_else_makes_no_rule() -> None:
    found = rule("times one")
    with pytest.raises(ConjectureError, match="something else"):
        Rule(Statement(CONJECTURES["plus zero"]), found.proof)


def test_softmax_is_invariant_under_shifts() -> None:
    """Maxima cancel by the laws of exp: the normal form knows no softmax."""
    found = prove("shift: softmax(x[M, N] + y[M, 1], 1) == softmax(x, 1)")
    assert isinstance(found, Rule)


def test_a_fold_of_windows() -> None:
    found = prove(
        "pool of pad: max_pool2d(relu(x[N, C, H, W]), kernel=(2, 2), stride=S, padding=p,"
        " dilation=(1, 1), extra=(0, 0)) == max_pool2d(maximum(0, x), kernel=(2, 2), stride=S,"
        " padding=p, dilation=(1, 1), extra=(0, 0))"
    )
    assert isinstance(found, Rule), str(found)


def test_casts_are_no_identities() -> None:
    found = prove("round trip: relu(cast(x[N], dtype=d)) == relu(x)")
    assert not isinstance(found, Rule)


def test_a_needed_size_guard_is_named() -> None:
    found = prove("sizes differ: x[M] + y[N] == y + x")
    assert isinstance(found, Unknown)
    assert "M == N" in found.reason or "N == M" in found.reason


def test_reshapes_must_have_as_many_elements() -> None:
    text = "flat: reshape(reshape(x[2*K], size=(1, K)), size=(K,)) == slice(x, 0, 0, K, 1)"
    assert isinstance(derive(Statement(Conjecture(text))), str)


def test_budgets_are_counts() -> None:
    """Something too large ends by a count, with a reason, and not by a clock."""
    deep = "x[K, K]"
    for _ in range(9):
        deep = f"({deep} + y[K, K]) * (z[K, K] - 1)" if "y[" not in deep else f"({deep}) * (x + y)"
    found = prove(f"deep: {deep} == {deep.replace('[K, K]', '')} + 1".replace("x[K, K]", "x[K, K]"))
    assert not isinstance(found, Rule)
