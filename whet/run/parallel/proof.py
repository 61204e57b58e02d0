"""The proof of a plan: every rank's program, run in one process, against the unsharded step.

    prove(program, orders, graph, gradients, wholes, batch) → Proof

All ranks run one after the other on the reference of every exchange (`exchange.Together`), which
refuses a move that asks a group for what none of it has. Of a forward pass alone, what is handed
out is compared, part by part. Else the loss, every gradient, every updated
parameter and buffer is then put together from the ranks' parts and held against the graph itself,
evaluated by the records' reference semantics, and a stock optimizer on whole parameters: in
float64, with several draws of weights and samples.

The reference says what an exchange means; what ranks run is another piece of code. So the first
draw is taken once more with the ranks' own exchanges (`torchdist.Mirrored`), whose collectives
torch carries out in its `LocalTensorMode`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from whet.backend.library import run_opaque
from whet.errors import WhetError
from whet.ir.graph import Graph
from whet.ir.interp import FLOAT64, evaluate_nodes
from whet.parallel.cut import known
from whet.parallel.library import MICRO
from whet.parallel.parts import Row, rows, starts
from whet.parallel.pipeline import Order
from whet.parallel.program import Key, Program
from whet.parallel.traffic import issued
from whet.run.parallel import answer, checkpoint
from whet.run.parallel.exchange import Exchanger, Grid, Parts, Together, opened
from whet.run.parallel.message import Mailbox, Routes, grids
from whet.run.parallel.runner import Runner
from whet.run.parallel.torchdist import Mirrored, mirrors, pretended
from whet.run.parallel.weights import Make

TOLERANCE = 1e-9
LOST = 1e-6  # of the largest gradient: what is smaller is held to that gradient's own rounding


class PlanRefused(WhetError):
    """A plan that is not equal to the unsharded step, deadlocks, or does not fit."""


class Unproven(PlanRefused):
    """A plan of which nobody knows whether it is equal: it was not, or could not be, compared."""


@dataclass(frozen=True, slots=True)
class Proof:
    """What was compared.

    Attributes:
        error: the largest relative difference; relative to the largest element of a value, and of
            gradients that cancel out (those of a bias that no result depends on) to `LOST` of the
            largest gradient: 1e-9 of that is less than the rounding of one such element.
        values: how many were compared in each draw: the loss, gradients, parameters, buffers.
        seeds: draws.
        ranks: of the program that was run.
        exchanges: collectives and messages of one step, over all ranks.
        reduced: it is of the plan's twin at reduced sizes.
        mirrored: the ranks' own exchanges were compared too.
    """

    error: float
    values: int
    seeds: int
    ranks: int
    exchanges: int
    reduced: bool = False
    mirrored: bool = False

    def __str__(self) -> str:
        also = ", and once by the ranks' own exchanges" if self.mirrored else ""
        of = "its twin at reduced sizes" if self.reduced else "the plan as it is"
        return (
            f"{self.values} values equal on {self.ranks} ranks, {self.seeds} draws{also} (largest"
            f" difference {self.error:.1g}): {of}"
        )


def together(program: Program, exchanger: Callable[[Grid], Exchanger] = Together) -> Runner:
    """The sequential reference executor: all ranks of a program in this process."""
    places = grids(program)
    ranks = {s: program.members(s) for s in range(len(program.stages))}
    made: Mapping[int, Exchanger] = {s: exchanger(g) for s, g in enumerate(places)}
    return Runner(program, places, ranks, made, Mailbox(Routes(program, places)))


def prove(
    program: Program, orders: Sequence[Order], graph: Graph, gradients: Sequence[str],
    wholes: Mapping[str, Tensor], batch: Mapping[str, Tensor], *, make: Make, seeds: int = 2,
    over: Callable[[], bool] = lambda: False,
) -> Proof:  # fmt: skip
    """Run a program in one process and compare.

    Args:
        graph: the step; its outputs are the loss and one gradient for each of `gradients`.
        wholes, batch: in float64.
        make: the optimizer.
        over: whether the time is up; what was drawn until then counts.

    Raises:
        Unproven: the time was up before the first draw.
        PlanRefused: something differs by more than 1e-9; says what.
    """
    worst, values, moved, drawn = 0.0, 0, 0, 0

    def draw(seed: int, runner: Runner) -> tuple[float, int, int]:
        generator = torch.Generator().manual_seed(seed)
        fed = {k: _shuffled(t, generator) for k, t in batch.items()}
        if not program.model.training:
            given = {k: _scaled(t, generator) for k, t in wholes.items()}
            return _forward(runner, orders, graph, given, fed)
        trained = set(gradients)
        given = {k: _drawn(t, generator, trained=k in trained) for k, t in wholes.items()}
        return _once(runner, orders, graph, gradients, given, fed, make)

    for seed in range(seeds):
        if over():
            break
        error, values, moved = draw(seed, together(program))
        worst, drawn = max(worst, error), drawn + 1
    if not drawn:
        raise Unproven("the time for the proof was up before anything was compared")
    mirrored = mirrors() and not over()
    if mirrored:
        with pretended(program.ranks):
            worst = max(worst, draw(0, together(program, Mirrored))[0])
    return Proof(worst, values, drawn, program.ranks, moved, mirrored=mirrored)


def _drawn(t: Tensor, generator: torch.Generator, *, trained: bool) -> Tensor:
    if not (trained and t.is_floating_point()):
        return t.detach().clone()
    noise = torch.randn(t.shape, dtype=t.dtype, generator=generator)
    return t.detach() + 0.05 * noise


def _scaled(t: Tensor, generator: torch.Generator) -> Tensor:
    """Weights of which nobody says which are trained: signs stay, variances do not get negative."""
    if not t.is_floating_point():
        return t.detach().clone()
    noise = 0.05 * torch.rand(t.shape, dtype=t.dtype, generator=generator)
    return t.detach() * (1 + noise) + torch.where(t == 0, noise, 0)


def _shuffled(t: Tensor, generator: torch.Generator) -> Tensor:
    """Numbers anew; of whole numbers, those that there are in another order."""
    if t.is_floating_point():
        return torch.randn(t.shape, dtype=t.dtype, generator=generator)
    order = torch.randperm(t.numel(), generator=generator)
    return t.reshape(-1)[order].reshape(t.shape)


def _forward(
    runner: Runner, orders: Sequence[Order], graph: Graph, wholes: Mapping[str, Tensor],
    batch: Mapping[str, Tensor],
) -> tuple[float, int, int]:  # fmt: skip
    """As `_once`, of a forward pass."""
    program = runner.program
    runner.place(wholes, torch.optim.SGD)
    runner.step(batch, orders)
    wanted = list(dict.fromkeys(graph.outputs))
    found = evaluate_nodes(graph, {**wholes, **batch}, FLOAT64, run_opaque, wanted)
    compare = _Compare()
    for p in answer.parts(runner):
        whole = found[graph.outputs[p.number]]
        compare(f"result {p.number}", p.of(whole.contiguous()), p.open, p.rank, _size(whole))
    mail = runner.post
    assert isinstance(mail, Mailbox)
    return compare.worst, len(compare.names), _exchanges(program) + len(mail.log)


def _once(
    runner: Runner, orders: Sequence[Order], graph: Graph, gradients: Sequence[str],
    wholes: Mapping[str, Tensor], batch: Mapping[str, Tensor], make: Make,
) -> tuple[float, int, int]:  # fmt: skip
    program = runner.program
    runner.place(wholes, make)
    before = [tuple(t for t in o if t.name != "update") for o in orders]
    runner.step(batch, before)
    wanted = list(dict.fromkeys(graph.results))
    found = evaluate_nodes(graph, {**wholes, **batch}, FLOAT64, run_opaque, wanted)
    expected = dict(zip(gradients, (found[g] for g in graph.outputs[1:]), strict=True))
    compare = _Compare()
    least = LOST * max((_size(g) for g in expected.values()), default=0.0)
    last = len(program.stages) - 1
    key = program.stages[last].loss
    assert key is not None
    losses = runner.losses
    if rest := tuple(a for a, _ in key.at.partial if a != MICRO):
        losses = runner.exchangers[last].combine(losses, rest, "sum")
    for r, t in losses.items():
        compare("the loss", found[graph.outputs[0]], t, r)
    made: dict[str, Tensor] = {}
    for row in runner.weights.values():
        for w in row:
            for r, flat in w.pieces.items():
                for p, box, low, high in checkpoint.pieces(w, r):
                    want = expected[p.node.name]
                    for d, (start, size) in enumerate(zip(box.start, box.shape, strict=True)):
                        want = want.narrow(d, start, size)
                    scale = max(_size(expected[p.node.name]), least)
                    got = flat.narrow(0, low, high - low).view(box.shape)
                    compare(f"the gradient of {p.node.name}", want, got, r, scale)
                    there = made.setdefault(p.node.name, expected[p.node.name].clone())
                    for d, (start, size) in enumerate(zip(box.start, box.shape, strict=True)):
                        there = there.narrow(d, start, size)
                    there.copy_(got)
    for s in range(len(program.stages)):
        runner.turn(next(t for o in orders for t in o if t.name == "update" and t.stage == s),
                    last=False)  # fmt: skip
    # From the ranks' own gradients, which are equal: an optimizer that divides by a gradient's size
    # would make much of the rounding of those that cancel out.
    after = _updated(wholes, expected | made, make)
    after |= {leaf.name: found[n] for leaf, n in graph.updates}
    for s, k, parts in held(runner):
        for r, t in parts.items():
            rows_, first = _rows(runner, s, k, r)
            want = opened_part(after.get(k.node.name, wholes[k.node.name]), rows_, first)
            compare(f"{k.node.name} after the step", want, opened(t, rows_), r)
    mail = runner.post
    assert isinstance(mail, Mailbox)
    return compare.worst, len(compare.names), _exchanges(program) + len(mail.log)


class _Compare:
    """Holds what ranks have against what they should have."""

    def __init__(self) -> None:
        self.worst = 0.0
        self.names: set[str] = set()

    def __call__(
        self, what: str, want: Tensor, got: Tensor, rank: int, scale: float | None = None
    ) -> None:
        self.names.add(what)
        if not want.numel():
            return
        size = max(_size(want) if scale is None else scale, 1e-12)
        error = float((got.double() - want.double()).abs().max()) / size
        if not error <= TOLERANCE:
            raise PlanRefused(
                "a plan does not compute what the model computes",
                expected=f"{what} equal to {TOLERANCE}", got=f"off by {error:.3g} on rank {rank}",
            )  # fmt: skip
        self.worst = max(self.worst, error)


def _size(t: Tensor) -> float:
    """The largest element."""
    return float(t.abs().max()) if t.numel() else 0.0


def _updated(
    wholes: Mapping[str, Tensor], expected: Mapping[str, Tensor], make: Make
) -> dict[str, Tensor]:
    found = {}
    for name, g in expected.items():
        p = torch.nn.Parameter(wholes[name].detach().clone(), requires_grad=False)
        p.grad = g
        make([p]).step()
        found[name] = p.detach()
    return found


def held(runner: Runner) -> list[tuple[int, Key, Parts]]:
    """(stage, key, parts) of every parameter and buffer, gathered where it is kept in pieces."""
    found = []
    for (s, _), row in runner.weights.items():
        for w in row:
            w.fetch()
            found += [(s, k, {r: t.clone() for r, t in p.items()}) for k, p in w.views().items()]
            w.drop()
    for s, env in runner.frozen.items():
        found += [(s, k, p) for k, p in env.items()]
    return found


def _rows(runner: Runner, s: int, key: Key, rank: int) -> tuple[tuple[Row, ...], tuple[int, ...]]:
    grid: Grid = runner.grids[s]
    found = rows(tuple(map(known, key.node.shape)), runner.marks(s, key.node), key.at, grid.axes)
    return found, starts(found, grid.at(rank, 0), grid.axes)


def opened_part(whole: Tensor, rows_: Sequence[Row], first: Sequence[int]) -> Tensor:
    """A part of a whole value, with a dim for each row."""
    t = whole.reshape([r.size for r in rows_])
    for k, (r, begin) in enumerate(zip(rows_, first, strict=True)):
        t = t.narrow(k, begin, r.local)
    return t


def _exchanges(program: Program) -> int:
    return sum(issued(program).values())
