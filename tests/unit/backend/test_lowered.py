"""Lowered graphs: what is ahead, what is in the body, and both together equal the graph."""

from __future__ import annotations

import dis

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.unit.run.making import packed, plain, same
from whet.backend.lowered import Lowered, example, lower
from whet.capture.torch import capture
from whet.ir.graph import Graph, apply, full, leaf
from whet.ir.types import DType, TensorType


class Net(nn.Module):
    """Folded parameters, a table of positions, a literal, a mask, two products of one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)
        self.norm = nn.BatchNorm1d(6)
        self.unused = nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        table = torch.arange(6.0) * self.norm.weight.exp()
        mask = torch.ones(4, 6, dtype=torch.bool).tril()
        z = F.linear(self.fc(x).relu() + y, self.fc.weight)
        return torch.where(mask, self.norm(z) + table, z.new_tensor(0.5)), self.norm.bias * 2


X, Y = torch.randn(4, 6), torch.randn(4, 6)


@pytest.fixture(scope="module")
def model() -> Net:
    torch.manual_seed(0)
    return Net().eval().requires_grad_(False)


def lowered(model: nn.Module, choose: object = plain, literals: str = "ahead") -> Lowered:
    return lower(capture(model, (X, Y)).graph, choose, literals=literals)  # type: ignore[arg-type]


def values(model: nn.Module, low: Lowered) -> dict[str, Tensor]:
    constants = {k: v for k, v in low.graph.constants.items() if isinstance(v, Tensor)}
    return dict(model.state_dict()) | constants


@pytest.mark.parametrize("literals", ["ahead", "inline"])
@pytest.mark.parametrize("choose", [plain, packed])
def test_prologue_and_body_are_the_graph(model: Net, choose: object, literals: str) -> None:
    low = lowered(model, choose, literals)
    derived = low.derive(values(model, low))
    got = low.function()(X, Y, *derived)
    same(got, model(X, Y))
    assert set(low.inputs) == {"x0", "x1"}
    assert sum(low.kernels.values()) == len(low.body)
    ahead = {s.node.op for s in low.prologue}
    assert "exp" in ahead
    assert not {s.target for s in low.prologue} & {s.target for s in low.body}


def test_what_depends_on_no_input_is_not_in_the_body(model: Net) -> None:
    low = lowered(model)
    assert not {s.node.op for s in low.body} & {"exp", "arange", "tril", "full"}
    assert "unused" not in {n.name for n in low.leaves.values()}


def test_a_packed_weight_is_not_handed_over_plain(model: Net) -> None:
    low = lowered(model, packed)
    weights = [s for s, n in low.leaves.items() if n.name == "fc.weight"]
    packs = [s for s in low.prologue if s.operands == tuple(weights)]
    assert len(packs) == 2  # one for each product
    assert "fc.weight" in low.copied
    assert set(low.chosen.values()) != {"aten"}


def test_only_what_is_asked_for_is_derived(model: Net) -> None:
    low = lowered(model, packed)
    known = values(model, low)
    whole = dict(zip(low.derived, low.derive(known), strict=True))
    slots = low.affected({"norm.weight"})
    assert slots
    assert len(slots) < len(low.derived)
    assert not set(slots) & set(low.affected({"fc.bias"}))
    needed = {k: v for k, v in known.items() if not k.startswith("fc.")}
    for slot, tensor in zip(slots, low.derive(needed, slots), strict=True):
        same(tensor, whole[slot])
    assert low.affected(()) == []
    assert low.affected({"unused"}) == []


def test_values_die_at_their_last_use() -> None:
    x = leaf("input", "x", TensorType(DType.f32, (3,)))
    node = x
    for _ in range(4):
        node = apply("exp", node)
    body = lower(Graph((x,), (node, node)), plain).function()
    assert body.__code__.co_names.count("f0") == 1
    (a, b) = body(torch.zeros(3))
    assert a is b
    cleared = [i for i in dis.get_instructions(body) if i.opname == "LOAD_CONST" and not i.argval]
    assert len(cleared) == 3


def test_literals_ahead_or_inline() -> None:
    x = leaf("input", "x", TensorType(DType.f32, (3,)))
    graph = Graph((x,), (apply("add", x, full(2.0, DType.f32)),))
    ahead, inline = lower(graph, plain), lower(graph, plain, literals="inline")
    assert [s.node.op for s in ahead.body] == ["add"]
    assert sorted(s.node.op for s in inline.body) == ["add", "full"]
    for low in (ahead, inline):
        assert torch.equal(low.function()(torch.ones(3), *low.derive({}))[0], torch.full((3,), 3.0))


def test_results_that_are_leaves_or_literals() -> None:
    x = leaf("input", "x", TensorType(DType.f32, (2,)))
    p = leaf("parameter", "p", TensorType(DType.f32, (2,)))
    low = lower(Graph((x,), (x, p, full(1.0, DType.f32), x)), plain)
    got = low.function()(torch.ones(2), *low.derive({"p": torch.zeros(2)}))
    same(got, (torch.ones(2), torch.zeros(2), torch.tensor(1.0), torch.ones(2)))
    assert low.copied == frozenset()
    none = lower(Graph((x,), ()), plain)
    assert none.function()(torch.ones(2)) == ()


def test_operators_that_torch_has_no_call_for_are_counted() -> None:
    x = leaf("input", "x", TensorType(DType.f32, (1, 2, 7, 8)))
    attrs = {"kernel": (3, 2), "stride": (2, 3), "dilation": (1, 1), "extra": (0, 0)}
    graph = Graph((x,), (apply("max_pool2d", x, padding=(2, 1), **attrs),))
    low = lower(graph, plain)
    assert low.kernels == {"record": 1}
    value = torch.randn(1, 2, 7, 8)
    want = F.max_pool2d(F.pad(value, (1, 1, 2, 2), value=-torch.inf), (3, 2), (2, 3))
    same(low.function()(value)[0], want)


def test_examples_are_of_their_type() -> None:
    generator = torch.Generator().manual_seed(0)
    for dtype in (DType.f32, DType.bf16, DType.i64, DType.bool):
        made = example(leaf("input", "x", TensorType(dtype, (2, 3))), generator)
        assert (made.shape, str(made.dtype)) == ((2, 3), f"torch.{dtype.value}")
