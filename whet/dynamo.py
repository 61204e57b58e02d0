"""`torch.compile(model, backend="whet")`: for models that only Dynamo can capture.

Dynamo hands over one traced region after the other, with the module's parameters and buffers as
inputs among the others. They are made a module's own again, so that weights are folded and packed,
and the region takes the way that every model takes.

    region, examples --Lifted--> module, inputs --optimize--> program --_Region--> what Dynamo calls

A region that whet is not for (open sizes, gradients, what cannot be captured) runs as it was
traced. That is reported once, as a warning, and counted by reason in Dynamo's own counters:
`torch._dynamo.utils.counters["whet"]`.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from whet.errors import InputError, WhetError
from whet.optimize import optimize
from whet.run.module import Optimized

OPTIONS = frozenset({"budget_s", "disable", "progress", "store", "strict"})


class DynamoWarning(UserWarning):
    """A region that runs as it was traced, and why."""


def backend(
    region: fx.GraphModule,
    examples: Sequence[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Callable[..., Any]:
    """What torch.compile calls for each region.

    Args:
        region: the traced calls; parameters and buffers are inputs.
        examples: a value for each of its inputs.
        mode: none is known.
        options: of `whet.optimize`: budget_s, disable, progress, store, strict. With `strict` a
            region that whet is not for is an error.

    Returns:
        A callable on the same inputs, with the same tuple of results.

    Raises:
        InputError: a mode, or an option that is not known.
        WhetError: with `strict`, the region is not for whet.
    """
    chosen = dict(options or {})
    if mode is not None or not chosen.keys() <= OPTIONS:
        raise InputError(
            'torch.compile(backend="whet") does not know this',
            expected=f"no mode, and options among {', '.join(sorted(OPTIONS))}",
            got=f"mode {mode!r}, options {', '.join(chosen) or 'none'}",
        )
    if os.environ.get("WHET") == "off":
        return region.forward
    strict = bool(chosen.pop("strict", False))
    reason = unfit(region, examples)
    if reason is None:
        lifted = Lifted(region, examples)
        try:
            # Dynamo is in the midst of tracing; what is traced within must not see that.
            with torch._guards.tracing(None), torch.no_grad():
                optimized = optimize(lifted, lifted.inputs(examples), strict=strict, **chosen)
            if strangers := set(optimized.updates) - set(lifted.names):
                reason = f"it writes to its inputs: {', '.join(sorted(strangers))}"
            else:
                return _Region(lifted, optimized)
        except WhetError as fault:
            if strict:
                raise
            reason = fault.summary if fault.where is None else f"{fault.summary}, {fault.where}"
    if strict:
        raise InputError("a region of the model is not for whet", got=reason)
    return _declined(region, reason)


def unfit(region: fx.GraphModule, examples: Sequence[Any]) -> str | None:
    """Why whet is not for a region, as far as its inputs tell; None if nothing does."""
    if not all(isinstance(e, Tensor) for e in examples):
        return "its sizes or numbers are open: torch.compile(…, dynamic=False) closes them"
    if torch.is_grad_enabled() and any(e.requires_grad for e in examples):
        return "gradients may be asked for: call under torch.no_grad()"
    if any(isinstance(e, torch._subclasses.FakeTensor) for e in examples):
        return "its inputs have no values"
    inputs = [n for n in region.graph.nodes if n.op == "placeholder"]
    memory = {_storage(n) for n in inputs} - {None}
    (results,) = (n.args[0] for n in region.graph.nodes if n.op == "output")
    for n in results if isinstance(results, list | tuple) else (results,):
        if isinstance(n, fx.Node) and n not in inputs and _storage(n) in memory:
            return f"its result {n.name} is a view of an input, which others may write to"
    return None


def _storage(node: fx.Node) -> int | None:
    value = node.meta.get("example_value")
    return value.untyped_storage()._cdata if isinstance(value, Tensor) else None


def _declined(region: fx.GraphModule, reason: str) -> Callable[..., Any]:
    from torch._dynamo.utils import counters

    counters["whet"][reason] += 1
    warnings.warn(f"whet leaves a region as it was: {reason}", DynamoWarning, stacklevel=2)
    return region.forward


class Lifted(nn.Module):
    """A traced region whose parameters and buffers are its own again.

    Args:
        region: what Dynamo traced.
        examples: a value for each input; those that Dynamo marks as a module's are held.

    Attributes:
        names: for each input of the region, the name it is held under, or None.
    """

    names: tuple[str | None, ...]
    region: fx.GraphModule

    def __init__(self, region: fx.GraphModule, examples: Sequence[Any]) -> None:
        super().__init__()
        names: list[str | None] = []
        places = [n for n in region.graph.nodes if n.op == "placeholder"]
        for node, value in zip(places, examples, strict=True):
            held = getattr(value, "_dynamo_static_input_type", None) is not None
            if isinstance(value, nn.Parameter):
                self.register_parameter(node.name, value)
            elif held:
                self.register_buffer(node.name, value)
            names.append(node.name if held or isinstance(value, nn.Parameter) else None)
        self.region = region
        self.names = tuple(names)
        self.eval()

    def inputs(self, values: Sequence[Any]) -> list[Any]:
        """Of the region's inputs, those that are the module's inputs."""
        return [v for name, v in zip(self.names, values, strict=True) if name is None]

    def forward(self, *inputs: Any) -> Any:
        """The region's results."""
        given = iter(inputs)
        values = [next(given) if name is None else getattr(self, name) for name in self.names]
        if torch.compiler.is_exporting():
            # Node by node, so that what is traced keeps the user's lines.
            with fx.traceback.preserve_node_meta():
                return fx.Interpreter(self.region).run(*values)
        return self.region(*values)

    def update(self, values: Sequence[Any]) -> None:
        """Take over parameters and buffers that have been replaced since."""
        for name, value in zip(self.names, values, strict=True):
            if name is not None:
                held = self._parameters if name in self._parameters else self._buffers
                if held[name] is not value:
                    held[name] = value


class _Region:
    """What Dynamo calls: all of the region's inputs in, its tuple of results out."""

    def __init__(self, lifted: Lifted, optimized: Optimized) -> None:
        self.lifted, self.optimized = lifted, optimized

    def __call__(self, *values: Any) -> Any:
        self.lifted.update(values)
        return self.optimized(*self.lifted.inputs(values))
