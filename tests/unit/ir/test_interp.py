"""The interpreter: rings, recognised forms, strict guards, whole graphs."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.unit.ir.cases import Case, table
from whet.errors import GraphError, InputError, UnsupportedError
from whet.ir.graph import Graph, Node, apply, full, item, leaf, opaque, topological
from whet.ir.interp import (
    FIELD,
    FLOAT32,
    FLOAT64,
    NATIVE,
    PRIME,
    Ring,
    evaluate,
    evaluate_all,
    run_instance,
    sample,
)
from whet.ir.ops import instance
from whet.ir.record import Record
from whet.ir.types import DType, Poly, TensorType

NAN, INF = math.nan, math.inf


def run(name: str, *xs: Tensor | None, ring: Ring = FLOAT64, **attrs: object) -> Tensor:
    shapes = tuple(None if x is None else tuple(x.shape) for x in xs)
    return run_instance(instance(name, shapes, tuple(sorted(attrs.items()))), xs, ring)


def record(text: str, *xs: Tensor, ring: Ring = FLOAT64, **attrs: object) -> Tensor:
    return run_instance(Record(text).bind([tuple(x.shape) for x in xs], attrs), xs, ring)


def same(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10, equal_nan=True)


def R(*s: int) -> Tensor:
    return torch.randn(s, dtype=torch.float64)


def field(*s: int, seed: int = 0) -> Tensor:
    return sample(TensorType(DType.f32, s), FIELD, torch.Generator().manual_seed(seed))


def storage_of(t: Tensor) -> int:
    return t.untyped_storage().data_ptr()


class Largest(TorchDispatchMode):
    """The largest number of elements that any tensor made inside really holds."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given = {storage_of(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for t in tree_leaves(out):
            if isinstance(t, Tensor) and storage_of(t) not in given:
                held = t.untyped_storage().nbytes() // t.element_size()
                self.elements = max(self.elements, held)
        return out


def largest(do: Callable[[], object]) -> int:
    with Largest() as mode:
        do()
    return mode.elements


# -- the prime field -------------------------------------------------------------------------------
def integers(t: Tensor) -> np.ndarray:
    return np.vectorize(int, otypes=[object])(t.numpy())


def test_field_matmul_is_exact() -> None:
    x, y = field(3, 40, 50), field(50, 7, seed=1)
    want = integers(x) @ integers(y) % PRIME
    assert (integers(run("matmul", x, y, ring=FIELD)) == want).all()


def test_field_matmul_is_exact_at_the_extremes() -> None:
    x = torch.full((2, 3000), PRIME - 1.0, dtype=torch.float64)
    got = run("matmul", x, x.T.contiguous(), ring=FIELD)
    assert (integers(got) == (PRIME - 1) ** 2 * 3000 % PRIME).all()


def test_field_convolution_is_exact() -> None:
    x, w = field(2, 4, 7, 8), field(6, 2, 3, 2, seed=1)
    attrs = {"groups": 2, "stride": (2, 1), "padding": (1, 2), "dilation": (1, 2)}
    got = integers(run("conv2d", x, w, None, ring=FIELD, **attrs))
    X, W = np.pad(integers(x), ((0, 0), (0, 0), (1, 1), (2, 2))), integers(w)
    for n, o, h, v in np.ndindex(*got.shape):
        g = o // 3
        window = X[n, 2 * g : 2 * g + 2, 2 * h : 2 * h + 3, v : v + 3 : 2]
        assert got[n, o, h, v] == sum(int(p) for p in (window * W[o]).flat) % PRIME


def test_field_sums_and_powers_are_exact() -> None:
    x = field(5, 6)
    assert (integers(run("sum", x, dims=(1,), ring=FIELD)) == integers(x).sum(1) % PRIME).all()
    product = integers(x).prod(1) % PRIME
    assert (integers(run("prod", x, dims=(1,), ring=FIELD)) == product).all()
    assert (integers(run("cumsum", x, axis=1, ring=FIELD)) == integers(x).cumsum(1) % PRIME).all()
    mean = integers(x).sum(1) * pow(6, -1, PRIME) % PRIME
    assert (integers(run("mean", x, dims=(1,), ring=FIELD)) == mean).all()


def test_field_division_undoes_multiplication() -> None:
    x, y = field(40), field(40, seed=1)
    assert torch.equal(run("div", run("mul", x, y, ring=FIELD), y, ring=FIELD), x)


def test_field_laws_of_bilinear_operators() -> None:
    def f(name: str, *xs: Tensor | None, **attrs: object) -> Tensor:
        return run(name, *xs, ring=FIELD, **attrs)

    x, y, z = field(4, 5), field(5, 6, seed=1), field(6, 3, seed=2)
    assert torch.equal(f("matmul", f("matmul", x, y), z), f("matmul", x, f("matmul", y, z)))
    image, v, w = field(2, 4, 7, 8), field(6, 2, 3, 3, seed=1), field(6, 2, 3, 3, seed=2)
    attrs = {"groups": 2, "stride": (2, 1), "padding": (1, 2), "dilation": (1, 2)}
    left = f("conv2d", image, f("add", v, w), None, **attrs)
    right = f("add", f("conv2d", image, v, None, **attrs), f("conv2d", image, w, None, **attrs))
    assert torch.equal(left, right)
    wrong = f("conv2d", image, v, None, **{**attrs, "stride": (2, 2)})
    assert not torch.equal(f("conv2d", image, v, None, **attrs)[..., : wrong.shape[-1]], wrong)


def test_field_functions_are_maps_without_laws() -> None:
    x, y = field(100), field(100, seed=1)
    once, again = run("exp", x, ring=FIELD), run("exp", x.clone(), ring=FIELD)
    assert torch.equal(once, again)
    assert not torch.equal(once, run("log", x, ring=FIELD))
    assert once.unique().numel() > 95
    product = run("mul", once, run("exp", y, ring=FIELD), ring=FIELD)
    assert not torch.equal(run("exp", run("add", x, y, ring=FIELD), ring=FIELD), product)
    assert not torch.equal(run("atan2", x, y, ring=FIELD), run("atan2", y, x, ring=FIELD))


@pytest.mark.parametrize("name", sorted(table()))
def test_every_operator_has_a_value_in_the_field(name: str) -> None:
    c: Case = table()[name][0]
    g = torch.Generator().manual_seed(3)
    node = c.node()
    feeds = {}
    for a, x in zip(node.args, c.operands, strict=True):
        if a is not None and x is not None:
            feeds[a.name] = sample(a.type, FIELD, g) if x.is_floating_point() else x
    (got,) = evaluate(Graph(node.operands, (node,)), feeds, FIELD)
    assert got.shape == c.want().shape
    if node.dtype.is_float:
        assert got.dtype == torch.float64
        assert ((got >= 0) & (got < PRIME) & (got == got.floor())).all()


# -- recognised forms ------------------------------------------------------------------------------
SCANS = [
    ("sum[j: I](x[j, k] if j <= i else 0)", lambda x: x.cumsum(0)),
    ("sum[j: I](x[j, k] if i <= j else 0)", lambda x: x.flip(0).cumsum(0).flip(0)),
    ("sum[j: I](x[j, k] if j < i else 0)", lambda x: x.cumsum(0) - x),
    ("sum[j: I](x[j, k] if i < j else 0)", lambda x: x.flip(0).cumsum(0).flip(0) - x),
    ("sum[j: I]([j <= i] * x[j, k] * 2)", lambda x: 2 * x.cumsum(0)),
    ("sum[j: I](1 if j <= i else 0) * x[i, k]", lambda x: torch.arange(1, 6)[:, None] * x),
    ("max[j: I](x[j, k] if j <= i else -inf)", lambda x: x.cummax(0).values),
    ("min[j: I](x[j, k] if i <= j else inf)", lambda x: x.flip(0).cummin(0).values.flip(0)),
    ("prod[j: I](x[j, k] if j <= i else 1)", lambda x: x.cumprod(0)),
    (
        "sum[j: I](x[j, k] if j <= i and j < 3 else 0)",
        lambda x: torch.cat([x[:3], 0 * x[3:]]).cumsum(0),
    ),
]


@pytest.mark.parametrize(("body", "want"), SCANS, ids=[b for b, _ in SCANS])
def test_running_reductions(body: str, want: Callable[[Tensor], Tensor]) -> None:
    x = R(5, 3)
    same(record(f"y = f(x[i, k])\ny[i, k] = {body}", x), want(x))


def test_a_long_running_sum_is_linear() -> None:
    x = R(1 << 20)
    assert largest(lambda: same(run("cumsum", x, axis=0), x.cumsum(0))) <= 1 << 20


SCATTER = "y = f(g[k, e], ids[k], v=V)\ny[v, e] = sum[k](g[k, e] if ids[k] == v else 0)"


def test_a_scatter_adds_where_it_is_told() -> None:
    g, ids = R(7, 3), torch.tensor([2, 0, 2, 4, 4, 4, 9])
    with pytest.raises(Exception, match="v"):
        record(SCATTER, g, ids)
    text = SCATTER.replace(", v=V", ", rows=V")
    got = record(text, g, ids, rows=6)
    same(got, torch.zeros(6, 3).double().index_add(0, ids[:-1], g[:-1]))
    many = torch.randint(50000, (7,))
    assert largest(lambda: record(text, g, many, rows=50000)) <= 50001 * 3 + 3


def test_a_scatter_with_batch_axes() -> None:
    text = """y = f(g[b, k], ids[b, k], rows=V)
              y[b, v] = sum[k](g[b, k] if ids[b, k] == v else 0)"""
    g, ids = R(2, 7), torch.randint(5, (2, 7))
    same(record(text, g, ids, rows=5), torch.zeros(2, 5).double().scatter_add(1, ids, g))
    exact = (field(2, 7), ids)
    got = integers(record(text, *exact, rows=5, ring=FIELD))
    for b, v in np.ndindex(2, 5):
        want = sum(int(n) for n, i in zip(exact[0][b], ids[b], strict=True) if i == v) % PRIME
        assert got[b, v] == want


def test_a_guard_that_picks_one_point_is_a_gather() -> None:
    text = "y = f(x[i, k], ids[j])\ny[j, k] = sum[i](x[i, k] if i == ids[j] else 0)"
    x, ids = R(50000, 2), torch.tensor([3, 49999, 0, 70000, -1])
    want = torch.cat([x[[3, 49999, 0]], torch.zeros(2, 2)])
    assert largest(lambda: same(record(text, x, ids), want)) < 200


def test_a_place_that_is_no_integer_is_nowhere() -> None:
    text = "y = f(x[i], at[j])\ny[j] = sum[i](x[i] if i == at[j] else 0)"
    same(record(text, R(3).abs() + 1, torch.tensor([0.5, -0.5])), torch.zeros(2).double())
    text = "y = f(x[k], at[k], rows=V)\ny[v] = sum[k](x[k] if at[k] == v else 0)"
    same(record(text, R(2), torch.tensor([1.5, 9.0]), rows=3), torch.zeros(3).double())


def test_windows_are_views() -> None:
    x, w = R(1, 8, 40, 40), R(8, 1, 3, 3)
    attrs = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1)}
    pool = {"kernel": (3, 3), "extra": (0, 0), **attrs}
    assert largest(lambda: run("max_pool2d", x, **pool)) <= 8 * 42 * 42
    got = run("conv2d", x, w, None, groups=8, **attrs)
    same(got, F.conv2d(x, w, None, 1, 1, 1, 8))


def test_interpolation_contracts_one_axis_at_a_time() -> None:
    x = R(1, 16, 56, 56)
    top = largest(lambda: run("interpolate_bilinear", x, size=(112, 112)))
    assert top <= 16 * 112 * 112


def test_a_big_window_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    x, w = R(3, 4, 20, 20), R(5, 4, 3, 3)
    attrs = {"groups": 1, "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1)}
    monkeypatch.setattr("whet.ir.interp.contraction.LIMIT", 4000)
    same(run("conv2d", x, w, None, **attrs), F.conv2d(x, w, None, 1, 1))


# -- strictness ------------------------------------------------------------------------------------
def test_a_false_guard_hides_nan_in_every_factor() -> None:
    text = """y = f(q[i, d], k[j, d], v[j, e])
              y[i, e] = sum[j, d](q[i, d] * k[j, d] * v[j, e] if j <= i else 0)"""
    q, k, v = R(4, 3), R(4, 3), R(4, 2)
    k[3, 0], v[2, 1] = NAN, INF
    got = record(text, q, k, v)
    want = torch.zeros(4, 2).double()
    for i in range(4):
        for j in range(i + 1):
            want[i] += (q[i] * k[j]).sum() * v[j]
    same(got, want)
    assert got[:2].isfinite().all()
    assert got[3].isnan().any()


def test_padding_hides_nothing_but_itself() -> None:
    x = R(1, 1, 4, 4)
    x[0, 0, 0, 0] = NAN
    pool = {"kernel": (2, 2), "stride": (2, 2), "padding": (1, 1), "dilation": (1, 1)}
    got = run("max_pool2d", x, extra=(0, 0), **pool)
    same(got, F.max_pool2d(x, 2, 2, 1))
    assert got.isnan().sum() == 1


def test_max_pool_of_very_negative_numbers_does_not_see_the_padding() -> None:
    x = torch.full((1, 1, 3, 3), -1e300, dtype=torch.float64)
    pool = {"kernel": (3, 3), "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1)}
    assert (run("max_pool2d", x, extra=(0, 0), **pool) == -1e300).all()


def test_masked_rows_of_attention() -> None:
    q, k, v = R(2, 3, 5), R(2, 4, 5), R(2, 4, 6)
    mask = torch.zeros(1, 3, 4, dtype=torch.float64)
    mask[0, 1, 2:] = -INF
    got = run("attention", q, k, v, mask, scale=0.5, causal=False, group=1)
    same(got, ((q @ k.mT) * 0.5 + mask).softmax(-1) @ v)
    mask[0, 2] = -INF  # nothing is left: a softmax of no candidates is undefined
    got = run("attention", q, k, v, mask, scale=0.5, causal=False, group=1)
    assert got[:, 2].isnan().all()
    assert got[:, :2].isfinite().all()


def test_an_index_out_of_range_is_refused() -> None:
    with pytest.raises(InputError, match="out of range") as caught:
        run("embedding", R(9, 4), torch.tensor([1, 9]))
    assert "0 … 8" in str(caught.value)
    with pytest.raises(InputError, match="out of range"):
        run("gather", R(9, 4), torch.tensor([[1, -1]]), axis=1)


def test_a_huge_vocabulary_is_not_one_hot() -> None:
    t, ids = torch.randn(200_000, 8), torch.randint(200_000, (3, 5))
    assert largest(lambda: run("embedding", t, ids)) <= 3 * 5 * 8


@pytest.mark.parametrize("count", [1, 2, 7, 300])
def test_joining_many_tensors_copies_each_once(count: int) -> None:
    xs = [R(2, k % 3 + 1) for k in range(count)]
    same(run("concat", *xs, axis=1), torch.cat(xs, 1))
    ys = [R(2, 3) for _ in range(count)]
    same(run("stack", *ys, axis=1), torch.stack(ys, 1))


def test_empty_and_scalar_tensors() -> None:
    assert run("sum", R(0, 3), dims=(0,)).tolist() == [0, 0, 0]
    assert run("prod", R(0, 3), dims=(0,)).tolist() == [1, 1, 1]
    assert run("matmul", R(2, 0), R(0, 3)).tolist() == [[0, 0, 0]] * 2
    assert run("softmax", R(3, 0), axis=1).shape == (3, 0)
    assert run("concat", R(0), R(0), axis=0).shape == (0,)
    assert run("amax", R(0, 3), dims=(0,)).tolist() == [-INF] * 3
    assert run("add", torch.tensor(2), torch.tensor(3)).item() == 5


# -- element types ---------------------------------------------------------------------------------
def test_integers_stay_exact() -> None:
    big = torch.tensor([2**53 + 1, 1])
    assert run("sum", big, dims=(0,)).item() == 2**53 + 2
    assert run("matmul", big[None], torch.tensor([[1], [1]])).item() == 2**53 + 2
    assert run("cumsum", big, axis=0).tolist() == [2**53 + 1, 2**53 + 2]


def graph_of(*outputs: Node) -> Graph:
    return Graph(tuple(n for n in topological(outputs) if n.op == "input"), outputs)


def test_results_have_the_types_of_their_nodes() -> None:
    x = leaf("input", "x", TensorType(DType.f16, (3,)))
    i = leaf("input", "i", TensorType(DType.i32, (3,)))
    feeds = {"x": torch.tensor([1.7, -1.7, 0.0]).half(), "i": torch.tensor([1, 2, 3]).int()}
    nodes = (
        apply("cast", x, dtype=DType.i32), apply("cast", x, dtype=DType.bool),
        apply("add", i, i), apply("lt", x, i), apply("mul", x, x),
        apply("cast", x, dtype=DType.f32),
    )  # fmt: skip
    got = evaluate(graph_of(*nodes), feeds, NATIVE)
    names = ["int32", "bool", "int32", "bool", "float16", "float32"]
    assert [t.dtype for t in got] == [getattr(torch, n) for n in names]
    assert got[0].tolist() == [1, -1, 0]
    wide = evaluate(graph_of(*nodes), feeds, FLOAT64)
    assert [t.dtype for t in wide][4:] == [torch.float64] * 2
    assert [t.dtype for t in evaluate(graph_of(*nodes), feeds, FLOAT32)][4:] == [torch.float32] * 2


def test_native_rounds_between_nodes() -> None:
    x = leaf("input", "x", TensorType(DType.bf16, ()))
    total = apply("sub", apply("add", x, full(2.0**-10, DType.bf16)), x)
    feeds = {"x": torch.tensor(1.0, dtype=torch.bfloat16)}
    assert evaluate(graph_of(total), feeds, NATIVE)[0].item() == 0
    assert evaluate(graph_of(total), feeds, FLOAT64)[0].item() == 2**-10


def test_numbers_without_operands_are_as_fine_as_their_type() -> None:
    wide = full(0.1, DType.f64)
    assert evaluate(graph_of(wide), {}, NATIVE)[0].item() == 0.1
    assert evaluate(graph_of(full(0.1, DType.f32)), {}, NATIVE)[0].dtype == torch.float32


# -- graphs ----------------------------------------------------------------------------------------
def test_constants_updates_and_repeated_outputs() -> None:
    kind = TensorType(DType.f32, (3,))
    x, c = leaf("input", "x", kind), leaf("constant", "c", kind)
    y = apply("add", x, c)
    g = Graph((x,), (y, y, x), updates=((x, apply("mul", y, y)),), constants={"c": torch.ones(3)})
    outputs, updates = evaluate_all(g, {"x": torch.tensor([0.0, 1.0, 2.0])})
    assert [t.tolist() for t in outputs] == [[1, 2, 3], [1, 2, 3], [0, 1, 2]]
    assert {k: t.tolist() for k, t in updates.items()} == {"x": [1, 4, 9]}


def test_values_are_dropped_after_their_last_use() -> None:
    kind = TensorType(DType.f64, (1000,))
    node = leaf("input", "x", kind)
    for _ in range(5):
        node = opaque("probe", [node], "(%0)", [kind])
    seen: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def library(_: Node, args: list[Tensor]) -> list[Tensor]:
        alive.append(sum(r() is not None for r in seen))
        out = args[0] + 1
        seen.append(weakref.ref(out))
        return [out]

    (got,) = evaluate(graph_of(node), {"x": torch.zeros(1000).double()}, library=library)
    assert got[0].item() == 5
    assert max(alive) <= 1


def test_opaque_nodes_ask_the_library() -> None:
    x = leaf("input", "x", TensorType(DType.f32, (5,)))
    kinds = (TensorType(DType.f32, (2,)), TensorType(DType.i64, (2,)))
    call = opaque("aten.topk.default", [x], "(%0, 2)", kinds)
    g = Graph((x,), (item(call, 0), item(call, 1)))
    feeds = {"x": torch.tensor([1.0, 5.0, 3.0, 4.0, 2.0])}
    values, places = evaluate(g, feeds, library=lambda n, xs: list(torch.topk(xs[0], 2)))
    assert (values.tolist(), places.tolist()) == ([5, 4], [1, 3])
    with pytest.raises(UnsupportedError, match=r"aten\.topk"):
        evaluate(g, feeds)


def test_symbolic_sizes_come_from_the_feeds() -> None:
    n, m = Poly.symbol("n"), Poly.symbol("m")
    x = leaf("input", "x", TensorType(DType.f32, (n, m)))
    flat = apply("reshape", x, size=(n * m,))
    total = apply("div", apply("sum", flat, dims=(0,)), full(2.0, DType.f32))
    for shape in ((2, 3), (5, 4)):
        t = R(*shape)
        got = evaluate(graph_of(flat, total), {"x": t})
        same(got[0], t.reshape(-1))
        same(got[1], t.sum() / 2)


def test_deep_graphs_are_no_recursion() -> None:
    node = leaf("input", "x", TensorType(DType.f32, ()))
    for _ in range(5000):
        node = apply("neg", node)
    assert evaluate(graph_of(node), {"x": torch.tensor(3.0)})[0].item() == 3


def test_what_is_wrong_is_said() -> None:
    x = leaf("input", "x", TensorType(DType.f32, (3,)))
    g = graph_of(apply("relu", x))
    with pytest.raises(InputError, match="input x has no value"):
        evaluate(g, {})
    with pytest.raises(InputError, match="another shape") as caught:
        evaluate(g, {"x": torch.zeros(4)})
    assert "[3]" in str(caught.value)
    made = instance("relu", ((Poly.symbol("n"),),), ())
    with pytest.raises(GraphError, match="concrete"):
        run_instance(made, [torch.zeros(3)])
    weights = leaf("parameter", "w", TensorType(DType.f32, (3, 2)))
    ids = leaf("input", "ids", TensorType(DType.i64, (1,)))
    found = apply("embedding", weights, ids)
    where = Graph((ids,), (found,), where={found: "model.py:7: self.embed(ids)"})
    with pytest.raises(InputError, match="embedding") as caught:
        evaluate(where, {"w": torch.zeros(3, 2), "ids": torch.tensor([5])})
    assert "model.py:7" in str(caught.value)
