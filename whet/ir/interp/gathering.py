"""Loads: an element of a tensor at every point of the axes that its index mentions.

affine index      one strided view of the tensor, padded where the index leaves it
any other index   index_select along each dim that shares no axis with another dim,
                  one joint gather over the dims that do
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from whet.errors import InputError
from whet.ir.interp.value import Value, union, where

Span = Mapping[str, tuple[int, int]]
Form = tuple[Mapping[str, int], int]


def strided(t: Tensor, forms: Sequence[Form], span: Span, outside: float | None) -> Value:
    """`t` at affine indices.

    Args:
        t: a tensor with one dim for each index.
        forms: (coefficient of each axis, constant) for each dim.
        span: first value and number of values of each axis.
        outside: value out of bounds; None where it is hidden by a guard or cannot happen.
    """
    plain = tuple(next(iter(c)) if tuple(c.values()) == (1,) and not k else "" for c, k in forms)
    if all(span.get(a) == (0, n) for a, n in zip(plain, t.shape, strict=True)):
        if len(set(plain)) == len(plain):
            return Value(t, plain)
    axes = tuple(dict.fromkeys(a for coefficients, _ in forms for a in coefficients))
    sizes = [span[a][1] for a in axes]
    if 0 in sizes:
        return Value(t.new_zeros(sizes), axes)
    margins = [
        _margin(form, n, span) for form, n in zip(forms, t.shape, strict=True)
    ]  # fmt: skip
    if any(m != (0, 0) for m in margins):
        flat = [n for m in reversed(margins) for n in m]
        t = pad(t, flat, value=outside or 0)
    offset, steps = t.storage_offset(), dict.fromkeys(axes, 0)
    for (coefficients, constant), (before, _), step in zip(forms, margins, t.stride(), strict=True):
        offset += (constant + before) * step
        for a, c in coefficients.items():
            offset += c * span[a][0] * step
            steps[a] += c * step
    mirrored = [k for k, a in enumerate(axes) if steps[a] < 0]
    for k in mirrored:  # a view may not walk backwards: start at the far end, then flip
        offset += steps[axes[k]] * (sizes[k] - 1)
        steps[axes[k]] *= -1
    view = t.as_strided(sizes, [steps[a] for a in axes], offset)
    return Value(view.flip(mirrored) if mirrored else view, axes)


def _margin(form: Form, size: int, span: Span) -> tuple[int, int]:
    """How far an affine index leaves 0 … size-1 on either side."""
    low = high = form[1]
    for a, c in form[0].items():
        ends = (c * span[a][0], c * (span[a][0] + span[a][1] - 1))
        low, high = low + min(ends), high + max(ends)
    return max(0, -low), max(0, high - size + 1)


def gathered(t: Tensor, index: Sequence[Value], outside: Value | None, *, hidden: bool) -> Value:
    """`t` at any indices.

    Args:
        t: a tensor with one dim for each index.
        index: integer values, one for each dim.
        outside: value out of bounds.
        hidden: a guard hides what lies out of bounds; otherwise it must not happen.

    Raises:
        InputError: an index is out of range, and neither `outside` nor a guard covers it.
    """
    inside: list[Value] = []
    safe: list[Value] = []
    for i, n in zip(index, t.shape, strict=True):
        at = i.t.to(torch.int64)
        if at.numel() and (int(at.min()) < 0 or int(at.max()) >= n):
            if outside is None and not hidden:
                raise InputError(
                    "an index is out of range",
                    expected=f"0 … {n - 1}", got=f"{int(at.min())} … {int(at.max())}",
                )  # fmt: skip
            inside.append(Value((at >= 0) & (at < n), i.axes))
            at = at.clamp(0, max(n - 1, 0))
        safe.append(Value(at, i.axes))
    if 0 in t.shape:
        t = t.new_zeros([max(n, 1) for n in t.shape])
    found = _pick(t, safe)
    if outside is not None:
        for ok in inside:
            found = where(ok, found, outside)
    return found


def _pick(t: Tensor, index: Sequence[Value]) -> Value:
    shared = [
        k for k, i in enumerate(index)
        if any(set(i.axes) & set(o.axes) for n, o in enumerate(index) if n != k)
    ]  # fmt: skip
    for k, i in enumerate(index):
        if k not in shared and not _identity(i, t.shape[k]):
            t = t.index_select(k, i.t.reshape(-1))
    alone = [k for k in range(len(index)) if k not in shared]
    t = t.permute(alone + shared)
    axes = [a for k in alone for a in index[k].axes]
    sizes = [n for k in alone for n in index[k].t.shape]
    if shared:
        joint = union([index[k] for k in shared])
        at = tuple(index[k].along(joint) for k in shared)
        t = t[(slice(None),) * len(alone) + at]
        axes += joint
        sizes += t.shape[len(alone) :]
    return Value(t.reshape(sizes), tuple(axes))


def _identity(index: Value, size: int) -> bool:
    return index.t.shape == (size,) and torch.equal(index.t, torch.arange(size))
