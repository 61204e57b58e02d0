"""What a rewrite is worth: the part that it changes, timed before and after, in turns.

    part := before, after, places          closed graphs over the same leaves

Both run with the same choice of kernels over tensors drawn at random, weights folded ahead of time,
as in a program: as library calls one after another, or, where these are so short that Python would
be what is timed, as one C program. Equal parts are timed once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from whet.backend.cluster import Cluster
from whet.backend.lowered import Lowered, body_nodes, example, lower
from whet.backend.packed import Kernel
from whet.errors import InputError, UnsupportedError, WhetError
from whet.ir.graph import Graph, Node, leaf, rebuilt
from whet.rewrite.match import Match
from whet.run.calling import Runner
from whet.run.engine import Bind, steps
from whet.run.measure import Timing, faster, interleaved
from whet.run.native import native
from whet.run.spread import settled
from whet.store import Store

Choose = Callable[[Cluster, list[Kernel]], Kernel]
EACH_S = 0.15  # seconds of measuring for one part
ROUNDS = 9
SHORT_S = 40e-6  # seconds of a call, below which Python's share of it would be seen
SLOWER = 0.97  # of the speed before, from which on a part counts as slower


@dataclass(frozen=True)
class Part:
    """What a rewrite changes.

    Attributes:
        rules: names, of what is applied in it.
        before, after: closed graphs over the same leaves.
        places: the user's module for each occurrence.
    """

    rules: tuple[str, ...]
    before: Graph
    after: Graph
    places: tuple[str, ...]


@dataclass
class Stopwatch:
    """Times closed graphs, each set of them once, as long as its seconds last.

    Args:
        choose: which library kernel runs a cluster.
        seconds: for all of it.
        store: where compiled objects are kept.
    """

    choose: Choose
    seconds: float
    store: Store | None = None
    each: float = EACH_S

    def __post_init__(self) -> None:
        self._known: dict[tuple[str, ...], list[Timing] | None] = {}
        self._ends = time.monotonic() + self.seconds

    @property
    def is_out(self) -> bool:
        """Whether its seconds have passed."""
        return time.monotonic() >= self._ends

    def times(self, *graphs: Graph) -> list[Timing] | None:
        """Timings of graphs over the same leaves, all of the same rounds; None where one does not
        run, or no seconds are left."""
        key = tuple(g.digest for g in graphs)
        if key not in self._known:
            if self.is_out:
                return None
            try:
                self._known[key] = self._timed(graphs)
            # What a library raises over a part on its own is no reason to give up the whole walk;
            # None leaves the decision to the prediction.
            except (WhetError, RuntimeError, NotImplementedError, TypeError, ValueError):
                self._known[key] = None
        return self._known[key]

    def _timed(self, graphs: Sequence[Graph]) -> list[Timing]:
        generator = torch.Generator().manual_seed(0)
        leaves = dict.fromkeys(n for g in graphs for n in g.nodes if n.is_leaf and n.op != "full")
        with torch.no_grad():
            feeds = {n.name: example(n, generator) for n in leaves}
            lowered = [lower(g, self.choose) for g in graphs]
            calls = [self._bound(w, steps(w), feeds) for w in lowered]
            found = self._raced(calls)
            if any(t.best_s < SHORT_S * len(w.body) for t, w in zip(found, lowered, strict=True)):
                with suppress(UnsupportedError, InputError):
                    found = self._raced([self._compiled(g, feeds) for g in graphs])
        return found

    def _raced(self, calls: Sequence[Callable[[], object]]) -> list[Timing]:
        named = {str(k): call for k, call in enumerate(calls)}
        found = interleaved(
            named, budget_s=self.each, min_rounds=ROUNDS, collect=False, settle=settled
        )
        return [found[name] for name in named]

    def _compiled(self, graph: Graph, feeds: Mapping[str, Tensor]) -> Callable[[], object]:
        built, lowered = native(graph, self.choose, feeds, store=self.store)
        return self._bound(lowered, Runner.of(built).bind, feeds)

    def _bound(
        self, lowered: Lowered, bind: Bind, feeds: Mapping[str, Tensor]
    ) -> Callable[[], object]:
        bound = bind(tuple(lowered.derive(feeds)))
        inputs = [feeds[n.name] for n in lowered.graph.inputs]
        return lambda: bound(inputs)


def is_slower(after: Timing, before: Timing) -> bool:
    """Whether it is sure that something became slower, and by more than is worth a word."""
    slower = max(before.median_s / after.median_s, before.best_s / after.best_s) < SLOWER
    return slower and faster(before, after).confidence >= 0.98


def outrun(new: Callable[[], object], old: Callable[[], object], *, seconds: float) -> bool:
    """Whether the new call is surely slower than the old one, in turns."""
    calls = {"new": new, "old": old}
    timings = interleaved(calls, budget_s=seconds, min_rounds=ROUNDS, collect=False, settle=settled)
    return is_slower(timings["new"], timings["old"])


def fastest(timings: Sequence[Timing], expected: int) -> int:
    """Which of the timings is the least: the expected one, unless another one surely beats it (on
    a busy machine nothing is sure)."""
    surely = [k for k, t in enumerate(timings) if is_slower(timings[expected], t)]
    return min(surely, key=lambda k: timings[k].median_s, default=expected)


def parts(graph: Graph, group: Iterable[Match], places: Sequence[str]) -> Iterator[Part]:
    """The parts that matches change in a graph, each alone; equal ones are one."""
    body = body_nodes(graph)
    found: dict[tuple[str, str], tuple[Match, Graph, Graph, list[str]]] = {}
    for m, place in zip(group, places, strict=True):
        before, after = sides(m, body)
        row = found.setdefault((before.digest, after.digest), (m, before, after, []))
        row[-1].append(place)
    for m, before, after, where in found.values():
        yield Part((m.rule.name,), before, after, tuple(where))


def sides(m: Match, body: frozenset[Node]) -> tuple[Graph, Graph]:
    """A match's two sides over leaves for what it binds: inputs for what is in `body`, parameters
    for the rest."""
    new: dict[Node, Node] = {}
    inputs: list[Node] = []
    for n in dict.fromkeys(n for n in m.tensors.values() if n is not None):
        if n.op == "full" and n.shape == ():
            continue
        kind = "input" if n in body else "parameter"
        new[n] = leaf(kind, f"{kind[0]}{len(new)}", n.type)
        inputs += [new[n]] if n in body else []
    found = []
    for roots in (m.left, m.right):
        stack = [(r, False) for r in roots]
        while stack:
            n, ready = stack.pop()
            if n in new:
                continue
            if ready or n.is_leaf:
                new[n] = rebuilt(n, [None if a is None else new[a] for a in n.args])
                continue
            stack.append((n, True))
            stack += [(a, False) for a in n.operands]
        found.append(Graph(tuple(inputs), tuple(new[r] for r in roots)))
    return found[0], found[1]
