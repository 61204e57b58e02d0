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
from torch import Tensor

from whet.ir import expr as ex
from whet.ir.expr import ONE, ZERO, Call, Expr, Index, Num, Reduce, Select, free
from whet.ir.interp.value import Value, expand, union, where

if TYPE_CHECKING:
    from whet.ir.interp.body import Body

# Elements of a window written out for a matrix product before the work is cut into parts.
LIMIT = 1 << 26


def reduced(body: Body, e: Reduce) -> Value:
    """The value of a reduction."""
    guards, inner = _peel(e)
    factors = [inner]
    if e.kind == "sum":
        if isinstance(inner, Call) and inner.fn in ("+", "-") and _separates(inner, guards):
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


def _separates(e: Call, guards: Sequence[Expr]) -> bool:
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
            if isinstance(axis, Index) and axis.name in e.axes and not free(at) & set(e.axes):
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
        t = body.ring.running(e.kind, t, dim) if t.is_floating_point() else _ints(e.kind, t, dim)
        if g.fn == "<" and t.shape[dim]:
            first = torch.full_like(t.narrow(dim, 0, 1), body.neutral(e.kind, t))
            t = torch.cat([first, t.narrow(dim, 0, t.shape[dim] - 1)], dim)
        return Value(t if up else t.flip(dim), tuple(i if x == j else x for x in axes))
    return None


def _ints(kind: str, t: Tensor, dim: int) -> Tensor:
    from whet.ir.interp.ring import FLOAT64

    return FLOAT64.running(kind, t, dim)


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
    return _fold(body, e.kind, body.value(whole), e.axes)


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
    if len(values) > 1 or any(not set(g.axes) <= set(values[0].axes) for g in tests):
        if not all(v.exact or body.ring.finite(v.t) for v in values):
            whole = values[0]
            for v in values[1:]:
                whole = body.arithmetic("*", whole, v)
            for g in tests:
                whole = where(g, whole, zero)
            return [whole]
    for g in tests:
        fits = [k for k, v in enumerate(values) if set(g.axes) <= set(v.axes)]
        if fits:
            k = min(fits, key=lambda k: values[k].t.numel())
            values[k] = where(g, values[k], zero)
        else:
            one = Value(values[0].t.new_ones(()), ())
            values.append(where(g, one, zero))
    return values


def contract(body: Body, values: Sequence[Value], bound: Sequence[str]) -> Value:
    """The sum over `bound` of the product of `values`, two factors at a time."""
    work = list(values)
    present = union(work)
    times = math.prod(body.span[a][1] for a in bound if a not in present)
    while True:
        work = [_alone(body, work, k, bound) for k in range(len(work))]
        if len(work) == 1:
            break
        pairs = [(i, j) for i in range(len(work)) for j in range(i + 1, len(work))]
        best = min(pairs, key=lambda p: _elements(work, p, bound))
        i, j = best
        kept = _kept(work, best, bound)
        merged = _pair(body, work[i], work[j], kept)
        work = [w for k, w in enumerate(work) if k not in best] + [merged]
    result = work[0]
    if times != 1:
        return body.arithmetic("*", result, Value(torch.tensor(times), ()))
    return result


def _alone(body: Body, work: Sequence[Value], k: int, bound: Sequence[str]) -> Value:
    """Factor `k`, summed over the axes that no other factor has."""
    others = {a for n, v in enumerate(work) if n != k for a in v.axes}
    return _fold(body, "sum", work[k], [a for a in bound if a in work[k].axes and a not in others])


def _kept(work: Sequence[Value], pair: tuple[int, int], bound: Sequence[str]) -> tuple[str, ...]:
    others = {a for k, v in enumerate(work) if k not in pair for a in v.axes}
    both = union((work[pair[0]], work[pair[1]]))
    return tuple(a for a in both if a not in bound or a in others)


def _elements(work: Sequence[Value], pair: tuple[int, int], bound: Sequence[str]) -> int:
    sizes = {a: n for k in pair for a, n in zip(work[k].axes, work[k].t.shape, strict=True)}
    return math.prod(sizes[a] for a in _kept(work, pair, bound))


def _pair(body: Body, a: Value, b: Value, kept: Sequence[str]) -> Value:
    """Product of two factors, summed over the axes that are not kept: a batched matmul."""
    both = [x for x in a.axes if x in b.axes]
    summed = [x for x in both if x not in kept]
    if not summed:
        return body.arithmetic("*", a, b)
    batch = [x for x in both if x in kept]
    if body.innermost(kept) in a.axes and body.innermost(kept) not in b.axes:
        a, b = b, a
        summed = [x for x in a.axes if x in summed]
    rows = [x for x in a.axes if x not in both]
    columns = sorted((x for x in b.axes if x not in both), key=body.order)
    if not rows and not columns and math.prod(a.size(x) for x in batch) > 64:
        return _fold(body, "sum", body.arithmetic("*", a, b), summed)
    if b.t.numel() > LIMIT and columns and b.size(columns[0]) > 1:
        dim, n = b.axes.index(columns[0]), b.size(columns[0])
        parts = [
            _pair(body, a, Value(b.t.narrow(dim, s, w), b.axes), kept)
            for s, w in ((0, n // 2), (n // 2, n - n // 2))
        ]
        at = parts[0].axes.index(columns[0])
        return Value(torch.cat([p.t for p in parts], at), parts[0].axes)
    sizes = {x: v.size(x) for v in (a, b) for x in v.axes}
    B, M, K, N = (math.prod(sizes[x] for x in g) for g in (batch, rows, summed, columns))
    left = a.along([*batch, *rows, *summed]).reshape(B, M, K)
    right = b.along([*batch, *summed, *columns]).reshape(B, K, N)
    t = torch.bmm(left, right) if a.exact else body.ring.matmul(left, right)
    axes = (*batch, *rows, *columns)
    return Value(t.reshape([sizes[x] for x in axes]), axes)


def _fold(body: Body, kind: str, v: Value, axes: Sequence[str]) -> Value:
    """`v` reduced over `axes`; over one that it does not vary along, as often as that is long."""
    dims = [v.axes.index(a) for a in axes if a in v.axes]
    times = math.prod(body.span[a][1] for a in axes if a not in v.axes)
    left = tuple(a for a in v.axes if a not in axes)
    t = v.t
    if dims:
        t = _fold_dims(body, kind, t, dims)
    v = Value(t, left)
    if times == 1 or (times and kind in ("max", "min")):
        return v
    match kind:
        case "sum":
            return body.arithmetic("*", v, Value(torch.tensor(times), ()))
        case "prod":
            return body.power(v, times)
    return Value(torch.full_like(t, body.neutral(kind, t)), left)


def _fold_dims(body: Body, kind: str, t: Tensor, dims: Sequence[int]) -> Tensor:
    number = t.is_floating_point()
    if kind in ("max", "min"):
        if any(t.shape[d] == 0 for d in dims):
            shape = [n for k, n in enumerate(t.shape) if k not in dims]
            return t.new_full(shape, body.neutral(kind, t))
        return t.amax(list(dims)) if kind == "max" else t.amin(list(dims))
    if kind == "sum":
        if not number:
            return t.sum(list(dims), dtype=torch.int64)
        window = math.prod(t.shape[d] for d in dims)
        if 1 < window <= 32 and t.numel() > 64 * window * window and not t.is_contiguous():
            parts = t.permute([d for d in range(t.ndim) if d not in dims] + list(dims))
            parts = parts.flatten(t.ndim - len(dims)) if len(dims) == 1 else parts
            return _sum_windows(body, parts, len(dims))
        return body.ring.total(t, dims)
    if number:
        return body.ring.product(t, dims)
    for d in sorted(dims, reverse=True):
        t = t.prod(d, dtype=torch.int64)
    return t


def _sum_windows(body: Body, t: Tensor, count: int) -> Tensor:
    """Sum over the last `count` dims by adding whole slices: fast where these are windows."""
    for _ in range(count):
        slices = t.unbind(-1)
        t = body.ring.reduce_sums(sum(slices[1:], slices[0]))
    return t
