"""What extraction chooses among: clusters of e-nodes that a backend can run as one kernel.

    Column := item + <-- item *            one kernel: what it makes, what it reads
    item   := class, layout                a value in memory, lying in some order
    body   := class -> e-node              what is computed inside, nothing of it kept
    Offer  := cost, layouts                how a backend would run the body, from `price(cluster)`

A column begins at an e-node and takes in what it reads, one operand after another: first what only
moves elements, then what computes them one by one, then one contraction or reduction. Each stage
of that growth is a column of its own, as far as it has a price, so a value may be computed inside
several kernels, or once in memory. What an operator does to its elements is read off its record.

The price is an argument: a function from a small closed graph (inputs and parameters as leaves) to
offers. A roofline, a table of measurements and a search over fused kernels all fit it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

from whet.ir import expr as ex
from whet.ir.expr import Call, Expr, Load, Reduce
from whet.ir.graph import Attrs, Graph, Node, leaf, rebuilt
from whet.ir.ops import exists, instance
from whet.ir.record import Shape
from whet.rewrite.egraph import EGraph, ENode
from whet.search import Cost

ROWS = "rows"  # the layout of every value at a region's border, unless its price says otherwise
LARGEST = 24  # e-nodes of one column
SHARED = 1  # classes taken into one column that others read as well: stored too, or made again
MEMBERS = 6  # e-nodes of a class that a column may take in


@dataclass(frozen=True, slots=True)
class Offer:
    """How a backend would run a cluster.

    Attributes:
        cost: of one run.
        reads: layout in which it wants each input (parameters are prepared ahead of time); empty
            for rows throughout.
        out: layout of its result.
    """

    cost: Cost
    reads: tuple[str, ...] = ()
    out: str = ROWS


Price = Callable[[Graph], Sequence[Offer]]


class Role(IntEnum):
    """What an operator does to elements, cheapest to take in first."""

    MOVES = 0  # every element is one of an operand's
    POINTWISE = 1  # every element is computed of a few
    JOINS = 2  # every element is one of several operands'
    REDUCES = 3  # every element is computed of a whole axis
    CONTRACTS = 4  # of products over a whole axis
    ALONE = 5  # unknown: a library call without a record, or a leaf


def role(node: Node) -> Role:
    """The role of a node's operator, by its record."""
    if not exists(node.op):
        return Role.ALONE
    return _role(node.op, tuple(None if a is None else a.shape for a in node.args), node.attrs)


@functools.lru_cache(maxsize=8192)
def _role(op: str, shapes: tuple[Shape | None, ...], attrs: Attrs) -> Role:
    found = Role.MOVES
    for let in instance(op, shapes, attrs).lets:
        for e in _below(let.body):
            match e:
                case Reduce(_, _, body) if any(ex.loads(body)):
                    tensors = {x.tensor for x in ex.loads(body)}
                    product = any(isinstance(b, Call) and b.fn == "*" for b in _below(body))
                    two = len(tensors) > 1 and product
                    found = max(found, Role.CONTRACTS if two else Role.REDUCES)
                case Call() if any(ex.loads(e)):
                    found = max(found, Role.POINTWISE)
    return Role.JOINS if found is Role.MOVES and len(shapes) > 1 else found


def _below(e: Expr) -> Iterator[Expr]:
    yield e
    if not isinstance(e, Load):
        for child in ex.children(e):
            yield from _below(child)


@dataclass(frozen=True, slots=True, eq=False)
class Column:
    """One kernel that extraction may choose.

    Attributes:
        outs: the classes it makes: one, and those that it computes on the way and others read.
        body: the e-node computed for each class inside, that of `out` included.
        order: the classes inside, operands first.
        reads: classes read from memory that depend on an input, in the cluster's order.
        fixed: classes read that are known ahead of time.
        cluster: the body as a closed graph.
        offer: how it runs.
    """

    outs: tuple[Node, ...]
    body: Mapping[Node, ENode]
    order: tuple[Node, ...]
    reads: tuple[Node, ...]
    fixed: tuple[Node, ...]
    cluster: Graph
    offer: Offer

    @property
    def key(self) -> object:
        """Equal for columns that compute the same in the same way."""
        nodes = tuple(
            (e.node.op, e.node.attrs, e.args) for e in map(self.body.get, self.order) if e
        )
        return self.outs, nodes, self.offer.reads, self.offer.out

    @property
    def is_heavy(self) -> bool:
        """Whether it does more than to compute elements one by one."""
        return any(role(e.node) >= Role.REDUCES for e in self.body.values())

    @property
    def seconds(self) -> float:
        """Seconds of one run."""
        return self.offer.cost.seconds


@dataclass(frozen=True, slots=True)
class _World:
    """What columns grow in: all members of all classes, or those of one program."""

    members: Mapping[Node, Sequence[ENode]]
    users: Mapping[Node, frozenset[Node | None]]  # None: whoever wants the results


def _users(
    members: Mapping[Node, Sequence[ENode]], wanted: Collection[Node]
) -> dict[Node, frozenset[Node | None]]:
    users: dict[Node, set[Node | None]] = {c: {None} if c in wanted else set() for c in members}
    for cls, group in members.items():
        for a in (a for e in group for a in e.args if a is not None):
            users[a].add(cls)
    return {c: frozenset(u) for c, u in users.items()}


@dataclass
class Columns:
    """The columns of an e-graph.

    Args:
        classes: the e-graph.
        price: see the module.
        known: whether a leaf is known ahead of time.
        roots: terms that are wanted for themselves.
    """

    classes: EGraph
    price: Price
    known: Callable[[Node], bool]
    roots: Sequence[Node] = ()
    members: dict[Node, list[ENode]] = field(init=False)
    fixed: dict[Node, ENode] = field(init=False)
    _prices: dict[object, tuple[Graph, tuple[Offer, ...]]] = field(init=False, default_factory=dict)
    _roles: dict[Node, Role] = field(init=False, default_factory=dict)
    _grown: dict[Node, dict[object, Column]] = field(init=False, default_factory=dict)
    _wanted: set[Node] = field(init=False)

    def __post_init__(self) -> None:
        self._wanted = {self.classes.find(r) for r in self.roots}
        self.members = {}
        for cls, e in self.classes.enodes():
            if cls not in e.args:  # what needs itself is no way to compute it
                self.members.setdefault(cls, []).append(e)
        self.fixed = _fixed(self.members, self.known)

    def follow(self, nodes: Iterable[Node]) -> bool:
        """Also grow columns as if a program, terms of the e-graph, were all there is: there fewer
        classes are read by several others. Whether that gives columns that were not there."""
        program: dict[Node, ENode] = {}
        for n in nodes:
            self.classes.add(n)  # in the classes that are there: it is made of their members
            args = tuple(None if a is None else self.classes.find(a) for a in n.args)
            if self.classes.find(n) not in args:
                program.setdefault(self.classes.find(n), ENode(n, args))
        members = {cls: [e] for cls, e in program.items()}
        world = _World(members, _users(members, self._wanted))
        news = False
        wanted = dict.fromkeys(map(self.classes.find, self.roots))
        todo = [c for c in wanted if c in program]
        seen: set[Node] = set()
        while todo:
            cls = todo.pop()
            if cls not in self.fixed and cls not in seen:
                seen.add(cls)
                for column in self._columns(cls, world):
                    todo += column.reads
                    for out in column.outs:
                        mine = self._grown.setdefault(out, {})
                        news |= mine.setdefault(column.key, column) is column
        return news

    def of(self, cls: Node) -> list[Column]:
        """The columns that make a class which depends on an input: all that grew."""
        return _undominated(list(self._grown.get(cls, {}).values()))

    def single(self, cls: Node) -> list[Column]:
        """The columns of one e-node."""
        return [
            column
            for e in self.members[cls] if not e.node.is_leaf
            for column in self._priced((cls,), {cls: e})
        ]  # fmt: skip

    def _columns(self, cls: Node, world: _World) -> list[Column]:
        return [
            column
            for e in world.members[cls]
            for growth in self._growths(cls, e, world)
            for column in self._chain(cls, growth, world)
        ]

    def _chain(self, cls: Node, bodies: Iterable[dict[Node, ENode]], world: _World) -> list[Column]:
        """Columns of one growth: its first, its last, and the last that takes in only what nobody
        else reads. What others read as well is made again, or stored beside."""
        stages: list[tuple[dict[Node, ENode], list[Column]]] = []
        for body in bodies:
            now = list(self._priced((cls,), body))
            if now:
                stages.append((body, now))
            elif stages:
                break  # what is more than one kernel is no less for having more in it
        closed = [k for k, (body, _) in enumerate(stages) if not self._beside(cls, body, world)]
        kept: list[Column] = []
        for k in sorted({*(closed[-1:] or [0]), len(stages) - 1} if stages else ()):
            body, now = stages[k]
            kept += now
            beside = self._beside(cls, body, world)
            if beside:
                kept += self._priced((cls, *beside), body)
        return kept

    def _beside(self, cls: Node, body: Mapping[Node, ENode], world: _World) -> list[Node]:
        """The classes inside that are computed for others as well."""
        return [
            c for c, e in body.items()
            if c is not cls and self._role(e.node) is not Role.MOVES
            and not world.users[c] <= body.keys()
        ]  # fmt: skip

    def _growths(self, cls: Node, e: ENode, world: _World) -> Iterator[Iterator[dict[Node, ENode]]]:
        if e.node.is_leaf:
            return
        yield self._growth(cls, e, world, heavy_first=False)
        yield self._growth(cls, e, world, heavy_first=True)

    def _growth(
        self, cls: Node, e: ENode, world: _World, *, heavy_first: bool
    ) -> Iterator[dict[Node, ENode]]:
        """An e-node alone, then with one more of what it reads, and so on."""
        body = {cls: e}
        roles = [self._role(e.node)]
        if not heavy_first:
            yield body
        shared = 0
        while roles[0] not in (Role.ALONE, Role.JOINS) and len(body) < LARGEST:
            choice = self._next(
                body, world, heavy=max(roles) >= Role.REDUCES, heavy_first=heavy_first,
                sharing=shared < SHARED,
            )  # fmt: skip
            if choice is None:
                return
            r, member = choice
            body = {**body, r: member}
            roles.append(self._role(member.node))
            shared += roles[-1] is not Role.MOVES and not world.users[r] <= body.keys()
            if not heavy_first or max(roles) >= Role.REDUCES:
                yield body

    def _next(
        self,
        body: Mapping[Node, ENode],
        world: _World,
        *,
        heavy: bool,
        heavy_first: bool,
        sharing: bool,
    ) -> tuple[Node, ENode] | None:
        """The operand to take in next, with the member that is the cheapest to take in: first
        those that nobody else reads."""
        best: tuple[tuple[bool, int], Node, ENode] | None = None
        for r in dict.fromkeys(a for e in body.values() for a in e.args if a is not None):
            if r in body or r in self.fixed:
                continue
            others = not world.users[r] <= body.keys()
            for e in world.members[r][:MEMBERS]:
                kind = self._role(e.node)
                if kind is Role.ALONE or kind is Role.JOINS or (kind >= Role.REDUCES and heavy):
                    continue
                if others and kind is not Role.MOVES and not sharing:
                    continue
                rank = (False, -kind) if heavy_first else (others, int(kind))
                if (best is None or rank < best[0]) and not _circular(body, r, e):
                    best = (rank, r, e)
        return None if best is None else (best[1], best[2])

    def _role(self, node: Node) -> Role:
        found = self._roles.get(node)
        if found is None:
            found = self._roles[node] = role(node)
        return found

    def _priced(self, outs: tuple[Node, ...], body: Mapping[Node, ENode]) -> Iterator[Column]:
        order = _ordered(outs[0], body)
        outside = dict.fromkeys(
            a for c in order for a in body[c].args if a is not None and a not in body
        )
        known = [a for a in outside if a in self.fixed and not _is_number(self.fixed[a].node)]
        reads = [a for a in outside if a not in self.fixed]
        place = {a: k for k, a in enumerate((*outside, *order))}
        key = (
            tuple((a.type, a in self.fixed, _number(self.fixed.get(a))) for a in outside),
            tuple(place[c] for c in outs),
            tuple((body[c].node.op, body[c].node.attrs,
                   tuple(None if a is None else place[a] for a in body[c].args)) for c in order),
        )  # fmt: skip
        if key not in self._prices:
            cluster = _closed(outs, order, body, reads, known, self.fixed)
            self._prices[key] = cluster, tuple(self.price(cluster))
        cluster, offers = self._prices[key]
        for offer in offers:
            if offer.cost.seconds < float("inf"):
                yield Column(outs, body, tuple(order), tuple(reads), tuple(known), cluster, offer)


def _fixed(
    members: Mapping[Node, Sequence[ENode]], known: Callable[[Node], bool]
) -> dict[Node, ENode]:
    """Classes that depend on no input, each with the member of the fewest operators."""
    effort: dict[Node, int] = {}
    best: dict[Node, ENode] = {}
    users: dict[Node, list[tuple[Node, ENode]]] = {}
    work: list[tuple[Node, ENode]] = []
    for cls, group in members.items():
        for e in group:
            for a in dict.fromkeys(a for a in e.args if a is not None):
                users.setdefault(a, []).append((cls, e))
            work.append((cls, e))
    while work:
        cls, e = work.pop()
        if e.node.op == "opaque" or (e.node.is_leaf and not known(e.node)):
            continue
        needs = [effort.get(a) for a in e.args if a is not None]
        if None in needs:
            continue
        total = sum(n for n in needs if n is not None) + (not e.node.is_leaf)
        if cls not in effort or total < effort[cls]:
            effort[cls], best[cls] = total, e
            work += users.get(cls, ())
    return best


def _is_number(node: Node) -> bool:
    return node.op == "full" and node.shape == ()


def _number(e: ENode | None) -> object:
    return e.node.attrs if e is not None and _is_number(e.node) else None


def _circular(body: Mapping[Node, ENode], cls: Node, e: ENode) -> bool:
    """Whether a class, computed inside by `e`, would need itself."""
    stack, seen = [a for a in e.args if a is not None], set[Node]()
    while stack:
        a = stack.pop()
        if a is cls:
            return True
        if a in body and a not in seen:
            seen.add(a)
            stack += [b for b in body[a].args if b is not None]
    return False


def _ordered(cls: Node, body: Mapping[Node, ENode]) -> list[Node]:
    done: dict[Node, None] = {}
    stack = [(cls, False)]
    while stack:
        c, ready = stack.pop()
        if c in done:
            continue
        if ready:
            done[c] = None
            continue
        stack.append((c, True))
        stack += [(a, False) for a in reversed(body[c].args) if a in body and a not in done]  # type: ignore[misc]
    return list(done)


def _closed(
    outs: Sequence[Node],
    order: Sequence[Node],
    body: Mapping[Node, ENode],
    reads: Sequence[Node],
    known: Sequence[Node],
    fixed: Mapping[Node, ENode],
) -> Graph:
    """A body as a graph of its own, its leaves named in the order of their use."""
    new: dict[Node, Node] = {c: e.node for c, e in fixed.items() if _is_number(e.node)}
    new |= {a: leaf("input", f"x{k}", a.type) for k, a in enumerate(reads)}
    new |= {a: leaf("parameter", f"p{k}", a.type) for k, a in enumerate(known)}
    for c in order:
        e = body[c]
        if e.node.op == "item":  # says which result of a call is meant, and does nothing
            new[c] = leaf("input", f"x{len(reads)}", e.node.type)
            continue
        new[c] = rebuilt(e.node, [None if a is None else new[a] for a in e.args])
    return Graph(tuple(new[a] for a in reads), tuple(new[c] for c in outs))


def _undominated(columns: Sequence[Column]) -> list[Column]:
    """Without columns that another one is as good as in everything."""
    kept: list[Column] = []
    for c in sorted(columns, key=lambda c: (c.seconds, len(c.reads) + len(c.fixed))):
        mine = {*c.reads, *c.fixed}
        if not any(
            k.offer.out == c.offer.out and k.offer.reads == c.offer.reads == ()
            and {*k.outs} >= {*c.outs} and {*k.reads, *k.fixed} <= mine for k in kept
        ):  # fmt: skip
            kept.append(c)
    return kept
