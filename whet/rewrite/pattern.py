"""Finding a conjecture's left side in a graph.

    matches(graph, conjecture, prover) -> Match(rule, tensors, scope, roots), …

A match binds tensor variables to nodes, sizes and attributes to numbers, and so fixes the form:
ranks, axes, width, operands left out. Operands of commutative operators are tried in both orders.
The members of a family are found one by one, then gathered by what they share. What is found is
not trusted: see `whet.rewrite.match`.
"""

from __future__ import annotations

import ast
import functools
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from whet.errors import RecordError
from whet.ir.expr import Call, Load
from whet.ir.functions import FUNCTIONS
from whet.ir.graph import Graph, Node, topological
from whet.ir.ops import TABLE, instance
from whet.ir.types import DType, Size
from whet.rewrite import formula
from whet.rewrite.conjecture import Conjecture, Form, Statement, along
from whet.rewrite.formula import ConjectureError, Unbound
from whet.rewrite.match import Match, apply_match, apply_matches
from whet.rewrite.prove import Prover
from whet.rewrite.rule import Rule, Unknown
from whet.rewrite.syntax import (
    Apply,
    Literal,
    Pattern,
    Sides,
    Var,
    is_structural,
    one_key,
    star,
)

__all__ = [
    "Found",
    "Match",
    "apply_match",
    "apply_matches",
    "commutes",
    "finish",
    "fronted",
    "match_attribute",
    "match_shape",
    "matches",
    "same_number",
]


def matches(
    graph: Graph, conjecture: Conjecture, prover: Prover, *, widest: int = 64
) -> Iterator[Match]:
    """Every match of a conjecture whose statement, at the form found, is proven."""
    if conjecture.is_family:
        yield from _families(graph, conjecture, prover, widest)
        return
    widths = [0]
    if conjecture.wide_op:
        widths = sorted({len(n.args) for n in graph.nodes if n.op == conjecture.wide_op})
    for width in widths:
        yield from _single(graph, conjecture, prover, width)


def _single(graph: Graph, conjecture: Conjecture, prover: Prover, width: int) -> Iterator[Match]:
    sides = conjecture.sides(width)
    first, *others = sides.left
    for node in graph.nodes:
        for found in _match(first, node, Found(sides)):
            for whole in _rest(others, graph, found):
                match = _finish(conjecture, whole, prover, width)
                if match is not None:
                    yield match
                    break


def _rest(others: Sequence[Pattern], graph: Graph, found: Found) -> Iterator[Found]:
    if not others:
        yield found
        return
    for node in graph.nodes:
        if node not in found.roots:
            for more in _match(others[0], node, replace(found, roots=(*found.roots, node))):
                yield from _rest(others[1:], graph, more)


@dataclass(frozen=True)
class Found:
    """Bindings so far; extended by copying."""

    sides: Sides
    scope: Mapping[str, object] = field(default_factory=dict)
    tensors: Mapping[str, Node | None] = field(default_factory=dict)
    pending: tuple[tuple[ast.expr, object], ...] = ()
    ones: tuple[str, ...] = ()
    own: Mapping[Pattern, Node] = field(default_factory=dict)
    flipped: frozenset[Pattern] = frozenset()
    roots: tuple[Node, ...] = ()

    def bind(self, e: ast.expr, value: object) -> Found | None:
        """With formula `e` having `value`; put off while more than one name is unknown."""
        try:
            more = formula.solve(e, value, self.scope)
        except Unbound:
            return replace(self, pending=(*self.pending, (e, value)))
        if more is None:
            return None
        return replace(self, scope={**self.scope, **more}) if more else self

    def settle(self) -> Found | None:
        """With everything that was put off solved, as far as that goes. A number of which only a
        sum with others is known, as of a kernel that is any amount larger, is 0."""
        found: Found | None = self
        while found is not None and found.pending:
            work, before = found.pending, len(found.pending)
            found = replace(found, pending=())
            for e, value in work:
                found = found.bind(e, value) if found is not None else None
            if found is not None and len(found.pending) == before:
                found = found._least()
        return found

    def _least(self) -> Found | None:
        """With the first number that is not known as 0; None where none is left."""
        for e, _ in self.pending:
            for name in sorted(formula.names(e) - self.scope.keys()):
                if name in self.sides.scalars:
                    return replace(self, scope={**self.scope, name: 0})
        return None


def _match(p: Pattern, node: Node, found: Found) -> Iterator[Found]:
    """All ways in which `node` is what `p` says."""
    if not found.roots:
        found = replace(found, roots=(node,))
    match p:
        case Var():
            bound = _match_variable(p, node, found)
            if bound is not None:
                yield bound
        case Literal(value):
            if node.op == "full" and same_number(node, value):
                yield replace(found, own={**found.own, p: node})
        case Apply(op, args, attrs) if node.op == op and len(args) == len(node.args):
            known: Found | None = found
            for name, e in attrs:
                if known is not None:
                    known = match_attribute(fronted(p, name, e, node), node.attr(name), known)
            if known is None:
                return
            yield from _match_operands(args, node.args, known)
            if commutes(op) and len(args) == 2:
                flipped = replace(known, flipped=known.flipped | {p})
                yield from _match_operands(args, node.args[::-1], flipped)


def _match_operands(
    patterns: Sequence[Pattern | None], nodes: Sequence[Node | None], found: Found
) -> Iterator[Found]:
    if not patterns:
        yield found
        return
    p, node = patterns[0], nodes[0]
    if node is None:
        if isinstance(p, Var) and p.optional and p.name not in found.tensors:
            found = replace(found, tensors={**found.tensors, p.name: None})
        elif p is not None:
            return
        yield from _match_operands(patterns[1:], nodes[1:], found)
    elif p is not None:
        for more in _match(p, node, found):
            yield from _match_operands(patterns[1:], nodes[1:], more)


def _match_variable(p: Var, node: Node, found: Found) -> Found | None:
    name = p.name
    if name not in found.sides.variables:  # a number
        value = node.attr("value") if node.op == "full" else None
        if not isinstance(value, (int, float)):
            return None
        bound = found.bind(ast.Name(name), value)
        return replace(bound, own={**bound.own, p: node}) if bound is not None else None
    if name in found.tensors:
        return found if found.tensors[name] is node else None
    known = replace(found, tensors={**found.tensors, name: node})
    shape = found.sides.variables[name].shape
    assert shape is not None
    return match_shape(name, shape, node.shape, known)


def match_shape(
    name: str, dims: Sequence[ast.expr], shape: Sequence[Size], found: Found
) -> Found | None:
    """`found` with the dims of variable `name` having the sizes of `shape`, or None."""
    stars = [g for d in dims if (g := star(d))]
    scope, ones, pending = dict(found.scope), found.ones, found.pending
    if len(shape) < len(dims) - len(stars) or sum(g not in scope for g in stars) > 1:
        return None
    counts = {g: len(v) for g in stars if isinstance(v := scope.get(g), tuple)}
    rest = len(shape) - (len(dims) - len(stars)) - sum(counts.values())
    at = 0
    for k, d in enumerate(dims):
        if isinstance(d, ast.Starred):
            group = star(d)
            assert group
            count = counts.get(group, rest)
            here = tuple(shape[at : at + count])
            if count < 0 or len(here) != count or scope.setdefault(group, here) != here:
                return None
            at += count
            continue
        if at >= len(shape):
            return None
        e = d
        if isinstance(d, ast.UnaryOp):
            e = d.operand
            if shape[at] == 1:
                ones = (*ones, one_key(name, k))
                at += 1
                continue
        try:
            more = formula.solve(e, shape[at], scope)
        except Unbound:
            pending = (*pending, (e, shape[at]))
        else:
            if more is None:
                return None
            scope.update(more)
        at += 1
    return replace(found, scope=scope, ones=ones, pending=pending) if at == len(shape) else None


def fronted(p: Apply, name: str, e: ast.expr, node: Node) -> ast.expr:
    """A written-out axis, counted from the front as graphs have it."""
    if not is_structural(p.op, name) or formula.names(e) or isinstance(e, ast.Name):
        return e
    return _written(repr(along(p.op, name, formula.evaluate(e, {}), (*node.args, None)[0])))


@functools.lru_cache(maxsize=1 << 10)
def _written(value: str) -> ast.expr:
    return ast.parse(value, mode="eval").body


def match_attribute(e: ast.expr, value: object, found: Found) -> Found | None:
    """`found` with attribute formula `e` having `value`, or None."""
    if isinstance(e, ast.Tuple) and isinstance(value, tuple):
        known: Found | None = found
        stars = [x for x in e.elts if isinstance(x, ast.Starred)]
        if len(stars) == 1 and len(value) >= len(e.elts) - 1:
            k = e.elts.index(stars[0])
            after = len(e.elts) - k - 1
            middle = value[k : len(value) - after]
            flat = [*zip(e.elts[:k], value[:k], strict=True), (stars[0].value, middle)]
            flat += zip(e.elts[k + 1 :], value[len(value) - after :], strict=True)
        elif not stars and len(value) == len(e.elts):
            flat = list(zip(e.elts, value, strict=True))
        else:
            return None
        for x, v in flat:
            known = match_attribute(x, v, known) if known is not None else None
        return known
    return found.bind(e, value)


def same_number(node: Node, value: float) -> bool:
    """Whether a literal is `value` at its own precision."""
    found = node.attr("value")
    if not isinstance(found, (int, float)):
        return False
    if found == value or not node.dtype.is_float or node.dtype is DType.f64:
        return float(found) == value
    try:
        return struct.pack("f", found) == struct.pack("f", value)
    except OverflowError:
        return False


@functools.cache
def commutes(op: str) -> bool:
    """Whether an operator's operands may change places, by its record."""
    record = TABLE[op].record
    if record is None or len(record.operands) != 2 or record.patterns:
        return False
    try:
        body = instance(op, ((2,), (2,)), ()).lets[-1].body
    except RecordError:
        return False
    match body:
        case Call(fn, (Load(), Load())):
            known = FUNCTIONS.get(fn)
            return fn in ("+", "*", "==") or (known is not None and "commutative" in known.laws)
    return False


def _finish(conjecture: Conjecture, found: Found, prover: Prover, width: int = 0) -> Match | None:
    """The match that complete bindings make, if its statement is proven."""
    match = finish(conjecture, found, prover, width)
    return match if match is not None and match.fault() is None else None


def finish(
    conjecture: Conjecture, found: Found, prover: Prover, width: int = 0, *, backward: bool = False
) -> Match | None:
    """What complete bindings make, if its statement is proven; whether it is a match is not said.

    Args:
        backward: it is the right side that was found.
    """
    settled = found.settle()
    if settled is None:
        return None
    sides = settled.sides
    names = (*sides.sizes, *sides.scalars, *sides.groups, *sides.structural)
    if any(n not in settled.scope for n in names):
        return None
    if any(n not in settled.tensors for n in sides.variables):
        return None
    if not all(is_positive(settled.scope[n]) for n in (*sides.sizes, *sides.groups)):
        return None
    form = Form(
        width,
        tuple((g, len(settled.scope[g])) for g in sides.groups),  # type: ignore[arg-type]
        tuple((n, settled.scope[n]) for n in sides.structural),
        tuple(n for n in sides.variables if settled.tensors.get(n, n) is None),
        settled.ones,
    )
    scope = dict(settled.scope)
    if conjecture.width_name:
        scope[conjecture.width_name] = width
    statement = Statement(conjecture, form)
    try:
        if formula.assumed(statement.conjecture.condition, scope) is None:
            return None
    except ConjectureError:
        return None
    verdict = prover.prove(statement)
    if isinstance(verdict, Unknown):  # perhaps at these sizes
        verdict = prover.prove(statement.fixed(scope))
    if not isinstance(verdict, Rule):
        return None
    return Match(
        verdict, settled.tensors, scope, settled.roots, settled.own, settled.flipped, backward
    )


def is_positive(value: object) -> bool:
    if isinstance(value, tuple):
        return all(map(is_positive, value))
    return not isinstance(value, int) or value >= 1


# -- families ------------------------------------------------------------------------------------
def _families(graph: Graph, conjecture: Conjecture, prover: Prover, widest: int) -> Iterator[Match]:
    """Members are found one by one, gathered by the names they share, and matched as a whole."""
    sides = conjecture.sides(2)
    gathered: dict[tuple[object, ...], list[Node]] = {}
    for node in graph.nodes:
        for found in _match(sides.left[0], node, Found(sides)):
            settled = found.settle()
            if settled is not None:
                key = tuple(
                    (n, v) for n, v in sorted((*settled.scope.items(), *settled.tensors.items()),
                                              key=lambda item: item[0])
                    if "." not in n
                )  # fmt: skip
                gathered.setdefault((*key, settled.ones), []).append(node)
                break
    for members in gathered.values():
        for roots in _independent(members):
            for start in range(0, len(roots), widest):
                part = roots[start : start + widest]
                if len(part) > 1:
                    match = _family(conjecture, part, prover)
                    if match is not None:
                        yield match


def _family(conjecture: Conjecture, roots: Sequence[Node], prover: Prover) -> Match | None:
    sides = conjecture.sides(len(roots))
    found: Found | None = Found(sides, roots=tuple(roots))
    for p, node in zip(sides.left, roots, strict=True):
        found = next(_match(p, node, found), None) if found is not None else None
    return _finish(conjecture, found, prover, len(roots)) if found is not None else None


def _independent(members: Iterable[Node]) -> list[list[Node]]:
    """Members sorted into lists in which none depends on another, first come first."""
    groups: list[list[Node]] = []
    below: dict[Node, set[Node]] = {}
    nodes = list(dict.fromkeys(members))
    for node in nodes:
        below[node] = set(topological((node,))) - {node}
        for group in groups:
            if not any(m in below[node] or node in below[m] for m in group):
                group.append(node)
                break
        else:
            groups.append([node])
    return groups
