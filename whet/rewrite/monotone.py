"""A function that never falls, of a maximum: max(c*f(a) + d, c*f(b) + d, …) has the f outside.

    c > 0    c * f(max(a, b, …)) + d          c < 0    c * f(-max(-a, -b, …)) + d

For exp, which the normal form has as products, f(a) stands for exp(a1) * exp(a2) * … where a is
a1 + a2 + …. A maximum over no index at all is -inf and none of f's values: over indices the law
holds only where there are some, which the caller says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from whet.ir.functions import FUNCTIONS
from whet.rewrite import terms as tm
from whet.rewrite.terms import Applied, Sum


@dataclass(frozen=True, slots=True)
class Alike:
    """Sums that are all c * f(…) + d.

    Attributes:
        inner: what f is applied to in each.
    """

    fn: str
    coefficient: Fraction
    added: Sum
    inner: tuple[Sum, ...]

    @property
    def turned(self) -> bool:
        """Whether the maximum is where f is least."""
        return self.coefficient < 0

    def of(self, value: Sum) -> Sum:
        """c * f(value) + d."""
        return tm.scaled(tm.of(Applied(self.fn, (value,))), self.coefficient) + self.added


def alike(sums: Sequence[Sum]) -> Alike | None:
    """Sums as one monotone function of others; None where they are not."""
    found: list[tuple[str, Fraction, Sum, Sum]] = []
    for s in sums:
        one = _applied(s)
        if one is None or (found and one[:3] != found[0][:3]):
            return None
        found.append(one)
    if not found:
        return None
    fn, coefficient, added, _ = found[0]
    return Alike(fn, coefficient, added, tuple(x[3] for x in found))


def _applied(s: Sum) -> tuple[str, Fraction, Sum, Sum] | None:
    added = tuple(t for t in s if not (t.factors or t.bound or t.guards))
    rest = [t for t in s if t not in added]
    if len(rest) != 1 or rest[0].bound or rest[0].guards:
        return None
    (t,) = rest
    first = t.factors[0]
    if not isinstance(first, Applied) or len(first.args) != 1 or first.fn not in FUNCTIONS:
        return None
    laws = FUNCTIONS[first.fn].laws
    if "monotone" not in laws or (len(t.factors) > 1 and "sum_to_product" not in laws):
        return None
    inner: Sum = ()
    for f in t.factors:
        if not isinstance(f, Applied) or f.fn != first.fn:
            return None
        inner += f.args[0]
    return first.fn, t.coefficient, added, inner
