"""A schedule that suited one kernel, made to fit another one of other sizes.

Names are made from names, so a schedule found for one shape says the same of another shape of the
same operators. What it says in numbers is said again for the new sizes: layouts keep their order
and their blocks, what is peeled off is what the next split leaves over. Moves that still do not
apply are left out.
"""

from __future__ import annotations

from collections.abc import Sequence

from whet.kernel import layout as lay
from whet.kernel.draft import Draft, turns
from whet.kernel.layout import Layout
from whet.kernel.loops import Kernel
from whet.kernel.mark import SetLayout
from whet.kernel.move import Move
from whet.kernel.order import Peel, Split


def refitted(kernel: Kernel, schedule: Sequence[Move]) -> Draft:
    """The schedule, for a kernel of the same loops with other extents.

    >>> from whet.kernel.text import parse
    >>> from whet.kernel.schedule import read, show
    >>> k = parse("x: input[f32, 50]\\ny: output[f32, 50]\\nfor i in range(50):\\n    y[i] = x[i]")
    >>> print(show(refitted(k, read("peel(i, 96)\\nsplit(i, 16)\\nvectorize(i_i)")).schedule))
    peel(i, 48)
    split(i, 16)
    vectorize(i_i)
    """
    d = Draft(kernel)
    for at, move in enumerate(schedule):
        match move:
            case Peel(loop, _) if loop in d.kernel.loops:
                d.do(_peeled(d.kernel, loop, move, schedule[at + 1 :]))
            case SetLayout(buffer, text) if any(b.name == buffer for b in d.kernel.buffers):
                sizes = d.kernel.buffer(buffer).sizes
                again = laid(lay.parse(text), sizes)
                d.do(move if again is None else SetLayout(buffer, str(again)))
            case _:
                d.do(move)
    return d


def _peeled(k: Kernel, loop: str, move: Move, later: Sequence[Move]) -> Move:
    step = next((m.factor for m in later if isinstance(m, Split) and m.loop == loop), 0)
    whole = turns(k.loop(loop)) // step * step if step else 0
    return Peel(loop, whole) if whole else move


def laid(layout: Layout, sizes: Sequence[int]) -> Layout | None:
    """The layout's order and blocks, for other sizes; None where it has gaps, or another rank.

    >>> str(laid(lay.parse("1//16:2 0:4 1%16"), (10, 40))), str(laid(lay.parse("1:3 0:4"), (5, 6)))
    ('1//16:3 0:10 1%16', '1:6 0:5')
    """
    if layout.rank != len(sizes) or not layout.is_dense:
        return None
    order: list[int] = []
    blocks: list[tuple[int, int]] = []
    for p in layout.parts:
        whole = max(q.step for q in layout.parts if q.dim == p.dim)
        if p.step == whole:
            order.append(p.dim)
        else:
            blocks.append((p.dim, p.size))
    return lay.blocked(sizes, order, blocks) if blocks else lay.dense(sizes, order)
