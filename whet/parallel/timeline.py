"""When what runs: a simulated step as spans, for Chrome's trace viewer and for pictures.

    Timeline := Span*                  Span := group stream name begin end kind

One device stands for each group (the first class of its devices). Passes are laid out as the
simulator lays them out, and the steps inside them as its engine runs them, without what it
remembers: a timeline is a record of the same run.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from whet.parallel.engine import EMPTY, advance
from whet.parallel.pipeline import Turn
from whet.parallel.placed import Placed
from whet.parallel.price import TICKS, Op
from whet.parallel.simulate import Model, Simulator, priced_segments
from whet.parallel.tasks import COMPUTE

PASS, MESSAGE = "pass", "message"


@dataclass(frozen=True, slots=True)
class Span:
    """Something that runs for a while.

    Attributes:
        group: of devices, or -1 for none.
        stream: "pass", "message", or a stream of the group's devices.
        name: what it is.
        begin, end: seconds from the start of the step.
        kind: the pass that it belongs to: forward, backward, …
        stage, microbatch: of that pass.
    """

    group: int
    stream: str
    name: str
    begin: float
    end: float
    kind: str
    stage: int
    microbatch: int


@dataclass(frozen=True, slots=True)
class Timeline:
    """A step.

    Attributes:
        seconds: how long it takes.
        groups: how many groups of devices there are.
        spans: by time of their beginning.
        memory: of each group, (seconds, bytes that its fullest device holds after it).
    """

    seconds: float
    groups: int
    spans: tuple[Span, ...]
    memory: tuple[tuple[tuple[float, int], ...], ...]


def timeline(simulator: Simulator, placed: Placed, *, steps: bool = True) -> Timeline:
    """The timeline of one step.

    Args:
        simulator: of the topology.
        placed: what runs.
        steps: also what runs inside passes, not passes and messages alone.
    """
    models, plan, ran, laid = simulator.laid(placed)
    inside: dict[int, list[tuple[str, str, int, int]]] = {}
    spans: list[Span] = []
    memory = []
    for g, numbers in enumerate(plan.groups):
        held = sum(models[s].base[0] for s in range(g, len(models), placed.groups))
        curve = [(0.0, held)]
        for i in numbers:
            turn, start, kind = plan.turns[i], laid.starts[i], plan.kind[i]
            end = start + ran[kind].ticks
            spans.append(_span(g, PASS, str(turn), start, end, turn))
            curve.append((start / TICKS, held + ran[kind].peak[0]))
            held += ran[kind].net[0]
            curve.append((end / TICKS, held))
            if not steps:
                continue
            if kind not in inside:
                stage, name = plan.passes[kind]
                inside[kind] = list(_steps(models[stage], name, placed))
            spans += [
                _span(g, stream, what, start + a, start + b, turn)
                for stream, what, a, b in inside[kind]
            ]
        memory.append(tuple(curve))
    for turn, sends, a, b in zip(plan.turns, plan.sends, laid.leaves, laid.arrives, strict=True):
        if b > a:
            g, to = turn.stage % placed.groups, plan.channels[sends][1]
            spans.append(_span(g, MESSAGE, f"{turn} to stage {to}", a, b, turn))
    spans.sort(key=lambda s: (s.begin, s.group, s.stream))
    return Timeline(laid.ticks / TICKS, placed.groups, tuple(spans), tuple(memory))


def _span(group: int, stream: str, name: str, begin: int, end: int, turn: Turn) -> Span:
    return Span(
        group,
        stream,
        name,
        begin / TICKS,
        end / TICKS,
        turn.name,
        turn.stage,
        turn.microbatch,
    )


def _steps(model: Model, name: str, placed: Placed) -> Iterable[tuple[str, str, int, int]]:
    """(stream, step, begin, end) of the first class in one pass, in ticks from its start."""
    names = model.pricer.stream_names()
    found: list[tuple[str, str, int, int]] = []
    state, now = EMPTY, 0
    latest: dict[str, int] = {}  # of each stream, its last entry

    def log(op: Op, begin: int, end: int) -> None:
        if 0 not in op.classes or end == begin:
            return
        stream = next(names[s][1] for s in op.streams if names[s][0] == 0)
        begin, end = now + begin, now + end
        before = latest.get(stream)
        if before is not None and found[before][1] == op.name and found[before][3] == begin == now:
            found[before] = (*found[before][:3], end)  # it outlasted its segment
            return
        latest[stream] = len(found)
        found.append((stream, op.name, begin, end))

    queue = [p for p, times in priced_segments(model, name, placed) for _ in range(times)]
    for segment in queue:
        span, _, state = advance(state, segment.ops, model.memo.slowdown, log=log)
        now += span
    advance(state, (), model.memo.slowdown, drain=True, log=log)
    return found


def chrome(line: Timeline) -> dict[str, Any]:
    """The trace event format of Chrome's viewer (chrome://tracing, Perfetto): JSON data.

    A process for each group, a thread for each of its streams, and a counter of its memory.
    """
    events: list[dict[str, Any]] = []
    threads: dict[tuple[int, str], int] = {}
    events += [_meta("process_name", g, 0, f"group {g}") for g in range(line.groups)]
    for span in line.spans:
        key = (span.group, span.stream)
        if key not in threads:
            threads[key] = _rank(span.stream) + len(threads) + 1
            events.append(_meta("thread_name", span.group, threads[key], span.stream))
        events.append(
            {
                "name": span.name,
                "cat": span.kind,
                "ph": "X",
                "pid": span.group,
                "tid": threads[key],
                "ts": span.begin * 1e6,
                "dur": (span.end - span.begin) * 1e6,
                "args": {"stage": span.stage, "microbatch": span.microbatch},
            }
        )
    for g, curve in enumerate(line.memory):
        for at, bytes in curve:
            counter = {"bytes": bytes}
            events.append({"name": "memory", "ph": "C", "pid": g, "ts": at * 1e6, "args": counter})
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _meta(what: str, group: int, thread: int, name: str) -> dict[str, Any]:
    return {"name": what, "ph": "M", "pid": group, "tid": thread, "args": {"name": name}}


def _rank(stream: str) -> int:
    """Passes above the compute stream above the others."""
    return {PASS: 0, COMPUTE: 1000}.get(stream, 2000)
