"""The e-graph: many graphs at once, in which equal subgraphs are one class.

    e-graph := class *                 class: terms known to be equal, all of one type
    term    := a Node                  over terms; two terms are one e-node if their operator is the
                                       same and their operands are in the same classes
    edge    := term -- term            why two terms are equal: an equation, or their operands are

A term is an ordinary node of the graph, so an e-graph needs no types, shapes or attributes of its
own, and what it proves is about nodes that can be built, printed and evaluated. Congruence closure
after Downey, Sethi and Tarjan (J. ACM 1980), deferred as in egg (Willsey et al., POPL 2021); the
edges form the proof forest of Nieuwenhuis and Oliveras (RTA 2005), from which `explain` reads which
equations an equality needs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from whet.errors import GraphError
from whet.ir.graph import Attrs, Node, topological
from whet.ir.types import TensorType

_ABSENT = -1
_CONGRUENT = -1
Key = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ENode:
    """One way to compute a class: a node, and the representatives of its operands' classes."""

    node: Node
    args: tuple[Node | None, ...]


class EGraph:
    """Terms, the classes they are in, and why.

    >>> from whet.ir.graph import apply, leaf
    >>> from whet.ir.types import DType, TensorType
    >>> x, y = (leaf("input", n, TensorType(DType.f32, (4,))) for n in "xy")
    >>> a, b = apply("neg", x), apply("neg", y)
    >>> classes = EGraph((a, b))
    >>> classes.equal(a, b)
    False
    >>> _ = classes.union(x, y, reason=7)
    >>> classes.equal(a, b), classes.explain(a, b)
    (True, (7,))
    """

    def __init__(self, roots: Iterable[Node] = ()) -> None:
        self._terms: list[Node] = []
        self._number: dict[Node, int] = {}
        self._args: list[tuple[int, ...]] = []
        self._heads: dict[tuple[str, Attrs, TensorType | None], int] = {}
        self._head: list[int] = []
        self._leader: list[int] = []
        self._table: dict[Key, int] = {}
        self._current: dict[int, Key] = {}
        self._users: dict[int, list[int]] = {}
        self._oldest: dict[int, int] = {}
        self._count: dict[int, int] = {}
        self._edge: list[tuple[int, int] | None] = []
        self._pending: list[int] = []
        self._touched: dict[int, None] = {}
        for root in roots:
            self.add(root)

    # -- growing ---------------------------------------------------------------------------------
    def add(self, root: Node) -> Node:
        """Make `root` and all below it terms; the representative of its class."""
        if root not in self._number:
            for node in topological((root,)):
                if node not in self._number:
                    self._new(node)
            self._rebuild()
        return self.find(root)

    def union(self, a: Node, b: Node, reason: int) -> bool:
        """State that two terms are equal, because of equation number `reason`.

        Returns:
            Whether that was news.

        Raises:
            GraphError: they have different types.
        """
        self.add(a)
        self.add(b)
        news = self._merge(self._number[a], self._number[b], reason)
        self._rebuild()
        return news

    # -- asking ----------------------------------------------------------------------------------
    def __len__(self) -> int:
        """Number of e-nodes."""
        return len(self._table)

    def __contains__(self, node: object) -> bool:
        return node in self._number

    @property
    def terms(self) -> tuple[Node, ...]:
        """Every term, in the order they came."""
        return tuple(self._terms)

    def find(self, node: Node) -> Node:
        """The representative of a term's class: the term that was there first."""
        return self._terms[self._oldest[self._root(self._number[node])]]

    def equal(self, a: Node, b: Node) -> bool:
        """Whether two terms are in one class."""
        return self._root(self._number[a]) == self._root(self._number[b])

    def enodes(self) -> Iterator[tuple[Node, ENode]]:
        """Every e-node with the representative of its class, in the order they came."""
        terms, oldest = self._terms, self._oldest
        for key, number in self._table.items():
            args = tuple(None if a < 0 else terms[oldest[self._root(a)]] for a in key[1:])
            yield terms[oldest[self._root(number)]], ENode(terms[number], args)

    def take_touched(self, levels: int) -> set[Node]:
        """Representatives of classes that changed since this was last asked, and of their users'
        classes, up to `levels` users away."""
        reached = {self._root(t) for t in self._touched}
        self._touched.clear()
        front = list(reached)
        for _ in range(levels):
            above: list[int] = []
            for c in front:
                for user in self._users.get(c, ()):
                    root = self._root(user)
                    if root not in reached:
                        reached.add(root)
                        above.append(root)
            front = above
        return {self._terms[self._oldest[c]] for c in reached}

    def explain(self, *pairs: Node) -> tuple[int, ...]:
        """Numbers of the equations from which it follows that terms are equal: a, b, a, b, …

        Raises:
            GraphError: two of them are not.
        """
        numbers = [self._number[n] for n in pairs]
        asked = list(zip(numbers[::2], numbers[1::2], strict=True))
        reasons: set[int] = set()
        seen: set[tuple[int, int]] = set()
        while asked:
            a, b = asked.pop()
            if a == b or (a, b) in seen:
                continue
            seen.add((a, b))
            if self._root(a) != self._root(b):
                raise GraphError("two terms are not known to be equal",
                                 got=f"{self._terms[a]!r}, {self._terms[b]!r}")  # fmt: skip
            for s, t, reason in self._path(a, b):
                if reason != _CONGRUENT:
                    reasons.add(reason)
                else:
                    asked += zip(self._args[s], self._args[t], strict=True)
        return tuple(sorted(reasons))

    # -- inside ----------------------------------------------------------------------------------
    def _new(self, node: Node) -> None:
        number = len(self._terms)
        self._terms.append(node)
        self._number[node] = number
        args = tuple(_ABSENT if a is None else self._number[a] for a in node.args)
        self._args.append(args)
        head = (node.op, node.attrs, None if node.args else node.type)
        self._head.append(self._heads.setdefault(head, len(self._heads)))
        self._leader.append(number)
        self._edge.append(None)
        self._oldest[number], self._count[number] = number, 1
        if not self._enter(number):
            return
        self._touched[number] = None
        for a in dict.fromkeys(args):
            if a != _ABSENT:
                self._users.setdefault(self._root(a), []).append(number)

    def _enter(self, number: int) -> bool:
        """Make a term an e-node, or, where there is an equal one, one class with that."""
        key = self._key(number)
        same = self._table.setdefault(key, number)
        if same != number:
            self._merge(number, same, _CONGRUENT)
            return False
        self._current[number] = key
        return True

    def _key(self, number: int) -> Key:
        return (
            self._head[number],
            *(a if a == _ABSENT else self._root(a) for a in self._args[number]),
        )

    def _root(self, number: int) -> int:
        leader = self._leader
        while leader[number] != number:
            leader[number] = leader[leader[number]]
            number = leader[number]
        return number

    def _merge(self, a: int, b: int, reason: int) -> bool:
        ra, rb = self._root(a), self._root(b)
        if ra == rb:
            return False
        if self._terms[a].type != self._terms[b].type:
            raise GraphError("equal terms must have one type",
                             expected=self._terms[a].type, got=self._terms[b].type)  # fmt: skip
        if self._count[ra] > self._count[rb]:
            a, b, ra, rb = b, a, rb, ra
        self._hang(a, b, reason)
        self._leader[ra] = rb
        self._count[rb] += self._count.pop(ra)
        self._oldest[rb] = min(self._oldest[rb], self._oldest.pop(ra))
        self._touched[rb] = None
        moved = self._users.pop(ra, [])
        self._pending += moved
        self._users.setdefault(rb, []).extend(moved)
        return True

    def _hang(self, a: int, b: int, reason: int) -> None:
        """Turn the edges above `a` round, then hang it below `b`."""
        above = self._edge[a]
        self._edge[a] = (b, reason)
        while above is not None:
            parent, why = above
            above = self._edge[parent]
            self._edge[parent] = (a, why)
            a = parent

    def _rebuild(self) -> None:
        """Merge what has become congruent, until nothing is."""
        while self._pending:
            work, self._pending = self._pending, []
            for number in dict.fromkeys(work):
                if self._table.pop(self._current.pop(number, ()), number) != number:
                    raise AssertionError("two terms under one key")
                self._enter(number)

    def _path(self, a: int, b: int) -> list[tuple[int, int, int]]:
        """The edges between two terms of one tree of the proof forest."""
        seen: dict[int, int] = {a: 0}
        up: list[tuple[int, int, int]] = []
        at = a
        while (edge := self._edge[at]) is not None:
            up.append((at, *edge))
            at = edge[0]
            seen[at] = len(up)
        down: list[tuple[int, int, int]] = []
        at = b
        while at not in seen:
            edge = self._edge[at]
            assert edge is not None
            down.append((at, *edge))
            at = edge[0]
        return up[: seen[at]] + down


def representatives(classes: EGraph, nodes: Sequence[Node | None]) -> tuple[Node | None, ...]:
    """Representatives of the terms' classes, None for what is absent."""
    return tuple(None if n is None else classes.find(n) for n in nodes)
