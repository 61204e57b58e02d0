"""Messages between stages: which rank sends which samples to whom.

    Span := source rank, target rank, samples of the source's and of the target's part

Two stages may have different meshes. Of a value with samples, the microbatch is cut into as many
pieces as the least common multiple of both numbers of replicas; each receiver gets every piece of
its part from one sender. Where several senders hold the same, receivers take turns.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from whet.backend.aten import torch_dtype
from whet.parallel.cut import known
from whet.parallel.library import MICRO
from whet.parallel.parts import Row, place, rows
from whet.parallel.program import Key, Message, Program
from whet.parallel.sharding import Axes
from whet.run.parallel.exchange import Grid, Parts, closed, opened


@dataclass(frozen=True, slots=True)
class Span:
    """One transfer.

    Attributes:
        take, put: where it begins in the sender's and the receiver's part, in pieces.
        length: pieces; 0 for the whole value.
        pieces: of the sender's part, and of the receiver's.
    """

    source: int
    target: int
    take: int = 0
    put: int = 0
    length: int = 0
    pieces: tuple[int, int] = (1, 1)


class Post(Protocol):
    """Carries messages."""

    def send(self, number: int, message: Message, micro: int, parts: Parts) -> None:
        """From the ranks in this process that send."""

    def receive(self, number: int, message: Message, micro: int, ranks: Sequence[int]) -> Parts:
        """To ranks in this process."""


def grids(program: Program) -> tuple[Grid, ...]:
    """Where the ranks of each stage stand."""
    found = []
    for s, stage in enumerate(program.stages):
        names, sizes = [n for n, _ in stage.mesh.axes], [k for _, k in stage.mesh.axes]
        coords: dict[int, Mapping[str, int]] = {}
        for place_, rank in enumerate(program.members(s)):
            rest, at = place_, {}
            for name, size in zip(reversed(names), reversed(sizes), strict=True):
                at[name], rest = rest % size, rest // size
            coords[rank] = {name: at[name] for name in names if dict(stage.mesh.axes)[name] > 1}
        found.append(Grid(stage.axes, coords))
    return tuple(found)


@dataclass(slots=True)
class Routes:
    """The spans of every message of a program."""

    program: Program
    grids: tuple[Grid, ...]
    _spans: dict[int, tuple[Span, ...]] = field(default_factory=dict)

    def spans(self, number: int) -> tuple[Span, ...]:
        found = self._spans.get(number)
        if found is None:
            found = self._spans[number] = tuple(self._find(self.program.messages[number]))
        return found

    def _find(self, message: Message) -> list[Span]:
        one, two = self.grids[message.sender], self.grids[message.receiver]
        if message.cut is None:
            senders = sorted(one.coords)
            return [Span(senders[k % len(senders)], r) for k, r in enumerate(sorted(two.coords))]
        a, b = dict(one.axes).get("data", 1), dict(two.axes).get("data", 1)
        pieces = math.lcm(a, b)
        wide, narrow = pieces // a, pieces // b
        found = []
        for e in range(b):
            mine = sorted(r for r, c in two.coords.items() if c.get("data", 0) == e)
            for d in range(a):
                low, high = max(d * wide, e * narrow), min((d + 1) * wide, (e + 1) * narrow)
                if low >= high:
                    continue
                theirs = sorted(r for r, c in one.coords.items() if c.get("data", 0) == d)
                found += [
                    Span(theirs[k % len(theirs)], r, low - d * wide, low - e * narrow, high - low,
                         (wide, narrow))
                    for k, r in enumerate(mine)
                ]  # fmt: skip
        return found


def _rows(message: Message, key: Key, axes: Axes) -> tuple[tuple[Row, ...], int]:
    assert message.cut is not None
    dim, inner = message.cut
    shape = tuple(map(known, key.node.shape))
    marks = tuple((1, inner) if d == dim else (1,) for d in range(len(shape)))
    found = rows(shape, marks, key.at, axes)
    return found, place(found, dim, inner)


def taken(message: Message, span: Span, t: Tensor, axes: Axes) -> Tensor:
    """What a sender puts into a transfer."""
    if not span.length:
        return t.contiguous()
    rows_, k = _rows(message, message.source, axes)
    length = rows_[k].local // span.pieces[0]
    return opened(t, rows_).narrow(k, span.take * length, span.length * length).contiguous()


def room(message: Message, span: Span, axes: Axes) -> tuple[int, ...]:
    """The shape of a transfer."""
    if not span.length:
        shape = tuple(map(known, message.key.node.shape))
        return message.key.at.shape(shape, dict(axes))
    rows_, k = _rows(message, message.key, axes)
    sizes = [r.local for r in rows_]
    sizes[k] = sizes[k] // span.pieces[1] * span.length
    return tuple(sizes)


def joined(message: Message, got: Sequence[tuple[Span, Tensor]], axes: Axes) -> Tensor:
    """A receiver's part from its transfers."""
    if not got[0][0].length:
        return got[0][1]
    rows_, k = _rows(message, message.key, axes)
    ordered = [t for _, t in sorted(got, key=lambda x: x[0].put)]
    whole = ordered[0] if len(ordered) == 1 else torch.cat(ordered, k)
    return closed(whole, rows_, len(message.key.node.shape))


@dataclass(slots=True)
class Mailbox:
    """Messages within one process.

    Attributes:
        log: (source rank, target rank, bytes) of each transfer.
    """

    routes: Routes
    held: dict[tuple[int, int, Span], Tensor] = field(default_factory=dict)
    log: list[tuple[int, int, int]] = field(default_factory=list)

    def send(self, number: int, message: Message, micro: int, parts: Parts) -> None:
        axes = self.routes.grids[message.sender].axes
        for span in self.routes.spans(number):
            if span.source in parts:
                t = taken(message, span, parts[span.source], axes)
                self.held[number, micro, span] = t
                self.log.append((span.source, span.target, t.numel() * t.element_size()))

    def receive(self, number: int, message: Message, micro: int, ranks: Sequence[int]) -> Parts:
        axes = self.routes.grids[message.receiver].axes
        got: dict[int, list[tuple[Span, Tensor]]] = {}
        for span in self.routes.spans(number):
            if span.target in ranks:
                got.setdefault(span.target, []).append((span, self.held.pop((number, micro, span))))
        return {r: joined(message, row, axes) for r, row in got.items()}


def tag(program: Program, number: int, micro: int) -> int:
    """A transfer's tag: no two that are under way at once between two ranks have the same."""
    return number * program.strategy.microbatches + micro + 1


@functools.cache
def dtype_of(key: Key) -> torch.dtype:
    """The element type of a value."""
    return torch_dtype(key.node.dtype)


__all__ = ["MICRO", "Mailbox", "Post", "Routes", "Span", "grids", "joined", "room", "tag", "taken"]
