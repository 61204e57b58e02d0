"""Every handler against torch: a call is captured and its graph evaluated from the records.

One row a call: the function, and the shapes of its float64 arguments or the arguments themselves.
"""

# ruff: noqa: E501, PLW0108  (a row of a table stays one row, and spells out what is called)

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from whet.backend.library import run_opaque
from whet.capture.torch import capture
from whet.ir.interp import FLOAT64, NATIVE, evaluate
from whet.ir.types import DType

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


class Function(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any) -> Any:
        return self.function(*args)


def tensor(like: object) -> object:
    """A shape becomes a seeded float64 tensor; all else stays."""
    if isinstance(like, tuple) and all(isinstance(n, int) for n in like):
        return torch.randn(like, dtype=torch.float64)
    return like


def ints(*shape: int, low: int = 0, high: int) -> Tensor:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(5))


def bools(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(6)) > 0.4


def agree(
    function: Callable[..., Any], arguments: Sequence[object], foreign: Sequence[str]
) -> None:
    """The captured graph gives what the function gives, and nothing but `foreign` is opaque."""
    __tracebackhide__ = True
    args = tuple(map(tensor, arguments))
    module = Function(function).eval()
    want = module(*args)
    captured = capture(module, args)
    narrow = any(n.dtype.is_float and n.dtype is not DType.f64 for n in captured.graph.nodes)
    ring, tolerance = (NATIVE, 1e-6) if narrow else (FLOAT64, 1e-9)
    results = evaluate(captured.graph, captured.feeds(args), ring, run_opaque)
    got = captured.answer(results, args)
    assert pytree.tree_structure(got) == pytree.tree_structure(want)
    for a, b in zip(pytree.tree_leaves(got), pytree.tree_leaves(want), strict=True):
        if isinstance(b, Tensor):
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)
        else:
            assert a == b
    assert [f.target for f in captured.foreign] == list(foreign)


A, B = (3, 4), (2, 3, 4)
I4, I35 = ints(3, 4, low=-5, high=6), ints(3, 5, high=4)
U = bools(3, 4)
IMAGE = (2, 4, 7, 9)

# fmt: off
POINTWISE = [
    (lambda x: torch.exp(x) + torch.sin(x) * torch.tanh(x), [A]),
    (lambda x: torch.log(x.abs() + 1).sqrt().rsqrt(), [A]),
    (lambda x: x.floor() + x.ceil() + x.round() + x.trunc() + x.sign() + x.sgn(), [A]),
    (lambda x: torch.erf(x) + torch.expm1(x) + torch.log1p(x.square()) + x.reciprocal(), [A]),
    (lambda x: -x + 1 - x * 2 + 3 / (x.abs() + 1), [A]),
    (lambda x, y: torch.add(x, y, alpha=3) - torch.sub(x, y, alpha=0.5), [A, A]),
    (lambda x: torch.rsub(x, 2, alpha=3), [A]),
    (lambda x, y: x * y + x / y, [B, (1, 4)]),
    (lambda x: x ** 2 + x ** 3 + x.abs() ** 0.5 + x.abs() ** -0.5 + 2 ** x + x ** 1, [A]),
    (lambda x, y: x.abs() ** y, [A, A]),
    (lambda x, y: (x % y, torch.fmod(x, y), x // y), [A, A]),
    (lambda x, y: (torch.div(x, y, rounding_mode="floor"), torch.div(x, y, rounding_mode="trunc")), [A, A]),
    (lambda x: (x % 3, x // 3, torch.div(x, 3, rounding_mode="trunc"), torch.fmod(x, 3)), [I4]),
    (lambda x: (x + 1, x * 2.5, x / 2, x.sqrt(), x ** 2, x - x), [I4.abs()]),
    (lambda x, y: (x < y, x <= 0, x > y, x >= 1.5, x == y, x != 0), [A, A]),
    (lambda x: (x < 1.5, x == 2, x > 0), [I4]),
    (lambda m, x: (m & (x > 0), m | (x > 0), m ^ (x > 0), ~m), [U, A]),
    (lambda m: (m + m, m * m, m.logical_not(), m.sum(), m.any(), m.all(1)), [U]),
    (lambda x: (x & 3, x | 1, x ^ 2, ~x), [I4]),
    (lambda x, y: (x.logical_and(y), x.logical_or(y), x.logical_xor(y)), [I4, U]),
    (lambda m, x: (torch.where(m, x, 0.0), torch.where(m, 1, x), torch.where(m, x, -x)), [U, A]),
    (lambda m, x: x.masked_fill(m, float("-inf")), [U, A]),
    (lambda x: (x.clamp(-1, 1), x.clamp(min=0), x.clamp(max=0.5), F.relu6(x), F.hardtanh(x, -2, 1)), [A]),
    (lambda x: (x.clamp(-2, 3), x.clamp(min=1)), [I4]),
    (lambda x, y: (x.clamp(min=y), torch.maximum(x, y), torch.minimum(x, y), torch.max(x, y)), [A, A]),
    (lambda x: (F.relu(x), F.silu(x), F.gelu(x), F.gelu(x, approximate="tanh"), x.sigmoid()), [A]),
    (lambda x: (F.leaky_relu(x, 0.2), F.elu(x, 0.7), F.selu(x), F.celu(x, 1.3)), [A]),
    (lambda x: (F.softplus(x, 2, 1), F.mish(x), F.hardswish(x), F.hardsigmoid(x), F.logsigmoid(x)), [A]),
    (lambda x: (F.softsign(x), F.tanhshrink(x), F.softshrink(x), F.hardshrink(x), F.threshold(x, 0.1, 5)), [A]),
    (lambda x, w: F.prelu(x, w), [B, (3,)]),
    (lambda x, w: F.prelu(x, w), [B, (1,)]),
    (lambda x: F.glu(x, dim=-1), [A]),
    (lambda x, y: (torch.lerp(x, y, 0.3), torch.addcmul(x, x, y, value=2), torch.addcdiv(x, x, y.abs() + 1)), [A, A]),
    (lambda x: (x.float(), x.to(torch.int64), x.bool(), x.half().float(), x.to(torch.bfloat16)), [A]),
    (lambda x, y: (x.float() + y, x.float() * 1.5, y + x.int()), [A, A]),
    (lambda x, s: (x.float() + s, x.float() * s), [A, ()]),
    (lambda x, y: torch.atan2(x, y), [A, A]),
    (lambda x: (torch.isnan(x / 0), torch.isinf(x / 0), torch.nan_to_num(x)), [A]),
    (lambda x: F.dropout(x, 0.5, training=False), [A]),
    (lambda x: (torch.logit(x.sigmoid()), torch.special.expit(x), torch.square(x)), [A]),
]
MOVEMENT = [
    (lambda x: (x.view(6, 4), x.reshape(-1), x.flatten(1), x.unflatten(2, (2, 2)), x.view(3, 8)), [B]),
    (lambda x: (x.unsqueeze(0), x.unsqueeze(-1), x[:, :1].squeeze(), x[:1].squeeze(0), x.squeeze(1)), [B]),
    (lambda x: (x.permute(2, 0, 1), x.transpose(0, -1), x.mT, x.movedim(0, 2), x.movedim((0, 1), (2, 0))), [B]),
    (lambda x: (x.t(), x.T, x.swapaxes(0, 1)), [A]),
    (lambda x: (x.expand(5, 3, 4), x[:1].expand(3, -1), x[:, :1].expand_as(x), x[:1].broadcast_to(2, 4)), [A]),
    (lambda x: (x.repeat(2, 1), x.repeat(2, 3, 1), x.tile(2), torch.tile(x, (2, 2, 2))), [A]),
    (lambda x: (x.repeat_interleave(3, 1), x.repeat_interleave(2), x.repeat_interleave(2, dim=0)), [A]),
    (lambda x: (x[0], x[:, -1], x[..., 1], x.select(1, -2)), [B]),
    (lambda x: (x[1:], x[:, -3:-1], x[:, ::2], x[:100], x[-100:2], x[:, 1:1], x[2:1]), [A]),
    (lambda x: (x.narrow(1, 1, 2), x.narrow(1, -3, 2)), [A]),
    (lambda x: (x.split(2, 1), x.chunk(3, 1), x.split([1, 3], 1), x.tensor_split(3, 1), x.unbind(1)), [A]),
    (lambda x, y: (torch.cat([x, y], -1), torch.cat([x, x, x]), torch.stack([x, y], 1), torch.stack([x, y], -1)), [A, A]),
    (lambda x: torch.cat([x, x.float(), x.int()], 1), [A]),
    (lambda x, e: torch.cat([e, x], 1), [A, torch.empty(0, dtype=torch.float64)]),
    (lambda x, y: (torch.hstack([x, y]), torch.vstack([x, y]), torch.dstack([x, y])), [A, A]),
    (lambda x: (x.flip(0), x.flip(-1, 0), x.roll(1, 1), x.roll(-2), x.roll((1, 2), (0, 1))), [A]),
    (lambda x: (x.tril(), x.triu(1), x.tril(-1), x.diagonal(), x.diagonal(1), x.diagonal(-1)), [A]),
    (lambda x: (x.diagonal(1, 1, 2), x.diagonal(0, 0, 2)), [B]),
    (lambda x: (F.pad(x, (1, 2)), F.pad(x, (1, -1, 0, 2), value=3.0), F.pad(x, (-1, -1))), [A]),
    (lambda x: (F.pad(x, (1, 2, 3, 1), mode="reflect"), F.pad(x, (1, 2, 0, 1), mode="replicate")), [IMAGE]),
    (lambda x: F.pad(x, (1, 2, 3, 1), mode="circular"), [IMAGE]),
    (lambda x: (F.pixel_shuffle(x, 2), F.pixel_unshuffle(x[..., :6, :8], 2), F.channel_shuffle(x, 2)), [IMAGE]),
    (lambda x: (x.unfold(1, 2, 1), x.unfold(-1, 3, 2)), [(3, 9)]),
    (lambda x: (x.contiguous(), x.clone(), x.detach(), x + 0), [A]),
    (lambda x: (torch.slice_scatter(x, x[:, :2] * 2, 1, 1, 3), torch.select_scatter(x, x[0] * 2, 0, 1)), [A]),
    (lambda x: (torch.atleast_3d(x), x.view_as(x), x.reshape_as(x), x.ravel()), [A]),
    (lambda x: x.as_strided((2, 2), (1, 2), 1), [A]),
    (lambda x, y: torch.meshgrid(x, y, indexing="ij"), [(3,), (4,)]),
]
CREATION = [
    (lambda x: (torch.zeros(2, 3), torch.ones_like(x), torch.full((2,), 7), torch.full_like(x, 2.5)), [A]),
    (lambda x: (x.new_zeros(3), x.new_ones(2, 2), x.new_full((2,), 3.0), torch.zeros_like(x).int()), [A]),
    (lambda x: x + torch.arange(4) + torch.arange(1, 9, 2) + torch.arange(0.0, 1.0, 0.25), [A]),
    (lambda x: x + torch.eye(3, 4, dtype=torch.float64), [A]),
    (lambda x: x + torch.tensor([1.0, 2.0, 3.0, 4.0]), [A]),
    (lambda x: x + torch.linspace(0, 1, 4, dtype=torch.float64), [A]),
    (lambda x: torch.tril(torch.ones(4, 4, dtype=torch.bool)).logical_not() & (x > 0).any(), [A]),
]
CONTRACTION = [
    (lambda x, y: x @ y, [A, (4, 5)]),
    (lambda x, y: x @ y, [B, (4, 5)]),
    (lambda x, y: x @ y, [(4,), (2, 4, 3)]),
    (lambda x, y: x @ y, [B, (4,)]),
    (lambda x, y: (x @ y, torch.dot(x, y)), [(4,), (4,)]),
    (lambda x, y: x @ y, [(2, 1, 3, 4), (5, 4, 2)]),
    (lambda x, y: (torch.bmm(x, y), torch.mm(x[0], y[0]), torch.mv(x[0], y[0, :, 0])), [B, (2, 4, 5)]),
    (lambda b, x, y: (torch.addmm(b, x, y, beta=0.5, alpha=2), torch.addmm(b, x, y, beta=0)), [(5,), A, (4, 5)]),
    (lambda b, x, y: torch.baddbmm(b, x, y, alpha=0.1), [(2, 3, 5), B, (2, 4, 5)]),
    (lambda b, x, y: torch.addmv(b, x, y), [(3,), A, (4,)]),
    (lambda x, w, b: (F.linear(x, w, b), F.linear(x, w), F.linear(x[0, 0], w, b)), [B, (5, 4), (5,)]),
    (lambda x, w: F.linear(x, w), [A, (4,)]),
    (lambda x, y: torch.einsum("bij,bjk->bik", x, y), [B, (2, 4, 5)]),
    (lambda x, y: torch.einsum("...ij,jk", x, y), [B, (4, 5)]),
    (lambda x, y: torch.einsum("bhi,bhj->ijh", x, y), [B, (2, 3, 5)]),
    (lambda x, y: torch.outer(x, y), [(3,), (4,)]),
    (lambda x, y: F.bilinear(x, x, y), [A, (5, 4, 4)]),
    (lambda x, y: (torch.tensordot(x, y, dims=1), torch.kron(x, y)), [A, (4, 5)]),
    (lambda x, w, b: F.conv1d(x, w, b, stride=2, padding=1), [(2, 4, 9), (6, 4, 3), (6,)]),
    (lambda x, w, b: F.conv2d(x, w, b, stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2), [IMAGE, (6, 2, 3, 2), (6,)]),
    (lambda x, w: F.conv2d(x, w), [(4, 7, 9), (6, 4, 3, 2)]),
    (lambda x, w: (F.conv2d(x, w, padding="same"), F.conv2d(x, w, padding="valid")), [IMAGE, (6, 4, 4, 3)]),
    (lambda x, w: F.conv3d(x, w, padding=1), [(1, 2, 4, 5, 6), (3, 2, 2, 3, 2)]),
    (lambda x, w, b: F.conv_transpose1d(x, w, b, stride=2, padding=1), [(2, 4, 5), (4, 3, 3), (3,)]),
    (lambda x, w, b: F.conv_transpose2d(x, w, b, (2, 3), (1, 0), (1, 2), 2, (1, 2)), [IMAGE, (4, 3, 3, 2), (6,)]),
    (lambda q, k, v: F.scaled_dot_product_attention(q, k, v), [(2, 3, 5, 4), (2, 3, 6, 4), (2, 3, 6, 7)]),
    (lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3), [(2, 3, 5, 4), (2, 3, 5, 4), (2, 3, 5, 4)]),
    (lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, m), [(2, 3, 5, 4), (2, 3, 6, 4), (2, 3, 6, 4), (5, 6)]),
    (lambda q, k, m: F.scaled_dot_product_attention(q, k, k, m), [(2, 3, 5, 4), (2, 3, 6, 4), bools(2, 1, 5, 6) | (torch.arange(6) == 2)]),
    (lambda q, k: F.scaled_dot_product_attention(q, k, k, enable_gqa=True), [(2, 6, 5, 4), (2, 3, 7, 4)]),
    (lambda q: F.scaled_dot_product_attention(q, q, q), [B]),
    (lambda q: F.scaled_dot_product_attention(q, q, q), [A]),
]
REDUCTION = [
    (lambda x: (x.sum(), x.sum(1), x.sum((0, -1), keepdim=True), x.mean(), x.mean(-1, keepdim=True)), [B]),
    (lambda x: (x.sum(), x.sum(1), x.float().mean(), x.prod(0), x.sum(dtype=torch.float64)), [I4]),
    (lambda x: (x.prod(), x.prod(1), x.amax(), x.amax((0, 1)), x.amin(-1, True), x.max(), x.min()), [B]),
    (lambda x: (x.max(1), x.min(-1, keepdim=True), x.max(0).values, x.argmax(), x.argmin(1), x.argmax(keepdim=True)), [B]),
    (lambda x: (x.var(), x.var(1), x.std(-1, correction=0), torch.var_mean(x, 1), torch.std_mean(x, 0)), [B]),
    (lambda x: (x.softmax(-1), x.softmax(0), x.log_softmax(1), x.softmax(-1, dtype=torch.float32)), [B]),
    (lambda x: (x.logsumexp(1), x.logsumexp((0, 2), keepdim=True)), [B]),
    (lambda x: (x.cumsum(1), x.cumsum(-1), x.int().cumsum(0), x.cummax(1).values), [B]),
    (lambda x: (x.norm(), x.norm(dim=1), x.norm(p=1, dim=-1), torch.linalg.vector_norm(x, float("inf"))), [B]),
    (lambda x: (F.normalize(x, dim=1), F.cosine_similarity(x, x.flip(0), dim=-1)), [B]),
    (lambda x: (torch.diff(x), torch.diff(x, n=2, dim=0), torch.diff(x, prepend=x[:, :1])), [A]),
    (lambda m: (m.any(), m.all(), m.any(1), m.all(0, keepdim=True), torch.diff(m)), [U]),
    (lambda x: (x.any(), x.count_nonzero(), x.nansum(1)), [A]),
    (lambda x, y: (F.mse_loss(x, y), F.l1_loss(x, y), F.smooth_l1_loss(x, y)), [A, A]),
    (lambda x, t: (F.cross_entropy(x, t), F.nll_loss(x.log_softmax(1), t)), [(3, 4), ints(3, high=4)]),
    (lambda x: F.cross_entropy(x, x.softmax(1)), [A]),
]
POOLING = [
    (lambda x: (F.max_pool2d(x, 2), F.max_pool2d(x, 3, 2, 1), F.max_pool2d(x, (3, 2), (2, 1), (1, 0), (1, 2))), [IMAGE]),
    (lambda x: (F.max_pool2d(x, 3, 2, ceil_mode=True), F.max_pool2d(x, 2, 2, 1, ceil_mode=True)), [IMAGE]),
    (lambda x: (F.max_pool1d(x, 3, 2), F.max_pool1d(x[0], 2)), [(2, 4, 9)]),
    (lambda x: F.max_pool3d(x, 2, 1, 1), [(1, 2, 4, 5, 6)]),
    (lambda x: (F.avg_pool2d(x, 2), F.avg_pool2d(x, 3, 2, 1), F.avg_pool2d(x, 3, 2, 1, count_include_pad=False)), [IMAGE]),
    (lambda x: (F.avg_pool2d(x, 3, 2, 1, ceil_mode=True), F.avg_pool2d(x, 2, 3, 1, True, False)), [IMAGE]),
    (lambda x: F.avg_pool2d(x, 3, 2, 1, divisor_override=5), [IMAGE]),
    (lambda x: (F.avg_pool1d(x, 3, 2, 1), F.adaptive_avg_pool1d(x, 4)), [(2, 4, 9)]),
    (lambda x: (F.adaptive_avg_pool2d(x, 1), F.adaptive_avg_pool2d(x, (3, 2)), F.adaptive_avg_pool2d(x[0], (None, 4))), [IMAGE]),
    (lambda x: (F.adaptive_max_pool2d(x, 1), F.adaptive_max_pool2d(x[..., :6, :8], (3, 2))), [IMAGE]),
    (lambda x: (F.interpolate(x, scale_factor=2), F.interpolate(x, size=(5, 3)), F.interpolate(x, size=11)), [IMAGE]),
    (lambda x: (F.interpolate(x, scale_factor=2, mode="bilinear"), F.interpolate(x, size=(5, 12), mode="bilinear")), [IMAGE]),
    (lambda x: F.interpolate(x, scale_factor=3), [(2, 3, 5)]),
]
NORMALIZATION = [
    (lambda x, w, b: (F.layer_norm(x, (4,), w, b), F.layer_norm(x, (3, 4)), F.layer_norm(x, (4,), w)), [B, (4,), (4,)]),
    (lambda x, w: (F.rms_norm(x, (4,), w, 1e-5), F.rms_norm(x, (4,))), [B, (4,)]),
    (lambda x, w, b: (F.group_norm(x, 2, w, b), F.group_norm(x, 4), F.instance_norm(x)), [IMAGE, (4,), (4,)]),
    (lambda x, m, v, w, b: (F.batch_norm(x, m, v.abs(), w, b), F.batch_norm(x, m, v.abs())), [IMAGE, (4,), (4,), (4,), (4,)]),
    (lambda x, w: F.batch_norm(x, None, None, w, training=True), [IMAGE, (4,)]),
    (lambda x: F.local_response_norm(x, 3), [IMAGE]),
    (lambda x, w, b: torch.native_layer_norm(x, (4,), w, b, 1e-5), [B, (4,), (4,)]),
]
INDEXING = [
    (lambda t, i: (F.embedding(i, t), F.embedding(i, t, padding_idx=0), t[i]), [(4, 6), I35]),
    (lambda x, i: (x[i], x[:, i], x[i, i], x[0, i], x[..., i]), [(4, 4, 5), ints(3, low=-4, high=4)]),
    (lambda x, i: (x[i, :, i], x[:, i, i], x[i[:, None], i], x[:, :, None, i]), [(4, 4, 5), ints(3, low=-4, high=4)]),
    (lambda x, i: (x.index_select(1, i), x.index_select(-1, i)), [(3, 4, 5), ints(3, high=4)]),
    (lambda x, i: x.gather(1, i), [(3, 4), I35]),
    (lambda x, i: (x.gather(0, i), torch.take_along_dim(x, i, 0)), [(4, 6), ints(2, 6, high=4)]),
    (lambda x: (x[[0, 2]], x[:, [1, 3, -1]], x[torch.arange(3), torch.arange(3)]), [A]),
    (lambda x, i: x.scatter_add(1, i, torch.ones_like(x)[:, :2]), [A, ints(3, 2, high=4)]),
    (lambda x, i: x.scatter(1, i, 7.0), [A, ints(3, 1, high=4)]),
    (lambda i: F.one_hot(i, 4), [ints(3, high=4)]),
]
# fmt: on
TABLES = {
    "pointwise": POINTWISE,
    "movement": MOVEMENT,
    "creation": CREATION,
    "contraction": CONTRACTION,
    "reduction": REDUCTION,
    "pooling": POOLING,
    "normalization": NORMALIZATION,
    "indexing": INDEXING,
}
CASES = [
    pytest.param(function, arguments, id=f"{table}-{k}")
    for table, rows in TABLES.items()
    for k, (function, arguments) in enumerate(rows)
]


@pytest.mark.parametrize(("function", "arguments"), CASES)
def test_call_equals_torch(function: Callable[..., Any], arguments: list[object]) -> None:
    agree(function, arguments, ())
