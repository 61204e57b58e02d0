"""Looking for a counterexample: both sides of a statement evaluated at many small assignments.

Sizes are drawn asymmetric, 1 among them; strides, paddings and group counts vary. Where both sides
are polynomials they are evaluated modulo a large prime: one mismatch refutes, and agreement on
random residues leaves next to no doubt. Otherwise the real functions are taken in float64, on data
of both signs and on positive data, and a difference counts only if it is far beyond rounding and
both values are finite.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from typing import Any

from whet.errors import RecordError, UnsupportedError
from whet.ir.expr import ARITHMETIC, Call, Num, Reduce, Select, walk
from whet.ir.graph import Graph, Node, topological
from whet.ir.types import Size
from whet.rewrite.bounds import reads_outside
from whet.rewrite.conjecture import Statement, build
from whet.rewrite.formula import ConjectureError
from whet.rewrite.rule import Counterexample

TRIALS = 8
_DRAWS = 200
_LARGEST = 1 << 16
_FAR = 1e-7


def refute(
    statement: Statement, trials: int = TRIALS, *, both: bool = False
) -> tuple[Counterexample | None, int]:
    """A counterexample if one was found, and at how many assignments both sides were compared.

    Args:
        trials: at how many to compare them at most.
        both: nothing is claimed where the right side does not exist either.
    """
    tried = 0
    for scope in assignments(statement):
        try:
            leaves = statement.leaves(scope)
            left = build(statement.sides.left, leaves, scope)
            if both:
                build(statement.sides.right, leaves, scope)
        except (RecordError, ConjectureError, ArithmeticError):
            continue  # a side does not exist at these sizes: nothing is claimed
        below = topological((*left, *(n for n in leaves.values() if n is not None)))
        if not all(map(_is_small, below)) or any(map(reads_outside, below)):
            continue
        tried += 1
        found = _differ(statement, scope, left, leaves, seed=tried)
        if found is not None or tried == trials:
            return found, tried
    return None, tried


def assignments(statement: Statement) -> Iterator[dict[str, object]]:
    """Scopes of concrete sizes; each draw has a mood, from all different to full of ones."""
    draw = random.Random(statement.text)
    lower = set(statement.sides.scalars)
    for round_ in range(_DRAWS):
        pool = [2, 3, 4, 5, 6, 7, 3, 2, 5, 4]
        draw.shuffle(pool)
        values = itertools.cycle(pool)
        ones = (0.0, 0.15, 0.4)[round_ % 3]

        def value(name: str, values: Iterator[int] = values, ones: float = ones) -> Size:
            if name in lower or name.rstrip("0123456789") in lower:
                return draw.choice((0, 1, 1, 2, 3))
            return 1 if draw.random() < ones else next(values) if draw.random() < 0.7 else 2

        scope = statement.scope(value)
        try:
            if statement.holds(scope):
                yield scope
        except ConjectureError:
            continue


def _is_small(n: Node) -> bool:
    total = 1
    for size in n.shape:
        if not isinstance(size, int) or size < 1:
            return False
        total *= size
    return total <= _LARGEST


def _differ(
    statement: Statement,
    scope: dict[str, object],
    left: Sequence[Node],
    leaves: dict[str, Node | None],
    seed: int,
) -> Counterexample | None:
    try:
        right = build(statement.sides.right, leaves, scope)
    except (RecordError, ConjectureError) as fault:
        return Counterexample(scope, 0, None, left[0].type, fault.summary, "types")
    if any(isinstance(n, int) and n < 0 for x in topological(right) for n in x.shape):
        return Counterexample(scope, 0, None, left[0].type, "a negative size", "types")
    for k, (a, b) in enumerate(zip(left, right, strict=True)):
        if a.type != b.type:
            return Counterexample(scope, k, None, a.type, b.type, "types")
        if any(map(reads_outside, topological((b,)))):
            return Counterexample(scope, k, None, a.type, "the right side reads outside", "bounds")
    inputs = tuple(n for n in leaves.values() if n is not None)
    graph = Graph(inputs, (*left, *right))
    exact = all(_is_polynomial(n) for n in graph.nodes)
    for positive in (False,) if exact else (False, True):
        try:
            values = _values(graph, exact, positive, seed)
        except UnsupportedError:
            return None
        for k in range(len(left)):
            at = _first_difference(values[k], values[len(left) + k], exact)
            if at is not None:
                index, x, y = at
                ring = "modulo 2**31 - 1" if exact else "in float64"
                return Counterexample(scope, k, index, x, y, ring)
    return None


def _values(graph: Graph, exact: bool, positive: bool, seed: int) -> Sequence[Any]:
    from whet.ir.interp import FIELD, FLOAT64, evaluate, sample
    from whet.ir.interp.ring import seeded

    ring = FIELD if exact else FLOAT64
    generator = seeded(seed)
    feeds = {n.name: sample(n.type, ring, generator) for n in graph.inputs}
    if positive:
        feeds = {name: t.abs() + 0.25 if t.is_floating_point() else t for name, t in feeds.items()}
    return evaluate(graph, feeds, ring)


def _first_difference(a: Any, b: Any, exact: bool) -> tuple[tuple[int, ...], object, object] | None:
    if exact or not a.is_floating_point():
        wrong = a != b
    else:
        finite = a.isfinite() & b.isfinite()
        scale = max(1.0, float(a[finite].abs().max()) if bool(finite.any()) else 1.0)
        wrong = finite & ((a - b).abs() > _FAR * scale)
    where = wrong.nonzero()
    if not len(where):
        return None
    index = tuple(int(i) for i in where[0])
    return index, a[index].item(), b[index].item()


def _is_polynomial(n: Node) -> bool:
    """Whether a node adds and multiplies only, so that a finite field can stand for the reals."""
    if n.is_leaf:
        return n.dtype.is_float
    if not n.dtype.is_float:
        return False
    for let in n.instance.lets:
        for e in walk(let.body):
            match e:
                case Reduce(kind) if kind not in ("sum", "prod"):
                    return False
                case Call("/", (_, divisor)) if not isinstance(divisor, Num):
                    return False
                case Call(fn) if fn not in ARITHMETIC and fn not in _TESTS:
                    return False
                case Call("//" | "%" | "**" as fn, args) if _reads(args) and fn != "**":
                    return False
                case Call(fn, args) if fn in _TESTS and _reads(args):
                    return False
                case Select(test) if _reads((test,)):
                    return False
                case Num(float() as value) if value in (float("inf"), float("-inf")):
                    return False
    return True


_TESTS = frozenset({"<", "<=", "==", "and", "or", "not"})


def _reads(es: Sequence[Any]) -> bool:
    from whet.ir.expr import Load

    return any(isinstance(x, Load) for e in es for x in walk(e))
