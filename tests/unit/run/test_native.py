"""The native engine: right on the zoo, checked calls, nothing stale, saved and loaded whole."""

from __future__ import annotations

import gc
import shutil
import threading
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.unit.run.making import packed, plain, same
from whet.backend.transform import transformed
from whet.capture import zoo
from whet.capture.torch import capture
from whet.errors import InputError, StoreError, UnsupportedError
from whet.run.calling import Runner
from whet.run.module import Optimized
from whet.run.native import MANIFEST, native
from whet.run.oracle import Oracle
from whet.run.parameters import Parameters
from whet.run.program import Program


def made(model: nn.Module, *args: Any, choose: Any = packed, **options: Any) -> Optimized:
    """A module as the walk would return it, on a native program."""
    with torch.no_grad():
        captured = capture(model, args)
        graph = captured.graph
        constants = {k: v for k, v in graph.constants.items() if isinstance(v, Tensor)}
        parameters = Parameters(constants, model, [n.name for n in graph.parameters])
        built, lowered = native(graph, choose, parameters.tensors())
        program = Program(lowered, parameters, Runner.of(built).bind, "native")
    updates = tuple(leaf.name for leaf, _ in graph.updates)
    return Optimized(model, program, captured.signature, updates=updates, **options)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 5)
        self.inner = nn.Sequential(nn.Linear(5, 4), nn.Dropout(0.5))
        self.register_buffer("table", torch.arange(5.0))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.inner(self.fc(x).relu() + self.table))


X = torch.randn(3, 6)


@pytest.fixture(scope="module")
def fast() -> Optimized:
    torch.manual_seed(0)
    return made(Net().eval(), X)


@pytest.mark.parametrize(
    ("name", "choose"), [("lstm", plain), ("dlrm", packed), ("squeezenet", packed), ("moe", packed)]
)
@torch.no_grad()
def test_models_of_the_zoo(name: str, choose: Any) -> None:
    model = zoo.load(name, scale="small")
    fast = made(model.module, *model.inputs, choose=choose)
    error, right = Oracle(model.module, model.inputs, {}).judge(fast(*model.inputs))
    assert right, error


@pytest.mark.full
@pytest.mark.parametrize("choose", [plain, packed])
@pytest.mark.parametrize("name", zoo.names())
@torch.no_grad()
def test_all_models_of_the_zoo(name: str, choose: Any) -> None:
    test_models_of_the_zoo(name, choose)


@torch.no_grad()
def test_results_are_the_callers_own(fast: Optimized) -> None:
    first = fast(X)
    kept = first.clone()
    second = fast(X + 1)
    assert first.data_ptr() != second.data_ptr()
    same(first, kept)


@torch.no_grad()
def test_the_short_way_is_taken_and_counted(fast: Optimized) -> None:
    fast(X)
    quick = fast._quick
    assert quick is not None
    before, calls = quick.calls, fast.calls
    same(fast(X), fast.original(X))
    assert fast._quick is quick
    assert quick.calls == before + 1
    assert fast.calls == calls + 1


def changes() -> dict[str, Any]:
    def replaced(m: Any) -> None:
        m.fc.weight = nn.Parameter(torch.randn(5, 6))

    def copied(m: Any) -> None:
        m.fc.weight.data = torch.randn(5, 6)

    def written(m: Any) -> None:
        m.fc.weight.mul_(2)

    def unseen(m: Any) -> None:
        m.fc.bias.data.numpy()[:] += 1

    def buffered(m: Any) -> None:
        m.table.add_(1)

    def deeper(m: Any) -> None:
        m.inner[0].bias.sub_(3)

    found = (replaced, copied, written, unseen, buffered, deeper)
    return {f.__name__: f for f in found}


@pytest.mark.parametrize("change", changes())
@torch.no_grad()
def test_no_change_of_a_parameter_is_missed(change: str) -> None:
    model = Net().eval()
    module = made(model, X)
    module(X)
    module(X)
    changes()[change](model)
    same(module(X), model(X))
    same(module(X), model(X))
    assert not module.fallbacks


@torch.no_grad()
def test_another_mode_hook_or_structure_runs_the_original() -> None:
    model = Net().eval()
    module = made(model, X)
    module(X)
    model.inner[1].train()
    with pytest.warns(UserWarning, match="mode"):
        module(X)
    model.eval()
    seen: list[object] = []
    handle = model.fc.register_forward_hook(lambda *_: seen.append(1))
    with pytest.warns(UserWarning, match="hooks"):
        module(X)
    assert seen
    handle.remove()
    own = module.register_forward_hook(lambda *_: seen.append(2))
    module(X)
    assert seen[-1] == 2
    own.remove()
    same(module(X), model(X))


@torch.no_grad()
def test_whet_off_runs_the_original(fast: Optimized, monkeypatch: pytest.MonkeyPatch) -> None:
    fast(X)
    monkeypatch.setenv("WHET", "off")
    calls = fast.fallbacks["WHET=off"]
    fast(X)
    assert fast.fallbacks["WHET=off"] == calls + 1


@torch.no_grad()
def test_inputs_in_any_order_of_memory(fast: Optimized) -> None:
    want = fast.original(X)
    same(fast(X.t().contiguous().t()), want)
    same(fast(torch.cat([X, X], 1)[:, :6]), want)
    same(fast(torch._neg_view(-X)), want)
    same(fast(nn.Parameter(X)), want)
    with torch.inference_mode():
        same(fast(X.clone()), want)


@pytest.mark.parametrize(
    "bad", [torch.randn(4, 6), torch.randn(3, 6).double(), torch.randn(18), torch.ones(3, 6).long()]
)
@torch.no_grad()
def test_wrong_inputs_are_clear_errors(bad: Tensor) -> None:
    module = made(Net().eval(), X, strict=True)
    module(X)
    with pytest.raises(InputError, match="expected") as fault:
        module(bad)
    assert "got" in str(fault.value)


def test_gradients_run_the_original(fast: Optimized) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert fast(X).requires_grad


@torch.no_grad()
def test_concurrent_calls_share_nothing(fast: Optimized) -> None:
    xs = [torch.randn(3, 6) for _ in range(8)]
    want = [fast.original(x) for x in xs]
    faults: list[str] = []

    def run(x: Tensor, y: Tensor) -> None:
        for _ in range(200):
            with torch.no_grad():
                if not torch.allclose(fast(x), y, atol=1e-5):
                    faults.append("another thread's result")

    before = fast.calls
    threads = [threading.Thread(target=run, args=p) for p in zip(xs, want, strict=True)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not faults
    assert fast.calls == before + 1600


@torch.no_grad()
def test_a_program_outlives_its_parts() -> None:
    module = made(Net().eval(), X)
    program = module.program
    assert program is not None
    bound = program.current()
    want = module(X)
    del module, program
    gc.collect()
    same(bound([X])[0], want)


class Tied(nn.Module):
    """Results that are inputs, constants, each other, views, and nothing at all."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.arange(4.0))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = x * 2
        return y, x.t(), self.table, y.t(), y[0], y, F.pad(y[:, :0], (0, 0))


@torch.no_grad()
def test_outputs_never_alias() -> None:
    x = torch.randn(3, 4)
    module = made(Tied(), x)
    same(module(x), module.original(x))
    results = [*module(x), *module(x)]
    held = {t.data_ptr() for t in (x, module.original.table)}
    places = [t.data_ptr() for t in results if t.numel()]
    assert len(set(places)) == len(places)
    assert not held & set(places)


class Twice(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2


@torch.no_grad()
def test_memory_of_large_outputs_is_used_again_once_nobody_holds_it() -> None:
    x = torch.randn(512, 600)
    module = made(Twice(), x)
    place = module(x).data_ptr()
    assert module(x).data_ptr() == place
    held = module(x)
    view, array = module(x)[3:5], module(x).numpy()
    others = {t.data_ptr() for t in (held, view, module(x))} | {
        array.__array_interface__["data"][0]
    }
    assert len(others) == 4
    want = held.clone()
    module(x + 1)
    same(held, want)
    same(view, want[3:5])
    same(torch.from_numpy(array), want)


def test_large_outputs_are_of_the_mode_they_are_made_in() -> None:
    x = torch.randn(512, 600)
    with torch.no_grad():
        module = made(Twice(), x)
        module(x)
    with torch.inference_mode():
        assert module(x).is_inference()
    with torch.no_grad():
        found = module(x)
        assert not found.is_inference()
        found.add_(1)
        assert found._version == 1
        found.untyped_storage().resize_(8)
        del found
        same(module(x), x * 2)


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        self.seen.add_(1)
        return x + self.seen


@torch.no_grad()
def test_buffers_that_calls_update() -> None:
    x = torch.randn(2)
    model, twin = Counter().eval(), Counter().eval()
    module = made(model, x)
    for _ in range(3):
        same(module(x), twin(x))
    same(model.seen, twin.seen)


class Odd(nn.Module):
    """A parameter with gaps."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(6, 8)[:, :5])

    def forward(self, x: Tensor) -> Tensor:
        return x * self.w


@torch.no_grad()
def test_parameters_with_gaps() -> None:
    x = torch.randn(6, 5)
    model = Odd().eval()
    module = made(model, x)
    same(module(x), model(x))
    model.w.mul_(3)
    same(module(x), model(x))


def test_transformations_are_data() -> None:
    w = torch.arange(6.0).reshape(2, 3)
    tiled = transformed(w, ("tile", (2, 4), (2, 2, 2), (1, 0, 2)))
    same(tiled, torch.tensor([[[0.0, 1], [3, 4]], [[2, 0], [5, 0]]]))
    same(transformed(w, ("turned",)), w.t().contiguous())
    assert transformed(w, ()) is w


@torch.no_grad()
def test_saved_and_loaded_without_a_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Net().eval()
    captured = capture(model, (X,))
    built, lowered = native(captured.graph, packed)
    built.save(tmp_path / "program")
    monkeypatch.setenv("PATH", "")
    runner = Runner.load(tmp_path / "program")
    assert runner.native == built
    values = {**captured.parameters, **captured.graph.constants}
    same(runner.bind(lowered.derive(values))([X])[0], model(X))


def test_a_damaged_folder_is_a_clear_error(tmp_path: Path) -> None:
    built, _ = native(capture(Net().eval(), (X,)).graph, packed)
    built.save(tmp_path)
    (library,) = tmp_path.glob("*.so")
    library.write_bytes(library.read_bytes()[:-1])
    with pytest.raises(StoreError, match="cannot be loaded"):
        Runner.load(tmp_path)
    text = (tmp_path / MANIFEST).read_text()
    (tmp_path / MANIFEST).write_text(text.replace(torch.__version__, "0.0"))
    with pytest.raises(UnsupportedError, match="another torch"):
        Runner.load(tmp_path)
    shutil.rmtree(tmp_path)
    with pytest.raises(StoreError):
        Runner.load(tmp_path)
