"""Deciding conjectures that nobody here wrote.

    proven      for all sizes at which both sides exist; `guard` says which these are
    refuted     with a counterexample
    unknown     neither

and whether the library alone derives it: both sides at asymmetric sizes in one e-graph, saturated
with the library's rules, each of them proven at the form at which it is used.
"""

from __future__ import annotations

import contextlib
import itertools
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType

from whet.errors import WhetError
from whet.ir.graph import Graph, Node, rebuilt, topological
from whet.rewrite.conjecture import Conjecture, Form, Statement, build
from whet.rewrite.egraph import EGraph
from whet.rewrite.ematch import ways
from whet.rewrite.formula import ConjectureError
from whet.rewrite.library import library
from whet.rewrite.pattern import commutes
from whet.rewrite.prove import Prover
from whet.rewrite.refute import assignments, refute
from whet.rewrite.rule import Refutation, Rule, Unknown, Verdict
from whet.rewrite.saturate import Saturation
from whet.rewrite.stated import NoSuchSizes, Stated, stated
from whet.rewrite.syntax import operators
from whet.search import Budget

_NODES, _ROUNDS, _MATCHES = 1500, 6, 400
_STAGES = (1500, 2000, 3000)  # e-nodes that rules over a statement's operators may add, then more
_BOUNDED = 3
_AGAIN_S = 0.5  # from one ring of the alarm to the next
SECONDS = 60.0
"""Seconds of processor time for one conjecture, and as many again for its derivation."""


@dataclass(frozen=True)
class Decision:
    """What is known of a conjecture; the fields are those of the JSON that the command writes."""

    name: str
    verdict: str
    covers: str = ""
    guard: str = ""
    counterexample: str = ""
    derivable: bool = False
    derivation: tuple[str, ...] = ()
    seconds: float = 0.0
    reason: str = ""


@dataclass
class Decider:
    """Decides entries; remembers proofs between them.

    Attributes:
        rules: what derivations may use; the shipped library unless given.
        seconds: of processor time, for a verdict and for a derivation; what takes longer is not
            settled.
    """

    rules: Mapping[str, Conjecture] = field(default_factory=library)
    prover: Prover = field(default_factory=Prover)
    seconds: float = SECONDS

    def decide(self, entry: Mapping[str, object]) -> Decision:
        """The verdict on one entry. Raises `ConjectureError` where it cannot be read."""
        began = time.monotonic()
        name = str(entry.get("name", "unnamed"))
        try:
            claim = stated(entry)
        except NoSuchSizes as fault:
            return Decision(
                name, "refuted", counterexample=str(fault), seconds=time.monotonic() - began
            )
        try:
            with _limited(self.seconds):
                forms = self._forms(claim)
                verdicts = [self._verdict(Statement(claim.conjecture, f)) for f in forms]
        except _OutOfTime:
            return Decision(
                name, "unknown", guard=" and ".join(claim.guards),
                reason=f"not settled in {self.seconds:g} s", seconds=time.monotonic() - began,
            )  # fmt: skip
        return self._told(claim, verdicts, began)

    def _forms(self, claim: Stated) -> list[Form]:
        found = [f for f in claim.forms() if _exists(Statement(claim.conjecture, f))]
        return found or [next(claim.forms())]

    def _verdict(self, statement: Statement) -> Verdict:
        verdict = self.prover.prove(statement)
        if isinstance(verdict, Refutation) and verdict.counterexample.index is None:
            # Nothing is stated where the right side does not exist: it must be wrong where it does.
            wrong, tried = refute(statement, both=True)
            if wrong is not None:
                return Refutation(statement, wrong)
            if tried:
                verdict = Unknown(statement, f"true only at some sizes: {verdict.counterexample}")
        if not isinstance(verdict, Unknown):
            return verdict
        bounded: list[Rule] = []
        for scope in itertools.islice(_where_both(statement), _BOUNDED):
            again = self.prover.prove(statement.fixed(scope))
            if not isinstance(again, Rule):
                return verdict
            bounded.append(again)
        return bounded[0] if len(bounded) == _BOUNDED else verdict

    def _told(self, claim: Stated, verdicts: Sequence[Verdict], began: float) -> Decision:
        guard = [*claim.guards]
        if claim.conjecture.condition is not None:
            guard.append(claim.conjecture.text.partition(" if ")[2])
        needs = " and ".join(guard)
        wrong = next((v for v in verdicts if isinstance(v, Refutation)), None)
        if wrong is not None:
            shown = str(wrong.counterexample)
            return Decision(
                claim.name, "refuted", guard=needs, counterexample=shown,
                seconds=time.monotonic() - began,
            )  # fmt: skip
        open_ = next((v for v in verdicts if isinstance(v, Unknown)), None)
        steps, reason = None, ""
        try:
            with _limited(self.seconds):
                steps = self.derivation(verdicts[0].statement) if open_ is None else None
        except _OutOfTime:
            reason = f"whether it is derivable is not settled in {self.seconds:g} s"
        seconds = time.monotonic() - began
        if open_ is not None:
            return Decision(
                claim.name, "unknown", guard=needs, reason=open_.reason, seconds=seconds
            )
        rules = [v for v in verdicts if isinstance(v, Rule)]
        covers = "; ".join(dict.fromkeys(v.proof.coverage for v in rules))
        return Decision(
            claim.name, "proven", covers=covers, guard=needs, derivable=steps is not None,
            derivation=tuple(steps or ()), seconds=seconds, reason=reason,
        )  # fmt: skip

    def derivation(self, statement: Statement) -> list[str] | None:
        """The library's rules that lead from one side to the other, or None: rules over the
        statement's own operators are tried alone first, then with those that begin there."""
        sides = statement.sides
        own, tried = operators((*sides.left, *sides.right)), dict[str, Conjecture]()
        for nodes in _STAGES:
            near, own = _reached(self.rules, own)
            if len(near) > len(tried):
                tried = near
                steps = derivation(statement, near, self.prover, nodes=nodes, rounds=_ROUNDS)
                if steps is not None:
                    return steps
        return None


def _reached(
    rules: Mapping[str, Conjecture], own: frozenset[str]
) -> tuple[dict[str, Conjecture], frozenset[str]]:
    """The rules over some operators alone, and these operators with those of all rules of which
    one side is over them."""
    near: dict[str, Conjecture] = {}
    more = set(own)
    for name, rule in rules.items():
        sides = rule.sides(2 if rule.width_name else 0)
        left, right = operators(sides.left), operators(sides.right)
        if left | right <= own:
            near[name] = rule
        if left <= own or right <= own:
            more |= left | right
    return near, frozenset(more)


class _OutOfTime(BaseException):
    """No error that anybody in between may catch."""


@contextlib.contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Raises `_OutOfTime` after so many seconds of processor time, where signals can be had.

    A machine that is busy with something else, or a process that is held, costs nothing. The alarm
    goes on ringing, as an exception that is raised inside a callback of the solver's is lost; and
    what is delivered late, after everything is over, finds a handler: it would kill the process.
    """
    if threading.current_thread() is not threading.main_thread() or not seconds:
        yield
        return
    over = False

    def stop(number: int, frame: FrameType | None) -> None:
        if not over:
            raise _OutOfTime

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds, _AGAIN_S)
    try:
        try:
            yield
        finally:  # twice, in case the alarm rings just here
            over = True
    finally:
        over = True
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        if callable(before):
            signal.signal(signal.SIGPROF, before)


def derivation(
    statement: Statement, rules: Mapping[str, Conjecture], prover: Prover, *,
    nodes: int = _NODES, rounds: int = _ROUNDS,
) -> list[str] | None:  # fmt: skip
    """Names of the rules that a statement follows from, in order; None where none were found.

    Args:
        nodes, rounds: how far the e-graph may grow.
    """
    sides = _sides(statement)
    if sides is None:
        return None
    left, right = sides
    if _sorted(left) == _sorted(right):
        return [] if left == right else ["operands of commutative operators change places"]
    try:
        run = Saturation(EGraph((*left, *right)), ways(rules.values(), both=True), prover)
        for _ in range(rounds):
            run.run(Budget(nodes=nodes), rounds=1, matches=_MATCHES)
            if all(run.classes.equal(a, b) for a, b in zip(left, right, strict=True)):
                return [
                    m.rule.name + (" (backward)" if m.backward else "")
                    for m in run.needed(list(zip(left, right, strict=True)))
                ]
            if len(run.classes) > nodes:
                return None
    except WhetError:
        return None
    return None


def _sides(statement: Statement) -> tuple[tuple[Node, ...], tuple[Node, ...]] | None:
    """Both sides at asymmetric sizes."""
    for scope in assignments(statement):
        try:
            leaves = statement.leaves(scope)
            left = build(statement.sides.left, leaves, scope)
            right = build(statement.sides.right, leaves, scope)
        except (WhetError, ArithmeticError):
            continue
        if [n.type for n in left] == [n.type for n in right]:
            return left, right
    return None


def _sorted(nodes: tuple[Node, ...]) -> tuple[Node, ...]:
    """The same graphs with operands of commutative operators in one order, as matching has them."""

    def turn(node: Node, args: tuple[Node | None, ...]) -> Node | None:
        if node.is_leaf or not commutes(node.op) or len(args) != 2:
            return None
        return rebuilt(node, sorted(args, key=lambda a: a.digest if a is not None else ""))

    inputs = tuple(n for n in topological(nodes) if n.op == "input")
    return Graph(inputs, nodes).rewrite(turn).outputs


def _where_both(statement: Statement) -> Iterator[Mapping[str, object]]:
    """Sizes at which both sides exist."""
    for scope in assignments(statement):
        with contextlib.suppress(WhetError, ArithmeticError, TypeError):
            leaves = statement.leaves(scope)
            build(statement.sides.left, leaves, scope)
            build(statement.sides.right, leaves, scope)
            yield scope


def _exists(statement: Statement) -> bool:
    try:
        scope = statement.symbols
        build(statement.sides.left, statement.leaves(scope), scope)
    except (WhetError, ArithmeticError, TypeError):
        return False
    return True


__all__ = ["ConjectureError", "Decider", "Decision", "derivation"]
