"""What competes on a device: ways to run a rewritten graph, each one graph of launches.

    rewrites    library calls, launched from Python          only ever a comparison
    graphed     library calls
    channels    the same, images with their channels last
    compiled    one region, compiled around library calls
    searched    the same, its kernels searched for           where time is left
    tiles       groups of operators in generated kernels, libraries where faster
    lanes       the same, or library calls, what is independent beside one another

Each is run once before it competes; what does not run is counted with its reason, and left out.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from whet.backend.cluster import LIBRARY
from whet.backend.lowered import Lowered, Step, body_nodes, example, lower
from whet.backend.tiled import held, tiled
from whet.backend.triton_text import Module
from whet.errors import WhetError, first_line
from whet.fuse.partition import Cluster, parse
from whet.ir.graph import Graph
from whet.run.abreast import grouped
from whet.run.cuda import Cuda
from whet.run.device import Tuned, made
from whet.run.engine import Bind
from whet.run.gains import ROUNDS, Stopwatch
from whet.run.lanes import forked
from whet.run.measure import Timing
from whet.run.parameters import Parameters
from whet.run.program import Program
from whet.run.recipe import Recipe
from whet.run.replayed import Replayed, graphs
from whet.run.rewriting import Rewritten
from whet.run.save import region_bytes
from whet.store import Store

ENGINE = "cuda"
COMPILED, SEARCHED = "compiled", "searched"
SEARCHING = "max-autotune-no-cudagraphs"  # the compiler's own search; the recording is ours
ROOM = 0.25  # of free memory, that a body in lanes may take
SEARCH_S = 60.0  # seconds of the budget that have to be left for it
NONE: Mapping[str, str] = MappingProxyType({})
Made = tuple[str, Program, Recipe]
Variant = tuple[str, Rewritten]


@dataclass
class Launched:
    """Programs for the device that a model lies on.

    Attributes:
        cuda: the device.
        store: where decisions on groups are kept.
        failures: reason to count, of what did not run.
    """

    cuda: Cuda
    store: Store
    failures: Counter[str] = field(default_factory=Counter)

    def plain(self, graph: Graph) -> Lowered:
        """A graph as library calls."""
        lowered = lower(graph, lambda cluster, kernels: kernels[0])
        return placed(lowered, self.cuda.device)

    def watch(self, seconds: float) -> Stopwatch:
        """Times parts of graphs here."""
        return Watch(lambda cluster, kernels: kernels[0], seconds, programs=self)

    def variants(
        self, graphs: Iterable[Variant], parameters: Callable[[Graph], Parameters],
        inputs: Sequence[Tensor], *, left: Callable[[], float], without: frozenset[str],
    ) -> Iterator[tuple[str, Program, Rewritten, bytes]]:  # fmt: skip
        """`programs` of each graph, named for it; the recipe as bytes."""
        for name, graph in graphs:
            for kind, program, recipe in self.programs(
                graph.graph, parameters(graph.graph), inputs, left=left, without=without
            ):
                yield f"{kind}-{name}" if name else kind, program, graph, region_bytes(recipe)

    def programs(
        self, graph: Graph, parameters: Parameters, inputs: Sequence[Tensor], *,
        left: Callable[[], float], without: frozenset[str] = frozenset(),
    ) -> Iterator[Made]:  # fmt: skip
        """What runs a graph, each tried on the inputs.

        Args:
            parameters: of the graph; constants lie on the device already.
            left: seconds that may still be spent.
            without: "generated", "regions": kinds that are left out.
        """
        plain = self.plain(graph)
        yield from self._tried("graphed", plain, graphs(plain, self.cuda), parameters, inputs)
        yield from self._beside("graphed-lanes", plain, parameters, inputs)
        if any(len(n.shape) == 4 for n in graph.parameters):
            bind = self._channels(plain)
            yield from self._tried("channels", plain, bind, parameters, inputs)
        if "generated" not in without and left() > 0:
            yield from self._tiles(graph, parameters, inputs, 0.6 * left())
        if "regions" not in without and left() > 0:
            yield from self._compiled(COMPILED, graph, parameters, inputs, None)
        if "regions" not in without and left() > SEARCH_S:
            yield from self._compiled(SEARCHED, graph, parameters, inputs, SEARCHING)

    def _tiles(
        self, graph: Graph, parameters: Parameters, inputs: Sequence[Tensor], seconds: float
    ) -> Iterator[Made]:
        tuned = Tuned(
            self.cuda.gpu, self.store, self.cuda, self.cuda.precision,
            until=time.monotonic() + seconds,
        )  # fmt: skip
        with closing(tuned):
            groups = grouped(graph, tuned)
            tuned.search(groups.clusters)
        self.failures.update(tuned.failures)
        lowered = tiled(graph, groups, tuned, self.cuda.device)
        chosen = {c.digest: tuned.decision(c).schedule for c in groups.clusters}
        schedules = {d: text for d, text in chosen.items() if text != LIBRARY}
        if lowered.kernels.get("triton"):
            bind = graphs(lowered, self.cuda)
            yield from self._tried(
                "tiles", lowered, bind, parameters, inputs, str(groups), schedules
            )  # fmt: skip
            yield from self._beside(
                "tiles-lanes", lowered, parameters, inputs, str(groups), schedules
            )  # fmt: skip

    def _beside(
        self, name: str, lowered: Lowered, parameters: Parameters, inputs: Sequence[Tensor],
        partition: str = "", schedules: Mapping[str, str] = NONE,
    ) -> Iterator[Made]:  # fmt: skip
        """The same in lanes, where there are several and memory for all values at a time."""
        body = forked(lowered, self.cuda)
        if body is not None and held(lowered) < ROOM * self.cuda.free()[0]:
            bind = graphs(lowered, self.cuda, body)
            yield from self._tried(name, lowered, bind, parameters, inputs, partition, schedules)

    def again(self, recipe: Recipe, graph: Graph, parameters: Parameters) -> Program:
        """The program of a recipe, which was made for the same graph.

        Raises:
            UnsupportedError: a kernel does not fit this device.
            WhetError: the recipe is for another graph.
        """
        kind, _, way = recipe.kind.partition("-")
        if kind == "tiles":
            groups = parse(graph, body_nodes(graph), recipe.partition)

            def decided(closed: Cluster) -> Module | None:
                text = recipe.schedules.get(closed.digest)
                return None if text is None else made(closed, text, self.cuda.gpu)

            lowered = tiled(graph, groups, decided, self.cuda.device)
            body = forked(lowered, self.cuda) if way else None
            return Program(lowered, parameters, graphs(lowered, self.cuda, body), ENGINE)
        if kind in (COMPILED, SEARCHED):
            mode = SEARCHING if kind == SEARCHED else None
            generator = torch.Generator().manual_seed(0)
            inputs = [example(n, generator).to(self.cuda.device) for n in graph.inputs]
            lowered, bind = self._region(graph, parameters, inputs, mode)
            return Program(lowered, parameters, bind, ENGINE)
        plain = self.plain(graph)
        if kind == "channels":
            return Program(plain, parameters, self._channels(plain), ENGINE)
        body = forked(plain, self.cuda) if way else None
        return Program(plain, parameters, graphs(plain, self.cuda, body), ENGINE)

    def _region(
        self, graph: Graph, parameters: Parameters, inputs: Sequence[Tensor], mode: str | None
    ) -> tuple[Lowered, Bind]:
        lowered = lower(graph, lambda cluster, kernels: kernels[0], literals="inline")
        lowered = placed(lowered, self.cuda.device)
        derived = lowered.derive(parameters.tensors())
        return lowered, graphs(lowered, self.cuda, compiled(lowered, inputs, derived, mode))

    def _compiled(
        self, name: str, graph: Graph, parameters: Parameters, inputs: Sequence[Tensor],
        mode: str | None,
    ) -> Iterator[Made]:  # fmt: skip
        try:
            lowered, bind = self._region(graph, parameters, inputs, mode)
        except Exception as fault:  # a compiler may raise anything
            self._failed(name, fault)
            return
        yield from self._tried(name, lowered, bind, parameters, inputs)

    def _channels(self, lowered: Lowered) -> Bind:
        body = lowered.function()

        def turned(*xs: Tensor) -> tuple[Tensor, ...]:
            found: tuple[Tensor, ...] = body(*map(channels_last, xs))
            return tuple(x.contiguous() for x in found)

        bind = graphs(lowered, self.cuda, turned)
        return lambda derived: bind(tuple(map(channels_last, derived)))

    def _tried(
        self, name: str, lowered: Lowered, bind: Bind, parameters: Parameters,
        inputs: Sequence[Tensor], partition: str = "", schedules: Mapping[str, str] = NONE,
    ) -> Iterator[Made]:  # fmt: skip
        cuda = self.cuda
        recipe = Recipe(name, cuda.gpu.name, cuda.precision, partition, dict(schedules))
        try:
            program = Program(lowered, parameters, bind, ENGINE)
            program(inputs)
            self.cuda.wait()
        except Exception as fault:  # what a library or a compiler raises is no reason to stop
            self._failed(name, fault)
            return
        bound = program.current()
        if isinstance(bound, Replayed) and bound.refused:
            self.failures[f"{name}: {bound.refused}"] += 1
        yield name, program, recipe

    def _failed(self, name: str, fault: Exception) -> None:
        said = fault.summary if isinstance(fault, WhetError) else type(fault).__name__
        self.failures[f"{name}: {said}: {first_line(fault)}"[:200]] += 1


@dataclass
class Watch(Stopwatch):
    """Times closed graphs on a device, as recordings of library calls."""

    programs: Launched | None = None

    def _timed(self, graphs: Sequence[Graph]) -> list[Timing]:
        assert self.programs is not None
        cuda = self.programs.cuda
        generator = torch.Generator().manual_seed(0)
        leaves = dict.fromkeys(n for g in graphs for n in g.nodes if n.is_leaf and n.op != "full")
        feeds = {n.name: example(n, generator).to(cuda.device) for n in leaves}
        made = []
        with torch.no_grad():
            for g in graphs:
                lowered = self.programs.plain(g)
                given = [feeds[n.name] for n in lowered.graph.inputs]
                body, held = lowered.function(), lowered.derive(feeds)
                made.append(cuda.recorded(lambda b=body, xs=(*given, *held): b(*xs)))  # type: ignore[misc]
            rows = cuda.raced([r.replay for r in made], 3 * ROUNDS)
        return [Timing(tuple(row)) for row in rows]


def placed(lowered: Lowered, device: torch.device) -> Lowered:
    """The same, with what makes tensors out of nothing making them on the device."""

    def on_device(step: Step) -> Step:
        def call(*xs: Any) -> Any:
            with device:
                return step.call(*xs)

        return replace(step, call=call)

    def there(steps: Sequence[Step]) -> tuple[Step, ...]:
        return tuple(on_device(s) if not s.node.args or s.kernel == "record" else s for s in steps)

    return replace(lowered, prologue=there(lowered.prologue), body=there(lowered.body))


def compiled(
    lowered: Lowered, inputs: Sequence[Tensor], derived: Sequence[Tensor], mode: str | None
) -> Callable[..., Any]:
    """A body as one region of torch's compiler, over inputs and derived values.

    Args:
        mode: of the compiler; None for its default.
    """
    from torch.fx.experimental.proxy_tensor import make_fx

    body = lowered.function()
    with torch.no_grad():
        traced = make_fx(lambda *xs: tuple(body(*xs)), tracing_mode="fake")(*inputs, *derived)
    made: Callable[..., Any] = torch.compile(traced, fullgraph=True, dynamic=False, mode=mode)
    return made


def channels_last(x: Tensor) -> Tensor:
    """An image or its weights with channels innermost; anything else as it is."""
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
