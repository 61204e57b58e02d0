"""A plan and its model together: lowered, proven, and run.

planned(text) → Planned          the program of every rank, and what the simulator says of it
refuse(planned)                  unless it is legal, free of deadlock, fits, and is equal
rank(planned, options)           one rank of a run
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from whet.backend.library import run_opaque
from whet.capture.rewritten import again, of_plan, steps
from whet.capture.training import Training, training
from whet.errors import WhetError
from whet.ir.graph import Node
from whet.ir.interp import NATIVE, evaluate_nodes
from whet.ir.types import DType
from whet.machine import topology
from whet.parallel import executable, planfile
from whet.parallel.choice import Choice
from whet.parallel.compose import program
from whet.parallel.library import Library
from whet.parallel.pipeline import Order, deadlock, orders
from whet.parallel.placed import Optimizer, Placed
from whet.parallel.program import Chosen, NotExecutable, Program
from whet.parallel.strategy import Part, Strategy
from whet.run.parallel.proof import PlanRefused, Proof, Unproven, prove
from whet.run.parallel.session import Options, Run, Session, train
from whet.run.parallel.torchdist import connect
from whet.run.parallel.watch import Watch

LARGEST = 1 << 25  # elements of parameters of a model that is proven as it is
RANKS = 8  # likewise


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan, ready.

    Attributes:
        placed: what the simulator sees.
        program: what the ranks do.
        chosen: the choices that it was made of.
    """

    name: str
    dtype: str
    training: Training
    library: Library
    strategy: Strategy
    placed: Placed
    program: Program
    chosen: Chosen

    @property
    def orders(self) -> tuple[Order, ...]:
        return orders(self.placed)


def optimizer(dtype: str) -> Optimizer:
    """Adam; with a master copy where weights are narrow."""
    return Optimizer(8, 4, 12) if dtype in ("float32", "float64") else Optimizer(12, 4, 12)


def planned(text: str, model: str | None = None, machine: str | None = None) -> Planned:
    """Read a plan for its model.

    Args:
        model, machine: where they are not to be those that the plan names.

    Raises:
        PlanFileError: it is no plan, or what it is for has changed; says what.
        NotExecutable: it is for simulation only.
    """
    data = planfile.load(text)
    source: Mapping[str, str] = data.get("source", {})
    name, cluster = model or source.get("model"), machine or source.get("machine")
    if name is None or cluster is None:
        raise WhetError(
            "the plan does not say its model and machine", got=", ".join(source) or "neither",
            hint="give --model and --machine",
        )  # fmt: skip
    dtype = str(source.get("dtype", "float32"))
    step = of_plan(data, name)
    place = topology(cluster)
    strategy = planfile.read(text, step.model, place.fingerprint())
    library = Library.of(step.model, place, optimizer(dtype))
    return lowered(name, dtype, step, library, strategy, data)


def lowered(
    name: str, dtype: str, step: Training, library: Library, strategy: Strategy,
    data: Mapping[str, Any] | None = None,
) -> Planned:  # fmt: skip
    """A strategy with the choices of a plan, or those that the library finds."""

    def first(part: Part, place: int) -> Mapping[Node, Choice] | None:
        return planfile.choices(dict(data), library, part, place) if data else None

    chosen = executable.chosen(library, strategy, first)
    return completed(name, dtype, step, library, strategy, chosen)


def completed(
    name: str, dtype: str, step: Training, library: Library, strategy: Strategy, chosen: Chosen
) -> Planned:
    """A strategy whose choices are known."""
    made = program(step.model, strategy, chosen)
    placed = library.place(strategy)
    return Planned(name, dtype, step, library, strategy, placed, made, chosen)


def refuse(
    plan: Planned, *, seeds: int = 2, make: Options | None = None,
    over: Callable[[], bool] = lambda: False,
) -> Proof:  # fmt: skip
    """Refuse a plan that is not fit to run.

    The proof is of the plan itself where its model is small enough, and else of its twin at reduced
    sizes; in float64 in any case.

    Args:
        over: whether the time is up, as `prove` has it.

    Raises:
        Unproven: it was not compared; says why.
        PlanRefused: it can deadlock, does not fit in memory, or is not equal to the model.
    """
    from whet.capture.twin import twin

    check(plan)
    name, size = plan.name, sum(t.numel() for t in plan.training.wholes().values())
    count, most = plan.training.model.batch, max(len(plan.strategy.parts), plan.program.ranks)
    most = max(most, plan.strategy.microbatches)
    reduced = size > LARGEST or plan.program.ranks > RANKS
    if reduced:
        ours = name.startswith(("models:", "zoo:")) or ":" not in name
        if ours:
            name = name.removesuffix(":small") + ":small"
        elif size > LARGEST:
            raise Unproven(
                "the model is too large to be proven as it is", expected=f"{LARGEST} elements",
                got=size, hint="find the plan for a smaller build of the model, and prove that",
            )  # fmt: skip
        most = 2
        count = 2 * most * most
    step = training(name, count, "float64", inference=not plan.training.model.training)
    step = again(step, [s.name for s in steps(plan.training)])
    small = twin(plan, step, most=most)
    wide = dict(step.wholes())
    narrow = [
        n for n in step.joint.graph.nodes
        if not n.is_leaf and n.dtype.is_float and n.dtype is not DType.f64
    ]  # fmt: skip
    if narrow and name.endswith((".onnx", ".pt2")):
        raise Unproven(
            "the file computes in its own types, whatever it is given", expected="float64",
            got=narrow[0].type, where=narrow[0],
        )  # fmt: skip
    proof = prove(
        small.program, small.orders, step.reference, step.joint.gradients, wide,
        step.feeds(step.inputs, step.targets), make=(make or Options()).make(), seeds=seeds,
        over=over,
    )  # fmt: skip
    return replace(proof, reduced=reduced)


def attempted(
    name: str, dtype: str, step: Training, library: Library, strategy: Strategy, *, budget: float
) -> Proof | WhetError:
    """The proof of what a search found, or why there is none.

    Args:
        budget: seconds.

    Raises:
        PlanRefused: it was compared and is not equal, can deadlock, or does not fit.
    """
    from whet.capture.twin import NoTwin

    end = time.monotonic() + budget
    try:
        plan = lowered(name, dtype, step, library, strategy)
        return refuse(plan, over=lambda: time.monotonic() > end)
    except (NotExecutable, NoTwin, Unproven) as why:
        return why


def check(plan: Planned) -> None:
    """The part of `refuse` that computes nothing: deadlock and memory.

    Raises:
        PlanRefused: it can deadlock, or does not fit.
    """
    if circle := deadlock(plan.placed):
        raise PlanRefused("the plan can deadlock", got=circle)
    ran = plan.library.simulator.simulate(plan.placed)
    if not ran.fits:
        worst = max(range(len(ran.memory)), key=lambda g: ran.memory[g] / ran.capacity[g])
        raise PlanRefused(
            "the plan does not fit in memory", expected=f"{ran.capacity[worst]} bytes",
            got=f"{ran.memory[worst]} bytes", where=f"stage {worst}",
        )  # fmt: skip


def rank(plan: Planned, options: Options, timeout: float) -> tuple[Run, dict[str, Tensor] | None]:
    """One rank of a run, in a process that a launcher started.

    Returns:
        What came of it; on rank 0 also the whole parameters at the end, or, of a forward pass
        alone, what the last one handed out, as `result 0` and so on.

    Raises:
        WhetError: checkpoints of a plan that trains nothing.
        RankFailed: this rank or another ended the run.
    """
    step = plan.training
    if options.folder is not None and not step.model.training:
        raise WhetError(
            "a forward pass alone leaves nothing to save", expected="a plan of a training step",
            got=f"checkpoints in {options.folder}", hint="leave --checkpoints out",
        )  # fmt: skip
    here, size, store = connect(timeout)
    watch = Watch(store, here, size, patience=timeout)
    watch.start()
    try:
        session = Session(plan.program, plan.orders, step.wholes(), options.make(), watch)
        run = train(session, lambda k: batch(step, k), options)
        if step.model.training:
            return run, session.wholes()
        found = session.answer()
        return run, None if found is None else named(found)
    finally:
        watch.stop()


def named(results: Sequence[Tensor]) -> dict[str, Tensor]:
    """Results by name: `result 0` and so on."""
    return {f"result {k}": t for k, t in enumerate(results)}


def batch(step: Training, number: int) -> dict[str, Tensor]:
    """The samples of a step by the names of the graph's inputs."""
    return step.feeds(*turned(step, number), number)


def turned(step: Training, number: int) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Inputs and targets that the model came with, in an order of the step's own."""
    count = step.model.batch

    def one(t: Tensor) -> Tensor:
        return torch.roll(t, number, 0) if t.dim() and t.shape[0] == count else t

    inputs, targets = pytree.tree_map_only(Tensor, one, (step.inputs, step.targets))
    return inputs, targets


def single(step: Training, options: Options) -> tuple[list[float], dict[str, Tensor]]:
    """The same steps in one process, by autograd and a stock optimizer; the module is trained.

    Where the step draws flags, the graph is computed instead, with the flags that ranks are given.
    """
    if step.joint.drawn:
        return _by_graph(step, options)
    module = step.module
    made = options.make()([p for p in module.parameters() if p.requires_grad])
    losses = []
    for k in range(options.steps):
        inputs, targets = turned(step, k)
        made.zero_grad()
        loss = step.loss(module(*inputs), *targets)
        loss.backward()
        made.step()
        losses.append(float(loss.detach()))
    return losses, {k: t.detach() for k, t in step.wholes().items()}


def forward(step: Training, options: Options) -> dict[str, Tensor]:
    """What the module itself answers to the last batch of a run, named as `rank` names it.

    Raises:
        WhetError: it answers with other tensors than its graph has results.
    """
    inputs, _ = turned(step, options.steps - 1)
    with torch.no_grad():
        leaves = pytree.tree_leaves(step.module(*inputs))
    found = [t for t in leaves if isinstance(t, Tensor)]
    if len(found) != len(step.joint.graph.outputs):
        raise WhetError(
            "a module's answer has other tensors than its graph",
            expected=len(step.joint.graph.outputs), got=len(found),
        )  # fmt: skip
    return named(found)


def _by_graph(step: Training, options: Options) -> tuple[list[float], dict[str, Tensor]]:
    graph, trained = step.reference, step.joint.gradients
    wholes = {k: t.detach().clone() for k, t in step.wholes().items()}
    wholes |= {k: nn.Parameter(wholes[k], requires_grad=False) for k in trained}
    made = options.make()([wholes[k] for k in trained])  # type: ignore[misc]
    wanted, losses = list(dict.fromkeys(graph.results)), []
    for k in range(options.steps):
        found = evaluate_nodes(graph, {**wholes, **batch(step, k)}, NATIVE, run_opaque, wanted)
        for name, g in zip(trained, graph.outputs[1:], strict=True):
            wholes[name].grad = found[g]
        made.step()
        wholes |= {leaf.name: found[n] for leaf, n in graph.updates}
        losses.append(float(found[graph.outputs[0]]))
    return losses, wholes


def compared(
    step: Training, options: Options, losses: Sequence[float], wholes: Mapping[str, Tensor] | None
) -> dict[str, Any]:
    """How far a run is from the same steps in one process, relatively.

    Returns:
        `loss_error`: the largest of any step; `parameter_error`: the largest difference of a
        parameter or buffer, relative to its largest element; `parameter`: its name. Of a forward
        pass alone the same of results, as `result_error` and `result`.
    """
    if not step.model.training:
        worst, farthest = _farthest(forward(step, options), wholes or {})
        return {"result_error": worst, "result": farthest}
    expected, after = single(step, options)
    apart = max(abs(a - b) / max(abs(b), 1e-30) for a, b in zip(losses, expected, strict=True))
    worst, farthest = _farthest(after, wholes or {})
    return {"loss_error": apart, "parameter_error": worst, "parameter": farthest}


def _farthest(after: Mapping[str, Tensor], got: Mapping[str, Tensor]) -> tuple[float, str]:
    """The largest difference, relative to the largest element of a tensor, and which it is."""
    worst, farthest = 0.0, ""
    for name, t in got.items():
        want = after[name].double()
        size = max(float(want.abs().max()) if want.numel() else 0.0, 1e-30)
        off = float((t.double() - want).abs().max()) / size if want.numel() else 0.0
        if off > worst:
            worst, farthest = off, name
    return worst, farthest
