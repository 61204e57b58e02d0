"""Reductions, and the forms of them that are recognised.

    sum[j](f * g * …)                  a contraction: pairwise batched matrix products
    sum[j](f if j <= i else 0)         a running sum; max, min and prod likewise
    sum[j](f if d[j] == i else 0)      a scatter: elements of f are added where d says
    sum[j](f if j == e else 0)         f at j = e

A form changes how the value is found, never the value: a guard stays strict, what it hides does
not show, NaN included.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from whet.ir import expr as ex
from whet.ir.expr import ONE, ZERO, Call, Expr, Index, Num, Reduce, Select, free
from whet.ir.interp.contraction import contract, fold
from whet.ir.interp.ring import running
from whet.ir.interp.value import Value, expand, union, where

if TYPE_CHECKING:
    from whet.ir.interp.body import Body


def reduced(body: Body, e: Reduce) -> Value:
    """The value of a reduction."""
    guards, inner = _peel(e)
    factors = [inner]
    if e.kind == "sum":
        if isinstance(inner, Call) and inner.fn in ("+", "-") and _separates(inner):
            left, right = (reduced(body, Reduce("sum", e.axes, _guarded(guards, x, ZERO)))
                           for x in inner.args)  # fmt: skip
            return body.arithmetic(inner.fn, left, right)
        factors = []
        _flatten(inner, factors, guards)
        found = _picked(body, e, factors, guards) or _scattered(body, e, factors, guards)
        if found is not None:
            return found
    return _running(body, e, factors, guards) or _plain(body, e, factors, guards)


# -- taking a body apart ---------------------------------------------------------------------------
def _peel(e: Reduce) -> tuple[list[Expr], Expr]:
    """Conjuncts outside of which the body is the reduction's neutral element, and the body."""
    guards: list[Expr] = []
    inner = e.body
    while isinstance(inner, Select) and _neutral(inner.other, e.kind) and not _bracket(inner):
        guards += _conjuncts(inner.test)
        inner = inner.then
    return guards, inner


def _neutral(e: Expr, kind: str) -> bool:
    return isinstance(e, Num) and e.value == ex.REDUCTIONS[kind]


def _bracket(e: Expr) -> bool:
    return isinstance(e, Select) and e.then == ONE and e.other == ZERO


def _conjuncts(e: Expr) -> Iterator[Expr]:
    if isinstance(e, Call) and e.fn == "and":
        for x in e.args:
            yield from _conjuncts(x)
    else:
        yield e


def _flatten(e: Expr, factors: list[Expr], guards: list[Expr]) -> None:
    """Append the factors of a product, brackets and guarded factors as guards."""
    match e:
        case Call("*", (left, right)):
            _flatten(left, factors, guards)
            _flatten(right, factors, guards)
        case Select(test, then, other) if other == ZERO:
            guards += _conjuncts(test)
            if then != ONE:
                _flatten(then, factors, guards)
        case _:
            factors.append(e)


def _separates(e: Call) -> bool:
    """Whether a sum of terms is cheaper summed term by term: both terms are products."""
    return all(isinstance(x, Call) and x.fn == "*" for x in e.args) and any(
        free(y) < free(x) for x in e.args for y in ex.children(x) if not isinstance(y, Num)
    )


def _guarded(guards: Sequence[Expr], then: Expr, other: Expr) -> Expr:
    for g in guards:
        then = Select(g, then, other)
    return then


def _product(factors: Sequence[Expr]) -> Expr:
    total: Expr = ONE
    for f in factors:
        total = ex.call("*", total, f)
    return total


# -- recognised forms ------------------------------------------------------------------------------
def _picked(body: Body, e: Reduce, factors: Sequence[Expr], guards: Sequence[Expr]) -> Value | None:
    """A guard that fixes a summed axis: its value takes the axis's place."""
    for g in guards:
        if not (isinstance(g, Call) and g.fn == "=="):
            continue
        for axis, at in (g.args, g.args[::-1]):
            if (
                isinstance(axis, Index)
                and axis.name in e.axes
                and not free(at) & set(e.axes)
                and body.integral(at)
            ):
                name, (start, size) = axis.name, body.span[axis.name]
                here = {name: at}
                rest = [ex.substitute(x, here) for x in guards if x is not g]
                rest += [Call("<=", (Num(start), at)), Call("<", (at, Num(start + size)))]
                inner = _guarded(rest, ex.substitute(_product(factors), here), ZERO)
                others = tuple(a for a in e.axes if a != name)
                return body.value(Reduce("sum", others, inner) if others else inner)
    return None


def _running(
    body: Body, e: Reduce, factors: Sequence[Expr], guards: Sequence[Expr]
) -> Value | None:
    """A guard that compares a reduced axis with a free one, both over the same range."""
    for g in guards:
        if not (isinstance(g, Call) and g.fn in ("<", "<=")):
            continue
        a, b = g.args
        if not (isinstance(a, Index) and isinstance(b, Index)):
            continue
        up = a.name in e.axes  # j <= i: what comes before i; i <= j: what comes after
        j, i = (a.name, b.name) if up else (b.name, a.name)
        others = [*factors, *(x for x in guards if x is not g)]
        same = body.span[i] == body.span[j] and j in e.axes and i not in e.axes
        if not same or any(i in free(x) for x in others):
            continue
        left = tuple(x for x in e.axes if x != j)
        rest = [x for x in guards if x is not g]
        v = _plain(body, Reduce(e.kind, left, e.body), factors, rest)
        axes = v.axes if j in v.axes else (*v.axes, j)
        t = expand(v, axes, [body.span[x][1] for x in axes])
        dim = axes.index(j)
        t = t if up else t.flip(dim)
        if t.dtype == torch.bool:
            t = t.to(torch.int64)
        t = (body.ring.running if t.is_floating_point() else running)(e.kind, t, dim)
        if g.fn == "<" and t.shape[dim]:
            first = torch.full_like(t.narrow(dim, 0, 1), body.neutral(e.kind, t))
            t = torch.cat([first, t.narrow(dim, 0, t.shape[dim] - 1)], dim)
        return Value(t if up else t.flip(dim), tuple(i if x == j else x for x in axes))
    return None


def _scattered(
    body: Body, e: Reduce, factors: Sequence[Expr], guards: Sequence[Expr]
) -> Value | None:
    """Guards that fix free axes by values over summed ones: add into the place they name."""
    targets: list[str] = []
    places: list[Expr] = []
    used: list[Expr] = []
    for g in guards:
        if not (isinstance(g, Call) and g.fn == "=="):
            continue
        for axis, at in (g.args, g.args[::-1]):
            others = [*factors, *(x for x in guards if x is not g), at]
            if (
                isinstance(axis, Index)
                and axis.name not in e.axes
                and free(at) & set(e.axes)
                and body.integral(at)
                and not any(axis.name in free(x) for x in others)
            ):
                targets.append(axis.name)
                places.append(at)
                used.append(g)
                break
    if not targets:
        return None
    number, inside = _row_major(body, targets, places)
    rest = [g for g in guards if not any(g is u for u in used)]
    along = set(number.axes)
    summed = tuple(a for a in e.axes if a not in along)
    source = _plain(body, Reduce("sum", summed, e.body), factors, rest)
    return _add_at(body, e.axes, targets, number, inside, source)


def _row_major(body: Body, targets: Sequence[str], places: Sequence[Expr]) -> tuple[Value, Value]:
    """Flat position within the targets' range, and whether it lies inside."""
    number = Value(torch.tensor(0), ())
    inside = Value(torch.tensor(True), ())
    for a, place in zip(targets, places, strict=True):
        start, size = body.span[a]
        at = body.value(place)
        at = Value(at.t.to(torch.int64) - start, at.axes)
        axes = union((number, at))
        inside = Value(
            inside.along(axes) & (at.along(axes) >= 0) & (at.along(axes) < size), axes
        )  # fmt: skip
        number = Value(number.along(axes) * size + at.along(axes), axes)
    return number, inside


def _add_at(
    body: Body, bound: Sequence[str], targets: Sequence[str], number: Value, inside: Value,
    source: Value,
) -> Value:  # fmt: skip
    sizes = [body.span[a][1] for a in targets]
    room = math.prod(sizes)
    everywhere = union((number, source))
    summed = [a for a in everywhere if a in bound]
    kept = [a for a in everywhere if a not in bound]
    bins = torch.where(inside.t, number.t, room)  # what lies outside goes to one bin too many
    at = Value(bins, number.axes)
    t = source.t.to(torch.int64) if source.t.dtype == torch.bool else source.t
    source = Value(t, source.axes)
    full = [body.span[a][1] for a in (*summed, *kept)]
    flat = expand(source, (*summed, *kept), full).reshape(
        math.prod(full[: len(summed)]), math.prod(full[len(summed) :])
    )
    total = flat.new_zeros(room + 1, flat.shape[1])
    if set(number.axes) <= set(summed):
        rows = expand(at, summed, full[: len(summed)]).reshape(-1)
        total.index_add_(0, rows, flat)
    else:
        total.scatter_add_(0, expand(at, (*summed, *kept), full).reshape(flat.shape), flat)
    total = total[:room].reshape([*sizes, *full[len(summed) :]])
    if total.is_floating_point():
        total = body.ring.reduce_sums(total)
    return Value(total, (*targets, *kept))


# -- everything else -------------------------------------------------------------------------------
def _plain(body: Body, e: Reduce, factors: Sequence[Expr], guards: Sequence[Expr]) -> Value:
    """A reduction of no special form over `e.axes`."""
    if e.kind == "sum":
        values = _masked(body, factors, guards)
        return contract(body, values, e.axes)
    whole = factors[0]
    if guards:
        whole = _guarded(guards, whole, Num(ex.REDUCTIONS[e.kind]))
    return fold(body, e.kind, body.value(whole), e.axes)


def _masked(body: Body, factors: Sequence[Expr], guards: Sequence[Expr]) -> list[Value]:
    """The values of the factors, zero where a guard is false.

    One factor takes each guard's zeros; that hides the other factors too as long as they are
    finite. Where one is not, the whole product is formed and the guards select in it.
    """
    with body.hiding(bool(guards)):
        values = [body.value(f) for f in factors] or [Value(torch.tensor(1), ())]
    if any(not v.exact for v in values):
        values = [body.lifted(v) for v in values]
    else:
        values = [Value(v.t.to(torch.int64), v.axes) for v in values]
    tests: list[Value] = []
    for guard in guards:
        with body.hiding(bool(tests)):  # a guard may load what only an earlier one lets it see
            tests.append(body.value(guard))
    if not tests:
        return values
    zero = Value(values[0].t.new_zeros(()), ())
    if len(values) > 1 or any(not set(t.axes) <= set(values[0].axes) for t in tests):
        if not all(v.exact or body.ring.finite(v.t) for v in values):
            whole = values[0]
            for v in values[1:]:
                whole = body.arithmetic("*", whole, v)
            for test in tests:
                whole = where(test, whole, zero)
            return [whole]
    chosen: dict[int, Value] = {}
    for test in tests:
        fits = [k for k, v in enumerate(values) if set(test.axes) <= set(v.axes)]
        if not fits:
            one = Value(values[0].t.new_ones(()), ())
            values.append(where(test, one, zero))
            continue
        k = min(fits, key=lambda k: values[k].t.numel())
        chosen[k] = body.both(chosen[k], test) if k in chosen else test
    for k, test in chosen.items():
        values[k] = where(test, values[k], zero)
    return values
