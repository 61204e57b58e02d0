"""The passes of a program, on the ranks that live in this process.

    step(batch) := start, Turn*, update

One runner is the sequential reference when it has all ranks, and one rank's executor when it has
one: what moves values between ranks (`Exchanger`) and stages (`Post`) is given to it. Passes run in
the order of the schedule (`whet.parallel.pipeline`); a pass waits for its messages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from whet.backend import aten
from whet.backend.gradient import Siblings
from whet.errors import WhetError
from whet.ir.graph import Node
from whet.parallel.choice import Choice, cuts_of
from whet.parallel.compose import moves
from whet.parallel.library import MICRO, TIME
from whet.parallel.parts import rows, starts
from whet.parallel.pipeline import Order, Turn
from whet.parallel.program import Compute, Key, Op, Piece, Program, Total, reads
from whet.parallel.sharding import WHOLE
from whet.run.parallel.exchange import COMBINE, Exchanger, Grid, Parts, part
from whet.run.parallel.local import Local, bind
from whet.run.parallel.message import Post
from whet.run.parallel.weights import Make, Weights

Env = dict[Key, Parts]


@dataclass(slots=True)
class Runner:
    """A program on some of its ranks.

    Attributes:
        ranks: of each stage, those that live here.
        weights: of each piece.
        frozen: parameters without a gradient and buffers, by key.
        losses: of the step, by rank of the last stage; parts of a sum.
        results: of a forward pass alone, by number of the output and microbatch, as they lie.
    """

    program: Program
    grids: tuple[Grid, ...]
    ranks: Mapping[int, tuple[int, ...]]
    exchangers: Mapping[int, Exchanger]
    post: Post
    weights: dict[tuple[int, int], list[Weights]] = field(default_factory=dict)
    frozen: dict[int, Env] = field(default_factory=dict)
    optimizers: dict[int, list[torch.optim.Optimizer]] = field(default_factory=dict)
    batch: Mapping[str, Tensor] = field(default_factory=dict)
    losses: dict[int, Tensor] = field(default_factory=dict)
    results: dict[tuple[int, int], Parts] = field(default_factory=dict)
    native: dict[bool, int] = field(default_factory=dict)
    _own: dict[Key, Tensor] = field(default_factory=dict)
    _shared: dict[tuple[int, int], Env] = field(default_factory=dict)
    _local: dict[tuple[int, int, int], Env] = field(default_factory=dict)
    _params: dict[int, Env] = field(default_factory=dict)
    _owners: dict[tuple[int, Key], Weights] = field(default_factory=dict)
    _totals: dict[tuple[int, Key], Parts] = field(default_factory=dict)
    _updates: dict[int, Env] = field(default_factory=dict)
    _calls: dict[object, Local] = field(default_factory=dict)
    _still: dict[tuple[int, int], Local] = field(default_factory=dict)
    _siblings: Siblings = field(default_factory=Siblings)
    _drops: dict[object, list[list[Key]]] = field(default_factory=dict)
    _marks: dict[tuple[int, Node], tuple[tuple[int, ...], ...]] = field(default_factory=dict)

    # -- setup -----------------------------------------------------------------------------------
    @torch.no_grad()
    def place(self, wholes: Mapping[str, Tensor], make: Make) -> None:
        """Give every rank its parts of the parameters, and an optimizer for what it updates."""
        for s, ranks in self.ranks.items():
            stage, grid = self.program.stages[s], self.grids[s]
            self.frozen[s] = {}
            for piece in stage.pieces:
                for n, m in piece.marks.items():
                    if n.is_leaf:
                        self._marks.setdefault((s, n), m)
                self.weights[s, piece.place] = [
                    Weights.of(b, stage, grid, self.exchangers[s], wholes, ranks, piece.marks)
                    for b in piece.buckets
                ]
                for key in piece.frozen:
                    self.frozen[s][key] = self._parts(s, key, wholes[key.node.name], 0)
            for w in (w for p in stage.pieces for w in self.weights[s, p.place]):
                for r, own in w.own.items():
                    self.optimizers.setdefault(r, []).append(make([own]))
        self._generate()

    def marks(self, s: int, n: Node) -> tuple[tuple[int, ...], ...]:
        """The factors of a leaf's dims, as its stage knows them."""
        return self._marks.get((s, n), ())

    def _generate(self) -> None:
        """What depends on nothing that changes, whole."""
        values: dict[Node, Tensor] = {}
        for n in self.program.own:
            args = [None if a is None else values.get(a, self._constant(a)) for a in n.args]
            values[n] = aten.call(n, args)
            self._own[Key(n, WHOLE)] = values[n]

    def _constant(self, n: Node) -> Tensor | None:
        found = self.program.model.graph.constants.get(n.name) if n.is_leaf else None
        return found if isinstance(found, Tensor) else None

    def _parts(self, s: int, key: Key, whole: Tensor, micro: int) -> Parts:
        axes, grid = self.program.stages[s].axes, self.grids[s]
        rows_ = rows(tuple(whole.shape), self.marks(s, key.node), key.at, axes)
        return {
            r: part(whole, rows_, starts(rows_, grid.at(r, micro), axes)).clone(
                memory_format=torch.contiguous_format
            )
            for r in self.ranks[s]
        }

    # -- one step --------------------------------------------------------------------------------
    @torch.no_grad()
    def begin(self, batch: Mapping[str, Tensor]) -> None:
        """Before the passes of a step.

        Args:
            batch: whole inputs by name; a rank reads its own samples only.
        """
        self.batch, self.losses, self.results, self._totals = batch, {}, {}, {}
        self._updates = {s: {} for s in self.ranks}
        self._params = {s: {} for s in self.ranks}
        for number, m in enumerate(self.program.messages):
            if m.made == "start" and m.sender in self.ranks:
                parts = self._parameter(m.sender, m.source)

                axes = self.program.stages[m.sender].axes
                for op in moves(m.source.node, m.source.at, WHOLE, axes, m.marks):
                    parts = self.exchangers[m.sender].exchange(op, parts, 0)
                self.post.send(number, m, 0, parts)
        for number, m in enumerate(self.program.messages):
            if m.made == "start" and m.receiver in self.ranks:
                ranks = self.ranks[m.receiver]
                self._params[m.receiver][m.key] = self.post.receive(number, m, 0, ranks)

    @torch.no_grad()
    def turn(self, turn: Turn, *, last: bool) -> None:
        """One pass.

        Args:
            last: it is the last backward pass of its stage in the step.
        """
        s, micro = turn.stage, turn.microbatch
        if turn.name == "update":
            self._update(s)
            return
        shared = self._shared.setdefault((s, micro), {})
        for number, m in enumerate(self.program.messages):
            if m.receiver == s and m.read == turn.name:
                shared[m.key] = self.post.receive(number, m, micro, self.ranks[s])
        stage = self.program.stages[s]
        if turn.name == "forward":
            for piece in stage.pieces:
                self._forward(s, piece, micro)
        else:
            for piece in reversed(stage.pieces):
                self._backward(s, piece, micro, last=last)
        for number, m in enumerate(self.program.messages):
            if m.sender == s and m.made == turn.name:
                self.post.send(number, m, micro, shared[m.source])
        if turn.name == "backward" or not self.program.model.training:
            del self._shared[s, micro]

    def _forward(self, s: int, piece: Piece, micro: int) -> None:
        stage = self.program.stages[s]
        keep = set(piece.kept) | set(piece.sent)
        if stage.loss is not None:
            keep.add(stage.loss)
        keep.update(n for _, n, _ in stage.updates)
        keep.update(key for _, key in stage.results)
        env: Env = {}
        weights = self.weights[s, piece.place]
        for w in weights:
            w.fetch()
        self._run(s, piece, "forward", micro, env, keep)
        for w in weights:
            w.drop()
        self._send(s, piece, micro, env)
        if stage.loss is not None and stage.loss in env:
            self._lose(stage.loss, env[stage.loss])
        for _, n, _ in stage.updates:
            if n in env:
                self._updates[s][n] = env[n]
        self.results |= {(k, micro): env[key] for k, key in stage.results if key in env}
        if not stage.part.recompute:
            self._local[s, piece.place, micro] = {k: v for k, v in env.items() if k in piece.kept}

    def _send(self, s: int, piece: Piece, micro: int, env: Env) -> None:
        """What other pieces of the stage read."""
        self._shared[s, micro].update((key, env[key]) for key in piece.sent if key in env)

    def _lose(self, key: Key, parts: Parts) -> None:
        adds = any(a == MICRO for a, _ in key.at.partial)
        for r, t in parts.items():
            self.losses[r] = self.losses[r] + t if adds and r in self.losses else t

    def _backward(self, s: int, piece: Piece, micro: int, *, last: bool) -> None:
        stage = self.program.stages[s]
        weights = self.weights[s, piece.place]
        for w in weights:
            w.fetch()
        grads = {g for b in piece.buckets for g in b.gradients}
        if stage.part.recompute:
            env: Env = {}
            self._run(s, piece, "forward", micro, env, set(piece.kept))
        else:
            env = self._local.pop((s, piece.place, micro))
        self._run(s, piece, "backward", micro, env, grads | set(piece.sent))
        for w in weights:
            w.drop()
        self._send(s, piece, micro, env)
        for w in weights:
            w.add(lambda k: self._value(s, k, micro, env), TIME, last=last)

    def _run(self, s: int, piece: Piece, name: str, micro: int, env: Env, keep: set[Key]) -> None:
        ops = piece.forward if name == "forward" else piece.backward
        drops = self._dropped(s, piece, name, ops, keep)
        for op, gone in zip(ops, drops, strict=True):
            env[op.key] = self._op(s, op, micro, env)
            for key in gone:
                env.pop(key, None)

    def _dropped(
        self, s: int, piece: Piece, name: str, ops: Sequence[Op], keep: set[Key]
    ) -> list[list[Key]]:
        """Behind each operation, what nobody reads any more."""
        at = (s, piece.place, name, frozenset(keep))
        found = self._drops.get(at)
        if found is None:
            last: dict[Key, int] = {}
            for k, op in enumerate(ops):
                last[op.key] = k
                last.update((key, k) for key in reads(op) if key is not None)
            found = [[] for _ in ops]
            for key, k in last.items():
                if key not in keep:
                    found[k].append(key)
            self._drops[at] = found
        return found

    # -- operations ------------------------------------------------------------------------------
    def _op(self, s: int, op: Op, micro: int, env: Env) -> Parts:
        if isinstance(op, Total):
            return self._total(s, op)
        if not isinstance(op, Compute):
            source = self._value(s, op.source, micro, env)
            return self.exchangers[s].exchange(op, source, micro)
        taken = [None if k is None else self._value(s, k, micro, env) for k in op.reads]
        axes, grid = self.program.stages[s].axes, self.grids[s]
        locals_ = {r: self._bound(op, axes, grid, r, micro) for r in self.ranks[s]}
        if not op.choice.inner:
            found: Parts = {}
            for r, local in locals_.items():
                assert local.call is not None
                found[r] = local.call([None if x is None else x[r] for x in taken])
            return found
        tensors = {
            r: {n: x[r] for n, x in zip(local.names, taken, strict=True) if x is not None}
            for r, local in locals_.items()
        }
        parts: Parts = {}
        for k, let in enumerate(next(iter(locals_.values())).lets):
            parts = {r: local.lets[k].call(tensors[r]) for r, local in locals_.items()}
            for how, axis in let.combine:
                if axis == MICRO:  # there is one microbatch, or the plan would have been refused
                    continue
                parts = self.exchangers[s].combine(parts, (axis,), how)
            for r, t in parts.items():
                tensors[r][let.name] = t
        return parts

    def _total(self, s: int, op: Total) -> Parts:
        """A value of the inputs over all microbatches; the same in each, so made once a step."""
        found = self._totals.get((s, op.key))
        if found is not None:
            return found
        for micro in range(self.program.strategy.microbatches):
            self._shared.setdefault((s, micro), {})
            env: Env = {}
            for step in op.ops:
                env[step.key] = self._op(s, step, micro, env)
            new = env[op.source]
            found = new if found is None else {
                r: COMBINE[op.how](t, new[r]) for r, t in found.items()
            }  # fmt: skip
        assert found is not None
        self._totals[s, op.key] = found
        return found

    def _bound(self, op: Compute, axes: object, grid: Grid, r: int, micro: int) -> Local:
        found = self._still.get((id(op), r))  # the program keeps its operations
        if found is not None:
            return found
        n, choice = op.node, op.choice
        types = tuple(None if a is None else a.type for a in n.args)
        at: object = None
        if _moved(n, choice):
            at = tuple(sorted(grid.at(r, micro).items()))
        key = (n.op, types, n.attrs, choice, grid.axes, at)
        found = self._calls.get(key)
        if found is None:
            found = bind(n, choice, grid.axes, grid.at(r, micro), self._siblings)
            self._calls[key] = found
            self.native[found.native] = self.native.get(found.native, 0) + 1
        if at is None:
            self._still[id(op), r] = found
        return found

    def _value(self, s: int, key: Key, micro: int, env: Env) -> Parts:
        found = env.get(key)
        if found is None:
            found = self._shared[s, micro].get(key)
        if found is not None:
            return found
        n = key.node
        if n.op == "parameter":
            return self._parameter(s, key)
        if n.op == "input":
            made = self._parts(s, key, self.batch[n.name], micro)
            self._shared[s, micro][key] = made
            return made
        own = self._own.get(key)
        if own is None and n.op == "constant":
            data = self._constant(n)
            assert data is not None
            return self._parts(s, key, data, micro)
        if own is None:
            raise WhetError("a value is read before it is made", got=key.at, where=n)
        return dict.fromkeys(self.ranks[s], own)

    def _parameter(self, s: int, key: Key) -> Parts:
        found = self._params[s].get(key) or self.frozen[s].get(key)
        if found is not None:
            return found
        w = self._owner(s, key)
        fetched = w.zero == 3 and not w.gathered
        if fetched:
            w.fetch()
        parts = w.views()[key]
        if fetched:
            parts = {r: t.clone() for r, t in parts.items()}
            w.drop()
        return parts

    def _owner(self, s: int, key: Key) -> Weights:
        """The bucket that a parameter lies in."""
        found = self._owners.get((s, key))
        if found is None:
            for piece in self.program.stages[s].pieces:
                for w in self.weights[s, piece.place]:
                    if key in w.bucket.parameters:
                        self._owners[s, key] = w
                        return w
            raise WhetError("a parameter lies elsewhere", got=key.at, where=key.node)
        return found

    # -- the end of a step -----------------------------------------------------------------------
    def _update(self, s: int) -> None:
        stage = self.program.stages[s]
        weights = [w for p in stage.pieces for w in self.weights[s, p.place]]
        for w in weights:
            w.update({})
        for r in self.ranks[s]:
            for optimizer in self.optimizers.get(r, ()):
                optimizer.step()
        for w in weights:
            w.settle()
        for leaf, n, ops in stage.updates:
            parts = self._updates[s].get(n)
            if parts is None:  # a buffer that is set to one of its own, say
                continue
            for op in ops:
                parts = self.exchangers[s].exchange(op, parts, 0)
            self.frozen[s][leaf] = {
                r: t.clone(memory_format=torch.contiguous_format) for r, t in parts.items()
            }

    def step(self, batch: Mapping[str, Tensor], orders: Sequence[Order]) -> None:
        """All passes, in an order in which each can run.

        Raises:
            WhetError: they wait for each other.
        """
        self.begin(batch)
        rows_ = [list(o) for o in orders]
        at = [0] * len(rows_)
        done: set[tuple[str, int, int]] = set()
        while any(k < len(row) for k, row in zip(at, rows_, strict=True)):
            moved = False
            for g, row in enumerate(rows_):
                while at[g] < len(row) and self._ready(row[at[g]], done):
                    turn = row[at[g]]
                    self.turn(turn, last=is_last(turn, row, at[g]))
                    done.add(turn)
                    at[g] += 1
                    moved = True
            if not moved:
                raise WhetError("the passes wait for each other", got=rows_[0][at[0]])

    def _ready(self, turn: Turn, done: set[tuple[str, int, int]]) -> bool:
        if turn.name == "update":
            return True
        return all(
            (m.made, m.sender, turn.microbatch) in done
            for m in self.program.messages
            if m.receiver == turn.stage and m.read == turn.name and m.made != "start"
        )


def is_last(turn: Turn, order: Sequence[Turn], at: int) -> bool:
    """Whether a backward pass is the last of its stage in the order of its group."""
    return turn.name == "backward" and not any(
        t.name == "backward" and t.stage == turn.stage for t in order[at + 1 :]
    )


def _moved(n: Node, choice: Choice) -> bool:
    """Whether a node's call depends on where its part begins."""
    if n.op in ("opaque", "item"):
        return False
    cuts = cuts_of(n)
    return any(a in cuts and cuts[a].offset for _, a, _ in choice.cuts)
