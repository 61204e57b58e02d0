"""What an operator costs at least: arithmetic operations, and bytes really touched.

    FLOPs   one for each arithmetic operation, function and combination of a reduction, at every
            point of the axes that it depends on: a product of matrices costs 2*M*N*K. Arithmetic
            on indices is free. Guards that pick points out count those points only: a running sum
            is linear, a scatter as long as what it adds.
    bytes   of each operand the elements that some index reaches, once; of results every element

Both are sizes: symbolic where the shapes are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from whet.ir import expr as ex
from whet.ir.expr import LOGIC, Call, Expr, Index, Load, Num, Reduce, Select, free
from whet.ir.graph import Graph, Node
from whet.ir.record import Instance, Let
from whet.ir.types import Size, divide, floordiv, product

# Pairs of values of an index that are listed one by one to see which elements they reach.
_LISTED = 1 << 16


@dataclass(frozen=True, slots=True)
class Cost:
    """Work of one node or graph: operations, and bytes of memory read and written."""

    flops: Size
    bytes: Size


def flops(instance: Instance, outs: Sequence[str] | None = None) -> Size:
    """Arithmetic operations that some results (all by default) of an operator take."""
    total: Size = 0
    for let in _needed(instance, outs or instance.outs):
        total = total + _operations(let.body, instance, _Points(instance))
    return total


class _Points:
    """Number of points of some axes, given what guards leave of them."""

    def __init__(
        self,
        instance: Instance,
        dropped: frozenset[str] = frozenset(),
        shares: tuple[Size, ...] = (),
    ) -> None:
        self.instance, self.dropped, self.shares = instance, dropped, shares

    def of(self, axes: Iterable[str]) -> Size:
        left = product(self.instance.extents[a] for a in sorted(set(axes) - self.dropped))
        return floordiv(left, product(self.shares)) if self.shares else left

    def within(self, e: Reduce) -> _Points:
        """Points inside a reduction: its guards may leave one value of an axis, or one in n."""
        dropped, shares = set(self.dropped), list(self.shares)
        for test in _guards(e.body):
            match test:
                case Call("==", (Call("%", (_, Num(n))), Num(0))) if isinstance(n, int):
                    shares.append(n)
                case Call("==", (a, b)):
                    for axis, at in ((a, b), (b, a)):
                        if isinstance(axis, Index) and axis.name not in free(at):
                            dropped.add(axis.name)
                            break
                case Call("<" | "<=", (Index(a), Index(b))) if (a in e.axes) != (b in e.axes):
                    if self.instance.extents[a] == self.instance.extents[b]:
                        summed, kept = (a, b) if a in e.axes else (b, a)
                        if not any(kept in free(x) for x in ex.loads(e.body)):
                            dropped.add(summed)
                case Call("<", (at, bound)) if (tiled := _interval(at, bound, e)) is not None:
                    dropped.add(tiled)
        return _Points(self.instance, frozenset(dropped), tuple(shares))


def _guards(e: Expr) -> Iterable[Expr]:
    """The conjuncts that the body of a reduction stands under."""
    if isinstance(e, Select):
        stack = [e.test]
        while stack:
            test = stack.pop()
            if isinstance(test, Call) and test.fn == "and":
                stack += test.args
            else:
                yield test
        yield from _guards(e.then)
    elif isinstance(e, Call) and e.fn in ("*", "/"):
        for x in e.args:
            yield from _guards(x)


def _interval(at: Expr, bound: Expr, e: Reduce) -> str | None:
    """`i < f(h)` with `i` summed: the windows of adaptive pooling, which tile the axis."""
    if isinstance(at, Index) and at.name in e.axes and not isinstance(bound, (Index, Num)):
        over = free(bound)
        if len(over) == 1 and not over & set(e.axes):
            return next(iter(over))
    return None


def _operations(e: Expr, instance: Instance, points: _Points) -> Size:
    total: Size = 0
    match e:
        case Load():
            return 0
        case Reduce(_, axes, body) if any(ex.loads(body)):
            inside = points.within(e)
            return inside.of(free(e) | set(axes)) + _operations(body, instance, inside)
        case Call(fn, _) if fn not in LOGIC and any(ex.loads(e)):
            total = points.of(free(e))
    for child in ex.children(e):
        total = total + _operations(child, instance, points)
    return total


def _needed(instance: Instance, outs: Sequence[str]) -> list[Let]:
    need = set(outs)
    kept: list[Let] = []
    for let in reversed(instance.lets):
        if let.name in need:
            need.update(x.tensor for x in ex.loads(let.body))
            kept.append(let)
    return kept


# -- bytes -----------------------------------------------------------------------------------------
def touched(instance: Instance, operand: str, outs: Sequence[str] | None = None) -> Size:
    """How many elements of an operand are read at least once, guards aside."""
    most: Size = 0
    for let in _needed(instance, outs or instance.outs):
        for load in ex.loads(let.body):
            if load.tensor == operand:
                most = _larger(most, _reached(load, instance))
    return most


def _reached(load: Load, instance: Instance) -> Size:
    """Elements that one load reaches: no more than there are, no more than it has points."""
    reached = product(
        _image(i, n, instance) for i, n in zip(load.index, instance.sizes(load.tensor), strict=True)
    )
    axes = sorted(frozenset().union(*(free(i) for i in load.index)))
    return _smaller(reached, product(instance.extents[a] for a in axes))


def _image(e: Expr, size: Size, instance: Instance) -> Size:
    """How many of 0 … size-1 an index takes as its value."""
    axes = sorted(free(e))
    extents = [instance.extents[a] for a in axes]
    points = product(extents)
    form = ex.affine(e)
    if form is None:
        return _smaller(size, points) if any(ex.loads(e)) else size
    if not isinstance(points, int) or not isinstance(size, int) or points > _LISTED:
        return _smaller(size, points)
    constant, values = form[1], {0}
    if not isinstance(constant, int):
        return size
    for a, c in form[0].items():
        extent = instance.extents[a]
        if not (isinstance(c, int) and isinstance(extent, int)):
            return size
        values = {v + c * k for v in values for k in range(extent)}
    return sum(0 <= v + constant < size for v in values)


def _smaller(a: Size, b: Size) -> Size:
    """The smaller of two sizes; of symbolic ones that which divides the other, else the second."""
    if isinstance(a, int) and isinstance(b, int):
        return min(a, b)
    return a if divide(b, a) is not None else b


def _larger(a: Size, b: Size) -> Size:
    if isinstance(a, int) and isinstance(b, int):
        return max(a, b)
    return b if a == 0 or divide(b, a) is not None else a


def traffic(node: Node) -> tuple[tuple[Size, ...], Size]:
    """Bytes read of each operand that is present, and bytes written.

    An opaque node is taken to read and write everything; leaves and items cost nothing.
    """
    if node.is_leaf or node.op == "item":
        return (0,) * len(node.operands), 0
    if node.op == "opaque":
        types = node.attr("types")
        assert isinstance(types, tuple)
        written: Size = 0
        for t in types:
            written = written + t.nbytes
        return tuple(a.type.nbytes for a in node.operands), written
    instance = node.instance
    outs = [str(node.attr("out", instance.outs[0]))]
    reads = tuple(
        touched(instance, name, outs) * (a.dtype.bits // 8)
        for name, a in zip(instance.operands, node.operands, strict=True)
    )
    return reads, node.type.nbytes


def bytes_moved(node: Node) -> Size:
    """Bytes that a node reads and writes, each element once."""
    reads, total = traffic(node)
    for n in reads:
        total = total + n
    return total


def node_cost(node: Node) -> Cost:
    """FLOPs and bytes of one node; an opaque node's FLOPs are not known and count as none."""
    if node.is_leaf or node.op in ("opaque", "item"):
        return Cost(0, bytes_moved(node))
    instance = node.instance
    return Cost(flops(instance, [str(node.attr("out", instance.outs[0]))]), bytes_moved(node))


def graph_cost(graph: Graph) -> Cost:
    """FLOPs and bytes of a whole graph, every node on its own.

    Nodes that are results of one operator application share its work: it counts once.
    """
    groups: dict[object, list[Node]] = {}
    for n in graph.nodes:
        if not n.is_leaf:
            attrs = tuple(kv for kv in n.attrs if kv[0] != "out")
            groups.setdefault((n.op, n.args, attrs), []).append(n)
    work: Size = 0
    moved: Size = 0
    for nodes in groups.values():
        first = nodes[0]
        if first.op in ("opaque", "item"):
            moved = moved + sum((bytes_moved(n) for n in nodes), start=0)
            continue
        instance = first.instance
        outs = [str(n.attr("out", instance.outs[0])) for n in nodes]
        work = work + flops(instance, outs)
        for name, a in zip(instance.operands, first.operands, strict=True):
            moved = moved + touched(instance, name, outs) * (a.dtype.bits // 8)
        for n in nodes:
            moved = moved + n.type.nbytes
    return Cost(work, moved)


def graph_floor(graph: Graph) -> Cost:
    """What no program for the graph can do without: its FLOPs as written, each leaf read once as
    far as its users reach into it, each result written once."""
    moved: Size = 0
    reached: dict[Node, Size] = {}
    for n in graph.nodes:
        for a, read in zip(n.operands, traffic(n)[0], strict=True):
            if a.is_leaf:
                reached[a] = reached.get(a, 0) + read
    for leaf, read in reached.items():
        moved = moved + _smaller(leaf.type.nbytes, read)
    for n in dict.fromkeys(graph.results):
        if not n.is_leaf:
            moved = moved + n.type.nbytes
    return Cost(graph_cost(graph).flops, moved)
