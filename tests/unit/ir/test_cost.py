"""FLOPs and bytes: against torch's own counter where it counts, and by what is really touched."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.unit.ir.cases import case, every
from whet.ir import expr as ex
from whet.ir.cost import bytes_moved, flops, graph_cost, graph_floor, node_cost, touched, traffic
from whet.ir.graph import Graph, apply, item, leaf, opaque
from whet.ir.ops import instance
from whet.ir.record import Instance
from whet.ir.types import DType, Poly, TensorType


def bound(name: str, *shapes: tuple[int | Poly, ...] | None, **attrs: object) -> Instance:
    return instance(name, shapes, tuple(sorted(attrs.items())))


def counted(run: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


CONV = {"groups": 2, "stride": (2, 1), "padding": (1, 0), "dilation": (1, 2)}


@pytest.mark.parametrize(
    ("made", "run"),
    [
        (
            bound("matmul", (5, 6, 7), (5, 7, 8)),
            lambda: torch.randn(5, 6, 7) @ torch.randn(5, 7, 8),
        ),
        (
            bound("linear", (3, 7), (8, 7), None),
            lambda: F.linear(torch.randn(3, 7), torch.randn(8, 7)),
        ),
        (
            bound("conv2d", (2, 8, 14, 13), (16, 4, 3, 3), None, **CONV),
            lambda: F.conv2d(
                torch.randn(2, 8, 14, 13), torch.randn(16, 4, 3, 3), None, (2, 1), (1, 0), (1, 2), 2
            ),
        ),
        (
            bound("einsum", (3, 4, 5), (3, 5, 2), equation="bij,bjk->bik"),
            lambda: torch.einsum("bij,bjk->bik", torch.randn(3, 4, 5), torch.randn(3, 5, 2)),
        ),
    ],
    ids=["matmul", "linear", "conv2d", "einsum"],
)  # fmt: skip
def test_contractions_cost_what_torch_counts(made: Instance, run: Callable[[], object]) -> None:
    assert flops(made) == counted(run)


def test_attention_costs_its_two_products_and_the_softmax_between() -> None:
    b, h, i, j, d = 2, 4, 16, 24, 8
    shapes = ((b, h, i, d), (b, h, j, d), (b, h, j, d))
    made = bound("attention", *shapes, None, scale=0.3, causal=False, group=1)
    with sdpa_kernel(SDPBackend.MATH):  # the counter does not know the fused kernel of the CPU
        products = counted(
            lambda: F.scaled_dot_product_attention(*(torch.randn(s) for s in shapes))
        )
    scores = b * h * i * j
    assert products == 4 * scores * d
    # scale, maximum, subtraction, exponential and sum of each score; a division of each result
    assert flops(made) == products + 5 * scores + b * h * i * d


@pytest.mark.parametrize(
    ("made", "count"),
    [
        (bound("add", (2, 3), (3,)), 6),
        (bound("relu", (2, 3)), 6),
        (bound("cumsum", (5, 1000), axis=1), 5000),
        (bound("embedding", (50000, 8), (3, 4)), 0),
        (bound("reshape", (6, 4), size=(8, 3)), 0),
        (bound("concat", (2, 3), (2, 4), axis=1), 0),
        (bound("mean", (3, 4), dims=(1,)), 12 + 3),
        (bound("softmax", (3, 4), axis=1), 12 + 2 * 12 + 12 + 12),
        (bound("batch_norm", (2, 3, 5), (3,), (3,), (3,), (3,), eps=1e-5), 30 * 4 + 2 * 3),
    ],
    ids=lambda p: p.name if isinstance(p, Instance) else "",
)  # fmt: skip
def test_flops_of_small_operators(made: Instance, count: int) -> None:
    assert flops(made) == count


def test_flops_of_a_transposed_convolution_skip_the_holes() -> None:
    attrs = {"groups": 1, "padding": (0, 0), "dilation": (1, 1), "output_padding": (0, 0)}
    made = bound("conv_transpose2d", (1, 8, 10, 12), (8, 4, 2, 2), None, stride=(2, 2), **attrs)
    assert flops(made) == 2 * 8 * 4 * 10 * 12 * 2 * 2


def test_adaptive_pooling_reads_each_element_once() -> None:
    made = bound("adaptive_avg_pool2d", (1, 2, 12, 12), size=(3, 4))
    assert int(str(flops(made))) < 3 * 2 * 12 * 12


def test_symbolic_costs() -> None:
    b, m, k, n = map(Poly.symbol, "BMKN")
    made = bound("matmul", (b, m, k), (k, n))
    assert flops(made) == 2 * b * m * k * n
    assert touched(made, "x") == b * m * k
    attrs = {"groups": 1, "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1)}
    conv = bound("conv2d", (b, k, m, n), (64, k, 3, 3), None, **attrs)
    assert flops(conv) == 2 * 9 * 64 * b * k * m * n


def elements_read(made: Instance, operand: str) -> set[tuple[int, ...]]:
    """By enumeration: the elements of an operand that affine loads reach."""
    found: set[tuple[int, ...]] = set()
    sizes = made.sizes(operand)
    for let in made.lets:
        for load in ex.loads(let.body):
            if load.tensor != operand:
                continue
            forms = [ex.affine(i) for i in load.index]
            if None in forms:
                return {(k,) for k in range(10**6)}
            axes = sorted({a for f in forms for a in f[0]})
            for point in itertools.product(*(range(int(made.extents[a])) for a in axes)):
                at = dict(zip(axes, point, strict=True))
                place = tuple(c + sum(n * at[a] for a, n in k.items()) for k, c in forms)
                if all(0 <= p < n for p, n in zip(place, sizes, strict=True)):
                    found.add(place)
    return found


@pytest.mark.parametrize(
    "row", [r for r in every() if r[0] in (
        "conv2d", "slice", "select", "pad", "max_pool2d", "flip", "concat", "permute", "matmul",
        "softmax", "layer_norm", "rope", "pixel_shuffle", "batch_norm", "stack", "expand",
    )], ids=lambda r: f"{r[0]}-{r[1]}",
)  # fmt: skip
def test_touched_elements_are_those_that_indices_reach(row: tuple[str, int]) -> None:
    made = case(*row).instance
    for operand in made.operands:
        assert touched(made, operand) == len(elements_read(made, operand))


def test_bytes_are_those_really_touched() -> None:
    table = leaf("parameter", "table", TensorType(DType.f32, (50000, 64)))
    ids = leaf("input", "ids", TensorType(DType.i64, (3, 7)))
    found = apply("embedding", table, ids)
    assert traffic(found) == ((21 * 64 * 4, 21 * 8), 21 * 64 * 4)
    x = leaf("input", "x", TensorType(DType.bf16, (4, 100)))
    part = apply("slice", x, axis=1, start=10, stop=20, step=2)
    assert traffic(part) == ((4 * 5 * 2,), 4 * 5 * 2)
    assert bytes_moved(part) == 80
    image = leaf("input", "image", TensorType(DType.f32, (1, 3, 8, 8)))
    w = leaf("parameter", "w", TensorType(DType.f32, (5, 3, 1, 1)))
    attrs = {"groups": 1, "stride": (2, 2), "padding": (0, 0), "dilation": (1, 1)}
    down = apply("conv2d", image, w, None, **attrs)
    assert traffic(down) == ((3 * 16 * 4, 15 * 4), 5 * 16 * 4)


def test_cost_of_a_graph() -> None:
    kinds = [(3, 5), (3, 4), (3, 4), (16, 5), (16, 4)]
    x = [leaf("input", f"x{k}", TensorType(DType.f32, s)) for k, s in enumerate(kinds)]
    h1, c1 = (apply("lstm_cell", *x, None, out=o) for o in ("h1", "c1"))
    both = graph_cost(Graph(tuple(x), (h1, c1)))
    # One application with two results: the gates are computed once.
    assert both.flops == flops(h1.instance)
    assert both.flops < node_cost(h1).flops + node_cost(c1).flops
    operands = sum(a.type.nbytes for a in x)
    assert both.bytes == operands + h1.type.nbytes + c1.type.nbytes
    doubled = apply("add", h1, h1)
    more = graph_cost(Graph(tuple(x), (doubled, c1)))
    assert more.flops - both.flops == 12


def test_an_opaque_call_moves_all_its_operands_and_results() -> None:
    x = leaf("input", "x", TensorType(DType.f32, (4, 9)))
    kinds = (TensorType(DType.f32, (4, 2)), TensorType(DType.i64, (4, 2)))
    call = opaque("aten.topk.default", [x], "(%0, 2)", kinds)
    values = item(call, 0)
    cost = graph_cost(Graph((x,), (values, item(call, 1))))
    assert cost.flops == 0
    assert cost.bytes == 4 * 9 * 4 + 8 * 4 + 8 * 8


def test_the_floor_of_a_graph_reads_leaves_and_writes_results() -> None:
    table = leaf("parameter", "table", TensorType(DType.f32, (50000, 64)))
    w = leaf("parameter", "w", TensorType(DType.f32, (64, 32)))
    ids = leaf("input", "ids", TensorType(DType.i64, (7,)))
    found = apply("embedding", table, ids)
    out = apply("relu", apply("matmul", found, w))
    g = Graph((ids,), (out, out))
    floor, each = graph_floor(g), graph_cost(g)
    assert floor.flops == each.flops == 2 * 7 * 64 * 32 + 7 * 32
    assert floor.bytes == 7 * 64 * 4 + 7 * 8 + 64 * 32 * 4 + 7 * 32 * 4
    assert each.bytes > floor.bytes
