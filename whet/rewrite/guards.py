"""Guards that counterexamples ask for.

    refuted at    N = 5, i = 3, j = 2        where the bank's sizes all have  i <= j
    guard         i <= j

Candidates are comparisons of two numbers or sizes, or of one with 0; one is worth trying if it
holds at all sizes at which the two sides agreed and fails at those where they differ.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from whet.rewrite.grouping import polynomials
from whet.rewrite.scopes import Scope
from whet.rewrite.sketch import Sketch, trees

_TESTS: tuple[tuple[str, Callable[[int, int], bool]], ...] = (
    ("<=", lambda a, b: a <= b),
    (">=", lambda a, b: a >= b),
    ("<", lambda a, b: a < b),
    (">", lambda a, b: a > b),
    ("==", lambda a, b: a == b),
)


def signs(sketch: Sketch, scope: Scope) -> Iterator[Sketch]:
    """The sketch with one of its numbers not negative, where the prover asks for no more."""
    used = {w for t in (*sketch.left, *sketch.right) for x in trees(t)
            for _, v in x.attrs for p in polynomials(v) for w in p.symbols()}  # fmt: skip
    for name in sorted(n for n in used if n.islower()):
        if all(s.get(name, -1) >= 0 for s in scope.assignments):
            guard = f"{name} >= 0"
            yield replace(sketch, test=f"{sketch.test} and {guard}" if sketch.test else guard)


def guards(sketch: Sketch, at: Mapping[str, object], scope: Scope) -> Iterator[Sketch]:
    """The sketch with one more guard, the weakest first."""
    names = sorted(n for n, v in at.items() if isinstance(v, int) and n in scope.assignments[0])
    zero = {"0": 0}
    for text, test in _TESTS:
        for a, b in (*itertools.combinations(names, 2), *((n, "0") for n in names)):
            agreed = all(test((zero | {**s})[a], (zero | {**s})[b]) for s in scope.assignments)
            here = {**zero, **{n: v for n, v in at.items() if isinstance(v, int)}}
            if agreed and not test(here[a], here[b]):
                guard = f"{a} {text} {b}"
                yield replace(sketch, test=f"{sketch.test} and {guard}" if sketch.test else guard)
