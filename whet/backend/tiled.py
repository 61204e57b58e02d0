"""A graph lowered for a device: groups of operators in generated kernels, library calls between.

    graph, partition, what runs each group → Lowered (whet.backend.lowered)

Every value is a tensor of torch's, row-major or as a library leaves it; generated kernels take
row-major ones. What depends on no input is computed once, ahead of the body.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from whet.backend import aten
from whet.backend.lowered import Lowered, Slot, Step, body_nodes
from whet.backend.triton import Loaded
from whet.backend.triton_text import Module
from whet.fuse.partition import Cluster, Partition
from whet.ir.graph import Graph, Node

Decide = Callable[[Cluster], Module | None]


class Generated:
    """A generated kernel as a call on tensors, which gives new ones.

    Attributes:
        results: what it writes.
        sizes: bytes of each result.
        into: where results lie, if that is planned; else each call makes new ones.
    """

    def __init__(self, m: Module, device: torch.device) -> None:
        self.loaded = Loaded(m, device)
        self.results = [b for b in m.buffers if b.role == "out"]
        self.sizes = [math.prod(b.sizes) * aten.torch_dtype(b.dtype).itemsize for b in self.results]
        self.device = device
        self.into: list[Tensor] | None = None

    def __call__(self, *operands: Tensor) -> tuple[Tensor, ...]:
        made = self.into or [
            torch.empty(b.sizes, dtype=aten.torch_dtype(b.dtype), device=self.device)
            for b in self.results
        ]
        self.loaded([*(x.contiguous() for x in operands), *made])
        return tuple(made)


def tiled(graph: Graph, partition: Partition, decide: Decide, device: torch.device) -> Lowered:
    """The graph with each group as `decide` says: a generated kernel, or library calls for None."""
    return _Lowering(graph, partition, decide, device).lowered()


class _Lowering:
    def __init__(
        self, graph: Graph, partition: Partition, decide: Decide, device: torch.device
    ) -> None:
        self.graph, self.partition, self.decide, self.device = graph, partition, decide, device
        self.inside = body_nodes(graph)
        self.slots: dict[Node, Slot] = {}
        self.leaves: dict[Slot, Node] = {}
        self.prologue: list[Step] = []
        self.body: list[Step] = []
        self.counts: dict[str, int] = {}

    def lowered(self) -> Lowered:
        for k, n in enumerate(self.graph.inputs):
            self.slots[n] = f"x{k}"
        inputs = tuple(self.slots.values())
        self.names = {n: f"v{k}" for k, n in enumerate(self.graph.nodes)}
        for n in self.graph.nodes:
            if n not in self.slots and (n not in self.inside or not n.args):
                self._ahead(n)
        for k, (group, closed) in enumerate(
            zip(self.partition.groups, self.partition.clusters, strict=True)
        ):
            made = self.decide(closed)
            if made is None:
                for n in self.graph.nodes:
                    if n in group.members:
                        self._call(n)
            else:
                self._kernel(f"g{k}", closed, made)
        results = tuple(self.slots[n] for n in self.graph.results)
        ahead = {*self.leaves, *(s.target for s in self.prologue)}
        read = [s for step in self.body for s in step.operands if s is not None] + list(results)
        derived = tuple(s for s in dict.fromkeys(read) if s in ahead)
        return Lowered(
            self.graph, self.leaves, derived, tuple(self.prologue), tuple(self.body), results,
            self.counts, {}, inputs,
        )  # fmt: skip

    def _ahead(self, n: Node) -> None:
        self.slots[n] = self.names[n]
        if n.is_leaf:
            self.leaves[self.slots[n]] = n
            return
        self.prologue.append(Step(self.slots[n], self._bound(n), self._operands(n), n, "aten"))

    def _bound(self, n: Node) -> Callable[..., Any]:
        call = aten.bound(n)
        if n.args:
            return call
        return lambda *xs: _moved(call(*xs), self.device)

    def _operands(self, n: Node) -> tuple[Slot | None, ...]:
        return tuple(None if a is None else self.slots[a] for a in n.args)

    def _call(self, n: Node) -> None:
        if n in self.slots:
            return
        self.slots[n] = self.names[n]
        kernel = "aten" if aten.has_call(n) else "record"
        self.counts[kernel] = self.counts.get(kernel, 0) + 1
        self.body.append(Step(self.slots[n], aten.bound(n), self._operands(n), n, kernel))

    def _kernel(self, name: str, closed: Cluster, m: Module) -> None:
        operands = tuple(self.slots[n] for n in closed.leaves)
        last = closed.results[-1]
        self.counts["triton"] = self.counts.get("triton", 0) + 1
        call = Generated(m, self.device)
        self.body.append(Step(name, call, operands, last, "triton"))
        for k, n in enumerate(dict.fromkeys(closed.results)):
            self.slots[n] = self.names[n]
            self.body.append(Step(self.slots[n], itemgetter(k), (name,), n, "result"))


def _moved(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value


def working(lowered: Lowered) -> int:
    """Bytes of what library calls return, alive at once while the body runs, at most."""
    last: dict[Slot, int] = {}
    for k, step in enumerate(lowered.body):
        last |= {s: k for s in step.operands if s is not None}
    last |= dict.fromkeys(lowered.results, len(lowered.body))
    alive: dict[Slot, int] = {}
    most = 0
    for k, step in enumerate(lowered.body):
        if not isinstance(step.call, Generated) and step.kernel != "result":
            alive[step.target] = _bytes(step.node)
        most = max(most, sum(alive.values()))
        for s in [s for s in alive if last.get(s, -1) <= k]:
            del alive[s]
    return most


def held(lowered: Lowered) -> int:
    """Bytes of all values of a body together."""
    steps = (s for s in lowered.body if not isinstance(s.call, Generated))
    return sum(_bytes(s.node) for s in steps)


def _bytes(n: Node) -> int:
    count = 1
    for size in n.shape:
        count *= int(str(size))
    return count * max(1, n.dtype.bits // 8)


def constants(values: Sequence[Tensor]) -> int:
    """Bytes of tensors that a program holds."""
    return sum(x.numel() * x.element_size() for x in values)
