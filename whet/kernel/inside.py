"""Inside of a tile's loop: every nest as blocks, long ones in pieces, rows in one pass.

before   for tile: t[m] = max[n](x);  p[m, n] = exp(x - t);  z[m] = sum[n](p);  …

after    for tile: for n in pieces: …                        m, n: blocks
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from whet.ir import expr as ex
from whet.kernel.block import Block
from whet.kernel.blocks import products
from whet.kernel.core import stride
from whet.kernel.cut import HELD, Cut
from whet.kernel.draft import Draft, nest
from whet.kernel.following import along, first, last_first, most, power
from whet.kernel.legal import around
from whet.kernel.loops import Kernel, Loop, Stmt, Store, Update, leaves
from whet.kernel.mark import Keep
from whet.kernel.online import Online
from whet.kernel.order import Collapse, Reorder
from whet.kernel.place import ComputeAt
from whet.kernel.trim import Cease


def in_pieces(d: Draft, body: Sequence[Stmt], top: Update, piece: int) -> list[str] | None:
    """A maximum's loop, and those of what waits for it, in pieces that are outermost; the loops
    over pieces, or None where there is no such loop, or nothing to cut."""
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
        var = along(loops, made[0], top, body)
        if var is None:
            continue
        o, i = d.split(var, piece)
        if not o:
            return None
        rest = [x.var for x in loops if x.var != var]
        if rest and not d.do(Reorder((o, *rest, i))):
            return None
        chosen.append(o)
    return chosen if len(chosen) > 1 else None


class Inside:
    """What one program of a root does.

    Args:
        at: the innermost loop over tiles; "" where one program does everything.
        fences: buffers that stay in memory.
    """

    def __init__(self, d: Draft, cut: Cut, at: str, fences: set[str]) -> None:
        self.d, self.cut, self.at, self.fences = d, cut, at, fences

    def run(self) -> bool:
        """Makes the moves; False where a tile is too large to be held."""
        self._one_pass(self.at)
        if self._size(self.at) > HELD:
            return False
        self._marked(self.at)
        for b in self.d.kernel.scratch:
            if b.role == "memory" and self.d.kernel.scopes.get(b.name):
                self.d.do(Keep(b.name, "register"))
        return True

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
        chosen = in_pieces(d, body, top, piece)
        if chosen is None or not d.do(Online(tuple(chosen))):
            return False
        scores = [x.tensor for x in ex.loads(top.value) if d.kernel.buffer(x.tensor).is_scratch]
        for name in dict.fromkeys(scores):
            d.do(ComputeAt(name, chosen[0]))
        for b in list(d.kernel.scratch):  # and what scores are made of
            read = {
                x.tensor for s, _, _ in leaves(d.kernel.loop(chosen[0]).body)
                for x in ex.loads(s.value)
            }  # fmt: skip
            outside = chosen[0] not in d.kernel.scopes.get(b.name, ())
            if b.name in read and outside and b.name not in scores and len(b.sizes) > 1:
                d.do(ComputeAt(b.name, chosen[0]))
        d.do(Cease(chosen[0]))
        return True

    # -- blocks ------------------------------------------------------------------------------------
    def _size(self, at: str) -> int:
        """Elements of the largest tile."""
        found = 1
        for b in self.d.kernel.scratch:
            vars = self.d.kernel.scopes.get(b.name, ())
            if not at or at in vars:
                found = max(found, math.prod(map(power, b.sizes)))
        return found

    def _marked(self, at: str) -> None:
        """Every nest within a tile as blocks, long ones in pieces."""
        body = self.d.kernel.loop(at).body if at else self.d.kernel.body
        names = [s.var for s in body if isinstance(s, Loop) and s.kind == "serial"]
        for var in reversed(names):  # users first: what they read a piece of is made in pieces
            if var in self.d.kernel.loops:
                self.mark(var)

    def mark(self, var: str) -> None:
        """One nest as blocks; moves make statements anew, so they are looked up by name."""
        d = self.d
        s = d.kernel.loop(var)
        if s.kind == "block":
            return
        loops = nest(s)
        if any(isinstance(x, Loop) for x in loops[-1].body):
            for name in [x.var for x in loops[-1].body if isinstance(x, Loop)]:
                self.mark(name)
            return
        leaf = [x for x, _, _ in leaves((s,))][-1]
        order = self._pieces(loops, leaf)
        blocks = [v for v, kind in order if kind == "block"]
        serial = [v for v, kind in order if kind == "serial"]
        wanted = [*serial, *blocks]
        now = [x.var for x in nest(d.kernel.loop(first(d.kernel, wanted)))]
        if now != wanted and len(wanted) > 1 and not d.do(Reorder(tuple(wanted))):
            return
        self._near_use(serial)
        for v in reversed(blocks):
            d.do(Block(v))

    def _near_use(self, serial: Sequence[str]) -> None:
        """Tiles of which a step reads a piece are made a piece at a step."""
        d = self.d
        for v in reversed(serial):
            before = {x.var for x in d.kernel.loop(v).body if isinstance(x, Loop)}
            tried: set[str] = set()
            while names := self._wide(v) - tried:
                for name in last_first(d.kernel, names):
                    tried.add(name)
                    d.do(ComputeAt(name, v))
            body = [x.var for x in d.kernel.loop(v).body if isinstance(x, Loop)]
            for x in reversed([x for x in body if x not in before]):
                if x in d.kernel.loops:
                    self.mark(x)

    def _wide(self, step: str) -> set[str]:
        """Tiles of which a loop's body reads a piece."""
        k = self.d.kernel
        return {
            x.tensor
            for s, _, _ in leaves(k.loop(step).body) for x in ex.loads(s.value)
            if k.buffer(x.tensor).is_scratch and any(step in ex.free(i) for i in x.index)
        } - self.fences  # fmt: skip

    def _pieces(self, loops: Sequence[Loop], leaf: Store | Update) -> list[tuple[str, str]]:
        """A nest's loops, each with what it becomes; long ones are split."""
        d = self.d
        longest = {x.var: most(d.kernel, x.var) for x in loops}
        free = {v for i in leaf.index for v in ex.free(i)}
        local = self._held(leaf.buffer)
        tile = [
            x.var for x in loops if (x.var in free and local) or x.var in self._along_tiles(leaf)
        ]
        width = math.prod(power(longest[v]) for v in tile)
        folded = [x.var for x in loops if x.var not in tile]
        dot = len(tile) == 2 and isinstance(leaf, Update) and leaf in products(d.kernel)
        limit = self.cut.depth if dot else max(1, min(self.cut.row, HELD // width))
        if dot and folded:
            folded.sort(key=lambda v: (longest[v] >= 16, -self._near(leaf, v)))
            folded = self._deep(folded, longest)
            longest = {v: most(d.kernel, v) for v in folded}
        kept = self._shared(leaf) if dot else set()
        order: list[tuple[str, str]] = []
        for n, v in enumerate(reversed(folded)):
            size = power(longest[v])
            if v in kept:
                order.insert(0, (v, "block"))
                limit = 1
            elif (dot and n) or limit < 2:
                order.insert(0, (v, "serial"))
            elif size > limit and longest[v] > limit:
                o, i = d.split(v, limit)
                order[:0] = [(o, "serial"), (i, "block")] if o else [(v, "serial")]
                limit = 1
            else:
                order.insert(0, (v, "block"))
                limit //= size
        return [*((v, "block") for v in tile), *order]

    def _held(self, name: str) -> bool:
        """Is a buffer a tile of this program?"""
        k = self.d.kernel
        return (
            k.buffer(name).is_scratch
            and name not in self.fences
            and (not self.at or self.at in k.scopes.get(name, ()))
        )

    def _along_tiles(self, leaf: Store | Update) -> set[str]:
        """Variables along which a statement reads tiles, outside of what it sums over."""
        free = {v for i in leaf.index for v in ex.free(i)}
        found = {
            v for x in ex.loads(leaf.value) if self._held(x.tensor) for i in x.index
            for v in ex.free(i)
        }  # fmt: skip
        return found & free

    def _shared(self, leaf: Store | Update) -> set[str]:
        """Variables along which a statement reads tiles that others read too: such a tile is made
        once, and read as a whole."""
        others = [x for x, _, _ in leaves(self.d.kernel.body) if x != leaf]
        read = {x.tensor for s in others for x in ex.loads(s.value)}
        return {
            v for x in ex.loads(leaf.value) if self._held(x.tensor) and x.tensor in read
            for i in x.index for v in ex.free(i)
        }  # fmt: skip

    def _deep(self, folded: list[str], longest: dict[str, int]) -> list[str]:
        """What a product sums over, the axis for tensor cores last; short ones become one."""
        d = self.d
        if longest[folded[-1]] >= 16 or len(folded) < 2:
            return folded
        wanted = [x for x in d.kernel.loops if x in folded]
        inner = [x.var for x in nest(d.kernel.loop(first(d.kernel, wanted)))]
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
