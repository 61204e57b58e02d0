"""Curves of searches as a picture.

    python -m bench.tuning.picture FILE.svg     the model's order, the estimate's, and random draws
                                                over the recorded tables; lower is better

A curve is the slowdown of the best so far, its geometric mean over tables; its band lies between
the quartiles over tables. Random draws have 30 seeds for each table.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from bench.tuning import train
from whet.kernel.prior import BASE
from whet.kernel.process import Array

TRIALS, SEEDS = 64, 30
WIDTH, HEIGHT, LEFT, BELOW = 640, 400, 60, 50
COLOURS = ("#1b6ca8", "#2a9d5c", "#c0392b")
Curve = tuple[Array, Array, Array]
"""Lower quartile, mean, upper quartile, after each trial."""


def drawn(curves: Mapping[str, Curve], title: str) -> str:
    """An SVG of curves over trials, both axes logarithmic."""
    top = math.log(max(float(c[2].max()) for c in curves.values()) * 1.05)
    count = max(len(c[1]) for c in curves.values())

    def at(trial: int, slowdown: float) -> str:
        x = LEFT + (WIDTH - LEFT - 20) * math.log(trial) / math.log(count)
        y = 30 + (HEIGHT - 30 - BELOW) * (1 - math.log(max(slowdown, 1.0)) / top)
        return f"{x:.1f},{y:.1f}"

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}">',
        '<g font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="18">{title}</text>',
    ]
    for trial in (1, 2, 4, 8, 16, 32, 64):
        if trial <= count:
            x, y = at(trial, 1.0).split(",")
            lines.append(f'<text x="{x}" y="{float(y) + 16}" text-anchor="middle">{trial}</text>')
    for slowdown in (1.0, 1.05, 1.2, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0):
        if math.log(slowdown) <= top:
            a, b = at(1, slowdown), at(count, slowdown)
            lines.append(f'<polyline points="{a} {b}" stroke="#dddddd" fill="none"/>')
            x, y = a.split(",")
            lines.append(
                f'<text x="{float(x) - 6}" y="{float(y) + 4}" text-anchor="end">{slowdown:g}</text>'
            )
    for k, (name, (low, middle, high)) in enumerate(curves.items()):
        colour = COLOURS[k % len(COLOURS)]
        up = [at(n + 1, float(v)) for n, v in enumerate(high)]
        down = [at(n + 1, float(v)) for n, v in reversed([*enumerate(low)])]
        band = " ".join([*up, *down])
        lines.append(f'<polygon points="{band}" fill="{colour}" fill-opacity="0.12"/>')
        points = " ".join(at(n + 1, float(v)) for n, v in enumerate(middle))
        lines.append(
            f'<polyline points="{points}" stroke="{colour}" stroke-width="2" fill="none"/>'
        )
        y = 44 + 18 * k
        lines.append(
            f'<text x="{WIDTH - 24}" y="{y}" text-anchor="end" fill="{colour}">{name}</text>'
        )
    lines.append(f'<text x="{WIDTH // 2}" y="{HEIGHT - 12}" text-anchor="middle">trials</text>')
    return "\n".join([*lines, "</g></svg>", ""])


def so_far(seconds: Array, order: Array) -> Array:
    """Slowdown of the best of the first 1, 2, … rows of an order."""
    seen = np.minimum.accumulate(seconds[order][:TRIALS]) / seconds.min()
    result: Array = np.minimum(seen, 30.0)  # what did not run, too
    return result


def over(curves: Sequence[Array]) -> Curve:
    """Mean and quartiles over tables."""
    all_ = np.stack(curves)
    low, high = np.quantile(all_, (0.25, 0.75), axis=0)
    return low, np.exp(np.log(all_).mean(0)), high


def main() -> int:
    """The command line; see the module's docstring."""
    some = [t for isa in ("avx512f", "avx2") for t in train.tables(isa)]
    models = {
        name: train.trained([o for o in some if o.name != name]) for name in {t.name for t in some}
    }
    rng = np.random.default_rng(0)
    random = [
        np.exp(np.mean([np.log(so_far(t.seconds, rng.permutation(len(t.seconds))))
                        for _ in range(SEEDS)], axis=0))
        for t in some
    ]  # fmt: skip
    curves = {
        "model, the task left out": over(
            [so_far(t.seconds, np.argsort(models[t.name].score(t.features))) for t in some]
        ),
        "estimate alone": over([so_far(t.seconds, np.argsort(t.features[:, BASE])) for t in some]),
        f"random, {SEEDS} seeds": over(random),
    }
    title = f"slowdown of the best so far against the best known, {len(some)} tables"
    Path(sys.argv[1]).write_text(drawn(curves, title))
    for name, (_, middle, _) in curves.items():
        print(f"{name:28}", *(f"{n}: {middle[n - 1]:.3f}" for n in (4, 8, 16, 32, 64)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
