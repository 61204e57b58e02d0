"""Which library kernel runs a cluster: the one that was measured fastest, remembered by the store.

A time is filed under everything it depends on: the cluster's operators, attributes and types, the
machine, the number of threads, torch's version. What is not on file is measured, all kernels of a
cluster interleaved; a kernel that fails, or computes something else than plain ATen does, is filed
as failed and never taken. Plain ATen is kept unless another kernel is faster; whether the program
as a whole is, is measured for itself.
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
from whet.ir.types import product
from whet.machine import Machine
from whet.run.measure import Timing, choose, interleaved
from whet.run.oracle import relative_error
from whet.run.spread import spread
from whet.store import Store

KIND = "kernel-choice-2"
BUDGET_S = 0.12  # seconds of measuring per distinct cluster
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
        """The choice on file, if it was made among these very kernels."""
        row = self.store.get(KIND, self._place(key))
        if not isinstance(row, dict) or set(row.get("kernels", ())) != set(kernels):
            return None
        name = row.get("choice")
        if name not in kernels or name in row.get("failed", ()):
            return None
        self.hits += 1
        return str(name)

    def _measure(self, key: str, cluster: Cluster, kernels: Mapping[str, Kernel]) -> str:
        plain = next(iter(kernels))
        failed: dict[str, str] = {}
        with torch.no_grad():
            calls = self._running(cluster, kernels, failed)
            timings = _timed(calls, failed)
        for name, reason in failed.items():
            self.failures[f"{name}: {reason}"] += 1
        # Where plain calls fail themselves they are kept to say so: nothing else is held to them.
        fastest = min(timings, key=lambda n: timings[n].median_s, default=plain)
        beaten = plain in timings and timings[fastest].median_s < SLACK * timings[plain].median_s
        name = fastest if beaten else plain
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

    def _running(
        self, cluster: Cluster, kernels: Mapping[str, Kernel], failed: dict[str, str]
    ) -> dict[str, Callable[[], object]]:
        """Calls of the kernels that run and compute what the first one does."""
        generator = torch.Generator().manual_seed(0)
        present = dict.fromkeys(a for a in cluster.operands if a is not None)
        values = {a: example(a, generator) for a in present}
        if cluster.anchor.op == "conv2d":  # what flows between convolutions is channels-last
            for k, a in enumerate(cluster.operands):
                if a is not None and k not in cluster.fixed and values[a].dim() == 4:
                    values[a] = values[a].contiguous(memory_format=torch.channels_last)
        operands = [None if a is None else values[a] for a in cluster.operands]
        prepare = compiled_call if self._compiled(cluster) else prepared
        calls: dict[str, Callable[[], object]] = {}
        want: Tensor | None = None
        for name, kernel in kernels.items():
            try:
                call = prepare(cluster, kernel, operands)
                got = _tensor(call())
            except Exception as fault:  # whatever it raises, it is not for this cluster
                failed[name] = _reason(fault)
                continue
            want = got if want is None else want
            if reason := _disagreement(got, want):
                failed[name] = reason
            else:
                calls[name] = call
        return calls


class _FailedError(Exception):
    """A kernel that ran at first, and then did not."""

    def __init__(self, name: str, fault: Exception) -> None:
        super().__init__(name)
        self.name, self.fault = name, fault


def _timed(calls: dict[str, Callable[[], object]], failed: dict[str, str]) -> dict[str, Timing]:
    """Interleaved times of all calls; those that fail meanwhile are left out."""

    def guarded(name: str, call: Callable[[], object]) -> Callable[[], object]:
        def run() -> object:
            try:
                return call()
            except Exception as fault:
                raise _FailedError(name, fault) from fault

        return run

    left = {name: guarded(name, call) for name, call in calls.items()}
    while left:
        try:
            # All kernels share one pool of threads: there is none to wait for between them.
            return interleaved(
                left,
                budget_s=BUDGET_S,
                min_rounds=7,
                warmup=2,
                settle=spread,
                collect=False,
            )
        except _FailedError as fault:
            failed[fault.name] = _reason(fault.fault)
            del left[fault.name]
    return {}


def _reason(fault: Exception) -> str:
    text = str(fault).strip().splitlines()
    return f"{type(fault).__name__}: {text[0]}" if text else type(fault).__name__


def _tensor(value: object) -> Tensor:
    """A call's one result; regions return lists."""
    found = value[0] if isinstance(value, list) else value
    assert isinstance(found, Tensor)
    return found


def _disagreement(got: Tensor, want: Tensor) -> str | None:
    """Why two kernels' results are not the same up to half of their digits, or None."""
    if (got.shape, got.dtype) != (want.shape, want.dtype):
        return f"expected {want.dtype}{list(want.shape)}, got {got.dtype}{list(got.shape)}"
    allowed = torch.finfo(want.dtype).eps ** 0.5 if want.dtype.is_floating_point else 0.0
    error = relative_error([got], [want])
    return None if error <= allowed else f"another result: relative error {error:.1e}"


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
