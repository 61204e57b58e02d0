"""Trials on a device in a process of their own: kernels that kill it, hang, break it, or lie."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass, field, replace

import pytest

from tests.needs import needs_triton
from tests.unit.backend.tiles import F32, value
from tests.unit.run.pretending import Searching, Unable
from whet.backend.lowered import body_nodes
from whet.backend.triton_text import Module
from whet.fuse.partition import Cluster
from whet.fuse.seed import seed
from whet.ir.graph import Graph, apply
from whet.run.cutting import KIND
from whet.run.device import Tuned
from whet.run.launch import launches
from whet.store import Store

INSTEAD = """
import os
import time
from tests.unit.run.pretending import Searching

class Instead:
    def __init__(self, right):
        self.right = right

    def __getitem__(self, grid):
        def call(*tensors, **options):
            {body}
        return call

{name} = Instead({name})
"""
BAD = {
    "crash: SIGABRT": "os.abort()",
    "hang: no answer within": "time.sleep(1000)",
    "wrong: result 0 is off by": "self.right[grid](*tensors, **options); tensors[-1][3] += 1",
    "crash: ZeroDivisionError": "Searching.wait = lambda self: 1 / 0",  # as a broken context does
    "error: KeyError": "raise KeyError('one')",
    "corrupt: wrote into operand 0": "tensors[0].zero_()",
    "wrong: result 0 is off by 1.0e+00": "pass",
}


@dataclass
class Sabotaged(Tuned):
    """The first schedule gets its kernel, the next ones get each one that misbehaves."""

    ways: list[str] = field(default_factory=lambda: ["", *BAD.values()])
    given: dict[str, str] = field(default_factory=dict)

    def made(self, closed: Cluster, schedule: str) -> Module:
        m = super().made(closed, schedule)
        if schedule not in self.given:
            self.given[schedule] = self.ways.pop(0) if self.ways else ""
        way = self.given[schedule]
        if not way:
            return m
        text = INSTEAD.format(body=way, name=m.programs[-1].name)
        return replace(m, text=m.text + text)


@needs_triton
def test_a_bad_kernel_fails_alone_and_the_search_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    x, w = value("x", 32, 32, dtype=F32), value("w", 48, 32, dtype=F32)
    g = Graph((x, w), (apply("relu", apply("linear", x, w, None)),))
    (closed,) = seed(g, body_nodes(g)).clusters
    store, device = Store.memory(), Searching()
    tuned = Sabotaged(device.gpu, store, device)
    tuned.farm = launches(patience_s=5)
    try:
        first = tuned.decision(closed)
        tuned.until = time.monotonic() + 60
        tuned.search([closed])
    finally:
        tuned.close()
    rows = [store.get(KIND, key) for key in store.keys(KIND)]
    why = [row["failed"] for row in rows if row["seconds"] is None]
    assert len(why) == len(BAD)
    for way in BAD:
        assert any(reason.startswith(way) for reason in why), (way, why)
    assert tuned.farm.deaths == 3  # the other failures took no process down
    assert tuned.failures["wrong"] == 2
    right = [row["seconds"] for row in rows if row["seconds"] is not None]
    assert not any(row["failed"] for row in rows if row["seconds"] is not None)
    assert len(right) > 1
    best = tuned.decided[closed.digest]
    assert best.searched
    assert best.source == "measured"
    assert best.kernel == min(first.kernel, *right)


@needs_triton
def test_without_library_calls_nothing_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """The runner has nothing to hold kernels to: no trial is said to have failed."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    x = value("x", 8, 8, dtype=F32)
    g = Graph((x,), (apply("relu", x),))
    (closed,) = seed(g, body_nodes(g)).clusters
    store = Store.memory()
    with closing(Tuned(Unable().gpu, store, Unable())) as tuned:
        assert tuned.decision(closed).source == "predicted"
    assert tuned.failures["crash: RuntimeError: no context"] == 1
    assert not store.keys(KIND)
