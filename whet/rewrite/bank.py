"""The bank: every graph of a scope up to some number of operators, told apart by fingerprints.

    level 0     the scope's leaves
    level n     op(a, …) with n operators in all, shared ones counted once, over *representatives*
                of smaller levels: of graphs that compute the same, the first one only

A graph over another member of a class is equal to one over its representative by a smaller
equality, which the bank has seen. So what is left out is derivable, and nothing else is left out:
equalities between members of the classes generate all equalities of the scope.

    order       operators in rank order, commutative operands sorted, sums and products of more than
                two as left combs in that order; concatenations n-ary
    prints      exact in the keyed field (or real ones in float64) at each of the scope's sizes
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from whet.errors import WhetError
from whet.ir.interp.stacked import Rows, Stack, constant, leaves, run_stacked
from whet.ir.ops import TABLE, instance, result_type
from whet.ir.types import DType, Poly, TensorType
from whet.rewrite.attributes import Shape, attributes
from whet.rewrite.bounds import bounds
from whet.rewrite.kinds import (
    Kind,
    Maker,
    Member,
    associates,
    concrete,
    pointwise,
    rank_of,
    substituted,
)
from whet.rewrite.pattern import commutes
from whet.rewrite.scopes import Scope
from whet.rewrite.sketch import spelled

Hashes = NDArray[np.uint64]
_CHUNK = 1 << 15
_NONE = -1
_LARGEST = 20_000  # elements of a tensor
_DIGITS = 1e8


class Bank:
    """All that a scope holds; see the module's docstring.

    Attributes:
        kinds, makers: interned.
        made: of each class, its first member; None for a leaf.
        level, kind: of each class.
        members: all members of each class that has several, the first one included.
        counts: graphs looked at on each level.
        texts, constants: classes of constants, by how they are spelled; values of plain numbers.
    """

    def __init__(self, scope: Scope, tell: Callable[[str], None] = lambda _: None) -> None:
        self.scope, self.tell = scope, tell
        self.kinds: list[Kind] = []
        self.makers: list[Maker] = []
        self.made: list[Member | None] = []
        self.level: list[int] = []
        self.kind: list[int] = []
        self.row: list[int] = []
        self.below: list[frozenset[int]] = []
        self.members: dict[int, list[Member]] = {}
        self.counts: list[int] = []
        self._kind_of: dict[Shape, int] = {}
        self._maker_of: dict[tuple[object, ...], int | None] = {}
        self._known: dict[int, int] = {}  # hash -> class
        self.texts = {spelled(x.tree): k for k, x in enumerate(scope.leaves) if x.tree is not None}
        self.constants = {
            k: float(str(x.node.attr("value"))) for k, x in enumerate(scope.leaves)
            if x.node is not None and x.node.op == "full" and not x.shape
        }  # fmt: skip
        self._leaves()
        for n in range(1, scope.size + 1):
            self._grow(n)

    # -- level 0 ---------------------------------------------------------------------------------
    def _leaves(self) -> None:
        scope = self.scope
        for k, leaf in enumerate(scope.leaves):
            kind = self._kind(leaf.shape)
            if kind is None:
                raise WhetError("a leaf is too large", got=leaf)
            stacks = []
            for j, sizes in enumerate(scope.assignments):
                if leaf.node is None:
                    shape = concrete(leaf.shape, sizes)
                    stacks += leaves([shape], scope.exact, 100 * j + k + 1)
                else:
                    stacks.append(constant(leaf.at(sizes), scope.exact))
            self._add(kind, stacks, None, 0)
        for kind_ in self.kinds:
            prints = self._hashes(kind_.stacks, self._kind_of[kind_.shape])
            self._known.update(zip(map(int, prints), kind_.classes, strict=True))

    def _kind(self, shape: Shape) -> int | None:
        if shape not in self._kind_of:
            for sizes in self.scope.assignments:
                total = 1
                for n in concrete(shape, sizes):
                    total *= n
                    if n < 1 or total > _LARGEST:
                        return None
            self._kind_of[shape] = len(self.kinds)
            self.kinds.append(Kind(shape))
        return self._kind_of[shape]

    def _add(self, kind: int, stacks: Sequence[Stack], first: Member | None, level: int) -> int:
        """A new class; its values are the last row of the stacks."""
        k, number = self.kinds[kind], len(self.made)
        k.stacks = (
            [a.joined(b) for a, b in zip(k.stacks, stacks, strict=True)] if k.stacks else [*stacks]
        )
        self.row.append(len(k.classes))
        k.classes.append(number)
        self.made.append(first)
        self.level.append(level)
        self.kind.append(kind)
        inner = (self.below[a] for a in first.args) if first else ()
        self.below.append(frozenset((number,)).union(*inner) if first else frozenset())
        return number

    # -- level n ---------------------------------------------------------------------------------
    def _grow(self, n: int) -> None:
        parts: list[tuple[Hashes, int, Rows]] = []  # prints, maker, operands
        by_level: dict[tuple[int, int], Rows] = {}
        for kind, k in enumerate(self.kinds):
            for lvl in range(n):
                found = [c for c in k.classes if self.level[c] == lvl]
                if found:
                    by_level[kind, lvl] = np.array(found, dtype=np.int64)
        self._levels = by_level
        self._sharing = self._shared(n)
        least: dict[int, int] = {}
        for kind, lvl in by_level:
            least[kind] = min(lvl, least.get(kind, lvl))
        self._least, self._together = least, self._overlaps(n)
        fixed = set(self.texts.values())
        self._is_fixed = np.array([c in fixed for c in range(len(self.made))], dtype=bool)
        looked = 0
        for op in self.scope.operators:
            for maker in self._makers(op, n):
                rows = self._operands(maker, n)
                for start in range(0, len(rows), _CHUNK):
                    part = rows[start : start + _CHUNK]
                    stacks = self._run(maker, part)
                    if stacks is None:
                        break
                    parts.append((self._hashes(stacks, self.makers[maker].result), maker, part))
                    looked += len(part)
            self.tell(f"{self.scope.name}: level {n}, {op}, {looked:,} graphs")
        self.counts.append(looked)
        self._sort(parts, n)

    def _shared(self, n: int) -> dict[int, list[int]]:
        """Classes of level 1 … n-2 that hold each class of level >= 1."""
        found: dict[int, list[int]] = defaultdict(list)
        for c, below in enumerate(self.below):
            if 1 <= self.level[c] <= n - 2:
                for b in below:
                    found[b].append(c)
        return found

    def _overlaps(self, n: int) -> set[tuple[int, int]]:
        """Kinds of operands of two classes that share operators, n - 1 in all."""
        found: set[tuple[int, int]] = set()
        for a, below in enumerate(self.below):
            others: list[int] = []
            if self.level[a] == n - 1:
                others = list(below)
            elif n > 3 and 1 < self.level[a] < n - 1:
                others = [b for s in below for b in self._sharing[s]]
            found.update((self.kind[a], self.kind[b]) for b in others)
        return found | {(b, a) for a, b in found}

    def _makers(self, op: str, n: int) -> Iterator[int]:
        record = TABLE[op].record
        if record is None:
            for arity in self.scope.widths if op in ("concat", "stack") else (1,):
                for kinds in self._kinds([None] * arity, n):
                    if len({len(self.kinds[k].shape) for k in kinds}) == 1:
                        yield from self._choices(op, kinds)
            return
        ranks = [rank_of(shape) for _, shape, _ in record.operands]
        needed = sum(absent is None for _, _, absent in record.operands)
        for kinds in self._kinds(ranks[:needed], n):
            bare = [*self._choices(op, (*kinds, *[None] * (len(ranks) - needed)))]
            yield from bare
            if bare and len(ranks) > needed:
                for more in self._kinds(ranks[needed:], n):
                    if all(self._least[k] <= 1 for k in more):
                        yield from self._choices(op, (*kinds, *more))

    def _kinds(self, ranks: Sequence[int | None], n: int) -> Iterator[tuple[int, ...]]:
        """Kinds of operands of such ranks that may make graphs of n operators."""
        lists = [
            [k for k in self._least if r is None or len(self.kinds[k].shape) == r] for r in ranks
        ]
        for kinds in itertools.product(*lists):
            if sum(self._least[k] for k in kinds) < n or kinds in self._together:
                if len(kinds) < 3 or all(self._least[k] <= 1 for k in kinds[2:]):
                    yield kinds

    def _choices(self, op: str, kinds: tuple[int | None, ...]) -> Iterator[int]:
        shapes = [None if k is None else self.kinds[k].shape for k in kinds]
        for attrs in attributes(op, shapes, self.scope.values):
            key = (op, kinds, tuple(sorted(attrs.items())))
            if key not in self._maker_of:
                self._maker_of[key] = self._maker(op, kinds, shapes, key[2])
            found = self._maker_of[key]
            if found is not None:
                yield found

    def _maker(
        self, op: str, kinds: tuple[int | None, ...], shapes: Sequence[Shape | None],
        attrs: tuple[tuple[str, object], ...],
    ) -> int | None:  # fmt: skip
        types = [None if s is None else TensorType(DType.f32, s) for s in shapes]
        try:
            type_ = result_type(op, types, attrs)
            bound = instance(op, tuple(shapes), attrs)
            if any(g.left != g.right for g in bound.guards) or not type_.dtype.is_float:
                return None
            if pointwise(op) and type_.shape not in shapes:
                return None  # both operands stretched: an outer product in disguise
            if not self.scope.admits(type_.shape):
                return None
            result = self._kind(type_.shape)
            if result is None:
                return None
            for sizes in self.scope.assignments:
                here = [None if s is None else concrete(s, sizes) for s in shapes]
                known = tuple((k, substituted(v, sizes)) for k, v in attrs)
                inner = instance(op, tuple(here), known)
                if inner.shape() != concrete(type_.shape, sizes):
                    return None
                if any(isinstance(v, Poly) for _, v in attrs) and bounds(inner).unproven:
                    return None  # a part that reaches over the end of what it is a part of
        except (WhetError, ArithmeticError, TypeError, AssertionError):
            return None
        self.makers.append(Maker(op, attrs, kinds, result))
        return len(self.makers) - 1

    def _operands(self, maker: int, n: int) -> Rows:
        """Rows of operand classes that make graphs of n operators; -1 for one left out."""
        m = self.makers[maker]
        given = [(k, kind) for k, kind in enumerate(m.kinds) if kind is not None]
        rows: list[Rows] = []
        for levels in itertools.product(range(n), repeat=len(given)):
            lists = [
                self._levels.get((kind, lvl)) for (_, kind), lvl in zip(given, levels, strict=True)
            ]
            if any(x is None for x in lists):
                continue
            inner = sum(v > 0 for v in levels)
            grid: Rows
            if sum(levels) == n - 1:
                grid = np.stack(np.meshgrid(*lists, indexing="ij"), -1).reshape(-1, len(given))
                if inner > 1:
                    grid = self._exact_size(grid, n)
            elif inner > 1 and sum(levels) >= n and max(levels) < n:
                grid = self._overlapping(given, levels, lists, n)
            else:
                continue
            if len(grid):
                rows.append(grid)
        if not rows:
            return np.empty((0, len(m.kinds)), np.int64)
        found = np.concatenate(rows)
        if self.texts:  # what has no tensors is computed, not rewritten
            found = found[~self._is_fixed[found].all(axis=1)]
        if len(given) == 2 and len(m.kinds) == 2:
            found = self._sorted(m, found, n)
        whole = np.full((len(found), len(m.kinds)), _NONE, np.int64)
        whole[:, [k for k, _ in given]] = found
        return whole

    def _exact_size(self, grid: Rows, n: int) -> Rows:
        below = self.below
        keep = [len(frozenset().union(*(below[c] for c in row))) == n - 1 for row in grid.tolist()]
        kept: Rows = grid[np.array(keep, dtype=bool)]
        return kept

    def _overlapping(
        self, given: Sequence[tuple[int, int]], levels: Sequence[int], lists: Sequence[Rows | None],
        n: int,
    ) -> Rows:  # fmt: skip
        """Operands that share operators, so that fewer than the sum of their sizes are needed."""
        if len(given) != 2:
            return np.empty((0, len(given)), np.int64)
        (_, ka), (_, kb) = given
        found: set[tuple[int, int]] = set()
        (i, j), below = levels, self.below
        firsts, seconds = lists
        assert firsts is not None
        assert seconds is not None
        for flip, (outer, kind, lvl) in enumerate(((firsts, kb, j), (seconds, ka, i))):
            if levels[flip] != n - 1 and (flip or max(levels) == n - 1):
                continue
            for a in outer.tolist():
                if levels[flip] == n - 1:
                    others: Sequence[int] = list(below[a])
                else:
                    others = [b for s in below[a] for b in self._sharing[s]]
                for b in others:
                    if self.kind[b] == kind and self.level[b] == lvl:
                        if len(below[a] | below[b]) == n - 1:
                            found.add((a, b) if not flip else (b, a))
        return np.array(sorted(found), dtype=np.int64).reshape(-1, 2)

    def _sorted(self, m: Maker, rows: Rows, n: int) -> Rows:
        """Commutative operands in order; from three on, associative ones as a left comb."""
        if m.op == "concat" and n > 2:
            nested = [self._joins(m, c) for c in rows[:, 1].tolist()]
            return rows[~np.array(nested, dtype=bool)] if len(rows) else rows
        if not commutes(m.op):
            return rows
        a, b = rows[:, 0], rows[:, 1]
        if m.kinds[0] == m.kinds[1]:
            rows = rows[a <= b]
        elif m.kinds[0] > m.kinds[1]:  # type: ignore[operator]
            return rows[:0]
        if n < 3 or not associates(m.op):
            return rows
        keep = np.ones(len(rows), bool)
        for k, (x, y) in enumerate(rows.tolist()):
            keep[k] = self._comb(m.op, x, y)
        return rows[keep]

    def _comb(self, op: str, x: int, y: int) -> bool:
        """Whether x op y is the left comb of its sorted parts, all by `op`."""
        inner = [s for s in (x, y) if self._is(op, s)]
        if len(inner) != 1:
            return not inner
        first = self.made[inner[0]]
        assert first is not None
        alone = y if inner[0] == x else x
        return alone >= max(first.args)

    def _joins(self, m: Maker, c: int) -> bool:
        """Whether a class is a concatenation along the same axis."""
        first = self.made[c]
        return first is not None and (
            self.makers[first.maker].op,
            self.makers[first.maker].attrs,
        ) == (m.op, m.attrs)

    def _is(self, op: str, c: int) -> bool:
        first = self.made[c]
        return first is not None and self.makers[first.maker].op == op

    def maker_of(
        self, op: str, kinds: tuple[int | None, ...], attrs: tuple[tuple[str, object], ...]
    ) -> int | None:
        """The maker with these attributes, if there is one."""
        return self._maker_of.get((op, kinds, attrs))

    # -- values ----------------------------------------------------------------------------------
    def _run(self, maker: int, rows: Rows) -> list[Stack] | None:
        m, found = self.makers[maker], []
        at = np.array(self.row, dtype=np.int64)
        for j, sizes in enumerate(self.scope.assignments):
            operands = [
                None if kind is None else self.kinds[kind].stacks[j].take(at[rows[:, k]])
                for k, kind in enumerate(m.kinds)
            ]
            attrs = {k: substituted(v, sizes) for k, v in m.attrs}
            try:
                found.append(run_stacked(m.op, attrs, operands))
            except WhetError:
                return None
        return found

    def _hashes(self, stacks: Sequence[Stack], kind: int) -> Hashes:
        total = np.full(len(stacks[0]), kind + 1, np.uint64)
        finite = np.ones(len(stacks[0]), bool)
        with np.errstate(all="ignore"):
            for j, s in enumerate(stacks):
                prints = s.prints(7 + j)
                for k in range(prints.shape[1]):
                    x = prints[:, k]
                    if not self.scope.exact:
                        finite &= np.isfinite(x) & (np.abs(x) < 1e30)
                        scale = 10.0 ** np.floor(np.log10(np.abs(x) + 1e-12))
                        x = np.where(
                            finite, np.round(x / scale * _DIGITS) * 64 + np.log10(scale), 0
                        )
                    total = total * np.uint64(0x9E3779B97F4A7C15) + x.astype(np.int64).view(
                        np.uint64
                    )
                    total ^= total >> np.uint64(29)
        total[~finite] = 0
        return total

    # -- classes ---------------------------------------------------------------------------------
    def _sort(self, parts: Sequence[tuple[Hashes, int, Rows]], n: int) -> None:
        """Candidates into classes, new and old."""
        last = n == self.scope.size
        if not parts:
            return
        every = np.concatenate([h for h, _, _ in parts])
        values, counts = np.unique(every, return_counts=True)
        known = np.array(sorted(self._known), dtype=np.uint64)
        is_old = np.isin(values, known)
        wanted = values[(is_old | (counts > 1)) & (values != 0)] if last else values[values != 0]
        fresh: dict[int, list[tuple[int, Rows]]] = defaultdict(list)
        for hashes, maker, rows in parts:
            at = np.searchsorted(wanted, hashes)
            at[at == len(wanted)] = 0
            hit = wanted[at] == hashes if len(wanted) else np.zeros(len(hashes), bool)
            firsts: list[int] = []
            for k, h in zip(np.flatnonzero(hit).tolist(), hashes[hit].tolist(), strict=True):
                member = Member(maker, tuple(rows[k].tolist()))
                old = self._known.get(h)
                if old is None:
                    number = len(self.made)
                    self._known[h] = number
                    self._enter(self.makers[maker].result, member, n)
                    if not last:
                        firsts.append(k)
                else:
                    first = self.made[old]
                    known_ = self.members.setdefault(old, [first] if first is not None else [])
                    known_.append(member)
            if firsts:
                fresh[maker].append((maker, rows[np.array(firsts)]))
        if not last:
            self._store(fresh, n)

    def _enter(self, kind: int, first: Member, level: int) -> None:
        number = len(self.made)
        self.made.append(first)
        self.level.append(level)
        self.kind.append(kind)
        self.row.append(-1)
        inner = (self.below[a] for a in first.args if a != _NONE)
        self.below.append(frozenset((number,)).union(*inner))

    def _store(self, fresh: Mapping[int, Sequence[tuple[int, Rows]]], n: int) -> None:
        """The values of new classes, in the order of the classes' numbers within each kind."""
        numbers = {m: c for c, m in enumerate(self.made) if m is not None and self.level[c] == n}
        for maker, groups in fresh.items():
            k = self.kinds[self.makers[maker].result]
            for _, rows in groups:
                stacks = self._run(maker, rows)
                assert stacks is not None
                k.stacks = (
                    [a.joined(b) for a, b in zip(k.stacks, stacks, strict=True)]
                    if k.stacks
                    else stacks
                )
                for row in rows.tolist():
                    c = numbers[Member(maker, tuple(row))]
                    self.row[c] = len(k.classes)
                    k.classes.append(c)
