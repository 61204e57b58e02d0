"""Independent steps of a body beside one another: lanes, each a stream of the device's.

    lane    steps in order; a step waits for those of other lanes whose values it reads
    fork    every lane begins when the caller's stream has come to the body; the caller's stream
            goes on when all lanes have ended

Inside a recording lanes are branches of its graph of launches. A value that another lane reads must
not be written over while it may still be read, so all values live until the body ends: lanes take
memory, and are one of the ways that compete, not the rule.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from whet.backend.lowered import Lowered, Slot
from whet.run.cuda import Cuda

MOST = 4  # lanes at a time


def lanes(lowered: Lowered, most: int = MOST) -> list[int]:
    """The lane of each step of the body: that of what it reads, where nothing else has gone on
    there; else one that is free, or a new one."""
    made: dict[Slot, int] = {}  # step that makes a value
    found: list[int] = []
    last: list[int] = []  # the last step of each lane
    for k, step in enumerate(lowered.body):
        sources = [made[s] for s in step.operands if s is not None and s in made]
        own = [s for s in reversed(sources) if last[found[s]] == s]
        if own:
            lane = found[own[0]]
        elif len(last) < most:
            lane = len(last)
            last.append(k)
        else:
            lane = min(range(len(last)), key=last.__getitem__)
        last[lane] = k
        found.append(lane)
        made[step.target] = k
    return found


def forked(lowered: Lowered, cuda: Cuda) -> Callable[..., tuple[Tensor, ...]] | None:
    """The body over inputs and derived values, its lanes beside one another; None where it has
    only one."""
    where = lanes(lowered)
    count = len(set(where))
    if count < 2:
        return None
    made = {step.target: k for k, step in enumerate(lowered.body)}
    reads = [
        [made[s] for s in step.operands if s is not None and s in made] for step in lowered.body
    ]
    crossing = {s for k, sources in enumerate(reads) for s in sources if where[s] != where[k]}

    def run(*xs: Tensor) -> tuple[Tensor, ...]:
        table: dict[Slot | None, Any] = {None: None}
        table |= dict(zip((*lowered.inputs, *lowered.derived), xs, strict=True))
        streams = cuda.fork(count)
        marks: dict[int, Any] = {}
        for k, step in enumerate(lowered.body):
            stream = streams[where[k]]
            for s in dict.fromkeys(reads[k]):
                if where[s] != where[k]:
                    stream.wait_event(marks[s])
            with cuda.on(stream):
                table[step.target] = step.call(*(table[s] for s in step.operands))
            if k in crossing:
                marks[k] = stream.record_event()
        cuda.join(streams)
        return tuple(table[s] for s in lowered.results)

    return run
