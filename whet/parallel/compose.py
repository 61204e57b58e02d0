"""From a plan to its program: every operation of every rank, in order.

    program(model, strategy, chosen) → Program

Block by block: before each node the exchanges that bring its operands to where its choice wants
them, behind the block those that bring what it sends to how blocks agree to lie between each other,
and at the end of the step those that bring gradients to where their parameters lie.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from whet.ir.graph import Node
from whet.machine import Mesh
from whet.parallel.blocks import Layer, Model, generated
from whet.parallel.choice import Choice, Factors, samples, tails
from whet.parallel.cut import known
from whet.parallel.library import MICRO, boundary
from whet.parallel.limits import EXECUTED
from whet.parallel.parts import Marks
from whet.parallel.program import (
    Bucket,
    Chosen,
    Compute,
    Exchange,
    Key,
    Message,
    NotExecutable,
    Op,
    Piece,
    Program,
    Stage,
    Total,
    reads,
    same,
)
from whet.parallel.sharding import WHOLE, Axes, Move, Sharding, reshard
from whet.parallel.strategy import Strategy


def program(model: Model, strategy: Strategy, chosen: Chosen) -> Program:
    """Lower a plan.

    Args:
        chosen: the choices of a part at a place of the model, on the nodes of that place.

    Raises:
        NotExecutable: it offloads, has uneven replicas or halves of backward apart (these are
            simulated only), or combines a value over microbatches before it is used.
    """
    _check(model, strategy)
    return _Lowering(model, strategy, chosen).program()


def _check(model: Model, strategy: Strategy) -> None:
    for over in EXECUTED.excess(strategy):
        raise NotExecutable(
            f"{over.what}: simulated only", expected=over.expected, got=over.got,
            where=None if over.where is None else f"stage {over.where}",
            hint="whet parallelize --runnable finds a plan that runs",
        )  # fmt: skip
    for p in strategy.parts:
        data = p.recipe.size("data")
        if model.batch % (strategy.microbatches * data):
            raise NotExecutable(
                "samples do not divide",
                expected=f"a multiple of {strategy.microbatches} microbatches x {data}",
                got=model.batch,
            )


@dataclass(slots=True)
class _Lowering:
    model: Model
    strategy: Strategy
    chosen: Chosen
    own: set[Node] = field(default_factory=set)
    sample: dict[Node, tuple[int, int]] = field(default_factory=dict)
    tail: frozenset[Node] = frozenset()
    stage_of: dict[Node, int] = field(default_factory=dict)
    choices: list[Mapping[Node, Choice]] = field(default_factory=list)
    owner: dict[Node, int] = field(default_factory=dict)
    marks: list[dict[Node, Marks]] = field(default_factory=list)
    forward: set[Node] = field(default_factory=set)
    given: set[Node] = field(default_factory=set)  # depends on inputs, on no parameter

    def program(self) -> Program:
        model = self.model
        graph = model.graph
        self.own = generated(graph)
        free = {"input", "constant"}
        for n in graph.nodes:
            if n.op in free or (not n.is_leaf and all(a in self.given for a in n.operands)):
                self.given.add(n)
        self.sample = samples(graph.inputs, graph.nodes, model.batch)
        grads = [g for x in model.rows for g in x.gradients.values()]
        self.tail = tails(graph.nodes, grads, graph.outputs[0] if grads else None)
        self.marks = self._marks()
        part_of = {}
        for s, part in enumerate(self.strategy.parts):
            for place in range(part.first, part.last):
                part_of[place] = s
        if sorted(part_of) != list(range(len(model.rows))):
            raise NotExecutable(
                "the stages do not cover the model", expected=f"{len(model.rows)} blocks",
                got=f"{len(part_of)}",
            )  # fmt: skip
        for place, layer in enumerate(model.rows):
            part = self.strategy.parts[part_of[place]]
            self.choices.append(self.chosen(part, place))
            for n in layer.nodes:
                self.stage_of[n] = part_of[place]
            for p in layer.parameters:
                self.owner.setdefault(p, place)
            self.forward.update(layer.forward)
        if not model.training and any(n not in self.stage_of for n in graph.outputs):
            raise NotExecutable(
                "a result that no block computes", expected="values that depend on the inputs",
                got=next(n for n in graph.outputs if n not in self.stage_of),
            )  # fmt: skip
        stages = tuple(self._stage(s) for s in range(len(self.strategy.parts)))
        messages = self._messages(stages)
        own = tuple(n for n in graph.nodes if n in self.own)
        return Program(model, self.strategy, stages, messages, own)

    def _marks(self) -> list[dict[Node, Marks]]:
        """The factors of the values of each place, found once for each distinct block."""
        known_: dict[int, dict[Node, Marks]] = {}
        found = []
        for place, number in enumerate(self.model.order):
            first, layer = self.model.layers[number], self.model.rows[place]
            if number not in known_:
                dims = Factors(first.nodes).dims
                known_[number] = {
                    n: tuple(tuple(sorted(m)) for m in marks) for n, marks in dims.items()
                }
            to = same(first, layer)
            found.append({to.get(n, n): m for n, m in known_[number].items()})
        return found

    # -- one stage -------------------------------------------------------------------------------
    def _stage(self, s: int) -> Stage:
        part = self.strategy.parts[s]
        axes = (
            (MICRO, self.strategy.microbatches),
            *((n, k) for n, k in part.recipe.axes if k > 1),
        )
        pieces = tuple(
            _Piece(self, s, place, axes).piece() for place in range(part.first, part.last)
        )
        loss, updates, results = None, [], []
        for place in range(part.first, part.last):
            layer, choices = self.model.rows[place], self.choices[place]
            inside = set(layer.nodes)
            outputs = self.model.graph.outputs
            if not self.model.training:
                at = self.boundary(place)
                results += [(k, Key(n, at[n])) for k, n in enumerate(outputs) if n in inside]
            elif outputs[0] in inside:
                loss = Key(outputs[0], choices[outputs[0]].result)
            for leaf, n in self.model.graph.updates:
                if n in inside:
                    updates.append(self._update(place, axes, leaf, n))
        return Stage(
            part, Mesh(part.recipe.axes, part.devices), axes, pieces, loss, tuple(updates),
            tuple(results),
        )  # fmt: skip

    def _update(
        self, place: int, axes: Axes, leaf: Node, n: Node
    ) -> tuple[Key, Key, tuple[Exchange, ...]]:
        have, want = self.choices[place][n].result, self.stored(leaf)
        marks = self.marks[place].get(n, ())
        return Key(leaf, want), Key(n, have), moves(n, have, want, axes, marks)

    def stored(self, leaf: Node) -> Sharding:
        """Where a parameter lies."""
        place = self.owner.get(leaf)
        if place is None or leaf not in self.choices[place]:
            return WHOLE
        return self.choices[place][leaf].result

    def boundary(self, place: int) -> dict[Node, Sharding]:
        """Shardings of the values between a block and others, parts of gradients among them."""
        layer, graph = self.model.rows[place], self.model.graph
        part = next(p for p in self.strategy.parts if p.first <= place < p.last)
        found = boundary(graph, self.sample, self.tail, layer, part.recipe)
        for v, at in found.items():
            crosses = {self.stage_of.get(u) for u in graph.users[v]} | {self.stage_of.get(v)}
            if at.partial and len(crosses) > 1:  # between stages, a message is of one replica
                found[v] = Sharding((), at.partial[:1])
        if not self.model.training:  # results that have no samples are handed out whole
            inside = set(layer.nodes)
            found |= {n: WHOLE for n in graph.outputs if n in inside and n not in found}
        return found

    # -- between stages --------------------------------------------------------------------------
    def _messages(self, stages: Sequence[Stage]) -> tuple[Message, ...]:
        if len(stages) == 1:
            return ()
        found: list[Message] = []
        graph = self.model.graph
        for s, part in enumerate(self.strategy.parts):
            wanted: dict[Node, str] = {}
            for place in range(part.first, part.last):
                layer = self.model.rows[place]
                for direction, nodes in (("forward", layer.forward), ("backward", layer.backward)):
                    for n in nodes:
                        for a in n.operands:
                            there = self._home(a)
                            if there is None or there == s:
                                continue
                            if direction == "forward" or a not in wanted:
                                wanted[a] = direction
            for a, read in wanted.items():
                there = self._home(a)
                assert there is not None
                if a.op == "parameter":
                    source, key, made, read = (
                        Key(a, self.stored(a)),
                        Key(a, WHOLE),
                        "start",
                        "start",
                    )
                    cut = None
                    marks = self.marks[self.owner[a]].get(a, ())
                else:
                    made = "forward" if a in self.forward else "backward"
                    source = Key(a, self._between(a, there))
                    key = Key(a, self._between(a, s))
                    cut = self.sample.get(a)
                    marks = ()
                found.append(Message(there, s, source, key, made, read, cut, marks))
        order = {n: k for k, n in enumerate(graph.nodes)}
        return tuple(sorted(found, key=lambda m: (order[m.source.node], m.receiver)))

    def _between(self, v: Node, s: int) -> Sharding:
        for place in range(self.strategy.parts[s].first, self.strategy.parts[s].last):
            at = self.boundary(place).get(v)
            if at is not None:
                return at
        return WHOLE

    def _home(self, a: Node) -> int | None:
        """The stage that has a value; None for what every stage has."""
        if a.op == "parameter":
            place = self.owner.get(a)
            if place is None:
                return None
            return next(s for s, p in enumerate(self.strategy.parts) if p.first <= place < p.last)
        return self.stage_of.get(a)


def moves(
    n: Node, have: Sharding, want: Sharding, axes: Axes, marks: Marks
) -> tuple[Exchange, ...]:
    """The exchanges from one sharding to another.

    Raises:
        NotExecutable: something would have to be exchanged over microbatches.
    """
    found, at = [], have
    for move in reshard(have, want, known(n.type.nbytes), axes):
        if MICRO in move.axes and move.kind not in ("slice", "drop"):
            if dict(axes)[MICRO] > 1:
                raise NotExecutable(
                    "a value is combined over microbatches before it is used",
                    expected="one microbatch, or samples that do not depend on each other",
                    got=f"{move.kind} of {n!r}",
                )  # fmt: skip
            move = replace(move, axes=tuple(a for a in move.axes if a != MICRO))
        found.append(Exchange(move, Key(n, at), Key(n, move.target), marks))
        at = move.target
    return tuple(found)


def _call(n: Node, choices: Mapping[Node, Choice]) -> object:
    """What gradients of one call, cut alike, have in common; each other node is alone."""
    base, tilde, _ = n.op.rpartition("~")
    if not tilde or n not in choices:
        return n
    attrs = tuple(kv for kv in n.attrs if kv[0] != "out")
    return base, n.args, attrs, choices[n].cuts


@dataclass(slots=True)
class _Piece:
    """One block."""

    of: _Lowering
    stage: int
    place: int
    axes: Axes
    ops: list[Op] = field(default_factory=list)
    there: set[Key] = field(default_factory=set)
    outer: set[Key] = field(default_factory=set)
    at: dict[Node, Sharding] = field(default_factory=dict)
    before: list[Op] = field(default_factory=list)

    def piece(self) -> Piece:
        of = self.of
        layer, choices, marks = (
            of.model.rows[self.place], of.choices[self.place], of.marks[self.place]
        )  # fmt: skip
        self.at = of.boundary(self.place)
        forward, entering = self._direction(layer.forward, layer, choices, marks)
        self.before = forward
        backward, read = self._direction(layer.backward, layer, choices, marks)
        made = {op.key for op in forward}
        kept = frozenset(k for k in read if k in made)
        sent = {
            Key(n, self.at.get(n, choices[n].result if n in choices else WHOLE)) for n in layer.sent
        }
        buckets = self._buckets(layer, choices, marks)
        trained = {k.node for b in buckets for k in b.parameters}
        frozen = tuple(
            Key(p, of.stored(p)) for p in layer.parameters
            if p not in trained and of.owner.get(p) == self.place
        )  # fmt: skip
        enter = frozenset(k for k in entering if not k.node.is_leaf and k.node not in of.own)
        return Piece(
            self.place, tuple(forward), tuple(backward), buckets, frozen, kept, frozenset(sent),
            enter, marks,
        )  # fmt: skip

    def _direction(
        self, nodes: Sequence[Node], layer: Layer, choices: Mapping[Node, Choice],
        marks: Mapping[Node, Marks],
    ) -> tuple[list[Op], set[Key]]:  # fmt: skip
        """The operations of one pass, and what they read that they do not make."""
        self.ops, self.there, self.outer = [], set(), set()
        inside = set(nodes)
        siblings: dict[object, list[Node]] = {}
        for n in nodes:
            siblings.setdefault(_call(n, choices), []).append(n)
        for n in nodes:
            choice = choices.get(n) or Choice((), (WHOLE,) * len(n.operands), WHOLE)
            single = dict(self.axes)[MICRO] == 1
            if not single and any(m == MICRO for _, _, m, _, _ in choice.inner):
                raise NotExecutable(
                    "a value is combined over microbatches before it is used",
                    expected="one microbatch", got=n,
                )  # fmt: skip
            needs = tuple(
                self._spare(k, siblings[_call(n, choices)], choices)
                if want is None else self._need(a, want, choices, marks)
                for k, (a, want) in enumerate(zip(n.operands, choice.operands, strict=True))
            )  # fmt: skip
            self.ops.append(Compute(n, choice, needs, Key(n, choice.result)))
            self.there.add(Key(n, choice.result))
        for n in layer.sent:
            if n in inside and n in self.at:
                self._sent(Key(n, self.at[n]), self._need(n, self.at[n], choices, marks))
        return self.ops, self.outer

    def _spare(
        self, k: int, siblings: Sequence[Node], choices: Mapping[Node, Choice]
    ) -> Key | None:  # fmt: skip
        """An operand that a node does not read, as a sibling reads it, where it lies so already.

        Given all of them, one call finds the gradients of all.
        """
        for n in siblings if len(siblings) > 1 else ():
            a, want = n.operands[k], choices[n].operands[k]
            if want is None:
                continue
            key = Key(a, want)
            if key in self.there:
                return key
            if self._have(a, choices) == want:
                self.outer.add(key)
                return key
        return None

    def _sent(self, key: Key, made: Key) -> None:
        """Give what is sent the name that readers know: axes of one rank may tell them apart."""
        if key != made:
            move = Move("drop", (), 0, made.at, key.at)
            self.ops.append(Exchange(move, made, key, ()))
            self.there.add(key)

    def _need(
        self, a: Node, want: Sharding, choices: Mapping[Node, Choice], marks: Mapping[Node, Marks]
    ) -> Key:
        key = Key(a, want)
        if key in self.there:
            return key
        have = self._have(a, choices)
        at = Key(a, have)
        if at not in self.there:
            self.outer.add(at)
        over = [how for axis, how in have.partial if axis == MICRO and want.on(MICRO) is None]
        if over and a in self.of.given and dict(self.axes)[MICRO] > 1:
            total = Key(a, have.without((MICRO,)))
            self.ops.append(Total(over[0], self._makers(at), at, total))
            have = total.at
            at = total
        steps = moves(a, have, want, self.axes, marks.get(a, ()))
        self.ops += steps
        self.there.update((at, *(s.key for s in steps[-1:])))
        return steps[-1].key if steps else at

    def _makers(self, key: Key) -> tuple[Compute | Exchange, ...]:
        """The operations of this block that make a value."""
        need, found = {key}, []
        ahead = [op for op in (*self.before, *self.ops) if not isinstance(op, Total)]
        for op in reversed(ahead):
            if op.key in need:
                need.update(k for k in reads(op) if k is not None)
                found.append(op)
        if not any(op.key == key for op in found):
            raise NotExecutable(
                "a value is combined over microbatches in another block than makes it", got=key.node
            )
        return tuple(found[::-1])

    def _have(self, a: Node, choices: Mapping[Node, Choice]) -> Sharding:
        """How a value lies before this block asks for it."""
        if a.op == "parameter" and self.of.owner.get(a) != self.place:
            home = self.of._home(a)
            return self.of.stored(a) if home in (None, self.stage) else WHOLE
        if a in choices:
            return choices[a].result
        return self.at.get(a, WHOLE)

    def _buckets(
        self, layer: Layer, choices: Mapping[Node, Choice], marks: Mapping[Node, Marks]
    ) -> tuple[Bucket, ...]:
        rows: dict[tuple[tuple[str, ...], int], list[tuple[Key, Key, tuple[Exchange, ...]]]] = {}
        sizes = dict(self.axes)
        for p, g in layer.gradients.items():
            at = self.of.stored(p)
            made = choices[g].result if g in choices else self.at.get(g, WHOLE)
            if any(a == MICRO for _, _, a in made.cuts):
                raise NotExecutable("a gradient is cut by microbatches", got=g)
            reduce = tuple(
                a for a, how in made.partial if a != MICRO and at.on(a) is None and sizes[a] > 1
            )
            want = Sharding(at.cuts, tuple((a, "sum") for a in reduce))
            finish = moves(g, made.without((MICRO,)), want, self.axes, marks.get(p, ()))
            rows.setdefault((reduce, p.dtype.bits // 8), []).append(
                (Key(p, at), Key(g, made), finish)
            )
        found = []
        for (reduce, width), row in rows.items():
            count = sum(
                math.prod(known(x) for x in k.node.shape) // k.at.parts(sizes) for k, _, _ in row
            )
            keys, grads, finish_ = zip(*row, strict=True)
            found.append(Bucket(keys, grads, finish_, reduce, count, width))
        return tuple(found)
