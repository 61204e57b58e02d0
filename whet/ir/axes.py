"""Along which axes an operator can be computed in parts, and what each costs.

    free       every tensor that has the axis is cut along it; the parts of the result are joined
    partial    the axis is reduced away: the parts of the result are combined by sum, max, min, prod
    halo       parts of the result need overlapping parts of an operand, read at
               c1*axis + c2*other + … + constant
    none       the axis cannot be cut; the reason says why

A part keeps the whole operator's extents as values (the mean's divisor), so an instance is cut by
`part`, never by binding the record again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from whet.ir import expr as ex
from whet.ir.expr import Call, Expr, Index, Load, Num, Reduce, children
from whet.ir.record import Instance, Let
from whet.ir.types import Size


@dataclass(frozen=True, slots=True)
class Window:
    """Where a tensor is read: atomic axis number `dim`, at sum(coefficient*axis) + constant."""

    tensor: str
    dim: int
    coefficients: tuple[tuple[str, Size], ...]
    constant: Size


@dataclass(frozen=True, slots=True)
class Axis:
    """How one axis can be cut.

    Attributes:
        kind: "free", "partial", "halo" or "none".
        reason: one line for a reader.
        combine: for "partial", how parts are combined: sum, max, min or prod.
        once: for "partial", operands that are added on: all parts but one get zeros for them.
        windows: for "halo", what is read.
    """

    kind: str
    reason: str
    combine: str = ""
    once: tuple[str, ...] = ()
    windows: tuple[Window, ...] = ()


def classify(instance: Instance) -> dict[str, Axis]:
    """Every axis of an operator, and how it can be cut."""
    uses = _uses(instance)
    return {a: _axis(a, instance, uses) for a in instance.extents if a in uses.seen}


def part(instance: Instance, axis: str, extent: Size) -> Instance:
    """The instance over `extent` values of one axis; values made of extents stay the whole's."""
    return replace(instance, extents={**instance.extents, axis: extent})


@dataclass(slots=True)
class _Uses:
    """Where axes occur.

    Attributes:
        seen: axes that occur at all.
        blocked: axis → why it cannot be cut.
        windows: axis → affine reads that involve it.
        bound: axis → the assignments and reductions that bind it.
    """

    seen: set[str]
    blocked: dict[str, str]
    windows: dict[str, list[Window]]
    bound: dict[str, list[tuple[Let, Reduce]]]

    def block(self, axis: str, reason: str) -> None:
        self.blocked.setdefault(axis, reason)


def _uses(instance: Instance) -> _Uses:
    found = _Uses(set(), {}, {}, {})
    for name, slots in instance.operands.items():
        found.seen.update(slots.flat)
        for a in slots.flat:
            if slots.flat.count(a) > 1:
                found.block(a, f"{name} has it twice")
    for let in instance.lets:
        found.seen.update(let.axes)
        for e in ex.walk(let.body):
            if isinstance(e, Reduce):
                found.seen.update(e.axes)
                for a in e.axes:
                    found.bound.setdefault(a, []).append((let, e))
        _read(let.body, instance, found)
    return found


def _read(e: Expr, instance: Instance, uses: _Uses) -> None:
    match e:
        case Index(name):
            uses.block(name, "the index is used as a value")
        case Load():
            _read_load(e, instance, uses)
        case _:
            for child in children(e):
                _read(child, instance, uses)


def _read_load(load: Load, instance: Instance, uses: _Uses) -> None:
    slots = instance.operands.get(load.tensor)
    own = slots.flat if slots is not None else instance.let(load.tensor).axes
    if load.outside is not None:
        _read(load.outside, instance, uses)
    for dim, (axis, index) in enumerate(zip(own, load.index, strict=True)):
        if index == Index(axis):
            continue
        uses.block(axis, f"{load.tensor} is read along it at {ex.show(index)}")
        form = ex.affine(index)
        if form is None:
            _read(index, instance, uses)
            continue
        window = Window(load.tensor, dim, tuple(form[0].items()), form[1])
        for a in form[0]:
            uses.windows.setdefault(a, []).append(window)


def _axis(axis: str, instance: Instance, uses: _Uses) -> Axis:
    if axis in uses.blocked:
        return Axis("none", uses.blocked[axis])
    windows = tuple(dict.fromkeys(uses.windows.get(axis, ())))
    bound = uses.bound.get(axis, [])
    in_results = [axis in s.flat for s in instance.results.values()]
    if bound:
        if windows:
            return Axis("none", f"runs over a window of {windows[0].tensor}")
        return _reduced(axis, instance, bound)
    if not all(in_results):
        return Axis("none", "not an axis of every result")
    for let in instance.lets:
        if axis not in let.axes and _depends(let, axis, instance):
            return Axis("none", f"{let.name} depends on it without having it")
    if windows:
        w = windows[0]
        return Axis("halo", f"{w.tensor} is read at {_affine_text(w)}", windows=windows)
    return Axis("free", "an axis of the results, read plainly")


def _depends(let: Let, axis: str, instance: Instance) -> bool:
    """Whether an assignment reads something cut along `axis` (it would be read in part only)."""
    for load in ex.loads(let.body):
        slots = instance.operands.get(load.tensor)
        own = slots.flat if slots is not None else instance.let(load.tensor).axes
        if axis in own:
            return True
    return False


def _reduced(axis: str, instance: Instance, bound: list[tuple[Let, Reduce]]) -> Axis:
    let, reduce = bound[0]
    if len(bound) > 1:
        return Axis("none", f"reduced in {' and '.join(b[0].name for b in bound)}")
    if let.name not in instance.results:
        return Axis("none", f"reduced into {let.name}, on which the result depends")
    if len(instance.results) > 1 or any(axis in x.axes for x in instance.lets if x is let):
        return Axis("none", "other results do not have it")
    if any(load.tensor == let.name for x in instance.lets for load in ex.loads(x.body)):
        return Axis("none", f"reduced into {let.name}, which is used again")
    once = _path(let.body, reduce)
    if once is None:
        return Axis("none", f"what is done to the {reduce.kind} does not pass through it")
    added = f"; {', '.join(once)} added once" if once else ""
    return Axis("partial", f"combined by {reduce.kind}{added}", reduce.kind, once)


def _path(e: Expr, reduce: Reduce) -> tuple[str, ...] | None:
    """Addends on the way down to a reduction that may be split, or None where it may not be.

    A sum may be scaled, divided and added to; of the other kinds nothing passes through.
    """
    if e is reduce:
        return ()
    if reduce.kind != "sum" or not isinstance(e, Call) or e.fn not in ("+", "-", "*", "/"):
        return None
    left, right = e.args
    for x, other in ((left, right), (right, left)):
        if not any(y is reduce for y in ex.walk(x)):
            continue
        below = _path(x, reduce)
        if below is None or (e.fn == "/" and x is right):
            return None
        if e.fn in ("*", "/"):
            return below if not below or isinstance(other, Num) else None
        if isinstance(other, Load) and other.outside is None:
            return (*below, other.tensor)
        return None
    return None


def _affine_text(w: Window) -> str:
    terms: Mapping[str, Size] = dict(w.coefficients)
    total: Expr = Num(w.constant)
    for a, c in terms.items():
        total = ex.call("+", ex.call("*", Num(c), Index(a)), total)
    return ex.show(total)
