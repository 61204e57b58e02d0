"""The choices of every node of a graph on a mesh.

    Factors := value → inner sizes of each dim          as far as reshapes and parts tell them apart
    Choice  := what each mesh axis cuts, and the shardings that follow for operands and result

Factors are propagated to a fixed point: what one operator tells apart in a dim, every operator
along which the dim is passed on can cut as well. Two factorings that do not refine each other
(6 = 2 x 3 = 3 x 2) meet in none: the finer cuts are then left out.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from whet.ir import expr as ex
from whet.ir.expr import Index, Load, Reduce
from whet.ir.graph import Attrs, Node
from whet.ir.record import Instance, Slots
from whet.parallel.cut import Cut, analyse, known, linear, needed, prepared
from whet.parallel.sharding import WHOLE, Axes, Sharding


@dataclass(frozen=True, slots=True)
class Choice:
    """One way to compute a node.

    Attributes:
        cuts: (mesh axis, axis of the operator, inner) for each mesh axis that cuts it.
        operands: the sharding that each operand (present ones, in order) has to have; None where
            the node does not read it.
        result: the sharding of the result.
        inner: (assignment, how it is combined, mesh axis, bytes of the whole, axes that cut it).
    """

    cuts: tuple[tuple[str, str, int], ...]
    operands: tuple[Sharding | None, ...]
    result: Sharding
    inner: tuple[tuple[str, str, str, int, tuple[str, ...]], ...] = ()

    def __str__(self) -> str:
        return ", ".join(f"{m}: {a}" + (f"/{i}" if i > 1 else "") for m, a, i in self.cuts) or "-"


@functools.lru_cache(maxsize=1 << 16)
def instance_of(node: Node) -> Instance:
    """The prepared instance of an operator's node."""
    shapes = tuple(None if a is None else tuple(map(known, a.shape)) for a in node.args)
    return prepared(node.op, shapes, node.attrs)


@functools.lru_cache(maxsize=1 << 16)
def cuts_of(node: Node) -> Mapping[str, Cut]:
    """The axes along which an operator can be cut, and how."""
    shapes = tuple(None if a is None else tuple(map(known, a.shape)) for a in node.args)
    return _cuts(node.op, shapes, node.attrs)


@functools.lru_cache(maxsize=65536)
def _cuts(op: str, shapes: tuple[tuple[int, ...] | None, ...], attrs: Attrs) -> Mapping[str, Cut]:
    instance = prepared(op, shapes, attrs)
    out = str(dict(attrs).get("out", instance.outs[0]))
    found: dict[str, Cut] = {}
    for a, n in instance.extents.items():
        cut = analyse(instance, a, out) if n != 1 else "of extent 1"
        if isinstance(cut, Cut) and (cut.operands or cut.result == "cut"):
            found[a] = cut
    return found


def out_of(node: Node, instance: Instance) -> str:
    """The name of the result that a node stands for."""
    return str(node.attr("out", instance.outs[0]))


class Factors:
    """How the dims of the values in some nodes fall into factors."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.dims: dict[Node, list[frozenset[int]]] = {}
        self.axes: dict[Node, dict[str, frozenset[int]]] = {}
        self._ties: dict[Node, list[tuple[Node, Slots]]] = {}
        for n in nodes:
            for value in (n, *n.operands):
                self.dims.setdefault(value, [frozenset({1}) for _ in value.shape])
            self._open(n)
        order = list(self.axes)
        for turn in range(24):
            row = order if turn % 2 == 0 else order[::-1]
            if not [n for n in row if self._pass(n)]:
                break

    def _open(self, n: Node) -> None:
        if n.is_leaf or n.op in ("opaque", "item"):
            return
        instance = instance_of(n)
        self.axes[n] = {a: frozenset({1}) for a in instance.extents}
        ties = list(zip(n.operands, instance.operands.values(), strict=True))
        self._ties[n] = [*ties, (n, instance.results[out_of(n, instance)])]

    def _pass(self, n: Node) -> bool:
        axes, changed = self.axes[n], False
        extents = instance_of(n).extents
        for value, slots in self._ties[n]:
            for names, dim in zip(slots.axes, slots.dims, strict=True):
                marks, size = self.dims[value][dim], math.prod(known(extents[a]) for a in names)
                inside = 1
                union = marks
                for a in reversed(names):
                    union = _joined(union, (inside * i for i in axes[a]), size)
                    inside *= known(extents[a])
                if union != marks:
                    self.dims[value][dim], changed = union, True
                inside = 1
                for a in reversed(names):
                    extent = known(extents[a])
                    down = {i // inside for i in union if i % inside == 0 and i < inside * extent}
                    merged = _joined(axes[a], down, extent)
                    if merged != axes[a]:
                        axes[a], changed = merged, True
                    inside *= extent
        return changed

    def of(self, n: Node, axis: str) -> tuple[tuple[int, int], ...]:
        """The factors (inner, size) of one axis of an operator, the outermost first."""
        extent = known(instance_of(n).extents[axis])
        marks = [*sorted(self.axes[n][axis]), extent]
        pairs = [(low, high // low) for low, high in itertools.pairwise(marks)]
        return tuple(p for p in reversed(pairs) if p[1] > 1)


def _joined(known: frozenset[int], more: Iterable[int], size: int) -> frozenset[int]:
    """`known` with those of `more` that form one chain of divisors of `size` with it."""
    found = set(known)
    for i in sorted(more):
        if i < size and size % i == 0 and all(i % j == 0 or j % i == 0 for j in found):
            found.add(i)
    return frozenset(found)


SUMS = ("+", 0)  # in place of an axis of the operator: every device has its part of a sum


def _in_order(parts: Iterable[tuple[str, str]], mesh: Axes) -> tuple[tuple[str, str], ...]:
    order = [a for a, _ in mesh]
    return tuple(sorted(parts, key=lambda p: order.index(p[0])))


@dataclass(slots=True)
class Choices:
    """Lists the choices of nodes on one mesh.

    Attributes:
        factors: of the nodes.
        mesh: axes in time (microbatches) first, then those of devices.
        sample: value → (dim, inner) of the samples in it, for axes that cut samples only.
        pinned: mesh axes that cut samples wherever a node has them, and nothing else.
        tail: nodes that pass parts of a sum on: views and sums of parameters' gradients.
        meets: nodes that may do so along axes that are not pinned: sums of products.
        barred: mesh axis → (value, dim, inner) that it must not cut.
    """

    factors: Factors
    mesh: Axes
    sample: Mapping[Node, tuple[int, int]] = field(default_factory=dict)
    pinned: frozenset[str] = frozenset()
    tail: frozenset[Node] = frozenset()
    meets: frozenset[Node] = frozenset()
    barred: Mapping[str, frozenset[tuple[Node, int, int]]] = field(default_factory=dict)
    _known: dict[Node, tuple[Choice, ...]] = field(default_factory=dict)

    def of(self, node: Node) -> tuple[Choice, ...]:
        """All ways to compute a node; the one that cuts nothing but samples comes first."""
        found = self._known.get(node)
        if found is None:
            found = self._known[node] = tuple(self._list(node))
        return found

    def _list(self, node: Node) -> list[Choice]:
        if node.is_leaf:
            return self._leaf(node)
        if node.op in ("opaque", "item"):
            return [Choice((), (WHOLE,) * len(node.operands), WHOLE)]
        instance = instance_of(node)
        out = out_of(node, instance)
        cuts = cuts_of(node)
        sample = self._sample_axis(node, instance)
        options: list[list[tuple[str, int] | None]] = []
        for name, size in self.mesh:
            if name in self.pinned:
                given = sample if sample is not None and sample[0] in cuts else None
                options.append([SUMS if given is None and node in self.tail else given])
                continue
            row: list[tuple[str, int] | None] = [None]
            if node in self.tail or node in self.meets:
                row.append(SUMS)
            for a, cut in cuts.items():
                for k, (inner, extent) in enumerate(self.factors.of(node, a)):
                    if extent % size == 0 and not (cut.offset and k):
                        row.append((a, inner))
            options.append(row)
        found_choices = []
        for picked in itertools.product(*options):
            made = self._choice(node, instance, out, cuts, picked)
            if made is not None:
                found_choices.append(made)
        return found_choices

    def _sample_axis(self, node: Node, instance: Instance) -> tuple[str, int] | None:
        """The operator's axis, and the factor, along which samples lie."""
        ties = list(zip(node.operands, instance.operands.values(), strict=True))
        ties.append((node, instance.results[out_of(node, instance)]))
        for value, slots in ties:
            place = self.sample.get(value)
            if place is None:
                continue
            for names, dim in zip(slots.axes, slots.dims, strict=True):
                if dim != place[0]:
                    continue
                inside = 1
                for a in reversed(names):
                    extent = known(instance.extents[a])
                    if place[1] % inside == 0 and inside <= place[1] < inside * extent:
                        return a, place[1] // inside
                    inside *= extent
        return None

    def _leaf(self, node: Node) -> list[Choice]:
        """A leaf may lie anywhere; what it costs to keep it there is the choice's cost."""
        place = self.sample.get(node)
        options: list[list[tuple[int, int] | None]] = []
        for name, size in self.mesh:
            if name in self.pinned:
                options.append([place])
                continue
            row: list[tuple[int, int] | None] = [None]
            for dim, marks in enumerate(self.factors.dims.get(node, [])):
                chain = [*sorted(marks), known(node.shape[dim])]
                for low, high in itertools.pairwise(chain):
                    if high > low and (high // low) % size == 0:
                        row.append((dim, low))
            options.append(row)
        found = []
        for picked in itertools.product(*options):
            cuts = tuple(
                (d[0], d[1], name) for d, (name, _) in zip(picked, self.mesh, strict=True) if d
            )
            if self._fits(
                [(("", d), i, m) for d, i, m in cuts], lambda k, i: self._extent(node, k[1], i)
            ):
                found.append(Choice(tuple((m, str(d), i) for d, i, m in cuts), (), Sharding(cuts)))
        return found

    def _extent(self, node: Node, dim: int, inner: int) -> int:
        chain = [*sorted(self.factors.dims[node][dim]), known(node.shape[dim])]
        return chain[chain.index(inner) + 1] // inner if inner in chain[:-1] else 0

    def _fits(
        self, cuts: Iterable[tuple[object, int, str]], extent: Callable[[Any, int], int]
    ) -> bool:
        sizes, used = dict(self.mesh), dict[tuple[object, int], int]()
        for key, inner, axis in cuts:
            used[key, inner] = used.get((key, inner), 1) * sizes[axis]
        return all(extent(k, i) % n == 0 for (k, i), n in used.items())

    def _choice(
        self,
        node: Node,
        instance: Instance,
        out: str,
        cuts: Mapping[str, Cut],
        picked: Sequence[tuple[str, int] | None],
    ) -> Choice | None:
        parts = tuple((n, "sum") for a, (n, _) in zip(picked, self.mesh, strict=True) if a == SUMS)
        taken = [
            (a[0], a[1], name)
            for a, (name, _) in zip(picked, self.mesh, strict=True)
            if a and a != SUMS
        ]
        extents = {a: dict(self.factors.of(node, a)) for a, _, _ in taken}
        if not self._fits(taken, lambda a, i: extents[a].get(i, 0)):
            return None
        if len({a for a, _, _ in taken if cuts[a].inner}) > 1:
            return None  # two axes combined inside at once: possible, never better
        if sum(cuts[a].result == "partial" for a in {a for a, _, _ in taken}) > 1:
            return None
        used = _used(node)
        operands: list[Sharding | None] = []
        for name, slots in instance.operands.items():
            if name not in used:
                operands.append(None)
                continue
            here = [(a, i, m) for a, i, m in taken if name in cuts[a].operands]
            placed = _placed(slots, here, instance)
            if placed is None:
                return None
            once = tuple((m, "sum") for a, _, m in taken if name in cuts[a].once)
            value = node.operands[list(instance.operands).index(name)]
            own = parts if parts and value in _parts_of(node) else ()
            operands.append(Sharding(placed, _in_order((*once, *own), self.mesh)))
            if any((value, d, i) in self.barred.get(m, ()) for d, i, m in placed):
                return None
        result = _placed(
            instance.results[out], [t for t in taken if cuts[t[0]].result == "cut"], instance
        )
        if result is None:
            return None
        if any((node, d, i) in self.barred.get(m, ()) for d, i, m in result):
            return None
        partial = tuple((m, cuts[a].combine) for a, _, m in taken if cuts[a].result == "partial")
        inner = []
        for a, _, m in taken:
            for let, how in cuts[a].inner:
                n = math.prod(known(instance.extents[x]) for x in instance.let(let).axes)
                others = tuple(k for x, _, k in taken if k != m and x in instance.let(let).axes)
                inner.append((let, how, m, 4 * n, others))
        chosen = tuple((m, a, i) for a, i, m in taken) + tuple((m, *SUMS) for m, _ in parts)
        made = Sharding(result, _in_order((*partial, *parts), self.mesh))
        return Choice(chosen, tuple(operands), made, tuple(inner))


@functools.lru_cache(maxsize=1 << 16)
def _used(node: Node) -> frozenset[str]:
    """The operands that a node reads for the result that it stands for."""
    instance = instance_of(node)
    lets = needed(instance, out_of(node, instance))
    return frozenset(x.tensor for let in lets for x in ex.loads(let.body))


def _placed(
    slots: Slots, cuts: Iterable[tuple[str, int, str]], instance: Instance
) -> tuple[tuple[int, int, str], ...] | None:
    """Cuts of an operator's axes as cuts of a tensor's dims; None where a dim is of size 1."""
    found = []
    for axis, inner, mesh in cuts:
        for names, dim in zip(slots.axes, slots.dims, strict=True):
            if axis in names:
                at = names.index(axis)
                inside = math.prod(known(instance.extents[a]) for a in names[at + 1 :])
                found.append((dim, inner * inside, mesh))
                break
        else:
            return None
    return tuple(found)


def samples(
    inputs: Sequence[Node], nodes: Sequence[Node], batch: int, start: int = 0
) -> dict[Node, tuple[int, int]]:
    """Where samples lie in every value that has them: (dim, inner).

    Inputs have them in their first dim. From operands they are passed on along the axes that can be
    cut; a value that sums over them has none.
    """
    place = {
        n: (start, 1)
        for n in inputs
        if len(n.shape) > start and n.shape[0] == batch and n.shape[start] != 1
    }
    for n in nodes:
        if n.is_leaf or n in place or n.op in ("opaque", "item"):
            continue
        instance = instance_of(n)
        out = out_of(n, instance)
        for value, slots in zip(n.operands, instance.operands.values(), strict=True):
            if value not in place:
                continue
            dim, inner = place[value]
            names = next(g for g, d in zip(slots.axes, slots.dims, strict=True) if d == dim)
            inside = 1
            for a in reversed(names):
                extent = known(instance.extents[a])
                if inner % inside == 0 and inside <= inner < inside * extent:
                    where = _placed(instance.results[out], [(a, inner // inside, "")], instance)
                    cut = cuts_of(n).get(a)
                    if where and cut is not None and cut.result == "cut":
                        place[n] = where[0][:2]
                    break
                inside *= extent
            if n in place:
                break
    return place


def tails(
    nodes: Sequence[Node], gradients: Iterable[Node], loss: Node | None = None
) -> frozenset[Node]:
    """Nodes through which parts of a sum can be passed, to be added up at the end.

    Views and sums of two below a parameter's gradient; below the loss, whatever is linear in one
    operand: a mean that is a sum over a count, say.
    """
    wanted = set(gradients)
    readers: dict[Node, list[Node]] = {}
    for n in nodes:
        for a in n.operands:
            readers.setdefault(a, []).append(n)
    found: set[Node] = set()
    chain: set[Node] = set()
    for n in reversed(nodes):
        if n.is_leaf or n.op in ("opaque", "item") or not n.operands:
            continue
        read = readers.get(n, ())
        if n is loss or (read and all(r in chain and _parts_of(r) == {n} for r in read)):
            if _parts_of(n):
                chain.add(n)
        if n in wanted or (read and all(r in found for r in read)):
            instance = instance_of(n)
            out = out_of(n, instance)
            if moves_only(instance, out) or _adds(instance, out):
                found.add(n)
    return frozenset(found | chain)


def meets(nodes: Iterable[Node]) -> frozenset[Node]:
    """Sums with products among what is summed, and views on the way: where a product is parts of a
    sum, so can the sum be, and all is added up once (what flows back through queries, keys, values
    and past them, say)."""
    views: set[Node] = set()
    made: dict[Node, bool] = {}  # what is made of products alone: whether it is a sum of some
    for n in nodes:
        if n.is_leaf or n.op in ("opaque", "item") or not n.operands:
            continue
        instance = instance_of(n)
        out = out_of(n, instance)
        if contracts(instance, out):
            made[n] = False
        elif _adds(instance, out) and any(a in made and a.shape == n.shape for a in n.operands):
            made[n] = True
        elif moves_only(instance, out) and n.operands[0] in made:
            made[n] = made[n.operands[0]]
            views.add(n)
    found = {n for n, summed in made.items() if summed}
    for n in reversed(made):
        if n in found:
            found |= {a for a in n.operands if a in views}
    return frozenset(found)


def _parts_of(node: Node) -> set[Node]:
    """The operands that take parts of a sum where a node passes them on."""
    instance = instance_of(node)
    out = out_of(node, instance)
    if _adds(instance, out):
        return set(node.operands)
    names = dict(zip(instance.operands, node.operands, strict=True))
    row = list(names)
    for name in row:
        if linear(instance, out, name):
            return {names[name]}
    return set()


def _adds(instance: Instance, out: str) -> bool:
    lets = needed(instance, out)
    body = lets[0].body
    return (
        len(lets) == 1
        and isinstance(body, ex.Call)
        and body.fn == "+"
        and all(isinstance(a, Load) and a.outside is None for a in body.args)
    )


def contracts(instance: Instance, out: str) -> tuple[str, ...] | None:
    """The axes over which an operator sums products of two tensors; None if it does not."""
    for let in needed(instance, out):
        for e in ex.walk(let.body):
            if isinstance(e, Reduce) and e.kind == "sum":
                for x in ex.walk(e.body):
                    if isinstance(x, ex.Call) and x.fn == "*":
                        left, right = (list(ex.loads(a)) for a in x.args)
                        if left and right and len({y.tensor for y in (*left, *right)}) > 1:
                            if any(set(e.axes) & _axes_of(y) for y in left) and any(
                                set(e.axes) & _axes_of(y) for y in right
                            ):
                                return e.axes
    return None


def _axes_of(load: Load) -> set[str]:
    return set().union(*(ex.free(i) for i in load.index)) if load.index else set()


def moves_only(instance: Instance, out: str) -> bool:
    """Whether an operator only puts elements elsewhere, one for one: a view."""
    lets = needed(instance, out)
    if len(lets) != 1 or not isinstance(lets[0].body, Load):
        return False
    load = lets[0].body
    plain = load.outside is None and all(isinstance(i, (Index, ex.Num)) for i in load.index)
    return plain
