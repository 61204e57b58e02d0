"""Expressions of index notation: what stands on the right of a record's assignments.

    Expr   = Num(value)                     a number, or a size (`Poly`) used as a number
           | Index(name)                    the position along an axis
           | Load(tensor, index, outside)   an element; `outside` is its value out of bounds
           | Reduce(kind, axes, body)       sum, max, min or prod over bound axes
           | Select(test, then, other)      strict: the branch not taken never shows, NaN included
           | Call(fn, args)                 arithmetic, comparison, logic or a scalar function

Every expression is immutable and hashable. A bound axis appears once in the whole record, so
substitution cannot capture.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from whet.ir.types import Poly, Size, floordiv

ARITHMETIC = frozenset({"+", "-", "*", "/", "//", "%", "**"})
COMPARISON = frozenset({"<", "<=", "=="})
LOGIC = frozenset({"and", "or", "not"})
REDUCTIONS: Mapping[str, float] = {"sum": 0, "max": -math.inf, "min": math.inf, "prod": 1}


@dataclass(frozen=True, slots=True)
class Num:
    value: int | float | Poly


@dataclass(frozen=True, slots=True)
class Index:
    name: str


@dataclass(frozen=True, slots=True)
class Load:
    tensor: str
    index: tuple[Expr, ...]
    outside: Expr | None = None


@dataclass(frozen=True, slots=True)
class Reduce:
    kind: str
    axes: tuple[str, ...]
    body: Expr


@dataclass(frozen=True, slots=True)
class Select:
    test: Expr
    then: Expr
    other: Expr


@dataclass(frozen=True, slots=True)
class Call:
    fn: str
    args: tuple[Expr, ...]


Expr = Num | Index | Load | Reduce | Select | Call
ZERO, ONE = Num(0), Num(1)


def children(e: Expr) -> tuple[Expr, ...]:
    """The direct subexpressions, in reading order."""
    if isinstance(e, Call):  # asked so often that the order of the questions counts
        return e.args
    if isinstance(e, (Index, Num)):
        return ()
    if isinstance(e, Load):
        return e.index if e.outside is None else (*e.index, e.outside)
    return (e.body,) if isinstance(e, Reduce) else (e.test, e.then, e.other)


def walk(e: Expr) -> Iterator[Expr]:
    """`e` and everything below it, parents first."""
    stack = [e]
    while stack:
        node = stack.pop()
        yield node
        if below := children(node):
            stack.extend(below[::-1])


def rebuild(e: Expr, f: Callable[[Expr], Expr]) -> Expr:
    """`e` with `f` applied to each direct subexpression, simplified again."""
    match e:
        case Load(tensor, index, outside):
            return Load(tensor, tuple(map(f, index)), None if outside is None else f(outside))
        case Reduce(kind, axes, body):
            return Reduce(kind, axes, f(body))
        case Select(test, then, other):
            return select(f(test), f(then), f(other))
        case Call(fn, args):
            return call(fn, *map(f, args))
    return e


def substitute(e: Expr, values: Mapping[str, Expr]) -> Expr:
    """`e` with free indices replaced. Bound axes must not occur in `values`."""
    if isinstance(e, Index):
        return values.get(e.name, e)
    return rebuild(e, lambda x: substitute(x, values))


def free(e: Expr) -> frozenset[str]:
    """Names of the axes that `e` depends on and does not bind itself."""
    if isinstance(e, Index):
        return frozenset((e.name,))
    found: frozenset[str] = frozenset()
    for child in children(e):
        if not isinstance(child, Num):
            found |= free(child)
    return found - frozenset(e.axes) if isinstance(e, Reduce) else found


def loads(e: Expr) -> Iterator[Load]:
    """Every load in `e`, those inside indices too."""
    return (x for x in walk(e) if isinstance(x, Load))


def affine(e: Expr) -> tuple[dict[str, Size], Size] | None:
    """`e` as (coefficient per index, constant), or None where it is not affine."""
    match e:
        case Index(name):
            return {name: 1}, 0
        case Num(value) if not isinstance(value, float):
            return {}, value
        case Call("+" | "-" as fn, (left, right)):
            a, b = affine(left), affine(right)
            if a is None or b is None:
                return None
            sign = 1 if fn == "+" else -1
            total = dict(a[0])
            for name, c in b[0].items():
                total[name] = total.get(name, 0) + sign * c
            return {k: c for k, c in total.items() if c != 0}, a[1] + sign * b[1]
        case Call("*", (left, right)):
            a, b = affine(left), affine(right)
            if a is None or b is None or (a[0] and b[0]):
                return None
            many, scale = (b, a[1]) if b[0] else (a, b[1])
            return {k: c * scale for k, c in many[0].items()}, many[1] * scale
    return None


def _exact(value: int | float | Poly) -> bool:
    return not isinstance(value, float)


def call(fn: str, *args: Expr) -> Expr:
    """`fn(*args)` with the arithmetic of known sizes carried out and neutral elements dropped."""
    if fn in ARITHMETIC:
        if fn == "-" and len(args) == 1:
            return call("*", Num(-1), args[0])
        return _arithmetic(fn, args[0], args[1])
    if fn in COMPARISON:
        a, b = args
        if isinstance(a, Num) and isinstance(b, Num):
            known = _compare(fn, a.value, b.value)
            if known is not None:
                return Num(int(known))
    elif fn in ("and", "or"):
        a, b = args
        for x, y in ((a, b), (b, a)):
            if isinstance(x, Num):
                return y if bool(x.value) == (fn == "and") else x
    elif fn == "not" and isinstance(args[0], Num):
        return Num(int(not args[0].value))
    return Call(fn, args)


def _compare(fn: str, a: int | float | Poly, b: int | float | Poly) -> bool | None:
    if isinstance(a, Poly) or isinstance(b, Poly):
        return True if a == b and fn in ("<=", "==") else None
    return a < b if fn == "<" else a <= b if fn == "<=" else a == b


def _arithmetic(fn: str, a: Expr, b: Expr) -> Expr:
    if isinstance(a, Num) and isinstance(b, Num) and _exact(a.value) and _exact(b.value):
        x, y = a.value, b.value
        assert not isinstance(x, float)
        assert not isinstance(y, float)
        match fn:
            case "+":
                return Num(x + y)
            case "-":
                return Num(x - y)
            case "*":
                return Num(x * y)
            case "//":
                return Num(floordiv(x, y))
            case "%" if isinstance(x, int) and isinstance(y, int):
                return Num(x % y)
            case "**" if isinstance(x, int) and isinstance(y, int) and y >= 0:
                return Num(x**y)
    if (fn in ("*", "/", "//") and b == ONE) or (fn in ("+", "-") and b == ZERO):
        return a
    if (fn == "*" and a == ONE) or (fn == "+" and a == ZERO):
        return b
    if fn == "%" and b == ONE:
        return ZERO
    if fn == "*" and ((a == ZERO and isinstance(b, Index)) or (b == ZERO and isinstance(a, Index))):
        return ZERO
    return Call(fn, (a, b))


def select(test: Expr, then: Expr, other: Expr) -> Expr:
    """`then if test else other`, decided where the test is known."""
    if isinstance(test, Num):
        return then if test.value else other
    return Select(test, then, other)


_BINDING = {"or": 1, "and": 2, "not": 3, "<": 4, "<=": 4, "==": 4, "+": 5, "-": 5,
            "*": 6, "/": 6, "//": 6, "%": 6, "**": 8}  # fmt: skip


def show(e: Expr, outer: int = 0) -> str:
    """`e` in the notation of records."""
    match e:
        case Num(value):
            text = str(value)
            compound = " " in text or "*" in text or text.startswith("-")
            return f"({text})" if outer >= 6 and compound else text
        case Index(name):
            return name
        case Load(tensor, index, outside):
            text = f"{tensor}[{', '.join(map(show, index))}]" if index else f"{tensor}[()]"
            return text if outside is None else f"({text} or {show(outside)})"
        case Reduce(kind, axes, body):
            return f"{kind}[{', '.join(axes)}]({show(body)})"
        case Select(test, then, other):
            if then == ONE and other == ZERO:
                return f"[{show(test)}]"
            return f"({show(then)} if {show(test)} else {show(other)})"
        case Call("not", (x,)):
            return f"(not {show(x, 4)})"
        case Call(fn, (a, b)) if fn in _BINDING:
            level = _BINDING[fn]
            text = f"{show(a, level)} {fn} {show(b, level + 1)}"
            return f"({text})" if outer > level else text
        case Call(fn, args):
            return f"{fn}({', '.join(map(show, args))})"
