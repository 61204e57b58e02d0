"""What a cost model sees of a scheduled kernel: numbers read off the nest, not off the schedule.

    features(kernel, machine) -> (len(NAMES),)

Each is a logarithm, a share or a relation (bytes moved against operations, footprint against a
cache), so that it means the same on another operator, shape or machine; what the machine can do
stands among them. None names an operator, a move or a buffer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from whet.kernel.issue import issued, operations
from whet.kernel.loops import Kernel, Update
from whet.kernel.process import Array
from whet.kernel.traffic import LINE, Nest, Touch, nests
from whet.machine import Machine
from whet.machine.target import Target

LEVELS = (1, 2, 3)
COSTLY = 20.0  # arithmetic operations that a transcendental function is worth
ISSUED = (
    "arithmetic", "loads", "stores", "waiting", "turns", "joins", "addresses", "spills", "apart",
    "plain",
)  # fmt: skip
NAMES: tuple[str, ...] = (
    # the work
    "operations", "costly share", "division share", "elements out", "bytes least",
    "operations per byte",
    # loops
    "depth", "statements", "loops", "innermost trips", "unrolled trips", "serial turns per op",
    "reduction innermost", "tail share",
    # vectors
    "vector share", "vector fill", "contiguous share", "broadcast share", "gather share",
    "fold share",
    # threads
    "parallel turns", "parallel balance", "parallel entries", "work per entry", "serial share",
    # registers and loads
    "accumulators", "accumulator pressure", "loads per operation", "stores per operation",
    "scratch bytes", "stack bytes",
    # memory, each level: traffic per operation, traffic against the least, footprint of the
    # innermost loop that has more than a line
    *(f"{what} L{level}" for level in LEVELS for what in ("traffic", "reload", "fits")),
    "seconds compute", "seconds L1", "seconds L2", "seconds L3", "seconds memory",
    "seconds at most", "bound by compute", "bound by memory",
    # what the processor issues (`whet.kernel.issue`)
    "cycles", "cycles per operation", "cycles against least",
    *(f"share {what}" for what in ISSUED),
    "seconds issue", "warm L2", "warm L3", "warm memory", "seconds", "issue share", "code",
    # the machine
    "vector bytes", "threads", *(f"capacity L{level}" for level in LEVELS), "balance",
)  # fmt: skip
"""What each place of the array is."""


@dataclass(frozen=True, slots=True)
class Rates:
    """What a machine can do, measured or else assumed: operations and bytes a second."""

    flops: float
    levels: tuple[float, float, float]
    memory: float

    @classmethod
    def of(cls, machine: Machine, threads: int) -> Rates:
        """Measured rates where there are any; else such as processors of today have."""
        lanes = machine.vector_bits / 32

        def rate(what: str, of: str, otherwise: float) -> float:
            found = [
                r.value for r in machine.rates if (r.what, r.of, r.threads) == (what, of, threads)
            ]
            return found[0] if found else otherwise

        return cls(
            rate("flops", "float32", 4 * lanes * 2.5e9 * threads),
            (
                rate("read", "L1", 250e9 * threads),
                rate("read", "L2", 120e9 * threads),
                rate("read", "L3", 40e9 * threads),
            ),
            rate("read", "DRAM", 20e9 * min(threads, 4)),
        )


@dataclass
class _Sums:
    """What is added up over all statements, each weighted by how often it runs."""

    operations: float = 0.0
    costly: float = 0.0
    divisions: float = 0.0
    vectored: float = 0.0
    parallel: float = 0.0
    tails: float = 0.0
    folds: float = 0.0
    contiguous: float = 0.0
    broadcast: float = 0.0
    gather: float = 0.0
    loads: float = 0.0
    stores: float = 0.0
    fill: float = 0.0
    reduced: float = 0.0


def features(kernel: Kernel, machine: Machine, threads: int | None = None) -> Array:
    """The numbers of `NAMES`, (len(NAMES),), all finite.

    Args:
        kernel: scheduled or not.
        machine: what it is to run on.
        threads: that it may use; all of the machine's if not given.
    """
    threads = threads or machine.threads
    rates = Rates.of(machine, threads)
    whole = nests(kernel)
    sums = _Sums()
    lanes = machine.vector_bits // 32
    for leaf, path, times in _leaves(whole, (), 1.0):
        _add(sums, leaf, path, times, lanes)
    found: dict[str, float] = {}
    ops = max(sums.operations, 1.0)
    least = sum(b.bytes for b in (*kernel.inputs, *kernel.outputs))
    out = sum(b.count for b in kernel.outputs)
    found |= {
        "operations": _log(ops), "costly share": sums.costly / ops,
        "division share": sums.divisions / ops, "elements out": _log(out),
        "bytes least": _log(least), "operations per byte": _log(ops / max(least, 1)),
    }  # fmt: skip
    found |= _loops(whole, kernel, sums, ops)
    accesses = max(sums.contiguous + sums.broadcast + sums.gather, 1e-9)
    found |= {
        "vector share": sums.vectored / ops, "vector fill": sums.fill / max(sums.vectored, 1e-9),
        "contiguous share": sums.contiguous / accesses,
        "broadcast share": sums.broadcast / accesses, "gather share": sums.gather / accesses,
        "fold share": sums.folds / ops,
        "loads per operation": sums.loads / ops, "stores per operation": sums.stores / ops,
    }  # fmt: skip
    found |= _threads(whole, sums, ops, threads)
    found |= _registers(kernel, Target.of(machine, threads))
    found |= _memory(whole, kernel, machine, rates, sums, ops, least, threads, lanes)
    found |= _issue(whole, kernel, machine, rates, ops, least, threads, lanes)
    found |= {
        "vector bytes": _log(machine.vector_bits / 8), "threads": _log(threads),
        "balance": _log(rates.flops / rates.memory),
    }  # fmt: skip
    return np.nan_to_num(np.array([found[name] for name in NAMES], dtype=np.float64))


def _leaves(
    nest: Nest, path: tuple[Nest, ...], times: float
) -> Iterator[tuple[Nest, tuple[Nest, ...], float]]:
    if nest.leaf is not None:
        yield nest, path, times
    inner = (*path, nest) if nest.loop is not None else path
    for n in nest.inner:
        yield from _leaves(n, inner, times * nest.trips)


def _add(s: _Sums, nest: Nest, path: Sequence[Nest], times: float, lanes: int) -> None:
    leaf = nest.leaf
    assert leaf is not None
    plain, costly, divisions = operations(leaf)
    ops = times * (plain + COSTLY * costly + 4 * divisions)
    s.operations += ops
    s.costly += times * COSTLY * costly
    s.divisions += times * 4 * divisions
    kinds = {n.loop.kind for n in path if n.loop is not None}
    vector = next(
        (n for n in reversed(path) if n.loop is not None and n.loop.kind == "vector"), None
    )
    innermost = path[-1] if path else None
    if "parallel" in kinds:
        s.parallel += ops
    if any(n.loop is not None and not isinstance(n.loop.extent, int) for n in path):
        s.tails += ops
    if innermost is not None and isinstance(leaf, Update):
        moves = nest.touches[-1].strides if nest.touches else {}
        assert innermost.loop is not None
        s.reduced += ops * (innermost.loop.var not in moves)
    if vector is not None:
        assert vector.loop is not None
        s.vectored += ops
        s.fill += ops * vector.trips / (lanes * -(-vector.trips // lanes))
        if isinstance(leaf, Update) and vector.loop.var not in nest.touches[-1].strides:
            s.folds += ops
    var = vector.loop.var if vector is not None and vector.loop is not None else None
    for t in nest.touches:
        issued = times / _held(t, path)
        stride = t.strides.get(var, 0) if var is not None else None
        width = lanes if vector is not None and stride == 1 else 1
        if t.buffer.role != "register":
            if t.write:
                s.stores += issued / width
            else:
                s.loads += issued / width
        if stride is not None:
            kind = {0: "broadcast", 1: "contiguous"}.get(abs(stride), "gather")
            setattr(s, kind, getattr(s, kind) + issued)


def _held(t: Touch, path: Sequence[Nest]) -> float:
    """Turns of innermost loops that do not move an access: it stays in a register meanwhile."""
    turns = 1.0
    for n in reversed(path):
        assert n.loop is not None
        if n.loop.var in t.strides:
            break
        turns *= n.trips
    return turns


def _loops(whole: Nest, kernel: Kernel, s: _Sums, ops: float) -> Mapping[str, float]:
    loops = [n for n, _ in whole.walk() if n.loop is not None]
    leaves = [(n, p, t) for n, p, t in _leaves(whole, (), 1.0)]
    heaviest = max(leaves, key=lambda item: item[2], default=None)
    path = heaviest[1] if heaviest else ()
    unrolled = math.prod(n.trips for n in path if n.loop is not None and n.loop.kind == "unroll")
    turns = sum(
        times * n.trips
        for n, times in whole.walk()
        if n.loop is not None and n.loop.kind in ("serial", "parallel")
    )
    return {
        "depth": float(len(path)), "statements": _log(len(leaves)), "loops": _log(len(loops) + 1),
        "innermost trips": _log(path[-1].trips if path else 1),
        "unrolled trips": _log(unrolled), "serial turns per op": _log((turns + 1) / ops),
        "reduction innermost": s.reduced / ops, "tail share": s.tails / ops,
    }  # fmt: skip


def _threads(whole: Nest, s: _Sums, ops: float, threads: int) -> Mapping[str, float]:
    regions = [
        (n, times) for n, times in whole.walk() if n.loop is not None and n.loop.kind == "parallel"
    ]
    entries = sum(times for _, times in regions)
    turns = min((n.trips for n, _ in regions), default=1)
    rounds = -(-turns // threads)
    return {
        "parallel turns": _log(turns), "parallel balance": turns / (rounds * threads),
        "parallel entries": _log(entries + 1), "work per entry": _log(ops / (entries + 1)),
        "serial share": 1 - s.parallel / ops,
    }  # fmt: skip


def _registers(kernel: Kernel, target: Target) -> Mapping[str, float]:
    """Vectors that must stay in registers at once: what small scratch holds."""
    held, lanes = 0.0, target.lanes
    for b in kernel.scratch:
        if b.role == "register" or (b.role == "stack" and b.count <= 64 * lanes):
            held = max(held, b.count / lanes if b.count >= lanes else b.count)
    by_role = {
        role: sum(b.bytes for b in kernel.scratch if b.role == role) for role in ("memory", "stack")
    }
    return {
        "accumulators": _log(held + 1), "accumulator pressure": held / target.registers,
        "scratch bytes": _log(by_role["memory"] + 1), "stack bytes": _log(by_role["stack"] + 1),
    }  # fmt: skip


def _memory(
    whole: Nest, kernel: Kernel, machine: Machine, rates: Rates, s: _Sums, ops: float, least: float,
    threads: int, lanes: int,
) -> Mapping[str, float]:  # fmt: skip
    found: dict[str, float] = {}
    capacities = _capacities(machine, threads)
    inner = [
        n.footprint
        for n, _ in whole.walk()
        if n.loop is not None and not any(m.loop is not None for m in n.inner)
    ]
    innermost = max(inner, default=0.0)
    moved = []
    for level, capacity in zip(LEVELS, capacities, strict=True):
        private = threads if level < 3 else 1
        bytes_ = whole.traffic(capacity, private)
        moved.append(bytes_)
        found |= {
            f"traffic L{level}": _log((bytes_ + 1) / ops),
            f"reload L{level}": _log((bytes_ + LINE) / max(least, LINE)),
            f"fits L{level}": _log((innermost + 1) / capacity),
            f"capacity L{level}": _log(capacity),
        }
    usable = threads if s.parallel > 0.5 * ops else 1
    share = usable / threads
    vector = s.vectored / ops
    speed = rates.flops * share * (vector + (1 - vector) / lanes)
    seconds = {
        "compute": ops / speed,
        "L1": (s.loads + s.stores) * 4 * lanes / (rates.levels[0] * share),
        "L2": moved[0] / (rates.levels[1] * share),
        "L3": moved[1] / (rates.levels[2] * share),
        "memory": moved[2] / rates.memory,
    }
    slowest = max(seconds.values())
    found |= {f"seconds {k}": _log(v * 1e9 + 1) for k, v in seconds.items()}
    found |= {
        "seconds at most": _log(sum(seconds.values()) * 1e9 + 1),
        "bound by compute": seconds["compute"] / slowest if slowest else 0.0,
        "bound by memory": seconds["memory"] / slowest if slowest else 0.0,
    }
    return found


def _issue(
    whole: Nest, kernel: Kernel, machine: Machine, rates: Rates, ops: float, least: float,
    threads: int, lanes: int,
) -> Mapping[str, float]:  # fmt: skip
    registers = Target.of(machine, threads).registers
    issue = issued(whole, kernel, lanes, registers, threads)
    total = max(issue.total, 1.0)
    clock = rates.flops / (threads * lanes * 4)
    fastest = max(ops / rates.flops, least / rates.levels[1])
    warm = []
    for level, capacity in zip(LEVELS, _capacities(machine, threads), strict=True):
        private = threads if level < 3 else 1
        fits = whole.footprint <= capacity * private
        warm.append(0.0 if fits else whole.traffic(capacity, private))
    times = [
        total / clock,
        warm[0] / rates.levels[1],
        warm[1] / rates.levels[2],
        warm[2] / rates.memory,
    ]
    longest = max(times)
    seconds = longest + 0.25 * (sum(times) - longest)  # most of what takes less goes beside it
    return {
        "code": _log(issue.code),
        "cycles": _log(total), "cycles per operation": _log(total / ops),
        "cycles against least": _log(seconds / max(fastest, 1e-12)),
        **{f"share {what}": getattr(issue, what) / total for what in ISSUED},
        "seconds issue": _log(times[0] * 1e9 + 1), "warm L2": _log(times[1] * 1e9 + 1),
        "warm L3": _log(times[2] * 1e9 + 1), "warm memory": _log(times[3] * 1e9 + 1),
        "seconds": _log(seconds * 1e9), "issue share": times[0] / sum(times),
    }  # fmt: skip


def _capacities(machine: Machine, threads: int) -> tuple[float, float, float]:
    """Bytes of each level that one thread has, the last level whole."""
    sizes = {c.level: c for c in machine.caches}
    known = [
        sizes[level].bytes if level in sizes else otherwise
        for level, otherwise in ((1, 32 << 10), (2, 1 << 20), (3, 16 << 20))
    ]
    return float(known[0]), float(known[1]), float(known[2])


def _log(x: float) -> float:
    return math.log2(max(x, 1e-12))
