"""A cluster to its naive kernel, from operator records alone.

    cluster    a Graph: its leaves are read, its results written
    stage      one assignment of a record, or one reduction within it: a buffer, and a perfect nest
               of loops around one store (and one more around an update, for a reduction)

    y[*b, o] = sum[k](x[*b, k] * w[o, k]) + v[o]         becomes

    for b, o: r[b, o] = 0
    for b, o: for k: r[b, o] += x[b, k] * w[o, k]
    for b, o: y[b, o] = r[b, o] + v[o]

Stage follows stage, each over its whole domain, all in memory: nothing is fused, and everything can
be. A reduction's buffer has the axes that its body depends on, no others. Values of nodes are
indexed by their dims (a composite axis `(g, c)` is the index `g*C + c`), what is inside a record by
its atomic axes. Axes of extent 1 have no loop. What lies outside a tensor is said by conditions,
which are gone where they always hold.

Names follow from structure: x0, x1, … are the leaves in order, y0, y1, … the results, t0, t1, … the
rest; a loop is called by its buffer and axis. Clusters that compute the same get equal kernels,
whatever their leaves are called.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from whet.errors import UnsupportedError
from whet.ir import expr as ex
from whet.ir.expr import Expr, Index, Load, Num, Reduce, Select
from whet.ir.graph import Graph, Node
from whet.ir.kind import kind_of
from whet.ir.nest import integral
from whet.ir.ops import exists
from whet.ir.record import Instance, Let, Slots
from whet.ir.types import DType, Size
from whet.kernel.affine import inside, simplify
from whet.kernel.loops import Buffer, Extent, Kernel, Loop, Stmt, Store, Update, check

NARROW = (DType.bf16, DType.f16)  # what is inside a record is kept wider


def operands(cluster: Graph) -> tuple[Node, ...]:
    """The leaves that a cluster's kernel takes, in order: inputs, then parameters and constants."""
    rest = (n for kind in ("parameter", "constant") for n in cluster.leaves(kind))
    return tuple(dict.fromkeys((*cluster.inputs, *rest)))


def results(cluster: Graph) -> tuple[Node, ...]:
    """The values that a cluster's kernel writes, in order, each once."""
    return tuple(dict.fromkeys(cluster.results))


def lower(cluster: Graph) -> Kernel:
    """The naive kernel of a cluster.

    Raises:
        UnsupportedError: a node has no record, a size is symbolic, or an element type is complex.
    """
    return _Lowering(cluster).kernel()


class _Lowering:
    def __init__(self, cluster: Graph) -> None:
        self.cluster = cluster
        self.leaves = operands(cluster)
        self.results = results(cluster)
        self.wide = DType.f32
        if any(n.dtype is DType.f64 for n in cluster.nodes):
            self.wide = DType.f64
        self.buffers: dict[str, Buffer] = {}
        self.names: dict[object, str] = {}  # buffers of nodes, and of assignments within them
        self.siblings: dict[object, dict[str, Node]] = {}  # one call's results, as nodes
        for node in cluster.nodes:
            if exists(node.op):
                self.siblings.setdefault(_call(node), {})[_out(node)] = node
        self.body: list[Stmt] = []
        self.temporaries = 0

    def kernel(self) -> Kernel:
        for k, leaf in enumerate(self.leaves):
            self.names[leaf] = self._buffer(f"x{k}", _shape(leaf), leaf.dtype, "in")
        for node in self.cluster.nodes:
            if node not in self.names:
                self._node(node)
        for k, node in enumerate(self.results):
            if node in self.leaves:
                self._copy(node, f"y{k}")
        ranked = sorted(self.buffers.values(), key=lambda b: (_ORDER[b.role], int(b.name[1:])))
        return check(Kernel(tuple(ranked), tuple(self.body)))

    # -- buffers -----------------------------------------------------------------------------------
    def _buffer(self, name: str, sizes: Sequence[int], dtype: DType, role: str) -> str:
        if dtype is DType.c64:
            raise UnsupportedError("complex numbers have no kernels")
        self.buffers[name] = Buffer(name, tuple(sizes), dtype, role)
        return name

    def _temporary(self, sizes: Sequence[int], dtype: DType) -> str:
        self.temporaries += 1
        dtype = self.wide if dtype in NARROW else dtype
        return self._buffer(f"t{self.temporaries - 1}", sizes, dtype, "memory")

    def _home(self, node: Node) -> str:
        if node in self.results:
            place = self.results.index(node)
            return self._buffer(f"y{place}", _shape(node), node.dtype, "out")
        self.temporaries += 1
        return self._buffer(f"t{self.temporaries - 1}", _shape(node), node.dtype, "memory")

    def _copy(self, node: Node, name: str) -> None:
        shape = _shape(node)
        self._buffer(name, shape, node.dtype, "out")
        index = tuple(Index(f"{name}_d{k}") for k in range(len(shape)))
        value = Load(self.names[node], index)
        axes = {f"d{k}": n for k, n in enumerate(shape)}
        self._nest(name, axes, Store(name, index, value))

    # -- stages ------------------------------------------------------------------------------------
    def _node(self, node: Node) -> None:
        """Every assignment that the node needs, as far as no other node has computed it."""
        if not exists(node.op):
            raise UnsupportedError("a library call has no loops", got=node.attr("target", node.op))
        instance = node.instance
        present = list(zip(instance.operands, node.operands, strict=True))
        reads = {n: _Read(self.names[a], instance.operands[n]) for n, a in present}
        types = {n: a.dtype for n, a in present}
        kinds = dict(types)
        siblings = self.siblings[_call(node)]
        for let in _needed(instance, _out(node)):
            home = siblings.get(let.name)
            kinds[let.name] = home.dtype if home else kind_of(instance, let.name, types)
            slots = instance.results[let.name] if home else None
            key = home or (*_call(node), let.name)
            if key not in self.names:
                if home is not None:
                    name = self._home(home)
                else:
                    sizes = [_int(instance.extents[a]) for a in let.axes]
                    kind = kinds[let.name]
                    name = self._temporary(sizes, self.wide if kind.is_float else kind)
                _Stage(self, instance, reads, kinds, let).write(name, slots)
                self.names[key] = name
            reads[let.name] = _Read(self.names[key], slots)

    def _nest(self, prefix: str, axes: Mapping[str, int], leaf: Stmt) -> None:
        """Loops around a statement, which already speaks of the loops' variables."""
        for axis, extent in reversed(list(axes.items())):
            leaf = Loop(f"{prefix}_{axis}", extent, (leaf,))
        self.body.append(leaf)


class _Read:
    """How a record's tensor is read: a buffer, and its slots where that is indexed by dims."""

    __slots__ = ("buffer", "slots")

    def __init__(self, buffer: str, slots: Slots | None) -> None:
        self.buffer, self.slots = buffer, slots


class _Stage:
    """One assignment of a record."""

    def __init__(
        self,
        lowering: _Lowering,
        instance: Instance,
        reads: Mapping[str, _Read],
        kinds: Mapping[str, DType],
        let: Let,
    ) -> None:
        self.lowering, self.instance, self.let = lowering, instance, let
        self.reads, self.kinds = reads, kinds
        self.extents = {a: _int(n) for a, n in instance.extents.items()}

    def write(self, name: str, slots: Slots | None) -> None:
        """The assignment, to a buffer indexed by dims where there are slots."""
        axes = tuple(map(Index, self.let.axes))
        index = axes if slots is None else self.dims(slots, axes)
        body, home = self.let.body, self.lowering.buffers[name]
        if isinstance(body, Reduce) and home.is_scratch and home.dtype is self._kind(body):
            used = ex.free(body)
            if all(a in used or self.extents[a] == 1 for a in self.let.axes):
                self._sum(name, self.let.axes, index, body, None)
                return
        self.emit(name, self.let.axes, Store(name, index, self.value(body, None)))

    def emit(self, prefix: str, axes: Sequence[str], leaf: Store | Update) -> None:
        """A nest over record axes around a statement that speaks of them."""
        looped = [a for a in axes if self.extents[a] != 1]
        names: dict[str, Expr] = {a: Num(0) for a in axes if self.extents[a] == 1}
        names |= {a: Index(f"{prefix}_{a}") for a in looped}
        domain: dict[str, Extent] = {f"{prefix}_{a}": self.extents[a] for a in looped}

        def named(e: Expr) -> Expr:
            return simplify(ex.substitute(e, names), domain)

        index, value = tuple(map(named, leaf.index)), named(leaf.value)
        new: Stmt = (
            Store(leaf.buffer, index, value)
            if isinstance(leaf, Store)
            else Update(leaf.buffer, index, leaf.how, value)
        )
        self.lowering._nest(prefix, {a: self.extents[a] for a in looped}, new)

    def dims(self, slots: Slots, index: Sequence[Expr]) -> tuple[Expr, ...]:
        """An index over atomic axes as one over dims; a dim that is broadcast is 0."""
        found: list[Expr] = [Num(0)] * len(slots.dims)
        rest = iter(index)
        for axes, dim in zip(slots.axes, slots.dims, strict=True):
            total: Expr = Num(0)
            for a in axes:
                total = ex.call("*", total, Num(self.extents[a]))
                total = ex.call("+", total, next(rest))
            found[dim] = total
        return tuple(found)

    def value(self, e: Expr, only: Expr | None) -> Expr:
        """`e` over buffers, its reductions made stages; `only` says where the value is seen."""
        match e:
            case Num(value) if not isinstance(value, (int, float)):
                raise UnsupportedError("a size is symbolic", got=value)
            case Load(tensor, index, outside):
                return self._load(tensor, tuple(self.value(i, only) for i in index), outside, only)
            case Reduce():
                return self._reduce(e, only)
            case Select(test, then, other):
                test = self.value(test, only)
                taken = test if only is None else ex.call("and", only, test)
                other_taken: Expr = ex.call("not", test)
                if only is not None:
                    other_taken = ex.call("and", only, other_taken)
                return ex.select(test, self.value(then, taken), self.value(other, other_taken))
        return ex.rebuild(e, lambda x: self.value(x, only))

    def _load(
        self, tensor: str, index: tuple[Expr, ...], outside: Expr | None, only: Expr | None
    ) -> Expr:
        read = self.reads[tensor]
        slots = read.slots
        sizes = [_int(n) for n in self.instance.sizes(tensor)]
        element = Load(read.buffer, index if slots is None else self.dims(slots, index))
        if outside is None:
            return element
        tests: list[Expr] = []
        for i, n in zip(index, sizes, strict=True):
            if not inside(i, n, self.extents):
                tests += [ex.call("<=", ex.ZERO, i), ex.call("<", i, Num(n))]
        if not tests:
            return element
        test = tests[0]
        for t in tests[1:]:
            test = ex.call("and", test, t)
        return ex.select(test, element, self.value(outside, only))

    def _reduce(self, e: Reduce, only: Expr | None) -> Expr:
        """A stage for the reduction; gives what reads its result."""
        if only is not None and self._safe(e):
            only = None
        used = ex.free(e) | (frozenset() if only is None else ex.free(only))
        order = dict.fromkeys((*self.let.axes, *self.extents))
        axes = [a for a in order if a in used]
        name = self.lowering._temporary([self.extents[a] for a in axes], self._kind(e))
        index = tuple(map(Index, axes))
        self._sum(name, axes, index, e, only)
        return Load(name, index)

    def _kind(self, e: Reduce) -> DType:
        """What a reduction is accumulated in."""
        return DType.i64 if integral(e, self.kinds) else self.lowering.wide

    def _sum(
        self, name: str, axes: Sequence[str], index: tuple[Expr, ...], e: Reduce, only: Expr | None
    ) -> None:
        value, start = self.value(e.body, only), neutral(e.kind, integral(e, self.kinds))
        if only is not None:
            value = ex.select(only, value, start)
        self.emit(f"{name}i", axes, Store(name, index, start))
        self.emit(name, (*axes, *e.axes), Update(name, index, e.kind, value))

    def _safe(self, e: Expr) -> bool:
        """Does every read in `e` stay inside its tensor, wherever it is evaluated?"""
        return all(
            load.outside is not None or inside(i, _int(n), self.extents)
            for load in ex.loads(e)
            for i, n in zip(load.index, self.instance.sizes(load.tensor), strict=True)
        )


def _out(node: Node) -> str:
    """Which of its operator's results a node is."""
    return str(node.attr("out") or node.instance.outs[0])


def _call(node: Node) -> tuple[object, ...]:
    """Equal for nodes that are results of one call."""
    return (node.op, node.args, tuple(p for p in node.attrs if p[0] != "out"))


def _needed(instance: Instance, out: str) -> list[Let]:
    """The assignments that a result depends on, in order."""
    need, kept = {out}, []
    for let in reversed(instance.lets):
        if let.name in need:
            need.update(x.tensor for x in ex.loads(let.body))
            kept.append(let)
    return kept[::-1]


_ORDER = {"in": 0, "out": 1, "memory": 2}


def neutral(kind: str, whole: bool) -> Expr:
    """What a reduction starts from."""
    value = ex.REDUCTIONS[kind]
    if math.isinf(value) and whole:
        return Num(2**63 - 1 if value > 0 else -(2**63 - 1))
    return Num(int(value) if whole else value)


def _shape(node: Node) -> tuple[int, ...]:
    return tuple(map(_int, node.shape))


def _int(size: Size) -> int:
    if not isinstance(size, int):
        raise UnsupportedError("kernels have concrete sizes", got=size)
    return size
