"""`prove: conjecture -> Rule | Refutation | Unknown`, the only producer of Rules.

    refute      both sides at small asymmetric sizes, exactly where they are polynomials
    read        each output of both sides at one symbolic index, as guarded sums of products
    compare     their normal forms, in every region of the output
    classify    what the rule does to rounding, and whether it computes at all

The trusted core is this file with `conjecture` (building the sides), `reading`, `terms`, `normal`,
`spelling`, `integers` with `witness`, and the laws of functions: `laws`, `monotone`, `extremes`,
`logistic`, `bycases`. The matcher is not part of it: what it finds is built again and compared.
"""

from __future__ import annotations

import ast
import hashlib
import itertools
import math
from collections import Counter
from collections.abc import Iterator, MutableMapping, Sequence
from dataclasses import dataclass

from whet.errors import MissingError, RecordError
from whet.ir.expr import Call, Load, Reduce, walk
from whet.ir.graph import Node, topological
from whet.ir.ops import TABLE, record_of
from whet.ir.types import Poly, Size, divide
from whet.rewrite import formula
from whet.rewrite import terms as tm
from whet.rewrite.conjecture import Conjecture, Form, Statement, build
from whet.rewrite.formula import ConjectureError
from whet.rewrite.integers import Facts, Integers, TooManyQueries
from whet.rewrite.normal import Normal
from whet.rewrite.reading import Reader, Refine, Unreadable, few_positions
from whet.rewrite.refute import TRIALS, refute
from whet.rewrite.rule import Floating, Proof, Refutation, Rule, Unknown, Verdict
from whet.rewrite.terms import Element, Sum

_REFINEMENTS = 12
_PARTS = 4  # that an axis is taken apart into where that may help


class Prover:
    """Proves statements, and remembers verdicts by their text.

    Args:
        store: proofs by key, kept between processes; whoever does not trust it rechecks.
        trials: at how many sizes to look for a counterexample first.
    """

    def __init__(self, store: MutableMapping[str, str] | None = None, trials: int = TRIALS) -> None:
        self.trials = trials
        self._store: MutableMapping[str, str] = {} if store is None else store
        self._verdicts: dict[str, Verdict] = {}
        self.queries = 0

    def prove(self, statement: Statement | str, form: Form | None = None) -> Verdict:
        """Rule, Refutation or Unknown. Raises `ConjectureError` where the text states nothing."""
        if isinstance(statement, str):
            statement = Statement(Conjecture(statement), form or Form())
        text = statement.text
        if text not in self._verdicts:
            self._verdicts[text] = self._recalled(statement) or self._proven(statement)
        return self._verdicts[text]

    def _recalled(self, statement: Statement) -> Rule | None:
        try:
            key = _key(statement)
        except (RecordError, ConjectureError):
            return None
        proof = self._store.get(key)
        return Rule(statement, Proof.parse(proof)) if proof is not None else None

    def _proven(self, statement: Statement) -> Verdict:
        counterexample, trials = refute(statement, self.trials)
        if counterexample is not None:
            return Refutation(statement, counterexample)
        if trials == 0:
            return Unknown(statement, "no sizes were found at which the left side exists")
        try:
            found = derive(statement, trials)
        except (Unreadable, TooManyQueries, MissingError, RecordError, ConjectureError) as fault:
            return Unknown(statement, str(fault))
        if isinstance(found, Proof):
            self.queries += found.queries
            self._store[_key(statement)] = str(found)
            return Rule(statement, found)
        return Unknown(statement, found)


def prove(statement: Statement | str, form: Form | None = None) -> Verdict:
    """`Prover().prove`: nothing remembered, nothing stored."""
    return Prover().prove(statement, form)


def derive(statement: Statement, trials: int = 0) -> Proof | str:
    """A proof by normal forms alone, no counterexample being looked for, or what stands in the way.

    Args:
        trials: what the proof shall say of attempts to refute.

    Raises:
        WhetError, Unreadable, TooManyQueries: a side cannot be built, or has no normal form.
    """
    return _Attempt(statement).run(trials)


def recheck(rule: Rule) -> bool:
    """Whether the rule is proven again, from nothing, to the same extent."""
    again = prove(rule.statement)
    return (
        isinstance(again, Rule)
        and again.proof.coverage == rule.proof.coverage
        and again.proof.facts == rule.proof.facts
        and again.proof.moves_only == rule.proof.moves_only
    )


@dataclass
class _Attempt:
    """One attempt to prove a statement for all sizes."""

    statement: Statement

    def run(self, trials: int) -> Proof | str:
        """See `derive`."""
        statement = self.statement
        scope = statement.symbols
        leaves = statement.leaves(scope)
        left = build(statement.sides.left, leaves, scope)
        right = build(statement.sides.right, leaves, scope)
        facts = tuple(_facts(statement))
        integers = Integers(_positive(statement), facts)
        if not integers.feasible(frozenset()):
            return "its condition can never hold"
        for node in topological((*left, *right)):
            for guard in () if node.is_leaf else node.instance.guards:
                for side in (guard.left, guard.right):
                    if not isinstance(side, (int, Poly)):  # an attribute that is no size
                        return f"{node.op} cannot have {guard}"
                if not integers.equal(frozenset(), guard.left, guard.right):
                    return f"{node.op} needs {guard}"
        for k, (a, b) in enumerate(zip(left, right, strict=True)):
            if a.dtype != b.dtype or len(a.shape) != len(b.shape):
                return f"output {k} has types {a.type} and {b.type}"
            for m, n in zip(a.shape, b.shape, strict=True):
                if not integers.equal(frozenset(), m, n):
                    return f"output {k} has types {a.type} and {b.type}"
        for node in topological((*left, *right)):
            if _loses_elements(node, integers):
                return f"{node.op} needs as many elements in {node.type} as in its operand"
        sums = self._compare(left, right, integers)
        if isinstance(sums, str):
            return sums
        return Proof(
            statement.text,
            statement.coverage,
            tuple(f"{f} >= 0" for f in facts),
            integers.queries,
            trials,
            floating(left, right),
            all(map(_moves_only, sums)),
            _records((*left, *right)),
        )

    def _compare(
        self, left: Sequence[Node], right: Sequence[Node], integers: Integers
    ) -> list[Sum] | str:
        """Normal forms of the outputs where all are equal, else what is not."""
        reader = Reader(integers)
        for _ in range(_REFINEMENTS):
            try:
                found: list[Sum] = []
                for k, (a, b) in enumerate(zip(left, right, strict=True)):
                    for index, known in self._indices(a, reader):
                        x, y = reader.at(a, index, known), reader.at(b, index, known)
                        normal = Normal(integers, written_out=reader.written_out)
                        region = normal.equal(x, y, known)
                        if region is not None and not reader.written_out:
                            raise _Again
                        if region is not None:
                            where = ", ".join(f"{g} >= 0" for g in sorted(region - known, key=repr))
                            return f"normal forms of output {k} differ" + (
                                where and f" where {where}"
                            )
                        found.append(normal.simplify(x, known))
                return found
            except Refine as need:
                reader.refined[need.extent] = need.inner
            except _Again:
                reader.refined.update(_halves(reader))
                reader.written_out = True
            except Unreadable:
                if reader.written_out or not _has_few(reader):
                    raise
                reader.refined.update(_halves(reader))
                reader.written_out = True
        return "axes were refined too often"

    def _indices(self, node: Node, reader: Reader) -> Iterator[tuple[list[Size], Facts]]:
        """A symbolic index that stands for all; all of them where they are few and written out."""
        few = few_positions(node.shape) if reader.written_out else None
        if few is not None:
            for place in few:
                yield [*place], frozenset()
            return
        index: list[Size] = []
        known: Facts = frozenset()
        for extent in node.shape:
            position, axes = reader.axis(extent)
            index.append(position)
            known = known.union(*(tm.within(a, n) for a, n in axes))
        yield index, known


class _Again(Exception):
    """Another try, with some axes taken apart and what has few values written out."""


def _has_few(reader: Reader) -> bool:
    """Whether some axis has few positions, so that writing them out may help."""
    return any(few_positions([n]) is not None for n in reader.extents.values())


def _halves(reader: Reader) -> dict[Size, Size]:
    """Axes of twice or three times some size are taken apart into as many of that size."""
    halves: dict[Size, Size] = {}
    for extent in reader.extents.values():
        if isinstance(extent, Poly) and extent not in reader.refined:
            parts = math.gcd(*(c for _, c in extent.terms))
            inner = divide(extent, parts)
            if 1 < parts <= _PARTS and inner is not None:
                halves[extent] = inner
    return halves


def _loses_elements(node: Node, integers: Integers) -> bool:
    """Whether a node may only exist at some sizes without its record saying so.

    A record made for given shapes that renumbers elements takes it that both have as many.
    """
    if node.is_leaf or TABLE[node.op].record is not None or len(node.operands) != 1:
        return False
    (operand,) = node.operands
    if any(isinstance(e, Reduce) for let in node.instance.lets for e in walk(let.body)):
        return False
    return not integers.equal(frozenset(), node.type.numel, operand.type.numel)


def _positive(statement: Statement) -> Iterator[str]:
    """Symbols that stand for positive integers."""
    sizes = {*statement.sides.sizes, *(g for g, _ in statement.form.ranks)}
    for name in sorted(sizes):
        value = statement.symbols[name]
        for v in value if isinstance(value, tuple) else (value,):
            if isinstance(v, Poly):
                yield from v.symbols()


def _facts(statement: Statement) -> Iterator[Size]:
    """The condition as facts; what is decided by the form alone is none."""
    test = statement.conjecture.condition
    tests = [] if test is None else test.values if _is_and(test) else [test]  # type: ignore[attr-defined]
    for t in tests:
        yield from _fact(t, statement)


def _is_and(test: ast.expr) -> bool:
    return isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And)


def _fact(test: ast.expr, statement: Statement) -> Iterator[Size]:
    if isinstance(test, ast.Compare):
        values = [formula.evaluate(x, statement.symbols) for x in (test.left, *test.comparators)]
        if any(isinstance(v, Poly) for v in values):
            for op, a, b in zip(test.ops, values, values[1:], strict=False):
                x, y = formula.size(a, test), formula.size(b, test)
                match op:
                    case ast.Lt():
                        yield y - x - 1
                    case ast.LtE():
                        yield y - x
                    case ast.Gt():
                        yield x - y - 1
                    case ast.GtE():
                        yield x - y
                    case ast.Eq():
                        yield from (x - y, y - x)
                    case _:
                        raise ConjectureError("not a linear condition", where=ast.unparse(test))
            return
    if not formula.evaluate(test, statement.symbols):
        yield -1


def _moves_only(s: Sum) -> bool:
    return all(
        t.coefficient == 1 and not t.bound and len(t.factors) == 1
        and isinstance(t.factors[0], Element)
        for t in s
    )  # fmt: skip


def _key(statement: Statement) -> str:
    scope = statement.symbols
    leaves = statement.leaves(scope)
    nodes = [
        *build(statement.sides.left, leaves, scope),
        *build(statement.sides.right, leaves, scope),
    ]
    return f"{_records(nodes)} {statement.text}"


def _records(nodes: Sequence[Node]) -> str:
    """Digest of the records that nodes are read off."""
    texts = {
        record_of(n.op, tuple(None if a is None else a.shape for a in n.args), dict(n.attrs)).text
        for n in topological(nodes)
        if not n.is_leaf
    }
    return hashlib.blake2b("\n".join(sorted(texts)).encode(), digest_size=8).hexdigest()


# -- rounding ------------------------------------------------------------------------------------
_MANY = 256  # trees of one node
_RISKY = frozenset({"exp", "exp2", "/", "recip", "rsqrt", "pow", "log", "sqrt"})


def floating(left: Sequence[Node], right: Sequence[Node]) -> Floating:
    """What going from left to right does to rounding.

    With movement left out, the same trees of scalar operations round alike; else the operations
    that are new on the right say what is at stake.
    """
    forest = _Forest()
    trees = [(forest.of(a), forest.of(b)) for a, b in zip(left, right, strict=True)]
    if all(a and b and (a <= b or b <= a) for a, b in trees):
        return Floating.BIT_EXACT
    before, after = _operations(left), _operations(right)
    new = after - before
    if any(fn in _RISKY for fn in new):
        return Floating.OVERFLOW_RISK
    return Floating.CANCELLING if "-" in new else Floating.REASSOCIATING


def _own(node: Node) -> tuple[str, ...]:
    """The scalar operations of a node's record, on values."""
    found: list[str] = []
    for let in node.instance.lets:
        reads = {e for e in walk(let.body) if any(isinstance(x, Load) for x in walk(e))}
        found += (e.kind for e in reads if isinstance(e, Reduce))
        found += (e.fn for e in reads if isinstance(e, Call))
    return tuple(sorted(found))


class _Forest:
    """The trees of scalar operations that elements of nodes are the results of, each by a number.

    A node that more than `_MANY` may have led to has none, and its rounding is not compared.
    """

    def __init__(self) -> None:
        self._numbers: dict[object, int] = {}
        self._found: dict[Node, frozenset[int]] = {}

    def of(self, node: Node) -> frozenset[int]:
        """The trees of a node; none where they are too many."""
        for n in topological([node]):
            if n not in self._found:
                self._found[n] = self._of(n)
        return self._found[node]

    def _of(self, node: Node) -> frozenset[int]:
        if node.is_leaf:
            return frozenset({self._number(node.name)})
        if node.op == "full":
            return frozenset({self._number(str(node.attr("value")))})
        own = _own(node)
        below = [self._found[a] for a in node.operands]
        if not all(below):
            return frozenset()
        if not own:
            trees: frozenset[int] = frozenset().union(*below)
            return trees if len(trees) <= _MANY else frozenset()
        if math.prod(map(len, below)) > _MANY:
            return frozenset()
        numbers = tuple(str(v) for _, v in node.attrs if isinstance(v, float))
        return frozenset(self._number((own, numbers, c)) for c in itertools.product(*below))

    def _number(self, tree: object) -> int:
        return self._numbers.setdefault(tree, len(self._numbers))


def _operations(nodes: Sequence[Node]) -> Counter[str]:
    return Counter(fn for n in topological(nodes) if not n.is_leaf for fn in _own(n))
