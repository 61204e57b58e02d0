"""Along which axes an operator can be cut over devices, and what each device then has to do.

    Cut := result: "cut" | "partial" | "whole"     what each device makes of the result
           operands                                those of which it gets a part
           inner                                   values inside, combined before they are used
           offset | masked                         it needs to know which part it has

`whet.ir.axes` says what can be cut without a word between the parts. Here parts may also talk:
a softmax over a cut axis combines its maxima and its sums, a table cut by rows answers 0 for rows
that lie elsewhere and the answers are added. All of it is read off the record: the body of every
assignment is walked with one of three marks for what a part knows of it.

    whole     the same on every device
    local     it belongs to the device's part of the axis
    partial   to be combined over the devices: by sum, max, min or prod
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from whet.ir import expr as ex
from whet.ir.expr import Call, Expr, Index, Load, Num, Reduce, Select
from whet.ir.graph import Attrs
from whet.ir.ops import instance as bound
from whet.ir.record import Instance, Let, Slots

WHOLE, LOCAL = "whole", "local"


@dataclass(frozen=True, slots=True)
class Cut:
    """What it takes to compute an operator in parts along one axis.

    Attributes:
        result: "cut" along the axis, "partial" (to be combined), or "whole" everywhere.
        combine: how partial results are combined.
        operands: names of the operands that each device holds a part of.
        inner: (assignment, how it is combined) in order.
        offset: each device has to know where its part begins.
        once: operands that are added on; all devices but one take zeros for them.
    """

    result: str
    combine: str = ""
    operands: frozenset[str] = frozenset()
    inner: tuple[tuple[str, str], ...] = ()
    offset: bool = False
    once: tuple[str, ...] = ()


def known(size: object) -> int:
    """A size that has to be a number by now."""
    assert isinstance(size, int)
    return size


class _No(Exception):
    """The axis cannot be cut; says why."""


@functools.lru_cache(maxsize=65536)
def prepared(op: str, shapes: tuple[tuple[int, ...] | None, ...], attrs: Attrs) -> Instance:
    """An operator's instance; slices and joints of equal parts have an axis for the parts."""
    return _split(bound(op, shapes, attrs))


def analyse(instance: Instance, axis: str, out: str) -> Cut | str:
    """How an operator is cut along one axis, or why it cannot be."""
    try:
        return _Walk(instance, axis, out).cut()
    except _No as reason:
        return str(reason)


@dataclass(slots=True)
class _Walk:
    instance: Instance
    axis: str
    out: str
    marks: dict[str, str] = field(default_factory=dict)
    offset: bool = False
    once: list[str] = field(default_factory=list)

    def cut(self) -> Cut:
        instance, axis = self.instance, self.axis
        has = {name for name, slots in instance.operands.items() if axis in slots.flat}
        for name in has:
            if instance.operands[name].flat.count(axis) > 1:
                raise _No(f"{name} has it twice")
        inner: list[tuple[str, str]] = []
        lets = needed(instance, self.out)
        for let in lets:
            before = len(self.once)
            mark = self.mark(let.body)
            if axis in let.axes:
                if mark not in (WHOLE, LOCAL):
                    raise _No(f"{let.name} has it, and is summed over it")
                self.marks[let.name] = LOCAL
                continue
            if mark == LOCAL:
                raise _No(f"{let.name} depends on it without having it")
            if mark != WHOLE and let.name != self.out:
                if len(self.once) > before:
                    raise _No(f"{let.name} is combined and added to")
                inner.append((let.name, mark))
                mark = WHOLE
            self.marks[let.name] = mark
        mark = self.marks[self.out]
        if any(load.tensor == self.out for let in lets for load in ex.loads(let.body)):
            if mark not in (WHOLE, LOCAL):
                raise _No("the result is used again")
        if not has and mark != LOCAL:
            raise _No("nothing has it")
        result = {WHOLE: "whole", LOCAL: "cut"}.get(mark, "partial")
        combine = mark if result == "partial" else ""
        return Cut(result, combine, frozenset(has), tuple(inner), self.offset, tuple(self.once))

    def mark(self, e: Expr) -> str:
        match e:
            case Num():
                return WHOLE
            case Index(name):
                if name != self.axis:
                    return WHOLE
                self.offset = True
                return LOCAL
            case Load():
                return self.load(e)
            case Reduce(kind, axes, body):
                mark = self.mark(body)
                if self.axis in axes:
                    if mark not in (WHOLE, LOCAL):
                        raise _No("it is summed twice")
                    return kind
                if mark in (WHOLE, LOCAL) or mark == kind:
                    return mark
                raise _No(f"a {kind} of parts of a {mark}")
            case Select(test, then, other):
                if self.mark(test) not in (WHOLE, LOCAL):
                    raise _No("a test of parts")
                return self.join(then, other, ("sum",), zero=self.mark(test) == WHOLE)
            case Call(fn, args):
                return self.call(fn, args)

    def call(self, fn: str, args: tuple[Expr, ...]) -> str:
        if fn in ("+", "-"):
            return self.join(args[0], args[1], ("sum",), zero=True, adds=True)
        marks = [self.mark(a) for a in args]
        partial = [m for m in marks if m not in (WHOLE, LOCAL)]
        if not partial:
            return LOCAL if LOCAL in marks else WHOLE
        scaled = fn == "*" or (fn == "/" and marks[1] == WHOLE)
        if scaled and partial == ["sum"] and LOCAL not in marks and not self.once:
            return "sum"
        raise _No(f"{fn} of parts of a {partial[0]}")

    def join(
        self, a: Expr, b: Expr, kinds: tuple[str, ...], *, zero: bool, adds: bool = False
    ) -> str:
        """Two values of which either is part of the result."""
        x, y = self.mark(a), self.mark(b)
        partial = {m for m in (x, y) if m not in (WHOLE, LOCAL)}
        if not partial:
            return LOCAL if LOCAL in (x, y) else WHOLE
        if not zero or len(partial) > 1 or not partial <= set(kinds):
            raise _No("parts of different kinds")
        for mark, e in ((x, a), (y, b)):
            if mark in partial or e == Num(0):
                continue
            if (
                adds
                and mark == WHOLE
                and isinstance(e, Load)
                and e.tensor in self.instance.operands
            ):
                self.once.append(e.tensor)
                continue
            raise _No("something is added to parts")
        return next(iter(partial))

    def load(self, e: Load) -> str:
        slots = self.instance.operands.get(e.tensor)
        own = slots.flat if slots is not None else self.instance.let(e.tensor).axes
        state = self.marks.get(e.tensor, WHOLE)
        elsewhere = False
        for name, index in zip(own, e.index, strict=True):
            if name == self.axis:
                if index == Index(name):
                    state = LOCAL
                    continue
                if any(ex.loads(index)) and self.axis not in ex.free(index):
                    elsewhere = True
                    continue
                raise _No(f"{e.tensor} is read along it at {ex.show(index)}")
            mark = self.mark(index) if not isinstance(index, Index) else WHOLE
            if isinstance(index, Index) and index.name == self.axis:
                self.offset, mark = True, LOCAL
            if mark == LOCAL:
                state = LOCAL
            elif mark != WHOLE:
                raise _No("a position is made of parts")
        if e.outside is not None and self.mark(e.outside) != WHOLE:
            raise _No("the value outside is of a part")
        if elsewhere:
            if state == LOCAL or e.outside is not None:
                raise _No(f"{e.tensor} is read at positions of other parts")
            self.offset = True
            return "sum"
        return state


def linear(instance: Instance, out: str, operand: str) -> bool:
    """Whether parts of a sum of one operand give parts of the result."""
    walk = _Walk(instance, "", out)
    walk.marks[operand] = "sum"
    try:
        for let in needed(instance, out):
            walk.marks[let.name] = walk.mark(let.body)
    except _No:
        return False
    return walk.marks[out] == "sum" and not walk.once


def needed(instance: Instance, out: str) -> tuple[Let, ...]:
    """The assignments that a result depends on, in order."""
    need, kept = {out}, []
    for let in reversed(instance.lets):
        if let.name in need:
            need.update(x.tensor for x in ex.loads(let.body))
            kept.append(let)
    return tuple(kept[::-1])


# -- equal parts ---------------------------------------------------------------------------------
def _split(instance: Instance) -> Instance:
    """Slices of whole parts and joints of equal parts, with the parts as an axis of their own.

    before:  y[b, k] = x[b, 12288 + k]              x[b, i] with I = 36864, K = 12288
    after:   y[b, k] = x[b, 1, k]                   x[b, (p, k)]
    """
    if len(instance.lets) != 1 or len(instance.results) != 1:
        return instance
    let = instance.lets[0]
    shifted = [x for x in ex.loads(let.body) if _shift(x, instance) is not None]
    for load in shifted:
        dim, axis, constant = _shift(load, instance)  # type: ignore[misc]
        slots = instance.operands[load.tensor]
        own = slots.flat[dim]
        small, large = instance.extents[axis], instance.extents[own]
        if not (isinstance(small, int) and isinstance(large, int)) or small == large:
            continue
        if small and large % small == 0 and constant % small == 0 and len(shifted) == 1:
            return _slice(instance, let, load, dim, axis, constant // small)
        if large and small % large == 0 and constant % large == 0:
            return _joint(instance, let, axis, large)
    return instance


def _shift(load: Load, instance: Instance) -> tuple[int, str, int] | None:
    """A load that reads one dim at axis + constant: (dim, axis, constant)."""
    slots = instance.operands.get(load.tensor)
    if slots is None:
        return None
    for dim, (own, index) in enumerate(zip(slots.flat, load.index, strict=True)):
        form = ex.affine(index)
        if index != Index(own) and form is not None and len(form[0]) == 1:
            ((axis, c),) = form[0].items()
            if c == 1 and isinstance(form[1], int):
                return dim, axis, form[1]
    return None


def _axes(slots: Slots, old: str, new: tuple[str, ...]) -> Slots:
    return Slots(
        tuple(tuple(x for a in g for x in (new if a == old else (a,))) for g in slots.axes),
        slots.dims,
    )


def _slice(instance: Instance, let: Let, load: Load, dim: int, axis: str, part: int) -> Instance:
    own = instance.operands[load.tensor].flat[dim]
    extents = {a: n for a, n in instance.extents.items() if a != own}
    large, small = instance.extents[own], instance.extents[axis]
    assert isinstance(large, int)
    assert isinstance(small, int)
    name = own + "_part"
    extents[name] = large // small
    index = (*load.index[:dim], Num(part), Index(axis), *load.index[dim + 1 :])
    fresh = Load(load.tensor, index)  # in bounds, so nothing stands outside
    operands = dict(instance.operands)
    operands[load.tensor] = _axes(operands[load.tensor], own, (name, axis))
    body = _swap(let.body, load, fresh)
    return replace(
        instance, extents=extents, operands=operands, lets=(Let(let.name, let.axes, body),)
    )


def _joint(instance: Instance, let: Let, axis: str, size: int) -> Instance:
    """The result's axis becomes (part, position); operands of extent `size` read there."""
    whole = instance.extents[axis]
    assert isinstance(whole, int)
    part = axis + "_part"
    extents = dict(instance.extents)
    extents[part], extents[axis] = whole // size, size
    operands = dict(instance.operands)
    at = ex.call("+", ex.call("*", Num(size), Index(part)), Index(axis))
    renamed: dict[str, str] = {}

    def visit(e: Expr) -> Expr:
        match e:
            case Index(name) if name == axis:
                return at
            case Call("<" | "<=" | "==", (left, right)):
                for x, y, flip in ((left, right, False), (right, left, True)):
                    form = ex.affine(x)
                    if (
                        form is not None
                        and form[0] == {axis: 1}
                        and isinstance(y, Num)
                        and isinstance(y.value, int)
                    ):
                        bound = known(y.value) - known(form[1])
                        if (
                            isinstance(bound, int)
                            and bound % size == 0
                            and e.fn == "<"
                            and not flip
                        ):
                            return ex.call("<", Index(part), Num(bound // size))
                        if isinstance(bound, int) and bound % size == 0 and e.fn == "<=" and flip:
                            return ex.call("<=", Num(bound // size), Index(part))
                return ex.rebuild(e, visit)
            case Load(tensor, index, outside):
                found = _shift(e, instance)
                slots = instance.operands.get(tensor)
                if slots is not None:
                    for dim, (own, i) in enumerate(zip(slots.flat, index, strict=True)):
                        plain = found is not None and found[0] == dim and found[1] == axis
                        constant = found[2] if plain and found is not None else 0
                        if i == Index(axis) and own != axis:
                            plain = True
                        if plain and instance.extents[own] == size and constant % size == 0:
                            renamed[own] = axis
                            fresh = (*index[:dim], Index(axis), *index[dim + 1 :])
                            guard: Expr = Load(tensor, fresh)
                            if outside is not None:
                                here = ex.call("==", Index(part), Num(-constant // size))
                                guard = ex.select(here, guard, outside)
                            return guard
                return ex.rebuild(e, visit)
        return ex.rebuild(e, visit)

    body = visit(let.body)
    if any(axis in ex.free(i) and i != Index(axis) for x in ex.loads(body) for i in x.index):
        return instance  # an operand of another size reads along it too
    for own in renamed:
        if own != axis:
            extents.pop(own, None)
    operands = {
        name: Slots(tuple(tuple(renamed.get(a, a) for a in g) for g in s.axes), s.dims)
        for name, s in operands.items()
    }
    results = {name: _axes(s, axis, (part, axis)) for name, s in instance.results.items()}
    axes = tuple(x for a in let.axes for x in ((part, axis) if a == axis else (a,)))
    return replace(
        instance, extents=extents, operands=operands, results=results,
        lets=(Let(let.name, axes, body),),
    )  # fmt: skip


def _swap(e: Expr, old: Expr, new: Expr) -> Expr:
    return new if e == old else ex.rebuild(e, lambda x: _swap(x, old, new))


def part_of(instance: Instance, sizes: Mapping[str, int], starts: Mapping[str, int]) -> Instance:
    """The instance over a part of some axes: `sizes` long, from `starts` on.

    Where an index counts as a value it counts from the start; where a cut dim is read at positions
    that are data, those that lie elsewhere give 0.
    """

    def value(e: Expr) -> Expr:
        match e:
            case Index(name) if starts.get(name):
                return ex.call("+", e, Num(starts[name]))
            case Load(tensor, index, outside):
                slots = instance.operands.get(tensor)
                own = slots.flat if slots is not None else instance.let(tensor).axes
                at: list[Expr] = []
                masked = False
                for name, i in zip(own, index, strict=True):
                    if i == Index(name):
                        at.append(i)
                    elif name in sizes and any(ex.loads(i)):
                        masked = True
                        at.append(ex.call("-", value(i), Num(starts.get(name, 0))))
                    else:
                        at.append(value(i))
                out = Num(0) if masked else None if outside is None else value(outside)
                return Load(tensor, tuple(at), out)
        return ex.rebuild(e, value)

    lets = tuple(Let(x.name, x.axes, value(x.body)) for x in instance.lets)
    return replace(instance, extents={**instance.extents, **sizes}, lets=lets)


__all__ = ["Cut", "analyse", "linear", "needed", "part_of", "prepared"]
