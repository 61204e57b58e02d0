"""The proof of a plan: every rank computes its parts, and the whole comes out.

    check(graph, choices, mesh, factors, feeds)

Each rank has its part of every value and nothing else. A node is evaluated on each rank by the
reference semantics of its record over that part; between two nodes stand the moves of the reshard,
executed as what they are: a rank gets what members of its group have, and where they do not have it
the move is illegal. At the end the parts of every result are put together and compared with the
unsharded graph, in float64. Axes in time (microbatches) take part like those of devices.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from whet.errors import WhetError
from whet.ir import expr as ex
from whet.ir.graph import Graph, Node
from whet.ir.interp import FLOAT64, evaluate_nodes, run_instance
from whet.ir.record import Instance, Slots
from whet.parallel.choice import SUMS, Choice, Factors, cuts_of, instance_of, out_of
from whet.parallel.cut import known, needed, part_of
from whet.parallel.sharding import WHOLE, Axes, Move, Sharding, reshard

Rank = tuple[int, ...]
Value = Any  # an array of the interpreter


class PlanRefused(WhetError):
    """A plan that is not equal to the unsharded step, or has an illegal move."""


def check(
    graph: Graph,
    choices: Mapping[Node, Choice],
    mesh: Axes,
    factors: Factors,
    feeds: Mapping[str, Value],
    tolerance: float = 1e-9,
) -> float:
    """Compare all results of a sharded graph with those of the unsharded one.

    Args:
        choices: of every node and leaf.
        mesh: names and sizes; small ones.
        factors: of the graph's values.
        feeds: a tensor for each input and parameter.
        tolerance: relative to the largest element of a result.

    Returns:
        The largest relative difference.

    Raises:
        PlanRefused: a move is illegal, or a result differs.
    """
    run = _Ranks(graph, choices, mesh, factors)
    wanted = list(dict.fromkeys(graph.results))
    whole = evaluate_nodes(graph, feeds, FLOAT64, None, wanted)
    parts = run.values(feeds, wanted)
    worst = 0.0
    for n in wanted:
        expected = whole[n]
        scale = max(float(expected.abs().max()) if expected.numel() else 0.0, 1e-30)
        for rank, got in parts[n].items():
            error = float((got - expected).abs().max()) / scale if expected.numel() else 0.0
            if not error <= tolerance:
                raise PlanRefused(
                    "a plan does not compute what the model computes",
                    expected=f"equal to {tolerance}", got=f"{error:.3g} on rank {rank}", where=n,
                )  # fmt: skip
            worst = max(worst, error)
    return worst


@dataclass(slots=True)
class _Ranks:
    graph: Graph
    choices: Mapping[Node, Choice]
    mesh: Axes
    factors: Factors
    ranks: list[Rank] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ranks = list(itertools.product(*(range(n) for _, n in self.mesh)))

    def values(
        self, feeds: Mapping[str, Value], wanted: Sequence[Node]
    ) -> dict[Node, dict[Rank, Value]]:
        held: dict[Node, tuple[Sharding, dict[Rank, Value]]] = {}
        for n in self.graph.nodes:
            if n.is_leaf:
                whole = evaluate_nodes(self.graph, feeds, FLOAT64, None, [n])[n]
                at = self.choices[n].result if n in self.choices else WHOLE
                held[n] = at, {r: self._part(whole, n, at, r) for r in self.ranks}
                continue
            choice = self.choices.get(n) or Choice((), (WHOLE,) * len(n.operands), WHOLE)
            operands = []
            for a, want in zip(n.operands, choice.operands, strict=True):
                have, parts = held[a]
                operands.append(None if want is None else self._moved(a, have, want, parts))
            held[n] = choice.result, self._node(n, choice, operands)
        return {
            n: self._moved(n, held[n][0], WHOLE, held[n][1]) for n in wanted
        }  # fmt: skip

    # -- nodes -----------------------------------------------------------------------------------
    def _node(
        self, n: Node, choice: Choice, operands: Sequence[dict[Rank, Value] | None]
    ) -> dict[Rank, Value]:
        instance, sizes = instance_of(n), dict(self.mesh)
        out, cuts = out_of(n, instance), cuts_of(n)
        local: dict[str, int] = {}
        for m, a, _ in choice.cuts:
            if a != SUMS[0]:
                local[a] = local.get(a, known(instance.extents[a])) // sizes[m]
        made: dict[Rank, Instance] = {}
        tensors: dict[Rank, dict[str, Value]] = {}
        for r in self.ranks:
            starts: dict[str, int] = {}
            for _, a, _ in choice.cuts:
                if a in cuts and cuts[a].offset:
                    number = self._number(r, [k for k, b, _ in choice.cuts if b == a])
                    starts[a] = number * local[a]
            made[r] = part_of(instance, local, starts)
            tensors[r] = {
                name: parts[r]
                for name, parts in zip(instance.operands, operands, strict=True)
                if parts is not None
            }
        inner: dict[str, list[tuple[str, str]]] = {}
        for name, how, axis, _, _ in choice.inner:
            inner.setdefault(name, []).append((how, axis))
        slots_of = {
            r: {k: s for k, s in made[r].operands.items() if k in tensors[r]} for r in self.ranks
        }
        for let in needed(instance, out):
            results: dict[Rank, Value] = {}
            for r in self.ranks:
                one = made[r].let(let.name)
                used = {x.tensor for x in ex.loads(one.body)}
                last = let.name == out
                slots = (
                    made[r].results[out] if last
                    else Slots(tuple((a,) for a in one.axes), tuple(range(len(one.axes))))
                )  # fmt: skip
                single = replace(
                    made[r], outs=(let.name,), lets=(one,), results={let.name: slots},
                    operands={k: s for k, s in slots_of[r].items() if k in used},
                )  # fmt: skip
                given = {k: tensors[r][k] for k in single.operands}
                results[r] = run_instance(
                    single,
                    given,
                    FLOAT64,
                    let.name,
                    n.dtype if last else None,
                )
                if last and let.name in used:
                    raise PlanRefused("a result that is read again", where=n)
            for how, axis in inner.get(let.name, []):
                results = self._combined(results, (axis,), how)
            for r in self.ranks:
                tensors[r][let.name] = results[r]
                one = made[r].let(let.name)
                slots_of[r][let.name] = Slots(
                    tuple((a,) for a in one.axes), tuple(range(len(one.axes)))
                )
        return {r: tensors[r][out] for r in self.ranks}

    # -- moves -------------------------------------------------------------------------------------
    def _moved(
        self, a: Node, have: Sharding, want: Sharding, parts: dict[Rank, Value]
    ) -> dict[Rank, Value]:
        for move in reshard(have, want, known(a.type.nbytes), self.mesh):
            parts = self._move(a, move, parts)
        return parts

    def _move(self, a: Node, move: Move, parts: dict[Rank, Value]) -> dict[Rank, Value]:
        if move.kind == "drop":
            first = {r: self._number(r, move.axes) == 0 for r in self.ranks}
            return {r: x if first[r] else x * 0 for r, x in parts.items()}
        if move.kind == "all_reduce":
            return self._combined(parts, move.axes, move.combine)
        source = move.source
        if move.kind == "reduce_scatter":
            parts = self._combined(parts, move.axes, move.combine)
        found: dict[Rank, Value] = {}
        for r in self.ranks:
            members = [r] if move.kind in ("slice", "reduce_scatter") else self._group(r, move.axes)
            found[r] = self._assembled(a, source, move.target, members, r, parts)
        return found

    def _assembled(
        self, a: Node, source: Sharding, target: Sharding, members: Sequence[Rank], r: Rank,
        parts: Mapping[Rank, Value],
    ) -> Value:  # fmt: skip
        """A rank's part of the target from what some ranks have of the source."""
        sample = parts[r]
        index = self._index(a, sample)
        flat = sample.new_zeros(index.numel())
        there = index.new_zeros(index.numel())
        for m in members:
            at = self._part(index, a, source, m).reshape(-1)
            flat[at] = parts[m].reshape(-1)
            there[at] = 1
        mine = self._part(index, a, target, r)
        if not bool(there[mine.reshape(-1)].all()):
            raise PlanRefused(
                "a move asks for what no member of its group has",
                expected=target, got=source, where=a,
            )  # fmt: skip
        return flat[mine.reshape(-1)].reshape(mine.shape)

    def _combined(
        self, parts: Mapping[Rank, Value], axes: Sequence[str], how: str
    ) -> dict[Rank, Value]:
        found: dict[Rank, Value] = {}
        for r in self.ranks:
            group = self._group(r, axes)
            total = parts[group[0]]
            for m in group[1:]:
                x = parts[m]
                match how:
                    case "sum":
                        total = total + x
                    case "max":
                        total = total.maximum(x)
                    case "min":
                        total = total.minimum(x)
                    case _:
                        total = total * x
            found[r] = total
        return found

    def _group(self, r: Rank, axes: Sequence[str]) -> list[Rank]:
        return [
            s for s in self.ranks
            if all(s[k] == r[k] for k, (m, _) in enumerate(self.mesh) if m not in axes)
        ]  # fmt: skip

    def _number(self, r: Rank, axes: Sequence[str]) -> int:
        """The place of a rank along some axes, the first the slowest."""
        number = 0
        for k, (m, n) in enumerate(self.mesh):
            if m in axes:
                number = number * n + r[k]
        return number

    # -- parts -------------------------------------------------------------------------------------
    def _index(self, a: Node, like: Value) -> Value:
        """The numbers 0, 1, … in the shape of a value."""
        shape = tuple(known(n) for n in a.shape)
        return like.new_ones(math.prod(shape)).long().cumsum(0).sub(1).reshape(shape)

    def _part(self, whole: Value, a: Node, at: Sharding, r: Rank) -> Value:
        """The part of a whole value that a rank holds."""
        sizes = dict(self.mesh)
        t = whole
        by_dim: dict[int, list[tuple[int, str]]] = {}
        for dim, inner, axis in at.cuts:
            by_dim.setdefault(dim, []).append((inner, axis))
        for dim, cuts in by_dim.items():
            chain = [*sorted(self.factors.dims[a][dim]), known(a.shape[dim])]
            rows = [(low, high // low) for low, high in itertools.pairwise(chain) if high > low]
            rows.reverse()
            shape = tuple(t.shape)
            t = t.reshape(*shape[:dim], *(size for _, size in rows), *shape[dim + 1 :])
            total = 1
            for k, (low, size) in enumerate(rows):
                axes = [axis for inner, axis in cuts if inner == low]
                count = 1
                for axis in axes:
                    count *= sizes[axis]
                if count > 1:
                    if size % count:
                        raise PlanRefused(
                            "a cut does not divide", expected=size, got=count, where=a
                        )
                    length = size // count
                    t = t.narrow(dim + k, self._number(r, axes) * length, length)
                    size = length
                total *= size
            t = t.reshape(*shape[:dim], total, *shape[dim + 1 :])
        return t
