"""Single operators as naive loops: what threads may share."""

from __future__ import annotations

import pytest

from whet.backend.naive import naive
from whet.backend.piece import Generated, Value
from whet.ir.graph import Node, apply, leaf
from whet.ir.types import DType, TensorType


def source(node: Node) -> str:
    call = naive(node, tuple(map(Value, node.operands)), Value(node)).call
    assert isinstance(call, Generated)
    return call.text


@pytest.mark.parametrize("op", ["amax", "sum", "prod"])
def test_threads_do_not_share_what_all_turns_fold_into(op: str) -> None:
    x = leaf("input", "x", TensorType(DType.f32, (2730, 5)))
    assert "#pragma omp" not in source(apply(op, x, dims=(0, 1)))
    assert "#pragma omp parallel for collapse(1)" in source(apply(op, x, dims=(1,)))


def test_threads_share_loops_that_each_store_their_own() -> None:
    x = leaf("input", "x", TensorType(DType.f32, (2730, 5)))
    assert "#pragma omp parallel for collapse(2)" in source(apply("exp", x))
