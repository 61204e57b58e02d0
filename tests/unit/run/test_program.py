"""Programs: engines agree, results are the caller's own, derived values are nobody's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.unit.run.making import plain, program, same, storages
from whet.capture.torch import capture
from whet.errors import InputError
from whet.run.parameters import Parameters


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 5)
        self.register_buffer("table", torch.arange(5.0))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = self.fc(x).relu() + self.table
        return y, self.table, y[0], x.t()


X = torch.randn(3, 6)


@pytest.fixture
def model() -> Net:
    return Net().eval()


@pytest.mark.parametrize("engine", ["steps", "inductor"])
@torch.no_grad()
def test_engines_compute_the_model(model: Net, engine: str) -> None:
    made, _ = program(capture(model, (X,)), engine)
    first, second = made([X]), made([X])
    same(tuple(first), model(X))
    dense = [t for t in made._state.derived if not t.is_mkldnn]
    held = set(storages([X, *model.state_dict().values(), *dense]))
    new = storages([*first, *second])
    assert len(set(new)) == 8
    assert not held & set(new)


def test_gradients_are_not_recorded(model: Net) -> None:
    made, _ = program(capture(model, (X,)))
    assert torch.is_grad_enabled()
    assert not made([X])[0].requires_grad


@torch.no_grad()
def test_repacks_are_counted_and_lazy(model: Net) -> None:
    made, _ = program(capture(model, (X,)))
    made([X])
    assert made.repacks == 0
    model.fc.weight.mul_(2)
    assert made.repacks == 0
    made([X])
    made.refresh()
    assert made.repacks == 2


@torch.no_grad()
def test_what_is_read_where_it_lies_needs_no_repacking(model: Net) -> None:
    made, _ = program(capture(model, (X,)), choose=plain)
    assert made.lowered.copied == frozenset()
    model.fc.weight.mul_(2)
    same(tuple(made([X])), model(X))
    assert made.repacks == 0


@torch.no_grad()
def test_the_same_program_on_other_parameters(model: Net) -> None:
    made, _ = program(capture(model, (X,)), "inductor")
    other = Net().eval()
    moved = made.on(made.parameters.of(other))
    same(tuple(moved([X])), other(X))
    same(tuple(made([X])), model(X))


@torch.no_grad()
def test_other_parameters_than_it_was_made_for(model: Net) -> None:
    made, _ = program(capture(model, (X,)))
    model.fc.weight.data = torch.randn(5, 7)
    for _ in range(2):
        with pytest.raises(InputError) as caught:
            made([X])
        assert "fc.weight: expected float32[5, 6], got float32[5, 7]" in str(caught.value)
    model.fc.weight.data = torch.randn(5, 6)
    same(tuple(made([X])), model(X))


@torch.no_grad()
def test_parameters_of_another_layout(model: Net) -> None:
    """A compiled body reads strides that were fixed; another layout is refused, never misread."""
    conv = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    x = torch.randn(1, 3, 6, 7)
    captured = capture(conv, (x,))
    made, _ = program(captured, "inductor", plain)
    conv.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert conv[0].weight.stride() != (27, 9, 3, 1)
    with pytest.raises(InputError):
        made([x])
    conv.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    same(made([x])[0], conv(x))


def test_constants_are_watched_as_well(model: Net) -> None:
    table = torch.ones(4)
    watched = Parameters({"table": table}, model, ["fc.bias"])
    mark = watched.mark()
    table.add_(1)
    assert not watched.unchanged(mark)
    assert mark.changes(watched.mark()) == {"table"}
    assert watched.misfit() is None
