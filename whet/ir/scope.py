"""Reading a record's expressions: what each name stands for, and the expression tree.

A `Scope` knows the extents, groups, attribute values and tensors that binding has found so far, and
turns one `ast` expression of a statement into an `Expr`. `whet.ir.bind` fills it.
"""

from __future__ import annotations

import ast
import difflib
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from whet.ir import expr as ex
from whet.ir.expr import Expr, Index, Load, Num, Reduce, call, select
from whet.ir.functions import FUNCTIONS
from whet.ir.types import Size, product

if TYPE_CHECKING:
    from whet.ir.record import Record, Slots

_OPERATORS: Mapping[type[ast.operator], str] = {
    ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/",
    ast.FloorDiv: "//", ast.Mod: "%", ast.Pow: "**",
}  # fmt: skip


class Scope:
    """Names known while a record is read.

    Attributes:
        extents: size of each atomic axis.
        groups: the axes of each group.
        values: attributes that are no sizes.
        slots: operands and earlier assignments.
        absent: operands left out, and the number each stands for.
        scope: indices that may be read at this point.
    """

    def __init__(self, record: Record) -> None:
        self.record = record
        self.extents: dict[str, Size] = {}
        self.groups: dict[str, tuple[str, ...]] = {}
        self.values: dict[str, object] = {}
        self.slots: dict[str, Slots] = {}
        self.absent: dict[str, float] = {}
        self.scope: frozenset[str] = frozenset()

    def _members(self, group: ast.Starred) -> tuple[str, ...]:
        """The axes of a group that an operand or an attribute has bound."""
        name = name_of(group.value)
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
                    total = call(
                        "+", call("*", total, Num(self.extents[name_of(x)])), self._read(x)
                    )
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
        for x in entries(axes):
            if isinstance(x, ast.Slice):
                assert x.lower is not None
                assert x.upper is not None
                scope = self.scope
                self.extents[name_of(x.lower)] = self._size(x.upper)
                self.scope = scope
                bound.append(name_of(x.lower))
            elif isinstance(x, ast.Starred):
                bound += self._members(x)
            else:
                bound.append(name_of(x))
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
        given: list[ast.expr] = []
        for x in entries(e.slice):
            if isinstance(x, ast.Starred):
                group = self._members(x)
                given += [ast.copy_location(ast.Name(a), x) for a in group]
            else:
                given.append(x)
        if len(given) > len(slots.axes) and isinstance(entries(e.slice)[0], ast.Starred):
            given = given[len(given) - len(slots.axes) :]  # fewer leading broadcast dims
        if len(given) != len(slots.axes):
            raise self._misfit(f"{name} has {len(slots.axes)} dims", e, got=f"{len(given)} indices")
        index: list[Expr] = []
        for x, axes in zip(given, slots.axes, strict=True):
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


def entries(e: ast.expr) -> list[ast.expr]:
    """The entries of a subscript."""
    return list(e.elts) if isinstance(e, ast.Tuple) else [e]


class NotAName(Exception):
    """Something else stands where an axis or an attribute is named."""

    def __init__(self, at: ast.expr) -> None:
        self.at = at
        super().__init__(ast.unparse(at))


def name_of(e: ast.expr) -> str:
    """A plain name. Raises `NotAName` for anything else."""
    if not isinstance(e, ast.Name):
        raise NotAName(e)
    return e.id
