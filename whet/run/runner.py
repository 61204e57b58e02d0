"""The process in which `whet.run.farm` lets a kernel loose. It imports nothing of whet, nor torch.

One JSON object a line comes in, and one goes out:

    {"do": "task", "folder"}                    operands and expected results, as .npy files
    {"do": "check", "name", "library",
     "symbol", "scratch", "laid"}               load it, call it once, look at everything
    {"do": "time", "names", "rounds",
     "cold", "limit"}                           seconds of a call, in turns
    {"do": "forget"}                            the kernels, not the task

Each operand ends where a page that nobody may touch begins, and has canaries around it: a kernel
that reads far behind its operands is killed by the processor, one that writes there is found out.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

PAGE = mmap.PAGESIZE
LINE = 64  # bytes that every operand is aligned to
CANARY = 0xA5
SAMPLE_S = 1e-3  # a warm sample repeats a short call until it is this long
EVICT = 96 << 20  # bytes written to make caches forget

Array = np.ndarray[Any, Any]


class Guarded:
    """Memory for an array, between two pages that nobody may touch."""

    def __init__(self, shape: tuple[int, ...], dtype: str) -> None:
        self.size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        room = -(-max(self.size, 1) // LINE) * LINE
        inner = -(-room // PAGE) * PAGE
        self._map = mmap.mmap(-1, inner + 2 * PAGE)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        for page in (start, start + PAGE + inner):
            if _libc.mprotect(ctypes.c_void_p(page), PAGE, 0) != 0:
                raise OSError(ctypes.get_errno(), "mprotect")
        self.address = start + PAGE + inner - room
        self._before = _bytes_at(start + PAGE, inner - room)
        self._after = _bytes_at(self.address + self.size, room - self.size)
        self.mend()
        raw = _bytes_at(self.address, self.size)
        self.array: Array = raw.view(dtype).reshape(shape)

    def mend(self) -> None:
        """Puts the canaries back."""
        self._before[:] = CANARY
        self._after[:] = CANARY

    @property
    def untouched(self) -> bool:
        """Whether nobody wrote beside the array."""
        return bool((self._before == CANARY).all() and (self._after == CANARY).all())


_libc = ctypes.CDLL(None, use_errno=True)


def _bytes_at(address: int, count: int) -> Array:
    if count == 0:
        return np.zeros(0, np.uint8)
    memory: Any = (ctypes.c_uint8 * count).from_address(address)
    return np.frombuffer(memory, np.uint8)


class Runner:
    """Operands of one task, and the kernels that were found to be right."""

    def __init__(self) -> None:
        self.calls: dict[str, Any] = {}
        self.laid: dict[tuple[int, str], Guarded] = {}
        self.evict: Array | None = None

    def forget(self) -> dict[str, Any]:
        """Let go of kernels, their scratch, and the operands that were laid out for them."""
        self.calls, self.laid = {}, {}
        return {}

    def task(self, folder: str) -> dict[str, Any]:
        """Take in what kernels are called with."""
        place = Path(folder)
        spec = json.loads((place / "task.json").read_text())
        self.tolerance = float(spec["tolerance"])
        self.given: list[Array | None] = []
        self.operands: list[Guarded] = []
        for k, (kind, shape, dtype) in enumerate(spec["operands"]):
            operand = Guarded(tuple(shape), dtype)
            given = np.load(place / f"in{k}.npy") if kind == "in" else None
            if given is not None:
                operand.array[...] = given
            self.operands.append(operand)
            self.given.append(given)
        self.expected = [np.load(place / f"want{k}.npy") for k in range(spec["results"])]
        self.results = [o for o, g in zip(self.operands, self.given, strict=True) if g is None]
        return {}

    def lay(self, place: int, how: list[list[int]]) -> Guarded:
        """An operand padded with zeros to sizes, each dim split, the parts in another order."""
        key = place, json.dumps(how)
        if key not in self.laid:
            given, (sizes, split, order) = self.given[place], how
            assert given is not None
            padded = np.pad(given, [(0, m - n) for n, m in zip(given.shape, sizes, strict=True)])
            parts = np.ascontiguousarray(padded.reshape(split).transpose(order))
            self.laid[key] = Guarded(parts.shape, parts.dtype.str)
            self.laid[key].array[...] = parts
        return self.laid[key]

    def check(
        self, name: str, library: str, symbol: str, scratch: int, laid: dict[str, list[list[int]]]
    ) -> dict[str, Any]:
        """One call, looked at from all sides; a kernel that passes may be timed."""
        try:
            function = getattr(ctypes.CDLL(library), symbol)
        except (OSError, AttributeError) as fault:
            return {"failed": "load", "reason": str(fault)}
        function.restype = None
        memory = Guarded((max(scratch, 1),), "uint8")
        for result in self.results:
            _bytes_at(result.address, result.size)[:] = CANARY  # what is not written is found
        operands = list(self.operands)
        for place, how in laid.items():
            operands[int(place)] = self.lay(int(place), how)
        before = {k: o.array.tobytes() for k, o in enumerate(operands) if str(k) in laid}
        arguments = (ctypes.c_void_p * len(operands))(*(o.address for o in operands))
        function(arguments, ctypes.c_void_p(memory.address))
        for k, held in before.items():
            if not operands[k].untouched or operands[k].array.tobytes() != held:
                self.laid.clear()
                return {"failed": "corrupt", "reason": f"wrote into or beside operand {k}"}
        for k, (operand, given) in enumerate(zip(self.operands, self.given, strict=True)):
            if not operand.untouched:
                operand.mend()
                return {"failed": "corrupt", "reason": f"wrote beside operand {k}"}
            if given is not None and operand.array.tobytes() != given.tobytes():
                operand.array[...] = given
                return {"failed": "corrupt", "reason": f"wrote into operand {k}, which it reads"}
        if not memory.untouched:
            return {"failed": "corrupt", "reason": f"wrote beside its {scratch} bytes of scratch"}
        worst = 0.0
        for k, (result, want) in enumerate(zip(self.results, self.expected, strict=True)):
            error = distance(result.array, want)
            if not error <= self.tolerance:
                return {
                    "failed": "wrong",
                    "reason": f"result {k} is off by {error:.1e}, {self.tolerance:.1e} is allowed",
                }
            worst = max(worst, error)
        self.calls[name] = (function, arguments, memory)
        return {"error": worst}

    def time(
        self, names: list[str], rounds: int, cold: bool, limit: float | None
    ) -> dict[str, Any]:
        """Seconds of one call of each kernel: a sample a round, the order turning.

        Kernels whose call takes longer than the limit, if there is one, have that sample alone.
        """
        samples: dict[str, list[float]] = {name: [] for name in names}
        repeats = dict.fromkeys(names, 1)
        for name in list(names):
            once = self._call(name, 1)
            if limit and once > limit and (once > 3 * limit or self._call(name, 1) > limit):
                samples[name].append(once)
                names.remove(name)
            elif not cold:
                repeats[name] = self._repeats(name)
        for k in range(rounds if names else 0):
            for name in names[k % len(names) :] + names[: k % len(names)]:
                if cold:
                    self._forget()
                else:
                    self._call(name, 1)  # it finds its data where its last call left it
                samples[name].append(self._call(name, repeats[name]) / repeats[name])
        return {"samples": samples, "calls": repeats}

    def _repeats(self, name: str) -> int:
        once = min(self._call(name, 1) for _ in range(2))
        return max(1, min(1000, round(SAMPLE_S / max(once, 1e-7))))

    def _call(self, name: str, times: int) -> float:
        function, arguments, memory = self.calls[name]
        scratch = ctypes.c_void_p(memory.address)
        clock = time.perf_counter
        began = clock()
        for _ in range(times):
            function(arguments, scratch)
        return clock() - began

    def _forget(self) -> None:
        if self.evict is None:
            self.evict = np.zeros(EVICT, np.uint8)
        self.evict += 1


def distance(got: Array, want: Array) -> float:
    """The largest difference, relative to the largest expected value; infinite where not a number,
    an infinity or an integer is another."""
    if got.shape != want.shape:
        return float("inf")
    if got.dtype.kind in "iub":
        return 0.0 if bool((got.astype(np.int64) == want.astype(np.int64)).all()) else float("inf")
    found, right = got.astype(np.float64), want.astype(np.float64)
    finite = np.isfinite(right)
    odd = ~finite
    if not np.array_equal(found[odd], right[odd], equal_nan=True):
        return float("inf")
    if not finite.any():
        return 0.0
    gap = np.abs(found[finite] - right[finite])
    if not np.isfinite(gap).all():
        return float("inf")
    return float(gap.max() / max(np.abs(right[finite]).max(), 1e-30))


def main() -> None:
    """Answers until the pipe is closed."""
    runner = Runner()
    for line in sys.stdin:
        message = json.loads(line)
        try:
            answer = getattr(runner, message.pop("do"))(**message)
        except Exception as fault:  # told to whoever asked, who knows what to do about it
            answer = {"failed": "error", "reason": f"{type(fault).__name__}: {fault}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
