"""Reductions, scans, pooling and softmax."""

from __future__ import annotations

from collections.abc import Sequence

Axes = Sequence[tuple[str, str, str]]


def _attrs(axes: Axes, **prefixes: str) -> str:
    """The head's attributes: kernel extents, then one name per spatial dim for each prefix."""
    parts = [f"kernel=({', '.join(r.upper() for _, r, _ in axes)},)"]
    for name, prefix in prefixes.items():
        parts.append(f"{name}=({', '.join(prefix + i for i, _, _ in axes)},)")
    return ", ".join(parts)


def max_pool(rank: int) -> str:
    """Record text of max pooling. `extra` (0 … stride-1) admits a last window that overhangs."""
    axes = list(zip("ijl"[:rank], "rqs"[:rank], "hut"[:rank], strict=True))
    kernel = ", ".join(r for _, r, _ in axes)
    attrs = _attrs(axes, stride="s", padding="p", dilation="d", extra="e")
    out = ", ".join(
        f"{h}: ({i.upper()} + 2*p{i} - d{i}*({r.upper()} - 1) - 1 + e{i})//s{i} + 1"
        for i, r, h in axes
    )
    sp = ", ".join(i for i, _, _ in axes)
    at = ", ".join(f"{h}*s{i} + {r}*d{i} - p{i}" for i, r, h in axes)
    return f"""y = max_pool{rank}d(x[n, c, {sp}], {attrs})
    y[n, c, {out}] = max[{kernel}](x[n, c, {at}] or -inf)"""


def avg_pool(rank: int) -> str:
    """Record text of average pooling.

    `count` says what a window is divided by: "all" counts padding, "valid" only elements inside.
    A window may overhang the padding on the right by `extra`; what lies there never counts.
    """
    axes = list(zip("ijl"[:rank], "rqs"[:rank], "hut"[:rank], strict=True))
    kernel = ", ".join(r for _, r, _ in axes)
    attrs = _attrs(axes, stride="s", padding="p", extra="e")
    out = ", ".join(
        f"{h}: ({i.upper()} + 2*p{i} - {r.upper()} + e{i})//s{i} + 1" for i, r, h in axes
    )
    plain = ", ".join(h for _, _, h in axes)
    sp = ", ".join(i for i, _, _ in axes)
    at = ", ".join(f"{h}*s{i} + {r} - p{i}" for i, r, h in axes)
    inside = " and ".join(
        f"-p{i}*include <= {h}*s{i} + {r} - p{i} < {i.upper()} + p{i}*include" for i, r, h in axes
    )
    return f"""y = avg_pool{rank}d(x[n, c, {sp}], {attrs}, include_padding=include)
    m[{out}] = sum[{kernel}]([{inside}])
    y[n, c, {plain}] = sum[{kernel}](x[n, c, {at}] or 0) / m[{plain}]"""


def adaptive_avg_pool(rank: int) -> str:
    """Record text of adaptive average pooling to `size`."""
    axes = list(zip("ijl"[:rank], "hut"[:rank], strict=True))
    sp, out = ", ".join(i for i, _ in axes), ", ".join(h for _, h in axes)
    lines = [
        f"m{h}[{h}] = ((({h} + 1)*{i.upper()} + {h.upper()} - 1)//{h.upper()}) - {h}*{i.upper()}//{h.upper()}"
        for i, h in axes
    ]
    inside = " and ".join(
        f"{h}*{i.upper()}//{h.upper()} <= {i} < (({h} + 1)*{i.upper()} + {h.upper()} - 1)//{h.upper()}"
        for i, h in axes
    )
    count = " * ".join(f"m{h}[{h}]" for _, h in axes)
    body = f"sum[{sp}](x[n, c, {sp}] if {inside} else 0) / ({count})"
    head = f"y = adaptive_avg_pool{rank}d(x[n, c, {sp}], size=({', '.join(h.upper() for _, h in axes)},))"
    return "\n".join([head, *lines, f"y[n, c, {out}] = {body}"])


RECORDS = [
    """y = sum(x[*b, *r@dims], dims=dims)
       y[*b] = sum[*r](x[*b, *r])""",
    """y = mean(x[*b, *r@dims], dims=dims)
       y[*b] = sum[*r](x[*b, *r]) / R""",
    """y = var(x[*b, *r@dims], dims=dims, correction=c)
       m[*b] = sum[*r](x[*b, *r]) / R
       y[*b] = sum[*r]((x[*b, *r] - m[*b])**2) / (R - c)""",
    """y = amax(x[*b, *r@dims], dims=dims)
       y[*b] = max[*r](x[*b, *r])""",
    """y = amin(x[*b, *r@dims], dims=dims)
       y[*b] = min[*r](x[*b, *r])""",
    """y = prod(x[*b, *r@dims], dims=dims)
       y[*b] = prod[*r](x[*b, *r])""",
    """y = argmax(x[*b, i@axis], axis=axis)
       m[*b] = max[i](x[*b, i])
       y[*b] = min[i](i if x[*b, i] == m[*b] else I)""",
    """y = argmin(x[*b, i@axis], axis=axis)
       m[*b] = min[i](x[*b, i])
       y[*b] = min[i](i if x[*b, i] == m[*b] else I)""",
    """y = cumsum(x[*b, i@axis], axis=axis)
       y[*b, i@axis] = sum[j: I](x[*b, j] if j <= i else 0)""",
    """y = cummax(x[*b, i@axis], axis=axis)
       y[*b, i@axis] = max[j: I](x[*b, j] if j <= i else -inf)""",
    """y = softmax(x[*b, i@axis], axis=axis)
       m[*b] = max[i](x[*b, i])
       e[*b, i] = exp(x[*b, i] - m[*b])
       s[*b] = sum[i](e[*b, i])
       y[*b, i@axis] = e[*b, i] / s[*b]""",
    """y = log_softmax(x[*b, i@axis], axis=axis)
       m[*b] = max[i](x[*b, i])
       s[*b] = log(sum[i](exp(x[*b, i] - m[*b])))
       y[*b, i@axis] = x[*b, i] - m[*b] - s[*b]""",
    """y = logsumexp(x[*b, i@axis], axis=axis)
       m[*b] = max[i](x[*b, i])
       y[*b] = log(sum[i](exp(x[*b, i] - m[*b]))) + m[*b]""",
    *(max_pool(rank) for rank in (1, 2, 3)),
    *(avg_pool(rank) for rank in (1, 2, 3)),
    *(adaptive_avg_pool(rank) for rank in (1, 2, 3)),
]
