"""An equality on its way to becoming a rule: both sides as trees, shapes beside them, as text.

    Tree    = op(Tree | name | None, …, attribute=value, …)
    Sketch  = left, right, shape of each tensor          every dim a text: a size, or *group

A bank's graphs are at fixed ranks and at sizes that leaves happen to share. `whet.rewrite.lift`
makes sketches more general step by step; each step is a new text, and only what is proven stays.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from whet.ir.types import Poly

_LETTERS = "xyzwuv"
_SIZES = "MKNPLHRJIFEQUVWXYZ"


@dataclass(frozen=True)
class Tree:
    """A graph written out: an operator over trees, names of leaves, or nothing."""

    op: str
    attrs: tuple[tuple[str, object], ...]
    args: tuple[Tree | str | None, ...]


Side = Tree | str


@dataclass(frozen=True)
class Sketch:
    """Two sides.

    Attributes:
        left, right: each one output or several.
        shapes: dims of each tensor as texts, in the order of first use.
        test: condition, or nothing.
    """

    left: tuple[Side, ...]
    right: tuple[Side, ...]
    shapes: Mapping[str, tuple[str, ...]]
    test: str = ""

    @property
    def text(self) -> str:
        """As a conjecture without a name."""
        seen: set[str] = set()
        sides = []
        for side in (self.left, self.right):
            texts = [self._side(s, seen) for s in side]
            sides.append(texts[0] if len(texts) == 1 else f"({', '.join(texts)})")
        return " == ".join(sides) + (f" if {self.test}" if self.test else "")

    def _side(self, s: Side | None, seen: set[str]) -> str:
        if s is None:
            return "None"
        if isinstance(s, str):
            if s in seen or s not in self.shapes:
                return s
            seen.add(s)
            return f"{s}[{', '.join(self.shapes[s]) or '()'}]"
        parts = [self._side(a, seen) for a in s.args]
        parts += [f"{k}={spelled(v)}" for k, v in s.attrs]
        return f"{s.op}({', '.join(parts)})"

    @property
    def name(self) -> str:
        """What the two sides are made of."""
        return " = ".join(", ".join(map(skeleton, side)) for side in (self.left, self.right))

    def canonical(self) -> Sketch:
        """Tensors and sizes renamed in the order of first use."""
        names = dict.fromkeys(n for s in (*self.left, *self.right) for n in leaves(s))
        tensors = [n for n in names if n in self.shapes]
        letters = [*_LETTERS, *(f"x{k}" for k in range(40))]
        to: dict[str, str] = dict(zip(tensors, letters, strict=False))
        found = [d for n in tensors for d in self.shapes[n]]
        words = dict.fromkeys(w for d in found for w in re.findall(r"[A-Z]\d*", d))
        sizes = iter(x for x in _SIZES)
        groups = {w for d in found if d.startswith("*") for w in [d[1:]]}
        renamed = {w: ("B" if w in groups else next(sizes)) for w in words}
        if len(groups) > 1 or len(words) > len(_SIZES):
            renamed = {w: w for w in words}

        def again(text: str) -> str:
            return str(re.sub(r"\b[A-Z]\d*\b", lambda m: renamed.get(m[0], m[0]), text))

        def side(s: Side | None) -> Side | None:
            if s is None:
                return None
            if isinstance(s, str):
                return to.get(s, again(s))
            attrs = tuple((k, Text(again(spelled(v)))) for k, v in s.attrs)
            return Tree(s.op, attrs, tuple(side(a) for a in s.args))

        return Sketch(
            tuple(x for x in map(side, self.left) if x is not None),
            tuple(x for x in map(side, self.right) if x is not None),
            {to[n]: tuple(map(again, self.shapes[n])) for n in tensors},
            again(self.test),
        )


@dataclass(frozen=True)
class Text:
    """An attribute's value as written."""

    text: str


def spelled(value: object) -> str:
    """An attribute's value, or a tree, as text."""
    match value:
        case Tree(op, attrs, args):
            parts = [a if isinstance(a, str) else spelled(a) for a in args]
            return f"{op}({', '.join([*parts, *(f'{k}={spelled(v)}' for k, v in attrs)])})"
        case Text(text):
            return text
        case tuple():
            inner = ", ".join(map(spelled, value))
            return f"({inner},)" if len(value) == 1 else f"({inner})"
        case Poly():
            return str(value)
    return repr(value)


def skeleton(s: Side | None) -> str:
    """Operators of a tree, without what they are applied to."""
    if not isinstance(s, Tree):
        return ""
    inner = [t for t in map(skeleton, s.args) if t]
    return f"{s.op}({', '.join(inner)})" if inner else s.op


def leaves(s: Side | None) -> Iterator[str]:
    """Names of leaves in reading order, as often as they stand there."""
    if isinstance(s, str):
        yield s
    elif s is not None:
        for a in s.args:
            yield from leaves(a)


def trees(s: Side | None) -> Iterator[Tree]:
    """Every operator of a side, outer ones first."""
    if isinstance(s, Tree):
        yield s
        for a in s.args:
            yield from trees(a)


def replaced(s: Side, names: Sequence[str]) -> Side:
    """The same tree over other leaves, in reading order."""
    rest = iter(names)

    def walk(t: Side | None) -> Side | None:
        if t is None:
            return None
        if isinstance(t, str):
            return next(rest)
        return replace(t, args=tuple(walk(a) for a in t.args))

    found = walk(s)
    assert found is not None
    return found
