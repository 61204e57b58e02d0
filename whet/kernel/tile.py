"""Tiles: partial results of a reduction stay in registers, and its result never leaves them.

    before   for f…: t[f] = 0      for f…: for r…: t[f] += x * w      for f…: y[f] = e(t[f])

    after    parallel over tiles:
               t: register [rows, vectors]
               for r…: unroll rows: vector: t += x * w
               unroll rows: vector: y = e(t)

Parameters are laid out in the order in which tiles read them. Where reads are guarded (padding),
a block of rows is copied once, the outside filled in, and the reduction reads the copy. What a tile
does not divide gets a second nest for the rest. Products of matrices, convolutions of any kind,
pooling, and products with one row are all the same to it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from whet.ir import expr as ex
from whet.kernel import layout as lay
from whet.kernel.affine import form
from whet.kernel.chain import inline, parallelize, place, vectorize
from whet.kernel.core import Core, distance
from whet.kernel.draft import Draft, nest, turns
from whet.kernel.layout import Layout
from whet.kernel.loops import Kernel, Loop, Stmt, Store, Update, leaves, walk
from whet.kernel.mark import Keep, SetLayout, Unroll, Vectorize
from whet.kernel.order import Join, Peel, Reorder
from whet.kernel.place import ComputeAt, Recompute
from whet.kernel.stage import Stage
from whet.machine.target import Target

MOST = 3  # tilings that are tried
CLOSE = 0.85  # of the best one's score, from which on another may still be the faster


@dataclass(frozen=True, slots=True)
class Tiling:
    """How a reduction is cut.

    Attributes:
        columns: of a tile: whole vectors, or a number that divides the axis.
        rows: of a tile.
        order: what encloses what, outermost first: p for panels of vectors, o for other axes (in
            blocks), r for rows.
        block: turns of the innermost other axis that are done together.
    """

    columns: int
    rows: int
    order: str = "por"
    block: int = 1


def prepared(kernel: Kernel) -> Draft:
    """A kernel as `core` and `tile` want it: cheap values inlined, and what is done to the elements
    of a result in one nest."""
    d = Draft(kernel)
    inline(d)
    while _elementwise(d):
        pass
    return d


def _elementwise(d: Draft) -> bool:
    """Two neighbouring nests over the same axes that only store, as one; False where none are."""
    summed = {s.buffer for s, _, _ in leaves(d.kernel.body) if isinstance(s, Update)}
    for a, b in itertools.pairwise(d.kernel.body):
        first, second = nest(a), nest(b)
        if not first or [turns(s) for s in first] != [turns(s) for s in second]:
            continue
        inner = (*first[-1].body, *second[-1].body)
        if not all(isinstance(s, Store) and s.buffer not in summed for s in inner):
            continue
        tried = d.copy()
        if all(tried.do(Join(x.var, y.var)) for x, y in zip(first, second, strict=True)):
            d.take(tried)
            return True
    return False


def tilings(c: Core, target: Target) -> list[Tiling]:
    """A handful of ways to cut, the most promising first.

    Accumulators fill the registers but for what is loaded: rows x vectors + vectors + 1. There must
    be enough of them to hide the latency of a sum, and little of a tile may be left empty.
    """
    total, rows = c.extent(c.vector), c.extent(c.row)
    found: dict[int, tuple[float, Tiling]] = {}
    for vectors in (1, 2, 3, 4, 6, 8):
        if (vectors - 1) * target.lanes >= total:
            continue
        columns = _columns(total, vectors * target.lanes)
        most = min(rows, max(1, (target.registers - 1 - vectors) // vectors))
        for count in range(most, 0, -1):
            work = count * vectors
            filled = rows / (-(-rows // count) * count) * columns / (vectors * target.lanes)
            whole = 1.0 if not rows % count and not total % columns else 0.9
            score = (
                min(1.0, work / 12) * whole * filled * (1 - 0.25 * (count + vectors) / (2 * work))
            )
            if score > found.get(vectors, (0.0, None))[0]:
                found[vectors] = (score, Tiling(columns, count))
    best = sorted(found.values(), key=lambda st: -st[0])[:MOST]
    return [t for score, t in best if score >= CLOSE * best[0][0]]


def _columns(total: int, most: int) -> int:
    """Columns of a tile: as many as fit, or as divide the axis without much loss."""
    if total <= most or not total % most:
        return min(total, most)
    divisor = next(n for n in range(most, 0, -1) if not total % n)
    return divisor if divisor >= 0.75 * most else most


def variants(c: Core, target: Target, guarded: bool) -> list[Tiling]:
    """The best tiling in two orders, the next ones in one: few enough to measure every one."""
    cuts = tilings(c, target)
    others = [s for s in c.home if s.var not in (c.vector, c.row)]
    block = _block(turns(others[-1]), target.threads) if others and guarded else 1
    orders = ["opr", "por"] if guarded else ["por", "orp"] if c.row else ["por"]
    found = [Tiling(t.columns, t.rows, o, block) for t in cuts[:1] for o in orders]
    return found + [Tiling(t.columns, t.rows, orders[0], block) for t in cuts[1:]]


def _block(n: int, threads: int) -> int:
    """Rows that are copied together: many, but as many blocks for each thread as for the others."""
    fair = [b for b in range(1, min(n, 16) + 1) if n % b == 0 and (n // b) % threads == 0]
    return max(fair, default=max(b for b in range(1, min(n, 16) + 1) if n % b == 0))


def tile(d: Draft, c: Core, t: Tiling, fixed: frozenset[str], target: Target) -> Draft | None:
    """The kernel cut so, from a copy of a prepared draft; None where a move is illegal."""
    d = d.copy()
    return d if _Tiler(d, c, t, fixed, target).run() else None


class _Tiler:
    def __init__(self, d: Draft, c: Core, t: Tiling, fixed: frozenset[str], target: Target) -> None:
        self.d, self.c, self.t, self.fixed, self.target = d, c, t, fixed, target
        far = {s.var: distance(d.kernel, c, s.var, fixed) for s in c.reduced}
        self.reduced = sorted((s.var for s in c.reduced), key=lambda v: -far[v])

    def run(self) -> bool:
        self._layouts()
        homes = [(self.c.buffer, self.c.home)]
        for var, step in ((self.c.vector, self.t.columns), (self.c.row, self.t.rows)):
            if var:
                homes = [even for home in homes for even in self._even(*home, var, step)]
        if not all(self._cut(buffer, home) for buffer, home in homes):
            return False
        vectorize(self.d)
        parallelize(self.d, self.target.threads)
        place(self.d, self.target.l1)
        return True

    # -- layouts -----------------------------------------------------------------------------------
    def _layouts(self) -> None:
        for load in ex.loads(self.c.update.value):
            if load.tensor in self.fixed:
                layout = self._packed(load)
                if layout is not None:
                    self.d.do(SetLayout(load.tensor, str(layout)))

    def _packed(self, load: ex.Load) -> Layout | None:
        """A parameter as a tile reads it, from one end to the other."""
        c, sizes = self.c, self.d.kernel.buffer(load.tensor).sizes
        coefficient = [form(i, c.domain) for i in load.index]
        lane = [n for n, f in enumerate(coefficient) if f.coefficient(c.twins[c.vector])]
        if len(lane) != 1:
            return None
        (dim,) = lane
        order: list[int] = []
        for var in (*(s.var for s in c.free), *self.reduced):
            order += [n for n, f in enumerate(coefficient) if f.coefficient(var) and n not in order]
        order = [*(n for n in range(len(sizes)) if n not in order), *order]
        if sizes[dim] <= self.t.columns:
            return lay.dense(sizes, [*(n for n in order if n != dim), dim])
        return lay.blocked(sizes, order, [(dim, self.t.columns)])

    # -- nests -------------------------------------------------------------------------------------
    def _mine(self, loops: Sequence[Loop], var: str) -> Loop | None:
        """The loop that was `var` before the nest was peeled off another one."""
        return next((s for s in loops if _origin(s.var) == var), None)

    def _even(
        self, buffer: str, home: tuple[Loop, ...], var: str, step: int
    ) -> list[tuple[str, tuple[Loop, ...]]]:
        """Nests whose loop is a multiple of a step, or shorter: the rest is a nest of its own."""
        d, mine = self.d, self._mine(home, var)
        if mine is None or turns(mine) <= step or turns(mine) % step == 0:
            return [(buffer, home)]
        around = [s.var for s in home[: home.index(mine)]]
        if around and not d.do(Reorder((mine.var, *around))):
            return [(buffer, home)]
        before = set(d.kernel.loops)
        if not d.do(Peel(mine.var, turns(mine) // step * step)):
            return [(buffer, home)]
        tail = next(s.var for s in d.kernel.body if isinstance(s, Loop) and s.var not in before)
        known = {b.name for b in d.kernel.buffers}
        if not d.do(Recompute(buffer, tail)):
            return [(buffer, home)]
        again = next(b.name for b in d.kernel.buffers if b.name not in known)
        loops = d.kernel.loops
        return [(buffer, tuple(nest(loops[mine.var]))), (again, tuple(nest(loops[tail])))]

    def _cut(self, buffer: str, home: tuple[Loop, ...]) -> bool:
        """A nest and its reduction as tiles."""
        d, c = self.d, self.c
        vector, row = self._mine(home, c.vector), self._mine(home, c.row)
        if vector is None:
            return False
        rest = [s.var for s in home if s not in (vector, row)]
        po, pi = d.split(vector.var, self.t.columns)
        ro, ri = d.split(row.var, self.t.rows) if row else ("", "")
        block = ""
        if rest and self.t.block > 1:
            rest[-1], block = d.split(rest[-1], self.t.block)
        groups = {"p": [po], "o": rest, "r": [ro]}
        outer = [v for key in self.t.order for v in groups[key] if v]
        if block:
            outer.insert(len(outer) - bool(ro) if self.t.order != "orp" else len(outer), block)
        inner = [v for v in (ri, pi) if v]
        if not self._ordered([*outer, *inner]):
            return False
        at = outer[-1] if outer else ""
        if at and not d.do(ComputeAt(buffer, at)):
            return False
        self._copies(buffer, rest, po)
        return self._inside(buffer, at, ri, pi)

    def _ordered(self, order: list[str]) -> bool:
        present = [v for v in order if v in self.d.kernel.loops]
        order[:] = present
        first = next((v for v in self.d.kernel.loops if v in present), "")
        if len(present) < 2 or [s.var for s in nest(self.d.kernel.loop(first))] == present:
            return True
        return self.d.do(Reorder(tuple(present)))

    # -- padding -----------------------------------------------------------------------------------
    def _copies(self, buffer: str, rest: Sequence[str], panel: str) -> None:
        """Operands that are read under conditions are copied, the outside filled in."""
        update = next(
            s
            for s, _, _ in leaves(self.d.kernel.body)
            if s.buffer == buffer and isinstance(s, Update)
        )
        lane = self.c.twins[self.c.vector]
        for name in sorted(guarded(update)):
            along = any(
                lane in ex.free(i)
                for x in ex.loads(self.c.update.value) if x.tensor == name for i in x.index
            )  # fmt: skip
            loops = [v for v in self.d.kernel.loops if v in (*rest, panel)]
            if panel and not along and panel in loops and loops[-1] == panel and len(loops) > 1:
                loops.pop()
            if not loops:
                continue
            before = {b.name for b in self.d.kernel.buffers}
            if self.d.do(Stage(name, loops[-1])):
                self._lay(next(b.name for b in self.d.kernel.buffers if b.name not in before), name)

    def _lay(self, copy: str, source: str) -> None:
        """A copy lies as its source does, and is made in that order."""
        k = self.d.kernel
        parts = k.buffer(source).layout.parts
        order = [p.dim for p in sorted(parts, key=lambda p: (-p.stride, p.size > 1))]
        if k.buffer(source).layout.strides is None:
            return
        sizes = k.buffer(copy).sizes
        self.d.do(SetLayout(copy, str(lay.dense(sizes, order))))
        loops = [v for v in k.loops if v.startswith(f"{copy}_")]
        place_ = {f"{copy}_{dim}": n for n, dim in enumerate(order)}
        wanted = sorted(loops, key=lambda v: place_.get(v, 0))
        if wanted != loops and len(loops) > 1:
            self.d.do(Reorder(tuple(wanted)))

    # -- inside ------------------------------------------------------------------------------------
    def _inside(self, buffer: str, at: str, row: str, vector: str) -> bool:
        """A tile's own loops: the reduction outside, rows unrolled, vectors innermost."""
        d = self.d
        for s in d.kernel.loop(at).body if at else d.kernel.body:
            leaf = next((x for x, _, _ in leaves((s,)) if x.buffer == buffer), None)
            if leaf is not None:
                rows, lane = self._accumulating(leaf, nest(s))
                if rows is None:
                    return False
            else:
                lane = vector
                rows = [v.var for v in walk((s,)) if isinstance(v, Loop) and v.var == row]
            if not all(d.do(Unroll(v)) for v in rows):
                return False
            if lane in d.kernel.loops and not d.do(Vectorize(lane)):
                return False
        return self._registers(buffer)

    def _registers(self, buffer: str) -> bool:
        """A tile's rows are whole vectors, next to one another: each a variable."""
        sizes, dim = self.d.kernel.buffer(buffer).sizes, self.c.dim
        order = [n for n in range(len(sizes)) if n != dim]
        lies = lay.dense(sizes, [*order, dim])
        if lies != lay.dense(sizes) and not self.d.do(SetLayout(buffer, str(lies))):
            return False
        return self.d.do(Keep(buffer, "register"))

    def _accumulating(
        self, leaf: Store | Update, loops: Sequence[Loop]
    ) -> tuple[list[str] | None, str]:
        own = [s.var for s in loops if any(s.var in ex.free(i) for i in leaf.index)]
        lane = next((v for v in own if v in ex.free(leaf.index[self.c.dim])), "")
        rows = [v for v in own if v != lane]
        rank = {v: n for n, v in enumerate(self.reduced)}
        rest = [s.var for s in loops if s.var not in own]
        reduced = sorted(rest, key=lambda v: rank.get(_origin(v), 0))
        order = [*reduced, *rows, *([lane] if lane else [])]
        if order != [s.var for s in loops] and not self.d.do(Reorder(tuple(order))):
            return None, lane
        return rows, lane


def guarded(s: Stmt) -> set[str]:
    """Buffers that a statement reads under conditions."""
    if isinstance(s, (Store, Update)):
        tests = (e for e in ex.walk(s.value) if isinstance(e, ex.Select))
        return {x.tensor for e in tests for x in ex.loads(e.then)}
    return set()


def _origin(var: str) -> str:
    """The loop that a peeled or recomputed one comes from."""
    for suffix in ("_t", "_r", "_r2", "_t2"):
        var = var.removesuffix(suffix)
    return var
