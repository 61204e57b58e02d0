"""The certificate: what was rewritten, so that anyone can do it again and believe only the prover.

    certificate := step *                          one line of JSON each
    step        := conjecture, form, before, after, match *
    match       := tensors, scope, roots, literals, flipped     nodes by digest

`verify_certificate` needs the original graph and nothing that the optimizer found out: each
statement is parsed and proven again, each left side built from the bindings and compared with what
stands in the graph, each result compared with the digest that was written down.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from whet.errors import WhetError
from whet.ir.graph import Graph, Node
from whet.rewrite.conjecture import Conjecture, Form, Pattern, Statement, walk
from whet.rewrite.pattern import Match, apply_matches
from whet.rewrite.prove import Prover
from whet.rewrite.rule import Rule


class CertificateError(WhetError):
    """A certificate that cannot be read, or that does not hold for this graph."""


@dataclass(frozen=True)
class Step:
    """One step: a proven statement applied at one or more places at once.

    Attributes:
        statement: what was applied.
        proof: its proof, for readers; verification proves it again.
        before, after: digests of the graph.
        places: bindings of each match, as plain data.
    """

    statement: Statement
    proof: str
    before: str
    after: str
    places: tuple[Mapping[str, Any], ...]

    @property
    def name(self) -> str:
        """The rule's name."""
        return self.statement.conjecture.name

    def __str__(self) -> str:
        """One line of JSON; `Step.parse` reads it."""
        form = self.statement.form
        data = {
            "conjecture": self.statement.conjecture.text,
            "form": [form.width, form.ranks, form.values, form.absent, form.ones],
            "proof": self.proof,
            "before": self.before,
            "after": self.after,
            "places": self.places,
        }
        return json.dumps(data, ensure_ascii=False)

    @staticmethod
    def parse(line: str) -> Step:
        """Read what `str` wrote. Raises `CertificateError` for anything else."""
        try:
            data = json.loads(line)
            width, ranks, values, absent, ones = map(_tuples, data["form"])
            statement = Statement(
                Conjecture(data["conjecture"]), Form(width, ranks, values, absent, ones)
            )
            places = tuple(data["places"])
            return Step(statement, data["proof"], data["before"], data["after"], places)
        except (ValueError, TypeError, KeyError, WhetError) as fault:
            raise CertificateError(
                "not a step of a certificate", got=line[:80], expected=fault
            ) from None


def steps_of(before: Graph, group: Sequence[Match], after: Graph) -> tuple[Step, ...]:
    """The steps that lead from `before` to `after` by a group of matches.

    Matches of one statement make one step; with several statements there are several steps, and the
    graphs between them are built here.
    """
    by_statement: dict[str, list[Match]] = {}
    for m in group:
        by_statement.setdefault(m.rule.statement.text, []).append(m)
    found: list[Step] = []
    graph = before
    for number, part in enumerate(by_statement.values(), 1):
        moved = after if len(by_statement) == 1 else apply_matches(graph, part)
        rule = part[0].rule
        places = tuple(map(_place, part))
        found.append(Step(rule.statement, str(rule.proof), graph.digest, moved.digest, places))
        graph = moved
        if number == len(by_statement) and graph.digest != after.digest:
            raise CertificateError("a group of matches depends on its order")
    return tuple(found)


def verify_certificate(
    graph: Graph, lines: Iterable[str | Step], prover: Prover | None = None
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
        step = line if isinstance(line, Step) else Step.parse(line)
        where = f"step {number}: {step.name}"
        if graph.digest != step.before:
            raise CertificateError(
                "a step starts from another graph",
                expected=step.before, got=graph.digest, where=where,
            )  # fmt: skip
        verdict = prover.prove(step.statement)
        if not isinstance(verdict, Rule):
            raise CertificateError("a step is not proven", got=verdict, where=where)
        nodes = {n.digest: n for n in graph.nodes}
        try:
            group = [_matched(verdict, place, nodes) for place in step.places]
            graph = apply_matches(graph, group)
        except (KeyError, IndexError, TypeError) as fault:
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


def _place(m: Match) -> Mapping[str, Any]:
    order = {p: k for k, p in reversed(list(enumerate(walk(m.rule.statement.sides.left))))}
    return {
        "roots": [n.digest for n in m.roots],
        "tensors": {k: n.digest if n is not None else None for k, n in m.tensors.items()},
        "scope": dict(m.scope),
        "own": {str(order[p]): n.digest for p, n in m.own.items()},
        "flipped": sorted(order[p] for p in m.flipped),
    }


def _matched(rule: Rule, place: Mapping[str, Any], nodes: Mapping[str, Node]) -> Match:
    order: list[Pattern] = list(walk(rule.statement.sides.left))
    return Match(
        rule,
        {k: nodes[d] if d is not None else None for k, d in place["tensors"].items()},
        {k: _tuples(v) for k, v in place["scope"].items()},
        tuple(nodes[d] for d in place["roots"]),
        {order[int(k)]: nodes[d] for k, d in place["own"].items()},
        frozenset(order[k] for k in place["flipped"]),
    )


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
