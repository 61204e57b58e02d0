"""Schedules: what was done to a naive kernel, replayable.

    Schedule = (Move, …)                      text: one move a line
    apply(kernel, schedule) -> Kernel | Illegal

The moves, each a class with its check beside it, a kernel before and a kernel after:

    order     split reorder tile collapse join peel
    mark      parallelize vectorize unroll keep layout
    ahead     ahead
    inline    inline
    hoist     invert
    place     recompute compute_at
    stage     stage
    fold      split_reduction
    online    online
    parts     parts
    trim      trim cease beside
    block     block grid launch
    flatten   flatten
    shadow    shadow

Names are made from names, so a schedule that was found for a cluster applies to every cluster that
lowers to the same kernel, and to one of other sizes wherever its checks pass.
"""

from __future__ import annotations

from collections.abc import Sequence

from whet.kernel import (
    ahead,
    block,
    flatten,
    fold,
    hoist,
    inline,
    mark,
    online,
    order,
    parts,
    place,
    shadow,
    stage,
    trim,
)
from whet.kernel.legal import Illegal, Refused, find, independent
from whet.kernel.loops import Kernel, check
from whet.kernel.move import KNOWN, Move, parse

Schedule = tuple[Move, ...]
__all__ = ["Illegal", "Move", "Schedule", "apply", "attempt", "read", "show"]
_ROOMS = (
    order,
    mark,
    ahead,
    block,
    flatten,
    shadow,
    inline,
    hoist,
    place,
    stage,
    fold,
    online,
    parts,
    trim,
)


def attempt(kernel: Kernel, move: Move) -> Kernel | Illegal:
    """The kernel with one move made, or why not.

    A move that is legal by itself may still make threads meet: what was the turn's own becomes
    shared when it grows beyond the turn. So parallel loops are looked at again after each.
    """
    try:
        made = move.do(kernel)
        for loop in made.loops.values():
            if loop.kind == "parallel":
                independent(made, *find(made, loop.var))
    except Refused as refused:
        return refused.why.of(str(move))
    return made


def apply(kernel: Kernel, schedule: Sequence[Move]) -> Kernel | Illegal:
    """The kernel with all moves made in order, or why the first one that is illegal is so."""
    for move in schedule:
        made = attempt(kernel, move)
        if isinstance(made, Illegal):
            return made
        kernel = made
    return check(kernel)


def show(schedule: Sequence[Move]) -> str:
    """One move a line."""
    return "\n".join(map(str, schedule))


def read(text: str) -> Schedule:
    """Inverse of `show`.

    Raises:
        KernelError: a line is no move.
    """
    return tuple(parse(line.strip()) for line in text.splitlines() if line.strip())


def moves() -> dict[str, type[Move]]:
    """Every kind of move by its name."""
    return dict(KNOWN)
