"""Translation validation by numbers: what a certificate says is equal is computed and compared.

    compare_region(derivation)        both graphs of a derivation, in float64, on random tensors
    compare_programs(source, graph)   the whole program before and after, in float64

A proof covers the real numbers and all shapes; this covers the very text that was saved, and would
show a fault of the prover itself. Regions that take long in float64 are left out, and counted.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from whet.backend.library import run_opaque
from whet.ir.cost import graph_cost
from whet.ir.graph import Graph, Node
from whet.ir.interp import evaluate
from whet.rewrite.derivation import Derivation
from whet.run.oracle import relative_error

WORK = 2e10  # operations of a graph that is compared at its own size
TOLERANCE = 1e-9  # of float64, relative; sums are grouped differently


def compare_region(line: Derivation, seed: int = 0) -> float | None:
    """Relative error between what a region was and what it became; None where it is too much."""
    return compare(*line.sides(), seed=seed)


def compare(
    source: Graph,
    graph: Graph,
    *,
    seed: int = 0,
    data: Callable[[Node], Tensor | None] = lambda leaf: None,
) -> float | None:
    """Relative error in float64 between two graphs over the same leaves; None where too large.

    Args:
        data: a leaf's own tensor, where it has one; others are drawn.
    """
    work = graph_cost(source).flops
    if not isinstance(work, int) or work > WORK:
        return None
    generator = torch.Generator().manual_seed(seed)
    feeds: dict[str, Tensor] = {}
    for n in dict.fromkeys((*source.nodes, *graph.nodes)):
        if n.is_leaf and n.name not in feeds:
            own = data(n)
            feeds[n.name] = _drawn(n, generator) if own is None else own
    a, b = (evaluate(g, feeds, library=run_opaque) for g in (source, graph))
    return relative_error(list(b), list(a))


def parameters(program: Path) -> Callable[[Node], Tensor | None]:
    """The tensors that a saved program has, by leaf; none where only its plan is there."""
    file = (program if program.is_dir() else program.parent) / "parameters.pt"
    if not file.exists():
        return lambda leaf: None
    saved = torch.load(file, mmap=True, weights_only=True)
    tensors = {**saved["constants"], **saved["parameters"]}

    def own(leaf: Node) -> Tensor | None:
        found = tensors.get(leaf.name) if leaf.op != "input" else None
        return found if isinstance(found, Tensor) else None

    return own


def _drawn(node: Node, generator: torch.Generator) -> Tensor:
    """Numbers between a half and three halves, as a variance and a mask may be; zeros and ones
    where an index is wanted."""
    shape = [int(str(n)) for n in node.shape]
    if node.dtype.is_float:
        return torch.rand(shape, generator=generator, dtype=torch.float64) + 0.5
    drawn = torch.randint(0, 2, shape, generator=generator)
    return drawn.to(getattr(torch, node.dtype.value))
