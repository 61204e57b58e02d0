"""Schedules for devices that run a program for each tile: a handful, from a kernel's structure.

    before   t[m, n] += x[m, k] * w[k, n];  y[m, n] = e(t[m, n])

    after    parallel over tiles of y:
               t: tile [m, n]
               for k in steps: t += x[m, k] * w[k, n]       m, n, k: blocks
               y = e(t)                                     m, n: blocks

The nest that writes the result is cut into tiles; what it reads is computed within (`compute_at`)
as far as registers hold it, and is a nest of its own otherwise. Axes are told apart by where
indices go: `outer` ones run through all values in between, `rows` and `columns` of a product are
those that only one of its operands depends on. A maximum with sums that wait for it, over rows
longer than a piece, is taken in one pass (`online`). Nothing knows an operator.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from whet.ir import expr as ex
from whet.ir.expr import Index
from whet.kernel.block import Grid, Launch
from whet.kernel.blocks import copies, products
from whet.kernel.chain import inline
from whet.kernel.core import stride
from whet.kernel.cut import Cut
from whet.kernel.draft import Draft, nest, turns
from whet.kernel.flatten import Flatten
from whet.kernel.fold import SplitReduction
from whet.kernel.following import folds, last_first, named_by, power, through
from whet.kernel.inline import Inline
from whet.kernel.inside import Inside, in_pieces
from whet.kernel.loops import Kernel, Loop, Stmt, Store, Update, accesses, leaves
from whet.kernel.order import Collapse, Join, Reorder
from whet.kernel.parts import Parts
from whet.kernel.place import ComputeAt
from whet.kernel.shadow import Shadow

FEW = 16  # rows that one program takes: with fewer, what they are multiplied by is in parts


def grid(kernel: Kernel, cut: Cut) -> Draft:
    """A kernel scheduled so. Always possible: what cannot be joined is a program of its own."""
    d = Draft(kernel)
    for b in kernel.outputs:
        if any(a.buffer == b.name and a.kind == "read" for a in accesses(kernel.body)):
            d.do(Shadow(b.name))
    copies(d)
    inline(d)
    if not products(d.kernel):
        _thin(d, cut)
    fences = (_scaled(d, cut.splits) or _parted(d, cut.splits)) if cut.splits > 1 else set()
    _joined(d)
    done: set[str] = set()
    while (root := _next(d, done)) is not None:
        done |= {root, *_Root(d, cut, root, fences).run()}
    d.do(Launch(cut.warps, cut.stages, cut.precision, cut.persistent, cut.beside))
    return d


def _thin(d: Draft, cut: Cut) -> None:
    """Rows that are longer than a tile are made again at each use, rather than kept."""
    for b in d.kernel.scratch:
        made = [s for s, _, _ in leaves(d.kernel.body) if s.buffer == b.name]
        if max(b.sizes, default=1) > cut.row and all(isinstance(s, Store) for s in made):
            d.do(Inline(b.name))


def _parted(d: Draft, splits: int) -> set[str]:
    """The longest sum of products in parts that are programs of their own; where they are kept."""
    sums = products(d.kernel)
    if not sums:
        return set()
    last = sums[-1]
    path = next(p for s, p, _ in leaves(d.kernel.body) if s == last)
    free = {v for i in last.index for v in ex.free(i)}
    folded = [x for x in path if isinstance(x, Loop) and x.var not in free]
    longest = max(folded, key=turns)
    before, known = d.copy(), {b.name for b in d.kernel.buffers}
    outer, _ = d.split(longest.var, -(-turns(longest) // splits))
    if not outer or not d.do(SplitReduction(outer)):
        d.take(before)
        return set()
    (part,) = {b.name for b in d.kernel.buffers} - known
    if not d.do(Shadow(part)):
        d.take(before)
        return set()
    return {part}


def _scaled(d: Draft, splits: int) -> set[str]:
    """A maximum, and the sums that wait for it, in parts that are programs of their own; where what
    they leave is kept."""
    tops = [s for s, _, _ in leaves(d.kernel.body) if isinstance(s, Update) and s.how == "max"]
    sums = products(d.kernel)
    if len(tops) != 1 or not sums or any(_rows(d.kernel, s) > FEW for s in sums):
        return set()  # tiles of rows and columns have programs enough
    path = next(p for s, p, _ in leaves(d.kernel.body) if s == tops[0])
    free = {v for i in tops[0].index for v in ex.free(i)}
    long = max((turns(x) for x in path if isinstance(x, Loop) and x.var not in free), default=1)
    before, known = d.copy(), {b.name for b in d.kernel.buffers}
    chosen = in_pieces(d, d.kernel.body, tops[0], -(-long // splits))
    if chosen is None or not d.do(Parts(tuple(chosen))):
        d.take(before)
        return set()
    for var in chosen:  # terms are made where they are used: their loops over one dim side by side
        loops = nest(d.kernel.loop(var))
        if isinstance(loops[-1].body[0], Store) and len(loops) > 2:
            outer, *rest, inner = [x.var for x in loops]
            d.do(Reorder((*rest, outer, inner)))
    new = {b.name for b in d.kernel.buffers} - known
    nests = [{x.buffer for x, _, _ in leaves((s,))} for s in d.kernel.body]
    return next(names for names in nests if len(names) > 1 and names <= new)


def _rows(k: Kernel, s: Update) -> int:
    """How many rows a product has for each of its columns' operands: 1 where it has none."""
    one, two = ({v for i in x.index for v in ex.free(i)} for x in list(ex.loads(s.value))[:2])
    return min(math.prod(turns(k.loop(v)) for v in own) for own in (one - two, two - one))


def _joined(d: Draft) -> None:
    """Results of one shape are written by one nest, and a start is made where its sum is taken."""
    changed = True
    while changed:
        changed = False
        tops = [s for s in d.kernel.body if isinstance(s, Loop)]
        for a, one in enumerate(tops):
            for two in tops[a + 1 :]:
                if _writes(d.kernel, one) and _writes(d.kernel, two) and _alike(one, two):
                    if _merged(d, one.var, two.var):
                        changed = True
                        break
            if changed:
                break


def _writes(k: Kernel, s: Stmt) -> bool:
    """Does a statement store results of the kernel, and nothing else?"""
    return all(
        isinstance(x, Store) and k.buffer(x.buffer).role == "out" for x, _, _ in leaves((s,))
    )


def _alike(a: Loop, b: Loop) -> bool:
    return [s.extent for s in nest(a)] == [s.extent for s in nest(b)]


def _merged(d: Draft, a: str, b: str) -> bool:
    """Two nests as one, as deep as they go."""
    before = d.copy()
    while True:
        if not d.do(Join(a, b)):
            d.take(before)
            return False
        name = a if a in d.kernel.loops else b
        inner = [s for s in d.kernel.loop(name).body if isinstance(s, Loop)]
        if len(inner) != 2:
            return True
        a, b = inner[0].var, inner[1].var


def _next(d: Draft, done: set[str]) -> str | None:
    """The last nest that is not scheduled yet, by its outermost loop."""
    for s in reversed(d.kernel.body):
        if isinstance(s, Loop) and s.kind == "serial" and s.var not in done:
            return s.var
    return None


class _Root:
    """One nest of the kernel's body, and what it takes in."""

    def __init__(self, d: Draft, cut: Cut, root: str, fences: set[str]) -> None:
        self.d, self.cut, self.root, self.fences = d, cut, root, fences
        self.over: list[str] = []  # loops over tiles, outermost first
        self.parts = ""
        self.flat: list[list[str]] = []  # loops, by nest, along dims that have become one

    def run(self) -> set[str]:
        """Makes the moves; gives the loops of the body that nothing more is to be done to."""
        d = self.d
        loops = nest(d.kernel.loop(self.root))
        stores = [s for s, _, _ in leaves(loops[-1].body)]
        updated = {s.buffer for s, _, _ in leaves(d.kernel.body) if isinstance(s, Update)}
        if any(s.buffer in updated for s in stores):  # a sum that others read: made, then copied
            known = set(d.kernel.loops)
            if not d.do(Shadow(stores[-1].buffer)):
                return {self.root}
            self.fences.add(stores[-1].buffer)
            made = [v for v in d.kernel.loops if v not in known]
            if not made:  # a lone number: one program sums it, in pieces
                Inside(d, self.cut, "", self.fences).mark(self.root)
                return {s.var for s in d.kernel.body if isinstance(s, Loop)} - known | {self.root}
            self.root = made[0]
        self._apart()
        before = d.copy()
        for inside in (True, False):  # with what it reads computed within, or by itself
            loops = nest(d.kernel.loop(self.root))
            stores = [s for s, _, _ in leaves(loops[-1].body)]
            root = self.root
            if self._tiled(loops, stores, inside):
                break
            d.take(before.copy())
            self.root = root
        if not self.over:  # one program for all that is left
            return {s.var for s in d.kernel.body if isinstance(s, Loop)}
        return {self.root}

    def _apart(self) -> None:
        """Axes that values are read through in two parts become two loops."""
        d = self.d
        for s, _, _ in list(leaves((d.kernel.loop(self.root),))):
            for load in ex.loads(s.value):
                for e in load.index if d.kernel.buffer(load.tensor).is_scratch else ():
                    match e:
                        case ex.Call("//" | "%", (Index(v), ex.Num(int(c)))) if v in d.kernel.loops:
                            o, _ = d.split(v, c)
                            if v == self.root and o:
                                self.root = o
                            if o:
                                self._apart()
                                return

    # -- a nest and what it reads ------------------------------------------------------------------
    def _tiled(self, loops: Sequence[Loop], stores: Sequence[Stmt], inside: bool) -> bool:
        d, k = self.d, self.d.kernel
        self.flat = []
        maps = through(k, self.root, self.fences) if inside else {}
        folded = {x.buffer for x, _, _ in leaves(k.body) if isinstance(x, Update)}
        kept = len(stores) > 1 and {x.buffer for x, _, _ in leaves(stores)} <= self.fences
        self.parts = loops[-1].var if kept else ""  # each part is a program's
        outer = [
            s.var for s in loops
            if s.var == self.parts
            or all(s.var in m.values() for n, m in maps.items() if n in folded)
        ]  # fmt: skip
        sums = [s for s in products(k) if s.buffer in maps]
        if maps and not outer and (sums or not self._lone(k, maps, loops)):
            return False
        roles = self._roles(outer, sums, maps)
        steps = self._steps(k, loops, stores, outer, roles, sums)
        inner = [s.var for s in loops if s.var not in outer]
        at = self._cut(outer, inner, steps, roles, sums, maps)
        if at is None:
            return False
        for name in last_first(d.kernel, maps) if at else ():
            if not d.do(ComputeAt(name, at)):
                return False
        # One program for everything has no loop to compute at: dims that are one are run through
        # by one loop, as their reader does.
        if not at and not all(self._collapsed(loops) for loops in self.flat):
            return False
        if not Inside(d, self.cut, at, self.fences).run():
            return False
        over = [v for v in self.over if v in d.kernel.loops]
        if over:
            d.do(Grid(tuple(over)))
        return True

    def _lone(self, k: Kernel, maps: Mapping[str, object], loops: Sequence[Loop]) -> bool:
        """A single short row, with all that it waits for: one program does everything."""
        others = [s for s in k.body if isinstance(s, Loop) and s.var != self.root]
        waits = all(x.buffer in maps for x, _, _ in leaves(others))
        return waits and math.prod(map(turns, loops)) <= self.cut.row

    def _roles(
        self, outer: Sequence[str], sums: Sequence[Update], maps: Mapping[str, Mapping[int, str]]
    ) -> tuple[list[str], list[str]]:
        """Rows and columns of the products: outer axes along which one operand stands still."""
        rows: list[str] = []
        columns: list[str] = []
        if not sums:
            return rows, columns
        for v in outer:
            uses = []
            for s in sums:
                mine = [x for x, at in named_by(s, maps[s.buffer]).items() if at == v]
                one, two = list(ex.loads(s.value))[:2]
                uses.append(
                    [any(m in ex.free(i) for m in mine for i in x.index) for x in (one, two)]
                )
            if all(any(used) and not all(used) for used in uses):
                (rows if uses[-1][0] else columns).append(v)
        return rows, columns

    def _steps(
        self, k: Kernel, loops: Sequence[Loop], stores: Sequence[Stmt], outer: Sequence[str],
        roles: tuple[list[str], list[str]], sums: Sequence[Update],
    ) -> dict[str, int]:  # fmt: skip
        """How much of each outer axis a tile has; axes that are not named have one element."""
        extents = {s.var: turns(s) for s in loops}
        if self.parts or (sums and any(roles)):
            return {}
        width = math.prod(power(extents[s.var]) for s in loops if s.var not in outer)
        width *= max([folds(k, s) for s in k.body] or [1]) if width == 1 else 1
        room = max(1, self.cut.tile // min(width, self.cut.row))
        found: dict[str, int] = {}
        store = stores[-1]
        assert isinstance(store, Store)
        domain = {s.var: s.extent for s in loops}

        def far(v: str) -> int:
            step = stride(k, store.buffer, store.index, v, domain)
            return abs(step) if step is not None else 1 << 40

        for v in sorted(outer, key=far):
            step = min(room, power(extents[v]))
            if step > 1:
                found[v] = step
            room //= max(step, 1)
        if found and all(found.get(v, 1) >= extents[v] for v in outer):
            largest = max(found, key=found.__getitem__)  # more than one program, where it can be
            found[largest] //= 2
        return {v: n for v, n in found.items() if n > 1}

    def _cut(
        self, outer: list[str], inner: list[str], steps: dict[str, int],
        roles: tuple[list[str], list[str]], sums: Sequence[Update],
        maps: Mapping[str, Mapping[int, str]],
    ) -> str | None:  # fmt: skip
        """Loops over tiles outermost, then what a tile has; gives the innermost loop over tiles."""
        d = self.d
        if any(roles):
            return self._product(outer, inner, steps, roles, sums, maps)
        over, blocks = [], []
        for v in outer:
            if v in steps:
                o, i = d.split(v, steps.pop(v))
                blocks.append(i)
                over += [o] if o else []
            else:
                over.append(v)
        steps.update(dict.fromkeys(blocks, 1))
        return self._ordered(over, [*blocks, *inner])

    def _product(
        self, outer: list[str], inner: list[str], steps: dict[str, int],
        roles: tuple[list[str], list[str]], sums: Sequence[Update],
        maps: Mapping[str, Mapping[int, str]],
    ) -> str | None:  # fmt: skip
        d, cut = self.d, self.cut
        rest = [v for v in outer if v not in (*roles[0], *roles[1])]
        if not self._order([*rest, *roles[0], *roles[1], *inner]):
            return None
        over, blocks = [*rest], []
        made: list[str] = []
        for names, size in zip(roles, (cut.rows, cut.columns), strict=True):
            if not names:
                continue
            if len(names) > 1 and not self._together(names, sums, maps):
                return None
            if (var := self._collapsed(names)) is None:
                return None
            o, i = d.split(var, size)
            blocks.append(i)
            made += [o] if o else []
        steps.update(dict.fromkeys(blocks, 1))
        if len(made) == 2 and cut.group > 1 and turns(d.kernel.loop(made[0])) % cut.group == 0:
            o, i = d.split(made[0], cut.group)  # a few rows, then the next columns of these
            made = [o, made[1], i] if o else made
        return self._ordered([*over, *made], [*blocks, *inner])

    def _collapsed(self, names: Sequence[str]) -> str | None:
        """Loops that lie directly one in the other as one; its name, None where it is illegal."""
        var, *rest = names
        for v in rest:
            before = set(self.d.kernel.loops)
            if not self.d.do(Collapse(var, v)):
                return None
            (var,) = set(self.d.kernel.loops) - before
        return var

    def _together(
        self, names: list[str], sums: Sequence[Update], maps: Mapping[str, Mapping[int, str]]
    ) -> bool:
        """What products are kept in has one dim for several of the result's axes."""
        d = self.d
        for name in last_first(d.kernel, maps):
            dims = sorted(
                (n for n, v in maps[name].items() if v in names),
                key=lambda n: names.index(maps[name][n]),
            )
            if len(dims) < 2:
                continue
            for s, path, _ in list(leaves(d.kernel.body)):
                if s.buffer == name:
                    mine = [i.name for n in dims if isinstance(i := s.index[n], Index)]
                    loops = [x.var for x in path if isinstance(x, Loop)]
                    self.flat.append(mine)
                    wanted = [*mine, *(v for v in loops if v not in mine)]
                    if wanted != loops and not d.do(Reorder(tuple(wanted))):
                        return False
            if not d.do(Flatten(name, tuple(dims))):
                return False
        return True

    def _order(self, order: list[str]) -> bool:
        d = self.d
        present = [v for v in order if v in d.kernel.loops]
        first = next(v for v in d.kernel.loops if v in present)
        now = [s.var for s in nest(d.kernel.loop(first))]
        if now[: len(present)] == present or len(present) < 2:
            return True
        return d.do(Reorder(tuple(present)))

    def _ordered(self, over: list[str], within: list[str]) -> str | None:
        """The nest with `over` outside as one loop; its name, or "" where there is none."""
        if not self._order([*over, *within]):
            return None
        self.over = over
        if over:
            self.root = over[0]
        return over[-1] if over else ""
