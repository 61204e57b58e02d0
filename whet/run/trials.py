"""What tuning has measured, kept: every trial of every cluster, failures too.

    task    key = place                 the cluster, how it lies, the target, the space's version
    trial   key = place/kernel digest   a schedule, and its seconds or why it has none
    best    key = place                 the fastest of them

A place is the hash of all that a time depends on: the unscheduled cluster with its shapes and
element types, the layouts of its operands, the target. Equal places are a hit; what is found under
another place, of the same operators in another shape, is a guess and is called so.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from whet.fuse.partition import Cluster
from whet.ir.graph import Graph, Node
from whet.run.farm import Failed, Verdict
from whet.store import Store

SPACE = 1  # of the moves and what they mean: with another number, schedules are not the same
TASK, TRIAL, BEST = "task", "trial", "best"


@dataclass(frozen=True, slots=True)
class Trial:
    """A schedule that was tried.

    Attributes:
        schedule: its text.
        seconds: of one call; infinite where it failed.
        failed: why, in words.
    """

    schedule: str
    seconds: float
    failed: str = ""


@dataclass(frozen=True)
class Trials:
    """The trials of one store.

    Args:
        store: where they are.
        target: fingerprint of the machine, and the threads.
    """

    store: Store
    target: str

    def begin(self, place: str, closed: Cluster) -> None:
        """Write down what a place stands for."""
        self.store.put(TASK, place, {
            "target": self.target, "space": SPACE, "skeleton": skeleton(closed.graph),
            "sizes": sizes(closed.graph),
        })  # fmt: skip

    def add(self, place: str, digest: str, schedule: str, verdict: Verdict) -> None:
        """Keep one trial."""
        row: dict[str, Any] = {"schedule": schedule}
        if isinstance(verdict, Failed):
            row |= {"failed": f"{verdict.kind}: {verdict.reason}"}
        else:
            row |= {"seconds": verdict.best_s, "spread": verdict.spread}
        self.store.put(TRIAL, f"{place}/{digest}", row)
        before = self.best(place)
        if "seconds" in row and (before is None or row["seconds"] < before.seconds):
            self.store.put(BEST, place, row)

    def best(self, place: str) -> Trial | None:
        """The fastest trial of a place: a hit, if there is one."""
        return _read(self.store.get(BEST, place))

    def of(self, place: str) -> dict[str, Trial]:
        """All trials of a place, by the digest of the kernel."""
        found = {}
        for key in self.store.keys(TRIAL):
            where, _, digest = key.partition("/")
            if where == place and (trial := _read(self.store.get(TRIAL, key))) is not None:
                found[digest] = trial
        return found

    def nearest(self, place: str, closed: Cluster) -> Trial | None:
        """The best trial of the same operators in the most similar shape, on the same target."""
        mine, same = sizes(closed.graph), skeleton(closed.graph)
        near: list[tuple[float, str]] = []
        for other in self.store.keys(TASK):
            row = self.store.get(TASK, other)
            if other != place and isinstance(row, Mapping) and self._alike(row, same, len(mine)):
                near.append((distance(mine, row["sizes"]), other))
        best = (self.best(other) for _, other in sorted(near))
        return next((t for t in best if t is not None), None)

    def _alike(self, row: Mapping[str, Any], same: str, rank: int) -> bool:
        return (
            row.get("target") == self.target
            and row.get("space") == SPACE
            and row.get("skeleton") == same
            and len(row.get("sizes", ())) == rank
        )


def skeleton(graph: Graph) -> str:
    """The operators without sizes: equal for what differs in shape alone.

    Numbers of attributes are sizes too (a reshape's, a norm's); windows and strides are not told
    apart by it, which makes a worse guess and never a wrong one.
    """
    names = {n: k for k, n in enumerate(graph.nodes)}

    def said(n: Node) -> str:
        operands = ",".join("-" if a is None else str(names[a]) for a in n.args)
        attributes = re.sub(r"\d+", "#", " ".join(f"{k}={v}" for k, v in n.attrs if k != "name"))
        return f"{n.op}({operands};{attributes}):{n.dtype.name}*{len(n.shape)}"

    return "\n".join(map(said, graph.nodes))


def sizes(graph: Graph) -> list[int]:
    """All sizes of all values, in order."""
    return [int(str(n)) for node in graph.nodes for n in node.shape]


def distance(a: list[int], b: list[int]) -> float:
    """How unlike two shapes are: the summed logarithms of the ratios of their sizes."""
    pairs = zip(a, b, strict=True)
    return sum(abs(math.log(max(x, 1) / max(y, 1))) for x, y in pairs)


def _read(row: Any) -> Trial | None:
    if not isinstance(row, Mapping) or not isinstance(row.get("schedule"), str):
        return None
    seconds = row.get("seconds")
    if not isinstance(seconds, (int, float)) or not seconds > 0:
        seconds = math.inf
    return Trial(row["schedule"], float(seconds), str(row.get("failed", "")))


def every(store: Store) -> Iterator[tuple[str, Trial]]:
    """All trials of a store, with the place of each."""
    for key in store.keys(TRIAL):
        trial = _read(store.get(TRIAL, key))
        if trial is not None:
            yield key.partition("/")[0], trial
