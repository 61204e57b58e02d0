"""A mesh: some devices of a topology, arranged along named axes.

    Mesh := (axis size)* device*            devices in row-major order of the axes: the last is fast

A group is a row of the mesh along one axis, or a plane along several: the devices that take part
in one collective. All groups along the same axes work at once and get equal parts of what they
share, which `Span` counts for each level of the topology's hierarchy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product

from whet.errors import WhetError


@dataclass(frozen=True, slots=True)
class Span:
    """How groups use the links of one level.

    Attributes:
        level: its place in the hierarchy, 0 the innermost.
        units: units of the level that a group reaches (the most of all groups).
        members: devices of a group in one unit (the most).
        groups: groups that leave one unit (the most), those of other meshes among them.
        total: units of one instance of the level that communicate (the most): they share a medium.
    """

    level: int
    units: int
    members: int
    groups: int
    total: int


@dataclass(frozen=True, slots=True)
class Mesh:
    """Devices along axes.

    Attributes:
        axes: name and size of each axis.
        devices: indices of the topology's devices, row-major.
    """

    axes: tuple[tuple[str, int], ...]
    devices: tuple[int, ...]
    _hash: int = field(init=False, compare=False, repr=False, default=0)

    def __hash__(self) -> int:
        return self._hash

    def __post_init__(self) -> None:
        object.__setattr__(self, "_hash", hash((self.axes, self.devices)))
        if math.prod(size for _, size in self.axes) != len(self.devices):
            raise WhetError(
                "a mesh has another number of devices than its axes",
                expected=" x ".join(f"{name} {size}" for name, size in self.axes),
                got=f"{len(self.devices)} devices",
            )
        if len(set(self.devices)) != len(self.devices):
            raise WhetError("a mesh has a device twice", got=self.devices)

    @classmethod
    def of(cls, axes: Sequence[tuple[str, int]], first: int = 0) -> Mesh:
        """The mesh over consecutive devices from `first` on."""
        count = math.prod(size for _, size in axes)
        return cls(tuple(axes), tuple(range(first, first + count)))

    def size(self, *axes: str) -> int:
        """How many devices a group along these axes has; 1 for an axis that the mesh lacks."""
        sizes = dict(self.axes)
        return math.prod(sizes.get(a, 1) for a in axes)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(size for _, size in self.axes)

    def groups(self, axes: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        """Devices of each group along `axes`, in the order of the axes."""
        names = [name for name, _ in self.axes]
        unknown = [a for a in axes if a not in names]
        if unknown:
            raise WhetError(
                f"the mesh has no axis {unknown[0]!r}", expected=", ".join(names), got=unknown[0]
            )
        strides, stride = {}, 1
        for name, size in reversed(self.axes):
            strides[name], stride = stride, stride * size
        sizes = dict(self.axes)
        rest = [n for n in names if n not in axes]
        inner = [
            sum(i * strides[a] for i, a in zip(at, axes, strict=True))
            for at in product(*(range(sizes[a]) for a in axes))
        ]
        return tuple(
            tuple(
                self.devices[i + sum(j * strides[a] for j, a in zip(at, rest, strict=True))]
                for i in inner
            )
            for at in product(*(range(sizes[a]) for a in rest))
        )
