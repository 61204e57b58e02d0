"""The static memory plan of a native program: where every value lies, in one arena.

    Storage = bytes, first, last, kind      kind: arena | input | output | given | loose
    Plan    = for every value (storage, offset within it), for every storage its offset in the arena

Values that are views of one another, and results computed in place, share one storage. A storage
lives from the first step that touches it to the last; storages whose lives overlap get disjoint
ranges of the arena, found by several greedy orders of which the lowest peak is kept (offline
dynamic storage allocation is NP-hard; largest first is within a few percent on networks: Pisarchyk
and Lee, "Efficient memory management for deep neural net inference", 2020). `bound` is what no
plan can beat: the most bytes that live at one time.

What library calls return lies in memory of its own, "given", besides the arena. Where the one is
large while the other is not, both together take more than lives at any time; the largest storages
of the arena are then "loose": allocated at their first use and freed after their last, until the
peak is within `NEAR` of the bound.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from whet.backend.piece import Body, Generated, Library, Packed, Piece, Value

NEAR = 1.1  # what a plan may take, as a multiple of the least
SMALL = 16 << 10  # bytes that are not worth an allocation
ALIGNMENT = 64  # bytes: a cache line, and a vector of the widest machine


@dataclass(slots=True)
class Storage:
    """Memory that one or several values share.

    Attributes:
        kind: where it is: in the "arena", an "input", an "output", "given" by a library call, or
            "loose": a tensor of its own.
        bytes: its size.
        first, last: steps between which it is in use, both included.
        index: of the input or output; number of the given or loose tensor.
        offset: in the arena.
    """

    kind: str
    bytes: int
    first: int
    last: int
    index: int = 0
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """See the module's docstring.

    Attributes:
        places: storage and byte offset in it, by value.
        storages: all of them.
        copies: (output, value) for results that are copied out at the end.
        scratch: where the kernels' scratch begins; their largest need, in bytes.
        arena: bytes of the arena, scratch included.
        given: most bytes of given and loose tensors at one time.
        bound: the liveness lower bound on what lives in arena and library tensors together.
    """

    places: Mapping[Value, tuple[Storage, int]]
    storages: tuple[Storage, ...]
    copies: tuple[tuple[int, Value], ...]
    scratch: int
    arena: int
    given: int
    bound: int

    @property
    def peak(self) -> int:
        """Bytes of working memory that a call needs, whatever it was before."""
        return self.arena + self.given


def plan(body: Body) -> Plan:
    """Where the values of a body lie."""
    planning = _Planning(body)
    return planning.plan()


class _Planning:
    def __init__(self, body: Body) -> None:
        self.body = body
        self.end = len(body.pieces)
        self.roots: dict[Value, tuple[Value, int]] = {}
        self.merged: dict[Value, Value] = {}  # result computed in place: root of its operand
        self.storages: dict[Value, Storage] = {}
        self.copies: list[tuple[int, Value]] = []

    def plan(self) -> Plan:
        for k, v in enumerate(self.body.inputs):
            self.storages[v] = Storage("input", v.bytes, -1, self.end, k)
        self._results()
        given = 0
        for step, piece in enumerate(self.body.pieces):
            for v in _values(piece):
                self._touch(v, step)
            for v in piece.results:
                new = self._touch(v, step)
                if isinstance(piece.call, Library) and piece.call.gives and new.kind == "arena":
                    new.kind, new.index = "given", given
                    given += 1
        for _, v in self.copies:
            self._touch(v, self.end)
        self._in_place()
        places = {v: self._place(v) for v in self._all()}
        mine = [s for s in self.storages.values() if s.kind == "arena"]
        scratch = _rounded(max((_scratch(p) for p in self.body.pieces), default=0))
        others = [s for s in self.storages.values() if s.kind == "given"]
        bound = _most([*mine, *others], self.end)
        arena, apart = allocate(mine), _most(others, self.end)
        largest = sorted(mine, key=lambda s: s.bytes)
        while (
            others and largest and largest[-1].bytes > SMALL
            and arena + apart + scratch > NEAR * (bound + scratch)
        ):  # fmt: skip
            loosened = largest.pop()
            loosened.kind, loosened.index = "loose", len(others)
            others.append(loosened)
            mine.remove(loosened)
            arena, apart = allocate(mine), _most(others, self.end)
        return Plan(
            places, tuple(self.storages.values()), tuple(self.copies), scratch, arena + scratch,
            apart, bound + scratch,
        )  # fmt: skip

    def _results(self) -> None:
        """A result that owns its memory is written to the output itself; others are copied."""
        made = {v for p in self.body.pieces for v in p.results}
        loose = {
            v for p in self.body.pieces for v in p.results
            if not (isinstance(p.call, Library) and p.call.gives)
        }  # fmt: skip
        for k, v in enumerate(self.body.results):
            if isinstance(v, Packed):
                continue
            root, offset = self._root(v)
            owned = root in loose or (root not in made and root not in self.body.inputs)
            if owned and not offset and root.bytes == v.bytes and root not in self.storages:
                self.storages[root] = Storage("output", v.bytes, 0, self.end, k)
            else:
                self.copies.append((k, v))

    def _root(self, v: Value) -> tuple[Value, int]:
        """The value that owns the memory, and the offset in it."""
        offset, start = 0, v
        while start in self.body.views:
            start, step = self.body.views[start]
            offset += step
        return self.merged.get(start, start), offset

    def _place(self, v: Value) -> tuple[Storage, int]:
        root, offset = self._root(v)
        return self.storages[root], offset

    def _touch(self, v: Value, step: int) -> Storage:
        root, _ = self._root(v)
        s = self.storages.get(root)
        if s is None:
            s = self.storages[root] = Storage("arena", root.bytes, step, step)
        s.first, s.last = min(s.first, step), max(s.last, step)
        return s

    def _in_place(self) -> None:
        """A result takes the memory of an operand that dies as it is made."""
        for step, piece in enumerate(self.body.pieces):
            for k, j in piece.inplace:
                old, new = piece.operands[k], piece.results[j]
                if not isinstance(old, Value):
                    continue
                (a, x), (b, y) = self._root(old), self._root(new)
                s, t = self.storages[a], self.storages[b]
                fits = s.kind == t.kind == "arena" and s.bytes == t.bytes and not x and not y
                readers = _values(piece)
                alone = sum(self._root(v)[0] == a for v in readers) == readers.count(old)
                if fits and alone and a != b and s.last == step == t.first:
                    s.last = t.last
                    self.merged = {v: a if r == b else r for v, r in self.merged.items()} | {b: a}
                    del self.storages[b]

    def _all(self) -> Iterable[Value]:
        found: dict[Value, None] = dict.fromkeys(self.body.inputs)
        for p in self.body.pieces:
            found |= dict.fromkeys(v for v in (*p.operands, *p.results) if isinstance(v, Value))
        found |= dict.fromkeys(v for v in self.body.results if isinstance(v, Value))
        return found


def _values(piece: Piece) -> list[Value]:
    """The operands that are no constants."""
    return [v for v in piece.operands if isinstance(v, Value)]


def _scratch(piece: Piece) -> int:
    return piece.call.scratch if isinstance(piece.call, Generated) else 0


def _rounded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _most(storages: Sequence[Storage], end: int) -> int:
    """The most bytes alive at one step, each storage a whole number of cache lines."""
    change = [0] * (end + 3)
    for s in storages:
        change[s.first + 1] += _rounded(s.bytes)
        change[s.last + 2] -= _rounded(s.bytes)
    most = now = 0
    for c in change:
        now += c
        most = max(most, now)
    return most


_ORDERS: Sequence[Callable[[Storage], tuple[int, ...]]] = (
    lambda s: (-s.bytes, s.first),
    lambda s: (-s.bytes * (s.last - s.first + 1),),
    lambda s: (s.first, -s.bytes),
    lambda s: (s.first - s.last, -s.bytes),
    lambda s: (-s.last, -s.bytes),
)


def allocate(storages: Sequence[Storage]) -> int:
    """Sets the offsets; how many bytes that takes."""
    best: tuple[int, list[int]] | None = None
    for order in _ORDERS:
        ranked = sorted(range(len(storages)), key=[order(s) for s in storages].__getitem__)
        found = _placed(storages, ranked)
        if best is None or found[0] < best[0]:
            best = found
    if best is None:
        return 0
    for s, offset in zip(storages, best[1], strict=True):
        s.offset = offset
    return best[0]


def _placed(storages: Sequence[Storage], order: Sequence[int]) -> tuple[int, list[int]]:
    """Each storage in the tightest gap that those before it leave while it lives."""
    offsets = [0] * len(storages)
    done: list[int] = []
    peak = 0
    for k in order:
        s = storages[k]
        size = _rounded(s.bytes)
        busy = sorted(
            (offsets[j], offsets[j] + _rounded(storages[j].bytes)) for j in done
            if storages[j].first <= s.last and s.first <= storages[j].last
        )  # fmt: skip
        at, best, gap = 0, -1, 0
        for start, stop in busy:
            if start - at >= size and (best < 0 or start - at < gap):
                best, gap = at, start - at
            at = max(at, stop)
        offsets[k] = at if best < 0 else best
        peak = max(peak, offsets[k] + size)
        done.append(k)
    return peak, offsets
