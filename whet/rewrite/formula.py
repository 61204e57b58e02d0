"""Formulas over sizes and attributes: the arithmetic that a conjecture's shapes and values use.

    value := N | N.i | NUMBER | (value, …) | value (+ - * / // % **) value | value[value] | -value
           | sum(…) | tuple(…) | range(…) | len(…) | min(…) | max(…)       over a generator, too
    test  := chained < <= > >= == !=, and, or, not

`N.i` is the i-th member of the family N. Names are looked up in a scope, so the same text gives a
number where sizes are known and a polynomial where they are symbols. Python's expression syntax,
read by `ast`, never executed.
"""

from __future__ import annotations

import ast
import copy
import functools
import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence

from whet.errors import WhetError
from whet.ir.types import Poly, Size, substitute

Scope = Mapping[str, object]

_BINARY: Mapping[type[ast.operator], Callable[..., object]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul,
    ast.Div: operator.truediv, ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}  # fmt: skip
_COMPARE: Mapping[type[ast.cmpop], Callable[..., bool]] = {
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge,
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.In: lambda a, b: a in b,
}  # fmt: skip
_ORDER: Mapping[type[ast.cmpop], tuple[bool, int]] = {
    ast.Lt: (True, 1), ast.LtE: (True, 0), ast.Gt: (False, 1), ast.GtE: (False, 0),
}  # fmt: skip
_FUNCTIONS: Mapping[str, Callable[..., object]] = {
    "sum": sum, "tuple": tuple, "range": range, "len": len,
    "min": min, "max": max, "sorted": lambda xs: tuple(sorted(xs)),
}  # fmt: skip


class ConjectureError(WhetError):
    """A conjecture that does not parse, or whose sides cannot be built."""


class Unbound(ConjectureError):
    """A name that a formula needs and the scope does not have."""


class Undecided(ConjectureError):
    """A comparison of symbolic sizes that is true for some of them; `got` is it, as text."""


def assumed(test: ast.expr | None, scope: Scope) -> tuple[str, ...] | None:
    """What must be assumed of symbolic sizes for a condition to hold, as comparisons of them; ()
    where it holds for all, None where it does not hold.

    >>> from whet.ir.types import Poly
    >>> test = ast.parse("s <= t and t <= u", mode="eval").body
    >>> assumed(test, {"s": 0, "t": 3, "u": Poly.symbol("n")})
    ('3 <= n',)
    >>> assumed(test, {"s": 4, "t": 3, "u": Poly.symbol("n")}) is None
    True
    """
    match test:
        case None:
            return ()
        case ast.BoolOp(ast.And(), values):
            parts = [assumed(v, scope) for v in values]
        case ast.Compare(left, [_, _, *_] as ops, rest):
            pairs = zip((left, *rest), ops, rest, strict=False)
            parts = [assumed(ast.Compare(a, [op], [b]), scope) for a, op, b in pairs]
        case _:
            try:
                return () if evaluate(test, scope) is True else None
            except Undecided as fault:
                return (str(fault.got),)
    if any(p is None for p in parts):
        return None
    return tuple(dict.fromkeys(text for p in parts if p is not None for text in p))


def _compared(op: ast.cmpop, a: object, b: object) -> bool:
    """A comparison; sizes are positive integers, and a symbolic one is never 1.

    Raises:
        Undecided: it depends on the sizes.
    """
    if type(op) not in _ORDER or not (isinstance(a, Poly) or isinstance(b, Poly)):
        return _COMPARE[type(op)](a, b)
    less, strict = _ORDER[type(op)]
    gap = Poly.of(b) - Poly.of(a) if less else Poly.of(a) - Poly.of(b)  # type: ignore[arg-type]
    if _least(gap) >= strict:
        return True
    if _least(-gap) >= 1 - strict:
        return False
    sign = ("<" if less else ">") + ("" if strict else "=")
    raise Undecided("a comparison depends on symbolic sizes", got=f"{a} {sign} {b}")


def _least(gap: Size) -> float:
    """A bound that a size does not go below, each symbol being 2 or more."""
    total = 0.0
    for monomial, n in Poly.of(gap).terms:
        if n < 0 and monomial:
            return -math.inf
        total += n * 2 ** sum(isinstance(atom, str) for atom in monomial) if monomial else n
    return total


def evaluate(e: ast.expr, scope: Scope) -> object:
    """The value of a formula.

    Raises:
        Unbound: a name is not in `scope`.
        ConjectureError: the text is no formula.
    """
    match e:
        case ast.Constant(value):
            return value
        case ast.Name(name):
            if name not in scope:
                raise Unbound(f"unknown name {name}", where=ast.unparse(e))
            return scope[name]
        case ast.Attribute(ast.Name(family), index):
            return evaluate(ast.Name(member(family, index, scope)), scope)
        case ast.Tuple(elts) | ast.List(elts):
            found: list[object] = []
            for x in elts:
                if isinstance(x, ast.Starred):
                    found += _sequence(evaluate(x.value, scope))
                else:
                    found.append(evaluate(x, scope))
            return tuple(found)
        case ast.BinOp(left, op, right) if type(op) in _BINARY:
            return _applied(e, _BINARY[type(op)], evaluate(left, scope), evaluate(right, scope))
        case ast.UnaryOp(ast.USub(), x):
            return -evaluate(x, scope)  # type: ignore[operator]
        case ast.UnaryOp(ast.Not(), x):
            return not evaluate(x, scope)
        case ast.BoolOp(op, values):
            results = (bool(evaluate(v, scope)) for v in values)
            return all(results) if isinstance(op, ast.And) else any(results)
        case ast.Compare(left, ops, rest) if all(type(o) in _COMPARE for o in ops):
            found = [evaluate(x, scope) for x in (left, *rest)]
            return all(_compared(o, a, b) for o, a, b in zip(ops, found, found[1:], strict=False))
        case ast.Subscript(value, index):
            return _sequence(evaluate(value, scope))[_integer(evaluate(index, scope))]
        case ast.IfExp(test, then, other):
            return evaluate(then if evaluate(test, scope) else other, scope)
        case ast.GeneratorExp(element, [rule]):
            return tuple(evaluate(element, s) for s in comprehend(rule, scope))
        case ast.Call(ast.Name(name), args, []) if name in _FUNCTIONS:
            return _applied(e, _FUNCTIONS[name], *(evaluate(a, scope) for a in args))
    raise ConjectureError(
        "not a formula", where=ast.unparse(e), expected="see whet.rewrite.formula"
    )


def _applied(e: ast.expr, function: Callable[..., object], *values: object) -> object:
    try:
        return function(*values)
    except (TypeError, ValueError, ArithmeticError) as fault:
        raise ConjectureError("a formula has no value", where=ast.unparse(e), got=fault) from None


def member(family: str, index: str, scope: Scope) -> str:
    """Name of the member of a family that `family.index` means: `w.i` is "w.0" where i is 0."""
    if index not in scope:
        raise Unbound(f"unknown name {index}", where=f"{family}.{index}")
    return f"{family}.{scope[index]}"


class _Fix(ast.NodeTransformer):
    def __init__(self, known: Mapping[str, int]) -> None:
        self.known = known

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Constant(self.known[node.id]) if node.id in self.known else node

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        assert isinstance(node.value, ast.Name)
        if node.attr in self.known:
            return ast.Name(member(node.value.id, node.attr, self.known))
        return node


def fix(e: ast.expr, known: Mapping[str, int]) -> ast.expr:
    """`e` with the names of `known` replaced by their numbers, also where they pick a member."""
    fixed = _Fix(known).visit(copy.deepcopy(e)) if known else e
    assert isinstance(fixed, ast.expr)
    return fixed


def comprehend(rule: ast.comprehension, scope: Scope) -> Iterator[Scope]:
    """The scopes of a generator's rounds: `for i in …`, with its conditions."""
    if not isinstance(rule.target, ast.Name):
        raise ConjectureError("a generator binds one name", where=ast.unparse(rule))
    for value in _sequence(evaluate(rule.iter, scope)):
        inner = {**scope, rule.target.id: value}
        if all(evaluate(test, inner) for test in rule.ifs):
            yield inner


@functools.lru_cache(maxsize=1 << 16)
def names(e: ast.expr) -> frozenset[str]:
    """Every name that a formula reads, those that its generators bind excepted."""
    families = {x.value.id for x in ast.walk(e) if isinstance(x, ast.Attribute)
                if isinstance(x.value, ast.Name)}  # fmt: skip
    found = {x.id for x in ast.walk(e) if isinstance(x, ast.Name)} - families
    bound = {x.target.id for x in ast.walk(e) if isinstance(x, ast.comprehension)
             if isinstance(x.target, ast.Name)}  # fmt: skip
    return frozenset(found - bound - _FUNCTIONS.keys())


def solve(e: ast.expr, value: object, scope: Scope) -> dict[str, object] | None:
    """What the unknown name of `e` must be for `e` to have `value`.

    Returns:
        {} if all names are known and the value is right, one binding if one name is unknown and
        occurs linearly or says where in a tuple without repetitions the value is, None where there
        is no solution.

    Raises:
        Unbound: more than one name is unknown, or the unknown does not occur linearly.
    """
    if isinstance(e, ast.Name):
        return {e.id: value} if e.id not in scope else {} if scope[e.id] == value else None
    match e:
        case ast.Subscript(ast.Name(whole), ast.Name(name)) if name not in scope and whole in scope:
            places = list(_sequence(scope[whole]))
            return {name: places.index(value)} if value in places else None
    unknown = sorted(names(e) - scope.keys())
    if not unknown:
        return {} if evaluate(e, scope) == value else None
    if len(unknown) > 1 or not isinstance(value, int):
        raise Unbound(f"unknown name {unknown[0]}", where=ast.unparse(e))
    name = unknown[0]
    total = evaluate(e, {**scope, name: Poly.symbol(name)})
    at = [substitute(total, {name: k}) for k in (0, 1, 2)] if isinstance(total, Poly) else []
    if not at or not all(isinstance(v, int) for v in at) or at[2] - at[1] != at[1] - at[0]:
        raise Unbound(f"{name} does not occur linearly", where=ast.unparse(e))
    slope, rest = at[1] - at[0], value - at[0]
    if slope == 0 or not isinstance(slope, int) or not isinstance(rest, int) or rest % slope:
        return None
    return {name: rest // slope}


def size(value: object, where: ast.AST) -> Size:
    """`value` as a size. Raises `ConjectureError` where it is none."""
    if isinstance(value, (int, Poly)):
        return value
    raise ConjectureError("not a size", got=value, where=ast.unparse(where))


def _sequence(value: object) -> Sequence[object]:
    if isinstance(value, (tuple, range)):
        return value
    raise ConjectureError("not a tuple", got=value)


def _integer(value: object) -> int:
    if isinstance(value, int):
        return value
    raise ConjectureError("not a number", got=value)
