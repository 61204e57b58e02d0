"""max, min, abs and square roots: one form for all that they can be written as.

    max(a, b, …) = a + k * max(0, (b - a)/k, …)       k > 0; of all such forms the one of least text
    max(a + max(b, c), d) = max(a + b, a + c, d)
    min(a, b) = -max(-a, -b)      abs(a) = max(a, -a)      max(a, 0)**2 = a * max(a, 0)
    max over i of (a + b[i]) = a + max over i of b[i]          likewise numbers > 0 drawn out
    max(max over i of b[i], a) = one max over both             and within each other
    [a < 0] * a = a - max(a, 0)
    sqrt(a)**2 = a for a >= 0      sqrt(a*a) = abs(a)      sqrt(4*a + 4*b) = 2 * sqrt(a + b)

All hold for real numbers; where an argument may be infinite, none is used.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from math import gcd, isqrt, lcm

from whet.ir.types import Poly
from whet.rewrite import terms as tm
from whet.rewrite.spelling import spell, spell_term
from whet.rewrite.terms import Applied, Case, Factor, Fold, Scalar, Sum, Term

_WIDEST = 8
_LARGEST_ROOT = 100
Tidied = Callable[[Sum], Sum]


def maximum(args: Sequence[Sum], tidied: Tidied) -> Sum | None:
    """The canonical form of a maximum; None where it cannot be had."""
    if any(_infinite(a) for a in args):
        return None
    flat = _spread(args, tidied)
    if flat is None:
        return None
    folded = next((f for a in flat if (f := _inner(a, Fold)) is not None), None)
    if folded is not None:
        return _into_fold(flat)
    best: tuple[str, Sum, Fraction, list[Sum]] | None = None
    for base in flat:
        gaps = [tidied(a + tm.scaled(base, -1)) for a in flat]
        scale = max((abs(t.coefficient) for g in gaps for t in g), default=Fraction(0))
        if not scale:
            return base
        if all(nonnegative(g) for g in gaps) and len(flat) == 2:
            return next(a for a in flat if a is not base)
        if len(flat) == 2 and all(nonnegative(tm.scaled(g, -1)) for g in gaps):
            return base
        scaled = sorted((tm.scaled(g, 1 / scale) for g in gaps), key=spell)
        text = "; ".join(map(spell, scaled))
        if best is None or text < best[0] or (text == best[0] and not base):
            best = (text, base, scale, scaled)
    assert best is not None
    _, base, scale, scaled = best
    return base + tm.scaled(tm.of(Applied("maximum", tuple(scaled))), scale)


def _spread(args: Sequence[Sum], tidied: Tidied) -> list[Sum] | None:
    """Arguments with maxima in them distributed, each once."""
    found: dict[str, Sum] = {}
    work = list(args)
    while work:
        a = work.pop()
        at = next((t for t in a if t.coefficient > 0 and _plain(t) and _is_max(t.factors[0])), None)
        if at is None:
            found.setdefault(spell(a), a)
        else:
            rest = tuple(t for t in a if t is not at)
            inner = at.factors[0]
            assert isinstance(inner, Applied)
            work += [tidied(rest + tm.scaled(x, at.coefficient)) for x in inner.args]
        if len(found) + len(work) > _WIDEST:
            return None
    return [found[text] for text in sorted(found)]


def _plain(t: Term) -> bool:
    return not (t.bound or t.guards) and len(t.factors) == 1


def _is_max(f: Factor) -> bool:
    return isinstance(f, Applied) and f.fn == "maximum"


def _inner(s: Sum, kind: type[Fold]) -> Term | None:
    """A term that is a maximum over indices, times a positive number."""
    return next(
        (t for t in s if _plain(t) and t.coefficient > 0 and isinstance(t.factors[0], kind)
         and t.factors[0].kind == "max"), None,
    )  # fmt: skip


def _into_fold(flat: Sequence[Sum]) -> Sum:
    cases: list[Case] = []
    for a in flat:
        cases += _cases(Case((), frozenset(), a))
    return tm.of(Fold("max", tuple(cases)))


def _cases(c: Case) -> list[Case]:
    """A case with maxima at the root of its body taken apart."""
    at = _inner(c.body, Fold)
    if at is not None:
        rest = tuple(t for t in c.body if t is not at)
        fold = at.factors[0]
        assert isinstance(fold, Fold)
        found: list[Case] = []
        for inner in fold.cases:
            (moved,) = tm.refresh((Term(Fraction(1), inner.bound, inner.guards,
                                        (Applied("body", (inner.body,)),)),))  # fmt: skip
            wrapped = moved.factors[0]
            assert isinstance(wrapped, Applied)
            body = rest + tm.scaled(wrapped.args[0], at.coefficient)
            found += _cases(Case(c.bound + moved.bound, c.guards | moved.guards, body))
        return found
    top = next(
        (t for t in c.body if _plain(t) and t.coefficient > 0 and _is_max(t.factors[0])), None
    )
    if top is None:
        return [c]
    rest = tuple(t for t in c.body if t is not top)
    inner_max = top.factors[0]
    assert isinstance(inner_max, Applied)
    return [Case(c.bound, c.guards, rest + tm.scaled(x, top.coefficient)) for x in inner_max.args]


def spread_cases(cases: Sequence[Case]) -> list[Case] | None:
    """Cases of a maximum with maxima inside them taken apart; None where there are none."""
    found = [x for c in cases for x in _cases(c)]
    return found if len(found) != len(cases) else None


def drawn_out(cases: Sequence[Case]) -> tuple[Sum, Fraction, list[Case]]:
    """(what is added, what is multiplied, the rest) of a maximum over indices."""
    if any(_infinite(c.body) or not c.body for c in cases):
        return tm.NOTHING, Fraction(1), list(cases)
    shared: Counter[tuple[str, Fraction]] | None = None
    terms: dict[tuple[str, Fraction], Term] = {}
    for c in cases:
        here: Counter[tuple[str, Fraction]] = Counter()
        for t in c.body:
            inside = frozenset(c.bound)
            if any(tm.mentions(f, inside) for f in t.factors) or _guarded_by(t, inside):
                continue
            key = (spell_term(t, {}), t.coefficient)
            terms.setdefault(key, t)
            here[key] += 1
        shared = here if shared is None else shared & here
    common = set(shared or ())
    if len(cases) == 1 and not cases[0].bound:
        common = set()
    added = tuple(terms[k] for k in sorted(common))
    rest = [
        replace(
            c, body=tuple(t for t in c.body if (spell_term(t, {}), t.coefficient) not in common)
        )
        for c in cases
    ]
    scale = max((abs(t.coefficient) for c in rest for t in c.body), default=Fraction(1))
    return added, scale, [replace(c, body=tm.scaled(c.body, 1 / scale)) for c in rest]


def _guarded_by(t: Term, axes: frozenset[str]) -> bool:
    return any(tm.symbols(g) & axes for g in t.guards)


# -- signs -----------------------------------------------------------------------------------------
def nonnegative(s: Sum) -> bool:
    """Whether a sum is certainly not negative."""
    return all(t.coefficient > 0 and _nonnegative(t.factors) for t in s)


def _nonnegative(factors: Sequence[Factor]) -> bool:
    odd = [f for f, n in Counter(factors).items() if n % 2]
    return all(certainly_positive(f) or _is_zero_max(f) for f in odd)


def positive(s: Sum) -> bool:
    """Whether a sum is certainly positive."""
    return bool(s) and all(t.coefficient > 0 and all(map(certainly_positive, t.factors)) for t in s)


def certainly_positive(f: Factor) -> bool:
    """Whether a factor is certainly positive."""
    if isinstance(f, Applied):
        if f.fn in ("exp", "exp2", "sigmoid"):
            return True
        return f.fn in ("recip", "sqrt") and positive(f.args[0])
    if isinstance(f, Scalar):
        return isinstance(f.size, Poly) and all(c > 0 for _, c in f.size.terms) and all(
            str(x).isupper() for x in f.size.symbols())  # fmt: skip
    return False


def _is_zero_max(f: Factor) -> bool:
    return isinstance(f, Applied) and f.fn == "maximum" and any(not a for a in f.args)


def _infinite(s: Sum) -> bool:
    return any(f == tm.INFINITY for t in s for f in t.factors) or any(
        isinstance(f, Fold) and any(_infinite(c.body) for c in f.cases)
        for t in s
        for f in t.factors
    )


# -- powers ----------------------------------------------------------------------------------------
def squared(factors: Sequence[Factor]) -> Sum | None:
    """Factors with a square, or a number and its sign, in another form; None without one."""
    for f in factors:
        if isinstance(f, Applied) and f.fn == "<0":
            signed = _signed(f, factors)
            if signed is not None:
                return signed
    for f, n in Counter(factors).items():
        if n < 2 or not isinstance(f, Applied):
            continue
        instead: Sum | None = None
        if f.fn == "maximum" and len(f.args) == 2 and any(not a for a in f.args):
            other = next(a for a in f.args if a)
            instead = tm.times(other, tm.of(f))
        elif f.fn == "sqrt" and nonnegative(f.args[0]):
            instead = f.args[0]
        if instead is not None:
            rest = list(factors)
            rest.remove(f)
            rest.remove(f)
            return tm.times((Term(Fraction(1), factors=tuple(rest)),), instead)
    return None


def _signed(test: Applied, factors: Sequence[Factor]) -> Sum | None:
    """[a < 0] * a as a - max(a, 0)."""
    s = test.args[0]
    if len(s) != 1 or not _plain(s[0]) or s[0].factors[0] not in factors:
        return None
    a, rest = s[0].factors[0], list(factors)
    rest.remove(test)
    rest.remove(a)
    above = tm.of(Applied("maximum", (tm.of(a), tm.NOTHING)))
    below = tm.of(a) + tm.scaled(above, -1)
    found = below if s[0].coefficient > 0 else above
    return tm.times((Term(Fraction(1), factors=tuple(rest)),), found)


def root(s: Sum) -> Sum | None:
    """sqrt of a product of squares; of a sum, with the squares in its coefficients drawn out."""
    if len(s) > 1:
        square = _square_content([t.coefficient for t in s])
        if square == 1:
            return None
        return tm.scaled(tm.of(Applied("sqrt", (tm.scaled(s, 1 / square**2),))), square)
    if len(s) != 1 or s[0].bound or s[0].guards or s[0].coefficient <= 0:
        return None
    c, total = s[0].coefficient, tm.ONE
    up, down = isqrt(c.numerator), isqrt(c.denominator)
    counts = Counter(s[0].factors)
    if (
        up * up != c.numerator
        or down * down != c.denominator
        or any(n % 2 for n in counts.values())
    ):
        return None
    for f, n in counts.items():
        for _ in range(n // 2):
            total = tm.times(total, tm.of(Applied("abs", (tm.of(f),))))
    return tm.scaled(total, Fraction(up, down))


def _square_content(coefficients: Sequence[Fraction]) -> Fraction:
    """The largest n (of numbers without large prime factors) whose square divides them all."""
    top = gcd(*(c.numerator for c in coefficients))
    bottom = lcm(*(c.denominator for c in coefficients))
    return Fraction(_square_root_part(top), _square_root_part(bottom))


def _square_root_part(n: int) -> int:
    found = 1
    for p in range(2, _LARGEST_ROOT):
        while n > 1 and n % (p * p) == 0:
            n //= p * p
            found *= p
    return found


def zero(s: Sum) -> Sum | None:
    """[a == 0] of a truth value a, which is 0 or 1, as 1 - a."""
    truth = len(s) == 1 and s[0].coefficient == 1 and _plain(s[0]) and s[0].factors[0]
    if isinstance(truth, Applied) and truth.fn in ("<0", "==0"):
        return tm.ONE + tm.scaled(s, -1)
    return None
