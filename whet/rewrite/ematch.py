"""Finding a side of a conjecture in an e-graph.

    found(view, way, prover) -> Match, …          way: a conjecture, read forward or backward

Patterns are matched class by class, bindings being representatives of classes. A pattern with
several outputs is a join: each output is matched alone, then those that agree on what they share
are put together. The members of a family are gathered by what they share, as many as there are:
one match of the greatest width, in the order the terms came in, instead of all subsets in all
orders. What a match binds is built and compared by whoever applies it; nothing here is trusted.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from whet.ir.graph import Node
from whet.rewrite.conjecture import Conjecture
from whet.rewrite.egraph import EGraph, ENode
from whet.rewrite.match import Match
from whet.rewrite.pattern import (
    Found,
    commutes,
    finish,
    fronted,
    match_attribute,
    match_shape,
    same_number,
)
from whet.rewrite.prove import Prover
from whet.rewrite.syntax import Apply, Literal, Pattern, Sides, Var, walk

WIDEST = 64


@dataclass(frozen=True, slots=True)
class Way:
    """A conjecture to be read in one direction."""

    conjecture: Conjecture
    backward: bool = False

    @property
    def name(self) -> str:
        """The rule's name, marked where it is read from right to left."""
        return self.conjecture.name + (" (backward)" if self.backward else "")

    def patterns(self, width: int = 0) -> tuple[Sides, tuple[Pattern, ...]]:
        """Both sides, and the side to look for."""
        sides = self.conjecture.sides(width)
        return sides, sides.right if self.backward else sides.left


def ways(
    conjectures: Iterable[Conjecture], *, both: bool | Collection[str] = False
) -> tuple[Way, ...]:
    """The directions in which conjectures can be read.

    Args:
        both: also from right to left, all of them or those of these names, where that side is not a
            lone variable (which would match everything) and names all that the other side needs.
    """
    turned = both if isinstance(both, Collection) else None
    found: list[Way] = []
    for c in conjectures:
        found.append(Way(c))
        wanted = both if turned is None else c.name in turned
        if wanted and not c.is_family and not c.width_name and _is_reversible(c.sides()):
            found.append(Way(c, backward=True))
    return tuple(found)


def _is_reversible(sides: Sides) -> bool:
    if not all(isinstance(p, Apply) for p in sides.right):
        return False
    named = {p.name for p in walk(sides.right) if isinstance(p, Var)}
    needed = {p.name for p in walk(sides.left) if isinstance(p, Var)}
    return needed <= named


class View:
    """An e-graph as it stands now, by class and by operator.

    Args:
        idle: says of a class that no match begins there.
    """

    def __init__(self, classes: EGraph, idle: Callable[[Node], bool] = lambda _: False) -> None:
        self.classes = classes
        self.members: dict[Node, dict[str, list[ENode]]] = {}
        self.by_op: dict[str, list[tuple[Node, ENode]]] = {}
        self.order: dict[Node, int] = {}
        for number, (cls, enode) in enumerate(classes.enodes()):
            op = enode.node.op
            self.members.setdefault(cls, {}).setdefault(op, []).append(enode)
            if not idle(cls):
                self.by_op.setdefault(op, []).append((cls, enode))
            self.order.setdefault(cls, number)

    def having(self, cls: Node, op: str) -> Sequence[ENode]:
        """The e-nodes of a class that apply an operator."""
        return self.members[cls].get(op, ())


def found(
    view: View,
    way: Way,
    prover: Prover,
    changed: Collection[Node] | None = None,
    made: Collection[Node] = (),
) -> Iterator[Match]:
    """Every match of one side of a conjecture that is proven at the form found.

    Args:
        changed: classes to begin at; all by default. A join begins at all of them.
        made: nodes that this very family has made: its members are looked for elsewhere.
    """
    c = way.conjecture
    if c.is_family:
        yield from _families(view, way, prover, made)
        return
    widths = [0]
    if c.wide_op:
        wide = (e for ops in view.members.values() for e in ops.get(c.wide_op, ()))
        widths = sorted({len(e.args) for e in wide})
    for width in widths:
        sides, patterns = way.patterns(width)
        for bindings in _joined(view, patterns, sides, changed):
            match = finish(c, bindings, prover, width, backward=way.backward)
            if match is not None:
                yield match


def _joined(
    view: View, patterns: Sequence[Pattern], sides: Sides, changed: Collection[Node] | None
) -> Iterator[Found]:
    first, *others = patterns
    if not others:
        yield from _everywhere(view, first, Found(sides), changed)
        return
    partial = list(_everywhere(view, first, Found(sides), None))
    for p in others:
        tables: dict[tuple[str, ...], dict[tuple[object, ...], list[Node]]] = {}
        alone = list(_everywhere(view, p, Found(sides), None))
        extended: list[Found] = []
        for have in partial:
            shared = tuple(sorted(_variables(p, sides) & have.tensors.keys()))
            if shared not in tables:
                table = tables[shared] = {}
                for other in alone:
                    key = tuple(other.tensors.get(n) for n in shared)
                    table.setdefault(key, []).append(other.roots[0])
            rest = tables[shared].get(tuple(have.tensors[n] for n in shared), ())
            for root in dict.fromkeys(rest):
                if root not in have.roots:
                    begun = replace(have, roots=(*have.roots, root))
                    extended += _match(view, p, root, begun)
        partial = extended
    yield from partial


def _variables(p: Pattern, sides: Sides) -> set[str]:
    return {v.name for v in walk((p,)) if isinstance(v, Var) and v.name in sides.variables}


def _everywhere(
    view: View, p: Pattern, begun: Found, changed: Collection[Node] | None
) -> Iterator[Found]:
    if not isinstance(p, Apply):
        return
    for cls, enode in view.by_op.get(p.op, ()):
        if changed is None or cls in changed:
            yield from _enode(view, p, enode, replace(begun, roots=(*begun.roots, cls)))


def _match(view: View, p: Pattern, cls: Node, known: Found) -> Iterator[Found]:
    """All ways in which a class has a member that is what `p` says."""
    match p:
        case Var():
            yield from _variable(view, p, cls, known)
        case Literal(value):
            for e in view.having(cls, "full"):
                if same_number(e.node, value):
                    yield replace(known, own={**known.own, p: e.node})
                    return
        case Apply(op):
            for e in view.having(cls, op):
                yield from _enode(view, p, e, known)


def _enode(view: View, p: Apply, e: ENode, known: Found) -> Iterator[Found]:
    if len(p.args) != len(e.args) or not _plausible(view, p, e.args):
        return
    now: Found | None = known
    for name, value in p.attrs:
        if now is not None:
            now = _attribute(fronted(p, name, value, e.node), e.node.attr(name), now)
    if now is None:
        return
    yield from _operands(view, p.args, e.args, now)
    if len(p.args) == 2 and e.args[0] is not e.args[1] and commutes(p.op):
        turned = replace(now, flipped=now.flipped | {p})
        yield from _operands(view, p.args, e.args[::-1], turned)


def _plausible(view: View, p: Apply, args: Sequence[Node | None]) -> bool:
    """A quick look at the operators of the operands, before anything is bound."""
    either = len(args) == 2 and commutes(p.op)
    for k, q in enumerate(p.args):
        if isinstance(q, Apply):
            at = args if either else args[k : k + 1]
            if not any(a is not None and q.op in view.members[a] for a in at):
                return False
    return True


def _attribute(e: ast.expr, value: object, known: Found) -> Found | None:
    if isinstance(e, ast.Constant):
        return known if e.value == value else None
    if isinstance(e, ast.Name):
        if e.id in known.scope:
            return known if known.scope[e.id] == value else None
        return replace(known, scope={**known.scope, e.id: value})
    return match_attribute(e, value, known)


def _operands(
    view: View, patterns: Sequence[Pattern | None], args: Sequence[Node | None], known: Found
) -> Iterator[Found]:
    if not patterns:
        yield known
        return
    p, cls = patterns[0], args[0]
    if cls is None:
        if isinstance(p, Var) and p.optional and known.tensors.get(p.name) is None:
            known = replace(known, tensors={**known.tensors, p.name: None})
        elif p is not None:
            return
        yield from _operands(view, patterns[1:], args[1:], known)
    elif p is not None:
        for more in _match(view, p, cls, known):
            yield from _operands(view, patterns[1:], args[1:], more)


def _variable(view: View, p: Var, cls: Node, known: Found) -> Iterator[Found]:
    name = p.name
    if name not in known.sides.variables:  # a number
        for e in view.having(cls, "full"):
            value = e.node.attr("value")
            if isinstance(value, (int, float)):
                bound = known.bind(ast.Name(name), value)
                if bound is not None:
                    yield replace(bound, own={**bound.own, p: e.node})
        return
    if name in known.tensors:
        if known.tensors[name] is cls:
            yield known
        return
    shape = known.sides.variables[name].shape
    assert shape is not None
    begun = replace(known, tensors={**known.tensors, name: cls})
    more = match_shape(name, shape, cls.shape, begun)
    if more is not None:
        yield more


# -- families ------------------------------------------------------------------------------------
def _families(view: View, way: Way, prover: Prover, made: Collection[Node]) -> Iterator[Match]:
    sides, patterns = way.patterns(2)
    gathered: dict[tuple[object, ...], dict[Node, ENode]] = {}
    first = patterns[0]
    if not isinstance(first, Apply):
        return
    for cls, e in view.by_op.get(first.op, ()):
        if e.node in made:
            continue
        for bindings in _enode(view, first, e, Found(sides, roots=(cls,))):
            settled = bindings.settle()
            if settled is not None:
                shared = sorted((*settled.scope.items(), *settled.tensors.items()),
                                key=lambda item: item[0])  # fmt: skip
                key = (*((n, v) for n, v in shared if "." not in n), settled.ones)
                gathered.setdefault(key, {}).setdefault(cls, e)
                break
    members = list(dict.fromkeys(cls for group in gathered.values() for cls in group))
    below = _dependencies(members)
    for group in gathered.values():
        ordered = sorted(group, key=view.order.__getitem__)
        for roots in _independent(ordered, below):
            for start in range(0, len(roots), WIDEST):
                part = roots[start : start + WIDEST]
                if len(part) > 1:
                    yield from _family(view, way, [(r, group[r]) for r in part], prover)


def _family(
    view: View, way: Way, members: Sequence[tuple[Node, ENode]], prover: Prover
) -> Iterator[Match]:
    sides, patterns = way.patterns(len(members))
    known: Found | None = Found(sides, roots=tuple(cls for cls, _ in members))
    for p, (_, e) in zip(patterns, members, strict=True):
        assert isinstance(p, Apply)
        known = next(_enode(view, p, e, known), None) if known is not None else None
    if known is not None:
        match = finish(way.conjecture, known, prover, len(members), backward=way.backward)
        if match is not None:
            yield match


def _dependencies(members: Sequence[Node]) -> Mapping[Node, int]:
    """For each member a set of bits: those of the members below it, and its own."""
    bit = {m: 1 << k for k, m in enumerate(members)}
    below: dict[Node, int] = {}
    for root in members:
        stack: list[tuple[Node, bool]] = [(root, False)]
        while stack:
            node, ready = stack.pop()
            if node in below:
                continue
            if ready:
                mask = bit.get(node, 0)
                for a in node.operands:
                    mask |= below[a]
                below[node] = mask
                continue
            stack.append((node, True))
            stack.extend((a, False) for a in node.operands if a not in below)
    return {m: below[m] & ~bit[m] for m in members}


def _independent(members: Sequence[Node], below: Mapping[Node, int]) -> list[list[Node]]:
    """Members in lists in which none depends on another, first come first."""
    bit = {m: 1 << k for k, m in enumerate(below)}
    lists: list[tuple[list[Node], int, int]] = []  # members, their bits, all bits below them
    for m in members:
        for k, (group, bits, under) in enumerate(lists):
            if not (below[m] & bits) and not (under & bit[m]):
                group.append(m)
                lists[k] = (group, bits | bit[m], under | below[m])
                break
        else:
            lists.append(([m], bit[m], below[m]))
    return [group for group, _, _ in lists]
