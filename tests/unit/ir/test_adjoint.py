"""Backward records are admitted here: each derived one against torch's autograd in float64.

Linear operands also by the identity that defines an adjoint, <dy, A v> == <A' dy, v>, exactly, in a
prime field. A new float operator without a row fails.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.unit.ir.cases import Case, every, table
from whet.errors import GraphError, RecordError
from whet.ir.adjoint import adjoint
from whet.ir.expr import Reduce, loads, walk
from whet.ir.gradient import grad
from whet.ir.graph import Graph, Node, apply, full, item, leaf, opaque
from whet.ir.interp import FIELD, FLOAT64, Ring, evaluate, run_instance
from whet.ir.interp import sample as draw
from whet.ir.ops import TABLE
from whet.ir.record import Instance
from whet.ir.text import parse_graph, print_graph
from whet.ir.types import DType, TensorType
from whet.ir.verify import verify

# What has no gradient in torch either: integers and truth values come out of these.
FLAT = {
    "isnan", "isinf", "lt", "le", "gt", "ge", "eq", "ne", "logical_and", "logical_or",
    "logical_xor", "logical_not", "bitwise_and", "bitwise_or", "bitwise_xor", "bitwise_not",
    "floor_divide", "argmax", "argmin", "full", "arange",
}  # fmt: skip

PIECEWISE = {"remainder", "fmod"}  # of slope 1, with jumps


def batch_norm(x, mean, var, gamma, beta, eps):
    """torch's own has no gradient for mean and variance."""
    shape = (1, -1, *[1] * (x.ndim - 2))
    y = (x - mean.view(shape)) * torch.rsqrt(var.view(shape) + eps)
    y = y if gamma is None else y * gamma.view(shape)
    return y if beta is None else y + beta.view(shape)


REFERENCES = {"batch_norm": functools.partial(batch_norm, eps=1e-5)}


def smooth(c: Case) -> bool:
    """Is this a row where torch's gradient is defined: floats in and out, all of them finite."""
    floats = [x for x in c.operands if x is not None and x.is_floating_point()]
    return (
        c.name not in FLAT
        and bool(floats)
        and all(bool(x.isfinite().all()) for x in floats)
        and c.want().is_floating_point()
    )


def rows() -> Sequence[tuple[str, int]]:
    return [r for r in every() if smooth(table()[r[0]][r[1]])]


def named(c: Case) -> dict[str, Tensor]:
    present = [x for x in c.cast(torch.float64) if x is not None]
    return dict(zip(c.instance.operands, present, strict=True))


def derived(c: Case, operand: str) -> Instance:
    """The backward record of a row: only the result that the row is about has a cotangent."""
    i = c.instance
    return adjoint(i, operand, [c.out or i.outs[0]])


def test_every_float_operator_has_a_row():
    missing = sorted(set(TABLE) - {name for name, _ in rows()} - FLAT)
    assert not missing, f"rows with float operands are missing for: {', '.join(missing)}"


@pytest.mark.parametrize("row", rows(), ids=lambda r: f"{r[0]}-{r[1]}")
def test_equals_autograd(row):
    c = table()[row[0]][row[1]]
    operands = named(c)
    floats = {k: x.clone().requires_grad_() for k, x in operands.items() if x.is_floating_point()}
    given = iter({**operands, **floats}.values())
    reference = REFERENCES.get(c.name, c.torch)
    y = reference(*(None if x is None else next(given) for x in c.operands))
    dy = torch.randn_like(y)
    want = torch.autograd.grad(y, list(floats.values()), dy, allow_unused=True)
    out = c.out or c.instance.outs[0]
    for (name, x), g in zip(floats.items(), want, strict=True):
        backward = derived(c, name)
        got = run_instance(backward, {**operands, f"d{out}": dy})
        assert got.shape == x.shape
        g = torch.zeros_like(x) if g is None else g
        torch.testing.assert_close(got, g, rtol=1e-7, atol=1e-8, msg=f"{name}: {backward}")


def linear_operands() -> list[tuple[str, int, str]]:
    """Operands that their own gradient does not read: the operator is affine in them."""
    found = []
    for name, k in rows():
        c = table()[name][k]
        for operand, x in named(c).items():
            if x.is_floating_point():
                read = {load.tensor for let in derived(c, operand).lets for load in loads(let.body)}
                if read and operand not in read and name not in PIECEWISE:
                    found.append((name, k, operand))
    return found


def test_linear_operands_satisfy_the_adjoint_identity_exactly():
    prime = 2**31 - 1
    generator = torch.Generator().manual_seed(3)

    def residues(t: Tensor) -> Tensor:
        return draw(TensorType(DType.f64, tuple(t.shape)), FIELD, generator)

    def inner(a: Tensor, b: Tensor) -> int:
        pairs = zip(a.flatten().tolist(), b.flatten().tolist(), strict=True)
        return sum(int(x) * int(y) for x, y in pairs) % prime

    checked = linear_operands()
    for name, k, operand in checked:
        c = table()[name][k]
        i, out = c.instance, c.out or c.instance.outs[0]
        operands = {n: residues(x) if x.is_floating_point() else x for n, x in named(c).items()}
        v = operands[operand]
        y = run_instance(i, operands, FIELD, out)
        at_zero = run_instance(i, {**operands, operand: torch.zeros_like(v)}, FIELD, out)
        dy = residues(y)
        dv = run_instance(derived(c, operand), {**operands, f"d{out}": dy}, FIELD)
        left = (inner(dy, y) - inner(dy, at_zero)) % prime
        assert left == inner(dv, v), f"{c}, operand {operand}\n{derived(c, operand)}"
    assert {(n, x) for n, _, x in checked} >= {
        ("matmul", "x"), ("matmul", "z"), ("conv2d", "x"), ("conv2d", "w"), ("linear", "v"),
        ("conv_transpose3d", "x"), ("avg_pool2d", "x"), ("embedding", "t"), ("gather", "x"),
        ("attention", "v"), ("cumsum", "x"), ("concat", "x1"), ("reshape", "x"), ("rope", "cos"),
        ("interpolate_bilinear", "x"), ("slice_scatter", "z"), ("layer_norm", "gamma"),
    }  # fmt: skip


# -- the form of the records ---------------------------------------------------------------------
CONV = {"groups": 2, "stride": (2, 1), "padding": (1, 2), "dilation": (1, 1)}
FORMS = [
    ("matmul", [(2, 3, 4), (4, 5)], {}, "z", "dz[k, n] = sum[b0, m](dy[b0, m, n] * x[b0, m, k])"),
    ("matmul", [(2, 3, 4), (4, 5)], {}, "x", "dx[b0, m, k] = sum[n](dy[b0, m, n] * z[k, n])"),
    ("conv2d", [(2, 4, 11, 13), (6, 2, 3, 2), (6,)], CONV, "w",
     ("dw[g, o, c, r, q] = sum[n, h, u](dy[n, g, o, h, u] * "
      "(x[n, g, c, h * 2 + r - 1, u + q - 2] or 0))")),
    ("conv2d", [(2, 4, 11, 13), (6, 2, 3, 2), (6,)], CONV, "x",
     ("dx[n, g, c, i, j] = sum[o, r, q]((dy[n, g, o, (i + 1 - r) // 2, j + 2 - q]"
      " * w[g, o, c, r, q] if (i + 1 - r) % 2 == 0 and 0 <= (i + 1 - r) // 2 else 0))")),
    ("conv_transpose1d", [(2, 3, 5), (3, 4, 2), None],
     {"groups": 1, "stride": (2,), "padding": (0,), "dilation": (1,), "output_padding": (0,)}, "x",
     "dx[n, g, c, i] = sum[o, r](dy[n, g, o, i * 2 + r] * w[g, c, o, r])"),
    ("concat", [(3, 9), (3, 4)], {"axis": 1}, "x1", "dx1[b0, i1] = dy[b0, i1 + 9]"),
    ("slice", [(3, 9)], {"axis": 1, "start": 0, "stop": 4, "step": 1}, "x",
     "dx[b0, i] = (dy[b0, i] if i < 4 else 0)"),
    ("embedding", [(9, 4), (2, 5)], {}, "t",
     "dt[v, e] = sum[b0, b1]((dy[b0, b1, e] if ids[b0, b1] == v else 0))"),
    ("cumsum", [(3, 9)], {"axis": 1}, "x",
     "dx[b0, i] = sum[i_]((dy[b0, i_] if i <= i_ else 0))"),
    ("reshape", [(6, 4)], {"size": (8, 3)}, "x",
     "dx[i0, i1] = dy[(i0 * 4 + i1) // 3, (i0 * 4 + i1) % 3]"),
    ("reshape", [(6, 4)], {"size": (24,)}, "x", "dx[a0, a1] = dy[a0, a1]"),
    ("roll", [(3, 5)], {"axis": 1, "shift": 2}, "x", "dx[b0, i] = dy[b0, (i + 2) % 5]"),
    ("mean", [(3, 5)], {"dims": (1,)}, "x", "dx[b0, r0] = dy[b0] / 5"),
    ("relu", [(3,)], {}, "x", "dx[b0] = (dy[b0] if 0 < x[b0] else 0)"),
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS, ids=lambda f: f"{f[0]}~{f[3]}")
def test_adjoints_are_as_simple_as_they_can_be(form):
    from whet.ir.ops import instance

    name, shapes, attrs, operand, text = form
    backward = adjoint(instance(name, tuple(shapes), tuple(sorted(attrs.items()))), operand)
    assert [repr(x) for x in backward.lets] == [text]


def test_a_convolutions_backward_does_no_more_work_than_a_convolution():
    c = table()["conv2d"][2]
    i = c.instance
    loops = {
        *i.let("y").axes,
        *next(x for x in walk(i.let("y").body) if isinstance(x, Reduce)).axes,
    }
    for operand in ("x", "w"):
        (let,) = adjoint(i, operand).lets
        (total,) = [x for x in walk(let.body) if isinstance(x, Reduce)]
        assert len(let.axes) + len(total.axes) == len(loops)


def test_the_first_of_several_maxima_gets_the_gradient():
    x = torch.tensor([[[1.0, 3.0, 3.0, 2.0, 3.0]]], dtype=torch.float64, requires_grad=True)
    y = F.max_pool1d(x, 3, 2)
    dy = torch.tensor([[[5.0, 7.0]]], dtype=torch.float64)
    (want,) = torch.autograd.grad(y, x, dy)
    at = {"kernel": (3,), "stride": (2,), "padding": (0,), "dilation": (1,), "extra": (0,)}
    node = apply("max_pool1d", leaf("input", "x", TensorType(DType.f64, (1, 1, 5))), **at)
    assert torch.equal(run_instance(adjoint(node.instance, "x"), [x.detach(), dy]), want)


@pytest.mark.parametrize("name", ["relu", "abs", "hardsigmoid", "leaky_relu"])
def test_kinks_are_as_in_torch(name):
    fn = {"leaky_relu": lambda x: F.leaky_relu(x, 0.1), "hardsigmoid": F.hardsigmoid}.get(name)
    fn = fn or getattr(torch, name)
    x = torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0], dtype=torch.float64, requires_grad=True)
    (want,) = torch.autograd.grad(fn(x).sum(), x)
    attrs = {"slope": 0.1} if name == "leaky_relu" else {}
    node = apply(name, leaf("input", "x", TensorType(DType.f64, (5,))), **attrs)
    got = run_instance(
        adjoint(node.instance, "x"), [x.detach(), torch.ones(5, dtype=torch.float64)]
    )
    torch.testing.assert_close(got, want)


def test_ties_of_two_tensors_are_shared():
    x = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    z = torch.tensor([1.0, 1.0], dtype=torch.float64, requires_grad=True)
    want = torch.autograd.grad(torch.maximum(x, z).sum(), (x, z))
    t = TensorType(DType.f64, (2,))
    i = apply("maximum", leaf("input", "x", t), leaf("input", "z", t)).instance
    feeds = [x.detach(), z.detach(), torch.ones(2, dtype=torch.float64)]
    for name, g in zip(("x", "z"), want, strict=True):
        assert torch.equal(run_instance(adjoint(i, name), feeds), g)


def test_products_with_zeros_and_powers_at_zero():
    x = torch.tensor([2.0, 0.0, 3.0], dtype=torch.float64, requires_grad=True)
    (want,) = torch.autograd.grad(x.prod(), x)
    t = TensorType(DType.f64, (3,))
    node = apply("prod", leaf("input", "x", t), dims=(0,))
    one = torch.tensor(1.0, dtype=torch.float64)
    assert torch.equal(run_instance(adjoint(node.instance, "x"), [x.detach(), one]), want)
    z = torch.tensor([0.0, 2.0, 0.0], dtype=torch.float64, requires_grad=True)
    want = torch.autograd.grad(torch.pow(x, z).sum(), (x, z))
    i = apply("pow", leaf("input", "x", t), leaf("input", "z", t)).instance
    for name, g in zip(("x", "z"), want, strict=True):
        got = run_instance(adjoint(i, name), [x.detach(), z.detach(), torch.ones(3).double()])
        torch.testing.assert_close(got, g)


def test_what_does_not_vary_has_gradient_zero():
    t = TensorType(DType.f64, (3,))
    i = apply("floor", leaf("input", "x", t)).instance
    assert [repr(x) for x in adjoint(i, "x").lets] == ["dx[b0] = 0.0"]
    ids = leaf("input", "ids", TensorType(DType.i64, (2,)))
    i = apply("embedding", leaf("input", "t", TensorType(DType.f64, (9, 4))), ids).instance
    assert [repr(x) for x in adjoint(i, "ids").lets] == ["dids[b0] = 0.0"]


def test_an_unknown_operand_is_refused():
    i = apply("relu", leaf("input", "x", TensorType(DType.f64, (3,)))).instance
    with pytest.raises(RecordError, match="operator relu has no operand w here\n  expected: x"):
        adjoint(i, "w")


# -- as operators ----------------------------------------------------------------------------------
def f64(name: str, *shape: int) -> Node:
    return leaf("input", name, TensorType(DType.f64, shape))


def test_backward_operators_are_nodes_like_any_other():
    x, w, dy = f64("x", 2, 3), f64("w", 5, 3), f64("dy", 2, 5)
    node = apply("linear~w", x, w, None, dy)
    assert node.type == w.type
    assert repr(node.instance.lets) == "(dw[o, k] = sum[b0](dy[b0, o] * x[b0, k]),)"
    g = verify(Graph((x, w, dy), (node,)))
    assert "linear.w(n0, n1, None, n2)" in print_graph(g)
    assert parse_graph(print_graph(g)) == g
    second = apply("linear~w~x", x, w, None, dy, f64("ddw", 5, 3))
    assert second.type == x.type


def test_a_cotangent_of_another_shape_is_refused():
    with pytest.raises(RecordError) as fault:
        apply("relu~x", f64("x", 3), f64("dy", 4))
    assert "cotangent dy has another shape than y" in str(fault.value)
    assert "expected: [3]" in str(fault.value)
    with pytest.raises(RecordError, match="takes its forward operands, then 1 cotangents"):
        apply("relu~x", f64("x", 3))
    with pytest.raises(RecordError, match="there is no operator rleu"):
        apply("rleu~x", f64("x", 3), f64("dy", 3))


# -- whole graphs ----------------------------------------------------------------------------------
def compare(
    inputs: Mapping[str, Tensor], build, module, ring: Ring = FLOAT64
) -> Graph:  # build: nodes -> output nodes, module: tensors -> tensors
    """grad() of a small model against autograd; returns the joint graph."""
    leaves = {k: f64(k, *x.shape) for k, x in inputs.items()}
    g = Graph(tuple(leaves.values()), tuple(build(**leaves)))
    joint = verify(grad(g, tuple(leaves.values())))
    tensors = {k: x.clone().requires_grad_() for k, x in inputs.items()}
    ys = module(**tensors)
    cotangents = [torch.randn_like(y) for y in ys]
    want = torch.autograd.grad(ys, list(tensors.values()), cotangents)
    feeds = {**inputs, **{f"d_{k}": c for k, c in enumerate(cotangents)}}
    got = evaluate(joint, feeds, ring)
    for a, b in zip(got, (*ys, *want), strict=True):
        torch.testing.assert_close(a, b.detach(), rtol=1e-9, atol=1e-10)
    return joint


def R(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def test_a_perceptron():
    def build(x, w, b, u):
        return [apply("linear", apply("tanh", apply("linear", x, w, b)), u, None)]

    def module(x, w, b, u):
        return [F.linear(torch.tanh(F.linear(x, w, b)), u)]

    inputs = {"x": R(3, 4), "w": R(5, 4), "b": R(5), "u": R(2, 5)}
    assert "linear~w" in {n.op for n in compare(inputs, build, module).nodes}


def test_convolution_norm_relu_with_a_residual():
    at = {"groups": 1, "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1)}

    def build(x, w, m, v, g, b):
        y = apply("batch_norm", apply("conv2d", x, w, None, **at), m, v, g, b, eps=1e-5)
        pool = {"kernel": (2, 2), "stride": (2, 2), "padding": (0, 0), "dilation": (1, 1)}
        return [apply("max_pool2d", apply("relu", apply("add", y, x)), **pool, extra=(0, 0))]

    def module(x, w, m, v, g, b):
        y = batch_norm(F.conv2d(x, w, padding=1), m, v, g, b, eps=1e-5)
        return [F.max_pool2d(F.relu(y + x), 2)]

    inputs = {"x": R(2, 3, 6, 4), "w": R(3, 3, 3, 3), "m": R(3), "v": R(3).abs() + 0.5}
    joint = compare({**inputs, "g": R(3), "b": R(3)}, build, module)
    assert {"conv2d~x", "conv2d~w", "batch_norm~var", "max_pool2d~x"} <= {n.op for n in joint.nodes}


def test_an_attention_block():
    def build(x, wq, wk, wv, g):
        y = apply("layer_norm", x, g, None, size=(6,), eps=1e-5)

        def heads(w):
            split = apply("reshape", apply("linear", y, w, None), size=(2, 5, 3, 2))
            return apply("permute", split, dims=(0, 2, 1, 3))

        a = apply("attention", heads(wq), heads(wk), heads(wv), None,
                  scale=0.5, causal=True, group=1)  # fmt: skip
        a = apply("reshape", apply("permute", a, dims=(0, 2, 1, 3)), size=(2, 5, 6))
        return [apply("add", a, x)]

    def module(x, wq, wk, wv, g):
        y = F.layer_norm(x, (6,), g, None, 1e-5)
        q, k, v = ((y @ w.T).reshape(2, 5, 3, 2).transpose(1, 2) for w in (wq, wk, wv))
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.5)
        return [a.transpose(1, 2).reshape(2, 5, 6) + x]

    compare(
        {"x": R(2, 5, 6), "wq": R(6, 6), "wk": R(6, 6), "wv": R(6, 6), "g": R(6)}, build, module
    )


def test_two_lstm_steps_share_their_gradients():
    def build(x, h, c, w, u, b):
        for _ in range(2):
            args = (x, h, c, w, u, b)
            h, c = apply("lstm_cell", *args, out="h1"), apply("lstm_cell", *args, out="c1")
        return [h, c]

    def module(x, h, c, w, u, b):
        for _ in range(2):
            h, c = torch.lstm_cell(x, (h, c), w, u, b, torch.zeros_like(b))
        return [h, c]

    inputs = {"x": R(2, 3), "h": R(2, 4), "c": R(2, 4), "w": R(16, 3), "u": R(16, 4), "b": R(16)}
    joint = compare(inputs, build, module)
    steps = [n for n in joint.nodes if n.op == "lstm_cell~u"]
    assert len(steps) == 2  # one for both results of a step


def test_gradients_of_gradients():
    def build(x, w):
        return [
            apply(
                "sum", apply("square", apply("softmax", apply("matmul", x, w), axis=1)), dims=(0, 1)
            )
        ]

    x, w = f64("x", 3, 4), f64("w", 4, 5)
    first = grad(Graph((x, w), tuple(build(x, w))), (w,), [full(1.0, DType.f64)])
    direction = f64("v", 4, 5)
    second = verify(grad(first, (x, w), [None, direction]))
    tx, tw, tv = R(3, 4).requires_grad_(), R(4, 5).requires_grad_(), R(4, 5)
    (g,) = torch.autograd.grad((tx @ tw).softmax(1).square().sum(), tw, create_graph=True)
    want = torch.autograd.grad(g, (tx, tw), tv)
    got = evaluate(second, {"x": tx, "w": tw, "v": tv})
    for a, b in zip(got[2:], want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_gradients_of_what_does_not_matter_are_zero():
    x, z = f64("x", 3), f64("z", 2)
    joint = verify(grad(Graph((x, z), (apply("exp", x),)), (x, z)))
    got = evaluate(joint, {"x": R(3), "z": R(2), "d_0": R(3)})
    assert torch.equal(got[2], torch.zeros(2, dtype=torch.float64))


def test_gradients_do_not_pass_opaque_nodes():
    x = f64("x", 3)
    top = opaque("aten.topk.default", (x,), "topk(%0, 2)", (TensorType(DType.f64, (2,)),) * 2)
    with pytest.raises(GraphError) as fault:
        grad(Graph((x,), (apply("exp", item(top, 0)),)), (x,))
    assert "no gradient passes a node of kind item" in str(fault.value)
    with pytest.raises(GraphError, match="one cotangent for each output"):
        grad(Graph((x,), (apply("exp", x),)), (x,), [])
    i = leaf("input", "i", TensorType(DType.i64, (3,)))
    with pytest.raises(GraphError, match="gradients are of float values"):
        grad(Graph((i,), (apply("exp", i),)), (i,))
