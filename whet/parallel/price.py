"""Segments priced for a stage's classes of devices: what the engine runs.

    Priced := Op*                          of a segment
    Op      := streams work after drain fenced kernel classes claims name

An item on the compute stream becomes an op for each class, a collective one for each sort of group.
Work is in 1/1024 of a picosecond at full rate: whole numbers, so that sums do not depend on order
and a state that comes again is recognized. `claims` are the links it needs, as (level, class).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from whet.machine import Mesh, Topology
from whet.parallel import collective
from whet.parallel.placed import Step
from whet.parallel.symmetry import Classes
from whet.parallel.tasks import COMPUTE, Segment

TICKS = 10**12  # in a second
SHIFT = 10  # bits of a tick: 1 << SHIFT is the full rate
FULL = 1 << SHIFT


def ticks(seconds: float) -> int:
    """Whole picoseconds."""
    return round(seconds * TICKS)


@dataclass(frozen=True, slots=True)
class Op:
    """One priced task of the engine.

    Attributes:
        streams: numbers of the streams it occupies.
        work: what is left of it, in ticks times `FULL`.
        after: ops that it waits for, by number in the engine's list.
        drain: streams whose earlier ops it waits for.
        fenced: it is on a compute stream: the next segment begins behind it.
        kernel: it computes; otherwise it moves data.
        classes: classes of devices that it occupies.
        claims: links that it shares with others.
        name: for timelines.
    """

    streams: tuple[int, ...]
    work: int
    after: tuple[int, ...]
    drain: tuple[int, ...]
    fenced: bool
    kernel: bool
    classes: tuple[int, ...]
    claims: tuple[tuple[int, int], ...]
    name: str


@dataclass(frozen=True, slots=True)
class Priced:
    """A segment, priced.

    Attributes:
        number: unique in its pricer; stands for the segment in keys.
        ops: in the order of issue.
        peak, net: bytes above the start that each class reaches, and ends with.
        work: seconds of each kind of step on class 0, run alone.
    """

    number: int
    ops: tuple[Op, ...]
    peak: tuple[int, ...]
    net: tuple[int, ...]
    work: tuple[tuple[str, float], ...]


class Pricer:
    """Prices steps and segments on one mesh with its classes; everything is priced once.

    Args:
        topology: where the mesh lies.
        mesh: the devices of a stage.
        classes: its partition.
        others: meshes that communicate beside it.
    """

    def __init__(
        self, topology: Topology, mesh: Mesh, classes: Classes, others: tuple[Mesh, ...] = ()
    ) -> None:
        self.topology, self.mesh, self.classes, self.others = topology, mesh, classes, others
        self.slowdown = tuple(
            (round(FULL / max(1.0, d.slowdown[0])), round(FULL / max(1.0, d.slowdown[1])))
            for d in classes.devices
        )
        self._sorts = dict(classes.groups)
        self._streams: dict[tuple[int, str], int] = {}
        self._segments: dict[Segment, Priced] = {}
        self._steps: dict[tuple[Step, int], int] = {}
        self._levels: dict[tuple[str, ...], tuple[int, ...]] = {}

    def price(self, step: Step, kind: int, *, whole: bool = False) -> int:
        """Ticks of a step on a class of devices, alone on its links.

        Args:
            step: kernel, collective or copy.
            kind: the class.
            whole: not scaled by the class's share of the samples.
        """
        key = (step, -1 - kind if whole else kind)
        found = self._steps.get(key)
        if found is None:
            scale = 1.0 if whole else self.classes.scale[kind]
            found = self._steps[key] = ticks(self._seconds(step, kind, scale))
        return found

    def _seconds(self, step: Step, kind: int, scale: float) -> float:
        device = self.classes.devices[kind]
        if step.is_collective:
            return collective.seconds(
                self.topology, self.mesh, step.kind, step.axes, step.bytes * scale, self.others
            )[0]
        if step.kind == "drop":
            return 0.0
        if step.kind == "copy":
            return step.bytes * scale / (device.host or device.bandwidth)
        bytes = (step.read + step.written) * scale
        return device.seconds(
            step.kind, step.flops * scale, bytes, step.dims, step.dtype, step.calls
        )

    def priced(self, segment: Segment) -> Priced:
        """The segment, priced."""
        found = self._segments.get(segment)
        if found is None:
            found = self._segments[segment] = self._priced(segment)
        return found

    def _priced(self, segment: Segment) -> Priced:
        ops: list[Op] = []
        made: list[list[int]] = []  # of each item, its ops
        work: dict[str, float] = {}
        for item in segment.items:
            step, own = item.step, []
            for members in self._members(step):
                price = max(self.price(step, c, whole=item.whole) for c in members)
                after = tuple(
                    j for i in item.after for j in made[i] if set(ops[j].classes) & set(members)
                )
                own.append(len(ops))
                ops.append(
                    Op(
                        tuple(self._stream(c, item.stream) for c in members),
                        price << SHIFT,
                        after,
                        tuple(self._stream(c, s) for s in item.drain for c in members),
                        item.stream == COMPUTE,
                        not (step.is_collective or step.kind == "copy"),
                        members,
                        self._claims(step, members),
                        step.name,
                    )
                )
                if 0 in members:
                    work[step.kind] = work.get(step.kind, 0.0) + price / TICKS
            made.append(own)
        memory = [self._memory(segment, c) for c in range(self.classes.count)]
        return Priced(
            len(self._segments),
            tuple(ops),
            tuple(peak for peak, _ in memory),
            tuple(net for _, net in memory),
            tuple(work.items()),
        )

    def _members(self, step: Step) -> tuple[tuple[int, ...], ...]:
        """The classes of each op of a step."""
        if step.is_collective:
            if step.axes not in self._sorts:
                axes = ", ".join(step.axes)
                raise KeyError(f"classes were made without the axes {axes}")
            return self._sorts[step.axes]
        return tuple((c,) for c in range(self.classes.count))

    def _stream(self, kind: int, name: str) -> int:
        return self._streams.setdefault((kind, name), len(self._streams))

    def stream_names(self) -> dict[int, tuple[int, str]]:
        """(class, name) of each stream by its number."""
        return {number: key for key, number in self._streams.items()}

    def _claims(self, step: Step, members: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
        if step.kind == "copy":
            return tuple((-1, c) for c in members)
        if not step.is_collective:
            return ()
        levels = self._levels.get(step.axes)
        if levels is None:
            spans = self.topology.spans(self.mesh, step.axes)
            levels = self._levels[step.axes] = tuple(span.level for span in spans)
        return tuple((level, c) for level in levels for c in members)

    def _memory(self, segment: Segment, kind: int) -> tuple[int, int]:
        rounded, scale = self.classes.devices[kind].rounded, self.classes.scale[kind]
        now = peak = 0
        for item in segment.items:
            part = 1.0 if item.whole else scale
            now += sum(rounded(round(size * part)) for size in item.step.alloc)
            peak = max(peak, now)
            now -= sum(rounded(round(size * part)) for size in item.step.free)
        return peak, now


def renumbered(op: Op, work: int, after: tuple[int, ...]) -> Op:
    """An op as it is left at the end of a segment."""
    return replace(op, work=work, after=after, drain=())
