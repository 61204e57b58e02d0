"""torch's backward kernels against the derived records, at ties and kinks too."""

from __future__ import annotations

import pytest
import torch

from whet.backend.gradient import ALIKE, Siblings, gradient
from whet.ir.expr import loads
from whet.ir.graph import Graph, apply, leaf
from whet.ir.interp import FLOAT64, evaluate
from whet.ir.types import DType, TensorType
from whet.parallel.cut import needed

POINTWISE = ("gelu", "gelu_tanh", "silu", "sigmoid", "tanh", "relu")
POOL = dict(kernel=(2, 2), stride=(2, 2), padding=(0, 0), dilation=(1, 1), extra=(0, 0))
CONV = dict(stride=(2, 1), padding=(1, 0), dilation=(1, 1), groups=2)
HEADS, NORM = (2, 3, 5, 4), dict(size=(6,), eps=1e-5)
# operator, shapes of its operands (None: absent), attributes, operands with a gradient
CASES = [
    *((name, [(4, 6)], {}, "x") for name in POINTWISE),
    *((name, [(4, 6)], dict(axis=1), "x") for name in ("softmax", "log_softmax")),
    ("layer_norm", [(4, 6), (6,), (6,)], NORM, ["x", "gamma", "beta"]),
    ("attention", [HEADS, HEADS, HEADS, None], dict(causal=True, scale=0.5, group=1), "qkv"),
    ("max_pool2d", [(2, 3, 6, 6)], POOL, "x"),
    ("conv2d", [(2, 4, 5, 6), (6, 2, 3, 2), None], CONV, "xw"),
]  # fmt: skip


@pytest.mark.parametrize(("op", "shapes", "attrs", "wanted"), CASES, ids=[c[0] for c in CASES])
@pytest.mark.parametrize("unread", [False, True])
def test_gradients_are_what_the_record_says(op, shapes, attrs, wanted, unread):
    generator = torch.Generator().manual_seed(0)
    leaves = [s and leaf("input", f"i{k}", TensorType(DType.f64, s)) for k, s in enumerate(shapes)]
    out = apply(op, *leaves, **attrs)
    g = leaf("input", "g", out.type)

    def drawn(n):
        return torch.randn(tuple(n.shape), dtype=torch.float64, generator=generator).relu()

    values = {n.name: drawn(n) for n in (*filter(None, leaves), g)}
    siblings = Siblings()
    for name in wanted:
        node = apply(f"{op}~{name}", *leaves, g, **attrs)
        (want,) = evaluate(Graph(tuple(n for n in (*leaves, g) if n), (node,)), values, FLOAT64)
        call = gradient(node, siblings)
        given = [n and values[n.name] for n in node.args]
        if unread:  # what the record does not read may be missing
            instance = node.instance
            used = {x.tensor for let in needed(instance, instance.outs[0]) for x in loads(let.body)}
            reads = {a for a, k in zip(node.operands, instance.operands, strict=True) if k in used}
            given = [x if a in reads else None for a, x in zip(node.args, given, strict=True)]
        got = call(given)
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


def test_siblings_share_a_call_of_the_same_operands_only():
    kept = Siblings()
    x, y = torch.ones(2), torch.ones(2)
    kept.keep("op", {}, [x, y], [torch.tensor(1.0), torch.tensor(2.0)])
    assert kept.taken("op", {"axis": 1}, [x, y], 0) is None
    assert kept.taken("op", {}, [y, x], 0) is None
    assert float(kept.taken("op", {}, [x, None], 1)) == 2.0
    x.add_(1)
    assert kept.taken("op", {}, [x, y], 0) is None


def test_what_torch_has_no_call_for_has_none():
    x = leaf("input", "x", TensorType(DType.f32, (4, 4)))
    assert gradient(apply("exp", x), Siblings()) is None
    assert "exp" not in ALIKE
