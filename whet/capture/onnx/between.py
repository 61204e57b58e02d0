"""Steps between the files of a plan, as data: see `whet.capture.onnx.staged`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from whet.ir.graph import Node
from whet.parallel.cut import known
from whet.parallel.library import MICRO
from whet.parallel.parts import Row, place, rows, starts
from whet.parallel.program import Exchange, Key
from whet.parallel.sharding import Axes
from whet.run.parallel.exchange import Grid, rows_of
from whet.run.parallel.message import Routes

Json = dict[str, Any]


def shape_of(n: Node) -> tuple[int, ...]:
    """A value's sizes."""
    return tuple(map(known, n.shape))


def local(key: Key, axes: Axes) -> list[int]:
    """The shape of a rank's part."""
    return list(key.at.shape(shape_of(key.node), dict(axes)))


def part(rows_: Sequence[Row], grid: Grid, rank: int, microbatches: int) -> Json:
    """Where a rank's part of a whole value lies."""
    return {
        "view": [r.size for r in rows_],
        "start": [
            list(starts(rows_, grid.at(rank, m), grid.axes)) for m in range(microbatches)
        ],
        "length": [r.local for r in rows_],
    }  # fmt: skip


def cut(op: Exchange, grid: Grid, rank: int, microbatches: int) -> Json:
    """A slice along microbatches of what a rank has."""
    before = rows_of(op, op.move.source, grid.axes)
    after = rows_of(op, op.move.target, grid.axes)
    start = [
        [
            a.local * grid.at(rank, m)[MICRO] if a.local < b.local else 0
            for a, b in zip(after, before, strict=True)
        ]
        for m in range(microbatches)
    ]
    return {
        "do": "cut", "view": [b.local for b in before], "start": start,
        "length": [a.local for a in after],
    }  # fmt: skip


def moved(op: Exchange, axes: Axes) -> Json:
    """A collective: what is seen, and along which of its dims."""
    move = op.move
    found: Json = {"do": move.kind, "shape": local(op.key, axes)}
    if move.combine:
        found["how"] = move.combine
    if move.kind == "all_reduce":
        return found
    (axis,) = move.axes
    before = rows_of(op, move.source, axes)
    found["view"] = [row.local for row in before]
    have, want = move.source.on(axis), move.target.on(axis)
    at = have if move.kind == "all_gather" else want
    assert isinstance(at, tuple)
    found["axis"] = place(before, *at)
    if move.kind == "all_to_all":
        assert isinstance(have, tuple)
        found["join"] = place(before, *have)
    return found


def boundary(routes: Routes, number: int) -> str:
    """What a message is called: those of a forward pass are counted."""
    before = [m for m in routes.program.messages[:number] if m.made == "forward"]
    return f"boundary{len(before)}"


def sent(routes: Routes, number: int) -> list[Json]:
    """The transfers of a message."""
    m, found = routes.program.messages[number], []
    axes = routes.grids[m.sender].axes
    for k, span in enumerate(routes.spans(number)):
        step: Json = {"do": "send", "from": span.source, "to": span.target,
                      "as": f"{boundary(routes, number)}.{k}"}  # fmt: skip
        if span.length:
            rows_, at = _samples(m.cut, m.source, axes)
            length = rows_[at].local // span.pieces[0]
            step |= {"view": [r.local for r in rows_], "axis": at,
                     "start": span.take * length, "length": span.length * length}  # fmt: skip
        found.append(step)
    return found


def joined(routes: Routes, number: int, rank: int) -> Json:
    """A receiver's part of a message out of its transfers."""
    m = routes.program.messages[number]
    axes = routes.grids[m.receiver].axes
    row = [x for x in enumerate(routes.spans(number)) if x[1].target == rank]
    row.sort(key=lambda x: x[1].put)
    step: Json = {"do": "join", "rank": rank, "as": boundary(routes, number),
                  "values": [f"{boundary(routes, number)}.{k}" for k, _ in row],
                  "shape": local(m.key, axes)}  # fmt: skip
    if row[0][1].length:
        step["axis"] = _samples(m.cut, m.key, axes)[1]
    return step


def _samples(cut: tuple[int, int] | None, key: Key, axes: Axes) -> tuple[tuple[Row, ...], int]:
    """A value's factors with that of the samples, and which it is."""
    assert cut is not None
    dim, inner = cut
    shape = shape_of(key.node)
    marks = tuple((1, inner) if d == dim else (1,) for d in range(len(shape)))
    found = rows(shape, marks, key.at, axes)
    return found, place(found, dim, inner)
