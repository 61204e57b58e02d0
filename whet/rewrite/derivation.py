"""What equality saturation did, as a line of a certificate.

    derivation := before, after, region, becomes, place *, at +
    region     := text of a closed graph               what stood there
    becomes    := text of a graph over the same leaves       what takes its place
    place      := an equation: a proven statement, both sides built over nodes known so far
    at         := digest of a node for each leaf       where the region occurs

The equations are true of any tensors, each by its rule's proof. That the results of both graphs are
equal follows from them by congruence: equal operands, equal results. Whoever checks this builds the
equations one after another and asks a congruence closure; nothing is searched, no order of steps
has to be right, and a block that a model repeats is checked once and then put in its places.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from whet.errors import WhetError
from whet.ir.graph import Graph, Node, topological
from whet.ir.text import parse_graph, print_graph
from whet.rewrite.certificate import (
    CertificateError,
    Place,
    matched,
    place_of,
    proven,
    read,
    written,
)
from whet.rewrite.egraph import EGraph
from whet.rewrite.match import Match, replaced
from whet.rewrite.prove import Prover
from whet.rewrite.region import placed


@dataclass(frozen=True)
class Derivation:
    """A region and what it becomes, with the equations that say they are equal.

    Attributes:
        before, after: digests of the whole graph.
        region, becomes: closed graphs over the same leaves, as text.
        places: the equations.
        at: for each occurrence of the region, the digest of the node of each leaf.
    """

    before: str
    after: str
    region: str
    becomes: str
    places: tuple[Place, ...]
    at: tuple[Mapping[str, str], ...]

    @property
    def name(self) -> str:
        """Names of the rules."""
        return ", ".join(dict.fromkeys(p.name for p in self.places))

    def __str__(self) -> str:
        """One line of JSON; `Derivation.parse` reads it."""
        data = {"before": self.before, "after": self.after, "region": self.region,
                "becomes": self.becomes, "at": list(self.at), **written(self.places)}  # fmt: skip
        return json.dumps(data, ensure_ascii=False)

    @staticmethod
    def parse(line: str) -> Derivation:
        """Read what `str` wrote. Raises `CertificateError` for anything else."""
        try:
            data = json.loads(line)
            return Derivation(data["before"], data["after"], data["region"], data["becomes"],
                              read(data), tuple(map(dict, data["at"])))  # fmt: skip
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, WhetError) as fault:
            raise CertificateError(
                "not a derivation of a certificate", got=line[:80], expected=fault
            ) from None

    def sides(self) -> tuple[Graph, Graph]:
        """The region, and what it becomes. Raises `GraphError` where one cannot be read."""
        return parse_graph(self.region), parse_graph(self.becomes)

    def applied(self, graph: Graph, prover: Prover) -> Graph:
        """The graph with every occurrence replaced, once the equality has been derived.

        Raises:
            CertificateError: it does not follow, or the region does not stand there.
        """
        region, becomes = self.sides()
        self._derive(region, becomes, prover)
        nodes = {n.digest: n for n in graph.nodes}
        if not self.at:
            raise CertificateError("a derivation is for no place")
        places = [{k: nodes[d] for k, d in place.items()} for place in self.at]
        return replace(graph, region, becomes, places)[0]

    def _derive(self, region: Graph, becomes: Graph, prover: Prover) -> None:
        """Build every equation and ask whether the results are equal."""
        leaves = {n for n in region.nodes if n.is_leaf}
        if not {n for n in becomes.nodes if n.is_leaf} <= leaves:
            raise CertificateError("what a region becomes has leaves of its own")
        if region.updates or becomes.updates or len(region.outputs) != len(becomes.outputs):
            raise CertificateError("a region has other results than what it becomes")
        classes = EGraph(region.nodes)
        nodes = {n.digest: n for n in region.nodes}
        for number, place in enumerate(self.places):
            match = matched(proven(place, prover), {**place.bindings, "roots": []}, nodes)
            if [n.digest for n in match.left] != list(place.roots):
                raise CertificateError("an equation's side is not what is written down")
            reason = match.unfounded()
            if reason is not None:
                raise CertificateError("an equation does not hold", got=reason)
            for a, b in zip(match.left, match.right, strict=True):
                classes.union(a, b, number)
            nodes |= {n.digest: n for n in topological((*match.left, *match.right))}
        for a, b in zip(region.outputs, becomes.outputs, strict=True):
            classes.add(b)
            if not classes.equal(a, b):
                raise CertificateError(
                    "the equality does not follow from the equations", expected=a, got=b
                )


def replace(
    graph: Graph, region: Graph, becomes: Graph, places: Sequence[Mapping[str, Node]]
) -> tuple[Graph, Mapping[Node, Node]]:
    """A graph with every occurrence of a region replaced, inside each other's operands too, and
    what its nodes have become.

    Raises:
        CertificateError: the region does not stand there.
        GraphError: replacements would wait for each other.
    """
    present = set(graph.nodes)
    mapping: dict[Node, Node] = {}
    for place in places:
        for a, b in zip(placed(region, place), placed(becomes, place), strict=True):
            if a not in present:
                raise CertificateError("a region is not in the graph", got=a)
            if a is not b:
                mapping[a] = b
    return replaced(graph, mapping)


def derivation_of(
    before: Graph,
    region: Graph,
    becomes: Graph,
    places: Sequence[Mapping[str, Node]],
    equations: Sequence[Match],
) -> tuple[Derivation, Graph, Mapping[Node, Node]]:
    """The line for a region's rewrite, the whole graph after it, and what its nodes have become."""
    after, new = replace(before, region, becomes, places)
    applied = tuple(
        Place(m.rule.statement, str(m.rule.proof),
              {**place_of(m), "roots": [n.digest for n in m.left], "element": m.dtype.name})
        for m in equations
    )  # fmt: skip
    at = tuple({k: n.digest for k, n in place.items()} for place in places)
    texts = print_graph(region), print_graph(becomes)
    return Derivation(before.digest, after.digest, *texts, applied, at), after, new
