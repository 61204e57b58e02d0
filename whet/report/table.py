"""Aligned text: columns of words to the left, columns of numbers to the right.

>>> print(aligned([("stage", "ms"), ("original", "31.90"), ("kernels", "9.07")]))
stage        ms
original  31.90
kernels    9.07
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeGuard

GAP = "  "
DASH = "–"  # where there is no number


def aligned(rows: Sequence[Sequence[str]], *, left: Sequence[int] = (0,)) -> str:
    """Rows of cells as lines; the columns in `left` are flush left, the others flush right.

    The last column is not padded, so a long text may stand there.
    """
    if not rows:
        return ""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        GAP.join(
            cell.ljust(width) if k in left else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """Seconds as people say them.

    >>> duration(0.0123), duration(4.2), duration(75), duration(3e-5)
    ('12.3 ms', '4.2 s', '1 min 15 s', '30 µs')
    """
    if seconds >= 60:
        return f"{int(seconds) // 60} min {int(seconds) % 60} s"
    if seconds >= 1:
        return f"{seconds:.1f} s"
    if seconds >= 1e-3:
        return f"{seconds * 1e3:.3g} ms"
    return f"{seconds * 1e6:.3g} µs"


def milliseconds(seconds: float | None) -> str:
    """A time of a call in ms: two decimals from 1 ms on, more below.

    >>> [milliseconds(s) for s in (0.0319, 0.00069, 0.000042, 1.5, None)]
    ['31.90', '0.690', '0.0420', '1500.00', '–']
    """
    if not _known(seconds):
        return DASH
    ms = seconds * 1e3
    return f"{ms:.2f}" if ms >= 1 else f"{ms:.3f}" if ms >= 0.1 else f"{ms:.4f}"


def factor(value: float | None) -> str:
    """How many times as fast."""
    return f"{value:.2f}x" if _known(value) else DASH


def percent(value: float | None) -> str:
    """A spread."""
    return f"{value:.0%}" if _known(value) else DASH


def small(value: float | None) -> str:
    """A relative error."""
    return f"{value:.1e}" if _known(value) else DASH


def _known(value: float | None) -> TypeGuard[float]:
    return value is not None and not math.isnan(value)


def counted(number: int, noun: str) -> str:
    """A number with its noun.

    >>> counted(1, "rewrite"), counted(12, "rewrite"), counted(0, "opaque call")
    ('1 rewrite', '12 rewrites', '0 opaque calls')
    """
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def size(amount: float) -> str:
    """Bytes as people say them.

    >>> size(512), size(3 << 20), size(5 << 30)
    ('512 B', '3.0 MiB', '5.0 GiB')
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024 or unit == "GiB":
            break
        amount /= 1024
    return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
