"""Rules with several outputs, and of any width, from rules with one.

    before:  matmul(x, concat(y, z, axis=1)) == concat(matmul(x, y), matmul(x, z), axis=1)
    after:   (matmul(x, y), matmul(x, z)) == (slice(t, 1, 0, N), slice(t, 1, N, N + P))
    wider:   (matmul(x, y.i) for i in range(M)) == (slice(t, 1, sum(N.j for j < i), …) …)

What is put together along an axis can be taken apart again: each rule with a concatenation at one
root says how its parts are computed as one. Where the parts are alike, so is any number of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

from whet.rewrite.conjecture import Conjecture
from whet.rewrite.sketch import Side, Sketch, Text, Tree, leaves, spelled

_BEFORE = "sum({n}.j for j in range(i))"
_AFTER = "sum({n}.j for j in range(i + 1))"


def split(sketch: Sketch, extents: Mapping[Side, str]) -> Iterator[Sketch]:
    """The rule with a concatenation's parts as outputs, where one root is a concatenation.

    Args:
        extents: of each part along the axis.
    """
    for whole, trunk in ((sketch.left, sketch.right), (sketch.right, sketch.left)):
        (root,), (other,) = whole, trunk
        if not (isinstance(root, Tree) and root.op == "concat" and isinstance(other, Tree)):
            continue
        parts = [a for a in root.args if a is not None]
        if other.op == "concat" or not all(p in extents and isinstance(p, Tree) for p in parts):
            continue
        axis, at, cut = dict(root.attrs)["axis"], "0", []
        for p in parts:
            end = extents[p] if at == "0" else f"{at} + {extents[p]}"
            attrs = (("axis", axis), ("start", Text(at)), ("step", 1), ("stop", Text(end)))
            cut.append(Tree("slice", attrs, (other,)))
            at = end
        yield replace(sketch, left=tuple(parts), right=tuple(cut))


def family(sketch: Sketch) -> str | None:
    """The text of the rule for any number of outputs, or None where the parts are not alike."""
    if len(sketch.left) != 2 or len(sketch.right) != 2:
        return None
    first, second = sketch.left
    pairs = _alike(first, second)
    if pairs is None:
        return None
    tensors = {a: b for a, b in pairs.items() if a != b}
    trunk = sketch.right[0].args[0] if isinstance(sketch.right[0], Tree) else None
    if not tensors or not isinstance(trunk, Tree) or set(tensors) & set(tensors.values()):
        return None
    if any(n in tensors or n in tensors.values() for n in _outside(trunk, tensors)):
        return None
    own: dict[str, str] = {}  # sizes that differ from member to member
    for a, b in tensors.items():
        for d, e in zip(sketch.shapes[a], sketch.shapes[b], strict=True):
            if d != e and own.setdefault(d, e) != e:
                return None
    width = next(x for x in "MTWV" if not any(x in d for s in sketch.shapes.values() for d in s))
    shapes = {n: tuple(f"{d}.i" if d in own else d for d in s) for n, s in sketch.shapes.items()}
    seen: set[str] = set()
    member = _member(first, tensors, shapes, seen)
    whole = _whole(trunk, tensors, width)
    extent = next(iter(own), None)
    cut = sketch.right[0]
    assert isinstance(cut, Tree)
    if extent is None:
        fixed = spelled(dict(cut.attrs)["stop"])
        start, stop = f"{fixed}*i", f"{fixed}*i + {fixed}"
    else:
        start, stop = _BEFORE.format(n=extent), _AFTER.format(n=extent)
        if spelled(dict(cut.attrs)["stop"]) != extent:
            return None
    axis = spelled(dict(cut.attrs)["axis"])
    return (f"({member} for i in range({width})) == "
            f"(slice({whole}, {axis}, {start}, {stop}, 1) for i in range({width}))")  # fmt: skip


def _alike(a: Side | None, b: Side | None) -> dict[str, str] | None:
    """Which leaf of `b` stands where a leaf of `a` does, if they differ in leaves alone."""
    if a is None or b is None:
        return {} if a is b else None
    if isinstance(a, str) or isinstance(b, str):
        return {a: b} if isinstance(a, str) and isinstance(b, str) else None
    if (a.op, len(a.args)) != (b.op, len(b.args)) or [*map(str, a.attrs)] != [*map(str, b.attrs)]:
        return None
    found: dict[str, str] = {}
    for x, y in zip(a.args, b.args, strict=True):
        inner = _alike(x, y)
        if inner is None or any(found.get(k, v) != v for k, v in inner.items()):
            return None
        found |= inner
    return found


def _is_pair(t: Tree, tensors: Mapping[str, str]) -> bool:
    return t.op == "concat" and len(t.args) == 2 and tensors.get(str(t.args[0])) == t.args[1]


def _outside(s: Side | None, tensors: Mapping[str, str]) -> Iterator[str]:
    """Leaves that stand elsewhere than in a concatenation of a tensor with its like."""
    if isinstance(s, str):
        yield s
    elif s is not None and not _is_pair(s, tensors):
        for a in s.args:
            yield from _outside(a, tensors)


def _member(
    s: Side | None,
    tensors: Mapping[str, str],
    shapes: Mapping[str, tuple[str, ...]],
    seen: set[str],
) -> str:
    if s is None:
        return "None"
    if isinstance(s, str):
        name = f"{s}.i" if s in tensors else s
        if s in seen:
            return name
        seen.add(s)
        return f"{name}[{', '.join(shapes[s]) or '()'}]"
    parts = [_member(a, tensors, shapes, seen) for a in s.args]
    return f"{s.op}({', '.join(parts + [f'{k}={spelled(v)}' for k, v in s.attrs])})"


def _whole(s: Side | None, tensors: Mapping[str, str], width: str) -> str:
    if s is None:
        return "None"
    if isinstance(s, str):
        return s
    attrs = [f"{k}={spelled(v)}" for k, v in s.attrs]
    if _is_pair(s, tensors):
        return f"concat({', '.join([f'*({s.args[0]}.j for j in range({width}))', *attrs])})"
    parts = [_whole(a, tensors, width) for a in s.args]
    return f"{s.op}({', '.join(parts + attrs)})"


def unused(sketch: Sketch) -> set[str]:
    """Tensors with a shape that stand nowhere."""
    used = {n for s in (*sketch.left, *sketch.right) for n in leaves(s)}
    return set(sketch.shapes) - used


def sizes(conjecture: Conjecture) -> list[str]:
    """Upper-case names in a conjecture's text."""
    return sorted(set(re.findall(r"\b[A-Z]\b", conjecture.text)))
