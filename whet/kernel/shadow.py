"""The move that lets a value be made elsewhere than where it is kept."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from whet.ir import expr as ex
from whet.ir.expr import Expr, Index, Load
from whet.kernel.legal import named, reads, refuse, writes
from whet.kernel.loops import Buffer, Kernel, Loop, Stmt, Store, Update, mapped, rewrite
from whet.kernel.move import Move, fresh, register
from whet.kernel.region import nested


@register("shadow")
@dataclass(frozen=True, slots=True)
class Shadow(Move):
    """What a buffer holds is made in scratch of its own, and copied at the end.

    Whoever comes before the copy reads the scratch, so that it can be moved like any other; what a
    result of the kernel is needed for besides does not go through the caller's memory.

    before:
        x: input[f32, 8]
        y: output[f32, 8]
        z: output[f32, 8]
        for i in range(8):
            y[i] = x[i] * 2
        for j in range(8):
            z[j] = y[j] + 1
    move: shadow(y)
    after:
        x: input[f32, 8]
        y: output[f32, 8]
        z: output[f32, 8]
        y_v: memory[f32, 8]
        for i in range(8):
            y_v[i] = x[i] * 2
        for j in range(8):
            z[j] = y_v[j] + 1
        for y_v_0 in range(8):
            y[y_v_0] = y_v[y_v_0]
    """

    buffer: str

    def do(self, k: Kernel) -> Kernel:
        b, last = self.check(k)
        name = fresh(k, f"{b.name}_v")
        k = k.with_buffer(Buffer(name, b.sizes, b.dtype, "memory"))

        def read(e: Expr) -> Expr:
            e = ex.rebuild(e, read)
            return Load(name, e.index) if isinstance(e, Load) and e.tensor == b.name else e

        def write(s: Stmt) -> Stmt | Iterable[Stmt] | None:
            if isinstance(s, (Store, Update)) and s.buffer == b.name:
                return replace(s, buffer=name)
            return None

        loops = [(fresh(k, f"{name}_{d}"), n) for d, n in enumerate(b.sizes)]
        at = tuple(Index(v) if n != 1 else ex.ZERO for v, n in loops)
        copy = nested([x for x in loops if x[1] != 1], (Store(b.name, at, Load(name, at)),))
        made = tuple(rewrite(mapped(k.body[:last], read), write))
        return k.with_body((*made, *copy, *k.body[last:]))

    def check(self, k: Kernel) -> tuple[Buffer, int]:
        """No input. The copy comes behind the last statement of the body that has to see it.

        Of a result that is every one; of scratch, those that write it: others read the copy.
        """
        named(k, self.buffer)
        b = k.buffer(self.buffer)
        if b.role == "in":
            raise refuse("role", buffer=b.name)
        if any(
            isinstance(s, Loop) and s.kind == "parallel" and b.name in writes((s,)) for s in k.body
        ):
            raise refuse("kind", buffer=b.name)
        if not b.is_scratch:
            return b, len(k.body)
        if k.scopes.get(b.name):
            raise refuse("uses", buffer=b.name)
        last = max(n for n, s in enumerate(k.body) if b.name in writes((s,)))
        if any(b.name in reads((s,)) for s in k.body[: last + 1]):
            raise refuse("order", buffer=b.name)
        return b, last + 1
