"""Operators computed another way, where kernels say that it is faster: convolutions in blocks.

    site     a convolution, and the group of a partition that computes it
    recast   the same by proven rules: what is read, laid out for products of matrices; these; what
             is read off them. Each is a group.

Whether fewer products are worth reading and writing more is for measured kernels to say: both ways
are tuned for every kind of site, and the rules are applied where the second one is faster. The
program that comes of it competes with the others as a whole, and has to be as exact.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from whet.backend.lowered import body_nodes
from whet.fuse.partition import Group, Partition, partition
from whet.fuse.seed import trait
from whet.fuse.space import Rates
from whet.ir.graph import Graph, Node, topological
from whet.ir.types import DType, divide
from whet.rewrite.certificate import Step, step_of
from whet.rewrite.conjecture import Conjecture
from whet.rewrite.match import Match, applied
from whet.rewrite.pattern import matches
from whet.rewrite.prove import Prover
from whet.rewrite.toom import BLOCK, BLOCKS, COLUMN, KERNEL, MARGINS, ROW
from whet.run.fusing import Priced
from whet.run.modules import module_of, pattern
from whet.run.record import Rewrite
from whet.run.rewriting import Rewritten
from whet.run.tuned import Tuner

CLEAR = 0.93
"""Share of a site's time, below which it is computed the other way."""


@dataclass
class Site:
    """One operator that is computed another way, as nodes of the graph that it has led to.

    Attributes:
        weight: what it reads besides its input; no rule changes that, so a site is told by it.
        before: nodes that lay out what it reads.
        product: nodes that multiply.
        after: nodes that read results off the products.
    """

    weight: Node
    before: list[Node] = field(default_factory=list)
    product: list[Node] = field(default_factory=list)
    after: list[Node] = field(default_factory=list)

    def grow(self, m: Match) -> None:
        """Take over what a match brings, on the side of the product that it stands on."""
        product = [n for n in m.fresh if trait(n).kind == "product"][-1:]
        below = set(topological(product)) - {*product}
        self.before += [n for n in m.fresh if n in below and not n.is_leaf]
        self.after = [n for n in m.fresh if n not in below and n not in product] + self.after
        self.product = product

    def move(self, new: Mapping[Node, Node]) -> None:
        """Go over to the graph that nodes have become part of."""
        for nodes in (self.before, self.product, self.after):
            nodes[:] = [new.get(n, n) for n in nodes]


@dataclass(frozen=True)
class Recast:
    """A graph some of whose operators are computed another way.

    Attributes:
        graph: what the steps lead to.
        steps: of the certificate, in order, each with its matches and the user's line of each.
        sites: what became of the operators.
        became: each node of the first graph that is still needed, in the last one.
    """

    graph: Graph
    steps: tuple[tuple[Step, tuple[Match, ...], tuple[str, ...]], ...]
    sites: tuple[Site, ...]
    became: Mapping[Node, Node]


def weights(graph: Graph, prover: Prover) -> list[Node]:
    """Weights of the operators that `recast` can compute another way, each read by no other; in
    half precision, where differences lose too much, there are none."""
    readers: dict[Node, int] = {}
    for n in graph.nodes:
        for a in n.operands:
            readers[a] = readers.get(a, 0) + 1
    found = [m.tensors["w"] for c in (MARGINS, ROW) for m in matches(graph, c, prover)]
    return [
        w
        for w in dict.fromkeys(found)
        if w is not None
        and w.shape[2:] == (KERNEL, KERNEL)
        and readers[w] == 1
        and w.dtype not in (DType.f16, DType.bf16)
    ]


def recast(graph: Graph, chosen: Collection[Node], prover: Prover) -> Recast:
    """The graph with the operators of these weights in blocks, as far as rules lead there."""
    steps: list[tuple[Step, tuple[Match, ...], tuple[str, ...]]] = []
    sites = {w: Site(w) for w in chosen}
    became = {n: n for n in graph.nodes}
    for c, wanted in _order():
        group = tuple(
            m for m in matches(graph, c, prover) if m.tensors["w"] in sites and wanted(m.roots[0])
        )
        if not group:
            continue
        after, new = applied(graph, group)
        for m in group:
            w = m.tensors["w"]
            assert w is not None
            sites[w].grow(m)
        for site in sites.values():
            site.move(new)
        became = {a: new[b] for a, b in became.items() if b in new}
        lines = tuple(graph.where.get(m.roots[0], "") for m in group)
        steps.append((step_of(graph, group, after), group, lines))
        graph = after
    return Recast(graph, tuple(steps), tuple(s for s in sites.values() if s.product), became)


def _order() -> Iterator[tuple[Conjecture, Callable[[Node], bool]]]:
    """Rules, each with what it is to be used on."""
    yield MARGINS, lambda n: True
    yield ROW, lambda n: divide(n.shape[2], BLOCK) is None
    yield COLUMN, lambda n: divide(n.shape[3], BLOCK) is None
    for c in BLOCKS:
        yield c, lambda n: True


def regrouped(p: Partition, r: Recast) -> Partition:
    """A partition's groups in the graph that its own has become, with three for each site."""
    body = body_nodes(r.graph)
    home = {w: g for g in p.groups for n in g.nodes for w in n.operands}
    parts: dict[Group, list[Site]] = {}
    for site in r.sites:
        parts.setdefault(home[site.weight], []).append(site)
    groups: list[Group] = []
    for g in p.groups:
        nodes = [r.became[n] for n in g.nodes]
        for site in parts.get(g, ()):
            first = [n for n in (*nodes, *site.before) if n in _below(site)]
            groups += [_group(first, body), _group(site.product, body)]
            nodes = [n for n in (*site.after, *nodes) if n not in first]
        groups.append(_group(nodes, body))
    return partition(r.graph, body, [g for g in groups if g.nodes])


def _below(site: Site) -> set[Node]:
    return set(topological(site.product)) - set(site.product)


def _group(nodes: Sequence[Node], body: frozenset[Node]) -> Group:
    kept = [n for n in dict.fromkeys(nodes) if n in body]
    place = {n: k for k, n in enumerate(topological(kept))}
    return Group(tuple(sorted(kept, key=place.__getitem__)))


def faster(
    start: Rewritten, grouped: Partition, tuner: Tuner, prover: Prover
) -> tuple[Rewritten, Partition] | None:
    """The graph with those sites in blocks that kernels are faster for, and its partition; None
    where there are none.

    Args:
        start: what was found before.
        grouped: a partition of its graph, whose groups have been decided.
        tuner: decides what runs a group.
        prover: of the rules.
    """
    every = weights(start.graph, prover)
    if not every:
        return None
    tried = recast(start.graph, every, prover)
    blocks = regrouped(grouped, tried)
    ends = {s.weight: _ends(s, blocks) for s in tried.sites}
    readers = {w: _reader(grouped, w) for w in ends}
    seconds = _seconds(blocks, tuner, [n for w in ends for n in ends[w]])
    direct = _seconds(grouped, tuner, readers.values())
    chosen = [w for w in ends if sum(seconds[n] for n in ends[w]) < CLEAR * direct[readers[w]]]
    if not chosen:
        return None
    best = recast(start.graph, chosen, prover)
    return _told(start, best), regrouped(grouped, best)


def _seconds(p: Partition, tuner: Tuner, nodes: Iterable[Node]) -> dict[Node, float]:
    """What the groups take that own these nodes."""
    owners = {n: p.owner[n] for n in nodes}
    groups = sorted(set(owners.values()))
    found = Priced(tuner, Rates(), p.body)([p.clusters[k] for k in groups])
    costs = {k: s.cost.seconds for k, s in zip(groups, found, strict=True)}
    return {n: costs[k] for n, k in owners.items()}


def _ends(site: Site, p: Partition) -> list[Node]:
    """A node of each group of a site."""
    sides = (site.before, site.product, site.after)
    return [next(n for n in reversed(nodes) if n in p.owner) for nodes in sides]


def _reader(p: Partition, weight: Node) -> Node:
    return next(n for g in p.groups for n in g.nodes if weight in n.operands)


def _told(start: Rewritten, r: Recast) -> Rewritten:
    """What the steps lead to, with the rows that tell of them."""
    now = start
    for step, group, lines in r.steps:
        places = [module_of(m.roots, [n for n in m.tensors.values() if n]) for m in group]
        found = zip(step.places, lines, places, strict=True)
        rows = [Rewrite(p.name, line, p.proof, place) for p, line, place in found]
        changed = ((group[0].rule.name,), pattern(places))
        now = replace(
            now, steps=(*now.steps, step), rows=(*now.rows, *rows), before=now, changed=changed
        )
    return replace(now, graph=r.graph)
