"""What comes of a conjecture: a Rule with its Proof, a Refutation, or Unknown.

    Conjecture --prove--> Rule(statement, proof) | Refutation(statement, counterexample) | Unknown

A Rule is made by `whet.rewrite.prove` and by nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from enum import StrEnum

from whet.rewrite.conjecture import Statement
from whet.rewrite.formula import ConjectureError


class Floating(StrEnum):
    """What a rule, an equality over the reals, does to rounding."""

    BIT_EXACT = "bit-exact"  # the same scalar operations on the same numbers
    REASSOCIATING = "reassociating"  # sums and products are grouped differently
    CANCELLING = "cancelling"  # the right side subtracts where the left does not
    OVERFLOW_RISK = "overflow-risk"  # the right side has more exponentials or divisions


@dataclass(frozen=True, slots=True)
class Proof:
    """Why a rule holds, and for what.

    Attributes:
        statement: conjecture and form, as text.
        coverage: "all-shapes", with the form where one was fixed, or "bounded(…)". Every size is a
            positive integer.
        facts: what was assumed beyond that: the conjecture's own condition.
        queries: questions that went to the solver of integer arithmetic.
        trials: assignments of sizes that failed to refute it first.
        floating: what it does to rounding.
        moves_only: no element is computed with, so that it holds for every element type.
        records: digest of the operators' records that the proof read.
    """

    statement: str
    coverage: str
    facts: tuple[str, ...]
    queries: int
    trials: int
    floating: Floating
    moves_only: bool
    records: str

    def __str__(self) -> str:
        """One line of JSON; `Proof.parse` reads it."""
        return json.dumps(asdict(self), ensure_ascii=False, sort_keys=True)

    @staticmethod
    def parse(text: str) -> Proof:
        """Read what `str` wrote. Raises `ConjectureError` for anything else."""
        try:
            data = json.loads(text)
            if set(data) != {f.name for f in fields(Proof)}:
                raise ValueError("other fields")
            data["facts"] = tuple(data["facts"])
            data["floating"] = Floating(data["floating"])
            return Proof(**data)
        except (ValueError, TypeError) as fault:
            raise ConjectureError("not a proof", got=text[:80], expected=fault) from None


@dataclass(frozen=True)
class Rule:
    """A proven statement, to be used from left to right."""

    statement: Statement
    proof: Proof

    def __post_init__(self) -> None:
        if self.proof.statement != self.statement.text:
            raise ConjectureError(
                "a proof of something else", expected=self.statement.text, got=self.proof.statement
            )

    @property
    def name(self) -> str:
        return self.statement.conjecture.name

    def __repr__(self) -> str:
        return f"{self.statement.text}  ({self.proof.coverage}, {self.proof.floating})"


@dataclass(frozen=True)
class Counterexample:
    """Where two sides differ.

    Attributes:
        scope: sizes and attributes.
        output: which of several outputs.
        index: the first element that differs, None where even the types do.
        left, right: both values (residues modulo a prime where `ring` says so), or both types.
        ring: where it was computed.
    """

    scope: Mapping[str, object]
    output: int
    index: tuple[int, ...] | None
    left: object
    right: object
    ring: str

    def __str__(self) -> str:
        sizes = ", ".join(f"{k} = {v}" for k, v in self.scope.items())
        place = "types" if self.index is None else f"element {list(self.index)}"
        values = f"{self.left} != {self.right} ({self.ring})"
        return f"at {sizes}: {place} of output {self.output}: {values}"


@dataclass(frozen=True)
class Refutation:
    """A false statement, with a counterexample."""

    statement: Statement
    counterexample: Counterexample

    def __str__(self) -> str:
        return f"{self.statement.text}\n  is false {self.counterexample}"


@dataclass(frozen=True)
class Unknown:
    """Neither proven nor refuted; `reason` says what stood in the way."""

    statement: Statement
    reason: str

    def __str__(self) -> str:
        return f"{self.statement.text}\n  is neither proven nor refuted: {self.reason}"


Verdict = Rule | Refutation | Unknown
