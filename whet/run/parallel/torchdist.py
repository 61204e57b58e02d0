"""torch.distributed: the one file that knows its names, private ones among them.

    TorchGroup    functional collectives of one process group
    Sends         messages between ranks, by isend and irecv
    connect       the process group and the store, under torchrun or our own launcher
    pretended     a `fake` process group of any size, in which nothing moves
    Mirrored      all ranks of a stage in this process, each collective as torch says it works
    Issued        counts the collectives that torch is asked for, by kind, group size and bytes

Private names of torch: `_C._distributed_c10d`, `ops._c10d_functional`,
`testing._internal.distributed.fake_pg`, `utils._python_dispatch`, `distributed._local_tensor`.
Tested on torch 2.13.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore
from torch.distributed.distributed_c10d import _resolve_process_group  # type: ignore[attr-defined]
from torch.utils._python_dispatch import TorchDispatchMode

from whet.errors import WhetError
from whet.parallel.program import Compute, Exchange, Message, Program, Total
from whet.run.parallel import cores
from whet.run.parallel.exchange import Collectives, Grid, Parts
from whet.run.parallel.message import Routes, dtype_of, joined, room, tag, taken

__all__ = [
    "Issued", "Mirrored", "Sends", "Store", "TorchGroup", "another", "axes_used", "connect",
    "groups", "hosted", "launched", "leave", "mirrors", "pretended",
]  # fmt: skip

HOW = {"sum": "sum", "max": "max", "min": "min", "prod": "product"}
Note = Callable[[str], None]


@dataclass(slots=True)
class TorchGroup:
    """The collectives of one process group, functional ones: results are new tensors.

    Attributes:
        name: by which torch finds the group.
        size: ranks in it.
        note: told of each collective before it starts.
    """

    name: str
    size: int
    note: Note

    def all_reduce(self, t: Tensor, how: str) -> Tensor:
        self.note("all_reduce")
        return self._wait(torch.ops._c10d_functional.all_reduce(_plain(t), HOW[how], self.name))

    def all_gather(self, t: Tensor) -> Tensor:
        self.note("all_gather")
        made = torch.ops._c10d_functional.all_gather_into_tensor(_plain(t), self.size, self.name)
        return self._wait(made)

    def reduce_scatter(self, t: Tensor) -> Tensor:
        self.note("reduce_scatter")
        made = torch.ops._c10d_functional.reduce_scatter_tensor(
            _plain(t), "sum", self.size, self.name
        )
        return self._wait(made)

    def all_to_all(self, t: Tensor) -> Tensor:
        self.note("all_to_all")
        rows = [t.shape[0] // self.size] * self.size
        made = torch.ops._c10d_functional.all_to_all_single(_plain(t), rows, rows, self.name)
        return self._wait(made)

    def _wait(self, t: Tensor) -> Tensor:
        found: Tensor = torch.ops._c10d_functional.wait_tensor(t)
        return found


def _plain(t: Tensor) -> Tensor:
    return t if t.is_contiguous() else t.contiguous()


def axes_used(program: Program, stage: int) -> list[tuple[str, ...]]:
    """The sets of axes along which the ranks of a stage talk, each once, in order."""
    found: dict[tuple[str, ...], None] = {}
    here = program.stages[stage]

    def visit(ops: Sequence[object]) -> None:
        for op in ops:
            if isinstance(op, Exchange) and op.move.kind not in ("slice", "drop"):
                found.setdefault(op.move.axes)
            elif isinstance(op, Total):
                visit(op.ops)
            elif isinstance(op, Compute):
                for _, _, axis, _, _ in op.choice.inner:
                    if axis != here.axes[0][0]:
                        found.setdefault((axis,))

    for piece in here.pieces:
        visit(piece.forward)
        visit(piece.backward)
        for b in piece.buckets:
            for row in b.finish:
                visit(row)
            if b.reduce:
                found.setdefault(b.reduce)
    for _, _, row in here.updates:
        visit(row)
    if here.loss is not None:
        rest = tuple(a for a, _ in here.loss.at.partial if a != here.axes[0][0])
        if rest:
            found.setdefault(rest)
    for m in program.messages:
        if m.sender == stage and m.made == "start":
            for _, _, a in m.source.at.cuts:
                found.setdefault((a,))
    return sorted(found)


def groups(
    program: Program, grids: Sequence[Grid], rank: int, note: Note
) -> dict[int, Callable[[tuple[str, ...]], TorchGroup]]:
    """The process groups of one rank, for each stage that it is in; made once.

    Only its members make a group, in an order that they share.
    """
    made: dict[tuple[int, ...], TorchGroup] = {}
    found: dict[int, Callable[[tuple[str, ...]], TorchGroup]] = {}
    for s in program.stages_of(rank):
        rows: dict[tuple[str, ...], TorchGroup] = {}
        for axes in axes_used(program, s):
            line = tuple(grids[s].line(rank, axes))
            if len(line) == 1:
                rows[axes] = _Alone("", 1, note)
                continue
            if line not in made:
                handle = dist.new_group(list(line), use_local_synchronization=True)
                made[line] = TorchGroup(handle.group_name, len(line), note)
            rows[axes] = made[line]
        found[s] = rows.__getitem__
    return found


class _Alone(TorchGroup):
    """A group of one rank."""

    def all_reduce(self, t: Tensor, how: str) -> Tensor:
        return t

    all_gather = reduce_scatter = all_to_all = lambda self, t: t


@dataclass(slots=True)
class Sends:
    """Messages between stages.

    Sending never waits: the tensor is kept until the end of the step. Receiving waits for its own
    message, which the tag names, so that the order in which others arrive does not matter.
    """

    routes: Routes
    note: Note
    sent: list[tuple[Any, Tensor]] = field(default_factory=list)
    inside: dict[tuple[int, int, object], Tensor] = field(default_factory=dict)

    def send(self, number: int, message: Message, micro: int, parts: Parts) -> None:
        axes = self.routes.grids[message.sender].axes
        for span in self.routes.spans(number):
            if span.source not in parts:
                continue
            t = taken(message, span, parts[span.source], axes)
            if span.source == span.target:
                self.inside[number, micro, span] = t
                continue
            self.note(f"send to {span.target}")
            work = dist.isend(t, span.target, tag=tag(self.routes.program, number, micro))
            self.sent.append((work, t))

    def receive(self, number: int, message: Message, micro: int, ranks: Sequence[int]) -> Parts:
        axes = self.routes.grids[message.receiver].axes
        got: dict[int, list[tuple[Any, Tensor]]] = {}
        for span in self.routes.spans(number):
            if span.target not in ranks:
                continue
            held = self.inside.pop((number, micro, span), None)
            if held is None:
                held = torch.empty(room(message, span, axes), dtype=dtype_of(message.key))
                self.note(f"receive from {span.source}")
                number_ = tag(self.routes.program, number, micro)
                dist.irecv(held, span.source, tag=number_).wait()  # type: ignore[union-attr]
            got.setdefault(span.target, []).append((span, held))
        return {r: joined(message, row, axes) for r, row in got.items()}

    def settle(self) -> None:
        """Wait until everything that was sent has left."""
        for work, _ in self.sent:
            work.wait()
        self.sent.clear()


# -- processes -----------------------------------------------------------------------------------
def connect(timeout: float) -> tuple[int, int, Store]:
    """Join the others: rank, number of ranks, and the store that all can reach.

    Under torchrun, or a launcher that sets the same variables and hosts the store.

    Raises:
        WhetError: the variables are not there.
    """
    try:
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    except (KeyError, ValueError) as fault:
        raise WhetError(
            "this process is not one of several", expected="torchrun, or whet run without it",
            got=f"no {fault}",
        ) from fault  # fmt: skip
    hosted = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    base = TCPStore(
        host, port, size, is_master=rank == 0 and not hosted, timeout=timedelta(seconds=timeout),
        wait_for_workers=False,
    )  # fmt: skip
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = PrefixStore(f"whet/{attempt}", base)
    backend = "cpu:gloo,cuda:nccl"
    if not torch.cuda.is_available():
        backend = "gloo"
        cores.settle_launched()  # before threads are started
    dist.init_process_group(
        backend, store=PrefixStore("group", store), rank=rank, world_size=size,
        timeout=timedelta(seconds=timeout),
    )  # fmt: skip
    return rank, size, store


def hosted(seconds: float) -> TCPStore:
    """A store of this process's, on a free port, for ranks that it starts."""
    return TCPStore(
        "127.0.0.1", 0, None, is_master=True, timeout=timedelta(seconds=seconds),
        wait_for_workers=False,
    )  # fmt: skip


def another(store: Store) -> Store:
    """The same store over a connection of its own, for another thread."""
    found: Store = store.clone()  # type: ignore[attr-defined]
    return found


def leave(value: Any, source: int) -> Any:
    """The end of a run: what one rank has to say to all; then the group is given up."""
    row = [value]
    dist.broadcast_object_list(row, src=source)
    dist.barrier()
    dist.destroy_process_group()
    return row[0]


def launched() -> bool:
    """Whether a launcher has said which rank this process is."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


@contextlib.contextmanager
def pretended(size: int, rank: int = 0) -> Iterator[None]:
    """A process group of any size in which nothing moves: what is issued can be counted."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=size)
    try:
        yield
    finally:
        dist.destroy_process_group()


def mirrors() -> bool:
    """Whether this process can pretend: it is in no process group, and torch has the mode."""
    there = importlib.util.find_spec("torch.distributed._local_tensor") is not None
    return there and not dist.is_initialized()


@dataclass(slots=True)
class Mirrored:
    """The ranks' own exchanges, `Collectives`, for all ranks of a stage at once.

    Under torch's `LocalTensorMode` a tensor is one for each rank, and a collective does to them
    what it does. Within `pretended`, of as many ranks as the plan has.
    """

    grid: Grid
    _groups: dict[tuple[str, ...], TorchGroup] = field(default_factory=dict)

    def exchange(self, op: Exchange, parts: Parts, micro: int) -> Parts:
        if op.move.kind in ("slice", "drop"):  # no rank is asked, and each does something else
            alone = Collectives(self.grid, self._group)
            return {r: alone.exchange(op, {r: t}, micro)[r] for r, t in parts.items()}
        return self._all(parts, lambda c, one: c.exchange(op, one, micro))

    def combine(self, parts: Parts, axes: tuple[str, ...], how: str) -> Parts:
        return self._all(parts, lambda c, one: c.combine(one, axes, how))

    def scatter(self, parts: Parts, axes: tuple[str, ...]) -> Parts:
        return self._all(parts, lambda c, one: c.scatter(one, axes))

    def gather(self, parts: Parts, axes: tuple[str, ...]) -> Parts:
        return self._all(parts, lambda c, one: c.gather(one, axes))

    def _all(self, parts: Parts, do: Callable[[Collectives, Parts], Parts]) -> Parts:
        from torch.distributed._local_tensor import LocalTensor, LocalTensorMode

        one = min(parts)
        with LocalTensorMode(frozenset(parts)):
            made = do(Collectives(self.grid, self._group), {one: LocalTensor(dict(parts))})[one]
        found: Parts = made._local_tensors  # type: ignore[attr-defined]
        return dict(found)

    def _group(self, axes: tuple[str, ...]) -> TorchGroup:
        """One group along some axes; torch finds the others, which lie alike."""
        if axes not in self._groups:
            line = self.grid.line(min(self.grid.coords), axes)
            if len(line) == 1:
                self._groups[axes] = _Alone("", 1, lambda _: None)
            else:
                ranks = [r - line[0] for r in line]  # rank 0, which pretends, has to be in it
                handle = dist.new_group(ranks, use_local_synchronization=True)
                self._groups[axes] = TorchGroup(handle.group_name, len(line), lambda _: None)
        return self._groups[axes]


class Issued(TorchDispatchMode):
    """Counts what torch is asked for: (kind, ranks of the group, bytes) → times.

    Bytes are of the whole tensor of a group, as `whet.parallel.placed.Step.bytes` has them.
    """

    _KINDS: Mapping[str, str] = {
        "all_reduce": "all_reduce",
        "all_gather_into_tensor": "all_gather",
        "reduce_scatter_tensor": "reduce_scatter",
        "all_to_all_single": "all_to_all",
    }

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts: Counter[tuple[str, int, int]] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        if func.namespace == "_c10d_functional":
            kind = self._KINDS.get(func._opname)
            if kind is not None:
                t = made if kind == "all_gather" else args[0]
                size = dist.get_world_size(_resolve_process_group(args[-1]))
                self.counts[kind, size, t.numel() * t.element_size()] += 1
        return made
