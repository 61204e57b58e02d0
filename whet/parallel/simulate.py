"""The simulator: seconds and memory of one step of a placed model.

    Simulated := seconds, memory of each stage, what the time went into

Three levels, and what is equal is computed once on each:

    segment    a block's kernels and collectives on the streams of a device        engine
    pass       the segments of a stage in one direction for one microbatch          engine
    step       the passes of all groups, in the order of the schedule, with messages between them

A proposal that changes one step of one block prices that step, runs the segments with it from the
states that they now meet, and lays the passes out again: everything else is known. This is the
*delta*; it equals the full simulation (`flat`, every device, microbatch and step on its own)
exactly, since time and work are whole numbers and the engine has no memory but its state.

Source: Jia, Zaharia, Aiken, "Beyond Data and Model Parallelism for Deep Neural Networks", MLSys
2019, section 5 (task graph, full and delta simulation).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from whet.machine import Mesh, Topology
from whet.parallel import collective
from whet.parallel.agenda import LAST, Agenda, agenda
from whet.parallel.collective import Channel
from whet.parallel.engine import Memo
from whet.parallel.layout import Laid, lay
from whet.parallel.pipeline import Turn
from whet.parallel.placed import Placed, Stage, Step
from whet.parallel.price import TICKS, Priced, Pricer
from whet.parallel.symmetry import axes_used, classes
from whet.parallel.tasks import passes, resident


@dataclass(frozen=True, slots=True)
class Ran:
    """One pass of a stage, from rest to rest.

    Attributes:
        ticks: how long.
        busy: of these, how long the first class of devices computes.
        peak, net: bytes above its start that each class reaches, and ends with.
        work: (kind, seconds of it run alone), of the first class.
    """

    ticks: int
    busy: int
    peak: tuple[int, ...]
    net: tuple[int, ...]
    work: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class Simulated:
    """What one step of a placed model takes.

    Attributes:
        seconds: of the whole step.
        ticks: the same in picoseconds, exactly.
        memory: peak bytes of a device of each group, the fullest class of it.
        capacity: bytes that this device has.
        computing: of each group, the part of the step in which its devices compute.
        exposed: of each group, the part in which they wait for their own communication.
        idle: of each group, the rest: waiting for other groups.
        work: of each group, seconds of each kind of step run alone, all microbatches together.
        passes: (stage, name) to seconds of one pass; the last one of those that reduce gradients.
    """

    seconds: float
    ticks: int
    memory: tuple[int, ...]
    capacity: tuple[int, ...]
    computing: tuple[float, ...]
    exposed: tuple[float, ...]
    idle: tuple[float, ...]
    work: tuple[Mapping[str, float], ...] = field(hash=False)
    passes: Mapping[tuple[int, str], float] = field(hash=False)

    @property
    def fits(self) -> bool:
        """Every group's peak is within its device's memory."""
        return all(m <= c for m, c in zip(self.memory, self.capacity, strict=True))

    @property
    def critical(self) -> int:
        """The group that idles least: where a step can be made shorter."""
        return min(range(len(self.idle)), key=lambda g: self.idle[g])


class Simulator:
    """Simulates placed models on one topology, and remembers everything it has worked out.

    Args:
        topology: the machine.
    """

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        self._models: dict[tuple[object, ...], Model] = {}
        self._pricers: dict[tuple[object, ...], tuple[int, Pricer, Memo]] = {}
        self._at: dict[tuple[object, ...], tuple[int, Pricer, Memo]] = {}
        self._beside: dict[tuple[Mesh, ...], tuple[tuple[Mesh, ...], ...]] = {}
        self._channels: dict[tuple[object, ...], dict[tuple[int, int], Channel]] = {}

    def simulate(self, placed: Placed) -> Simulated:
        """One step.

        Raises:
            PlacedError: the placed model contradicts itself.
            WhetError: it does not fit the topology.
        """
        models, plan, ran, laid = self.laid(placed)
        return self._summary(placed, models, plan, ran, laid)

    def laid(self, placed: Placed) -> tuple[list[Model], Agenda, list[Ran], Laid]:
        """The models of its stages, its agenda, each of its passes, and when everything runs."""
        models = [self.model(placed, k) for k in range(len(placed.stages))]
        plan = agenda(placed)
        ran = [self.ran(models[stage], name, placed) for stage, name in plan.passes]
        between = self.channels(placed)
        channels = [between[ends] for ends in plan.channels]
        return models, plan, ran, lay(plan, [r.ticks for r in ran], channels)

    def starts(self, placed: Placed) -> dict[Turn, int]:
        """The tick at which each pass starts."""
        _, plan, _, laid = self.laid(placed)
        return dict(zip(plan.turns, laid.starts, strict=True))

    def step_s(self, step: Step, mesh: Mesh, device: int = 0) -> float:
        """Seconds of one step alone: a kernel on the mesh's `device`-th device, or a collective."""
        if step.is_collective:
            return collective.seconds(self.topology, mesh, step.kind, step.axes, step.bytes)[0]
        of = self.topology.device(mesh.devices[device])
        bytes = step.read + step.written
        return of.seconds(step.kind, step.flops, bytes, step.dims, step.dtype, step.calls)

    # ---- stages ----

    def model(self, placed: Placed, number: int) -> Model:
        """What is known of a stage: its pricer, and its passes as far as they ran.

        Stages that differ in the numbers of their devices alone are the same one.
        """
        stage = placed.stages[number]
        mesh, pricer, memo = self._pricer(placed, number)
        choices = (
            stage.runs, stage.recompute, stage.zero, stage.offload, stage.overlap, stage.eager,
        )  # fmt: skip
        key = (mesh, choices, placed.optimizer, placed.training)
        found = self._models.get(key)
        if found is None:
            base = self._base(placed, stage, pricer)
            found = self._models[key] = Model(stage, pricer, memo, {}, base)
        return found

    def _pricer(self, placed: Placed, number: int) -> tuple[int, Pricer, Memo]:
        stage = placed.stages[number]
        # Of all chunks of the group, so that they agree on the classes of its devices.
        used = axes_used(placed.chunks_of(number % placed.groups))
        others = self._others(placed)[number % placed.groups]
        at = (stage.mesh, stage.shares, used, others)
        found = self._at.get(at)
        if found is None:
            parts = classes(self.topology, stage.mesh, stage.shares, used)
            paths = tuple(collective.hops(self.topology, stage.mesh, axes, others) for axes in used)
            like = (stage.mesh.axes, used, paths, parts)
            if like not in self._pricers:
                pricer = Pricer(self.topology, stage.mesh, parts, others)
                self._pricers[like] = (len(self._pricers), pricer, Memo(pricer.slowdown))
            found = self._at[at] = self._pricers[like]
        return found

    def _others(self, placed: Placed) -> tuple[tuple[Mesh, ...], ...]:
        meshes = tuple(stage.mesh for stage in placed.stages[: placed.groups])
        found = self._beside.get(meshes)
        if found is None:
            found = self._beside[meshes] = collective.neighbours(self.topology, meshes)
        return found

    def _base(self, placed: Placed, stage: Stage, pricer: Pricer) -> tuple[int, ...]:
        sizes = resident(stage, placed.optimizer, training=placed.training)
        return tuple(sum(map(device.rounded, sizes)) for device in pricer.classes.devices)

    def ran(self, model: Model, name: str, placed: Placed) -> Ran:
        """One pass of a stage, by its name in the agenda."""
        found = model.passes.get(name)
        if found is None:
            found = model.passes[name] = _run(model, name, placed)
        return found

    # ---- messages ----

    def channels(self, placed: Placed) -> dict[tuple[int, int], Channel]:
        """Messages between neighbouring stages: (from, to) → channel."""
        key = (
            tuple((stage.mesh, stage.output) for stage in placed.stages),
            placed.chunks,
            placed.training,
        )
        found = self._channels.get(key)
        if found is None:
            found = self._channels[key] = collective.channels(self.topology, placed)
        return found

    # ---- the step ----

    def _summary(
        self,
        placed: Placed,
        models: Sequence[Model],
        plan: Agenda,
        ran: Sequence[Ran],
        laid: Laid,
    ) -> Simulated:
        memory, capacity, computing, exposed, works = [], [], [], [], []
        total = max(laid.ticks, 1)
        for g, counts in enumerate(plan.counts):
            size, limit = peak_of_group(placed, g, models, plan, ran)
            memory.append(size)
            capacity.append(limit)
            busy = sum(times * ran[k].busy for k, times in counts)
            spent = sum(times * ran[k].ticks for k, times in counts)
            computing.append(busy / total)
            exposed.append((spent - busy) / total)
            work: dict[str, float] = {}
            for k, times in counts:
                for kind, seconds in ran[k].work:
                    work[kind] = work.get(kind, 0.0) + times * seconds
            works.append(work)
        idle = tuple(max(0.0, 1 - c - e) for c, e in zip(computing, exposed, strict=True))
        each = {
            (stage, name.removesuffix(LAST)): r.ticks / TICKS
            for (stage, name), r in sorted(zip(plan.passes, ran, strict=True), key=_by_name)
        }
        return Simulated(
            laid.ticks / TICKS,
            laid.ticks,
            tuple(memory),
            tuple(capacity),
            tuple(computing),
            tuple(exposed),
            idle,
            tuple(works),
            each,
        )


def _by_name(row: tuple[tuple[int, str], Ran]) -> tuple[int, str]:
    """The last pass of a kind, which reduces gradients too, comes behind the others."""
    return row[0]


@dataclass(slots=True)
class Model:
    """A stage with what was worked out for it.

    Attributes:
        stage: the stage.
        pricer: prices on its mesh.
        memo: the segments that ran on its mesh.
        passes: the passes that ran.
        base: bytes that a device of each class holds all the time.
    """

    stage: Stage
    pricer: Pricer
    memo: Memo
    passes: dict[str, Ran]
    base: tuple[int, ...]


def priced_segments(model: Model, name: str, placed: Placed) -> list[tuple[Priced, int]]:
    """The priced segments of a pass; a name that ends with `LAST` is the last microbatch's."""
    plain = name.removesuffix(LAST)
    segments = passes(model.stage, placed.optimizer, plain, last=plain != name)
    return [(model.pricer.priced(segment), times) for segment, times in segments]


def _run(model: Model, name: str, placed: Placed) -> Ran:
    found = priced_segments(model, name, placed)
    ticks, busy = model.memo.run(found)
    count = model.pricer.classes.count
    peak, net = [0] * count, [0] * count
    work: dict[str, float] = {}
    for segment, times in found:
        for c in range(count):
            grown = max(0, times - 1) * max(0, segment.net[c])
            peak[c] = max(peak[c], net[c] + grown + segment.peak[c])
            net[c] += times * segment.net[c]
        for kind, seconds in segment.work:
            work[kind] = work.get(kind, 0.0) + times * seconds
    return Ran(ticks, busy, tuple(peak), tuple(net), tuple(work.items()))


def peak_of_group(
    placed: Placed, group: int, models: Sequence[Model], plan: Agenda, ran: Sequence[Ran]
) -> tuple[int, int]:
    """(peak bytes, capacity) of the class of a group's devices that is fullest.

    Memory follows the order in which a program allocates, which does not depend on timing. An
    activation that comes from the stage before is held from forward to backward.
    """
    parts = models[group].pricer.classes
    worst = (0, 1)
    for c, device in enumerate(parts.devices):
        now = sum(models[s].base[c] for s in range(group, len(placed.stages), placed.groups))
        peak = now
        # Of each pass: bytes that come before it, its peak, and what is left behind it.
        steps: dict[int, tuple[int, int, int]] = {}
        for k, _ in plan.counts[group]:
            stage, name = plan.passes[k]
            came = placed.stages[stage - 1].output if stage else 0
            came = device.rounded(round(came * parts.scale[c]))
            enters = came if name == "forward" else 0
            ends = not placed.training or name.removesuffix(LAST) in ("backward", "inputs")
            after = ran[k].net[c] - (came if ends else 0)
            steps[k] = (enters, ran[k].peak[c], after)
        for i in plan.groups[group]:
            enters, most, after = steps[plan.kind[i]]
            now += enters
            if now + most > peak:
                peak = now + most
            now += after
        if peak * worst[1] > worst[0] * device.memory:
            worst = (peak, device.memory)
    return worst
