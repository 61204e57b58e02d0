"""The static memory plan of a body on a device: where what its generated kernels make lies.

    Arena = bytes, offsets {step: of each result}, beside

Values live from the step that makes them to the last that reads them, or a view of them; those
whose lives overlap get disjoint ranges of one piece of memory (`whet.run.memory`). What library
calls return lies beside it, in the recording's own pool: `beside` is the most of that at one time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from whet.backend import aten
from whet.backend.lowered import Lowered, Slot, Step
from whet.backend.tiled import Generated, working
from whet.fuse.seed import trait
from whet.run.memory import Storage, allocate

Root = tuple[int, int]  # a step, and which of its results


@dataclass(frozen=True, slots=True)
class Arena:
    """See the module's docstring.

    Attributes:
        bytes: of the whole piece.
        offsets: of the results of each generated kernel, by its step.
        lives: first and last step of each, in the order of `offsets`.
        beside: bytes of what library calls leave alive at most.
    """

    bytes: int
    offsets: Mapping[int, tuple[int, ...]]
    lives: Mapping[Root, tuple[int, int]]
    beside: int

    def laid(self, lowered: Lowered, device: torch.device) -> Tensor:
        """Memory for it, in which the body's kernels put their results from now on."""
        memory = torch.empty(max(self.bytes, 1), dtype=torch.uint8, device=device)
        for k, offsets in self.offsets.items():
            call = lowered.body[k].call
            assert isinstance(call, Generated)
            call.into = [
                memory[at : at + size].view(aten.torch_dtype(b.dtype)).view(b.sizes)
                for at, b, size in zip(offsets, call.results, call.sizes, strict=True)
            ]
        return memory


def loosened(lowered: Lowered) -> None:
    """Has a body's kernels make their results in memory of their own."""
    for step in lowered.body:
        if isinstance(step.call, Generated):
            step.call.into = None


def arena(lowered: Lowered) -> Arena:
    """Where results of generated kernels lie."""
    end = len(lowered.body)
    roots: dict[Slot, frozenset[Root]] = {}
    storages: dict[Root, Storage] = {}
    taken: dict[Slot, int] = {}  # how many results of a kernel have been picked out
    makers = {s.target: k for k, s in enumerate(lowered.body) if isinstance(s.call, Generated)}
    for k, step in enumerate(lowered.body):
        read = [s for s in step.operands if s is not None]
        for s in read:
            for r in roots.get(s, ()):
                storages[r].last = k
        if isinstance(step.call, Generated):
            storages |= {(k, n): Storage("arena", size, k, k)
                         for n, size in enumerate(step.call.sizes)}  # fmt: skip
        elif step.kernel == "result":
            (source,) = read
            n = taken[source] = taken.get(source, -1) + 1
            roots[step.target] = frozenset({(makers[source], n)})
        elif _may_alias(step):
            roots[step.target] = frozenset(r for s in read for r in roots.get(s, ()))
    for s in lowered.results:
        for r in roots.get(s, ()):
            storages[r].last = end
    size = allocate(list(storages.values()))
    offsets = {
        k: tuple(storages[k, n].offset for n in range(len(step.call.sizes)))
        for k, step in enumerate(lowered.body) if isinstance(step.call, Generated)
    }  # fmt: skip
    lives = {r: (s.first, s.last) for r, s in storages.items()}
    return Arena(size, offsets, lives, working(lowered))


def _may_alias(step: Step) -> bool:
    """Might what a call returns be memory of an operand?"""
    if step.kernel != "aten" or step.node.op in aten.VIEWS:
        return True
    return trait(step.node).kind in ("movement", "opaque")
