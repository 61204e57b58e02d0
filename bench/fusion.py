"""`whet bench --suite fusion`: what the search for a partition is worth, part by part.

    apart          every operator by itself, in the best kernel there is for it
    seed           groups as records suggest them
    searched       what the search makes of them, listening to what kernels say
    no-feedback    the same search, deaf
    no-fusion      without merging; the search may only split and shift
    no-beside      without independent groups in one launch
    no-recompute   without computing anything twice

Every variant is one C program of the same captured graph, with kernels tuned alike from one store,
within the same seconds of searching. A record is one model and variant: its median in turns with
all others, how sure it is to be slower than `searched`, the groups that it has, and, of a search,
which reasons led to which moves. Programs that came out equal are one, and share their times.
"""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Callable, Mapping
from typing import Any

from whet.errors import InputError, WhetError
from whet.report.table import aligned

SEARCH_S = 20.0  # seconds of each search
TUNE_S = 40.0  # seconds of tuning the groups that all begin with
MOVES = ("merge", "beside", "recompute")
# Variant: kinds of moves that are left out, whether kernels are listened to.
SEARCHES: Mapping[str, tuple[frozenset[str], bool]] = {
    "searched": (frozenset(), True),
    "no-feedback": (frozenset(), False),
    "no-fusion": (frozenset({"merge"}), True),
    "no-beside": (frozenset({"beside"}), True),
    "no-recompute": (frozenset({"recompute"}), True),
}
Progress = Callable[[str], None]


def measure(args: argparse.Namespace, progress: Progress) -> tuple[dict[str, Any], str]:
    """Searches every variant of every model, then times their programs in turns.

    Raises:
        InputError: an unknown model.
    """
    from bench import suite
    from whet.capture import zoo
    from whet.machine import Machine
    from whet.run.trial import use_threads

    names = list(zoo.names())
    models = args.models.split(",") if args.models else names
    if unknown := [m for m in models if m not in names]:
        raise InputError("no such model", expected=", ".join(names), got=", ".join(unknown))
    result: dict[str, Any] = {
        "suite": "fusion",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": " ".join(
            [
                "python -m bench --suite fusion",
                *([f"--models {args.models}"] if args.models else ()),
            ]
        ),
        "threads": use_threads(args.threads),
        "complete": False,
        "versions": suite.versions(),
        "machine": Machine.detect().to_json(),
        "records": [],
    }
    try:
        for name in models:
            rows = _variants(name, "small" if args.small else "full", args.budget, progress)
            result["records"] += rows
            progress(f"{name}: {_line(rows)}")
        result["complete"] = not args.models
    except KeyboardInterrupt:
        progress("interrupted: this is what was measured until then")
    return result, page(result)


def _variants(name: str, scale: str, budget_s: float, progress: Progress) -> list[dict[str, Any]]:
    import torch

    from whet.backend.lowered import body_nodes
    from whet.capture import zoo
    from whet.capture.torch import capture
    from whet.fuse.partition import Partition, apart
    from whet.machine import Machine
    from whet.run.calling import Runner
    from whet.run.choice import Chooser
    from whet.run.fusing import KINDS, decide, fused
    from whet.run.measure import faster, interleaved
    from whet.run.native import native
    from whet.run.parameters import Parameters
    from whet.run.program import Program
    from whet.run.spread import settled
    from whet.run.tuned import Tuner
    from whet.search import Budget
    from whet.store import Store

    model = zoo.load(name, scale=scale)  # type: ignore[arg-type]
    captured = capture(model.module, model.inputs)
    graph, store = captured.graph, Store.open()
    machine = Machine.detect()
    chooser = Chooser(store, machine)
    inputs = captured.signature.inputs(captured.signature.flatten(tuple(model.inputs), {}) or [])
    constants = {k: v for k, v in graph.constants.items() if isinstance(v, torch.Tensor)}
    parameters = Parameters(constants, model.module, [n.name for n in graph.parameters])

    def tuner(seconds: float) -> Tuner:
        purse = Budget(seconds=seconds)
        return Tuner(store, machine, chooser, torch.get_num_threads(), purse, purse)

    partitions: dict[str, Partition] = {}
    rows: dict[str, dict[str, Any]] = {}
    calls: dict[str, Callable[[], object]] = {}
    with torch.no_grad():
        for variant in ("seed", *SEARCHES, "apart"):
            progress(f"  {name}: {variant}")
            rows[variant] = {"model": name, "system": variant}
            decider = tuner(TUNE_S)
            if variant in SEARCHES:
                without, listens = SEARCHES[variant]
                searching = Budget(seconds=SEARCH_S)
                found = fused(graph, decider, searching, kinds=KINDS - without, feedback=listens)
                partitions[variant] = found.partition
                told = [f"{reason} -> {move}" for reason, move in found.told]
                rows[variant]["told"] = list(dict.fromkeys(told))
            else:
                body = body_nodes(graph)
                partitions[variant] = (
                    apart(graph, body) if variant == "apart" else fused(graph, decider).partition
                )
                decide(graph, partitions[variant], decider)
            rows[variant]["groups"] = len(partitions[variant].groups)
            same = next(
                (v for v, p in partitions.items() if p.groups == partitions[variant].groups),
                variant,
            )
            if same != variant:
                rows[variant]["same"] = same
                continue
            try:
                built, lowered = native(
                    graph, chooser, parameters.tensors(), partitions[variant], decider, store=store
                )
            except WhetError as fault:
                rows[variant]["failed"] = f"{fault.summary}: {fault.got}"
                continue
            program = Program(lowered, parameters, Runner.of(built).bind, "native")
            calls[variant] = lambda p=program: p(inputs)
            rows[variant]["untuned"] = decider.undecided
        timings = interleaved(calls, budget_s=budget_s, min_rounds=15, settle=settled)
    against = rows["searched"].get("same", "searched")
    for variant, row in rows.items():
        t = timings.get(str(row.get("same", variant)))
        if t is None:
            continue
        row |= {"median_s": t.median_s, "spread": t.spread}
        if against in timings:
            sure = faster(timings[against], t)
            row["searched_is"] = {"ratio": sure.ratio, "confidence": sure.confidence}
    return list(rows.values())


# -- the page ------------------------------------------------------------------------------------
def _line(rows: list[dict[str, Any]]) -> str:
    return ", ".join(f"{r['system']} {1e3 * r['median_s']:.2f} ms" for r in rows if "median_s" in r)


def page(result: Mapping[str, Any]) -> str:
    """A row for each model: milliseconds of each variant, and what led from one to another."""
    variants = ("apart", "seed", *SEARCHES)
    table = [["model", *variants]]
    notes: list[str] = []
    by_model: dict[str, dict[str, dict[str, Any]]] = {}
    for r in result["records"]:
        by_model.setdefault(r["model"], {})[r["system"]] = r
    for model, rows in by_model.items():
        table.append([model, *(_cell(rows.get(v, {})) for v in variants)])
        told = rows.get("searched", {}).get("told", ())
        notes += [f"{model}: {line}" for line in told]
    head = f"{result.get('command', '')}   {result.get('date', '')}\n\n"
    tail = "".join(f"{line}\n" for line in notes)
    legend = "milliseconds (groups); = means the very program of another variant\n"
    return head + aligned(table) + "\n" + legend + (f"\nwhat kernels said\n{tail}" if tail else "")


def _cell(row: Mapping[str, Any]) -> str:
    if "median_s" not in row:
        return str(row.get("failed", "-"))[:24]
    same = f" = {row['same']}" if "same" in row else ""
    return f"{1e3 * row['median_s']:.3f} ({row['groups']}){same}"
