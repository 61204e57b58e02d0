"""What moves in one step: the collectives that a simulation prices, and those that a program has.

    Traffic := (kind, ranks of the group, bytes) → times       of one device of a stage

Bytes are of the whole tensor of a group (`whet.parallel.placed.Step.bytes`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

from whet.ir.graph import Node
from whet.parallel.choice import instance_of
from whet.parallel.cut import known
from whet.parallel.library import MICRO
from whet.parallel.parts import rows
from whet.parallel.pipeline import orders
from whet.parallel.placed import Placed
from whet.parallel.placed import Stage as PlacedStage
from whet.parallel.program import Compute, Exchange, Op, Program, Stage, Total
from whet.parallel.tasks import passes

Traffic = Counter[tuple[str, int, int]]


def predicted(placed: Placed, stage: int) -> Traffic:
    """The collectives that the simulator prices for a device of a stage, in one step."""
    here: PlacedStage = placed.stages[stage]
    order = next(o for o in orders(placed) if any(t.stage == stage for t in o))
    turns = [t for t in order if t.stage == stage]
    backward = [k for k, t in enumerate(turns) if t.name == "backward"]
    found: Traffic = Counter()
    for k, turn in enumerate(turns):
        last = bool(backward) and k == backward[-1]
        for segment, times in passes(here, placed.optimizer, turn.name, last=last):
            for item in segment.items:
                if item.step.is_collective:
                    size = here.mesh.size(*item.step.axes)
                    found[item.step.kind, size, item.step.bytes] += times
    return found


def issued(program: Program, stage: int | None = None) -> Traffic:
    """The collectives of a program's operations for one rank of a stage (of all), in one step."""
    found: Traffic = Counter()
    for s in range(len(program.stages)) if stage is None else (stage,):
        found.update(_stage(program, program.stages[s]))
    return found


def _stage(program: Program, stage: Stage) -> Traffic:
    micro, found = program.strategy.microbatches, Traffic()
    sizes = dict(stage.axes)
    for piece in stage.pieces:
        ahead, behind = _ops(piece.forward, stage), _ops(piece.backward, stage)
        for traffic, times in (
            (ahead, micro * (2 if stage.part.recompute else 1)), (behind, micro),
        ):  # fmt: skip
            for key, n in traffic.items():
                found[key] += n * times
        for b in piece.buckets:
            count = math.prod(sizes[a] for a in b.reduce)
            zero = stage.part.zero if count > 1 else 0
            times = micro if zero >= 2 else 1
            for row in b.finish:
                for key, n in _ops(row, stage).items():
                    found[key] += n * times
            nbytes = -(-b.elements // count) * count * b.width
            if count > 1:
                found["reduce_scatter" if zero else "all_reduce", count, nbytes] += times
            if zero in (1, 2):
                found["all_gather", count, nbytes] += 1
            if zero == 3:
                found["all_gather", count, nbytes] += 2 * micro
    for _, _, row in stage.updates:
        found.update(_ops(row, stage))
    return found


def _ops(ops: Iterable[Op], stage: Stage) -> Traffic:
    found, sizes = Traffic(), dict(stage.axes)
    for op in ops:
        if isinstance(op, Exchange):
            if op.move.kind not in ("slice", "drop"):
                size = math.prod(sizes[a] for a in op.move.axes)
                found[op.move.kind, size, op.move.bytes] += 1
        elif isinstance(op, Total):
            found.update(_ops(op.ops, stage))
        elif isinstance(op, Compute):
            for let, _, axis, _, others in op.choice.inner:
                if axis != MICRO:
                    found["all_reduce", sizes[axis], _inner(op.node, let, others, sizes)] += 1
    return found


def _inner(node: Node, let: str, others: tuple[str, ...], sizes: dict[str, int]) -> int:
    instance = instance_of(node)
    count = math.prod(known(instance.extents[a]) for a in instance.let(let).axes)
    return 4 * count // math.prod(sizes[a] for a in others)


__all__ = ["Traffic", "issued", "predicted", "rows"]
