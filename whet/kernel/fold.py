"""Moves that change how a reduction is folded: in parts, or together with one that it waits for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from whet.ir import expr as ex
from whet.ir.expr import Index, Load
from whet.kernel.legal import flow, named, refuse, serial, whole
from whet.kernel.loops import (
    Buffer,
    Kernel,
    Loop,
    Stmt,
    Store,
    Update,
    accesses,
    leaves,
    rewrite,
    walk,
)
from whet.kernel.lower import neutral
from whet.kernel.move import Move, fresh, register
from whet.kernel.place import rebodied
from whet.kernel.region import nested
from whet.kernel.tidy import tidy


@register("split_reduction")
@dataclass(frozen=True, slots=True)
class SplitReduction(Move):
    """A reduction loop gets a partial result for each of its iterations, folded afterwards.

    The partial results are independent: they may be lanes of a vector, or belong to threads.

    before:
        x: input[f32, 8, 64]
        y: output[f32, 8]
        t: memory[f32, 8]
        for a in range(8):
            t[a] = 0
        for i in range(8):
            for j_o in range(4):
                for j_i in range(16):
                    t[i] += x[i, 16 * j_o + j_i]
        for b in range(8):
            y[b] = t[b]
    move: split_reduction(j_i)
    after:
        x: input[f32, 8, 64]
        y: output[f32, 8]
        t: memory[f32, 8]
        t_p: memory[f32, 8, 16]
        for a in range(8):
            t[a] = 0
        for t_pi_0 in range(8):
            for t_pi_1 in range(16):
                t_p[t_pi_0, t_pi_1] = 0
        for i in range(8):
            for j_o in range(4):
                for j_i in range(16):
                    t_p[i, j_i] += x[i, 16 * j_o + j_i]
        for t_p_0 in range(8):
            for t_p_1 in range(16):
                t[t_p_0] += t_p[t_p_0, t_p_1]
        for b in range(8):
            y[b] = t[b]
    """

    loop: str

    def do(self, k: Kernel) -> Kernel:
        loop, update = self.check(k)
        f = flow(k, update.buffer)
        b = k.buffer(update.buffer)
        name = fresh(k, f"{b.name}_p")
        sizes = (*b.sizes, whole(loop))
        k = replace(k, buffers=(*k.buffers, Buffer(name, sizes, b.dtype, b.role)))

        def part(s: Stmt) -> Stmt | Iterable[Stmt] | None:
            if s == update:
                return replace(update, buffer=name, index=(*update.index, Index(loop.var)))
            return None

        def loops(prefix: str) -> tuple[list[tuple[str, int]], tuple[ex.Expr, ...]]:
            """Loops over the partial results, and the place that they are at."""
            vars = [(fresh(k, f"{prefix}_{d}"), n) for d, n in enumerate(sizes)]
            kept = [(v, n) for v, n in vars if n != 1]
            return kept, tuple(Index(v) if n != 1 else ex.ZERO for v, n in vars)

        place = next(m for m in f.made if loop.var in _loops(f.siblings[m]))
        start, at = loops(f"{name}i")
        first = nested(start, (Store(name, at, neutral(update.how, not b.dtype.is_float)),))
        end, at = loops(name)
        last = nested(end, (Update(b.name, at[:-1], update.how, Load(name, at)),))
        body = (
            *f.siblings[:place],
            *first,
            *rewrite((f.siblings[place],), part),
            *last,
            *f.siblings[place + 1 :],
        )
        return tidy(rebodied(k, f.path, body))

    def check(self, k: Kernel) -> tuple[Loop, Update]:
        """A serial loop that updates one scratch element over and over, and does nothing else."""
        loop, _ = serial(k, self.loop)
        whole(loop)
        found = [s for s, _, _ in leaves(loop.body)]
        if len(found) != 1 or not isinstance(found[0], Update):
            raise refuse("algebra", loop=self.loop, statements=len(found))
        update = found[0]
        named(k, update.buffer)
        if any(self.loop in ex.free(i) for i in update.index):
            raise refuse("algebra", loop=self.loop, buffer=update.buffer)
        same = [a for a in accesses(k.body) if a.leaf == update and a.kind == "update"]
        if len(same) != 1:
            raise refuse("uses", buffer=update.buffer, updates=len(same))
        return loop, update


def _loops(s: Stmt) -> set[str]:
    return {x.var for x in walk((s,)) if isinstance(x, Loop)}
