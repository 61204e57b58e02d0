"""From a stage to its tasks: passes, made of segments, made of items on streams.

    Pass    := "forward" | "backward" | "inputs" | "weights" | "update", Segment*
    Segment := Item*                      a block of the pass, as its program issues it
    Item    := Step stream after drain    on a stream of each device of the stage

    stream  := "compute" | "gather" | "reduce" | "host" | axes of the step's collective

What a device does in one pass of one microbatch. The streams of a device run side by side, each in
the order of its items. An item starts when those of its segment in `after` are done and what
earlier segments left on the streams in `drain`; and never before what the segments before it have
on the compute stream: the fence at which one follows another. A pass ends when all of it is done.

`tasks` adds what follows from the stage's choices:

    zero 3          before a block its weights are gathered, one block ahead, and dropped after it
    zero 2, 3       its gradients are scattered behind it, in each microbatch
    zero 0, 1       gradients are reduced (scattered) in the last microbatch's backward
    zero 1, 2       the update gathers the new weights
    recompute       backward begins with the block's forward
    offload         activations: copied out behind the block, and back one block ahead
                    optimizer: gradients go to the host and weights come back in the update

Sources: Rajbhandari et al., "ZeRO", SC 2020, section 5; Zhao et al., "PyTorch FSDP", VLDB 2023,
section 3.3 (prefetch one block ahead, streams); Chen et al., "Training Deep Nets with Sublinear
Memory Cost", 2016; Qi et al., "Zero Bubble Pipeline Parallelism", 2023 (inputs and weights apart).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from whet.parallel.placed import Block, Optimizer, Stage, Step

COMPUTE = "compute"


@dataclass(frozen=True, slots=True)
class Item:
    """A step on a stream.

    Attributes:
        step: the kernel, collective or copy; a copy to or from the host has the kind "copy".
        stream: where it runs.
        after: earlier items of the segment that it waits for.
        drain: streams on which everything that earlier segments left is done before it starts.
        whole: it does not shrink with uneven shares of the samples.
    """

    step: Step
    stream: str
    after: tuple[int, ...] = ()
    drain: tuple[str, ...] = ()
    whole: bool = False


@dataclass(frozen=True, slots=True)
class Segment:
    """What a pass issues for one block. Compared by value; its hash is kept."""

    items: tuple[Item, ...]
    _hash: int = field(init=False, compare=False, repr=False, default=0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_hash", hash(self.items))

    def __hash__(self) -> int:
        return self._hash


Pass = tuple[tuple[Segment, int], ...]
"""Segments in order, each so many times in a row."""


def passes(stage: Stage, optimizer: Optimizer, name: str, *, last: bool = False) -> Pass:
    """The segments of one pass.

    Args:
        stage: what runs.
        optimizer: the bytes of gradients and states.
        name: "forward", "backward", "inputs" or "weights" (the two halves of backward), "update".
        last: it is that of the last microbatch, which reduces the gradients of all.
    """
    match name:
        case "forward" | "backward" | "inputs" | "weights":
            found = _compressed(_walk(stage, optimizer, name, last))
        case _:
            found = _update(stage, optimizer)
    return tuple((_in_order(s), times) for s, times in found) if stage.eager else found


def _in_order(segment: Segment) -> Segment:
    """The same on one stream: whoever issues a collective waits for it."""
    return Segment(tuple(replace(i, stream=COMPUTE, drain=()) for i in segment.items))


def _walk(
    stage: Stage, optimizer: Optimizer, name: str, last: bool
) -> Iterable[tuple[Segment, int]]:
    """Segments of a pass over the blocks, with what each fetches for the one that follows it."""
    runs = [(r.block, r.times) for r in stage.runs if r.times > 0]
    if name != "forward":
        runs.reverse()
    fetches = name != "weights"
    if runs and fetches and (first := _fetch(stage, runs[0][0], name)):
        yield Segment(tuple(first)), 1
    make = _forward if name == "forward" else _backward
    for place, (block, times) in enumerate(runs):
        follows = runs[place + 1][0] if place + 1 < len(runs) else None
        if times > 1:
            ahead = _fetch(stage, block, name) if fetches else []
            yield Segment(tuple(make(stage, optimizer, block, ahead, name, last))), times - 1
        ahead = _fetch(stage, follows, name) if follows is not None and fetches else []
        yield Segment(tuple(make(stage, optimizer, block, ahead, name, last))), 1


def _compressed(segments: Iterable[tuple[Segment, int]]) -> Pass:
    """Equal neighbours as one."""
    found: list[tuple[Segment, int]] = []
    for segment, times in segments:
        if found and found[-1][0] == segment:
            found[-1] = (segment, found[-1][1] + times)
        else:
            found.append((segment, times))
    return tuple(found)


def _fetch(stage: Stage, block: Block, name: str) -> list[Item]:
    """What has to arrive before a block can run."""
    items = []
    if stage.zero == 3:
        for axes, elements, size, _ in weights_by_axes(block):
            if stage.mesh.size(*axes) > 1:
                bytes = padded(elements, stage.mesh.size(*axes)) * size
                step = Step(
                    f"gather {block.name}", "all_gather", bytes=bytes, axes=axes, alloc=(bytes,)
                )
                items.append(Item(step, "gather", whole=True))
    if "activations" in stage.offload and name in ("backward", "inputs"):
        kept = _kept(stage, block)
        step = Step(f"fetch {block.name}", "copy", bytes=sum(kept), alloc=kept)
        items.append(Item(step, "host"))
    return items


def _waits(stage: Stage, name: str) -> tuple[str, ...]:
    """Streams that bring what a block of the pass needs."""
    found = ["gather"] if stage.zero == 3 and name != "weights" else []
    if "activations" in stage.offload and name in ("backward", "inputs"):
        found.append("host")
    return tuple(found)


def _forward(
    stage: Stage, optimizer: Optimizer, block: Block, ahead: list[Item], name: str, last: bool
) -> list[Item]:
    items = list(ahead)
    _append(items, block.forward, _waits(stage, name))
    end = _last_compute(items)
    drop = _gathered(stage, block)
    if stage.recompute:
        keep = Step(f"keep {block.name}", "drop", alloc=(block.boundary,), free=block.kept)
        items.append(Item(keep, COMPUTE))
    if drop:
        items.append(Item(Step(f"drop {block.name}", "drop", free=drop), COMPUTE))
    if "activations" in stage.offload:
        kept = _kept(stage, block)
        copy = Step(f"put off {block.name}", "copy", bytes=sum(kept), free=kept)
        items.append(Item(copy, "host", after=end))
    return items


def _backward(
    stage: Stage, optimizer: Optimizer, block: Block, ahead: list[Item], name: str, last: bool
) -> list[Item]:
    items = list(ahead)
    waits = _waits(stage, name)
    if name != "weights":
        if stage.recompute:
            _append(items, block.forward, waits)
            waits = ()
        chosen = block.backward
        if name == "inputs":
            chosen = _part(block.backward, weight=False)
        _append(items, chosen, waits)
        drop = _gathered(stage, block)
        if stage.recompute:
            drop += (block.boundary,)
        if drop:
            items.append(Item(Step(f"drop {block.name}", "drop", free=drop), COMPUTE))
    else:
        _append(items, _part(block.backward, weight=True), ())
    if stage.eager and name != "inputs":
        items += _added(optimizer, block, last)
    if name == "inputs" or not (last or stage.zero >= 2):
        return items
    what = "all_reduce" if stage.zero == 0 else "reduce_scatter"
    end = _last_compute(items)
    items += [Item(step, "+".join(step.axes), end, whole=True) for step in block.finish]
    for axes, elements, _, trainable in weights_by_axes(block):
        if trainable and stage.mesh.size(*axes) > 1:
            ranks = stage.mesh.size(*axes) if stage.zero else 1
            bytes = padded(elements, ranks) * optimizer.gradient
            whole = (bytes,) if stage.zero >= 2 else ()
            step = Step(
                f"reduce {block.name}", what, bytes=bytes, axes=axes, alloc=whole, free=whole
            )
            items.append(Item(step, "reduce" if stage.overlap else COMPUTE, end, whole=True))
    return items


def _added(optimizer: Optimizer, block: Block, last: bool) -> list[Item]:
    """Gradients added to those of earlier microbatches; of the last one, laid side by side."""
    own = [w for w in block.weights if w.trainable]
    if not own:
        return []
    bytes = sum(w.elements for w in own) * optimizer.gradient
    step = Step(
        f"add {block.name}", "stream", read=bytes if last else 2 * bytes, written=bytes,
        calls=sum(w.count for w in own) * (3 if last else 1),
    )  # fmt: skip
    return [Item(step, COMPUTE, whole=True)]


def _append(items: list[Item], steps: Sequence[Step], drain: tuple[str, ...]) -> None:
    """Steps as items; the first kernel waits for what the block needs."""
    offset = len(items)
    for step in steps:
        stream = "+".join(step.axes) if step.is_collective else COMPUTE
        after = tuple(offset + j for j in step.after)
        items.append(Item(step, stream, after, drain))
        if not step.is_collective:
            drain = ()


def _part(steps: Sequence[Step], *, weight: bool) -> tuple[Step, ...]:
    """The steps that make weights' gradients, or the others, with what each waits for renumbered.

    Collectives of a weight's gradient stay with it.
    """
    place: dict[int, int] = {}
    chosen: list[Step] = []
    for k, step in enumerate(steps):
        if step.weight == weight:
            place[k] = len(chosen)
            chosen.append(step)
    return tuple(
        replace(steps[k], after=tuple(place[j] for j in steps[k].after if j in place))
        for k in place
    )


def _last_compute(items: Sequence[Item]) -> tuple[int, ...]:
    """The last item of the compute stream, behind which everything before it is done."""
    for k in range(len(items) - 1, -1, -1):
        if items[k].stream == COMPUTE:
            return (k,)
    return ()


def _gathered(stage: Stage, block: Block) -> tuple[int, ...]:
    """Bytes of gathered weights that a block gives back behind it."""
    if stage.zero < 3:
        return ()
    return tuple(
        padded(elements, stage.mesh.size(*axes)) * size
        for axes, elements, size, _ in weights_by_axes(block)
        if stage.mesh.size(*axes) > 1
    )


def _kept(stage: Stage, block: Block) -> tuple[int, ...]:
    """Bytes of each tensor of a block that waits for backward."""
    return (block.boundary,) if stage.recompute else block.kept


def padded(elements: int, ranks: int) -> int:
    """Elements, filled up so that every rank has an equal piece."""
    return -(-elements // ranks) * ranks


def weights_by_axes(block: Block) -> list[tuple[tuple[str, ...], int, int, bool]]:
    """(axes, elements, bytes of each, trainable) of a block's weights, equal ones together."""
    found: dict[tuple[tuple[str, ...], int, bool], int] = {}
    for w in block.weights:
        key = (w.reduce, w.dtype_bytes, w.trainable)
        found[key] = found.get(key, 0) + w.elements
    return [(axes, elements, size, t) for (axes, size, t), elements in found.items()]


def _update(stage: Stage, optimizer: Optimizer) -> Pass:
    """The optimizer's step, block by block: a kernel over its elements, then gathers for ZeRO."""
    segments = []
    for run in stage.runs:
        items: list[Item] = []
        for axes, elements, size, trainable in weights_by_axes(run.block):
            if not trainable:
                continue
            ranks = stage.mesh.size(*axes)
            local = -(-elements // ranks) if stage.zero >= 1 else elements
            name = run.block.name
            if "optimizer" in stage.offload:
                down = Step(f"gradients of {name} out", "copy", bytes=local * optimizer.gradient)
                items.append(Item(down, "host", whole=True))
                up = Step(f"weights of {name} in", "copy", bytes=local * size)
                items.append(Item(up, "host", (len(items) - 1,), whole=True))
            else:
                read = local * (optimizer.state + optimizer.gradient)
                written = local * (optimizer.state + size)
                flops = local * optimizer.flops
                step = Step(f"update {name}", "stream", flops=flops, read=read, written=written)
                items.append(Item(step, COMPUTE, whole=True))
            if stage.zero in (1, 2) and ranks > 1:
                gather = Step(f"gather {name}", "all_gather", bytes=local * ranks * size, axes=axes)
                items.append(Item(gather, "gather", (len(items) - 1,), whole=True))
        if items:
            segments.append((Segment(tuple(items)), run.times))
    return _compressed(segments)


def resident(stage: Stage, optimizer: Optimizer, *, training: bool) -> tuple[int, ...]:
    """Bytes of each tensor that a device of the stage holds all the time: weights, gradients,
    states; of all blocks."""
    sizes: list[int] = []
    for run in stage.runs:
        for axes, elements, size, trainable in weights_by_axes(run.block):
            ranks = stage.mesh.size(*axes)
            shard = -(-elements // ranks)
            each = [(shard if stage.zero >= 3 else elements) * size]
            if training and trainable:
                each.append((shard if stage.zero >= 2 else elements) * optimizer.gradient)
                if "optimizer" not in stage.offload:
                    each.append((shard if stage.zero >= 1 else elements) * optimizer.state)
            sizes += each * run.times
    return tuple(sizes)
