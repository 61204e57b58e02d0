"""What a user expects of an optimized module: that it is theirs, only faster."""

from __future__ import annotations

import copy
import inspect
import pickle
import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.unit.run.making import optimized, plain, same, storages
from whet.errors import InputError, WhetError

pytestmark = pytest.mark.usefixtures("no_grad")


@pytest.fixture(name="no_grad")
def _no_grad() -> Any:
    with torch.no_grad():
        yield


class Tree(nn.Module):
    """Nested arguments and results, defaults, an argument handed through."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)
        self.names = ["a", "b"]

    def forward(
        self, x: Tensor, pair: tuple[Tensor, Tensor], *, scale: float = 2.0, mask: Any = None
    ) -> dict[str, Any]:
        y = self.fc(x) * scale
        if mask is not None:
            y = y.masked_fill(mask["m"], 0.0)
        return {"y": y, "rest": (pair[0], None, [pair[1] - 1, 7]), "x": x, "w": self.fc.weight}

    def greeting(self) -> str:
        return "hello"


X, Y = torch.randn(2, 4), torch.randn(3)


def tree(**kwargs: Any) -> tuple[Tree, Any]:
    model = Tree().eval()
    return model, optimized(model, X, (Y, Y + 1), **kwargs)


def test_trees_of_arguments_and_results() -> None:
    model, fast = tree()
    got = fast(X, (Y, Y + 1))
    same(got, model(X, (Y, Y + 1)))
    assert got["x"] is X
    assert got["rest"][0] is Y
    assert got["rest"][2][1] == 7
    assert not fast.fallbacks


CALLS: list[Callable[[Any], Any]] = [
    lambda m: m(X, (Y, Y)),
    lambda m: m(X, pair=(Y, Y)),
    lambda m: m(pair=(Y, Y), x=X),
    lambda m: m(X, (Y, Y), scale=2.0),
    lambda m: m(X, (Y, Y), mask=None, scale=2.0),
]


@pytest.mark.parametrize("call", CALLS)
def test_by_position_by_name_or_by_default(call: Callable[[Any], Any]) -> None:
    """However the same call is written, and however it was written when captured."""
    for kwargs in ({}, {"scale": 2.0}, {"scale": 2.0, "mask": None}):
        model = Tree().eval()
        fast = optimized(model, X, (Y, Y), kwargs=kwargs)
        same(call(fast), call(model))
        assert not fast.fallbacks


def test_a_fixed_value_is_fixed() -> None:
    model, fast = tree()
    with pytest.warns(UserWarning, match="another structure"):
        same(fast(X, (Y, Y), scale=3.0), model(X, (Y, Y), scale=3.0))
    named = optimized(model, X, (Y, Y), kwargs={"scale": 2.0})
    with pytest.warns(UserWarning, match=r"scale: was captured as 2\.0, got 3\.0"):
        same(named(X, (Y, Y), scale=3.0), model(X, (Y, Y), scale=3.0))


def test_signature_and_attributes_are_the_originals() -> None:
    model, fast = tree()
    assert inspect.signature(fast) == inspect.signature(model.forward)
    assert fast.greeting() == "hello"
    assert fast.names is model.names
    assert not hasattr(fast, "nonsense")
    assert "engine=steps" in repr(fast)
    assert not hasattr(object.__new__(type(fast)), "original")


def test_state_is_shared() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)).eval()
    fast = optimized(model, torch.randn(1, 2, 5, 6))
    assert list(fast.state_dict()) == list(model.state_dict())
    assert storages(list(fast.state_dict().values())) == storages(list(model.state_dict().values()))
    assert dict(fast.named_parameters()) == dict(model.named_parameters())
    assert [n for n, _ in fast.named_modules()] == [n for n, _ in model.named_modules()]
    fast[0].weight.zero_() if hasattr(fast, "__getitem__") else fast.get_submodule(
        "0"
    ).weight.zero_()
    assert not model[0].weight.any()


def test_to_another_type_and_back() -> None:
    model = nn.Linear(4, 3)
    fast = optimized(model, X)
    fast.to(torch.float64)
    assert model.weight.dtype == torch.float64
    with pytest.warns(UserWarning, match="expected float32, got float64"):
        same(fast(X.double()), model(X.double()))
    with pytest.warns(UserWarning, match="parameter"), pytest.raises(RuntimeError):
        fast(X)
    fast.float()
    same(fast(X), model(X))
    assert sum(fast.fallbacks.values()) == 2


def test_modes() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Dropout(1.0)).eval()
    fast = optimized(model, X)
    assert fast.train() is fast
    assert model[1].training
    with pytest.warns(UserWarning, match="in training mode"):
        assert not fast(X).any()
    fast.eval()
    assert fast(X).any()
    model.train()
    assert not fast(X).any()
    assert fast.fallbacks.total() == 2


def test_gradients_are_never_lost() -> None:
    model = nn.Linear(4, 3)
    fast = optimized(model, X)
    with torch.enable_grad():
        with pytest.warns(UserWarning, match=r"under torch\.no_grad"):
            fast(X).sum().backward()
        assert model.weight.grad is not None
        model.requires_grad_(False)
        assert not fast(X).requires_grad
        x = X.clone().requires_grad_()
        with pytest.warns(UserWarning, match="an input requires gradients"):
            fast(x).sum().backward()
        assert x.grad is not None
    assert fast.fallbacks.total() == 2


def test_inference_mode() -> None:
    model, fast = tree()
    with torch.inference_mode():
        same(fast(X, (Y, Y)), model(X, (Y, Y)))
    assert not fast.fallbacks


def test_autocast_is_the_originals() -> None:
    model = nn.Linear(4, 3)
    fast = optimized(model, X)
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.warns(UserWarning, match="autocast is on"),
    ):
        assert fast(X).dtype == torch.bfloat16
    assert fast(X).dtype == torch.float32


def test_whet_off(monkeypatch: pytest.MonkeyPatch) -> None:
    for strict in (False, True):
        model = nn.Linear(4, 3)
        fast = optimized(model, X, strict=strict)
        monkeypatch.setenv("WHET", "off")
        assert torch.equal(fast(X), model(X))
        assert fast(X[:1]).shape == (1, 3)
        assert fast.fallbacks == {"WHET=off": 2}
        monkeypatch.delenv("WHET")
        fast(X)
        assert fast.fallbacks.total() == 2
        assert fast.calls == 3


def test_another_shape_runs_the_original_and_is_said_once() -> None:
    model = nn.Linear(4, 3)
    fast = optimized(model, X)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for rows in range(3, 60):
            x = torch.randn(rows, 4)
            assert torch.equal(fast(x), model(x))
    assert len(seen) == 1
    assert "expected shape [2, 4], got [3, 4]" in str(seen[0].message)
    assert seen[0].filename == __file__
    assert fast.fallbacks.total() == 57
    assert len(fast.fallbacks) <= 33


class Sparse(Tensor):
    """A tensor subclass."""


WRONG: dict[str, tuple[Any, str]] = {
    "rank": (torch.randn(4, 4, 2), "expected rank 2, got rank 3"),
    "shape": (torch.randn(2, 5), "expected shape [2, 4], got [2, 5]"),
    "dtype": (torch.randn(2, 4).double(), "expected float32, got float64"),
    "device": (torch.empty(2, 4, device="meta"), "expected device cpu, got meta"),
    "no tensor": ([[1.0] * 4] * 2, "another structure"),
    "a number": (3.0, "expected a tensor, got float"),
}


@pytest.mark.parametrize(("value", "reason"), WRONG.values(), ids=WRONG.keys())
def test_what_neither_takes_is_said_clearly(value: Any, reason: str) -> None:
    fast = optimized(nn.Linear(4, 3), X)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(InputError) as caught:
            fast(value)
    text = str(caught.value)
    assert reason in text
    assert "the original says: " in text
    assert "float32[2, 4]" in text
    assert "try:" in text


@pytest.mark.parametrize(("value", "reason"), WRONG.values(), ids=WRONG.keys())
def test_strict_raises(value: Any, reason: str) -> None:
    fast = optimized(nn.Linear(4, 3), X, strict=True)
    with pytest.raises(InputError, match="the program is not for this call") as caught:
        fast(value)
    assert reason in str(caught.value)


def test_wrong_calls_are_the_originals_to_refuse() -> None:
    fast = optimized(nn.Linear(4, 3), X)
    for args, kwargs in (((), {}), ((X, X), {}), ((X,), {"nonsense": 1})):
        fast.fallbacks.clear()
        with pytest.warns(UserWarning, match="another"), pytest.raises(InputError, match="neither"):
            fast(*args, **kwargs)


def test_subclasses_and_sparse_tensors_are_the_originals() -> None:
    model = nn.Linear(4, 3)
    fast = optimized(model, X)
    with pytest.warns(UserWarning, match="expected a plain tensor, got a Sparse"):
        assert isinstance(fast(X.as_subclass(Sparse)), Sparse)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sparse = X.to_sparse()
        same(fast(sparse), model(X))
    assert any("sparse_coo" in reason for reason in fast.fallbacks)
    assert torch.equal(fast(nn.Parameter(X)), fast(X))


@pytest.mark.parametrize("engine", ["steps", "inductor"])
def test_inputs_of_every_layout(engine: str) -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return (x @ y.t()).tanh() + x.sum()

    fast = optimized(Net().eval(), torch.randn(4, 4), torch.randn(4, 4), engine=engine)
    a = torch.randn(4, 4)
    negative = torch.view_as_complex(torch.randn(4, 4, 2)).conj().imag
    overlapping = torch.randn(40).as_strided((4, 4), (1, 2))
    for x, y in (
        (a.t(), a), (a[:1].expand(4, 4), a), (a, a), (overlapping, a), (negative, a),
        (torch.randn(8, 8)[::2, 1::2], a.t()),
    ):  # fmt: skip
        before = x.clone()
        same(fast(x, y), Net()(x, y))
        assert torch.equal(x, before)
    assert not fast.fallbacks


@pytest.mark.parametrize("engine", ["steps", "inductor"])
def test_results_alias_nothing(engine: str) -> None:
    class Views(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(3, 4))
            self.register_buffer("b", torch.arange(6.0))

        def forward(self, x: Tensor) -> list[Tensor]:
            y = x * 2
            halves = torch.ops.aten.unsafe_chunk.default(y, 2, 1)
            return [
                y, y.t(), y.view(-1), x.t(), x[0], self.w.t(), self.w.view(2, 6), self.b[1:3],
                self.b.expand(2, 6), y.reshape(8, 1), *halves, torch.einsum("ab->ba", x),
            ]  # fmt: skip

    model = Views().eval()
    fast = optimized(model, X, engine=engine)
    first, second = fast(X), fast(X)
    same(first, model(X))
    held = [X, *model.state_dict().values()]
    places = storages([*held, *first, *second])
    assert len(set(places)) == len(places)
    for t in first:
        t.copy_(torch.full_like(t, 9.0))
    same(fast(X), model(X))
    assert not fast.fallbacks


class Counter(nn.Module):
    """Writes to buffers, read before and after, and to an argument."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(4))
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor, cache: Tensor) -> Tensor:
        self.count += 1
        self.mean.mul_(0.9).add_(x.mean(0) * 0.1)
        cache[1] = x[0]
        return self.fc(x) + self.mean * self.count + cache.sum()


@pytest.mark.parametrize("engine", ["steps", "inductor"])
def test_mutations_happen(engine: str) -> None:
    model, twin = Counter().eval(), Counter().eval()
    fast = optimized(model, X, torch.zeros(3, 4), engine=engine)
    twin.load_state_dict(model.state_dict())
    for _ in range(3):
        ours, theirs, x = torch.zeros(3, 4), torch.zeros(3, 4), torch.randn(2, 4)
        same(fast(x, ours), twin(x, theirs))
        same(ours, theirs)
        same(model.state_dict(), twin.state_dict())
    assert float(model.count) == 3
    assert not fast.fallbacks
    model.count.fill_(10)
    twin.count.fill_(10)
    same(fast(X, torch.zeros(3, 4)), twin(X, torch.zeros(3, 4)))


def test_concurrent_calls() -> None:
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8)).eval()
    xs = [torch.randn(5, 16) for _ in range(8)]
    fast = optimized(model, xs[0], engine="inductor")
    want = [model(x) for x in xs]
    wrong: list[int] = []

    @torch.no_grad()
    def call(k: int) -> None:
        results = [fast(xs[k]) for _ in range(50)]
        wrong.extend(k for y in results if not torch.allclose(y, want[k], atol=1e-5))

    threads = [threading.Thread(target=call, args=(k,)) for k in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong
    assert fast.calls == 400


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_models_run_in_their_own_precision(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.LayerNorm(16), nn.Linear(16, 4))
    model = model.to(dtype).eval()
    x = torch.randn(3, 8, dtype=dtype)
    exact = copy.deepcopy(model).double()(x.double())
    fast = optimized(model, x, choose=plain)
    got = fast(x)
    assert got.dtype == dtype
    own = (model(x).double() - exact).norm()
    assert (got.double() - exact).norm() <= 4 * own + 1e-12
    program = fast.program
    assert program is not None
    assert {t.dtype for t in program._state.derived} == {dtype}


@pytest.mark.parametrize("engine", ["steps", "inductor"])
def test_a_batch_of_none(engine: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 9, 2)).eval()
    x = torch.randn(0, 3, 5, 5)
    fast = optimized(model, x, engine=engine, choose=plain)
    assert fast(x).shape == (0, 2)
    assert not fast.fallbacks


def test_copies_are_independent() -> None:
    model = nn.Linear(4, 3)
    fast = optimized(model, X, engine="inductor")
    other = copy.deepcopy(fast)
    other.weight.mul_(2)
    same(fast(X), model(X))
    same(other(X), F.linear(X, model.weight * 2, model.bias))
    assert other.found.parameters.tensors()["weight"] is other.weight
    assert not other.fallbacks
    original = copy.deepcopy(optimized(model, X, engine="original"))
    assert original.program is None
    same(original(X), model(X))


def test_pickling_says_what_to_do() -> None:
    fast = optimized(nn.Linear(4, 3), X)
    for call in (lambda: pickle.dumps(fast), lambda: copy.copy(fast)):
        with pytest.raises(WhetError, match=r"whet\.save\(module, folder\)"):
            call()


def test_inside_another_module_and_another_capture() -> None:
    inner = optimized(nn.Linear(4, 3).eval(), X)
    outer = nn.Sequential(inner, nn.ReLU()).eval()
    same(outer(X), inner(X).relu())
    program = torch.export.export(outer, (X,))
    same(program.module()(X), outer(X))
    assert list(outer.state_dict()) == ["0.weight", "0.bias"]


def test_a_module_without_parameters_or_results() -> None:
    class Nothing(nn.Module):
        def forward(self, x: Tensor) -> tuple[()]:
            return ()

    fast = optimized(Nothing().eval(), X)
    assert fast(X) == ()
