"""The certificate: what was rewritten, so that anyone can do it again and believe only the prover.

    certificate := (step | derivation) *           one line of JSON each
    step        := before, after, place +          applied at once
    derivation  := see whet.rewrite.derivation     what equality saturation found
    place       := conjecture, form, tensors, scope, roots, literals, flipped, backward, guard,
                   assumes                         nodes by digest

`verify_certificate` needs the original graph and nothing that the optimizer found out: each
statement is parsed and proven again, each left side built from the bindings and compared with what
stands in the graph, each result compared with the digest that was written down.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from whet.errors import WhetError
from whet.ir.graph import Graph, Node
from whet.ir.text import parse_size
from whet.ir.types import DType, Poly
from whet.rewrite.conjecture import Conjecture, Form, Statement
from whet.rewrite.formula import names
from whet.rewrite.match import Match, apply_matches
from whet.rewrite.pattern import commutes, is_positive
from whet.rewrite.prove import Prover
from whet.rewrite.rule import Proof, Rule
from whet.rewrite.syntax import Apply, Pattern, walk


class CertificateError(WhetError):
    """A certificate that cannot be read, or that does not hold for this graph."""


@dataclass(frozen=True)
class Place:
    """A proven statement at one place.

    Attributes:
        statement: what was applied.
        proof: its proof, for readers; verification proves it again.
        bindings: of the match, as plain data.
    """

    statement: Statement
    proof: str
    bindings: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The rule's name."""
        return self.statement.conjecture.name

    @property
    def assumes(self) -> tuple[str, ...]:
        """What must hold of symbolic sizes, as comparisons of them."""
        return tuple(self.bindings["assumes"])

    @property
    def roots(self) -> tuple[str, ...]:
        """Digests of the nodes that were replaced."""
        return tuple(self.bindings["roots"])


@dataclass(frozen=True)
class Step:
    """One step: statements applied at one or more places at once.

    Attributes:
        before, after: digests of the graph.
        places: what was applied where.
    """

    before: str
    after: str
    places: tuple[Place, ...]

    @property
    def name(self) -> str:
        """Names of the rules."""
        return ", ".join(dict.fromkeys(p.name for p in self.places))

    def __str__(self) -> str:
        """One line of JSON; `Step.parse` reads it. Each statement is written once."""
        data = {"before": self.before, "after": self.after, **written(self.places)}
        return json.dumps(data, ensure_ascii=False)

    @staticmethod
    def parse(line: str) -> Step:
        """Read what `str` wrote. Raises `CertificateError` for anything else."""
        try:
            data = json.loads(line)
            return Step(data["before"], data["after"], read(data))
        except (ValueError, TypeError, KeyError, IndexError, WhetError) as fault:
            raise CertificateError(
                "not a step of a certificate", got=line[:80], expected=fault
            ) from None

    def applied(self, graph: Graph, prover: Prover) -> Graph:
        """The graph after this step, its statements proven."""
        nodes = {n.digest: n for n in graph.nodes}
        group = [matched(proven(p, prover), p.bindings, nodes) for p in self.places]
        return apply_matches(graph, group)


class Line(Protocol):
    """What a certificate consists of."""

    @property
    def before(self) -> str:
        """Digest of the graph that it starts from."""
        ...

    @property
    def after(self) -> str:
        """Digest of the graph that it leads to."""
        ...

    @property
    def places(self) -> tuple[Place, ...]:
        """The proven statements that it applies."""
        ...

    @property
    def name(self) -> str:
        """Names of the rules."""
        ...

    def applied(self, graph: Graph, prover: Prover) -> Graph:
        """The graph after this line, everything in it proven."""
        ...


def parse(line: str) -> Line:
    """Read a line of a certificate, of either kind. Raises `CertificateError`."""
    from whet.rewrite.derivation import Derivation

    return Derivation.parse(line) if '"region"' in line else Step.parse(line)


def proven(place: Place, prover: Prover) -> Rule:
    """The rule that a place applies. Raises `CertificateError` where it is not proven."""
    verdict = prover.prove(place.statement)
    if not isinstance(verdict, Rule):
        raise CertificateError("a step is not proven", got=verdict)
    told, own = (replace(p, queries=0, trials=0) for p in (Proof.parse(place.proof), verdict.proof))
    if told != own:  # what it took may differ, what it says may not
        raise CertificateError("another proof than the rule's", expected=own, got=told)
    return verdict


def step_of(before: Graph, group: Sequence[Match], after: Graph) -> Step:
    """The step that leads from `before` to `after` by a group of matches."""
    places = tuple(Place(m.rule.statement, str(m.rule.proof), place_of(m)) for m in group)
    return Step(before.digest, after.digest, places)


def verify_certificate(
    graph: Graph, lines: Iterable[str | Line], prover: Prover | None = None
) -> Graph:
    """The graph that a certificate leads to, each step proven and applied again.

    Args:
        graph: the original.
        lines: the certificate.
        prover: one that remembers what it proved itself; a new one by default.

    Raises:
        CertificateError: a step cannot be read, is not proven, does not fit, or leads elsewhere.
    """
    prover = prover or Prover()
    for number, line in enumerate(lines, 1):
        step = parse(line) if isinstance(line, str) else line
        where = f"step {number}: {step.name}"
        if graph.digest != step.before:
            raise CertificateError(
                "a step starts from another graph",
                expected=step.before, got=graph.digest, where=where,
            )  # fmt: skip
        try:
            graph = step.applied(graph, prover)
        except (KeyError, IndexError, TypeError, AttributeError, ValueError) as fault:
            raise CertificateError("a step's bindings are not in the graph", got=fault,
                                   where=where) from None  # fmt: skip
        except CertificateError:
            raise
        except WhetError as fault:
            raise CertificateError("a step does not fit", got=fault, where=where) from None
        if graph.digest != step.after:
            raise CertificateError(
                "a step leads elsewhere", expected=step.after, got=graph.digest, where=where
            )
    return graph


def written(places: Sequence[Place]) -> dict[str, Any]:
    """Places as plain data, each statement once; `read` takes it back."""
    statements: dict[str, tuple[Statement, str]] = {}
    for p in places:
        statements.setdefault(p.statement.text, (p.statement, p.proof))
    number = {text: k for k, text in enumerate(statements)}
    rows = [
        {
            "conjecture": s.conjecture.text,
            "form": [s.form.width, s.form.ranks, s.form.values, s.form.absent, s.form.ones],
            "proof": proof,
        }
        for s, proof in statements.values()
    ]
    listed = [{"statement": number[p.statement.text], **p.bindings} for p in places]
    return {"statements": rows, "places": listed}


def read(data: Mapping[str, Any]) -> tuple[Place, ...]:
    """The places that `written` wrote."""
    statements = []
    for row in data["statements"]:
        width, ranks, values, absent, ones = map(_tuples, row["form"])
        conjecture = Conjecture(row["conjecture"])
        if bool(width) != bool(conjecture.width_name):
            raise CertificateError("a width for what has none", got=width, where=conjecture)
        form = Form(width, ranks, values, absent, ones)
        statements.append((Statement(conjecture, form), row["proof"]))
    places = []
    for row in data["places"]:
        statement, proof = statements[row["statement"]]
        bindings = {k: v for k, v in row.items() if k != "statement"}
        places.append(Place(statement, proof, bindings))
    return tuple(places)


def place_of(m: Match) -> Mapping[str, Any]:
    """What a match binds, as plain data; `matched` reads it."""
    order = {p: k for k, p in reversed(list(enumerate(walk(m.patterns))))}
    return {
        "roots": [n.digest for n in m.roots],
        "tensors": {k: n.digest if n is not None else None for k, n in m.tensors.items()},
        "scope": {k: _plain(v) for k, v in m.scope.items()},
        "own": {str(order[p]): n.digest for p, n in m.own.items()},
        "flipped": sorted(order[p] for p in m.flipped),
        "backward": m.backward,
        "guard": guard_of(m),
        "assumes": list(m.assumes or ()),
    }


def guard_of(m: Match) -> str:
    """The condition of a match's rule, with the numbers that it holds for here."""
    test = m.rule.statement.conjecture.condition
    if test is None:
        return ""
    known = {n: m.scope[n] for n in sorted(names(test)) if n in m.scope}
    return f"{ast.unparse(test)} [{', '.join(f'{n} = {v!r}' for n, v in known.items())}]"


def matched(rule: Rule, place: Mapping[str, Any], nodes: Mapping[str, Node]) -> Match:
    """The match that a place's bindings make, over nodes by digest."""
    backward = place["backward"] is True
    sides = rule.statement.sides
    order: list[Pattern] = list(walk(sides.right if backward else sides.left))
    match = Match(
        rule,
        {k: nodes[d] if d is not None else None for k, d in place["tensors"].items()},
        {k: _tuples(v) for k, v in place["scope"].items()},
        tuple(nodes[d] for d in place["roots"]),
        {order[int(k)]: nodes[d] for k, d in place["own"].items()},
        frozenset(order[k] for k in place["flipped"]),
        backward,
        DType[place["element"]] if "element" in place else None,
    )
    fault = misfit(match)
    if fault is not None:
        raise CertificateError("bindings that the statement does not have", got=fault)
    if guard_of(match) != place["guard"]:
        raise CertificateError(
            "another guard than the rule's", expected=guard_of(match), got=place["guard"]
        )
    if list(match.assumes or ()) != place["assumes"]:
        raise CertificateError(
            "another assumption on sizes than the rule's",
            expected=list(match.assumes or ()), got=place["assumes"],
        )  # fmt: skip
    return match


def misfit(match: Match) -> str | None:
    """Where a match binds something else than what its statement, at its form, is proven for."""
    statement, scope = match.rule.statement, match.scope
    form, sides = statement.form, statement.sides
    width = statement.conjecture.width_name
    groups = [g for g, _ in form.ranks]
    known = {*sides.sizes, *sides.scalars, *groups, *dict(form.values), *([width] if width else ())}
    if scope.keys() != known:
        return f"{', '.join(sorted(scope.keys() ^ known))}"
    if width and scope[width] != form.width:
        return f"{width} is {form.width}"
    for group, rank in form.ranks:
        dims = scope[group]
        if not isinstance(dims, tuple) or len(dims) != rank:
            return f"the rank of {group} is {rank}"
    for name in (*sides.sizes, *groups):
        if not is_positive(scope[name]):
            return f"{name} is no size"
    for name, value in statement.values(scope).items():
        if scope[name] != value:
            return f"{name} is {value}"
    leaves = statement.leaves(scope)
    if leaves.keys() != match.tensors.keys():
        return f"{', '.join(sorted(leaves.keys() ^ match.tensors.keys()))}"
    for name, meant in leaves.items():
        node = match.tensors[name]
        if (node and node.shape) != (meant and meant.shape):
            return f"{name} is {meant and meant.type}"
    turned = (p for p in match.flipped if not (isinstance(p, Apply) and commutes(p.op)))
    return next((f"{p} cannot be turned" for p in turned), None)


def _plain(value: object) -> Any:
    """Symbolic sizes as text in a row of their own; `_tuples` reads it back."""
    if isinstance(value, Poly):
        return {"size": str(value)}
    return [_plain(v) for v in value] if isinstance(value, tuple) else value


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return parse_size(value["size"])
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
