"""`whet bench --suite rewrites`: what rewriting is worth, the kernels and backends being the same.

    --part cost     predicted cost alone: nothing is compiled or timed

A record is one model. `cost_s` has predicted seconds of the graph as it was captured, of what the
best-first search makes of it and of what saturation and extraction make of it, all as the cheapest
kernels for them; `median_s` and `without_s` are measured, programs made with and without rewrites,
in turns; `rules` counts the equations that the result needs.
"""

from __future__ import annotations

import argparse
import datetime
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from whet.errors import InputError
from whet.report.table import aligned

PARTS = ("cost",)
Progress = Callable[[str], None]


def measure(args: argparse.Namespace, progress: Progress) -> tuple[dict[str, Any], str]:
    """Searches, and measures unless only costs are asked for.

    Raises:
        InputError: an unknown part or model.
    """
    from bench import suite
    from whet.capture import zoo
    from whet.machine import Machine
    from whet.run.trial import use_threads

    if args.part not in (None, *PARTS):
        raise InputError("no such part", expected=", ".join(PARTS), got=args.part)
    models = args.models.split(",") if args.models else list(zoo.names())
    result: dict[str, Any] = {
        "suite": "rewrites",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "threads": use_threads(args.threads),
        "complete": False,
        "versions": suite.versions(),
        "machine": Machine.detect().to_json(),
        "records": [],
    }
    try:
        for name in models:
            model = zoo.load(name, scale="small" if args.small else "full")
            record = {"model": name, "system": "rewritten", **_costs(model)}
            if args.part is None:
                record |= _times(model, args.budget)
            result["records"].append(record)
            progress(_line(record))
        result["complete"] = True
    except KeyboardInterrupt:
        progress("interrupted: this is what was measured until then")
    return result, page(result)


def _costs(model: Any) -> dict[str, Any]:
    """What the search makes of a model, with every rule that is shipped."""
    from whet.capture.torch import capture
    from whet.rewrite.prove import Prover
    from whet.rewrite.solve import solve
    from whet.run.pricing import pricing
    from whet.run.rewriting import Proofs, searched_with
    from whet.search import Budget
    from whet.store import Store

    graph = capture(model.module, model.inputs).graph
    prover = Prover(Proofs(Store.open()))
    began = time.perf_counter()
    found = solve(graph, searched_with(), pricing(graph), prover, Budget(seconds=120))
    return {
        "cost_s": {k: found.seconds(k) for k in ("before", "searched", "after")},
        "search_s": time.perf_counter() - began,
        "gap": max((s.gap for s in found.regions), default=0.0),
        "regions": len(found.regions),
        "rules": dict(sum((s.rules for s in found.regions), Counter[str]())),
    }


def _times(model: Any, budget_s: float) -> dict[str, Any]:
    """Programs with and without rewrites, timed in turns."""
    import torch

    import whet
    from whet.run.measure import interleaved
    from whet.store import Store

    store = Store.open()
    programs = {
        name: whet.optimize(model.module, model.inputs, store=store, disable=off)
        for name, off in (("without", ("rewrites",)), ("with", ()))
    }
    calls = {name: (lambda p=p: p(*model.inputs)) for name, p in programs.items()}
    with torch.no_grad():
        timings = interleaved(calls, budget_s=budget_s)
    return {
        "median_s": timings["with"].median_s,
        "without_s": timings["without"].median_s,
        "spread": timings["with"].spread,
        "engine": programs["with"].report.engine,
    }


def _line(record: dict[str, Any]) -> str:
    cost = record["cost_s"]
    text = f"{record['model']}: cost {cost['before'] / cost['after']:.2f}x"
    if "median_s" in record:
        text += f", measured {record['without_s'] / record['median_s']:.2f}x"
    return text


def page(result: dict[str, Any]) -> str:
    """The results as a table."""
    rows = [["model", "before", "best-first", "saturated", "gap", "search", "cost", "measured"]]
    for r in result["records"]:
        cost = {k: f"{1e3 * v:.3f} ms" for k, v in r["cost_s"].items()}
        measured = f"{r['without_s'] / r['median_s']:.2f}x" if "median_s" in r else ""
        rows.append([
            r["model"], cost["before"], cost["searched"], cost["after"], f"{r['gap']:.1%}",
            f"{r['search_s']:.1f} s", f"{r['cost_s']['before'] / r['cost_s']['after']:.2f}x",
            measured,
        ])  # fmt: skip
    return aligned(rows, left=(0,)) + "\n"
