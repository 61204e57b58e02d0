"""Which library kernel runs a cluster: the one that was measured fastest, remembered by the store.

A time is filed under everything it depends on: the cluster's operators, attributes and types, the
machine, the number of threads, torch's version. What is not on file is measured, all kernels of a
cluster interleaved; a kernel that fails is filed as failed and never taken. Plain ATen is kept
unless another kernel is faster; whether the program as a whole is, is measured for itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from whet.backend.cluster import Cluster
from whet.backend.inductor import compile_region
from whet.backend.lowered import example
from whet.backend.packed import Kernel, finish
from whet.errors import WhetError
from whet.ir.graph import Node
from whet.ir.types import product
from whet.machine import Machine
from whet.run.measure import choose, interleaved
from whet.store import Store

KIND = "kernel-choice"
BUDGET_S = 0.25  # seconds of measuring per distinct cluster
SLACK = 0.98  # what a kernel's time must stay under, as a share of plain ATen's


@dataclass
class Chooser:
    """Chooses kernels by measured time.

    Attributes:
        store: where choices are kept.
        machine: whose choices they are.
        region: whether the body is compiled as a region: what a compiler makes of a call then
            competes with the libraries.
        libraries: False takes plain ATen everywhere (the ablation "library choice off").
        measured: clusters timed here; hits: choices taken from the store.
        failures: reason to count, of kernels that did not run.
    """

    store: Store
    machine: Machine
    libraries: bool = True
    region: bool = False
    measured: int = 0
    hits: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    chosen: dict[str, str] = field(default_factory=dict)

    def __call__(self, cluster: Cluster, kernels: list[Kernel]) -> Kernel:
        """The kernel to run `cluster` with, of those given (plain ATen first)."""
        by_name = {k.name: k for k in kernels}
        if len(by_name) == 1 or not self.libraries:
            return kernels[0]
        key = self.key(cluster)
        name = self.chosen.get(key)
        if name is None:
            name = self._recall(key, by_name) or self._measure(key, cluster, by_name)
            self.chosen[key] = name
        return by_name.get(name, kernels[0])

    def key(self, cluster: Cluster) -> str:
        """What this chooser's decision on a cluster is filed under."""
        return ("region-" if self._compiled(cluster) else "") + cluster.key

    def _compiled(self, cluster: Cluster) -> bool:
        """A product with one row is a sum that a compiler streams better than any library does."""
        x = cluster.anchor.args[0]
        assert x is not None
        return self.region and cluster.anchor.op != "attention" and product(x.shape[:-1]) == 1

    def _place(self, key: str) -> str:
        version = torch.__version__
        threads = torch.get_num_threads()
        return f"{self.machine.fingerprint()}/torch-{version}/{threads}t/{key}"

    def _recall(self, key: str, kernels: Mapping[str, Kernel]) -> str | None:
        row = self.store.get(KIND, self._place(key))
        if not isinstance(row, dict) or set(row.get("kernels", ())) != set(kernels):
            return None
        self.hits += 1
        return str(row["choice"])

    def _measure(self, key: str, cluster: Cluster, kernels: Mapping[str, Kernel]) -> str:
        generator = torch.Generator().manual_seed(0)
        seen: dict[Node, Tensor] = {}
        for a in cluster.operands:
            if a is not None and a not in seen:
                seen[a] = example(a, generator)
        operands = [None if a is None else seen[a] for a in cluster.operands]
        compiled = self._compiled(cluster)
        calls: dict[str, Callable[[], object]] = {}
        failed: dict[str, str] = {}
        with torch.no_grad():
            for name, kernel in kernels.items():
                try:
                    call = (compiled_call if compiled else prepared)(cluster, kernel, operands)
                    call()
                except (RuntimeError, NotImplementedError, WhetError) as fault:
                    failed[name] = str(fault).splitlines()[0]
                    self.failures[f"{name}: {failed[name]}"] += 1
                else:
                    calls[name] = call
            timings = interleaved(calls, budget_s=BUDGET_S, min_rounds=7, warmup=2)
        plain = next(iter(calls))
        fastest = min(timings, key=lambda n: timings[n].median_s)
        name = fastest if timings[fastest].median_s < SLACK * timings[plain].median_s else plain
        self.measured += 1
        row = {
            "choice": name,
            "kernels": sorted(kernels),
            "seconds": {n: t.median_s for n, t in timings.items()},
            "failed": failed,
            "cluster": repr(cluster),
        }
        # On a noisy machine a choice is good enough for this program, not for all later ones.
        if name == plain or choose({n: timings[n] for n in (name, plain)}, plain) == name:
            self.store.put(KIND, self._place(key), row)
        return name


def compiled_call(
    cluster: Cluster, kernel: Kernel, operands: list[Tensor | None]
) -> Callable[[], object]:
    """The same as `prepared`, compiled as a region."""
    args, whole = _whole(cluster, kernel, operands)
    present = [k for k, a in enumerate(args) if a is not None]
    count = len(args)

    def body(*tensors: Tensor) -> tuple[Tensor]:
        full: list[Tensor | None] = [None] * count
        for k, t in zip(present, tensors, strict=True):
            full[k] = t
        return (whole(*full),)

    tensors = [a for a in args if a is not None]
    run = compile_region(body, tensors).runner().bind(tensors)
    return lambda: run(())


def prepared(
    cluster: Cluster, kernel: Kernel, operands: list[Tensor | None]
) -> Callable[[], object]:
    """A call of the whole cluster through `kernel`, weights transformed beforehand."""
    args, whole = _whole(cluster, kernel, operands)
    return lambda: whole(*args)


def _whole(
    cluster: Cluster, kernel: Kernel, operands: list[Tensor | None]
) -> tuple[list[Tensor | None], Callable[..., Tensor]]:
    """Transformed operands, and a function of them that computes the whole cluster."""
    args = list(operands)
    for pack in kernel.packs:
        weight = operands[pack.operand]
        assert weight is not None
        packed = pack.transform(weight)
        if pack.beside:
            args.append(packed)
        else:
            args[pack.operand] = packed
    if kernel.covers == len(cluster.nodes):
        return args, kernel.call
    return args, lambda *xs: finish(cluster, kernel, kernel.call(*xs), xs)
