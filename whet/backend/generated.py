"""Generated kernels as pieces: a closed graph, its operands as they lie, a schedule.

    closed graph --lower--> naive kernel --laid out--> --schedule--> kernel --C--> Piece

Constants may lie as a schedule likes best: its kernel's layout of a parameter becomes the
transformation that makes the constant ahead of time.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace

from whet.backend import cpp
from whet.backend.piece import Generated, Packed, Piece, Value
from whet.backend.transform import How
from whet.errors import UnsupportedError
from whet.fuse.partition import Cluster
from whet.kernel.layout import Layout, dense, strided
from whet.kernel.legal import Illegal
from whet.kernel.loops import Kernel
from whet.kernel.lower import lower
from whet.kernel.schedule import Schedule, apply
from whet.machine.target import Target

Operands = Sequence[Value | Packed]


def naive(closed: Cluster, operands: Operands, results: Sequence[Value]) -> Kernel:
    """The naive kernel of a cluster over memory as it lies.

    Raises:
        UnsupportedError: it has no loops.
    """
    k = lower(closed.graph)
    for b, v in zip((*k.inputs, *k.outputs), (*operands, *results), strict=True):
        if isinstance(v, Value) and not v.is_dense:
            k = k.with_buffer(replace(b, layout=strided(b.sizes, v.strides)))
    return k


def fixed(kernel: Kernel, operands: Operands) -> frozenset[str]:
    """Inputs that are made ahead of time."""
    pairs = zip(kernel.inputs, operands, strict=True)
    return frozenset(b.name for b, v in pairs if isinstance(v, Packed) and not v.how)


def piece(
    closed: Cluster,
    operands: Operands,
    results: Sequence[Value],
    schedule: Schedule,
    target: Target,
) -> Piece:
    """A cluster's kernel by a schedule.

    Raises:
        UnsupportedError: no loops, no words in C, or a schedule that does not apply.
    """
    k = apply(naive(closed, operands, results), schedule)
    if isinstance(k, Illegal):
        raise UnsupportedError("a schedule that does not apply", got=str(k))
    return scheduled(closed, operands, results, k, target)


def scheduled(
    closed: Cluster, operands: Operands, results: Sequence[Value], k: Kernel, target: Target
) -> Piece:
    """A cluster's kernel, with its schedule applied.

    Raises:
        UnsupportedError: no words in C.
    """
    taken = []
    for b, v in zip(k.inputs, operands, strict=True):
        taken.append(replace(v, how=how(b.layout, b.sizes)) if isinstance(v, Packed) else v)
    order = closed.results
    return Piece(order, tuple(taken), tuple(results), unit(k, target))


def likewise(known: Piece, closed: Cluster, operands: Operands, results: Sequence[Value]) -> Piece:
    """The kernel of a cluster that is the same as another, operands and results lying as there."""
    taken = [
        replace(v, how=w.how) if isinstance(v, Packed) and isinstance(w, Packed) else v
        for v, w in zip(operands, known.operands, strict=True)
    ]
    return Piece(closed.results, tuple(taken), tuple(results), known.call)


def unit(k: Kernel, target: Target) -> Generated:
    """A kernel as C, called by its content."""
    text = f"{k}\n{target}"
    symbol = f"whet_{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}"
    made = cpp.function(symbol, k, target)
    return Generated(symbol, cpp.unit([made], target), made.scratch)


def how(layout: Layout, sizes: Sequence[int]) -> How:
    """The transformation that lays a dense tensor out so.

    >>> from whet.kernel.layout import blocked
    >>> how(blocked((10, 4), (0, 1), [(0, 8)]), (10, 4))
    ('tile', (16, 4), (2, 8, 4), (0, 2, 1))
    """
    if layout == dense(sizes):
        return ()
    if not layout.is_dense:
        raise UnsupportedError("a constant with gaps", got=str(layout))
    parts = layout.parts
    split = sorted(range(len(parts)), key=lambda n: (parts[n].dim, -parts[n].step))
    padded = [math.prod(p.size for p in parts if p.dim == d) for d in range(len(sizes))]
    place = {n: k for k, n in enumerate(split)}
    return (
        "tile", tuple(padded), tuple(parts[n].size for n in split),
        tuple(place[n] for n in range(len(parts))),
    )  # fmt: skip
