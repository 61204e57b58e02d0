"""Operators that only move elements: views, concatenation, padding, gathers, resampling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from whet.ir.types import Size, divide, product

Shapes = Sequence[tuple[Size, ...] | None]


def concat(shapes: Shapes, attrs: Mapping[str, object]) -> str:
    """Record text of `concat(x0, x1, …, axis=axis)` for any number of operands."""
    names = [f"x{k}" for k in range(len(shapes))]
    axes = [f"i{k}" for k in range(len(shapes))]
    heads = ", ".join(f"{x}[*b, {i}@axis]" for x, i in zip(names, axes, strict=True))
    starts = [" + ".join(i.upper() for i in axes[:k]) or "0" for k in range(len(axes) + 1)]
    body = _chosen([f"{x}[*b, k - ({s})]" for x, s in zip(names, starts, strict=False)], starts)
    return f"y = concat({heads}, axis=axis)\ny[*b, k@axis: {starts[-1]}] = {body}"


def stack(shapes: Shapes, attrs: Mapping[str, object]) -> str:
    """Record text of `stack(x0, x1, …, axis=axis)` for any number of operands."""
    heads = ", ".join(f"x{k}[*b]" for k in range(len(shapes)))
    count = len(shapes)
    body = _chosen([f"x{k}[*b]" for k in range(count)], [str(k) for k in range(count + 1)])
    return f"y = stack({heads}, axis=axis)\ny[*b, k@axis: {count}] = {body}"


def _chosen(parts: Sequence[str], starts: Sequence[str]) -> str:
    """`parts[n]` where starts[n] <= k < starts[n + 1], by halves: hundreds of parts stay shallow."""
    if len(parts) == 1:
        return parts[0]
    half = len(parts) // 2
    left, right = _chosen(parts[:half], starts[:half]), _chosen(parts[half:], starts[half:])
    return f"({left}) if k < {starts[half]} else ({right})"


def reshape(shapes: Shapes, attrs: Mapping[str, object]) -> str:
    """Record text of `reshape(x, size=(…))`.

    The common refinement of both shapes into atomic axes where there is one (it then holds for
    symbolic sizes); else the element's flat row-major number, taken apart by division.
    """
    before, after = shapes[0], attrs["size"]
    assert before is not None
    assert isinstance(after, tuple)
    refined = refine(before, after)
    if refined is None:
        return _flat_reshape(len(before), len(after))
    left, right, sizes = refined
    known = "".join(f", {a}={a.upper()}" for a in sizes)
    return f"y = reshape(x[{_axes(left)}]{known})\ny[{_axes(right)}] = x[{_axes(left)}]"


def refine(
    before: tuple[Size, ...], after: tuple[Size, ...]
) -> tuple[list[list[str]], list[list[str]], dict[str, Size]] | None:
    """Atomic axes that both shapes are composites of, or None where there are none.

    Returns:
        Axes of each dim of `before`, of each dim of `after`, and the size of each axis.
    """
    if 0 in before or 0 in after:  # every size divides 0: nothing to refine
        return None
    left: list[list[str]] = [[] for _ in before]
    right: list[list[str]] = [[] for _ in after]
    sizes: dict[str, Size] = {}
    a = [(k, n) for k, n in enumerate(before) if n != 1]
    b = [(k, n) for k, n in enumerate(after) if n != 1]
    while a and b:
        (i, p), (j, q) = a[0], b[0]
        if p == q or divide(q, p) is not None:
            size = p
        elif divide(p, q) is not None:
            size = q
        else:
            return None
        name = f"a{len(sizes)}"
        sizes[name] = size
        left[i].append(name)
        right[j].append(name)
        for rest, k, n in ((a, i, divide(p, size)), (b, j, divide(q, size))):
            assert n is not None
            if n == 1:
                rest.pop(0)
            else:
                rest[0] = (k, n)
    return None if a or b else (left, right, sizes)


def _axes(groups: list[list[str]]) -> str:
    if not groups:
        return "()"
    return (
        ", ".join("1" if not g else g[0] if len(g) == 1 else f"({', '.join(g)})" for g in groups)
        + ","
    )


def _flat_reshape(before: int, after: int) -> str:
    ins, outs = [f"i{k}" for k in range(before)], [f"o{k}" for k in range(after)]
    number = f"({', '.join(outs)},)"
    index = []
    for k, axis in enumerate(ins):
        tail = "*".join(n.upper() for n in ins[k + 1 :]) or "1"
        index.append(f"{number}//({tail})" + (f" % {axis.upper()}" if k else ""))
    declared = ", ".join(f"{o}" for o in outs)
    sizes = ", ".join(o.upper() for o in outs)
    return (
        f"y = reshape(x[{', '.join(ins)},], size=({sizes},))\n"
        f"y[{declared},] = x[{', '.join(index)},]"
    )


def reshape_attrs(shapes: Shapes, attrs: Mapping[str, object]) -> Mapping[str, object]:
    """What `reshape`'s record takes: sizes of the atomic axes, or the new shape as it is."""
    before, after = shapes[0], attrs["size"]
    assert before is not None
    assert isinstance(after, tuple)
    refined = refine(before, after)
    concrete = all(isinstance(n, int) for n in (*before, *after))
    if refined is None and concrete and product(before) != product(after):
        raise ValueError(f"{list(before)} and {list(after)} have as many elements")
    return attrs if refined is None else refined[2]


RECORDS = [
    """y = permute(x[*d@dims], dims=dims)
       y[*d] = x[*d]""",
    """y = expand(x[*b], size=(*b,))
       y[*b] = x[*b]""",
    """y = slice(x[*b, i@axis], axis=axis, start=s, stop=e, step=t)
       y[*b, k@axis: (e - s + t - 1)//t] = x[*b, s + k*t]""",
    """y = select(x[*b, i@axis], axis=axis, index=s)
       y[*b] = x[*b, s]""",
    """y = pad(x[*b, i@axis], axis=axis, before=p, after=q, value=value)
       y[*b, k@axis: I + p + q] = x[*b, k - p] or value""",
    """y = flip(x[*b, i@axis], axis=axis)
       y[*b, i@axis] = x[*b, I - 1 - i]""",
    """y = roll(x[*b, i@axis], axis=axis, shift=s)
       y[*b, i@axis] = x[*b, (i - s) % I]""",
    """y = tril(x[*b, i, j], diagonal=k)
       y[*b, i, j] = x[*b, i, j] if j <= i + k else 0""",
    """y = triu(x[*b, i, j], diagonal=k)
       y[*b, i, j] = x[*b, i, j] if i + k <= j else 0""",
    """y = embedding(t[v, e], ids[*b])
       y[*b, e] = t[ids[*b], e]""",
    """y = gather(x[*b, i@axis], ids[*b, k@axis], axis=axis)
       y[*b, k@axis] = x[*b, ids[*b, k]]""",
    """y = index_select(x[*b, i@axis], ids[k], axis=axis)
       y[*b, k@axis] = x[*b, ids[k]]""",
    """y = slice_scatter(x[*b, i@axis], z[*b, k@axis], axis=axis, start=s, step=t)
       y[*b, i@axis] = z[*b, (i - s)//t] if s <= i and (i - s) % t == 0 and i < s + K*t else x[*b, i]""",
    """y = interpolate_nearest(x[n, c, i, j], size=(H, W))
       y[n, c, h, w] = x[n, c, h*I//H, w*J//W]""",
    """y = interpolate_bilinear(x[n, c, i, j], size=(H, W))
       a[h] = minimum(maximum(((2*h + 1)*I - H) / (2*H), 0), I - 1)
       b[w] = minimum(maximum(((2*w + 1)*J - W) / (2*W), 0), J - 1)
       t[n, c, h, j] = sum[i](x[n, c, i, j] * maximum(0, 1 - maximum(i - a[h], a[h] - i)))
       y[n, c, h, w] = sum[j](t[n, c, h, j] * maximum(0, 1 - maximum(j - b[w], b[w] - j)))""",
    """y = pixel_shuffle(x[n, (c, r, q), h, w], factor=(R, Q))
       y[n, c, (h, r), (w, q)] = x[n, (c, r, q), h, w]""",
    """y = rope(x[*b, (t, d)], cos[*b, (t, d)], sin[*b, (t, d)], T=2)
       y[*b, (t, d)] = x[*b, (t, d)] * cos[*b, (t, d)] + (2*t - 1) * x[*b, (1 - t, d)] * sin[*b, (t, d)]""",
]  # fmt: skip
STRUCTURAL = {"concat": concat, "stack": stack, "reshape": (reshape, reshape_attrs)}
