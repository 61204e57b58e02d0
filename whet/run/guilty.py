"""Which rewrite made a program inexact: named, and left out, with all others kept.

    right(before line k), wrong(after it)     found by halving, then that line goes

Where several rules changed one region, each is left out alone first: the region keeps the others.
Rewriting is equal over the reals; over floats a rule may cancel or overflow on the very numbers at
hand, and only running tells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from whet.ir.graph import Graph
from whet.rewrite.solve import Solved, by_rules
from whet.run.pricing import pricing
from whet.run.record import Blame
from whet.run.rewriting import Rewritten, with_regions

MOST = 8  # rewrites that are left out one after another before all are

Judge = Callable[[Graph], tuple[float, bool]]
Again = Callable[[frozenset[str]], Rewritten]


def acquitted(
    found: Rewritten, judge: Judge, allowed: float, again: Again
) -> tuple[Rewritten, list[Blame]]:
    """A graph that is exact enough, and what had to be left out for it.

    Args:
        found: what rewriting led to.
        judge: the error of a graph's program, and whether it is small enough.
        allowed: what that error may be, for the record.
        again: rewrites anew without the rules of these names.
    """
    blames: list[Blame] = []
    banned: set[str] = set()
    for _ in range(MOST):
        error, right = judge(found.graph)
        if right:
            return found, blames
        line = _guilty(found, judge)
        if line is None:  # not even the graph as it came is right
            return found, blames
        rules, module = line.changed
        if line.answer is None:
            blames.append(Blame(", ".join(rules), module, error, allowed))
            banned.update(rules)
            found = again(frozenset(banned))
            continue
        found, names = _without(line, found, judge)
        blames.append(Blame(", ".join(names), module, error, allowed))
    plain = found
    while plain.before is not None:
        plain = plain.before
    rules = tuple(dict.fromkeys(r for line in _lines(found) for r in line.changed[0]))
    error, right = judge(found.graph)
    if right:
        return found, blames
    return plain, [*blames, Blame(", ".join(rules), "", error, allowed)]


def _lines(found: Rewritten) -> Iterator[Rewritten]:
    """The states after each line, the last one first."""
    at: Rewritten | None = found
    while at is not None and at.before is not None:
        yield at
        at = at.before


def _guilty(found: Rewritten, judge: Judge) -> Rewritten | None:
    """The state after the first line that makes it wrong; None where the start is wrong."""
    states = list(_lines(found))[::-1]
    start = states[0].before if states else found
    if start is None or not judge(start.graph)[1]:
        return None
    low, high = -1, len(states) - 1  # states[low] is right, states[high] is wrong
    while high - low > 1:
        middle = (low + high) // 2
        if judge(states[middle].graph)[1]:
            low = middle
        else:
            high = middle
    return states[high]


def _without(line: Rewritten, found: Rewritten, judge: Judge) -> tuple[Rewritten, tuple[str, ...]]:
    """All regions, but one without the rule that makes it wrong; without any, if it is not one."""
    answer, start = line.answer, line
    assert answer is not None
    while start.before is not None and start.answer is not None:
        start = start.before
    names = tuple(answer.rules)
    for name in names if len(names) > 1 else ():
        option = by_rules(answer, set(names) - {name}, pricing(start.graph))
        if option is None:
            continue
        better = replace(answer, options=(option,), taken=0)
        until = [better if r is answer else r for r in _up_to(line)]
        if judge(with_regions(start, until).graph)[1]:
            return _with(start, found, line, better), (name,)
    return _with(start, found, line, replace(answer, taken=None)), names


def _up_to(line: Rewritten) -> list[Solved]:
    at = next(k for k, r in enumerate(line.regions) if r is line.answer)
    return list(line.regions[: at + 1])


def _with(start: Rewritten, found: Rewritten, line: Rewritten, now: Solved) -> Rewritten:
    regions = [now if r is line.answer else r for r in found.regions]
    return with_regions(replace(start, gains=found.gains, stop=found.stop), regions)
