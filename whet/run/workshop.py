"""Drafts of groups drawn up and compiled, several groups at a time, while nothing is timed.

    group → drafts (whet.kernel.space) → C texts → gcc, beside the next drafts → one shared object

Drawing is Python's work and holds one processor; compilers run on the others meanwhile.
"""

from __future__ import annotations

import ctypes
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from whet.backend import generated
from whet.backend.build import compile_text
from whet.backend.link import joined
from whet.backend.piece import Generated, Packed, Piece, Value
from whet.errors import WhetError
from whet.fuse.partition import Cluster
from whet.kernel.draft import Draft
from whet.kernel.loops import Kernel
from whet.kernel.space import Drafted, drafts
from whet.machine.target import Target

Asked = tuple[Cluster, Sequence[Value | Packed], Sequence[Value]]
"""A group as a program needs it: closed graph, operands and results as they lie."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """A schedule of a group, and its kernel in C."""

    drafted: Drafted
    piece: Piece

    @property
    def call(self) -> Generated:
        """What is compiled."""
        assert isinstance(self.piece.call, Generated)
        return self.piece.call


@dataclass
class Workshop:
    """See the module's docstring.

    Attributes:
        target: that kernels are for.
        entrants: further drafts of a group, by name, given its place and naive kernel.
        failures: reason to count, of drafts that came to nothing.
    """

    target: Target
    entrants: Callable[[str, Cluster, Kernel], Mapping[str, Draft]]
    failures: Counter[str]

    def made(
        self, groups: Mapping[str, Asked], most: int | None = None
    ) -> tuple[dict[str, dict[str, Drawn]], ctypes.CDLL | None]:
        """Drafts of groups by place and name, at `most` so many of each, and the code of them all,
        where there is any."""
        rows: dict[str, dict[str, Drawn]] = {}
        compiling: dict[str, Future[bytes]] = {}
        pool = ThreadPoolExecutor(max(1, self.target.threads))
        try:
            for place, asked in groups.items():
                rows[place] = {}
                for name, drawn in self._drawn(place, asked, most):
                    rows[place][name], unit = drawn, drawn.call
                    if unit.symbol not in compiling:
                        job = pool.submit(compile_text, unit.text, self.target)
                        compiling[unit.symbol] = job
            objects = {s: o for s, job in compiling.items() if (o := self._result(job)) is not None}
        finally:
            pool.shutdown(cancel_futures=True)
        for place, row in rows.items():
            rows[place] = {name: d for name, d in row.items() if d.call.symbol in objects}
        return rows, self._loaded(list(dict.fromkeys(objects.values())))

    def _drawn(
        self, place: str, asked: Asked, most: int | None = None
    ) -> Iterator[tuple[str, Drawn]]:
        closed, operands, results = asked
        known: list[Kernel] = []
        try:
            naively = generated.naive(closed, operands, results)
            found = [
                Drafted(name, other.schedule, other.kernel)
                for name, other in self.entrants(place, closed, naively).items()
            ]
            if most is None or len(found) < most:
                found += drafts(naively, generated.fixed(naively, operands), self.target, most)
            for d in found[:most]:
                if d.kernel in known:
                    continue
                known.append(d.kernel)
                made = generated.scheduled(closed, operands, results, d.kernel, self.target)
                yield d.name, Drawn(d, made)
        except WhetError as fault:
            self._failed(fault)

    def _result(self, job: Future[bytes]) -> bytes | None:
        try:
            return job.result()
        except WhetError as fault:
            self._failed(fault)
            return None

    def _loaded(self, objects: Sequence[bytes]) -> ctypes.CDLL | None:
        if not objects:
            return None
        try:
            with tempfile.TemporaryDirectory(prefix="whet-tune-") as folder:
                library = Path(folder) / "drafts.so"
                library.write_bytes(joined(objects, self.target))
                return ctypes.CDLL(str(library))
        except WhetError as fault:
            self._failed(fault)
            return None

    def _failed(self, fault: WhetError) -> None:
        self.failures[f"{fault.summary}: {fault.got}"] += 1
