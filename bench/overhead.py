"""What a call of a native program costs besides its kernels: `whet bench --suite overhead`.

    entry     the entry with its kernels, called through ctypes, whose own time is part of it
    program   from Python: the arguments checked, the result a new tensor
    module    the optimized module, its parameters and structure checked before every call

The model multiplies a vector by its parameters, one after another: kernels of nanoseconds.
"""

from __future__ import annotations

import datetime
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from whet.capture.torch import capture
from whet.machine import Machine
from whet.run.calling import Runner
from whet.run.measure import interleaved
from whet.run.module import Optimized
from whet.run.native import native
from whet.run.parameters import Parameters
from whet.run.program import Program

COUNTS = (1, 10, 100)  # parameters of the model
BUDGET_S = 4.0


class Scaled(nn.Module):
    """A vector times each of `count` vectors."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.scales = nn.ParameterList(torch.ones(16) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        for s in self.scales:
            x = x * s
        return x


def measure(args: Any, progress: Callable[[str], None]) -> tuple[dict[str, Any], str]:
    """Runs the suite; the JSON of it, and the same as text."""
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    records = []
    for count in COUNTS[:1] if args.small else COUNTS:
        progress(f"{count} parameters")
        records += measured(count, 0.2 if args.small else BUDGET_S)
    result = {
        "suite": "overhead",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "threads": torch.get_num_threads(),
        "complete": True,
        "versions": {"torch": torch.__version__},
        "machine": Machine.detect().to_json(),
        "records": records,
    }
    lines = ["what a call costs besides its kernels, µs", ""]
    lines += [f"{r['model']:<16}{r['system']:<10}{r['median_s'] * 1e6:8.2f}" for r in records]
    return result, "\n".join(lines) + "\n"


@torch.no_grad()
def measured(count: int, budget_s: float) -> list[dict[str, Any]]:
    """Records of a model with so many parameters."""
    model, x = Scaled(count).eval(), torch.randn(16)
    captured = capture(model, (x,))
    graph = captured.graph
    parameters = Parameters({}, model, [n.name for n in graph.parameters])
    built, lowered = native(graph, lambda cluster, kernels: kernels[0], parameters.tensors())
    program = Program(lowered, parameters, Runner.of(built).bind, "native")
    module = Optimized(model, program, captured.signature)
    bound: Any = program.current()
    spent: list[float] = []
    with bound.arena() as run:
        out = torch.empty(16)
        end = time.perf_counter() + budget_s / 4
        while time.perf_counter() < end:
            spent.append(run([x], [out], None))
    entry = statistics.median(spent)
    module(x)
    calls: dict[str, Callable[[], object]] = {
        "program": lambda: bound.call(x), "module": lambda: module(x), "eager": lambda: model(x),
    }  # fmt: skip
    timings = interleaved(calls, budget_s=budget_s, min_rounds=9)
    found = {name: t.median_s for name, t in timings.items()} | {"entry": entry}
    name = f"{count} parameters"
    return [{"model": name, "system": k, "median_s": s} for k, s in found.items()]
