"""Strategies that people use, as points of the space: baselines to be compared with, and seeds.

    data        replicas, each with some of the samples
    fsdp        the same with parameters, gradients and state sharded among the replicas
    tensor      parameters cut inside nodes (Shoeybi et al., "Megatron-LM", 2019), replicas of that
    pipeline    stages, replicas of them
    3d          all three (Narayanan et al., SC 2021), plain and interleaved schedules
    weird       convolutions cut samples, products with parameters cut parameters
    experts     experts on different devices, everything else cuts samples
    rows        tables of embeddings cut by rows or by columns, everything else cuts samples
    columns     (Mudigere et al., "Software-hardware co-design for ... recommendation", ISCA 2022),
                and a bias may be kept in pieces where that costs nothing

A baseline is as good as its best member. `tuned` looks for it as an engineer would: degrees far
apart with likely other fields first, then one field after another as long as that helps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from whet.ir.graph import Node
from whet.parallel.choice import Choice
from whet.parallel.intra import Problem
from whet.parallel.limits import SIMULATED, Limits
from whet.parallel.sharding import Sharding
from whet.parallel.strategy import Recipe, Strategy, even
from whet.parallel.work import work

FAMILIES = ("data", "fsdp", "tensor", "pipeline", "3d", "weird", "experts", "rows", "columns")
LOOSE = ("weird", "experts", "rows", "columns")  # whose style is their own: samples are not pinned
STARTS = 6  # degrees of a family that are looked at first

Score = tuple[bool, float]  # whether it does not fit; seconds, the longer the less it fits
Rate = Callable[[Strategy], Score | None]


def fixed(problem: Problem, style: str) -> dict[Node, Choice]:
    """Choices that a style decides itself."""
    if style in ("rows", "columns"):
        return _tables(problem, 0 if style == "rows" else 1)
    if style not in LOOSE:
        return {}
    found: dict[Node, Choice] = {}
    for n in problem.layer.forward:
        w = work(n)
        if not w.roles:
            continue
        weight = next((k for k, a in enumerate(n.operands) if _from_parameter(a)), None)
        if weight is None:
            continue
        roles = w.roles[2:3] if style == "weird" else w.roles[:1]
        if style == "weird" and w.kind == "window":
            continue
        for c in problem.choices.of(n):
            cut = [(a, m) for m, a, _ in c.cuts if m == "data"]
            if cut and any(cut[0][0] in r for r in roles):
                own = c.operands[weight]
                if own is not None and _on(own, "data"):
                    found[n] = c
                    break
    return found


def _tables(problem: Problem, dim: int) -> dict[Node, Choice]:
    """Every table of which rows are looked up, cut by one of its dims: along "tensor" where there
    is such an axis (each group has all tables), else along "data"."""
    axis = "tensor" if dict(problem.mesh).get("tensor", 1) > 1 else "data"
    found: dict[Node, Choice] = {}
    for n in problem.layer.forward:
        if work(n).kind != "gather" or n.operands[0].op != "parameter":
            continue
        for c in problem.choices.of(n):
            own = c.operands[0]
            cut = [(d, a) for d, _, a in own.cuts if a not in problem.time] if own else []
            if cut == [(dim, axis)]:
                found[n] = c
                break
    return found


def tabled(nodes: Iterable[Node]) -> frozenset[Node]:
    """Parameters of which rows are looked up."""
    return frozenset(
        n.operands[0] for n in nodes
        if work(n).kind == "gather" and n.operands and n.operands[0].op == "parameter"
    )  # fmt: skip


def _on(s: Sharding, axis: str) -> bool:
    return any(a == axis for _, _, a in s.cuts)


def _from_parameter(a: Node) -> bool:
    while len(a.operands) == 1 and work(a).kind in ("view", "stream"):
        a = a.operands[0]
    return a.op == "parameter"


def divisors(n: int) -> list[int]:
    """All of them, in order."""
    small = [k for k in range(1, math.isqrt(n) + 1) if n % k == 0]
    return sorted({*small, *(n // k for k in small)})


@dataclass(frozen=True, slots=True)
class Member:
    """A member of a family by its fields."""

    depth: int
    tensor: int
    microbatches: int
    chunks: int = 1
    zero: int = 0
    recompute: bool = False


@dataclass(frozen=True, slots=True)
class Family:
    """One way in which people place models.

    Attributes:
        name: of `FAMILIES`.
        batch: samples of a step.
        devices: of the cluster, all of which it uses.
        node: devices of one node: tensors are cut inside.
        weights: of each block, for even stages.
        training: with gradients.
        limits: what may be used.
    """

    name: str
    batch: int
    devices: tuple[int, ...]
    node: int
    weights: Sequence[float]
    training: bool
    limits: Limits = SIMULATED

    @property
    def zeros(self) -> tuple[int, ...]:
        if not self.training:
            return (0,)
        return {"data": (0,), "fsdp": (3, 2), "experts": (1, 3)}.get(self.name, (1, 0))

    def degrees(self) -> list[tuple[int, int]]:
        """(stages, tensor), those that cut the model least first."""
        total = len(self.devices)
        depths = [d for d in divisors(total) if d <= min(len(self.weights), 64)]
        tensors = [t for t in divisors(self.node) if total % t == 0]
        rows = [
            (d, t) for d in depths for t in tensors
            if total % (d * t) == 0 and self.batch % (total // (d * t)) == 0
        ]  # fmt: skip
        if self.name in ("rows", "columns"):
            return [(d, t) for d, t in rows if d == 1]
        wanted = {"tensor": (False, True), "pipeline": (True, False), "3d": (True, True)}.get(
            self.name, (False, False)
        )
        rows = [(d, t) for d, t in rows if (d > 1, t > 1) == wanted]
        return sorted(rows, key=lambda x: (x[0] * x[1], x[0]))

    def strategy(self, m: Member) -> Strategy | None:
        """The member as a strategy; None if there is none with such fields."""
        total = len(self.devices)
        if (m.depth, m.tensor) not in self.degrees() or m.zero not in self.zeros:
            return None
        data = total // (m.depth * m.tensor)
        if self.batch % (data * m.microbatches):
            return None
        if m.chunks > 1 and (
            m.microbatches % m.depth or m.depth * m.chunks > len(self.weights) or m.depth == 1
        ):
            return None
        pinned = frozenset() if self.name in LOOSE else frozenset({"data"})
        style = self.name if self.name in LOOSE else "tokens"
        recipe = Recipe((("data", data), ("tensor", m.tensor)), pinned, style)
        size = total // m.depth
        groups = [self.devices[k * size : (k + 1) * size] for k in range(m.depth)]
        parts = even(
            [self.weights] * m.depth, groups, [recipe] * m.depth, chunks=m.chunks,
            zero=m.zero, recompute=m.recompute,
        )  # fmt: skip
        schedule = "interleaved" if m.chunks > 1 else "1f1b"
        return Strategy(parts, m.microbatches, schedule, m.chunks, self.name)

    def starts(self) -> Iterator[Member]:
        """Members to begin with: degrees far apart, one sample at a time in pipelines."""
        rows = self.degrees()
        some = rows if len(rows) <= STARTS else [
            rows[k * (len(rows) - 1) // (STARTS - 1)] for k in range(STARTS)
        ]  # fmt: skip
        for depth, tensor in some:
            samples = self.batch * depth * tensor // len(self.devices)
            options = self.limits.counts(divisors(samples))
            micro = options[0] if depth == 1 else max(m for m in options if m <= 4 * depth)
            if depth > 1 and micro < depth:
                micro = options[-1]
            yield Member(depth, tensor, micro, 1, self.zeros[0])

    def near(self, m: Member) -> Iterator[Member]:
        """Members that differ in one field, or trade one degree for another."""
        samples = self.batch * m.depth * m.tensor // len(self.devices)
        options = self.limits.counts(divisors(samples))
        at = options.index(m.microbatches) if m.microbatches in options else 0
        for k in (at + 1, at - 1, at + 2, at - 2):
            if 0 <= k < len(options):
                yield replace(m, microbatches=options[k])
        if self.training:
            yield replace(m, recompute=not m.recompute)
        yield from (replace(m, zero=z) for z in self.zeros if z != m.zero)
        if self.name in ("3d", "pipeline") and "interleaved" in self.limits.schedules:
            yield from (replace(m, chunks=c) for c in (1, 2, 4) if c != m.chunks)
        for depth, tensor in self.degrees():
            pair = sorted((math.log2(depth / m.depth), math.log2(tensor / m.tensor)))
            if pair not in ([-1, 0], [0, 1], [-1, 1]):
                continue
            # The samples of one microbatch stay the same.
            micro = max(1, m.microbatches * depth * tensor // (m.depth * m.tensor))
            fits = self.limits.counts(divisors(self.batch * depth * tensor // len(self.devices)))
            yield replace(
                m, depth=depth, tensor=tensor, chunks=1,
                microbatches=min(fits, key=lambda x: abs(math.log(x / micro))),
            )  # fmt: skip


def tuned(family: Family, rate: Rate, over: Callable[[], bool]) -> Strategy | None:
    """The best member that was found.

    Args:
        rate: what a strategy is worth; None if it cannot be.
        over: whether the time is up; what was begun is finished as soon as something fits.
    """
    best: tuple[Score, Member, Strategy] | None = None
    seen: set[Member] = set()

    def look(m: Member) -> bool:
        nonlocal best
        if m in seen:
            return False
        seen.add(m)
        s = family.strategy(m)
        score = rate(s) if s is not None else None
        if s is None or score is None or (best is not None and score >= best[0]):
            return False
        best = score, m, s
        return True

    for m in family.starts():
        if over() and best is not None:
            break
        look(m)
        if family.training and best is not None and best[0][0]:
            look(replace(m, recompute=True))
    better = best is not None
    while better and best is not None and not over():
        better = False
        for m in list(family.near(best[1])):
            if over():
                break
            better = look(m) or better
    return best[2] if best is not None and not best[0][0] else None
