"""Which vector loops have lanes, and which scratch lives in registers, as a C compiler gets them.

A vector loop is printed as vectors where every vector's elements lie at one distance from each
other; else it is a loop of scalars. Scratch is a variable where only constant addresses reach it
once loops are written out, and none of its vectors overlap; else it is an array.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from whet.ir import expr as ex
from whet.ir.expr import Expr, Index, Num
from whet.ir.types import DType
from whet.kernel.affine import CHUNK, LANE, Domain, bounds, build, form
from whet.kernel.loops import Access, Buffer, Kernel, Loop, accesses, bound, leaves
from whet.kernel.traffic import value

FEW = 4  # vectors that are written out


def scalar_loops(kernel: Kernel, lanes: int) -> frozenset[str]:
    """Vector loops that are loops of scalars: with loops in them, or with lanes that do not lie
    evenly."""
    found = set()
    for leaf, path, _ in leaves(kernel.body):
        loops = [s for s in path if isinstance(s, Loop)]
        domain = {s.var: s.extent for s in loops}
        for k, s in enumerate(loops):
            if s.kind != "vector" or s.var in found:
                continue
            behind = loops[k + 1 :]
            within = any(x.kind != "unroll" and x.extent != 1 for x in behind)
            if within or not all(_even(kernel, a, s, domain, lanes) for a in accesses((leaf,))):
                found.add(s.var)
    return frozenset(found)


def _even(kernel: Kernel, a: Access, s: Loop, domain: Domain, lanes: int) -> bool:
    """Do the lanes of every vector lie at one distance from each other?"""
    b = kernel.buffer(a.buffer)
    if not any(s.var in ex.free(i) for i in a.index):
        return b.dtype is not DType.i64 or a.kind != "read"
    if b.dtype in (DType.f64, DType.i64):
        return False
    address = b.layout.address(a.index)
    most = bounds(bound(s.extent), domain)[1]
    chunks = -(-int(most) // lanes) if most < 1 << 20 else 1 << 16
    around = {**domain, LANE: lanes}
    if chunks <= FEW:
        starts: list[Expr] = [Num(c) for c in range(chunks)]
    else:
        starts, around = [Index(CHUNK)], {**domain, CHUNK: chunks, LANE: lanes}
    for start in starts:
        lane = ex.call("+", ex.call("*", Num(lanes), start), Index(LANE))
        if chunks == 1:
            around[LANE] = max(int(most), 1)
        f = form(ex.substitute(address, {s.var: lane}), around)
        if any(LANE in ex.free(atom) for atom in f.terms if atom != Index(LANE)):
            return False
    return True


def held(kernel: Kernel, lanes: int, plain: frozenset[str]) -> frozenset[str]:
    """Scratch that lives in registers: addresses that are constant once loops are written out, and
    vectors that do not overlap."""
    found: dict[str, list[Access]] = {}
    for a in accesses(kernel.body):
        found.setdefault(a.buffer, []).append(a)
    kept = set()
    for b in kernel.scratch:
        home = kernel.scopes.get(b.name, ())
        within = bool(home) and kernel.loops[home[-1]].kind == "vector" and home[-1] not in plain
        if within or (b.role == "register" and _pieces(b, found.get(b.name, []), lanes, plain)):
            kept.add(b.name)
    return frozenset(kept)


def _pieces(b: Buffer, found: Sequence[Access], lanes: int, plain: frozenset[str]) -> bool:
    pieces: dict[int, int] = {}
    for a in found:
        loops = [s for s in a.path if isinstance(s, Loop)]
        domain = {s.var: s.extent for s in loops}
        f = form(b.layout.address(a.index), domain)
        along = [s for s in loops if s.kind == "vector" and s.var not in plain]
        count = 0
        if along and (step := f.coefficient(along[-1].var)):
            count = int(bounds(bound(along[-1].extent), domain)[1])
            if step != 1 or count > 64 * lanes:
                return False
            f = f.without(along[-1].var)
        free = {v for atom in f.terms for v in ex.free(atom)}
        loose = [s for s in loops if s.var in free]
        if any(s.kind != "unroll" or not isinstance(s.extent, int) for s in loose):
            return False
        where = build(f, domain)
        ranges = [range(int(str(s.extent))) for s in loose]
        for at in itertools.islice(itertools.product(*ranges), 512):
            start = value(where, dict(zip((s.var for s in loose), at, strict=True)))
            for low in range(0, max(count, 1), lanes):
                size = min(lanes, count - low) if count else 0
                if pieces.setdefault(start + low, size) != size:
                    return False
    places = sorted(pieces)
    return all(low + max(pieces[low], 1) <= high for low, high in itertools.pairwise(places))
