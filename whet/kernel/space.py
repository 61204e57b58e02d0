"""Schedules worth trying for a kernel, from its structure: a handful, each to be measured.

    tile     the heaviest reduction in registers, in several cuts
    groups   the same, where groups have fewer channels than a vector: several groups in one
    blocks   products with a norm between them, in blocks of rows
    parted   what is computed in several ways, told apart by where it lies: way beside way
    chain    loops over the same rows joined, values kept near: always possible, and hopeless where
             a tile serves several rows with what it loads

>>> from whet.ir.graph import Graph, apply, leaf
>>> from whet.ir.types import DType, TensorType
>>> from whet.kernel.lower import lower
>>> x, w = (leaf("input", n, TensorType(DType.f32, (64, 64))) for n in "xw")
>>> k = lower(Graph((x, w), (apply("relu", apply("matmul", x, w)),)))
>>> [d.name for d in drafts(k, frozenset(), Target("avx2", 32, 16, 2))]
['24x4 por', '24x4 orp', '16x6 por', '8x13 por']
"""

from __future__ import annotations

from dataclasses import dataclass

from whet.kernel.ahead import Ahead, asked
from whet.kernel.blocks import blocks, products
from whet.kernel.chain import chain
from whet.kernel.core import core
from whet.kernel.draft import Draft
from whet.kernel.loops import Kernel
from whet.kernel.parted import parted
from whet.kernel.schedule import Schedule
from whet.kernel.tile import guarded, prepared, tile, variants, widened
from whet.machine.target import Target

GROUPS = 2  # drafts whose vectors hold channels of several groups


@dataclass(frozen=True, slots=True)
class Drafted:
    """A schedule that applies to a kernel, and what it makes of it."""

    name: str
    schedule: Schedule
    kernel: Kernel
    refused: tuple[str, ...] = ()


def drafts(
    kernel: Kernel, fixed: frozenset[str], target: Target, most: int | None = None
) -> list[Drafted]:
    """Schedules, the most promising first.

    Args:
        kernel: naive, with its buffers laid out as they will lie.
        fixed: inputs that may be laid out otherwise ahead of time.
        most: how many; as many as there are unless given.
    """
    found: list[Drafted] = []
    base = prepared(kernel)
    c = core(base.kernel, fixed)
    wide = widened(kernel, target.lanes)
    several = core(wide.kernel, fixed, target.lanes) if wide is not None else None
    if wide is not None and several is not None:
        for t in variants(several, target, bool(guarded(several.update)))[:GROUPS]:
            if len(found) != most and (d := tile(wide, several, t, fixed, target)) is not None:
                found.append(_drafted(f"groups {t}", _ahead(d, fixed, target)))
    if c is not None and len(c.reduced) and c.extent(c.vector) > 1:
        cuts = variants(c, target, bool(guarded(c.update)))
        for t in cuts[:1] if found else cuts:
            if len(found) == most:
                break
            d = tile(base, c, t, fixed, target)
            if d is not None:
                found.append(_drafted(str(t), _ahead(d, fixed, target)))
    if (not found or len(products(kernel)) > 1) and (
        rows := blocks(kernel, target, fixed=fixed)
    ) is not None:
        found[:] = [_drafted("blocks", rows), *found][:most]
    if c is None and (ways := parted(kernel, target.threads, target.lanes)) is not None:
        found.append(_drafted("parted", ways))
    if not found or (len(found) != most and (c is None or not c.row)):
        found.append(_drafted("chain", chain(kernel, target.threads, target.l1)))
    return found


def _ahead(d: Draft, fixed: frozenset[str], target: Target) -> Draft:
    """Asks ahead for what lies as the kernel wants it, where that is worth it."""
    for name in sorted(fixed):
        one = d.copy()
        if one.do(Ahead(name)) and any(a.buffer == name for a in asked(one.kernel, target.l2)):
            d = one
    return d


def _drafted(name: str, d: Draft) -> Drafted:
    return Drafted(name, d.schedule, d.kernel, tuple(map(str, d.refused)))
