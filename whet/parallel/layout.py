"""Laying passes out in time: each group runs its turns, messages run between them.

    Laid := start of each turn, begin and end of each message, end of everything

A message occupies its channel (one pair of groups, one direction) while it lasts. As long as no two
messages meet on a link, every start is the latest of what it waits for, and one walk over the turns
finds them all. Where some would meet, time goes from event to event and they share.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

import numpy as np

from whet.parallel.agenda import Agenda
from whet.parallel.collective import Channel
from whet.parallel.price import FULL, SHIFT


@dataclass(frozen=True, slots=True)
class Laid:
    """When what runs.

    Attributes:
        ticks: the end of everything.
        starts: the tick at which each turn of the agenda starts.
        leaves, arrives: of each turn that sends, when its message begins and ends; -1 for others.
    """

    ticks: int
    starts: Sequence[int]
    leaves: Sequence[int]
    arrives: Sequence[int]


def lay(agenda: Agenda, spans: Sequence[int], channels: Sequence[Channel]) -> Laid:
    """Starts of all turns.

    Args:
        agenda: the turns.
        spans: ticks of each of its passes.
        channels: of each of its channels.
    """
    count = len(agenda.turns)
    starts, ends, leaves, arrives = [0] * count, [0] * count, [-1] * count, [-1] * count
    pairs = {(c.source, c.target): k for k, c in enumerate(channels)}
    line = [pairs[c.source, c.target] for c in channels]
    length = [c.ticks for c in channels]
    free = [0] * len(channels)
    rows = zip(range(count), agenda.previous, agenda.waits, agenda.kind, agenda.sends, strict=True)
    for i, previous, waits, kind, sends in rows:
        begin = ends[previous] if previous >= 0 else 0
        if waits >= 0 and arrives[waits] > begin:
            begin = arrives[waits]
        starts[i] = begin
        ends[i] = end = begin + spans[kind]
        if sends >= 0:
            at = line[sends]
            leave = max(end, free[at])
            leaves[i] = leave
            arrives[i] = free[at] = leave + length[sends]
    if _meet(agenda, channels, leaves, arrives):
        return _Sharing(agenda, spans, channels).run()
    return Laid(max(ends, default=0), starts, leaves, arrives)


def _meet(
    agenda: Agenda, channels: Sequence[Channel], leaves: Sequence[int], arrives: Sequence[int]
) -> bool:
    """Whether two messages ever use one claim at the same time."""
    if not any(channel.claims for channel in channels):
        return False
    on: dict[int, list[int]] = {}
    for place, channel in enumerate(channels):
        for claim in channel.claims:
            on.setdefault(claim, []).append(place)
    sends = np.array(agenda.sends)
    begins, ends = np.array(leaves), np.array(arrives)
    for places in on.values():
        chosen = np.isin(sends, places) & (ends > begins)
        order = np.argsort(begins[chosen], kind="stable")
        if (begins[chosen][order][1:] < ends[chosen][order][:-1]).any():
            return True
    return False


class _Sharing:
    """The same where messages meet on their links: n of them get 1/n of it each.

    Time goes from event to event, the end of a pass or of a message; all that end at one tick end
    before anything starts.
    """

    def __init__(self, agenda: Agenda, spans: Sequence[int], channels: Sequence[Channel]) -> None:
        self.agenda, self.channels = agenda, channels
        self.spans = [spans[k] for k in agenda.kind]
        count = len(agenda.turns)
        self.starts, self.leaves, self.arrives = [-1] * count, [-1] * count, [-1] * count
        self.done = [False] * count
        self.next = [-1] * count
        self.receiver = [-1] * count
        for i, (previous, waits) in enumerate(zip(agenda.previous, agenda.waits, strict=True)):
            if previous >= 0:
                self.next[previous] = i
            if waits >= 0:
                self.receiver[waits] = i
        self.left = [channels[k].ticks << SHIFT if k >= 0 else 0 for k in agenda.sends]
        self.rate, self.since, self.version = [0] * count, [0] * count, [0] * count
        self.lines: dict[tuple[int, int], deque[int]] = {
            (c.source, c.target): deque() for c in channels
        }
        self.users: dict[int, set[int]] = {claim: set() for c in channels for claim in c.claims}
        self.heap: list[tuple[int, int, int]] = []  # time, turn or ~turn for its message, version
        self.now = 0

    def run(self) -> Laid:
        for group in self.agenda.groups:
            if group:
                self._start(group[0])
        while self.heap:
            self.now = self.heap[0][0]
            turns: list[int] = []
            lines: list[tuple[int, int]] = []
            while self.heap and self.heap[0][0] == self.now:
                _, i, version = heappop(self.heap)
                if i >= 0:
                    self._end(i, turns, lines)
                elif version == self.version[~i] and self.arrives[~i] < 0:
                    self._arrive(~i, turns, lines)
            for line in lines:
                self._leave(line)
            for i in turns:
                self._start(i)
        return Laid(self.now, self.starts, self.leaves, self.arrives)

    def _start(self, i: int) -> None:
        """Start a turn, unless it has started or has to wait."""
        if i < 0 or self.starts[i] >= 0:
            return
        previous, waits = self.agenda.previous[i], self.agenda.waits[i]
        if previous >= 0 and not self.done[previous]:
            return
        if waits >= 0 and self.arrives[waits] < 0:
            return
        self.starts[i] = self.now
        heappush(self.heap, (self.now + self.spans[i], i, 0))

    def _end(self, i: int, turns: list[int], lines: list[tuple[int, int]]) -> None:
        self.done[i] = True
        turns.append(self.next[i])
        if self.agenda.sends[i] >= 0:
            channel = self.channels[self.agenda.sends[i]]
            line = (channel.source, channel.target)
            self.lines[line].append(i)
            lines.append(line)

    def _leave(self, line: tuple[int, int]) -> None:
        """Send the first message that waits on a line."""
        queue = self.lines[line]
        if not queue or self.leaves[queue[0]] >= 0:
            return
        i = queue[0]
        self.leaves[i] = self.since[i] = self.now
        touched = {i}
        for claim in self.channels[self.agenda.sends[i]].claims:
            users = self.users[claim]
            users.add(i)
            touched |= users
        for j in touched:
            self._settle(j)

    def _arrive(self, i: int, turns: list[int], lines: list[tuple[int, int]]) -> None:
        channel = self.channels[self.agenda.sends[i]]
        self.arrives[i] = self.now
        line = (channel.source, channel.target)
        self.lines[line].popleft()
        lines.append(line)
        turns.append(self.receiver[i])
        touched: set[int] = set()
        for claim in channel.claims:
            users = self.users[claim]
            users.discard(i)
            touched |= users
        for j in touched:
            self._settle(j)

    def _settle(self, i: int) -> None:
        """Count what a message has moved, and when it will be through at its present rate."""
        self.left[i] -= self.rate[i] * (self.now - self.since[i])
        self.since[i] = self.now
        claims = self.channels[self.agenda.sends[i]].claims
        self.rate[i] = max(1, FULL // max([1, *(len(self.users[c]) for c in claims)]))
        self.version[i] += 1
        end = self.now + max(0, -(-self.left[i] // self.rate[i]))
        heappush(self.heap, (end, ~i, self.version[i]))
