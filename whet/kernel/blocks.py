"""Blocks of rows: several reductions that wait for one another, over rows that stay in cache.

    before   scores[i, j] += …; top[i] = max(…); terms[i, j] = …; sums[i] += …; y[i, e] += terms * …

    after    parallel over what nothing shares:
               operands that vectors would have to gather, turned over once
               for blocks of rows:
                 scores: tiles of registers;  rows: one pass after the other over the block
                 y: tiles of registers

A block is as many rows as a tile of registers has, so its scores lie in the first caches. Rows that
are too long for that are taken in one pass over pieces (`Online`), the scores of a piece at a time.
The axes are found by following indices from the result back: one that runs through every value in
between is outer; an outer one along which an operand of a product stands still gives the rows.
"""

from __future__ import annotations

from collections.abc import Iterable

from whet.ir import expr as ex
from whet.ir.expr import Index, Load
from whet.kernel import layout as lay
from whet.kernel.affine import form
from whet.kernel.chain import inline
from whet.kernel.core import stride
from whet.kernel.draft import Draft, nest, turns
from whet.kernel.inline import Inline
from whet.kernel.legal import around, find
from whet.kernel.loops import Kernel, Loop, Stmt, Store, Update, accesses, leaves, walk
from whet.kernel.mark import Keep, Parallelize, SetLayout, Unroll, Vectorize
from whet.kernel.online import Online
from whet.kernel.order import Join, Peel, Reorder
from whet.kernel.place import ComputeAt
from whet.kernel.stage import Stage
from whet.machine.target import Target

VECTORS = 2  # of a tile's row
SHARE = 4  # a block's rows may take the second cache's fourth part


def blocks(
    kernel: Kernel,
    target: Target,
    piece: int | None = None,
    fixed: frozenset[str] = frozenset(),
) -> Draft | None:
    """The whole construction; None where the kernel is of another kind.

    Args:
        kernel: naive.
        target: what it is for.
        piece: elements of a row that are taken at a time; unless it is said, whole rows as far as a
            block of them stays in the second cache.
        fixed: inputs that may be laid out otherwise ahead of time.
    """
    d = Draft(kernel)
    copies(d)
    inline(d)
    return d if _Blocks(d, target, piece, fixed).run() else None


def fair(extent: int, target: Target) -> int:
    """Rows of a block: as many as a tile of registers has, few of them left over at the end."""
    most = max(1, (target.registers - 1 - VECTORS) // VECTORS)
    if extent <= most:
        return extent
    full = [(extent / (-(-extent // n) * n) * min(1.0, n / 8), n) for n in range(1, most + 1)]
    return max(full)[1]


def copies(d: Draft) -> None:
    """Values that are only moved are read where they come from."""
    for name in [b.name for b in d.kernel.scratch]:
        made = [s for s, _, _ in leaves(d.kernel.body) if s.buffer == name]
        if len(made) == 1 and isinstance(made[0], Store) and isinstance(made[0].value, Load):
            d.do(Inline(name))


def products(k: Kernel) -> list[Update]:
    """Sums of products of two operands that both change along what is summed over."""
    found = []
    for s, path, _ in leaves(k.body):
        if not isinstance(s, Update) or s.how != "sum":
            continue
        own = {v for i in s.index for v in ex.free(i)}
        summed = {x.var for x in path if isinstance(x, Loop)} - own
        loads = [x for x in ex.loads(s.value) if summed & {v for i in x.index for v in ex.free(i)}]
        if len(loads) == 2 and isinstance(s.value, ex.Call) and s.value.fn == "*":
            found.append(s)
    return found


def through(k: Kernel, root: Store) -> dict[str, dict[str, str]]:
    """For each scratch buffer, its loops by the loops of the result that they follow."""
    found: dict[str, dict[str, str]] = {}
    own = {root.buffer: {v: v for i in root.index for v in ex.free(i)}}
    for b in reversed(k.scratch):
        maps: list[dict[int, str]] = []
        for leaf, _, _ in leaves(k.body):
            if leaf.buffer == b.name or leaf.buffer not in own:
                continue
            for load in ex.loads(leaf.value):
                if load.tensor == b.name:
                    names = own[leaf.buffer]
                    maps.append({
                        n: names[i.name] for n, i in enumerate(load.index)
                        if isinstance(i, Index) and i.name in names
                    })  # fmt: skip
        shared = set(maps[0].items()) if maps else set()
        for m in maps[1:]:
            shared &= set(m.items())
        found[b.name] = {}
        own[b.name] = {}
        for leaf, _, _ in leaves(k.body):
            if leaf.buffer == b.name:
                for n, var in shared:
                    at = leaf.index[n]
                    if isinstance(at, Index):
                        own[b.name][at.name] = var
                        found[b.name][var] = at.name
    return found


class _Blocks:
    def __init__(self, d: Draft, target: Target, piece: int | None, fixed: frozenset[str]) -> None:
        self.d, self.target, self.piece, self.fixed = d, target, piece, fixed
        self.rows = 1

    def run(self) -> bool:
        d = self.d
        sums = products(d.kernel)
        last = d.kernel.body[-1] if d.kernel.body else None
        if not sums or not isinstance(last, Loop) or len(d.kernel.outputs) != 1:
            return False
        loops = nest(last)
        (store,) = loops[-1].body if len(loops[-1].body) == 1 else (None,)
        if not isinstance(store, Store) or d.kernel.buffer(store.buffer).role != "out":
            return False
        maps = through(d.kernel, store)
        outer = [s.var for s in loops if all(s.var in m for m in maps.values())]
        row = self._row(outer, sums, maps)
        if not row:
            return False
        others = [v for v in outer if v != row]
        inner = [s.var for s in loops if s.var not in outer]
        if not self._ordered([*others, row, *inner]):
            return False
        return self._block(others, row)

    def _row(self, outer: list[str], sums: list[Update], maps: dict[str, dict[str, str]]) -> str:
        """The longest outer axis along which an operand of every product stands still."""
        best = (1, "")
        for var in outer:
            if all(
                any(all(maps[s.buffer].get(var) not in ex.free(i) for i in x.index)
                    for x in ex.loads(s.value))
                for s in sums
            ):  # fmt: skip
                best = max(best, (turns(self.d.kernel.loop(var)), var))
        return best[1]

    def _ordered(self, order: list[str]) -> bool:
        first = next(v for v in self.d.kernel.loops if v in order)
        now = [s.var for s in nest(self.d.kernel.loop(first))]
        return now == order or self.d.do(Reorder(tuple(order)))

    # -- rows --------------------------------------------------------------------------------------
    def _block(self, others: list[str], row: str) -> bool:
        d = self.d
        extent = turns(d.kernel.loop(row))
        self.rows = fair(extent, self.target)
        at, _ = d.split(row, self.rows)
        at = at or (others[-1] if others else "")
        if not at:
            return False
        for b in reversed(d.kernel.scratch):
            if not d.do(ComputeAt(b.name, at)):
                return False
        large = max((b.bytes for b in d.kernel.scratch), default=0)
        if self.piece is None and large * SHARE > self.target.l2:
            self.piece = 16 * VECTORS * self.target.lanes
        if self.piece is not None and not self._online(at, self.piece):
            return False
        self._turn(others[-1] if others else "")
        rest = extent % self.rows
        if rest and extent > self.rows and not d.do(Peel(at, extent // self.rows)):
            return False
        for body in self._bodies():
            if not self._inside(body):
                return False
        self._mark()
        return True

    def _bodies(self) -> list[str]:
        """Loops whose bodies hold products side by side with what waits for them."""
        sums = {s.buffer for s in products(self.d.kernel)}
        found = []
        for s in walk(self.d.kernel.body):
            if isinstance(s, Loop) and any(_makes(x, sums) for x in s.body) and len(s.body) > 1:
                own = [x for x in s.body if _makes(x, sums)]
                if any(len(nest(x)) > 1 and _perfect(x) for x in own):
                    found.append(s.var)
        return found

    def _online(self, at: str, piece: int) -> bool:
        """One pass over pieces of rows: the maximum, and every loop over what it is taken over."""
        d = self.d
        body = d.kernel.loop(at).body
        tops = [s for s, _, _ in leaves(body) if isinstance(s, Update) and s.how == "max"]
        if len(tops) != 1:
            return False
        waits = {tops[0].buffer}
        chosen: list[str] = []
        for s in body:
            made = [x for x, _, _ in leaves((s,))]
            if len(made) != 1:
                continue
            if made[0] is not tops[0] and not _loads(made[0], waits):
                continue
            waits.add(made[0].buffer)
            loops = nest(s)
            along = self._along(loops, made[0], tops[0], body)
            if along is None:
                continue
            o, i = d.split(along, piece)
            if not o:
                return False
            rest = [x.var for x in loops if x.var != along]
            if not d.do(Reorder((o, *rest, i))):
                return False
            chosen.append(o)
        if len(chosen) < 2 or not d.do(Online(tuple(chosen))):
            return False
        scores = [x.tensor for x in ex.loads(tops[0].value) if d.kernel.buffer(x.tensor).is_scratch]
        return all(d.do(ComputeAt(name, chosen[0])) for name in scores)

    def _along(
        self, loops: list[Loop], leaf: Store | Update, top: Update, body: Iterable[Stmt]
    ) -> str | None:
        """The loop of a nest that runs over what the maximum is taken over."""
        own = {v for i in top.index for v in ex.free(i)}
        length = next(
            turns(x) for s in body for x in walk((s,))
            if isinstance(x, Loop) and top in [y for y, _, _ in leaves((x,))] and x.var not in own
        )  # fmt: skip
        free = {v for i in leaf.index for v in ex.free(i)}
        summed = [x.var for x in loops if x.var not in free]
        if isinstance(leaf, Update):
            return summed[0] if len(summed) == 1 else None
        return next((x.var for x in reversed(loops) if turns(x) == length), None)

    # -- operands ----------------------------------------------------------------------------------
    def _turn(self, outside: str) -> None:
        """What vectors of a product would gather lies with that axis innermost, in panels: ahead of
        time where it may; else it is copied so within a loop, if there is one."""
        d = self.d
        for buffer in [s.buffer for s in products(d.kernel)]:  # copies for one change the others
            s, path = next(
                (x, p) for x, p, _ in leaves(d.kernel.body)
                if x.buffer == buffer and isinstance(x, Update)
            )  # fmt: skip
            domain = around(path)
            lane = self._lane(s)
            for load in ex.loads(s.value):
                if d.kernel.buffer(load.tensor).is_scratch:
                    continue
                step = stride(d.kernel, load.tensor, load.index, lane, domain)
                dims = [n for n, i in enumerate(load.index) if form(i, domain).coefficient(lane)]
                if step in (0, 1) or len(dims) != 1:
                    continue
                if load.tensor in self.fixed:
                    sizes, (dim,) = d.kernel.buffer(load.tensor).sizes, dims
                    others, width = (
                        [n for n in range(len(sizes)) if n != dim],
                        self._width(sizes[dim]),
                    )
                    panels = lay.blocked(sizes, [dim, *others], [(dim, width)])
                    whole = lay.dense(sizes, [*others, dim])
                    d.do(SetLayout(load.tensor, str(panels if sizes[dim] > width else whole)))
                    continue
                before = {b.name for b in d.kernel.buffers}
                if not outside or not d.do(Stage(load.tensor, outside)):
                    continue
                name = next(b.name for b in d.kernel.buffers if b.name not in before)
                sizes = d.kernel.buffer(name).sizes
                order = [n for n in range(len(sizes)) if n != dims[0]]
                d.do(SetLayout(name, str(lay.dense(sizes, [*order, dims[0]]))))

    def _width(self, extent: int) -> int:
        """Of a tile's row, so that there are two of them where there can be: sums are kept in
        registers within a loop over tiles."""
        most = VECTORS * self.target.lanes
        return most if extent > most else self.target.lanes

    def _lane(self, s: Update) -> str:
        """The loop along which a product's result lies together."""
        last = s.index[-1]
        return last.name if isinstance(last, Index) else ""

    # -- inside of a block -------------------------------------------------------------------------
    def _inside(self, at: str) -> bool:
        d = self.d
        sums = [s for s in products(d.kernel) if self._within(s, at)]
        for s in sums:
            if not self._tiled(s):
                return False
        made = {s.buffer for s in sums}
        self._joined(at, made | {f"{m}_s" for m in made})
        return True

    def _within(self, s: Update, at: str) -> bool:
        return any(x == s for x, _, _ in leaves(self.d.kernel.loop(at).body))

    def _tiled(self, s: Update) -> bool:
        """A product's nest, and the one that starts it, as tiles of registers."""
        d = self.d
        path = next(p for x, p, _ in leaves(d.kernel.body) if x == s)
        own = {v for i in s.index for v in ex.free(i)}
        loops = [x for x in path if isinstance(x, Loop)]
        loops = loops[next(n for n, x in enumerate(loops) if nest(x)[-1] is loops[-1]) :]
        lane = self._lane(s)
        rows = [x.var for x in loops if x.var in own and x.var != lane]
        summed = [x.var for x in loops if x.var not in own]
        if not lane or lane not in [x.var for x in loops]:
            return True
        first = next((
            (x, p) for x, p, _ in leaves(d.kernel.body)
            if x.buffer == s.buffer and isinstance(x, Store)
        ), None)  # fmt: skip
        width = self._width(next(turns(x) for x in loops if x.var == lane))
        o, i = d.split(lane, width)
        if not d.do(Reorder(tuple(v for v in (o, *summed, *rows, i) if v))):
            return False
        start = ""
        if first is not None and isinstance(first[0].index[-1], Index):
            mine = first[0].index[-1].name
            if mine in d.kernel.loops:
                so, si = d.split(mine, width)
                near = [
                    x.var
                    for x in first[1]
                    if isinstance(x, Loop)
                    and x.var in {v for e in first[0].index for v in ex.free(e)}
                    and x.var != mine
                ]
                d.do(Reorder(tuple(v for v in (so, *near, si) if v)))
                start = so
        if o:
            joined = start and d.do(Join(start, o))
            before = {b.name for b in d.kernel.buffers}
            home = start if joined and start in d.kernel.loops else o
            if d.do(Stage(s.buffer, home)):
                name = next(b.name for b in d.kernel.buffers if b.name not in before)
                d.do(Keep(name, "register"))
                self._marked(home, name)
                return True
        return True

    def _marked(self, home: str, name: str) -> None:
        """Vectors innermost, rows unrolled."""
        d = self.d
        for x in [x for x in walk(d.kernel.loop(home).body) if isinstance(x, Loop)]:
            if x.var not in d.kernel.loops:
                continue
            deepest = not any(isinstance(y, Loop) for y in walk(x.body))
            if deepest:
                d.do(Vectorize(x.var))
            elif isinstance(x.extent, int) and x.extent <= 2 * self.rows and all(
                a.buffer != name or any(x.var in ex.free(i) for i in a.index)
                for a in accesses(x.body)
            ):  # fmt: skip
                d.do(Unroll(x.var))

    def _joined(self, at: str, apart: set[str]) -> None:
        """Passes over rows become one, as far as they may."""
        while any(self._join(body, apart) for body in _lists(self.d.kernel, at)):
            pass

    def _join(self, body: tuple[Stmt, ...], apart: set[str]) -> bool:
        loops = [s for s in body if isinstance(s, Loop) and not _makes(s, apart)]
        return any(
            a.extent == b.extent and a.kind == b.kind == "serial" and self.d.do(Join(a.var, b.var))
            for n, a in enumerate(loops)
            for b in loops[n + 1 :]
        )

    def _mark(self) -> None:
        d = self.d
        for s in [s for s in walk(d.kernel.body) if isinstance(s, Loop)]:
            if s.var in d.kernel.loops and s.kind == "serial":
                if not any(isinstance(x, Loop) for x in walk(s.body)):
                    d.do(Vectorize(s.var))
        for top in d.kernel.body:
            if isinstance(top, Loop) and turns(top) >= self.target.threads > 1:
                d.do(Parallelize(top.var))
        for b in d.kernel.scratch:
            if b.role == "memory" and b.bytes <= self.target.l1:
                if any(x.kind == "parallel" for x in _loops_around(d.kernel, b.name)):
                    d.do(Keep(b.name, "stack"))


def _lists(k: Kernel, at: str) -> list[tuple[Stmt, ...]]:
    return [s.body for s in walk((k.loop(at),)) if isinstance(s, Loop)]


def _makes(s: Stmt, buffers: set[str]) -> bool:
    return any(x.buffer in buffers for x, _, _ in leaves((s,)))


def _perfect(s: Stmt) -> bool:
    return len(list(leaves((s,)))) == 1


def _loads(s: Store | Update, buffers: set[str]) -> bool:
    return any(x.tensor in buffers for x in ex.loads(s.value))


def _loops_around(k: Kernel, buffer: str) -> list[Loop]:
    vars = {v for a in accesses(k.body) if a.buffer == buffer for v in a.vars}
    return [find(k, v)[0] for v in vars]
