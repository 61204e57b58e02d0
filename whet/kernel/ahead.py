"""What a kernel reads of an input next, asked for while it computes with what it has.

A block of a packed weight that serves many rows comes from far away at its first use and from near
by at all others. At the first one the processor waits: a twelfth of the time of a product whose
weight lies in main memory. So the uses of one block ask for the next, a line at a time.

    for o in parallel(16):          turn     o and o + 1 read blocks that lie side by side
        for b in range(16):         uses     of one block, which its address does not depend on
            for k in range(768):    walk     through the block; here the next one is asked for
                … x1[48*o + …, k]

How far ahead and how fast follow from the loops: in T iterations of the walk under one turn the
bytes of one block are asked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from whet.ir import expr as ex
from whet.ir.expr import Call, Expr, Index, Num
from whet.kernel.affine import Domain, Form, build, form
from whet.kernel.legal import named, refuse
from whet.kernel.loops import Access, Buffer, Extent, Kernel, Loop, accesses
from whet.kernel.move import Move, register

LINE = 64  # bytes that the memory hands over at once
FINE = 256  # fractions of a byte in which the way through a block is counted
FAST = 2  # lines asked for in an iteration, at most: what asks for more is no use of a block
SHORT = 4096  # bytes of a block from which on asking pays: pages of this size are fetched anyway


@register("ahead")
@dataclass(frozen=True, slots=True)
class Ahead(Move):
    """An input's next block is asked for while the one at hand is used, where loops are such.

    before:
        x: input[f32, 8, 64]
        w: input[f32, 64, 64]
        y: output[f32, 8, 64]
        for o in range(64):
            for i in range(8):
                for k in range(64):
                    y[i, o] += x[i, k] * w[o, k]
    move: ahead(w)
    after:
        x: input[f32, 8, 64]
        w: input[f32, 64, 64] @ ahead
        y: output[f32, 8, 64]
        for o in range(64):
            for i in range(8):
                for k in range(64):
                    y[i, o] += x[i, k] * w[o, k]
    """

    buffer: str

    def do(self, k: Kernel) -> Kernel:
        named(k, self.buffer)
        if k.buffer(self.buffer).role != "in":
            raise refuse("role", buffer=self.buffer)
        return k.with_buffer(replace(k.buffer(self.buffer), ahead=True))


@dataclass(frozen=True, slots=True)
class Asked:
    """Which lines of an input are asked for, and when.

    Attributes:
        buffer: the input's name.
        loop: the innermost loop around all its reads, at whose every iteration lines are asked for.
        start: where the next block begins, in elements.
        step: how many iterations of `loop` have passed since the turn began.
        pace: fractions (of `FINE`) of a byte of the block for each of them.
        lines: asked for at each, side by side.
    """

    buffer: str
    loop: str
    start: Expr
    step: Expr
    pace: int
    lines: int


def asked(kernel: Kernel, near: int) -> Iterator[Asked]:
    """For each input that is read ahead, what to ask for; nothing for one without such loops.

    Args:
        near: bytes of the cache that is to hold what is asked for.
    """
    wanted = {b.name for b in kernel.buffers if b.ahead}
    if wanted:
        reads: dict[str, list[Access]] = {name: [] for name in wanted}
        for a in accesses(kernel.body):
            if a.buffer in wanted:
                reads[a.buffer].append(a)
        for name, found in reads.items():
            one = _asked(kernel.buffer(name), found, near) if found else None
            if one is not None:
                yield one


def _asked(b: Buffer, reads: list[Access], near: int) -> Asked | None:
    serial, reads = _most(reads)
    if not serial or any(not isinstance(s.extent, int) for s in serial):
        return None
    walked = _walked(b, reads, {s.var for s in serial})
    if walked is None:
        return None
    at, dense = walked
    turns = _turns(at, serial)
    # The turn: the innermost loop that the address depends on and a use lies within.
    last = next((k for k in reversed(range(len(turns))) if not turns[k].stride), -1)
    first = next((k for k in reversed(range(max(last, 0))) if turns[k].stride), -1)
    if first < 0 or turns[first].stride < 0:
        return None
    inner = turns[first + 1 :]
    extent = dense
    for t in sorted((t for t in inner if t.stride), key=lambda t: t.stride):
        if t.stride != extent:
            return None  # there are holes in the block
        extent *= t.size
    size, count = extent * (b.dtype.bits // 8), math.prod(t.size for t in inner)
    if not SHORT <= size <= near or size > FAST * LINE * count:
        return None
    step: Expr = Num(0)
    for t in inner:
        step = ex.call("+", ex.call("*", step, Num(t.size)), t.at)
    domain: Domain = {s.var: s.extent for s in serial}
    within = {t.at for t in inner}
    terms = {a: c for a, c in at.terms.items() if a not in within}
    start = build(Form(terms, at.constant + turns[first].stride), domain)
    pace = max(1, round(size * FINE / count))
    return Asked(b.name, serial[-1].var, start, step, pace, -(-size // (LINE * count)))


def _most(reads: list[Access]) -> tuple[list[Loop], list[Access]]:
    """The nest that reads most often: its loops but for those within an iteration, and its reads.
    Rows that a tile does not divide are a nest of their own, which reads what is near by then."""
    nests: dict[tuple[str, ...], tuple[list[Loop], list[Access]]] = {}
    for a in reads:
        serial = [s for s in a.path if isinstance(s, Loop) and s.kind in ("serial", "parallel")]
        nests.setdefault(tuple(s.var for s in serial), (serial, []))[1].append(a)

    def often(nest: tuple[list[Loop], list[Access]]) -> int:
        return math.prod(s.extent if isinstance(s.extent, int) else 1 for s in nest[0])

    return max(nests.values(), key=often)


@dataclass(frozen=True, slots=True)
class _Turn:
    """A loop, or one of the two that a joined loop stands for: its place, its size, and by how many
    elements the address grows with it."""

    at: Expr
    size: int
    stride: int


def _turns(at: Form, serial: list[Loop]) -> list[_Turn]:
    """The loops outermost first; one whose quotient alone the address depends on is two."""
    found: list[_Turn] = []
    for s in serial:
        assert isinstance(s.extent, int)
        var = Index(s.var)
        parts = {a: c for a, c in at.terms.items() if s.var in ex.free(a)}
        match list(parts.items()):
            case []:
                found.append(_Turn(var, s.extent, 0))
            case [(atom, c)] if atom == var:
                found.append(_Turn(var, s.extent, c))
            case [(Call("//", (only, Num(int(by)))) as atom, c)] if only == var:
                found.append(_Turn(atom, -(-s.extent // by), c))
                found.append(_Turn(Call("%", (var, Num(by))), by, 0))
            case _:
                # However it depends on it, no turn goes on where the one before ended.
                found.append(_Turn(var, s.extent, -1))
    return found


def _walked(b: Buffer, reads: list[Access], serial: set[str]) -> tuple[Form, int] | None:
    """Where the first read of an iteration lies, and how many elements side by side are read.

    None where reads of one iteration do not lie so.
    """
    forms: list[Form] = []
    places: set[int] = set()
    for a in reads:
        domain: dict[str, Extent] = {s.var: s.extent for s in a.path if isinstance(s, Loop)}
        at = form(b.layout.address(a.index), domain)
        within = {v: e for v, e in domain.items() if v not in serial}
        rest = {x: c for x, c in at.terms.items() if not (ex.free(x) & within.keys())}
        grown = [0]
        for x, c in at.terms.items():
            if x in rest:
                continue
            extent = within.get(x.name) if isinstance(x, Index) else None
            if not isinstance(extent, int) or len(grown) * extent > LINE * LINE:
                return None
            grown = [g + c * k for g in grown for k in range(extent)]
        forms.append(Form(rest, 0))
        places.update(at.constant + g for g in grown)
    if any(f.terms != forms[0].terms for f in forms):
        return None
    low = min(places)
    if max(places) - low + 1 != len(places):
        return None
    return Form(forms[0].terms, low), len(places)
