"""Where the search begins: a partition that is good without a single kernel having been timed.

    chain     operators that move memory, over the same rows: what one row needs is computed in one
              pass, and what lies between them never leaves the cache
    product   an operator that multiplies and sums, and what is done to each element of its result

    row       the leading axes that every operator of a chain only carries along
    movement  an operator that computes nothing: reshape and the like; alone, it is no work at all

Everything is read off records: which axes are summed, which are only carried along.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from whet.fuse.legality import mergeable, united
from whet.fuse.partition import Group, Partition, apart, partition
from whet.ir import expr as ex
from whet.ir.axes import classify
from whet.ir.expr import Call, Load, Num, Reduce, Select
from whet.ir.graph import Graph, Node
from whet.ir.ops import exists
from whet.ir.record import Instance
from whet.ir.types import Size

ROWS = 16  # rows that a chain needs to be shared among threads
SMALL = 1 << 12  # elements up to which a pass over memory costs less than a call


@dataclass(frozen=True, slots=True)
class Trait:
    """What an operator does, as its record has it.

    Attributes:
        kind: "movement", "pointwise", "reduction", "window" (a reduction that slides), "product",
            or "opaque" where nothing is known.
        rows: for each operand that is present, the sizes of its leading axes that are the result's
            leading axes too, and are only carried along.
    """

    kind: str
    rows: tuple[tuple[int, ...], ...]


def trait(n: Node) -> Trait:
    """The trait of a node."""
    if not exists(n.op):
        return Trait("opaque", tuple(() for _ in n.operands))
    instance = n.instance
    return _trait(instance, str(n.attr("out") or instance.outs[0]))


def _trait(instance: Instance, out: str) -> Trait:
    kinds = classify(instance)
    slots = instance.results[out]
    extents = instance.extents
    result = [a for axes in slots.axes for a in axes if extents[a] != 1]
    free = {a for a in result if a in kinds and kinds[a].kind == "free"}
    rows = []
    for name in instance.operands:
        own = [a for axes in instance.operands[name].axes for a in axes if extents[a] != 1]
        both = zip(result, own, strict=False)
        pairs = takewhile(lambda ab: ab[0] == ab[1] and ab[0] in free, both)
        rows.append(tuple(_int(extents[a]) for a, _ in pairs))
    kind = _kind(instance)
    slides = any(a.kind == "halo" for a in kinds.values())
    return Trait("window" if kind == "reduction" and slides else kind, tuple(rows))


def _kind(instance: Instance) -> str:
    bodies = [let.body for let in instance.lets]
    reductions = [e for body in bodies for e in ex.walk(body) if isinstance(e, Reduce)]
    if any(r.kind == "sum" and len({x.tensor for x in _factors(r.body)}) > 1 for r in reductions):
        return "product"
    if reductions:
        return "reduction"
    values = [e for body in bodies for e in _values(body)]
    return "movement" if all(isinstance(e, (Load, Num)) for e in values) else "pointwise"


def _values(e: ex.Expr) -> list[ex.Expr]:
    """What `e` may be, conditions aside."""
    if isinstance(e, Select):
        return [*_values(e.then), *_values(e.other)]
    return [e]


def _factors(e: ex.Expr) -> list[Load]:
    """Loads whose product a term is, conditions aside."""
    match e:
        case Load():
            return [e]
        case Select(_, then, _):
            return _factors(then)
        case Call("*", args):
            return [x for a in args for x in _factors(a)]
    return []


def _int(n: Size) -> int:
    return n if isinstance(n, int) else 0


def seed(graph: Graph, body: frozenset[Node]) -> Partition:
    """A partition to begin with: chains and products, each as long as it gets."""
    return _Seeding(graph, body).partition()


class _Seeding:
    """Merges each node, in order, with the groups that it reads from."""

    def __init__(self, graph: Graph, body: frozenset[Node]) -> None:
        self.p = apart(graph, body)
        self.traits = {g.nodes[0]: trait(g.nodes[0]) for g in self.p.groups}
        self.rows: dict[Node, tuple[int, ...]] = {}  # of the chain that a node is in
        self.product: set[Node] = set()  # nodes in a group with a product

    def partition(self) -> Partition:
        for n, t in self.traits.items():
            whole = t.kind in ("pointwise", "product")
            self.rows[n] = _sizes(n.shape) if whole else self._own(n, t)
            if t.kind == "product":
                self.product.add(n)
            elif t.kind in ("pointwise", "reduction", "window"):
                self._merge(n, t)
        return self.p

    def _own(self, n: Node, t: Trait) -> tuple[int, ...]:
        shape = _sizes(n.shape)
        rows = [
            r for a, r in zip(n.operands, t.rows, strict=True) if len(_sizes(a.shape)) >= len(shape)
        ]
        return min(rows, key=len, default=())

    def _merge(self, n: Node, t: Trait) -> None:
        """Products first: what is done to their elements is done where they are made."""
        pairs = [(a, r) for a, r in zip(n.operands, t.rows, strict=True) if a in self.rows]
        for a, read in sorted(pairs, key=lambda ar: ar[0] not in self.product):
            rows = _common(self.rows[a], read, self.rows[n])
            if not self._fits(n, t, a, rows):
                continue
            chosen = (self.p.owner[a], self.p.owner[n])
            if chosen[0] == chosen[1] or mergeable(self.p, chosen) is not None:
                continue
            group = united(self.p, chosen)
            self.p = merged(self.p, chosen, group)
            both = bool(self.product & group.members)
            for m in group.nodes:
                self.rows[m] = rows
                if both:
                    self.product.add(m)

    def _fits(self, n: Node, t: Trait, a: Node, rows: tuple[int, ...]) -> bool:
        if self.traits[a].kind in ("movement", "opaque"):
            return False
        if a in self.product:
            return n not in self.product and t.kind == "pointwise" and rows == _sizes(a.shape)
        if n in self.product or self._slides(n, t, a):
            return False
        size = math.prod(_sizes(n.shape))
        return math.prod(rows) >= ROWS or rows == _sizes(n.shape) or size <= SMALL

    def _slides(self, n: Node, t: Trait, a: Node) -> bool:
        """Whether a window and another sum would meet: images have their channels last, and what
        both only carry along is the channels, of which no row is made."""
        kinds = {self.traits[m].kind for m in self.p.groups[self.p.owner[a]].nodes}
        sums = kinds & {"reduction", "window"}
        return bool(sums) and (t.kind == "window" or (t.kind == "reduction" and "window" in sums))


def merged(p: Partition, chosen: Sequence[int], group: Group) -> Partition:
    """The partition with one group in the place of some."""
    kept = [g for k, g in enumerate(p.groups) if k not in chosen]
    return partition(p.graph, p.body, [*kept, group])


def _common(*rows: tuple[int, ...]) -> tuple[int, ...]:
    same = takewhile(lambda sizes: len(set(sizes)) == 1, zip(*rows, strict=False))
    return tuple(sizes[0] for sizes in same)


def _sizes(shape: Sequence[Size]) -> tuple[int, ...]:
    """A shape without its ones."""
    return tuple(_int(n) for n in shape if n != 1)
