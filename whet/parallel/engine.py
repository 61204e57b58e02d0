"""The engine: runs one segment of one stage from the state that the segments before it left.

    advance: State × Priced → ticks × State            State := Op*, unfinished, in order

Each stream runs its ops in order. Whatever runs at the same time shares:

    links      n ops that claim one link get 1/n of it each
    devices    a kernel beside a collective is slowed down, and the collective too, by the factors
               that were measured for the device

Rates are constant between two events, an event being the start or end of an op; work and time are
whole numbers, so the engine is exact, and it does not know the time of day: from equal states equal
segments run equally. That is why results may be kept and used again (`Memo`), and why a run of
equal blocks is over as soon as a state repeats.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from whet.errors import WhetError
from whet.parallel.price import FULL, Op, Priced, renumbered

State = tuple[Op, ...]
Log = Callable[[Op, int, int], None]
Slowdown = Sequence[tuple[int, int]]

EMPTY: State = ()


class StuckError(WhetError):
    """Ops wait for each other."""


def advance(
    state: State,
    ops: Sequence[Op],
    slowdown: Slowdown,
    *,
    drain: bool = False,
    log: Log | None = None,
) -> tuple[int, int, State]:
    """Runs until everything on the compute streams is done; with `drain`, until everything is.

    Args:
        state: what earlier segments left.
        ops: what this one issues.
        slowdown: of each class, the rates of a kernel and of a collective beside each other.
        log: is told each op with the ticks of its start and end, counted from here; of one that
            outlasts the segment, what ran within.

    Returns:
        (ticks, ticks in which class 0 computes, what is left).

    Raises:
        StuckError: ops wait for each other.
    """
    left = len(state)
    every = [*state, *ops]
    work = [op.work for op in every]
    waiting: list[int] = []
    behind: list[list[int]] = [[] for _ in every]
    queues: dict[int, list[int]] = {}
    for i, op in enumerate(every):
        offset = left if i >= left else 0
        before = {offset + j for j in op.after}
        for stream in op.drain:
            before.update(j for j in queues.get(stream, ()) if j < left)
        for j in before:
            behind[j].append(i)
        waiting.append(len(before))
        for stream in op.streams:
            queues.setdefault(stream, []).append(i)
    for queue in queues.values():
        queue.reverse()  # the next one at the end
    fenced = sum(op.fenced for op in every)
    open_ = len(every)
    done = [False] * open_
    began = [0] * open_
    running: list[int] = []
    kernels = [0] * len(slowdown)
    moves = [0] * len(slowdown)
    claimed: dict[tuple[int, int], int] = {}
    now = busy = 0
    fresh = [queue[-1] for queue in queues.values()]
    while open_ if drain else fenced:
        for i in fresh:
            op = every[i]
            if waiting[i] or done[i] or i in running:
                continue
            if any(queues[s][-1] != i for s in op.streams):
                continue
            running.append(i)
            began[i] = now
            for c in op.classes:
                (kernels if op.kernel else moves)[c] += 1
            for claim in op.claims:
                claimed[claim] = claimed.get(claim, 0) + 1
        if not running:
            names = [every[i].name for i, d in enumerate(done) if not d]
            raise StuckError(
                "tasks wait for each other", got=", ".join(names[:6]), where=f"{len(names)} tasks"
            )
        if len(running) == 1:
            i = running[0]
            rates = [FULL]
            step = -(-work[i] // FULL)
        else:
            rates = [_rate(every[i], kernels, moves, claimed, slowdown) for i in running]
            step = min(-(-work[i] // r) for i, r in zip(running, rates, strict=True))
        if kernels[0]:
            busy += step
        now += step
        fresh = []
        still = []
        for i, rate in zip(running, rates, strict=True):
            work[i] -= rate * step
            if work[i] > 0:
                still.append(i)
                continue
            op = every[i]
            done[i] = True
            open_ -= 1
            fenced -= op.fenced
            if log is not None:
                log(op, began[i], now)
            for c in op.classes:
                (kernels if op.kernel else moves)[c] -= 1
            for claim in op.claims:
                claimed[claim] -= 1
            for stream in op.streams:
                queue = queues[stream]
                queue.pop()
                if queue:
                    fresh.append(queue[-1])
            for j in behind[i]:
                waiting[j] -= 1
                fresh.append(j)
        running = still
    if log is not None:
        for i in running:  # so far; it goes on in the next segment
            log(every[i], began[i], now)
    if not open_:
        return now, busy, EMPTY
    kept = [i for i, d in enumerate(done) if not d]
    place = {i: k for k, i in enumerate(kept)}
    before_: dict[int, list[int]] = {i: [] for i in kept}
    for j in kept:
        for i in behind[j]:
            before_[i].append(place[j])
    rest = tuple(renumbered(every[i], work[i], tuple(sorted(before_[i]))) for i in kept)
    return now, busy, rest


def _rate(
    op: Op,
    kernels: Sequence[int],
    moves: Sequence[int],
    claimed: dict[tuple[int, int], int],
    slowdown: Slowdown,
) -> int:
    """How much of its work an op does in a tick."""
    if op.kernel:
        return min(slowdown[c][0] if moves[c] else FULL for c in op.classes)
    rate = FULL // max([1, *(claimed[claim] for claim in op.claims)])
    beside = min((slowdown[c][1] for c in op.classes if kernels[c]), default=FULL)
    return max(1, rate * beside >> 10)


class Memo:
    """`advance` and whole passes, each computed once; exact, because the engine is.

    Attributes:
        hits, misses: segments that were known, and that had to be run.
    """

    def __init__(self, slowdown: Slowdown) -> None:
        self.slowdown = tuple(slowdown)
        self.hits = self.misses = 0
        self._states: dict[State, int] = {EMPTY: 0}
        self._numbered: list[State] = [EMPTY]
        self._known: dict[tuple[int, int], tuple[int, int, int]] = {}

    def advance(self, state: int, segment: Priced) -> tuple[int, int, int]:
        """(ticks, busy ticks, number of the state that is left), from the state of a number."""
        key = (state, segment.number)
        found = self._known.get(key)
        if found is not None:
            self.hits += 1
            return found
        self.misses += 1
        span, busy, rest = advance(self._numbered[state], segment.ops, self.slowdown)
        found = self._known[key] = (span, busy, self._number(rest))
        return found

    def drained(self, state: int) -> tuple[int, int]:
        """(ticks, busy ticks) until nothing is left of a state."""
        if state == 0:
            return 0, 0
        key = (state, -1)
        found = self._known.get(key)
        if found is None:
            span, busy, _ = advance(self._numbered[state], (), self.slowdown, drain=True)
            found = self._known[key] = (span, busy, 0)
        return found[0], found[1]

    def _number(self, state: State) -> int:
        number = self._states.get(state)
        if number is None:
            number = self._states[state] = len(self._numbered)
            self._numbered.append(state)
        return number

    def run(self, segments: Sequence[tuple[Priced, int]]) -> tuple[int, int]:
        """(ticks, busy ticks) of a whole pass, from rest to rest."""
        now = busy = state = 0
        for segment, times in segments:
            while times:
                span, active, after = self.advance(state, segment)
                again = times if after == state else 1  # a state that repeats goes on repeating
                now, busy = now + span * again, busy + active * again
                state, times = after, times - again
        span, active = self.drained(state)
        return now + span, busy + active
