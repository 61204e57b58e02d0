"""Regions: the box of a buffer that accesses within a loop touch.

    Region = (Span, …)                    one for each dim
    Span   = low, size                    low: an expression over the loop's own and outer variables

Inner loops are taken by their bounds, so a span is as wide as it can ever get; its end may reach
past the buffer, and where conditions guard the accesses, so may its beginning. A dim whose index is
not affine, or is read through differing indices, is spanned whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from whet.ir import expr as ex
from whet.ir.expr import Call, Expr, Index, Num
from whet.kernel.affine import Domain, Form, bounds, build, form, limits, simplify
from whet.kernel.legal import around, refuse
from whet.kernel.loops import Access, Extent, If, Loop, Stmt

Low = tuple[Form, float, float]


@dataclass(frozen=True, slots=True)
class Span:
    """`size` elements from `low` on."""

    low: Expr
    size: int


def region(touched: Sequence[Access], sizes: Sequence[int], outer: Domain) -> tuple[Span, ...]:
    """The smallest box within the buffer that is known to hold all accesses.

    Args:
        touched: of one buffer, within the loops of `outer`.
        sizes: the buffer's.
        outer: loops up to and with the one that the box is for.
    """
    found = []
    for d, n in enumerate(sizes):
        span = _span(touched, d, outer)
        found.append(Span(Num(0), n) if span is None or span.size >= n else span)
    return tuple(found)


def reach(touched: Sequence[Access], rank: int, outer: Domain) -> tuple[Span, ...] | None:
    """The box that holds all accesses, outside of the buffer too; None where it is not known."""
    spans = [_span(touched, d, outer) for d in range(rank)]
    return None if None in spans else tuple(s for s in spans if s is not None)


def _span(touched: Sequence[Access], dim: int, outer: Domain) -> Span | None:
    base: Form | None = None
    least, greatest = math.inf, -math.inf
    for a in touched:
        domain = around(a.path)
        fixed: dict[Expr, int] = {}
        inner: dict[Expr, int] = {}
        f = form(a.index[dim], domain)
        for atom, c in f.terms.items():
            used = ex.free(atom)
            if used & outer.keys() and used - outer.keys():
                return None
            (fixed if used <= outer.keys() else inner)[atom] = c
        low, high = limits(Form(inner, f.constant), domain)
        if base is not None and base.terms != fixed:
            return None
        base = Form(fixed, 0)
        least, greatest = min(least, low), max(greatest, high)
    if base is None or math.isinf(least) or math.isinf(greatest):
        return None
    if any(True for atom in base.terms for _ in ex.loads(atom)):
        return None
    low_form = base.plus(Form({}, int(least)))
    return Span(build(low_form, outer), int(greatest - least) + 1)


def extent(span: Span, size: int, domain: Domain) -> Extent:
    """How far a loop over a span may go without leaving a dim of `size` elements."""
    last = ex.call("+", span.low, Num(span.size - 1))
    if bounds(last, domain)[1] < size:
        return span.size
    left = ex.call("-", Num(size), span.low)
    found = simplify(Call("minimum", (Num(span.size), left)), domain)
    return found.value if isinstance(found, Num) and isinstance(found.value, int) else found


def before(span: Span, at: Expr, domain: Domain) -> Expr | None:
    """The condition that `low + at` is not negative, where that is not known."""
    if bounds(span.low, domain)[0] >= 0:
        return None
    return Call("<=", (Num(0), ex.call("+", span.low, at)))


def guarded(tests: Iterable[Expr | None], body: tuple[Stmt, ...]) -> tuple[Stmt, ...]:
    """Statements under the conditions there are."""
    for t in tests:
        if t is not None:
            body = (If(t, body),)
    return body


def shifted(index: Sequence[Expr], spans: Sequence[Span]) -> tuple[Expr, ...]:
    """An index into a buffer as one into its region."""
    return tuple(ex.call("-", i, s.low) if s.low != Num(0) else i
                 for i, s in zip(index, spans, strict=True))  # fmt: skip


def box(
    prefix: str, spans: Sequence[Span], sizes: Sequence[int], domain: Domain
) -> tuple[list[tuple[str, Extent]], tuple[Expr, ...], list[Expr | None]]:
    """Loops over a region: (variable, extent) outermost first, the places, and their conditions."""
    loops: list[tuple[str, Extent]] = []
    places: list[Expr] = []
    tests: list[Expr | None] = []
    for d, (span, size) in enumerate(zip(spans, sizes, strict=True)):
        if span.size == 1:
            places.append(Num(0))
        else:
            loops.append((f"{prefix}_{d}", extent(span, size, domain)))
            places.append(Index(f"{prefix}_{d}"))
        tests.append(before(span, places[-1], domain))
    return loops, tuple(places), tests


def nested(loops: Iterable[tuple[str, Extent]], body: tuple[Stmt, ...]) -> tuple[Stmt, ...]:
    """Loops around statements."""
    for var, size in reversed(list(loops)):
        body = (Loop(var, size, body),)
    return body


@dataclass(frozen=True, slots=True)
class Digit:
    """A loop whose variable is a digit of an index: worth `step`, below `extent` at most."""

    var: str
    step: int
    extent: int


def digits(index: Sequence[Expr], domain: Domain, buffer: str) -> list[list[Digit]]:
    """Each dim's index as a number in mixed radix over loops of its own, lowest digit first.

    `4*g + c` with c below 4 has the digits c and g. Refuses an index that is no such number.
    """
    found: list[list[Digit]] = []
    seen: set[str] = set()
    for e in index:
        f = form(e, domain)
        dim: list[Digit] = []
        step = 1
        for atom, c in sorted(f.terms.items(), key=lambda t: t[1]):
            n = domain.get(atom.name) if isinstance(atom, Index) else None
            if not isinstance(atom, Index) or c != step or atom.name in seen or f.constant:
                raise refuse("index", buffer=buffer)
            if n is None:
                raise refuse("index", buffer=buffer)
            if not isinstance(n, int):
                most = bounds(n, domain)[1]
                if math.isinf(most):
                    raise refuse("extent", loop=atom.name, buffer=buffer)
                n = int(most)
            seen.add(atom.name)
            dim.append(Digit(atom.name, step, n))
            step *= n
        found.append(dim)
    return found


def taken_apart(e: Expr, dim: Sequence[Digit]) -> dict[str, Expr]:
    """The digits' variables where the number is `e`."""
    values: dict[str, Expr] = {}
    for place, d in enumerate(dim):
        value = ex.call("//", e, Num(d.step))
        values[d.var] = value if place == len(dim) - 1 else ex.call("%", value, Num(d.extent))
    return values
