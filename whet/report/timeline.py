"""A simulated step as a picture: one SVG file, no script, readable in the dark too.

A lane for each group of devices: its passes, coloured by kind and numbered by microbatch; below
them, in the first group, what its streams do; at the bottom the memory of every group over time.
"""

from __future__ import annotations

import html as markup
from collections.abc import Iterable, Sequence

from whet.parallel.timeline import MESSAGE, PASS, Span, Timeline
from whet.report import table

WIDTH, LEFT, RIGHT, TOP = 1200, 110, 40, 64
LANE, GAP, THIN = 24, 6, 14
MEMORY = 90
NARROW = 0.4  # pixels below which a bar joins its neighbour
MOST_LANES = 48

# fmt: off
COLOURS = {
    "forward": "#4a7fb5", "backward": "#3f9c76", "inputs": "#3f9c76", "weights": "#8cc4a4",
    "update": "#8a8a8a", "communication": "#d08a3c", "message": "#b0558f",
}
# fmt: on

STYLE = """
  text { font: 12px system-ui, sans-serif; fill: #333 }
  .title { font-size: 15px; font-weight: 600 } .dim { fill: #777 }
  .in { fill: #fff; font-size: 10px }
  .lane { fill: #f1f1f1 } .axis { stroke: #999 } .curve { fill: none; stroke-width: 1.4 }
  .paper { fill: #fff }
  @media (prefers-color-scheme: dark) {
    text { fill: #ddd } .dim { fill: #999 } .lane { fill: #262626 } .paper { fill: #171717 } }
"""


def svg(line: Timeline, title: str = "") -> str:
    """The picture.

    Args:
        line: what to draw.
        title: one line above it.
    """
    groups = min(line.groups, MOST_LANES)
    streams = _streams(line)
    bottom = TOP + groups * (LANE + GAP)
    streams_at = bottom + 28
    memory_at = streams_at + len(streams) * (THIN + 4) + (34 if streams else 0)
    height = memory_at + MEMORY + 40
    head = markup.escape(f"{title or 'one step'}: {table.duration(line.seconds)}")
    box = f'viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {box}>',
        f'<style>{STYLE}</style><rect class="paper" width="{WIDTH}" height="{height}"/>',
        f'<text class="title" x="{LEFT}" y="22">{head}</text>',
        *_legend(line),
    ]
    for g in range(groups):
        y = TOP + g * (LANE + GAP)
        parts += _lane(y, LANE, f"group {g}")
        own = [s for s in line.spans if s.group == g]
        parts += _bars((s for s in own if s.stream == PASS), line, y, LANE, numbers=True)
        parts += _bars((s for s in own if s.stream == MESSAGE), line, y + LANE - 4, 4)
    if groups < line.groups:
        more = f"{line.groups - groups} more groups are not drawn"
        parts.append(f'<text class="dim" x="{LEFT}" y="{bottom + 12}">{more}</text>')
    if streams:
        parts.append(f'<text class="dim" x="8" y="{streams_at - 8}">streams of group 0</text>')
    for k, stream in enumerate(streams):
        y = streams_at + k * (THIN + 4)
        parts += _lane(y, THIN, stream)
        found = [s for s in line.spans if s.group == 0 and s.stream == stream]
        parts += _bars(found, line, y, THIN, moves=stream != "compute")
    parts += _memory(line, memory_at)
    parts += _axis(line, memory_at + MEMORY)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _streams(line: Timeline) -> list[str]:
    """The streams of the first group that something runs on, the kernels' first."""
    found = dict.fromkeys(
        s.stream for s in line.spans if s.group == 0 and s.stream not in (PASS, MESSAGE)
    )
    return sorted(found, key=lambda name: (name != "compute", name))


def _x(line: Timeline, seconds: float) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * seconds / (line.seconds or 1.0)


def _lane(y: float, height: float, name: str) -> list[str]:
    width = WIDTH - LEFT - RIGHT
    return [
        f'<rect class="lane" x="{LEFT}" y="{y}" width="{width}" height="{height}"/>',
        f'<text x="8" y="{y + height / 2 + 4}">{markup.escape(name)}</text>',
    ]


def _bars(
    spans: Iterable[Span],
    line: Timeline,
    y: float,
    height: float,
    *,
    numbers: bool = False,
    moves: bool = False,
) -> list[str]:
    """Rectangles; those too narrow to see become one with their neighbour."""
    parts: list[str] = []
    pending: tuple[float, float, str] | None = None
    for span in spans:
        a, b = _x(line, span.begin), _x(line, span.end)
        kind = "communication" if moves else MESSAGE if span.stream == MESSAGE else span.kind
        colour = COLOURS.get(kind, COLOURS["update"])
        if b - a < NARROW:
            if pending and pending[2] == colour and a - pending[1] < NARROW:
                pending = (pending[0], b, colour)
                continue
            parts += _thin(pending, y, height)
            pending = (a, b, colour)
            continue
        parts += _thin(pending, y, height)
        pending = None
        label = markup.escape(f"{span.name}, {table.duration(span.end - span.begin)}")
        parts.append(
            f'<rect x="{a:.2f}" y="{y}" width="{b - a:.2f}" height="{height}" fill="{colour}" '
            f'stroke="#fff" stroke-width="0.4"><title>{label}</title></rect>'
        )
        if numbers and span.microbatch >= 0 and b - a > 16:
            x, below = (a + b) / 2, y + height / 2 + 4
            parts.append(
                f'<text class="in" x="{x:.1f}" y="{below}" text-anchor="middle">'
                f"{span.microbatch}</text>"
            )
    return parts + _thin(pending, y, height)


def _thin(bar: tuple[float, float, str] | None, y: float, height: float) -> list[str]:
    if bar is None:
        return []
    a, b, colour = bar
    width = max(b - a, 0.15)
    return [f'<rect x="{a:.2f}" y="{y}" width="{width:.2f}" height="{height}" fill="{colour}"/>']


def _legend(line: Timeline) -> list[str]:
    kinds = dict.fromkeys(s.kind for s in line.spans if s.stream == PASS)
    names = [k for k in COLOURS if k in kinds]
    if any(s.stream not in (PASS, MESSAGE, "compute") for s in line.spans):
        names.append("communication")
    if any(s.stream == MESSAGE for s in line.spans):
        names.append("message")
    parts, x = [], LEFT
    for name in names:
        parts.append(f'<rect x="{x}" y="36" width="12" height="12" fill="{COLOURS[name]}"/>')
        parts.append(f'<text x="{x + 17}" y="46">{name}</text>')
        x += 36 + 7 * len(name)
    return parts


def _memory(line: Timeline, y: float) -> list[str]:
    """A curve for each group, the first ones darker."""
    top = max((bytes for curve in line.memory for _, bytes in curve), default=0) or 1
    parts = [
        f'<text x="8" y="{y + 10}">memory</text>',
        f'<text class="dim" x="8" y="{y + 26}">{table.size(top)}</text>',
    ]
    for g, curve in enumerate(line.memory):
        hue = round(210 + 120 * g / max(1, line.groups))
        points = " ".join(
            f"{_x(line, at):.1f},{y + MEMORY - (MEMORY - 4) * bytes / top:.1f}"
            for at, bytes in _thinned(curve)
        )
        parts.append(
            f'<polyline class="curve" points="{points}" stroke="hsl({hue},55%,50%)">'
            f"<title>group {g}</title></polyline>"
        )
    return parts


def _thinned(curve: Sequence[tuple[float, int]]) -> Sequence[tuple[float, int]]:
    """At most about 2,000 points, the peaks among them."""
    most = 2000
    if len(curve) <= most:
        return curve
    step = -(-len(curve) // most)
    kept = []
    for k in range(0, len(curve), step):
        part = curve[k : k + step]
        kept.append(max(part, key=lambda p: p[1]))
    return kept


def _axis(line: Timeline, y: float) -> list[str]:
    parts = [f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>']
    for k in range(6):
        at = line.seconds * k / 5
        parts.append(
            f'<text class="dim" x="{_x(line, at):.1f}" y="{y + 18}" text-anchor="middle">'
            f"{table.duration(at)}</text>"
        )
    return parts
