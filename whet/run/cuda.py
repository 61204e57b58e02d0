"""Driving a device: what programs need of CUDA, in one place, and what stands in for it on a CPU.

    Cuda       waits, records, races, tells memory: the only calls of torch.cuda that programs make
    Pretended  the same on a processor, in Triton's interpreter: tests and dry runs go through all
               but these few calls

Recorded once, a graph of launches runs in memory of its own (`whet.run.replayed`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from whet.errors import WhetError
from whet.machine.gpu import EACH_CLOCK, PRESETS, Gpu, preset

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

    def fork(self, count: int) -> list[Any]:
        """Streams that begin where the current one is."""
        now = torch.cuda.current_stream(self.device)
        found = [torch.cuda.Stream(self.device) for _ in range(count)]
        for stream in found:
            stream.wait_stream(now)
        return found

    def on(self, stream: Any) -> AbstractContextManager[object]:
        """Within, launches go to that stream."""
        return torch.cuda.stream(stream)

    def join(self, streams: Sequence[Any]) -> None:
        """The current stream goes on when all of these have ended."""
        now = torch.cuda.current_stream(self.device)
        for stream in streams:
            now.wait_stream(stream)

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


class Order:
    """A stream's place, on a processor, where everything is in order anyway."""

    def wait_event(self, event: Any) -> None:
        pass

    def record_event(self) -> Any:
        return self


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

    def fork(self, count: int) -> list[Any]:
        return [Order() for _ in range(count)]

    def on(self, stream: Any) -> AbstractContextManager[object]:
        return nullcontext()

    def join(self, streams: Sequence[Any]) -> None:
        pass

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
    """The device of which torch says that; what it leaves open, data sheets of its kind say.

    Args:
        said: `torch.cuda.get_device_properties`.
    """
    near = "h200" if "H200" in said.name else "h100" if "H100" in said.name else "a100"
    if "H100" not in said.name and "H200" not in said.name and said.major >= 9:
        near = "h100"
    known, capability = preset(near), 10 * said.major + said.minor
    return Gpu(
        name=near if near.upper() in said.name else said.name.lower().replace(" ", "-"),
        capability=capability,
        multiprocessors=said.multi_processor_count,
        shared=_said(said, "shared_memory_per_block_optin", known.shared),
        shared_each=_said(said, "shared_memory_per_multiprocessor", known.shared_each),
        l2=_said(said, "L2_cache_size", known.l2),
        memory=said.total_memory,
        bandwidth=_bandwidth(said) or known.bandwidth,
        peak=_peak(said, capability, known),
        registers=_said(said, "regs_per_multiprocessor", known.registers),
        threads=_said(said, "max_threads_per_multi_processor", known.threads),
    )


def _said(said: Any, name: str, otherwise: int) -> int:
    """A number that torch tells of a device, where its version does."""
    return int(getattr(said, name, 0) or otherwise)


def _bandwidth(said: Any) -> float:
    """Bytes a second of memory: twice a clock, over the width of its bus; 0 where that is not
    told."""
    return 2e3 * _said(said, "memory_clock_rate", 0) * _said(said, "memory_bus_width", 0) / 8


def _peak(said: Any, capability: int, known: Gpu) -> dict[str, float]:
    """Operations a second by element type: those of a multiprocessor and clock, by the clock; the
    data sheet's, for as many multiprocessors, where either is not known."""
    clock, each = 1e3 * _said(said, "clock_rate", 0), EACH_CLOCK.get(capability)
    if clock and each is not None:
        return {t: n * clock * said.multi_processor_count for t, n in each.items()}
    share = said.multi_processor_count / known.multiprocessors
    return {t: rate * share for t, rate in known.peak.items()}
