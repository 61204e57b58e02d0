"""What of a bank is not derivable yet: few equalities from many equal graphs.

    class           members that compute the same, each an operator over classes
    known rules     join members: the left side matched at one, the right side found as another
    conjecture      the smallest member of a class and one that nothing joins with it

The bank serves as a saturated e-graph: a subgraph is a class, so a rule need only be applied at the
root, and a chain of steps between members of a class joins its ends. Below the root only members
smaller than the whole count: that larger ones are equal is what is asked. Conjectures come in order
of size, those with the most tensors first; one that is accepted is a known rule from then on, in
the general form that it was given.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from whet.errors import WhetError
from whet.rewrite import formula, pattern
from whet.rewrite.bank import Bank
from whet.rewrite.conjecture import Conjecture
from whet.rewrite.kinds import Member
from whet.rewrite.scopes import written
from whet.rewrite.sketch import Side, Sketch, Tree, leaves, spelled
from whet.rewrite.syntax import Apply, Literal, Pattern, Sides, Var, is_structural, walk

Classes = Mapping[str, int]
Attrs = tuple[tuple[str, object], ...]
Uses = tuple[tuple[Apply, Attrs], ...]


@dataclass(frozen=True)
class _Rule:
    """One direction of a rule."""

    sides: Sides
    left: Apply
    right: Pattern


@dataclass
class Sift:
    """Finds the equalities that are missing.

    Attributes:
        accept: told of each conjecture; gives the rule that it is an instance of, or None.
        derives: whether known rules give it through graphs that are larger than the bank's.
        asked, accepted: how many there were.
    """

    bank: Bank
    accept: Callable[[Sketch], Conjecture | None]
    derives: Callable[[Sketch], bool] = lambda _: False
    tell: Callable[[str], None] = lambda _: None
    asked: int = 0
    accepted: int = 0
    _rules: list[_Rule] = field(default_factory=list)
    _by_op: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    _place: dict[Member, int] = field(default_factory=dict)
    _sizes: dict[Member, int] = field(default_factory=dict)
    _below: int = 0

    def __post_init__(self) -> None:
        self._tensors = {x.name for x in self.bank.scope.leaves if x.node is None}

    def run(self) -> None:
        """All classes, by the size of their members; the most general equalities first."""
        bank = self.bank
        for c, members in bank.members.items():
            self._place.update(dict.fromkeys(members, c))
        for c, first in enumerate(bank.made):
            if first is not None:
                self._place[first] = c
        groups = {c: self._group(c) for c in sorted(bank.members)}
        for size in range(1, bank.scope.size + 1):
            self._level(size, groups)

    def learn(self, conjecture: Conjecture) -> None:
        """A rule that is known: both directions that name all tensors of the other side."""
        sides = conjecture.sides(2 if conjecture.width_name else 0)
        for one, other in ((sides.left, sides.right), (sides.right, sides.left)):
            if len(one) == 1 and isinstance(one[0], Apply):
                if _variables(other[0], sides) <= _variables(one[0], sides):
                    self._by_op[one[0].op].append(len(self._rules))
                    self._rules.append(_Rule(sides, one[0], other[0]))

    def _group(self, c: int) -> _Group:
        members: list[Member | None] = list(dict.fromkeys(self.bank.members[c]))
        if self.bank.made[c] is None:
            members.insert(0, None)  # the leaf itself
        return _Group(members, [0 if m is None else self._size(m) for m in members])

    def _level(self, size: int, groups: Mapping[int, _Group]) -> None:
        bank = self.bank
        waiting: list[tuple[int, int, int]] = []
        for done, (c, group) in enumerate(groups.items()):
            if done % 2000 == 0:
                self.tell(f"{bank.scope.name}: size {size}, class {done:,} of {len(groups):,}")
            if size in group.sizes:
                self._join(group, c, size)
                for k in group.apart(size):
                    breadth = self._breadth(group.members[k], c)
                    if breadth:  # what has no tensors is computed, not rewritten
                        waiting.append((-breadth, c, k))
        for done, (_, c, k) in enumerate(sorted(waiting)):
            if done % 200 == 0:
                self.tell(f"{bank.scope.name}: size {size}, {done:,} of {len(waiting):,}, "
                          f"{self.accepted} rules of {self.asked} conjectures")  # fmt: skip
            group = groups[c]
            self._join(group, c, size)
            if group.find(k) == group.find(0):
                continue
            sketch = self.sketch(group.members[k], group.members[0], c)
            if size > 2 and self.derives(sketch):
                group.join(k, 0)
                continue
            self.asked += 1
            rule = self.accept(sketch)
            if rule is not None:
                self.accepted += 1
                self.learn(rule)
                group.join(k, 0)

    def _join(self, group: _Group, c: int, size: int) -> None:
        """Apply to members of at most that size the rules that were not applied to them yet."""
        if group.done(size):
            return
        for k, m in enumerate(group.members):
            if m is None or group.sizes[k] > size:
                continue
            for number in self._by_op[self.bank.makers[m.maker].op]:
                if number >= group.applied[k]:
                    for found in self._apply(self._rules[number], m, c):
                        group.join_members(k, found)
            group.applied[k] = len(self._rules)

    # -- writing down ----------------------------------------------------------------------------
    def sketch(self, left: Member | None, right: Member | None, c: int) -> Sketch:
        """Two members as an equality."""
        scope = self.bank.scope
        sides = (self._tree(left, c), self._tree(right, c))
        used = {n for s in sides for n in leaves(s)}
        return Sketch(
            (sides[0],),
            (sides[1],),
            {x.name: tuple(map(str, x.shape)) for x in scope.leaves
             if x.node is None and x.name in used},
        )  # fmt: skip

    def _tree(self, m: Member | None, c: int) -> Side:
        if m is None:
            leaf = self.bank.scope.leaves[c]
            return leaf.name if leaf.tree is None else leaf.tree
        maker = self.bank.makers[m.maker]
        args = tuple(None if a < 0 else self._tree(self.bank.made[a], a) for a in m.args)
        return Tree(maker.op, maker.attrs, args)

    def _breadth(self, m: Member | None, c: int) -> int:
        return len({n for n in leaves(self._tree(m, c)) if n in self._tensors})

    def _size(self, m: Member) -> int:
        if m not in self._sizes:
            below = self.bank.below
            inner = (below[a] for a in m.args if a >= 0)
            self._sizes[m] = 1 + len(frozenset().union(*inner))
        return self._sizes[m]

    # -- rewriting -------------------------------------------------------------------------------
    def _apply(self, rule: _Rule, m: Member, c: int) -> Iterator[Member | None]:
        self._below = self._size(m)
        for classes, uses in self._member(rule, rule.left, m, ({}, ())):
            scope = self._bound(rule, classes, uses)
            if scope is None:
                continue
            made = self._make(rule.left, rule, classes, scope)
            if made is None or made[0] != m:
                continue
            found = self._make(rule.right, rule, classes, scope)
            if found is not None and found[1] == c:
                yield found[0]

    def _match(
        self, rule: _Rule, p: Pattern | None, c: int, known: tuple[Classes, Uses]
    ) -> Iterator[tuple[Classes, Uses]]:
        if p is None or c < 0:
            if p is None and c < 0:
                yield known
            return
        classes, uses = known
        bank = self.bank
        if isinstance(p, Var) and p.name in rule.sides.variables:
            shape = rule.sides.variables[p.name].shape or ()
            if classes.get(p.name, c) == c and _fits(shape, len(bank.kinds[bank.kind[c]].shape)):
                yield {**classes, p.name: c}, uses
        elif isinstance(p, Literal):
            if bank.constants.get(c) == p.value:
                yield known
        elif isinstance(p, Apply):
            first = bank.made[c]
            if first is None and c < len(bank.scope.leaves):
                tree = bank.scope.leaves[c].tree
                if tree is not None:
                    yield from self._constant(p, tree, known)
            for m in bank.members.get(c) or ([first] if first is not None else []):
                if bank.makers[m.maker].op == p.op and self._size(m) < self._below:
                    yield from self._member(rule, p, m, known)

    def _constant(
        self, p: Pattern | None, tree: Side | None, known: tuple[Classes, Uses]
    ) -> Iterator[tuple[Classes, Uses]]:
        """A pattern without tensors at a constant."""
        if isinstance(p, Literal):
            if tree == f"{p.value:g}":
                yield known
        elif isinstance(p, Apply) and isinstance(tree, Tree):
            if p.op == tree.op and len(p.args) == len(tree.args):
                found = [(known[0], (*known[1], (p, tree.attrs)))]
                for q, a in zip(p.args, tree.args, strict=True):
                    found = [y for x in found for y in self._constant(q, a, x)]
                yield from found

    def _member(
        self, rule: _Rule, p: Apply, m: Member, known: tuple[Classes, Uses]
    ) -> Iterator[tuple[Classes, Uses]]:
        maker = self.bank.makers[m.maker]
        if maker.op != p.op or len(p.args) != len(m.args):
            return
        classes, uses = known
        orders = [m.args]
        if len(m.args) == 2 and m.args[0] != m.args[1] and pattern.commutes(p.op):
            orders.append(m.args[::-1])
        for args in orders:
            found: list[tuple[Classes, Uses]] = [(classes, (*uses, (p, maker.attrs)))]
            for q, a in zip(p.args, args, strict=True):
                found = [y for x in found for y in self._match(rule, q, a, x)]
                if not found:
                    break
            yield from found

    def _bound(self, rule: _Rule, classes: Classes, uses: Uses) -> Mapping[str, object] | None:
        """Values of sizes, groups, axes and numbers, or None where they cannot be."""
        bank = self.bank
        found: pattern.Found | None = pattern.Found(rule.sides)
        for name, c in classes.items():
            shape = rule.sides.variables[name].shape or ()
            actual = bank.kinds[bank.kind[c]].shape
            found = pattern.match_shape(name, shape, actual, found) if found is not None else None
        for p, given in uses:
            attrs = dict(given)
            for name, e in p.attrs:
                free = formula.names(e) - found.scope.keys() if found is not None else ()
                if found is not None and free:
                    found = pattern.match_attribute(e, attrs[name], found)
        found = found.settle() if found is not None else None
        return found.scope if found is not None else None

    def _make(
        self, p: Pattern | None, rule: _Rule, classes: Classes, scope: Mapping[str, object]
    ) -> tuple[Member | None, int] | None:
        """The member that a pattern is under a binding, and its class; None if there is none."""
        bank = self.bank
        if isinstance(p, Var):
            c = classes.get(p.name)
            return None if c is None else (bank.made[c], c)
        if isinstance(p, Literal):
            c = next((k for k, v in bank.constants.items() if v == p.value), None)
            return None if c is None else (None, c)
        assert isinstance(p, Apply)
        if not any(isinstance(q, Var) and q.name in rule.sides.variables for q in walk((p,))):
            try:
                c = bank.texts.get(spelled(written(p, scope)))
            except WhetError:
                c = None
            if c is not None:
                return None, c
        args: list[int] = []
        for a in p.args:
            inner = (None, -1) if a is None else self._make(a, rule, classes, scope)
            if inner is None:
                return None
            args.append(inner[1])
        try:
            attrs = tuple(
                (k, self._value(p.op, k, formula.evaluate(e, scope), args)) for k, e in p.attrs
            )
        except WhetError:
            return None
        for order in (args, args[::-1]) if len(args) == 2 and pattern.commutes(p.op) else (args,):
            kinds = tuple(None if a < 0 else bank.kind[a] for a in order)
            maker = bank.maker_of(p.op, kinds, attrs)
            if maker is not None:
                found = Member(maker, tuple(order))
                c = self._place.get(found)
                if c is not None:
                    return found, c
        return None

    def _value(self, op: str, name: str, value: object, args: Sequence[int]) -> object:
        """An attribute's value with axes counted from the front."""
        if not args or not is_structural(op, name):
            return value
        rank = len(self.bank.kinds[self.bank.kind[args[0]]].shape) + (op == "stack")
        if isinstance(value, tuple):
            return tuple(v % rank if isinstance(v, int) and v < 0 else v for v in value)
        return value % rank if isinstance(value, int) and value < 0 else value


def _fits(shape: Sequence[object], rank: int) -> bool:
    """Whether a tensor of that rank can have a shape's dims."""
    groups = sum(1 for d in shape if type(d).__name__ == "Starred")
    return len(shape) == rank or (groups > 0 and len(shape) - groups <= rank)


def _variables(p: Pattern, sides: Sides) -> set[str]:
    return {q.name for q in walk((p,)) if isinstance(q, Var) and q.name in sides.variables}


class _Group:
    """Members of a class, smallest first, and which of them are joined.

    Attributes:
        applied: how many rules were applied to each.
    """

    def __init__(self, members: Sequence[Member | None], sizes: Sequence[int]) -> None:
        order = sorted(range(len(members)), key=lambda k: (sizes[k], k))
        self.members = [members[k] for k in order]
        self.sizes = [sizes[k] for k in order]
        self.applied = [0] * len(members)
        self._number = {m: k for k, m in enumerate(self.members)}
        self._leader = list(range(len(members)))

    def find(self, k: int) -> int:
        """The first member that a member is joined with."""
        while self._leader[k] != k:
            self._leader[k] = self._leader[self._leader[k]]
            k = self._leader[k]
        return k

    def join(self, a: int, b: int) -> None:
        """Two members are known to be equal."""
        i, j = self.find(a), self.find(b)
        self._leader[max(i, j)] = min(i, j)

    def join_members(self, k: int, other: Member | None) -> None:
        """Member `k` and another one, if that is in the group."""
        if other in self._number:
            self.join(k, self._number[other])

    def done(self, size: int) -> bool:
        """Whether all members of at most that size are joined."""
        return not self.apart(size)

    def apart(self, size: int) -> list[int]:
        """Members of at most that size that lead a part but the first."""
        return [k for k, s in enumerate(self.sizes) if s <= size and self.find(k) == k and k]
