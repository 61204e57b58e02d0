"""Devices that behave alike: each class of them is simulated once.

Two devices of a stage are of one class if they are of one kind, get equal shares of the samples,
and their groups along every axis that is used have equal numbers of devices of each class. Such a
partition is equitable: devices of one class start equal, and everything that reaches them from
others is equal too, so they stay equal for the whole pass.

Source: color refinement; Paige, Tarjan, "Three Partition Refinement Algorithms", 1987.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass

from whet.machine import Device, Mesh, Topology
from whet.parallel.placed import Stage


@dataclass(frozen=True, slots=True)
class Classes:
    """The partition of a mesh.

    Attributes:
        of: the class of each device, by its place in the mesh.
        devices: the kind of device of each class.
        scale: the share of the samples of each class, 1 for an even one.
        groups: of each used tuple of axes, the classes that meet in a group, one for each sort of
            group.
    """

    of: tuple[int, ...]
    devices: tuple[Device, ...]
    scale: tuple[float, ...]
    groups: tuple[tuple[tuple[str, ...], tuple[tuple[int, ...], ...]], ...]

    @property
    def count(self) -> int:
        return len(self.devices)


def axes_used(stages: Iterable[Stage]) -> tuple[tuple[str, ...], ...]:
    """Every tuple of axes along which the stages of one group communicate."""
    found: dict[tuple[str, ...], None] = {}
    for block in dict.fromkeys(run.block for stage in stages for run in stage.runs):
        for step in (*block.forward, *block.backward, *block.finish):
            if step.axes:
                found[step.axes] = None
        for weights in block.weights:
            found[weights.reduce] = None
    return tuple(found)


def classes(
    topology: Topology, mesh: Mesh, shares: tuple[float, ...], used: Iterable[tuple[str, ...]]
) -> Classes:
    """The coarsest partition of a mesh into devices that behave alike."""
    used = tuple(used)
    per_index = len(mesh.devices) // mesh.shape[0] if mesh.shape else 1
    mean = sum(shares) / len(shares) if shares else 1.0
    scales = [
        shares[place // per_index] / mean if shares else 1.0 for place in range(len(mesh.devices))
    ]
    kinds = [topology.device(d) for d in mesh.devices]
    colors = _numbered(list(zip(kinds, scales, strict=True)))
    places = {d: k for k, d in enumerate(mesh.devices)}
    groups = {axes: [[places[d] for d in g] for g in mesh.groups(axes)] for axes in used}
    while max(colors, default=0) > 0:  # with one color there is nothing to tell apart
        marks: list[list[Hashable]] = [[c] for c in colors]
        for rows in groups.values():
            for row in rows:
                mark = tuple(sorted(colors[k] for k in row))
                for k in row:
                    marks[k].append(mark)
        finer = _numbered([tuple(m) for m in marks])
        if max(finer) == max(colors):
            break
        colors = finer
    count = max(colors, default=-1) + 1
    first = [colors.index(c) for c in range(count)]
    sorts = tuple(
        (axes, tuple(dict.fromkeys(tuple(sorted({colors[k] for k in row})) for row in rows)))
        for axes, rows in groups.items()
    )
    return Classes(
        tuple(colors), tuple(kinds[k] for k in first), tuple(scales[k] for k in first), sorts
    )


def _numbered(marks: list[Hashable]) -> list[int]:
    """0, 1, 2, … for the different marks, in order of first use."""
    numbers: dict[Hashable, int] = {}
    return [numbers.setdefault(mark, len(numbers)) for mark in marks]
