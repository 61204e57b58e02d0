"""A report as text: the stage table, then what was rewritten, covered, left opaque, and spent.

stages(report)    one row a measured state of the model, and one a peer timed beside it
rewrites(report)  each rule by module of the model, with its proof, and where it first hit
tuned(report)     what a search for schedules has found, group by group
gains(report)     what rewrites were measured to be worth, alone and together
blames(report)    rewrites left out for their errors
coverage(report)  library calls by how often they occur, and what runs them
opaques(report)   calls that no record computes, with the user's lines
spent(report)     seconds by phase, the store's answers, why the walk stopped
whole(report)     all of it
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from whet.report import table
from whet.run.record import Report, Rewrite, Stage


def stages(report: Report, peers: Sequence[Stage] = ()) -> str:
    """The stage table; each time also over that of eager, the original, and of each peer.

    Args:
        report: whose stages.
        peers: other systems on the same model and machine: a row and a column for each.
    """
    if report.original is None:
        return "nothing was measured"
    yardsticks = (replace(report.original, name="eager"), *peers)
    head = ["", "ms", "spread", *(f"vs {p.name}" for p in yardsticks), "error", "original's", ""]
    rows = [head]
    for stage in (*ordered(report), *peers):
        row = [stage.name, table.milliseconds(stage.seconds), table.percent(stage.spread)]
        row += [table.factor(_ratio(p.seconds, stage.seconds)) for p in yardsticks]
        row += [table.small(stage.error), table.small(report.original_error), stage.note]
        rows.append(row)
    return table.aligned(rows, left=(0, len(head) - 1))


def ordered(report: Report) -> list[Stage]:
    """The stages, the original first."""
    return sorted(report.stages, key=lambda stage: stage.name != "original")


def _ratio(first: float, second: float) -> float | None:
    return first / second if second else None


def rewrites(report: Report) -> str:
    """A row for each rule and module that it was applied in; "" where none was."""
    if not report.rewrites:
        return ""
    groups: dict[tuple[str, str], list[Rewrite]] = {}
    for rewrite in report.rewrites:
        groups.setdefault((starred(rewrite.module), rewrite.rule), []).append(rewrite)
    rows = [["module", "rule", "times", "proof", "first at"]]
    for (module, rule), found in groups.items():
        first = found[0]
        rows.append([module, rule, str(len(found)), proof(first.proof), place(first.where)])
    return table.aligned(rows, left=(0, 1, 3, 4))


def starred(module: str) -> str:
    """A module's name with its numbers as stars: repeated blocks are one row.

    >>> starred("layers.11.attention")
    'layers.*.attention'
    """
    return re.sub(r"\b\d+\b", "*", module)


def tuned(report: Report) -> str:
    """A row for each group of operators that was tuned, the one that takes most first; "" where
    none was."""
    if not report.tuned:
        return ""
    head = ["operators", "calls", "before us", "after us", "trials", "failed", "by"]
    rows = [
        [t.name, str(t.calls), f"{t.before_s * 1e6:.1f}", f"{t.after_s * 1e6:.1f}", str(t.trials),
         str(t.failed), t.by]
        for t in report.tuned
    ]  # fmt: skip
    return table.aligned([head, *rows], left=(0, 6))


def gains(report: Report) -> str:
    """What each rewrite was measured to be worth where it is, alone and together, and in the whole
    program; "" where nothing was measured."""
    if not report.gains:
        return ""
    rows = [["module", "rewrite", "times", "before", "after", "gain", ""]]
    for g in report.gains:
        note = "together" if g.together else ""
        rows.append([
            g.module, g.rules, str(g.times), table.milliseconds(g.before),
            table.milliseconds(g.after), table.factor(_ratio(g.before, g.after)),
            note if g.kept else "left out: slower",
        ])  # fmt: skip
    plain, now = report.stage("unrewritten"), report.stage("kernels")
    if plain is not None and now is not None and not math.isnan(plain.seconds + now.seconds):
        rows.append(["", "all of them, in the whole program", "", table.milliseconds(plain.seconds),
                     table.milliseconds(now.seconds),
                     table.factor(_ratio(plain.seconds, now.seconds)), "together"])  # fmt: skip
    return table.aligned(rows, left=(0, 1, 6))


def blames(report: Report) -> str:
    """The rewrites that were left out because the program was not exact enough with them."""
    return "\n".join(
        f"{b.rules}{' in ' + b.module if b.module else ''}: error {table.small(b.error)}, "
        f"allowed {table.small(b.allowed)}"
        for b in report.blames
    )


def proof(line: str) -> str:
    """A proof for reading: what it covers, and what the rule does to rounding.

    >>> proof('{"coverage": "all-shapes", "floating": "reassociating", "queries": 3}')
    'all-shapes, reassociating'
    """
    try:
        data = json.loads(line)
        return f"{data['coverage']}, {data['floating']}"
    except (ValueError, TypeError, KeyError):
        return line


def place(where: str) -> str:
    """A line of the user's, "file:line: code", its file seen from the working directory."""
    file, colon, rest = where.partition(":")
    inside = Path(file).is_absolute() and Path(file).is_relative_to(Path.cwd())
    return f"{Path(file).relative_to(Path.cwd())}{colon}{rest}" if inside else where


def coverage(report: Report) -> str:
    """Library calls by how often they occur, then kernels by how many clusters they run."""
    parts = []
    if report.coverage:
        opaque = Counter(o.target for o in report.opaques)
        rows = [["library call", "times", "opaque"]]
        for target, count in _most(report.coverage):
            rows.append([target, str(count), str(opaque[target] or "")])
        parts.append(table.aligned(rows))
    if report.kernels:
        rows = [["kernel", "clusters"]]
        rows += [[kernel, str(count)] for kernel, count in _most(report.kernels)]
        parts.append(table.aligned(rows))
    return "\n\n".join(parts)


def opaques(report: Report) -> str:
    """Calls that no record computes, with the reason and the user's lines; "" where none is."""
    lines: list[str] = []
    for opaque in report.opaques:
        lines += [
            f"{opaque.target}: {opaque.reason}",
            f"  {place(opaque.where) or 'no line is known'}",
        ]
    lines += [f"no longer checked at run time: {check}" for check in report.dropped]
    return "\n".join(lines)


def listing(report: Report) -> str:
    """What a capture alone tells: coverage, then opaque calls or that there are none."""
    rest = opaques(report)
    return "\n\n".join(
        filter(None, [summary(report), coverage(report), rest or "every call has a record"])
    )


def spent(report: Report) -> str:
    """Seconds by phase, what the store answered, what went wrong, why it ended."""
    lines = [f"spent    {took(report)}"] if report.phases else []
    lines.append(f"store    {table.counted(report.hits, 'hit')}, {report.misses} missed")
    for head, counts in (
        ("note", report.notes),
        ("failed", report.failures),
        ("original", report.fallbacks),
    ):
        lines += [f"{head:<9}{what} ({table.counted(n, 'time')})" for what, n in _most(counts)]
    if report.stop:
        lines.append(f"stopped  {report.stop}")
    return "\n".join(lines)


def took(report: Report) -> str:
    """Seconds in all, and by phase where it was worth mentioning."""
    whole = sum(report.phases.values())
    phases = [f"{k} {table.duration(s)}" for k, s in report.phases.items() if s > 0.01 * whole]
    return f"{table.duration(whole)}: {', '.join(phases)}"


def summary(report: Report) -> str:
    """One line: how much faster, by how many rewrites, with what left opaque."""
    rules = len({r.rule for r in report.rewrites})
    calls = sum(report.coverage.values())
    times = table.counted(len(report.rewrites), "proven rewrite")
    words = (
        f"{table.factor(report.speedup)} as fast as the original",
        f"{times} by {table.counted(rules, 'rule')}",
        f"{table.counted(calls, 'library call')}, {len(report.opaques)} of them opaque",
        f"engine {report.engine}",
    )
    return f"{report.model}: {'; '.join(words if report.stages else words[2:3])}"


def whole(report: Report) -> str:
    """Every section that has something to say, under its title."""
    sections = (
        ("stages", stages(report) if report.stages else ""),
        ("rewrites", rewrites(report)),
        ("what rewrites are worth", gains(report)),
        ("rewrites left out for their errors", blames(report)),
        ("coverage", coverage(report)),
        ("opaque calls", opaques(report)),
        ("where the time went", spent(report) if report.phases else ""),
    )
    titled = [f"{title}\n{'-' * len(title)}\n{body}" for title, body in sections if body]
    return "\n\n".join([summary(report), *titled])


def _most(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """The most frequent first, equals by name."""
    return sorted(counts.items(), key=lambda row: (-row[1], row[0]))
