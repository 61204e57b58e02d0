"""Layouts: where the elements of a tensor lie.

    Layout = (Part, …)                       outermost first
    Part   = dim, step, size, stride         contributes  (index[dim] // step % size) * stride

A dim that lies in one piece is one part of step 1. A blocked dim is two parts or more: channels in
blocks of 16 are `Part(1, 16, C/16, …)` further out and `Part(1, 1, 16, 1)` at the inside. The
outermost part of a dim may be larger than the dim needs: the rest is padding. Strides count
elements, and are free: rows may be padded, and a tensor may lie within another one.

As text: one word a part, `1//16` for what is left of dim 1 after blocks of 16 and `1%16` for the
place in the block; strides are said only where the parts do not lie densely.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from whet.ir.expr import Expr, Num, call


@dataclass(frozen=True, slots=True)
class Part:
    """One physical axis; see the module's docstring."""

    dim: int
    step: int
    size: int
    stride: int


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the element at an index lies.

    Attributes:
        parts: outermost first.
    """

    parts: tuple[Part, ...]

    @property
    def rank(self) -> int:
        """Dims of the tensor that is laid out."""
        return 1 + max((p.dim for p in self.parts), default=-1)

    @property
    def elements(self) -> int:
        """From the first element to the last place that any index can reach, both included."""
        if any(p.size == 0 for p in self.parts):
            return 0
        return 1 + sum((p.size - 1) * p.stride for p in self.parts)

    @property
    def strides(self) -> tuple[int, ...] | None:
        """One stride for each dim, or None where a dim is blocked."""
        found = {p.dim: p.stride for p in self.parts}
        if len(found) != len(self.parts) or any(p.step != 1 for p in self.parts):
            return None
        return tuple(found[d] for d in range(self.rank))

    @property
    def is_dense(self) -> bool:
        """Do the parts lie one within the other without holes?"""
        return self == compact((p.dim, p.step, p.size) for p in self.parts)

    def address(self, index: Sequence[Expr]) -> Expr:
        """Offset of the element at `index`, in elements; not simplified."""
        outermost: dict[int, int] = {}
        for p in self.parts:
            outermost[p.dim] = max(p.step, outermost.get(p.dim, 0))
        total: Expr = Num(0)
        for p in self.parts:
            at = index[p.dim]
            at = call("//", at, Num(p.step))
            if outermost[p.dim] != p.step:
                at = call("%", at, Num(p.size))
            total = call("+", total, call("*", at, Num(p.stride)))
        return total

    def __str__(self) -> str:
        words = []
        for p in self.parts:
            inner = [q for q in self.parts if q.dim == p.dim and q.step > p.step]
            word = f"{p.dim}" + (f"//{p.step}" if p.step > 1 else "")
            words.append(word + (f"%{p.size}" if inner else f":{p.size}"))
        text = " ".join(words)
        if not self.is_dense:
            text += " by " + " ".join(str(p.stride) for p in self.parts)
        return text


def compact(parts: Iterable[tuple[int, int, int]]) -> Layout:
    """A layout of (dim, step, size) without holes, outermost first."""
    stride, found = 1, []
    for dim, step, size in reversed(list(parts)):
        found.append(Part(dim, step, size, stride))
        stride *= max(size, 1)
    return Layout(tuple(reversed(found)))


def dense(sizes: Sequence[int], order: Sequence[int] | None = None) -> Layout:
    """Dims one within the other, in `order`, outermost first; row-major unless it is given."""
    return compact((d, 1, sizes[d]) for d in order or range(len(sizes)))


def strided(sizes: Sequence[int], strides: Sequence[int]) -> Layout:
    """One part a dim, with the strides given."""
    rows = zip(range(len(sizes)), sizes, strides, strict=True)
    return Layout(tuple(Part(d, 1, n, s) for d, n, s in rows))


def blocked(
    sizes: Sequence[int], order: Sequence[int], blocks: Sequence[tuple[int, int]]
) -> Layout:
    """Dims in `order`, and inside of them blocks (dim, size), outermost first; tails are padded.

    `blocked((1, 64, 56, 56), (0, 1, 2, 3), [(1, 16)])` has 16 channels next to each other;
    `blocked((O, C), (0, 1), [(1, 4), (0, 16)])` blocks both dims.
    """
    inner: list[tuple[int, int, int]] = []
    step = [1] * len(sizes)
    for dim, size in reversed(blocks):
        inner.append((dim, step[dim], size))
        step[dim] *= size
    outer = [(d, step[d], -(-sizes[d] // step[d])) for d in order]
    return compact([*outer, *reversed(inner)])


def parse(text: str) -> Layout:
    """Inverse of `str`."""
    shape, _, steps = text.partition(" by ")
    parts = []
    for word in shape.split():
        head, _, size = word.partition("%" if "%" in word else ":")
        dim, _, step = head.partition("//")
        parts.append((int(dim), int(step or 1), int(size)))
    if not steps:
        return compact(parts)
    strides = map(int, steps.split())
    return Layout(tuple(Part(*p, s) for p, s in zip(parts, strides, strict=True)))


def holds(layout: Layout, sizes: Sequence[int]) -> bool:
    """Has every element of a tensor of these sizes a place of its own?"""
    if layout.rank > len(sizes):
        return False
    for dim, size in enumerate(sizes):
        step = 1
        for p in sorted((p for p in layout.parts if p.dim == dim), key=lambda p: p.step):
            if p.step != step:
                return False
            step *= p.size
        if step < size:
            return False
    reach = 1
    for p in sorted(layout.parts, key=lambda p: (p.stride, p.size)):
        if p.size > 1 and p.stride < reach:
            return False
        reach += (p.size - 1) * p.stride
    return True
