"""The language of conjectures: one line states that two expressions over tensors are equal.

    conjecture := name: side == side [if test]
    side       := e | (e, e, …) | (e for i in range(N))          N: the width, any number from 2 on
    e          := T | T[size, …] | NUMBER | op(e, …, value …, attr=value …) | (T := e)
                | T[size, …] or None                              an operand that may be left out
                | e + e | e - e | e * e | e / e | e @ e | -e
    size       := N | NUMBER | *B | +N | value                    *B: any number of dims; +N: N or 1
    T, N       := name | name.i                                   the i-th member of a family

    associate: matmul(matmul(x[M, K], y[K, N]), z[N, P]) == matmul(x, matmul(y, z))

A tensor's shape stands at its first occurrence. Upper case is a size: a positive integer; lower
case in an attribute is any number (a tuple where the operator's record says so), or, where it names
an axis, a *structural* value: it is fixed before anything is proven. What is fixed is the `Form`:
width, ranks of groups, structural values, operands left out. A conjecture at a form is a
`Statement`; its two sides are graphs over symbols (what is proven) or over matched nodes with
their concrete sizes (what is applied), built by the same function.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeGuard

from whet.ir.graph import Node, apply, full, leaf
from whet.ir.ops import TABLE
from whet.ir.types import DType, Poly, Size, TensorType
from whet.rewrite import formula
from whet.rewrite.formula import ConjectureError, Scope

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


@dataclass(frozen=True, slots=True)
class Form:
    """The structure that a conjecture is proven at.

    Attributes:
        width: members of each family, 0 where there is none.
        ranks: number of dims of each group.
        values: structural attributes.
        absent: tensor variables left out.
        ones: sizes written `+N` that are 1.
    """

    width: int = 0
    ranks: tuple[tuple[str, int], ...] = ()
    values: tuple[tuple[str, object], ...] = ()
    absent: tuple[str, ...] = ()
    ones: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = [f"width {self.width}"] if self.width else []
        parts += [f"rank of {g} {r}" for g, r in self.ranks]
        parts += [f"{n} = {v!r}" for n, v in self.values]
        parts += [f"without {n}" for n in self.absent]
        parts += [f"{n} is 1" for n in self.ones]
        return ", ".join(parts)


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


class Conjecture:
    """One line of text, parsed.

    Raises:
        ConjectureError: the text does not parse; an operator or a shape is missing.
    """

    def __init__(self, text: str) -> None:
        self.text = " ".join(text.split())
        self.name, colon, body = self.text.partition(":")
        self.name = self.name.strip()
        whole = _parse(body) if colon else None
        self.condition: ast.expr | None = None
        if isinstance(whole, ast.IfExp):
            self.condition, whole = whole.test, whole.body
        if not (
            isinstance(whole, ast.Compare) and len(whole.ops) == 1
            and isinstance(whole.ops[0], ast.Eq)
        ):  # fmt: skip
            raise ConjectureError(
                "not a conjecture", expected="name: left == right [if test]", got=self.text
            )
        self._left, self._right = whole.left, whole.comparators[0]
        self._sides: dict[int, Sides] = {}
        self.sides(2 if self.width_name else 0)

    @property
    def is_family(self) -> bool:
        """Whether each side has as many outputs as the width says."""
        return isinstance(self._left, ast.GeneratorExp)

    @functools.cached_property
    def width_name(self) -> str | None:
        """The name of the width, N in `for i in range(N)`, if there is one."""
        for e in ast.walk(self._left):
            if isinstance(e, ast.comprehension) and isinstance(e.iter, ast.Call):
                return ast.unparse(e.iter.args[0])
        return None

    @functools.cached_property
    def wide_op(self) -> str | None:
        """The operator on the left that takes a whole family of operands, if there is one."""
        for e in ast.walk(self._left):
            if isinstance(e, ast.Call) and any(isinstance(a, ast.Starred) for a in e.args):
                return ast.unparse(e.func)
        return None

    def sides(self, width: int = 0) -> Sides:
        """Both sides as patterns, with families unrolled to `width` members."""
        if width not in self._sides:
            known = {self.width_name: width} if self.width_name else {}
            reader = _Reader(self.text)
            left = reader.side(self._left, known)
            self._sides[width] = sides = Sides(left, reader.side(self._right, known))
            if sides.nameless:
                raise ConjectureError(
                    f"tensor {sides.nameless[0]} has no shape where it first occurs",
                    where=self.text,
                )
        return self._sides[width]

    def __repr__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Statement:
    """A conjecture at a form: what is proven, and what is applied."""

    conjecture: Conjecture
    form: Form = field(default_factory=Form)

    @property
    def text(self) -> str:
        """Conjecture and form; equal texts state the same."""
        form = str(self.form)
        return f"{self.conjecture.text}  [{form}]" if form else self.conjecture.text

    @property
    def sides(self) -> Sides:
        return self.conjecture.sides(self.form.width)

    @functools.cached_property
    def symbols(self) -> dict[str, object]:
        """The scope in which every size and number is a symbol.

        Raises:
            ConjectureError: two names would share a symbol, as B0 and a group *B do.
        """
        seen: set[str] = set()

        def symbol(name: str) -> Poly:
            if name in seen:
                raise ConjectureError(f"two sizes would be called {name}", where=self.text)
            seen.add(name)
            return Poly.symbol(name)

        return self.scope(symbol)

    def scope(self, value: Callable[[str], Size]) -> dict[str, object]:
        """A scope with `value(name)` for every size and number; groups and tuples are numbered."""
        sides, arity = self.sides, self.sides.arity
        scope: dict[str, object] = {}
        for name, rank in self.form.ranks:
            scope[name] = tuple(value(f"{name}{k}") for k in range(rank))
        for name in (*sides.sizes, *sides.scalars):
            count = arity.get(name)
            scope[name] = tuple(value(f"{name}{k}") for k in range(count)) if count else value(name)
        if self.conjecture.width_name:
            scope[self.conjecture.width_name] = self.form.width
        return {**scope, **dict(self.form.values)}

    @property
    def coverage(self) -> str:
        """What a proof of this statement covers."""
        names = {*self.sides.sizes, *self.sides.groups}
        fixed = [f"{n} = {v!r}" for n, v in self.form.values if n in names]
        if fixed:
            return f"bounded({', '.join(fixed)})"
        return f"all-shapes ({self.form})" if str(self.form) else "all-shapes"

    def fixed(self, scope: Scope) -> Statement:
        """This statement at the very sizes and numbers of `scope`."""
        sides = self.sides
        names = (*sides.structural, *sides.groups, *sides.sizes, *sides.scalars)
        values = tuple((n, scope[n]) for n in dict.fromkeys(names))
        return Statement(self.conjecture, replace(self.form, values=values))

    def leaves(self, scope: Scope, dtype: DType = DType.f32) -> dict[str, Node | None]:
        """An input for every tensor variable, of the shape that it has in `scope`."""
        found: dict[str, Node | None] = {}
        for name, v in self.sides.variables.items():
            if name in self.form.absent:
                found[name] = None
                continue
            shape: list[Size] = []
            for k, d in enumerate(v.shape or ()):
                group = star(d)
                if group:
                    shape += scope[group]  # type: ignore[arg-type]
                elif one_key(name, k) in self.form.ones:
                    shape.append(1)
                else:
                    inner = d.operand if isinstance(d, ast.UnaryOp) else d
                    shape.append(formula.size(formula.evaluate(inner, scope), d))
            found[name] = leaf("input", name, TensorType(dtype, tuple(shape)))
        return found

    def holds(self, scope: Scope) -> object:
        """The condition in `scope`: True, False, or something symbolic."""
        test = self.conjecture.condition
        return True if test is None else formula.evaluate(test, scope)


def build(
    patterns: Sequence[Pattern],
    tensors: Mapping[str, Node | None],
    scope: Scope,
    dtype: DType = DType.f32,
    own: Mapping[Pattern, Node] | None = None,
    flipped: frozenset[Pattern] = frozenset(),
) -> tuple[Node, ...]:
    """The graph nodes that patterns stand for.

    Args:
        tensors: node of each tensor variable; None for one that is left out.
        scope: sizes, groups and attributes by name.
        dtype: element type of literals.
        own: the very nodes to use for some literals.
        flipped: commutative applications whose operands change places.

    Raises:
        WhetError: operands and attributes do not fit the operators' records.
    """
    done: dict[Pattern, Node | None] = dict(own or {})

    def make(p: Pattern | None) -> Node | None:
        if p is None:
            return None
        if p not in done:
            match p:
                case Var(name):
                    number = scope.get(name) if name not in tensors else None
                    done[p] = full(number, dtype) if number is not None else tensors[name]  # type: ignore[arg-type]
                case Literal(value):
                    done[p] = full(value, dtype)
                case Apply(op, args, attrs):
                    nodes = [make(a) for a in args]
                    if p in flipped:
                        nodes.reverse()
                    values = {
                        name: along(op, name, formula.evaluate(e, scope), (*nodes, None)[0])
                        for name, e in attrs
                    }
                    try:
                        done[p] = apply(op, *nodes, **values)
                    except (ArithmeticError, TypeError, AssertionError) as fault:
                        raise ConjectureError(f"{op} cannot be built", got=fault) from None
        return done[p]

    made = [make(p) for p in patterns]
    if None in made:
        raise ConjectureError("a side is left out altogether")
    return tuple(n for n in made if n is not None)


def walk(patterns: Sequence[Pattern]) -> Iterator[Pattern]:
    """Every pattern below `patterns`, parents first, shared ones again and again."""
    for p in patterns:
        yield p
        if isinstance(p, Apply):
            yield from walk([a for a in p.args if a is not None])


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


def along(op: str, attr: str, value: object, operand: Node | None) -> object:
    """An attribute's value with axes counted from the front, as graphs have them."""
    if operand is None or not is_structural(op, attr):
        return value
    rank = len(operand.shape) + (op == "stack")
    if isinstance(value, tuple):
        return tuple(v % rank if isinstance(v, int) and v < 0 else v for v in value)
    return value % rank if isinstance(value, int) and value < 0 else value


@functools.cache
def tuple_length(op: str, attr: str) -> int:
    """How many numbers an attribute consists of, 0 if it is a single one or of any length."""
    record = TABLE[op].record
    pattern = record.patterns.get(attr) if record is not None else None
    if isinstance(pattern, ast.Tuple) and not _is_group(pattern):
        return len(pattern.elts)
    return 0


def _parse(body: str) -> ast.expr:
    for text in (body, f"{body} else None"):
        try:
            return ast.parse(text.strip(), mode="eval").body
        except SyntaxError as fault:
            problem = fault
    raise ConjectureError("a conjecture does not parse", got=problem.msg, where=body.strip())


class _Reader:
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
        if set(attrs) - {"out"} != set(named):
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
