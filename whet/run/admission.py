"""Rules that may overflow or cancel in half precision: used where running them shows no harm.

    match → both sides as closed graphs → library calls in that precision, against float64

A proof is over the reals. In float16 and bfloat16 a rule with more exponentials or divisions, or
with a difference that was not there, is admitted only if at every magnitude tried its side is as
near to float64 as the side that it replaces, by the measure that whole programs are held to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from whet.backend.aten import torch_dtype
from whet.backend.library import run_opaque
from whet.backend.lowered import lower
from whet.errors import WhetError
from whet.ir.graph import Graph
from whet.ir.interp import evaluate
from whet.rewrite.match import Match
from whet.rewrite.saturate import is_safe
from whet.run.gains import sides
from whet.run.oracle import allowed, relative_error

SCALES = (1e-2, 1.0, 30.0, 300.0)
"""Magnitudes of the numbers drawn: small, usual, and what saturates or overflows an exponential."""

MOST = 1 << 24  # elements of what is drawn


@dataclass
class Admission:
    """Says of a match whether it may be used; remembers what was computed."""

    known: dict[tuple[str, str], bool] = field(default_factory=dict)

    def __call__(self, match: Match) -> bool:
        if is_safe(match):
            return True
        try:
            before, after = sides(match, frozenset(match.tensors.values()))  # type: ignore[arg-type]
        except WhetError:
            return False
        key = before.digest, after.digest
        if key not in self.known:
            self.known[key] = _is_as_exact(before, after)
        return self.known[key]


def _is_as_exact(before: Graph, after: Graph) -> bool:
    if sum(n.type.numel for n in before.inputs if isinstance(n.type.numel, int)) > MOST:
        return False
    generator = torch.Generator().manual_seed(0)
    try:
        with torch.no_grad():
            return all(
                _agree(before, after, _drawn(before, scale, positive, generator))
                for scale in SCALES
                for positive in (False, True)
            )
    except (WhetError, RuntimeError, TypeError, ValueError):
        return False


def _agree(before: Graph, after: Graph, feeds: Mapping[str, Tensor]) -> bool:
    """Whether the new side is as exact wherever the old one has a finite answer."""
    exact = evaluate(before, {k: t.double() for k, t in feeds.items()}, library=run_opaque)
    own, new = _run(before, feeds), _run(after, feeds)
    finite = [t.isfinite() for t in own]
    old, now, right = (
        [t[f] for t, f in zip(ts, finite, strict=True)] for ts in (own, new, exact)
    )  # fmt: skip
    if not all(t.isfinite().all() for t in now):
        return False
    return relative_error(now, right) <= allowed(relative_error(old, right), own)


def _run(graph: Graph, feeds: Mapping[str, Tensor]) -> list[Tensor]:
    lowered = lower(graph, lambda cluster, kernels: kernels[0])
    derived = lowered.derive(feeds)
    return list(lowered.function()(*(feeds[n.name] for n in graph.inputs), *derived))


def _drawn(
    graph: Graph, scale: float, positive: bool, generator: torch.Generator
) -> dict[str, Tensor]:
    feeds: dict[str, Tensor] = {}
    for n in graph.inputs:
        shape = [int(str(size)) for size in n.shape]
        drawn = torch.randn(shape, generator=generator) * scale
        feeds[n.name] = (drawn.abs() if positive else drawn).to(torch_dtype(n.dtype))
    return feeds
