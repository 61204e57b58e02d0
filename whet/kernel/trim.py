"""Moves over what a loop need not do: iterations without effect, and loops that share one range."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from whet.ir import expr as ex
from whet.ir.expr import Call, Expr, Index, Load, Num, Select
from whet.ir.functions import FUNCTIONS
from whet.kernel.affine import Domain, Form, bounds, build, form, limits
from whet.kernel.legal import Path, around, find, refuse, serial, touch, whole
from whet.kernel.loops import (
    If,
    Kernel,
    Leaf,
    Loop,
    Stmt,
    Store,
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


@register("cease")
@dataclass(frozen=True, slots=True)
class Cease(Move):
    """A loop that folds sums with the maximum that they are scaled by ends where no term is left.

    Where a condition hides every value of an iteration, the maximum stays, factors are 1, and
    terms are f(-inf) = 0: all of it is left out. What a term of 0 is multiplied by is then not
    looked at, so an infinity there makes no NaN.

    before:
        x: input[f32, 4, 8]
        v: input[f32, 8]
        y: output[f32, 4]
        m: memory[f32, 4]
        z: memory[f32, 4]
        p: memory[f32, 1]
        b: memory[f32, 1]
        c: memory[f32, 1]
        s: memory[f32, 1]
        for i in range(4):
            m[i] = -inf
            z[i] = 0
            for j in range(8):
                b[0] = m[i]
                m[i] = max(m[i], (x[i, j] if j <= i else -inf))
                c[0] = (1 if b[0] == m[i] else exp(b[0] - m[i]))
                s[0] = (0 if m[i] == -inf else m[i])
                p[0] = exp((x[i, j] if j <= i else -inf) - s[0])
                z[i] *= c[0]
                z[i] += p[0] * v[j]
            y[i] = z[i]
    move: cease(j)
    after:
        x: input[f32, 4, 8]
        v: input[f32, 8]
        y: output[f32, 4]
        m: memory[f32, 4]
        z: memory[f32, 4]
        p: memory[f32, 1]
        b: memory[f32, 1]
        c: memory[f32, 1]
        s: memory[f32, 1]
        for i in range(4):
            m[i] = -inf
            z[i] = 0
            for j in range(i + 1):
                b[0] = m[i]
                m[i] = max(m[i], x[i, j])
                c[0] = (1 if b[0] == m[i] else exp(b[0] - m[i]))
                s[0] = (0 if m[i] == -inf else m[i])
                p[0] = exp(x[i, j] - s[0])
                z[i] *= c[0]
                z[i] += p[0] * v[j]
            y[i] = z[i]
    """

    loop: str

    def do(self, k: Kernel) -> Kernel:
        extent = self.check(k)
        return tidy(replaced(k, self.loop, lambda s: replace(s, extent=extent)))

    def check(self, k: Kernel) -> Expr:
        """Serial; what outlives an iteration is one maximum, and sums that follow it; all of them
        under a condition that ends at the same iteration."""
        loop, path = serial(k, self.loop)
        inside = [(s, (*path, loop, *inner)) for s, inner, _ in leaves(loop.body)]
        ends = _Ends(k, self.loop, around(path), inside).all()
        extent = _folded("minimum", [bound(loop.extent), *sorted(ends, key=ex.show)])
        if bounds(extent, around(path))[0] < 0:
            extent = Call("maximum", (extent, Num(0)))
        return extent


class _Ends:
    """From which iterations on a loop has no effect.

    Args:
        var, outer: the loop, and those around it.
        inside: its statements in order, each with all loops around it.
    """

    def __init__(
        self, k: Kernel, var: str, outer: Domain, inside: Sequence[tuple[Leaf, Path]]
    ) -> None:
        self.k, self.var, self.outer, self.inside = k, var, outer, inside
        tops = [s for s, _ in inside if isinstance(s, Update) and s.how == "max"
                and not self._passing(s.buffer)]  # fmt: skip
        if len(tops) != 1:
            raise refuse("algebra", loop=var, maxima=len(tops))
        self.top = tops[0]

    def all(self) -> set[Expr]:
        """Ends that all effects have in common."""
        shared: set[Expr] | None = None
        for s, path in self.inside:
            if self._passing(s.buffer) or self._is_kept(s, path):
                continue
            found = self._tests(s, path)
            shared = found if shared is None else shared & found
        if not shared:
            raise refuse("uses", loop=self.var, buffer=self.top.buffer)
        return shared

    def _passing(self, name: str) -> bool:
        """Does a buffer live within an iteration, or is it of no use after one?"""
        if self.var in self.k.scopes.get(name, ()):
            return True
        mine = [s for s, _ in self.inside]
        others = [s for s, _, _ in leaves(self.k.body) if s not in mine]
        return self.k.buffer(name).role != "out" and not any(
            s.buffer == name or any(x.tensor == name for x in ex.loads(s.value)) for s in others
        )

    def _made(self, load: Load, path: Path) -> tuple[int, Store, Path] | None:
        """The only statement that makes what passes, where it makes all that a load reads."""
        found = [(n, s, p) for n, (s, p) in enumerate(self.inside) if s.buffer == load.tensor]
        if len(found) != 1 or not self._passing(load.tensor):
            return None
        n, s, p = found[0]
        if not isinstance(s, Store) or any(isinstance(x, If) for x in p[p.index(path[0]) :]):
            return None
        written, read = around(p), around(path)
        sizes = self.k.buffer(load.tensor).sizes
        for mine, theirs, size in zip(s.index, load.index, sizes, strict=True):
            match mine, theirs:
                case Index(v), Index(w) if written.get(v) in (size, read.get(w)):
                    continue
            if not (mine == ex.ZERO and size == 1):
                return None
        return n, s, p

    def _at(self, s: Leaf) -> int:
        return next(n for n, (x, _) in enumerate(self.inside) if x == s)

    def _is_kept(self, s: Leaf, path: Path) -> bool:
        """Is a value scaled by what is 1 where the maximum stays?"""
        if not (isinstance(s, Update) and s.how == "prod" and isinstance(s.value, Load)):
            return False
        factor = self._made(s.value, path)
        if factor is None or factor[0] < self._at(self.top):
            return False
        match factor[1].value:
            case Select(Call("==", (Load() as was, Load(now, at))), one, _) if one == ex.ONE:
                before = self._made(was, factor[2])
                return (
                    now == self.top.buffer and before is not None
                    and before[0] < self._at(self.top) and self._follows(before[1], was, at)
                )  # fmt: skip
        return False

    def _follows(self, before: Store, was: Load, at: tuple[Expr, ...]) -> bool:
        """Is a value the maximum as it was, element by element?"""
        match before.value:
            case Load(name, index) if name == self.top.buffer:
                pairs = zip(before.index, was.index, strict=True)
                names = {i.name: j for i, j in pairs if isinstance(i, Index)}
                return tuple(ex.substitute(i, names) for i in index) == at
        return False

    def _tests(self, s: Leaf, path: Path) -> set[Expr]:
        """Iterations from which on a statement adds what is neutral."""
        if s == self.top:
            return self._highs(_needed(s), path)
        found: set[Expr] = set()
        if isinstance(s, Update) and s.how == "sum":
            for part in _factors(s.value):
                made = self._made(part, path) if isinstance(part, Load) else None
                term, at = (part, path) if made is None else (made[1].value, made[2])
                found |= self._highs(self._hidden(term, at), at)
        return found

    def _hidden(self, e: Expr, path: Path) -> Iterator[Expr]:
        """Conditions without which a term is f of minus infinity."""
        match e:
            case Call(fn, (Call("-", (Select(test, _, Num(value)), Load() as by)),)):
                function, shift = FUNCTIONS.get(fn), self._made(by, path)
                laws = () if function is None else function.laws
                lowest = value == ex.REDUCTIONS["max"]
                if "sum_to_product" not in laws or "monotone" not in laws or not lowest:
                    return
                if shift is not None and self._is_finite(shift[1].value):
                    yield from conjuncts(test)

    def _is_finite(self, e: Expr) -> bool:
        """Is it the maximum, but for minus infinity?"""
        match e:
            case Select(Call("==", (Load(name), Num(value))), zero, Load(same)):
                lowest = value == ex.REDUCTIONS["max"]
                return name == same == self.top.buffer and lowest and zero == ex.ZERO
        return False

    def _highs(self, tests: Iterable[Expr], path: Path) -> set[Expr]:
        limits_ = (_limit(t, self.var, around(path), self.outer) for t in tests)
        return {x[1] for x in limits_ if x is not None and x[1] is not None}


def _factors(e: Expr) -> Iterator[Expr]:
    match e:
        case Call("*", (a, b)):
            yield from _factors(a)
            yield from _factors(b)
        case _:
            yield e


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
