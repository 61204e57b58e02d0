"""Partitions: one owner a node, an order that runs, clusters that forget where they came from."""

from __future__ import annotations

import pytest

from whet.fuse.legality import mergeable, united
from whet.fuse.partition import Group, PartitionError, apart, parse, partition
from whet.fuse.seed import merged, seed, trait
from whet.ir.graph import Graph, Node, apply, item, leaf, opaque
from whet.ir.types import DType, TensorType


def tensor(kind: str, name: str, *shape: int) -> Node:
    return leaf(kind, name, TensorType(DType.f32, shape))


def body(graph: Graph) -> frozenset[Node]:
    found: set[Node] = set()
    for n in graph.nodes:
        if n.op in ("input", "opaque") or any(a in found for a in n.operands):
            found.add(n)
    return frozenset(found)


def block(x: Node, k: int) -> Node:
    """A layer's worth of nodes: product, chain, residual."""
    w, v = tensor("parameter", f"w{k}", 64, 64), tensor("parameter", f"v{k}", 64)
    y = apply("linear", x, w, v)
    z = apply("softmax", apply("gelu", y), axis=1)
    return apply("add", x, z)


def model(blocks: int = 3) -> Graph:
    x = tensor("input", "x", 32, 64)
    y = x
    for k in range(blocks):
        y = block(y, k)
    return Graph((x,), (y,))


def test_apart_has_a_group_for_every_node_that_depends_on_inputs() -> None:
    graph = model()
    p = apart(graph, body(graph))
    assert len(p.groups) == 12
    assert all(len(c.results) == 1 for c in p.clusters)


def test_text_reads_back() -> None:
    graph = model()
    p = seed(graph, body(graph))
    assert parse(graph, p.body, str(p)) == p
    assert hash(parse(graph, p.body, str(p))) == hash(p)
    with pytest.raises(PartitionError, match="not the text"):
        parse(graph, p.body, "7 nonsense")


def test_repeated_blocks_have_equal_clusters() -> None:
    graph = model(4)
    p = seed(graph, body(graph))
    assert len({c.digest for c in p.clusters}) < len(p.groups)
    linear = [c for g, c in zip(p.groups, p.clusters, strict=True) if g.nodes[0].op == "linear"]
    assert len({c.digest for c in linear}) == 1
    assert linear[0].leaves != linear[1].leaves


def test_a_group_cannot_wait_for_itself() -> None:
    graph = model(1)
    p = apart(graph, body(graph))
    linear, add = 0, 3
    assert [g.nodes[0].op for g in p.groups] == ["linear", "gelu", "softmax", "add"]
    refusal = mergeable(p, (linear, add))
    assert refusal is not None
    assert "wait for itself" in refusal.reason
    with pytest.raises(PartitionError, match="wait for each other"):
        merged(p, (linear, add), united(p, (linear, add)))


def test_every_value_that_is_read_must_be_computed() -> None:
    graph = model(1)
    p = apart(graph, body(graph))
    with pytest.raises(PartitionError, match="no group computes"):
        partition(graph, p.body, p.groups[1:])
    with pytest.raises(PartitionError, match="two groups own"):
        partition(graph, p.body, [*p.groups, p.groups[0]])


def test_copies_are_computed_again_and_need_no_owner() -> None:
    x = tensor("input", "x", 8, 8)
    a = apply("exp", x)
    b, c = apply("tanh", a), apply("relu", a)
    graph = Graph((x,), (b, c))
    p = partition(graph, body(graph), [Group((b,), (a,)), Group((c,), (a,))])
    assert [len(k.graph.nodes) for k in p.clusters] == [3, 3]
    assert all(k.leaves == (x,) for k in p.clusters)
    assert parse(graph, p.body, str(p)) == p


def test_results_of_a_call_without_a_record_are_groups_of_their_own() -> None:
    x = tensor("input", "x", 8, 8)
    types = (TensorType(DType.f32, (8, 2)), TensorType(DType.i64, (8, 2)))
    call = opaque("aten.topk.default", (apply("exp", x),), "(%0, 2)", types)
    graph = Graph((x,), (apply("exp", item(call, 0)), item(call, 1)))
    p = seed(graph, body(graph))
    assert len(p.groups) == 5
    assert [c.leaves[0].op for c in p.clusters if c.graph.outputs[0].op == "item"] == ["exp"] * 2
    with pytest.raises(PartitionError, match="no group computes"):
        partition(graph, p.body, p.groups[1:])


def test_seed_takes_a_whole_row_chain_at_once() -> None:
    x, w, v = (
        tensor("input", "x", 512, 64),
        tensor("parameter", "w", 64),
        tensor("parameter", "v", 64),
    )
    y = apply("layer_norm", x, w, v, eps=1e-5, size=(64,))
    z = apply("add", x, apply("softmax", apply("gelu", y), axis=1))
    graph = Graph((x,), (z,))
    assert len(seed(graph, body(graph)).groups) == 1


def test_seed_gives_a_product_its_epilogue_and_nothing_across_rows() -> None:
    p = seed(model(2), body(model(2)))
    found = ["+".join(n.op for n in g.nodes) for g in p.groups]
    assert found == ["linear+gelu", "softmax+add"] * 2


def test_seed_leaves_what_it_knows_nothing_of_alone() -> None:
    x = tensor("input", "x", 64, 64)
    y = apply("permute", apply("exp", x), dims=(1, 0))
    graph = Graph((x,), (apply("exp", y),))
    assert len(seed(graph, body(graph)).groups) == 3


@pytest.mark.parametrize(
    ("op", "shapes", "attrs", "kind"),
    [
        ("gelu", [(8, 8)], {}, "pointwise"),
        ("softmax", [(8, 8)], {"axis": 1}, "reduction"),
        ("linear", [(8, 8), (4, 8)], {}, "product"),
        ("permute", [(8, 4)], {"dims": (1, 0)}, "movement"),
        ("concat", [(8, 4), (8, 2)], {"axis": 1}, "movement"),
    ],
)
def test_traits_are_read_off_records(
    op: str, shapes: list[tuple[int, ...]], attrs: dict[str, object], kind: str
) -> None:
    args = [tensor("input", f"x{k}", *s) for k, s in enumerate(shapes)]
    if op == "linear":
        args.append(None)  # type: ignore[arg-type]
    assert trait(apply(op, *args, **attrs)).kind == kind


def test_windows_are_not_chained_to_other_sums() -> None:
    window = {"kernel": (3, 3), "stride": (1, 1), "padding": (1, 1), "extra": (0, 0)}
    x = leaf("input", "x", TensorType(DType.f32, (1, 64, 20, 20)))
    first = apply("max_pool2d", apply("relu", x), dilation=(1, 1), **window)
    graph = Graph((x,), (apply("avg_pool2d", first, include_padding=1, **window),))
    found = [[n.op for n in g.nodes] for g in seed(graph, body(graph)).groups]
    assert found == [["relu", "max_pool2d"], ["avg_pool2d"]]
