"""The move that keeps a copy of what a loop touches: staging, and with a layout, packing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from whet.ir import expr as ex
from whet.ir.expr import Call, Expr, Load, Num, Select
from whet.kernel.affine import simplify
from whet.kernel.legal import Path, Refused, around, find, independent, named, refuse
from whet.kernel.loops import (
    Access,
    Buffer,
    If,
    Kernel,
    Loop,
    Stmt,
    Store,
    Update,
    accesses,
    expressions,
    mapped,
    rewrite,
    substituted,
    walk,
)
from whet.kernel.move import Move, fresh, register, replaced
from whet.kernel.region import Span, box, digits, extent, guarded, nested, reach, region, shifted
from whet.kernel.tidy import conjuncts, tidy


@register("stage")
@dataclass(frozen=True, slots=True)
class Stage(Move):
    """What one iteration of a loop touches of a buffer is copied to scratch; it works on the copy.

    What is read is copied in, unless the loop begins with storing it; what is written is copied
    back. Where all reads stand under the condition that they are inside the buffer, with one number
    for what is outside, that number is filled in, and the conditions go.

    before:
        x: input[f32, 9]
        y: output[f32, 9]
        for o in range(3):
            for i in range(3):
                for r in range(3):
                    y[3 * o + i] += (x[3 * o + i + r - 1] if 0 <= 3 * o + i + r - 1 and 3 * o + i + r - 1 < 9 else 0)
    move: stage(x, o)
    after:
        x: input[f32, 9]
        y: output[f32, 9]
        x_s: memory[f32, 5]
        for o in range(3):
            for x_s_0 in range(5):
                x_s[x_s_0] = (x[3 * o + x_s_0 - 1] if 0 <= 3 * o + x_s_0 - 1 and 3 * o + x_s_0 - 1 < 9 else 0)
            for i in range(3):
                for r in range(3):
                    y[3 * o + i] += x_s[i + r]
    """  # noqa: E501

    buffer: str
    loop: str

    def do(self, k: Kernel) -> Kernel:
        target, path, touched = self.check(k)
        b = k.buffer(self.buffer)
        outer = around((*path, target))
        fill, beyond = _filled(target.body, b), reach(touched, len(b.sizes), outer)
        if beyond is None or any(a.kind != "read" for a in touched):
            fill = None
        spans = beyond if beyond and fill is not None else region(touched, b.sizes, outer)
        name = fresh(k, f"{b.name}_s")
        loops, places, tests = box(name, spans, b.sizes, outer)
        there = tuple(ex.call("+", s.low, p) for s, p in zip(spans, places, strict=True))
        body = _onto(target.body, b.name, name, spans, fill)
        if not _made(target, path, b, spans):
            value: Expr = Load(b.name, there)
            if fill is not None:
                loops = [(v, s.size) for (v, _), s in zip(loops, _wide(spans), strict=True)]
                test = _inside(there, b.sizes)
                copy = nested(loops, (Store(name, places, ex.select(test, value, fill)),))
            else:
                copy = nested(loops, guarded(tests, (Store(name, places, value),)))
            body = (*copy, *body)
        if any(a.kind != "read" for a in touched):
            again = [(fresh(k, f"{v}b"), n) for v, n in loops]
            back = {v: ex.Index(w) for (v, _), (w, _) in zip(loops, again, strict=True)}
            out = (Store(b.name, there, Load(name, places)),)
            body = (*body, *nested(again, substituted(guarded(tests, out), back)))
        k = replaced(k, self.loop, lambda s: replace(s, body=body))
        sizes = tuple(s.size for s in spans)
        k = tidy(replace(k, buffers=(*k.buffers, Buffer(name, sizes, b.dtype, "memory"))))
        for s in (*path, target):
            if isinstance(s, Loop) and s.kind == "parallel" and s.var in k.loops:
                independent(k, *find(k, s.var))
        return k

    def check(self, k: Kernel) -> tuple[Loop, Path, list[Access]]:
        """The loop touches the buffer; what is stored without being read is stored everywhere."""
        named(k, self.buffer)
        target, path = find(k, self.loop)
        touched = [a for a in accesses(target.body, (*path, target)) if a.buffer == self.buffer]
        if not touched:
            raise refuse("uses", loop=self.loop, buffer=self.buffer, used=0)
        if target.kind in ("vector", "unroll"):
            raise refuse("kind", loop=self.loop)
        return target, path, touched


def _made(target: Loop, path: Path, b: Buffer, spans: Sequence[Span]) -> bool:
    """Does the loop begin with storing all of the region, under no condition?"""
    inner = (*path, target)
    for s in target.body:
        touched = [a for a in accesses((s,), inner) if a.buffer == b.name]
        if not touched:
            continue
        if len(touched) != 1 or touched[0].kind != "store":
            return False
        within = touched[0].path[len(inner) :]
        if any(isinstance(x, If) for x in within):
            return False
        domain = around(touched[0].path)
        index = [simplify(i, domain) for i in shifted(touched[0].index, spans)]
        try:
            plan = digits(index, around(within), b.name)
        except Refused:
            return False
        outer = around(inner)
        for dim, span, n in zip(plan, spans, b.sizes, strict=True):
            wanted = extent(span, n, outer)
            whole = all(isinstance(domain[d.var], int) for d in dim)
            if whole and math.prod(d.extent for d in dim) == span.size:
                continue
            if len(dim) != 1 or domain[dim[0].var] != wanted:
                return False
        return True
    return False


def _wide(spans: Sequence[Span]) -> list[Span]:
    return [s for s in spans if s.size != 1]


def _inside(index: Sequence[Expr], sizes: Sequence[int]) -> Expr:
    test: Expr = Num(1)
    for i, n in zip(index, sizes, strict=True):
        test = ex.call("and", test, Call("<=", (Num(0), i)))
        test = ex.call("and", test, Call("<", (i, Num(n))))
    return test


def _filled(body: Iterable[Stmt], b: Buffer) -> Expr | None:
    """What every read of the buffer gives outside of it, if all say so, and the same."""
    found: set[Expr | None] = set()

    def visit(e: Expr) -> None:
        match e:
            case Select(test, Load(name, index), Num() as fill) if name == b.name:
                found.add(fill if _only_inside(test, index, b.sizes) else None)
                return
            case Load(name) if name == b.name:
                found.add(None)
        for child in ex.children(e):
            visit(child)

    for s in walk(body):
        for e in expressions(s):
            visit(e)
    return found.pop() if len(found) == 1 else None


def _only_inside(test: Expr, index: Sequence[Expr], sizes: Sequence[int]) -> bool:
    """Does the condition say that the index is inside, and nothing else?"""
    wanted = set(conjuncts(simplify(_inside(index, sizes), {})))
    return all(simplify(t, {}) in wanted for t in conjuncts(test))


def _onto(
    body: tuple[Stmt, ...], old: str, new: str, spans: Sequence[Span], fill: Expr | None
) -> tuple[Stmt, ...]:
    """Statements that work on the copy."""

    def visit(e: Expr) -> Expr:
        if fill is not None and isinstance(e, Select) and isinstance(e.then, Load):
            if e.then.tensor == old:
                return visit(e.then)
        e = ex.rebuild(e, visit)
        return Load(new, shifted(e.index, spans)) if isinstance(e, Load) and e.tensor == old else e

    def leaf(s: Stmt) -> Stmt | None:
        if isinstance(s, (Store, Update)) and s.buffer == old:
            return replace(s, buffer=new, index=shifted(s.index, spans))
        return None

    return tuple(rewrite(mapped(body, visit), leaf))
