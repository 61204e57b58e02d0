"""The move that takes what is the same in every turn out of a loop."""

from __future__ import annotations

from dataclasses import dataclass

from whet.ir import expr as ex
from whet.ir.expr import ONE, ZERO, Call, Expr, Load, Select
from whet.kernel.legal import find, refuse, writes
from whet.kernel.loops import Buffer, Kernel, Loop, Stmt, Store, mapped, walk
from whet.kernel.move import Move, fresh, register, replaced


@register("invert")
@dataclass(frozen=True, slots=True)
class Invert(Move):
    """Divisions by what is the same in every turn of a loop become products with its inverse.

    The inverse is rounded once more, and a divisor below the smallest normal number has none.

    before:
        x: input[f32, 8]
        y: output[f32, 8]
        t: register[f32, 1]
        t[0] = 0
        for i in range(8):
            t[0] += x[i]
        for j in range(8):
            y[j] = x[j] / t[0]
    move: invert(j)
    after:
        x: input[f32, 8]
        y: output[f32, 8]
        t: register[f32, 1]
        t_q: register[f32, 1]
        t[0] = 0
        for i in range(8):
            t[0] += x[i]
        t_q[0] = 1 / t[0]
        for j in range(8):
            y[j] = x[j] * t_q[0]
    """

    loop: str

    def do(self, k: Kernel) -> Kernel:
        loop, divisors = self.check(k)
        inverses: dict[Expr, Load] = {}
        before: list[Stmt] = []
        for divisor, name in divisors.items():
            buffer = fresh(k, f"{name}_q")
            k = k.with_buffer(Buffer(buffer, (1,), k.buffer(name).dtype, "register"))
            inverses[divisor] = Load(buffer, (ZERO,))
            before.append(Store(buffer, (ZERO,), Call("/", (ONE, divisor))))

        def visit(e: Expr) -> Expr:
            match e:
                case Call("/", (a, b)) if b in inverses:
                    return Call("*", (visit(a), inverses[b]))
                case Select(test, then, other):
                    return Select(test, then, other)
            return ex.rebuild(e, visit)

        body = mapped(loop.body, visit)
        return replaced(k, self.loop, lambda s: (*before, Loop(s.var, s.extent, body, s.kind)))

    def check(self, k: Kernel) -> tuple[Loop, dict[Expr, str]]:
        """Divisors that no turn changes, and that are read in every turn."""
        loop, path = find(k, self.loop)
        if any(isinstance(s, Loop) and s.kind in ("vector", "unroll") for s in path):
            raise refuse("kind", loop=self.loop)
        inner = {loop.var, *(s.var for s in walk(loop.body) if isinstance(s, Loop))}
        written = writes((loop,))
        found: dict[Expr, str] = {}

        def visit(e: Expr) -> None:
            match e:
                case Select():
                    return
                case Call("/", (_, b)) if not ex.free(b) & inner:
                    names = [x.tensor for x in ex.loads(b)]
                    if names and not written & set(names) and k.buffer(names[0]).dtype.is_float:
                        found[b] = names[0]
            for child in ex.children(e):
                visit(child)

        for s in loop.body:
            if isinstance(s, Store):
                visit(s.value)
        if not found:
            raise refuse("uses", loop=self.loop)
        return loop, found
