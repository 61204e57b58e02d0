"""The systems that are compared: a name, what it stands for, and how it is made ready.

`prepare(case)` does everything that a user waits for once (tracing, compiling, packing weights, and
the first call where that is when it happens) and returns what is called again and again. How long
it took is the system's `optimize_s`. What it raises becomes the reason in the system's row.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bench import engines, inductor

Call = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Case:
    """What every system is given: a module in eval mode, its inputs, and the threads it may use."""

    module: nn.Module
    inputs: tuple[Any, ...]
    threads: int


class DoesNotApplyError(Exception):
    """The system has nothing to say to this model; not a failure."""


@dataclass(frozen=True, slots=True)
class System:
    """One row of the table; "the best torch mode" is sought among `torch_mode`."""

    summary: str
    prepare: Callable[[Case], Call]
    torch_mode: bool = False


def eager(case: Case) -> Call:
    """The module as it is."""
    return functools.partial(case.module, *case.inputs)


def channels_last(case: Case) -> Call:
    """Weights and images with the channels innermost, as the manual of PyTorch advises for CNNs."""
    if not any(isinstance(x, Tensor) and x.dim() == 4 for x in case.inputs):
        raise DoesNotApplyError("no input has four dimensions")
    module = copy.deepcopy(case.module).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    inputs = [
        x.contiguous(memory_format=torch.channels_last)
        if isinstance(x, Tensor) and x.dim() == 4
        else x
        for x in case.inputs
    ]
    return functools.partial(module, *inputs)


def compiled(case: Case, *, routed: bool = False, **settings: Any) -> Call:
    """torch.compile under Inductor's settings."""
    return inductor.compiled(case.module, case.inputs, settings, routed=routed)


def max_autotune(case: Case) -> Call:
    """`mode="max-autotune"`, frozen as well: only then can weights be packed for its GEMMs."""
    return compiled(case, **torch._inductor.list_mode_options("max-autotune"), freezing=True)


def onnxruntime(case: Case) -> Call:
    """ONNX Runtime on the exported model."""
    return engines.onnxruntime(case.module, case.inputs, case.threads)


def openvino(case: Case) -> Call:
    """OpenVINO on the exported model."""
    return engines.openvino(case.module, case.inputs, case.threads)


def whet(case: Case, **options: Any) -> Call:
    """whet itself; `options` switch off one cause of its gain."""
    from whet.optimize import optimize

    return functools.partial(optimize(case.module, case.inputs, **options), *case.inputs)


frozen = functools.partial(compiled, freezing=True)

# fmt: off
PEERS: Mapping[str, System] = {
    "eager":                 System("PyTorch as it comes", eager, torch_mode=True),
    "channels_last":         System("PyTorch, channels innermost", channels_last, torch_mode=True),
    "inductor":              System("torch.compile", compiled, torch_mode=True),
    "inductor-freezing":     System("torch.compile, frozen weights", frozen, torch_mode=True),
    "inductor-max-autotune": System("torch.compile, max-autotune", max_autotune, torch_mode=True),
    "inductor-onednn":       System("frozen, linear layers by oneDNN instead of MKL",
                                    functools.partial(frozen, routed=True)),
    "onnxruntime":           System("ONNX Runtime, all graph optimizations", onnxruntime),
    "openvino":              System("OpenVINO at f32, for latency", openvino),
}

# whet, and whet without one cause of its gain: what is lost then is what the cause is worth.
OURS: Mapping[str, System] = {
    "whet":             System("whet", whet),
    "whet-no-rewrites": System("whet without rewrites",
                               functools.partial(whet, disable=("rewrites",))),
    "whet-no-library":  System("whet without a choice of library",
                               functools.partial(whet, disable=("libraries",))),
    "whet-no-region":   System("whet without compiled regions",
                               functools.partial(whet, disable=("regions",))),
    "whet-no-native":   System("whet without programs in C",
                               functools.partial(whet, disable=("native", "generated"))),
    "whet-no-fusion":   System("whet without groups in kernels of its own",
                               functools.partial(whet, disable=("generated",))),
}
# fmt: on

SYSTEMS: Mapping[str, System] = {**PEERS, **OURS}
