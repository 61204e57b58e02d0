"""A schedule made ready to be laid out: who waits for whom, worked out once.

    Agenda := Turn*, each with: the turn before it on its group, the turn whose message it waits
              for, the pass that it is, the channel on which it sends

Turns stand in an order in which they can run, so one walk lays them out. It depends on the shape of
a placed model alone (schedule, groups, chunks, microbatches), not on what its passes cost.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from whet.parallel.pipeline import Order, Turn, deadlock, needs, orders
from whet.parallel.placed import Placed, PlacedError

REDUCING = ("backward", "weights")
LAST = "*"  # ends the name of the pass that reduces the gradients of all microbatches


@dataclass(frozen=True, slots=True)
class Agenda:
    """The turns of all groups.

    Attributes:
        turns: in an order in which they can run.
        previous: of each, the number of the turn before it on its group, or -1.
        waits: of each, the number of the turn whose message it waits for, or -1.
        kind: of each, its place in `passes`.
        sends: of each, the place in `channels` of the message that it sends, or -1.
        passes: (stage, name) of the different passes.
        channels: (from stage, to stage) of the messages.
        groups: of each group, the numbers of its turns in order.
        counts: of each group, (pass, how often).
    """

    turns: tuple[Turn, ...]
    previous: tuple[int, ...]
    waits: tuple[int, ...]
    kind: tuple[int, ...]
    sends: tuple[int, ...]
    passes: tuple[tuple[int, str], ...]
    channels: tuple[tuple[int, int], ...]
    groups: tuple[tuple[int, ...], ...]
    counts: tuple[tuple[tuple[int, int], ...], ...]


def agenda(placed: Placed) -> Agenda:
    """The agenda of a placed model; equal shapes share one.

    Raises:
        PlacedError: its schedule does not fit its microbatches.
    """
    shape = (placed.schedule, len(placed.stages), placed.chunks, placed.microbatches)
    return _made(*shape, placed.training)


@lru_cache(maxsize=512)
def _made(schedule: str, stages: int, chunks: int, microbatches: int, training: bool) -> Agenda:
    shape = Placed(_Stages(stages), microbatches, schedule, chunks, training=training)
    every = orders(shape)
    last = stages - 1
    numbers = _walk(every, shape, last)
    turns = tuple(numbers)
    passes: dict[tuple[int, str], int] = {}
    kind = tuple(passes.setdefault(_pass(t, microbatches), len(passes)) for t in turns)
    channels: dict[tuple[int, int], int] = {}
    waits, sends = [-1] * len(turns), [-1] * len(turns)
    for i, turn in enumerate(turns):
        before = needs(turn, shape, last)
        if before is not None:
            waits[i] = sender = numbers[before]
            ends = (before.stage, turn.stage)
            sends[sender] = channels.setdefault(ends, len(channels))
    groups = tuple(tuple(numbers[t] for t in order) for order in every)
    previous = [-1] * len(turns)
    for group in groups:
        for a, b in pairwise(group):
            previous[b] = a
    counts = tuple(tuple(Counter(kind[i] for i in group).items()) for group in groups)
    return Agenda(
        turns,
        tuple(previous),
        tuple(waits),
        kind,
        tuple(sends),
        tuple(passes),
        tuple(channels),
        groups,
        counts,
    )


class _Stages(tuple):  # type: ignore[type-arg]
    """Stages of which only the number counts."""

    __slots__ = ()

    def __new__(cls, count: int) -> _Stages:
        return super().__new__(cls, (None,) * count)


def _pass(turn: Turn, microbatches: int) -> tuple[int, str]:
    """(stage, name) of a turn's pass; the last microbatch's is another one, if it reduces."""
    last = turn.name in REDUCING and turn.microbatch == microbatches - 1
    return turn.stage, turn.name + LAST if last else turn.name


def _walk(every: tuple[Order, ...], shape: Placed, last: int) -> dict[Turn, int]:
    """Turns in an order in which they can run, numbered."""
    numbers: dict[Turn, int] = {}
    at = [0] * len(every)
    moved = True
    while moved:
        moved = False
        for g, order in enumerate(every):
            while at[g] < len(order):
                turn = order[at[g]]
                before = needs(turn, shape, last)
                if before is not None and before not in numbers:
                    break
                numbers[turn] = len(numbers)
                at[g] += 1
                moved = True
    if len(numbers) < sum(map(len, every)):
        raise PlacedError("the schedule cannot run", got=deadlock(shape, every))
    return numbers
