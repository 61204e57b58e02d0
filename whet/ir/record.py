"""The record grammar: how an operator is written down, and how it is bound to operands.

    record  := head stmt+
    head    := out, … = name( operand …, attr=pattern … )
    operand := T[axis, …]  |  T[axis, …] or number          the second may be left out: its value
    pattern := name | NAME | (names) | NUMBER | (*g,)         NAME is an extent, (*g,) a group's sizes
    axis    := i | *g | (i, j, …) | 1 | axis@attr | +axis | i: size
    stmt    := name[axis, …] = e
    e       := number | inf | i | EXTENT | attr | e (+ - * / // % **) e | fn(e, …)
             | T[e, …] | T[e, …] or e | [cond] | e if cond else e | (sum|max|min|prod)[i, j: SIZE, *g](e)
    cond    := chained < <= == !=, and, or, not

A lower-case name is an index, the same name in upper case its extent; `*b` is a group of any number
of axes, broadcast between operands as numpy does; `(g, c)` a composite axis, row-major; `i@axis`
sits at position `axis`; `h: size` declares a new extent; `+i` may be 1 and broadcast. The text is
Python's expression syntax, read by `ast` and never executed.

`Record.bind` resolves rank, positions and composites: an `Instance` has concrete rank and atomic
axes, and its sizes may still be symbolic. What must hold of symbolic sizes is in its guards.
"""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from whet.errors import RecordError
from whet.ir.bind import Binder
from whet.ir.expr import Expr, show
from whet.ir.scope import NotAName
from whet.ir.types import Size, product

Shape = tuple[Size, ...]


@dataclass(frozen=True, slots=True)
class Slots:
    """How a tensor's dims map to atomic axes.

    `axes[k]` are the axes of the k-th *listed* dim (several for a composite, none for a dim that is
    broadcast), and `dims[k]` is the position of that dim in the tensor.
    """

    axes: tuple[tuple[str, ...], ...]
    dims: tuple[int, ...]

    @property
    def flat(self) -> tuple[str, ...]:
        """All atomic axes, in listed order: the index of a load has one entry for each."""
        return tuple(a for group in self.axes for a in group)


@dataclass(frozen=True, slots=True)
class Let:
    """One assignment: `name[axes] = body`."""

    name: str
    axes: tuple[str, ...]
    body: Expr

    def __repr__(self) -> str:
        return f"{self.name}[{', '.join(self.axes)}] = {show(self.body)}"


@dataclass(frozen=True, slots=True)
class Guard:
    """What must hold of symbolic sizes: `left == right`."""

    left: Size
    right: Size

    def __repr__(self) -> str:
        return f"{self.left} == {self.right}"


@dataclass(frozen=True, slots=True)
class Instance:
    """A record at known ranks.

    Attributes:
        name: the operator.
        outs: names of its results, in order.
        extents: size of every atomic axis, bound ones too.
        operands: operand name to its slots; an operand that was left out is absent.
        lets: assignments in order; loads of operands left out are already replaced.
        results: result name to its slots.
        guards: equalities that symbolic sizes must satisfy.
    """

    name: str
    outs: tuple[str, ...]
    extents: Mapping[str, Size]
    operands: Mapping[str, Slots]
    lets: tuple[Let, ...]
    results: Mapping[str, Slots]
    guards: tuple[Guard, ...]

    def shape(self, out: str | None = None) -> Shape:
        """Shape of a result (the first one by default)."""
        slots = self.results[out or self.outs[0]]
        sizes: list[Size] = [1] * len(slots.dims)
        for axes, dim in zip(slots.axes, slots.dims, strict=True):
            sizes[dim] = product(self.extents[a] for a in axes)
        return tuple(sizes)

    def let(self, name: str) -> Let:
        """The assignment that defines `name`."""
        return next(x for x in self.lets if x.name == name)

    def sizes(self, tensor: str) -> tuple[Size, ...]:
        """Extents of a tensor's atomic axes, in the order that loads index them."""
        slots = self.operands.get(tensor)
        axes = slots.flat if slots is not None else self.let(tensor).axes
        return tuple(self.extents[a] for a in axes)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{a}: {n}" for a, n in self.extents.items())
        return "\n".join([f"{self.name} with {sizes}", *(f"  {x!r}" for x in self.lets)])


class Record:
    """One operator, parsed. Raises `RecordError` with the line and column of a fault."""

    def __init__(self, text: str) -> None:
        self.text = textwrap.dedent("\n".join(line.strip() for line in text.strip().splitlines()))
        try:
            head, *statements = ast.parse(self.text or "()").body
        except SyntaxError as fault:
            raise self.error(f"not an expression: {fault.msg}", fault) from None
        if not (isinstance(head, ast.Assign) and isinstance(head.value, ast.Call)):
            raise self.error(
                "the first line must read  out = name(operand, …, attr=pattern, …)", head
            )
        call, target = head.value, head.targets[0]
        if not isinstance(call.func, ast.Name):
            raise self.error("an operator's name is a plain name", call)
        names = target.elts if isinstance(target, ast.Tuple) else [target]
        self.outs = tuple(ast.unparse(n) for n in names)
        self.name = call.func.id
        self.operands: tuple[tuple[str, ast.Subscript, float | None], ...] = tuple(
            self._operand(a) for a in call.args
        )
        self.patterns: dict[str, ast.expr] = {str(k.arg): k.value for k in call.keywords}
        self.statements: list[tuple[ast.Subscript, ast.expr]] = []
        for s in statements:
            if not (isinstance(s, ast.Assign) and isinstance(s.targets[0], ast.Subscript)):
                raise self.error("a statement must read  name[axis, …] = expression", s)
            self.statements.append((s.targets[0], s.value))
        defined = {ast.unparse(t.value) for t, _ in self.statements}
        missing = [o for o in self.outs if o not in defined]
        if missing:
            raise self.error(f"result {missing[0]} is never assigned", head)

    def _operand(self, a: ast.expr) -> tuple[str, ast.Subscript, float | None]:
        absent: float | None = None
        if isinstance(a, ast.BoolOp) and isinstance(a.op, ast.Or) and len(a.values) == 2:
            a, default = a.values
            absent = float(ast.literal_eval(default))
        if not (isinstance(a, ast.Subscript) and isinstance(a.value, ast.Name)):
            raise self.error("an operand must read  T[axis, …]  or  T[axis, …] or number", a)
        return a.value.id, a, absent

    def bind(self, shapes: Sequence[Shape | None], attrs: Mapping[str, object]) -> Instance:
        """This operator applied to operands of the given shapes.

        Args:
            shapes: one shape for each operand; None for an optional operand that is absent.
            attrs: exactly the attributes of the head.

        Raises:
            RecordError: shapes or attributes do not fit; the message marks the axis.
        """
        try:
            return Binder(self, shapes, attrs).instance()
        except NotAName as fault:
            raise self.error("an axis or attribute is a plain name", fault.at, got=fault) from None

    def error(self, summary: str, at: object = None, **fields: object) -> RecordError:
        """An error that shows the record's line and marks the place."""
        where = self.text
        line, column = getattr(at, "lineno", None), getattr(at, "col_offset", None)
        if isinstance(at, SyntaxError):
            line, column = at.lineno, (at.offset or 1) - 1
        if line is not None and column is not None:
            rows = self.text.splitlines()
            rows.insert(line, " " * column + "^")
            where = "\n".join(rows)
        return RecordError(f"record {self._title()}: {summary}", where=where, **fields)

    def _title(self) -> str:
        return getattr(self, "name", None) or self.text.partition("\n")[0]
