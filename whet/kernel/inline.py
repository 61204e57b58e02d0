"""The move that computes a value wherever it is used."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from whet.ir import expr as ex
from whet.ir.expr import Call, Expr, Load, Num, Select
from whet.ir.functions import FUNCTIONS
from whet.ir.nest import integral
from whet.ir.types import DType
from whet.kernel.legal import Path, around, flow, reads, refuse, writes
from whet.kernel.loops import Buffer, Kernel, Loop, Stmt, Store, accesses, mapped, rewrite, scope
from whet.kernel.move import Move, register
from whet.kernel.region import digits, taken_apart
from whet.kernel.tidy import tidy


def converted(value: Expr, to: Buffer, k: Kernel) -> Expr:
    """A value as it comes back from a buffer: cut to a whole number, or to a truth value."""
    known = {b.name: b.dtype for b in k.buffers}
    exact = integral(value, known)
    if to.dtype.is_float:
        return ex.Call("*", (value, Num(1.0))) if exact and not isinstance(value, Num) else value
    if to.dtype is DType.bool:
        if isinstance(value, Call) and value.fn in FUNCTIONS and exact:
            return Call("bitwise_and", (value, Num(1)))
        truth = isinstance(value, Select) and value.then == ex.ONE and value.other == ex.ZERO
        same = isinstance(value, Load) and known[value.tensor] is DType.bool
        return value if truth or same else Select(Call("==", (value, Num(0))), Num(0), Num(1))
    if not exact:
        raise refuse("role", buffer=to.name)
    narrow = [known[x.tensor].bits for x in ex.loads(value)]
    if max(narrow, default=0) > to.dtype.bits:
        raise refuse("role", buffer=to.name)
    return value


@register("inline")
@dataclass(frozen=True, slots=True)
class Inline(Move):
    """A value is computed wherever it is used, and kept nowhere.

    before:
        x: input[f32, 8, 4]
        y: output[f32, 4, 8]
        t: memory[f32, 8, 4]
        for i in range(8):
            for j in range(4):
                t[i, j] = exp(x[i, j])
        for a in range(4):
            for b in range(8):
                y[a, b] = t[b, a] * t[b, a]
    move: inline(t)
    after:
        x: input[f32, 8, 4]
        y: output[f32, 4, 8]
        for a in range(4):
            for b in range(8):
                y[a, b] = exp(x[b, a]) * exp(x[b, a])
    """

    buffer: str

    def do(self, k: Kernel) -> Kernel:
        definition, path = self.check(k)
        buffer = k.buffer(self.buffer)
        value = converted(definition.value, buffer, k)
        inverse = _Inverse(definition.index, path, self.buffer)

        def visit(e: Expr) -> Expr:
            if isinstance(e, Load) and e.tensor == self.buffer:
                return ex.substitute(value, inverse.of(tuple(map(visit, e.index))))
            return ex.rebuild(e, visit)

        def drop(s: Stmt) -> Stmt | Iterable[Stmt] | None:
            return () if isinstance(s, Store) and s.buffer == self.buffer else None

        return tidy(k.with_body(rewrite(mapped(k.body, visit), drop)))

    def check(self, k: Kernel) -> tuple[Store, Path]:
        """One store makes it, of which the index can be read backwards; its operands stay."""
        f = flow(k, self.buffer)
        found = [a for a in accesses(k.body) if a.buffer == self.buffer and a.kind != "read"]
        if len(found) != 1 or not isinstance(found[0].leaf, Store):
            raise refuse("uses", buffer=self.buffer, writes=len(found))
        (made,) = f.made
        needed = reads((f.siblings[made],))
        late = writes(f.siblings[made + 1 : max(f.used) + 1]) & needed
        if late:
            raise refuse("order", buffer=min(late))
        inner = found[0].path[len(f.path) :]
        local = {b.name for b in k.scratch if set(scope(k, b.name)) & {*_vars(inner)}}
        if local & {x.tensor for x in ex.loads(found[0].leaf.value)}:
            raise refuse("order", buffer=min(local))
        _Inverse(found[0].index, inner, self.buffer)
        return found[0].leaf, inner


def _vars(path: Path) -> list[str]:
    return [s.var for s in path if isinstance(s, Loop)]


class _Inverse:
    """Reads an index backwards: the loop variables that give a place."""

    def __init__(self, index: tuple[Expr, ...], path: Path, buffer: str) -> None:
        domain = around(path)
        self.digits = digits(index, domain, buffer)
        seen = {d.var for dim in self.digits for d in dim}
        if unused := [v for v in domain if v not in seen]:
            raise refuse("index", loop=unused[0], buffer=buffer)

    def of(self, index: tuple[Expr, ...]) -> dict[str, Expr]:
        """The variables' values where the index is this one."""
        found: dict[str, Expr] = {}
        for e, dim in zip(index, self.digits, strict=True):
            found |= taken_apart(e, dim)
        return found
