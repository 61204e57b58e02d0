"""Every call of torch's computes what the operator's record says, and hides no memory."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.unit.ir.cases import Case, case, every
from whet.backend import aten
from whet.ir.graph import apply, leaf, opaque
from whet.ir.interp import NATIVE, run_instance
from whet.ir.ops import TABLE
from whet.ir.types import DType, TensorType

RECORD_ONLY: frozenset[str] = frozenset()
"""Operators for which torch has no call, knowingly."""

ROWS = [(name, k) for name, k in every() if name in aten.CALLS]

R = torch.randn
_POOL = {"kernel": (3, 2), "stride": (2, 3), "padding": (1, 0)}
MORE: list[Case] = [
    Case(name, xs, attrs, lambda *xs: xs[0], out)
    for name, xs, attrs, out in (
        # No dims are no dims, not all of them.
        *((n, (R(2, 3),), {"dims": ()}, None) for n in ("sum", "mean", "amax", "amin", "prod")),
        ("sum", (torch.tensor([True, False]),), {"dims": ()}, None),
        ("prod", (torch.tensor([3, 4]),), {"dims": ()}, None),
        ("prod", (R(2, 3, 4),), {"dims": (0, -1)}, None),
        # Bounds that are none leave integers integers.
        ("clamp", (torch.arange(-3, 4),), {"low": 0, "high": math.inf}, None),
        ("clamp", (torch.arange(-3, 4),), {"low": -math.inf, "high": math.inf}, None),
        # A mask and the causal triangle together, rectangular.
        ("attention", (R(2, 4, 3, 5), R(2, 2, 6, 5), R(2, 2, 6, 7), R(2, 1, 3, 6)),
         {"scale": 0.4, "causal": True, "group": 2}, None),
        # Affine parameters, one without the other.
        ("layer_norm", (R(2, 3, 5), None, R(5)), {"size": (5,), "eps": 1e-5}, None),
        ("group_norm", (R(2, 6, 5), None, R(6)), {"groups": 3, "eps": 1e-5}, None),
        ("group_norm", (R(2, 6, 5), R(6), None), {"groups": 2, "eps": 1e-5}, None),
        ("batch_norm", (R(2, 6, 5), R(6), R(6).abs(), R(6), None), {"eps": 1e-5}, None),
        ("batch_norm", (R(2, 6, 5), R(6), R(6).abs(), None, R(6)), {"eps": 1e-5}, None),
        ("gru_cell", (R(3, 5), R(3, 4), R(12, 5), R(12, 4), R(12), None), {}, None),
        ("lstm_cell", (R(3, 5), R(3, 4), R(3, 4), R(16, 5), R(16, 4), None), {}, "c1"),
        # Geometry that torch's pools refuse, or would end with another window.
        ("max_pool2d", (R(1, 2, 7, 8),), _POOL | {"padding": (2, 1), "dilation": (1, 1),
         "extra": (0, 0)}, None),
        ("max_pool2d", (R(1, 2, 8, 10),), _POOL | {"dilation": (1, 1), "extra": (1, 0)}, None),
        ("avg_pool2d", (R(1, 2, 8, 9),), _POOL | {"extra": (0, 2), "include_padding": True}, None),
        ("avg_pool2d", (R(1, 2, 9, 8),), _POOL | {"extra": (1, 0), "include_padding": False},
         None),
        ("arange", (), {"size": 5, "start": 0.1, "step": 0.1, "dtype": DType.f64}, None),
        ("local_response_norm", (R(2, 6, 5),), {"size": 4, "before": 1, "alpha": 0.5,
         "beta": 0.75, "k": 2.0}, None),
        ("local_response_norm", (R(2, 6),), {"size": 3, "before": 1, "alpha": 0.5, "beta": 0.75,
         "k": 2.0}, None),
        ("interpolate_nearest", (R(1, 2, 49, 5),), {"size": (48, 5)}, None),
        ("gather", (R(3, 6), torch.tensor([[1], [5], [0]]).int()), {"axis": 1}, None),
        ("einsum", (R(2, 3),), {"equation": "ab->ba"}, None),
    )
]  # fmt: skip


def test_every_operator_has_a_call_or_is_known_not_to() -> None:
    assert set(TABLE) == set(aten.CALLS) | RECORD_ONLY
    assert not RECORD_ONLY & set(aten.CALLS)


def agrees(c: Case, dtype: torch.dtype, tolerance: float) -> None:
    node, operands = c.node(dtype), c.cast(dtype)
    before = [None if x is None else x.clone() for x in operands]
    want = run_instance(node.instance, operands, NATIVE, c.out).to(aten.torch_dtype(node.dtype))
    for compute in (aten.bound(node), lambda *xs: aten.call(node, xs)):
        got: Tensor = compute(*operands)
        near = max(tolerance, 1e-6) if want.dtype == torch.float32 else tolerance
        torch.testing.assert_close(got, want, rtol=near, atol=near, equal_nan=True)
        held = {x.untyped_storage().data_ptr() for x in operands if x is not None and x.numel()}
        if node.op not in aten.VIEWS:
            assert got.untyped_storage().data_ptr() not in held
    for x, old in zip(operands, before, strict=True):
        assert x is None or old is None or torch.equal(x.nan_to_num(), old.nan_to_num())


@pytest.mark.parametrize(("name", "k"), ROWS)
def test_a_call_equals_the_record(name: str, k: int) -> None:
    c = case(name, k)
    agrees(c, torch.float64, 1e-9)
    if any(x is not None and x.is_floating_point() for x in c.operands):
        agrees(c, torch.float32, 1e-4)


@pytest.mark.parametrize("c", MORE, ids=repr)
def test_calls_at_the_edges(c: Case) -> None:
    agrees(c, torch.float64 if c.name == "arange" else torch.float32, 1e-5)


@pytest.mark.parametrize("name", ["linear", "conv2d", "softmax", "layer_norm", "gelu", "attention"])
def test_calls_keep_bfloat16(name: str) -> None:
    c = case(name, 0)
    got = aten.call(c.node(torch.bfloat16), c.cast(torch.bfloat16))
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.double(), c.want(), rtol=0.05, atol=0.1)


def test_what_torch_cannot_take_goes_through_the_record() -> None:
    pools = [c for c in MORE if c.name.endswith("_pool2d")]
    assert [aten.has_call(c.node()) for c in pools] == [False, False, False, True]
    assert aten.has_call(case("max_pool2d", 0).node())


def test_library_calls_with_several_results() -> None:
    x = leaf("input", "x", TensorType(DType.f32, (2, 6)))
    part = TensorType(DType.f32, (2, 3))
    several = opaque("aten.split", [x], "aten.split.Tensor(%0, 3, 1)", [part, part])
    value = R(2, 6)
    found = aten.call(several, [value])
    assert [t.shape for t in found] == [(2, 3), (2, 3)]
    one = opaque("aten.split", [x], "aten.split.Tensor(%0, 6, 1)", [TensorType(DType.f32, (2, 6))])
    assert torch.equal(aten.bound(one)(value), value)
    assert not aten.has_call(apply("neg", x)) or aten.has_call(several)
