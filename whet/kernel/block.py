"""Moves for devices that run a program for each tile: what is one tile, and who works on it.

A loop of kind "block" is an axis of a tile: all its iterations at once, in registers that the
threads of a program share out among themselves. Nests of blocks are tiles of several axes; a sum of
products over one of them is what tensor cores do. `launch` changes no loop: it says how many warps
run a program, how many copies of what a loop reads are under way, whether float32 products may go
through tensor cores, how many programs take all tiles in turns, and whether nests that wait for
nothing of one another are one launch.

What moves mean on such a device, and what else a schedule of it has to say:

    grid       one program an iteration                  blocks of threads
    block      an axis of a tile, shared out among the threads of a program; along memory, the
               compiler makes vector loads of what lies together: no move says their width
    launch     warps of a program, stages under way, precision, persistent programs, side by side
    unroll     a loop written out
    vectorize, parallelize    are a processor's, and refused by the printer
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from whet.kernel.legal import commute, conflicts, independent, refuse, serial, whole, writes
from whet.kernel.loops import Kernel, Loop, walk
from whet.kernel.move import Move, register, replaced

WARPS = (1, 2, 4, 8, 16, 32)
PRECISIONS = ("ieee", "tf32")


@register("block")
@dataclass(frozen=True, slots=True)
class Block(Move):
    """A loop becomes an axis of a tile. An update of one element is folded across.

    before:
        x: input[f32, 8, 16]
        y: output[f32, 8, 16]
        for i in range(8):
            for j in range(16):
                y[i, j] = x[i, j]
    move: block(j)
    after:
        x: input[f32, 8, 16]
        y: output[f32, 8, 16]
        for i in range(8):
            for j in block(16):
                y[i, j] = x[i, j]
    """

    loop: str

    def do(self, k: Kernel) -> Kernel:
        self.check(k)
        return replaced(k, self.loop, lambda s: replace(s, kind="block"))

    def check(self, k: Kernel) -> None:
        """Around blocks only, and no scratch; iterations meet in updates that commute.

        Statements one after the other are then made one after the other, each for all iterations.
        """
        loop, path = serial(k, self.loop)
        for s in walk(loop.body):
            if isinstance(s, Loop) and s.kind != "block":
                raise refuse("perfect", loop=s.var)
        for name in sorted(writes(loop.body)):
            if self.loop in k.scopes.get(name, ()) and k.buffer(name).is_scratch:
                raise refuse("uses", loop=self.loop, buffer=name)
        for a, b in conflicts(k, loop, path):
            if not (commute(a, b) and a.leaf is b.leaf):
                raise refuse("dependence", loop=self.loop, buffer=a.buffer)


@register("grid")
@dataclass(frozen=True, slots=True)
class Grid(Move):
    """Each iteration is a program of its own; loops directly in one another span a grid.

    before:
        x: input[f32, 8, 16]
        y: output[f32, 8, 16]
        for i in range(8):
            for j in range(16):
                y[i, j] = x[i, j]
    move: grid((i, j,))
    after:
        x: input[f32, 8, 16]
        y: output[f32, 8, 16]
        for i in parallel(8):
            for j in parallel(16):
                y[i, j] = x[i, j]
    """

    loops: tuple[str, ...]

    def do(self, k: Kernel) -> Kernel:
        self.check(k)
        for var in self.loops:
            k = replaced(k, var, lambda s: replace(s, kind="parallel"))
        return k

    def check(self, k: Kernel) -> None:
        """Outermost, directly in one another, of extents that are numbers, each independent."""
        inside: Loop | None = None
        for var in self.loops:
            loop, path = serial(k, var)
            whole(loop)
            if (path[-1] if path else None) != inside or (inside and len(inside.body) != 1):
                raise refuse("perfect", loop=var)
            independent(k, loop, path)
            inside = loop


@register("launch")
@dataclass(frozen=True, slots=True)
class Launch(Move):
    """How programs are run; no loop changes.

    Args:
        warps: of a program.
        stages: copies of what a loop reads that are under way.
        precision: of products of float32: "ieee" or "tf32".
        persistent: programs that take all tiles in turns; 0 for one a tile.
        beside: nests that wait for nothing of one another are one launch.

    before:
        x: input[f32, 8]
        y: output[f32, 8]
        for i in range(8):
            y[i] = x[i]
    move: launch(4, 3, ieee, 0, False)
    after:
        x: input[f32, 8]
        y: output[f32, 8]
        for i in range(8):
            y[i] = x[i]
    """

    warps: int
    stages: int
    precision: str = "ieee"
    persistent: int = 0
    beside: bool = False

    def do(self, k: Kernel) -> Kernel:
        if self.warps not in WARPS:
            raise refuse("extent", warps=self.warps, most=WARPS[-1])
        if not 1 <= self.stages <= 8:
            raise refuse("extent", stages=self.stages, most=8)
        if self.persistent < 0:
            raise refuse("extent", persistent=self.persistent)
        if self.precision not in PRECISIONS:
            raise refuse("kind")
        return k


def launch_of(schedule: Sequence[Move]) -> Launch:
    """What a schedule says of its launch: the last word on it, or four warps and two stages."""
    found = [m for m in schedule if isinstance(m, Launch)]
    return found[-1] if found else Launch(4, 2)
