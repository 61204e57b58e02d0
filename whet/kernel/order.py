"""Moves that change how loops are cut and in what order they run; what is computed where stays."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from whet.ir import expr as ex
from whet.ir.expr import Call, Expr, Index, Num
from whet.kernel.affine import bounds
from whet.kernel.legal import (
    Path,
    apart,
    around,
    commute,
    find,
    refuse,
    serial,
    touch,
    whole,
)
from whet.kernel.loops import (
    Kernel,
    Loop,
    Stmt,
    Store,
    Update,
    accesses,
    bound,
    mapped,
    rewrite,
    scope,
    substituted,
    walk,
)
from whet.kernel.move import Move, fresh, register, replaced
from whet.kernel.shrink import shrunk, within
from whet.kernel.tidy import tidy


@register("split")
@dataclass(frozen=True, slots=True)
class Split(Move):
    """A loop becomes two: steps of `factor`, and the places within a step.

    before:
        x: input[f32, 100]
        y: output[f32, 100]
        for i in range(100):
            y[i] = x[i] * 2
    move: split(i, 16)
    after:
        x: input[f32, 100]
        y: output[f32, 100]
        for i_o in range(7):
            for i_i in range(minimum(16, 100 - 16 * i_o)):
                y[16 * i_o + i_i] = x[16 * i_o + i_i] * 2
    """

    loop: str
    factor: int

    def do(self, k: Kernel) -> Kernel:
        loop, _ = self.check(k)
        n, t = loop.extent, self.factor
        o, i = fresh(k, f"{self.loop}_o"), fresh(k, f"{self.loop}_i")
        steps: int | Expr
        rest: int | Expr
        if isinstance(n, int):
            steps = -(-n // t)
            left = ex.call("-", Num(n), ex.call("*", Num(t), Index(o)))
            rest = t if n % t == 0 else Call("minimum", (Num(t), left))
        else:
            steps = ex.call("//", ex.call("+", n, Num(t - 1)), Num(t))
            rest = Call("minimum", (Num(t), ex.call("-", n, ex.call("*", Num(t), Index(o)))))
        at = ex.call("+", ex.call("*", Num(t), Index(o)), Index(i))
        inner = Loop(i, rest, substituted(loop.body, {self.loop: at}))
        return tidy(replaced(k, self.loop, lambda _: Loop(o, steps, (inner,))))

    def check(self, k: Kernel) -> tuple[Loop, Path]:
        """A serial loop longer than the factor."""
        loop, path = serial(k, self.loop)
        most = bounds(bound(loop.extent), around(path))[1]
        if self.factor < 2 or self.factor >= most:
            raise refuse("extent", loop=self.loop, extent=int(most), factor=self.factor)
        return loop, path


@register("reorder")
@dataclass(frozen=True, slots=True)
class Reorder(Move):
    """Loops that lie directly one in the other, in another order, outermost first.

    before:
        x: input[f32, 8, 9]
        y: output[f32, 8, 9]
        for i in range(8):
            for j in range(9):
                y[i, j] = x[i, j]
    move: reorder((j, i))
    after:
        x: input[f32, 8, 9]
        y: output[f32, 8, 9]
        for j in range(9):
            for i in range(8):
                y[i, j] = x[i, j]
    """

    loops: tuple[str, ...]

    def do(self, k: Kernel) -> Kernel:
        nest = self.check(k)
        by_name = {loop.var: loop for loop in nest}
        body: tuple[Stmt, ...] = nest[-1].body
        for var in reversed(self.loops):
            body = (replace(by_name[var], body=body),)
        return tidy(replaced(k, nest[0].var, lambda _: body))

    def check(self, k: Kernel) -> list[Loop]:
        """Directly nested; no extent uses a loop that goes inside; at most one carries an order."""
        if len(set(self.loops)) != len(self.loops) or len(self.loops) < 2:
            raise refuse("missing", loop=self.loops[0] if self.loops else "")
        found = {var: find(k, var) for var in self.loops}
        outermost = min(self.loops, key=lambda v: len(found[v][1]))
        loop, path = found[outermost]
        nest = [loop]
        while len(nest) < len(self.loops):
            (inner, *more) = nest[-1].body
            if more or not isinstance(inner, Loop) or inner.var not in self.loops:
                raise refuse("perfect", loop=nest[-1].var)
            nest.append(inner)
        for place, var in enumerate(self.loops):
            used = ex.free(bound(found[var][0].extent))
            if late := used & set(self.loops[place:]):
                raise refuse("extent", loop=min(late))
        _commuting(k, nest, path)
        return nest


def _commuting(k: Kernel, nest: list[Loop], path: Path) -> None:
    """Refuses where the order of two of the loops matters."""
    here = (*path, *nest)
    inside = list(accesses(nest[-1].body, here))
    private = {b.name for b in k.scratch if nest[-1].var in scope(k, b.name)}
    for name in dict.fromkeys(a.buffer for a in inside if a.kind != "read"):
        if name in private:
            continue
        same = [a for a in inside if a.buffer == name]
        for n, a in enumerate(same):
            for b in same[n:]:
                if (a.kind == b.kind == "read") or commute(a, b):
                    continue
                carriers = [s.var for s in nest if not apart(k, a, b, s.var)]
                if len(carriers) > 1:
                    raise refuse("dependence", loop=carriers[1], buffer=name)


@register("tile")
@dataclass(frozen=True, slots=True)
class Tile(Move):
    """Directly nested loops, each split; the steps of all go outside, the places within inside.

    before:
        x: input[f32, 8, 12]
        y: output[f32, 8, 12]
        for i in range(8):
            for j in range(12):
                y[i, j] = x[i, j]
    move: tile((i, j,), (4, 6,))
    after:
        x: input[f32, 8, 12]
        y: output[f32, 8, 12]
        for i_o in range(2):
            for j_o in range(2):
                for i_i in range(4):
                    for j_i in range(6):
                        y[4 * i_o + i_i, 6 * j_o + j_i] = x[4 * i_o + i_i, 6 * j_o + j_i]
    """

    loops: tuple[str, ...]
    factors: tuple[int, ...]

    def do(self, k: Kernel) -> Kernel:
        if len(self.loops) != len(self.factors):
            raise refuse("missing", loops=len(self.loops), factors=len(self.factors))
        outer, inner = [], []
        for var, factor in zip(self.loops, self.factors, strict=True):
            before = set(k.loops)
            k = Split(var, factor).do(k)
            made = [v for v in k.loops if v not in before]
            if len(made) != 2:
                raise refuse("extent", loop=var, factor=factor)
            outer.append(made[0])
            inner.append(made[1])
        return Reorder((*outer, *inner)).do(k)


@register("collapse")
@dataclass(frozen=True, slots=True)
class Collapse(Move):
    """Two loops, one directly in the other, as one: more to share among threads.

    before:
        x: input[f32, 8, 9]
        y: output[f32, 8, 9]
        for i in range(8):
            for j in range(9):
                y[i, j] = x[i, j] + 1
    move: collapse(i, j)
    after:
        x: input[f32, 8, 9]
        y: output[f32, 8, 9]
        for i_j in range(72):
            y[i_j // 9, i_j % 9] = x[i_j // 9, i_j % 9] + 1
    """

    outer: str
    inner: str

    def do(self, k: Kernel) -> Kernel:
        outer, inner = self.check(k)
        var = fresh(k, f"{self.outer}_{self.inner.rpartition('_')[2]}")
        n = whole(inner)
        values: dict[str, Expr] = {
            self.outer: ex.call("//", Index(var), Num(n)),
            self.inner: ex.call("%", Index(var), Num(n)),
        }
        body = substituted(inner.body, values)
        return tidy(replaced(k, self.outer, lambda _: Loop(var, whole(outer) * n, body)))

    def check(self, k: Kernel) -> tuple[Loop, Loop]:
        """Serial, directly nested, of extents that are numbers."""
        outer, _ = serial(k, self.outer)
        inner, _ = serial(k, self.inner)
        if outer.body != (inner,):
            raise refuse("perfect", loop=self.outer)
        whole(outer)
        whole(inner)
        return outer, inner


@register("join")
@dataclass(frozen=True, slots=True)
class Join(Move):
    """Two loops of one extent, one after the other, become one; scratch between them shrinks.

    before:
        x: input[f32, 8]
        y: output[f32, 8]
        t: memory[f32, 8]
        for i in range(8):
            t[i] = x[i] * 2
        for j in range(8):
            y[j] = t[j] + 1
    move: join(i, j)
    after:
        x: input[f32, 8]
        y: output[f32, 8]
        t: memory[f32, 1]
        for i in range(8):
            t[0] = x[i] * 2
            y[i] = t[0] + 1
    """

    first: str
    second: str

    def do(self, k: Kernel) -> Kernel:
        first, second, place = self.check(k)
        body = (*first.body, *substituted(second.body, {second.var: Index(first.var)}))

        def visit(s: Stmt) -> Stmt | Iterable[Stmt] | None:
            if not isinstance(s, Loop) or s.var not in (first.var, second.var):
                return None
            return replace(first, body=body) if s.var == place.var else ()

        k = k.with_body(rewrite(k.body, visit))
        return shrunk(k, within(k, first.var))

    def check(self, k: Kernel) -> tuple[Loop, Loop, Loop]:
        """Siblings of one extent and kind; no iteration of one meets another one of the other.

        The third is the one in whose place the two can be, as for what stands between them.
        """
        first, path = find(k, self.first)
        second, other = find(k, self.second)
        if path != other:
            raise refuse("perfect", loop=self.second)
        if first.extent != second.extent:
            raise refuse("extent", loop=self.second)
        if first.kind != second.kind:
            raise refuse("kind", loop=self.second)
        siblings = path[-1].body if path else k.body
        a, b = siblings.index(first), siblings.index(second)
        if a >= b:
            raise refuse("order", loop=self.first)
        between, place = siblings[a + 1 : b], first
        if touch(between, (second,)):
            place = second
            if shared := touch((first,), between):
                raise refuse("order", loop=self.second, buffer=shared)
        renamed = substituted(second.body, {second.var: Index(first.var)})
        left = list(accesses(first.body, (*path, first)))
        right = list(accesses(renamed, (*path, first)))
        for x in left:
            for y in right:
                if x.buffer != y.buffer or x.kind == y.kind == "read":
                    continue
                if not apart(k, x, y, first.var):
                    raise refuse("dependence", loop=self.second, buffer=x.buffer)
        return first, second, place


@register("peel")
@dataclass(frozen=True, slots=True)
class Peel(Move):
    """A loop becomes two, one after the other: up to `at`, and from there on.

    before:
        x: input[f32, 100]
        y: output[f32, 100]
        for o in range(7):
            for i in range(minimum(16, 100 - 16 * o)):
                y[16 * o + i] = x[16 * o + i]
    move: peel(o, 6)
    after:
        x: input[f32, 100]
        y: output[f32, 100]
        for o in range(6):
            for i in range(16):
                y[16 * o + i] = x[16 * o + i]
        for i_t in range(4):
            y[i_t + 96] = x[i_t + 96]
    """

    loop: str
    at: int

    def do(self, k: Kernel) -> Kernel:
        loop, _ = self.check(k)
        rest = whole(loop) - self.at
        k, tail = copied(k, (loop,), "_t")
        (late,) = tail
        assert isinstance(late, Loop)
        moved = ex.call("+", Index(late.var), Num(self.at))
        late = Loop(late.var, rest, substituted(late.body, {late.var: moved}), late.kind)
        return tidy(replaced(k, self.loop, lambda s: (replace(s, extent=self.at), late)))

    def check(self, k: Kernel) -> tuple[Loop, Path]:
        """A place inside the loop."""
        loop, path = find(k, self.loop)
        if not 0 < self.at < whole(loop):
            raise refuse("extent", loop=self.loop, extent=whole(loop), at=self.at)
        return loop, path


def copied(k: Kernel, body: tuple[Stmt, ...], suffix: str) -> tuple[Kernel, tuple[Stmt, ...]]:
    """Statements with loops, and scratch that lives in them, under new names."""
    vars = {s.var: fresh(k, s.var + suffix) for s in walk(body) if isinstance(s, Loop)}
    within = {a.buffer for a in accesses(body)}
    names: dict[str, str] = {}
    for b in k.scratch:
        if b.name in within and set(scope(k, b.name)) & set(vars):
            names[b.name] = fresh(k, b.name + suffix)
            k = k.with_buffer(replace(b, name=names[b.name]))

    def renamed(e: Expr) -> Expr:
        if isinstance(e, ex.Load):
            e = ex.Load(names.get(e.tensor, e.tensor), e.index)
        if isinstance(e, Index):
            return Index(vars.get(e.name, e.name))
        return ex.rebuild(e, renamed)

    def visit(s: Stmt) -> Stmt:
        if isinstance(s, Loop):
            return replace(s, var=vars[s.var])
        if isinstance(s, (Store, Update)):
            return replace(s, buffer=names.get(s.buffer, s.buffer))
        return s

    return k, tuple(rewrite(mapped(body, renamed), visit))
