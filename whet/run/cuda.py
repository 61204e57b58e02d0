"""Driving a device: what programs need of CUDA, in one place, and what stands in for it on a CPU.

    Cuda       waits, records, races, tells memory: the only calls of torch.cuda that programs make
    Pretended  the same on a processor, in Triton's interpreter: tests and dry runs go through all
               but these few calls
    graphs     the engine: one recording, a CUDA graph, for each signature

Recorded once, a graph of launches runs in memory of its own, and a call is: inputs copied in,
replay, results copied out.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from whet.backend import aten
from whet.backend.lowered import Lowered
from whet.backend.tiled import constants, working
from whet.errors import InputError, WhetError
from whet.machine.gpu import GB, PRESETS, Gpu, preset
from whet.run.engine import Bind

Body = Callable[[], tuple[Tensor, ...]]
FLUSHED = 128 << 20  # bytes written between timings: more than any L2 cache holds
ROUNDS = 20


@dataclass(frozen=True, slots=True)
class Recording:
    """A body recorded once.

    Attributes:
        replay: runs it again, over the memory that it was recorded with.
        results: where each run leaves what it makes.
    """

    replay: Callable[[], object]
    results: tuple[Tensor, ...]


class Cuda:
    """A device, and how it is driven.

    Args:
        device: a CUDA device; the current one where it has no number.

    Attributes:
        tuning: share of the time left for generated kernels that the search for one may take.
    """

    kind = "cuda"
    tuning = 0.25

    def __init__(self, device: torch.device | str) -> None:
        self.device = torch.device(device)
        if self.device.type == "cuda" and self.device.index is None:
            self.device = torch.device("cuda", torch.cuda.current_device())

    @property
    def gpu(self) -> Gpu:
        """What the device is; its number among those here does not matter."""
        return this_gpu(self.device.index or 0)

    @property
    def precision(self) -> str:
        """Of float32 products, as the user has set it for libraries: "tf32" or "ieee"."""
        return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"

    def here(self) -> AbstractContextManager[object]:
        """Within, this device is the current one."""
        if torch.cuda.current_device() == self.device.index:
            return nullcontext()
        return torch.cuda.device(self.device)

    def wait(self) -> None:
        """Until all that was launched has ended."""
        torch.cuda.synchronize(self.device)

    def waited(self, call: Callable[[], object]) -> Callable[[], object]:
        """A call that ends when its kernels do: what is timed on the host's clock."""

        def run() -> object:
            found = call()
            self.wait()
            return found

        return run

    def recorded(self, body: Body) -> Recording:
        """A body as a CUDA graph. It runs twice before: kernels are compiled, libraries make their
        handles.

        Raises:
            RuntimeError: it does what a recording cannot hold, such as waiting for the device.
            torch.OutOfMemoryError: memory runs out.
        """
        with self.here():
            side = torch.cuda.Stream(self.device)
            side.wait_stream(torch.cuda.current_stream(self.device))
            with torch.cuda.stream(side):
                for _ in range(2):
                    body()
            torch.cuda.current_stream(self.device).wait_stream(side)
            self.wait()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
                results = tuple(body())
            return Recording(graph.replay, results)

    def ordered(self, before: Any) -> Any:
        """Has what comes wait for the stream that ran before; gives the one that runs now."""
        now = torch.cuda.current_stream(self.device)
        if before is not None and before != now:
            now.wait_stream(before)
        return now

    def raced(
        self, calls: Sequence[Callable[[], object]], rounds: int = ROUNDS
    ) -> list[list[float]]:
        """Seconds of each call's kernels in each round, by the device's own clock, in turns.

        The L2 cache is written over before each, as other layers of a model do. What is called
        should be recordings: launches from Python would leave gaps.
        """
        with self.here():
            flush = torch.empty(FLUSHED, dtype=torch.uint8, device=self.device)
            for call in calls:
                call()
            events: list[list[tuple[Any, Any]]] = [[] for _ in calls]
            for _ in range(rounds):
                for call, row in zip(calls, events, strict=True):
                    flush.zero_()
                    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                    start.record()
                    call()
                    end.record()
                    row.append((start, end))
            self.wait()
            return [[1e-3 * float(a.elapsed_time(b)) for a, b in row] for row in events]

    def seconds(self, *bodies: Body) -> list[float]:
        """Seconds of each body as a recording: the lower quartile of rounds in turns."""
        made = [self.recorded(b) for b in bodies]
        return [quartile(row) for row in self.raced([r.replay for r in made])]

    def free(self) -> tuple[int, int]:
        """Bytes that are free, and that there are."""
        free, total = torch.cuda.mem_get_info(self.device)
        return int(free), int(total)


class Pretended(Cuda):
    """A processor in a device's place: the same steps, in Triton's interpreter.

    A recording runs its body again, and copies what comes out to where its results lie.

    Args:
        gpu: the preset that decisions are made for.
    """

    kind = "cpu"
    tuning = 0.0

    def __init__(self, gpu: str = "h100") -> None:
        super().__init__("cpu")
        self._gpu = preset(gpu)

    @property
    def gpu(self) -> Gpu:
        return self._gpu

    def here(self) -> AbstractContextManager[object]:
        return nullcontext()

    def wait(self) -> None:
        pass

    def recorded(self, body: Body) -> Recording:
        results = tuple(x.clone() for x in body())

        def replay() -> None:
            for mine, new in zip(results, body(), strict=True):
                mine.copy_(new)

        return Recording(replay, results)

    def ordered(self, before: Any) -> Any:
        return None

    def raced(self, calls: Sequence[Callable[[], object]], rounds: int = 3) -> list[list[float]]:
        found: list[list[float]] = [[] for _ in calls]
        for _ in range(min(rounds, 3)):
            for call, row in zip(calls, found, strict=True):
                begin = time.perf_counter()
                call()
                row.append(time.perf_counter() - begin)
        return found

    def free(self) -> tuple[int, int]:
        return self._gpu.memory, self._gpu.memory


def quartile(times: Iterable[float]) -> float:
    """The lower quartile: what a kernel takes where nothing disturbs it, but for luck."""
    found = sorted(times)
    return found[len(found) // 4]


def at_hand(model: nn.Module, leaves: Iterable[object]) -> Cuda | None:
    """The CUDA device that a model and its inputs lie on; None where they lie elsewhere."""
    tensors = [x for x in leaves if isinstance(x, Tensor)]
    for x in (*tensors, *model.parameters(), *model.buffers()):
        if x.device.type == "cuda":
            return Cuda(x.device)
    return None


def this_gpu(index: int = 0) -> Gpu:
    """The device at hand: what it says of itself, and what data sheets say of its kind.

    Raises:
        WhetError: torch finds none.
    """
    if not torch.cuda.is_available():
        raise WhetError("torch finds no NVIDIA GPU", hint="name one: --target " + "|".join(PRESETS))
    return described(torch.cuda.get_device_properties(index))


def described(said: Any) -> Gpu:
    """The device of which torch says that.

    Args:
        said: `torch.cuda.get_device_properties`.
    """
    near = "h200" if "H200" in said.name else "h100" if "H100" in said.name else "a100"
    if "H100" not in said.name and "H200" not in said.name and said.major >= 9:
        near = "h100"
    known = preset(near)
    share = said.multi_processor_count / known.multiprocessors
    return Gpu(
        name=near if near.upper() in said.name else said.name.lower().replace(" ", "-"),
        capability=10 * said.major + said.minor,
        multiprocessors=said.multi_processor_count,
        shared=int(getattr(said, "shared_memory_per_block_optin", known.shared)),
        shared_each=int(getattr(said, "shared_memory_per_multiprocessor", known.shared_each)),
        l2=int(getattr(said, "L2_cache_size", known.l2)) or known.l2,
        memory=said.total_memory,
        bandwidth=known.bandwidth,
        peak={t: rate * share for t, rate in known.peak.items()},
        registers=int(getattr(said, "regs_per_multiprocessor", known.registers)),
    )


# -- the engine ------------------------------------------------------------------------------------
def graphs(lowered: Lowered, cuda: Cuda, body: Callable[..., Any] | None = None) -> Bind:
    """The engine: one recording, made at the first call.

    Args:
        body: what is recorded, over inputs and derived values; the lowered graph's own by default.

    Raises:
        InputError: at a call, an input on another device, of another type or shape.
        WhetError: at the first call, where memory runs out; says what the plan needs.
    """
    made = lowered.function() if body is None else body
    types = [
        (aten.torch_dtype(n.dtype), tuple(int(str(s)) for s in n.shape))
        for n in lowered.graph.inputs
    ]
    return lambda derived: Replayed(made, tuple(derived), types, lowered, cuda)


class Replayed:
    """A body over its constants, as a recording; calls from several threads take turns.

    Attributes:
        refused: why it is run launch by launch instead, if it is.
    """

    def __init__(
        self, body: Callable[..., Any], held: tuple[Tensor, ...],
        types: Sequence[tuple[torch.dtype, tuple[int, ...]]], lowered: Lowered, cuda: Cuda,
    ) -> None:  # fmt: skip
        self.body, self.held, self.types = body, held, types
        self.lowered, self.cuda = lowered, cuda
        self.refused = ""
        self._recording: Recording | None = None
        self._inputs: list[Tensor] = []
        self._stream: Any = None
        self._lock = threading.Lock()

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        self._check(inputs)
        with self._lock, self.cuda.here():
            if self._recording is None and not self.refused:
                self._record(inputs)
            if self._recording is None:
                return [x.clone() for x in self.body(*inputs, *self.held)]
            self._stream = self.cuda.ordered(self._stream)
            if self._inputs:
                torch._foreach_copy_(self._inputs, list(inputs))
            self._recording.replay()
            return [y.clone() for y in self._recording.results]

    def _check(self, inputs: Sequence[Tensor]) -> None:
        for k, (x, (dtype, shape)) in enumerate(zip(inputs, self.types, strict=True)):
            if x.dtype is not dtype or x.shape != shape or x.device != self.cuda.device:
                raise InputError(
                    f"input {k} is not what the program is for",
                    expected=f"{dtype} {list(shape)} on {self.cuda.device}",
                    got=f"{x.dtype} {list(x.shape)} on {x.device}",
                    hint="move it: x.to(device, dtype)",
                )

    def _record(self, inputs: Sequence[Tensor]) -> None:
        mine = [x.clone() for x in inputs]
        try:
            self._recording = self.cuda.recorded(lambda: tuple(self.body(*mine, *self.held)))
            self._inputs = mine
        except torch.OutOfMemoryError as fault:
            free, total = self.cuda.free()
            raise WhetError(
                "the device has too little memory for the program",
                expected=f"{needs(self.lowered, self.held) / GB:.2f} GB: constants and values",
                got=f"{free / GB:.2f} of {total / GB:.2f} GB free",
                hint="a smaller batch, or a narrower element type",
            ) from fault
        except RuntimeError as fault:
            self.refused = f"not recorded: {(str(fault).splitlines() or [''])[0]}"


def needs(lowered: Lowered, derived: Sequence[Tensor]) -> int:
    """Bytes that a program takes: constants, inputs, and values alive at once."""
    inputs = sum(
        math.prod(int(str(s)) for s in n.shape) * max(1, n.dtype.bits // 8)
        for n in lowered.graph.inputs
    )
    return constants(derived) + inputs + working(lowered)
