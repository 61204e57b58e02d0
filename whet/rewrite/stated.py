"""Conjectures that somebody else states: JSON in, conjectures of this house out.

    file    := [entry, …]
    entry   := {"name": TEXT, "inputs": {T: [size, …], …}, "lhs": side, "rhs": side, "if": test}
    side    := "e" | "(e, e, …)"                    expressions, as in whet.rewrite.conjecture
             | "n = e; n = e; …; return (n, …)"     the text of a graph; without return: the last n
             | [side, …]                            several outputs
    size    := NAME | NUMBER | "formula of them"    NAME in any case: a positive integer
    e       := T | n | NUMBER | op(e, …, attr=value, …) | e (+ - * / @) e | -e
    value   := NUMBER | NAME | (value, …) | formula
    test    := comparisons of names and numbers, joined by `and`; may be left out

A name in an attribute is a variable: an axis stands for each axis that there is, what a size is
divided by or counted in (stride, dilation, kernel, groups, sizes) is positive, everything else
(padding, bounds, shifts) is at least 0 unless it is a real number (scales, slopes, eps).

What is stated holds wherever both sides exist. Sizes that the operators force to be equal, or to be
multiples, are made so first; the equations are the guard that the verdict names.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from whet.errors import WhetError
from whet.ir.graph import topological
from whet.ir.ops import TABLE
from whet.ir.types import Poly, Size, substitute
from whet.rewrite import formula
from whet.rewrite.conjecture import Conjecture, Form, Statement, build
from whet.rewrite.formula import ConjectureError
from whet.rewrite.syntax import is_structural

_ROUNDS = 24
_COUNTS = frozenset({"stride", "dilation", "kernel", "groups", "group", "size", "factor", "step"})
_REALS = frozenset({"eps", "scale", "slope", "alpha", "beta", "threshold", "value", "low", "high",
                    "k", "correction"})  # fmt: skip


class NoSuchSizes(WhetError):
    """Both sides never exist at once."""


@dataclass(frozen=True)
class Stated:
    """An entry, read.

    Attributes:
        conjecture: with sizes that are forced to be equal made so.
        guards: the equations that were used, in the entry's own names.
        names: the entry's name of each size and attribute variable.
    """

    name: str
    conjecture: Conjecture
    guards: tuple[str, ...]
    names: Mapping[str, str]

    def forms(self) -> Iterator[Form]:
        """Every choice of axes."""
        sides = self.conjecture.sides()
        if not sides.structural:
            yield Form()
            return
        ranks = [len(v.shape or ()) for v in sides.variables.values()]
        for axis in range(max(ranks, default=0)):
            yield Form(values=tuple((n, axis) for n in sides.structural))


@dataclass
class _Names:
    """The house's names for those of an entry: sizes and positive variables in upper case."""

    tensors: frozenset[str]
    of: dict[str, str] = field(default_factory=dict)

    def size(self, name: str) -> str:
        """A positive integer."""
        return self._new(name, name.upper())

    def scalar(self, name: str) -> str:
        """Any other variable."""
        return self._new(name, name.lower())

    def _new(self, name: str, wanted: str) -> str:
        if name not in self.of:
            taken = {*self.of.values(), *self.tensors}
            choices = (wanted, *(f"{wanted}{k}" for k in range(99)))
            self.of[name] = next(c for c in choices if c not in taken and c not in TABLE)
        return self.of[name]


def stated(entry: Mapping[str, object]) -> Stated:
    """An entry as a conjecture.

    Raises:
        ConjectureError: it cannot be read; says what of it.
        NoSuchSizes: there are no sizes at which both sides exist.
    """
    name = str(entry.get("name", "unnamed"))
    try:
        inputs = entry["inputs"]
        lhs, rhs = entry["lhs"], entry["rhs"]
    except KeyError as fault:
        raise ConjectureError("an entry lacks a field", expected=fault, where=name) from None
    if not isinstance(inputs, Mapping):
        raise ConjectureError("inputs are names with shapes", got=inputs, where=name)
    dims = " ".join(str(d) for shape in inputs.values() for d in _list(shape, name))
    words = {*re.findall(r"[A-Za-z_]\w*", dims), *TABLE}
    tensors = {f"{t}_" if t in words else str(t): shape for t, shape in inputs.items()}
    renamed = {str(t): new for t, new in zip(inputs, tensors, strict=True)}
    names = _Names(frozenset(tensors))
    shapes = {
        t: [_size(d, names, name) for d in _list(shape, name)] for t, shape in tensors.items()
    }
    sides = [_Side(name, renamed, names).outputs(s) for s in (lhs, rhs)]
    if len(sides[0]) != len(sides[1]):
        raise ConjectureError(
            "the sides have other numbers of outputs",
            expected=len(sides[0]), got=len(sides[1]), where=name,
        )  # fmt: skip
    kinds = _kinds(sides, names, frozenset(tensors))
    tests = [_renamed(_parsed(str(entry["if"]), name), kinds)] if entry.get("if") else []
    sides = [[_renamed(e, kinds) for e in side] for side in sides]
    back = {new: old for old, new in names.of.items()}
    nonnegative = sorted(
        names.of[old] for old, kind in kinds.items() if kind is not None and kind[1] == "count"
    )
    test = " and ".join([*map(ast.unparse, tests), *(f"{n} >= 0" for n in nonnegative)])
    return _settled(name, shapes, sides, test, back)


def _list(shape: object, where: str) -> Sequence[object]:
    if not isinstance(shape, (list, tuple)):
        raise ConjectureError("a shape is a list of sizes", got=shape, where=where)
    return shape


def _parsed(text: str, where: str) -> ast.expr:
    try:
        return ast.parse(text.strip(), mode="eval").body
    except SyntaxError as fault:
        raise ConjectureError(
            "an expression does not parse", got=fault.msg, where=f"{where}: {text}"
        ) from None


def _size(d: object, names: _Names, where: str) -> Size:
    if isinstance(d, bool) or not isinstance(d, (int, str)):
        raise ConjectureError("a size is a name, a number or a formula", got=d, where=where)
    if isinstance(d, int):
        return d
    e = _parsed(d, where)
    scope = {n.id: Poly.symbol(names.size(n.id)) for n in ast.walk(e) if isinstance(n, ast.Name)}
    return formula.size(formula.evaluate(e, scope), e)


# -- sides ---------------------------------------------------------------------------------------
@dataclass
class _Side:
    """Reads one side into expressions, one for each output."""

    where: str
    tensors: Mapping[str, str]
    names: _Names

    def outputs(self, side: object) -> list[ast.expr]:
        """Expressions of the outputs; what is used twice is named where it stands first."""
        if isinstance(side, (list, tuple)):
            return [e for s in side for e in self.outputs(s)]
        text = str(side).strip().replace("\t", " ")
        text = "\n".join(line.strip() for line in re.sub(r"#.*", "", text).split("\n"))
        try:
            body = ast.parse(text.replace("; ", "\n")).body
        except SyntaxError as fault:
            raise ConjectureError(
                "a side does not parse", got=fault.msg, where=f"{self.where}: {text}"
            ) from None
        known: dict[str, ast.expr] = {}
        last: ast.expr | None = None
        for statement in body:
            match statement:
                case ast.Assign([ast.Name(target)], value):
                    known[target] = last = self._inlined(value, known)
                case ast.Assign([ast.Tuple()], _):
                    raise ConjectureError("one name for each operator", where=self.where)
                case ast.Return(ast.Call(ast.Name("graph"), _, keywords)):
                    outs = next(k.value for k in keywords if k.arg == "outputs")
                    last = self._inlined(outs, known)
                case ast.Return(value) if value is not None:
                    last = self._inlined(value, known)
                case ast.Expr(value):
                    last = self._inlined(value, known)
                case _:
                    raise ConjectureError(
                        "not part of a side", got=ast.unparse(statement), where=self.where
                    )
        if last is None:
            raise ConjectureError("a side is empty", where=self.where)
        return list(last.elts) if isinstance(last, ast.Tuple) else [last]

    def _inlined(self, e: ast.expr, known: Mapping[str, ast.expr]) -> ast.expr:
        match e:
            case ast.Name(name):
                if name in known:
                    return known[name]
                return ast.Name(self.tensors.get(name, name))
            case ast.Call(ast.Name("input" | "parameter" | "constant"), _, keywords):
                given = {k.arg: k.value for k in keywords}
                called = ast.literal_eval(given["name"])
                return ast.Name(self.tensors.get(called, called))
            case ast.Call(func, args, keywords):
                count = _operands(ast.unparse(func), len(args))
                operands = [self._inlined(a, known) for a in args[:count]]
                return ast.Call(func, [*operands, *args[count:]], keywords)
            case ast.BinOp(left, op, right):
                return ast.BinOp(self._inlined(left, known), op, self._inlined(right, known))
            case ast.UnaryOp(op, x):
                return ast.UnaryOp(op, self._inlined(x, known))
            case ast.Tuple(elts):
                return ast.Tuple([self._inlined(x, known) for x in elts])
            case ast.List(elts):
                return ast.List([self._inlined(x, known) for x in elts])
            case ast.NamedExpr(ast.Name(name), value):
                found = self._inlined(value, known)
                known[name] = found  # type: ignore[index]
                return found
        return e


def _operands(op: str, given: int) -> int:
    """How many of the arguments are tensors; attributes may follow them."""
    record = TABLE[op].record if op in TABLE else None
    return given if record is None else len(record.operands)


def _kinds(
    sides: Sequence[Sequence[ast.expr]], names: _Names, tensors: frozenset[str]
) -> dict[str, tuple[str, str] | None]:
    """(house's name, kind) of every variable in an attribute; kind: size, axis, count or real."""
    found: dict[str, tuple[str, str] | None] = {old: (new, "size") for old, new in names.of.items()}
    uses: dict[str, set[str]] = {}
    for e in (x for side in sides for x in side):
        for call in (c for c in ast.walk(e) if isinstance(c, ast.Call)):
            op = ast.unparse(call.func)
            if op not in TABLE:
                continue
            for attr, value in _attributes(op, call):
                for n in (n for n in ast.walk(value) if isinstance(n, ast.Name)):
                    if n.id in tensors or n.id in found:
                        continue
                    uses.setdefault(n.id, set()).add(_kind(op, attr))
    for old, kinds in uses.items():
        for kind in ("axis", "size", "real", "count"):
            if kind in kinds:
                new = names.size(old) if kind == "size" else names.scalar(old)
                found[old] = (new, kind)
                break
    return found


def _attributes(op: str, call: ast.Call) -> Iterator[tuple[str, ast.expr]]:
    yield from ((str(k.arg), k.value) for k in call.keywords)
    record = TABLE[op].record
    if record is not None:
        named = [n for n, p in record.patterns.items() if not isinstance(p, ast.Constant)]
        yield from zip(named, call.args[len(record.operands) :], strict=False)


def _kind(op: str, attr: str) -> str:
    if attr in _COUNTS:
        return "size"
    if is_structural(op, attr):
        return "axis"
    return "real" if attr in _REALS else "count"


def _renamed(e: ast.expr, kinds: Mapping[str, tuple[str, str] | None]) -> ast.expr:
    class Rename(ast.NodeTransformer):
        def visit_Name(self, node: ast.Name) -> ast.expr:
            kind = kinds.get(node.id)
            return ast.Name(kind[0]) if kind is not None else node

    found = Rename().visit(ast.parse(ast.unparse(e), mode="eval").body)
    assert isinstance(found, ast.expr)
    return found


# -- sizes that are forced -----------------------------------------------------------------------
def _settled(
    name: str, shapes: Mapping[str, Sequence[Size]], sides: Sequence[Sequence[ast.expr]],
    test: str, back: dict[str, str],
) -> Stated:  # fmt: skip
    """With sizes identified until every operator of both sides exists."""
    to, test = _equated(test)
    guards = [f"{back.get(old, old)} == {_named(value, back)}" for old, value in to.items()]
    for _ in range(_ROUNDS):
        conjecture = Conjecture(f"{_plain(name)}: {_text(shapes, sides, test, to)}")
        if len(conjecture.sides().structural) > 0:  # an axis decides what is forced
            return Stated(name, conjecture, tuple(guards), back)
        statement = Statement(conjecture)
        scope = statement.symbols
        leaves = statement.leaves(scope)
        nodes = topological(
            (
                *build(statement.sides.left, leaves, scope),
                *build(statement.sides.right, leaves, scope),
            )
        )
        forced = [
            (g.left, g.right) for n in nodes if not n.is_leaf for g in n.instance.guards
            if g.left != g.right
        ]  # fmt: skip
        if not forced:
            return Stated(name, conjecture, tuple(guards), back)
        more = next((s for a, b in forced if (s := _solved(a, b, scope)) is not None), None)
        if more is not None and isinstance(more[1], int) and not _left_forces(statement, more[0]):
            raise NoSuchSizes(
                "the right side exists only for one size",
                got=f"{back.get(more[0], more[0])} == {more[1]}",
            )
        if more is None:
            if any(_never(a, b) for a, b in forced):
                a, b = next((a, b) for a, b in forced if _never(a, b))
                raise NoSuchSizes("both sides never exist at once", got=f"{a} == {b}")
            return Stated(name, conjecture, tuple(guards), back)
        old, value = more
        if isinstance(value, Poly):
            short = _short(value, {*back, *to, *scope})
            back.update({s: s for s in short.values() if s not in back})
            value = value.substitute({k: Poly.symbol(v) for k, v in short.items()})
        guards.append(f"{back.get(old, old)} == {_named(value, back)}")
        to = {k: substitute(v, {old: value}) for k, v in to.items()}
        to[old] = value
    raise ConjectureError("sizes are forced to be equal without end", where=name)


def _equated(test: str) -> tuple[dict[str, Size], str]:
    """Names that a condition says the values of, with these, and what is left of the condition."""
    if not test:
        return {}, test
    whole = ast.parse(test, mode="eval").body
    both = isinstance(whole, ast.BoolOp) and isinstance(whole.op, ast.And)
    left: list[str] = []
    to: dict[str, Size] = {}
    for part in whole.values if both else [whole]:  # type: ignore[attr-defined]
        match part:
            case ast.Compare(ast.Name(old), [ast.Eq()], [other]) if old not in to:
                names = [n.id for n in ast.walk(other) if isinstance(n, ast.Name)]
                used = {s for v in to.values() for s in Poly.of(v).symbols()}
                if all(n not in to and n != old for n in names) and old not in used:
                    value = formula.evaluate(other, {n: Poly.symbol(n) for n in names})
                    if isinstance(value, Poly) or (isinstance(value, int) and value > 0):
                        to[old] = value
                        continue
        left.append(ast.unparse(part))
    return to, " and ".join(left)


def _left_forces(statement: Statement, symbol: str) -> bool:
    """Whether the left side alone says what a size is."""
    scope = statement.symbols
    left = build(statement.sides.left, statement.leaves(scope), scope)
    guards = [g for n in topological(left) if not n.is_leaf for g in n.instance.guards]
    return any(symbol in Poly.of(g.left - g.right).symbols() for g in guards if g.left != g.right)


def _short(value: Poly, taken: set[str]) -> dict[str, str]:
    """Short names for quotients that an operator introduced."""
    found: dict[str, str] = {}
    for s in sorted(value.symbols()):
        if s not in taken:
            names = (f"Q{k}" for k in range(99))
            found[s] = next(n for n in names if n not in taken and n not in found.values())
    return found


def _named(value: Size, back: Mapping[str, str]) -> str:
    return re.sub(r"[A-Za-z_]\w*", lambda m: back.get(m[0], m[0]), str(value))


def _plain(name: str) -> str:
    return name.replace(":", " ") or "unnamed"


def _solved(a: Size, b: Size, scope: Mapping[str, object]) -> tuple[str, Size] | None:
    """(symbol, value) that makes two sizes equal, where one symbol stands alone in the gap."""
    gap = Poly.of(a - b)
    rows = [(str(m[0]), c) for m, c in gap.terms if len(m) == 1 and abs(c) == 1]
    for symbol, c in sorted(rows, key=lambda r: (r[0] not in scope, r[0]), reverse=False):
        rest = (gap - c * Poly.symbol(symbol)) * -c
        value = rest.collapse() if isinstance(rest, Poly) else rest
        if isinstance(value, Poly) and symbol in value.symbols():
            continue
        if isinstance(value, int) and value < 1:
            continue
        if isinstance(value, Poly) and any(n < 0 for _, n in value.terms):
            continue
        return symbol, value
    return None


def _never(a: Size, b: Size) -> bool:
    """Whether two sizes differ for all positive symbols."""
    terms = [c for _, c in Poly.of(a - b).terms]
    return bool(terms) and (all(c > 0 for c in terms) or all(c < 0 for c in terms))


def _text(
    shapes: Mapping[str, Sequence[Size]], sides: Sequence[Sequence[ast.expr]], test: str,
    to: Mapping[str, Size],
) -> str:  # fmt: skip
    seen: set[str] = set()
    values = {k: ast.parse(str(v), mode="eval").body for k, v in to.items()}

    class Write(ast.NodeTransformer):
        def visit_Name(self, node: ast.Name) -> ast.expr:
            if node.id in shapes:
                if node.id in seen:
                    return node
                seen.add(node.id)
                dims = [str(substitute(d, to)) for d in shapes[node.id]]
                return ast.parse(f"{node.id}[{', '.join(dims) or '()'}]", mode="eval").body
            return values.get(node.id, node)

    written = []
    for side in sides:
        parts = [
            ast.unparse(Write().visit(ast.parse(ast.unparse(e), mode="eval").body)) for e in side
        ]
        written.append(parts[0] if len(parts) == 1 else f"({', '.join(parts)})")
    text = " == ".join(written)
    if test:
        text += " if " + ast.unparse(Write().visit(ast.parse(test, mode="eval").body))
    return text
