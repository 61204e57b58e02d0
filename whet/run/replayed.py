"""The engine of a device: one recording, a CUDA graph, for each signature.

    graphs     lowered graph → engine             recorded at the first call
    Replayed   inputs copied in, replay, results copied out

Inputs may lie as they like: they are copied to where the recording reads them. What generated
kernels make lies in one piece of memory that was planned ahead (`whet.run.arena`); what runs out of
memory says what the plan needs.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from whet.backend import aten
from whet.backend.lowered import Lowered
from whet.backend.tiled import constants
from whet.errors import InputError, WhetError, first_line
from whet.machine.gpu import GB
from whet.run.arena import arena, loosened
from whet.run.cuda import Cuda, Recording
from whet.run.engine import Bind

_RECORDING = threading.Lock()  # recordings of one body share its kernels, and say where these write


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
    planned = body is None
    return lambda derived: Replayed(made, tuple(derived), types, lowered, cuda, planned)


class Replayed:
    """A body over its constants, as a recording; calls from several threads take turns.

    Attributes:
        memory: where its kernels put their results, once it is recorded and if that is planned.
        refused: why it is run launch by launch instead, if it is.
    """

    def __init__(
        self, body: Callable[..., Any], held: tuple[Tensor, ...],
        types: Sequence[tuple[torch.dtype, tuple[int, ...]]], lowered: Lowered, cuda: Cuda,
        planned: bool = False,
    ) -> None:  # fmt: skip
        self.body, self.held, self.types = body, held, types
        self.lowered, self.cuda = lowered, cuda
        self._arena = arena(lowered) if planned else None
        self.memory: Tensor | None = None
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
                with _RECORDING:
                    loosened(self.lowered)
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
        try:
            mine = [x.clone(memory_format=torch.contiguous_format) for x in inputs]
            with _RECORDING:
                if self._arena is None:
                    loosened(self.lowered)
                else:
                    self.memory = self._arena.laid(self.lowered, self.cuda.device)
                self._recording = self.cuda.recorded(lambda: tuple(self.body(*mine, *self.held)))
            self._inputs = mine
        except torch.OutOfMemoryError as fault:
            free, total = self.cuda.free()
            raise WhetError(
                "the device has too little memory for the program",
                expected=needed(self.lowered, self.held),
                got=f"{free / GB:.2f} of {total / GB:.2f} GB free",
                hint="a smaller batch, or a narrower element type",
            ) from fault
        except RuntimeError as fault:
            self.refused = f"not recorded: {first_line(fault)}"


def needed(lowered: Lowered, derived: Sequence[Tensor]) -> str:
    """What a program needs by its plan, in words."""
    plan = arena(lowered)
    parts = {
        "constants": constants(derived), "inputs": _inputs(lowered),
        "generated kernels": plan.bytes, "library calls": plan.beside,
    }  # fmt: skip
    listed = ", ".join(f"{name} {n / GB:.2f}" for name, n in parts.items())
    return f"{needs(lowered, derived) / GB:.2f} GB: {listed}"


def needs(lowered: Lowered, derived: Sequence[Tensor]) -> int:
    """Bytes that a program takes: constants, inputs, and values alive at once."""
    plan = arena(lowered)
    return constants(derived) + _inputs(lowered) + plan.bytes + plan.beside


def _inputs(lowered: Lowered) -> int:
    return sum(
        math.prod(int(str(s)) for s in n.shape) * max(1, n.dtype.bits // 8)
        for n in lowered.graph.inputs
    )
