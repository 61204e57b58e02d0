"""The normal form: what a guarded sum of products looks like after all that is known was used.

Of each term, in this order and until nothing changes:

    impossible guards           the term goes
    x == y among the guards     one stands for the other
    guards that others imply    go
    a bound axis with one value     is replaced by it; one with a single lower bound starts at 0
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
from whet.rewrite import laws
from whet.rewrite import terms as tm
from whet.rewrite.integers import Facts, Integers, negation
from whet.rewrite.reading import Unreadable
from whet.rewrite.spelling import spell, spell_factor, spell_term
from whet.rewrite.terms import Applied, Case, Element, Factor, Fold, Guards, Scalar, Sum, Term

_ROUNDS = 1_000
_FEW = 4
_STEPS = 100


@dataclass
class Normal:
    """Simplifies under fixed assumptions; `rounds` bounds the work, deterministically."""

    integers: Integers
    rounds: int = _ROUNDS

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
            elif spell(self.simplify(a, region)) != spell(self.simplify(b, region)):
                value = _first_of_few(region)
                if value is None:
                    return region
                regions += [region | {value, -value}, region | {value - 1}]
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
            cut = self._cut(frozenset().union(*map(tm.open_guards, tidy.factors)), facts)
            if cut is not None:
                work += [
                    replace(tidy, guards=tidy.guards | {cut}),
                    replace(tidy, guards=tidy.guards | {negation(cut)}),
                ]
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
        return _gathered(done)

    def tidy(self, t: Term, known: Facts) -> Term | None:
        """`t` with its guards minimal and its bound axes in place; None if it is always 0."""
        for _ in range(_STEPS):
            t = replace(t, guards=frozenset(g for g in t.guards if not _always(g)))
            if t.coefficient == 0 or not self.integers.feasible(known | t.guards):
                return None
            again = self._solved(t, known) or self._shifted(t, known)
            if again is None:
                return replace(t, guards=self._needed(t.guards, known))
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
            if len(lows) == 1 and lows[0] != 0 and not tm.symbols(lows[0]) & set(t.bound):
                return tm.moved_term(t, {b: Poly.symbol(b) + lows[0]})
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
                return self.applied(fn, tuple(self.simplify(a, facts) for a in args))

    def fold(self, f: Fold, facts: Facts) -> Sum:
        """A reduction: its cases split, emptied of what is neutral, tidied."""
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
            tidy = self.tidy(Term(Fraction(1), c.bound, c.guards, (wrapped,)), facts)
            if tidy is None:
                continue
            moved = tidy.factors[0]
            assert isinstance(moved, Applied)
            done.append(Case(tidy.bound, tidy.guards, moved.args[0]))
        if not done:
            return tm.ONE if neutral is None else tm.number(neutral * math.inf)
        if len(done) == 1 and not (done[0].bound or done[0].guards):
            return done[0].body
        return tm.of(Fold(f.kind, tuple(done)))

    def applied(self, fn: str, args: tuple[Sum, ...]) -> Sum:
        """A function of simplified arguments, by its laws."""
        known = FUNCTIONS[fn].laws if fn in FUNCTIONS else frozenset()
        same = tm.of(Applied(fn, args))
        if fn == "recip":
            return laws.reciprocal(args[0], self.integers.positive)
        if fn == "rsqrt":
            return laws.reciprocal(tm.of(Applied("sqrt", args)), self.integers.positive)
        if fn == "pow" and (power := tm.is_number(args[1])) is not None:
            found = laws.power(args[0], power)
            return same if found is None else found
        if "sum_to_product" in known:
            found = laws.exponential(fn, args[0])
            return same if found is None else found
        if "idempotent" in known and "associative" in known and fn in ("maximum", "minimum"):
            flat = laws.flattened(fn, args)
            return flat[0] if len(flat) == 1 else tm.of(Applied(fn, flat))
        if known & {"odd", "even"} and laws.leads_negative(args[0]):
            opposite = tm.of(Applied(fn, (tm.scaled(args[0], -1),)))
            return tm.scaled(opposite, -1) if "odd" in known else opposite
        return same


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
