"""A placed model: what every device does in one step, block by block, ready to be simulated.

    Placed  := Stage+ microbatches schedule chunks Optimizer training
    Stage   := Mesh Run+ recompute zero offload output shares
    Run     := Block times                             consecutive equal blocks, said once
    Block   := forward: Step*, backward: Step*, Weights*, boundary
    Step    := kernel | collective                     of one device, for one microbatch

A search makes these from a graph and its shardings; `tasks` adds what follows from the stage's
choices (gathering of sharded weights, reduction of gradients, recomputation, offload, sends, the
update), and `simulate` runs it. Everything is immutable and compared by value: what two proposals
share is simulated once.

Stages stand in the order of the model. With `chunks` > 1, group g of devices runs the stages g,
g + groups, g + 2·groups, …, where groups = stages / chunks; those have the same mesh.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from whet.errors import WhetError
from whet.machine import Mesh

COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast")
SCHEDULES = ("gpipe", "1f1b", "interleaved", "zero_bubble")
OFFLOADS = frozenset({"optimizer", "activations"})


class PlacedError(WhetError):
    """A placed model that contradicts itself."""


@dataclass(frozen=True, slots=True)
class Step:
    """One kernel, or one collective, as one device sees it for one microbatch.

    Attributes:
        name: for readers.
        kind: a class of kernels (`whet.machine.device.KINDS`) or one of `COLLECTIVES`.
        flops, read, written: operations and bytes of the local shard.
        dims: (batch, m, n, k) of a contraction, local; empty for others.
        dtype: of the arithmetic.
        bytes: of collectives, the whole tensor of a group: what an all_reduce sums, what an
            all_gather makes, what a reduce_scatter takes, what each rank puts into an all_to_all.
        axes: of collectives, the axes of the mesh along which a group lies.
        after: earlier steps of the same list whose result it needs. Kernels run in the order of the
            list, and so do collectives of the same axes; only what crosses from one to the other
            has to be said.
        alloc, free: bytes of each tensor that is allocated when it is issued (results, scratch),
            and of each that is given back behind it.
        weight: of backward steps, makes a weight's gradient only, which may be put off.
        calls: operations of a program that it is; each takes the device's launch.
    """

    name: str
    kind: str
    flops: int = 0
    read: int = 0
    written: int = 0
    dims: tuple[int, ...] = ()
    dtype: str = "float32"
    bytes: int = 0
    axes: tuple[str, ...] = ()
    after: tuple[int, ...] = ()
    alloc: tuple[int, ...] = ()
    free: tuple[int, ...] = ()
    weight: bool = False
    calls: int = 1

    @property
    def is_collective(self) -> bool:
        return self.kind in COLLECTIVES


@dataclass(frozen=True, slots=True)
class Weights:
    """Parameters of a block that are treated alike.

    Attributes:
        name: for readers.
        elements: on one device, before ZeRO shards them further.
        dtype_bytes: bytes of one element while computing.
        reduce: axes along which devices hold the same elements and see different data: the
            gradient is summed over them, and ZeRO shards over them.
        trainable: it has a gradient.
        count: parameters that it consists of.
    """

    name: str
    elements: int
    dtype_bytes: int = 4
    reduce: tuple[str, ...] = ()
    trainable: bool = True
    count: int = 1


@dataclass(frozen=True, slots=True)
class Block:
    """What is repeated in a model: a layer, as one device of its stage computes it.

    Attributes:
        name: for readers; blocks of different names are different.
        forward, backward: steps in program order.
        weights: its parameters.
        boundary: bytes on one device of the activation that enters it: all that is kept of it when
            the stage recomputes.
        finish: collectives that bring gradients to where their parameters lie, once for all
            microbatches (in each where gradients are scattered at once), before they are reduced.
    """

    name: str
    forward: tuple[Step, ...]
    backward: tuple[Step, ...] = ()
    weights: tuple[Weights, ...] = ()
    boundary: int = 0
    finish: tuple[Step, ...] = ()
    _hash: int = field(init=False, compare=False, repr=False, default=0)

    def __post_init__(self) -> None:
        parts = (self.name, self.forward, self.backward, self.weights, self.boundary, self.finish)
        object.__setattr__(self, "_hash", hash(parts))

    def __hash__(self) -> int:
        return self._hash

    @property
    def kept(self) -> tuple[int, ...]:
        """Bytes of each tensor that forward leaves for backward."""
        left = Counter(size for step in self.forward for size in step.alloc)
        left.subtract(size for step in self.forward for size in step.free)
        return tuple(sorted(size for size, times in left.items() for _ in range(times)))

    @property
    def flops(self) -> int:
        """Operations of forward and backward, without recomputation."""
        return sum(s.flops for s in (*self.forward, *self.backward))


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive equal blocks."""

    block: Block
    times: int = 1


@dataclass(frozen=True, slots=True)
class Stage:
    """Consecutive blocks on one mesh.

    Attributes:
        mesh: the devices, and the axes that steps refer to.
        runs: its blocks in order.
        recompute: forward keeps only what enters each block; backward computes the rest again.
        zero: what is sharded over the axes of `Weights.reduce`: 0 nothing, 1 the optimizer's
            state, 2 gradients too, 3 the parameters too.
        offload: what lives in the host's memory, of `OFFLOADS`.
        output: bytes that each device sends to the next stage for each microbatch.
        shares: uneven replicas: the part of the samples that each index along the first axis gets,
            relative to an even part; () for even ones.
        overlap: gradients are reduced while backward goes on; otherwise after it.
        eager: it waits for each collective, and adds gradients up by operations of their own; see
            `whet.machine.device.Device.eager`.
    """

    mesh: Mesh
    runs: tuple[Run, ...]
    recompute: bool = False
    zero: int = 0
    offload: frozenset[str] = frozenset()
    output: int = 0
    shares: tuple[float, ...] = ()
    overlap: bool = True
    eager: bool = False

    @property
    def blocks(self) -> tuple[Block, ...]:
        """Its blocks, each as often as it occurs."""
        return tuple(run.block for run in self.runs for _ in range(run.times))


@dataclass(frozen=True, slots=True)
class Optimizer:
    """What an update costs for each element of a parameter.

    Attributes:
        state: bytes of state that is kept (Adam in mixed precision: two moments and a master copy
            in float32 are 12).
        gradient: bytes of a gradient's element.
        flops: operations.
    """

    state: int = 8
    gradient: int = 4
    flops: int = 12


@dataclass(frozen=True, slots=True)
class Placed:
    """A model on a topology.

    Attributes:
        stages: in the order of the model.
        microbatches: how often each stage runs in one step.
        schedule: one of `SCHEDULES`; of no matter with one stage and one microbatch.
        chunks: stages of one group of devices; more than 1 with "interleaved" only.
        optimizer: its costs.
        training: with backward and update; otherwise forward alone.
    """

    stages: tuple[Stage, ...]
    microbatches: int = 1
    schedule: str = "1f1b"
    chunks: int = 1
    optimizer: Optimizer = Optimizer()
    training: bool = True

    @property
    def groups(self) -> int:
        """Groups of devices: the length of the pipeline."""
        return len(self.stages) // self.chunks

    def chunks_of(self, group: int) -> tuple[Stage, ...]:
        """The stages that one group of devices runs."""
        return self.stages[group :: self.groups]

    def checked(self) -> Placed:
        """Itself.

        Raises:
            PlacedError: it contradicts itself.
        """
        _check(self)
        return self


def _check(placed: Placed) -> None:
    if placed.schedule not in SCHEDULES:
        raise PlacedError("no such schedule", expected=", ".join(SCHEDULES), got=placed.schedule)
    if placed.microbatches < 1:
        raise PlacedError(
            "a step has a microbatch", expected="microbatches >= 1", got=placed.microbatches
        )
    if not placed.stages or placed.chunks < 1 or len(placed.stages) % placed.chunks:
        raise PlacedError(
            "every group of devices runs as many stages as there are chunks",
            expected=f"a multiple of {placed.chunks} stages",
            got=len(placed.stages),
        )
    if placed.chunks > 1 and placed.schedule != "interleaved":
        raise PlacedError(
            "only an interleaved schedule has chunks", expected="chunks = 1", got=placed.chunks
        )
    used: Counter[int] = Counter()
    for group in range(placed.groups):
        first, *others = placed.chunks_of(group)
        if any((s.mesh, s.shares) != (first.mesh, first.shares) for s in others):
            raise PlacedError(
                "the chunks of a group share its mesh and its samples", where=f"group {group}"
            )
        used.update(first.mesh.devices)
    twice = [d for d, times in used.items() if times > 1]
    if twice:
        raise PlacedError(
            "a device belongs to one stage", got=f"device {twice[0]} in {used[twice[0]]}"
        )
    for place, stage in enumerate(placed.stages):
        _check_stage(stage, f"stage {place}")


def _check_stage(stage: Stage, where: str) -> None:
    if stage.zero not in (0, 1, 2, 3):
        raise PlacedError("no such ZeRO", expected="0, 1, 2 or 3", got=stage.zero, where=where)
    if not stage.offload <= OFFLOADS:
        raise PlacedError(
            "this cannot be offloaded",
            expected=", ".join(sorted(OFFLOADS)),
            got=", ".join(sorted(stage.offload - OFFLOADS)),
            where=where,
        )
    if stage.shares and len(stage.shares) != stage.mesh.shape[0]:
        raise PlacedError(
            "uneven replicas need a share for each index of the first axis",
            expected=f"{stage.mesh.shape[0]} shares",
            got=len(stage.shares),
            where=where,
        )
    axes = {name for name, _ in stage.mesh.axes}
    for block in dict.fromkeys(run.block for run in stage.runs):
        for steps in (block.forward, block.backward):
            for k, step in enumerate(steps):
                at = f"{where}, block {block.name}, step {k} {step.name}"
                if any(not 0 <= j < k for j in step.after):
                    raise PlacedError(
                        "a step waits for earlier steps only",
                        expected=f"0 to {k - 1}",
                        got=step.after,
                        where=at,
                    )
                if step.is_collective and not step.axes:
                    raise PlacedError("a collective lies along an axis", where=at)
                _check_axes(step.axes, axes, at)
        for weights in block.weights:
            _check_axes(weights.reduce, axes, f"{where}, block {block.name}, {weights.name}")


def _check_axes(axes: tuple[str, ...], known: set[str], where: str) -> None:
    for axis in axes:
        if axis not in known:
            raise PlacedError(
                "the mesh has no such axis",
                expected=", ".join(sorted(known)),
                got=axis,
                where=where,
            )
