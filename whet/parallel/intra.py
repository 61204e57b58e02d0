"""The cheapest choice for every node of a block, as a 0-1 program.

    Group    := leader node*              nodes that are decided together
    Problem  := Group*, cost of each option of each group, cost of each pair of options that meet

A leader is a product, a gather, or a place where branches join; element-wise operators and views
follow what they read, and views of a parameter follow who reads them. Each option of a leader fixes
the choices of its followers by the least resharding. What is left is one variable a group, and a
price for each edge between groups: the collectives that turn what one makes into what the other
wants. The program is solved exactly (`whet.search.integer`).

Source: Zheng et al., "Alpa", OSDI 2022, section 4 (the 0-1 program and its linear form).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from whet.errors import SearchError
from whet.ir.graph import Node
from whet.parallel.blocks import Layer
from whet.parallel.choice import Choice, Choices
from whet.parallel.cut import known
from whet.parallel.placed import Step
from whet.parallel.sharding import Axes, Move, Sharding, ShardingError, reshard
from whet.parallel.work import step, work
from whet.search import Constraint, minimize

LARGE = 1e3  # seconds: an option that cannot be
GATHERED = 3  # options of a group that are tried with its shared members whole as well

Price = Callable[[Step], float]
Assignment = Mapping[Node, Choice]


@dataclass(frozen=True, slots=True)
class Solved:
    """The choices of a block.

    Attributes:
        choices: of every node and leaf in it.
        seconds: what the program says they cost; an overlapping step may take less.
        bound: no choices cost less by the same prices.
        options, edges: how large the program was.
    """

    choices: Assignment
    seconds: float
    bound: float
    options: int
    edges: int


@dataclass(slots=True)
class Problem:
    """One block on one mesh.

    Attributes:
        layer: the block.
        choices: of its nodes; its mesh begins with the axes in time.
        time: axes in time.
        price: seconds of a step of one device.
        hidden: the part of the gradients' reduction that overlaps with other work.
        boundary: sharding of values that enter and leave; others are free.
        memory: bytes that one option of a leaf takes on a device, per byte of it: weight, gradient
            and state together.
        limit: bytes for the block, and what activations count for (how many are kept).
        rent: seconds that a byte held through the step counts for.
        most: options of a group; the cheapest by themselves are kept.
    """

    layer: Layer
    choices: Choices
    time: frozenset[str]
    price: Price
    hidden: float = 0.5
    boundary: Mapping[Node, Sharding] = field(default_factory=dict)
    memory: float = 0.0
    limit: float = math.inf
    kept: float = 0.0
    rent: float = 0.0
    most: int = 16
    train: bool = True
    _moves: dict[tuple[Sharding, Sharding, int], float] = field(default_factory=dict)
    _prices: dict[tuple[Node, int], float] = field(default_factory=dict)
    _saved: frozenset[Node] = frozenset()
    _users: dict[Node, list[Node]] = field(default_factory=dict)
    _order: dict[Node, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        nodes = self.layer.nodes
        self._order = {n: k for k, n in enumerate(nodes)}
        for n in nodes:
            for a in dict.fromkeys(n.operands):
                self._users.setdefault(a, []).append(n)
        ahead = set(self.layer.forward)
        self._saved = frozenset(a for n in self.layer.backward for a in n.operands if a in ahead)

    @property
    def mesh(self) -> Axes:
        return self.choices.mesh

    # -- prices ------------------------------------------------------------------------------
    def move_s(self, source: Sharding, target: Sharding, nbytes: int) -> float:
        """Seconds of turning one sharding into another; `LARGE` where there is no way."""
        key = (source, target, nbytes)
        found = self._moves.get(key)
        if found is None:
            try:
                moves = reshard(source, target, nbytes, self.mesh)
                found = sum(self._one(m) for m in moves)
            except ShardingError:
                found = LARGE
            self._moves[key] = found
        return found

    def _one(self, move: Move) -> float:
        axes = tuple(a for a in move.axes if a not in self.time)
        if move.kind in ("slice", "drop") or not axes:
            return 0.0
        if set(axes) != set(move.axes) and move.kind != "all_reduce":
            return LARGE  # the parts of a step follow each other: nothing is exchanged between them
        return self.price(Step("move", move.kind, bytes=move.bytes, axes=axes))

    def node_s(self, node: Node, choice: Choice) -> float:
        """Seconds of one node by itself: its kernel, and what its parts exchange inside."""
        key = node, id(choice)  # `choices` keeps every choice alive
        found = self._prices.get(key)
        if found is None:
            found = self._prices[key] = self._node_s(node, choice)
        return found

    def _node_s(self, node: Node, choice: Choice) -> float:
        made = step(node, choice, self.mesh)
        total = 0.0 if made is None else self.price(made)
        if made is not None and made.kind == "stream":
            total *= 0.7  # most of it is fused with a neighbour
        for _, _, axis, nbytes, others in choice.inner:
            if axis in self.time:
                if dict(self.mesh)[axis] > 1:
                    return LARGE
                continue
            nbytes //= math.prod(dict(self.mesh)[a] for a in others)
            total += self.price(Step("inner", "all_reduce", bytes=nbytes, axes=(axis,)))
        return total

    # -- groups --------------------------------------------------------------------------------
    def groups(self) -> list[list[Node]]:
        """Nodes that are decided together, the leader first."""
        nodes = self.layer.nodes
        inside = set(nodes)
        leader_of: dict[Node, Node] = {}
        groups: dict[Node, list[Node]] = {}
        waiting: list[Node] = []

        def lead(n: Node) -> None:
            leader_of[n] = n
            groups[n] = [n]

        for n in nodes:
            fed = [a for a in n.operands if a in leader_of and not a.is_leaf]
            kind = work(n).kind
            if kind in ("contraction", "window", "fused", "gather"):
                lead(n)
            elif not fed:
                if all(
                    a.is_leaf or a in waiting or a not in inside for a in n.operands
                ) and not any(a in inside and a not in waiting for a in n.operands):
                    outside = [a for a in n.operands if not a.is_leaf]
                    params = [a for a in n.operands if a.op == "parameter"]
                    if params and not outside and len(n.operands) == 1:
                        waiting.append(n)  # a view of a parameter: its reader decides
                        continue
                lead(n)
            else:
                owners = list(dict.fromkeys(leader_of[a] for a in fed))
                big = [a for a in fed if known(a.type.nbytes) >= known(n.type.nbytes)]
                if len(owners) > 1 and len({leader_of[a] for a in big}) > 1 and n.type.rank > 1:
                    lead(n)
                else:
                    best = max(fed, key=lambda a: known(a.type.nbytes))
                    leader_of[n] = leader_of[best]
                    groups[leader_of[n]].append(n)
        for n in reversed(waiting):
            reader = next((u for u in self._users.get(n, ()) if u in leader_of), None)
            if reader is None:
                lead(n)
            else:
                leader_of[n] = leader_of[reader]
                groups[leader_of[n]].append(n)
        for n in nodes:
            for a in n.operands:
                if a.is_leaf and a not in leader_of:
                    leader_of[a] = leader_of[n]
                    groups[leader_of[n]].append(a)
        return list(groups.values())

    # -- the program -----------------------------------------------------------------------------
    def solve(
        self, *, seconds: float = 6.0, fixed: Mapping[Node, Choice] | None = None,
        unlike: Assignment | None = None,
    ) -> Solved:  # fmt: skip
        """The cheapest choices.

        Args:
            seconds: for the solver.
            fixed: choices that are given.
            unlike: choices from which at least one parameter has to be cut otherwise.

        Raises:
            SearchError: nothing fits in memory, or no way leads from one value to the next.
        """
        groups = self.groups()
        table = [self._options(g, fixed or {}) for g in groups]
        where = {n: k for k, g in enumerate(groups) for n in g}
        edges = self._edges(where)
        costs: list[float] = []
        rows: list[Constraint] = []
        first: list[int] = []
        heavy: dict[int, float] = {}
        for group, options in zip(groups, table, strict=True):
            first.append(len(costs))
            rows.append(Constraint.exactly_one(range(len(costs), len(costs) + len(options))))
            for chosen, price in options:
                heavy[len(costs)] = self._bytes(group, chosen)
                costs.append(price)
        pairs = 0
        constant = 0.0
        for (a, b), links in edges.items():
            matrix = [
                [self._edge_s(links, x, y) for y, _ in table[b]] for x, _ in table[a]
            ]  # fmt: skip
            low = min(min(r) for r in matrix)
            if max(max(r) for r in matrix) - low < 1e-9:
                constant += low
                continue
            pairs += 1
            start = len(costs)
            wide = len(table[b])
            costs += [x for r in matrix for x in r]
            for i in range(len(table[a])):
                terms = {start + i * wide + j: 1.0 for j in range(wide)}
                rows.append(Constraint({**terms, first[a] + i: -1.0}, 0.0, 0.0))
            for j in range(wide):
                terms = {start + i * wide + j: 1.0 for i in range(len(table[a]))}
                rows.append(Constraint({**terms, first[b] + j: -1.0}, 0.0, 0.0))
        if unlike is not None:
            rows.append(self._unlike(groups, table, first, unlike))
        if math.isfinite(self.limit):
            rows.append(
                Constraint({k: v / 2**20 for k, v in heavy.items() if v}, high=self.limit / 2**20)
            )
        scale = 1e6  # the solver's tolerances are for numbers around one
        answer = minimize([c * scale for c in costs], rows, seconds=seconds)
        if not answer.found:
            raise SearchError("no choice of shardings fits", got=answer.status.value)
        picked: dict[Node, Choice] = {}
        for k, options in enumerate(table):
            for i, (chosen, _) in enumerate(options):
                if first[k] + i in answer.chosen:
                    picked.update(chosen)
        if answer.value / scale >= LARGE:
            raise SearchError(
                "no way leads from one value to the next", got="shardings that exclude each other"
            )
        return Solved(
            picked, answer.value / scale + constant, answer.bound / scale + constant,
            sum(map(len, table)), pairs,
        )  # fmt: skip

    def _unlike(
        self, groups: Sequence[Sequence[Node]],
        table: Sequence[Sequence[tuple[dict[Node, Choice], float]]],
        first: Sequence[int], given: Assignment,
    ) -> Constraint:  # fmt: skip
        """Not all groups with parameters may cut them as given."""
        terms: dict[int, float] = {}
        count = 0
        for group, options, start in zip(groups, table, first, strict=True):
            own = [n for n in group if n.op == "parameter"]
            if own:
                count += 1
                for i, (chosen, _) in enumerate(options):
                    if all(chosen[n].result == given[n].result for n in own):
                        terms[start + i] = 1.0
        return Constraint(terms, high=count - 1.0)

    def _bytes(self, group: Sequence[Node], chosen: Mapping[Node, Choice]) -> float:
        """What an option holds in a device's memory through the step."""
        sizes = {a: n for a, n in self.mesh if a not in self.time}
        total = 0.0
        for n in group:
            s = chosen[n].result
            parts = math.prod(sizes.get(a, 1) for _, _, a in s.cuts)
            if n.op == "parameter" and n in self.layer.gradients:
                total += self.memory * known(n.type.nbytes) / parts
            elif n in self._saved and work(n).kind != "view":
                total += self.kept * known(n.type.nbytes) / s.parts(dict(self.mesh))
        return total

    def _options(
        self, group: Sequence[Node], fixed: Mapping[Node, Choice]
    ) -> list[tuple[dict[Node, Choice], float]]:
        """(choices of the group's nodes, seconds) for every option, the cheapest first."""
        leader = group[0]
        found: dict[str, list[tuple[dict[Node, Choice], float]]] = {
            "plain": [], "settled": [], "gathered": []
        }  # fmt: skip
        seen = set()
        choices = [fixed[leader]] if leader in fixed else self.choices.of(leader)
        axes = {a for a, n in self.mesh if a not in self.time and n > 1}
        parts = [c for c in choices if any(a in axes for a, _ in c.result.partial)]
        rows = [*((c, False) for c in choices), *((c, True) for c in parts)]

        def add(choice: Choice, given: Mapping[Node, Choice], kind: str) -> None:
            chosen = self._follow(group, choice, given, settled=kind == "settled")
            key = tuple(sorted((self._order.get(n, -1), id(c)) for n, c in chosen.items()))
            if key not in seen:
                seen.add(key)
                found[kind].append((chosen, self._group_s(group, chosen)))

        for choice, settled in rows:
            add(choice, fixed, "settled" if settled else "plain")
        shared = self._shared(group) - {leader, *fixed}
        if shared:
            whole = {n: c for n in shared if (c := self._unmoved(n)) is not None}
            best = sorted(found["plain"], key=lambda f: f[1])[:GATHERED]
            for choice in {id(c[leader]): c[leader] for c, _ in best}.values():
                add(choice, {**whole, **fixed}, "gathered")
        least = min(x for row in found.values() for _, x in row)
        kept = []
        for row in found.values():
            row.sort(key=lambda f: f[1])
            kept += [f for f in row if f[1] < least + LARGE / 2][: self.most]
        return kept

    def _shared(self, group: Sequence[Node]) -> frozenset[Node]:
        """Members that several others read, outside of the group: made whole there, what one
        reader gathers serves all of them, and is paid for once."""
        inside = set(group)
        return frozenset(
            n for n in group
            if not n.is_leaf and len([u for u in self._users.get(n, ()) if u not in inside]) > 1
        )  # fmt: skip

    def _unmoved(self, n: Node) -> Choice | None:
        """The choice of a node that cuts nothing but samples."""
        loose = {a for a, _ in self.mesh} - self.choices.pinned - self.time
        return next(
            (c for c in self.choices.of(n)
             if not c.result.partial and not any(a in loose and a != "data" for a, _, _ in c.cuts)),
            None,
        )  # fmt: skip

    def _follow(
        self, group: Sequence[Node], choice: Choice, fixed: Mapping[Node, Choice], *,
        settled: bool = False,
    ) -> dict[Node, Choice]:  # fmt: skip
        """The choices of a group that come with one of its leader.

        Args:
            settled: parts of a sum are added up for every rank at once (an all_reduce), although a
                follower would be content with less: what comes later may ask for all of it.
        """
        whole = Sharding(choice.result.cuts)
        chosen: dict[Node, Choice] = {group[0]: choice}
        # Upstream: views of parameters and leaves, from their readers.
        members = set(group)
        wanted: dict[Node, Sharding] = {}

        def ask(n: Node, c: Choice) -> None:
            for a, s in zip(n.operands, c.operands, strict=True):
                if a in members and s is not None and a not in chosen and a not in wanted:
                    wanted[a] = Sharding(s.cuts)

        ask(group[0], choice)
        rest = sorted((n for n in group[1:]), key=lambda n: self._order.get(n, -1))
        for n in rest:
            if (
                n in chosen
                or n.is_leaf
                or (n in wanted and not any(a in chosen for a in n.operands))
            ):
                continue
            options = [fixed[n]] if n in fixed else self.choices.of(n)
            if settled and group[0] in n.operands:
                k = n.operands.index(group[0])
                options = [c for c in options if c.operands[k] == whole] or list(options)
            if any(a in chosen for a in n.operands):
                chosen[n] = min(options, key=lambda c: self._in_s(n, c, chosen))
                ask(n, chosen[n])
        changed = True
        while changed:
            changed = False
            for n in list(wanted):
                if n in chosen:
                    continue
                want = wanted[n]
                options = [fixed[n]] if n in fixed else self.choices.of(n)
                chosen[n] = min(
                    options,
                    key=lambda c: (
                        self.move_s(c.result, want, known(n.type.nbytes)),
                        _apart(c, want),
                    ),
                )
                ask(n, chosen[n])
                changed = True
        for n in rest:
            if n not in chosen:
                chosen[n] = fixed.get(n) or self.choices.of(n)[0]
        return chosen

    def _in_s(self, n: Node, choice: Choice, chosen: Mapping[Node, Choice]) -> float:
        total = self.node_s(n, choice)
        for a, want in zip(n.operands, choice.operands, strict=True):
            if want is not None and a in chosen:
                total += self.move_s(chosen[a].result, want, known(a.type.nbytes))
        return total

    def _group_s(self, group: Sequence[Node], chosen: Mapping[Node, Choice]) -> float:
        total = self.rent * self._bytes(group, chosen) if self.rent else 0.0
        for n in group:
            choice = chosen[n]
            if not n.is_leaf:
                total += self.node_s(n, choice)
                for a, want in zip(n.operands, choice.operands, strict=True):
                    if want is None:
                        continue
                    if a in chosen:
                        total += self.move_s(chosen[a].result, want, known(a.type.nbytes))
                    elif a in self.boundary:
                        total += self.move_s(self.boundary[a], want, known(a.type.nbytes))
            if n in self.boundary and not n.is_leaf:
                total += self.move_s(choice.result, self.boundary[n], known(n.type.nbytes))
            for p, g in self._grads_of(n):
                if p in chosen:
                    total += self._reduce_s(g, choice.result, chosen[p].result)
        return total

    def _grads_of(self, n: Node) -> list[tuple[Node, Node]]:
        return [(p, g) for p, g in self.layer.gradients.items() if g is n]

    def _reduce_s(self, gradient: Node, made: Sharding, at: Sharding) -> float:
        """The gradient brought to where its parameter lies, as far as it is not hidden."""
        nbytes = known(gradient.type.nbytes)
        micro = math.prod(n for a, n in self.mesh if a in self.time)
        return self.move_s(made, at, nbytes) * (1 - self.hidden) / micro

    def _edges(
        self, where: Mapping[Node, int]
    ) -> dict[tuple[int, int], list[tuple[Node, Node, int]]]:
        """Links between groups: (value, its reader, which operand; -1: parameter and gradient)."""
        found: dict[tuple[int, int], list[tuple[Node, Node, int]]] = {}
        for n in self.layer.nodes:
            for k, a in enumerate(n.operands):
                if a in where and where[a] != where[n]:
                    found.setdefault((where[a], where[n]), []).append((a, n, k))
        for p, g in self.layer.gradients.items():
            if p in where and g in where and where[p] != where[g]:
                found.setdefault((where[p], where[g]), []).append((p, g, -1))
        joined: dict[tuple[int, int], list[tuple[Node, Node, int]]] = {}
        for (one, two), links in found.items():
            joined.setdefault((min(one, two), max(one, two)), []).extend(links)
        return joined

    def _edge_s(
        self,
        links: Sequence[tuple[Node, Node, int]],
        x: Mapping[Node, Choice],
        y: Mapping[Node, Choice],
    ) -> float:
        total = 0.0
        paid: set[tuple[Node, Sharding]] = set()
        for a, n, k in links:
            source = x.get(a) or y[a]
            reader = y.get(n) or x[n]
            if k < 0:
                total += self._reduce_s(n, reader.result, source.result)
                continue
            want = reader.operands[k]
            if want is not None and (a, want) not in paid:
                paid.add((a, want))
                total += self.move_s(source.result, want, known(a.type.nbytes))
        return total


def _apart(choice: Choice, want: Sharding) -> bool:
    """Whether a value is made otherwise than it is wanted, although slicing costs nothing."""
    return choice.result.cuts != want.cuts


__all__ = ["Assignment", "Problem", "Solved"]
