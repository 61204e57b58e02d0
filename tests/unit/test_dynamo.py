"""The backend of torch.compile: right answers, live weights, and regions that are left alone."""

from __future__ import annotations

import copy
import importlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from whet import dynamo
from whet.dynamo import DynamoWarning, Lifted
from whet.errors import InputError, UnsupportedError
from whet.run.module import Optimized

# Library calls alone: the tests wait for no compiler.
QUICK = {"budget_s": 5.0, "disable": ["regions"]}


class Net(nn.Module):
    """Batch norm to fold, a buffer, a plain tensor attribute, a pytree as result."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 3))
        self.register_buffer("shift", torch.randn(3))
        self.factor = torch.randn(3)

    def forward(self, x: Tensor, times: int = 2) -> dict[str, Tensor]:
        return {"y": self.layers(x) * self.factor * times + self.shift}


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(importlib.import_module("whet.optimize"), "MEASURE_S", 0.3)
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> list[Optimized]:
    """What the backend has optimized."""
    found: list[Optimized] = []
    optimize = dynamo.optimize

    def kept(*args: Any, **named: Any) -> Optimized:
        found.append(optimize(*args, **named))
        return found[-1]

    monkeypatch.setattr(dynamo, "optimize", kept)
    return found


def compiled(model: nn.Module, **options: object) -> Callable[..., Any]:
    return torch.compile(model, backend="whet", options=QUICK | options)  # type: ignore[no-any-return]


def same(found: Any, right: Any) -> None:
    torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-5)


def first_other(timings: Mapping[str, object], original: str) -> str:
    """Takes a program whatever the clock says: what is looked at is not its speed."""
    return next(name for name in timings if name != original)


@torch.no_grad()
def test_by_its_entry_point(programs: list[Optimized], monkeypatch: pytest.MonkeyPatch) -> None:
    walk = importlib.import_module("whet.optimize")
    monkeypatch.setattr(walk, "choose", first_other)
    monkeypatch.setattr(walk, "finalists", lambda timings, original: list(timings))
    model = Net().eval()
    fast = compiled(model, budget_s=28.0)  # a third of it is for rewrites, on busy machines too
    for _ in range(3):
        x = torch.randn(4, 8)
        same(fast(x), model(x))
    assert len(programs) == 1
    report = programs[0].report
    assert {r.rule for r in report.rewrites} >= {"fold batch norm into linear with bias"}
    assert any("test_dynamo.py" in r.where for r in report.rewrites)
    assert not counters["whet"]


@torch.no_grad()
def test_weights_are_parameters_and_stay_live(programs: list[Optimized]) -> None:
    model = Net().eval()
    fast = compiled(model)
    x = torch.randn(4, 8)
    fast(x)
    held = programs[0].state_dict()
    assert sum("weight" in name for name in held) == 3
    model.layers[0].weight.mul_(2)  # in place
    same(fast(x), model(x))
    model.layers[0].bias = nn.Parameter(torch.randn(16))  # replaced
    same(fast(x), model(x))
    model.load_state_dict({k: torch.rand_like(v) for k, v in model.state_dict().items()
                           if v.is_floating_point()}, strict=False)  # fmt: skip
    same(fast(x), model(x))
    assert len(programs) == 1


@torch.no_grad()
def test_a_buffer_that_is_written_to() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(1))
            self.layer = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            self.calls.add_(1)
            return self.layer(x) + self.calls

    model = Counting().eval()
    other = copy.deepcopy(model)
    fast = compiled(model)
    for _ in range(3):
        x = torch.randn(4, 8)
        same(fast(x), other(x))
        same(model.calls, other.calls)


@torch.no_grad()
def test_regions_between_graph_breaks(programs: list[Optimized]) -> None:
    def breaks(x: Tensor, layer: nn.Module) -> Tensor:
        y = layer(x)
        torch._dynamo.graph_break()
        return torch.relu(y) + 1

    layer = nn.Linear(8, 8).eval()
    fast = torch.compile(breaks, backend="whet", options=QUICK)
    x = torch.randn(4, 8)
    same(fast(x, layer), breaks(x, layer))
    assert len(programs) == 2


def left_alone(call: Callable[[], Any], reason: str) -> Any:
    """The result of a call, during which one region was left as it was, for that reason."""
    with pytest.warns(DynamoWarning, match=reason):
        result = call()
    assert sum(counters["whet"].values()) == 1
    assert reason in next(iter(counters["whet"]))
    return result


def test_gradients_leave_a_region_alone(programs: list[Optimized]) -> None:
    model = Net().eval()
    fast = compiled(model)
    x = torch.randn(4, 8)
    result = left_alone(lambda: fast(x), "gradients may be asked for")
    result["y"].sum().backward()
    assert model.layers[0].weight.grad is not None
    assert not programs
    with torch.no_grad():  # and without, the same callable is optimized
        same(fast(x), model(x))
    assert len(programs) == 1


@torch.no_grad()
def test_open_sizes_leave_a_region_alone(programs: list[Optimized]) -> None:
    model = Net().eval()
    fast = compiled(model)
    fast(torch.randn(4, 8))
    x = torch.randn(5, 8)
    same(left_alone(lambda: fast(x), "its sizes or numbers are open"), model(x))
    assert len(programs) == 1


@torch.no_grad()
def test_written_inputs_leave_a_region_alone() -> None:
    def write(x: Tensor, cache: Tensor) -> Tensor:
        cache.add_(x)
        return cache * 2

    fast = torch.compile(write, backend="whet", options=QUICK)
    x, cache = torch.randn(4, 8), torch.zeros(4, 8)
    same(left_alone(lambda: fast(x, cache), "writes to its inputs"), x * 2)
    same(cache, x)


@torch.no_grad()
def test_views_of_inputs_leave_a_region_alone() -> None:
    def view(x: Tensor) -> tuple[Tensor, Tensor]:
        return x.view(8, 4), x + 1

    fast = torch.compile(view, backend="whet", options=QUICK)
    x = torch.randn(4, 8)
    y, _ = left_alone(lambda: fast(x), "is a view of an input")
    y.zero_()
    assert not x.any()


@torch.no_grad()
def test_what_cannot_be_captured_leaves_a_region_alone() -> None:
    def data_dependent(x: Tensor) -> Tensor:
        return x.nonzero() + 1

    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        fast = torch.compile(data_dependent, backend="whet", options=QUICK)
        x = torch.eye(3)
        same(left_alone(lambda: fast(x), "depends on data"), data_dependent(x))


@torch.no_grad()
def test_off(monkeypatch: pytest.MonkeyPatch, programs: list[Optimized]) -> None:
    model = Net().eval()
    x = torch.randn(4, 8)
    fast = compiled(model)
    same(fast(x), model(x))
    (program,) = programs
    monkeypatch.setenv("WHET", "off")
    same(fast(x), model(x))  # what is optimized already runs its original
    if program.program is not None:
        assert program.fallbacks == {"WHET=off": 1}
    torch._dynamo.reset()
    same(compiled(model)(x), model(x))  # and nothing new is optimized
    assert len(programs) == 1


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"options": {"speed": 9}}, "options speed"), ({"mode": "max-autotune"}, "max-autotune")],
)
def test_unknown_settings_are_refused(settings: dict[str, Any], words: str) -> None:
    region = torch.fx.symbolic_trace(nn.Identity())
    with pytest.raises(InputError, match=words):
        dynamo.backend(region, [torch.zeros(1)], **settings)


@torch.no_grad()
def test_strict_refuses() -> None:
    def sort(x: Tensor) -> Tensor:
        return x.sort(-1).values

    with pytest.raises(Exception, match="not for whet") as found:
        torch.compile(sort, backend="whet", dynamic=True, options={"strict": True})(torch.eye(3))
    assert isinstance(found.value, InputError) or "InputError" in str(found.value)
    torch._dynamo.reset()
    with pytest.raises(Exception, match="without a record") as found:
        torch.compile(sort, backend="whet", options=QUICK | {"strict": True})(torch.eye(3))
    assert isinstance(found.value, UnsupportedError) or "UnsupportedError" in str(found.value)


def test_lifted_sorts_inputs_from_weights() -> None:
    class Linear(nn.Module):
        def forward(self, w: Tensor, x: Tensor, b: Tensor) -> Tensor:
            return x @ w + b

    region = torch.fx.symbolic_trace(Linear())
    w, x, b = nn.Parameter(torch.randn(3, 2)), torch.randn(4, 3), torch.randn(2)
    lifted = Lifted(region, [w, x, b])
    assert lifted.names == ("w", None, None)
    assert lifted.inputs([w, x, b]) == [x, b]
    assert dict(lifted.named_parameters()) == {"w": w}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same(lifted(x, b), x @ w + b)
    other = nn.Parameter(torch.randn(3, 2))
    lifted.update([other, x, b])
    same(lifted(x, b), x @ other + b)
