"""Schedules of a cluster against each other: built together, each measured by itself."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from whet.backend import cpp
from whet.ir.graph import Graph, Node, apply, leaf
from whet.ir.types import DType, TensorType
from whet.kernel.space import Drafted
from whet.machine import Machine
from whet.machine.target import Target
from whet.run.contest import Contest
from whet.run.farm import Failed, Farm
from whet.run.measure import Timing

TARGET = Target.of(Machine.detect(), 1)


def x(kind: str, name: str, *shape: int) -> Node:
    return leaf(kind, name, TensorType(DType.f32, shape))


def linear() -> Contest:
    a, w = x("input", "a", 8, 24), x("parameter", "w", 40, 24)
    return Contest.of(Graph((a,), (apply("relu", apply("linear", a, w, None)),)), TARGET)


def window() -> Contest:
    image, w = x("input", "a", 1, 3, 9, 8), x("parameter", "w", 5, 3, 3, 3)
    conv = apply("conv2d", image, w, None, groups=1, stride=(1, 1), padding=(1, 1), dilation=(1, 1))
    return Contest.of(Graph((image,), (conv,)), TARGET)


@pytest.mark.parametrize("make", [linear, window])
def test_drafts_and_variations_are_right_and_timed(make, tmp_path: Path) -> None:
    contest, rng = make(), random.Random(0)
    entrants = [*contest.variations.known, *(contest.variations.scattered(rng) for _ in range(4))]
    kernels = contest.build(entrants, tmp_path)
    with Farm(1, patience_s=20) as farm:
        named = {str(k): kernel for k, kernel in enumerate(kernels)}
        found = contest.measure(farm, named, rounds=2, limit_s=1.0)
    assert all(isinstance(v, Timing) for v in found.values()), found
    assert any(kernel.laid for kernel in kernels)  # parameters lie as tiles read them


def test_a_wrong_kernel_is_found_out_though_its_weights_lie_elsewhere(tmp_path: Path) -> None:
    contest = linear()
    right = contest.variations.known[0]
    wrong = right.kernel.with_body(right.kernel.body[:-1] if len(right.kernel.body) > 1 else ())
    kernels = contest.build([right, Drafted("wrong", (), wrong)], tmp_path)
    with Farm(1, patience_s=20) as farm:
        named = dict(zip(("right", "wrong"), kernels, strict=True))
        found = contest.measure(farm, named, rounds=1, limit_s=1.0)
    assert isinstance(found["right"], Timing)
    assert isinstance(found["wrong"], Failed)
    assert found["wrong"].kind == "wrong"


def test_kernels_that_do_not_compile_leave_the_others(tmp_path, monkeypatch) -> None:
    contest, real = linear(), cpp.unit
    entrants = contest.variations.known[:3]
    monkeypatch.setattr(
        cpp, "unit", lambda made, t: real(made, t) + ("\n#error no\n" if len(made) > 1 else "")
    )
    kernels = contest.build(entrants, tmp_path)
    assert not any(isinstance(k, Failed) for k in kernels)  # built one by one in the end
    assert len({k.library for k in kernels}) == len({d.kernel.digest for d in entrants}) > 1
    monkeypatch.setattr(cpp, "unit", lambda made, t: real(made, t) + "\n#error no\n")
    assert {k.kind for k in contest.build(entrants, tmp_path)} == {"compile"}


def test_a_kernel_without_c_is_a_failure(tmp_path) -> None:
    contest = linear()
    odd = contest.naive.with_buffer(replace(contest.naive.buffer("x0"), dtype=DType.c64))
    (kernel,) = contest.build([Drafted("odd", (), odd)], tmp_path)
    assert isinstance(kernel, Failed)
    assert "C type" in kernel.reason
