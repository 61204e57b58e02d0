"""Binding a record to operands: ranks, positions, composites and broadcasting become concrete.

Attributes bind first (sizes that they fix help to split composites), then operands in two rounds:
all groups broadcast against each other before any extent of an operand is read. Then the statements
are read in order, each in the scope of its own axes.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from whet.ir.scope import Scope, entries, name_of
from whet.ir.types import Poly, Size, divide, product

if TYPE_CHECKING:
    from whet.ir.record import Guard, Instance, Record, Slots


class Binder(Scope):
    """The state of one binding; `instance()` is the result."""

    def __init__(
        self,
        record: Record,
        shapes: Sequence[tuple[Size, ...] | None],
        attrs: Mapping[str, object],
    ) -> None:
        super().__init__(record)
        self.guards: list[Guard] = []
        self._attributes(attrs)
        self._operands(shapes)

    # -- attributes ------------------------------------------------------------------------------
    def _attributes(self, attrs: Mapping[str, object]) -> None:
        given = dict(attrs)
        for name, pattern in self.record.patterns.items():
            if isinstance(pattern, ast.Constant):
                self.extents[name.lower()] = int(pattern.value)  # type: ignore[arg-type]
                continue
            if name not in given:
                raise self._misfit(f"attribute {name} is missing", expected=_names(self.record))
            self._attribute(pattern, given.pop(name))
        if given:
            raise self._misfit(
                f"unknown attribute {next(iter(given))}", expected=_names(self.record)
            )

    def _attribute(self, pattern: ast.expr, value: object) -> None:
        if isinstance(pattern, ast.Tuple) and isinstance(pattern.elts[0], ast.Starred):
            assert isinstance(value, tuple)
            self._group(name_of(pattern.elts[0].value), value, pattern)
            return
        if isinstance(pattern, ast.Tuple):
            if not isinstance(value, tuple) or len(value) != len(pattern.elts):
                raise self._misfit(
                    "attribute of another length", pattern, expected=ast.unparse(pattern), got=value
                )
            for p, v in zip(pattern.elts, value, strict=True):
                self._attribute(p, v)
        elif name_of(pattern).isupper():
            assert isinstance(value, (int, Poly))
            self.extents[name_of(pattern).lower()] = value
        else:
            self.values[name_of(pattern)] = value

    # -- operands --------------------------------------------------------------------------------
    def _operands(self, shapes: Sequence[tuple[Size, ...] | None]) -> None:
        record = self.record
        if len(shapes) != len(record.operands):
            raise self._misfit(
                "another number of operands", expected=len(record.operands), got=len(shapes)
            )
        present: list[tuple[str, ast.Subscript, tuple[Size, ...]]] = []
        for (name, pattern, absent), shape in zip(record.operands, shapes, strict=True):
            if shape is not None:
                present.append((name, pattern, shape))
            elif absent is None:
                raise self._misfit(f"operand {name} may not be left out", pattern)
            else:
                self.absent[name] = absent
        order = sorted(present, key=lambda p: self._stars(p[1]))
        for name, pattern, shape in order:
            self._bind(name, pattern, shape, first=True)
        for name, pattern, shape in order:
            self._bind(name, pattern, shape, first=False)
        self.slots = {name: self.slots[name] for name, _, _ in present}

    def _stars(self, pattern: ast.Subscript) -> int:
        return sum(isinstance(e, ast.Starred) and p is None for e, p, _ in self._axes(pattern))

    def _axes(
        self, pattern: ast.Subscript
    ) -> Iterator[tuple[ast.expr, tuple[int, ...] | None, bool]]:
        """(axis, positions it is pinned to, may it broadcast) for each entry of a pattern."""
        return map(self._axis, entries(pattern.slice))

    def _axis(self, e: ast.expr) -> tuple[ast.expr, tuple[int, ...] | None, bool]:
        stretch = isinstance(e, ast.UnaryOp) and isinstance(e.op, ast.UAdd)
        axis = e.operand if isinstance(e, ast.UnaryOp) and stretch else e
        starred = isinstance(axis, ast.Starred)
        inner = axis.value if isinstance(axis, ast.Starred) else axis
        pinned: tuple[int, ...] | None = None
        if isinstance(inner, ast.BinOp) and isinstance(inner.op, ast.MatMult):
            value = self.values[name_of(inner.right)]
            pinned = value if isinstance(value, tuple) else (value,)
            inner = inner.left
        return (ast.Starred(inner) if starred else inner), pinned, stretch

    def _bind(
        self, name: str, pattern: ast.Subscript, shape: tuple[Size, ...], *, first: bool
    ) -> None:
        from whet.ir.record import Slots

        entries = list(self._axes(pattern))
        counts = self._counts(entries, len(shape))
        if counts is None:
            raise self._misfit(
                f"operand {name} has another rank", pattern,
                expected=ast.unparse(pattern), got=list(shape), hint=self._lone_composite(pattern),
            )  # fmt: skip
        dims = _place([(n, p) for n, (_, p, _) in zip(counts, entries, strict=True)], len(shape))
        if dims is None:
            raise self._misfit(f"operand {name}: axis out of range", pattern, got=list(shape))
        axes: list[tuple[str, ...]] = []
        at = 0
        for (e, _, stretch), count in zip(entries, counts, strict=True):
            here = tuple(shape[d] for d in dims[at : at + count])
            at += count
            if isinstance(e, ast.Starred):
                axes += self._bind_group(name_of(e.value), here, pattern, first)
            elif stretch and here[0] == 1:
                axes.append(())
            elif not (stretch and first):
                axes.append(self._bind_axis(e, here[0]))
            else:
                axes.append(())
        self.slots[name] = Slots(tuple(axes), tuple(dims))

    def _lone_composite(self, pattern: ast.Subscript) -> str | None:
        """Python reads x[(g, c)] as x[g, c]."""
        text = ast.get_source_segment(self.record.text, pattern) or ""
        if "[(" in text and text.endswith(")]"):
            return f"a single composite axis needs a comma: {text[:-1]},]"
        return None

    def _counts(
        self, entries: list[tuple[ast.expr, tuple[int, ...] | None, bool]], rank: int
    ) -> list[int] | None:
        """How many dims each entry of a pattern stands for, or None where they do not fit."""
        stars = [
            k for k, (e, p, _) in enumerate(entries) if isinstance(e, ast.Starred) and p is None
        ]
        rest = rank - sum(
            len(p) if p is not None else 1 for k, (_, p, _) in enumerate(entries) if k not in stars
        )
        known: dict[int, int] = {}
        if len(stars) > 1:  # all but one must be known from elsewhere
            for k in stars:
                axes = self.groups.get(name_of(entries[k][0].value))  # type: ignore[attr-defined]
                if axes is not None:
                    known[k] = len(axes)
        for k in stars:
            known.setdefault(k, rest - sum(known.values()))
        counts = [
            known[k] if k in known else len(p) if p is not None else 1
            for k, (_, p, _) in enumerate(entries)
        ]
        return counts if sum(counts) == rank and min(counts, default=0) >= 0 else None

    def _bind_group(
        self, group: str, sizes: tuple[Size, ...], at: ast.expr, first: bool
    ) -> list[tuple[str, ...]]:
        if first:
            self._group(group, sizes, at)
        axes = self.groups[group][len(self.groups[group]) - len(sizes) :]
        return [
            (a,) if n != 1 or self.extents[a] == 1 else () for a, n in zip(axes, sizes, strict=True)
        ]

    def _group(self, group: str, sizes: tuple[Size, ...], at: ast.expr) -> None:
        """Bind a group of axes, or broadcast it against what it was, right-aligned."""
        old = tuple(self.extents[a] for a in self.groups.get(group, ()))
        rank = max(len(old), len(sizes))
        left = (1,) * (rank - len(old)) + old
        right = (1,) * (rank - len(sizes)) + sizes
        self.groups[group] = tuple(f"{group}{k}" for k in range(rank))
        for axis, a, b in zip(self.groups[group], left, right, strict=True):
            self.extents[axis] = a if b == 1 else b
            if 1 not in (a, b):
                self._equal(a, b, at, f"*{group}: sizes do not broadcast")

    def _bind_axis(self, e: ast.expr, size: Size) -> tuple[str, ...]:
        if isinstance(e, ast.Constant):
            self._equal(size, int(e.value), e, "a dim has another size")  # type: ignore[arg-type]
            return ()
        if not isinstance(e, ast.Tuple):
            name = name_of(e)
            if name in self.extents:
                self._equal(self.extents[name], size, e, f"axis {name} has two sizes")
            else:
                self.extents[name] = size
            return (name,)
        names = tuple(map(name_of, e.elts))
        unknown = [n for n in names if n not in self.extents]
        known = product(self.extents[n] for n in names if n in self.extents)
        if len(unknown) > 1:
            raise self._misfit(f"({', '.join(names)}): more than one factor is unknown", e)
        if not unknown:
            self._equal(known, size, e, f"({', '.join(names)}) has another size")
            return names
        quotient = divide(size, known)
        if quotient is None:
            if isinstance(size, int) and isinstance(known, int):
                raise self._misfit(
                    f"({', '.join(names)}): {known} does not divide {size}", e,
                    expected=f"a multiple of {known}", got=size,
                )  # fmt: skip
            # A quotient symbol (C := G*c) keeps index arithmetic polynomial.
            quotient = Poly.symbol(f"{unknown[0]}_of_{_identifier(size)}_by_{_identifier(known)}")
            self._equal(size, known * quotient, e, "")
        self.extents[unknown[0]] = quotient
        return names

    def _equal(self, a: Size, b: Size, at: ast.expr, summary: str) -> None:
        from whet.ir.record import Guard

        if a == b:
            return
        if isinstance(a, int) and isinstance(b, int):
            raise self._misfit(summary, at, expected=a, got=b)
        guard = Guard(a, b)
        if guard not in self.guards and Guard(b, a) not in self.guards:
            self.guards.append(guard)

    # -- statements ------------------------------------------------------------------------------
    def instance(self) -> Instance:
        from whet.ir.record import Instance, Let

        lets, results = [], {}
        operands = dict(self.slots)
        for target, value in self.record.statements:
            name = ast.unparse(target.value)
            slots = self._declare(target)
            self.scope = frozenset(slots.flat)
            lets.append(Let(name, slots.flat, self._read(value)))
            self.slots[name] = slots
            if name in self.record.outs:
                results[name] = slots
        return Instance(
            self.record.name, self.record.outs, dict(self.extents), operands,
            tuple(lets), results, tuple(self.guards),
        )  # fmt: skip

    def _declare(self, target: ast.Subscript) -> Slots:
        """The axes of an assignment's left side; `h: size` declares an extent."""
        from whet.ir.record import Slots

        axes: list[tuple[str, ...]] = []
        spec: list[tuple[int, tuple[int, ...] | None]] = []
        for entry in entries(target.slice):
            e = entry
            if isinstance(entry, ast.Slice):
                assert entry.lower is not None
                assert entry.upper is not None
                e = entry.lower
            axis, pinned, _ = self._axis(e)
            if isinstance(entry, ast.Slice):
                self.extents[name_of(axis)] = self._size(entry.upper)  # type: ignore[arg-type]
            if isinstance(axis, ast.Starred):
                group = self._members(axis)
                axes += [(a,) for a in group]
                spec.append((len(group), pinned))
                continue
            names = tuple(map(name_of, axis.elts)) if isinstance(axis, ast.Tuple) else ()
            if not isinstance(axis, (ast.Tuple, ast.Constant)):
                names = (name_of(axis),)
            for n in names:
                if n not in self.extents:
                    raise self._misfit(f"axis {n} has no extent", axis)
            axes.append(names)
            spec.append((1, pinned))
        dims = _place(spec, len(axes))
        if dims is None:
            raise self._misfit("axis out of range", target)
        return Slots(tuple(axes), tuple(dims))


def _names(record: Record) -> str:
    named = [k for k, p in record.patterns.items() if not isinstance(p, ast.Constant)]
    return ", ".join(named) or "none"


def _identifier(size: Size) -> str:
    return "".join(c if c.isalnum() else "_" for c in str(size))


def _place(spec: list[tuple[int, tuple[int, ...] | None]], rank: int) -> list[int] | None:
    """Positions of listed dims: pinned ones where they are pinned, the rest in order."""
    taken: list[int] = []
    for _, pinned in spec:
        for p in pinned or ():
            if not -rank <= p < rank:
                return None
            taken.append(p % rank)
    if len(set(taken)) != len(taken):
        return None
    others = iter([d for d in range(rank) if d not in taken])
    dims: list[int] = []
    for count, pinned in spec:
        dims += (
            [p % rank for p in pinned]
            if pinned is not None
            else [next(others) for _ in range(count)]
        )
    return dims
