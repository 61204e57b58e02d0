"""Whole numbers at which facts were seen to hold: what is false at one of them follows from none.

A solver's "no" comes with numbers. They are kept if they really are an example (its products and
quotients need not be any), and asked first: the same answer, sooner.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from whet.ir.types import Poly, Size

_MOST = 24


class Witnesses:
    """Examples, the one that was of use last first.

    Args:
        positive: symbols that are at least 1; every other one that an example lacks is 0.
    """

    def __init__(self, positive: Collection[str]) -> None:
        self._positive = positive
        self._points: list[_Point] = []

    def against(self, facts: Iterable[Size], goal: Size) -> bool:
        """Whether an example has all facts and not the goal."""
        facts = list(facts)
        for k, point in enumerate(self._points):
            if point.shows(facts, goal):
                self._points.insert(0, self._points.pop(k))
                return True
        return False

    def keep(self, values: Mapping[str, int], facts: Iterable[Size], goal: Size) -> None:
        """Numbers that a solver says are an example, if they are one."""
        point = _Point(values, self._positive)
        if point.is_possible and point.shows(list(facts), goal):
            self._points.insert(0, point)
            del self._points[_MOST:]


class _Point:
    def __init__(self, values: Mapping[str, int], positive: Collection[str]) -> None:
        self._values, self._positive = values, positive
        self._known: dict[Size, int] = {}
        self.is_possible = all(v >= 1 for n, v in values.items() if n in positive)

    def shows(self, facts: Sequence[Size], goal: Size) -> bool:
        """Whether the facts hold here and the goal does not; no where something is divided by 0."""
        try:
            return self._at(goal) < 0 and all(self._at(f) >= 0 for f in facts)
        except ZeroDivisionError:
            return False

    def _at(self, size: Size) -> int:
        if isinstance(size, int):
            return size
        if size not in self._known:
            self._known[size] = self._value(size)
        return self._known[size]

    def _value(self, size: Poly) -> int:
        total = 0
        for monomial, coefficient in size.terms:
            part = coefficient
            for atom in monomial:
                if isinstance(atom, str):
                    own = self._values.get(atom)
                    part *= int(atom in self._positive) if own is None else own
                else:
                    part *= self._whole(atom.top) // self._whole(atom.bottom)
            total += part
        return total

    def _whole(self, size: Size) -> int:
        return size if isinstance(size, int) else self._value(size)
