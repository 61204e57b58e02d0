"""docs/adding-an-operator.md, run: a new operator is its record, and gets every derivation."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from whet.ir import ops
from whet.ir.adjoint import adjoint
from whet.ir.axes import classify
from whet.ir.cost import flops, touched
from whet.ir.gradient import grad
from whet.ir.graph import Graph, apply, leaf
from whet.ir.interp import FIELD, evaluate, run_instance, sample
from whet.ir.nest import c_text, nest
from whet.ir.ops import define, instance
from whet.ir.types import DType, Poly, TensorType
from whet.rewrite.bounds import in_bounds

PAGE = Path(__file__).parents[3] / "docs" / "adding-an-operator.md"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


@pytest.fixture
def table() -> Iterator[None]:
    """The table, put back afterwards."""
    before = dict(ops.TABLE)
    yield
    ops.TABLE.clear()
    ops.TABLE.update(before)
    instance.cache_clear()


def run_page() -> None:
    names = {
        "define": define, "instance": instance, "run_instance": run_instance, "flops": flops,
        "touched": touched, "classify": classify, "nest": nest, "c_text": c_text,
        "adjoint": adjoint, "in_bounds": in_bounds, "torch": torch,
    }  # fmt: skip
    blocks = BLOCK.findall(PAGE.read_text(encoding="utf-8"))
    assert len(blocks) == 3
    for block in blocks:
        exec(compile(block, PAGE.name, "exec"), names)


@pytest.mark.usefixtures("table")
def test_the_page_runs() -> None:
    run_page()
    assert {"mish", "running_mean"} <= set(ops.TABLE)


@pytest.mark.usefixtures("table")
def test_a_new_operator_is_like_any_other_in_a_graph() -> None:
    run_page()
    kind = TensorType(DType.f32, (3, 5))
    x = leaf("input", "x", kind)
    node = apply("mish", apply("running_mean", x, None, axis=-1))
    assert node.type == kind
    g = Graph((x,), (node,))
    data = torch.randn(3, 5, dtype=torch.float64)
    (got,) = evaluate(g, {"x": data})
    want = torch.nn.functional.mish(data.cumsum(1) / torch.arange(1, 6))
    torch.testing.assert_close(got, want)
    residues = sample(kind, FIELD, torch.Generator().manual_seed(0))
    assert evaluate(g, {"x": residues}, FIELD)[0].shape == (3, 5)


@pytest.mark.usefixtures("table")
def test_a_new_operator_has_gradients_in_graphs() -> None:
    run_page()
    kind = TensorType(DType.f64, (3, 5))
    x, scale = leaf("input", "x", kind), leaf("parameter", "scale", TensorType(DType.f64, (3,)))
    y = apply("mish", apply("running_mean", x, scale, axis=1))
    joint = grad(Graph((x,), (y,)), (x, scale))
    assert {"running_mean~scale", "running_mean~x", "mish~x"} <= {n.op for n in joint.nodes}
    tx, ts, dy = torch.randn(3, 5), torch.randn(3), torch.randn(3, 5)
    tx, ts, dy = (t.double().requires_grad_() for t in (tx, ts, dy))
    mean = tx.cumsum(1) / torch.arange(1, 6) * ts[:, None]
    want = torch.autograd.grad(torch.nn.functional.mish(mean), (tx, ts), dy)
    got = evaluate(joint, {"x": tx, "scale": ts, "d_0": dy})[1:]
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)
    symbolic = instance(
        "running_mean", ((Poly.symbol("N"), Poly.symbol("I")), (Poly.symbol("N"),)), (("axis", 1),)
    )
    for operand in ("x", "scale"):
        assert not in_bounds(adjoint(symbolic, operand)).unproven


def test_the_table_is_as_it_was() -> None:
    assert "mish" not in ops.TABLE
