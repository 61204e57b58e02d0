"""Every kernel of every kind of cluster computes what plain ATen computes."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor

from whet.backend import aten
from whet.backend.cluster import BINARY, UNARY, Cluster, clusters
from whet.backend.lowered import body_nodes, example
from whet.backend.packed import kernels
from whet.ir.graph import Graph, Node, apply, leaf, topological
from whet.ir.types import DType, TensorType
from whet.run.choice import prepared

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="no oneDNN")
pytestmark = needs_onednn

Epilogue = tuple[str, ...]
EPILOGUES: list[Epilogue] = [
    (), *((u,) for u in sorted(UNARY)), *((b,) for b in sorted(BINARY)),
    *product(sorted(BINARY), ("relu", "gelu")),
]  # fmt: skip


def tensor(kind: str, name: str, dtype: DType, *shape: int) -> Node:
    return leaf(kind, name, TensorType(dtype, shape))


def ended(node: Node, epilogue: Epilogue, swapped: bool = False) -> Cluster:
    """The cluster of a node and what follows it."""
    for k, op in enumerate(epilogue):
        if op in BINARY:
            other = leaf("input", f"other{k}", node.type)
            node = apply(op, other, node) if swapped else apply(op, node, other)
        else:
            node = apply(op, node, **({"slope": 0.2} if op == "leaky_relu" else {}))
    graph = Graph(tuple(n for n in topological([node]) if n.op == "input"), (node,))
    (found,) = clusters(graph, body_nodes(graph)).values()
    assert [n.op for n in found.epilogue] == list(epilogue)
    return found


def linear(
    *batch: int, k: int = 7, o: int = 5, bias: bool = True, dtype: DType = DType.f32
) -> Node:
    x, w = tensor("input", "x", dtype, *batch, k), tensor("parameter", "w", dtype, o, k)
    return apply("linear", x, w, tensor("parameter", "b", dtype, o) if bias else None)


def matmul(*batch: int, k: int = 7, o: int = 5, dtype: DType = DType.f32) -> Node:
    return apply(
        "matmul", tensor("input", "x", dtype, *batch, k), tensor("parameter", "w", dtype, k, o)
    )


def conv(
    rank: int,
    groups: int = 1,
    stride: int = 1,
    padding: int = 1,
    dilation: int = 1,
    bias: bool = True,
    dtype: DType = DType.f32,
    batch: int = 2,
    channels: int = 6,
    kernel: int = 3,
) -> Node:
    x = tensor("input", "x", dtype, batch, channels, *(9, 7, 5)[:rank])
    w = tensor("parameter", "w", dtype, 2 * channels, channels // groups, *[kernel] * rank)
    b = tensor("parameter", "b", dtype, 2 * channels) if bias else None
    each = {"stride": stride, "padding": padding, "dilation": dilation}
    return apply(
        f"conv{rank}d", x, w, b, groups=groups, **{n: (v,) * rank for n, v in each.items()}
    )


def check(cluster: Cluster, tolerance: float = 1e-4, *, all_run: bool = True) -> set[str]:
    """Names of the kernels that ran; each computed what ATen calls do, one after another."""
    generator = torch.Generator().manual_seed(7)
    seen: dict[Node, Tensor] = {}
    for a in cluster.operands:
        if a is not None and a not in seen:
            seen[a] = example(a, generator)
    operands = [None if a is None else seen[a] for a in cluster.operands]
    before = [None if t is None else t.clone() for t in operands]
    values = dict(seen)
    for node in cluster.nodes:
        values[node] = aten.call(node, [None if a is None else values[a] for a in node.args])
    want, ran = values[cluster.root], set()
    with torch.no_grad():
        for kernel in kernels(cluster):
            try:
                got = prepared(cluster, kernel, operands)()
            except RuntimeError:
                assert not all_run, kernel.name
                assert kernel.name != "aten"
                continue
            assert isinstance(got, Tensor)
            assert got.dtype == want.dtype
            torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)
            ran.add(kernel.name)
    for t, old in zip(operands, before, strict=True):
        assert t is None or old is None or torch.equal(t, old)
    return ran


@pytest.mark.parametrize("epilogue", EPILOGUES, ids="+".join)
def test_every_epilogue(epilogue: Epilogue) -> None:
    fused = "+".join(["onednn", *epilogue[:1]])
    assert fused in check(ended(linear(3, 4), epilogue))
    assert check(ended(matmul(3, 4), epilogue)) >= {"aten", "onednn"}
    names = check(ended(conv(2), epilogue))
    assert names >= {"aten", "channels-last", "onednn"}
    assert any(n.startswith(fused) for n in names)
    check(ended(conv(1), epilogue))
    check(ended(conv(3), epilogue))


def test_what_one_element_cannot_be_spread_over_is_not_said() -> None:
    """With that dilation torch 2.13 reads outside of memory, and the process ends."""
    x = tensor("input", "x", DType.f32, 8, 13, 67, 1)
    w, b = tensor("parameter", "w", DType.f32, 3, 13, 1, 1), tensor("parameter", "b", DType.f32, 3)
    each = {"stride": (3, 2), "padding": (0, 1), "dilation": (1, 2)}
    names = check(ended(apply("conv2d", x, w, b, groups=1, **each), ()))
    assert names >= {"aten", "channels-last", "onednn"}


@pytest.mark.parametrize("epilogue", [(), ("add",), ("mul", "relu"), ("silu",)], ids="+".join)
def test_every_geometry(epilogue: Epilogue) -> None:
    for batch, bias in product(((1,), (4,), (2, 3), (1, 1, 17), (2, 1, 3)), (True, False)):
        check(ended(linear(*batch, bias=bias), epilogue))
    check(ended(linear(3, k=1, o=1), epilogue))
    check(ended(linear(33, k=65, o=129), epilogue))
    for batch in ((1,), (4,), (2, 3), (2, 1, 3)):
        check(ended(matmul(*batch), epilogue))
    for rank, groups, bias in product((1, 2, 3), (1, 2, 6), (True, False)):
        check(ended(conv(rank, groups, bias=bias), epilogue))
    for stride, padding, dilation in ((2, 0, 1), (3, 2, 2), (1, 4, 1)):
        check(ended(conv(2, 2, stride, padding, dilation), epilogue))
    check(ended(conv(2, batch=1, channels=1, kernel=1, padding=0), epilogue))


@pytest.mark.parametrize("binary", sorted(BINARY))
def test_the_other_operand_may_come_first(binary: str) -> None:
    for node in (linear(3, 4), matmul(3, 4), conv(2)):
        check(ended(node, (binary, "relu"), swapped=True))


@pytest.mark.parametrize("dtype", [DType.bf16, DType.f16, DType.f64])
def test_other_precisions_are_right_or_refused(dtype: DType) -> None:
    loose = {DType.bf16: 0.1, DType.f16: 0.02, DType.f64: 1e-9}[dtype]
    for epilogue in ((), ("relu",), ("add",), ("add", "relu")):
        for node in (linear(3, 4, dtype=dtype), matmul(3, 4, dtype=dtype), conv(2, dtype=dtype)):
            assert "aten" in check(ended(node, epilogue), loose, all_run=False)


def test_vectors_and_nothing_at_all() -> None:
    """Rank one, and batches of none: whatever a library makes of these, it is right or refused."""
    for node in (linear(), linear(0), linear(2, 0), linear(3, k=0), conv(2, batch=0)):
        assert "aten" in check(ended(node, ("relu",)), all_run=False)


def test_a_product_with_itself_added() -> None:
    """The other operand is one that the anchor reads, too."""
    x, w = tensor("input", "x", DType.f32, 3, 5), tensor("parameter", "w", DType.f32, 5, 5)
    root = apply("add", apply("linear", x, w, None), x)
    graph = Graph((x,), (root,))
    (cluster,) = clusters(graph, body_nodes(graph)).values()
    assert "onednn+add" in check(cluster)


def test_weights_that_change_with_the_input_are_not_packed() -> None:
    x, w = tensor("input", "x", DType.f32, 3, 5), tensor("input", "w", DType.f32, 4, 5)
    graph = Graph((x, w), (apply("linear", x, w, None),))
    (cluster,) = clusters(graph, body_nodes(graph)).values()
    assert [k.name for k in kernels(cluster)] == ["aten"]


def test_integers_are_not_packed() -> None:
    cluster = ended(matmul(3, dtype=DType.i64), ())
    assert [k.name for k in kernels(cluster)] == ["aten"]


def test_attention_runs_through_the_library() -> None:
    def at(name: str, *shape: int) -> Node:
        return tensor("input", name, DType.f32, *shape)

    q, k, v = at("q", 2, 4, 3, 5), at("k", 2, 2, 6, 5), at("v", 2, 2, 6, 7)
    for mask, causal in ((None, False), (None, True), (at("m", 2, 1, 3, 6), False)):
        node = apply("attention", q, k, v, mask, scale=0.3, causal=causal, group=2)
        operands = tuple(a for a in (q, k, v, mask) if a is not None)
        graph = Graph(operands, (node,))
        (cluster,) = clusters(graph, body_nodes(graph)).values()
        assert "aten" in check(cluster)


def test_names_tell_kernels_apart() -> None:
    make: list[Callable[[], Node]] = [lambda: linear(3), lambda: matmul(3), lambda: conv(2)]
    for node, epilogue in product(make, EPILOGUES):
        names = [k.name for k in kernels(ended(node(), epilogue))]
        assert len(set(names)) == len(names)
        assert names[0] == "aten"
        assert all(" " not in n for n in names)  # plans are read by words
