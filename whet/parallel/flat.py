"""The full simulation: every device, every microbatch, every step on its own, in one event loop.

    Task := streams ticks after kernel devices claims

It takes no advantage of anything: no classes of devices, no repeated blocks, nothing remembered.
What it says is what a plan means; `simulate.Simulator` says the same, faster, and tests hold the
two together. The loop (`run`) takes any tasks, and lays out passes whose messages share links too.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

from whet.errors import WhetError
from whet.machine import Topology
from whet.parallel import collective
from whet.parallel.pipeline import Turn, needs, orders
from whet.parallel.placed import Placed, Stage, Step
from whet.parallel.price import FULL, SHIFT, ticks
from whet.parallel.tasks import COMPUTE, Item, passes, resident


@dataclass(slots=True)
class Task:
    """One thing that happens.

    Attributes:
        name: for readers.
        streams: each runs its tasks in the order in which they are listed.
        ticks: of work, alone.
        after: numbers of tasks that are done before it starts.
        kernel: it computes (True), it moves data (False), or neither (None): fences and messages.
        devices: where it slows others down and is slowed down.
        claims: what it shares evenly with all that claim the same.
    """

    name: str
    streams: tuple[Hashable, ...] = ()
    ticks: int = 0
    after: list[int] = field(default_factory=list)
    kernel: bool | None = None
    devices: tuple[int, ...] = ()
    claims: tuple[Hashable, ...] = ()


Rates = Mapping[int, tuple[int, int]]


def run(tasks: Sequence[Task], slowdown: Rates) -> tuple[list[int], list[int]]:
    """Start and end of each task, in ticks.

    Args:
        tasks: in the order in which each stream runs its own.
        slowdown: of each device, the rates of a kernel and of a collective beside each other.

    Raises:
        WhetError: tasks wait for each other.
    """
    loop = _Loop(tasks, slowdown)
    loop.run()
    return loop.starts, loop.ends


class _Loop:
    """Events in order of time; rates of running tasks change as others start and end."""

    def __init__(self, tasks: Sequence[Task], slowdown: Rates) -> None:
        self.tasks, self.slowdown = tasks, slowdown
        count = len(tasks)
        self.starts, self.ends = [-1] * count, [-1] * count
        self.left = [t.ticks << SHIFT for t in tasks]
        self.rate, self.since, self.version = [0] * count, [0] * count, [0] * count
        self.waiting = [len(set(t.after)) for t in tasks]
        self.behind: list[list[int]] = [[] for _ in tasks]
        self.queues: dict[Hashable, list[int]] = {}
        for i, t in enumerate(tasks):
            for j in set(t.after):
                self.behind[j].append(i)
            for s in t.streams:
                self.queues.setdefault(s, []).append(i)
        for queue in self.queues.values():
            queue.reverse()
        self.kernels: dict[int, set[int]] = {}
        self.moves: dict[int, set[int]] = {}
        self.claimed: dict[Hashable, set[int]] = {}
        self.heap: list[tuple[int, int, int]] = []
        self.now = 0

    def run(self) -> None:
        open_ = len(self.tasks)
        fresh = set(range(len(self.tasks)))
        while open_:
            touched: set[int] = set()
            ready = [i for i in sorted(fresh) if self._can_start(i)]
            for i in ready:
                self._start(i, touched)
            for i in touched:
                self._settle(i)
            if not self.heap:
                stuck = [t.name for t, end in zip(self.tasks, self.ends, strict=True) if end < 0]
                raise WhetError("tasks wait for each other", got=", ".join(stuck[:6]))
            fresh = set()
            touched = set()
            time = None
            while self.heap:
                at, i, version = self.heap[0]
                if version != self.version[i] or self.ends[i] >= 0:
                    heapq.heappop(self.heap)
                    continue
                if time is not None and at != time:
                    break
                time = self.now = at
                heapq.heappop(self.heap)
                self._end(i, fresh, touched)
                open_ -= 1
            for i in touched:
                if self.ends[i] < 0:
                    self._settle(i)

    def _can_start(self, i: int) -> bool:
        if self.waiting[i] or self.starts[i] >= 0:
            return False
        return all(self.queues[s][-1] == i for s in self.tasks[i].streams)

    def _start(self, i: int, touched: set[int]) -> None:
        task = self.tasks[i]
        self.starts[i] = self.since[i] = self.now
        touched.add(i)
        self._enter(i, task, touched)

    def _enter(self, i: int, task: Task, touched: set[int]) -> None:
        if task.kernel is not None:
            own, other = (self.kernels, self.moves) if task.kernel else (self.moves, self.kernels)
            for d in task.devices:
                own.setdefault(d, set()).add(i)
                touched |= other.get(d, set())
        for claim in task.claims:
            users = self.claimed.setdefault(claim, set())
            touched |= users
            users.add(i)

    def _end(self, i: int, fresh: set[int], touched: set[int]) -> None:
        task = self.tasks[i]
        self.ends[i] = self.now
        if task.kernel is not None:
            own, other = (self.kernels, self.moves) if task.kernel else (self.moves, self.kernels)
            for d in task.devices:
                own[d].discard(i)
                touched |= other.get(d, set())
        for claim in task.claims:
            self.claimed[claim].discard(i)
            touched |= self.claimed[claim]
        for s in task.streams:
            self.queues[s].pop()
            if self.queues[s]:
                fresh.add(self.queues[s][-1])
        for j in self.behind[i]:
            self.waiting[j] -= 1
            fresh.add(j)

    def _settle(self, i: int) -> None:
        """Count what a running task has done, and when it will end at its present rate."""
        self.left[i] -= self.rate[i] * (self.now - self.since[i])
        self.since[i] = self.now
        self.rate[i] = self._rate(self.tasks[i])
        self.version[i] += 1
        end = self.now + max(0, -(-self.left[i] // self.rate[i]))
        heapq.heappush(self.heap, (end, i, self.version[i]))

    def _rate(self, task: Task) -> int:
        if task.kernel:
            return min(self.slowdown[d][0] if self.moves.get(d) else FULL for d in task.devices)
        rate = FULL // max([1, *(len(self.claimed[c]) for c in task.claims)])
        if task.kernel is None:
            return max(1, rate)
        beside = min(
            (self.slowdown[d][1] for d in task.devices if self.kernels.get(d)), default=FULL
        )
        return max(1, rate * beside >> SHIFT)


@dataclass(frozen=True, slots=True)
class Full:
    """A step, simulated in full.

    Attributes:
        ticks: of the whole step.
        memory: peak bytes of each device that takes part.
        starts: when each pass starts.
        tasks: all tasks, with `begins` and `ends` in ticks.
    """

    ticks: int
    memory: Mapping[int, int]
    starts: Mapping[Turn, int]
    tasks: Sequence[Task] = field(repr=False)
    begins: Sequence[int] = field(repr=False)
    ends: Sequence[int] = field(repr=False)


def full(placed: Placed, topology: Topology) -> Full:
    """One step of a placed model, in full."""
    expansion = _Expansion(placed, topology)
    tasks = expansion.tasks
    slow = {
        d: tuple(round(FULL / max(1.0, f)) for f in topology.device(d).slowdown)
        for stage in placed.stages
        for d in stage.mesh.devices
    }
    begins, ends = run(tasks, slow)  # type: ignore[arg-type]
    starts = {turn: ends[i] for turn, i in expansion.begin.items()}
    return Full(max(ends, default=0), expansion.memory(), starts, tasks, begins, ends)


class _Expansion:
    """The tasks of a placed model."""

    def __init__(self, placed: Placed, topology: Topology) -> None:
        self.placed, self.topology = placed, topology
        self.tasks: list[Task] = []
        self.begin: dict[Turn, int] = {}
        self.finish: dict[Turn, int] = {}
        self.orders = orders(placed)
        self.last = len(placed.stages) - 1
        meshes = [stage.mesh for stage in placed.stages[: placed.groups]]
        self.others = dict(zip(meshes, collective.neighbours(topology, meshes), strict=True))
        for group, order in enumerate(self.orders):
            before = -1
            for turn in order:
                before = self._pass(turn, group, before)
        self._messages()

    def _add(self, task: Task) -> int:
        self.tasks.append(task)
        return len(self.tasks) - 1

    def segments(self, turn: Turn) -> list[tuple[Item, ...]]:
        """The items of each segment of a pass, every repetition apart."""
        last = turn.microbatch == self.placed.microbatches - 1
        last = last and turn.name in ("backward", "weights")
        stage = self.placed.stages[turn.stage]
        found = passes(stage, self.placed.optimizer, turn.name, last=last)
        return [segment.items for segment, times in found for _ in range(times)]

    def _pass(self, turn: Turn, group: int, before: int) -> int:
        stage = self.placed.stages[turn.stage]
        waits = [before] if before >= 0 else []
        fence = self.begin[turn] = self._add(Task(f"begin {turn}", after=waits))
        every: list[int] = [fence]
        on_stream: dict[tuple[int, str], list[int]] = {}
        for items in self.segments(turn):
            made: list[list[int]] = []
            computing: list[int] = [fence]
            earlier = {key: list(found) for key, found in on_stream.items()}
            for item in items:
                own = []
                for places in self._members(stage, item.step):
                    devices = tuple(stage.mesh.devices[k] for k in places)
                    mates = set(devices)
                    after = [fence]
                    after += [
                        j for i in item.after for j in made[i] if mates & set(self.tasks[j].devices)
                    ]
                    after += [
                        j for s in item.drain for d in devices for j in earlier.get((d, s), ())
                    ]
                    task = self._task(stage, item, places, devices, after)
                    number = self._add(task)
                    own.append(number)
                    for d in devices:
                        on_stream.setdefault((d, item.stream), []).append(number)
                    if item.stream == COMPUTE:
                        computing.append(number)
                made.append(own)
                every += own
            fence = self._add(Task("fence", after=computing))
            every.append(fence)
        end = self.finish[turn] = self._add(Task(f"end {turn}", after=every))
        return end

    def _members(self, stage: Stage, step: Step) -> list[tuple[int, ...]]:
        """Places in the mesh of the devices of each task of a step."""
        if not step.is_collective:
            return [(k,) for k in range(len(stage.mesh.devices))]
        places = {d: k for k, d in enumerate(stage.mesh.devices)}
        return [tuple(places[d] for d in group) for group in stage.mesh.groups(step.axes)]

    def _scale(self, stage: Stage, place: int) -> float:
        if not stage.shares:
            return 1.0
        per_index = len(stage.mesh.devices) // len(stage.shares)
        return stage.shares[place // per_index] / (sum(stage.shares) / len(stage.shares))

    def _task(
        self,
        stage: Stage,
        item: Item,
        places: tuple[int, ...],
        devices: tuple[int, ...],
        after: list[int],
    ) -> Task:
        step = item.step
        work = 0
        for place, d in zip(places, devices, strict=True):
            scale = 1.0 if item.whole else self._scale(stage, place)
            work = max(work, ticks(self._seconds(stage, step, d, scale)))
        claims: tuple[Hashable, ...] = ()
        if step.kind == "copy":
            claims = tuple((-1, d) for d in devices)
        elif step.is_collective:
            spans = self.topology.spans(stage.mesh, step.axes)
            claims = tuple((span.level, d) for span in spans for d in devices)
        kernel = not (step.is_collective or step.kind == "copy")
        streams = tuple((d, item.stream) for d in devices)
        return Task(step.name, streams, work, after, kernel, devices, claims)

    def _seconds(self, stage: Stage, step: Step, d: int, scale: float) -> float:
        device = self.topology.device(d)
        if step.is_collective:
            size = step.bytes * scale
            others = self.others[stage.mesh]
            found = collective.seconds(
                self.topology, stage.mesh, step.kind, step.axes, size, others
            )
            return found[0]
        if step.kind == "copy":
            return step.bytes * scale / (device.host or device.bandwidth)
        if step.kind == "drop":
            return 0.0
        bytes = (step.read + step.written) * scale
        return device.seconds(
            step.kind, step.flops * scale, bytes, step.dims, step.dtype, step.calls
        )

    def _messages(self) -> None:
        """A task for each message, on the stream of its channel, in the order of the sender."""
        groups = self.placed.groups
        channels = collective.channels(self.topology, self.placed)
        for order in self.orders:
            for turn in order:
                for receiver in self._receivers(turn):
                    channel = channels[turn.stage, receiver.stage]
                    pair = ("channel", turn.stage % groups, receiver.stage % groups)
                    number = self._add(
                        Task(
                            f"message of {turn}",
                            (pair,),
                            channel.ticks,
                            [self.finish[turn]],
                            claims=channel.claims,
                        )
                    )
                    self.tasks[self.begin[receiver]].after.append(number)

    def _receivers(self, turn: Turn) -> list[Turn]:
        found = []
        for stage in (turn.stage - 1, turn.stage + 1):
            other = turn._replace(stage=stage)
            if other in self.begin and needs(other, self.placed, self.last) == turn:
                found.append(other)
        return found

    def memory(self) -> dict[int, int]:
        """Peak bytes of each device: its program's allocations in order."""
        placed, peaks = self.placed, {}
        for group, order in enumerate(self.orders):
            for place, d in enumerate(placed.stages[group].mesh.devices):
                device = self.topology.device(d)
                now = sum(
                    device.rounded(size)
                    for stage in placed.chunks_of(group)
                    for size in resident(stage, placed.optimizer, training=placed.training)
                )
                peak = now
                for turn in order:
                    stage = placed.stages[turn.stage]
                    scale = self._scale(stage, place)
                    came = placed.stages[turn.stage - 1].output if turn.stage else 0
                    came = device.rounded(round(came * scale))
                    if turn.name == "forward":
                        now += came
                    peak = max(peak, now)
                    for items in self.segments(turn):
                        for item in items:
                            part = 1.0 if item.whole else scale
                            for size in item.step.alloc:
                                now += device.rounded(round(size * part))
                            peak = max(peak, now)
                            for size in item.step.free:
                                now -= device.rounded(round(size * part))
                    if turn.name in ("backward", "inputs") or not placed.training:
                        now -= came
                peaks[d] = peak
        return peaks
