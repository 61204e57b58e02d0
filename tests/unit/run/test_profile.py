"""Profiles: every call is there with its work, and the page says what holds it."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from tests.unit.run.making import packed, plain
from whet.backend.lowered import Lowered
from whet.capture.captured import Captured
from whet.capture.torch import capture
from whet.cli.profile import page
from whet.machine import Machine
from whet.machine.processor import Rate
from whet.run.calling import Runner
from whet.run.native import Native, native
from whet.run.profile import Profile, Spent, profile

RATES = (
    Rate("flops", "float32", 1, 1e11), Rate("read", "L2", 1, 2e11), Rate("read", "L3", 1, 1e11),
    Rate("read", "DRAM", 1, 4e10),
)  # fmt: skip


def built(choose: object) -> tuple[Captured, Native, Lowered]:
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh()).eval()
    captured = capture(model, (torch.randn(3, 6),))
    return captured, *native(captured.graph, choose)  # type: ignore[arg-type]


@torch.no_grad()
def test_every_call_is_timed_with_its_work() -> None:
    captured, program, lowered = built(plain)
    bound = Runner.of(program).bind(lowered.derive(captured.parameters))
    machine = Machine.detect().with_rates(RATES)
    x = torch.randn(3, 6)
    found = profile(captured.graph, bound, [x], machine, budget_s=0.01)
    assert [c.operators for c in found.calls] == ["linear", "tanh"]
    linear, tanh = found.calls
    assert linear.flops == 2 * 3 * 6 * 5 + 3 * 5
    assert linear.bytes == 4 * (3 * 6 + 6 * 5 + 5 + 3 * 5)
    assert (tanh.flops, tanh.bytes) == (15, 4 * 30)
    assert all(c.seconds > 0 for c in found.calls)
    assert found.floor_s > 0
    json.dumps(found.to_json())


def test_fused_calls_tell_all_they_compute() -> None:
    _, program, _ = built(packed)
    assert [(c.name, c.operators) for c in program.calls] == [("onednn+tanh", "linear+tanh")]


def test_a_page_ranks_calls_and_says_what_holds_them() -> None:
    slow = Spent("onednn", "conv2d+relu", 3e-4, 10**8, 10**6, 0.9, "FLOPs")
    quick = Spent("generated", "add", 1e-6, 100, 800, 0.01, "call overhead")
    found = Profile((quick, slow), 3.1e-4, 2.7e-4, 4096, 4000, 2)
    text = page(found, "small", 1)
    lines = text.splitlines()
    assert lines[0] == "small: 2 calls"
    assert lines[3].split()[:2] == ["onednn", "conv2d+relu"]
    assert lines[3].endswith("FLOPs")
    assert lines[4].startswith("1 others")
    assert "87% of the whole call" in text
    assert found.held == "FLOPs"
    assert found.overhead_s == pytest.approx(9e-6)
