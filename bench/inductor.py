"""torch.compile at given settings, several of them side by side in one process.

Three things are peculiar. *Freezing* is read from the global configuration while Dynamo traces, not
only by the backend, so the first call happens inside `prepare`, under the settings. Dynamo keeps
its compiled code by code object and compares backends by their settings, so each system gets a
code object and a backend of its own. And a *second* compilation while being timed would silently
measure the compiler: it raises instead.

`routed=True` sends float32 linear layers to oneDNN. Inductor packs the weights of frozen linears
with MKL where PyTorch is built with it, which is slow on processors that MKL does not favour, and
with oneDNN where they are bfloat16. The routing answers that question with "as if bfloat16" and
changes nothing else: `mkldnn._linear_pointwise` on float32 weights is as precise as MKL.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from unittest import mock

import torch
from torch import fx, nn

_serial = itertools.count()


class CompiledAgainError(RuntimeError):
    """The compiler ran once more after the system was ready."""


def compiled(
    module: nn.Module, inputs: Sequence[Any], settings: Mapping[str, Any], *, routed: bool = False
) -> Callable[[], object]:
    """`module` on `inputs`, compiled and called once already, under Inductor's `settings`."""
    import torch._inductor.config as config
    from torch._inductor.compile_fx import compile_fx

    ready = False

    def backend(graph: fx.GraphModule, examples: Sequence[Any]) -> Any:
        if ready:
            raise CompiledAgainError("torch.compile compiled again after its first call")
        return compile_fx(graph, list(examples), config_patches=dict(settings))

    def call(*args: Any) -> object:
        return module(*args)

    call.__code__ = call.__code__.replace(co_name=f"call_{next(_serial)}")
    run = torch.compile(call, backend=backend)
    with config.patch(dict(settings)), linears_by_onednn() if routed else contextlib.nullcontext():
        run(*inputs)
    ready = True
    return lambda: run(*inputs)


@contextlib.contextmanager
def linears_by_onednn() -> Iterator[None]:
    """Inside, Inductor packs frozen float32 linear layers with oneDNN instead of MKL."""
    import torch._inductor.fx_passes.mkldnn_fusion as fusion

    class ByOneDnn(fusion.CpuMkldnnDeviceOp):
        """The choices of the CPU, told that every weight is of low precision."""

        def pack_linear_weight(self, graph, is_lp_weight, weight, batch_size):  # type: ignore[no-untyped-def]
            return super().pack_linear_weight(graph, True, weight, batch_size)  # type: ignore[no-untyped-call]

        def pack_linear(self, graph, is_lp_weight, batch_size, input, weight, bias):  # type: ignore[no-untyped-def]
            return super().pack_linear(graph, True, batch_size, input, weight, bias)  # type: ignore[no-untyped-call]

    choose = fusion._get_mkldnn_device_op
    cpu = ByOneDnn()
    with mock.patch.object(
        fusion, "_get_mkldnn_device_op", lambda device: cpu if device == "cpu" else choose(device)
    ):
        yield
