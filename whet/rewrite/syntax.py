"""The patterns that conjectures are made of, and what the names in them stand for.

    Pattern = Var(name, shape) | Literal(value) | Apply(op, args, attrs)

Shapes and attribute values stay formulas: what they are is known once sizes are, or once they are
symbols. What kind a name is follows from where it stands: in a shape, in an attribute, with a star.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeGuard

from whet.ir.ops import TABLE
from whet.rewrite import formula
from whet.rewrite.formula import ConjectureError

_INFIX: Mapping[type[ast.operator], str] = {
    ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul", ast.Div: "div", ast.MatMult: "matmul",
}  # fmt: skip


@dataclass(frozen=True, eq=False, slots=True)
class Var:
    """A tensor variable, or the name of a number; `shape` stands at the first occurrence only."""

    name: str
    shape: tuple[ast.expr, ...] | None
    optional: bool = False


@dataclass(frozen=True, eq=False, slots=True)
class Literal:
    """A number."""

    value: float


@dataclass(frozen=True, eq=False, slots=True)
class Apply:
    """An operator applied to patterns; attribute values are formulas."""

    op: str
    args: tuple[Pattern | None, ...]
    attrs: tuple[tuple[str, ast.expr], ...]


Pattern = Var | Literal | Apply


@dataclass(frozen=True)
class Sides:
    """Both sides of a conjecture at one width, as patterns, and what its names stand for.

    Attributes:
        sizes: names of positive integers.
        scalars: names of numbers in attributes; `arity` has the length of those that are tuples.
        structural: names of attributes that are fixed by the form.
    """

    left: tuple[Pattern, ...]
    right: tuple[Pattern, ...]

    @functools.cached_property
    def variables(self) -> Mapping[str, Var]:
        """Tensor variables by name, each with its shape."""
        found: dict[str, Var] = {}
        for p in walk((*self.left, *self.right)):
            if isinstance(p, Var):
                if p.shape is not None:
                    found.setdefault(p.name, p)
        return found

    @functools.cached_property
    def nameless(self) -> tuple[str, ...]:
        """Names that stand where a tensor does and are neither tensors nor numbers."""
        known = {*self.variables, *self.scalars, *self.sizes, *self.structural}
        found = (p.name for p in walk((*self.left, *self.right)) if isinstance(p, Var))
        return tuple(n for n in dict.fromkeys(found) if n not in known)

    @functools.cached_property
    def groups(self) -> tuple[str, ...]:
        """Names of groups of dims."""
        return tuple(dict.fromkeys(
            name for v in self.variables.values() for d in v.shape or () if (name := star(d))
        ))  # fmt: skip

    @functools.cached_property
    def stretched(self) -> tuple[str, ...]:
        """Keys of the dims written `+N`, as `one_key` makes them."""
        return tuple(
            one_key(v.name, k)
            for v in self.variables.values()
            for k, d in enumerate(v.shape or ())
            if isinstance(d, ast.UnaryOp) and isinstance(d.op, ast.UAdd)
        )

    @functools.cached_property
    def sizes(self) -> tuple[str, ...]:
        """Names of positive integers, in shapes or upper case in attributes."""
        found = [n for v in self.variables.values() for d in v.shape or () if not star(d)
                 for n in sorted(formula.names(d))]  # fmt: skip
        found += [n for n in self._attribute_names() if n.isupper()]
        fixed = {*self.groups, *self.structural}
        return tuple(n for n in dict.fromkeys(found) if n not in fixed)

    @functools.cached_property
    def scalars(self) -> tuple[str, ...]:
        """Names of numbers, lower case in attributes."""
        known = {*self.sizes, *self.groups, *self.structural}
        return tuple(dict.fromkeys(n for n in self._attribute_names() if n not in known))

    @functools.cached_property
    def structural(self) -> tuple[str, ...]:
        """Names whose values are fixed by the form: of axes, and of what a formula divides by."""
        found: list[str] = []
        for p in walk((*self.left, *self.right)):
            if not isinstance(p, Apply):
                continue
            for name, e in p.attrs:
                if isinstance(e, ast.Name) and is_structural(p.op, name):
                    found.append(e.id)
                found += (n for d in ast.walk(e) if _divides(d) for n in sorted(formula.names(d)))
        return tuple(dict.fromkeys(found))

    @functools.cached_property
    def arity(self) -> Mapping[str, int]:
        """Length of each name that stands for a whole tuple of numbers."""
        return {
            e.id: count
            for p in walk((*self.left, *self.right)) if isinstance(p, Apply)
            for name, e in p.attrs
            if isinstance(e, ast.Name) and (count := tuple_length(p.op, name))
        }  # fmt: skip

    def _attribute_names(self) -> Iterator[str]:
        for p in walk((*self.left, *self.right)):
            if isinstance(p, Apply):
                for _, e in p.attrs:
                    yield from sorted(formula.names(e))


def walk(patterns: Sequence[Pattern]) -> Iterator[Pattern]:
    """Every pattern below `patterns`, parents first, shared ones again and again."""
    for p in patterns:
        yield p
        if isinstance(p, Apply):
            yield from walk([a for a in p.args if a is not None])


def operators(patterns: Sequence[Pattern]) -> frozenset[str]:
    """What operators patterns apply, but for what makes a tensor from nothing."""
    return frozenset(p.op for p in walk(patterns) if isinstance(p, Apply) and not has_dtype(p.op))


def _divides(e: ast.AST) -> TypeGuard[ast.BinOp]:
    return isinstance(e, ast.BinOp) and isinstance(e.op, ast.Div)


def star(d: ast.expr) -> str | None:
    """The group's name if a dim is written `*B`."""
    return d.value.id if isinstance(d, ast.Starred) and isinstance(d.value, ast.Name) else None


def one_key(tensor: str, dim: int) -> str:
    """How a form names a dim written `+N`."""
    return f"{tensor}[{dim}]"


def _is_group(pattern: ast.expr) -> bool:
    return isinstance(pattern, ast.Tuple) and isinstance(pattern.elts[0], ast.Starred)


@functools.cache
def is_structural(op: str, attr: str) -> bool:
    """Whether an attribute says where axes are or how many: nothing is known before it is."""
    record = TABLE[op].record
    if record is None or _is_group(record.patterns[attr]):
        return True
    trees: list[ast.AST] = [pattern for _, pattern, _ in record.operands]
    trees += [target for target, _ in record.statements]
    pinned = {ast.unparse(x.right) for t in trees for x in ast.walk(t)
              if isinstance(x, ast.BinOp) and isinstance(x.op, ast.MatMult)}  # fmt: skip
    return ast.unparse(record.patterns[attr]) in pinned


@functools.cache
def tuple_length(op: str, attr: str) -> int:
    """How many numbers an attribute consists of, 0 if it is a single one or of any length."""
    record = TABLE[op].record
    pattern = record.patterns.get(attr) if record is not None else None
    if isinstance(pattern, ast.Tuple) and not _is_group(pattern):
        return len(pattern.elts)
    return 0


@functools.cache
def has_dtype(op: str) -> bool:
    """Whether an operator makes a tensor from nothing, of a type that its context gives."""
    record = TABLE[op].record
    return record is not None and not record.operands and "dtype" in record.patterns


class Reader:
    """Reads patterns; `(y := e)` is known from then on."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.named: dict[str, Pattern] = {}

    def side(self, e: ast.expr, known: Mapping[str, int]) -> tuple[Pattern, ...]:
        return tuple(self._each(e.elts if isinstance(e, ast.Tuple) else [e], known))

    def _each(self, es: Sequence[ast.expr], known: Mapping[str, int]) -> Iterator[Pattern]:
        for e in es:
            inner = e.value if isinstance(e, ast.Starred) else e
            if isinstance(inner, ast.GeneratorExp):
                for scope in formula.comprehend(inner.generators[0], known):
                    yield self._read(inner.elt, scope)  # type: ignore[arg-type]
            else:
                yield self._read(e, known)

    def _read(self, e: ast.expr, known: Mapping[str, int]) -> Pattern:
        match e:
            case ast.Name() | ast.Attribute():
                name = self._name(e, known)
                return self.named.get(name) or Var(name, None)
            case ast.Subscript(ast.Name() | ast.Attribute() as tensor, dims):
                entries = dims.elts if isinstance(dims, ast.Tuple) else [dims]
                shape = tuple(formula.fix(d, known) for d in entries)
                return Var(self._name(tensor, known), shape)
            case ast.BoolOp(ast.Or(), [first, ast.Constant(None)]):
                found = self._read(first, known)
                if isinstance(found, Var):
                    return Var(found.name, found.shape, optional=True)
            case ast.Constant(int() | float() as number):
                return Literal(float(number))
            case ast.UnaryOp(ast.USub(), ast.Constant(int() | float() as number)):
                return Literal(-float(number))
            case ast.UnaryOp(ast.USub(), x):
                return Apply("neg", (self._read(x, known),), ())
            case ast.BinOp(left, op, right) if type(op) in _INFIX:
                return Apply(
                    _INFIX[type(op)], (self._read(left, known), self._read(right, known)), ()
                )
            case ast.List(elts) if elts:
                rows = tuple(self._read(x, known) for x in elts)
                return Apply("stack", rows, (("axis", ast.Constant(0)),))
            case ast.NamedExpr(ast.Name(name), value):
                self.named[name] = self._read(value, known)
                return self.named[name]
            case ast.Call(ast.Name(op)) if op in TABLE:
                return self._apply(op, e, known)
        raise ConjectureError("not part of a conjecture", got=ast.unparse(e), where=self.text)

    def _apply(self, op: str, e: ast.Call, known: Mapping[str, int]) -> Pattern:
        record = TABLE[op].record
        given = list(e.args)
        attrs = {str(k.arg): formula.fix(k.value, known) for k in e.keywords}
        if record is None:
            return Apply(op, tuple(self._each(given, known)), tuple(sorted(attrs.items())))
        count = len(record.operands)
        args: list[Pattern | None] = [
            None if isinstance(a, ast.Constant) and a.value is None else self._read(a, known)
            for a in given[:count]
        ]
        for _, _, absent in record.operands[len(args) :]:
            if absent is None:
                raise ConjectureError(f"{op} lacks an operand", got=ast.unparse(e), where=self.text)
            args.append(None)
        named = [n for n, p in record.patterns.items() if not isinstance(p, ast.Constant)]
        for name, value in zip(named, given[count:], strict=False):
            attrs[name] = formula.fix(value, known)
        wanted = set(named) - ({"dtype"} if has_dtype(op) and "dtype" not in attrs else set())
        if set(attrs) - {"out"} != wanted:
            raise ConjectureError(
                f"{op} has other attributes", expected=", ".join(named) or "none",
                got=ast.unparse(e), where=self.text,
            )  # fmt: skip
        return Apply(op, tuple(args), tuple(sorted(attrs.items())))

    def _name(self, e: ast.expr, known: Mapping[str, int]) -> str:
        return (
            str(ast.unparse(formula.fix(e, known)))
            if isinstance(e, ast.Attribute)
            else str(ast.unparse(e))
        )
