"""The language of conjectures: one line states that two expressions over tensors are equal.

    conjecture := name: side == side [if test]
    side       := e | (e, e, …) | (e for i in range(N))          N: the width, any number from 2 on
    e          := T | T[size, …] | NUMBER | [e, e, …] | op(e, …, value …, attr=value …) | (T := e)
                                                                  [[1, 0], [0, 1]]: a matrix
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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from whet.ir.graph import Node, apply, full, leaf
from whet.ir.types import DType, Poly, Size, TensorType, substitute
from whet.rewrite import formula
from whet.rewrite.formula import ConjectureError, Scope
from whet.rewrite.syntax import (
    Apply,
    Literal,
    Pattern,
    Reader,
    Sides,
    Var,
    has_dtype,
    is_structural,
    one_key,
    star,
)


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
            reader = Reader(self.text)
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
        return {**scope, **self.values(scope)}

    def values(self, scope: Scope) -> dict[str, object]:
        """The form's own values, where formulas of dims of groups say so at those of `scope`."""
        known: dict[str, Size] = {}
        for name, _ in self.form.ranks:
            dims = scope[name]
            if isinstance(dims, tuple):
                known.update({f"{name}{k}": n for k, n in enumerate(dims)})
        return {n: _at(v, known) for n, v in self.form.values}

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


def _at(value: object, sizes: Mapping[str, Size]) -> object:
    """A structural value, formulas of which are over the dims of groups, at their sizes."""
    if isinstance(value, tuple):
        return tuple(_at(v, sizes) for v in value)
    return substitute(value, sizes) if isinstance(value, Poly) else value


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
        dtype: element type of literals, and of what is made from nothing.
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
                    if "dtype" not in values and has_dtype(op):
                        values["dtype"] = dtype
                    try:
                        done[p] = apply(op, *nodes, **values)
                    except (ArithmeticError, TypeError, AssertionError) as fault:
                        raise ConjectureError(f"{op} cannot be built", got=fault) from None
        return done[p]

    made = [make(p) for p in patterns]
    if None in made:
        raise ConjectureError("a side is left out altogether")
    return tuple(n for n in made if n is not None)


def along(op: str, attr: str, value: object, operand: Node | None) -> object:
    """An attribute's value with axes counted from the front, as graphs have them."""
    if operand is None or not is_structural(op, attr):
        return value
    rank = len(operand.shape) + (op == "stack")
    if not rank:
        return value
    if isinstance(value, tuple):
        return tuple(v % rank if isinstance(v, int) and v < 0 else v for v in value)
    return value % rank if isinstance(value, int) and value < 0 else value


def _parse(body: str) -> ast.expr:
    for text in (body, f"{body} else None"):
        try:
            return ast.parse(text.strip(), mode="eval").body
        except SyntaxError as fault:
            problem = fault
    raise ConjectureError("a conjecture does not parse", got=problem.msg, where=body.strip())
