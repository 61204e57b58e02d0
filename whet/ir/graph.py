"""The graph: immutable, hash-consed nodes over the operator table.

    Graph := inputs, outputs, updates            updates: an input's value after the call
    Node  := leaf | operator(args, attrs) | opaque(args, statics) | item(opaque, index)
    leaf  := input(name) | parameter(name) | constant(name)

Equal nodes are the same object, so nodes compare by identity and shared work is shared by
construction. A node's `digest` says the same across processes. A node has one value: an operator
with several results takes the attribute `out`, a library call with several is one `opaque` node
with an `item` node for each result. Only constants are folded unasked: a parameter may change.

There are no effects: capture functionalizes, and random operators take their state as operands.
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from whet.errors import GraphError, RecordError
from whet.ir.ops import exists, instance, result_type
from whet.ir.record import Instance
from whet.ir.types import DType, Poly, TensorType

LEAVES = ("input", "parameter", "constant")
Attrs = tuple[tuple[str, object], ...]


class Node:
    """One value of a graph. Make nodes with `apply`, `leaf`, `full`, `opaque` and `item`.

    Attributes:
        op: name in the operator table, or "input", "parameter", "constant", "opaque", "item".
        attrs: (name, value) pairs sorted by name.
        args: operands; None stands for an optional operand that is left out.
        operands: those that are present.
        type: element type and shape.
        digest: 32 hexadecimal digits; equal exactly for nodes that compute the same expression.
    """

    __slots__ = ("__weakref__", "args", "attrs", "digest", "op", "operands", "type")
    op: str
    attrs: Attrs
    args: tuple[Node | None, ...]
    operands: tuple[Node, ...]
    type: TensorType
    digest: str

    def __init__(self, *_: object) -> None:
        raise TypeError("make nodes with apply, leaf, full, opaque or item")

    @property
    def is_leaf(self) -> bool:
        return self.op in LEAVES

    @property
    def dtype(self) -> DType:
        return self.type.dtype

    @property
    def shape(self) -> tuple[int | Poly, ...]:
        return self.type.shape

    def attr(self, name: str, default: object = None) -> object:
        """One attribute by name."""
        return next((v for k, v in self.attrs if k == name), default)

    @property
    def name(self) -> str:
        """A leaf's name."""
        return str(self.attr("name", ""))

    @property
    def instance(self) -> Instance:
        """The operator's record at this node's shapes. Raises `RecordError` for other nodes."""
        if not exists(self.op):
            raise RecordError(f"a node of kind {self.op} has no record")
        return instance(
            self.op, tuple(None if a is None else a.shape for a in self.args), self.attrs
        )

    def __repr__(self) -> str:
        parts = ["None" if a is None else a.digest[:6] for a in self.args]
        parts += [f"{k}={attr_text(v)}" for k, v in self.attrs]
        return f"{self.digest[:6]}: {self.type!r} = {self.op}({', '.join(parts)})"

    def __reduce__(self) -> tuple[object, ...]:
        return _make, (self.op, self.attrs, self.args, self.type)


_INTERN: weakref.WeakValueDictionary[str, Node] = weakref.WeakValueDictionary()


def _make(op: str, attrs: Attrs, args: tuple[Node | None, ...], type: TensorType) -> Node:
    text = "|".join(
        [
            op,
            ",".join("-" if a is None else a.digest for a in args),
            ",".join(f"{k}={attr_text(v)}" for k, v in attrs),
            repr(type),
        ]
    )
    digest = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
    found = _INTERN.get(digest)
    if found is not None:
        return found
    node = object.__new__(Node)
    for name, value in (
        ("op", op),
        ("attrs", attrs),
        ("args", args),
        ("operands", tuple(a for a in args if a is not None) if None in args else args),
        ("type", type),
        ("digest", digest),
    ):
        setattr(node, name, value)
    return _INTERN.setdefault(digest, node)


def attr_text(value: object) -> str:
    """An attribute's value as text; parsed back by `whet.ir.text`."""
    match value:
        case DType():
            return f"dtype.{value.name}"
        case TensorType():
            return f"type({value.dtype.name!r}, {attr_text(value.shape)})"
        case Poly():
            return f"size({str(value)!r})"
        case tuple():
            inner = ", ".join(map(attr_text, value))
            return f"({inner},)" if len(value) == 1 else f"({inner})"
        case float():
            return repr(value)
        case bool() | int() | str() | None:
            return repr(value)
    raise GraphError(
        "an attribute must be plain data",
        expected="int, float, bool, str, None, DType, size, TensorType or a tuple of these",
        got=f"{value!r} of type {type(value).__name__}",
    )


def leaf(kind: str, name: str, type: TensorType) -> Node:
    """An input, parameter or constant.

    Raises:
        GraphError: `kind` is none of `LEAVES`.
    """
    if kind not in LEAVES:
        raise GraphError("unknown kind of leaf", expected=", ".join(LEAVES), got=kind)
    return _make(kind, (("name", name),), (), type)


def apply(op: str, *args: Node | None, **attrs: object) -> Node:
    """An operator of the table applied to nodes; the result's type is inferred.

    Raises:
        RecordError: no such operator, or operands and attributes do not fit its record.
        GraphError: an attribute that is not plain data.
    """
    pairs = tuple(sorted(attrs.items()))
    try:
        inferred = result_type(op, [None if a is None else a.type for a in args], pairs)
    except TypeError:
        for _, value in pairs:  # a list, say, where a tuple was meant
            attr_text(value)
        raise
    return _make(op, pairs, args, inferred)


def full(value: float, dtype: DType, size: tuple[int | Poly, ...] = ()) -> Node:
    """A literal number, of any shape."""
    return apply("full", size=size, value=value, dtype=dtype)


def opaque(
    target: str,
    args: Sequence[Node],
    statics: str,
    types: Sequence[TensorType],
) -> Node:
    """A library call that has no record, carried through untouched.

    Args:
        target: the library's name of it, e.g. "aten.topk.default".
        args: tensor operands in the order that `statics` refers to them.
        statics: the whole call as text, operands as %0, %1, …, readable by the backend.
        types: type of each result. With several, use `item` to get at them.
    """
    attrs = (("statics", statics), ("target", target), ("types", tuple(types)))
    return _make("opaque", attrs, tuple(args), types[0])


def item(node: Node, index: int) -> Node:
    """Result `index` of an opaque call."""
    types = node.attr("types")
    assert isinstance(types, tuple)
    return _make("item", (("index", index),), (node,), types[index])


def rebuilt(node: Node, args: Iterable[Node | None]) -> Node:
    """`node` over other operands, its type inferred again."""
    new = tuple(args)
    if new == node.args:
        return node
    if exists(node.op):
        return apply(node.op, *new, **dict(node.attrs))
    if node.op == "item":
        assert new[0] is not None
        return item(new[0], int(str(node.attr("index"))))
    return _make(node.op, node.attrs, new, node.type)


def topological(roots: Iterable[Node]) -> tuple[Node, ...]:
    """Every node below `roots`, operands first; iterative, stable."""
    done: dict[Node, None] = {}
    stack: list[tuple[Node, bool]] = [(r, False) for r in reversed(list(roots))]
    while stack:
        node, ready = stack.pop()
        if node in done:
            continue
        if ready:
            done[node] = None
            continue
        stack.append((node, True))
        stack.extend((a, False) for a in reversed(node.operands) if a not in done)
    return tuple(done)


@dataclass(frozen=True)
class Graph:
    """A closed program: what goes in, what comes out.

    Attributes:
        inputs: input leaves in calling order; some may be unused.
        outputs: results in order; a node may stand there twice.
        updates: an input or parameter leaf and its value after the call (functionalized mutation).
        constants: data of the constant leaves by name; opaque to the graph.
        where: the user's source line of a node, as "file:line: code", where it is known.
    """

    inputs: tuple[Node, ...]
    outputs: tuple[Node, ...]
    updates: tuple[tuple[Node, Node], ...] = ()
    constants: Mapping[str, object] = field(default_factory=dict, compare=False)
    where: Mapping[Node, str] = field(default_factory=dict, compare=False)

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """All nodes, operands before users."""
        updates = (n for pair in self.updates for n in pair)
        return topological((*self.inputs, *self.outputs, *updates))

    @cached_property
    def users(self) -> Mapping[Node, tuple[Node, ...]]:
        """The nodes that read each node (outputs do not count)."""
        found: dict[Node, list[Node]] = {n: [] for n in self.nodes}
        for n in self.nodes:
            for a in dict.fromkeys(n.operands):
                found[a].append(n)
        return {n: tuple(u) for n, u in found.items()}

    @property
    def results(self) -> tuple[Node, ...]:
        """Outputs and updated values: everything that must be computed."""
        return (*self.outputs, *(n for _, n in self.updates))

    def leaves(self, kind: str) -> tuple[Node, ...]:
        """Leaves of one kind, in first-use order."""
        return tuple(n for n in self.nodes if n.op == kind)

    @property
    def parameters(self) -> tuple[Node, ...]:
        return self.leaves("parameter")

    @cached_property
    def digest(self) -> str:
        """Stable across processes; equal for equal graphs."""
        parts = [n.digest for n in (*self.inputs, *self.outputs)]
        parts += [f"{a.digest}>{b.digest}" for a, b in self.updates]
        text = f"{len(self.inputs)}:" + ",".join(parts)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def replace(self, mapping: Mapping[Node, Node]) -> Graph:
        """This graph with nodes replaced, everywhere at once; new nodes inherit source lines.

        Replacements are not looked into: what stands in a replacement stays as it is.
        """
        return self.rewrite(lambda node, _: mapping.get(node))

    def rewrite(self, rule: Callable[[Node, tuple[Node | None, ...]], Node | None]) -> Graph:
        """Rebuild bottom-up: `rule(node, new operands)` gives the new node, or None to keep it."""
        new: dict[Node, Node] = {}
        where = dict(self.where)
        for node in self.nodes:
            args = tuple(None if a is None else new[a] for a in node.args)
            made = rule(node, args)
            new[node] = rebuilt(node, args) if made is None else made
            if node in self.where and new[node] is not node:
                for n in _fresh(new[node], where):
                    where[n] = self.where[node]
        return Graph(
            self.inputs,
            tuple(new[o] for o in self.outputs),
            tuple((a, new[b]) for a, b in self.updates),
            self.constants,
            where,
        )

    def __repr__(self) -> str:
        from whet.ir.text import print_graph

        return print_graph(self)


def _fresh(root: Node, known: Mapping[Node, str]) -> Iterator[Node]:
    """`root` and the unplaced operators right below it, as far as they are new."""
    stack = [root]
    while stack:
        node = stack.pop()
        if node.is_leaf or node in known:
            continue
        yield node
        stack.extend(node.operands)
