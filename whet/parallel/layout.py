"""Laying passes out in time: each group runs its order, messages run between them.

    Laid := start of each turn of each group, end of everything

A message occupies its channel (one pair of groups, one direction) while it lasts. Where no two
channels share a link, every start is the latest of what it waits for, and one walk over the turns
finds them all. Where some do, the general engine of `flat` runs passes and messages as tasks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from whet.parallel import flat
from whet.parallel.collective import Channel
from whet.parallel.pipeline import Order, Turn, deadlock, needs
from whet.parallel.placed import Placed, PlacedError


@dataclass(frozen=True, slots=True)
class Laid:
    """When what runs.

    Attributes:
        ticks: the end of everything.
        starts: of each group, the tick at which each of its turns starts.
        messages: (from stage, to stage, start, end).
    """

    ticks: int
    starts: tuple[tuple[int, ...], ...]
    messages: tuple[tuple[Turn, Turn, int, int], ...]


def lay(
    turns: Sequence[Order],
    spans: Sequence[Sequence[int]],
    channels: Mapping[tuple[int, int], Channel],
    placed: Placed,
) -> Laid:
    """Starts of all turns.

    Args:
        turns: the order of each group.
        spans: ticks of each of them.
        channels: by (from stage, to stage).

    Raises:
        PlacedError: the orders cannot run.
    """
    if any(channel.claims for channel in channels.values()):
        return _shared(turns, spans, channels, placed)
    last = len(placed.stages) - 1
    starts: list[list[int]] = [[] for _ in turns]
    free = [0] * len(turns)
    # The arrival of a message, by the turn that sends it: sent as soon as it ends.
    ended: dict[Turn, int] = {}
    line: dict[tuple[int, int], int] = {}
    messages: list[tuple[Turn, Turn, int, int]] = []
    arrival: dict[Turn, int] = {}
    open_ = sum(map(len, turns))
    while open_:
        moved = False
        for g, order in enumerate(turns):
            own, lengths = starts[g], spans[g]
            k, now = len(own), free[g]
            while k < len(order):
                turn = order[k]
                before = needs(turn, placed, last)
                begin = now
                if before is not None:
                    came = arrival.get(before)
                    if came is None:
                        break
                    begin = max(now, came)
                own.append(begin)
                now = begin + lengths[k]
                ended[turn] = now
                after = _sends(turn, placed, last)
                if after is not None:
                    channel = channels[turn.stage, after.stage]
                    pair = (channel.source, channel.target)
                    leave = max(now, line.get(pair, 0))
                    arrival[turn] = line[pair] = leave + channel.ticks
                    messages.append((turn, after, leave, leave + channel.ticks))
                k += 1
                open_ -= 1
                moved = True
            free[g] = now
        if not moved:
            raise PlacedError("the schedule cannot run", got=deadlock(placed, turns))
    return Laid(max(free, default=0), tuple(map(tuple, starts)), tuple(messages))


def _sends(turn: Turn, placed: Placed, last: int) -> Turn | None:
    """The pass of another stage that waits for this one's message."""
    if turn.name == "forward" and turn.stage < last:
        return Turn("forward", turn.stage + 1, turn.microbatch)
    if turn.name in ("backward", "inputs") and turn.stage > 0:
        return Turn(turn.name, turn.stage - 1, turn.microbatch)
    return None


def _shared(
    turns: Sequence[Order],
    spans: Sequence[Sequence[int]],
    channels: Mapping[tuple[int, int], Channel],
    placed: Placed,
) -> Laid:
    """The same where channels share links: passes and messages as tasks of the general engine."""
    if (reason := deadlock(placed, turns)) is not None:
        raise PlacedError("the schedule cannot run", got=reason)
    last = len(placed.stages) - 1
    tasks: list[flat.Task] = []
    number: dict[Turn, int] = {}
    for g, order in enumerate(turns):
        for turn, span in zip(order, spans[g], strict=True):
            number[turn] = len(tasks)
            tasks.append(flat.Task(str(turn), (g,), span))
    sent: list[tuple[Turn, Turn, int]] = []
    for order in turns:
        for turn in order:
            after = _sends(turn, placed, last)
            if after is None:
                continue
            channel = channels[turn.stage, after.stage]
            pair = ("channel", channel.source, channel.target)
            sent.append((turn, after, len(tasks)))
            tasks[number[after]].after.append(len(tasks))
            tasks.append(
                flat.Task("message", (pair,), channel.ticks, [number[turn]], claims=channel.claims)
            )
    begins, ends = flat.run(tasks, {})
    starts = tuple(tuple(begins[number[turn]] for turn in order) for order in turns)
    messages = tuple((turn, after, begins[i], ends[i]) for turn, after, i in sent)
    return Laid(max(ends, default=0), starts, messages)
