"""Every operator of the table at symbolic sizes: what proofs for all sizes start from.

A row gives shapes and attributes in symbols; what an attribute must satisfy is built into the shape
(a slice that ends at S + E has an axis S + E + T).
"""

from __future__ import annotations

from whet.ir.ops import TABLE, instance
from whet.ir.record import Instance
from whet.ir.types import DType, Poly, Size

SYMBOLS = {c: Poly.symbol(c) for c in "ABCDEGHIJKLMNOPQRSTUVW"}


def conv(rank: int) -> str:
    spatial, kernel = " ".join("IJL"[:rank]), " ".join("RQS"[:rank])
    return f"N G*C {spatial} | G*O C {kernel} | G*O"


def windows(rank: int, **more: str | None) -> str:
    """Attributes in symbols where the solver follows, representative numbers where it does not."""
    text = {"stride": "(2, 3, 1)", "padding": "(P, 2, 1)", "dilation": "(D, 1, 2)", **more}
    return ", ".join(f"{k}={v}[:{rank}]" for k, v in text.items() if v)


PLAIN = "A B C"
ROWS = {
    "leaky_relu": (PLAIN, "slope=0.1"), "elu": (PLAIN, "alpha=1.0"),
    "softplus": (PLAIN, "beta=1.0, threshold=20.0"), "clamp": (PLAIN, "low=0.0, high=6.0"),
    "where": ("A 1 C | B C | A B 1", ""), "cast": (PLAIN, "dtype=DType.f16"),
    "full": ("", "size=(A, B), value=1.0, dtype=DType.f32"),
    "arange": ("", "size=A, start=0, step=1, dtype=DType.i64"),
    "matmul": ("A 1 M K | B K N", ""), "linear": ("A B K | O K | O", ""),
    "attention": ("B H*G I D | B H J D | B H J E | B 1 I J", "scale=1.0, causal=True, group=G"),
    "einsum": ("A B C | C B D", "equation='abc,cbd->da'"),
    "permute": (PLAIN, "dims=(2, 0, 1)"), "expand": ("A 1 C", "size=(N, A, B, C)"),
    "slice": ("A S+E+T", "axis=1, start=S, stop=S+E, step=3"),
    "select": ("A S+T B", "axis=1, index=S"),
    "pad": (PLAIN, "axis=1, before=P, after=Q, value=0.0"), "flip": (PLAIN, "axis=1"),
    "roll": (PLAIN, "axis=1, shift=S"), "tril": (PLAIN, "diagonal=K"),
    "triu": (PLAIN, "diagonal=K"),
    "embedding": ("V E | A B", ""), "gather": ("A I B | A K B", "axis=1"),
    "index_select": ("A I B | K", "axis=1"),
    "slice_scatter": ("A S+3*K+T | A K", "axis=1, start=S, step=3"),
    "interpolate_nearest": ("N C I J", "size=(H, W)"),
    "interpolate_bilinear": ("N C I J", "size=(H, W)"),
    "pixel_shuffle": ("N C*R*Q H W", "factor=(R, Q)"), "rope": ("A B 2*D | B 2*D | B 2*D", ""),
    "concat": ("A I | A J | A K", "axis=1"), "stack": ("A B | A B | A B", "axis=0"),
    "reshape": ("A B*C D", "size=(A*B, C, D)"),
    "sum": (PLAIN, "dims=(0, 2)"), "mean": (PLAIN, "dims=(1,)"),
    "var": (PLAIN, "dims=(1, 2), correction=1"), "amax": (PLAIN, "dims=(1,)"),
    "amin": (PLAIN, "dims=(1,)"), "prod": (PLAIN, "dims=(1,)"),
    **dict.fromkeys(
        ("argmax", "argmin", "cumsum", "cummax", "softmax", "log_softmax", "logsumexp"),
        (PLAIN, "axis=1")),
    "batch_norm": ("N C I J | C | C | C | C", "eps=0.1"),
    "layer_norm": ("A B C | B C | B C", "size=(B, C), eps=0.1"),
    "rms_norm": ("A B C | C", "size=(C,), eps=0.1"),
    "group_norm": ("N G*C I | G*C | G*C", "groups=G, eps=0.1"),
    "local_response_norm": ("N C I", "size=K, before=P, alpha=0.1, beta=0.7, k=1.0"),
    "lstm_cell": ("N K | N D | N D | 4*D K | 4*D D | 4*D", ""),
    "gru_cell": ("N K | N D | 3*D K | 3*D D | 3*D | 3*D", ""),
    **{f"conv{r}d": (conv(r), f"groups=G, {windows(r)}") for r in (1, 2, 3)},
    **{f"conv_transpose{r}d": (
        f"N G*C {' '.join('IJL'[:r])} | G*C O {' '.join('RQS'[:r])} | G*O",
        f"groups=G, {windows(r, output_padding='(1, 0, 0)')}") for r in (1, 2, 3)},
    **{f"max_pool{r}d": (
        f"N C {' '.join('IJL'[:r])}", windows(r, kernel="(3, 2, 2)", extra="(1, 0, 0)"))
        for r in (1, 2, 3)},
    **{f"avg_pool{r}d": (
        f"N C {' '.join('IJL'[:r])}",
        windows(r, dilation=None, kernel="(3, 2, 2)", extra="(1, 0, 0)")
        + ", include_padding=False")
        for r in (1, 2, 3)},
    **{f"adaptive_avg_pool{r}d": (f"N C {' '.join('IJL'[:r])}", f"size=(H, U, T)[:{r}]")
       for r in (1, 2, 3)},
}  # fmt: skip


def row(name: str) -> Instance:
    """The operator at symbolic sizes; pointwise records need no row."""
    operands, attrs = ROWS.get(name, ("", ""))
    record = TABLE[name].record
    if name not in ROWS:
        assert record is not None
        operands = " | ".join(["A B C", "B 1"][: len(record.operands)])
    shapes = tuple(map(shape, operands.split("|"))) if operands else ()
    values = eval(f"dict({attrs})", {"DType": DType}, SYMBOLS)
    return instance(name, shapes, tuple(sorted(values.items())))


def shape(text: str) -> tuple[Size, ...]:
    return tuple(eval(word, {}, SYMBOLS) for word in text.split())
