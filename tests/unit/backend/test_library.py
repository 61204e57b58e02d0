"""Library calls as text: written, read back, resolved and run."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from whet.backend.library import Operand, read_call, resolve, run_opaque, write_call
from whet.errors import UnsupportedError
from whet.ir.graph import leaf, opaque
from whet.ir.types import DType, TensorType

ARGUMENTS = [
    Operand(3), None, True, -7, 2.5, -1e-300, math.inf, -math.inf, "", "it's 100% #1 %0",
    [Operand(0), [1, -2.0], []], torch.float32, torch.bfloat16, torch.strided,
    torch.contiguous_format, torch.device("cpu"), torch.device("cuda:1"),
]  # fmt: skip


@pytest.mark.parametrize("value", ARGUMENTS, ids=repr)
def test_argument_round_trips(value: object) -> None:
    text = write_call("aten.add.Tensor", [value, Operand(0)], {"name": value})
    assert read_call(text) == ("aten.add.Tensor", (value, Operand(0)), {"name": value})


def test_nan_and_note() -> None:
    text = write_call("aten.rand.default", [math.nan], {}, note="draw 3")
    assert text == "aten.rand.default(nan)  # draw 3"
    target, (value,), kwargs = read_call(text)
    assert (target, kwargs) == ("aten.rand.default", {})
    assert isinstance(value, float)
    assert math.isnan(value)


@pytest.mark.parametrize("value", [object(), {1: 2}, 1j, slice(0, 1)])
def test_what_cannot_be_written_is_refused(value: object) -> None:
    with pytest.raises(UnsupportedError, match="cannot be written down"):
        write_call("aten.add.Tensor", [value], {})


@pytest.mark.parametrize("text", ["", "5", "f(", "f(x)", "f(__import__('os'))", "f(lambda: 0)"])
def test_what_is_no_call_is_refused(text: str) -> None:
    with pytest.raises(UnsupportedError, match="does not read"):
        read_call(text)


def test_unknown_operator() -> None:
    with pytest.raises(UnsupportedError, match="no operator mylib.nothing.default"):
        resolve("mylib.nothing.default")


def run(target: str, tensors: list[Tensor], args: list[Any], **kwargs: Any) -> list[Tensor]:
    names = {torch.float64: DType.f64, torch.int64: DType.i64}
    types = [TensorType(names[t.dtype], tuple(t.shape)) for t in tensors]
    leaves = [leaf("input", f"x{k}", t) for k, t in enumerate(types)]
    node = opaque(target, leaves, write_call(target, args, kwargs), [types[0]])
    return run_opaque(node, tensors)


def test_results_are_flat() -> None:
    x = torch.randn(4, 6, dtype=torch.float64)
    values, places = run("aten.topk.default", [x], [Operand(0), 2], largest=False)
    want = torch.topk(x, 2, largest=False)
    assert torch.equal(values, want.values)
    assert torch.equal(places, want.indices)
    assert len(run("aten.split.Tensor", [x], [Operand(0), 2, 1])) == 3


def test_lists_of_operands() -> None:
    x, y = torch.ones(2, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    (z,) = run("aten.cat.default", [x, y], [[Operand(1), Operand(0)]])
    assert torch.equal(z, torch.cat([y, x]))


def test_strided_operands_are_made_contiguous() -> None:
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64)
    g = torch.randn(2, 4, 3, 3, dtype=torch.float64)
    _, mean, rstd = torch.native_group_norm(x, None, None, 2, 4, 9, 2, 1e-5)

    def last(t: Tensor) -> Tensor:
        return t.to(memory_format=torch.channels_last)

    args = [Operand(0), Operand(1), Operand(2), Operand(3), None, 2, 4, 9, 2, [True, False, False]]
    name = "aten.native_group_norm_backward.default"
    (want, *_), (got, *_) = (run(name, [f(g), f(x), mean, rstd], args) for f in (lambda t: t, last))
    torch.testing.assert_close(got, want)
