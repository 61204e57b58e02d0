"""Optimized modules without a search: captured, lowered with the kernels that are asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from whet.backend.cluster import Cluster
from whet.backend.lowered import Lowered, lower
from whet.backend.packed import Kernel
from whet.capture.captured import Captured
from whet.capture.torch import capture
from whet.plan import Plan
from whet.run.engine import region
from whet.run.module import Found, Optimized
from whet.run.parameters import Parameters
from whet.run.program import Program
from whet.run.record import Report, Stage
from whet.run.save import region_bytes


def packed(cluster: Cluster, kernels: list[Kernel]) -> Kernel:
    """The kernel that packs the most: what may become stale does."""
    return max(kernels, key=lambda k: (len(k.packs), k.covers))


def plain(cluster: Cluster, kernels: list[Kernel]) -> Kernel:
    return kernels[0]


def program(captured: Captured, engine: str = "steps", choose: Any = packed) -> tuple[Program, Any]:
    """The program of a captured model, and its region where it has one."""
    graph = captured.graph
    constants = {k: v for k, v in graph.constants.items() if isinstance(v, Tensor)}
    parameters = Parameters(constants, captured.module, [n.name for n in graph.parameters])
    if engine == "steps":
        return Program(lower(graph, choose), parameters), None
    lowered: Lowered = lower(graph, choose, literals="inline")
    inputs = [torch.empty([int(str(n)) for n in i.shape]) for i in graph.inputs]
    built = region(lowered, inputs, lowered.derive(parameters.tensors()))
    return Program(lowered, parameters, built.runner().bind, engine), built


def optimized(
    model: nn.Module,
    *args: Any,
    kwargs: Mapping[str, Any] | None = None,
    engine: str = "steps",
    strict: bool = False,
    choose: Any = packed,
) -> Optimized:
    """`model` optimized for these arguments, as the walk would return it."""
    with torch.no_grad():
        captured = capture(model, args, dict(kwargs or {}))
        made, built = (None, None) if engine == "original" else program(captured, engine, choose)
    graph = captured.graph
    report = Report(model=type(model).__name__, engine=engine, stages=[Stage("original", 1.0)])
    new = Optimized(
        model, made, captured.signature,
        updates=tuple(a.name for a, _ in graph.updates), report=report, strict=strict,
    )  # fmt: skip
    chosen = made.lowered.chosen if made else {}
    parameters = Parameters(
        {k: v for k, v in graph.constants.items() if isinstance(v, Tensor)},
        model, [n.name for n in graph.parameters],
    )  # fmt: skip
    vars(new)["found"] = Found(
        graph, graph, Plan(graph.digest, graph.digest, engine, 1, chosen),
        region_bytes(built) if built else None, parameters,
    )  # fmt: skip
    report.fallbacks = new.fallbacks
    return new


def same(got: Any, want: Any, tolerance: float = 1e-4) -> None:
    """Equal trees of tensors, up to rounding."""
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance, equal_nan=True)


def storages(tensors: Sequence[Tensor]) -> list[int]:
    return [t.untyped_storage().data_ptr() for t in tensors]
