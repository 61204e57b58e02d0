"""A graph lowered to library calls: a prologue over parameters, and a body over inputs.

    lowered  := prologue, body, results
    prologue := step …                     parameters and constants -> derived values, computed once
    body     := step …                     inputs and derived values -> results
    step     := target = call(operand …)

What depends on no input (folded and packed weights, masks, position tables) is computed outside the
body, and again when a parameter changes. The body is straight-line Python: run as it is it calls
the libraries one after another; traced, it is the region that Inductor compiles.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from whet.backend import aten
from whet.backend.cluster import Cluster, clusters
from whet.backend.packed import Kernel, finish, kernels
from whet.ir.graph import Graph, Node

Slot = str


@dataclass(frozen=True, slots=True)
class Step:
    """One call; operands are names of slots, or None where an optional one is left out."""

    target: Slot
    call: Callable[..., Any]
    operands: tuple[Slot | None, ...]
    node: Node
    kernel: str


@dataclass(frozen=True)
class Lowered:
    """See the module's docstring.

    Attributes:
        graph: what was lowered.
        leaves: slot of each parameter and constant leaf that the prologue reads.
        derived: slots that the prologue hands to the body, in order.
        prologue, body: steps in order.
        results: slots of the graph's results, in order.
        kernels: how many body steps run through each kernel; "record" counts operators that torch
            has no call for.
        chosen: kernel by cluster key; with the graph, all it takes to lower it again.
    """

    graph: Graph
    leaves: Mapping[Slot, Node]
    derived: tuple[Slot, ...]
    prologue: tuple[Step, ...]
    body: tuple[Step, ...]
    results: tuple[Slot, ...]
    kernels: Mapping[str, int]
    chosen: Mapping[str, str]
    inputs: tuple[Slot, ...] = field(default=())

    def derive(
        self, values: Mapping[str, Tensor], slots: Collection[Slot] | None = None
    ) -> list[Tensor]:
        """Run the prologue.

        Args:
            values: tensors of parameter and constant leaves by name.
            slots: which of `derived` to compute; all by default. Steps that no others need are
                left out.
        """
        wanted = list(self.derived if slots is None else slots)
        needed: set[Slot | None] = set(wanted)
        for step in reversed(self.prologue):
            if step.target in needed:
                needed.update(step.operands)
        table: dict[Slot | None, Any] = {None: None}
        table |= {s: values[n.name].detach() for s, n in self.leaves.items() if s in needed}
        for step in self.prologue:
            if step.target in needed:
                table[step.target] = step.call(*(table[s] for s in step.operands))
        return [table[s] for s in wanted]

    def affected(self, names: Collection[str]) -> list[Slot]:
        """Which of `derived` depend on these leaves, by name."""
        found = {s for s, leaf in self.leaves.items() if leaf.name in names}
        for step in self.prologue:
            if any(s in found for s in step.operands):
                found.add(step.target)
        return [s for s in self.derived if s in found]

    @cached_property
    def copied(self) -> frozenset[str]:
        """Names of the leaves whose values the prologue copies, rather than hands on."""
        read = {s for step in self.prologue for s in step.operands}
        return frozenset(leaf.name for s, leaf in self.leaves.items() if s in read)

    def function(self) -> Callable[..., tuple[Tensor, ...]]:
        """The body as a Python function of inputs, then derived values; values die at last use."""
        last: dict[Slot, int] = {}
        for k, step in enumerate(self.body):
            last |= {s: k for s in step.operands if s is not None}
        kept = {*self.results, *self.inputs, *self.derived}
        names: dict[str, Any] = {}
        lines = [f"def body({', '.join((*self.inputs, *self.derived))}):"]
        for k, step in enumerate(self.body):
            names[f"f{k}"] = step.call
            lines.append(f"    {step.target} = f{k}({', '.join(map(str, step.operands))})")
            dead = [s for s in dict.fromkeys(step.operands) if s and last[s] == k and s not in kept]
            if dead:
                lines.append(f"    {' = '.join(dead)} = None")
        lines.append(f"    return ({''.join(f'{s}, ' for s in self.results)})")
        exec(compile("\n".join(lines), "<whet body>", "exec"), names)
        return names["body"]  # type: ignore[no-any-return]


def body_nodes(graph: Graph) -> frozenset[Node]:
    """Nodes that depend on an input or on a value that calls update, and library calls that may
    have a say of their own."""
    found: set[Node] = {leaf for leaf, _ in graph.updates}
    for n in graph.nodes:
        if n.op in ("input", "opaque") or any(a in found for a in n.operands):
            found.add(n)
    return frozenset(found)


def lower(
    graph: Graph,
    choose: Callable[[Cluster, list[Kernel]], Kernel],
    *,
    literals: str = "ahead",
) -> Lowered:
    """Lower a graph, each cluster by the kernel that `choose` picks.

    Args:
        graph: over concrete shapes.
        choose: which of a cluster's kernels to take (see `whet.backend.packed.kernels`).
        literals: "ahead" makes literal numbers in the prologue, "inline" leaves them in the body,
            where a compiler sees their values.
    """
    body = set(body_nodes(graph))
    if literals == "inline":
        body |= {n for n in graph.nodes if n.op == "full" and n.shape == ()}
    return _Lowering(graph, frozenset(body), choose).lowered()


class _Lowering:
    """Walks the graph once, operands first."""

    def __init__(
        self,
        graph: Graph,
        body: frozenset[Node],
        choose: Callable[[Cluster, list[Kernel]], Kernel],
    ) -> None:
        self.graph, self.in_body, self.choose = graph, body, choose
        self.slots: dict[Node, Slot] = {}
        self.ahead: dict[Node, Slot] = {}  # literals of the body that the prologue reads as well
        self.leaves: dict[Slot, Node] = {}
        self.prologue: list[Step] = []
        self.body: list[Step] = []
        self.counts: dict[str, int] = {}

    def lowered(self) -> Lowered:
        for k, n in enumerate(self.graph.inputs):
            self.slots[n] = f"x{k}"
        inputs = tuple(self.slots.values())
        partition = clusters(self.graph, self.in_body)
        chosen = {root: (c, self.choose(c, kernels(c))) for root, c in partition.items()}
        names = {c.key: kernel.name for c, kernel in chosen.values()}
        inside = {n for c, _ in chosen.values() for n in c.nodes[:-1]}
        for k, node in enumerate(self.graph.nodes):
            if node in self.slots or node in inside:
                continue
            self.slots[node] = f"v{k}" if node in self.in_body else f"p{k}"
            if node.is_leaf:
                self.leaves[self.slots[node]] = node
            elif node in chosen:
                self._cluster(*chosen[node])
            else:
                self._plain(node)
        results = tuple(self.slots[n] for n in self.graph.results)
        # What the prologue makes and the body reads; a weight that was packed is not among it.
        made = {*self.leaves, *(s.target for s in self.prologue)}
        read = [s for step in self.body for s in step.operands if s is not None] + list(results)
        derived = tuple(s for s in dict.fromkeys(read) if s in made)
        return Lowered(
            self.graph, self.leaves, derived, tuple(self.prologue), tuple(self.body),
            results, self.counts, names, inputs,
        )  # fmt: skip

    def _plain(self, node: Node) -> None:
        kernel = "aten" if aten.has_call(node) else "record"
        call = aten.bound(node)
        if node not in self.in_body or not node.args:
            slots = self.slots | self.ahead
            target = self.slots[node]
            if node in self.in_body:
                target = self.ahead[node] = f"{target}_p"
            operands = tuple(None if a is None else slots[a] for a in node.args)
            self.prologue.append(Step(target, call, operands, node, kernel))
        if node in self.in_body:
            operands = tuple(None if a is None else self.slots[a] for a in node.args)
            self.counts[kernel] = self.counts.get(kernel, 0) + 1
            self.body.append(Step(self.slots[node], call, operands, node, kernel))

    def _cluster(self, cluster: Cluster, kernel: Kernel) -> None:
        root = cluster.root
        operands = [None if a is None else self.slots[a] for a in cluster.operands]
        extra: list[Slot] = []
        for k, pack in enumerate(kernel.packs):
            weight = cluster.operands[pack.operand]
            assert weight is not None
            packed = f"{self.slots[root]}_w{k}"
            self.prologue.append(
                Step(packed, pack.transform, (self.slots[weight],), weight, kernel.name)
            )
            if pack.beside:
                extra.append(packed)
            else:
                operands[pack.operand] = packed
        self.counts[kernel.name] = self.counts.get(kernel.name, 0) + 1
        self.body.append(
            Step(self.slots[root], _fused(cluster, kernel), (*operands, *extra), root, kernel.name)
        )


def _fused(cluster: Cluster, kernel: Kernel) -> Callable[..., Tensor]:
    if kernel.covers == len(cluster.nodes):
        return kernel.call
    return lambda *xs: finish(cluster, kernel, kernel.call(*xs), xs)


def example(node: Node, generator: torch.Generator) -> Tensor:
    """A tensor of a node's type to time a kernel with."""
    shape: Sequence[int] = [int(str(n)) for n in node.shape]
    dtype = aten.torch_dtype(node.dtype)
    if node.dtype.is_float:
        return torch.randn(shape, generator=generator).to(dtype)
    return torch.zeros(shape, dtype=dtype)
