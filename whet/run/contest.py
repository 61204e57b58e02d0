"""Schedules of one cluster against each other: compiled in parallel, then measured in a farm.

    Contest = closed graph, how its operands lie, target
    entrant := Drafted --compiled--> farm.Kernel | Failed("compile", why)

Nothing is compiled while something is measured, and nothing is measured in this process: a kernel
that crashes, hangs or lies hurts only its own trial. What kernels must give is computed once, in
float64, from the operators' records.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from whet.backend import cpp, generated
from whet.backend.build import TOGETHER, compile_units, link_objects
from whet.backend.lowered import example
from whet.backend.piece import Packed, Value, channels_last
from whet.errors import WhetError
from whet.fuse.partition import Cluster
from whet.ir.graph import Graph, Node
from whet.ir.interp import evaluate
from whet.kernel.loops import Kernel
from whet.kernel.space import Drafted
from whet.kernel.vary import Variations
from whet.machine.target import Target
from whet.run import farm
from whet.run.farm import Failed, Farm, Task, Verdict
from whet.run.runner import Array

LONG = 900  # lines of C from which on compiling takes seconds, and loops have outgrown their cache
GATHERED = 16  # lines that an access to elements which lie apart becomes
TOLERANCE = 1e-3  # of the largest result; whole programs are held to float64 by their own error


@dataclass(frozen=True)
class Contest:
    """See the module's docstring.

    Attributes:
        closed: the cluster.
        operands, results: how they lie.
        target: what kernels are for.
    """

    closed: Cluster
    operands: Sequence[Value | Packed]
    results: Sequence[Value]
    target: Target

    @classmethod
    def of(cls, graph: Graph, target: Target) -> Contest:
        """A closed graph by itself, as it lies in most programs: images with their channels last,
        everything else row-major, parameters as kernels like them."""
        leaves = (*graph.inputs, *graph.parameters)
        closed = Cluster(graph, leaves, tuple(graph.results))
        operands = [lying(n) if n.op == "input" else Packed(n) for n in leaves]
        return cls(closed, operands, [lying(n) for n in graph.results], target)

    @cached_property
    def naive(self) -> Kernel:
        """The kernel that every schedule starts from.

        Raises:
            UnsupportedError: the cluster has no loops.
        """
        return generated.naive(self.closed, self.operands, self.results)

    @cached_property
    def variations(self) -> Variations:
        """Its schedules."""
        fixed = generated.fixed(self.naive, self.operands)
        return Variations(self.naive, fixed, self.target)

    @cached_property
    def task(self) -> Task:
        """Operands as they lie, and what kernels must give."""
        generator = torch.Generator().manual_seed(0)
        leaves = (*self.closed.graph.inputs, *self.closed.graph.parameters)
        feeds = {n.name: example(n, generator) for n in leaves}
        want = evaluate(self.closed.graph, feeds)
        return Task(
            tuple(_memory(feeds[n.name], v) for n, v in zip(leaves, self.operands, strict=True)),
            tuple(_memory(t, v) for t, v in zip(want, self.results, strict=True)),
            tuple(_dtype(v.node) for v in self.results),
            TOLERANCE,
        )

    # -- building ----------------------------------------------------------------------------------
    def build(
        self, entrants: Sequence[Drafted], folder: Path, *, jobs: int | None = None
    ) -> list[farm.Kernel | Failed]:
        """Every schedule compiled into the folder, `TOGETHER` to a shared object.

        Args:
            entrants: schedules of `naive`.
            folder: must stay as long as the kernels are used.
            jobs: compilers at once; the target's threads unless given.
        """
        made: list[tuple[str, cpp.Made] | Failed] = []
        for d in entrants:
            symbol = f"k{hashlib.blake2b(d.kernel.digest.encode(), digest_size=8).hexdigest()}"
            try:
                function = cpp.function(symbol, d.kernel, self.target)
                lines = length(function.text)
                made.append(
                    (symbol, function) if lines <= LONG else Failed("compile", f"{lines} lines")
                )
            except WhetError as fault:
                made.append(Failed("compile", f"{fault.summary}: {fault.got}"))
        units = {m[0]: m[1] for m in made if not isinstance(m, Failed)}
        names = list(units)
        groups = [names[k : k + TOGETHER] for k in range(0, len(names), TOGETHER)]
        libraries: dict[str, Path | Failed] = {}
        self._compiled(groups, units, folder, libraries, jobs)
        found: list[farm.Kernel | Failed] = []
        for m, d in zip(made, entrants, strict=True):
            place = m if isinstance(m, Failed) else libraries[m[0]]
            if isinstance(place, Failed) or isinstance(m, Failed):
                found.append(place if isinstance(place, Failed) else Failed("compile", ""))
                continue
            found.append(farm.Kernel(place, m[0], m[1].scratch, self._laid(d.kernel)))
        return found

    def _compiled(
        self,
        groups: Sequence[Sequence[str]],
        made: Mapping[str, cpp.Made],
        folder: Path,
        libraries: dict[str, Path | Failed],
        jobs: int | None,
    ) -> None:
        """A shared object for each group; a group that does not compile, member by member."""
        texts = {g[0]: cpp.unit([made[n] for n in g], self.target) for g in groups}
        try:
            objects = compile_units(texts, self.target, jobs=jobs)
        except WhetError as fault:
            if len(groups) == 1 and len(groups[0]) == 1:
                libraries[groups[0][0]] = Failed("compile", f"{fault.summary}: {fault.got}")
            elif len(groups) == 1:
                for n in groups[0]:
                    self._compiled([[n]], made, folder, libraries, jobs)
            else:
                for g in groups:
                    self._compiled([g], made, folder, libraries, jobs)
            return
        for g in groups:
            place = folder / f"{g[0]}.so"
            place.write_bytes(link_objects([objects[g[0]]], self.target))
            libraries |= dict.fromkeys(g, place)

    def _laid(self, k: Kernel) -> dict[int, farm.Laid]:
        """Operands that a kernel wants laid out otherwise than they are."""
        found: dict[int, farm.Laid] = {}
        for place, (b, v) in enumerate(zip(k.inputs, self.operands, strict=True)):
            if isinstance(v, Packed) and (how := generated.how(b.layout, b.sizes)):
                found[place] = how[1], how[2], how[3]
        return found

    def measure(
        self,
        farm_: Farm,
        kernels: Mapping[str, farm.Kernel | Failed],
        *,
        rounds: int = 5,
        limit_s: float,
    ) -> dict[str, Verdict]:
        """What became of each: those that compiled are checked, and timed in turns.

        Args:
            farm_: where they run.
            kernels: by name.
            rounds: samples of each.
            limit_s: a kernel whose call takes longer is timed by that call alone.
        """
        runs = {n: k for n, k in kernels.items() if isinstance(k, farm.Kernel)}
        found = farm_.measure(self.task, runs, rounds=rounds, limit_s=limit_s) if runs else {}
        return {n: k if isinstance(k, Failed) else found[n] for n, k in kernels.items()}


def length(text: str) -> int:
    """Lines of a function's C, what a line expands to included."""
    apart = sum(text.count(f"{verb}s_") for verb in ("ld", "st"))
    return text.count("\n") + GATHERED * apart


def lying(n: Node) -> Value:
    """A value as most programs have it."""
    shape = Value(n).shape
    return Value(n, channels_last(shape)) if len(shape) == 4 else Value(n)


def _memory(t: torch.Tensor, v: Value | Packed) -> Array:
    """A tensor's elements in the order in which they lie."""
    if isinstance(v, Value) and not v.is_dense:
        order = sorted(range(t.ndim), key=lambda d: -v.strides[d])
        t = t.permute(order)
    array: Array = t.contiguous().numpy()
    return array


def _dtype(n: Node) -> str:
    return np.dtype(n.dtype.value).str
