"""Pipeline schedules: in which order each group of devices runs its passes.

    Order  := Turn*                        of one group
    Turn   := name stage microbatch        name: forward | backward | inputs | weights | update

    gpipe        all forward, then all backward
    1f1b         one forward, one backward in turn, as early as activations come
    interleaved  the same over several chunks of the model on each group
    zero_bubble  backward in two: gradients of inputs at once, those of weights where the pipeline
                 would wait; no more activations alive than under 1f1b

A pass of stage s waits for the message of the stage before it (behind it, for backward), and for
its own earlier half. `deadlock` finds out whether an order can run at all: passes that wait for
each other in a circle, or messages that are not taken in the order in which they are sent.

Sources: Huang et al., "GPipe", 2019; Narayanan et al., "PipeDream", 2019 and "Efficient Large-Scale
Language Model Training on GPU Clusters", SC 2021 (interleaved); Qi et al., "Zero Bubble Pipeline
Parallelism", 2023 (ZB-H1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from whet.parallel.placed import Placed, PlacedError


class Turn(NamedTuple):
    """One pass: of a stage of the model, for a microbatch (-1 for the update)."""

    name: str
    stage: int
    microbatch: int

    def __str__(self) -> str:
        return f"{self.name} of stage {self.stage}, microbatch {self.microbatch}"


Order = tuple[Turn, ...]


def orders(placed: Placed) -> tuple[Order, ...]:
    """The order of each group of devices.

    Raises:
        PlacedError: an interleaved schedule whose microbatches are no multiple of its groups.
    """
    groups, batches = placed.groups, placed.microbatches
    if not placed.training:
        forward = [
            tuple(
                Turn("forward", stage, m)
                for m in range(batches)
                for stage in range(g, len(placed.stages), groups)
            )
            for g in range(groups)
        ]
        return tuple(forward)
    match placed.schedule:
        case "gpipe":
            made = [_gpipe(g, batches) for g in range(groups)]
        case "zero_bubble":
            made = [_zero_bubble(g, groups, batches) for g in range(groups)]
        case "interleaved" if placed.chunks > 1:
            if batches % groups:
                raise PlacedError(
                    "an interleaved schedule takes microbatches by the length of the pipeline",
                    expected=f"a multiple of {groups} microbatches",
                    got=batches,
                )
            made = [_interleaved(g, groups, placed.chunks, batches) for g in range(groups)]
        case _:
            made = [_one_by_one(g, groups, batches) for g in range(groups)]
    return tuple(
        (*turns, *(Turn("update", s, -1) for s in range(g, len(placed.stages), groups)))
        for g, turns in enumerate(made)
    )


def _gpipe(group: int, batches: int) -> list[Turn]:
    forward = [Turn("forward", group, m) for m in range(batches)]
    return forward + [Turn("backward", group, m) for m in range(batches)]


def _one_by_one(group: int, groups: int, batches: int) -> list[Turn]:
    ahead = min(batches, groups - group - 1)
    turns = [Turn("forward", group, m) for m in range(ahead)]
    for m in range(batches - ahead):
        turns += [Turn("forward", group, ahead + m), Turn("backward", group, m)]
    return turns + [Turn("backward", group, m) for m in range(batches - ahead, batches)]


def _interleaved(group: int, groups: int, chunks: int, batches: int) -> list[Turn]:
    """Microbatches in packs of `groups`; each pack passes through all chunks before the next."""
    total = batches * chunks

    def forward(k: int) -> Turn:
        chunk = k // groups % chunks
        return Turn("forward", chunk * groups + group, k // (groups * chunks) * groups + k % groups)

    def backward(k: int) -> Turn:
        chunk = chunks - 1 - k // groups % chunks
        return Turn(
            "backward", chunk * groups + group, k // (groups * chunks) * groups + k % groups
        )

    ahead = min(total, (groups - group - 1) * 2 + (chunks - 1) * groups)
    turns = [forward(k) for k in range(ahead)]
    for k in range(total - ahead):
        turns += [forward(ahead + k), backward(k)]
    return turns + [backward(k) for k in range(total - ahead, total)]


def _zero_bubble(group: int, groups: int, batches: int) -> list[Turn]:
    """As 1f1b, with the weights' half of group g's backward `g` microbatches late.

    What is late at the end fills the pipeline's drain. A group holds groups - g microbatches whose
    inputs' half is to come, and g whose weights' half is: as many as the first under 1f1b.
    """
    turns: list[Turn] = []
    late = 0
    for turn in _one_by_one(group, groups, batches):
        if turn.name == "forward":
            turns.append(turn)
            continue
        m = turn.microbatch
        turns.append(Turn("inputs", group, m))
        if m - late >= group:
            turns.append(Turn("weights", group, late))
            late += 1
    return turns + [Turn("weights", group, m) for m in range(late, batches)]


def needs(turn: Turn, placed: Placed, last_stage: int) -> Turn | None:
    """The pass of another stage whose message a pass waits for."""
    if turn.name == "forward" and turn.stage > 0:
        return Turn("forward", turn.stage - 1, turn.microbatch)
    if turn.name in ("backward", "inputs") and turn.stage < last_stage:
        return Turn(turn.name, turn.stage + 1, turn.microbatch)
    return None


def own_half(turn: Turn) -> Turn | None:
    """The earlier pass of the same stage that a pass continues."""
    if turn.name in ("backward", "inputs"):
        return Turn("forward", turn.stage, turn.microbatch)
    if turn.name == "weights":
        return Turn("inputs", turn.stage, turn.microbatch)
    return None


def deadlock(placed: Placed, given: Sequence[Order] | None = None) -> str | None:
    """Why an order cannot run, or None if it can.

    Args:
        placed: what runs.
        given: the order of each group; that of the schedule by default.
    """
    turns = tuple(given) if given is not None else orders(placed)
    last = len(placed.stages) - 1
    place: dict[Turn, tuple[int, int]] = {}
    for g, order in enumerate(turns):
        for k, turn in enumerate(order):
            if turn in place:
                return f"{turn} comes twice"
            place[turn] = (g, k)
    for order in turns:
        for turn in order:
            for before in (needs(turn, placed, last), own_half(turn)):
                if before is not None and before not in place:
                    return f"{turn} waits for {before}, which never comes"
    if circle := _circle(turns, placed, last):
        return "a circle: " + " waits for ".join(map(str, circle))
    return _crossed(turns, placed, last, place)


def _circle(turns: Sequence[Order], placed: Placed, last: int) -> list[Turn]:
    """Passes that wait for each other, each for the next; empty if all can run."""
    at = [0] * len(turns)
    done: set[Turn] = set()
    moved = True
    while moved:
        moved = False
        for g, order in enumerate(turns):
            while at[g] < len(order):
                turn = order[at[g]]
                if any(b not in done for b in _before(turn, placed, last)):
                    break
                done.add(turn)
                at[g] += 1
                moved = True
    blocked = [order[k] for order, k in zip(turns, at, strict=True) if k < len(order)]
    if not blocked:
        return []
    group_of = {turn: g for g, order in enumerate(turns) for turn in order}
    turn = blocked[0]
    path: list[Turn] = []
    while turn not in path:
        path.append(turn)
        missing = next(b for b in _before(turn, placed, last) if b not in done)
        g = group_of[missing]
        turn = turns[g][at[g]]  # what its group is stuck at
    return [*path[path.index(turn) :], turn]


def _before(turn: Turn, placed: Placed, last: int) -> list[Turn]:
    return [b for b in (needs(turn, placed, last), own_half(turn)) if b is not None]


def _crossed(
    turns: Sequence[Order], placed: Placed, last: int, place: Mapping[Turn, tuple[int, int]]
) -> str | None:
    """Messages of one channel that are not taken in the order in which they are sent."""
    for g, order in enumerate(turns):
        latest: dict[int, tuple[int, Turn]] = {}
        for turn in order:
            sent = needs(turn, placed, last)
            if sent is None:
                continue
            sender, k = place[sent]
            if sender == g:
                continue
            before = latest.get(sender)
            if before is not None and before[0] > k:
                return f"group {g} takes the message of {sent} after that of {before[1]}"
            latest[sender] = (k, sent)
    return None
