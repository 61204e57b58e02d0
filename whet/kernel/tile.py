"""Tiles: partial results of a reduction stay in registers, and its result never leaves them.

    before   for f…: t[f] = 0      for f…: for r…: t[f] += x * w      for f…: y[f] = e(t[f])

    after    parallel over tiles:
               t: register [rows, vectors]
               for r…: unroll rows: vector: t += x * w
               unroll rows: vector: y = e(t)

Parameters are laid out in the order in which tiles read them. Where reads are guarded (padding),
a block of rows is copied once, the outside filled in, and the reduction reads the copy. Where a
window slides along the rows of a tile and nothing else is used twice, a copy costs as much as it
saves: the window is written out instead, so that rows share what they load, the tiles at both ends
are nests of their own, and what would read the outside is left out. What a tile does not divide
gets a second nest for the rest. Products of matrices, convolutions of any kind, pooling, and
products with one row are all the same to it.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from whet.ir import expr as ex
from whet.kernel import layout as lay
from whet.kernel.affine import form
from whet.kernel.chain import inline, parallelize, place, vectorize
from whet.kernel.core import Core, distance, windows
from whet.kernel.draft import Draft, nest, turns
from whet.kernel.flatten import Flatten
from whet.kernel.layout import Layout
from whet.kernel.loops import If, Kernel, Loop, Stmt, Store, Update, leaves, scope, walk
from whet.kernel.mark import Keep, SetLayout, Unroll, Vectorize
from whet.kernel.move import fresh
from whet.kernel.order import Collapse, Join, Peel, Reorder
from whet.kernel.place import ComputeAt, Recompute
from whet.kernel.stage import Stage
from whet.kernel.trim import Trim
from whet.machine.target import Target

MOST = 3  # tilings that are tried
WINDOW = 8  # places of a window from which on too much would be written out
FAIR = 8  # panels for each thread from which on one more or less does not matter
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
        slides: a window along the rows is written out, and nothing copied.
    """

    columns: int
    rows: int
    order: str = "por"
    block: int = 1
    slides: bool = False

    def __str__(self) -> str:
        return f"{self.columns}x{self.rows} {'sliding ' * self.slides}{self.order}"


def prepared(kernel: Kernel) -> Draft:
    """A kernel as `core` and `tile` want it: cheap values inlined, and what is done to the elements
    of a result in one nest, by loops of their own for groups and for channels within them."""
    d = _inlined(kernel)
    _apart(d)
    return d


def widened(kernel: Kernel, lanes: int) -> Draft | None:
    """As `prepared`, but groups that have fewer channels than a vector has lanes are counted
    through with these, in one loop: a vector holds channels of several groups. None where there
    are no such groups."""
    d = _inlined(kernel)
    return d if _counted(d, lanes) else None


def _inlined(kernel: Kernel) -> Draft:
    d = Draft(kernel)
    inline(d)
    while _elementwise(d):
        pass
    return d


def _counted(d: Draft, lanes: int) -> bool:
    """Loops over the dims of a sum that is read by digits of one variable become one, and so do
    the dims."""
    for loop in [s for s in d.kernel.body if isinstance(s, Loop)]:
        for leaf, _, _ in leaves((loop,)):
            for x in ex.loads(leaf.value) if isinstance(leaf, Store) else ():
                dims = _digits(x, lanes) if d.kernel.buffer(x.tensor).is_scratch else None
                if dims is not None:
                    return _one(d, x.tensor, dims)
    return False


def _digits(x: ex.Load, lanes: int) -> tuple[int, int] | None:
    """Neighbouring dims that are read at `var // n` and `var % n`, n below the lanes."""
    for dim, (a, b) in enumerate(itertools.pairwise(x.index)):
        match a, b:
            case (
                ex.Call("//", (ex.Index(var), ex.Num(int(n)))),
                ex.Call("%", (ex.Index(same), ex.Num(int(m)))),
            ) if var == same and n == m < lanes:
                return dim, dim + 1
    return None


def _one(d: Draft, buffer: str, dims: tuple[int, int]) -> bool:
    for leaf in [s for s, _, _ in leaves(d.kernel.body) if s.buffer == buffer]:
        outer, inner = (leaf.index[n] for n in dims)
        if not isinstance(outer, ex.Index) or not isinstance(inner, ex.Index):
            return False
        if not d.do(Collapse(outer.name, inner.name)):
            return False
    return d.do(Flatten(buffer, dims))


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


def _apart(d: Draft) -> None:
    """A loop that reads a sum by digits of its variable (channels of groups) becomes two."""
    for loop in [s for s in d.kernel.body if isinstance(s, Loop)]:
        for leaf, _, _ in leaves((loop,)):
            for x in ex.loads(leaf.value):
                if not isinstance(leaf, Store) or not d.kernel.buffer(x.tensor).is_scratch:
                    continue
                for i in x.index:
                    match i:
                        case ex.Call("%", (ex.Index(var), ex.Num(int(n)))):
                            d.split(var, n)


def tilings(c: Core, target: Target, held: int = 1) -> list[Tiling]:
    """A handful of ways to cut, the most promising first.

    Accumulators fill the registers but for what is loaded: (rows + held) x vectors + 1. There must
    be enough of them to hide the latency of a sum, and little of a tile may be left empty.
    """
    total, rows = c.extent(c.vector), c.extent(c.row)
    found: dict[int, tuple[float, Tiling]] = {}
    for vectors in (1, 2, 3, 4, 6, 8):
        if (vectors - 1) * target.lanes >= total:
            continue
        columns = _columns(total, vectors * target.lanes)
        most = min(rows, max(1, (target.registers - 1) // vectors - held))
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
    window = math.prod(turns(s) for s in c.reduced if s.var in windows(c))
    if 1 < window <= WINDOW and (sliding := tilings(c, target, 2 * window)):
        return [replace(t, order="orp", slides=True) for t in sliding[:2]]
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
        self.windows = windows(c) if t.slides else ()
        self.panels: list[str] = []  # the outermost loop of each nest, where that is over panels

    def run(self) -> bool:
        self._layouts()
        homes = [(self.c.buffer, self.c.home)]
        for var, step in ((self.c.vector, self.t.columns), (self.c.row, self.t.rows)):
            if var:
                homes = [even for home in homes for even in self._even(*home, var, step)]
        if not all(self._cut(buffer, home) for buffer, home in homes):
            return False
        self._together()
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
        return next((s for s in loops if _origin(s.var, (var,)) == var), None)

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
        before, known = set(d.kernel.loops), {b.name for b in d.kernel.buffers}
        tried = d.copy()
        if not tried.do(Peel(mine.var, turns(mine) // step * step)):
            return [(buffer, home)]
        rests = (s.var for s in tried.kernel.body if isinstance(s, Loop) and s.var not in before)
        tail = next(rests, "")  # one turn of the only loop is no loop any more
        if not tail or not tried.do(Recompute(buffer, tail)):
            return [(buffer, home)]
        d.take(tried)
        again = next(b.name for b in d.kernel.buffers if b.name not in known)
        loops = d.kernel.loops
        return [(buffer, tuple(nest(loops[mine.var]))), (again, tuple(nest(loops[tail])))]

    def _together(self) -> None:
        """The rest of the rows of a panel right after the others: by itself it would read the whole
        parameter once more. Not where threads would share too few panels evenly."""
        for first, second in itertools.pairwise(self.panels):
            loops = self.d.kernel.loops
            count = turns(loops[first])
            even = count % self.target.threads == 0 or count >= FAIR * self.target.threads
            if even and turns(loops[second]) == count:
                self.d.do(Join(first, second))

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
        if outer and outer[0] == po and self.fixed:
            self.panels.append(po)
        at = outer[-1] if outer else ""
        if at and not d.do(ComputeAt(buffer, at)):
            return False
        if not self.t.slides:
            self._copies(buffer, rest, po)
            return self._inside(buffer, ri, pi)
        return all(self._inside(*names) for names in self._ends(ro, (buffer, ri, pi)))

    # -- windows -----------------------------------------------------------------------------------
    def _ends(self, ro: str, names: tuple[str, str, str]) -> list[tuple[str, str, str]]:
        """The first and the last of the tiles along the rows as nests of their own: those between
        them never reach the outside. For each nest its names."""
        found = [names]
        for last in (False, True):
            k = self.d.kernel
            if ro not in k.loops:
                break
            count, body = turns(k.loop(ro)), k.loop(ro).body
            if count < 2 or not any(ro in tested(s) for s, _, _ in leaves(body)):
                break
            inside = {s.var for s in walk((k.loop(ro),)) if isinstance(s, Loop)}
            new = {n: fresh(k, f"{n}_t") for n in (*names, *inside)}
            if not self.d.do(Peel(ro, count - 1 if last else 1)):
                break
            names = (new[names[0]], new.get(names[1], names[1]), new.get(names[2], names[2]))
            found.append(names)
            ro = new[ro]
        return found

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
    def _inside(self, buffer: str, row: str, vector: str) -> bool:
        """A tile's own loops: the reduction outside, rows unrolled, vectors innermost."""
        d = self.d
        outside = scope(d.kernel, buffer)
        for leaf, path, _ in list(leaves(d.kernel.body)):
            if leaf.buffer == buffer:
                loops = [s for s in path if isinstance(s, Loop) and s.var not in outside]
                made = self._accumulating(leaf, loops)
                if made is None:
                    return False
                rows, lane = made
            elif any(x.tensor == buffer for x in ex.loads(leaf.value)):
                rows, lane = [row] if row in d.kernel.loops else [], vector
            else:
                continue
            if not all(d.do(Unroll(v)) for v in rows):
                return False
            if self.t.slides and isinstance(leaf, Update):
                self._trim(leaf, path)
            if lane in d.kernel.loops and not d.do(Vectorize(lane)):
                return False
        return self._registers(buffer)

    def _trim(self, update: Update, path: Sequence[Loop | If]) -> None:
        """What would read the outside is left out, as far as ranges of loops can say that."""
        own = {v for i in update.index for v in ex.free(i)}
        inner = [s.var for s in path if isinstance(s, Loop) and s.var not in own]
        conditions = tested(update)
        for var in inner:
            if var in conditions:
                self.d.do(Trim(var))

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
    ) -> tuple[list[str], str] | None:
        """Loops to unroll and the one for vectors, in order; None where they cannot be."""
        d = self.d
        own = [s.var for s in loops if any(s.var in ex.free(i) for i in leaf.index)]
        lane = next((v for v in own if v in ex.free(leaf.index[self.c.dim])), "")
        rows = [v for v in own if v != lane]
        origin = {s.var: _origin(s.var, self.reduced) for s in loops if s.var not in own}
        reduced = sorted(origin, key=lambda v: self.reduced.index(origin[v]))
        window = [v for v in reduced if origin[v] in self.windows]
        whole = [v for v in reduced if v not in window]
        order = [*whole, *rows, *window, *([lane] if lane else [])]
        if order != [s.var for s in loops] and not d.do(Reorder(tuple(order))):
            return None
        return [*rows, *window], lane


def guarded(s: Stmt) -> set[str]:
    """Buffers that a statement reads under conditions."""
    if isinstance(s, (Store, Update)):
        tests = (e for e in ex.walk(s.value) if isinstance(e, ex.Select))
        return {x.tensor for e in tests for x in ex.loads(e.then)}
    return set()


def tested(s: Stmt) -> set[str]:
    """Loops that conditions of a statement's value depend on."""
    if isinstance(s, (Store, Update)):
        return {v for e in ex.walk(s.value) if isinstance(e, ex.Select) for v in ex.free(e.test)}
    return set()


def _origin(var: str, known: Collection[str]) -> str:
    """Which of the known loops one that was peeled or recomputed comes from."""
    while var not in known and (shorter := re.sub(r"_[tr]\d*$", "", var)) != var:
        var = shorter
    return var
