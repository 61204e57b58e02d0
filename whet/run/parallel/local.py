"""One rank's part of a node as a call.

    bind(node, choice, mesh, coords) → Local := Call | (assignment, Call, combined over axes)*
    meant(node, choice, mesh, coords) → Meant     the same as a text: a node, or a record

What a part computes is the operator's record over that part. Where this is the record of the same
operator at the part's sizes, torch's call of it is used; else (positions count from elsewhere, a
table's other rows, a mean over more than the part) the record itself is evaluated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from whet.backend import aten
from whet.backend.gradient import Siblings, gradient
from whet.errors import WhetError
from whet.ir import expr as ex
from whet.ir.graph import Node, apply, leaf
from whet.ir.interp import NATIVE, run_instance
from whet.ir.record import Instance, Slots
from whet.ir.types import DType, TensorType
from whet.parallel.choice import SUMS, Choice, cuts_of, instance_of, out_of
from whet.parallel.cut import known, needed, part_of, prepared
from whet.parallel.parts import Coords, number
from whet.parallel.sharding import Axes

Tensors = Sequence[Tensor | None]


@dataclass(frozen=True, slots=True)
class Let:
    """One assignment of a record.

    Attributes:
        name: of the value it makes.
        call: of the operands and of earlier assignments, by name.
        combine: (how, axis of the mesh) after it, in order.
    """

    name: str
    call: Callable[[Mapping[str, Tensor]], Tensor]
    combine: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Local:
    """How one rank computes its part of a node.

    Attributes:
        names: of the present operands, in order.
        call: of the operands in order; None where values inside are combined on the way.
        lets: of these, the assignments; the last is the result.
        native: it is torch's own call.
    """

    names: tuple[str, ...]
    call: Callable[[Tensors], Tensor] | None
    lets: tuple[Let, ...] = ()
    native: bool = False


def bind(
    node: Node, choice: Choice, mesh: Axes, coords: Coords, siblings: Siblings | None = None
) -> Local:
    """The call for one rank.

    Args:
        siblings: what gradients of one call share.
        mesh: with the axis of microbatches.
        coords: of the rank, and the microbatch.
    """
    if node.op in ("opaque", "item"):
        return Local(
            tuple(str(k) for k in range(len(node.operands))),
            lambda xs: aten.call(node, list(xs)),
            native=True,
        )
    part = _part(node, choice, mesh, coords)
    out = out_of(node, instance_of(node))
    names = tuple(part.operands)
    if choice.inner:
        return Local(names, None, _lets(node, part, out, choice))
    fast = _native(node, part, choice, mesh, siblings or Siblings())
    if fast is not None:
        return Local(names, fast, native=True)
    slim = _slim(part, out)
    wanted = [k for k, name in enumerate(names) if name in slim.operands]

    def call(xs: Tensors) -> Tensor:
        given = {names[k]: x for k in wanted if (x := xs[k]) is not None}
        return run_instance(slim, given, NATIVE, out, node.dtype)

    return Local(names, call)


def _part(node: Node, choice: Choice, mesh: Axes, coords: Coords) -> Instance:
    """The record over a rank's part."""
    instance, sizes, cuts = instance_of(node), dict(mesh), cuts_of(node)
    local: dict[str, int] = {}
    for m, a, _ in choice.cuts:
        if a != SUMS[0]:
            local[a] = local.get(a, known(instance.extents[a])) // sizes[m]
    begin: dict[str, int] = {}
    for _, a, _ in choice.cuts:
        if a in cuts and cuts[a].offset:
            axes = [k for k, b, _ in choice.cuts if b == a]
            begin[a] = number(axes, coords, mesh) * local[a]
    return part_of(instance, local, begin) if local else instance


def _slim(part: Instance, out: str) -> Instance:
    """A record with the operands alone that a result reads."""
    used = {x.tensor for let in needed(part, out) for x in ex.loads(let.body)}
    return replace(part, operands={k: s for k, s in part.operands.items() if k in used})


@dataclass(frozen=True, slots=True)
class Step:
    """One record of a part.

    Attributes:
        instance: with the operands alone that it reads.
        out: the assignment that it makes.
        dtype: of it, where that does not follow from what is read.
        combine: (how, axis of the mesh) behind it, in order.
    """

    instance: Instance
    out: str
    dtype: DType | None
    combine: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Meant:
    """What one rank computes of a node.

    Attributes:
        node: the operator at the part's sizes, over inputs `operand0`, …; None where no operator
            says it.
        names: of the present operands, in order, as `steps` call them.
        steps: else its records, the last one the result.
    """

    node: Node | None
    names: tuple[str, ...] = ()
    steps: tuple[Step, ...] = ()


def meant(node: Node, choice: Choice, mesh: Axes, coords: Coords) -> Meant:
    """The part of a rank without a call of any library; arguments as for `bind`."""
    read = all(w is not None for w in choice.operands)
    if node.op in ("opaque", "item") or (read and not choice.cuts):
        return Meant(node)
    part = _part(node, choice, mesh, coords)
    names, out = tuple(part.operands), out_of(node, instance_of(node))
    if choice.inner:
        return Meant(None, names, tuple(_steps(node, part, out, choice)))
    if read:
        found = _same(node, part, choice, mesh)
        if found is not None:
            return Meant(found[0])
    return Meant(None, names, (Step(_slim(part, out), out, node.dtype),))


def _steps(node: Node, part: Instance, out: str, choice: Choice) -> Iterator[Step]:
    """The assignments one by one, each with what is combined behind it."""
    inner: dict[str, list[tuple[str, str]]] = {}
    for name, how, axis, _, _ in choice.inner:
        inner.setdefault(name, []).append((how, axis))
    slots = dict(part.operands)
    for let in needed(part, out):
        used = {x.tensor for x in ex.loads(let.body)}
        last = let.name == out
        if last and let.name in used:
            raise WhetError("a result that is read again cannot be cut", where=node)
        shape = Slots(tuple((a,) for a in let.axes), tuple(range(len(let.axes))))
        single = replace(
            part, outs=(let.name,), lets=(let,),
            results={let.name: part.results[out] if last else shape},
            operands={k: s for k, s in slots.items() if k in used},
        )  # fmt: skip
        dtype = node.dtype if last else None
        yield Step(single, let.name, dtype, tuple(inner.get(let.name, ())))
        slots[let.name] = shape


def _lets(node: Node, part: Instance, out: str, choice: Choice) -> tuple[Let, ...]:
    """The same as calls."""

    def call(step: Step) -> Callable[[Mapping[str, Tensor]], Tensor]:
        return lambda tensors: run_instance(
            step.instance, {k: tensors[k] for k in step.instance.operands}, NATIVE, step.out,
            step.dtype,
        )  # fmt: skip

    return tuple(Let(s.out, call(s), s.combine) for s in _steps(node, part, out, choice))


def _native(
    node: Node, part: Instance, choice: Choice, mesh: Axes, siblings: Siblings
) -> Callable[[Tensors], Tensor] | None:
    """torch's call of the same operator at the part's sizes, if that is what the part computes."""
    named = aten.has_call(node) and all(w is not None for w in choice.operands)
    if not named and gradient(node, siblings) is None:
        return None
    if not choice.cuts:
        return _row(node, node.args, siblings)
    found = _same(node, part, choice, mesh)
    return None if found is None else _row(*found, siblings)


def _same(
    node: Node, part: Instance, choice: Choice, mesh: Axes
) -> tuple[Node, Sequence[Node | None]] | None:
    """The same operator at the part's sizes, over leaves, if that is what the part computes."""
    sizes = dict(mesh)
    args: list[Node | None] = []
    operands = iter(zip(part.operands.values(), choice.operands, strict=True))
    for k, a in enumerate(node.args):
        if a is None:
            args.append(None)
            continue
        slots, want = next(operands)
        shape = tuple(map(known, a.shape))
        if want is not None:
            shape = want.shape(shape, sizes)
        else:  # it is not read: as large as the others make it
            shape = _extents(part, slots, shape)
        args.append(leaf("input", f"operand{k}", TensorType(a.dtype, shape)))
    whole = tuple(map(known, node.shape))
    mine = choice.result.shape(whole, sizes)
    attrs = {k: mine if v == whole and len(whole) > 1 else v for k, v in node.attrs}
    for tried in (attrs, {k: mine if v == whole else v for k, v in node.attrs}, dict(node.attrs)):
        try:
            candidate = apply(node.op, *args, **tried)
            shapes = tuple(None if a is None else tuple(map(known, a.shape)) for a in args)
            bound = prepared(node.op, shapes, candidate.attrs)
        except WhetError:
            continue
        if candidate.type == TensorType(node.dtype, mine) and _equal(bound, part):
            return candidate, args
    return None


def _extents(part: Instance, slots: Slots, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of an operand by the extents of its axes; dims without axes stay as they are."""
    found = list(shape)
    for axes, dim in zip(slots.axes, slots.dims, strict=True):
        if axes:
            found[dim] = math.prod(known(part.extents[a]) for a in axes)
    return tuple(found)


def _row(
    node: Node, args: Sequence[Node | None], siblings: Siblings
) -> Callable[[Tensors], Tensor] | None:
    if aten.has_call(node):
        plain = aten.bound(node)
        run: Callable[[Tensors], Tensor] = lambda xs: plain(*xs)  # noqa: E731
    else:
        found = gradient(node, siblings)
        if found is None:
            return None
        run = found
    if all(a is not None for a in args):
        return run
    places = [k for k, a in enumerate(args) if a is not None]

    def call(xs: Tensors) -> Tensor:
        row: list[Tensor | None] = [None] * len(args)
        for k, x in zip(places, xs, strict=True):
            row[k] = x
        return run(row)

    return call


def _equal(a: Instance, b: Instance) -> bool:
    if (a.extents, a.operands, a.results, a.lets) == (b.extents, b.operands, b.results, b.lets):
        return True
    view = _view(a)
    return view is not None and view == _view(b)


def _view(instance: Instance) -> object:
    """A record that only moves values, by its axes that are longer than one; None for others.

    A part with one sample has no axis for it where the whole value has one.
    """
    if len(instance.lets) != 1 or not isinstance(instance.lets[0].body, ex.Load):
        return None
    let, load = instance.lets[0], instance.lets[0].body
    slots = instance.operands.get(load.tensor)
    names = [i.name for i in load.index if isinstance(i, ex.Index)]
    if slots is None or load.outside is not None or len(names) != len(load.index):
        return None
    long = [a for a in let.axes if instance.extents[a] != 1]
    number = {a: k for k, a in enumerate(long)}
    at = dict(zip(slots.flat, names, strict=True))

    def listed(s: Slots, name: Mapping[str, str]) -> tuple[tuple[int, tuple[int, ...]], ...]:
        rows = [
            (dim, tuple(number[name[a]] for a in axes if name[a] in number))
            for axes, dim in zip(s.axes, s.dims, strict=True)
        ]
        return tuple(row for row in rows if row[1])

    same = {a: a for a in let.axes}
    return (
        tuple(instance.extents[a] for a in long), load.tensor, listed(slots, at),
        listed(instance.results[let.name], same),
    )  # fmt: skip


def contiguous(t: Tensor) -> Tensor:
    """What a collective takes: nothing shared, row-major."""
    return t if t.is_contiguous() else t.contiguous()


__all__ = ["Let", "Local", "Meant", "Step", "bind", "contiguous", "meant", "torch"]
