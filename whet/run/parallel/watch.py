"""Which rank it was: signs of life in the store, and replicas that must agree.

Every rank writes twice a second where it is: the step, how many operations it has begun, and
whether it waits for others. When a collective fails or takes too long, each survivor reads what the
others wrote and names the one at fault:

    said so     it failed with an error of its own, and wrote it down
    died        it has given no sign of life for some seconds
    hangs       it lives, and does not come to what the others wait for
    diverges    its copy of a parameter differs from those of the other ranks, or is no number
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch.distributed as dist

from whet.errors import WhetError
from whet.run.parallel.torchdist import Store, another

BEAT_S = 0.25
STALE_S = 3.0


class RankFailed(WhetError):
    """A run that ended because of one rank; says which."""


@dataclass(slots=True)
class Watch:
    """One rank's signs of life, and its view of the others.

    Attributes:
        patience: seconds that this rank waits for others in one operation. Torch's functional
            collectives wait without end, whatever the group's timeout is, and cannot be called
            back: a rank whose patience ends says who it was and ends itself.
        step, begun, doing: where this rank is.
    """

    store: Store
    rank: int
    size: int
    patience: float = math.inf
    step: int = 0
    begun: int = 0
    doing: str = "starting"
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None
    _since: float = math.inf

    def start(self) -> None:
        """Begin to give signs."""
        own = another(self.store)
        self._write(own)
        self._thread = threading.Thread(target=self._beat, args=(own,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End it."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=2)

    def begin(self, step: int) -> None:
        """This rank begins a step, and says so at once."""
        self.step = step
        self._write(self.store)

    def note(self, what: str) -> None:
        """This rank begins something that others take part in."""
        self.begun += 1
        self._since = time.monotonic()
        self.doing = what

    def computing(self) -> None:
        """This rank is by itself again."""
        self._since = math.inf
        self.doing = ""

    def _beat(self, store: Store) -> None:
        while not self._stop.wait(BEAT_S):
            with contextlib.suppress(RuntimeError):
                self._write(store)
            if time.monotonic() - self._since > self.patience:
                self._since = math.inf
                threading.Thread(target=self._give_up, daemon=True).start()  # signs go on meanwhile

    def _give_up(self) -> None:
        """End this process, which waits for a rank that does not come."""
        begun = self.begun
        text = self.blame(TimeoutError(f"waited for {self.patience} s"))
        if text is None or self.begun != begun or self._stop.is_set():
            return
        fault = RankFailed(
            text, where=f"rank {self.rank}, step {self.step}, {self.doing}",
            hint="continue from the last checkpoint with --resume",
        )  # fmt: skip
        print(f"error: {fault}", file=sys.stderr, flush=True)
        os._exit(1)

    def _write(self, store: Store) -> None:
        row = {"at": time.time(), "step": self.step, "begun": self.begun, "doing": self.doing}
        store.set(f"beat/{self.rank}", json.dumps(row))

    # -- after a failure -------------------------------------------------------------------------
    def say(self, text: str) -> None:
        """Write down an error of this rank's own."""
        with contextlib.suppress(RuntimeError):
            self.store.set(f"failed/{self.rank}", text)

    def blame(self, fault: BaseException) -> str | None:
        """The rank at fault and what it did; None if it is this one.

        Waits until a dead rank would have missed its beats.
        """
        end = time.time() + STALE_S + 2 * BEAT_S
        while True:
            for r in range(self.size):
                if r != self.rank and self.store.check([f"failed/{r}"]):
                    text = self.store.get(f"failed/{r}").decode()
                    return f"rank {r} failed: {text}"
            rows = self._rows()
            for r, row in rows.items():
                if r != self.rank and time.time() - row["at"] > STALE_S:
                    return f"rank {r} died at step {row['step']}: no sign of life for {STALE_S} s"
            if time.time() > end:
                break
            time.sleep(BEAT_S)
        if not _of_others(fault):
            return None
        late = min(
            (r for r in rows if r != self.rank), key=lambda r: (rows[r]["step"], rows[r]["begun"]),
            default=None,
        )  # fmt: skip
        if late is None:
            return None
        row = rows[late]
        if (row["step"], row["begun"]) >= (self.step, self.begun):
            return None
        return (
            f"rank {late} hangs at step {row['step']}, after {row['begun']} operations with others;"
            f" this one has begun {self.begun}"
        )

    def _rows(self) -> dict[int, dict[str, Any]]:
        found = {}
        for r in range(self.size):
            if self.store.check([f"beat/{r}"]):
                found[r] = json.loads(self.store.get(f"beat/{r}"))
        return found


def _of_others(fault: BaseException) -> bool:
    """Whether an exception came from a collective."""
    text = str(fault)
    marks = ("Connection", "connection", "timed out", "Timed out", "gloo", "NCCL", "Broken pipe")
    return isinstance(fault, dist.DistError | TimeoutError) or any(m in text for m in marks)


# -- replicas ------------------------------------------------------------------------------------
Sums = Mapping[str, tuple[float, float]]  # part of a parameter: its sum, and that of magnitudes


def disagreement(found: Sequence[Sums], tolerance: float) -> str | None:
    """The rank whose parts are no numbers, or differ from those of most ranks that hold the same.

    Args:
        found: of each rank, the sums of its parts, keyed alike where they have to be equal.
    """
    holders: dict[str, list[int]] = {}
    for rank, sums in enumerate(found):
        for name, (total, size) in sums.items():
            if not (math.isfinite(total) and math.isfinite(size)):
                return f"rank {rank} diverges: {name.partition(' ')[0]} is no number any more"
            holders.setdefault(name, []).append(rank)
    odd: Counter[int] = Counter()
    where: dict[int, str] = {}
    for name, ranks in holders.items():
        if len(ranks) < 2:
            continue
        rows = sorted(found[r][name][0] for r in ranks)
        middle = rows[len(rows) // 2]
        apart = [
            r for r in ranks
            if abs(found[r][name][0] - middle) > tolerance * max(found[r][name][1], 1e-30)
        ]  # fmt: skip
        if apart and len(ranks) == 2:
            apart = ranks  # of two nobody can say which is the odd one
        odd.update(apart)
        for r in apart:
            where.setdefault(r, name.partition(" ")[0])
    if not odd:
        return None
    most = max(odd.values())
    worst = [r for r, n in odd.items() if n == most]
    if len(worst) == 1:
        return f"rank {worst[0]} diverges: its {where[worst[0]]} differs from that of its replicas"
    names = " and ".join(map(str, sorted(worst)))
    return f"ranks {names} diverge: they hold different {where[worst[0]]}"
