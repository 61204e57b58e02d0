"""Laws of scalar functions, as rewrites of guarded sums of products.

    1/(a*b) = 1/a * 1/b          exp(a + b) = exp(a) * exp(b)    max(max(a, b), c) = max(a, b, c)
    exp(log(a)) = a              exp(-log(a)) = 1/a
    x**2 = x*x, x**0.5 = sqrt    exp(a) * exp(-a) = 1            n * (1/n) = 1 for sizes n

Which law a function obeys is said by `whet.ir.functions`; what it means is said here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from fractions import Fraction

from whet.ir.types import Poly, Size
from whet.rewrite import terms as tm
from whet.rewrite.spelling import spell, spell_factor, spell_term
from whet.rewrite.terms import Applied, Factor, Scalar, Sum, Term


def reciprocal(s: Sum, positive: frozenset[str]) -> Sum:
    """1 / s: of a product the product, numbers and common factors drawn out."""
    value = tm.is_number(s)
    if value:
        return tm.number(1 / value)
    if len(s) == 1 and not (s[0].bound or s[0].guards):
        total = tm.number(1 / s[0].coefficient)
        if len(s[0].factors) == 1 and s[0].coefficient == 1 and not _invertible(s[0].factors[0]):
            return tm.of(Applied("recip", (s,)))
        for f in s[0].factors:
            total = tm.times(total, _inverse(f))
        return total
    shared = common(s)
    scale = s[0].coefficient if len(s) == 1 else Fraction(1)
    if s and (shared or scale != 1):
        rest = tuple(
            replace(t, coefficient=t.coefficient / scale, factors=without(t.factors, shared))
            for t in s
        )
        total = tm.times(tm.number(1 / scale), tm.of(Applied("recip", (rest,))))
        for f in shared:
            total = tm.times(total, _inverse(f))
        return total
    return tm.of(Applied("recip", (s,)))


def _invertible(f: Factor) -> bool:
    return isinstance(f, Applied) and f.fn in ("exp", "recip")


def _inverse(f: Factor) -> Sum:
    if isinstance(f, Applied) and f.fn == "recip":
        return f.args[0]
    if isinstance(f, Applied) and f.fn == "exp":
        return tm.of(Applied("exp", (tm.scaled(f.args[0], -1),)))
    return tm.of(Applied("recip", (tm.of(f),)))


def common(s: Sum) -> list[Factor]:
    """Factors that stand in every term and depend on no bound axis."""
    shared: Counter[str] | None = None
    found: dict[str, Factor] = {}
    for t in s:
        free = [f for f in t.factors if not tm.mentions(f, frozenset(t.bound))]
        texts = [spell_factor(f, {}) for f in free]
        found.update(zip(texts, free, strict=True))
        shared = Counter(texts) if shared is None else shared & Counter(texts)
    return [found[text] for text in (shared or Counter()).elements()]


def without(factors: tuple[Factor, ...], gone: Iterable[Factor]) -> tuple[Factor, ...]:
    """Factors but for some of them, each as often as it is given."""
    left = Counter(spell_factor(f, {}) for f in gone)
    kept = []
    for f in factors:
        text = spell_factor(f, {})
        if left[text]:
            left[text] -= 1
        else:
            kept.append(f)
    return tuple(kept)


def power(s: Sum, power: Fraction) -> Sum | None:
    """A whole or half power, or None where no law says what it is."""
    if power == Fraction(1, 2):
        return tm.of(Applied("sqrt", (s,)))
    if power == Fraction(-1, 2):
        return tm.of(Applied("recip", (tm.of(Applied("sqrt", (s,))),)))
    if power == -1:
        return tm.of(Applied("recip", (s,)))
    if power.denominator == 1 and 0 <= power <= 4:
        total = tm.ONE
        for _ in range(int(power)):
            total = tm.times(total, s)
        return total
    return None


def exponential(fn: str, s: Sum) -> Sum | None:
    """f(a + b) = f(a) * f(b); f(0) = 1; f(-inf) = 0."""
    if infinite_sign(s) == -1:
        return tm.NOTHING
    if any(_infinite(f) for t in s for f in t.factors):
        return None
    total = tm.ONE
    for t in s:
        total = tm.times(total, _raised(fn, t))
    return total


def _raised(fn: str, t: Term) -> Sum:
    """f of a term; exp(n * log(a)) is a, n times, or 1/a: unless a is an extremum, as what sums are
    shifted by is, which stays an exponent for shifts to be told from."""
    n, known = t.coefficient, not (t.bound or t.guards) and len(t.factors) == 1
    f = t.factors[0] if known else None
    if fn == "exp" and isinstance(f, Applied) and f.fn == "log" and abs(n) in (1, 2, 3):
        if n < 0 and any(isinstance(x, tm.Fold) for a in f.args[0] for x in a.factors):
            return tm.of(Applied(fn, ((t,),)))
        found, one = tm.ONE, f.args[0] if n > 0 else tm.of(Applied("recip", f.args))
        for _ in range(abs(int(n))):
            found = tm.times(found, one)
        return found
    return tm.of(Applied(fn, ((t,),)))


def flattened(fn: str, args: tuple[Sum, ...]) -> tuple[Sum, ...]:
    """Arguments of an associative and idempotent function: nested ones too, each once."""
    found: dict[str, Sum] = {}
    work = list(args)
    while work:
        a = work.pop()
        inner = a[0].factors[0] if len(a) == 1 and len(a[0].factors) == 1 else None
        plain = inner is not None and a == tm.of(inner)
        if plain and isinstance(inner, Applied) and inner.fn == fn:
            work += inner.args
        else:
            found.setdefault(spell(a), a)
    return tuple(found[text] for text in sorted(found))


def leads_negative(s: Sum) -> bool:
    """Whether the first term, in the order of texts, has a negative coefficient."""
    texts = sorted((spell_term(t, {}), t.coefficient) for t in s)
    return bool(texts) and texts[0][1] < 0


def _infinite(f: Factor) -> bool:
    return isinstance(f, Applied) and f.fn == "inf"


def infinite_sign(s: Sum) -> int:
    """-1 or 1 for an infinite number, 0 for anything else."""
    if len(s) == 1 and s[0].factors == (tm.INFINITY,) and not s[0].guards:
        return -1 if s[0].coefficient < 0 else 1
    return 0


def combined(factors: tuple[Factor, ...], positive: frozenset[str]) -> tuple[Factor, ...]:
    """f(a) * f(b) = f(a + b) where a and b differ by a number only; n * (1/n) = 1 for sizes."""
    powers: dict[str, tuple[Term, Fraction]] = {}
    scalars: Counter[Size] = Counter()
    kept: list[Factor] = []
    for f in factors:
        match f:
            case Applied("exp", ((t,),)):
                text = spell_term(t, {})
                old = powers[text][1] if text in powers else Fraction(0)
                powers[text] = (t, old + t.coefficient)
            case Scalar(Poly() as n) if n.symbols() <= positive:
                scalars[n] += 1
            case Applied("recip", ((Term(Fraction(), (), guards, (Scalar(n),)) as t,),)) if (
                t.coefficient == 1 and not guards and tm.symbols(n) <= positive
            ):
                scalars[n] -= 1
            case _:
                kept.append(f)
    for t, power in powers.values():
        if power:
            kept.append(Applied("exp", ((replace(t, coefficient=power),),)))
    for size, times in scalars.items():
        one: Factor = Scalar(size) if times > 0 else Applied("recip", (tm.of(Scalar(size)),))
        kept += [one] * abs(times)
    return tuple(kept)
