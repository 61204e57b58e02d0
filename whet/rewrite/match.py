"""A match, and what it does to a graph.

The finder is not trusted: the left side is built from the bindings, and what is built must be the
roots themselves (nodes are hash-consed); only then is the proven right side put in their place.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from whet.errors import GraphError, RecordError
from whet.ir.graph import Graph, Node, rebuilt, topological
from whet.ir.types import DType
from whet.rewrite import formula
from whet.rewrite.bounds import reads_outside
from whet.rewrite.conjecture import build
from whet.rewrite.formula import ConjectureError
from whet.rewrite.rule import Rule
from whet.rewrite.syntax import Pattern


@dataclass(frozen=True)
class Match:
    """A rule's left side, found.

    Attributes:
        rule: what is proven.
        tensors: node of each tensor variable.
        scope: sizes, groups and attributes by name.
        roots: the nodes that the left side's outputs are.
        own: the literals' own nodes.
        flipped: commutative applications whose operands stand the other way round.
        element: element type of literals, where it is not that of the first root.
        backward: found is the right side of the statement, and its left side is to be put there.
    """

    rule: Rule
    tensors: Mapping[str, Node | None]
    scope: Mapping[str, object]
    roots: tuple[Node, ...]
    own: Mapping[Pattern, Node] = field(default_factory=dict)
    flipped: frozenset[Pattern] = frozenset()
    backward: bool = False
    element: DType | None = None

    @property
    def patterns(self) -> tuple[Pattern, ...]:
        """The side that was found."""
        sides = self.rule.statement.sides
        return sides.right if self.backward else sides.left

    @functools.cached_property
    def left(self) -> tuple[Node, ...]:
        """The side that was found, built from the bindings: the roots, if this is a match."""
        return build(self.patterns, self.tensors, self.scope, self.dtype, self.own, self.flipped)

    @functools.cached_property
    def right(self) -> tuple[Node, ...]:
        """The other side, built from the bindings: what takes the roots' place."""
        sides = self.rule.statement.sides
        other = sides.left if self.backward else sides.right
        return build(other, self.tensors, self.scope, self.dtype)

    @property
    def dtype(self) -> DType:
        """Element type of literals."""
        return self.element or self.roots[0].dtype

    @property
    def assumes(self) -> tuple[str, ...] | None:
        """What the rule's condition asks of symbolic sizes here, as comparisons of them: guards of
        whatever is built on this match. None where it does not hold."""
        return formula.assumed(self.rule.statement.conjecture.condition, self.scope)

    def fault(self) -> str | None:
        """Why this is no match, or None."""
        try:
            if self.left != self.roots:
                return "the left side is not what stands in the graph"
        except (RecordError, ConjectureError, ArithmeticError) as fault:
            return _reason(fault)
        unfounded = self.unfounded()
        if unfounded is not None:
            return unfounded
        if len(self.roots) > 1:
            below = set(topological(n for n in self.tensors.values() if n is not None))
            if below & set(self.roots):
                return "an operand depends on a result"
        return "nothing changes" if self.right == self.roots else None

    def unfounded(self) -> str | None:
        """Why the rule's proof does not say that both sides are equal here, or None."""
        try:
            if [n.type for n in self.right] != [n.type for n in self.left]:
                return "the right side has another type"
            if self.assumes is None:
                return "the condition does not hold"
        except (RecordError, ConjectureError, ArithmeticError) as fault:
            return _reason(fault)
        if not self.rule.proof.moves_only:
            dtypes = {n.dtype for n in self.tensors.values() if n is not None}
            if dtypes != {self.dtype} or not self.dtype.is_float:
                return "the rule is proven for real numbers, and for one precision at a time"
        if any(map(reads_outside, self.fresh)):
            return "the right side reads outside its operands"
        return None

    @functools.cached_property
    def fresh(self) -> tuple[Node, ...]:
        """Nodes of the right side down to the bound tensors, those excluded; roots last."""
        stop = {n for n in self.tensors.values() if n is not None}
        done: dict[Node, None] = {}
        stack = [(n, False) for n in reversed(self.right)]
        while stack:
            node, ready = stack.pop()
            if node in stop or node in done:
                continue
            if ready:
                done[node] = None
                continue
            stack.append((node, True))
            stack.extend((a, False) for a in reversed(node.operands))
        return tuple(done)

    def __str__(self) -> str:
        return f"{self.rule.name} at {', '.join(r.digest[:8] for r in self.roots)}"


def _reason(fault: Exception) -> str:
    return str(fault.args[0]) if fault.args else "a side cannot be built"


def apply_match(graph: Graph, match: Match) -> Graph:
    """`graph` with the right side of `match` in place of its roots.

    Raises:
        GraphError: it is no match, or not one in this graph.
    """
    return apply_matches(graph, (match,))


def apply_matches(graph: Graph, group: Sequence[Match]) -> Graph:
    """`graph` with all of a group's roots replaced at once, inside each other's operands too.

    Raises:
        GraphError: one of them is no match.
    """
    return applied(graph, group)[0]


def applied(graph: Graph, group: Sequence[Match]) -> tuple[Graph, Mapping[Node, Node]]:
    """`apply_matches`, and what each node has become: those of the graph that are still needed, and
    those that the matches bring.

    Raises:
        GraphError: one of them is no match.
    """
    mapping: dict[Node, Node] = {}
    present = set(graph.nodes)
    for m in group:
        fault = m.fault()
        if fault is None and not set(m.roots) <= present:
            fault = "its roots are not in the graph"
        if fault is not None:
            raise GraphError(f"cannot apply {m}", got=fault, where=m.rule.statement.text)
        mapping.update((a, b) for a, b in zip(m.roots, m.right, strict=True) if a is not b)
    return replaced(graph, mapping)


def replaced(graph: Graph, mapping: Mapping[Node, Node]) -> tuple[Graph, Mapping[Node, Node]]:
    """Every root replaced, also where another root's replacement reads it; what each node of the
    graph that is still needed has become."""
    new: dict[Node, Node] = {}
    order = _order(graph, mapping)
    for node in order:
        if node in mapping:
            new[node] = new[mapping[node]]
        else:
            new[node] = rebuilt(node, [None if a is None else new[a] for a in node.args])
    where = dict(graph.where)
    for node in order:
        line = graph.where.get(node)
        if line is not None:
            stack = [new[node]]
            while stack:
                n = stack.pop()
                if n not in where and not n.is_leaf:
                    where[n] = line
                    stack += n.operands
    after = Graph(
        graph.inputs,
        tuple(new[o] for o in graph.outputs),
        tuple((a, new[b]) for a, b in graph.updates),
        graph.constants,
        where,
    )
    return after, new


def _order(graph: Graph, mapping: Mapping[Node, Node]) -> list[Node]:
    """Everything that is needed, operands first, where a root needs its replacement alone."""
    done: dict[Node, None] = {}
    active: set[Node] = set()
    stack = [(n, False) for n in reversed((*graph.inputs, *graph.results))]
    while stack:
        node, ready = stack.pop()
        if node in done:
            continue
        if ready:
            active.discard(node)
            done[node] = None
            continue
        if node in active:
            raise GraphError("replacements depend on each other in a circle", where=node)
        active.add(node)
        stack.append((node, True))
        needs = (mapping[node],) if node in mapping else node.operands
        stack.extend((n, False) for n in reversed(needs) if n not in done)
    return list(done)
