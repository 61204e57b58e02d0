"""Compiled kernels measured in a process of their own: what one of them does hurts only its trial.

    verdict := Timing                    it is right, and takes so long
             | Failed(kind, reason)      load | crash | hang | wrong | corrupt | error

A kernel is called once before it is timed: it must give the expected results, leave its operands
alone and write nowhere else. Those that pass are timed in turns, with data in the caches (warm) or
after other data has driven it out (cold), as the program will meet it. Where a kernel takes the
process down, a new one goes on with the others.

Kernels have the interface of `whet.backend`: `void symbol(void *const *args, void *scratch)`, the
operands in order, then the results. A device's kernels are asked about in the same way, of another
runner (`whet.run.launch`).
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np

from whet.run.measure import Timing
from whet.run.runner import Array

RUNNER = Path(__file__).with_name("runner.py")
PACKAGES = RUNNER.parents[2]
KINDS = ("load", "crash", "hang", "wrong", "corrupt", "error")


class Asked(Protocol):
    """What kernels are called with, and what they must give."""

    def write(self, folder: Path) -> None:
        """Puts it where a runner finds it."""


class Trial(Protocol):
    """A kernel."""

    def told(self) -> dict[str, Any]:
        """What a runner is told of it, as JSON."""


Laid = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
"""How a kernel wants an operand: padded with zeros to sizes, split, the parts in an order."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """A compiled kernel: a function of a shared object.

    Attributes:
        library, symbol: where it is.
        scratch_bytes: that it needs.
        laid: operands, by place, that it reads in another order than the task has them.
    """

    library: Path
    symbol: str
    scratch_bytes: int = 0
    laid: Mapping[int, Laid] = field(default_factory=dict, hash=False)

    def told(self) -> dict[str, Any]:
        """For the runner."""
        return {
            "library": str(self.library), "symbol": self.symbol, "scratch": self.scratch_bytes,
            "laid": {str(k): list(map(list, how)) for k, how in self.laid.items()},
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Failed:
    """Why a kernel has no time.

    Attributes:
        kind: load (no such function), crash (a signal), hang (no answer in time), wrong (another
            result), corrupt (it wrote where it must not), error (the runner itself failed).
        reason: in words.
    """

    kind: str
    reason: str


Verdict = Timing | Failed


@dataclass(frozen=True, eq=False)
class Task:
    """What kernels are called with, and what they must give.

    Attributes:
        operands: arrays of the element types that the kernel reads.
        expected: the results, in float64 where they are floats; their shapes are the results'.
        dtypes: element types that the kernel writes.
        tolerance: the largest difference allowed, relative to the largest expected value.
    """

    operands: Sequence[Array]
    expected: Sequence[Array]
    dtypes: Sequence[str]
    tolerance: float = 1e-4

    def write(self, folder: Path) -> None:
        """Puts it where a runner finds it."""
        rows: list[tuple[str, list[int], str]] = []
        for k, operand in enumerate(self.operands):
            np.save(folder / f"in{k}.npy", np.ascontiguousarray(operand))
            rows.append(("in", list(operand.shape), operand.dtype.str))
        for k, (want, dtype) in enumerate(zip(self.expected, self.dtypes, strict=True)):
            np.save(folder / f"want{k}.npy", want)
            rows.append(("out", list(want.shape), dtype))
        spec = {"operands": rows, "results": len(self.expected), "tolerance": self.tolerance}
        (folder / "task.json").write_text(json.dumps(spec))


class _GoneError(Exception):
    """The runner ended, or does not answer."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.failed = Failed(kind, reason)


@dataclass
class Farm:
    """One runner process at a time, started anew when a kernel has taken it down.

    Args:
        threads: that kernels may use.
        patience_s: seconds after which a kernel that was called once is said to hang.
        runner: what Python runs.
        start_s: seconds that a runner may take to begin and to take in a task, if not as many.
        lasting: a runner goes on with the next task.

    Attributes:
        deaths: runners that kernels have taken down.
    """

    threads: int
    patience_s: float = 10.0
    runner: Sequence[str] = (str(RUNNER),)
    start_s: float = 0.0
    lasting: bool = False
    deaths: int = 0
    _process: subprocess.Popen[str] | None = field(default=None, init=False)
    _task: Asked | None = field(default=None, init=False)
    _folder: tempfile.TemporaryDirectory[str] | None = field(default=None, init=False)

    def measure(
        self,
        task: Asked,
        kernels: Mapping[str, Trial],
        *,
        rounds: int = 9,
        cold: bool = False,
        limit_s: float = math.inf,
    ) -> dict[str, Verdict]:
        """Checks every kernel, then times those that are right, in turns.

        Args:
            task: operands and expected results, the same for all.
            kernels: by name.
            rounds: samples of each.
            cold: time single calls after the caches were filled with something else.
            limit_s: a kernel whose call takes longer is timed by that call alone.
        """
        verdicts: dict[str, Verdict] = {}
        place = self._prepared(task)
        pending = list(kernels)
        while pending:
            deaths, right = self.deaths, []
            for name in pending:
                failed = self._checked(place, name, kernels[name])
                if failed is None:
                    right.append(name)
                else:
                    verdicts[name] = failed
            pending = right
            if self.deaths == deaths and right:  # else a new runner knows none of them
                some = {n: kernels[n] for n in right}
                found = self._timed(place, some, rounds, cold, limit_s)
                verdicts |= found
                pending = [n for n in right if n not in found]
        return {name: verdicts[name] for name in kernels}

    def _prepared(self, task: Asked) -> str:
        """The folder of a task; a runner that has it already forgets its kernels."""
        if task is self._task and self._folder is not None:
            if self._process is not None:
                with contextlib.suppress(_GoneError):  # the next question starts a new one
                    self._ask(self._folder.name, "forget")
            return self._folder.name
        if self._folder is not None:  # what an earlier task left behind
            self._folder.cleanup()
        if not self.lasting:
            self._stop()
        self._folder, self._task = tempfile.TemporaryDirectory(prefix="whet-trial-"), task
        task.write(Path(self._folder.name))
        if self._process is not None:
            with contextlib.suppress(_GoneError):
                self._ask(self._folder.name, "task", folder=self._folder.name)
        return self._folder.name

    def _checked(self, place: str, name: str, kernel: Trial) -> Failed | None:
        try:
            answer = self._ask(place, "check", name=name, **kernel.told())
        except _GoneError as gone:
            return gone.failed
        if "failed" in answer:
            return Failed(answer["failed"], answer["reason"])
        return None

    def _timed(
        self, place: str, kernels: Mapping[str, Trial], rounds: int, cold: bool, limit_s: float
    ) -> dict[str, Verdict]:
        """Times of all of them; or, where that goes wrong, what is wrong with one or more."""
        limit = limit_s if math.isfinite(limit_s) else None
        try:
            answer = self._ask(
                place, "time", names=list(kernels), rounds=rounds, cold=cold, limit=limit
            )
        except _GoneError as gone:
            if len(kernels) == 1:
                return dict.fromkeys(kernels, gone.failed)
            # Each was right when called once. Those that fail alone are known by that; where none
            # does, who is to blame is not known, and none is believed.
            failed = {
                n: self._alone(place, n, k, rounds, cold, limit_s) for n, k in kernels.items()
            }
            guilty = {n: f for n, f in failed.items() if f is not None}
            return dict(guilty) or dict.fromkeys(kernels, gone.failed)
        if "failed" in answer:
            return dict.fromkeys(kernels, Failed(answer["failed"], answer["reason"]))
        return {n: Timing(tuple(s), answer["calls"][n]) for n, s in answer["samples"].items()}

    def _alone(
        self, place: str, name: str, kernel: Trial, rounds: int, cold: bool, limit_s: float
    ) -> Failed | None:
        """Why this kernel cannot be timed, found out in a runner of its own."""
        self._stop()
        failed = self._checked(place, name, kernel)
        if failed is None:
            verdict = self._timed(place, {name: kernel}, rounds, cold, limit_s)[name]
            failed = verdict if isinstance(verdict, Failed) else None
        self._stop()
        return failed

    def _ask(self, place: str, do: str, **message: Any) -> dict[str, Any]:
        """A runner's answer; a new runner is told of the task first.

        Raises:
            _GoneError: it died of the question, or does not answer.
        """
        if self._process is None:
            self._process = self._start()
            self._ask(place, "task", folder=place)
        message = {"do": do, **message}
        several = max(1.0, len(message.get("names", ())) / 8)
        patience = self.patience_s * (3 + message.get("rounds", 0)) / 3 * several
        if do == "task":
            patience = max(patience, self.start_s)
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(message) + "\n")
            process.stdin.flush()
            line = _line(process, patience)
        except BrokenPipeError:
            line = ""
        if line is None:
            self._end(process)
            raise _GoneError("hang", f"no answer within {patience:.0f} s")
        if not line:
            code = process.wait()
            self._end(process)
            name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            raise _GoneError("crash", name)
        answer: dict[str, Any] = json.loads(line)
        if "gone" in answer:
            self._end(process)
            raise _GoneError(answer["failed"], answer["reason"])
        return answer

    def _start(self) -> subprocess.Popen[str]:
        # Left to the system, two threads may share a processor for hundreds of calls: times are
        # then eight times what they are with one each.
        bound = {"OMP_NUM_THREADS": str(self.threads), "OMP_PROC_BIND": "true"}
        path = os.pathsep.join(filter(None, (str(PACKAGES), os.environ.get("PYTHONPATH"))))
        environment = {**os.environ, **bound, "PYTHONPATH": path}
        return subprocess.Popen(
            [sys.executable, "-W", "ignore", *self.runner],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True, env=environment, start_new_session=True,
        )  # fmt: skip

    def _end(self, process: subprocess.Popen[str]) -> None:
        self.deaths += 1
        self._process = None
        _finish(process)

    def close(self) -> None:
        """Ends the runner, if there is one, and forgets its task."""
        self._stop()
        folder, self._folder, self._task = self._folder, None, None
        if folder is not None:
            folder.cleanup()

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            _finish(process)

    def __enter__(self) -> Farm:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        fault: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _line(process: subprocess.Popen[str], patience: float) -> str | None:
    """The next line of output; empty at its end, None after `patience` seconds."""
    assert process.stdout is not None
    parts = bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        deadline = time.monotonic() + patience
        while not parts.endswith(b"\n"):
            if not selector.select(max(deadline - time.monotonic(), 0)):
                return None
            chunk = os.read(process.stdout.fileno(), 1 << 16)
            if not chunk:
                return ""
            parts += chunk
    return parts.decode()


def _finish(process: subprocess.Popen[str]) -> None:
    """Kills the process and what it started, and closes the pipes."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
