"""What `whet.optimize` returns: the user's module, with a faster way through it.

`Optimized` shares parameters, buffers and submodules with the original, so `state_dict`, `to`,
`load_state_dict` and the rest mean what they meant. A call that the program was made for runs the
program; any other runs the original, is counted with its reason, or is an error with `strict`.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from whet.errors import InputError
from whet.ir.graph import Graph
from whet.plan import Plan
from whet.run.parameters import Parameters
from whet.run.program import Program
from whet.run.signature import Signature


@dataclass(frozen=True)
class Found:
    """What a search found, for saving: graphs before and after, the plan, the compiled body."""

    source: Graph
    graph: Graph
    plan: Plan
    region: bytes | None
    parameters: Parameters


class Optimized(nn.Module):
    """An optimized module; see the module's docstring.

    Args:
        original: the user's module, never edited.
        program: the optimized program, or None where nothing was faster than the original.
        signature: the calls that the program is for.
        updates: leaf of the arguments or name of a buffer that each updated value goes to.
        report: what was done and measured.
        strict: raise `InputError` for calls that the program is not for.
    """

    original: nn.Module
    program: Program | None
    signature: Signature
    updates: tuple[str, ...]
    report: Any
    strict: bool
    fallbacks: Counter[str]
    calls: int
    _lock: threading.Lock
    found: Found

    def __init__(
        self,
        original: nn.Module,
        program: Program | None,
        signature: Signature,
        *,
        updates: tuple[str, ...] = (),
        report: Any = None,
        strict: bool = False,
    ) -> None:
        super().__init__()
        # Shared, not copied: the same dictionaries, so both modules always agree.
        self._parameters = original._parameters
        self._buffers = original._buffers
        self._modules = original._modules
        self._non_persistent_buffers_set = original._non_persistent_buffers_set
        self.training = original.training
        self.__dict__.update(
            original=original, program=program, signature=signature, updates=updates,
            report=report, strict=strict, fallbacks=Counter(), calls=0, _lock=threading.Lock(),
        )  # fmt: skip

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The original's signature and result."""
        program: Program | None = self.__dict__["program"]
        signature: Signature = self.__dict__["signature"]
        self.__dict__["calls"] += 1
        if program is None:
            return self.original(*args, **kwargs)
        leaves = signature.flatten(args, kwargs)
        reason = "arguments of another structure" if leaves is None else signature.misfit(leaves)
        if reason is None:
            assert leaves is not None
            reason = self._unfit(leaves)
        if reason is not None or leaves is None:
            return self._fall_back(str(reason), args, kwargs)
        results = program(signature.inputs(leaves))
        if self.updates:
            self._write(results)
        return signature.unflatten(results, leaves)

    def refresh(self) -> None:
        """Derive folded and packed weights anew; needed only after edits that leave no trace."""
        if self.program is not None:
            self.program.refresh()

    def _unfit(self, leaves: list[object]) -> str | None:
        if self.original.training:
            return "the module is in training mode"
        if os.environ.get("WHET") == "off":
            return "WHET=off"
        if torch.is_grad_enabled():
            if any(isinstance(v, Tensor) and v.requires_grad for v in leaves):
                return "an input requires gradients"
            if any(p.requires_grad for p in self.original.parameters()):
                return "gradients may be asked for: call under torch.no_grad()"
        return None

    def _fall_back(self, reason: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.strict:
            raise InputError(
                "the program is not for this call",
                expected=self.signature,
                got=reason,
                hint="optimize for these inputs too, or leave strict off to run the original",
            )
        with self._lock:
            first = not self.fallbacks[reason]
            self.fallbacks[reason] += 1
        if first and reason != "WHET=off":
            warnings.warn(f"whet runs the original module: {reason}", stacklevel=3)
        try:
            return self.original(*args, **kwargs)
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as fault:
            raise InputError(
                "neither the optimized program nor the original module takes these arguments",
                expected=self.signature,
                got=f"{reason}; the original says: {str(fault).splitlines()[0]}",
                hint="pass inputs of the captured types, or optimize with inputs like these",
            ) from fault

    def _write(self, results: list[Tensor]) -> None:
        """Mutations of buffers, which the program returns as values."""
        updated = results[len(results) - len(self.updates) :]
        with torch.no_grad():
            for name, value in zip(self.updates, updated, strict=True):
                self.original.get_buffer(name).copy_(value)

    def train(self, mode: bool = True) -> Optimized:
        """As for any module; in training mode the original runs."""
        self.original.train(mode)
        self.training = mode
        return self

    def extra_repr(self) -> str:
        """Which engine runs it."""
        return "original" if self.program is None else f"engine={self.program.engine}"
