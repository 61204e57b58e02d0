"""Soundness: what the normal forms call equal is equal.

True rules are mutated in one place (operands swapped, a number changed, an operator exchanged, a
name replaced) and given to the normal forms alone. Whatever they still prove must withstand the
search for a counterexample at sizes that no proof has seen.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable

from tests.mutants import mutants
from whet.errors import WhetError
from whet.rewrite.conjecture import Conjecture, Form, Statement
from whet.rewrite.conjectures import CONJECTURES
from whet.rewrite.forms import forms
from whet.rewrite.integers import TooManyQueries
from whet.rewrite.prove import derive
from whet.rewrite.reading import Unreadable
from whet.rewrite.refute import refute
from whet.rewrite.rule import Proof


def cases() -> list[tuple[str, Form]]:
    found: dict[tuple[str, str], tuple[str, Form]] = {}
    for c in CONJECTURES.values():
        if c.name.split()[0] in ("gelu", "silu", "tanh", "sigmoid", "neg"):
            continue  # the same text as for relu
        for form in forms(c):
            for text in mutants(c):
                found.setdefault((text, str(form)), (text, form))
    return list(found.values())


def judged(statement: Statement) -> bool | None:
    """Whether the normal forms prove a statement, which must then be true; None: unreadable."""
    try:
        proof = derive(statement)
    except (WhetError, Unreadable, TooManyQueries):
        return None
    if not isinstance(proof, Proof):
        return False
    counterexample, _ = refute(statement)
    assert counterexample is None, f"{statement.text}\n{counterexample}"
    return True


def test_what_is_proven_of_mutants_is_true(count: Callable[[int, int], int]) -> None:
    every = cases()
    assert len(every) > 400
    random.Random(7).shuffle(every)
    proven = rejected = 0
    for text, form in every[: count(200, len(every))]:
        try:
            statement = Statement(Conjecture(text), form)
        except WhetError:
            continue  # it states nothing
        verdict = judged(statement)
        proven += verdict is True
        rejected += verdict is not True
    assert proven > 2  # swapped operands of sums and products
    assert rejected > 4 * proven


# Compositions in which bound axes nest: sums in maxima in sums, scans, windows, piecewise parts.
SHAPES = """
exp({}) | relu({}) | tanh({}) | abs({}) | leaky_relu({}, 0.5) | permute({}, dims=(1, 0))
reshape(amax({}, dims=(1,)), size=(K, 1)) + {} | reshape(amin({}, dims=(0,)), size=(1, K)) * {}
reshape(sum({}, dims=(0,)), size=(1, K)) * {}  | reshape(prod({}, dims=(1,)), size=(K, 1)) + {}
softmax({}, 0) | softmax({}, 1) | log_softmax({}, 1) | cumsum({}, 0) | cumsum({}, 1) | cummax({}, 1)
flip({}, 0) | flip({}, 1) | tril({}, 0) | triu({}, 1) | roll({}, 0, 1)
slice(concat({}, {}, axis=0), 0, 0, K, 1) | slice(concat({}, {}, axis=1), 1, 1, K + 1, 1)
slice(pad({}, 0, 1, 1, 0.0), 0, 1, K + 1, 1) | slice(pad({}, 1, 1, 0, 0.0), 1, 0, K, 1)
({} + {}) | ({} - {}) | ({} * {}) | matmul({}, {}) | linear({}, {})
maximum({}, {}) | minimum({}, {})
select(stack({}, {}, axis=0), 0, 1)
"""
COMPOSED = [s.strip() for line in SHAPES.split("\n") for s in line.split("|") if s.strip()]
SAME = """permute(permute({}, dims=(1, 0)), dims=(1, 0)) | flip(flip({}, 0), 0) | ({} + 0)
          | select(stack({}, {}, axis=0), 0, 0)""".split("|")


def composition(draw: random.Random, depth: int) -> str:
    if depth == 0:
        return draw.choice("xyz")
    shape = draw.choice(COMPOSED)
    return shape.format(
        *(composition(draw, draw.randint(0, depth - 1)) for _ in range(shape.count("{}")))
    )


def varied(draw: random.Random, text: str) -> str:
    """`text` with a tensor or a number exchanged, or inside something that changes nothing."""
    how = draw.random()
    tensors, numbers = (list(re.finditer(p, text)) for p in (r"\b[xyz]\b", r"\b[01]\b"))
    if how < 0.4 or (how < 0.7 and not numbers):
        at, new = draw.choice(tensors), draw.choice("xyz")
    elif how < 0.7:
        at, new = draw.choice(numbers), draw.choice("01")
    else:
        return draw.choice(SAME).strip().replace("{}", text)
    return text[: at.start()] + new + text[at.end() :]


def test_what_is_proven_of_compositions_is_true(count: Callable[[int, int], int]) -> None:
    draw = random.Random(11)
    verdicts = []
    for _ in range(count(150, 3000)):
        left = composition(draw, 3)
        right = varied(draw, varied(draw, left) if draw.random() < 0.4 else left)
        named = set(re.findall(r"\b[xyz]\b", left))
        if set(re.findall(r"\b[xyz]\b", right)) <= named:
            for name in named:
                left = re.sub(rf"\b{name}\b", f"{name}[K, K]", left, count=1)
            verdicts.append(judged(Statement(Conjecture(f"composed: {left} == {right}"))))
    assert verdicts.count(True) > len(verdicts) // 3
    assert verdicts.count(False) > len(verdicts) // 10


def test_a_proof_of_a_false_statement_would_be_noticed() -> None:
    """The check above has teeth: the refuter sees what a wrong normal form would let through."""
    wrong = Statement(Conjecture("wrong: matmul(x[K, K], y[K, K]) == matmul(y, x)"))
    assert refute(wrong)[0] is not None
    assert isinstance(derive(wrong), str)
