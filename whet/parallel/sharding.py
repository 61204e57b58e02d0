"""Shardings of values, the choices that a node has, and how one sharding becomes another.

    Sharding := (dim inner axis)* (axis combine)*     cuts of a value; what is still to be combined
    Choice   := axis of the mesh → (axis of the operator, inner) | nothing
    Move     := all_gather | reduce_scatter | all_reduce | all_to_all | slice   along mesh axes

A dim is a row of factors, outer ones first, as reshapes and parts tell them apart: 36864 = 3 x 96 x
128. A cut names its factor by `inner`, the number of elements that lie inside one step of it: the
heads above have inner 128. Every device gets an equal part of the factor. Where several mesh axes
cut the same factor, the first in the mesh is the outermost.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from whet.errors import WhetError

Axes = tuple[tuple[str, int], ...]  # name and size of each axis of a mesh


class ShardingError(WhetError):
    """A sharding that cannot be, or cannot become another one."""


@dataclass(frozen=True, slots=True)
class Sharding:
    """How a value lies on a mesh; replicated along every axis that it does not name.

    Attributes:
        cuts: (dim, inner, mesh axis), in the order of the mesh.
        partial: (mesh axis, sum | max | min | prod).
    """

    cuts: tuple[tuple[int, int, str], ...] = ()
    partial: tuple[tuple[str, str], ...] = ()
    _hash: int = field(init=False, compare=False, repr=False, default=0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_hash", hash((self.cuts, self.partial)))

    def __hash__(self) -> int:
        return self._hash

    def parts(self, sizes: Mapping[str, int]) -> int:
        """Among how many devices the value is cut."""
        return math.prod(sizes[axis] for _, _, axis in self.cuts)

    def shape(self, shape: Sequence[int], sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape of one device's part."""
        local = list(shape)
        for dim, _, axis in self.cuts:
            local[dim] //= sizes[axis]
        return tuple(local)

    def on(self, axis: str) -> tuple[int, int] | str | None:
        """What an axis of the mesh does: a cut as (dim, inner), a way to combine, or nothing."""
        for dim, inner, name in self.cuts:
            if name == axis:
                return dim, inner
        return dict(self.partial).get(axis)

    def without(self, axes: Sequence[str]) -> Sharding:
        """The same with some axes of the mesh forgotten."""
        return Sharding(
            tuple(c for c in self.cuts if c[2] not in axes),
            tuple(p for p in self.partial if p[0] not in axes),
        )

    def __str__(self) -> str:
        cut = [f"{axis}: dim {dim}" + (f"/{inner}" if inner > 1 else "")
               for dim, inner, axis in self.cuts]  # fmt: skip
        return ", ".join([*cut, *(f"{a}: partial {k}" for a, k in self.partial)]) or "replicated"


WHOLE = Sharding()


@dataclass(frozen=True, slots=True)
class Move:
    """One collective, or the slicing of what is already there.

    Attributes:
        kind: a collective, "slice" (keep one's own part) or "drop" (zeros on all devices but one).
        axes: of the mesh.
        bytes: of the whole tensor of a group; see `Step.bytes`.
        combine: of reductions.
        source, target: shardings before and after.
    """

    kind: str
    axes: tuple[str, ...]
    bytes: int
    source: Sharding
    target: Sharding
    combine: str = ""


@functools.lru_cache(maxsize=1 << 18)
def reshard(source: Sharding, target: Sharding, nbytes: int, mesh: Axes) -> tuple[Move, ...]:
    """The moves from one sharding to another, those that shrink the value first.

    Args:
        nbytes: of the whole value, over all devices.
        mesh: names and sizes.

    Raises:
        ShardingError: what is not partial cannot become so, but as a sum of one device's value.
    """
    if source == target:
        return ()
    sizes = dict(mesh)
    moves: list[Move] = []
    at = source

    def local() -> int:
        return nbytes // at.parts(sizes)

    def step(kind: str, axes: tuple[str, ...], bytes: int, after: Sharding, how: str = "") -> None:
        nonlocal at
        if math.prod(sizes[a] for a in axes) > 1:
            moves.append(Move(kind, axes, bytes, at, after, how))
        at = after

    # What is partial and shall be cut is scattered while it is summed.
    for axis, how in source.partial:
        want = target.on(axis)
        if isinstance(want, tuple) and how == "sum" and _free(at, want, axis, mesh):
            step("reduce_scatter", (axis,), local(), _cut(at, *want, axis, mesh), how)
    for how in dict.fromkeys(how for _, how in at.partial):
        axes = tuple(a for a, h in at.partial if h == how and target.on(a) != how)
        if axes:
            step("all_reduce", axes, local(), at.without(axes) if not at.cuts else Sharding(
                at.cuts, tuple(p for p in at.partial if p[0] not in axes)), how)  # fmt: skip
    # A cut that becomes another one is exchanged, unless other axes share its factor.
    for axis, _ in mesh:
        have, want = at.on(axis), target.on(axis)
        if isinstance(have, tuple) and isinstance(want, tuple) and have != want:
            rest = at.without((axis,))
            if _free(rest, want, axis, mesh) and _last(at, have, axis, mesh):
                step("all_to_all", (axis,), local(), _cut(rest, *want, axis, mesh))
    # What is to be replicated (or stands in another's way) is gathered, the inner axes first.
    for axis, _ in reversed(mesh):
        have = at.on(axis)
        if isinstance(have, tuple) and (target.on(axis) != have or not _agrees(at, target, have)):
            step("all_gather", (axis,), local() * sizes[axis], at.without((axis,)))
    for axis, _ in mesh:
        want, have = target.on(axis), at.on(axis)
        if isinstance(want, tuple) and have is None:
            step("slice", (axis,), local(), _cut(at, *want, axis, mesh))
        elif isinstance(want, str) and have is None:
            if want != "sum":
                raise ShardingError(
                    f"a value does not become parts of a {want}", expected="parts of a sum"
                )
            order = [a for a, _ in mesh]
            partial = tuple(sorted((*at.partial, (axis, want)), key=lambda p: order.index(p[0])))
            step("drop", (axis,), local(), Sharding(at.cuts, partial))
    if at != target:
        raise ShardingError(
            "no way from one sharding to another", expected=target, got=at, where=source
        )
    return tuple(moves)


def _cut(at: Sharding, dim: int, inner: int, axis: str, mesh: Axes) -> Sharding:
    order = [a for a, _ in mesh]
    cuts = tuple(sorted((*at.cuts, (dim, inner, axis)), key=lambda c: order.index(c[2])))
    return Sharding(cuts, tuple(p for p in at.partial if p[0] != axis))


def _free(at: Sharding, want: tuple[int, int], axis: str, mesh: Axes) -> bool:
    """Whether a cut may be added as the innermost of its factor."""
    order = [a for a, _ in mesh]
    return all(
        order.index(a) < order.index(axis) for dim, inner, a in at.cuts if (dim, inner) == want
    )


def _last(at: Sharding, have: tuple[int, int], axis: str, mesh: Axes) -> bool:
    order = [a for a, _ in mesh]
    same = [order.index(a) for dim, inner, a in at.cuts if (dim, inner) == have]
    return max(same) == order.index(axis)


def _agrees(at: Sharding, target: Sharding, factor: tuple[int, int]) -> bool:
    """Whether the axes that cut a factor now are the outermost of those that shall cut it."""
    now = [a for d, i, a in at.cuts if (d, i) == factor]
    then = [a for d, i, a in target.cuts if (d, i) == factor]
    return then[: len(now)] == now
