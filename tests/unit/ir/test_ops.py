"""The admission of records: every operator of the table computes what torch says it does."""

from __future__ import annotations

import pytest
import torch

from tests.unit.ir.cases import DTYPES, Case, case, every, table
from whet.ir.graph import Graph
from whet.ir.interp import FLOAT32, FLOAT64, NATIVE, evaluate
from whet.ir.ops import TABLE


def graph_of(c: Case, dtype: torch.dtype = torch.float64) -> Graph:
    node = c.node(dtype)
    return Graph(node.operands, (node,))


def test_every_record_is_compared_with_torch() -> None:
    missing = sorted(set(TABLE) - set(table()))
    assert not missing, f"rows are missing in tests/unit/ir/cases.py for: {', '.join(missing)}"


@pytest.mark.parametrize("row", every(), ids=lambda r: f"{r[0]}-{r[1]}")
def test_equals_torch_in_float64(row: tuple[str, int]) -> None:
    c = case(*row)
    want = c.want()
    (got,) = evaluate(graph_of(c), c.feeds(), FLOAT64)
    assert got.shape == want.shape, c
    assert got.dtype == want.dtype or (got.dtype.is_floating_point and want.dtype.is_floating_point)
    close = 1e-5 if want.dtype == torch.float32 else 1e-10  # torch's answer to integers
    torch.testing.assert_close(
        got, want.to(got.dtype), rtol=close, atol=close, equal_nan=True, msg=lambda m: f"{c}: {m}"
    )


@pytest.mark.parametrize("row", every(), ids=lambda r: f"{r[0]}-{r[1]}")
def test_result_types_are_torchs(row: tuple[str, int]) -> None:
    c = case(*row)
    if c.attrs.get("dtype") is not None:
        assert c.node().dtype is c.attrs["dtype"]
        return
    want = c.want(torch.float32)
    node = c.node(torch.float32)
    assert node.dtype is DTYPES[want.dtype], c
    assert node.shape == tuple(want.shape), c
    for ring in (FLOAT32, NATIVE):
        (got,) = evaluate(graph_of(c, torch.float32), c.feeds(torch.float32), ring)
        assert got.dtype == want.dtype
        torch.testing.assert_close(got, want, rtol=2e-4, atol=2e-4, equal_nan=True)


@pytest.mark.parametrize("name", ["matmul", "linear", "conv2d", "softmax", "layer_norm", "gelu"])
def test_low_precision_is_rounded_once_for_each_assignment(name: str) -> None:
    c = case(name, 0)
    want = c.want(torch.bfloat16)
    (got,) = evaluate(graph_of(c, torch.bfloat16), c.feeds(torch.bfloat16), NATIVE)
    assert got.dtype == want.dtype == torch.bfloat16
    torch.testing.assert_close(got, want, rtol=4e-2, atol=4e-2)
