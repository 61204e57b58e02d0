"""Blocks solved and lowered once, and strategies made of them.

    place(strategy) → Placed

What a block costs depends on its structure, on the sizes of the mesh's axes, on which links they
cross and on the style, not on which layer it is: 96 layers are one problem. Choices found on one
number of microbatches and of replicas hold on every other (samples are cut, nothing else), so they
are looked for once and lowered anew.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from whet.errors import SearchError
from whet.ir.graph import Graph, Node, topological
from whet.machine import Mesh, Topology
from whet.parallel import expert
from whet.parallel.blocks import Layer, Model
from whet.parallel.choice import Choice, Choices, Factors, meets, samples, tails
from whet.parallel.cut import known
from whet.parallel.intra import Problem, Solved
from whet.parallel.lowering import lower
from whet.parallel.pins import NONE, Pins
from whet.parallel.placed import Block, Optimizer, Placed, Run, Stage, Step
from whet.parallel.sharding import Axes, Sharding
from whet.parallel.simulate import Simulator
from whet.parallel.strategy import STYLES, Part, Recipe, Strategy
from whet.parallel.work import work

MICRO = "micro"
TIME = frozenset({MICRO})


@dataclass(slots=True)
class Library:
    """Everything that strategies of one model on one cluster share.

    Attributes:
        model: the blocks.
        cluster: the machine.
        optimizer: costs of an update.
        simulator: prices steps and runs what is placed.
        pins: parameters whose shardings are given.
        solves: 0-1 programs solved.
    """

    model: Model
    cluster: Topology
    optimizer: Optimizer
    simulator: Simulator
    pins: Pins = NONE
    solves: int = 0
    _factors: dict[int, Factors] = field(default_factory=dict)
    _solved: dict[object, Solved | SearchError] = field(default_factory=dict)
    _blocks: dict[object, Block] = field(default_factory=dict)
    _kinds: dict[tuple[Recipe, Mesh], object] = field(default_factory=dict)
    _sample: dict[Node, tuple[int, int]] = field(default_factory=dict)
    _second: dict[Node, tuple[int, int]] = field(default_factory=dict)
    _places: frozenset[tuple[Node, int, int]] = frozenset()
    _tails: frozenset[Node] = frozenset()
    _meets: frozenset[Node] = frozenset()

    @classmethod
    def of(
        cls, model: Model, cluster: Topology, optimizer: Optimizer, pins: Pins = NONE
    ) -> Library:
        """A library with nothing in it."""
        made = cls(model, cluster, optimizer, Simulator(cluster), pins)
        graph = model.graph
        made._sample = samples(graph.inputs, graph.nodes, model.batch)
        made._second = samples(graph.inputs, graph.nodes, model.batch, 1)
        made._places = frozenset(
            (n, *at) for table in (made._sample, made._second) for n, at in table.items()
        )
        grads = [g for x in model.layers for g in x.gradients.values()]
        made._meets = meets(graph.nodes)
        made._tails = tails(graph.nodes, grads, graph.outputs[0] if grads else None)
        return made

    # -- blocks --------------------------------------------------------------------------------
    def solved(self, number: int, recipe: Recipe, mesh: Mesh, micro: int) -> Solved:
        """The choices of a block; looked for once for each shape of mesh and size of microbatch.

        Raises:
            SearchError: there are none.
        """
        local = max(1, self.model.batch // (micro * recipe.size("data")))
        key = (number, self._kind(recipe, mesh), local.bit_length() // 2)
        # What cannot be in several microbatches may well be in one.
        none = (*key, micro > 1)
        found = self._solved.get(key) or self._solved.get(none)
        if found is None:
            self.solves += 1
            problem = self.problem(number, recipe, mesh, micro)
            fixed = {**expert.fixed(problem, recipe.style), **self.pinned(number, problem)}
            try:
                found = problem.solve(fixed=fixed)
            except SearchError as fault:
                found = fault
            self._solved[none if isinstance(found, SearchError) else key] = found
        if isinstance(found, SearchError):
            raise found
        return found

    def unlike(self, number: int, recipe: Recipe, mesh: Mesh, micro: int) -> Solved:
        """The cheapest choices of a block that cut some parameter otherwise than the best ones.

        Raises:
            SearchError: there are none.
        """
        best = self.solved(number, recipe, mesh, micro)
        problem = self.problem(number, recipe, mesh, micro)
        fixed = {**expert.fixed(problem, recipe.style), **self.pinned(number, problem)}
        if not any(n.op == "parameter" for n in best.choices):
            raise SearchError("a block without parameters cuts none")
        return problem.solve(fixed=fixed, unlike=best.choices)

    def pinned(self, number: int, problem: Problem) -> dict[Node, Choice]:
        """The choices of the parameters that a user has decided.

        Raises:
            SearchError: a parameter cannot be cut so.
        """
        found: dict[Node, Choice] = {}
        names = {a for a, _ in problem.mesh}
        for node, cuts in self.pins.of_layer(self.model, number).items():
            want = {c for c in cuts if c[1] in names}
            options = problem.choices.of(node)
            fits = [c for c in options if {(d, a) for d, _, a in c.result.cuts} == want]
            if not fits:
                raise SearchError(
                    f"{node.name} cannot be cut so",
                    expected="one of " + "; ".join(sorted({str(c) for c in options})),
                    got=", ".join(f"dim {d} along {a}" for d, a in sorted(want)),
                )  # fmt: skip
            found[node] = fits[0]
        return found

    def _kind(self, recipe: Recipe, mesh: Mesh) -> object:
        """What of a recipe and its place decides about choices."""
        found = self._kinds.get((recipe, mesh))
        if found is None:
            found = self._kinds[recipe, mesh] = self._kind_of(recipe, mesh)
        return found

    def _kind_of(self, recipe: Recipe, mesh: Mesh) -> object:
        links = tuple(
            tuple(
                (s.level, s.units, s.members, s.groups) for s in self.cluster.spans(mesh, (name,))
            )
            if name not in recipe.pinned
            else ()
            for name, size in recipe.axes
            if size > 1
        )
        axes = tuple((n, 0 if n in recipe.pinned else size) for n, size in recipe.axes)
        kinds = tuple(d.name for d in self.cluster.kinds(mesh.devices))
        style = recipe.style if self._loose(recipe) else STYLES[0]  # nothing is left to choose
        return axes, recipe.pinned, style, links, kinds

    @staticmethod
    def _loose(recipe: Recipe) -> bool:
        """Whether it leaves an axis to choose for."""
        return any(size > 1 for name, size in recipe.axes if name not in recipe.pinned)

    def problem(self, number: int, recipe: Recipe, mesh: Mesh, micro: int) -> Problem:
        """The 0-1 program of a block."""
        layer = self.model.layers[number]
        choices = self.choices(number, recipe, micro)
        data = recipe.size("data")
        weight = sum(p.dtype.bits // 8 for p in layer.gradients) / max(1, len(layer.gradients))
        held = 1 + (self.optimizer.gradient + self.optimizer.state / data) / max(1.0, weight)
        device = self.cluster.device(mesh.devices[0])
        rent = 0.0
        if recipe.style in ("lean", "tokens"):
            rent = self._busy(layer, mesh) / device.memory * 8
        known: dict[Step, float] = {}

        def price(s: Step) -> float:
            if s not in known:
                known[s] = self.simulator.step_s(s, mesh)
            return known[s]

        return Problem(
            layer, choices, TIME, price,
            boundary=self.boundary(layer, recipe), memory=held, rent=rent, kept=1.0,
            hidden=0.5,
        )  # fmt: skip

    def _busy(self, layer: Layer, mesh: Mesh) -> float:
        """Seconds that a block's parameters would take to be read: what memory is weighed with."""
        device = self.cluster.device(mesh.devices[0])
        nbytes = sum(known(p.type.nbytes) for p in layer.parameters)
        return max(nbytes, 1 << 20) / device.bandwidth

    def choices(self, number: int, recipe: Recipe, micro: int) -> Choices:
        """Lists the choices of a block's nodes."""
        layer = self.model.layers[number]
        if number not in self._factors:
            self._factors[number] = Factors(layer.nodes)
        barred: dict[str, frozenset[tuple[Node, int, int]]] = {}
        if recipe.style == "tokens" and self._loose(recipe):
            barred = {
                n: self._places for n, _ in recipe.axes if n not in recipe.pinned and n != "data"
            }
        return Choices(
            self._factors[number], self.axes(recipe, micro), self._sample,
            recipe.pinned | TIME, self._tails, self._meets, barred,
        )  # fmt: skip

    @staticmethod
    def axes(recipe: Recipe, micro: int) -> Axes:
        """The mesh with time in front, without axes of one device."""
        return ((MICRO, micro), *((n, s) for n, s in recipe.axes if s > 1))

    def boundary(self, layer: Layer, recipe: Recipe) -> dict[Node, Sharding]:
        """Between blocks, samples lie along the data axis and everything else is whole.

        But for gradients on their way: they are parts of a sum.
        """
        return boundary(self.model.graph, self._sample, self._tails, layer, recipe)

    def block(self, number: int, recipe: Recipe, mesh: Mesh, micro: int) -> Block:
        """One device's steps of a block."""
        key = (number, recipe, micro, self._kind(recipe, mesh))
        found = self._blocks.get(key)
        if found is None:
            solved = self.solved(number, recipe, mesh, micro)
            layer = self.model.layers[number]
            found = self._blocks[key] = lower(
                layer, solved.choices, self.axes(recipe, micro), TIME,
                self.boundary(layer, recipe), f"block {number}",
                eager=self.cluster.device(mesh.devices[0]).eager,
            )  # fmt: skip
        return found

    # -- strategies ------------------------------------------------------------------------------
    def place(self, strategy: Strategy) -> Placed:
        """A strategy, lowered.

        Raises:
            SearchError: samples do not divide, or a block cannot be cut so.
        """
        micro = strategy.microbatches
        stages = []
        for k, part in enumerate(strategy.parts):
            data = part.recipe.size("data")
            if self.model.batch % (micro * data):
                raise SearchError(
                    "samples do not divide",
                    expected=f"a multiple of {micro} microbatches x {data}", got=self.model.batch,
                )  # fmt: skip
            mesh = Mesh(part.recipe.axes, part.devices)
            numbers = self.model.order[part.first : part.last]
            runs = tuple(
                Run(self.block(n, part.recipe, mesh, micro), len(list(same)))
                for n, same in itertools.groupby(numbers)
            )
            output = 0
            if k + 1 < len(strategy.parts):
                output = self._output(strategy.parts[k + 1], micro)
            stage = Stage(mesh, runs, part.recompute, part.zero, part.offload, output, part.shares)
            stages.append(replace(stage, eager=self.cluster.device(part.devices[0]).eager))
        return Placed(
            tuple(stages), micro, strategy.schedule, strategy.chunks, self.optimizer,
            self.model.training,
        )  # fmt: skip

    def _output(self, after: Part, micro: int) -> int:
        layer = self.model.layers[self.model.order[after.first]]
        data = after.recipe.size("data")
        total = sum(known(n.type.nbytes) for n in layer.entering)
        return total // (micro * data)

    def choices_of(self, part: Part, place: int, micro: int) -> Mapping[Node, Choice]:
        """The choices at one place of the model."""
        mesh = Mesh(part.recipe.axes, part.devices)
        return self.solved(self.model.order[place], part.recipe, mesh, micro).choices

    def weights(self) -> tuple[float, ...]:
        """Of each place, its operations: what stages are balanced by at first."""
        sums = [float(sum(work(n).flops for n in layer.nodes)) + 1.0 for layer in self.model.layers]
        return tuple(sums[n] for n in self.model.order)

    def parameters(self) -> int:
        """Bytes of all parameters."""
        sums = [sum(known(p.type.nbytes) for p in layer.parameters) for layer in self.model.layers]
        return sum(sums[n] for n in self.model.order)


def boundary(
    graph: Graph, sample: Mapping[Node, tuple[int, int]], tail: frozenset[Node], layer: Layer,
    recipe: Recipe,
) -> dict[Node, Sharding]:  # fmt: skip
    """Shardings of the values between a block and others; see `Library.boundary`.

    Args:
        sample: where samples lie in a value.
        tail: nodes that pass parts of a sum on; what they read is passed on as such parts.
    """
    along = [MICRO, *(n for n, s in recipe.axes if n == "data" and s > 1)]
    found = {}
    for v in (*layer.outside, *layer.sent):
        at = sample.get(v)
        if at is not None:
            found[v] = Sharding(tuple((*at, a) for a in along))
        elif any(u in tail for u in graph.users[v]) and _fed(v):
            found[v] = Sharding((), tuple((a, "sum") for a in along))
    return found


def _fed(n: Node) -> bool:
    """Whether a value depends on an input or a parameter."""
    return any(a.op in ("input", "parameter") for a in topological((n,)))


def powers(limit: int) -> list[int]:
    """1, 2, 4, … up to a limit."""
    return [1 << k for k in range(int(math.log2(max(1, limit))) + 1)]
