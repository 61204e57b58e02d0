"""Sums of products of named tensors, as batched matrix products; plain reductions.

    contract([x[m, k], y[k, n], z[n]], {k})  =  sum[k](x * y * z)  over m, n

Factors are taken two at a time, the pair with the smallest result first; an axis is summed away as
soon as no other factor has it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from whet.ir.interp.ring import extreme
from whet.ir.interp.value import Value, union

if TYPE_CHECKING:
    from whet.ir.interp.body import Body

# Elements of a window written out for a matrix product before the work is cut into parts.
LIMIT = 1 << 26


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
    return fold(body, "sum", work[k], [a for a in bound if a in work[k].axes and a not in others])


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
        return fold(body, "sum", body.arithmetic("*", a, b), summed)
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


def fold(body: Body, kind: str, v: Value, axes: Sequence[str]) -> Value:
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
        return body.ring.extreme(kind, t, dims) if number else extreme(kind, t, dims)
    if kind == "sum":
        if not number:
            return t.sum(list(dims), dtype=torch.int64)
        window = math.prod(t.shape[d] for d in dims)
        if 1 < window <= 32 and t.numel() > 64 * window * window and not t.is_contiguous():
            rest = [d for d in range(t.ndim) if d not in dims]
            return _sum_windows(body, t.permute([*rest, *dims]), len(dims))
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
