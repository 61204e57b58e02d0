"""The normal form: what a guarded sum of products looks like after all that is known was used.

Of each term, in this order and until nothing changes:

    impossible guards           the term goes
    x == y among the guards     one stands for the other
    guards that others imply    go
    a bound axis with one value     is replaced by it; one with a single lower bound starts at 0,
                                    and runs the way in which more indices rise
    an undecided guard inside a function        splits the term in two
    functions                   obey their laws (`whet.ir.functions`): exp of a sum is a product, …

Two sums are equal if their texts are, in every region that their free guards cut the output into.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from fractions import Fraction

from whet.ir.functions import FUNCTIONS
from whet.ir.types import Poly, Size
from whet.rewrite import bycases, extremes, laws, logistic, monotone
from whet.rewrite import terms as tm
from whet.rewrite.integers import Facts, Integers, negation
from whet.rewrite.reading import Unreadable
from whet.rewrite.spelling import spell, spell_factor, spell_term
from whet.rewrite.terms import Applied, Case, Element, Factor, Fold, Guards, Scalar, Sum, Term

_ROUNDS = 4_000
_FEW = 4
_STEPS = 100
_WRITTEN = 6  # numbers that a sum over so many is written out for


@dataclass
class Normal:
    """Simplifies under fixed assumptions; `rounds` bounds the work, deterministically.

    Attributes:
        written_out: sums and extremes over a few numbers are written out, for what is equal to
            another number of other terms (fast convolutions, pools of pools).
    """

    integers: Integers
    rounds: int = _ROUNDS
    written_out: bool = False

    def equal(self, a: Sum, b: Sum, known: Facts) -> Facts | None:
        """None if `a` equals `b` where `known` holds, else a region where they may differ."""
        a, b = self.simplify(a, known), self.simplify(b, known)
        if spell(a) == spell(b):
            return None
        cuts = sorted(tm.free_guards(a) | tm.free_guards(b), key=repr)
        regions = [known]
        while regions:
            region = regions.pop()
            if not self.integers.feasible(region):
                continue
            open_ = next((g for g in cuts if self.integers.decided(region, g) is None), None)
            if open_ is not None:
                regions += [region | {open_}, region | {negation(open_)}]
                continue
            x, y = a, b
            if region != known:
                x, y = self.simplify(a, region), self.simplify(b, region)
            if spell(x) == spell(y):
                continue
            value = _first_of_few(region)
            if value is not None:
                regions += [region | {value, -value}, region | {value - 1}]
            elif not bycases.vanishes(x + tm.scaled(y, -1)):
                return region
        return None

    # -- terms -----------------------------------------------------------------------------------
    def simplify(self, s: Sum, known: Facts) -> Sum:
        """`s` in normal form where `known` holds."""
        work, done = list(s), []
        while work:
            self.rounds -= 1
            if self.rounds < 0:
                raise Unreadable("the normal form grew beyond its budget")
            tidy = self.tidy(work.pop(), known)
            if tidy is None:
                continue
            facts = known | tidy.guards
            few = _few(tidy.bound, tidy.guards) if self.written_out else None
            if few is not None:
                work += [_placed(tidy, few[0], value) for value in few[1]]
                continue
            square = extremes.squared(tidy.factors) or logistic.multiplied(tidy.factors)
            if square is not None:
                work += tm.times((replace(tidy, factors=()),), square)
                continue
            cut = self._cut(frozenset().union(*map(tm.open_guards, tidy.factors)), facts)
            if cut is not None:
                work += [replace(tidy, guards=tidy.guards | {g}) for g in (cut, negation(cut))]
                continue
            product = tm.ONE
            for f in tidy.factors:
                product = tm.times(product, self.factor(f, facts))
            if len(product) == 1:
                factors = laws.combined(product[0].factors, self.integers.positive)
                plain = not (product[0].bound or product[0].guards)
                if plain and _same(factors, tidy.factors):
                    coefficient = tidy.coefficient * product[0].coefficient
                    if coefficient:
                        done.append(replace(tidy, coefficient=coefficient, factors=factors))
                    continue
                product = (replace(product[0], factors=factors),)
            head = (replace(tidy, factors=()),)
            work += tm.times(head, tm.refresh(product))
        return logistic.cancelled(_gathered(done))

    def tidy(self, t: Term, known: Facts, *, counts: bool = True) -> Term | None:
        """`t` with its guards minimal and its bound axes in place; None if it is always 0.

        Args:
            counts: an axis that nothing varies along is a number of equal terms.
        """
        for _ in range(_STEPS):
            t = replace(t, guards=frozenset(g for g in t.guards if not _always(g)))
            if t.coefficient == 0 or not self.integers.feasible(known | t.guards):
                return None
            again = self._solved(t, known) or self._shifted(t, known)
            if again is None and counts:
                again = self._counted(t, known)
            if again is None:
                again = replace(t, guards=self._needed(t.guards, known))
                if again.guards == t.guards or not t.bound:
                    return again
            t = again
        raise Unreadable("the axes of a term depend on each other in a circle")

    def _solved(self, t: Term, known: Facts) -> Term | None:
        """`t` with an axis replaced by what the guards say it equals."""
        facts = known | t.guards
        for g in sorted(facts, key=repr):
            if isinstance(g, int) or -g not in facts:
                continue
            both = t.guards & {g, -g}
            rest = replace(t, guards=t.guards - both)
            used = _mentioned(rest)
            solutions = list(_solutions(g))
            for name, value in solutions:
                if name in t.bound:
                    return _placed(t, name, value)
            for name, value in solutions[:1]:  # one direction only, or two axes would swap forever
                if name in used and not tm.symbols(value) & set(t.bound):
                    placed = _placed(rest, name, value)  # a free axis: its guards must stay
                    return replace(placed, guards=placed.guards | both)
        return None

    def _shifted(self, t: Term, known: Facts) -> Term | None:
        """`t` with a bound axis moved to start at 0, or replaced if it has one value only."""
        for b in t.bound:
            lows = [low for g in t.guards if (low := _bound_by(g, b, 1)) is not None]
            highs = [high for g in t.guards if (high := _bound_by(g, b, -1)) is not None]
            others = known.union(g for g in t.guards if b not in tm.symbols(g))
            for low in lows:
                for high in highs:
                    if not self.integers.implied(others, low - high):
                        continue
                    if self.integers.implied(others, high - low):
                        return _placed(t, b, low)
            fixed = [low for low in lows if not _has_axes(low)] or lows  # the others cut it off
            if len(fixed) == 1 and fixed[0] != 0 and not tm.symbols(fixed[0]) & set(t.bound):
                return tm.moved_term(t, {b: Poly.symbol(b) + fixed[0]})
            about = sum(b in tm.symbols(g) for g in t.guards)
            if lows == [0] and len(highs) == 1 and about == 2 and _direction(t, b) < 0:
                return tm.moved_term(t, {b: highs[0] - Poly.symbol(b)})
        return None

    def _counted(self, t: Term, known: Facts) -> Term | None:
        """`t` with an axis that its factors do not have replaced by how many values that has."""
        if not t.bound:
            return None
        used = frozenset().union(*(tm.symbols(x) for f in t.factors for x in tm.sizes(f)))
        for b in t.bound:
            about = [g for g in t.guards if b in tm.symbols(g)]
            lows = [low for g in about if (low := _bound_by(g, b, 1)) is not None]
            highs = [high for g in about if (high := _bound_by(g, b, -1)) is not None]
            if b in used or len(lows) != 1 or len(highs) != 1 or len(about) != 2:
                continue
            rest, count = t.guards.difference(about), highs[0] - lows[0] + 1
            if self.integers.implied(known | rest, count):
                bound = tuple(x for x in t.bound if x != b)
                return replace(t, bound=bound, guards=rest, factors=(*t.factors, Scalar(count)))
        return None

    def _needed(self, guards: Guards, known: Facts) -> Guards:
        kept = sorted(guards, key=_shape)
        for g in list(kept):
            rest = [h for h in kept if h != g]
            if self.integers.implied(known.union(rest), g):
                kept = rest
        return frozenset(kept)

    def _cut(self, guards: Guards, facts: Facts) -> Size | None:
        return next(
            (g for g in sorted(guards, key=repr) if self.integers.decided(facts, g) is None), None
        )

    # -- factors ---------------------------------------------------------------------------------
    def factor(self, f: Factor, facts: Facts) -> Sum:
        """`f` in normal form where `facts` hold."""
        match f:
            case Element():
                return tm.of(f)
            case Scalar(size):
                return tm.number(size)
            case Fold():
                return self.fold(f, facts)
            case Applied(fn, args):
                inner = tuple(self.simplify(a, facts) for a in args)
                return self.applied(fn, inner, facts)

    def fold(self, f: Fold, facts: Facts) -> Sum:
        """A reduction: its cases split, emptied of what is neutral, tidied."""
        if f.kind == "min":
            turned = tuple(replace(c, body=tm.scaled(c.body, -1)) for c in f.cases)
            return tm.scaled(tm.of(Fold("max", turned)), -1)
        neutral = {"max": -1, "min": 1}.get(f.kind)
        work, done = list(f.cases), []
        while work:
            c = work.pop()
            inner = facts | c.guards
            if not self.integers.feasible(inner):
                continue
            cut = self._cut(tm.free_guards(c.body), inner)
            if cut is not None:
                work += [
                    replace(c, guards=c.guards | {cut}),
                    replace(c, guards=c.guards | {negation(cut)}),
                ]
                continue
            body = self.simplify(c.body, inner)
            if neutral is not None and laws.infinite_sign(body) == neutral:
                continue
            if neutral is None and tm.is_number(body) == 1:
                continue
            wrapped = Applied("body", (body,))
            tidy = self.tidy(Term(Fraction(1), c.bound, c.guards, (wrapped,)), facts, counts=False)
            if tidy is None:
                continue
            few = _few(tidy.bound, tidy.guards) if self.written_out and f.kind == "max" else None
            if few is not None:
                for value in few[1]:
                    t = _placed(tidy, few[0], value)
                    assert isinstance(t.factors[0], Applied)
                    work.append(Case(t.bound, t.guards, t.factors[0].args[0]))
                continue
            if f.kind == "max":
                tidy = self._nonempty(tidy, facts)
            moved = tidy.factors[0]
            assert isinstance(moved, Applied)
            done.append(Case(tidy.bound, tidy.guards, moved.args[0]))
        if not done:
            return tm.ONE if neutral is None else tm.number(neutral * math.inf)
        if len(done) == 1 and not (done[0].bound or done[0].guards):
            return done[0].body
        if f.kind == "max":
            wider = extremes.spread_cases(done)
            if wider is not None:
                return self.fold(Fold("max", tuple(wider)), facts)
            if all(not (c.bound or c.guards) for c in done):
                return tm.of(Applied("maximum", tuple(c.body for c in done)))
            added, scale, done = extremes.drawn_out(done)
            inside = tm.of(Fold("max", tuple(done)))
            same = monotone.alike([c.body for c in done])
            if same is not None and any(self._is_somewhere(c, facts) for c in done):
                sign = -1 if same.turned else 1
                cases = [replace(c, body=tm.scaled(x, sign))
                         for c, x in zip(done, same.inner, strict=True)]  # fmt: skip
                inside = same.of(tm.scaled(self.fold(Fold("max", tuple(cases)), facts), sign))
            return added + tm.scaled(inside, scale)
        return tm.of(Fold(f.kind, tuple(done)))

    def _is_somewhere(self, c: Case, facts: Facts) -> bool:
        """Whether a case certainly has values: each of its axes a range of its own."""
        left = c.guards
        for b in c.bound:
            about = [g for g in c.guards if b in tm.symbols(g)]
            lows = [low for g in about if (low := _bound_by(g, b, 1)) is not None]
            highs = [high for g in about if (high := _bound_by(g, b, -1)) is not None]
            if len(lows) != 1 or len(highs) != 1 or len(about) != 2:
                return False
            if not self.integers.implied(facts, highs[0] - lows[0]):
                return False
            left = left.difference(about)
        return not left

    def _nonempty(self, t: Term, facts: Facts) -> Term:
        """A case without the axes that it does not vary along, where they have a value at all."""
        used = frozenset().union(*(tm.symbols(x) for f in t.factors for x in tm.sizes(f)))
        for b in t.bound:
            about = [g for g in t.guards if b in tm.symbols(g)]
            lows = [low for g in about if (low := _bound_by(g, b, 1)) is not None]
            highs = [high for g in about if (high := _bound_by(g, b, -1)) is not None]
            if b in used or len(lows) != 1 or len(highs) != 1 or len(about) != 2:
                continue
            rest = t.guards.difference(about)
            if self.integers.implied(facts | rest, highs[0] - lows[0]):
                t = replace(t, bound=tuple(x for x in t.bound if x != b), guards=rest)
        return t

    def applied(self, fn: str, args: tuple[Sum, ...], facts: Facts = frozenset()) -> Sum:
        """A function of simplified arguments, by its laws."""
        known = FUNCTIONS[fn].laws if fn in FUNCTIONS else frozenset()
        same = tm.of(Applied(fn, args))
        found: Sum | None
        if fn == "recip":
            found = logistic.reciprocal(args[0])
            if found is not None:
                return found
            return laws.reciprocal(args[0], self.integers.positive)
        if fn == "rsqrt":
            return laws.reciprocal(tm.of(Applied("sqrt", args)), self.integers.positive)
        if fn == "pow" and (power := tm.is_number(args[1])) is not None:
            found = laws.power(args[0], power)
            return same if found is None else found
        if "sum_to_product" in known:
            found = laws.exponential(fn, args[0])
            return same if found is None else found
        if fn == "minimum" and not any(map(laws.infinite_sign, args)):
            turned = tuple(tm.scaled(a, -1) for a in args)
            return tm.scaled(tm.of(Applied("maximum", turned)), -1)
        if fn == "abs":
            return tm.of(Applied("maximum", (args[0], tm.scaled(args[0], -1))))
        if fn == "maximum":
            alike = monotone.alike(args)
            if alike is not None:
                sign = -1 if alike.turned else 1
                inner = tuple(tm.scaled(x, sign) for x in alike.inner)
                return alike.of(tm.scaled(tm.of(Applied("maximum", inner)), sign))
            found = extremes.maximum(args, lambda s: self.simplify(s, facts))
            if found is not None:
                return found
        if fn == "tanh":
            half = tm.of(Applied("sigmoid", (tm.scaled(args[0], 2),)))
            return tm.scaled(half, 2) + tm.scaled(tm.ONE, -1)
        special = {"sigmoid": logistic.sigmoid, "log": logistic.logarithm, "sqrt": extremes.root,
                   "==0": extremes.zero}  # fmt: skip
        if fn in special and (found := special[fn](args[0])) is not None:
            return found
        if "idempotent" in known and "associative" in known and fn in ("maximum", "minimum"):
            flat = laws.flattened(fn, args)
            return flat[0] if len(flat) == 1 else tm.of(Applied(fn, flat))
        if known & {"odd", "even"} and laws.leads_negative(args[0]):
            opposite = tm.of(Applied(fn, (tm.scaled(args[0], -1),)))
            return tm.scaled(opposite, -1) if "odd" in known else opposite
        return same


def _few(bound: Iterable[str], guards: Guards) -> tuple[str, range] | None:
    """An axis that has a few values only, whatever the sizes, and these."""
    for b in bound:
        lows = [low for g in guards if isinstance(low := _bound_by(g, b, 1), int)]
        highs = [high for g in guards if isinstance(high := _bound_by(g, b, -1), int)]
        if lows and highs and min(highs) - max(lows) < _WRITTEN:
            return b, range(max(lows), min(highs) + 1)
    return None


def _same(a: tuple[Factor, ...], b: tuple[Factor, ...]) -> bool:
    return Counter(spell_factor(f, {}) for f in a) == Counter(spell_factor(f, {}) for f in b)


def _gathered(done: list[Term]) -> Sum:
    """Like terms added up."""
    found: dict[str, Term] = {}
    for t in done:
        text = spell_term(t, {})
        old = found.get(text)
        c = t.coefficient + (old.coefficient if old is not None else 0)
        found[text] = replace(old or t, coefficient=c)
    return tuple(t for t in found.values() if t.coefficient)


def _first_of_few(region: Facts) -> Size | None:
    """axis - its least value, for an axis that has few values left in a region but not one."""
    for g in sorted(region, key=repr):
        for name, low in _solutions(g) if isinstance(g, Poly) else ():
            if isinstance(low, int) and g - Poly.symbol(name) == -low:
                highs = (_bound_by(h, name, -1) for h in region)
                if any(isinstance(high, int) and low < high <= low + _FEW for high in highs):
                    if -g not in region and g - 1 not in region:
                        return g
    return None


# -- guards --------------------------------------------------------------------------------------
def _direction(t: Term, axis: str) -> int:
    """How much more often the indices of a term rise along an axis than they fall."""
    total = 0
    for f in t.factors:
        for size in tm.sizes(f):
            if axis in tm.symbols(size):
                total += sum(c for m, c in Poly.of(size).terms if axis in m)
    return total


def _has_axes(size: Size) -> bool:
    return any(name.startswith("@") for name in tm.symbols(size))


def _always(g: Size) -> bool:
    return isinstance(g, int) and g >= 0


def _shape(g: Size) -> tuple[int, str]:
    return (len(Poly.of(g).terms), repr(g))


def _bound_by(g: Size, axis: str, sign: int) -> Size | None:
    """L where `g >= 0` says axis >= L (sign 1) or axis <= L (sign -1)."""
    if isinstance(g, int) or dict(g.terms).get((axis,)) != sign:
        return None
    rest = g - sign * Poly.symbol(axis)
    if axis in tm.symbols(rest):
        return None
    return -rest if sign == 1 else rest


def _solutions(g: Poly) -> Iterable[tuple[str, Size]]:
    """Axes that `g == 0` determines, each with its value, in the order of their names."""
    rows = [(m[0], c) for m, c in g.terms if len(m) == 1 and abs(c) == 1 and isinstance(m[0], str)]
    for name, c in sorted(rows):
        if name.startswith("@"):
            value = (g - c * Poly.symbol(name)) * -c
            if name not in tm.symbols(value):
                yield name, value


def _mentioned(t: Term) -> frozenset[str]:
    """Every symbol in a term."""
    inner = (size for f in t.factors for size in tm.sizes(f))
    return frozenset().union(*map(tm.symbols, inner), *map(tm.symbols, t.guards))


def _placed(t: Term, name: str, value: Size) -> Term:
    placed = tm.moved_term(t, {name: value})
    return replace(placed, bound=tuple(b for b in placed.bound if b != name))
