"""Finished programs in the store: the second optimization of a model takes what the first found.

A program is filed under everything that its search depended on: the captured graph, the machine,
the number of threads, the versions of torch and of whet, the rules, and what was switched off. A
hit is exact; what comes out of it is checked against float64 like any other program.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from whet.errors import WhetError
from whet.ir.graph import Graph
from whet.ir.text import parse_graph, print_graph
from whet.machine import Machine
from whet.plan import Plan
from whet.run.parameters import Parameters
from whet.run.program import Program
from whet.run.save import assemble, region_from
from whet.store import Store

PROGRAM, REGION = "program", "region"


@dataclass(frozen=True)
class Recalled:
    """A program from the store, with what it takes to save it."""

    plan: Plan
    graph: Graph
    program: Program | None
    region: bytes | None
    report: Any


def place(graph: Graph, machine: Machine, switches: Collection[str], rules: Iterable[str]) -> str:
    """What a finished program is filed under."""
    words = hashlib.blake2b(digest_size=8)
    for rule in rules:
        words.update(rule.encode())
    try:
        whet = version("whet")
    except PackageNotFoundError:
        whet = "0"
    parts = (
        graph.digest, machine.fingerprint(), f"torch-{torch.__version__}", f"whet-{whet}",
        f"{torch.get_num_threads()}t", words.hexdigest(), *sorted(switches),
    )  # fmt: skip
    return "/".join(parts)


def keep(
    store: Store,
    at: str,
    plan: Plan,
    graph: Graph,
    region: bytes | None,
    report: object,
    budget_s: float,
) -> None:
    """File a finished program and the time it was searched for. The row that is looked for comes
    last."""
    if region is not None:
        store.put(REGION, at, region)
    row = {"plan": plan.to_text(), "graph": print_graph(graph), "report": report,
           "budget_s": budget_s}  # fmt: skip
    store.put(PROGRAM, at, row)


def recall(
    store: Store, at: str, source: Graph, parameters: Parameters, budget_s: float = 0.0
) -> Recalled | None:
    """The program filed under `at`, or None; a row that does not fit is dropped.

    Args:
        source: the captured graph, whose constants the program shares.
        parameters: of the captured model.
        budget_s: seconds there are now: what was found in less time is no answer.
    """
    row = store.get(PROGRAM, at)
    if not isinstance(row, dict) or row.get("budget_s", 0.0) < budget_s:
        return None
    try:
        plan = Plan.from_text(row["plan"])
        graph = parse_graph(row["graph"], source.constants)
        if plan.engine == "original":
            return Recalled(plan, graph, None, None, row["report"])
        compiled = plan.engine in ("inductor", "native")
        region = store.get(REGION, at) if compiled else None
        body = None
        if compiled:
            if region is None:
                return None
            with tempfile.TemporaryDirectory(prefix="whet-region-") as folder:
                body = region_from(region, folder)
        program = assemble(graph, plan, parameters, body)
    except (WhetError, KeyError, TypeError, RuntimeError):
        store.delete(PROGRAM, at)
        return None
    return Recalled(plan, graph, program, region, row["report"])
