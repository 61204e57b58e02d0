"""Whatever is done to a model's parameters is seen by the next call."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.unit.run.making import optimized, same
from whet.errors import InputError
from whet.run.parameters import Parameters


class Net(nn.Module):
    """A convolution whose batch norm is folded, packed linear layers, and tied weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 24)
        self.out = nn.Linear(24, 8)
        self.back = nn.Linear(8, 24, bias=False)
        self.back.weight = self.fc.weight
        self.scale = nn.Parameter(torch.tensor([2.0]))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)).relu().mean((2, 3))
        return self.back(self.out(self.fc(x).tanh())) * self.scale


def net() -> Net:
    torch.manual_seed(1)
    return Net().eval()


X = torch.randn(2, 3, 5, 7, generator=torch.Generator().manual_seed(3))


def replace_parameter(m: Net) -> None:
    m.fc.weight = m.back.weight = nn.Parameter(torch.randn(24, 8))


def replace_data(m: Net) -> None:
    m.conv.weight.data = torch.randn(8, 3, 3, 3)


def swap_scale(m: Net) -> None:
    """One element, equal to the old one, and only then another value."""
    m.scale = nn.Parameter(torch.tensor([2.0]))


def through_numpy(m: Net) -> None:
    m.out.weight.detach().numpy()[:] *= 3


def one_row(m: Net) -> None:
    m.out.weight[2] = 5.0


def optimizer_step(m: Net) -> None:
    with torch.enable_grad():
        m(X).sum().backward()
    torch.optim.SGD(m.parameters(), lr=0.1).step()


def others() -> dict[str, Tensor]:
    return {
        k: v * 2 + 1 if v.is_floating_point() else v for k, v in net().state_dict().items()
    }  # fmt: skip


def reload(m: Net) -> None:
    m.load_state_dict(others())


def assign(m: Net) -> None:
    """Loading that puts other tensors in place; tied names stay tied."""
    m.load_state_dict(others(), assign=True)
    m.back.weight = m.fc.weight


CHANGES: dict[str, Callable[[Net], object]] = {
    "in place": lambda m: m.fc.weight.mul_(3),
    "one row in place": one_row,
    "a view of it": lambda m: m.fc.weight.view(-1)[3:9].zero_(),
    "load_state_dict": reload,
    "load_state_dict, assigned": assign,
    "optimizer": optimizer_step,
    "p.data.mul_": lambda m: m.conv.weight.data.mul_(2),
    "p.data of a small one": lambda m: m.conv.bias.data[0].add_(1),
    "p.data = …": replace_data,
    "module.weight = …": replace_parameter,
    "one element": swap_scale,
    "buffer": lambda m: m.norm.running_var.mul_(4),
    "buffer replaced": lambda m: m.norm.register_buffer("running_mean", torch.randn(8)),
    "numpy": through_numpy,
    "requires_grad_": lambda m: m.requires_grad_(False),
    "weights in inference mode": lambda m: _inference(lambda: m.out.weight.mul_(2)),
}


def _inference(change: Callable[[], object]) -> None:
    with torch.inference_mode():
        change()


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
@torch.no_grad()
def test_a_change_is_noticed(change: Callable[[Net], object]) -> None:
    model = net()
    fast = optimized(model, X)
    same(fast(X), model(X))
    change(model)
    same(fast(X), model(X))
    model.scale.add_(1)
    same(fast(X), model(X))
    assert not fast.fallbacks


@torch.no_grad()
def test_only_what_a_change_touches_is_derived_again() -> None:
    model = net()
    fast = optimized(model, X)
    program = fast.program
    assert program is not None
    before = program.current, program._state.derived
    fast(X)
    assert program.repacks == 0
    model.out.weight.mul_(2)
    fast(X)
    fast(X)
    assert program.repacks == 1
    new = [a is not b for a, b in zip(before[1], program._state.derived, strict=True)]
    assert sum(new) == 1


@torch.no_grad()
def test_the_last_resort_is_refresh() -> None:
    model = nn.Linear(64, 64)
    x = torch.randn(3, 64)
    fast = optimized(model, x)
    model.weight.data[0, 0] += 100  # far from the middle, and no version counts it
    fast.refresh()
    same(fast(x), model(x))


@torch.no_grad()
def test_weights_made_in_inference_mode() -> None:
    with torch.inference_mode():
        model = nn.Linear(6, 5).eval().requires_grad_(False)
    x = torch.randn(3, 6)
    fast = optimized(model, x)
    same(fast(x), model(x))
    with torch.inference_mode():
        model.weight.mul_(2)
        same(fast(x), model(x))
    same(fast(x), model(x))
    assert not fast.fallbacks


@torch.no_grad()
def test_derived_in_inference_mode_and_used_outside() -> None:
    model = net()
    fast = optimized(model, X)
    model.fc.weight.mul_(2)
    with torch.inference_mode():
        assert fast(X).is_inference()
    got = fast(X)
    assert not got.is_inference()
    same(got, model(X))


def _widen(m: Net) -> None:
    m.out = nn.Linear(24, 8)


REFUSED: dict[str, tuple[Callable[[Net], object], str]] = {
    "another submodule": (_widen, "submodule out was replaced"),
    "untied": (
        lambda m: setattr(m.back, "weight", nn.Parameter(torch.randn(24, 8))),
        "fc.weight and back.weight are no longer one tensor",
    ),
    "another type": (
        lambda m: setattr(m.scale, "data", m.scale.data.double()),
        "parameter scale: expected float32[1], got float64[1]",
    ),
    "another shape": (
        lambda m: setattr(m, "scale", nn.Parameter(torch.ones(2, 1))),
        "parameter scale: expected float32[1], got float32[2, 1]",
    ),
    "a mode inside": (lambda m: m.norm.train(), "submodule norm is in training mode"),
    "a hook": (lambda m: m.fc.register_forward_hook(lambda *a: a[2] + 1), "hooks were added"),
    "a pre-hook": (
        lambda m: m.register_forward_pre_hook(lambda m, a: (a[0] + 1,)), "hooks were added",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("change", "reason"), REFUSED.values(), ids=REFUSED.keys())
@torch.no_grad()
def test_another_model_is_no_longer_the_programs(
    change: Callable[[Net], object], reason: str
) -> None:
    model = net()
    fast = optimized(model, X)
    change(model)
    with pytest.warns(UserWarning, match="runs the original module"):
        got = fast(X)
    same(got, model(X), 1e-5)
    assert any(reason in known for known in fast.fallbacks)
    fast(X)
    assert sum(fast.fallbacks.values()) == 2


@torch.no_grad()
def test_hooks_from_before_are_part_of_the_program() -> None:
    model = net()
    handle = model.fc.register_forward_hook(lambda m, a, y: y * 2)
    fast = optimized(model, X)
    same(fast(X), model(X))
    assert not fast.fallbacks
    handle.remove()
    with pytest.warns(UserWarning, match="hooks were added or removed"):
        same(fast(X), model(X))


@torch.no_grad()
def test_calls_while_parameters_change_see_old_or_new() -> None:
    model = nn.Linear(8, 8, bias=False).eval()
    x = torch.ones(4, 8)
    model.weight.fill_(1)
    fast = optimized(model, x)
    wrong: list[float] = []
    stop = threading.Event()

    @torch.no_grad()
    def call() -> None:
        while not stop.is_set():
            value = fast(x)
            if not torch.equal(value, value[0, 0].expand(4, 8)):
                wrong.append(float(value[0, 0]))

    threads = [threading.Thread(target=call) for _ in range(4)]
    for t in threads:
        t.start()
    for k in range(2, 60):
        model.weight = nn.Parameter(torch.full((8, 8), float(k)))
        assert torch.equal(fast(x), torch.full((4, 8), 8.0 * k))  # what I changed, I see
    stop.set()
    for t in threads:
        t.join()
    assert not wrong


def test_a_missing_tensor_is_named() -> None:
    model = nn.Linear(3, 3)
    watched = Parameters({}, model, ["weight", "bias"])
    model.bias = None
    with pytest.raises(InputError, match="parameter bias is no tensor any more"):
        watched.tensors()


def test_marks_tell_what_changed() -> None:
    model = nn.Linear(3, 3)
    watched = Parameters({"c": torch.arange(3.0)}, model, ["weight", "bias"])
    mark = watched.mark()
    assert watched.unchanged(mark)
    with torch.no_grad():
        model.bias.add_(1)
    assert not watched.unchanged(mark)
    assert mark.changes(watched.mark()) == {"bias"}
    watched.values["c"].add_(1)
    assert mark.changes(watched.mark()) == {"bias", "c"}


def test_nan_is_no_change() -> None:
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.weight.fill_(float("nan"))
    watched = Parameters({}, model, ["weight"])
    assert watched.unchanged(watched.mark())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int64, torch.bool])
def test_every_element_type_is_watched(dtype: torch.dtype) -> None:
    tensor = torch.zeros(100, dtype=dtype)
    watched = Parameters({"t": tensor})
    mark = watched.mark()
    tensor.data.fill_(1)
    assert not watched.unchanged(mark)
