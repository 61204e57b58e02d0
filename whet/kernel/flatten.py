"""The move that gives scratch fewer dims: what lies in several is counted through in one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from whet.ir import expr as ex
from whet.ir.expr import Expr, Load, Num
from whet.kernel.layout import dense
from whet.kernel.legal import named, refuse
from whet.kernel.loops import Buffer, Kernel, Stmt, Store, Update, mapped, rewrite
from whet.kernel.move import Move, register
from whet.kernel.tidy import tidy


@register("flatten")
@dataclass(frozen=True, slots=True)
class Flatten(Move):
    """Dims of a scratch buffer become one, in the first one's place.

    before:
        x: input[f32, 4, 6]
        y: output[f32, 24]
        t: memory[f32, 4, 6]
        for i in range(24):
            t[i // 6, i % 6] = x[i // 6, i % 6] * 2
        for j in range(24):
            y[j] = t[j // 6, j % 6]
    move: flatten(t, (0, 1,))
    after:
        x: input[f32, 4, 6]
        y: output[f32, 24]
        t: memory[f32, 24]
        for i in range(24):
            t[i] = x[i // 6, i % 6] * 2
        for j in range(24):
            y[j] = t[j]
    """

    buffer: str
    dims: tuple[int, ...]

    def do(self, k: Kernel) -> Kernel:
        b = self.check(k)
        sizes = [b.sizes[d] for d in self.dims]
        first = self.dims[0]
        kept = [d for d in range(len(b.sizes)) if d == first or d not in self.dims]
        new = Buffer(
            b.name, tuple(math.prod(sizes) if d == first else b.sizes[d] for d in kept),
            b.dtype, b.role,
        )  # fmt: skip

        def at(index: Sequence[Expr]) -> tuple[Expr, ...]:
            total: Expr = Num(0)
            for d, n in zip(self.dims, sizes, strict=True):
                total = ex.call("+", ex.call("*", total, Num(n)), index[d])
            return tuple(total if d == first else index[d] for d in kept)

        def read(e: Expr) -> Expr:
            e = ex.rebuild(e, read)
            return Load(e.tensor, at(e.index)) if isinstance(e, Load) and e.tensor == b.name else e

        def write(s: Stmt) -> Stmt | None:
            if isinstance(s, (Store, Update)) and s.buffer == b.name:
                return replace(s, index=at(s.index))
            return None

        return tidy(k.with_buffer(new).with_body(rewrite(mapped(k.body, read), write)))

    def check(self, k: Kernel) -> Buffer:
        """Scratch that lies densely; two dims or more, each once."""
        named(k, self.buffer)
        b = k.buffer(self.buffer)
        if not b.is_scratch:
            raise refuse("role", buffer=b.name)
        if b.layout != dense(b.sizes):
            raise refuse("layout", buffer=b.name)
        if len(self.dims) < 2 or len(set(self.dims)) != len(self.dims):
            raise refuse("index", buffer=b.name, dims=len(self.dims))
        if not set(self.dims) <= set(range(len(b.sizes))):
            raise refuse("index", buffer=b.name, rank=len(b.sizes))
        return b
