"""A device: what it can do at most, and what kernels of each class get of that.

    Device := name memory bandwidth peak(dtype)* units launch Curve* slowdown eager
    Curve  := kind top tile depth | kind Point*
    Point  := extents rate                                  measured: bytes or operations a second
    kind   := "contraction" | "window" | "fused" | "stream" | "gather" | "pool" | "recurrence"

A kernel takes the longer of its arithmetic and its memory traffic, and `launch` on top. What it
gets of the peak depends on its class and size. Two ways to know:

    by form    `top` of the peak on sizes without end; of that, what is lost where the result is cut
               into tiles that are not full, where the tiles do not fill the last wave over the
               units, and where the reduction is short: k / (k + depth).
    by points  rates measured on a grid of sizes, interpolated in logarithms.

Source of the form: tile and wave quantization as in NVIDIA, "Matrix Multiplication Background
User's Guide" (2020), sections 3 and 4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import product

from whet.errors import WhetError

KINDS = ("contraction", "window", "fused", "stream", "gather", "pool", "recurrence")
PROCESS = "process"  # a device that is a process of a host, as `whet machine measure` names it

# A class without a curve of its own behaves like another one.
LIKE = {
    "window": "contraction",
    "fused": "contraction",
    "gather": "stream",
    "pool": "stream",
    "recurrence": "contraction",
}

# Smaller tiles fill the units better and use each value less often: (cuts of rows, of columns, what
# is kept of the rate). A library takes the best.
HALVED = ((1, 1, 1.0), (1, 2, 0.95), (2, 2, 0.85), (2, 4, 0.7))


@dataclass(frozen=True, slots=True)
class Curve:
    """What one class of kernels gets.

    Attributes:
        kind: the class.
        top: share of the peak (or of the bandwidth, for memory-bound classes) that large ones get.
        tile: rows and columns of the result that one unit makes at a time; (1, 1) loses nothing.
        depth: length of a reduction that costs half of the peak.
        points: ((extents…), rate): operations or bytes a second, instead of all of the above.
        dtype: the arithmetic it holds for; "" for any.
    """

    kind: str
    top: float = 1.0
    tile: tuple[int, int] = (1, 1)
    depth: float = 0.0
    points: tuple[tuple[tuple[int, ...], float], ...] = ()
    dtype: str = ""

    def share(self, dims: Sequence[int], units: int) -> float:
        """The part of the peak that a contraction of (batch, m, n, k) gets, by form."""
        if len(dims) != 4:
            return self.top
        batch, m, n, k = (max(1, d) for d in dims)
        best = 0.0
        for rows_cut, columns_cut, keeps in HALVED:
            tall, wide = max(1, self.tile[0] // rows_cut), max(1, self.tile[1] // columns_cut)
            rows, columns = -(-m // tall), -(-n // wide)
            tiles = batch * rows * columns
            filled = tiles / (-(-tiles // units) * units)
            best = max(best, keeps * filled * (m * n) / (rows * tall * columns * wide))
        return self.top * best * k / (k + self.depth)

    def rate(self, dims: Sequence[int]) -> float:
        """Operations or bytes a second at these extents, by points."""
        width = len(self.points[0][0])
        at = tuple(math.log(max(1, d)) for d in tuple(dims)[-width:])
        at = (*(0.0,) * (width - len(at)), *at)
        return math.exp(_grid(self.points, at))


def _grid(points: tuple[tuple[tuple[int, ...], float], ...], at: tuple[float, ...]) -> float:
    """log rate at log extents: linear between the corners of the cell, clamped to the grid."""
    known = dict(points)
    corners: list[list[tuple[int, float]]] = []
    for axis, x in enumerate(at):
        marks = sorted({p[axis] for p in known})
        logs = [math.log(m) for m in marks]
        x = min(max(x, logs[0]), logs[-1])
        high = next((i for i, y in enumerate(logs) if y >= x), len(logs) - 1)
        if high == 0 or logs[high] == x:
            corners.append([(marks[high], 1.0)])
            continue
        part = (x - logs[high - 1]) / (logs[high] - logs[high - 1])
        corners.append([(marks[high - 1], 1 - part), (marks[high], part)])
    total = weight = 0.0
    for corner in product(*corners):
        rate = known.get(tuple(mark for mark, _ in corner))
        if rate is not None:
            w = math.prod(part for _, part in corner)
            total, weight = total + w * math.log(rate), weight + w
    if weight == 0.0:  # no corner of the cell was measured: the nearest point
        near = min(
            known, key=lambda p: sum((math.log(q) - x) ** 2 for q, x in zip(p, at, strict=True))
        )
        return math.log(known[near])
    return total / weight


@dataclass(frozen=True, slots=True)
class Device:
    """One device of a topology.

    Attributes:
        name: its model.
        memory: bytes that programs may use.
        bandwidth: bytes a second of its memory.
        peak: (dtype, operations a second); "float32" stands in for what is not listed.
        units: processors among which the tiles of a kernel are dealt.
        launch: seconds that a kernel takes before and after its work.
        curves: what each class of kernels gets.
        slowdown: (of a kernel while a collective runs, of a collective while a kernel runs), ≥ 1.
        host: bytes a second to and from the host's memory, for what is offloaded.
        grain: the allocator rounds small tensors up to the first, and from the third on to the
            second number of bytes.
        eager: it runs a program operation by operation, views too, and waits for each collective,
            as ranks of `whet run` do; otherwise neighbours are fused and transfers overlap.
    """

    name: str
    memory: int
    bandwidth: float
    peak: tuple[tuple[str, float], ...]
    units: int = 1
    launch: float = 0.0
    curves: tuple[Curve, ...] = ()
    slowdown: tuple[float, float] = (1.0, 1.0)
    host: float = 0.0
    grain: tuple[int, int, int] = (512, 2 << 20, 10 << 20)
    eager: bool = False
    _known: dict[tuple[str, str], Curve] = field(
        default_factory=dict, compare=False, repr=False, hash=False
    )

    def flops_s(self, dtype: str) -> float:
        """Peak operations a second in arithmetic of one type."""
        rates = dict(self.peak)
        found = rates.get(dtype, rates.get("float32"))
        if found is None:
            raise WhetError(
                f"{self.name} has no peak for {dtype}",
                expected=", ".join(rates) or "a peak for float32",
                got=dtype,
                hint="add it to the machine's YAML under peak",
            )
        return found

    def curve(self, kind: str, dtype: str) -> Curve:
        """The curve of a class: its own for this arithmetic, its own, that of the class like it."""
        found = self._known.get((kind, dtype))
        if found is None:
            found = self._known[kind, dtype] = self._curve(kind, dtype)
        return found

    def _curve(self, kind: str, dtype: str) -> Curve:
        for name in filter(None, (kind, LIKE.get(kind))):
            for typed in (dtype, ""):
                for curve in self.curves:
                    if (curve.kind, curve.dtype) == (name, typed):
                        return curve
        return Curve(kind)

    def seconds(
        self, kind: str, flops: float, bytes: float, dims: Sequence[int] = (), dtype: str = "",
        calls: int = 1,
    ) -> float:  # fmt: skip
        """Time of one kernel.

        Args:
            kind: one of `KINDS`.
            flops: operations.
            bytes: read and written in the device's memory.
            dims: (batch, m, n, k) of a contraction.
            dtype: of the arithmetic; float32 if not given.
            calls: operations that it is issued as.
        """
        dtype = dtype or "float32"
        traffic = self.curve(kind if kind in ("gather", "pool") else "stream", "")
        if traffic.points:
            memory = bytes / traffic.rate((max(1, int(bytes)),))
        else:
            memory = bytes / (self.bandwidth * traffic.top)
        arithmetic = 0.0
        if flops:
            curve = self.curve(kind, dtype)
            if curve.points and LIKE.get(kind, kind) == "contraction" and len(dims) == 4:
                arithmetic = flops / curve.rate(dims)
            elif LIKE.get(kind, kind) == "contraction":
                arithmetic = flops / (self.flops_s(dtype) * curve.share(dims, self.units))
            else:
                arithmetic = flops / self.flops_s("vector_" + dtype)
        return calls * self.launch + max(arithmetic, memory)

    def rounded(self, bytes: int) -> int:
        """Bytes that the allocator takes for a tensor."""
        small, large, limit = self.grain
        grain = large if bytes >= limit else small
        return -(-bytes // grain) * grain

    def named(self, name: str) -> Device:
        """The same device under another name."""
        return replace(self, name=name)
