"""How wide tiles are in registers: powers of two, and no less than tensor cores take.

    widths(kernel) → by block and by dim of what registers hold, elements

A product of two tiles goes through tensor cores where each of its axes has 16 elements. A few rows
(heads that share their keys, a small batch) are padded to that many, wherever they run: a block,
the dims that it indexes, and the blocks that index those are one axis, and have one width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from whet.errors import UnsupportedError
from whet.ir import expr as ex
from whet.ir.expr import Index
from whet.kernel.affine import bounds
from whet.kernel.blocks import products
from whet.kernel.legal import around
from whet.kernel.loops import Extent, Kernel, Leaf, Loop, Update, bound, leaves

LEAST = 16  # elements of a tensor core's tile along each axis
Axis = tuple[str, int]  # a block and -1, or a buffer and its dim


def padded(extent: Extent, domain: Mapping[str, Extent]) -> int:
    """The power of two that holds a block's largest extent.

    Raises:
        UnsupportedError: it has none.
    """
    most = bounds(bound(extent), domain)[1]
    if math.isinf(most):
        raise UnsupportedError("a block without a largest extent", got=extent)
    return 1 << max(0, int(most) - 1).bit_length()


@dataclass(frozen=True, slots=True)
class Widths:
    """See the module's docstring.

    Attributes:
        blocks: by loop variable.
        wide: dims of buffers that are wider than the power of two that holds them.
    """

    blocks: Mapping[str, int]
    wide: Mapping[Axis, int]

    def dim(self, buffer: str, n: int, size: int) -> int:
        """Of the n-th dim of a buffer in registers, of that size."""
        return self.wide.get((buffer, n), padded(size, {}))


def widths(k: Kernel) -> Widths:
    """Of every block of a scheduled kernel.

    Raises:
        UnsupportedError: a block has no largest extent.
    """
    blocks: dict[str, int] = {}
    parents: dict[Axis, Axis] = {}

    def root(a: Axis) -> Axis:
        while (up := parents.get(a, a)) != a:
            a = up
        return a

    registers = {b.name for b in k.scratch}
    few: list[Axis] = []
    sums = products(k)
    for leaf, path, _ in leaves(k.body):
        domain = around(path)
        here = [s.var for s in path if isinstance(s, Loop) and s.kind == "block"]
        blocks |= {v: padded(domain[v], domain) for v in here if v not in blocks}
        read = [(x.tensor, x.index) for x in ex.loads(leaf.value)]
        for name, index in [(leaf.buffer, leaf.index), *read] if registers else []:
            for n, i in enumerate(index if name in registers else ()):
                if isinstance(i, Index) and i.name in blocks:
                    parents[root((name, n))] = root((i.name, -1))
        if isinstance(leaf, Update) and leaf in sums:
            few += [(v, -1) for v in _few(leaf, {v: blocks[v] for v in here})]
    wide = {root(a) for a in few}
    known = {(v, -1) for v in blocks} | set(parents)
    padding = {a: LEAST for a in known if root(a) in wide}
    return Widths({v: max(n, padding.get((v, -1), 1)) for v, n in blocks.items()}, padding)


def crossed(leaf: Leaf, blocks: Mapping[str, int], least: int = LEAST) -> bool:
    """Is a statement a product of two tiles, that share nothing but what is summed over, and large
    enough for tensor cores?

    Args:
        blocks: around it, with their widths.
        least: elements along each axis.
    """
    if not isinstance(leaf, Update) or leaf.how != "sum" or len(blocks) != 3:
        return False
    own = {v for v in blocks if any(v in ex.free(i) for i in leaf.index)}
    if len(own) != 2 or min(blocks.values()) < least:
        return False
    loads = [own & {v for i in x.index for v in ex.free(i)} for x in ex.loads(leaf.value)]
    return {v for used in loads for v in used} == own and all(len(used) < 2 for used in loads)


def _few(leaf: Update, blocks: Mapping[str, int]) -> list[str]:
    """The axis of a product of tiles that is all that keeps it from tensor cores, if there is."""
    if not crossed(leaf, blocks, 2):
        return []
    short = [v for v, n in blocks.items() if n < LEAST]
    own = {v for i in leaf.index for v in ex.free(i)}
    return short if len(short) == 1 and short[0] in own else []
