"""Programs for a GPU: generated kernels and library calls as one CUDA graph for each signature.

    graph → seed (whet.fuse) → Tuned, for each group: kernel or library → tiled → graphs → Program

Captured once, a graph of launches runs in memory of its own, and a call is: inputs copied in,
replay, results copied out. Without a device the same steps run one after another, in Triton's
interpreter, which is how they are tested.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from whet.backend import aten
from whet.backend.lowered import Lowered, body_nodes, example
from whet.backend.tiled import Generated, constants, tiled, working
from whet.backend.triton import interprets
from whet.backend.triton_text import Module, module
from whet.errors import InputError, WhetError
from whet.fuse.partition import Cluster
from whet.fuse.seed import seed
from whet.ir.cost import node_cost
from whet.ir.graph import Graph, Node
from whet.kernel.block import launch_of
from whet.kernel.legal import Illegal
from whet.kernel.lower import lower
from whet.kernel.price import Candidate, candidates
from whet.kernel.schedule import apply, read, show
from whet.machine.gpu import GB, PRESETS, Gpu, preset
from whet.run.engine import Bind, Bound
from whet.store import Store

KIND = "tiles-1"
LIBRARY = "library"
TRIED = 4  # candidates that are compiled and timed


def this_gpu(index: int = 0) -> Gpu:
    """The device at hand: what it says of itself, and what data sheets say of its kind.

    Raises:
        WhetError: torch finds none.
    """
    if not torch.cuda.is_available():
        raise WhetError("torch finds no NVIDIA GPU", hint="name one: --target " + "|".join(PRESETS))
    said = torch.cuda.get_device_properties(index)
    near = "h200" if "H200" in said.name else "h100" if "H100" in said.name else "a100"
    if "H100" not in said.name and "H200" not in said.name and said.major >= 9:
        near = "h100"
    known = preset(near)
    shared = int(getattr(said, "shared_memory_per_block_optin", known.shared))
    share = said.multi_processor_count / known.multiprocessors
    return Gpu(
        name=near if near.upper() in said.name else said.name.lower().replace(" ", "-"),
        capability=10 * said.major + said.minor,
        multiprocessors=said.multi_processor_count,
        shared=shared,
        shared_each=int(getattr(said, "shared_memory_per_multiprocessor", known.shared_each)),
        l2=int(getattr(said, "L2_cache_size", known.l2)) or known.l2,
        memory=said.total_memory,
        bandwidth=known.bandwidth,
        peak={t: rate * share for t, rate in known.peak.items()},
        registers=int(getattr(said, "regs_per_multiprocessor", known.registers)),
    )


# -- what runs a group -----------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Decision:
    """What runs a group.

    Attributes:
        schedule: its kernel's, as text, or `LIBRARY`.
        seconds: of one run.
        source: "measured" or "predicted".
        library: seconds of the library's calls.
    """

    schedule: str
    seconds: float
    source: str
    library: float = math.inf


@dataclass
class Tuned:
    """Decides what runs each group of a graph.

    Attributes:
        gpu: what for.
        store: where measured decisions are kept.
        device: where to measure; None predicts only.
        precision: of float32 products: "ieee" or "tf32".
        given: schedules by cluster digest that were made elsewhere, tried first.
        until: a moment of `time.monotonic` after which nothing more is measured.
    """

    gpu: Gpu
    store: Store
    device: torch.device | None = None
    precision: str = "ieee"
    given: Mapping[str, str] = field(default_factory=dict)
    until: float = math.inf
    failures: Counter[str] = field(default_factory=Counter)
    decided: dict[str, Decision] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)

    def __call__(self, closed: Cluster) -> Module | None:
        found = self.decision(closed)
        return None if found.schedule == LIBRARY else self.made(closed, found.schedule)

    def made(self, closed: Cluster, schedule: str) -> Module:
        """A group's kernel by a schedule."""
        moves = read(schedule)
        k = apply(lower(closed.graph), moves)
        if isinstance(k, Illegal):
            raise WhetError("a schedule that does not apply", got=str(k))
        digest = hashlib.blake2b(f"{k}".encode(), digest_size=6).hexdigest()
        return module(f"whet_{digest}", k, launch_of(moves))

    def decision(self, closed: Cluster) -> Decision:
        """What was decided for a group: now, unless it is known."""
        if closed.digest not in self.decided:
            place = f"{closed.digest}/{self.gpu.fingerprint()}/{self.precision}/{torch.__version__}"
            row = self.store.get(KIND, place) if self.device is not None else None
            if isinstance(row, dict) and isinstance(row.get("schedule"), str):
                made = Decision(row["schedule"], row["seconds"], "measured", row["library"])
            else:
                made = self._decide(closed)
                if made.source == "measured":
                    self.store.put(KIND, place, {
                        "schedule": made.schedule, "seconds": made.seconds, "library": made.library,
                    })  # fmt: skip
            self.decided[closed.digest] = made
            self.names[closed.digest] = "+".join(
                n.op for n in closed.graph.nodes if not n.is_leaf and n.args
            )
        return self.decided[closed.digest]

    def _decide(self, closed: Cluster) -> Decision:
        library = library_seconds(closed, self.gpu)
        found: list[Candidate] = []
        try:
            found, refused = candidates(lower(closed.graph), self.gpu, self.precision)
            self.failures.update(f"refused: {r.kind}" for r in refused)
        except WhetError as fault:
            self.failures[f"{fault.summary}: {fault.got}"] += 1
        right: list[Candidate] = []
        for c in found:
            try:
                module("f", c.draft.kernel, c.launch)
                right.append(c)
            except WhetError as fault:
                self.failures[f"{fault.summary}: {fault.got}"] += 1
        if self.device is None or not right or time.monotonic() > self.until:
            if right and right[0].seconds < library:
                return Decision(
                    show(right[0].draft.schedule), right[0].seconds, "predicted", library
                )
            return Decision(LIBRARY, library, "predicted", library)
        return self._measured(closed, right)

    def _measured(self, closed: Cluster, found: Sequence[Candidate]) -> Decision:
        assert self.device is not None
        generator = torch.Generator().manual_seed(0)
        values = [example(n, generator).to(self.device) for n in closed.leaves]
        plain = _library(closed)
        want = plain(values)
        library = timed(lambda: plain(values), self.device)
        best, at = LIBRARY, library
        texts = [show(c.draft.schedule) for c in found[:TRIED]]
        if closed.digest in self.given:
            texts.insert(0, self.given[closed.digest])
        for text in dict.fromkeys(texts):
            try:
                call = Generated(self.made(closed, text), self.device)
                got = call(*values)
                if not all(_close(a, b) for a, b in zip(got, want, strict=True)):
                    self.failures["wrong"] += 1
                    continue
                t = timed(lambda c=call: c(*values), self.device)  # type: ignore[misc]
            except Exception as fault:  # whatever it raises, it is not for this group
                self.failures[f"{type(fault).__name__}: {str(fault).splitlines()[:1]}"] += 1
                continue
            if t < at:
                best, at = text, t
        return Decision(best, at, "measured", library)


def _library(closed: Cluster) -> Callable[[Sequence[Tensor]], list[Tensor]]:
    """A group's operators as library calls."""
    nodes = [n for n in closed.graph.nodes if not n.is_leaf]
    calls = [(n, aten.bound(n)) for n in nodes]
    leaves = (*closed.graph.inputs, *closed.graph.parameters)

    def run(values: Sequence[Tensor]) -> list[Tensor]:
        at: dict[Node, Any] = dict(zip(leaves, values, strict=True))
        for n, call in calls:
            made = call(*(None if a is None else at[a] for a in n.args))
            at[n] = made.to(values[0].device) if not n.args and values else made
        return [at[n] for n in closed.graph.results]

    return run


def library_seconds(closed: Cluster, gpu: Gpu) -> float:
    """What library calls should take: each operator by itself, by the roofline, at 85%; views of
    memory, and what is picked from a call with several results, nothing."""
    total = 0.0
    for n in closed.graph.nodes:
        if n.is_leaf or not n.args or n.op in aten.VIEWS or n.op == "item":
            continue
        cost = node_cost(n)
        flops = float(cost.flops) if isinstance(cost.flops, int) else 0.0
        moved = float(cost.bytes) if isinstance(cost.bytes, int) else 0.0
        kind = n.dtype.value
        total += gpu.launch + max(flops / gpu.rate(kind), moved / gpu.bandwidth) / 0.85
    return total


def _close(got: Tensor, want: Tensor) -> bool:
    if not got.dtype.is_floating_point:
        return torch.equal(got, want)
    got, want = got.double().nan_to_num(0, 0, 0), want.double().nan_to_num(0, 0, 0)
    scale = float(want.abs().max()) if want.numel() else 0.0
    return float((got - want).abs().max() if got.numel() else 0.0) <= 5e-2 * max(scale, 1e-6)


def timed(call: Callable[[], object], device: torch.device, rounds: int = 20) -> float:
    """Seconds of a call's kernels: the least of several rounds, launches queued behind each other.

    The L2 cache is written over between rounds, as other layers of a model do.
    """
    if device.type != "cuda":
        begin = time.perf_counter()
        call()
        return time.perf_counter() - begin
    flush = torch.empty(128 << 20, dtype=torch.uint8, device=device)
    for _ in range(3):
        call()
    events = []
    for _ in range(rounds):
        flush.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        events.append((start, end))
    torch.cuda.synchronize(device)
    times = sorted(a.elapsed_time(b) for a, b in events)
    return 1e-3 * float(times[len(times) // 4])


# -- the engine ------------------------------------------------------------------------------------
def lowered_for(graph: Graph, tuned: Tuned, device: torch.device) -> Lowered:
    """A graph with each group as it was decided."""
    return tiled(graph, seed(graph, body_nodes(graph)), tuned, device)


def graphs(lowered: Lowered, device: torch.device) -> Bind:
    """The engine: one CUDA graph, captured at the first call.

    Raises:
        InputError: at a call, an input on another device, of another type or shape.
        WhetError: at the first call, where memory runs out; says what the plan needs.
    """
    body = lowered.function()
    types = [
        (aten.torch_dtype(n.dtype), tuple(int(str(s)) for s in n.shape))
        for n in lowered.graph.inputs
    ]

    def checked(inputs: Sequence[Tensor]) -> None:
        for k, (x, (dtype, shape)) in enumerate(zip(inputs, types, strict=True)):
            got = (x.device.type, x.dtype, tuple(x.shape))
            if got != (device.type, dtype, shape):
                raise InputError(
                    f"input {k} is not what the program is for",
                    expected=f"{dtype} {list(shape)} on {device.type}",
                    got=f"{x.dtype} {list(x.shape)} on {x.device}",
                    hint="move it: x.to(device, dtype)",
                )

    def bind(derived: Sequence[Tensor]) -> Bound:
        held = tuple(derived)
        if device.type != "cuda" or interprets():

            def stepwise(inputs: Sequence[Tensor]) -> list[Tensor]:
                checked(inputs)
                return list(body(*inputs, *held))

            return stepwise
        return _Captured(body, held, checked, lowered, device)

    return bind


class _Captured:
    """A body over its constants as a graph of launches; not for two threads at once."""

    def __init__(
        self, body: Callable[..., tuple[Tensor, ...]], held: tuple[Tensor, ...],
        checked: Callable[[Sequence[Tensor]], None], lowered: Lowered, device: torch.device,
    ) -> None:  # fmt: skip
        self.body, self.held, self.checked = body, held, checked
        self.lowered, self.device = lowered, device
        self.graph: Any = None
        self.inputs: list[Tensor] = []
        self.results: tuple[Tensor, ...] = ()

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        self.checked(inputs)
        if self.graph is None:
            self._capture(inputs)
        for mine, x in zip(self.inputs, inputs, strict=True):
            mine.copy_(x, non_blocking=True)
        self.graph.replay()
        return [y.clone() for y in self.results]

    def _capture(self, inputs: Sequence[Tensor]) -> None:
        try:
            self.inputs = [x.clone() for x in inputs]
            side = torch.cuda.Stream(self.device)
            side.wait_stream(torch.cuda.current_stream(self.device))
            with torch.cuda.stream(side):  # kernels are compiled, libraries make their handles
                for _ in range(2):
                    self.body(*self.inputs, *self.held)
            torch.cuda.current_stream(self.device).wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self.results = tuple(self.body(*self.inputs, *self.held))
            self.graph = graph
        except torch.cuda.OutOfMemoryError as fault:
            free, total = torch.cuda.mem_get_info(self.device)
            raise WhetError(
                "the device has too little memory for the program",
                expected=f"{needs(self.lowered, self.held) / GB:.2f} GB: constants and values",
                got=f"{free / GB:.2f} of {total / GB:.2f} GB free",
                hint="a smaller batch, or a narrower element type",
            ) from fault


def needs(lowered: Lowered, derived: Sequence[Tensor]) -> int:
    """Bytes that a program takes: constants, inputs, and values alive at once."""
    inputs = sum(
        math.prod(int(str(s)) for s in n.shape) * max(1, n.dtype.bits // 8)
        for n in lowered.graph.inputs
    )
    return constants(derived) + inputs + working(lowered)
