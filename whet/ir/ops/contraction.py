"""Sums of products: matrix products, convolutions, attention, and their transposes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from whet.ir.types import Size


def _window(rank: int) -> dict[str, list[str]]:
    """Per spatial dim: names of the input, kernel and output index."""
    return {"i": list("ijl"[:rank]), "r": list("rqs"[:rank]), "h": list("hut"[:rank])}


def conv(rank: int) -> str:
    """Record text of a convolution over `rank` spatial dims."""
    w = _window(rank)
    axes = list(zip(w["i"], w["r"], w["h"], strict=True))
    sp = ", ".join(w["i"])
    ke = ", ".join(w["r"])
    out = ", ".join(
        f"{h}: ({i.upper()} + 2*p{i} - d{i}*({r.upper()} - 1) - 1)//s{i} + 1" for i, r, h in axes
    )
    at = ", ".join(f"{h}*s{i} + {r}*d{i} - p{i}" for i, r, h in axes)
    attrs = ", ".join(
        f"{name}=({', '.join(c + i for i in w['i'])},)"
        for name, c in (("stride", "s"), ("padding", "p"), ("dilation", "d"))
    )
    return f"""y = conv{rank}d(x[n, (g, c), {sp}], w[(g, o), c, {ke}], v[(g, o),] or 0, groups=G, {attrs})
    y[n, (g, o), {out}] = sum[c, {ke}]((x[n, (g, c), {at}] or 0) * w[(g, o), c, {ke}]) + v[(g, o),]"""


def conv_transpose(rank: int) -> str:
    """Record text of a transposed convolution; weight [(g, c), o, kernel…] as in torch."""
    w = _window(rank)
    axes = list(zip(w["i"], w["r"], w["h"], strict=True))
    sp, ke = ", ".join(w["i"]), ", ".join(w["r"])
    out = ", ".join(
        f"{h}: ({i.upper()} - 1)*s{i} - 2*p{i} + d{i}*({r.upper()} - 1) + e{i} + 1"
        for i, r, h in axes
    )
    at = ", ".join(f"({h} + p{i} - {r}*d{i})//s{i}" for i, r, h in axes)
    hit = " and ".join(f"({h} + p{i} - {r}*d{i}) % s{i} == 0" for i, r, h in axes)
    attrs = ", ".join(
        f"{name}=({', '.join(c + i for i in w['i'])},)"
        for name, c in (
            ("stride", "s"), ("padding", "p"), ("dilation", "d"), ("output_padding", "e"),
        )
    )  # fmt: skip
    return f"""y = conv_transpose{rank}d(x[n, (g, c), {sp}], w[(g, c), o, {ke}], v[(g, o),] or 0, groups=G, {attrs})
    y[n, (g, o), {out}] = sum[c, {ke}]((x[n, (g, c), {at}] or 0) * w[(g, c), o, {ke}] if {hit} else 0) + v[(g, o),]"""


def einsum(shapes: Sequence[tuple[Size, ...] | None], attrs: Mapping[str, object]) -> str:
    """Record text of `einsum(equation="ab,bc->ac")`; single letters, no ellipsis."""
    equation = str(attrs["equation"])
    inputs, out = equation.replace(" ", "").split("->")
    operands = [
        f"x{k}[{', '.join(t)},]" if t else f"x{k}[()]" for k, t in enumerate(inputs.split(","))
    ]
    bound = sorted(set(inputs) - set(out) - {","})
    body = " * ".join(operands)
    total = f"sum[{', '.join(bound)}]({body})" if bound else body
    target = f"y[{', '.join(out)},]" if out else "y[()]"
    return f"y = einsum({', '.join(operands)}, equation=equation)\n{target} = {total}"


RECORDS = [
    """y = matmul(x[*b, m, k], z[*b, k, n])
       y[*b, m, n] = sum[k](x[*b, m, k] * z[*b, k, n])""",
    """y = linear(x[*b, k], w[o, k], v[o] or 0)
       y[*b, o] = sum[k](x[*b, k] * w[o, k]) + v[o]""",
    *(conv(rank) for rank in (1, 2, 3)),
    *(conv_transpose(rank) for rank in (1, 2, 3)),
    """y = attention(q[*b, (h, g), i, d], k[*b, h, j, d], v[*b, h, j, e], mask[*b, +(h, g), +i, +j] or 0, scale=scale, causal=causal, group=G)
       a[*b, h, g, i, j] = sum[d](q[*b, (h, g), i, d] * k[*b, h, j, d]) * scale + mask[*b, (h, g), i, j] if not causal or j <= i else -inf
       m[*b, h, g, i] = max[j](a[*b, h, g, i, j])
       p[*b, h, g, i, j] = exp(a[*b, h, g, i, j] - m[*b, h, g, i])
       z[*b, h, g, i] = sum[j](p[*b, h, g, i, j])
       y[*b, (h, g), i, e] = sum[j](p[*b, h, g, i, j] * v[*b, h, j, e]) / z[*b, h, g, i]""",
]  # fmt: skip
STRUCTURAL = {"einsum": einsum}
