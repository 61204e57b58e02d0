"""Well-formedness of graphs. Every graph that a test makes passes through here.

A graph is well formed if

    leaves      have one type and kind for each name; input leaves are listed, once, as inputs
    operators   are in the table, and their type is what their record infers from their operands
    opaques     list the types of their results, and their call refers to operands that exist
    items       take a result that their opaque node has
    updates     give a listed input or a parameter a value of its own type, once
    constants   have data, of their shape
    sizes       can satisfy all that the records demand of them at once
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

from whet.errors import GraphError, WhetError
from whet.ir.graph import LEAVES, Graph, Node
from whet.ir.ops import exists, result_type
from whet.ir.record import Guard
from whet.ir.text import print_graph
from whet.ir.types import Poly, Size, TensorType, substitute

_CONTEXT = 5  # lines shown on either side of a fault
_OPERAND = re.compile(r"%(\d+)")


def verify(graph: Graph, *, data: bool = True) -> Graph:
    """`graph` itself, if it is well formed.

    Args:
        data: whether constants must have their data; a graph read from text may be without.

    Raises:
        GraphError: it is not; the message shows the node with the lines around it.
    """
    checker = _Checker(graph)
    for node in graph.nodes:
        checker.node(node)
    checker.inputs()
    checker.updates()
    if data:
        checker.constants()
    checker.sizes()
    return graph


class _Checker:
    """One pass over a graph; each check raises at the first fault."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.leaves: dict[str, Node] = {}
        self.guards: list[tuple[Guard, Node]] = []

    def node(self, node: Node) -> None:
        if node.op in LEAVES:
            self._leaf(node)
        elif node.op == "opaque":
            self._opaque(node)
        elif node.op == "item":
            self._item(node)
        elif exists(node.op):
            self._operator(node)
        else:
            raise self._fault("a node of no known kind", node, got=node.op)

    def _leaf(self, node: Node) -> None:
        if not isinstance(node.attr("name"), str) or not node.name or node.args:
            raise self._fault("a leaf has a name and no operands", node)
        other = self.leaves.setdefault(node.name, node)
        if other is not node:
            raise self._fault(
                f"two leaves are called {node.name}", node,
                expected=f"{other.op} {other.type!r}", got=f"{node.op} {node.type!r}",
            )  # fmt: skip

    def _operator(self, node: Node) -> None:
        try:
            operands = [None if a is None else a.type for a in node.args]
            inferred = result_type(node.op, operands, node.attrs)
            self.guards += [(g, node) for g in node.instance.guards]
        except WhetError as fault:
            raise self._fault(
                f"{node.op} does not take these operands: {fault.summary}", node,
                expected=fault.expected, got=fault.got,
            ) from fault  # fmt: skip
        if inferred != node.type:
            raise self._fault(
                "a node's type is not what its record says", node, expected=inferred, got=node.type
            )

    def _opaque(self, node: Node) -> None:
        types, statics = node.attr("types"), node.attr("statics")
        listed = isinstance(types, tuple) and all(isinstance(t, TensorType) for t in types)
        if not (listed and types and isinstance(node.attr("target"), str)):
            raise self._fault("an opaque node states its target and its results' types", node)
        assert isinstance(types, tuple)
        if types[0] != node.type:
            raise self._fault(
                "an opaque node has the type of its first result", node,
                expected=types[0], got=node.type,
            )  # fmt: skip
        if None in node.args:
            raise self._fault("an operand of an opaque node is missing", node)
        named = [int(k) for k in _OPERAND.findall(str(statics))]
        if any(k >= len(node.args) for k in named):
            raise self._fault(
                "an opaque call refers to an operand that it does not have", node,
                expected=f"%0 … %{len(node.args) - 1}", got=f"%{max(named)}",
            )  # fmt: skip

    def _item(self, node: Node) -> None:
        source = node.args[0] if len(node.args) == 1 else None
        if source is None or source.op != "opaque":
            raise self._fault(
                "an item takes a result of an opaque node", node, got=source and source.op
            )
        types, index = source.attr("types"), node.attr("index")
        assert isinstance(types, tuple)
        if not isinstance(index, int) or not 0 <= index < len(types):
            raise self._fault(
                "an item's result does not exist", node,
                expected=f"0 … {len(types) - 1}", got=index,
            )  # fmt: skip
        if types[index] != node.type:
            raise self._fault(
                "an item has its result's type", node, expected=types[index], got=node.type
            )

    def inputs(self) -> None:
        graph = self.graph
        for n in graph.inputs:
            if n.op != "input":
                raise self._fault("only input leaves are inputs", n, expected="input", got=n.op)
        _once(graph.inputs, lambda n: self._fault("an input is listed twice", n))
        for n in graph.leaves("input"):
            if n not in graph.inputs:
                raise self._fault("an input leaf is not among the graph's inputs", n)

    def updates(self) -> None:
        for target, value in self.graph.updates:
            if target.op not in ("input", "parameter"):
                raise self._fault(
                    "only inputs and parameters are updated", target,
                    expected="input or parameter", got=target.op,
                )  # fmt: skip
            if target.op == "input" and target not in self.graph.inputs:
                raise self._fault("an updated input is not among the graph's inputs", target)
            if target.type != value.type:
                raise self._fault(
                    f"{target.name} is updated with a value of another type", value,
                    expected=target.type, got=value.type,
                )  # fmt: skip
        targets = [target for target, _ in self.graph.updates]
        _once(targets, lambda n: self._fault(f"{n.name} is updated twice", n))

    def constants(self) -> None:
        for n in self.graph.leaves("constant"):
            found = self.graph.constants.get(n.name)
            if found is None:
                raise self._fault(f"constant {n.name} has no data", n)
            shape = getattr(found, "shape", None)
            if shape is not None and tuple(shape) != n.shape:
                raise self._fault(
                    f"constant {n.name} has data of another shape", n,
                    expected=list(n.shape), got=list(shape),
                )  # fmt: skip

    def sizes(self) -> None:
        """Solve the records' demands on symbolic sizes one by one; a contradiction is a fault."""
        known: dict[str, Size] = {}
        for guard, node in self.guards:
            gap = _settled(guard.left - guard.right, known)
            if isinstance(gap, int):
                if gap != 0:
                    raise self._fault("sizes contradict each other", node, expected=guard)
                continue
            solved = _solved(gap)
            if solved is None:
                continue
            symbol, value = solved
            if isinstance(value, int) and value < 2:
                raise self._fault(
                    f"size {symbol} would have to be {value}", node,
                    expected="a symbolic size is at least 2", got=guard,
                )  # fmt: skip
            known[symbol] = value

    def _fault(self, summary: str, node: Node, **fields: object) -> GraphError:
        return GraphError(summary, where=excerpt(self.graph, node), **fields)


def excerpt(graph: Graph, node: Node, context: int = _CONTEXT) -> str:
    """The printed graph around a node, which is marked."""
    lines = print_graph(graph).splitlines()
    at = next((k for k, n in enumerate(graph.nodes) if n is node), len(lines) - 1)
    first, last = max(0, at - context), min(len(lines), at + context + 1)
    shown = [
        f"{'>' if k == at else ' '} {lines[k]}".replace("\t", "  ") for k in range(first, last)
    ]
    above = [f"  … {first} more above"] if first else []
    below = [f"  … {len(lines) - last} more below"] if last < len(lines) else []
    return "\n".join([*above, *shown, *below])


def _once(nodes: Iterable[Node], fault: Callable[[Node], GraphError]) -> None:
    seen: set[Node] = set()
    for n in nodes:
        if n in seen:
            raise fault(n)
        seen.add(n)


def _settled(size: Size, known: Mapping[str, Size]) -> Size:
    """`size` with solved symbols replaced, those in solutions too."""
    for _ in range(len(known) + 1):
        after = substitute(size, known)
        if after == size:
            break
        size = after
    return size


def _solved(gap: Poly) -> tuple[str, Size] | None:
    """(symbol, value) such that `gap == 0`, where a symbol stands alone in it."""
    for monomial, coefficient in gap.terms:
        if len(monomial) == 1 and isinstance(monomial[0], str) and abs(coefficient) == 1:
            symbol = monomial[0]
            rest = (gap - Poly({monomial: coefficient})) * -coefficient
            if not isinstance(rest, Poly) or symbol not in rest.symbols():
                return symbol, rest
    return None
