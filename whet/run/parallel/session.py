"""One rank of a run: steps, checks of the replicas, checkpoints, and who is to blame.

    train(program, wholes, batches, options) → Run

Every rank calls this with the same arguments. A step is one of training, or a forward pass. What
is reported (losses, sums of replicas) travels apart from the collectives of the step, which are the
plan's.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from whet.errors import WhetError
from whet.parallel.cut import known
from whet.parallel.library import MICRO
from whet.parallel.parts import rows, starts
from whet.parallel.pipeline import Order
from whet.parallel.program import Key, Program
from whet.run.parallel import answer, checkpoint, heap
from whet.run.parallel.exchange import Collectives, opened
from whet.run.parallel.message import Routes, grids
from whet.run.parallel.runner import Runner, is_last
from whet.run.parallel.torchdist import Sends, groups
from whet.run.parallel.watch import RankFailed, Watch, disagreement
from whet.run.parallel.weights import Make

Batches = Callable[[int], Mapping[str, Tensor]]
TOLERANCE: Mapping[torch.dtype, float] = {torch.float64: 1e-12, torch.float32: 1e-5}

OPTIMIZERS: Mapping[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9, fused=True),
    "adamw": lambda p, lr: torch.optim.AdamW(p, lr=lr, fused=True),
}


@dataclass(frozen=True, slots=True)
class Options:
    """How a run goes.

    Attributes:
        steps: to take in all, those of a restored checkpoint among them.
        optimizer, rate: one of `OPTIMIZERS`, and its learning rate.
        check: replicas are compared every so many steps; 0: never.
        folder: of checkpoints; None writes none.
        every: steps between two checkpoints.
        resume: continue from the last checkpoint in the folder.
    """

    steps: int = 10
    optimizer: str = "adamw"
    rate: float = 1e-3
    check: int = 5
    folder: Path | None = None
    every: int = 10
    resume: bool = False

    def make(self) -> Make:
        """Makes an optimizer for a list of parameters."""
        found = OPTIMIZERS.get(self.optimizer)
        if found is None:
            raise WhetError("no such optimizer", expected=", ".join(OPTIMIZERS), got=self.optimizer)
        return lambda ps: found(ps, lr=self.rate)


@dataclass(slots=True)
class Run:
    """What came of it, on one rank.

    Attributes:
        losses: of each step taken, on the ranks of the last stage; elsewhere empty.
        seconds: of each step.
        first: the step that it began with.
        saved: the last checkpoint.
    """

    rank: int
    first: int = 0
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    saved: Path | None = None


class Session:
    """A program on one rank of a process group.

    Args:
        program: of as many ranks as the group has.
        orders: of its groups of devices; see `whet.parallel.pipeline.orders`.
        wholes: whole parameters and buffers by name; this rank keeps its parts.
        watch: signs of life.
    """

    def __init__(
        self, program: Program, orders: Sequence[Order], wholes: Mapping[str, Tensor], make: Make,
        watch: Watch,
    ) -> None:  # fmt: skip
        self.program, self.watch, self.rank = program, watch, watch.rank
        heap.keep()
        if program.ranks != watch.size:
            raise WhetError(
                "the plan is for another number of ranks", expected=program.ranks, got=watch.size
            )
        self.grids = grids(program)
        stages = program.stages_of(self.rank)
        rows_ = groups(program, self.grids, self.rank, watch.note)
        self.post = Sends(Routes(program, self.grids), watch.note)
        self.runner = Runner(
            program, self.grids, dict.fromkeys(stages, (self.rank,)),
            {s: Collectives(self.grids[s], rows_[s]) for s in stages}, self.post,
        )  # fmt: skip
        self.runner.place(wholes, make)
        (self.order,) = (o for o in orders if any(t.stage in stages for t in o))
        # What is there now stays; to look through it for garbage took longer than a step.
        gc.unfreeze()
        gc.collect()
        gc.freeze()

    def step(self, batch: Mapping[str, Tensor]) -> None:
        """One step of training, or one forward pass."""
        self.runner.begin(batch)
        for k, turn in enumerate(self.order):
            self.runner.turn(turn, last=is_last(turn, self.order, k))
        self.watch.note("the end of messages")
        self.post.settle()
        self.watch.computing()

    def loss(self) -> float | None:
        """That of the step, on the ranks that have it."""
        last = len(self.program.stages) - 1
        key = self.program.stages[last].loss
        if key is None or not self.runner.losses:
            return None
        rest = tuple(a for a, _ in key.at.partial if a != MICRO)
        parts = self.runner.losses
        if rest:
            parts = self.runner.exchangers[last].combine(parts, rest, "sum")
        return float(parts[self.rank])

    def held(self) -> list[tuple[Key, int, Tensor]]:
        """(key, stage, part) of every parameter and buffer; gathered where it is kept in pieces."""
        found = []
        for (s, _), row in self.runner.weights.items():
            for w in row:
                w.fetch()
                found += [(k, s, p[self.rank].clone()) for k, p in w.views().items()]
                w.drop()
        for s, env in self.runner.frozen.items():
            found += [(k, s, p[self.rank]) for k, p in env.items()]
        return found

    def agree(self) -> None:
        """Compare what replicas hold.

        Raises:
            RankFailed: one differs from the others, or holds no numbers.
        """
        sums: dict[str, tuple[float, float]] = {}
        loosest = 0.0
        for (s, _), row in self.runner.weights.items():
            for w in row:
                for key, parts in ({} if w.zero == 3 else w.views()).items():
                    t = parts[self.rank].double()
                    first = starts(
                        self._rows(s, key), self.grids[s].at(self.rank, 0), self._axes(s)
                    )
                    loosest = max(loosest, TOLERANCE.get(parts[self.rank].dtype, 1e-2))
                    sums[f"{key.node.name} {first}"] = float(t.sum()), float(t.abs().sum())
                if w.zero == 3:
                    t = w.own[self.rank].double()
                    name = f"{w.bucket.parameters[0].node.name} of {self.rank}"
                    sums[name] = float(t.sum()), float(t.abs().sum())
        self.watch.note("comparing replicas")
        found: list[Any] = [None] * self.watch.size
        dist.all_gather_object(found, sums)
        self.watch.computing()
        text = disagreement(found, loosest)
        if text is not None:
            raise RankFailed(text, where=f"step {self.watch.step}")

    def _axes(self, s: int) -> tuple[tuple[str, int], ...]:
        return self.program.stages[s].axes

    def _rows(self, s: int, key: Key) -> Any:
        shape = tuple(map(known, key.node.shape))
        return rows(shape, self.runner.marks(s, key.node), key.at, self._axes(s))

    def wholes(self) -> dict[str, Tensor] | None:
        """Every parameter and buffer in whole, on rank 0; for models that fit there."""
        own = []
        for key, s, t in self.held():
            own.append((key.node.name, tuple(map(known, key.node.shape)), self._rows(s, key),
                        starts(self._rows(s, key), self.grids[s].at(self.rank, 0), self._axes(s)), t))  # fmt: skip # noqa: E501
        found: list[Any] | None = [None] * self.watch.size if self.rank == 0 else None
        dist.gather_object(own, found)
        if found is None:
            return None
        made: dict[str, Tensor] = {}
        for row in found:
            for name, shape, rows_, first, t in row:
                whole = made.setdefault(name, torch.full(shape, 0, dtype=t.dtype))
                there = whole.view([r.size for r in rows_])
                for k, (r, begin) in enumerate(zip(rows_, first, strict=True)):
                    there = there.narrow(k, begin, r.local)
                there.copy_(opened(t, rows_))
        return made

    def answer(self) -> tuple[Tensor, ...] | None:
        """The results of the last forward pass, on rank 0."""
        found: list[Any] | None = [None] * self.watch.size if self.rank == 0 else None
        dist.gather_object(answer.parts(self.runner), found)
        return None if found is None else answer.joined(p for row in found for p in row)


def train(session: Session, batches: Batches, options: Options) -> Run:
    """All steps of a run.

    Args:
        batches: of a step, whole inputs by name; the same on every rank.

    Raises:
        RankFailed: a rank died, hangs, failed or diverges; the message names it. The last
            checkpoint is on disk.
    """
    watch, run = session.watch, Run(session.rank)
    try:
        if options.resume and options.folder is not None:
            found = checkpoint.checkpoints(options.folder)
            if found:
                run.first = checkpoint.restore(session.runner, session.rank, found[-1])
                for row in session.runner.weights.values():
                    for w in row:
                        w.settle()
                run.saved = found[-1]
        for step in range(run.first, options.steps):
            watch.begin(step)
            began = time.perf_counter()
            session.step(batches(step))
            run.seconds.append(time.perf_counter() - began)
            loss = session.loss()
            if loss is not None:
                run.losses.append(loss)
            learns = session.program.model.training
            if learns and options.check and (step + 1) % options.check == 0:
                session.agree()
            if options.folder is not None and (step + 1) % options.every == 0:
                watch.note("writing a checkpoint")
                run.saved = checkpoint.save(session.runner, session.rank, options.folder, step + 1)
                watch.computing()
    except RankFailed:
        raise
    except Exception as fault:
        text = watch.blame(fault)
        if text is None:
            lines = str(fault).strip().splitlines()
            watch.say(f"{type(fault).__name__}: {lines[0] if lines else ''}")
            raise
        raise RankFailed(
            text, where=f"rank {session.rank}, step {watch.step}, {watch.doing or 'computing'}",
            hint=f"continue from {run.saved} with --resume" if run.saved else None,
        ) from fault  # fmt: skip
    return run
