"""The one text of a simplified sum: equal texts, equal sums.

Bound axes get canonical names. Their order is found by refinement (each axis is described by where
it occurs, the others by their descriptions so far), and only axes that nothing tells apart are
permuted; the least text wins. Terms, factors and guards are sorted, like terms added up.
"""

from __future__ import annotations

import functools
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction

from whet.ir.types import Atom, Quotient, Size
from whet.rewrite.terms import Applied, Case, Element, Factor, Fold, Scalar, Sum, Term

Names = Mapping[str, str]
_Text = Callable[[Names], str]
_SYMMETRIC = frozenset({"maximum", "minimum"})
_MOST_TIES = 5


def spell(s: Sum, names: Names | None = None, depth: int = 0) -> str:
    """The canonical text of a simplified sum.

    Args:
        names: what bound axes from outside are called.
        depth: how many sums this one stands in.
    """
    total: dict[str, Fraction] = defaultdict(Fraction)
    for t in s:
        total[spell_term(t, names or {}, depth)] += t.coefficient
    return " + ".join(f"{c}·{text}" for text, c in sorted(total.items()) if c) or "0"


def spell_term(t: Term, names: Names, depth: int = 0) -> str:
    """The canonical text of a term without its coefficient."""
    return _least(t.bound, names, depth, lambda known: _product(t, known, depth))


def spell_factor(f: Factor, names: Names, depth: int = 0) -> str:
    """The canonical text of a factor."""
    match f:
        case Element(tensor, index):
            return f"{tensor}[{', '.join(spell_size(i, names) for i in index)}]"
        case Scalar(size):
            return f"({spell_size(size, names)})"
        case Applied(fn, args):
            texts = [spell(a, names, depth + 1) for a in args]
            if fn in _SYMMETRIC:
                texts = sorted(set(texts))
            return f"{fn}({', '.join(texts)})"
        case Fold(kind, cases):
            inner = depth + 1  # its axes must not be called like those of the term around it
            texts = [
                _least(c.bound, names, inner, functools.partial(_case, c, inner)) for c in cases
            ]
            texts = sorted(texts if kind == "prod" else set(texts))
            return f"{kind}{{{'; '.join(texts)}}}"


def spell_size(size: Size, names: Names) -> str:
    """A size with axes renamed, its monomials sorted again."""
    if isinstance(size, int):
        return str(size)
    rows = sorted(
        ("*".join(sorted(_atom(a, names) for a in monomial)), c) for monomial, c in size.terms
    )
    return "+".join(f"{c}*{text}" if text else str(c) for text, c in rows)


def _atom(a: Atom, names: Names) -> str:
    if isinstance(a, Quotient):
        return f"({spell_size(a.top, names)})//({spell_size(a.bottom, names)})"
    return names.get(a, a)


def _product(t: Term, names: Names, depth: int) -> str:
    factors = sorted(spell_factor(f, names, depth) for f in t.factors)
    return f"Σ{len(t.bound)}{_guards(t.guards, names)}{'·'.join(factors)}"


def _case(c: Case, depth: int, names: Names) -> str:
    return f"over {len(c.bound)}{_guards(c.guards, names)}: {spell(c.body, names, depth + 1)}"


def _guards(guards: frozenset[Size], names: Names) -> str:
    return f"[{', '.join(sorted(spell_size(g, names) for g in guards))}]"


def _least(bound: Sequence[str], names: Names, depth: int, text: _Text) -> str:
    if not bound:
        return text(names)
    return min(text(k) for k in _namings(bound, names, depth, text))


def _namings(bound: Sequence[str], names: Names, depth: int, text: _Text) -> Iterator[Names]:
    """Every naming of the bound axes that respects what tells them apart."""
    colors = dict.fromkeys(bound, "?0")
    while len(bound) > 1:
        seen = {b: (colors[b], text({**names, **colors, b: "?"})) for b in bound}
        ranks = {s: f"?{k}" for k, s in enumerate(sorted(set(seen.values())))}
        finer = {b: ranks[seen[b]] for b in bound}
        if len(ranks) == len(set(colors.values())):
            colors = finer
            break
        colors = finer
    classes: dict[str, list[str]] = defaultdict(list)
    for b in bound:
        classes[colors[b]].append(b)
    ordered = [classes[c] for c in sorted(classes, key=lambda c: int(c[1:]))]
    ties = [
        list(itertools.permutations(c)) if len(c) <= _MOST_TIES else [tuple(c)] for c in ordered
    ]
    for choice in itertools.product(*ties):
        order = itertools.chain.from_iterable(choice)
        yield {**names, **{b: f"k{depth}.{i}" for i, b in enumerate(order)}}
