"""Guarded sums of products: what an element of a tensor is, as the prover sees it.

    Sum     = Term + …
    Term    = coefficient * sum over bound axes of [guards] * Factor * …      guard: size >= 0
    Factor  = Element(tensor, index)            an element of an input
            | Scalar(size)                      a size, an attribute, or a position, as a number
            | Applied(function, (Sum, …))       a scalar function
            | Fold(kind, (Case, …))             max, min or prod over all cases
    Case    = over bound axes where guards hold: Sum

Index arithmetic is polynomial: axes and extents are symbols of `whet.ir.types.Poly`. Bound axes
have names of their own, all different, so substitution cannot capture; a sum that is pulled out of
a factor is renamed first (`refresh`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction

from whet.ir.types import Poly, Size, substitute

Guards = frozenset[Size]
_NUMBER = itertools.count()


def fresh() -> str:
    """A new name for a bound axis."""
    return f"@{next(_NUMBER):08d}"


@dataclass(frozen=True, slots=True)
class Element:
    tensor: str
    index: tuple[Size, ...]


@dataclass(frozen=True, slots=True)
class Scalar:
    size: Size


@dataclass(frozen=True, slots=True)
class Applied:
    fn: str
    args: tuple[Sum, ...]


@dataclass(frozen=True, slots=True)
class Case:
    bound: tuple[str, ...]
    guards: Guards
    body: Sum


@dataclass(frozen=True, slots=True)
class Fold:
    kind: str
    cases: tuple[Case, ...]


Factor = Element | Scalar | Applied | Fold


@dataclass(frozen=True, slots=True)
class Term:
    coefficient: Fraction
    bound: tuple[str, ...] = ()
    guards: Guards = frozenset()
    factors: tuple[Factor, ...] = ()


Sum = tuple[Term, ...]
NOTHING: Sum = ()
ONE: Sum = (Term(Fraction(1)),)
INFINITY = Applied("inf", ())


def number(value: float | Fraction | Poly) -> Sum:
    """A constant, or a size as a number."""
    if isinstance(value, Poly):
        return tuple(
            Term(Fraction(c), factors=tuple(Scalar(Poly({(atom,): 1})) for atom in monomial))
            for monomial, c in value.terms
        )
    if isinstance(value, float) and math.isinf(value):
        return (Term(Fraction(1 if value > 0 else -1), factors=(INFINITY,)),)
    return (Term(Fraction(value)),) if value else NOTHING


def of(factor: Factor) -> Sum:
    """One factor alone."""
    return (Term(Fraction(1), factors=(factor,)),)


def scaled(s: Sum, by: Fraction | int) -> Sum:
    """`s` times a number."""
    return tuple(replace(t, coefficient=t.coefficient * by) for t in s) if by else NOTHING


def times(a: Sum, b: Sum) -> Sum:
    """The product; bound axes of `b` get new names."""
    b = refresh(b)
    return tuple(
        Term(
            x.coefficient * y.coefficient,
            x.bound + y.bound,
            x.guards | y.guards,
            x.factors + y.factors,
        )
        for x in a
        for y in b
    )


def guarded(s: Sum, guards: Iterable[Size]) -> Sum:
    """`s` where all guards hold, else 0."""
    more = frozenset(guards)
    return tuple(replace(t, guards=t.guards | more) for t in s) if more else s


def summed(s: Sum, axis: str, extent: Size) -> Sum:
    """The sum of `s` over 0 <= axis < extent."""
    inside = within(axis, extent)
    return tuple(replace(t, bound=(*t.bound, axis), guards=t.guards | inside) for t in s)


def within(axis: str, extent: Size) -> Guards:
    """0 <= axis < extent."""
    position = Poly.symbol(axis)
    return frozenset({position, extent - 1 - position})


def refresh(s: Sum) -> Sum:
    """`s` with new names for its bound axes."""
    return tuple(_refresh(t) for t in s)


def _refresh(t: Term) -> Term:
    if not t.bound:
        return t
    names = {b: fresh() for b in t.bound}
    moved = moved_term(t, {old: Poly.symbol(new) for old, new in names.items()})
    return replace(moved, bound=tuple(names.values()))


def moved_term(t: Term, to: Mapping[str, Size]) -> Term:
    """`t` with axes replaced everywhere; its own bound axes stay listed as they are."""
    return Term(
        t.coefficient,
        t.bound,
        frozenset(substitute(g, to) for g in t.guards),
        tuple(moved_factor(f, to) for f in t.factors),
    )


def moved(s: Sum, to: Mapping[str, Size]) -> Sum:
    """`s` with free axes replaced."""
    return tuple(moved_term(t, _outside(t.bound, to)) for t in s) if to else s


def _outside(bound: tuple[str, ...], to: Mapping[str, Size]) -> Mapping[str, Size]:
    return {k: v for k, v in to.items() if k not in bound} if bound else to


def moved_factor(f: Factor, to: Mapping[str, Size]) -> Factor:
    """`f` with free axes replaced."""
    match f:
        case Element(tensor, index):
            return Element(tensor, tuple(substitute(i, to) for i in index))
        case Scalar(size):
            return Scalar(substitute(size, to))
        case Applied(fn, args):
            return Applied(fn, tuple(moved(a, to) for a in args))
        case Fold(kind, cases):
            return Fold(kind, tuple(_moved_case(c, _outside(c.bound, to)) for c in cases))


def _moved_case(c: Case, to: Mapping[str, Size]) -> Case:
    return Case(c.bound, frozenset(substitute(g, to) for g in c.guards), moved(c.body, to))


def symbols(size: Size) -> frozenset[str]:
    """Symbols of a size."""
    return size.symbols() if isinstance(size, Poly) else frozenset()


def mentions(f: Factor, axes: frozenset[str]) -> bool:
    """Whether a factor depends on any of these axes."""
    return any(symbols(size) & axes for size in sizes(f))


def sizes(f: Factor) -> Iterator[Size]:
    """Every index, guard and number inside a factor."""
    match f:
        case Element(_, index):
            yield from index
        case Scalar(size):
            yield size
        case Applied(_, args):
            for a in args:
                for t in a:
                    yield from t.guards
                    for x in t.factors:
                        yield from sizes(x)
        case Fold(_, cases):
            for c in cases:
                yield from c.guards
                for t in c.body:
                    yield from t.guards
                    for x in t.factors:
                        yield from sizes(x)


def open_guards(f: Factor) -> frozenset[Size]:
    """Guards inside a factor that depend on nothing bound in there."""
    match f:
        case Applied(_, args):
            return frozenset(g for a in args for g in _open(a))
        case Fold(_, cases):
            return frozenset(
                g
                for c in cases
                for g in (*c.guards, *_open(c.body))
                if not symbols(g) & frozenset(c.bound)
            )
    return frozenset()


def _open(s: Sum) -> Iterator[Size]:
    for t in s:
        bound = frozenset(t.bound)
        for g in itertools.chain(t.guards, *(open_guards(f) for f in t.factors)):
            if not symbols(g) & bound:
                yield g


def free_guards(s: Sum) -> frozenset[Size]:
    """Guards of a sum, inside factors too, that depend on nothing bound in it."""
    return frozenset(_open(s))


def is_number(s: Sum) -> Fraction | None:
    """The value of a sum that is a plain number."""
    if not s:
        return Fraction(0)
    plain = len(s) == 1 and not (s[0].bound or s[0].guards or s[0].factors)
    return s[0].coefficient if plain else None


def count(s: Sum) -> int:
    """How many terms there are, those inside factors included."""
    total = 0
    for t in s:
        total += 1
        for f in t.factors:
            if isinstance(f, Applied):
                total += sum(map(count, f.args))
            elif isinstance(f, Fold):
                total += sum(count(c.body) for c in f.cases)
    return total


Simplify = Callable[[Sum, Guards], Sum]
