"""A report as one HTML page: no script, no file beside it, readable in the dark too."""

from __future__ import annotations

import html as markup
import math
from collections import Counter
from collections.abc import Iterable, Sequence

from whet.report import table, text
from whet.run.record import Report

STYLE = """
:root { color-scheme: light dark; --ink: #222; --dim: #777; --line: #ddd; --bar: #4a7fb5;
        --paper: #fff }
@media (prefers-color-scheme: dark) {
  :root { --ink: #ddd; --dim: #999; --line: #444; --bar: #6a9fd5; --paper: #181818 } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
       max-width: 64rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.4rem } h2 { font-size: 1.05rem; margin-top: 2rem }
table { border-collapse: collapse } td, th { padding: .2rem .8rem .2rem 0; text-align: right }
th { color: var(--dim); font-weight: normal; border-bottom: 1px solid var(--line) }
td:first-child, th:first-child, .left { text-align: left }
td { font-variant-numeric: tabular-nums; vertical-align: top }
code, pre { font: 13px/1.5 ui-monospace, monospace } .scroll { overflow-x: auto }
.bar { width: 16rem } .bar div { height: .7rem; background: var(--bar); border-radius: 2px }
"""


def html(report: Report) -> str:
    """The whole page."""
    title = markup.escape(f"whet: {report.model}")
    parts = [
        f"<h1>{title}</h1><p>{markup.escape(text.summary(report))}</p>",
        _section("Stages", _stages(report)),
        _section("Rewrites", _rewrites(report)),
        _section("What rewrites are worth", _gains(report)),
        _section("Rewrites left out for their errors", _blames(report)),
        _section("Opaque calls", _opaques(report)),
        _section("Kernels", _counts("kernel", "clusters", report.kernels.items())),
        _section("Library calls", _counts("call", "times", report.coverage.items())),
        _section("Where the time went", f"<pre>{markup.escape(text.spent(report))}</pre>"),
    ]
    body = "\n".join(filter(None, parts))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>{title}</title><style>{STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def _section(title: str, body: str) -> str:
    return f'<h2>{title}</h2><div class="scroll">{body}</div>' if body else ""


def _stages(report: Report) -> str:
    timed = [s.seconds for s in report.stages if not math.isnan(s.seconds)]
    if not timed or report.original is None:
        return ""
    first = report.original.seconds
    rows = []
    for stage in text.ordered(report):
        share = 0.0 if math.isnan(stage.seconds) else 100 * stage.seconds / max(timed)
        cells = [
            stage.name,
            table.milliseconds(stage.seconds),
            table.percent(stage.spread),
            table.factor(first / stage.seconds if stage.seconds else None),
            table.small(stage.error),
            stage.note,
        ]
        bar = f'<td class="bar"><div style="width: {share:.1f}%"></div></td>'
        rows.append(_cells(cells) + bar)
    head = ["", "ms", "spread", "vs original", "error", "note", ""]
    return _table(head, rows)


def _rewrites(report: Report) -> str:
    times = Counter((r.rule, r.proof) for r in report.rewrites)
    first = {(r.rule, r.proof): r.where for r in reversed(report.rewrites)}
    rows = [
        _cells([rule, str(count), text.proof(proof), first[rule, proof]])
        for (rule, proof), count in times.most_common()
    ]
    return _table(["rule", "times", "proof", "first at"], rows) if rows else ""


def _gains(report: Report) -> str:
    rows = [
        _cells([
            g.module, g.rules, str(g.times), table.milliseconds(g.before),
            table.milliseconds(g.after), table.factor(g.before / g.after if g.after else None),
            "left out: slower" if not g.kept else "together" if g.together else "",
        ])
        for g in report.gains
    ]  # fmt: skip
    head = ["module", "rewrite", "times", "ms before", "ms after", "gain", ""]
    return _table(head, rows) if rows else ""


def _blames(report: Report) -> str:
    rows = [
        _cells([b.rules, b.module, table.small(b.error), table.small(b.allowed)])
        for b in report.blames
    ]
    return _table(["rewrite", "module", "error", "allowed"], rows) if rows else ""


def _opaques(report: Report) -> str:
    rows = [_cells([o.target, o.reason, o.where]) for o in report.opaques]
    return _table(["call", "why", "where"], rows) if rows else ""


def _counts(what: str, times: str, counts: Iterable[tuple[str, int]]) -> str:
    ordered = sorted(counts, key=lambda row: (-row[1], row[0]))
    rows = [_cells([name, str(count)]) for name, count in ordered]
    return _table([what, times], rows) if rows else ""


def _cells(cells: Sequence[str]) -> str:
    return "".join(f"<td>{markup.escape(cell)}</td>" for cell in cells)


def _table(head: Sequence[str], rows: Iterable[str]) -> str:
    heads = "".join(f"<th>{markup.escape(cell)}</th>" for cell in head)
    return f"<table><tr>{heads}</tr>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"
