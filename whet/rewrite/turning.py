"""Dims that are moved before or after something that works along one of them: any dims, any axis.

before: softmax(permute(x[M, K], dims=(1, 0)), axis=0) == permute(softmax(x, axis=1), dims=(1, 0))
after:  softmax(permute(x[*B], dims=p), axis=a) == permute(softmax(x, axis=p[a]), dims=p)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from whet.ir.types import Poly
from whet.rewrite.grouping import polynomials
from whet.rewrite.sketch import Side, Sketch, Text, Tree, trees


def turned(sketch: Sketch) -> Sketch | None:
    """With any permutation and any axis in the place of the one that is there; None where that is
    not what the sketch says."""
    own = set(sketch.shapes.values())
    if len(own) != 1:
        return None
    (shape,) = own
    every = [t for s in (*sketch.left, *sketch.right) for t in trees(s)]
    moves = {v for t in every for k, v in t.attrs if k == "dims"}
    if len(moves) != 1 or len(set(shape)) != len(shape) or not _is_plain(every, shape):
        return None
    (dims,) = moves
    if not isinstance(dims, tuple) or sorted(dims, key=str) != list(range(len(shape))):
        return None
    try:
        axes = {x for s in (*sketch.left, *sketch.right) for x in _axes(s)}
        if len({a if moved else dims.index(a) for a, moved in axes}) != 1:
            return None
        sides = [tuple(_wider(s)[0] for s in x) for x in (sketch.left, sketch.right)]
    except (LookupError, ValueError):
        return None
    return replace(sketch, left=sides[0], right=sides[1],
                   shapes=dict.fromkeys(sketch.shapes, ("*B",)))  # fmt: skip


def _is_plain(every: Sequence[Tree], shape: Sequence[str]) -> bool:
    """Whether nothing but permutations and axes depends on the shape."""
    for t in every:
        for k, v in t.attrs:
            names = frozenset[str]().union(*(p.symbols() for p in polynomials(v)))
            if k != "dims" and (isinstance(v, tuple) or names & set(shape)):
                return False
            if k == "axis" and (not isinstance(v, int) or v < 0 or isinstance(v, Poly)):
                return False
    return True


def _axes(s: Side) -> Iterator[tuple[int, bool]]:
    """Each axis, and whether the dims have been moved where it stands."""
    if not isinstance(s, Tree):
        return
    for a in s.args:
        if a is not None:
            yield from _axes(a)
    axis = dict(s.attrs).get("axis")
    if isinstance(axis, int):
        yield axis, _wider(s)[1]


def _wider(s: Side) -> tuple[Side, bool]:
    """The side with variables, and whether its dims are moved. Raises `LookupError` where only
    some of what comes together is, or where it is moved twice."""
    if not isinstance(s, Tree):
        return s, False
    inner = [_wider(a) for a in s.args if a is not None]
    states = {moved for _, moved in inner}
    if len(states) != 1 or len(inner) != len(s.args):
        raise LookupError(s.op)
    (moved,) = states
    attrs: list[tuple[str, object]] = []
    for k, v in s.attrs:
        if k == "dims":
            if moved:
                raise LookupError(s.op)
            attrs.append((k, Text("p")))
        else:
            attrs.append((k, Text("a" if moved else "p[a]") if k == "axis" else v))
    is_move = any(k == "dims" for k, _ in s.attrs)
    return Tree(s.op, tuple(attrs), tuple(x for x, _ in inner)), moved or is_move
