"""`whet bench --suite rewrites`: what rewriting is worth, the kernels and backends being the same.

    --part cost          predicted cost alone: nothing is compiled or timed
    --part time          measured time alone, with all rules and with the generated ones alone
    --through "CMD …"    what the process that measures is started through, once all is compiled

A record is one model. `cost_s` has predicted seconds of the graph as it was captured, of what the
best-first search makes of it and of what saturation and extraction make of it with the same rules,
those that are stated by hand, then of what they make of it with the generated ones beside, all as
the cheapest kernels for them; `generated_cost_s` the last with the rules that were found by
generation alone. `engines` has measured medians: the captured graph (`plain`), what the walk makes
of it (`rewritten`), and the same by generated rules alone (`generated`), each as library calls one
after another (`steps`) and as one C program (`native`), by the same choice of kernels, in turns.
"""

from __future__ import annotations

import argparse
import datetime
import json
import shlex
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from whet.errors import InputError, WhetError
from whet.report.table import aligned

PARTS = ("cost", "time")
SEARCH_S = 30.0  # processor seconds of each search
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
        "command": " ".join(["python -m bench --suite rewrites", *(
            f"--{k} {v}" for k in ("part", "models") if (v := getattr(args, k))
        )]),
        "threads": use_threads(args.threads),
        "complete": False,
        "versions": suite.versions(),
        "machine": Machine.detect().to_json(),
        "records": [],
    }  # fmt: skip
    try:
        for name in models:
            model = zoo.load(name, scale="small" if args.small else "full")
            record: dict[str, Any] = {"model": name, "system": "rewritten"}
            if args.part != "time":
                record |= _costs(model)
            if args.part != "cost":
                record |= _times(name, model, args)
            result["records"].append(record)
            progress(_line(record))
        result["complete"] = not args.models
    except KeyboardInterrupt:
        progress("interrupted: this is what was measured until then")
    return result, page(result)


def _costs(model: Any) -> dict[str, Any]:
    """What the searches make of a model, region by region, without anything measured."""
    from whet.capture.torch import capture
    from whet.rewrite.prove import Prover
    from whet.rewrite.solve import solve
    from whet.run.pricing import pricing
    from whet.run.rewriting import Proofs, Rules, generated
    from whet.search import Budget
    from whet.store import Store

    graph = capture(model.module, model.inputs).graph
    prover, found = Prover(Proofs(Store.open())), {}
    seconds: dict[str, float] = {}
    for name, rules in (("every", Rules()), ("generated", generated())):
        began = time.process_time()
        budget = Budget(seconds=SEARCH_S, clock=time.process_time)
        found[name] = solve(
            graph, rules.every, pricing(graph), prover, budget, both=rules.both, beside=rules.beside
        )
        seconds[name] = time.process_time() - began
    every, alone = (found[k].regions for k in ("every", "generated"))
    return {
        "operators": sum(not n.is_leaf for n in graph.nodes),
        "cost_s": {k: _total(every, alone, k) for k in ("before", "searched", "first", "after")},
        "generated_cost_s": _total(alone, every, "after"),
        "search_s": seconds["every"],
        "generated_search_s": seconds["generated"],
        "gap": max((s.gap for s in every), default=0.0),
        "regions": len({s.region.graph.digest for s in (*every, *alone)}),
        "unreached": {k: len(o) - len(s) for k, s, o in
                      (("every", every, alone), ("generated", alone, every)) if len(o) > len(s)},
        "rules": {k: dict(_counted(f.regions)) for k, f in found.items()},
    }  # fmt: skip


def _total(solved: Any, others: Any, which: str) -> float:
    """Seconds of all regions; those that one search did not reach in its time as they were."""
    reached = {s.region.graph.digest: getattr(s, which) for s in solved}
    costs = {s.region.graph.digest: (s.before, len(s.region.places)) for s in (*others, *solved)}
    return sum(reached.get(d, before).seconds * n for d, (before, n) in costs.items())


def _counted(regions: Any) -> Counter[str]:
    return sum((s.rules for s in regions), Counter[str]())


# -- measuring -----------------------------------------------------------------------------------
def _times(name: str, model: Any, args: argparse.Namespace) -> dict[str, Any]:
    """Graphs are searched and compiled here, so that the store has all; a process of its own then
    makes the programs from it again, and times them in turns."""
    import torch

    from whet.capture.torch import capture
    from whet.ir.text import print_graph
    from whet.machine import Machine
    from whet.run.choice import Chooser
    from whet.run.gains import Stopwatch
    from whet.run.rewriting import Rules, generated, rewritten
    from whet.search import Budget
    from whet.store import Store

    store, graph = Store.open(), capture(model.module, model.inputs).graph
    chooser = Chooser(store, Machine.detect())
    graphs, facts = {"plain": graph}, {}
    with torch.no_grad():
        searched = {"rewritten": Rules(), "generated": generated()}
        for which, rules in searched.items():
            budget = Budget(seconds=SEARCH_S, clock=time.process_time)
            watch = Stopwatch(chooser, 2 * args.budget, store)
            best, *_ = rewritten(graph, store, budget, watch=watch, rules=rules)
            graphs[which] = best.graph
            facts[which] = dict(Counter(r.rule for r in best.rows))
        with tempfile.TemporaryDirectory(prefix="whet-rewrites-") as folder:
            place = Path(folder)
            for which, g in graphs.items():
                (place / f"{which}.txt").write_text(print_graph(g), encoding="utf-8")
            for _ in programs(name, args.small, place):
                pass
            job = [sys.executable, "-m", "bench.rewrites", name, folder, str(args.budget),
                   str(torch.get_num_threads()), "small" if args.small else "full"]  # fmt: skip
            out = subprocess.run(
                [*shlex.split(args.through or ""), *job], capture_output=True, text=True
            )
    if out.returncode:
        raise WhetError("the process that measures ended", got=out.stderr[-2000:], where=name)
    found: dict[str, Any] = json.loads(out.stdout.splitlines()[-1])
    first: dict[str, str] = {}
    same = {w: first.setdefault(g.digest, w) for w, g in graphs.items()}
    return {"engines": found, "applied": facts, "same": same, "median_s": _best(found, "rewritten"),
            "without_s": _best(found, "plain"), "spread": 0.0}  # fmt: skip


def programs(
    name: str, small: bool, place: Path
) -> Iterator[tuple[str, str, Callable[[], object]]]:
    """Engine, graph and call of every program; equal graphs are one program."""
    import torch

    from whet.capture import zoo
    from whet.capture.torch import capture
    from whet.errors import UnsupportedError
    from whet.ir.text import parse_graph
    from whet.machine import Machine
    from whet.run.calling import Runner
    from whet.run.choice import Chooser
    from whet.run.native import native
    from whet.run.parameters import Parameters
    from whet.run.program import Program
    from whet.store import Store

    model = zoo.load(name, scale="small" if small else "full")
    captured, store = capture(model.module, model.inputs), Store.open()
    inputs = captured.signature.inputs(captured.signature.flatten(tuple(model.inputs), {}) or [])
    chooser = Chooser(store, Machine.detect())
    from whet.backend.lowered import lower

    seen: dict[str, str] = {}
    files = [place / f"{which}.txt" for which in ("plain", "rewritten", "generated")]
    for file in filter(Path.exists, files):
        which, text = file.stem, file.read_text(encoding="utf-8")
        graph = parse_graph(text, captured.graph.constants)
        if seen.setdefault(graph.digest, which) != which:
            continue
        constants = {k: v for k, v in graph.constants.items() if isinstance(v, torch.Tensor)}
        names = [n.name for n in graph.parameters]
        parameters = Parameters(constants, model.module, names)
        program = Program(lower(graph, chooser), parameters)
        yield "steps", which, lambda p=program: p(inputs)
        try:
            built, lowered = native(graph, chooser, parameters.tensors(), store=store)
        except (UnsupportedError, InputError):
            continue
        body = Program(lowered, parameters, Runner.of(built).bind, "native")
        yield "native", which, lambda p=body: p(inputs)


def main(name: str, folder: str, budget: str, threads: str, scale: str) -> None:
    """Times the programs of one model and prints medians and spreads, by engine and graph."""
    import torch

    from whet.run.measure import faster, interleaved
    from whet.run.spread import settled

    torch.set_num_threads(int(threads))
    calls: dict[tuple[str, str], Callable[[], object]] = {}
    with torch.no_grad():
        for engine, which, call in programs(name, scale == "small", Path(folder)):
            calls[engine, which] = call
        timings = interleaved(
            {f"{e} {w}": c for (e, w), c in calls.items()},
            budget_s=float(budget),
            min_rounds=9,
            settle=settled,
        )
    found: dict[str, dict[str, Any]] = {}
    for engine, which in calls:
        t, plain = timings[f"{engine} {which}"], timings.get(f"{engine} plain")
        row = found.setdefault(engine, {})
        row[which] = {"median_s": t.median_s, "spread": t.spread, "rounds": t.rounds}
        if plain is not None and which != "plain":
            sure = faster(t, plain)
            row[which] |= {"ratio": sure.ratio, "confidence": sure.confidence}
    print(json.dumps(found))


def _best(engines: Mapping[str, Any], which: str) -> float:
    """The median of the fastest engine; of the plain graph where rewriting left it as it was."""
    return min(row.get(which, row["plain"])["median_s"] for row in engines.values())


# -- the page ------------------------------------------------------------------------------------
def _line(record: Mapping[str, Any]) -> str:
    words = []
    if "cost_s" in record:
        cost = record["cost_s"]
        words.append(f"cost {cost['before'] / cost['after']:.2f}x")
    if "median_s" in record:
        words.append(f"measured {record['without_s'] / record['median_s']:.2f}x")
    return f"{record['model']}: {', '.join(words)}"


def page(result: dict[str, Any]) -> str:
    """The results as tables: costs, then times."""
    head = f"{result.get('command', '')}   {result.get('date', '')}\n"
    return head + "".join(f"\n{t}" for t in (_cost_table(result), _time_table(result)) if t)


def _cost_table(result: Mapping[str, Any]) -> str:
    rows = [["model", "operators", "before", "best-first", "by hand", "all rules", "generated",
             "gap", "search", "generated", "cost"]]  # fmt: skip
    for r in result["records"]:
        if "cost_s" not in r:
            continue
        cost = {k: f"{1e3 * v:.3f} ms" for k, v in r["cost_s"].items()}
        cost.setdefault("first", "")  # files from before generated rules were beside
        rows.append([
            r["model"], str(r["operators"]),
            *(cost[k] for k in ("before", "searched", "first", "after")),
            f"{1e3 * r['generated_cost_s']:.3f} ms", f"{r['gap']:.1%}",
            f"{r['search_s']:.1f} s", f"{r['generated_search_s']:.1f} s",
            f"{r['cost_s']['before'] / r['cost_s']['after']:.2f}x",
        ])  # fmt: skip
    return aligned(rows, left=(0,)) + "\n" if len(rows) > 1 else ""


def _time_table(result: Mapping[str, Any]) -> str:
    rows = [["model", "engine", "plain", "rewritten", "generated", "gain", "by generated rules"]]
    for r in result["records"]:
        for engine, row in r.get("engines", {}).items():
            cells = {w: row.get(w) for w in ("plain", "rewritten", "generated")}
            gains = [_gain(cell, r["same"].get(w, "")) for w, cell in cells.items()]
            times = [f"{1e3 * c['median_s']:.3f} ms" if c else "" for c in cells.values()]
            rows.append([r["model"], engine, *times, gains[1], gains[2]])
    return aligned(rows, left=(0, 1)) + "\n" if len(rows) > 1 else ""


def _gain(cell: Mapping[str, Any] | None, same: str) -> str:
    """How much faster than the captured graph, or which other graph it is."""
    if cell and "ratio" in cell:
        return f"{cell['ratio']:.2f}x"
    return {"": "", "plain": "unchanged"}.get(same, "the same graph")


if __name__ == "__main__":
    main(*sys.argv[1:])
