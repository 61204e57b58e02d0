"""Moves over what a loop need not do: iterations without effect, and loops that share one range."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from whet.ir import expr as ex
from whet.ir.expr import Call, Expr, Index, Num, Select
from whet.kernel.affine import Domain, Form, bounds, build, form, limits
from whet.kernel.legal import Path, around, find, refuse, serial, touch, whole
from whet.kernel.loops import (
    If,
    Kernel,
    Leaf,
    Loop,
    Stmt,
    Update,
    bound,
    leaves,
    rewrite,
    substituted,
)
from whet.kernel.move import Move, fresh, register, replaced
from whet.kernel.tidy import conjuncts, tidy


@register("trim")
@dataclass(frozen=True, slots=True)
class Trim(Move):
    """Iterations that only add the neutral element are left out.

    What a condition on the loop's variable says is said by the loop's range instead. A condition on
    inner variables too stays, and the loop runs where it can hold at all.

    before:
        x: input[f32, 8, 8]
        t: memory[f32, 8]
        y: output[f32, 8]
        for a in range(8):
            t[a] = 0
        for i in range(8):
            for j in range(8):
                t[i] += (x[i, j] if j <= i and 3 <= j else 0)
        for b in range(8):
            y[b] = t[b]
    move: trim(j)
    after:
        x: input[f32, 8, 8]
        t: memory[f32, 8]
        y: output[f32, 8]
        for a in range(8):
            t[a] = 0
        for i in range(8):
            for j in range(maximum(i - 2, 0)):
                t[i] += x[i, j + 3]
        for b in range(8):
            y[b] = t[b]
    """

    loop: str

    def do(self, k: Kernel) -> Kernel:
        ranges, said = self.check(k)
        loop = k.loop(self.loop)

        def drop(e: Expr) -> Expr:
            if e in said:
                return ex.ONE
            return ex.rebuild(e, drop)

        def visit(s: Stmt) -> Stmt | None:
            return replace(s, value=drop(s.value)) if isinstance(s, Update) else None

        least, extent = ranges
        body = tuple(rewrite(loop.body, visit))
        body = substituted(body, {self.loop: ex.call("+", Index(self.loop), least)})
        return tidy(replaced(k, self.loop, lambda s: replace(s, extent=extent, body=body)))

    def check(self, k: Kernel) -> tuple[tuple[Expr, Expr], set[Expr]]:
        """Serial or unrolled; all it does is update, under conditions on its variable, the same
        for all."""
        loop, path = find(k, self.loop)
        if loop.kind not in ("serial", "unroll"):
            raise refuse("kind", loop=self.loop)
        outer = around(path)
        shared: set[Expr] | None = None
        paths: dict[Expr, Path] = {}
        for s, inner, _ in leaves(loop.body):
            found = set(_needed(s))
            paths |= dict.fromkeys(found, (*path, loop, *inner))
            shared = found if shared is None else shared & found
        lows: list[Expr] = [Num(0)]
        highs: list[Expr] = [bound(loop.extent)]
        said: set[Expr] = set()
        for test in sorted(shared or (), key=ex.show):
            limit = _limit(test, self.loop, around(paths[test]), outer)
            if limit is None:
                continue
            low, high, exact = limit
            lows += [low] if low is not None else []
            highs += [high] if high is not None else []
            said |= {test} if exact else set()
        if len(lows) + len(highs) == 2:
            raise refuse("uses", loop=self.loop, conditions=len(shared or ()))
        least = _folded("maximum", lows)
        size = ex.call("-", _folded("minimum", highs), least)
        if bounds(size, outer)[0] < 0:
            size = Call("maximum", (size, Num(0)))
        return (least, size), said


def _folded(fn: str, parts: list[Expr]) -> Expr:
    total = parts[0]
    for p in parts[1:]:
        total = Call(fn, (total, p))
    return total


def _needed(s: Leaf) -> Iterator[Expr]:
    """Conditions without which an update adds its neutral element."""
    if not isinstance(s, Update):
        return
    neutral = ex.REDUCTIONS[s.how]

    def visit(e: Expr) -> Iterator[Expr]:
        match e:
            case Select(test, then, Num(value)) if value == neutral:
                yield from conjuncts(test)
                yield from visit(then)
            case Call("*", (a, b)) if s.how == "sum":
                yield from visit(a)
                yield from visit(b)

    yield from visit(s.value)


def _limit(
    test: Expr, var: str, domain: Domain, outer: Domain
) -> tuple[Expr | None, Expr | None, bool] | None:
    """(least, one past the greatest, is that all it says) of `var` where a condition can hold."""
    if not (isinstance(test, Call) and test.fn in ("<", "<=")):
        return None
    f = form(test.args[1], domain).plus(form(test.args[0], domain), -1)
    c = f.coefficient(var)
    fixed = {a: n for a, n in f.terms.items() if ex.free(a) <= outer.keys()}
    inner = {a: n for a, n in f.terms.items() if a not in fixed and a != Index(var)}
    if not c or any(var in ex.free(a) for a in inner):
        return None
    most = limits(Form(inner, 0), domain)[1]
    if most == float("inf"):
        return None
    rest = Form(fixed, f.constant + int(most) - (test.fn == "<"))  # c * var + rest >= 0
    if c > 0:
        negative = Form({}, c - 1).plus(rest, -1)
        return ex.call("//", build(negative, outer), Num(c)), None, not inner
    return None, ex.call("+", ex.call("//", build(rest, outer), Num(-c)), Num(1)), not inner


@register("beside")
@dataclass(frozen=True, slots=True)
class Beside(Move):
    """Two loops that have nothing to do with each other share one range: one parallel region.

    before:
        x: input[f32, 8]
        y: output[f32, 8]
        z: output[f32, 4]
        for i in range(8):
            y[i] = x[i] + 1
        for j in range(4):
            z[j] = x[j] * 2
    move: beside(i, j)
    after:
        x: input[f32, 8]
        y: output[f32, 8]
        z: output[f32, 4]
        for i_j in range(12):
            if i_j < 8:
                y[i_j] = x[i_j] + 1
            if 8 <= i_j:
                z[i_j - 8] = x[i_j - 8] * 2
    """

    first: str
    second: str

    def do(self, k: Kernel) -> Kernel:
        first, second = self.check(k)
        var = fresh(k, f"{first.var}_{second.var}")
        n, m = whole(first), whole(second)
        late = ex.call("-", Index(var), Num(n))
        body = (
            If(Call("<", (Index(var), Num(n))), substituted(first.body, {first.var: Index(var)})),
            If(Call("<=", (Num(n), Index(var))), substituted(second.body, {second.var: late})),
        )

        def visit(s: Stmt) -> Stmt | tuple[Stmt, ...] | None:
            if isinstance(s, Loop) and s.var == second.var:
                return ()
            return Loop(var, n + m, body) if isinstance(s, Loop) and s.var == first.var else None

        return tidy(k.with_body(rewrite(k.body, visit)))

    def check(self, k: Kernel) -> tuple[Loop, Loop]:
        """Serial siblings of extents that are numbers; neither writes what the other touches."""
        first, path = serial(k, self.first)
        second, other = serial(k, self.second)
        if path != other:
            raise refuse("perfect", loop=self.second)
        siblings = path[-1].body if path else k.body
        a, b = siblings.index(first), siblings.index(second)
        if a >= b:
            raise refuse("order", loop=self.first)
        if shared := touch(siblings[a:b], (second,)):
            raise refuse("dependence", loop=self.second, buffer=shared)
        whole(first)
        whole(second)
        return first, second
