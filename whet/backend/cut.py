"""A graph's body cut into pieces: library calls where they were chosen, loops for the rest.

    reshape, permute, slice, …     no piece: the same memory, seen otherwise
    concat, stack                  no piece where its operands can be written in their places
    anchor + epilogue              the library's call, as far as it covers the cluster
    any other node                 its loops, over memory as it lies

Images flow with their channels last where a library wants them so, and stay that way through what
does not care. Where two calls disagree, a copy stands between them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate

import torch

from whet.backend import aten, shim
from whet.backend.cluster import Cluster, clusters
from whet.backend.lowered import body_nodes
from whet.backend.naive import naive
from whet.backend.packed import Kernel, kernels
from whet.backend.piece import (
    Body,
    Library,
    Packed,
    Piece,
    Strides,
    Value,
    channels_last,
    dense,
    has_channels_last,
    same_strides,
)
from whet.errors import UnsupportedError
from whet.fuse.partition import Cluster as Closed
from whet.fuse.partition import Group, Partition, cluster
from whet.ir.graph import Graph, Node, apply, item

JOINS = frozenset({"concat", "stack"})  # operands side by side along an axis; theirs, or a new one
WITHOUT = aten.VIEWS | JOINS  # what takes no kernel, for the most part
_ALONE = WITHOUT | {"opaque", "item"}  # what no kernel takes along
Operands = tuple[Value | Packed, ...]
Choose = Callable[[Cluster, list[Kernel]], Kernel]
Make = Callable[[Closed, Operands, tuple[Value, ...]], Piece | None]


def cut(
    graph: Graph,
    choose: Choose,
    partition: Partition | None = None,
    make: Make | None = None,
) -> Body:
    """The body of a graph as pieces.

    Args:
        graph: over concrete shapes.
        choose: which library kernel runs a cluster.
        partition: groups that may become one kernel each; each node by itself where there is none.
        make: a group's kernel, given its closed graph, its operands as they lie and its results as
            they are to lie; None where a library or the nodes' own loops shall run it.

    Raises:
        UnsupportedError: something in it has neither a library call from C nor loops.
    """
    cutting = _Cutting(graph, choose)
    if partition is not None and make is not None:
        return cutting.grouped(partition, make)
    return cutting.body()


class _Cutting:
    def __init__(self, graph: Graph, choose: Choose) -> None:
        self.graph, self.choose = graph, choose
        self.make: Make | None = None
        self.inside = body_nodes(graph)
        self.hidden: set[Node] = set()  # inside of a library call
        self.calls: dict[Node, tuple[Cluster, Kernel]] = {}
        self.values: dict[Node, Value | Packed] = {}
        self.items: dict[Node, Value] = {}  # results of library calls without a record
        self.copies: dict[Value, Value] = {}
        self.views: dict[Value, tuple[Value, int]] = {}
        self.given: set[Value] = set()  # by libraries: memory that is not ours to choose
        self.pieces: list[Piece] = []
        self.within: Mapping[Node, tuple[Node, int]] = {}
        self.placed: dict[Node, Value] = {}  # concatenations whose layout is decided

    def body(self) -> Body:
        """Each node by itself, library calls with what they cover."""
        self._choose(self.inside)
        self.within = _within(self.graph, self.inside, self.calls.keys() | self.hidden)
        inputs = self._inputs()
        for node in self.graph.nodes:
            if node not in self.values and node not in self.hidden:
                self.values[node] = self._value(node)
        return self._finished(inputs)

    def grouped(self, partition: Partition, make: Make) -> Body:
        """The groups of a partition, each by its kernel where it has one."""
        self.make = make
        self.within = _within(self.graph, (n for g in partition.groups for n in g.nodes), ())
        inputs = self._inputs()
        for node in self.graph.nodes:
            if node not in self.inside or not node.args:
                self.values.setdefault(node, Packed(node))
        rows = zip(partition.groups, partition.clusters, partition.results, strict=True)
        for group, closed, wanted in rows:
            (first, *more) = group.nodes
            if not more and not group.copies and first.op in WITHOUT:
                self.values[first] = self._value(first)
                continue
            if self._made(group, closed, make):
                continue
            self._choose(group.members)
            for run in self._runs(group):
                self._run(run, wanted, make)
        return self._finished(inputs)

    def _runs(self, group: Group) -> Iterator[list[Node]]:
        """A group's nodes that are still to be computed: calls and views alone, others together."""
        run: list[Node] = []
        for node in self.graph.nodes if group.copies else group.nodes:
            if node not in group.members or node in self.hidden or node in self.values:
                continue
            if node not in self.calls and node.op not in _ALONE:
                run.append(node)
                continue
            yield from [run] if run else []
            yield [node]
            run = []
        yield from [run] if run else []

    def _run(self, run: list[Node], wanted: Sequence[Node], make: Make) -> None:
        """What a library leaves of a group is a group of its own."""
        if run[0] not in self.calls and run[0].op not in _ALONE:
            users = self.graph.users
            read = [n for n in run if n in wanted or any(u not in run for u in users[n])]
            if self._made(Group(tuple(run)), cluster(Group(tuple(run)), read, self.inside), make):
                return
        for node in run:
            self.values[node] = self._value(node)

    def _made(self, group: Group, closed: Closed, make: Make) -> bool:
        """A group's own kernel, if it has one."""
        operands = tuple(self.values[n] for n in closed.leaves)
        results = tuple(self._home(n, _lying(n, closed, operands)) for n in closed.results)
        piece = make(closed, operands, results)
        if piece is not None:
            self.pieces.append(replace(piece, nodes=(*group.copies, *group.nodes)))
            self.values.update(zip(closed.results, results, strict=True))
        return piece is not None

    def _choose(self, nodes: frozenset[Node]) -> None:
        """Library calls for the clusters among these nodes."""
        for c in clusters(self.graph, nodes).values():
            kept = tuple(itertools.takewhile(nodes.__contains__, c.nodes))
            operands = Cluster(kept).operands
            constant = (k for k, a in enumerate(operands) if a is not None)
            fixed = frozenset(k for k in constant if operands[k] not in self.inside)
            part = Cluster(kept, fixed)
            kernel = self.choose(part, kernels(part))
            self.hidden.update(kept[: kernel.covers - 1])
            self.calls[kept[kernel.covers - 1]] = part, kernel

    def _inputs(self) -> tuple[Value, ...]:
        inputs = tuple(Value(leaf) for leaf in self.graph.inputs)
        self.values.update(zip(self.graph.inputs, inputs, strict=True))
        return inputs

    def _finished(self, inputs: tuple[Value, ...]) -> Body:
        results = tuple(self._result(n) for n in self.graph.results)
        return Body(inputs, tuple(self.pieces), results, self.views)

    def _value(self, node: Node) -> Value | Packed:
        if node not in self.inside or not node.args:
            return Packed(node)
        if node in self.calls:
            return self._library(*self.calls[node])
        if node.op == "opaque":
            return self._opaque(node)
        if node.op == "item":
            return self.items[node]
        if node.op in aten.VIEWS and (seen := self._view(node)) is not None:
            return seen
        if node.op in JOINS:
            return self._join(node)
        return self._loops(node)

    # -- calls ------------------------------------------------------------------------------------
    def _library(self, cluster: Cluster, kernel: Kernel) -> Value:
        places = iter(range(len(cluster.operands)))

        def place(a: Node) -> Value | Packed:
            k = next(p for p in places if cluster.operands[p] is a)
            value = self.values[a]
            if isinstance(value, Packed):
                return value
            return self._as(value, shim.wanted(cluster, kernel, k, value))

        try:
            piece, _ = shim.piece(cluster, kernel, place)
        except UnsupportedError:
            if kernel.covers != 1:
                raise
            return self._loops(cluster.anchor)
        self.pieces.append(piece)
        (result,) = piece.results
        if isinstance(piece.call, Library) and piece.call.gives:
            self.given.add(result)
        return result

    def _opaque(self, node: Node) -> Value:
        """A call as it was written down; its results are the items of it."""
        types = node.attr("types")
        assert isinstance(types, tuple)
        several = len(types) > 1
        results = [Value(item(node, k) if several else node) for k in range(len(types))]
        operands: list[Value | Packed | None] = []
        for a in node.operands:
            value = self.values[a]
            operands.append(
                value if isinstance(value, Packed) else self._as(value, dense(value.shape))
            )
        self.pieces.append(shim.opaque(node, operands, results))
        self.given.update(results)
        self.items |= {v.node: v for v in results}
        return results[0]

    def _loops(self, node: Node) -> Value:
        operands = tuple(self._lying(a) for a in node.operands)
        result = self._home(node, _flow(node, operands))
        self.pieces.append(_constants(naive(node, operands, result), self.values))
        return result

    def _lying(self, a: Node) -> Value:
        value = self.values[a]
        return Value(a) if isinstance(value, Packed) else value

    def _as(self, value: Value, strides: Strides) -> Value:
        """The value in that layout, copied where it lies otherwise."""
        wanted = Value(value.node, strides)
        if same_strides(value.shape, value.strides, strides):
            if wanted != value:
                self.views.setdefault(wanted, (value, 0))
            return wanted
        if wanted not in self.copies:
            self._copy(value, wanted)
            self.copies[wanted] = wanted
        return wanted

    def _copy(self, source: Value, target: Value) -> None:
        """A piece that copies; to the operator table, a change to the same type."""
        node = apply("cast", source.node, dtype=source.node.dtype)
        made = naive(node, (source,), target)
        self.pieces.append(Piece((), made.operands, made.results, made.call))

    # -- memory that is shared --------------------------------------------------------------------
    def _view(self, node: Node) -> Value | None:
        """The node as another look at its operand's memory, or None where there is none."""
        (source,) = node.operands
        value = self.values[source]
        if isinstance(value, Packed):
            return None
        kind = aten.torch_dtype(source.dtype)
        seen = torch.empty_strided(value.shape, value.strides, dtype=kind, device="meta")
        found = aten.call(node, [seen])
        if found.untyped_storage()._cdata != seen.untyped_storage()._cdata:
            return None
        made = Value(node, tuple(found.stride()))
        self.views[made] = (value, int(found.storage_offset()) * (source.dtype.bits // 8))
        return made

    def _join(self, node: Node) -> Value:
        """Operands that do not lie in their places yet are copied there."""
        operands = [self.values[a] for a in node.operands]
        flow = _flow(node, [v for v in operands if isinstance(v, Value)])
        whole = self.placed.get(node) or self._home(node, flow)
        self.placed[node] = whole
        for a, offset in zip(node.operands, _offsets(node), strict=True):
            part = _Part.at(a, node, whole, offset)
            value = self._lying(a)
            if self.views.get(value) == (whole, part.offset) and value == part.value:
                continue  # written there by whoever made it
            twin = apply("cast", a, dtype=a.dtype)  # the copy is another value than the original
            target = Value(_place(twin, node, offset), part.value.strides)
            self.views[target] = (whole, part.offset)
            copied = self._copied(twin, a, target) or naive(twin, (value,), target)
            piece = Piece((node,), copied.operands, (target,), copied.call)
            self.pieces.append(_constants(piece, self.values))
        return whole

    def _copied(self, twin: Node, a: Node, target: Value) -> Piece | None:
        """A copy by a kernel of its own."""
        if self.make is None:
            return None
        closed = cluster(Group((twin,)), (twin,), self.inside)
        return self.make(closed, (self.values[a],), (target,))

    def _home(self, node: Node, strides: Strides) -> Value:
        """Where a node's value is written: by itself, or in its place within a concatenation."""
        if node not in self.within:
            return Value(node, strides)
        parent, offset = self.within[node]
        whole = self.placed.get(parent)
        if whole is None:
            shape = Value(parent).shape
            images = len(shape) == len(node.shape) > 3
            last = images and strides == channels_last(Value(node).shape)
            whole = self._home(parent, channels_last(shape) if last else dense(shape))
            self.placed[parent] = whole
        part = _Part.at(node, parent, whole, offset)
        self.views[part.value] = (whole, part.offset)
        return part.value

    def _result(self, node: Node) -> Value | Packed:
        value = self.values[node]
        return value if isinstance(value, Packed) else self._as(value, dense(value.shape))


class _Part:
    """A slice of a concatenation."""

    def __init__(self, value: Value, offset: int) -> None:
        self.value, self.offset = value, offset

    @classmethod
    def at(cls, a: Node, node: Node, whole: Value, offset: int) -> _Part:
        """`a`'s part of what `node` joins, `offset` along its axis."""
        axis = int(str(node.attr("axis"))) % len(whole.strides)
        step = whole.strides[axis] * (a.dtype.bits // 8)
        own = whole.strides
        if len(a.shape) < len(own):  # the axis is new
            own = (*own[:axis], *own[axis + 1 :])
        return cls(Value(a, own), offset * step)


def _offsets(node: Node) -> list[int]:
    axis = int(str(node.attr("axis"))) % len(node.shape)
    new = [len(a.shape) < len(node.shape) for a in node.operands]
    sizes = [1 if n else int(str(a.shape[axis])) for a, n in zip(node.operands, new, strict=True)]
    return [0, *accumulate(sizes)][:-1]


def _within(
    graph: Graph, inside: Iterable[Node], library: Iterable[Node]
) -> dict[Node, tuple[Node, int]]:
    """Nodes that can be written into their place in a larger value: which, and where along it."""
    kept, body = set(library), set(inside)
    found: dict[Node, tuple[Node, int]] = {}
    for node in graph.nodes:
        if node.op not in JOINS or node not in body:
            continue
        for a, offset in zip(node.operands, _offsets(node), strict=True):
            plain = a in body and not a.is_leaf and bool(a.args)
            movable = plain and a not in kept and a.op not in aten.VIEWS
            if movable and a not in found and node.operands.count(a) == 1 and a.dtype == node.dtype:
                found[a] = (node, offset)
    return found


def _flow(node: Node, operands: Iterable[Value]) -> Strides:
    """The result's layout: channels last where all images among the operands are."""
    shape = Value(node).shape
    images = [v for v in operands if len(v.shape) == len(shape) > 3]
    if images and all(has_channels_last(v.shape, v.strides) for v in images):
        return channels_last(shape)
    same = [v.strides for v in images if v.shape == shape]
    if images and len(same) == len(images) and same[0] == channels_last(shape):
        return same[0]
    return dense(shape)


def _lying(n: Node, closed: Closed, operands: Operands) -> Strides:
    """A group's result: channels last where filters make images, or where it is read so off what is
    none; else as the operands lie."""
    shape = Value(n).shape
    if len(shape) == 4 and any(len(p.shape) == 4 for p in closed.graph.parameters):
        return channels_last(shape)
    values = [v for v in operands if isinstance(v, Value)]
    if len(shape) == 4 and not any(len(v.shape) == 4 for v in values):
        made = closed.graph.results[closed.results.index(n)]
        return channels_last(shape) if _last(made) else dense(shape)
    return _flow(n, values)


def _last(node: Node) -> bool:
    """Whether an image has its channels in front only because it was permuted so."""
    while node.args and len(node.shape) == 4:
        if node.op == "permute":
            return node.attr("dims") == (0, 3, 1, 2)
        node = next((a for a in node.operands if len(a.shape) == 4), node.operands[0])
    return False


def _constants(piece: Piece, values: dict[Node, Value | Packed]) -> Piece:
    """The piece with constants where its operands are such; constants lie row-major."""
    operands = tuple(
        known if isinstance(v, Value) and isinstance(known := values.get(v.node), Packed) else v
        for v in piece.operands
    )
    return Piece(piece.nodes, operands, piece.results, piece.call, piece.inplace)


def _place(twin: Node, whole: Node, offset: int) -> Node:
    """The node of a copy into a place: two places may take the same operand."""
    axis = int(str(whole.attr("axis"))) % len(whole.shape)
    if len(twin.shape) < len(whole.shape):
        return apply("select", whole, axis=axis, index=offset)
    size = int(str(twin.shape[axis]))
    return apply("slice", whole, axis=axis, start=offset, stop=offset + size, step=1)
