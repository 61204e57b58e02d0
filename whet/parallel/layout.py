"""Laying passes out in time: each group runs its order, messages run between them.

    Laid := start of each turn of each group, end of everything

A message occupies its channel (one pair of groups, one direction) while it lasts. As long as no two
messages meet on a link, every start is the latest of what it waits for, and one walk over the turns
finds them all. Where some would meet, time goes from event to event and they share.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import pairwise

from whet.parallel.collective import Channel
from whet.parallel.pipeline import Order, Turn, deadlock, needs
from whet.parallel.placed import Placed, PlacedError
from whet.parallel.program import FULL, SHIFT

Message = tuple[Turn, Turn, int, int]


@dataclass(frozen=True, slots=True)
class Laid:
    """When what runs.

    Attributes:
        ticks: the end of everything.
        starts: of each group, the tick at which each of its turns starts.
        messages: (pass that sends, pass that waits for it, start, end).
    """

    ticks: int
    starts: tuple[tuple[int, ...], ...]
    messages: tuple[Message, ...]


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
    last = len(placed.stages) - 1
    starts: list[list[int]] = [[] for _ in turns]
    free = [0] * len(turns)
    # The arrival of a message, by the turn that sends it: sent as soon as it ends.
    ended: dict[Turn, int] = {}
    line: dict[tuple[int, int], int] = {}
    messages: list[Message] = []
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
    if _meets(messages, channels):
        return _Sharing(turns, spans, channels, placed).run()
    return Laid(max(free, default=0), tuple(map(tuple, starts)), tuple(messages))


def _sends(turn: Turn, placed: Placed, last: int) -> Turn | None:
    """The pass of another stage that waits for this one's message."""
    if turn.name == "forward" and turn.stage < last:
        return Turn("forward", turn.stage + 1, turn.microbatch)
    if turn.name in ("backward", "inputs") and turn.stage > 0:
        return Turn(turn.name, turn.stage - 1, turn.microbatch)
    return None


def _meets(messages: Sequence[Message], channels: Mapping[tuple[int, int], Channel]) -> bool:
    """Whether two messages ever use one claim at the same time."""
    busy: dict[int, list[tuple[int, int]]] = {}
    for sender, receiver, begin, end in messages:
        if end > begin:
            for claim in channels[sender.stage, receiver.stage].claims:
                busy.setdefault(claim, []).append((begin, end))
    for spans in busy.values():
        spans.sort()
        if any(b < a for (_, a), (b, _) in pairwise(spans)):
            return True
    return False


class _Sharing:
    """The same where messages meet on their links: n of them get 1/n of it each.

    Time goes from event to event, the end of a pass or of a message; all that end at one tick end
    before anything starts.
    """

    def __init__(
        self,
        turns: Sequence[Order],
        spans: Sequence[Sequence[int]],
        channels: Mapping[tuple[int, int], Channel],
        placed: Placed,
    ) -> None:
        self.turns, self.spans, self.channels = turns, spans, channels
        self.placed, self.last = placed, len(placed.stages) - 1
        self.starts: list[list[int]] = [[] for _ in turns]
        self.arrived: set[Turn] = set()
        self.lines: dict[tuple[int, int], deque[int]] = {}
        self.sent: list[tuple[Turn, Turn, Channel]] = []
        self.begins: list[int] = []
        self.ends: list[int] = []
        self.left: list[int] = []
        self.rate: list[int] = []
        self.since: list[int] = []
        self.version: list[int] = []
        self.users: dict[int, set[int]] = {}
        self.heap: list[tuple[int, int, int, int]] = []  # time, group or -1, message, version
        self.now = 0

    def run(self) -> Laid:
        for g in range(len(self.turns)):
            self._start_pass(g)
        while self.heap:
            self.now = self.heap[0][0]
            groups: list[int] = []
            lines: list[tuple[int, int]] = []
            while self.heap and self.heap[0][0] == self.now:
                _, g, i, version = heappop(self.heap)
                if g >= 0:
                    lines += self._end_pass(g)
                    groups.append(g)
                elif version == self.version[i] and self.ends[i] < 0:
                    groups += self._end_message(i)
                    lines.append((self.sent[i][2].source, self.sent[i][2].target))
            for line in lines:
                self._start_message(line)
            for g in groups:
                self._start_pass(g)
        messages = tuple(
            (sender, receiver, begin, end)
            for (sender, receiver, _), begin, end in zip(
                self.sent, self.begins, self.ends, strict=True
            )
        )
        return Laid(self.now, tuple(map(tuple, self.starts)), messages)

    def _start_pass(self, g: int) -> None:
        k = len(self.starts[g])
        if k == len(self.turns[g]) or (k and self.starts[g][-1] + self.spans[g][k - 1] > self.now):
            return
        before = needs(self.turns[g][k], self.placed, self.last)
        if before is None or before in self.arrived:
            self.starts[g].append(self.now)
            heappush(self.heap, (self.now + self.spans[g][k], g, -1, 0))

    def _end_pass(self, g: int) -> list[tuple[int, int]]:
        turn = self.turns[g][len(self.starts[g]) - 1]
        receiver = _sends(turn, self.placed, self.last)
        if receiver is None:
            return []
        channel = self.channels[turn.stage, receiver.stage]
        line = (channel.source, channel.target)
        self.lines.setdefault(line, deque()).append(len(self.sent))
        self.sent.append((turn, receiver, channel))
        self.begins.append(-1)
        self.ends.append(-1)
        self.left.append(channel.ticks << SHIFT)
        self.rate.append(0)
        self.since.append(0)
        self.version.append(0)
        return [line]

    def _start_message(self, line: tuple[int, int]) -> None:
        queue = self.lines.get(line)
        if not queue or self.begins[queue[0]] >= 0:
            return
        i = queue[0]
        self.begins[i] = self.since[i] = self.now
        touched = {i}
        for claim in self.sent[i][2].claims:
            users = self.users.setdefault(claim, set())
            users.add(i)
            touched |= users
        for j in touched:
            self._settle(j)

    def _end_message(self, i: int) -> list[int]:
        sender, receiver, channel = self.sent[i]
        self.ends[i] = self.now
        self.lines[channel.source, channel.target].popleft()
        self.arrived.add(sender)
        touched: set[int] = set()
        for claim in channel.claims:
            users = self.users[claim]
            users.discard(i)
            touched |= users
        for j in touched:
            self._settle(j)
        return [receiver.stage % self.placed.groups]

    def _settle(self, i: int) -> None:
        """Count what a message has moved, and when it will be through at its present rate."""
        self.left[i] -= self.rate[i] * (self.now - self.since[i])
        self.since[i] = self.now
        channel = self.sent[i][2]
        self.rate[i] = max(1, FULL // max([1, *(len(self.users[c]) for c in channel.claims)]))
        self.version[i] += 1
        end = self.now + max(0, -(-self.left[i] // self.rate[i]))
        heappush(self.heap, (end, -1, i, self.version[i]))
