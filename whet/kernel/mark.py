"""Moves that say how a loop runs and where a buffer lies; statements stay as they are."""

from __future__ import annotations

from dataclasses import dataclass, replace

from whet.kernel import layout as lay
from whet.kernel.layout import Layout
from whet.kernel.legal import commute, conflicts, independent, named, refuse, serial, whole
from whet.kernel.loops import Kernel, Loop, walk
from whet.kernel.move import Move, register, replaced


@register("parallelize")
@dataclass(frozen=True, slots=True)
class Parallelize(Move):
    """Iterations shared among threads.

    before:
        x: input[f32, 8]
        y: output[f32, 8]
        for i in range(8):
            y[i] = x[i]
    move: parallelize(i)
    after:
        x: input[f32, 8]
        y: output[f32, 8]
        for i in parallel(8):
            y[i] = x[i]
    """

    loop: str

    def do(self, k: Kernel) -> Kernel:
        self.check(k)
        return replaced(k, self.loop, lambda s: replace(s, kind="parallel"))

    def check(self, k: Kernel) -> None:
        """Independent iterations; not within a loop that is parallel or vector, none within."""
        loop, path = serial(k, self.loop)
        for s in (*path, *walk(loop.body)):
            if isinstance(s, Loop) and (s.kind == "parallel" or (s.kind == "vector" and s in path)):
                raise refuse("kind", loop=s.var)
        independent(k, loop, path)


@register("vectorize")
@dataclass(frozen=True, slots=True)
class Vectorize(Move):
    """All iterations at once, in vector registers. An update of one element is folded across.

    before:
        x: input[f32, 16]
        y: output[f32, 16]
        for i in range(16):
            y[i] = x[i]
    move: vectorize(i)
    after:
        x: input[f32, 16]
        y: output[f32, 16]
        for i in vector(16):
            y[i] = x[i]
    """

    loop: str

    def do(self, k: Kernel) -> Kernel:
        self.check(k)
        return replaced(k, self.loop, lambda s: replace(s, kind="vector"))

    def check(self, k: Kernel) -> None:
        """Innermost but for unrolled loops; iterations meet in updates that commute only."""
        loop, path = serial(k, self.loop)
        for s in walk(loop.body):
            if isinstance(s, Loop) and s.kind != "unroll":
                raise refuse("perfect", loop=s.var)
        for s in path:
            if isinstance(s, Loop) and s.kind == "vector":
                raise refuse("kind", loop=s.var)
        for a, b in conflicts(k, loop, path):
            if not (commute(a, b) and a.leaf is b.leaf):
                raise refuse("dependence", loop=self.loop, buffer=a.buffer)


@register("unroll")
@dataclass(frozen=True, slots=True)
class Unroll(Move):
    """Every iteration written out.

    before:
        x: input[f32, 4]
        y: output[f32, 4]
        for i in range(4):
            y[i] = x[i]
    move: unroll(i)
    after:
        x: input[f32, 4]
        y: output[f32, 4]
        for i in unroll(4):
            y[i] = x[i]
    """

    loop: str

    def do(self, k: Kernel) -> Kernel:
        self.check(k)
        return replaced(k, self.loop, lambda s: replace(s, kind="unroll"))

    def check(self, k: Kernel) -> None:
        """Serial, of an extent that is a number."""
        loop, _ = serial(k, self.loop)
        whole(loop)


@register("keep")
@dataclass(frozen=True, slots=True)
class Keep(Move):
    """A scratch buffer's place: memory, stack or register.

    before:
        x: input[f32, 8, 9]
        y: output[f32, 8]
        t: memory[f32, 1]
        for i in range(8):
            t[0] = 0
            for j in range(9):
                t[0] += x[i, j]
            y[i] = t[0]
    move: keep(t, register)
    after:
        x: input[f32, 8, 9]
        y: output[f32, 8]
        t: register[f32, 1]
        for i in range(8):
            t[0] = 0
            for j in range(9):
                t[0] += x[i, j]
            y[i] = t[0]
    """

    buffer: str
    role: str

    def do(self, k: Kernel) -> Kernel:
        named(k, self.buffer)
        if not k.buffer(self.buffer).is_scratch or self.role not in ("memory", "stack", "register"):
            raise refuse("role", buffer=self.buffer)
        return k.with_buffer(replace(k.buffer(self.buffer), role=self.role))


@register("layout")
@dataclass(frozen=True, slots=True)
class SetLayout(Move):
    """Where a buffer's elements lie. Of the caller's buffers, that is a demand on the caller.

    before:
        x: input[f32, 4, 32]
        y: output[f32, 4, 32]
        for i in range(4):
            for j in range(32):
                y[i, j] = x[i, j]
    move: layout(x, '1//16:2 0:4 1%16')
    after:
        x: input[f32, 4, 32] @ "1//16:2 0:4 1%16"
        y: output[f32, 4, 32]
        for i in range(4):
            for j in range(32):
                y[i, j] = x[i, j]
    """

    buffer: str
    layout: str

    def do(self, k: Kernel) -> Kernel:
        layout = self.check(k)
        return k.with_buffer(replace(k.buffer(self.buffer), layout=layout))

    def check(self, k: Kernel) -> Layout:
        """Every element has a place of its own."""
        named(k, self.buffer)
        try:
            layout = lay.parse(self.layout)
        except ValueError:
            raise refuse("layout", buffer=self.buffer) from None
        if not lay.holds(layout, k.buffer(self.buffer).sizes):
            raise refuse("layout", buffer=self.buffer)
        return layout
