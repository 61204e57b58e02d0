"""whet finds, proves and applies the optimizations that a PyTorch or ONNX model is missing.

import whet
fast = whet.optimize(model, inputs)      # an nn.Module with the same signature and state
fast.report                              # what was done, measured and proven
whet.save(fast, "model.whet")            # runs in another process without searching again
again = whet.load("model.whet")
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from whet.machine import Machine
    from whet.optimize import optimize
    from whet.plan import Plan
    from whet.run.save import load, save

__all__ = ["Machine", "Plan", "load", "optimize", "save"]

_PLACES = {
    "load": "whet.run.save",
    "save": "whet.run.save",
    "Plan": "whet.plan",
    "Machine": "whet.machine",
}


class _Package(types.ModuleType):
    """The package, whose `optimize` is the function even when the module of that name is loaded.

    Importing a submodule sets it as an attribute of its package; that is ignored for this one.
    """

    @property
    def optimize(self) -> Any:
        return importlib.import_module("whet.optimize").optimize

    @optimize.setter
    def optimize(self, value: object) -> None:
        pass


def __getattr__(name: str) -> Any:
    """Names that a user types, imported when they are first asked for (torch takes a second)."""
    if name not in _PLACES:
        raise AttributeError(f"module 'whet' has no attribute {name!r}")
    value = getattr(importlib.import_module(_PLACES[name]), name)
    globals()[name] = value
    return value


sys.modules[__name__].__class__ = _Package
