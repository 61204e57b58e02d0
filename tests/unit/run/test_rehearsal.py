"""Drafts called as programs call them: large constants elsewhere at every call."""

from __future__ import annotations

import ctypes
from itertools import islice, pairwise

import pytest
import torch

from whet.ir.graph import Graph, apply, leaf
from whet.ir.types import DType, TensorType
from whet.run import rehearsal
from whet.run.rehearsal import ALIGN, LARGE, Far, in_turn, streams


def test_places_do_not_meet_and_fill_the_memory() -> None:
    far = Far(1 << 20)
    found = list(far.places([70_000, 5_000]))
    spans = sorted((a, a + n) for row in found for a, n in zip(row, (70_000, 5_000), strict=True))
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))
    assert all(a % ALIGN == far.start % ALIGN for a, _ in spans)
    assert far.start <= spans[0][0]
    assert spans[-1][1] <= far.start + far.bytes
    assert len(found) == (1 << 20) // (18 * 4096 + 2 * 4096)


def test_the_memory_holds_numbers_that_nothing_is_slow_with() -> None:
    far = Far(1 << 20)
    held = (ctypes.c_float * (far.bytes // 4)).from_address(far.start)
    values = torch.frombuffer(held, dtype=torch.float32)
    assert bool(values.isfinite().all())
    assert float(values.abs().max()) < 10
    assert float((values == 0).float().mean()) < 0.01


def test_constants_of_a_library_call_are_made_several_times() -> None:
    made: list[torch.Tensor] = []

    def make(named):
        made.append(named["w"])
        return [named["w"].t()]

    w = torch.randn(256, 256)
    turns = in_turn(make, {"w": w}, Far(4 * w.nbytes))
    found = [t for (t,) in islice(turns, 8)]
    assert len(made) == 4
    assert len({t.data_ptr() for t in found}) == 4
    assert found[0].data_ptr() == found[4].data_ptr() == w.data_ptr()
    assert all(torch.equal(t, w.t()) for t in found)


@pytest.mark.parametrize(("size", "far"), [(8, 1 << 20), (256, None)])
def test_small_constants_and_near_ones_are_made_once(size: int, far: int | None) -> None:
    made = []
    turns = in_turn(made.append, {"w": torch.zeros(size, size)}, Far(far) if far else None)  # type: ignore[arg-type]
    assert list(islice(turns, 3)) == [None] * 3
    assert len(made) == 1


def test_making_them_ends_when_it_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsal, "MAKING_S", -1.0)
    made = []
    w = torch.zeros(256, 256)
    next(in_turn(made.append, {"w": w}, Far(8 * w.nbytes)))  # type: ignore[arg-type]
    assert len(made) == 1


def test_a_model_streams_when_no_cache_holds_its_constants() -> None:
    x = leaf("input", "x", TensorType(DType.f32, (4, 256)))
    w = leaf("parameter", "w", TensorType(DType.f32, (256, 256)))
    graph = Graph((x,), (apply("linear", x, w, None),))
    assert w.shape == (256, 256)
    assert LARGE <= 4 * 256 * 256
    assert streams(graph, 256 * 1024)
    assert not streams(graph, 1 << 20)
