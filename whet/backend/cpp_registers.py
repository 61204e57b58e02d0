"""Which scratch is kept in C variables: what only constant indices reach.

    a vector     accessed along a vector loop, or within one that it lives in
    a scalar     accessed one element at a time

A buffer that is accessed both ways, or with vectors that overlap, is an array: right, and slower.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from whet.backend.cpp_scalar import CTYPES, spelled
from whet.ir.types import DType
from whet.kernel.affine import bounds, form
from whet.kernel.loops import Access, Buffer, Kernel, Loop, accesses, bound, scope


@dataclass(frozen=True, slots=True)
class Registers:
    """Variables of a kernel.

    Attributes:
        vectors, scalars: {buffer: {address: C variable}}.
        private: {vector loop: buffers that live within it}.
    """

    vectors: Mapping[str, Mapping[int, str]]
    scalars: Mapping[str, Mapping[int, str]]
    private: Mapping[str, tuple[Buffer, ...]]

    def declarations(self, b: Buffer) -> list[str]:
        """C of a buffer's variables; empty if it has none."""
        names = self.vectors.get(b.name)
        if names is not None:
            return [f"vf {', '.join(names.values())};"] if names else []
        scalars = self.scalars.get(b.name)
        if scalars:
            kind = "float" if b.dtype in (DType.bf16, DType.f16) else CTYPES[b.dtype]
            return [f"{kind} {', '.join(scalars.values())};"]
        return []


def assigned(kernel: Kernel, width: int, plain: Collection[str]) -> Registers:
    """Variables for scratch.

    Args:
        kernel: with its unrolled loops written out.
        width: lanes of a vector.
        plain: vector loops that are run as loops of scalars.
    """
    vectors: dict[str, Mapping[int, str]] = {}
    scalars: dict[str, Mapping[int, str]] = {}
    private: dict[str, tuple[Buffer, ...]] = {}
    found: dict[str, list[Access]] = {}
    for a in accesses(kernel.body):
        found.setdefault(a.buffer, []).append(a)
    for b in kernel.scratch:
        home = scope(kernel, b.name)
        lives = home[-1] if home else ""
        within = lives in kernel.loops and kernel.loops[lives].kind == "vector"
        if within and lives not in plain:
            private[lives] = (*private.get(lives, ()), b)
        elif b.role != "register":
            continue
        pieces = _pieces(b, found.get(b.name, []), width, plain, frozenset(home))
        if pieces is None:
            continue
        kinds = {kind for kind, _ in pieces.values()}
        names = {at: f"{spelled(b.name)}_{at}" for at in sorted(pieces)}
        (vectors if kinds == {"vector"} else scalars)[b.name] = names
    return Registers(vectors, scalars, private)


def _pieces(
    b: Buffer, found: list[Access], width: int, plain: Collection[str], home: frozenset[str]
) -> dict[int, tuple[str, int]] | None:
    """{address: kind, elements}, or None where the buffer has to be an array."""
    pieces: dict[int, tuple[str, int]] = {}
    for a in found:
        loops = [s for s in a.path if isinstance(s, Loop)]
        domain = {s.var: s.extent for s in loops}
        f = form(b.layout.address(a.index), domain)
        lanes = [s for s in loops if s.kind == "vector" and s.var not in plain]
        kind, count, step = "scalar", 1, 0
        if lanes:
            step = f.coefficient(lanes[-1].var)
            f = f.without(lanes[-1].var)
            if step:
                most = bounds(bound(lanes[-1].extent), domain)[1]
                if step != 1 or most > 64 * width:
                    return None
                kind, count = "vector", int(most)
            elif lanes[-1].var in home:
                kind = "vector"
        if f.terms or (kind == "vector" and (not b.dtype.is_float or b.dtype is DType.f64)):
            return None
        for start in range(0, count, width):
            piece = (kind, min(width, count - start))
            if pieces.setdefault(f.constant + start, piece) != piece:
                return None
    if len({kind for kind, _ in pieces.values()}) > 1:
        return None
    places = sorted(pieces)
    for low, high in itertools.pairwise(places):
        if low + pieces[low][1] > high:
            return None
    return pieces
