"""A plan as what each rank does: computations, and exchanges between them, in order.

    Program := Stage+ Message*
    Stage   := Piece+ mesh                        the blocks of one part of the plan
    Piece   := forward: Op*, backward: Op*, Bucket*
    Op      := Compute | Exchange | Total         each makes the value of a Key
    Key     := node, sharding                     a value as it lies on the mesh
    Bucket  := parameters whose gradients are reduced together
    Message := a value from one stage to another, for each microbatch

All ranks of a stage run the same operations on their own parts. Exchanges are the moves of the
reshard; the axis of microbatches is in time, so nothing may be exchanged along it, and what is
partial along it is added up from one microbatch to the next. The lists mirror those that the
simulator prices (`whet.parallel.lowering`): each collective here is one there.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from whet.errors import WhetError
from whet.ir.graph import Node
from whet.machine import Mesh
from whet.parallel.blocks import Layer, Model
from whet.parallel.choice import Choice
from whet.parallel.parts import Marks
from whet.parallel.sharding import Axes, Move, Sharding
from whet.parallel.strategy import Part, Strategy

Chosen = Callable[[Part, int], Mapping[Node, Choice]]


class NotExecutable(WhetError):
    """A plan that cannot be run here, or not at all."""


@dataclass(frozen=True, slots=True)
class Key:
    """A value as it lies on a mesh; every operation of a run looks several up."""

    node: Node
    at: Sharding
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_hash", hash((self.node, self.at)))

    def __hash__(self) -> int:
        return self._hash


@dataclass(frozen=True, slots=True)
class Compute:
    """A node on every rank's parts of its operands.

    Attributes:
        choice: how it is cut.
        reads: of each present operand in order; None where the node does not read it.
    """

    node: Node
    choice: Choice
    reads: tuple[Key | None, ...]
    key: Key


@dataclass(frozen=True, slots=True)
class Exchange:
    """One move of a reshard.

    Attributes:
        marks: the factors of the value's dims.
    """

    move: Move
    source: Key
    key: Key
    marks: Marks


@dataclass(frozen=True, slots=True)
class Total:
    """What depends on inputs alone, combined over all microbatches before any of them runs.

    How many targets count, say: a mean divides by it, and no pass has to be waited for.

    Attributes:
        how: sum, max, min or prod.
        ops: what makes the source in one microbatch.
    """

    how: str
    ops: tuple[Compute | Exchange, ...]
    source: Key
    key: Key


Op = Compute | Exchange | Total


@dataclass(frozen=True, slots=True)
class Bucket:
    """Parameters of a block whose gradients are summed over the same ranks, as one flat tensor.

    Attributes:
        parameters: in order, as they lie there.
        gradients: of each, as it is made.
        finish: of each, the moves that bring its sum over the microbatches to where the parameter
            lies, but for the sum over `reduce`.
        reduce: axes of the mesh; with ZeRO what is sharded is sharded over them.
        elements: on one rank, in whole.
        width: bytes of an element.
    """

    parameters: tuple[Key, ...]
    gradients: tuple[Key, ...]
    finish: tuple[tuple[Exchange, ...], ...]
    reduce: tuple[str, ...]
    elements: int
    width: int


@dataclass(frozen=True, slots=True)
class Piece:
    """One block on the ranks of its stage.

    Attributes:
        place: in the model.
        kept: what forward makes that its own backward reads.
        sent: what it makes that other blocks read, as they read it.
        entering: what forward reads of other blocks.
    """

    place: int
    forward: tuple[Op, ...]
    backward: tuple[Op, ...]
    buckets: tuple[Bucket, ...]
    frozen: tuple[Key, ...]
    kept: frozenset[Key]
    sent: frozenset[Key]
    entering: frozenset[Key]
    marks: Mapping[Node, Marks]


@dataclass(frozen=True, slots=True)
class Stage:
    """One part of the plan.

    Attributes:
        axes: microbatches first, then the axes of the mesh that are longer than 1.
        loss: of a training step, in its last stage.
        updates: new values of leaves, each with the moves that bring it to where the leaf lies.
        results: of a forward pass alone, what is handed out: (number of the graph's output, key);
            samples are cut as its stage cuts them, the rest is whole.
    """

    part: Part
    mesh: Mesh
    axes: Axes
    pieces: tuple[Piece, ...]
    loss: Key | None
    updates: tuple[tuple[Key, Key, tuple[Exchange, ...]], ...]
    results: tuple[tuple[int, Key], ...] = ()


@dataclass(frozen=True, slots=True)
class Message:
    """A value that one stage makes and another reads.

    Attributes:
        source, key: as it lies with the sender and with the receiver.
        made, read: the pass that makes it and the first that reads it: "forward", "backward", or
            "start" for parameters of another stage.
        cut: (dim, inner) of the samples; None where it is whole.
    """

    sender: int
    receiver: int
    source: Key
    key: Key
    made: str
    read: str
    cut: tuple[int, int] | None
    marks: Marks = ()


@dataclass(frozen=True, slots=True)
class Program:
    """A whole plan.

    Attributes:
        own: values that depend on no input and no parameter; every rank makes them for itself.
    """

    model: Model
    strategy: Strategy
    stages: tuple[Stage, ...]
    messages: tuple[Message, ...]
    own: tuple[Node, ...]

    @property
    def ranks(self) -> int:
        return sum(len(s.part.devices) for s in self.stages[: self.strategy.groups])

    def stages_of(self, rank: int) -> list[int]:
        """The stages that a rank takes part in; ranks are the plan's devices in order."""
        return [k for k, s in enumerate(self.stages) if rank in self.members(k)]

    def members(self, stage: int) -> tuple[int, ...]:
        """The ranks of a stage, row-major along its mesh."""
        devices = sorted({d for s in self.stages for d in s.part.devices})
        order = {d: k for k, d in enumerate(devices)}
        return tuple(order[d] for d in self.stages[stage].part.devices)


def reads(op: Op) -> tuple[Key | None, ...]:
    """What an operation reads."""
    return op.reads if isinstance(op, Compute) else (op.source,)


def same(first: Layer, layer: Layer) -> dict[Node, Node]:
    """The nodes and leaves of a block for those of an equal block."""
    found: dict[Node, Node] = {}
    for a, b in itertools.chain(
        zip(first.forward, layer.forward, strict=True),
        zip(first.backward, layer.backward, strict=True),
    ):
        found[a] = b
        for x, y in zip(a.operands, b.operands, strict=True):
            found.setdefault(x, y)
    return found
