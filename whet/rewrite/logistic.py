"""The functions made of exp: one form for all that they can be written as.

    1/(1 + exp(a)) = sigmoid(-a)      sigmoid(-a) = 1 - sigmoid(a)
    exp(a) * sigmoid(a) = exp(a) - sigmoid(a)      exp(-a) * sigmoid(a) = 1 - sigmoid(a)
    log(exp(a) * b) = a + log(b)      log(1 + exp(-a)) = log(1 + exp(a)) - a
    a * (1/a) = 1 for sums a > 0      the shares of a whole are 1 together

All hold for real numbers wherever both sides exist.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

from whet.rewrite import laws
from whet.rewrite import terms as tm
from whet.rewrite.extremes import certainly_positive, positive
from whet.rewrite.spelling import spell, spell_factor, spell_term
from whet.rewrite.terms import Applied, Factor, Sum, Term


def reciprocal(s: Sum) -> Sum | None:
    """1 / (c + c*exp(a)) as sigmoid(-a) / c."""
    if len(s) != 2:
        return None
    for one, power in itertools.permutations(s):
        if one.factors or one.bound or one.guards or power.bound or power.guards:
            continue
        if power.coefficient != one.coefficient or not power.factors:
            continue
        if all(isinstance(f, Applied) and f.fn == "exp" for f in power.factors):
            inner: Sum = ()
            for f in power.factors:
                inner += f.args[0]  # type: ignore[union-attr]
            found = tm.of(Applied("sigmoid", (tm.scaled(inner, -1),)))
            return tm.scaled(found, 1 / one.coefficient)
    return None


def sigmoid(s: Sum) -> Sum | None:
    """sigmoid(-a) as 1 - sigmoid(a)."""
    if laws.leads_negative(s):
        return tm.ONE + tm.scaled(tm.of(Applied("sigmoid", (tm.scaled(s, -1),))), -1)
    return None


def logarithm(s: Sum) -> Sum | None:
    """log with powers of e drawn out, and of a product of positive factors the sum."""
    if tm.is_number(s) == 1:
        return tm.NOTHING
    turned = _turned(s)
    if turned is not None:
        return turned
    common = [f for f in laws.common(s) if isinstance(f, Applied) and f.fn == "exp"]
    if common:
        total: Sum = ()
        for f in common:
            total += f.args[0]
        rest = tuple(replace(t, factors=laws.without(t.factors, common)) for t in s)
        return total + tm.of(Applied("log", (rest,)))
    if len(s) == 1 and not (s[0].bound or s[0].guards) and s[0].coefficient == 1:
        t = s[0]
        if len(t.factors) > 1 and all(map(certainly_positive, t.factors)):
            parts = [tm.of(Applied("log", (tm.of(f),))) for f in t.factors]
            return tuple(x for p in parts for x in p)
        one = t.factors[0] if len(t.factors) == 1 else None
        if isinstance(one, Applied) and one.fn == "recip" and positive(one.args[0]):
            return tm.scaled(tm.of(Applied("log", one.args)), -1)
    return None


def _turned(s: Sum) -> Sum | None:
    """log(c + c*exp(-a)) as log(c + c*exp(a)) - a, so that one of the two is never seen."""
    pair = _one_and_power(s)
    if pair is None or not laws.leads_negative(pair[1]):
        return None
    c, power = pair
    raised = tm.of(Applied("exp", (tm.scaled(power, -1),)))
    return power + tm.of(Applied("log", (tm.scaled(tm.ONE + raised, c),)))


def _one_and_power(s: Sum) -> tuple[Fraction, Sum] | None:
    """(c, a) of c + c*exp(a)."""
    if len(s) != 2:
        return None
    for one, power in itertools.permutations(s):
        if one.factors or one.bound or one.guards or power.bound or power.guards:
            continue
        if power.coefficient == one.coefficient and power.factors:
            if all(isinstance(f, Applied) and f.fn == "exp" for f in power.factors):
                inner = (f.args[0] for f in power.factors if isinstance(f, Applied))
                return one.coefficient, tuple(t for a in inner for t in a)
    return None


def multiplied(factors: Sequence[Factor]) -> Sum | None:
    """Factors with exp(n*a) * sigmoid(a), n not 0, with less of it; None without them."""
    powers = {
        spell_term(f.args[0][0], {}): f for f in factors
        if isinstance(f, Applied) and f.fn == "exp" and len(f.args[0]) == 1
    }  # fmt: skip
    for f in factors:
        if not (isinstance(f, Applied) and f.fn == "sigmoid" and f.args[0]):
            continue
        found = [powers.get(spell_term(t, {})) for t in f.args[0]]
        if any(x is None for x in found):
            continue
        ratios = {
            x.args[0][0].coefficient / t.coefficient
            for x, t in zip(found, f.args[0], strict=True) if x is not None
        }  # fmt: skip
        if len(ratios) != 1:
            continue
        (n,) = ratios
        if n.denominator != 1 or not n:
            continue
        rest = laws.without(tuple(factors), [f, *(x for x in found if x is not None)])
        sign = 1 if n > 0 else -1
        less = _power(f.args[0], n - sign)
        own = _power(f.args[0], Fraction(1)) if n > 0 else tm.ONE
        once = tm.times(less, own + tm.scaled(tm.of(f), -1))
        return tm.times((Term(Fraction(1), factors=rest),), once)
    return None


def _power(s: Sum, n: Fraction) -> Sum:
    """exp(n * s), a product over its terms."""
    total = tm.ONE
    for t in s if n else ():
        raised = replace(t, coefficient=t.coefficient * n)
        total = tm.times(total, tm.of(Applied("exp", ((raised,),))))
    return total


def cancelled(s: Sum) -> Sum:
    """A positive sum times its own reciprocal as 1, wherever the terms of the one stand there."""
    inverse: dict[str, tuple[Applied, list[Term]]] = {}
    for t in s:
        for f in t.factors:
            if isinstance(f, Applied) and f.fn == "recip" and positive(f.args[0]):
                if not tm.mentions(f, frozenset(t.bound)):
                    inverse.setdefault(spell_factor(f, {}), (f, []))[1].append(t)
    for f, mine in inverse.values():
        groups = [mine] if len(f.args[0]) > 1 else [[t] for t in mine]
        for group in groups:
            share = _share(f, group)
            if share is not None:
                return cancelled((*(t for t in s if t not in group), share))
    return s


def _share(f: Applied, mine: Sequence[Term]) -> Term | None:
    """What is left of terms that are a sum and its reciprocal `f`, times what they share."""
    bare = tuple(replace(t, factors=laws.without(t.factors, [f])) for t in mine)
    if len(bare) != len(f.args[0]):
        return None
    own = {spell_factor(x, {}) for x in laws.common(f.args[0])}
    shared = [x for x in laws.common(bare) if spell_factor(x, {}) not in own]
    rest = tuple(replace(t, factors=laws.without(t.factors, shared)) for t in bare)
    scale = _scale(rest, f.args[0])
    return Term(scale, factors=tuple(shared)) if scale is not None else None


def _scale(a: Sum, b: Sum) -> Fraction | None:
    """n where a = n * b, if there is such a number."""
    if not a or len(a) != len(b):
        return None
    first = {spell_term(t, {}): t.coefficient for t in b}
    own = first.get(spell_term(a[0], {}))
    n = a[0].coefficient / own if own else None
    return n if n is not None and spell(a) == spell(tm.scaled(b, n)) else None


def _is_plain(t: Term) -> bool:
    return not (t.bound or t.guards) and len(t.factors) == 1
