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
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from whet.ir import expr as ex
from whet.ir.expr import Index
from whet.kernel.affine import bounds
from whet.kernel.block import Block, Grid, Launch
from whet.kernel.blocks import copies, products
from whet.kernel.chain import inline
from whet.kernel.core import stride
from whet.kernel.draft import Draft, nest, turns
from whet.kernel.flatten import Flatten
from whet.kernel.fold import SplitReduction
from whet.kernel.legal import around
from whet.kernel.loops import Kernel, Loop, Stmt, Store, Update, bound, leaves, walk
from whet.kernel.mark import Keep
from whet.kernel.online import Online
from whet.kernel.order import Collapse, Join, Reorder
from whet.kernel.place import ComputeAt
from whet.kernel.stage import Stage
from whet.kernel.trim import Trim

ROW = 4096  # elements of a row that a tile takes at once
TILE = 2048  # elements of a tile without products
HELD = 1 << 16  # elements of all tiles that a program may hold


@dataclass(frozen=True, slots=True)
class Cut:
    """How a kernel is cut for such a device.

    Attributes:
        rows, columns, depth: of a product's tile, and of what it sums at a time.
        warps, stages, precision: see `whet.kernel.block.Launch`.
        splits: parts that a sum is taken in, by programs of their own.
        group: tiles of rows that programs take before the next tile of columns.
        row: elements of a row at once, and elements of a tile without products.
    """

    rows: int = 64
    columns: int = 64
    depth: int = 32
    warps: int = 4
    stages: int = 3
    precision: str = "ieee"
    splits: int = 1
    group: int = 1
    row: int = ROW
    tile: int = TILE

    def __str__(self) -> str:
        text = f"{self.rows}x{self.columns}x{self.depth} w{self.warps} s{self.stages}"
        text += f" /{self.splits}" if self.splits > 1 else ""
        return text + (f" r{self.row}" if self.row != ROW else "")


def grid(kernel: Kernel, cut: Cut) -> Draft:
    """A kernel scheduled so. Always possible: what cannot be joined is a program of its own."""
    d = Draft(kernel)
    copies(d)
    inline(d)
    _joined(d)
    done: set[str] = set()
    while (root := _next(d, done)) is not None:
        _Root(d, cut, root).run()
        done.add(root)
        if root in d.kernel.loops:  # one program for all that is left
            done |= {s.var for s in d.kernel.body if isinstance(s, Loop)}
    d.do(Launch(cut.warps, cut.stages, cut.precision))
    return d


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
    return all(isinstance(x, Store) and k.buffer(x.buffer).role == "out" for x, _, _ in leaves((s,)))


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

    def __init__(self, d: Draft, cut: Cut, root: str) -> None:
        self.d, self.cut, self.root = d, cut, root
        self.over: list[str] = []  # loops over tiles, outermost first

    def run(self) -> None:
        d = self.d
        self._apart()
        loops = _spine(d.kernel.loop(self.root))
        stores = [s for s, _, _ in leaves(loops[-1].body)]
        if len(stores) == 1 and isinstance(stores[0], Update):
            self._fold(loops, stores[0])
            return
        if not all(isinstance(s, Store) for s in stores):
            return
        before = d.copy()
        for inside in (True, False):  # with what it reads computed within, or by itself
            if self._tiled(loops, stores, inside):
                return
            d.take(before.copy())

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
        maps = _through(k, self.root) if inside else {}
        folded = {x.buffer for x, _, _ in leaves(k.body) if isinstance(x, Update)}
        outer = [
            s.var for s in loops
            if all(s.var in m.values() for n, m in maps.items() if n in folded)
        ]  # fmt: skip
        if maps and not outer:
            return False
        sums = [s for s in products(k) if s.buffer in maps]
        roles = self._roles(outer, sums, maps)
        steps = self._steps(k, loops, stores, outer, roles, sums)
        inner = [s.var for s in loops if s.var not in outer]
        at = self._cut(outer, inner, steps, roles, sums, maps)
        if at is None:
            return False
        for name in _last_first(d.kernel, maps) if at else ():
            if not d.do(ComputeAt(name, at)):
                return False
        self._one_pass(at)
        if self._size(at) > HELD:
            return False
        self._marked(at)
        self._parallel()
        self._kept()
        return True

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
                mine = [x for x, at in _named(s, maps[s.buffer]).items() if at == v]
                one, two = list(ex.loads(s.value))[:2]
                uses.append([any(m in ex.free(i) for m in mine for i in x.index) for x in (one, two)])
            if all(any(used) and not all(used) for used in uses):
                (rows if uses[-1][0] else columns).append(v)
        return rows, columns

    def _steps(
        self, k: Kernel, loops: Sequence[Loop], stores: Sequence[Stmt], outer: Sequence[str],
        roles: tuple[list[str], list[str]], sums: Sequence[Update],
    ) -> dict[str, int]:  # fmt: skip
        """How much of each outer axis a tile has; axes that are not named have one element."""
        extents = {s.var: turns(s) for s in loops}
        if sums and any(roles):
            return {}
        width = math.prod(_power(extents[s.var]) for s in loops if s.var not in outer)
        width *= max([_folded(k, s) for s in k.body] or [1]) if width == 1 else 1
        room = max(1, self.cut.tile // min(width, self.cut.row))
        found: dict[str, int] = {}
        store = stores[-1]
        assert isinstance(store, Store)
        domain = {s.var: s.extent for s in loops}
        def far(v: str) -> int:
            step = stride(k, store.buffer, store.index, v, domain)
            return abs(step) if step is not None else 1 << 40
        for v in sorted(outer, key=far):
            step = min(room, _power(extents[v]))
            if step > 1:
                found[v] = step
            room //= max(step, 1)
        if found and all(found.get(v, 1) >= extents[v] for v in outer):
            largest = max(found, key=found.__getitem__)  # more than one program, where it can be
            found[largest] //= 2
        return {v: n for v, n in found.items() if n > 1}

    def _cut(
        self, outer: list[str], inner: list[str], steps: dict[str, int],
        roles: tuple[list[str], list[str]], sums: Sequence[Update], maps: Mapping[str, Mapping[int, str]],
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
        roles: tuple[list[str], list[str]], sums: Sequence[Update], maps: Mapping[str, Mapping[int, str]],
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
            var = names[0]
            for v in names[1:]:
                before = set(d.kernel.loops)
                if not d.do(Collapse(var, v)):
                    return None
                (var,) = set(d.kernel.loops) - before
            o, i = d.split(var, size)
            blocks.append(i)
            made += [o] if o else []
        steps.update(dict.fromkeys(blocks, 1))
        return self._ordered([*over, *made], [*blocks, *inner])

    def _together(
        self, names: list[str], sums: Sequence[Update], maps: Mapping[str, Mapping[int, str]]
    ) -> bool:
        """What products are kept in has one dim for several of the result's axes."""
        d = self.d
        for name in _last_first(d.kernel, maps):
            dims = sorted((n for n, v in maps[name].items() if v in names), key=lambda n: names.index(maps[name][n]))
            if len(dims) < 2:
                continue
            for s, path, _ in list(leaves(d.kernel.body)):
                if s.buffer == name:
                    mine = [i.name for n in dims if isinstance(i := s.index[n], Index)]
                    loops = [x.var for x in path if isinstance(x, Loop)]
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
        now = [s.var for s in _spine(d.kernel.loop(first))]
        if now[: len(present)] == present or len(present) < 2:
            return True
        return d.do(Reorder(tuple(present)))

    def _ordered(self, over: list[str], within: list[str]) -> str | None:
        """The nest with `over` outside as one loop; its name, or "" where there is none."""
        d = self.d
        if not self._order([*over, *within]):
            return None
        self.over = over
        if over:
            self.root = over[0]
        return over[-1] if over else ""

    # -- rows in one pass --------------------------------------------------------------------------
    def _one_pass(self, at: str) -> None:
        """A maximum, and the sums that wait for it, over pieces of what they are taken over."""
        d = self.d
        body = d.kernel.loop(at).body if at else d.kernel.body
        tops = [s for s, _, _ in leaves(body) if isinstance(s, Update) and s.how == "max"]
        if len(tops) != 1:
            return
        sums = products(Kernel(d.kernel.buffers, body))
        piece = self.cut.depth if len(sums) > 1 else self.cut.row
        before = d.copy()
        if not self._online(body, tops[0], max(piece, 16)):
            d.take(before)

    def _online(self, body: Sequence[Stmt], top: Update, piece: int) -> bool:
        d = self.d
        waits = {top.buffer}
        chosen: list[str] = []
        for s in body:
            made = [x for x, _, _ in leaves((s,))]
            if len(made) != 1 or not d.kernel.buffer(made[0].buffer).is_scratch:
                continue
            reads = {x.tensor for x in ex.loads(made[0].value)}
            if made[0] != top and not waits & reads:
                continue
            waits.add(made[0].buffer)
            loops = nest(s)
            along = _along(loops, made[0], top, body)
            if along is None:
                continue
            o, i = d.split(along, piece)
            if not o:
                return False
            rest = [x.var for x in loops if x.var != along]
            if rest and not d.do(Reorder((o, *rest, i))):
                return False
            chosen.append(o)
        if len(chosen) < 2 or not d.do(Online(tuple(chosen))):
            return False
        scores = [x.tensor for x in ex.loads(top.value) if d.kernel.buffer(x.tensor).is_scratch]
        for name in dict.fromkeys(scores):
            d.do(ComputeAt(name, chosen[0]))
        for b in list(d.kernel.scratch):  # what scores are made of
            if b.name not in scores and len(b.sizes) > 1 and chosen[0] not in d.kernel.scopes.get(b.name, ()):
                if any(x.tensor == b.name for s, _, _ in leaves(d.kernel.loop(chosen[0]).body) for x in ex.loads(s.value)):
                    d.do(ComputeAt(b.name, chosen[0]))
        d.do(Trim(chosen[0]))
        return True

    # -- inside of a tile --------------------------------------------------------------------------
    def _size(self, at: str) -> int:
        """Elements of the largest tile."""
        found = 1
        for b in self.d.kernel.scratch:
            vars = self.d.kernel.scopes.get(b.name, ())
            if not at or at in vars:
                found = max(found, math.prod(map(_power, b.sizes)))
        return found

    def _marked(self, at: str) -> None:
        """Every nest within a tile as blocks, long ones in pieces."""
        body = self.d.kernel.loop(at).body if at else self.d.kernel.body
        for var in [s.var for s in body if isinstance(s, Loop) and s.kind == "serial"]:
            self._mark(var)

    def _mark(self, var: str) -> None:
        """One nest; moves make statements anew, so they are looked up by name."""
        d = self.d
        s = d.kernel.loop(var)
        if s.kind == "block":
            return
        loops = nest(s)
        made = [x for x, _, _ in leaves((s,))]
        if any(isinstance(x, Loop) for x in loops[-1].body):
            for name in [x.var for x in loops[-1].body if isinstance(x, Loop)]:
                self._mark(name)
            return
        leaf = made[-1]
        free = {v for i in leaf.index for v in ex.free(i)}
        order = self._pieces(loops, leaf, free)
        blocks = [v for v, kind in order if kind == "block"]
        wanted = [*(v for v, kind in order if kind == "serial"), *blocks]
        now = [x.var for x in nest(d.kernel.loop(_first(d.kernel, wanted)))]
        if now != wanted and len(wanted) > 1 and not d.do(Reorder(tuple(wanted))):
            return
        for v in reversed(blocks):
            d.do(Block(v))

    def _pieces(
        self, loops: Sequence[Loop], leaf: Stmt, free: set[str]
    ) -> list[tuple[str, str]]:
        """A nest's loops, each with what it becomes; long ones are split."""
        d = self.d
        assert isinstance(leaf, (Store, Update))
        most = {x.var: _most(d.kernel, x.var) for x in loops}
        found: dict[str, str] = {}
        local = d.kernel.buffer(leaf.buffer).is_scratch
        room = HELD
        for x in loops:
            if x.var in free and local:
                found[x.var] = "block"
                room //= _power(most[x.var])
        folded = [x.var for x in loops if x.var not in found]
        dot = len(found) == 2 and isinstance(leaf, Update) and leaf in products(d.kernel)
        limit = self.cut.depth if dot else min(self.cut.row, max(room, 1))
        if dot:
            folded.sort(key=lambda v: (most[v] >= 16, -self._near(leaf, v)))
            folded = self._deep(folded, most)
            most = {v: _most(d.kernel, v) for v in d.kernel.loops if v in (*found, *folded)}
        order: list[tuple[str, str]] = []
        for n, v in enumerate(reversed(folded)):
            last = n == 0
            if (dot and not last) or limit < 2:
                order.insert(0, (v, "serial"))
                continue
            size = _power(most[v])
            if size > limit and most[v] > limit:
                o, i = d.split(v, limit)
                order[:0] = [(o, "serial"), (i, "block")] if o else [(v, "serial")]
                limit = 1
            else:
                order.insert(0, (v, "block"))
                limit //= size
        return [*((v, kind) for v, kind in found.items()), *order]

    def _deep(self, folded: list[str], most: dict[str, int]) -> list[str]:
        """What a product sums over, the axis for tensor cores last; short ones become one."""
        d = self.d
        if most[folded[-1]] >= 16 or len(folded) < 2:
            return folded
        wanted = [x for x in d.kernel.loops if x in folded]
        inner = [x.var for x in nest(d.kernel.loop(_first(d.kernel, wanted)))]
        rest = [v for v in inner if v not in folded]
        if not d.do(Reorder((*rest, *wanted))):
            return folded
        var = wanted[0]
        for v in wanted[1:]:
            before = set(d.kernel.loops)
            if not d.do(Collapse(var, v)):
                return folded
            (var,) = set(d.kernel.loops) - before
        return [var]

    def _near(self, leaf: Store | Update, var: str) -> int:
        """How far apart operands are read along a loop."""
        k = self.d.kernel
        path = next(p for x, p, _ in leaves(k.body) if x == leaf)
        far = 0
        for x in ex.loads(leaf.value):
            step = stride(k, x.tensor, x.index, var, around(path))
            far = max(far, abs(step) if step is not None else 1 << 30)
        return far

    def _parallel(self) -> None:
        over = [v for v in self.over if v in self.d.kernel.loops]
        if over:
            self.d.do(Grid(tuple(over)))

    def _kept(self) -> None:
        for b in self.d.kernel.scratch:
            if b.role == "memory" and self.d.kernel.scopes.get(b.name):
                self.d.do(Keep(b.name, "register"))

    # -- a sum by itself ---------------------------------------------------------------------------
    def _fold(self, loops: Sequence[Loop], update: Update) -> None:
        """A sum whose result other programs read: its start and its steps, in a tile of its own."""


def _spine(loop: Loop) -> list[Loop]:
    return nest(loop)


def _through(k: Kernel, root: str) -> dict[str, dict[int, str]]:
    """For each scratch buffer that a nest reads, which of its dims follow which of the nest's loops.

    Statements are taken from the last to the first, so that a value's readers are known before it.
    """
    found: dict[str, dict[int, str]] = {}
    for s in reversed(k.body):
        mine = isinstance(s, Loop) and s.var == root
        for leaf, path, _ in leaves((s,)):
            if mine:
                names = {x.var: x.var for x in path if isinstance(x, Loop)}
            elif leaf.buffer in found:
                names = _named(leaf, found[leaf.buffer])
            else:
                continue
            for load in (x for e in (*leaf.index, leaf.value) for x in ex.loads(e)):
                if not k.buffer(load.tensor).is_scratch or load.tensor == leaf.buffer:
                    continue
                at = {n: names[i.name] for n, i in enumerate(load.index)
                      if isinstance(i, Index) and i.name in names}  # fmt: skip
                known = found.get(load.tensor, at)
                found[load.tensor] = dict(known.items() & at.items())
    return found


def _last_first(k: Kernel, names: Collection[str]) -> list[str]:
    """Buffers by where they are made, so that each is reached before what it is made of."""
    found: dict[str, None] = {}
    for s in reversed(k.body):
        for leaf, _, _ in leaves((s,)):
            if leaf.buffer in names:
                found[leaf.buffer] = None
    return list(found)


def _named(leaf: Store | Update, dims: Mapping[int, str]) -> dict[str, str]:
    """A statement's own loops, with the root's that they follow."""
    return {i.name: v for n, v in dims.items() if isinstance(i := leaf.index[n], Index)}


def _power(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


def _folded(k: Kernel, s: Stmt) -> int:
    """Elements that a statement folds into one."""
    found = 1
    for leaf, path, _ in leaves((s,)):
        if isinstance(leaf, Update):
            free = {v for i in leaf.index for v in ex.free(i)}
            found = max(found, math.prod(
                turns(x) for x in path if isinstance(x, Loop) and x.var not in free))
    return found


def _most(k: Kernel, var: str) -> int:
    """A loop's largest extent."""
    loop, path = next(
        (s, p) for s, p in _paths(k.body) if s.var == var
    )
    return int(bounds(bound(loop.extent), around(p for p in path))[1])


def _paths(body: Sequence[Stmt], path: tuple[Loop, ...] = ()) -> Iterator[tuple[Loop, tuple[Loop, ...]]]:
    for s in body:
        if isinstance(s, Loop):
            yield s, path
            yield from _paths(s.body, (*path, s))
        elif hasattr(s, "body"):
            yield from _paths(s.body, path)


def _first(k: Kernel, names: Sequence[str]) -> str:
    return next(v for v in k.loops if v in names)


def _along(loops: Sequence[Loop], leaf: Stmt, top: Update, body: Sequence[Stmt]) -> str | None:
    """The loop of a nest that runs over what the maximum is taken over."""
    own = {v for i in top.index for v in ex.free(i)}
    length = next(
        turns(x) for s in body for x in walk((s,))
        if isinstance(x, Loop) and x.var not in own and any(y == top for y, _, _ in leaves((x,)))
    )  # fmt: skip
    assert isinstance(leaf, (Store, Update))
    free = {v for i in leaf.index for v in ex.free(i)}
    summed = [x.var for x in loops if x.var not in free]
    if isinstance(leaf, Update):
        return summed[0] if len(summed) == 1 else None
    return next((x.var for x in reversed(loops) if turns(x) == length), None)
