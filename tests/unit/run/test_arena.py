"""Memory of a device, planned: what lives at the same time lies apart, and little else is taken."""

from __future__ import annotations

import itertools

import torch

from tests.needs import needs_triton
from tests.unit.backend.tiles import F16, value
from whet.backend.lowered import Lowered, body_nodes
from whet.backend.tiled import Generated, tiled
from whet.backend.triton_text import Module
from whet.fuse.partition import Cluster
from whet.fuse.seed import seed
from whet.ir.graph import Graph, apply
from whet.kernel.schedule import show
from whet.machine.gpu import preset
from whet.run.arena import arena
from whet.run.device import Tuned, made
from whet.run.replayed import needed, needs
from whet.store import Store

WIDTH = 64


def chain(links: int) -> Graph:
    """Products one after the other; the first value is needed again at the end, through a view."""
    x, w = value("x", 32, WIDTH, dtype=F16), value("w", WIDTH, WIDTH, dtype=F16)
    first = here = apply("relu", apply("linear", x, w, None))
    for _ in range(links):
        here = apply("gelu", apply("linear", here, w, None))
    turned = apply("permute", apply("permute", first, dims=(1, 0)), dims=(1, 0))
    return Graph((x, w), (apply("add", here, turned), here))


def lowered(g: Graph, library: frozenset[str] = frozenset()) -> Lowered:
    """A graph whose groups are all generated, but for those with such an operator."""
    tuned = Tuned(preset("h100"), Store.memory())

    def decide(closed: Cluster) -> Module | None:
        if any(n.op in library for n in closed.graph.nodes):
            return None
        found = tuned._candidates(closed, 1)
        if not found:
            return None
        return made(closed, show(found[0].draft.schedule))

    return tiled(g, seed(g, body_nodes(g)), decide, torch.device("cpu"))


@needs_triton
def test_what_lives_together_lies_apart() -> None:
    low = lowered(chain(6), frozenset({"permute"}))
    plan = arena(low)
    assert len(plan.lives) >= 7
    spans = {
        (k, n): (at, at + low.body[k].call.sizes[n])  # type: ignore[attr-defined]
        for k, offsets in plan.offsets.items() for n, at in enumerate(offsets)
    }  # fmt: skip
    for a, b in itertools.combinations(spans, 2):
        (first, last), (begin, end) = plan.lives[a], plan.lives[b]
        if first <= end and begin <= last:
            assert spans[a][1] <= spans[b][0] or spans[b][1] <= spans[a][0], (a, b)
    assert max(end for _, end in spans.values()) <= plan.bytes
    total = sum(end - at for at, end in spans.values())
    assert plan.bytes < 0.6 * total  # most of a chain's values take one another's place
    first = min(plan.lives)
    views = {s.target for s in low.body if s.node.op == "permute"}
    reads = [k for k, s in enumerate(low.body) if views & set(s.operands)]
    assert (
        plan.lives[first][1] >= reads[-1] > first[0] + 3
    )  # it is read through a view, long after it is made


@needs_triton
def test_results_are_put_where_they_were_planned() -> None:
    low = lowered(chain(3))
    plan = arena(low)
    memory = plan.laid(low, torch.device("cpu"))
    calls = [s.call for s in low.body if isinstance(s.call, Generated)]
    begin, end = memory.data_ptr(), memory.data_ptr() + memory.numel()
    for call in calls:
        assert call.into is not None
        for made_, b in zip(call.into, call.results, strict=True):
            assert made_.shape == b.sizes
            assert begin <= made_.data_ptr() < end
            assert made_.data_ptr() % 16 == 0


@needs_triton
def test_what_a_plan_needs_is_told() -> None:
    low = lowered(chain(3), frozenset({"gelu"}))
    plan = arena(low)
    assert plan.beside >= 2 * 32 * WIDTH
    held = [torch.zeros(1000)]
    assert needs(low, held) == 4000 + 2 * 32 * WIDTH + 2 * WIDTH**2 + plan.bytes + plan.beside
    said = needed(low, held)
    assert all(word in said for word in ("constants", "inputs", "generated", "library"))
