"""Whether a sum is 0 whatever real numbers its parts are: maxima and tests of values, by cases.

    max(a, b)       a where a >= b, else b            [a < 0], [a == 0]      1 or 0
    exp(n*a)        the n-th power of a positive number, one for each a; 1/a and sqrt(a) likewise
    anything else   a real number, one for each text

What follows from this holds for the functions as well: they are some real numbers. A "no" may mean
only that laws of functions are missing.
"""

from __future__ import annotations

from fractions import Fraction

from whet.rewrite import extremes
from whet.rewrite.integers import Reals, Value
from whet.rewrite.spelling import spell, spell_factor, spell_term
from whet.rewrite.terms import INFINITY, Applied, Factor, Fold, Sum, Term

_MOST = 40  # terms
_HIGHEST = 4  # power of e that is taken apart
_TESTS = frozenset({"<0", "==0"})


def vanishes(s: Sum) -> bool:
    """Whether a simplified sum is 0, by cases; False unless there is something to tell apart."""
    if len(s) > _MOST or not any(map(_has_cases, s)) or any(map(_infinite, s)):
        return False
    reals = Reals()
    return reals.always_zero(_sum(s, reals))


def _has_cases(t: Term) -> bool:
    return any(
        isinstance(f, Applied)
        and (f.fn == "maximum" or f.fn in _TESTS or any(_has_cases(x) for a in f.args for x in a))
        for f in t.factors
    )


def _infinite(t: Term) -> bool:
    for f in t.factors:
        if f == INFINITY:
            return True
        inner = f.args if isinstance(f, Applied) else ()
        if isinstance(f, Fold):
            inner = tuple(c.body for c in f.cases)
        if any(_infinite(x) for a in inner for x in a):
            return True
    return False


def _sum(s: Sum, reals: Reals) -> Value:
    return reals.total([_term(t, reals) for t in s])


def _term(t: Term, reals: Reals) -> Value:
    if t.bound or t.guards:
        return reals.product(t.coefficient, [reals.unknown(spell_term(t, {}))])
    return reals.product(t.coefficient, [_factor(f, reals) for f in t.factors])


def _factor(f: Factor, reals: Reals) -> Value:
    if isinstance(f, Applied):
        if f.fn == "maximum":
            return reals.largest([_sum(a, reals) for a in f.args])
        if f.fn in _TESTS:
            return reals.test(f.fn, _sum(f.args[0], reals))
        if f.fn == "exp" and len(f.args[0]) == 1:
            return _power(f.args[0][0], reals)
        if f.fn == "recip" and extremes.positive(f.args[0]):
            return reals.inverse(spell(f.args[0]), _sum(f.args[0], reals))
    return reals.unknown(spell_factor(f, {}), positive=extremes.certainly_positive(f))


def _power(t: Term, reals: Reals) -> Value:
    """exp of a term; of a positive multiple of a maximum, the largest of the powers."""
    if len(t.factors) == 1 and not (t.bound or t.guards) and t.coefficient > 0:
        (f,) = t.factors
        if isinstance(f, Applied) and f.fn == "maximum":
            return reals.largest([_powers(a, t.coefficient, reals) for a in f.args])
    n = t.coefficient
    text = f"exp({spell_term(t, {})})"
    if n.denominator != 1 or abs(n) > _HIGHEST:
        return reals.unknown(f"{text}**{n}", positive=True)
    base = reals.unknown(text, positive=True)
    if n < 0:
        base = reals.inverse(text, base)
    return reals.product(Fraction(1), [base] * abs(int(n)))


def _powers(s: Sum, n: Fraction, reals: Reals) -> Value:
    parts = [Term(t.coefficient * n, t.bound, t.guards, t.factors) for t in s]
    return reals.product(Fraction(1), [_power(t, reals) for t in parts])
