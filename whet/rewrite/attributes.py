"""Attribute values worth trying for an operator, read off its record and its operands' shapes.

    axis of one dim             every dim                       concat, slice, softmax, …
    a permutation of all dims   all but the identity            permute
    a group of reduced dims     each dim; the last two          sum, mean, amax, …
    a group of trailing sizes   the last dim                    layer_norm, …
    start, stop                 where a dim is a sum of sizes: its parts; what the scope gives
    sizes of a result           dims merged, taken apart, put in and left out
    any other                   what the scope says of an attribute of that name

So a new operator is enumerated as soon as it stands in the table.
"""

from __future__ import annotations

import ast
import itertools
from collections.abc import Iterator, Mapping, Sequence

from whet.ir.ops import TABLE
from whet.ir.types import Poly, Size, product
from whet.rewrite.syntax import is_structural

Shape = tuple[Size, ...]
Values = Mapping[str, Sequence[object]]


def attributes(
    op: str, shapes: Sequence[Shape | None], given: Values
) -> Iterator[dict[str, object]]:
    """Every choice of attributes; none where the scope says nothing of an attribute.

    Args:
        given: values by attribute name, for numbers that shapes do not decide.
    """
    first = shapes[0]
    assert first is not None
    record = TABLE[op].record
    if record is None:
        yield from _structural(op, first, given)
        return
    choices: list[list[dict[str, object]]] = []
    named = [n for n, p in record.patterns.items() if not isinstance(p, ast.Constant)]
    cut = {"start", "stop", "step"} <= set(named)
    for name in named:
        if cut and name in ("start", "stop", "step"):
            continue
        if name in given:
            choices.append([{name: v} for v in given[name]])
        elif is_structural(op, name):
            choices.append([{name: v} for v in _places(op, name, first)])
        else:
            return
    for choice in itertools.product(*choices):
        attrs = {k: v for part in choice for k, v in part.items()}
        if cut:
            yield from ({**attrs, **c} for c in _cuts(first[_axis(attrs)], given))
        else:
            yield attrs


def _axis(attrs: Mapping[str, object]) -> int:
    return next(v for v in attrs.values() if isinstance(v, int))


def _places(op: str, name: str, shape: Shape) -> Iterator[object]:
    record = TABLE[op].record
    assert record is not None
    rank = len(shape)
    pattern = record.patterns[name]
    operand = record.operands[0][1].slice
    listed = operand.elts if isinstance(operand, ast.Tuple) else [operand]
    group = [d for d in listed if isinstance(d, ast.BinOp) or _pinned(d)]
    if isinstance(pattern, ast.Tuple):  # (*r,): the sizes of a group that ends a shape
        yield from ((shape[-1],),) if rank else ()
    elif any(isinstance(d, ast.Starred) for d in listed if d in group):
        if len(listed) == 1:
            yield from (p for p in itertools.permutations(range(rank)) if p != tuple(range(rank)))
        else:
            yield from ((d,) for d in range(rank))
            if rank > 2:
                yield (rank - 2, rank - 1)
    else:
        yield from range(rank)


def _pinned(d: ast.expr) -> bool:
    return isinstance(d, ast.Starred) and isinstance(d.value, ast.BinOp)


def _cuts(extent: Size, given: Values) -> Iterator[dict[str, object]]:
    """The parts of an extent that is a sum and those between bounds that are given in pairs; where
    steps are given too, what these take of the whole extent instead."""
    starts, stops = given.get("start", ()), given.get("stop", ())
    steps = given.get("step") or (1,) * len(starts)
    for start, stop, step in zip(starts, stops, steps, strict=True):
        if step == 1 or stop == extent:
            yield {"start": start, "stop": stop, "step": step}
    if "step" in given:
        return
    terms = [Poly({m: 1}) for m, c in Poly.of(extent).terms if m for _ in range(c)]
    constant = dict(Poly.of(extent).terms).get((), 0)
    if len(terms) + bool(constant) < 2 or len(terms) > 4:
        return
    seen: list[Size] = []
    for count in range(1, len(terms)):
        for part in itertools.combinations(terms, count):
            total: Size = 0
            for t in part:
                total = total + t
            if total not in seen:
                seen.append(total)
    for at in seen:
        yield {"start": 0, "stop": at, "step": 1}
        yield {"start": at, "stop": extent, "step": 1}


def _structural(op: str, shape: Shape, given: Values) -> Iterator[dict[str, object]]:
    rank = len(shape)
    match op:
        case "concat":
            for a in given.get("axis", range(rank)):
                yield {"axis": a}
        case "stack":
            for a in range(rank + 1):
                yield {"axis": a}
        case "reshape":
            seen = set() if "size" in given else {shape}
            for size in given.get("size") or _sizes(shape):
                if not isinstance(size, tuple) or product(size) != product(shape):
                    continue
                if size not in seen and len(size) <= (6 if "size" in given else 4):
                    seen.add(size)
                    yield {"size": size}
        case _:
            yield from ({k: v} for k, vs in given.items() if k == "equation" for v in vs)


def _sizes(shape: Shape) -> Iterator[Shape]:
    """Shapes with as many elements, one step away."""
    for k in range(len(shape) - 1):
        yield (*shape[:k], product(shape[k : k + 2]), *shape[k + 2 :])
    for k, n in enumerate(shape):
        if n == 1:
            yield (*shape[:k], *shape[k + 1 :])
        rows = Poly.of(n).terms
        if len(rows) == 1 and len(rows[0][0]) == 2 and rows[0][1] == 1:
            a, b = (Poly.symbol(str(s)) for s in rows[0][0])
            yield (*shape[:k], a, b, *shape[k + 1 :])
            yield (*shape[:k], b, a, *shape[k + 1 :])
    for k in range(len(shape) + 1):
        yield (*shape[:k], 1, *shape[k:])
