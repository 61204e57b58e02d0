"""Plans for a device that is not at hand: made on one machine, as a file, and used on another.

    file := version, source digest, target, predicted, graph, rewrites, partition,
            schedules {group: text}

The machine with the device needs neither solvers nor rules: the rewritten graph is in the file,
held to the captured one by its digest, with the certificate that can be re-checked elsewhere.
Schedules are tried first there, and the device decides.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from whet.backend.cluster import LIBRARY
from whet.ir.graph import Graph
from whet.ir.text import print_graph
from whet.machine.gpu import Gpu
from whet.run.abreast import grouped
from whet.run.device import Decision, Tuned
from whet.store import Store

VERSION = 2


@dataclass(frozen=True, slots=True)
class Predicted:
    """A plan that nobody has measured.

    Attributes:
        graph: rewritten.
        rows: for each group that is decided: operators, how often, and the decision.
        seconds: of the whole body; `library`, the same with library calls alone.
    """

    graph: Graph
    rows: Sequence[tuple[str, int, Decision]]
    seconds: float
    library: float
    schedules: Mapping[str, str]
    partition: str


def predict(graph: Graph, gpu: Gpu, store: Store, precision: str = "ieee") -> Predicted:
    """What a graph should take on a device, from analytic cost alone."""
    tuned = Tuned(gpu, store, None, precision)
    groups = grouped(graph, tuned)
    counted = Counter(c.digest for c in groups.clusters)
    rows = [(tuned.names[d], n, tuned.decided[d]) for d, n in counted.items()]
    chosen = {d: x.schedule for d in counted if (x := tuned.decided[d]).schedule != LIBRARY}
    return Predicted(
        graph, sorted(rows, key=lambda r: -r[1] * r[2].seconds),
        sum(n * x.seconds for _, n, x in rows), sum(n * x.library for _, n, x in rows), chosen,
        str(groups),
    )  # fmt: skip


def write(path: Path, source: Graph, found: Predicted, gpu: Gpu, rewrites: Sequence[str]) -> None:
    """Keeps a plan as a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = {
        "version": VERSION, "source": source.digest, "target": gpu.name, "predicted": True,
        "graph": print_graph(found.graph), "rewrites": list(rewrites),
        "partition": found.partition, "schedules": dict(found.schedules),
        "seconds": found.seconds, "library": found.library,
    }  # fmt: skip
    path.write_text(json.dumps(data, indent=1), encoding="utf-8")
