"""What `whet.optimize` returns: the user's module, with a faster way through it.

    call := the program                    where it was made for these arguments, this mode and
                                           this structure, and nobody asks for gradients
          | the original, counted          anywhere else: a reason is warned of once
          | InputError                     the same with `strict`, and where the original, too,
                                           does not take the arguments

`Optimized` shares parameters, buffers and submodules with the original, so `state_dict`, `to`,
`load_state_dict` and the rest mean what they meant, and what the original has besides is found on
it too. Hooks that the original had when it was captured are in the program as far as they compute
with tensors; with hooks added later the original runs. Attributes that are no tensors are fixed.
"""

from __future__ import annotations

import copy
import inspect
import os
import threading
import warnings
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from whet.errors import InputError, WhetError, first_line
from whet.ir.graph import Graph
from whet.plan import Plan
from whet.run.calling import Bound as NativeBound
from whet.run.parameters import Parameters
from whet.run.program import Program
from whet.run.quick import Quick
from whet.run.signature import Signature, TensorArgument, described

_REASONS = 32  # distinct reasons that are counted apart
_OFF = "WHET=off"


@dataclass(frozen=True)
class Found:
    """What a search found, for saving: graphs before and after, the plan, the compiled body."""

    source: Graph
    graph: Graph
    plan: Plan
    region: bytes | None
    parameters: Parameters
    journals: tuple[str, ...] = ()


class Optimized(nn.Module):
    """An optimized module; see the module's docstring.

    Args:
        original: the user's module, never edited.
        program: the optimized program, or None where nothing was faster than the original.
        signature: the calls that the program is for.
        updates: leaf of the arguments or name of a buffer that each updated value goes to.
        report: what was done and measured.
        strict: raise `InputError` for calls that the program is not for.
        forward: how the original is called; read off its `forward` unless given.

    Attributes:
        fallbacks: how many calls ran the original, by reason.
    """

    original: nn.Module
    program: Program | None
    signature: Signature
    updates: tuple[str, ...]
    report: Any
    strict: bool
    fallbacks: Counter[str]
    found: Found
    _lock: threading.Lock
    _called: int
    _quick: Quick | None
    __signature__: inspect.Signature

    def __init__(
        self,
        original: nn.Module,
        program: Program | None,
        signature: Signature,
        *,
        updates: tuple[str, ...] = (),
        report: Any = None,
        strict: bool = False,
        forward: inspect.Signature | None = None,
    ) -> None:
        super().__init__()
        # Shared, not copied: the same dictionaries, so both modules always agree.
        self._parameters = original._parameters
        self._buffers = original._buffers
        self._modules = original._modules
        self._non_persistent_buffers_set = original._non_persistent_buffers_set
        self.training = original.training
        forward = forward or inspect.signature(original.forward)
        vars(self).update(
            original=original, program=program, signature=signature, updates=updates,
            report=report, strict=strict, fallbacks=Counter(), _lock=threading.Lock(),
            __signature__=forward, _called=0, _quick=None,
        )  # fmt: skip

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """By the short way where one is laid and nothing has changed."""
        quick = self.__dict__["_quick"]
        if quick is not None and not kwargs and not torch.compiler.is_compiling():
            program = self.__dict__["program"]
            if program is not None and program.is_bound(quick.bound):
                found = quick.call(*args)
                if found is not None:
                    return found
        return super().__call__(*args, **kwargs)

    @property
    def calls(self) -> int:
        """How many calls there were in all."""
        quick = self._quick
        return self._called + (quick.calls if quick is not None else 0)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The original's signature and result.

        Raises:
            InputError: neither the program nor the original takes the arguments, or the program
                does not and `strict` is set.
        """
        program = self.program
        with self._lock:
            vars(self)["_called"] += 1
        if program is None or torch.compiler.is_compiling():
            return self.original(*args, **kwargs)
        if os.environ.get("WHET") == "off":
            return self._fall_back(_OFF, args, kwargs)
        if not kwargs and self.signature.fits(args):
            leaves: list[Any] = list(args)
        else:
            found = self._leaves(args, kwargs)
            if isinstance(found, str):
                return self._fall_back(found, args, kwargs, misfit=True)
            leaves = found
        if (reason := self._unfit(program, leaves)) is not None:
            return self._fall_back(reason, args, kwargs)
        try:
            results = program(self.signature.inputs(leaves))
        except InputError as fault:
            return self._fall_back(str(fault.got), args, kwargs)
        self._shorten(program)
        if self.updates:
            self._write(results, leaves)
        return self.signature.unflatten(results, leaves)

    def _shorten(self, program: Program) -> None:
        """Lay the short way, for the parameters as they are bound now."""
        quick, form = self._quick, self.signature.form
        if form is None or self.updates or (quick is not None and program.is_bound(quick.bound)):
            return
        bound, mark = program.marked()
        if isinstance(bound, NativeBound):
            with self._lock:
                vars(self)["_called"] += 0 if quick is None else quick.calls
                vars(self)["_quick"] = Quick(bound, mark, program.parameters, self, form)

    def refresh(self) -> None:
        """Derive folded and packed weights anew.

        Needed only after a write through `.data`, numpy or shared memory that leaves the middle of
        a large tensor as it was: every other change is noticed.

        Raises:
            InputError: the parameters are not what the program was made for any more.
        """
        if self.program is not None:
            self.program.refresh()

    def _leaves(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any] | str:
        """The call's leaves in the program's order, or why it is not for the program."""
        leaves = self.signature.flatten(args, kwargs)
        if leaves is None:
            args, kwargs = self.signature.rearranged(args, kwargs, self.__signature__)
            leaves = self.signature.flatten(args, kwargs)
        if leaves is None:
            return f"arguments of another structure, got {described(args, kwargs)}"
        return self.signature.misfit(leaves) or leaves

    def _unfit(self, program: Program, leaves: list[Any]) -> str | None:
        """Why the program is not for a call with fitting arguments at this moment, or None."""
        if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
            return "autocast is on"
        structure = program.parameters.structure
        if structure is not None and (reason := structure.altered()):
            return reason
        if torch.is_grad_enabled():
            if any(isinstance(v, Tensor) and v.requires_grad for v in leaves):
                return "an input requires gradients: call under torch.no_grad()"
            if any(p.requires_grad for p in program.parameters.tensors().values()):
                return "gradients may be asked for: call under torch.no_grad()"
        return None

    def _fall_back(
        self, reason: str, args: tuple[Any, ...], kwargs: dict[str, Any], misfit: bool = False
    ) -> Any:
        if self.strict and reason != _OFF:
            raise InputError(
                "the program is not for this call",
                expected=self.signature, got=reason,
                hint="optimize for these inputs too, or leave strict off to run the original",
            )  # fmt: skip
        kind = reason.partition(", got ")[0]
        with self._lock:
            if reason not in self.fallbacks and len(self.fallbacks) >= _REASONS:
                reason = f"{kind}, got others"
            first = not any(known.startswith(kind) for known in self.fallbacks)
            self.fallbacks[reason] += 1
        if first and reason != _OFF:
            # Past this method, `forward` and three more calls of modules: to the user's line.
            warnings.warn(f"whet runs the original module: {reason}", stacklevel=6)
        if not misfit:
            return self.original(*args, **kwargs)
        try:
            return self.original(*args, **kwargs)
        except WhetError:
            raise
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as fault:
            said = first_line(fault)
            raise InputError(
                "neither the optimized program nor the original module takes these arguments",
                expected=self.signature, got=f"{reason}; the original says: {said}",
                hint="pass inputs of the captured types, or optimize with inputs like these",
            ) from fault  # fmt: skip

    def _write(self, results: list[Tensor], leaves: list[Any]) -> None:
        """Mutations of buffers and of arguments, which the program returns as values."""
        updated = results[len(results) - len(self.updates) :]
        given = {
            a.name: v
            for a, v in zip(self.signature.arguments, leaves, strict=True)
            if isinstance(a, TensorArgument)
        }
        with torch.no_grad():
            for name, value in zip(self.updates, updated, strict=True):
                target = given.get(name)
                (self.original.get_buffer(name) if target is None else target).copy_(value)

    def train(self, mode: bool = True) -> Optimized:
        """As for any module; in another mode than was captured the original runs."""
        self.original.train(mode)
        self.training = mode
        return self

    def __getattr__(self, name: str) -> Any:
        """What the original has and an nn.Module does not: its configuration, its methods."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            original = vars(self).get("original")
            if original is None or name.startswith("__"):
                raise
            return getattr(original, name)

    def __deepcopy__(self, memo: dict[int, Any]) -> Optimized:
        """Another original and another program over its parameters; compiled code is shared."""
        original = copy.deepcopy(self.original, memo)
        program = self.program
        if program is not None:
            program = program.on(program.parameters.of(original))
        new = Optimized(
            original, program, self.signature, updates=self.updates,
            report=copy.deepcopy(self.report, memo), strict=self.strict, forward=self.__signature__,
        )  # fmt: skip
        found = vars(self).get("found")
        if found is not None:
            vars(new)["found"] = replace(found, parameters=found.parameters.of(original))
        memo[id(self)] = new
        return new

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise WhetError(
            "an optimized module is not pickled: compiled code belongs to its process",
            hint="whet.save(module, folder) and whet.load(folder); or pickle module.original",
        )

    def extra_repr(self) -> str:
        """Which engine runs it."""
        return "original" if self.program is None else f"engine={self.program.engine}"
