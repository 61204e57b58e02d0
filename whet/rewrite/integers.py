"""Questions about numbers: does this inequality of whole ones follow from those, is that always 0?

A fact is a size that is known to be at least 0. Sizes are polynomials over axes and extents; the
question is linear after each product of symbols (`h*stride`) and each quotient is taken for an
unknown of its own, about which a few lemmas are added:

    v in h >= 0, rest >= 0            ==>  h * rest >= 0          for a product v * rest in question
    q = top // bottom, bottom >= 1    ==>  0 <= top - q * bottom < bottom
    q as before, top >= 0             ==>  q >= 0
    q as before, top < (n+1)*bottom   ==>  q <= n                 for a bound q <= n in question

So every "yes" is true for all whole numbers; a "no" may only mean that the lemmas did not reach.
This is the only file that knows Z3. Effort is bounded by Z3's own resource count, never by a clock,
so that answers do not depend on the machine.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from typing import Any

from whet.errors import MissingError
from whet.ir.types import Monomial, Poly, Quotient, Size
from whet.rewrite.witness import Witnesses

Facts = frozenset[Size]
Value = Any
"""A real number, as `Reals` makes it."""
_EFFORT = 400_000
_MOST = 3_000
_REAL_EFFORT = 3_000_000


class TooManyQueries(Exception):
    """A proof asks more than it may."""


def _z3() -> Any:
    try:
        import z3
    except ImportError as fault:
        raise MissingError(
            "rules that were not proven before need z3", got=fault, hint="pip install z3-solver"
        ) from fault
    return z3


def is_there() -> bool:
    """Whether questions can be asked here; where not, each raises `MissingError`."""
    try:
        return bool(_z3())
    except MissingError:
        return False


def negation(fact: Size) -> Size:
    """The fact that holds where `fact` does not: not (f >= 0) is -f - 1 >= 0."""
    return -fact - 1


class Integers:
    """A solver with fixed assumptions; answers are remembered.

    Args:
        positive: symbols that are at least 1.
        assumed: further facts.

    Attributes:
        queries: how many questions reached Z3.
    """

    def __init__(self, positive: Iterable[str], assumed: Iterable[Size] = ()) -> None:
        self.positive = frozenset(positive)
        self.assumed: Facts = frozenset(assumed)
        self.queries = 0
        self._answers: dict[tuple[Facts, Size], bool] = {}
        self._witnesses = Witnesses(self.positive)
        self._symbols: dict[Size, frozenset[str]] = {}
        self._linear: dict[Size, Any] = {}
        self._unknowns: dict[Size, list[tuple[Monomial, Any]]] = {}

    def implied(self, known: Facts, fact: Size) -> bool:
        """Whether `fact` holds wherever all of `known` do."""
        if isinstance(fact, int) and fact >= 0:
            return True
        if fact in known or (not isinstance(fact, int) and self._plainly_positive(fact)):
            return True
        if any(isinstance(k, int) and k < 0 for k in known):
            return True
        if not isinstance(fact, int):
            for k in known:
                gap = fact - k
                if (isinstance(gap, int) and gap >= 0) or (
                    not isinstance(gap, int) and self._plainly_positive(gap)
                ):
                    return True
        return self._answer(self._related(known, fact), fact)

    def feasible(self, known: Facts) -> bool:
        """Whether all of `known` can hold at once (True where that is not settled)."""
        if any(isinstance(k, int) and k < 0 for k in known):
            return False
        left = {k for k in known if not isinstance(k, int)}
        for k in left:
            if isinstance(k, Poly) and self._opposed(k, left):
                return False
        while left:
            part = self._related(known, left.pop())
            left -= part
            if self._answer(part, -1):
                return False
        return not self._answer(frozenset(), -1)

    def _opposed(self, fact: Poly, known: Iterable[Size]) -> bool:
        """Whether a fact about one symbol and another one add up to a negative number."""
        if len(fact.terms) > 2:
            return False
        for other in known:
            if isinstance(other, Poly) and len(other.terms) <= 2 and other is not fact:
                total = fact + other
                if isinstance(total, int) and total < 0:
                    return True
        return False

    def decided(self, known: Facts, fact: Size) -> bool | None:
        """True or False where `known` settles `fact`, else None."""
        if self.implied(known, fact):
            return True
        return False if self.implied(known, negation(fact)) else None

    def equal(self, known: Facts, a: Size, b: Size) -> bool:
        """Whether `known` forces a == b."""
        return a == b or (self.implied(known, a - b) and self.implied(known, b - a))

    def _plainly_positive(self, size: Size) -> bool:
        """A polynomial over positive symbols whose coefficients already say that it is >= 0."""
        total = 0
        for monomial, coefficient in Poly.of(size).terms:
            if monomial and (coefficient < 0 or not all(a in self.positive for a in monomial)):
                return False
            total += coefficient
        return total >= 0

    def _related(self, known: Facts, fact: Size) -> Facts:
        """The facts that `fact` has symbols in common with, directly or through others."""
        reached, left, found = set(self._symbols_of(fact)), list(known), set[Size]()
        while True:
            near = [f for f in left if not reached.isdisjoint(self._symbols_of(f))]
            if not near:
                return frozenset(found)
            found.update(near)
            left = [f for f in left if f not in found]
            for f in near:
                reached |= self._symbols_of(f)

    def _symbols_of(self, fact: Size) -> frozenset[str]:
        if fact not in self._symbols:
            self._symbols[fact] = fact.symbols() if isinstance(fact, Poly) else frozenset()
        return self._symbols[fact]

    def _answer(self, known: Facts, fact: Size) -> bool:
        key = (known, fact)
        if key not in self._answers:
            nothing = not (known or self.assumed or isinstance(fact, Poly))
            self._answers[key] = not nothing and self._ask(known, fact)
        return self._answers[key]

    def _ask(self, known: Facts, fact: Size) -> bool:
        if self._witnesses.against((*self.assumed, *known), fact):
            return False
        z3 = _z3()

        self.queries += 1
        if self.queries > _MOST:
            raise TooManyQueries(f"more than {_MOST} questions about integers")
        solver = z3.SimpleSolver()
        solver.set("rlimit", _EFFORT)
        used: dict[Monomial, Any] = {}
        facts = [*sorted(self.assumed, key=repr), *sorted(known, key=repr), negation(fact)]
        lemmas = list(self._quotients(facts, fact))
        facts += [after for before, after in lemmas if before is None]
        premises = [before for before, _ in lemmas if before is not None]
        facts += self._products(facts, premises)
        for f in facts:
            solver.add(self._at_least_0(f, used))
        for before, after in lemmas:
            if before is not None:
                solver.add(
                    z3.Implies(self._at_least_0(before, used), self._at_least_0(after, used))
                )
        for monomial, unknown in used.items():
            if all(a in self.positive for a in monomial):
                solver.add(unknown >= 1)
        found = solver.check()
        if found == z3.sat:
            model, named = solver.model(), [(m[0], x) for m, x in used.items() if len(m) == 1]
            values = {a: v.as_long() for a, x in named
                      if isinstance(a, str) and (v := model[x]) is not None}  # fmt: skip
            self._witnesses.keep(values, (*self.assumed, *known), fact)
        return bool(found == z3.unsat)

    def _quotients(self, facts: list[Size], goal: Size) -> Iterator[tuple[Size | None, Size]]:
        """(premise, conclusion) about each floor division by a positive number that occurs."""
        atoms = {
            a for f in facts for m, _ in Poly.of(f).terms for a in m if isinstance(a, Quotient)
        }
        for q in sorted(atoms, key=repr):
            if not (isinstance(q.bottom, int) or self._plainly_positive(q.bottom - 1)):
                continue
            if isinstance(q.bottom, int) and q.bottom < 1:
                continue
            value = Poly({(q,): 1})
            rest = q.top - value * q.bottom
            yield None, rest
            yield None, q.bottom - 1 - rest
            yield q.top, value
            if dict(Poly.of(goal).terms).get((q,)) == -1:
                most = goal + value
                yield (most + 1) * q.bottom - 1 - q.top, most - value

    def _products(self, facts: list[Size], premises: list[Size]) -> Iterator[Size]:
        """Each fact about a factor of a product, multiplied by the rest of the product.

        A product may occur in a fact or in a premise; only what is a fact is multiplied.
        """
        at_least_0 = self.positive | {
            str(p.terms[0][0][0])
            for p in map(Poly.of, facts)
            if len(p.terms) == 1 and len(p.terms[0][0]) == 1 and p.terms[0][1] > 0
        }
        seen: set[Size] = set()
        products = {m for f in (*facts, *premises) for m, _ in Poly.of(f).terms if len(m) > 1}
        for product in sorted(products, key=repr):
            for k, atom in enumerate(product):
                rest = product[:k] + product[k + 1 :]
                if not all(a in at_least_0 for a in rest):
                    continue
                scale = Poly({rest: 1})
                lemmas = [f * scale for f in facts if ((atom,)) in dict(Poly.of(f).terms)]
                if atom in self.positive:
                    lemmas.append((Poly({(atom,): 1}) - 1) * scale)
                yield from (x for x in lemmas if x not in seen)
                seen.update(lemmas)

    def _at_least_0(self, size: Size, used: dict[Monomial, Any]) -> Any:
        """`size >= 0` for Z3; the products that it speaks of are added to `used`."""
        if size not in self._linear:
            z3 = _z3()

            rows = Poly.of(size).terms
            unknowns = [(m, z3.Int("*".join(map(repr, m)))) for m, _ in rows if m]
            named = dict(unknowns)
            total = z3.Sum([c * named[m] if m else z3.IntVal(c) for m, c in rows] or [z3.IntVal(0)])
            self._linear[size], self._unknowns[size] = total >= 0, unknowns
        used.update(self._unknowns[size])
        return self._linear[size]


class Reals:
    """Sums and products of unknown real numbers, and whether one is always 0."""

    def __init__(self) -> None:
        self._facts: list[Any] = []
        self._known: dict[str, Any] = {}

    def unknown(self, name: str, *, positive: bool = False) -> Value:
        """A number, the same one for each name."""
        z3 = _z3()

        if name not in self._known:
            self._known[name] = z3.Real(f"r{len(self._known)}")
            if positive:
                self._facts.append(self._known[name] > 0)
        return self._known[name]

    def inverse(self, name: str, of: Value) -> Value:
        """1 / of, a positive number; the same one for each name."""
        new = f"1/{name}" not in self._known
        found = self.unknown(f"1/{name}", positive=True)
        if new:
            self._facts.append(found * of == 1)
        return found

    def total(self, parts: Sequence[Value]) -> Value:
        """The sum of the parts."""
        z3 = _z3()

        return z3.Sum([z3.RealVal(0), *parts])

    def product(self, by: Fraction, parts: Sequence[Value]) -> Value:
        """A number times the product of the parts."""
        z3 = _z3()

        found = z3.RealVal(str(by))
        for p in parts:
            found = found * p
        return found

    def largest(self, parts: Sequence[Value]) -> Value:
        """The largest of the parts."""
        z3 = _z3()

        found = parts[0]
        for p in parts[1:]:
            found = z3.If(p > found, p, found)
        return found

    def test(self, kind: str, value: Value) -> Value:
        """1 where a value is "<0" or "==0", as `kind` says, else 0."""
        z3 = _z3()

        return z3.If(value < 0 if kind == "<0" else value == 0, z3.RealVal(1), z3.RealVal(0))

    def always_zero(self, value: Value) -> bool:
        """Whether a value is 0 whatever the unknown numbers are; False where that is not settled.

        Effort is bounded by Z3's own count.
        """
        z3 = _z3()

        solver = z3.Solver()
        solver.set("rlimit", _REAL_EFFORT)
        solver.add(*self._facts, value != 0)
        return bool(solver.check() == z3.unsat)
