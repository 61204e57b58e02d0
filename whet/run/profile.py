"""Where a native program spends its time: each call against what the machine can do at most.

    Profile := calls (Spent, …), seconds of the whole, its floor
    Spent   := name, operators, seconds, FLOPs, bytes, share of the roofline, what holds it

Every call is timed within the program, by its own clock, with nothing in between but the reading
of it; figures are medians over many runs. A call's floor is the larger of its arithmetic at peak
and its bytes at the speed of where they are: everything that the program touches stays in the
caches that are large enough for all of it (Williams, Waterman, Patterson, "Roofline", CACM 2009).
"""

from __future__ import annotations

import ctypes
import itertools
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from whet.backend.aten import torch_dtype
from whet.backend.cluster import Cluster
from whet.backend.packed import Kernel
from whet.errors import InputError
from whet.ir.cost import graph_floor
from whet.ir.graph import Graph
from whet.ir.types import DType
from whet.machine import Machine
from whet.run.calling import Bound, Runner
from whet.run.entry import TYPES
from whet.run.module import Optimized
from whet.run.native import native

SHORT_S = 3e-6  # of a call that is over before its work counts
FAR = 0.25  # share of the roofline below which starting and waiting are what holds a short call


@dataclass(frozen=True, slots=True)
class Spent:
    """One call of the program.

    Attributes:
        name, operators: what is called, and what it computes.
        seconds: median.
        flops, bytes: what it has to do and to touch.
        roofline: its floor over its seconds; 1 is the machine's limit.
        held: "FLOPs", "bandwidth" or "call overhead".
    """

    name: str
    operators: str
    seconds: float
    flops: int
    bytes: int
    roofline: float
    held: str

    @property
    def flops_s(self) -> float:
        return self.flops / self.seconds if self.seconds else 0.0

    @property
    def bytes_s(self) -> float:
        return self.bytes / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, slots=True)
class Profile:
    """A program's time, call by call.

    Attributes:
        calls: in order of execution.
        seconds: a whole call from C, without clocks within.
        floor_s: of the model: no program takes less.
        peak, bound: bytes of working memory, and the least that any plan could do with.
        threads: that kernels ran on.
    """

    calls: tuple[Spent, ...]
    seconds: float
    floor_s: float
    peak: int
    bound: int
    threads: int

    @property
    def overhead_s(self) -> float:
        """What a whole call takes besides its calls; clocks make these a little longer."""
        return max(0.0, self.seconds - sum(c.seconds for c in self.calls))

    @property
    def shares(self) -> dict[str, float]:
        """Share of the calls' time that each thing holds, the largest first."""
        by: dict[str, float] = {}
        for c in self.calls:
            by[c.held] = by.get(c.held, 0.0) + c.seconds
        whole = sum(by.values()) or 1.0
        return {k: by[k] / whole for k in sorted(by, key=lambda k: -by[k])}

    @property
    def held(self) -> str:
        """What holds most of the time."""
        return next(iter(self.shares), "call overhead")

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        rows = [asdict(c) | {"flops_s": c.flops_s, "bytes_s": c.bytes_s} for c in self.calls]
        return asdict(self) | {"calls": rows, "overhead_s": self.overhead_s, "held": self.held}


def of(
    optimized: Optimized,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    machine: Machine,
    *,
    budget_s: float = 2.0,
) -> Profile:
    """The profile of an optimized module's program; of the native one where another engine won.

    Args:
        optimized: what `whet.optimize` or `whet.load` returned.
        args, kwargs: a call that it is for.
        machine: with measured rates.
        budget_s: seconds of running.

    Raises:
        UnsupportedError: its body cannot be a native program.
    """
    found, program = optimized.found, optimized.program
    leaves = optimized.signature.flatten(tuple(args), kwargs)
    if leaves is None:
        raise InputError("these are not the arguments that the program is for", got=args)
    inputs = optimized.signature.inputs(leaves)
    with torch.no_grad():
        bound = program.current() if program is not None else None
        if not isinstance(bound, Bound):
            chosen = found.plan.kernels

            def planned(cluster: Cluster, kernels: list[Kernel]) -> Kernel:
                name = chosen.get(cluster.key)
                return next((k for k in kernels if k.name == name), kernels[0])

            values = found.parameters.tensors()
            built, lowered = native(found.graph, planned, values)
            bound = Runner.of(built).bind(lowered.derive(values))
        return profile(found.graph, bound, inputs, machine, budget_s=budget_s)


def profile(
    graph: Graph,
    bound: Bound,
    inputs: Sequence[Tensor],
    machine: Machine,
    *,
    budget_s: float = 2.0,
) -> Profile:
    """Times each call of a bound program.

    Args:
        graph: what the program computes.
        bound: the program over its constants.
        inputs: dense, of the types it is for.
        machine: with measured rates.
        budget_s: seconds of running.
    """
    n = bound.native
    dtypes = {number: name for name, number in TYPES.items()}
    held = [x.contiguous() for x in inputs]
    outs = [torch.empty(k.shape, dtype=_dtype(dtypes[k.type])) for k in n.outputs]
    count = len(n.calls)
    clock = (ctypes.c_double * (count + 1))()
    first = ctypes.addressof(clock) + ctypes.sizeof(ctypes.c_double)
    with bound.arena() as run:
        run(held, outs, first)
        rows: list[list[float]] = []
        whole: list[float] = []
        end = time.perf_counter() + budget_s
        while len(rows) < 5 or time.perf_counter() < end:
            run(held, outs, first)
            rows.append([b - a for a, b in itertools.pairwise(clock)])
            whole.append(run(held, outs, None))
    medians = [statistics.median(column) for column in zip(*rows, strict=True)]
    threads = torch.get_num_threads()
    read = _rate(machine, sum(c.bytes for c in n.calls), threads)
    peak = machine.rate("flops", "float32", threads)
    calls = []
    for made, seconds in zip(n.calls, medians, strict=True):
        work, moved = made.flops / peak, made.bytes / read
        share = max(work, moved) / seconds if seconds > 0 else 0.0
        kind = "FLOPs" if work >= moved else "bandwidth"
        if seconds < SHORT_S and share < FAR:
            kind = "call overhead"
        calls.append(Spent(made.name, made.operators, seconds, made.flops, made.bytes, share, kind))
    least = graph_floor(graph)
    floor = machine.floor_s(int(str(least.flops)), int(str(least.bytes)), threads=threads)
    return Profile(tuple(calls), statistics.median(whole), floor, n.peak, n.bound, threads)


def _dtype(name: str) -> torch.dtype:
    return torch_dtype(DType[name])


def _rate(machine: Machine, touched: int, threads: int) -> float:
    """Bytes a second from the closest memory that holds all a program touches."""
    for level in (2, 3):
        if touched <= machine.cache_bytes(level):
            return machine.rate("read", f"L{level}", threads)
    return machine.rate("read", "DRAM", threads)
