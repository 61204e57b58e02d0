"""A block with its choices, as the steps of one device: what the simulator runs.

    lower(layer, choices, mesh, …) → Block

Nodes become steps in program order. Between what a node makes and what its reader wants stand the
collectives of the reshard, once for each wanted sharding. Neighbours that only stream through
memory are one step, which reads what comes from outside it and writes what is read outside it.
Gradients of one call share their work. The reduction of a parameter's gradient over the devices
that hold the same parameter is no step: it belongs to the stage, which may put it off
(`Weights.reduce`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from whet.ir.graph import Node
from whet.parallel.blocks import Layer
from whet.parallel.choice import Choice
from whet.parallel.cut import known
from whet.parallel.placed import Block, Step, Weights
from whet.parallel.sharding import Axes, Move, Sharding, reshard
from whet.parallel.work import arithmetic, evaluated, shared, slides, step, work

SLICE = 4  # operations of a slice on a rank: it opens a value, narrows it, closes and copies it
GRADIENT = 25  # of a gradient by differentiating a call, which is made again for it


def lower(
    layer: Layer,
    choices: Mapping[Node, Choice],
    mesh: Axes,
    time: frozenset[str],
    boundary: Mapping[Node, Sharding],
    name: str,
    *,
    eager: bool = False,
) -> Block:
    """One device's steps of a block, for one microbatch.

    Args:
        choices: of every node and leaf.
        mesh: axes in time first.
        time: axes in time.
        boundary: shardings of values from and for other blocks.
        name: of the block.
        eager: every operation is a step, views and slices too; nothing is joined.
    """
    return _Lowering(layer, choices, mesh, time, boundary, eager).block(name)


@dataclass(slots=True)
class _List:
    """Steps of one direction while they are made."""

    steps: list[Step] = field(default_factory=list)
    maker: dict[tuple[Node, Sharding], int] = field(default_factory=dict)
    stream: int = -1  # the step that a streaming node may still join
    members: dict[int, list[Node]] = field(default_factory=dict)


@dataclass(slots=True)
class _Lowering:
    layer: Layer
    choices: Mapping[Node, Choice]
    mesh: Axes
    time: frozenset[str]
    boundary: Mapping[Node, Sharding]
    eager: bool = False
    root: dict[Node, Node] = field(default_factory=dict)
    weighty: set[Node] = field(default_factory=set)
    differentiated: set[object] = field(default_factory=set)

    def block(self, name: str) -> Block:
        layer = self.layer
        for n in layer.nodes:  # views lie where what they show lies
            self.root[n] = self.root.get(n.operands[0], n.operands[0]) if (
                work(n).kind == "view" and n.operands) else n  # fmt: skip
        scale = self._shares()
        self.weighty = self._find_weighty()
        ahead, behind = _List(), _List()
        for direction, nodes in ((ahead, layer.forward), (behind, layer.backward)):
            for n in nodes:
                self._node(direction, n, scale.get(n, 1.0))
        for n in layer.sent:
            if n in self.boundary and n in self.choices:
                direction = ahead if n in set(layer.forward) else behind
                self._move(direction, n, self.choices[n].result, self.boundary[n])
        self._memory(ahead, behind)
        weights = self._weights()
        entering = sum(
            known(a.type.nbytes) // self._at(a).parts(dict(self.mesh)) for a in layer.entering
        )
        return Block(
            name, tuple(ahead.steps), tuple(behind.steps), weights, entering, self._finish()
        )

    def _at(self, n: Node) -> Sharding:
        if n in self.choices:
            return self.choices[n].result
        return self.boundary.get(n, Sharding())

    def _shares(self) -> dict[Node, float]:
        """Gradients of the same call, and the part of their work that is left together."""
        calls: dict[object, list[Node]] = {}
        for n in self.layer.backward:
            base, tilde, _ = n.op.rpartition("~")
            if tilde and work(n).kind != "view":
                attrs = tuple(kv for kv in n.attrs if kv[0] != "out")
                calls.setdefault((base, n.args, attrs, self.choices[n].cuts), []).append(n)
        return {
            n: part for nodes in calls.values() if len(nodes) > 1
            for part in [shared(nodes)] for n in nodes
        }  # fmt: skip

    def _eagerly(self, n: Node, made: Step) -> Step:
        """The step as a rank takes it.

        Gradients of a call are found at once, by differentiating the call, which is made again.
        Where values inside are combined, the record runs, one operation after another. Windows
        without a product are a class of their own: value by value.
        """
        choice = self.choices[n]
        if slides(n):
            made = replace(made, kind="pool")
        if choice.inner:
            count, elements = evaluated(n, choice, self.mesh)
            return replace(made, read=8 * elements, written=4 * elements, calls=count)
        base, tilde, _ = n.op.rpartition("~")
        if not tilde or made.kind == "window":
            return made
        call = base, n.args, choice.cuts
        if call in self.differentiated:
            return replace(made, read=0, written=0, flops=made.flops)
        self.differentiated.add(call)
        again = next(
            (m for m in self.layer.forward if m.op == base and m.args == n.args[:-1]), None
        )
        first = step(again, self.choices[again], self.mesh) if again is not None else None
        if first is not None:
            made = replace(
                made, flops=made.flops + first.flops, read=made.read + first.read,
                written=made.written + first.written,
            )  # fmt: skip
        return replace(made, calls=GRADIENT)

    # -- steps ---------------------------------------------------------------------------------
    def _node(self, to: _List, n: Node, scale: float) -> None:
        choice = self.choices[n]
        waits = []
        for a, want in zip(n.operands, choice.operands, strict=True):
            if want is None:
                continue
            have = self._at(a)
            waits.append(self._move(to, a, have, want))
        after = tuple(sorted({w for w in waits if w >= 0}))
        for let, how, axis, nbytes, others in choice.inner:
            if axis not in self.time:
                nbytes //= math.prod(dict(self.mesh)[a] for a in others)
                moved = Step(f"{n.op}: {how} {let}", "all_reduce", bytes=nbytes, axes=(axis,),
                             after=after)  # fmt: skip
                to.steps.append(moved)
                after = (len(to.steps) - 1,)
                to.stream = -1
        made = step(n, choice, self.mesh, after)
        if made is None:
            source = max(after, default=-1)
            if self.eager:
                to.steps.append(Step(n.op, "stream", after=after, weight=n in self.weighty))
                source = len(to.steps) - 1
            to.maker[n, choice.result] = source
            return
        made = replace(made, flops=int(made.flops * scale), weight=n in self.weighty)
        if self.eager:
            made = self._eagerly(n, made)
        fits = made.kind == "stream" and to.stream >= 0 and not self.eager
        if fits and all(w <= to.stream for w in after):
            held = to.steps[to.stream]
            joined = to.members[to.stream]
            joined.append(n)
            to.steps[to.stream] = replace(
                held, flops=held.flops + made.flops,
                after=tuple(sorted({*held.after, *(w for w in after if w < to.stream)})),
                weight=held.weight and made.weight,
            )  # fmt: skip
            to.maker[n, choice.result] = to.stream
            return
        to.steps.append(made)
        to.maker[n, choice.result] = len(to.steps) - 1
        to.members[len(to.steps) - 1] = [n]
        to.stream = len(to.steps) - 1 if made.kind == "stream" else -1

    def _find_weighty(self) -> set[Node]:
        """Backward nodes that make parameters' gradients and nothing else."""
        found = set(self.layer.gradients.values())
        readers: dict[Node, list[Node]] = {}
        for n in self.layer.backward:
            for a in n.operands:
                readers.setdefault(a, []).append(n)
        sent = set(self.layer.sent)
        for n in reversed(self.layer.backward):
            if n not in found and n not in sent and readers.get(n):
                if all(r in found for r in readers[n]):
                    found.add(n)
        return found

    def _move(self, to: _List, a: Node, have: Sharding, want: Sharding) -> int:
        """The step behind which a value lies as it is wanted; -1 where nothing has to be done."""
        already = to.maker.get((a, want))
        if already is not None:
            return already
        at = to.maker.get((a, have), -1)
        nbytes = known(a.type.nbytes)
        for move in reshard(have, want, nbytes, self.mesh):
            axes = tuple(x for x in move.axes if x not in self.time)
            if move.kind in ("slice", "drop") or not axes:
                if self.eager and move.kind == "slice" and axes:
                    at = self._laid(to, move, at)
                continue
            if self.eager:
                at = self._laid(to, move, at)
            made = Step(f"{move.kind} {a.op}", move.kind, bytes=move.bytes, axes=axes,
                        dtype=arithmetic(a), after=(at,) if at >= 0 else ())  # fmt: skip
            to.steps.append(made)
            at = len(to.steps) - 1
            to.stream = -1
        to.maker[a, want] = at
        return at

    def _laid(self, to: _List, move: Move, at: int) -> int:
        """What a rank copies for a move: a collective takes and makes what is cut by rows."""
        if move.kind == "all_reduce":
            return at
        part = move.bytes // math.prod(dict(self.mesh)[x] for x in move.axes)
        moved = {"slice": part, "all_to_all": 2 * move.bytes}.get(move.kind, part + move.bytes)
        if move.kind in ("all_gather", "reduce_scatter") and all(
            dim == 0 for dim, _, x in (*move.source.cuts, *move.target.cuts) if x in move.axes
        ):
            moved = 0
        to.steps.append(
            Step(f"lay {move.kind}", "stream", read=moved, written=moved,
                 after=(at,) if at >= 0 else (), calls=SLICE)
        )  # fmt: skip
        return len(to.steps) - 1

    # -- memory --------------------------------------------------------------------------------
    def _memory(self, ahead: _List, behind: _List) -> None:
        """Bytes read and written by fused steps; what is allocated, and what is given back."""
        sizes = dict(self.mesh)
        layer = self.layer
        place: dict[Node, tuple[int, int]] = {}
        for d, part in enumerate((ahead, behind)):
            for k, nodes in part.members.items():
                for n in nodes:
                    place[n] = (d, k)
        uses: dict[Node, list[tuple[int, int]]] = {}
        for n in layer.nodes:
            at = place.get(n)
            for a, want in zip(n.operands, self.choices[n].operands, strict=True):
                if want is not None and at is not None:
                    uses.setdefault(self.root.get(a, a), []).append(at)
        sent = {self.root.get(n, n) for n in layer.sent} | {
            self.root.get(g, g) for g in layer.gradients.values()
        }
        alloc: dict[tuple[int, int], list[int]] = {}
        free: dict[tuple[int, int], list[int]] = {}
        for n, at in place.items():
            size = work(n).written // self.choices[n].result.parts(sizes)
            later = [u for u in uses.get(n, ()) if u != at]
            if not later and n not in sent:
                continue
            alloc.setdefault(at, []).append(size)
            keeps = at[0] == 0 and n in sent and not any(u[0] == 1 for u in later)
            end = max(later, default=at)
            is_gradient = n in {self.root.get(g, g) for g in layer.gradients.values()}
            if keeps and n in {self.root.get(x, x) for x in layer.leaving}:
                end = (0, len(ahead.steps) - 1)  # the next block holds what enters it
            if is_gradient:
                end = at  # gradients live with the stage
            free.setdefault(end, []).append(size)
        for d, part in enumerate((ahead, behind)):
            for k, s in enumerate(part.steps):
                joined = part.members.get(k)
                if joined is not None and len(joined) > 1:
                    s = self._traffic(s, joined, uses, (d, k), sent, sizes)
                elif joined is None and s.is_collective:
                    got = self._received(s)
                    s = replace(s, alloc=(got,), free=(got,))
                here = replace(
                    s,
                    alloc=(*s.alloc, *alloc.get((d, k), ())),
                    free=(*s.free, *free.get((d, k), ())),
                )
                part.steps[k] = here

    def _received(self, s: Step) -> int:
        ranks = math.prod(n for a, n in self.mesh if a in s.axes)
        return s.bytes // ranks if s.kind == "reduce_scatter" else s.bytes

    def _traffic(
        self, s: Step, nodes: Sequence[Node], uses: Mapping[Node, list[tuple[int, int]]],
        at: tuple[int, int], sent: set[Node], sizes: Mapping[str, int],
    ) -> Step:  # fmt: skip
        inside = {self.root.get(n, n) for n in nodes}
        read = written = 0
        seen = set()
        for n in nodes:
            for a, r, want in zip(n.operands, work(n).read, self.choices[n].operands, strict=True):
                root = self.root.get(a, a)
                if want is not None and root not in inside and root not in seen:
                    seen.add(root)
                    read += r // want.parts(sizes)
            if n in sent or any(u != at for u in uses.get(n, ())):
                written += work(n).written // self.choices[n].result.parts(sizes)
        return replace(s, read=read, written=written)

    # -- parameters ----------------------------------------------------------------------------
    def _reduced(self, p: Node, gradient: Node) -> tuple[Sharding, tuple[str, ...]]:
        """A gradient as it is made, and the axes along which it is summed for a parameter."""
        sizes, at = dict(self.mesh), self._at(p)
        made = self._at(gradient)
        return made, tuple(
            a for a, how in made.partial
            if a not in self.time and at.on(a) is None and sizes[a] > 1
        )  # fmt: skip

    def _finish(self) -> tuple[Step, ...]:
        """What brings gradients to where parameters lie, but for the sums."""
        found: list[Step] = []
        for p, g in self.layer.gradients.items():
            made, reduce = self._reduced(p, g)
            want = Sharding(self._at(p).cuts, tuple((a, "sum") for a in reduce))
            have = made.without(tuple(self.time))
            found += [
                Step(f"{m.kind} {g.op}", m.kind, bytes=m.bytes, axes=m.axes, dtype=arithmetic(g))
                for m in reshard(have, want, known(g.type.nbytes), self.mesh)
                if m.kind not in ("slice", "drop")
            ]
        return tuple(found)

    def _weights(self) -> tuple[Weights, ...]:
        sizes = dict(self.mesh)
        found: dict[tuple[int, tuple[str, ...], bool], tuple[int, int]] = {}
        for p in self.layer.parameters:
            at = self._at(p)
            gradient = self.layer.gradients.get(p)
            reduce: tuple[str, ...] = ()
            if gradient is not None:
                _, reduce = self._reduced(p, gradient)
            cut = math.prod(sizes[a] for _, _, a in at.cuts if a not in self.time)
            elements = math.prod(known(x) for x in p.shape) // cut
            key = (p.dtype.bits // 8, reduce, gradient is not None)
            total, count = found.get(key, (0, 0))
            found[key] = total + elements, count + 1
        return tuple(
            Weights("parameters" if trained else "buffers", n, width, reduce, trained, count)
            for (width, reduce, trained), (n, count) in found.items()
        )
