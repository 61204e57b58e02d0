"""Right or wrong is decided against the original in float64, by the original's own error."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from whet.run.oracle import Oracle, relative_error

NAN, INF = math.nan, math.inf


def t(*values: float, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.tensor(values, dtype=dtype)


@pytest.mark.parametrize(
    ("found", "expected", "error"),
    [
        ([t(3, 4)], [t(3, 4)], 0.0),
        ([t(3, 5)], [t(3, 4)], 0.2),
        ([t(3, 4), t(1, 1)], [t(3, 4), t(1, 0)], 1.0),
        ([t(0, 0)], [t(0, 0)], 0.0),
        ([t(0, 1)], [t(0, 0)], 1.0),
        ([t(NAN, 4)], [t(NAN, 4)], 0.0),
        ([t(NAN, 4)], [t(3, 4)], INF),
        ([t(3, 4)], [t(3, NAN)], INF),
        ([t(INF, 4)], [t(INF, 4)], 0.0),
        ([t(-INF, 4)], [t(INF, 4)], INF),
        ([t(INF, 4)], [t(3, 4)], INF),
        ([t(3, 4)], [t(3, 4), t(1)], INF),
        ([t(3, 4)], [t(3, 4, 5)], INF),
        ([], [], 0.0),
        ([t()], [t()], 0.0),
        ([torch.tensor([1, 2, 3, 4])], [torch.tensor([1, 2, 3, 5])], 0.25),
        ([torch.tensor([True])], [torch.tensor([True])], 0.0),
        ([t(3, 4, dtype=torch.bfloat16)], [t(3, 4, dtype=torch.float64)], 0.0),
    ],
)
def test_relative_errors(found: list[Tensor], expected: list[Tensor], error: float) -> None:
    assert relative_error(found, expected) == pytest.approx(error)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(64, 8)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor, scale: float = 1.0) -> dict[str, Any]:
        self.count += 1
        return {"y": self.fc(x) * scale, "top": x.argmax(-1), "three": 3}


@torch.no_grad()
def test_rounding_passes_and_faults_do_not() -> None:
    model, x = Net().eval(), torch.randn(5, 64)
    oracle = Oracle(model, (x,), {"scale": 2.0})
    assert 0 < oracle.error < 1e-5
    assert [r.dtype for r in oracle.expected] == [torch.float64, torch.int64]
    right = model(x, scale=2.0)
    assert oracle.judge(right) == (pytest.approx(oracle.error), True)
    close = {**right, "y": right["y"] * (1 + 4e-7)}
    assert oracle.judge(close)[1]
    for wrong in (
        {**right, "y": right["y"] * 1.001},
        {**right, "y": right["y"].bfloat16()},
        {**right, "top": right["top"] + 1},
        {**right, "y": right["y"] * NAN},
        {"y": right["y"]},
        {},
    ):
        assert not oracle.judge(wrong)[1]


@torch.no_grad()
def test_the_module_is_left_alone() -> None:
    model, x = Net().eval(), torch.randn(5, 64)
    Oracle(model, (x,), {})
    assert model.fc.weight.dtype == torch.float32
    assert x.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_low_precision_is_judged_by_its_own_error(dtype: torch.dtype) -> None:
    model, x = Net().to(dtype).eval(), torch.randn(5, 64).to(dtype)
    oracle = Oracle(model, (x,), {})
    assert oracle.error > 1e-5
    again = model(x)
    assert oracle.judge(again)[1]
    again["y"] = again["y"] * 1.5
    assert not oracle.judge(again)[1]


class Stubborn(nn.Module):
    """Cannot be run in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.float()).float()


@torch.no_grad()
def test_what_cannot_be_run_in_float64_is_computed_otherwise() -> None:
    model, x = Stubborn().eval(), torch.randn(3, 4)
    exact = [x.double() @ model.fc.weight.double().t() + model.fc.bias.double()]
    oracle = Oracle(model, (x,), {}, lambda: exact)
    assert oracle.judge(model(x))[1]
    assert not oracle.judge(model(x) + 1)[1]
    with pytest.raises(RuntimeError):
        Oracle(model, (x,), {})


@torch.no_grad()
def test_integers_must_agree() -> None:
    class Top(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.argmax(-1)

    x = torch.randn(100, 7)
    oracle = Oracle(Top(), (x,), {})
    assert oracle.judge(x.argmax(-1)) == (0.0, True)
    off = x.argmax(-1)
    off[3] += 1
    assert not oracle.judge(off)[1]
