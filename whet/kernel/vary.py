"""Variations: schedules around those that the drafts know, found by changing their moves.

    scattered     a tiling drawn at large, or a draft, and some changes of it
    mutant        one change: a number, an order, a move left out, a move put in, other marks
    crossing      the first moves of one schedule, the last ones of another

Moves name loops and buffers, and names are made from names, so most of a schedule still applies
when one of its moves is another one; what no longer applies is left out. A change is judged by the
kernel that it makes: equal kernels are one state, however they came to be.

>>> import random
>>> from whet.ir.graph import Graph, apply, leaf
>>> from whet.ir.types import DType, TensorType
>>> from whet.kernel.lower import lower
>>> x, w = (leaf("input", n, TensorType(DType.f32, (64, 64))) for n in "xw")
>>> k = lower(Graph((x, w), (apply("relu", apply("matmul", x, w)),)))
>>> v = Variations(k, frozenset(), Target("avx2", 32, 16, 2))
>>> len({v.scattered(random.Random(seed)).kernel.digest for seed in range(8)}) > 4
True
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from whet.kernel import layout as lay
from whet.kernel.chain import parallelize, place, vectorize
from whet.kernel.core import core
from whet.kernel.draft import Draft, nest, turns
from whet.kernel.fold import SplitReduction
from whet.kernel.inline import Inline
from whet.kernel.loops import Buffer, If, Kernel, Loop, Stmt, walk
from whet.kernel.mark import Keep, Parallelize, SetLayout, Unroll, Vectorize
from whet.kernel.move import Move
from whet.kernel.order import Collapse, Join, Peel, Reorder, Split, Tile
from whet.kernel.place import ComputeAt
from whet.kernel.schedule import Schedule
from whet.kernel.space import Drafted, drafts
from whet.kernel.stage import Stage
from whet.kernel.tile import Tiling, guarded, prepared, tile
from whet.machine.target import Target

WRITTEN = 64  # statements that unrolling may write out: what is longer takes long to compile
ENTRIES = 128  # times that threads may be called together: more, and they do little else
TRIES = 24  # changes tried before a schedule counts as one that has no other near it
MARKS = (Parallelize, Vectorize, Unroll, Keep)
MARKED = 0.85  # share of changed schedules whose new loops get the usual marks


@dataclass
class Variations:
    """Schedules of one kernel; see the module's docstring.

    Args:
        kernel: naive, with its buffers laid out as they will lie.
        fixed: inputs that may be laid out otherwise ahead of time.
        target: what they are for.
    """

    kernel: Kernel
    fixed: frozenset[str]
    target: Target
    known: list[Drafted] = field(init=False)

    def __post_init__(self) -> None:
        self.known = drafts(self.kernel, self.fixed, self.target)
        self._base = prepared(self.kernel)
        self._core = core(self._base.kernel, self.fixed)
        self._tiles = self._core is not None and len(self._core.reduced) > 0

    # -- what there is -----------------------------------------------------------------------------
    def scattered(self, rng: random.Random) -> Drafted:
        """A schedule from anywhere in the space; the first draft where nothing else was found."""
        found = self.tiled(rng) if self._tiles and rng.random() < 0.5 else None
        found = found or rng.choice(self.known)
        for _ in range(min(int(rng.expovariate(0.5)), 6)):
            found = self.mutant(found, rng) or found
        return found

    def tiled(self, rng: random.Random) -> Drafted | None:
        """The kernel's core in tiles of any size, in any order; None where that is not possible."""
        c = self._core
        if c is None or c.extent(c.vector) <= 1:
            return None
        vectors = rng.choice((1, 1, 2, 2, 3, 4, 6))
        columns = min(c.extent(c.vector), max(1, vectors * self.target.lanes))
        if rng.random() < 0.2:
            columns = rng.choice(divisors(c.extent(c.vector)))
        most = min(c.extent(c.row), max(1, 2 * self.target.registers // vectors))
        rows = rng.randint(1, most)
        others = [s for s in c.home if s.var not in (c.vector, c.row)]
        blocks = divisors(turns(others[-1])) if others and guarded(c.update) else [1]
        t = Tiling(columns, rows, rng.choice(("por", "orp", "opr")), rng.choice(blocks))
        return self._made(tile(self._base, c, t, self.fixed, self.target), "tiled")

    def mutant(self, of: Drafted, rng: random.Random) -> Drafted | None:
        """A schedule that makes another kernel by one change; None where none was found."""
        for _ in range(TRIES):
            change = rng.choices(CHANGES, WEIGHTS)[0]
            d = change(self, of.schedule, rng)
            found = None if d is None else self._made(d, "mutant")
            if found is not None and found.kernel != of.kernel:
                return found
        return None

    def crossing(self, a: Drafted, b: Drafted, rng: random.Random) -> Drafted | None:
        """The beginning of one schedule with the end of another."""
        cut = rng.random()
        head = a.schedule[: round(cut * len(a.schedule))]
        tail = b.schedule[round(cut * len(b.schedule)) :]
        found = self._made(self._finished(self.replayed((*head, *tail)), rng), "crossing")
        return found if found is not None and found.kernel not in (a.kernel, b.kernel) else None

    def neighbours(self, of: Drafted) -> Iterator[Drafted]:
        """Schedules that differ in one number, which is halved, doubled, or a vector more or less;
        in the order of the moves."""
        lanes = self.target.lanes
        for at, move in enumerate(of.schedule):
            if not isinstance(move, (Split, Peel)):
                continue
            number = move.factor if isinstance(move, Split) else move.at
            for n in (2 * number, number // 2, number + lanes, number - lanes, number + 1):
                if n < 2:
                    continue
                again = Split(move.loop, n) if isinstance(move, Split) else Peel(move.loop, n)
                moves = (*of.schedule[:at], again, *of.schedule[at + 1 :])
                found = self._made(self.replayed(moves), "neighbour")
                if found is not None and found.kernel != of.kernel:
                    yield found

    def replayed(self, moves: Sequence[Move]) -> Draft:
        """The kernel with those moves made that apply, in order."""
        d = Draft(self.kernel)
        for move in moves:
            d.do(move)
        return d

    def _made(self, d: Draft | None, name: str) -> Drafted | None:
        if d is None or written(d.kernel) > WRITTEN or entries(d.kernel.body) > ENTRIES:
            return None
        return Drafted(name, d.schedule, d.kernel)

    def _finished(self, d: Draft, rng: random.Random) -> Draft:
        """The usual marks for what has none."""
        if rng.random() < MARKED:
            vectorize(d)
        if rng.random() < MARKED:
            parallelize(d, self.target.threads)
        if rng.random() < MARKED:
            place(d, self.target.l1)
        return d

    # -- changes -----------------------------------------------------------------------------------
    def _resized(self, moves: Schedule, rng: random.Random) -> Draft | None:
        """Another number in one of the moves."""
        places = [k for k, m in enumerate(moves) if isinstance(m, (Split, Peel, Tile))]
        if not places:
            return None
        at = rng.choice(places)
        before = self.replayed(moves[:at])
        return self._replaying(before, _sized(moves[at], before.kernel, self, rng), moves[at:], rng)

    def _reordered(self, moves: Schedule, rng: random.Random) -> Draft | None:
        """Two loops of an order exchanged."""
        places = [k for k, m in enumerate(moves) if isinstance(m, Reorder) and len(m.loops) > 1]
        if not places:
            return None
        at = rng.choice(places)
        loops = list(getattr(moves[at], "loops"))  # noqa: B009 - a move known to be a Reorder
        a, b = rng.sample(range(len(loops)), 2)
        loops[a], loops[b] = loops[b], loops[a]
        return self._replaying(self.replayed(moves[:at]), Reorder(tuple(loops)), moves[at:], rng)

    def _without(self, moves: Schedule, rng: random.Random) -> Draft | None:
        """A move left out."""
        if not moves:
            return None
        at = rng.randrange(len(moves))
        return self._finished(self.replayed((*moves[:at], *moves[at + 1 :])), rng)

    def _with(self, moves: Schedule, rng: random.Random) -> Draft | None:
        """A move more, before the marks."""
        marks = next((k for k, m in enumerate(moves) if isinstance(m, MARKS)), len(moves))
        at = rng.randint(0, marks) if rng.random() < 0.5 else marks
        d = self.replayed(moves[:at])
        for _ in range(TRIES):
            move = self._any(d.kernel, rng)
            if move is not None and d.do(move):
                break
        else:
            return None
        for move in moves[at:]:
            d.do(move)
        return self._finished(d, rng)

    def _marked(self, moves: Schedule, rng: random.Random) -> Draft | None:
        """Another way for one loop to run, or another place for one buffer."""
        rest = [m for m in moves if not isinstance(m, MARKS)]
        marks = [m for m in moves if isinstance(m, MARKS)]
        d = self.replayed(rest)
        loops = [s for s in walk(d.kernel.body) if isinstance(s, Loop)]
        small = [b for b in d.kernel.scratch if b.bytes <= self.target.l2]
        options: list[Callable[[], Move]] = []
        if loops:
            options += [
                lambda: Parallelize(rng.choice(loops).var),
                lambda: Vectorize(rng.choice(loops).var),
                lambda: Unroll(rng.choice(loops).var),
            ]
        if small:
            options.append(lambda: _kept(rng.choice(small), rng))
        for _ in range(TRIES if options else 0):
            new = rng.choice(options)()
            if new not in marks and d.do(new):
                break
        else:
            return None
        for move in marks:
            if not (isinstance(move, Keep) and isinstance(new, Keep) and move.buffer == new.buffer):
                d.do(move)
        return self._finished(d, rng)

    def _replaying(
        self, d: Draft, new: Move | None, moves: Sequence[Move], rng: random.Random
    ) -> Draft | None:
        """A draft with a new move in the place of the first of `moves`, then the others."""
        if new is None or not d.do(new):
            return None
        for move in moves[1:]:
            d.do(move)
        return self._finished(d, rng)

    def _any(self, k: Kernel, rng: random.Random) -> Move | None:
        """A move over loops or buffers of a kernel, legal or not."""
        loops = [s for s in walk(k.body) if isinstance(s, Loop) and s.kind == "serial"]
        if not loops:
            return None
        one = rng.choice(loops)
        inner = one.body[0] if len(one.body) == 1 else None
        scratch = [b.name for b in k.scratch]
        kind = rng.random()
        if kind < 0.3:
            return Split(one.var, _factor(turns(one), self.target.lanes, rng))
        if kind < 0.45 and isinstance(inner, Loop):
            path = [s.var for s in nest(one)]
            a, b = rng.sample(range(len(path)), 2)
            path[a], path[b] = path[b], path[a]
            return Reorder(tuple(path))
        if kind < 0.5 and isinstance(inner, Loop):
            return Collapse(one.var, inner.var)
        if kind < 0.6:
            return Join(one.var, rng.choice(loops).var)
        if kind < 0.75 and scratch:
            return ComputeAt(rng.choice(scratch), one.var)
        if kind < 0.82:
            return Stage(rng.choice([b.name for b in k.inputs]), one.var)
        if kind < 0.88 and scratch:
            return Inline(rng.choice(scratch))
        if kind < 0.92:
            return SplitReduction(one.var)
        free = [b for b in k.buffers if b.is_scratch or b.name in self.fixed]
        return _laid(rng.choice(free), self.target.lanes, rng) if free else None


Change = Callable[[Variations, Schedule, random.Random], Draft | None]
CHANGES: tuple[Change, ...] = (
    Variations._resized, Variations._reordered, Variations._without, Variations._with,
    Variations._marked,
)  # fmt: skip
WEIGHTS = (4, 1, 1, 3, 2)


def divisors(n: int) -> list[int]:
    """All of them, in ascending order.

    >>> divisors(12)
    [1, 2, 3, 4, 6, 12]
    """
    small = [d for d in range(1, math.isqrt(n) + 1) if n % d == 0]
    return sorted({*small, *(n // d for d in small)})


def written(k: Kernel) -> int:
    """Statements of the kernel once what is unrolled is written out."""

    def count(body: Sequence[Stmt]) -> Iterator[int]:
        for s in body:
            if isinstance(s, (Loop, If)):
                times = turns(s) if isinstance(s, Loop) and s.kind == "unroll" else 1
                yield times * sum(count(s.body))
            else:
                yield 1

    return sum(count(k.body))


def entries(body: Sequence[Stmt], times: int = 1) -> int:
    """How often parallel loops are entered."""
    total = 0
    for s in body:
        if isinstance(s, Loop):
            inside = s.kind == "parallel"
            total += times if inside else entries(s.body, times * turns(s))
        elif isinstance(s, If):
            total += entries(s.body, times)
    return total


def _sized(m: Move, k: Kernel, v: Variations, rng: random.Random) -> Move | None:
    """The move with another number."""
    lanes = v.target.lanes
    match m:
        case Split(loop, factor) if loop in k.loops:
            return Split(loop, _near(factor, turns(k.loop(loop)), lanes, rng))
        case Peel(loop, at) if loop in k.loops:
            return Peel(loop, _near(at, turns(k.loop(loop)), lanes, rng))
        case Tile(loops, factors):
            at = rng.randrange(len(factors))
            extent = turns(k.loop(loops[at])) if loops[at] in k.loops else 1
            new = _near(factors[at], extent, lanes, rng)
            return Tile(loops, (*factors[:at], new, *factors[at + 1 :]))
    return None


def _near(n: int, extent: int, lanes: int, rng: random.Random) -> int:
    """A number near another one, or one that divides an extent or fills vectors."""
    options = [2 * n, n // 2, n + 1, n - 1, n + lanes, n - lanes, *divisors(extent)]
    usable = [m for m in options if 1 < m < extent and m != n]
    return rng.choice(usable) if usable else n


def _factor(extent: int, lanes: int, rng: random.Random) -> int:
    options = [2, 3, 4, 6, 8, 12, lanes, 2 * lanes, 4 * lanes, 64, 128, *divisors(extent)]
    usable = [m for m in options if 1 < m < extent]
    return rng.choice(usable) if usable else 1


def _kept(b: Buffer, rng: random.Random) -> Move:
    return Keep(b.name, rng.choice([r for r in ("memory", "stack", "register") if r != b.role]))


def _laid(b: Buffer, lanes: int, rng: random.Random) -> Move | None:
    """Another layout: dims in another order, one of them perhaps in blocks."""
    if not b.sizes:
        return None
    order = list(range(len(b.sizes)))
    rng.shuffle(order)
    if rng.random() < 0.5:
        return SetLayout(b.name, str(lay.dense(b.sizes, order)))
    dim = rng.randrange(len(b.sizes))
    block = rng.choice((lanes, 2 * lanes, 4 * lanes, 8))
    if b.sizes[dim] <= block:
        return None
    return SetLayout(b.name, str(lay.blocked(b.sizes, order, [(dim, block)])))
