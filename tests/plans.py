"""Plans of small models, for tests and benches of their execution: no search, one line each.

PLANS["tensor"] = stages, data, tensor, microbatches, …
planned("dlrm", PLANS["tensor"])
"""

from __future__ import annotations

from dataclasses import dataclass

from whet.capture.planned import Planned, lowered, optimizer
from whet.capture.training import training
from whet.machine import topology
from whet.parallel.library import Library
from whet.parallel.strategy import Recipe, Strategy, even

FEEDS_BY_BATCH = ("resnet50",)  # samples depend on each other: one microbatch


def learning(model: str, dtype: str) -> dict[str, object]:
    """The optimizer that a plan's run is compared under.

    Adam divides a gradient by its own size. Where one cancels out (a shift that the next batch norm
    takes away) or where rounding is coarse, two equal runs differ in that alone: those take SGD.
    """
    if dtype != "float64" or model in FEEDS_BY_BATCH:
        return {"optimizer": "sgd", "rate": 1e-2}
    return {"optimizer": "adamw", "rate": 1e-3}


@dataclass(frozen=True)
class Plan:
    """A plan by its degrees."""

    stages: int = 1
    data: int = 1
    tensor: int = 1
    micro: int = 1
    schedule: str = "1f1b"
    zero: int = 0
    recompute: bool = False
    style: str = "free"
    chunks: int = 1
    weights: tuple[float, ...] = ()  # of blocks, for uneven stages
    tensors: tuple[int, ...] = ()  # of each stage, where they differ
    pinned: tuple[str, ...] = ("data",)

    @property
    def ranks(self) -> int:
        return self.stages * self.data * self.tensor


# On two ranks, and on four. Tokens: nothing but parameters is cut, so that tensors have to be.
PLANS = {
    "data": Plan(data=2),
    "tensor": Plan(tensor=2, style="tokens"),
    "pipeline": Plan(stages=2, micro=4),
    "gpipe": Plan(stages=2, micro=4, schedule="gpipe", recompute=True),
    "interleaved": Plan(stages=2, micro=4, schedule="interleaved", chunks=2),
    "fsdp": Plan(data=2, zero=3, micro=2),
    "zero1": Plan(data=2, zero=1, micro=2),
    "data x tensor": Plan(data=2, tensor=2, style="tokens", zero=1),
    "pipeline x data": Plan(stages=2, data=2, micro=2, zero=2),
    "pipeline x tensor": Plan(stages=2, tensor=2, style="tokens", micro=2, recompute=True),
    "fsdp x 4": Plan(data=4, zero=3),
    "deep": Plan(stages=4, micro=4, schedule="gpipe"),
}


def strategy(library: Library, plan: Plan, *, one: bool = False) -> Strategy:
    """The strategy of a plan; `one` microbatch where the model asks for it."""
    chunks = 1 if one else plan.chunks  # an interleaved schedule needs several microbatches
    weights = list(plan.weights) or list(library.weights())
    recipes = [
        Recipe((("data", plan.data * plan.tensor // t), ("tensor", t)),
               frozenset(plan.pinned), plan.style)
        for t in plan.tensors or [plan.tensor] * plan.stages
    ]  # fmt: skip
    size = plan.data * plan.tensor
    parts = even(
        [weights] * plan.stages,
        [tuple(range(k * size, (k + 1) * size)) for k in range(plan.stages)],
        recipes, chunks=chunks, zero=plan.zero, recompute=plan.recompute,
    )  # fmt: skip
    schedule = "1f1b" if one else plan.schedule
    return Strategy(parts, 1 if one else plan.micro, schedule, chunks, "test")


def planned(
    model: str, plan: Plan, dtype: str = "float64", batch: int = 8, *, inference: bool = False
) -> Planned:
    """A plan on a model of `whet.capture.models` at small scale."""
    name = f"models:{model}:small"
    step = training(name, batch, dtype, inference=inference)
    machine = "h100x8" if plan.ranks <= 8 else f"h100x8:{plan.ranks // 8}"
    library = Library.of(step.model, topology(machine), optimizer(dtype))
    one = model in FEEDS_BY_BATCH and not inference
    return lowered(name, dtype, step, library, strategy(library, plan, one=one))
