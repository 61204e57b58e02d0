"""What torch says each operator of the table computes: one row or more for every record.

A row holds operands (float64, integers, bools), attributes and the reference. Shapes are asymmetric
on purpose: two sizes that agree hide an exchanged axis.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from whet.ir.functions import FUNCTIONS
from whet.ir.graph import Node, apply, leaf
from whet.ir.ops import instance
from whet.ir.record import Instance
from whet.ir.types import DType, TensorType

DTYPES = {getattr(torch, d.value): d for d in DType}


@dataclass(frozen=True)
class Case:
    """One operator at one set of shapes.

    Attributes:
        name: the operator.
        operands: one tensor for each operand, None for one that is left out.
        attrs: its attributes.
        torch: the reference, called with the operands.
        out: which result the reference computes, when the operator has several.
    """

    name: str
    operands: tuple[Tensor | None, ...]
    attrs: dict[str, object]
    torch: Callable[..., Tensor]
    out: str | None = None

    def want(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """The reference's result, float operands cast to `dtype` first."""
        return self.torch(*self.cast(dtype))

    def cast(self, dtype: torch.dtype) -> list[Tensor | None]:
        return [
            x.to(dtype) if x is not None and x.is_floating_point() else x for x in self.operands
        ]

    @property
    def instance(self) -> Instance:
        shapes = tuple(None if x is None else tuple(x.shape) for x in self.operands)
        return instance(self.name, shapes, tuple(sorted(self.attrs.items())))

    def node(self, dtype: torch.dtype = torch.float64) -> Node:
        """The operator over inputs x0, x1, …."""
        leaves = [
            None if x is None
            else leaf("input", f"x{k}", TensorType(DTYPES[x.dtype], tuple(x.shape)))
            for k, x in enumerate(self.cast(dtype))
        ]  # fmt: skip
        attrs = self.attrs if self.out is None else {**self.attrs, "out": self.out}
        return apply(self.name, *leaves, **attrs)

    def feeds(self, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
        return {f"x{k}": x for k, x in enumerate(self.cast(dtype)) if x is not None}

    def __repr__(self) -> str:
        shapes = [None if x is None else list(x.shape) for x in self.operands]
        return f"{self.name} {shapes} {self.attrs}"


_RANGES = {
    "log": (0.1, 3), "log2": (0.1, 3), "log10": (0.1, 3), "log1p": (-0.9, 3), "sqrt": (0.1, 3),
    "rsqrt": (0.1, 3), "asin": (-0.9, 0.9), "acos": (-0.9, 0.9), "atanh": (-0.9, 0.9),
    "acosh": (1.1, 3), "tan": (-1.4, 1.4), "pow": (0.1, 3),
}  # fmt: skip
_INTEGER = ("bitwise_and", "bitwise_or", "bitwise_xor", "bitwise_not")


def _tail_padding(size: int, kernel: int, stride: int, padding: int) -> int:
    """`extra` of a pooling in torch's ceil mode."""
    top = size + 2 * padding - kernel + stride - 1
    overhangs = (top // stride) * stride >= size + padding
    return 0 if overhangs else stride - 1


@functools.cache
def table() -> dict[str, list[Case]]:
    """Every row, by operator."""
    g = torch.Generator().manual_seed(20)

    def R(*s: int) -> Tensor:
        return torch.randn(s, generator=g, dtype=torch.float64)

    def U(low: float, high: float, *s: int) -> Tensor:
        return torch.rand(s, generator=g, dtype=torch.float64) * (high - low) + low

    def N(high: int, *s: int, low: int = 0) -> Tensor:
        return torch.randint(low, high, s, generator=g)

    def B(*s: int) -> Tensor:
        return N(2, *s).bool()

    rows: dict[str, list[Case]] = {}

    def row(
        name: str, ref: Callable[..., Tensor], *xs: Tensor | None,
        out: str | None = None, **attrs: object,
    ) -> None:  # fmt: skip
        rows.setdefault(name, []).append(Case(name, xs, attrs, ref, out))

    # Pointwise: torch has a function of the same name.
    for f in FUNCTIONS.values():
        low, high = _RANGES.get(f.name, (-3, 3))
        ref = getattr(torch, f.name)
        for shapes in (((2, 3, 5), (3, 5)), ((4, 1), (1, 6)), ((), (7,)), ((0, 3), (3,))):
            xs = [U(low, high, *s) for s in shapes[: f.arity]]
            if f.name in _INTEGER:
                xs = [N(100, *s, low=-100) for s in shapes[: f.arity]]
            row(f.name, ref, *xs)
        if f.name in _INTEGER:
            row(f.name, ref, *[B(3, 4)] * f.arity)
        elif f.kind == "float" and f.arity == 1:
            row(f.name, ref, N(2, 5))
        elif f.name in ("abs", "sign", "maximum", "minimum"):
            row(f.name, ref, *[N(9, 5, low=-9) for _ in range(f.arity)])
    for name in ("isnan", "isinf"):
        row(name, getattr(torch, name), torch.tensor([math.nan, 1.0, math.inf, -math.inf]))
    row("pow", torch.pow, N(4, 5), N(4, 5))
    row("maximum", torch.maximum, N(9, 5, low=-9), R(3, 1))
    row("round", torch.round, torch.tensor([0.5, 1.5, -0.5, 2.5]))

    arithmetic = ("add", "sub", "mul", "div", "floor_divide", "remainder")
    for name in (*arithmetic, "lt", "le", "gt", "ge", "eq", "ne"):
        ref = getattr(torch, name)
        row(name, ref, R(2, 3, 5), R(3, 1))
        row(name, ref, R(), R(4))
        row(name, ref, N(9, 4, 3, low=-9), N(9, 3, low=1))
        row(name, ref, N(9, 4, low=-9), R(2, 1))
    for name in ("logical_and", "logical_or", "logical_xor"):
        row(name, getattr(torch, name), B(4, 1), B(1, 5))
        row(name, getattr(torch, name), N(3, 4, 2), R(2))
    row("logical_not", torch.logical_not, N(2, 5))
    row("logical_not", torch.logical_not, B(5))
    unary: dict[str, Callable[..., Tensor]] = {
        "neg": torch.neg, "square": torch.square, "reciprocal": torch.reciprocal, "relu": F.relu,
        "gelu": F.gelu, "silu": F.silu, "hardsigmoid": F.hardsigmoid, "hardswish": F.hardswish,
        "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    }  # fmt: skip
    for name, ref in unary.items():
        row(name, ref, R(3, 4) * 3)
        row(name, ref, R())
    row("neg", torch.neg, N(9, 4))
    row("square", torch.square, N(9, 4))
    row("relu", F.relu, N(9, 4, low=-9))
    row("relu", F.relu, torch.tensor([math.nan, -1.0, math.inf]))
    row("leaky_relu", lambda x: F.leaky_relu(x, 0.2), R(3, 4), slope=0.2)
    row("elu", lambda x: F.elu(x, 1.3), R(3, 4), alpha=1.3)
    row("softplus", lambda x: F.softplus(x, 2.0, 3.0), R(3, 4) * 3, beta=2.0, threshold=3.0)
    row("clamp", lambda x: x.clamp(-0.5, 0.7), R(3, 4), low=-0.5, high=0.7)
    row("clamp", lambda x: x.clamp(-2, 3), N(9, 7, low=-9), low=-2, high=3)
    row("clamp", lambda x: x.clamp(min=0.1), R(7), low=0.1, high=math.inf)
    row("where", torch.where, B(2, 5, 4), R(5, 1), R(4))
    row("where", torch.where, B(3, 1), N(9, 4), N(9, 4))
    row("where", torch.where, torch.tensor([True, False]), torch.tensor([1.0, math.nan]),
        torch.tensor([math.nan, 2.0]))  # fmt: skip
    for x, to in (
        (R(3, 4) * 5, DType.i64), (R(3, 4) * 5, DType.i32), (R(3, 4), DType.f64),
        (R(5), DType.bool),
        (N(9, 4), DType.f32), (B(4), DType.f32), (N(3, 4), DType.bool), (B(4), DType.i64),
    ):  # fmt: skip
        row("cast", lambda x, to=to: x.to(getattr(torch, to.value)), x, dtype=to)
    for value, to, size in (
        (1.5, torch.float64, (2, 3)), (3, torch.int64, (4,)), (True, torch.bool, (2,)),
        (-math.inf, torch.float64, (2,)), (2.5, torch.float64, ()),
    ):  # fmt: skip
        row("full", lambda s=size, v=value, to=to: torch.full(s, v, dtype=to),
            size=size, value=value, dtype=DTYPES[to])  # fmt: skip
    row("arange", lambda: torch.arange(3, 3 + 2 * 7, 2), size=7, start=3, step=2, dtype=DType.i64)
    row("arange", lambda: torch.arange(7, dtype=torch.float64) * 0.25 + 0.5,
        size=7, start=0.5, step=0.25, dtype=DType.f64)  # fmt: skip

    # Contractions.
    for bx, by in (((), ()), ((2, 3), (2, 3)), ((2, 1), (1, 3)), ((5, 2, 1), (3,)), ((), (4,))):
        row("matmul", torch.matmul, R(*bx, 4, 5), R(*by, 5, 6))
    row("matmul", torch.matmul, R(3, 0), R(0, 2))
    row("matmul", torch.matmul, N(9, 3, 4), N(9, 4, 2))
    row("linear", F.linear, R(2, 3, 5), R(7, 5), R(7))
    row("linear", F.linear, R(2, 5), R(7, 5), None)
    row("linear", F.linear, R(5), R(7, 5), R(7))
    row("conv1d", lambda x, w, b: F.conv1d(x, w, b, 2, 3, 2, 2), R(3, 4, 11), R(6, 2, 4), R(6),
        groups=2, stride=(2,), padding=(3,), dilation=(2,))  # fmt: skip
    for k, ci, co, s, p, d in (
        (1, 3, 4, (1, 1), (0, 0), (1, 1)), (2, 4, 6, (2, 1), (1, 2), (1, 1)),
        (1, 2, 3, (3, 2), (2, 1), (2, 3)), (6, 6, 12, (2, 2), (1, 1), (1, 1)),
        (3, 6, 3, (4, 5), (0, 1), (1, 2)),
    ):  # fmt: skip
        for bias in (None, R(co)):
            row("conv2d", lambda x, w, b, k=k, s=s, p=p, d=d: F.conv2d(x, w, b, s, p, d, k),
                R(2, ci, 11, 13), R(co, ci // k, 3, 2), bias,
                groups=k, stride=s, padding=p, dilation=d)  # fmt: skip
    row("conv2d", lambda x, w, b: F.conv2d(x, w, b, 2), R(1, 3, 8, 6), R(4, 3, 1, 1), None,
        groups=1, stride=(2, 2), padding=(0, 0), dilation=(1, 1))  # fmt: skip
    row("conv3d", lambda x, w, b: F.conv3d(x, w, b, (1, 2, 2), (1, 0, 2), (2, 1, 1), 2),
        R(2, 4, 7, 6, 5), R(6, 2, 2, 3, 2), R(6),
        groups=2, stride=(1, 2, 2), padding=(1, 0, 2), dilation=(2, 1, 1))  # fmt: skip
    row("conv_transpose1d", lambda x, w, b: F.conv_transpose1d(x, w, b, 3, 2, 1, 2, 2),
        R(2, 4, 7), R(4, 3, 4), R(6), groups=2, stride=(3,), padding=(2,), dilation=(2,),
        output_padding=(1,))  # fmt: skip
    for s, p, d, e in (
        ((1, 1), (0, 0), (1, 1), (0, 0)), ((2, 3), (1, 0), (1, 2), (1, 0)),
        ((2, 2), (2, 1), (1, 1), (0, 1)),
    ):  # fmt: skip
        row("conv_transpose2d",
            lambda x, w, b, s=s, p=p, d=d, e=e: F.conv_transpose2d(x, w, b, s, p, e, 2, d),
            R(2, 4, 7, 5), R(4, 3, 3, 4), None, groups=2, stride=s, padding=p, dilation=d,
            output_padding=e)  # fmt: skip
    row("conv_transpose3d", lambda x, w, b: F.conv_transpose3d(x, w, b, (2, 1, 2), 1, (1, 0, 0)),
        R(1, 2, 3, 4, 5), R(2, 3, 3, 3, 2), R(3), groups=1, stride=(2, 1, 2), padding=(1, 1, 1),
        dilation=(1, 1, 1), output_padding=(1, 0, 0))  # fmt: skip
    for equation, *shapes in (
        ("abc,cbd->da", (3, 4, 5), (5, 4, 6)), ("aa->a", (4, 4)), ("ab->", (3, 4)),
        ("a,b->ab", (3,), (4,)), ("ab,bc,cd->da", (3, 4), (4, 5), (5, 2)),
        ("ij,ij->", (3, 4), (3, 4)),
        ("bid,bjd,bje->bie", (2, 3, 4), (2, 5, 4), (2, 5, 6)),
    ):  # fmt: skip
        row("einsum", lambda *x, e=equation: torch.einsum(e, *x), *(R(*s) for s in shapes),
            equation=equation)  # fmt: skip

    def attend(q: Tensor, k: Tensor, v: Tensor, m: Tensor | None, **kw: object) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, m, enable_gqa=True, scale=0.3, **kw)

    q, k, v = R(2, 6, 4, 5), R(2, 3, 7, 5), R(2, 3, 7, 8)
    row("attention", attend, q, k, v, None, scale=0.3, causal=False, group=2)
    for mask in (R(2, 6, 4, 7), R(1, 1, 4, 7), R(2, 1, 1, 7), R(1, 6, 1, 7)):
        row("attention", attend, q, k, v, mask, scale=0.3, causal=False, group=2)
    row("attention", functools.partial(attend, is_causal=True), q, k, v, None,
        scale=0.3, causal=True, group=2)  # fmt: skip
    hidden = torch.where(B(2, 1, 4, 7) | (torch.arange(7) == 2), 0.0, -math.inf).double()
    row("attention", attend, q, k, v, hidden, scale=0.3, causal=False, group=2)
    row("attention", attend, R(3, 4, 5), R(3, 7, 5), R(3, 7, 2), None,
        scale=0.3, causal=False, group=1)  # fmt: skip

    # Movement.
    y = R(2, 5, 4)
    row("permute", lambda x: x.permute(2, 0, 1), y, dims=(2, 0, 1))
    row("permute", lambda x: x.permute(1, 3, 0, 2), R(2, 3, 4, 5), dims=(1, 3, 0, 2))
    row("permute", lambda x: x, R(), dims=())
    row("expand", lambda x: x.expand(4, 3, 5), R(3, 1), size=(4, 3, 5))
    row("expand", lambda x: x.expand(2, 3), N(9, 3), size=(2, 3))
    row("expand", lambda x: x.expand(2, 3), R(), size=(2, 3))
    row("slice", lambda x: x[:, 1:5:2], y, axis=1, start=1, stop=5, step=2)
    row("slice", lambda x: x[..., 2:3], y, axis=-1, start=2, stop=3, step=1)
    row("slice", lambda x: x[:, 3:3], y, axis=1, start=3, stop=3, step=1)
    row("select", lambda x: x[:, 3], y, axis=1, index=3)
    row("select", lambda x: x[..., 0], B(3, 4), axis=-1, index=0)
    row("pad", lambda x: F.pad(x, (0, 0, 2, 1), value=7.0), y, axis=1, before=2, after=1, value=7.0)
    row("pad", lambda x: F.pad(x, (-1, 2)), y, axis=-1, before=-1, after=2, value=0)
    row("pad", lambda x: F.pad(x, (1, 0), value=5), N(9, 3, 4), axis=1, before=1, after=0, value=5)
    row("flip", lambda x: x.flip(1), y, axis=1)
    row("roll", lambda x: x.roll(2, 1), y, axis=1, shift=2)
    row("roll", lambda x: x.roll(-1, 0), N(9, 3, 4), axis=0, shift=-1)
    for d in (-2, 0, 1):
        row("tril", lambda x, d=d: x.tril(d), R(2, 4, 5), diagonal=d)
        row("triu", lambda x, d=d: x.triu(d), R(2, 5, 3), diagonal=d)
    row("tril", torch.tril, torch.tensor([[1.0, math.nan], [2.0, math.inf]]), diagonal=0)
    row("embedding", lambda t, i: F.embedding(i, t), R(9, 4), N(9, 2, 5))
    row("embedding", lambda t, i: F.embedding(i, t), R(9, 4), N(9, 3).int())
    row("embedding", lambda t, i: F.embedding(i, t), R(9, 4), N(9))
    row("gather", lambda x, i: x.gather(1, i), R(3, 6, 4), N(6, 3, 2, 4), axis=1)
    row("gather", lambda x, i: x.gather(-1, i), R(3, 6), N(6, 3, 9), axis=-1)
    row("index_select", lambda x, i: x.index_select(1, i), R(3, 6, 4), N(6, 2), axis=1)
    row("index_select", lambda x, i: x.index_select(0, i), N(9, 3, 6), N(3, 8), axis=0)

    def overwritten(x: Tensor, z: Tensor) -> Tensor:
        return x.slice_scatter(z, 1, 1, 6, 2)

    row("slice_scatter", overwritten, R(2, 7, 3), R(2, 3, 3), axis=1, start=1, step=2)
    row("slice_scatter", lambda x, z: x.slice_scatter(z, 0, 2, 4), R(5, 3), R(2, 3),
        axis=0, start=2, step=1)  # fmt: skip
    for size in ((10, 14), (3, 4), (8, 9)):
        row("interpolate_nearest", lambda x, s=size: F.interpolate(x, s), R(1, 2, 5, 7), size=size)
        row("interpolate_bilinear",
            lambda x, s=size: F.interpolate(x, s, mode="bilinear", align_corners=False),
            R(2, 3, 5, 7), size=size)  # fmt: skip
    row("pixel_shuffle", lambda x: F.pixel_shuffle(x, 2), R(2, 12, 3, 4), factor=(2, 2))

    def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        return x * cos + torch.cat([-b, a], -1) * sin

    row("rope", rotated, R(2, 3, 5, 8), R(5, 8), R(5, 8))
    row("rope", rotated, R(2, 3, 5, 6), R(2, 1, 5, 6), R(2, 1, 5, 6))
    row("concat", lambda *x: torch.cat(x, 1), R(2, 3, 4), R(2, 5, 4), axis=1)
    row("concat", lambda *x: torch.cat(x, -1), R(2, 3), R(2, 1), R(2, 0), R(2, 4), axis=-1)
    row("concat", lambda *x: torch.cat(x, 0), N(9, 3), R(2), axis=0)
    row("concat", lambda *x: torch.cat(x, 0), R(3, 2), axis=0)
    row("stack", lambda *x: torch.stack(x, 1), R(2, 3), R(2, 3), R(2, 3), axis=1)
    row("stack", lambda *x: torch.stack(x, -1), R(2, 3), R(2, 3), axis=-1)
    row("stack", lambda *x: torch.stack(x, 0), R(), R(), axis=0)
    for a, b in (
        ((6, 4), (24,)), ((2, 12), (2, 3, 4)), ((2, 3, 4), (6, 4)), ((4, 6), (2, 12)),
        ((6, 4), (8, 3)), ((2, 6, 4), (3, 16)), ((5, 6), (10, 3)), ((1,), ()),
        ((2, 1, 3), (3, 1, 2)), ((0, 3), (3, 0)),
    ):  # fmt: skip
        row("reshape", lambda x, b=b: x.reshape(b), R(*a), size=b)

    # Reductions.
    for dims in ((0,), (1, 2), (0, 2), (0, 1, 2), (-1,)):
        row("sum", lambda x, d=dims: x.sum(d), y, dims=dims)
        row("mean", lambda x, d=dims: x.mean(d), y, dims=dims)
        row("amax", lambda x, d=dims: x.amax(d), y, dims=dims)
        row("amin", lambda x, d=dims: x.amin(d), y, dims=dims)
        row("var", lambda x, d=dims: x.var(d, correction=1), y, dims=dims, correction=1)
    row("var", lambda x: x.var(1, correction=0), y, dims=(1,), correction=0)
    row("sum", lambda x: x.sum(0), B(3, 4), dims=(0,))
    row("sum", lambda x: x.sum(0), N(9, 3, 4).int(), dims=(0,))
    row("sum", lambda x: x.sum(0), R(0, 4), dims=(0,))
    row("amax", lambda x: x.amax(1), N(9, 3, 4), dims=(1,))
    row("prod", lambda x: x.prod(1), y, dims=(1,))
    row("prod", lambda x: x.prod(0), N(4, 3, 2), dims=(0,))
    row("argmax", lambda x: x.argmax(1), N(4, 3, 9, 4).double(), axis=1)
    row("argmax", lambda x: x.argmax(-1), R(3, 9), axis=-1)
    row("argmin", lambda x: x.argmin(1), N(4, 3, 9, 4).double(), axis=1)
    for axis in (0, 1, -1):
        x = R(3, 4, 5)
        row("softmax", lambda x, a=axis: x.softmax(a), x, axis=axis)
        row("log_softmax", lambda x, a=axis: x.log_softmax(a), x, axis=axis)
        row("logsumexp", lambda x, a=axis: x.logsumexp(a), x, axis=axis)
        row("cumsum", lambda x, a=axis: x.cumsum(a), x, axis=axis)
        row("cummax", lambda x, a=axis: x.cummax(a).values, x, axis=axis)
    row("softmax", lambda x: x.softmax(0), R(7) * 1000, axis=0)
    row("cumsum", lambda x: x.cumsum(0), B(7), axis=0)
    row("cumsum", lambda x: x.cumsum(0), torch.tensor([1.0, math.nan, 2.0]), axis=0)
    sizes = (11, 12, 7)
    for rank, pool, average, adaptive in (
        (1, F.max_pool1d, F.avg_pool1d, F.adaptive_avg_pool1d),
        (2, F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d),
        (3, F.max_pool3d, F.avg_pool3d, F.adaptive_avg_pool3d),
    ):
        x = R(2, 3, *sizes[:rank])
        for kernel, s, p, d in (
            ((3, 3, 2), (2, 2, 1), (1, 1, 0), (1, 1, 1)),
            ((2, 3, 3), (1, 2, 2), (0, 1, 1), (2, 1, 1)),
        ):  # fmt: skip
            kernel, s, p, d = (t[:rank] for t in (kernel, s, p, d))
            row(f"max_pool{rank}d",
                lambda x, f=pool, k=kernel, s=s, p=p, d=d: f(x, k, s, p, d),
                x, kernel=kernel, stride=s, padding=p, dilation=d, extra=(0,) * rank)  # fmt: skip
            for include in (True, False):
                for ceil in (True, False):
                    extra = tuple(
                        _tail_padding(*t) if ceil else 0
                        for t in zip(sizes[:rank], kernel, s, p, strict=True)
                    )
                    row(f"avg_pool{rank}d",
                        lambda x, f=average, a=(kernel, s, p, ceil, include): f(x, *a),
                        x, kernel=kernel, stride=s, padding=p, extra=extra,
                        include_padding=include)  # fmt: skip
        for size in ((4, 7, 3), (1, 1, 1), (13, 5, 2)):
            row(f"adaptive_avg_pool{rank}d", lambda x, f=adaptive, s=size[:rank]: f(x, s),
                x, size=size[:rank])  # fmt: skip
    x = R(1, 2, 10, 13)
    row("max_pool2d", lambda x: F.max_pool2d(x, 3, 2, 0, 1, ceil_mode=True), x, kernel=(3, 3),
        stride=(2, 2), padding=(0, 0), dilation=(1, 1), extra=(1, 1))  # fmt: skip
    row("max_pool2d", lambda x: F.max_pool2d(x, 2, 2), -x.abs(), kernel=(2, 2), stride=(2, 2),
        padding=(0, 0), dilation=(1, 1), extra=(0, 0))  # fmt: skip

    # Normalizations.
    x = R(2, 6, 4, 5)
    for rank in (1, 2):
        r = x.shape[-rank:]
        for gamma, beta in ((R(*r), R(*r)), (None, None), (R(*r), None)):
            row("layer_norm", lambda x, a, b, r=r: F.layer_norm(x, r, a, b, 1e-5), x, gamma, beta,
                size=tuple(r), eps=1e-5)  # fmt: skip
        row("rms_norm", lambda x, a, r=r: F.rms_norm(x, r, a, 1e-6), x, R(*r),
            size=tuple(r), eps=1e-6)  # fmt: skip
    row("rms_norm", lambda x, a: F.rms_norm(x, (5,), a, 1e-6), x, None, size=(5,), eps=1e-6)
    for shape in ((2, 6, 4, 5), (3, 6), (2, 6, 7)):
        mean, var, gamma, beta = R(6), R(6).abs() + 0.1, R(6), R(6)
        for a, b in ((gamma, beta), (None, None)):
            row("batch_norm", lambda x, m, v, a, b: F.batch_norm(x, m, v, a, b, eps=1e-5),
                R(*shape), mean, var, a, b, eps=1e-5)  # fmt: skip
    row("group_norm", lambda x, a, b: F.group_norm(x, 3, a, b, 1e-5), x, R(6), R(6),
        groups=3, eps=1e-5)  # fmt: skip
    row("group_norm", lambda x, a, b: F.group_norm(x, 2, a, b, 1e-5), R(3, 4, 7), None, None,
        groups=2, eps=1e-5)  # fmt: skip
    row("local_response_norm", lambda x: F.local_response_norm(x, 5, 1e-2, 0.75, 1.5),
        R(2, 7, 3, 4), size=5, before=2, alpha=1e-2, beta=0.75, k=1.5)  # fmt: skip

    # Cells.
    def lstm(out: int) -> Callable[..., Tensor]:
        def step(x: Tensor, h: Tensor, c: Tensor, w: Tensor, u: Tensor, a: Tensor | None) -> Tensor:
            a = torch.zeros(w.shape[0], dtype=w.dtype) if a is None else a
            return torch.lstm_cell(x, [h, c], w, u, a, a * 0)[out]

        return step

    cell = (R(3, 5), R(3, 4), R(3, 4), R(16, 5), R(16, 4))
    row("lstm_cell", lstm(0), *cell, R(16), out="h1")
    row("lstm_cell", lstm(1), *cell, R(16), out="c1")
    row("lstm_cell", lstm(0), *cell, None)
    gru = (R(3, 5), R(3, 4), R(12, 5), R(12, 4))
    row("gru_cell", torch.gru_cell, *gru, R(12), R(12))
    row("gru_cell", lambda x, h, w, u, a, b: torch.gru_cell(x, h, w, u), *gru, None, None)
    return rows


def every() -> Sequence[tuple[str, int]]:
    """(operator, number of the row) for parametrizing."""
    return [(name, k) for name, cases in table().items() for k in range(len(cases))]


def case(name: str, k: int) -> Case:
    return table()[name][k]
