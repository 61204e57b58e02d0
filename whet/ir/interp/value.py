"""A tensor whose dims carry the names of a record's axes, so that values align by name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Value:
    """`t` with one axis name for each dim; an axis that is not there is constant."""

    t: Tensor
    axes: tuple[str, ...]

    @property
    def exact(self) -> bool:
        """Integers and truth values, as against numbers of the ring."""
        return not self.t.dtype.is_floating_point

    def along(self, axes: Sequence[str]) -> Tensor:
        """A view with exactly these dims, of size 1 where the value does not vary."""
        if tuple(axes) == self.axes:
            return self.t
        here = [self.axes.index(a) for a in axes if a in self.axes]
        t = self.t.permute(here)
        if len(here) == len(axes):
            return t
        return t[tuple(slice(None) if a in self.axes else None for a in axes)]

    def size(self, axis: str) -> int:
        """Extent along one of its axes."""
        return self.t.shape[self.axes.index(axis)]


def union(values: Iterable[Value]) -> tuple[str, ...]:
    """All axes of the values, in order of first appearance, widest value first.

    The widest value decides the order, so that results are laid out as the largest operand is.
    """
    ranked = sorted(values, key=lambda v: -len(v.axes))
    return tuple(dict.fromkeys(a for v in ranked for a in v.axes))


def expand(value: Value, axes: Sequence[str], sizes: Sequence[int]) -> Tensor:
    """`value` along `axes`, really having these sizes (a view)."""
    return value.along(axes).expand(list(sizes))


def where(test: Value, then: Value, other: Value) -> Value:
    """Element by element, `then` or `other`; nothing of the one not taken shows."""
    axes = union((then, other, test))
    t = test.along(axes)
    chosen = torch.where(
        t if t.dtype == torch.bool else t != 0, then.along(axes), other.along(axes)
    )
    return Value(chosen, axes)
