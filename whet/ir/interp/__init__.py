"""Reference semantics: what a graph computes, read off the operators' records.

    evaluate(graph, feeds)                  outputs in float64
    evaluate(graph, feeds, FIELD)           the same modulo a large prime
    run_instance(instance, operands)        one operator

torch serves as an array library only: nothing here calls an operator of the same name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from whet.errors import GraphError, InputError, UnsupportedError
from whet.ir import ops
from whet.ir.expr import loads
from whet.ir.graph import Graph, Node
from whet.ir.interp.body import Body
from whet.ir.interp.ring import FIELD, FLOAT32, FLOAT64, NATIVE, PRIME, Ring, sample
from whet.ir.interp.value import expand
from whet.ir.kind import kind_of
from whet.ir.record import Instance, Let, Slots
from whet.ir.types import DType, Poly, Size, substitute

__all__ = [
    "FIELD",
    "FLOAT32",
    "FLOAT64",
    "NATIVE",
    "PRIME",
    "Library",
    "Ring",
    "evaluate",
    "evaluate_all",
    "evaluate_nodes",
    "run_instance",
    "sample",
]

Library = Callable[[Node, list[Tensor]], Sequence[Tensor]]
_DTYPES: Mapping[torch.dtype, DType] = {getattr(torch, d.value): d for d in DType}


def evaluate(
    graph: Graph,
    feeds: Mapping[str, Tensor],
    ring: Ring = FLOAT64,
    library: Library | None = None,
) -> tuple[Tensor, ...]:
    """The outputs of `graph`.

    Args:
        graph: sizes may be symbolic; the feeds' shapes then say what they are.
        feeds: a tensor for each input and parameter that is used, by leaf name.
        ring: where numbers live. In `FLOAT64` and `FLOAT32` every float type becomes that one; in
            `NATIVE` each value is rounded to its own type; in `FIELD` float tensors hold residues.
        library: computes opaque nodes: gets the node and its operands, gives all its results.

    Returns:
        Tensors of the nodes' types. They may share memory with each other and with the feeds.

    Raises:
        InputError: a leaf has no tensor, or one of another shape.
        UnsupportedError: there are opaque nodes and no library.
    """
    return evaluate_all(graph, feeds, ring, library)[0]


def evaluate_all(
    graph: Graph,
    feeds: Mapping[str, Tensor],
    ring: Ring = FLOAT64,
    library: Library | None = None,
) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Outputs, and the new values of updated leaves by name. Arguments as for `evaluate`."""
    data = {**_constants(graph), **feeds}
    values = evaluate_nodes(graph, data, ring, library, graph.results)
    outputs = tuple(values[n] for n in graph.outputs)
    return outputs, {leaf.name: values[n] for leaf, n in graph.updates}


@torch.no_grad()
def evaluate_nodes(
    graph: Graph,
    feeds: Mapping[str, Tensor],
    ring: Ring,
    library: Library | None,
    wanted: Sequence[Node],
) -> dict[Node, Tensor]:
    """The values of some nodes; every other value is dropped after its last use."""
    data = {**_constants(graph), **feeds}
    used = _reachable(graph, wanted)
    sizes = _sizes(used, data)
    pending = dict.fromkeys(used, 0)
    for n in used:
        for a in n.operands:
            pending[a] += 1
    for n in wanted:
        pending[n] += 1
    values: dict[Node, list[Tensor]] = {}
    for n in used:
        values[n] = _node(n, values, data, ring, library, sizes, graph)
        for a in n.operands:
            pending[a] -= 1
            if not pending[a]:
                del values[a]
    return {n: values[n][0] for n in wanted}


def _constants(graph: Graph) -> dict[str, Tensor]:
    return {k: v for k, v in graph.constants.items() if isinstance(v, Tensor)}


def _reachable(graph: Graph, wanted: Sequence[Node]) -> list[Node]:
    need = set(wanted)
    for n in reversed(graph.nodes):
        if n in need:
            need.update(n.operands)
    return [n for n in graph.nodes if n in need]


def _sizes(nodes: Sequence[Node], data: Mapping[str, Tensor]) -> dict[str, Size]:
    """Values of symbolic sizes, read off the leaves that have such a size alone in a dim."""
    found: dict[str, Size] = {}
    for n in nodes:
        if n.is_leaf and n.name in data:
            for size, actual in zip(n.shape, data[n.name].shape, strict=False):
                if isinstance(size, Poly) and len(size.symbols()) == 1:
                    (name,) = size.symbols()
                    if size == Poly.symbol(name):
                        found.setdefault(name, actual)
    return found


def _node(
    n: Node,
    values: Mapping[Node, list[Tensor]],
    data: Mapping[str, Tensor],
    ring: Ring,
    library: Library | None,
    sizes: Mapping[str, Size],
    graph: Graph,
) -> list[Tensor]:
    """All results of one node."""
    if n.is_leaf:
        return [_leaf(n, data, ring, sizes)]
    if n.op == "item":
        return [values[n.operands[0]][int(str(n.attr("index")))]]
    operands = [None if a is None else values[a][0] for a in n.args]
    if n.op == "opaque":
        if library is None:
            raise UnsupportedError(
                f"no library computes {n.attr('target')}",
                where=graph.where.get(n), hint="give evaluate a library for opaque nodes",
            )  # fmt: skip
        types = n.attr("types")
        assert isinstance(types, tuple)
        found = library(n, [x for x in operands if x is not None])
        return [ring.store(t, kind.dtype) for t, kind in zip(found, types, strict=True)]
    shapes = tuple(None if x is None else tuple(x.shape) for x in operands)
    attrs = tuple((k, _concrete(v, sizes)) for k, v in n.attrs)
    instance = ops.instance(n.op, shapes, attrs)
    try:
        out = str(n.attr("out", instance.outs[0]))
        return [run_instance(instance, operands, ring, out, n.dtype)]
    except InputError as fault:
        where = graph.where.get(n) or n
        raise InputError(
            f"{n.op}: {fault.summary}", expected=fault.expected, got=fault.got, where=where
        ) from None


def _leaf(n: Node, data: Mapping[str, Tensor], ring: Ring, sizes: Mapping[str, Size]) -> Tensor:
    if n.name not in data:
        raise InputError(
            f"{n.op} {n.name} has no value", expected=n.type, got=", ".join(data) or "nothing"
        )
    t = data[n.name].detach()
    want = tuple(substitute(s, sizes) for s in n.shape)
    if want != tuple(t.shape):
        raise InputError(
            f"{n.op} {n.name} has another shape", expected=list(n.shape), got=list(t.shape)
        )
    return ring.store(t, n.dtype)


def _concrete(value: object, sizes: Mapping[str, Size]) -> object:
    if isinstance(value, Poly):
        return value.substitute(sizes)
    if isinstance(value, tuple):
        return tuple(_concrete(v, sizes) for v in value)
    return value


def run_instance(
    instance: Instance,
    operands: Mapping[str, Tensor] | Sequence[Tensor | None],
    ring: Ring = FLOAT64,
    out: str | None = None,
    dtype: DType | None = None,
) -> Tensor:
    """One result of one operator.

    Args:
        instance: of concrete sizes.
        operands: by name, or in the record's order with None for an operand left out.
        ring: where numbers live.
        out: which result; the first by default.
        dtype: its element type, where that does not follow from the operands'.

    Raises:
        GraphError: sizes are symbolic.
        InputError: an index that is read from an operand is out of range.
    """
    out = out or instance.outs[0]
    if not isinstance(operands, Mapping):
        present = [t for t in operands if t is not None]
        operands = dict(zip(instance.operands, present, strict=True))
    tensors = {name: _atomic(operands[name], instance, s) for name, s in instance.operands.items()}
    span = {a: (0, _int(n, instance)) for a, n in instance.extents.items()}
    width = ring.compute([t.dtype for t in tensors.values()])
    kinds = {name: _DTYPES[t.dtype] for name, t in tensors.items()}
    for let in _needed(instance, out):
        value = Body(ring, tensors, span, let.axes, width).value(let.body)
        t = expand(value, let.axes, [span[a][1] for a in let.axes])
        kind = kind_of(instance, let.name, kinds)
        if let.name == out:
            kind = dtype or kind
        elif kind.is_float and width == torch.float64 and let.name not in instance.results:
            kind = DType.f64  # positions made of indices alone are as fine as the data
        tensors[let.name] = ring.store(t, kind)
    return _shaped(tensors[out], instance, instance.results[out])


def _needed(instance: Instance, out: str) -> list[Let]:
    """The assignments that `out` depends on, in order."""
    need = {out}
    kept: list[Let] = []
    for let in reversed(instance.lets):
        if let.name in need:
            need.update(x.tensor for x in loads(let.body))
            kept.append(let)
    return kept[::-1]


def _int(size: Size, instance: Instance) -> int:
    if isinstance(size, Poly):
        raise GraphError(
            "only instances of concrete sizes can be evaluated",
            got=f"size {size}", where=instance,
        )  # fmt: skip
    return size


def _atomic(t: Tensor, instance: Instance, slots: Slots) -> Tensor:
    """An operand with one dim for each atomic axis; broadcast dims of size 1 vanish."""
    sizes = [_int(instance.extents[a], instance) for a in slots.flat]
    return t.detach().permute(slots.dims).reshape(sizes)


def _shaped(t: Tensor, instance: Instance, slots: Slots) -> Tensor:
    """A result from atomic axes to its own dims."""
    sizes = []
    for axes in slots.axes:
        size = 1
        for a in axes:
            size *= _int(instance.extents[a], instance)
        sizes.append(size)
    inverse = [slots.dims.index(d) for d in range(len(slots.dims))]
    return t.reshape(sizes).permute(inverse)
