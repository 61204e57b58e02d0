"""Moves that change where a value is computed: next to its uses, once or more often."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from whet.ir import expr as ex
from whet.ir.expr import Expr, Index, Load, Num
from whet.kernel.affine import Domain
from whet.kernel.legal import Flow, Path, around, find, flow, reads, refuse, writes
from whet.kernel.loops import (
    Access,
    Buffer,
    Extent,
    If,
    Kernel,
    Loop,
    Stmt,
    Store,
    Update,
    accesses,
    mapped,
    rewrite,
    scope,
    substituted,
    walk,
)
from whet.kernel.move import Move, fresh, register
from whet.kernel.order import copied
from whet.kernel.region import Span, before, digits, extent, guarded, region, shifted, taken_apart
from whet.kernel.tidy import tidy


@register("recompute")
@dataclass(frozen=True, slots=True)
class Recompute(Move):
    """Uses within a loop get a value of their own, computed a second time.

    before:
        x: input[f32, 8]
        y: output[f32, 8]
        z: output[f32, 8]
        t: memory[f32, 8]
        for i in range(8):
            t[i] = exp(x[i])
        for j in range(8):
            y[j] = t[j] + 1
        for a in range(8):
            z[a] = t[a] * 2
    move: recompute(t, a)
    after:
        x: input[f32, 8]
        y: output[f32, 8]
        z: output[f32, 8]
        t: memory[f32, 8]
        t_r: memory[f32, 8]
        for i in range(8):
            t[i] = exp(x[i])
        for j in range(8):
            y[j] = t[j] + 1
        for i_r in range(8):
            t_r[i_r] = exp(x[i_r])
        for a in range(8):
            z[a] = t_r[a] * 2
    """

    buffer: str
    loop: str

    def do(self, k: Kernel) -> Kernel:
        f, user = self.check(k)
        name = fresh(k, f"{self.buffer}_r")
        k = k.with_buffer(replace(k.buffer(self.buffer), name=name))
        k, copy = copied(k, tuple(f.siblings[m] for m in f.made), "_r")

        def visit(e: Expr) -> Expr:
            e = ex.rebuild(e, visit)
            return Load(name, e.index) if isinstance(e, Load) and e.tensor == self.buffer else e

        def rename(s: Stmt) -> Stmt | None:
            if isinstance(s, (Store, Update)) and s.buffer == self.buffer:
                return replace(s, buffer=name)
            return None

        copy = tuple(rewrite(copy, rename))
        changed = [*f.siblings]
        changed[user : user + 1] = [*copy, *mapped((f.siblings[user],), visit)]
        return tidy(rebodied(k, f.path, tuple(changed)))

    def check(self, k: Kernel) -> tuple[Flow, int]:
        """Its operands are still there at the loop, and the loop is not the only user."""
        f = flow(k, self.buffer)
        user = _holder(f, self.loop, k)
        if user not in f.used or len(f.used) < 2:
            raise refuse("uses", loop=self.loop, buffer=self.buffer, used=len(f.used))
        needed = reads(f.siblings[m] for m in f.made)
        if late := writes(f.siblings[max(f.made) + 1 : user]) & needed:
            raise refuse("order", loop=self.loop, buffer=min(late))
        _alone(k, self.buffer, tuple(f.siblings[m] for m in f.made))
        return f, user


def _holder(f: Flow, loop: str, k: Kernel) -> int:
    """Which of the siblings is, or holds, the loop."""
    for place, s in enumerate(f.siblings):
        if isinstance(s, Loop) and s.var == loop:
            return place
        if isinstance(s, (Loop, If)) and any(
            isinstance(x, Loop) and x.var == loop for x in walk((s,))
        ):
            return place
    find(k, loop)
    raise refuse("uses", loop=loop)


def rebodied(k: Kernel, path: Path, body: tuple[Stmt, ...]) -> Kernel:
    """The kernel with the statement list at the end of a path replaced."""
    if not path:
        return k.with_body(body)
    last = [s for s in path if isinstance(s, Loop)][-1]

    def visit(s: Stmt) -> Stmt | None:
        return replace(s, body=body) if isinstance(s, Loop) and s.var == last.var else None

    return k.with_body(rewrite(k.body, visit))


@register("compute_at")
@dataclass(frozen=True, slots=True)
class ComputeAt(Move):
    """A value is computed within a loop that uses it, as much of it as one iteration needs.

    before:
        x: input[f32, 8, 16]
        y: output[f32, 8, 16]
        t: memory[f32, 8, 16]
        for i in range(8):
            for j in range(16):
                t[i, j] = exp(x[i, j])
        for a in range(8):
            for o in range(4):
                for b in range(4):
                    y[a, 4 * o + b] = t[a, 4 * o + b] + 1
    move: compute_at(t, o)
    after:
        x: input[f32, 8, 16]
        y: output[f32, 8, 16]
        t: memory[f32, 1, 4]
        for a in range(8):
            for o in range(4):
                for j in range(4):
                    t[0, j] = exp(x[a, 4 * o + j])
                for b in range(4):
                    y[a, 4 * o + b] = t[0, b] + 1
    """

    buffer: str
    loop: str

    def do(self, k: Kernel) -> Kernel:
        f, target, path = self.check(k)
        buffer = k.buffer(self.buffer)
        outer = around((*path, target))
        inside = [a for a in accesses(target.body, (*path, target)) if a.buffer == self.buffer]
        spans = region(inside, buffer.sizes, outer)
        moved: list[Stmt] = []
        for m in f.made:
            moved += _narrowed(f.siblings[m], buffer, spans, outer, f.path)
        first = next(n for n, s in enumerate(target.body) if self.buffer in reads((s,)))
        body = (*target.body[:first], *moved, *target.body[first:])
        gone = {id(f.siblings[m]) for m in f.made}

        def shift(e: Expr) -> Expr:
            e = ex.rebuild(e, shift)
            if isinstance(e, Load) and e.tensor == self.buffer:
                return Load(e.tensor, shifted(e.index, spans))
            return e

        def visit(s: Stmt) -> Stmt | Iterable[Stmt] | None:
            if isinstance(s, Loop) and s.var == self.loop:
                return replace(s, body=mapped(body, shift))
            return None

        kept = tuple(s for s in f.siblings if id(s) not in gone)
        k = rebodied(k, f.path, tuple(rewrite(kept, visit)))
        sizes = tuple(s.size for s in spans)
        return tidy(k.with_buffer(Buffer(buffer.name, sizes, buffer.dtype, buffer.role)))

    def check(self, k: Kernel) -> tuple[Flow, Loop, Path]:
        """All uses lie in the loop, what the value needs is still there, and vice versa."""
        f = flow(k, self.buffer)
        target, path = find(k, self.loop)
        user = _holder(f, self.loop, k)
        if f.used != (user,):
            raise refuse("uses", loop=self.loop, buffer=self.buffer, used=len(f.used))
        reading = [a for a in accesses(k.body) if a.buffer == self.buffer and a.kind == "read"]
        if any(self.loop not in a.vars for a in reading):
            raise refuse("uses", loop=self.loop, buffer=self.buffer)
        making = tuple(f.siblings[m] for m in f.made)
        for place in f.made:
            between = [s for s in f.siblings[place + 1 : user + 1] if s not in making]
            if late := writes(between) & reads((f.siblings[place],)):
                raise refuse("order", loop=self.loop, buffer=min(late))
        for s in walk(making):
            if isinstance(s, Loop) and s.kind == "parallel":
                raise refuse("kind", loop=s.var)
        _alone(k, self.buffer, making)
        return f, target, path


def _alone(k: Kernel, name: str, making: tuple[Stmt, ...]) -> None:
    """Refuses where what makes a buffer makes others too, but for such as live within."""
    vars = {x.var for x in walk(making) if isinstance(x, Loop)}
    for other in sorted(writes(making) - {name}):
        if not k.buffer(other).is_scratch or not vars & set(scope(k, other)):
            raise refuse("uses", buffer=other)


def _narrowed(
    s: Stmt, buffer: Buffer, spans: tuple[Span, ...], outer: Domain, path: Path
) -> list[Stmt]:
    """A statement that makes a buffer, making a region of it."""
    found = [a for a in accesses((s,), path) if a.buffer == buffer.name and a.kind != "read"]
    if len(found) != 1:
        raise refuse("uses", buffer=buffer.name, writes=len(found))
    (access,) = found
    inner = access.path[len(path) :]
    return _Narrowing(access, inner, buffer, spans, outer).rebuilt((s,))


class _Narrowing:
    """Loops over a buffer's dims become loops over a region; the rest of the nest stays."""

    def __init__(
        self, access: Access, inner: Path, buffer: Buffer, spans: tuple[Span, ...], outer: Domain
    ) -> None:
        self.buffer = buffer
        self.loops = [s for s in inner if isinstance(s, Loop)]
        self.values: dict[str, Expr] = {}  # of loops over dims, by the loops that replace them
        self.new: dict[str, tuple[Extent, Expr | None]] = {}  # those: their extent and condition
        self.gone: set[str] = set()
        places: list[Expr] = []
        plan = digits(access.index, around(inner), buffer.name)
        for e, dim, span, n in zip(access.index, plan, spans, buffer.sizes, strict=True):
            if math.prod(d.extent for d in dim) < n:
                raise refuse("index", buffer=buffer.name)
            if span.size == n and span.low == Num(0):
                places.append(e)
                continue
            head = self._head({d.var for d in dim})
            places.append(Index(head))
            self.new[head] = (extent(span, n, outer), before(span, Index(head), outer))
            self.values |= taken_apart(ex.call("+", span.low, Index(head)), dim)
        self.places = tuple(places)

    def _head(self, vars: set[str]) -> str:
        """The outermost of a dim's loops; those that lie directly in it become one with it."""
        start = next(n for n, s in enumerate(self.loops) if s.var in vars)
        for n in range(start, start + len(vars)):
            loop = self.loops[n]
            inner = n + 1 < start + len(vars)
            if loop.var not in vars or (inner and len(loop.body) != 1):
                raise refuse("perfect", loop=loop.var)
            if n > start:
                self.gone.add(loop.var)
        return self.loops[start].var

    def rebuilt(self, body: tuple[Stmt, ...]) -> list[Stmt]:
        """Statements over the region."""
        found: list[Stmt] = []
        for s in body:
            match s:
                case Loop(var, _, inner) if var in self.gone:
                    found += self.rebuilt(inner)
                case Loop(var, _, inner, kind) if var in self.new:
                    size, test = self.new[var]
                    made = guarded((test,), tuple(self.rebuilt(inner)))
                    found.append(Loop(var, size, made, kind))
                case Loop(var, size, inner, kind):
                    if not isinstance(size, int):
                        size = ex.substitute(size, self.values)
                    found.append(Loop(var, size, tuple(self.rebuilt(inner)), kind))
                case If(test, inner):
                    test = ex.substitute(test, self.values)
                    found.append(If(test, tuple(self.rebuilt(inner))))
                case Store() | Update():
                    (moved,) = substituted((s,), self.values)
                    assert isinstance(moved, (Store, Update))
                    own = moved.buffer == self.buffer.name
                    found.append(replace(moved, index=self.places) if own else moved)
        return found
