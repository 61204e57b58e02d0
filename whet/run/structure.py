"""What of a module a program takes for given, besides the values of its tensors.

    structure := submodules, modes (training or not), hooks, tensors under several names

A program was made from one structure. Every call asks `altered`, which compares modes and hooks;
where a registered object was replaced, `replaced` says whether the model is another one now. In
both cases the original runs. Hooks that were there when the model was captured are part of the
program as far as they compute with tensors, as torch.export traces them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain
from operator import itemgetter
from typing import Any

from torch import nn

_mode = itemgetter("training")


class Structure:
    """The structure of `module` as it is now."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._submodules = dict(module.named_modules(remove_duplicate=False))
        parts = list(dict.fromkeys(self._submodules.values()))
        self.states: list[dict[str, Any]] = [vars(m) for m in parts]
        self._modes = list(map(_mode, self.states))
        self.hooks = [h for m in parts for h in (m._forward_pre_hooks, m._forward_hooks)]
        self._hooked = list(map(len, self.hooks)) if any(self.hooks) else []
        self._ties = [names for names in _names(module).values() if len(names) > 1]
        # What is registered; comparing these dictionaries with copies of them compares objects.
        self.registers: list[Mapping[str, object]] = [
            d for m in parts for d in (m._parameters, m._buffers, m._modules) if d
        ]

    def altered(self) -> str | None:
        """Why the program is not for the module's present modes and hooks, or None."""
        if list(map(_mode, self.states)) != self._modes:
            return _mode_change(self._module, self.states, self._modes)
        if self._hooked:
            return _HOOKS if list(map(len, self.hooks)) != self._hooked else None
        return _HOOKS if any(self.hooks) else None

    def replaced(self) -> str | None:
        """Why the module is another one than was captured, or None; slower than `altered`."""
        now = dict(self._module.named_modules(remove_duplicate=False))
        for name in dict.fromkeys(chain(self._submodules, now)):
            if now.get(name) is not self._submodules.get(name):
                return f"submodule {name} was replaced"
        tied = {name: key for key, names in _names(self._module).items() for name in names}
        for names in self._ties:
            if len({tied.get(n) for n in names}) > 1:
                return f"{' and '.join(names)} are no longer one tensor"
        return None


_HOOKS = "forward hooks were added or removed"


def _names(module: nn.Module) -> dict[int, list[str]]:
    """Every name of each parameter and buffer, by the object's identity."""
    found: dict[int, list[str]] = {}
    everything: Iterable[tuple[str, object]] = chain(
        module.named_parameters(remove_duplicate=False),
        module.named_buffers(remove_duplicate=False),
    )
    for name, tensor in everything:
        found.setdefault(id(tensor), []).append(name)
    return found


def _mode_change(module: nn.Module, states: list[dict[str, Any]], modes: list[bool]) -> str:
    words = {True: "training", False: "evaluation"}
    if module.training != modes[0]:
        return f"the module is in {words[module.training]} mode, and was captured in the other"
    k = next(k for k, s in enumerate(states) if s["training"] != modes[k])
    name = next(n for n, m in module.named_modules() if vars(m) is states[k])
    mode = words[states[k]["training"]]
    return f"submodule {name} is in {mode} mode, and was captured in the other"
