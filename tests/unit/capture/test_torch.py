"""Capture as a whole: signatures, weights, mutation, opaque calls, lines, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from whet.backend.library import run_opaque
from whet.capture import zoo
from whet.capture.captured import Captured
from whet.capture.torch import capture
from whet.errors import CaptureError, InputError
from whet.ir.graph import Node
from whet.ir.interp import FLOAT64, evaluate, evaluate_all

X = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def run(captured: Captured, *args: Any, **kwargs: Any) -> Any:
    feeds = captured.feeds(args, kwargs)
    return captured.answer(evaluate(captured.graph, feeds, FLOAT64, run_opaque), args, kwargs)


def same(a: object, b: object) -> None:
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def ops(captured: Captured) -> set[str]:
    return {n.op for n in captured.graph.nodes}


class Affine(nn.Module):
    """A linear layer and a buffer that no state dict holds."""

    shift: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 5, dtype=torch.float64)
        self.register_buffer("shift", torch.ones(5, dtype=torch.float64), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.shift


# -- the calling convention ----------------------------------------------------------------------
class Nested(nn.Module):
    """Nested arguments and results of every kind."""

    def forward(
        self, pair: dict[str, Any], flag: bool, *, scale: float = 2.0, skip: None = None
    ) -> Mapping[str, Any]:
        a, (b, n) = pair["a"], pair["b"]
        y = a * scale + b if flag else a
        return {"y": [y, y], "n": n, "none": skip, "same": a, "scaled": (y * n, 3)}


def test_nested_arguments_and_results() -> None:
    args, kwargs = ({"a": X, "b": (X + 1, 5)}, True), {"scale": 3.0, "skip": None}
    captured = capture(Nested(), args, kwargs)
    got, want = run(captured, *args, **kwargs), Nested()(*args, **kwargs)
    same(got["y"], want["y"])
    same(got["scaled"], want["scaled"])
    assert got["same"] is X
    assert (got["n"], got["none"]) == (5, None)
    assert len(captured.graph.inputs) == 2


def test_other_fixed_value_is_an_input_error() -> None:
    captured = capture(Nested(), ({"a": X, "b": (X, 5)}, True), {"scale": 3.0})
    with pytest.raises(InputError, match=r"scale: was captured as 3\.0, got 4\.0"):
        captured.feeds(({"a": X, "b": (X, 5)}, True), {"scale": 4.0})


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((X[0],), "expected rank 2, got rank 1"),
        ((X.float(),), "expected float64, got float32"),
        ((X[:2],), r"expected shape \[3, 4\], got \[2, 4\]"),
        ((5,), "expected a tensor, got int"),
        ((X, X), "another structure"),
    ],
)
def test_unfit_argument_is_an_input_error(args: tuple[Any, ...], message: str) -> None:
    captured = capture(Affine(), (X,))
    with pytest.raises(InputError, match=message):
        captured.feeds(args)


def test_unused_input_stays() -> None:
    class Module(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + 1

    captured = capture(Module(), (X, X))
    assert [n.name for n in captured.graph.inputs] == ["x", "y"]


# -- weights -------------------------------------------------------------------------------------
def test_parameters_are_live() -> None:
    module = Affine()
    captured = capture(module, (X,))
    assert set(captured.parameters) == {"linear.weight", "linear.bias", "shift"}
    assert captured.parameters["linear.weight"] is module.linear.weight
    with torch.no_grad():
        module.linear.weight.mul_(2)
    module.linear.bias = nn.Parameter(torch.zeros(5, dtype=torch.float64))
    same(run(captured, X), module(X).detach())


def test_tied_weights() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(7, 4, dtype=torch.float64)
            self.head = nn.Linear(4, 7, bias=False, dtype=torch.float64)
            self.head.weight = self.table.weight

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.table(ids))

    module, ids = Tied(), torch.tensor([1, 5])
    same(run(capture(module, (ids,)), ids), module(ids).detach())


def test_lifted_constant_is_named_by_its_content() -> None:
    class Module(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            a, b = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0])
            return x[:, :2] * a + b

    captured = capture(Module(), (X,))
    (constant,) = captured.graph.leaves("constant")
    same(captured.graph.constants[constant.name], torch.tensor([1.0, 2.0]))
    same(run(captured, X), Module()(X))


# -- mutation ------------------------------------------------------------------------------------
class Counter(nn.Module):
    """Counts its calls, and writes to its argument."""

    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        self.count.add_(1)
        x[0] = 0
        return x * self.count


def test_mutation_becomes_updates() -> None:
    captured = capture(Counter(), (X.clone(),))
    assert [a.name for a, _ in captured.graph.updates] == ["count", "x"]
    (y,), new = evaluate_all(captured.graph, captured.feeds((X,)))
    want, module = X.clone(), Counter()
    same(y, module(want))
    same(new["x"], want)
    assert new["count"] == 1


def test_mutation_inside_the_model_leaves_no_trace() -> None:
    class Module(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = torch.zeros_like(x)
            y[:, 1:3] = x[:, :2]
            y[0].mul_(3)
            y += 1
            return F.relu(y, inplace=True)

    captured = capture(Module(), (X,))
    assert captured.graph.updates == ()
    same(run(captured, X), Module()(X))


def test_batch_norm_in_training_updates_its_statistics() -> None:
    module = nn.BatchNorm1d(4, dtype=torch.float64).train()
    captured = capture(module, (X,))
    (y,), new = evaluate_all(captured.graph, captured.feeds((X,)))
    same(y, module(X).detach())
    same(new["running_mean"], module.running_mean)
    same(new["running_var"], module.running_var)
    assert new["num_batches_tracked"] == 1


# -- whole operators -----------------------------------------------------------------------------
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize(
    "options",
    [{}, {"num_layers": 2, "bidirectional": True}, {"batch_first": True, "bias": False}],
    ids=["plain", "deep", "batch-first"],
)
def test_recurrent_networks_unroll_into_cells(kind: type[nn.Module], options: Any) -> None:
    module = kind(4, 5, dtype=torch.float64, **options).eval()
    x = torch.randn(3, 2, 4, dtype=torch.float64)
    captured = capture(module, (x,))
    with torch.no_grad():
        want = module(x)
    same(run(captured, x), want)
    assert not captured.foreign
    if kind is not nn.RNN:
        assert f"{kind.__name__.lower()}_cell" in ops(captured)


def test_recurrent_network_without_a_batch() -> None:
    module, x = nn.GRU(4, 5, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    with torch.no_grad():
        want = module(x)
    same(run(capture(module.eval(), (x,)), x), want)


def test_encoder_layer_is_not_swallowed_by_the_fast_path() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dtype=torch.float64).eval()
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    captured = capture(layer, (x,))
    with torch.no_grad():
        want = layer(x)
    same(run(captured, x), want)
    assert not captured.foreign
    assert {"attention", "layer_norm", "linear"} <= ops(captured)


# -- opaque calls --------------------------------------------------------------------------------
class TopK(nn.Module):
    """Two results of one library call."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        values, places = torch.topk(x, 2, dim=-1)
        return values * 2, places


def test_opaque_call_is_listed_with_line_and_reason() -> None:
    captured = capture(TopK(), (X,))
    (foreign,) = captured.foreign
    assert foreign.target == "aten.topk.default"
    assert foreign.reason == "no record computes it"
    assert foreign.where.endswith("values, places = torch.topk(x, 2, dim=-1)")
    assert foreign.where.startswith(__file__)
    assert foreign.node.attr("statics") == "aten.topk.default(%0, 2)"
    assert captured.coverage["aten.topk.default"] == 1
    same(run(captured, X), TopK()(X))


def test_complex_numbers_stay_in_the_library() -> None:
    class Module(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            pairs = torch.view_as_complex(x.reshape(3, 2, 2))
            turn = torch.polar(torch.ones(2), torch.tensor([0.5, 0.7]))
            return torch.view_as_real(pairs * turn).flatten(1)

    x = X.float()
    captured = capture(Module(), (x,))
    assert "aten.mul.Tensor: complex numbers" in str(captured.foreign[-2])
    torch.testing.assert_close(run(captured, x), Module()(x), check_dtype=False)


@pytest.mark.parametrize(
    ("call", "target"),
    [
        (lambda x: torch.sort(x, dim=1, descending=True), "aten.sort.default"),
        (lambda x: torch.cummax(x, 1), "aten.cummax.default"),
        (lambda x: F.max_pool1d(x, 2, return_indices=True), "aten.max_pool1d_with_indices.default"),
        (lambda x: torch.searchsorted(x[0].sort().values, x), "aten.searchsorted.Tensor"),
        (torch.erfc, "aten.erfc.default"),
        (lambda x: torch.linalg.inv(x[:, :3] + 9), "aten.linalg_inv.default"),
        (lambda x: torch.bucketize(x, torch.arange(3.0)), "aten.bucketize.Tensor"),
    ],
)
def test_calls_without_a_record_run_in_the_library(call: Any, target: str) -> None:
    class Module(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return call(x)

    captured = capture(Module(), (X,))
    assert any(target in f.target for f in captured.foreign), captured.foreign
    same(run(captured, X), Module()(X))


def test_draws_stay_distinct() -> None:
    class Module(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.rand_like(x) - torch.rand_like(x)

    captured = capture(Module(), (X,))
    assert len({f.node for f in captured.foreign}) == 2
    assert bool((run(captured, X) != 0).any())


def test_dropout_in_training_is_a_draw() -> None:
    captured = capture(nn.Dropout(0.5).train(), (X,))
    assert any("draw 1" in str(f.node.attr("statics")) for f in captured.foreign)


def test_custom_operator_is_carried_by_name() -> None:
    @torch.library.custom_op("whet_tests::twice", mutates_args=())
    def twice(x: Tensor) -> Tensor:
        return x * 2

    twice.register_fake(torch.empty_like)

    class Module(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return twice(x) + 1

    captured = capture(Module(), (X,))
    assert [f.target for f in captured.foreign] == ["whet_tests.twice.default"]
    same(run(captured, X), X * 2 + 1)


# -- lines ---------------------------------------------------------------------------------------
def test_every_node_of_a_model_has_its_line() -> None:
    model = zoo.load("bert_base", scale="small")
    captured = capture(model.module, model.inputs)
    missing = [n for n in captured.graph.nodes if not n.is_leaf and n not in captured.graph.where]
    assert missing == []
    softmax = next(n for n in captured.graph.nodes if n.op == "attention")
    assert "zoo/bert.py" in captured.graph.where[softmax]
    assert captured.graph.where[softmax].endswith("F.scaled_dot_product_attention(q, k, v)")


# -- what is refused -----------------------------------------------------------------------------
class Branches(nn.Module):
    """Control flow on a value."""

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:  # the line
            return x
        return -x


class Nonzero(nn.Module):
    """A shape that is data."""

    def forward(self, x: Tensor) -> Tensor:
        return x[x > 0]  # the line


class Raises(nn.Module):
    """A fault of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return x @ x  # the line


class Answer:
    """A result of a type of its own."""


class Returns(nn.Module):
    """A result that is no tree of tensors."""

    def forward(self, x: Tensor) -> Answer:
        return Answer()


class Loop(nn.Module):
    """A loop that torch keeps as one."""

    def forward(self, x: Tensor) -> Tensor:
        from torch._higher_order_ops.while_loop import while_loop

        (y,) = while_loop(lambda y: y.sum() < 10, lambda y: (y + 1,), (x,))  # the line
        return y


class Item(nn.Module):
    """A number taken out of a tensor."""

    def forward(self, x: Tensor) -> Tensor:
        return x * x.sum().item()  # the line


class Strides(nn.Module):
    """Memory read as it lies."""

    def forward(self, x: Tensor) -> Tensor:
        return x.t().as_strided((2, 2), (1, 2))  # the line


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Branches(), "control flow or its shapes depend on data"),
        (Nonzero(), "depends on data"),
        (Raises(), "does not trace"),
        (Loop(), "control flow by while_loop"),
        (Strides(), "reads memory by strides"),
        (Item(), "a number that depends on data"),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else "",
)
def test_what_does_not_trace_shows_the_line(module: nn.Module, message: str) -> None:
    with pytest.raises(CaptureError, match=message) as caught:
        capture(module, (X,))
    assert Path(__file__).name in str(caught.value.where)
    assert "# the line" in str(caught.value.where)


def test_results_of_unknown_types_are_refused() -> None:
    with pytest.raises(CaptureError, match=r"returns a .*Answer, which is no tensor") as caught:
        capture(Returns(), (X,))
    assert "use_cache=False" in str(caught.value.hint)


def test_element_types_without_a_name_are_refused() -> None:
    class Module(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x * torch.tensor(1j, dtype=torch.complex128)).abs()

    with pytest.raises(CaptureError, match="no tensors of torch.complex128"):
        capture(Module(), (X,))


def test_models_over_several_devices_are_refused() -> None:
    class Module(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y.to("cpu")

    with pytest.raises(CaptureError, match="several devices"):
        capture(Module(), (X, X.to("meta")))


def test_a_wrong_mapping_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from whet.capture.aten import ATEN

    def wrong(call: object, x: Node, other: object, alpha: object = 1) -> Node:
        return x

    class Module(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.ones(2, 3, 4)

    monkeypatch.setitem(ATEN, "add", wrong)
    with pytest.raises(CaptureError, match="mapped to another type than torch gives it"):
        capture(Module(), (X,))


# -- exported programs ---------------------------------------------------------------------------
def test_exported_program_with_its_own_inputs() -> None:
    module = Affine()
    program = torch.export.export(module, (X,))
    captured = capture(program)
    same(run(captured, X), module(X).detach())
    assert any("return self.linear(x) + self.shift" in w for w in captured.graph.where.values())


def test_exported_program_with_open_sizes_is_closed() -> None:
    module = Affine()
    batch = torch.export.Dim("batch", min=2, max=9)
    program = torch.export.export(module, (X,), dynamic_shapes={"x": {0: batch}})
    captured = capture(program, (X[:2],))
    assert captured.graph.inputs[0].shape == (2, 4)
    same(run(captured, X[:2]), module(X[:2]).detach())


def test_exported_program_for_other_inputs() -> None:
    program = torch.export.export(Affine(), (X,))
    with pytest.raises(CaptureError, match="for other inputs"):
        capture(program, (X[:2],))


def test_module_without_inputs() -> None:
    with pytest.raises(CaptureError, match="captured with example inputs"):
        capture(Affine())
