"""`whet optimize MODEL`: search for a faster program, show what came of it, save it.

    --out FOLDER      where the program goes; out/NAME unless given
    --dry-run         captures only: library calls, what stays opaque and why, with the user's lines
    --target NAME     for a GPU that is not at hand (a100, h100, h200): predicted, not measured; the
                      plan goes to OUT.json, for the machine that has one

The report lies with the program: report.json for programs, report.html for people.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from whet.cli.console import Console, OutputError, check_writable, write
from whet.cli.options import add_model, add_out, add_search, short
from whet.errors import UnsupportedError
from whet.report import page, table, text
from whet.run.record import Opaque, Report
from whet.store import Store

if TYPE_CHECKING:
    from whet.capture.source import Source
    from whet.run.module import Optimized

INTERRUPTED = "Interrupted"


def arguments(parser: argparse.ArgumentParser) -> None:
    """The model, how to search, where the program goes."""
    add_model(parser)
    add_search(parser)
    add_out(parser)
    parser.add_argument(
        "--dry-run", action="store_true", help="only list what is covered and what stays opaque"
    )
    parser.add_argument(
        "--target", metavar="NAME", help="a GPU that need not be here (a100, h100, h200): predicted"
    )


def run(args: argparse.Namespace, console: Console) -> int:
    """Optimizes and saves, or lists.

    Returns:
        0; 130 after Ctrl-C, when the best that was found until then is saved all the same.

    Raises:
        WhetError: the model cannot be brought in, or the program cannot be written.
    """
    out: Path = args.out or Path("out", short(args.model))
    if not args.dry_run and not args.target:
        check_place(out)
    if args.target:
        return predicted(args, console, out)
    source = loaded(args, console)
    if args.dry_run:
        report = listed(source, args.strict)
        console.print(text.listing(report))
        console.finish(report.to_json())
        return 0
    optimized = searched(source, args, console)
    report = optimized.report
    lines = [text.summary(report), "", text.stages(report)]
    if report.rewrites:
        lines += ["", text.rewrites(report)]
    if report.opaques:
        calls = table.counted(len(report.opaques), "library call")
        lines += ["", f"{calls} without a record, carried through; --dry-run lists them"]
    console.print("\n".join(lines))  # before anything can go wrong with the files
    console.print(f"\noptimized in {text.took(report)}\n\n{kept(optimized, out)}")
    console.finish(report.to_json() | {"out": str(out)})
    if report.stop == INTERRUPTED:
        console.say("interrupted: this is the best that was found until then")
        return 130
    return 0


def predicted(args: argparse.Namespace, console: Console, out: Path) -> int:
    """A plan for a device that is not at hand: shown, and kept as a file. Nothing is measured.

    Raises:
        WhetError: there is no such device, or the model cannot be brought in.
    """
    from whet.machine.gpu import preset

    gpu = preset(args.target)
    source = loaded(args, console)
    from whet.run.elsewhere import predict, write
    from whet.run.rewriting import rewritten
    from whet.search import Budget

    graph = source.capture().graph
    console.progress("searching rewrites")
    with Store.open() as store:
        best = rewritten(graph, store, Budget(seconds=0.3 * args.budget))[0]
        console.progress(f"predicting kernels for {gpu.name}")
        found = predict(best.graph, gpu, store)
    lines = [
        f"{source.name} on {gpu.name}, predicted: {found.seconds * 1e3:.3f} ms",
        f"with library calls alone, predicted: {found.library * 1e3:.3f} ms",
        "",
    ]
    for name, times, d in found.rows[:20]:
        kernel = "library" if d.schedule == "library" else "triton"
        lines.append(f"{times:4d} x {d.seconds * 1e6:9.2f} us  {kernel:8s} {name[:64]}")
    path = out.with_suffix(".json")
    write(path, graph, found, gpu, best.certificate)
    console.print("\n".join([*lines, "", f"plan: {path}"]))
    console.finish({"predicted": True, "target": gpu.name, "seconds": found.seconds})
    return 0


def check_place(out: Path) -> None:
    """Find out before the work whether a program can be written there.

    Raises:
        OutputError: the folder cannot be written, or holds something else than a program.
    """
    check_writable(out)
    other = out.exists() and not (out / "manifest.json").exists()
    if other and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(
            f"{out} is there already, and is no program",
            expected="a new folder, an empty one, or one that holds a program",
            hint="name another folder with --out",
        )


def loaded(args: argparse.Namespace, console: Console) -> Source:
    """The model that `args` name, with torch told how many threads to use.

    Raises:
        StoreError: nothing can be remembered. Better to hear that before a minute of measuring; in
            Python, where nobody may be there to hear it, the store goes on in memory.
        CaptureError: there is no such model.
    """
    with Store.open(strict=True) as store:
        store.put("check", "writable", True)
        store.delete("check", "writable")
    console.progress("loading torch")
    from whet.capture.source import load
    from whet.run.trial import use_threads

    use_threads(args.threads)
    console.progress(f"loading {args.model}")
    scale: Literal["small", "full"] = "small" if getattr(args, "small", False) else "full"
    return load(args.model, scale=scale, sizes=dict(getattr(args, "size", ())))


def searched(source: Source, args: argparse.Namespace, console: Console) -> Optimized:
    """The walk, with its lines as progress."""
    from whet.optimize import optimize

    console.progress(f"{source.name}: capturing")
    optimized = optimize(
        source.module,
        source.args,
        source.kwargs,
        budget_s=args.budget,
        strict=args.strict,
        captured=source.captured,
        progress=lambda line: console.progress(f"{source.name}: {line}"),
    )
    optimized.report.model = source.name
    return optimized


def kept(optimized: Optimized, out: Path) -> str:
    """Saves the program with its report; where both lie, as text."""
    from whet.run.save import save

    report: Report = optimized.report
    report.plan = str(out / "plan.txt")
    save(optimized, out)
    write(out / "report.html", page.html(report))
    return table.aligned(
        [
            ["program", f"{out}", f"whet run {out}, or whet.load({str(out)!r}) in Python"],
            ["plan", report.plan, f"whet verify {out} checks its rewrites again"],
            ["report", f"{out / 'report.html'}", "report.json beside it has the same as data"],
        ],
        left=(0, 1, 2),
    )


def listed(source: Source, strict: bool) -> Report:
    """What a capture finds, without a search.

    Raises:
        UnsupportedError: with `strict`, a library call has no record.
    """
    captured = source.capture()
    opaques = [Opaque(f.target, f.where, f.reason) for f in captured.foreign]
    report = Report(source.name, coverage=dict(captured.coverage), opaques=opaques)
    report.dropped = list(captured.dropped)
    if strict and opaques:
        raise UnsupportedError(
            f"{source.name} has library calls without a record",
            expected="operators of the table only (--strict)",
            got=text.opaques(report),
            hint="write a record (docs/adding-an-operator.md), or leave --strict off",
        )
    return report
