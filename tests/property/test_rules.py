"""Every rule: true wherever it is tried, and no mutant of it is accepted that is false."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest
import torch

from tests.mutants import mutants
from whet.errors import WhetError
from whet.ir.graph import Graph, topological
from whet.ir.interp import FLOAT64, NATIVE, evaluate, sample
from whet.ir.interp.ring import seeded
from whet.ir.types import DType, Size
from whet.rewrite.bounds import reads_outside
from whet.rewrite.conjecture import Conjecture, Form, Statement, build
from whet.rewrite.conjectures import CONJECTURES
from whet.rewrite.forms import forms
from whet.rewrite.integers import TooManyQueries
from whet.rewrite.library import library
from whet.rewrite.lift import forms_of
from whet.rewrite.prove import derive
from whet.rewrite.reading import Unreadable
from whet.rewrite.refute import refute
from whet.rewrite.rule import Proof

EVERY = {**library(), **CONJECTURES}
LARGEST = 4000


def all_forms(c: Conjecture) -> list[Form]:
    return list(forms(c) if c.name in CONJECTURES else forms_of(c))


def drawn(statement: Statement, draw: random.Random) -> Iterator[dict[str, object]]:
    """Sizes, strides, paddings and groups that no proof has seen."""
    scalars = set(statement.sides.scalars)

    def value(name: str) -> Size:
        if name in scalars or name.rstrip("0123456789") in scalars:
            return draw.choice((0, 1, 2, 3))
        return draw.choice((1, 2, 3, 4, 5, 8))

    for _ in range(60):
        scope = statement.scope(value)
        try:
            if statement.holds(scope) is True:
                yield scope
        except WhetError:
            continue


def agree(statement: Statement, scope: dict[str, object], dtype: DType, seed: int) -> bool | None:
    """Whether both sides agree; None where the left one does not exist at these sizes."""
    try:
        leaves = statement.leaves(scope, dtype)
        left = build(statement.sides.left, leaves, scope, dtype)
    except (WhetError, ArithmeticError):
        return None
    nodes = topological(left)
    sizes = [n for x in nodes for n in x.shape]
    if not all(isinstance(n, int) and n > 0 for n in sizes) or any(map(reads_outside, nodes)):
        return None
    if any(isinstance(x.type.numel, int) and x.type.numel > LARGEST for x in nodes):
        return None
    right = build(statement.sides.right, leaves, scope, dtype)
    assert [n.type for n in left] == [n.type for n in right]
    inputs = tuple(n for n in leaves.values() if n is not None)
    ring = FLOAT64 if dtype.is_float else NATIVE
    feeds = {n.name: sample(n.type, ring, seeded(seed), 9) for n in inputs}
    values = evaluate(Graph(inputs, (*left, *right)), feeds, ring)
    return all(
        torch.allclose(a, b, rtol=1e-9, atol=1e-9, equal_nan=True) or not a.isfinite().all()
        for a, b in zip(values, values[len(left) :], strict=False)
    )


@pytest.mark.parametrize("part", range(8))
def test_rules_hold_at_random_sizes(part: int, count: Callable[[int, int], int]) -> None:
    chosen = sorted(EVERY)[part::8]
    draw = random.Random(part)
    draw.shuffle(chosen)
    tried = 0
    for name in chosen[: count(8, len(chosen))]:
        for form in all_forms(EVERY[name])[:: count(3, 1)]:
            statement = Statement(EVERY[name], form)
            for k, scope in enumerate(drawn(statement, draw)):
                found = agree(statement, scope, DType.f64 if k % 2 else DType.f32, k)
                tried += found is not None
                assert found is not False, f"{statement.text} at {scope}"
                if k == count(3, 12):
                    break
    assert tried > 10


def test_movement_holds_for_integers(count: Callable[[int, int], int]) -> None:
    """A proof that computes with no element holds for every element type."""
    draw = random.Random(5)
    names = sorted(EVERY)
    draw.shuffle(names)
    moves = 0
    for name in names:
        statement = Statement(EVERY[name], all_forms(EVERY[name])[0])
        found = derive(statement)
        if not (isinstance(found, Proof) and found.moves_only):
            continue
        moves += 1
        for k, scope in enumerate(drawn(statement, draw)):
            assert agree(statement, scope, DType.i64, k) is not False, statement.text
            if k == 3:
                break
        if moves == count(8, len(names)):
            break
    assert moves > 5


def test_no_mutant_is_accepted_unless_it_is_true(count: Callable[[int, int], int]) -> None:
    every = [
        (text, form) for c in EVERY.values() for form in all_forms(c)[:1] for text in mutants(c)
    ]
    every = list(dict.fromkeys(every))
    assert len(every) >= 1000
    random.Random(3).shuffle(every)
    accepted = rejected = 0
    for text, form in every[: count(60, 4000)]:
        try:
            statement = Statement(Conjecture(text), form)
            proof = derive(statement)
        except (WhetError, Unreadable, TooManyQueries):
            continue
        if not isinstance(proof, Proof):
            rejected += 1
            continue
        accepted += 1
        wrong, _ = refute(statement)
        assert wrong is None, f"{text}\n{wrong}"
    assert rejected > 2 * accepted
