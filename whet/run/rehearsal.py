"""A draft of a group, called as the program will call it.

Weights of a model that no cache holds come from main memory at every call, each once. A draft that
is called over and over with the same ones has them near by, and one that waits for them in the
program looks as good as one that does not: two orders of a loop that took 209 and 206 microseconds
so took 213 and 333 in the program. So the large constants of a draft lie elsewhere at every call,
in a stretch of memory that is larger than the caches (`Far`), and those of a library call are made
several times over (`in_turn`).
"""

from __future__ import annotations

import ctypes
import itertools
import math
import mmap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from whet.backend import aten
from whet.backend.piece import Generated, Packed, Piece, Value, extent
from whet.backend.transform import transformed
from whet.fuse.partition import Cluster
from whet.ir.graph import Graph, Node
from whet.ir.types import DType

TOLERANCE = 1e-3  # of the largest result; kernels are held to float64 as whole programs
LARGE = 64 << 10  # bytes of a constant from which on it matters where it lies
ALIGN = 4096
SEVERAL = 48  # times that a library's constants are made, at most
MAKING_S = 0.05  # seconds that making them may take


@dataclass
class Far:
    """Memory of which caches hold but a part, filled with numbers that nothing is slow with.

    Attributes:
        bytes: how much; taken at first use.
    """

    bytes: int

    def __post_init__(self) -> None:
        self._held: Tensor | None = None

    @property
    def start(self) -> int:
        """Its address."""
        if self._held is None:
            room = mmap.mmap(-1, self.bytes)
            if hasattr(mmap, "MADV_HUGEPAGE"):
                room.madvise(mmap.MADV_HUGEPAGE)
            self._held = torch.frombuffer(room, dtype=torch.float32)
            some = torch.randn(1 << 16, generator=torch.Generator().manual_seed(0))
            for part in self._held.split(some.numel()):
                part.copy_(some[: part.numel()])
        return self._held.data_ptr()

    def places(self, sizes: Sequence[int]) -> Iterator[tuple[int, ...]]:
        """Where things of these bytes may lie, one set of addresses after another, as many as fit
        into it without meeting."""
        sizes = [-(-s // ALIGN) * ALIGN for s in sizes]
        for k in range(self.bytes // max(1, sum(sizes))):
            ends = itertools.accumulate(sizes, initial=self.start + k * sum(sizes))
            yield tuple(ends)[:-1]


def constants(operands: Sequence[Value | Packed]) -> int:
    """Bytes of the large constants among a group's operands."""
    return sum(_size(v.node) for v in operands if isinstance(v, Packed))


def streams(graph: Graph, cache: int) -> bool:
    """Do a graph's constants come from main memory at every call, with so many bytes of cache?"""
    return sum(_size(n) for n in graph.parameters) > cache // 2


def _size(n: Node) -> int:
    """Bytes of a constant, if it is a large one of what `Far` is full of, else 0."""
    if n.dtype is not DType.f32 or not all(isinstance(s, int) for s in n.shape):
        return 0
    size = 4 * math.prod(s for s in n.shape if isinstance(s, int))
    return size if size >= LARGE else 0


def in_turn(
    make: Callable[[Mapping[str, Tensor]], Sequence[Tensor]],
    named: Mapping[str, Tensor],
    far: Far | None,
) -> Iterator[Sequence[Tensor]]:
    """What a library call derives of its constants, without end: the same, or, where they are to
    come from far away, several that are equal one after another."""
    sets = [make(named)]
    size = sum(t.nbytes for t in named.values() if t.nbytes >= LARGE)
    if far is not None and size:
        until = time.perf_counter() + MAKING_S
        for _ in range(min(far.bytes // size, SEVERAL) - 1):
            if time.perf_counter() > until:
                break
            sets.append(make({k: v.clone() for k, v in named.items()}))
    return itertools.cycle(sets)


class Rehearsal:
    """A draft, callable on example operands."""

    def __init__(
        self, code: ctypes.CDLL, closed: Cluster, p: Piece, values: Mapping[Node, Tensor]
    ) -> None:
        call = p.call
        assert isinstance(call, Generated)
        self.function = getattr(code, call.symbol)
        self.function.argtypes = (ctypes.c_void_p, ctypes.c_void_p)
        self.function.restype = None
        self.results = [empty(v) for v in p.results]
        self.kept = [
            transformed(values[n], v.how).contiguous() if isinstance(v, Packed) else values[n]
            for n, v in zip(closed.leaves, p.operands, strict=True)
        ]
        tensors = (*self.kept, *self.results)
        self.args = (ctypes.c_void_p * len(tensors))(*(t.data_ptr() for t in tensors))
        self.large = [
            k for k, (v, t) in enumerate(zip(p.operands, self.kept, strict=True))
            if isinstance(v, Packed) and _size(v.node)
        ]  # fmt: skip
        self.scratch = torch.empty(call.scratch + 64, dtype=torch.uint8)
        self.place = -(-self.scratch.data_ptr() // 64) * 64

    def __call__(self) -> None:
        self.function(self.args, self.place)

    def over(self, far: Far) -> Callable[[], None]:
        """The same draft with its large constants elsewhere at every call, and other ones: what it
        computes then is of no account."""
        tables = []
        for addresses in far.places([self.kept[k].nbytes for k in self.large]):
            table = type(self.args)(*self.args)
            for k, address in zip(self.large, addresses, strict=True):
                table[k] = address
            tables.append(table)
        turns = itertools.cycle(tables or [self.args])
        return lambda: self.function(next(turns), self.place)

    def wrong(self, want: Sequence[Tensor]) -> float | None:
        """How far off it is, where that is too far; not a number must be so in both."""
        worst = 0.0
        for got, exact in zip(self.results, want, strict=True):
            known = ~exact.isnan()
            if not torch.equal(known, ~got.isnan()):
                return math.inf
            got, exact = got[known].double(), exact[known].double()
            same = got == exact  # infinities among them
            if not bool(same.all()):
                off = float((got[~same] - exact[~same]).abs().max())
                scale = float(exact.nan_to_num(0, 0, 0).abs().max())
                worst = max(worst, off / max(scale, 1e-30))
        return worst if worst > TOLERANCE else None


def empty(v: Value) -> Tensor:
    """Memory for a value as it lies, from an address that 64 divides."""
    room = torch.empty(extent(v.shape, v.strides) + 16, dtype=aten.torch_dtype(v.node.dtype))
    start = (-room.data_ptr() % 64) // room.element_size()
    return room.as_strided(v.shape, v.strides, start)
