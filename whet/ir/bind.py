"""Binding a record to operands: ranks, positions, composites and broadcasting become concrete.

Attributes bind first (sizes that they fix help to split composites), then operands in two rounds:
all groups broadcast against each other before any extent of an operand is read. Then the statements
are read in order, each in the scope of its own axes.
"""

from __future__ import annotations

import ast
import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from whet.ir import expr as ex
from whet.ir.expr import Expr, Index, Load, Num, Reduce, call, select
from whet.ir.functions import FUNCTIONS
from whet.ir.types import Poly, Size, divide, product

if TYPE_CHECKING:
    from whet.ir.record import Guard, Instance, Record, Slots

_OPERATORS: Mapping[type[ast.operator], str] = {
    ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/",
    ast.FloorDiv: "//", ast.Mod: "%", ast.Pow: "**",
}  # fmt: skip


class Binder:
    """The state of one binding; `instance()` is the result."""

    def __init__(
        self,
        record: Record,
        shapes: Sequence[tuple[Size, ...] | None],
        attrs: Mapping[str, object],
    ) -> None:
        self.record = record
        self.extents: dict[str, Size] = {}
        self.groups: dict[str, tuple[str, ...]] = {}
        self.values: dict[str, object] = {}
        self.guards: list[Guard] = []
        self.slots: dict[str, Slots] = {}
        self.absent: dict[str, float] = {}
        self.scope: frozenset[str] = frozenset()
        self._attributes(attrs)
        self._operands(shapes)

    # -- attributes ------------------------------------------------------------------------------
    def _attributes(self, attrs: Mapping[str, object]) -> None:
        given = dict(attrs)
        for name, pattern in self.record.patterns.items():
            if isinstance(pattern, ast.Constant):
                self.extents[name.lower()] = int(pattern.value)  # type: ignore[arg-type]
                continue
            if name not in given:
                raise self._misfit(f"attribute {name} is missing", expected=_names(self.record))
            self._attribute(pattern, given.pop(name))
        if given:
            raise self._misfit(
                f"unknown attribute {next(iter(given))}", expected=_names(self.record)
            )

    def _attribute(self, pattern: ast.expr, value: object) -> None:
        if isinstance(pattern, ast.Tuple) and isinstance(pattern.elts[0], ast.Starred):
            assert isinstance(value, tuple)
            self._group(_name(pattern.elts[0].value), value, pattern)
            return
        if isinstance(pattern, ast.Tuple):
            if not isinstance(value, tuple) or len(value) != len(pattern.elts):
                raise self._misfit(
                    "attribute of another length", pattern, expected=ast.unparse(pattern), got=value
                )
            for p, v in zip(pattern.elts, value, strict=True):
                self._attribute(p, v)
        elif _name(pattern).isupper():
            assert isinstance(value, (int, Poly))
            self.extents[_name(pattern).lower()] = value
        else:
            self.values[_name(pattern)] = value

    # -- operands --------------------------------------------------------------------------------
    def _operands(self, shapes: Sequence[tuple[Size, ...] | None]) -> None:
        record = self.record
        if len(shapes) != len(record.operands):
            raise self._misfit(
                "another number of operands", expected=len(record.operands), got=len(shapes)
            )
        present: list[tuple[str, ast.Subscript, tuple[Size, ...]]] = []
        for (name, pattern, absent), shape in zip(record.operands, shapes, strict=True):
            if shape is not None:
                present.append((name, pattern, shape))
            elif absent is None:
                raise self._misfit(f"operand {name} may not be left out", pattern)
            else:
                self.absent[name] = absent
        order = sorted(present, key=lambda p: self._stars(p[1]))
        for name, pattern, shape in order:
            self._bind(name, pattern, shape, first=True)
        for name, pattern, shape in order:
            self._bind(name, pattern, shape, first=False)
        self.slots = {name: self.slots[name] for name, _, _ in present}

    def _stars(self, pattern: ast.Subscript) -> int:
        return sum(isinstance(e, ast.Starred) and p is None for e, p, _ in self._axes(pattern))

    def _axes(
        self, pattern: ast.Subscript
    ) -> Iterator[tuple[ast.expr, tuple[int, ...] | None, bool]]:
        """(axis, positions it is pinned to, may it broadcast) for each entry of a pattern."""
        return map(self._axis, _entries(pattern.slice))

    def _axis(self, e: ast.expr) -> tuple[ast.expr, tuple[int, ...] | None, bool]:
        stretch = isinstance(e, ast.UnaryOp) and isinstance(e.op, ast.UAdd)
        axis = e.operand if isinstance(e, ast.UnaryOp) and stretch else e
        starred = isinstance(axis, ast.Starred)
        inner = axis.value if isinstance(axis, ast.Starred) else axis
        pinned: tuple[int, ...] | None = None
        if isinstance(inner, ast.BinOp) and isinstance(inner.op, ast.MatMult):
            value = self.values[_name(inner.right)]
            pinned = value if isinstance(value, tuple) else (value,)
            inner = inner.left
        return (ast.Starred(inner) if starred else inner), pinned, stretch

    def _bind(
        self, name: str, pattern: ast.Subscript, shape: tuple[Size, ...], *, first: bool
    ) -> None:
        from whet.ir.record import Slots

        entries = list(self._axes(pattern))
        counts = self._counts(entries, len(shape))
        if counts is None:
            raise self._misfit(
                f"operand {name} has another rank", pattern,
                expected=ast.unparse(pattern), got=list(shape), hint=self._lone_composite(pattern),
            )  # fmt: skip
        dims = _place([(n, p) for n, (_, p, _) in zip(counts, entries, strict=True)], len(shape))
        if dims is None:
            raise self._misfit(f"operand {name}: axis out of range", pattern, got=list(shape))
        axes: list[tuple[str, ...]] = []
        at = 0
        for (e, _, stretch), count in zip(entries, counts, strict=True):
            here = tuple(shape[d] for d in dims[at : at + count])
            at += count
            if isinstance(e, ast.Starred):
                axes += self._bind_group(_name(e.value), here, pattern, first)
            elif stretch and here[0] == 1:
                axes.append(())
            elif not (stretch and first):
                axes.append(self._bind_axis(e, here[0]))
            else:
                axes.append(())
        self.slots[name] = Slots(tuple(axes), tuple(dims))

    def _lone_composite(self, pattern: ast.Subscript) -> str | None:
        """Python reads x[(g, c)] as x[g, c]."""
        text = ast.get_source_segment(self.record.text, pattern) or ""
        if "[(" in text and text.endswith(")]"):
            return f"a single composite axis needs a comma: {text[:-1]},]"
        return None

    def _counts(
        self, entries: list[tuple[ast.expr, tuple[int, ...] | None, bool]], rank: int
    ) -> list[int] | None:
        """How many dims each entry of a pattern stands for, or None where they do not fit."""
        stars = [
            k for k, (e, p, _) in enumerate(entries) if isinstance(e, ast.Starred) and p is None
        ]
        rest = rank - sum(
            len(p) if p is not None else 1 for k, (_, p, _) in enumerate(entries) if k not in stars
        )
        known: dict[int, int] = {}
        if len(stars) > 1:  # all but one must be known from elsewhere
            for k in stars:
                axes = self.groups.get(_name(entries[k][0].value))  # type: ignore[attr-defined]
                if axes is not None:
                    known[k] = len(axes)
        for k in stars:
            known.setdefault(k, rest - sum(known.values()))
        counts = [
            known[k] if k in known else len(p) if p is not None else 1
            for k, (_, p, _) in enumerate(entries)
        ]
        return counts if sum(counts) == rank and min(counts, default=0) >= 0 else None

    def _bind_group(
        self, group: str, sizes: tuple[Size, ...], at: ast.expr, first: bool
    ) -> list[tuple[str, ...]]:
        if first:
            self._group(group, sizes, at)
        axes = self.groups[group][len(self.groups[group]) - len(sizes) :]
        return [
            (a,) if n != 1 or self.extents[a] == 1 else () for a, n in zip(axes, sizes, strict=True)
        ]

    def _group(self, group: str, sizes: tuple[Size, ...], at: ast.expr) -> None:
        """Bind a group of axes, or broadcast it against what it was, right-aligned."""
        old = tuple(self.extents[a] for a in self.groups.get(group, ()))
        rank = max(len(old), len(sizes))
        left = (1,) * (rank - len(old)) + old
        right = (1,) * (rank - len(sizes)) + sizes
        self.groups[group] = tuple(f"{group}{k}" for k in range(rank))
        for axis, a, b in zip(self.groups[group], left, right, strict=True):
            self.extents[axis] = a if b == 1 else b
            if 1 not in (a, b):
                self._equal(a, b, at, f"*{group}: sizes do not broadcast")

    def _bind_axis(self, e: ast.expr, size: Size) -> tuple[str, ...]:
        if isinstance(e, ast.Constant):
            self._equal(size, int(e.value), e, "a dim has another size")  # type: ignore[arg-type]
            return ()
        if not isinstance(e, ast.Tuple):
            name = _name(e)
            if name in self.extents:
                self._equal(self.extents[name], size, e, f"axis {name} has two sizes")
            else:
                self.extents[name] = size
            return (name,)
        names = tuple(map(_name, e.elts))
        unknown = [n for n in names if n not in self.extents]
        known = product(self.extents[n] for n in names if n in self.extents)
        if len(unknown) > 1:
            raise self._misfit(f"({', '.join(names)}): more than one factor is unknown", e)
        if not unknown:
            self._equal(known, size, e, f"({', '.join(names)}) has another size")
            return names
        quotient = divide(size, known)
        if quotient is None:
            if isinstance(size, int) and isinstance(known, int):
                raise self._misfit(
                    f"({', '.join(names)}): {known} does not divide {size}", e,
                    expected=f"a multiple of {known}", got=size,
                )  # fmt: skip
            # A quotient symbol (C := G*c) keeps index arithmetic polynomial.
            quotient = Poly.symbol(f"{unknown[0]}_of_{_identifier(size)}_by_{_identifier(known)}")
            self._equal(size, known * quotient, e, "")
        self.extents[unknown[0]] = quotient
        return names

    def _equal(self, a: Size, b: Size, at: ast.expr, summary: str) -> None:
        from whet.ir.record import Guard

        if a == b:
            return
        if isinstance(a, int) and isinstance(b, int):
            raise self._misfit(summary, at, expected=a, got=b)
        guard = Guard(a, b)
        if guard not in self.guards and Guard(b, a) not in self.guards:
            self.guards.append(guard)

    # -- statements ------------------------------------------------------------------------------
    def instance(self) -> Instance:
        from whet.ir.record import Instance, Let

        lets, results = [], {}
        operands = dict(self.slots)
        for target, value in self.record.statements:
            name = ast.unparse(target.value)
            slots = self._declare(target)
            self.scope = frozenset(slots.flat)
            lets.append(Let(name, slots.flat, self._read(value)))
            self.slots[name] = slots
            if name in self.record.outs:
                results[name] = slots
        return Instance(
            self.record.name, self.record.outs, dict(self.extents), operands,
            tuple(lets), results, tuple(self.guards),
        )  # fmt: skip

    def _declare(self, target: ast.Subscript) -> Slots:
        """The axes of an assignment's left side; `h: size` declares an extent."""
        from whet.ir.record import Slots

        axes: list[tuple[str, ...]] = []
        spec: list[tuple[int, tuple[int, ...] | None]] = []
        for entry in _entries(target.slice):
            e = entry
            if isinstance(entry, ast.Slice):
                assert entry.lower is not None
                assert entry.upper is not None
                e = entry.lower
            axis, pinned, _ = self._axis(e)
            if isinstance(entry, ast.Slice):
                self.extents[_name(axis)] = self._size(entry.upper)  # type: ignore[arg-type]
            if isinstance(axis, ast.Starred):
                group = self._members(axis)
                axes += [(a,) for a in group]
                spec.append((len(group), pinned))
                continue
            names = tuple(map(_name, axis.elts)) if isinstance(axis, ast.Tuple) else ()
            if not isinstance(axis, (ast.Tuple, ast.Constant)):
                names = (_name(axis),)
            for n in names:
                if n not in self.extents:
                    raise self._misfit(f"axis {n} has no extent", axis)
            axes.append(names)
            spec.append((1, pinned))
        dims = _place(spec, len(axes))
        if dims is None:
            raise self._misfit("axis out of range", target)
        return Slots(tuple(axes), tuple(dims))

    def _members(self, group: ast.Starred) -> tuple[str, ...]:
        """The axes of a group that an operand or an attribute has bound."""
        name = _name(group.value)
        if name not in self.groups:
            raise self._misfit(f"unknown group *{name}", group.value)
        return self.groups[name]

    def _size(self, e: ast.expr) -> Size:
        self.scope = frozenset()
        value = self._read(e)
        if not isinstance(value, Num) or isinstance(value.value, float):
            raise self._misfit("a size must be made of extents and attributes", e)
        return value.value

    def _read(self, e: ast.expr) -> Expr:
        """One expression of a body."""
        match e:
            case ast.Constant(value):
                return Num(value)  # type: ignore[arg-type]
            case ast.Name(name):
                return self._read_name(name, e)
            case ast.Tuple(elts):  # a composite used as a number is its row-major position
                total: Expr = Num(0)
                for x in elts:
                    total = call("+", call("*", total, Num(self.extents[_name(x)])), self._read(x))
                return total
            case ast.List([test]):
                return select(self._read(test), Num(1), Num(0))
            case ast.IfExp(test, then, other):
                return select(self._read(test), self._read(then), self._read(other))
            case ast.UnaryOp(ast.USub(), x):
                inner = self._read(x)
                if isinstance(inner, Num) and isinstance(inner.value, float):
                    return Num(-inner.value)
                return call("-", inner)
            case ast.UnaryOp(ast.Not(), x):
                return call("not", self._read(x))
            case ast.BinOp(left, operator, right) if type(operator) in _OPERATORS:
                return call(_OPERATORS[type(operator)], self._read(left), self._read(right))
            case ast.Compare(left, operators, comparators):
                return self._read_compare(left, operators, comparators)
            case ast.BoolOp(operator, values):
                return self._read_logic(operator, values)
            case ast.Call(ast.Subscript(ast.Name(kind), axes), [body]) if kind in ex.REDUCTIONS:
                return self._read_reduce(kind, axes, body)
            case ast.Call(ast.Name(fn), args):
                return self._read_call(fn, args, e)
            case ast.Subscript():
                return self._read_load(e)
        raise self._misfit(f"not part of the record grammar: {ast.unparse(e)}", e)

    def _read_name(self, name: str, at: ast.expr) -> Expr:
        if name in self.scope:
            return Index(name)
        if name in self.values:
            value = self.values[name]
            return Num(int(value) if isinstance(value, bool) else value)  # type: ignore[arg-type]
        if name == "inf":
            return Num(math.inf)
        if name.isupper() and name.lower() in self.groups:
            return Num(product(self.extents[a] for a in self.groups[name.lower()]))
        if name.isupper() and name.lower() in self.extents:
            return Num(self.extents[name.lower()])
        known = [*sorted(self.scope), *self.values, *(a.upper() for a in self.extents)]
        raise self._misfit(f"unknown name {name}", at, expected=f"one of {', '.join(known)}")

    def _read_call(self, fn: str, args: Sequence[ast.expr], at: ast.expr) -> Expr:
        known = FUNCTIONS.get(fn)
        if known is None:
            near = difflib.get_close_matches(fn, [*FUNCTIONS, *ex.REDUCTIONS])
            raise self._misfit(f"unknown function {fn}", at, hint=", ".join(near) or None)
        if len(args) != known.arity:
            raise self._misfit(
                f"{fn} takes another number of arguments", at, expected=known.arity, got=len(args)
            )
        return call(fn, *map(self._read, args))

    def _read_compare(
        self, left: ast.expr, operators: Sequence[ast.cmpop], comparators: Sequence[ast.expr]
    ) -> Expr:
        values = [self._read(x) for x in (left, *comparators)]
        total: Expr | None = None
        for o, a, b in zip(operators, values, values[1:], strict=False):
            match o:
                case ast.Lt() | ast.Gt():
                    x, y = (a, b) if isinstance(o, ast.Lt) else (b, a)
                    test = call("<", x, y)
                case ast.LtE() | ast.GtE():
                    x, y = (a, b) if isinstance(o, ast.LtE) else (b, a)
                    test = call("<=", x, y)
                case ast.Eq():
                    test = call("==", a, b)
                case ast.NotEq():
                    test = call("not", call("==", a, b))
                case _:
                    raise self._misfit("not a comparison of the record grammar", left)
            total = test if total is None else call("and", total, test)
        assert total is not None
        return total

    def _read_logic(self, operator: ast.boolop, values: Sequence[ast.expr]) -> Expr:
        first, *rest = [self._read(v) for v in values]
        if isinstance(operator, ast.Or) and isinstance(first, Load) and len(rest) == 1:
            return Load(first.tensor, first.index, rest[0])
        total = first
        for v in rest:
            total = call("and" if isinstance(operator, ast.And) else "or", total, v)
        return total

    def _read_reduce(self, kind: str, axes: ast.expr, body: ast.expr) -> Expr:
        bound: list[str] = []
        for x in _entries(axes):
            if isinstance(x, ast.Slice):
                assert x.lower is not None
                assert x.upper is not None
                scope = self.scope
                self.extents[_name(x.lower)] = self._size(x.upper)
                self.scope = scope
                bound.append(_name(x.lower))
            elif isinstance(x, ast.Starred):
                bound += self._members(x)
            else:
                bound.append(_name(x))
        unsized = [b for b in bound if b not in self.extents]
        if unsized:
            raise self._misfit(
                f"axis {unsized[0]} has no extent", axes, hint=f"give it one: {unsized[0]}: SIZE"
            )
        clash = [b for b in bound if b in self.scope]
        if clash:
            raise self._misfit(f"axis {clash[0]} is bound twice", axes)
        outer, self.scope = self.scope, self.scope | frozenset(bound)
        inner = self._read(body)
        self.scope = outer
        return Reduce(kind, tuple(bound), inner)

    def _read_load(self, e: ast.Subscript) -> Expr:
        name = ast.unparse(e.value)
        if name in self.absent:
            return Num(self.absent[name])
        slots = self.slots.get(name)
        if slots is None:
            raise self._misfit(f"unknown tensor {name}", e, expected=", ".join(self.slots))
        entries: list[ast.expr] = []
        for x in _entries(e.slice):
            if isinstance(x, ast.Starred):
                group = self._members(x)
                entries += [ast.copy_location(ast.Name(a), x) for a in group]
            else:
                entries.append(x)
        if len(entries) > len(slots.axes) and isinstance(_entries(e.slice)[0], ast.Starred):
            entries = entries[len(entries) - len(slots.axes) :]  # fewer leading broadcast dims
        if len(entries) != len(slots.axes):
            raise self._misfit(
                f"{name} has {len(slots.axes)} dims", e, got=f"{len(entries)} indices"
            )
        index: list[Expr] = []
        for x, axes in zip(entries, slots.axes, strict=True):
            if isinstance(x, ast.Tuple) and len(x.elts) == len(axes):
                index += map(self._read, x.elts)
            elif len(axes) > 1:
                index += self._split(self._read(x), axes)
            elif axes:
                index.append(self._read(x))
        return Load(name, tuple(index), None)

    def _split(self, position: Expr, axes: tuple[str, ...]) -> list[Expr]:
        """A plain number that indexes a composite, taken apart by division and remainder."""
        parts: list[Expr] = []
        tail: Size = 1
        for a in reversed(axes):
            part = call("//", position, Num(tail))
            parts.append(part if a == axes[0] else call("%", part, Num(self.extents[a])))
            tail = tail * self.extents[a]
        return parts[::-1]

    def _misfit(self, summary: str, at: object = None, **fields: object) -> Exception:
        return self.record.error(summary, at, **fields)


def _entries(e: ast.expr) -> list[ast.expr]:
    return list(e.elts) if isinstance(e, ast.Tuple) else [e]


class NotANameError(Exception):
    """Something else stands where an axis or an attribute is named."""

    def __init__(self, at: ast.expr) -> None:
        self.at = at
        super().__init__(ast.unparse(at))


def _name(e: ast.expr) -> str:
    if not isinstance(e, ast.Name):
        raise NotANameError(e)
    return e.id


def _names(record: Record) -> str:
    named = [k for k, p in record.patterns.items() if not isinstance(p, ast.Constant)]
    return ", ".join(named) or "none"


def _identifier(size: Size) -> str:
    return "".join(c if c.isalnum() else "_" for c in str(size))


def _place(spec: list[tuple[int, tuple[int, ...] | None]], rank: int) -> list[int] | None:
    """Positions of listed dims: pinned ones where they are pinned, the rest in order."""
    taken: list[int] = []
    for _, pinned in spec:
        for p in pinned or ():
            if not -rank <= p < rank:
                return None
            taken.append(p % rank)
    if len(set(taken)) != len(taken):
        return None
    others = iter([d for d in range(rank) if d not in taken])
    dims: list[int] = []
    for count, pinned in spec:
        dims += (
            [p % rank for p in pinned]
            if pinned is not None
            else [next(others) for _ in range(count)]
        )
    return dims
