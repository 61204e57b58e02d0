"""The search for a cut: moves, refusals with numbers, and what trials elsewhere teach."""

from __future__ import annotations

import math
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.needs import needs_triton
from tests.unit.backend.tiles import F16, sized, value
from whet.backend.lowered import body_nodes
from whet.fuse.seed import seed
from whet.ir.graph import Graph, apply
from whet.kernel.cut import Cut
from whet.kernel.lower import lower
from whet.kernel.price import Candidate, candidates
from whet.machine.gpu import preset
from whet.run.cutting import CutSpace, cutting, described, keep, learned, mutant
from whet.run.device import Tuned
from whet.search import Budget
from whet.store import Store

GPU = preset("h200")
ROOT = Path(__file__).parents[3]


def narrow(found: Sequence[Candidate]) -> list[float]:
    """Seconds on a device that likes few warps and many stages."""
    return [c.seconds * c.launch.warps / c.launch.stages for c in found]


def test_a_search_leaves_what_it_began_with() -> None:
    kernel = lower(sized("linear", F16))
    begin, _ = candidates(kernel, GPU)
    priced: list[Candidate] = []

    def price(found: Sequence[Candidate]) -> list[float]:
        priced.extend(found)
        return narrow(found)

    space = CutSpace(kernel, GPU, price, begin[:4])
    best = cutting(space, None, Budget(candidates=60, batch=4))
    assert narrow([best])[0] < min(narrow(begin[:4]))
    assert best.cut not in [c.cut for c in begin]
    assert len(priced) == len({(c.draft.kernel.digest, c.launch) for c in priced}) <= 64
    assert space.refused  # larger than the device, and said with the number
    assert all("most" in why for why in space.refused.values())


def test_what_does_not_run_is_not_the_answer() -> None:
    kernel = lower(sized("linear", F16))
    begin, _ = candidates(kernel, GPU)
    first = begin[0]

    def price(found: Sequence[Candidate]) -> list[float]:
        return [1.0 if c is first else math.inf for c in found]

    assert cutting(CutSpace(kernel, GPU, price, begin[:4]), None, Budget(candidates=12)) is first


def test_one_number_is_changed() -> None:
    rng, cut = random.Random(0), Cut()
    for _ in range(100):
        new = mutant(cut, rng, 132)
        changed = [n for n in Cut.__slots__ if getattr(new, n) != getattr(cut, n)]
        assert len(changed) <= 1
        assert min(new.rows, new.columns, new.depth) >= 16


def test_trials_teach_where_there_is_no_device() -> None:
    """Eight warps were twice as slow as the price says, in all groups that were tried: elsewhere,
    of another group, cuts with fewer are chosen."""
    pytest.importorskip("lightgbm")
    store = Store.memory()
    assert learned(store, GPU) is None
    for n in (256, 320, 384, 448, 512, 640):
        x, w = value("x", 512, n, dtype=F16), value("w", 512, n, dtype=F16)
        g = Graph((x, w), (apply("linear", x, w, None),))
        found, _ = candidates(lower(g), GPU)
        for c in found:
            keep(store, g.digest, c, GPU, c.seconds * (8.0 if c.launch.warps == 8 else 1.0))
    prior = learned(store, GPU)
    assert prior is not None
    assert learned(store, preset("a100")) is None  # another device's trials say nothing
    x, w = value("x", 2048, 2048, dtype=F16), value("w", 2048, 2048, dtype=F16)
    g = Graph((x, w), (apply("linear", x, w, None),))
    (closed,) = seed(g, body_nodes(g)).clusters
    plain, taught = Tuned(GPU, Store.memory()), Tuned(GPU, store)
    warps = [t._candidates(closed, 1)[0].launch.warps for t in (plain, taught)]
    assert warps[0] == 8
    assert warps[1] < 8
    assert taught.decision(closed).source == "predicted"
    ranked, _ = candidates(lower(closed.graph), GPU)
    assert described(ranked[0], GPU).shape == (prior.features,)


SEARCHING = """
import time
import torch
from torch import nn
from tests.unit.run.pretending import LastSearched
from whet.capture.torch import capture
from whet.backend.lowered import body_nodes
from whet.run.abreast import grouped
from whet.run.cutting import KIND
from whet.run.device import TRIED, Tuned
from whet.store import Store


torch.manual_seed(0)
model = nn.Sequential(nn.Linear(24, 40), nn.Softmax(-1)).eval()
with torch.no_grad():
    graph = capture(model, (torch.randn(6, 24),)).graph
    store, device = Store.memory(), LastSearched()
    tuned = Tuned(device.gpu, store, device, until=time.monotonic() + 12)
    groups = grouped(graph, tuned)
    before = len(store.keys(KIND))
    tuned.search(groups.clusters)
decided = [tuned.decided[c.digest] for c in groups.clusters]
assert any(d.searched for d in decided), decided
assert len(store.keys(KIND)) > before > 0
assert not tuned.failures["wrong"], tuned.failures
again = Tuned(device.gpu, store, device)
assert [again.decision(c) for c in groups.clusters] == decided  # from the store
print("right")
"""


@needs_triton
@pytest.mark.full
def test_groups_are_searched_on_a_device() -> None:
    env = dict(os.environ, TRITON_INTERPRET="1", PYTHONPATH=os.pathsep.join([str(ROOT), *sys.path]))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SEARCHING],
        check=False, capture_output=True, text=True, env=env, cwd=ROOT,
    )  # fmt: skip
    assert done.stdout.strip().endswith("right"), done.stderr[-2000:]
