"""Trying programs out: a saved one on random inputs, a module beside eager and torch.compile.

trial(folder)  loads, runs, times, and holds the answer against the saved source graph in float64
peers(…)       times a module's original, torch.compile's program and the optimized one in turns
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from whet.backend.library import run_opaque
from whet.errors import InputError
from whet.ir.interp import evaluate
from whet.ir.text import parse_graph
from whet.run.measure import faster, interleaved
from whet.run.module import Optimized
from whet.run.oracle import Oracle, relative_error
from whet.run.record import Stage
from whet.run.save import load
from whet.run.signature import Signature, TensorArgument
from whet.run.spread import settled


@dataclass(frozen=True, slots=True)
class Trial:
    """What came of running a saved program.

    Attributes:
        load_s: seconds to load it.
        seconds, spread: of a call.
        error: relative error against the source graph in float64; None where that cannot be run.
        engine: what ran it.
    """

    load_s: float
    seconds: float
    spread: float
    error: float | None
    engine: str


def use_threads(count: int | None) -> int:
    """Let torch use that many threads, where a number is given; how many it uses."""
    if count is not None:
        torch.set_num_threads(count)
    return torch.get_num_threads()


def random_call(signature: Signature, seed: int = 0) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments that a program is for: normal numbers, indices 0 and 1, fixed values as they are.

    0 and 1 are valid positions in any table that has at least two rows.
    """
    generator = torch.Generator().manual_seed(seed)
    leaves: list[object] = []
    for a in signature.arguments:
        if not isinstance(a, TensorArgument):
            leaves.append(a.value)
        elif a.dtype.is_floating_point or a.dtype.is_complex:
            leaves.append(torch.randn(a.shape, generator=generator).to(a.dtype).to(a.device))
        else:
            drawn = torch.randint(0, 2, a.shape, generator=generator)
            leaves.append(drawn.to(a.dtype).to(a.device))
    args, kwargs = pytree.tree_unflatten(leaves, signature.in_spec)
    return tuple(args), dict(kwargs)


def trial(folder: str | os.PathLike[str], *, budget_s: float = 2.0, seed: int = 0) -> Trial:
    """Run a saved program on random inputs.

    Args:
        folder: where `save` put it.
        budget_s: seconds of timing.
        seed: of the inputs.

    Raises:
        StoreError: there is no program, or a damaged one.
    """
    began = time.perf_counter()
    module = load(folder)
    load_s = time.perf_counter() - began
    args, kwargs = random_call(module.signature, seed)
    with torch.no_grad():
        results = module(*args, **kwargs)
        error = _error(Path(folder), module, args, kwargs, results)
        timing = interleaved(
            {"program": lambda: module(*args, **kwargs)}, budget_s=budget_s, settle=settled
        )["program"]
    engine = module.program.engine if module.program is not None else "original"
    return Trial(load_s, timing.median_s, timing.spread, error, engine)


def _error(
    folder: Path, module: Optimized, args: Sequence[Any], kwargs: Mapping[str, Any], results: Any
) -> float | None:
    data = torch.load(folder / "parameters.pt", mmap=True, weights_only=True)
    source = parse_graph((folder / "source.txt").read_text(), data["constants"])
    leaves = module.signature.flatten(tuple(args), kwargs)
    assert leaves is not None
    names = [n.name for n in source.inputs]
    feeds = dict(zip(names, module.signature.inputs(leaves), strict=True))
    try:
        right = evaluate(source, data["parameters"] | feeds, library=run_opaque)
    except InputError:  # a leaf that the rewrites made needless was not saved
        return None
    expected = module.signature.unflatten(right, leaves)
    return relative_error(_tensors(results), _tensors(expected))


def _tensors(value: Any) -> list[Tensor]:
    return [t for t in pytree.tree_leaves(value) if isinstance(t, Tensor)]


def peers(
    original: nn.Module,
    optimized: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    *,
    original_s: float,
    budget_s: float = 8.0,
) -> list[Stage]:
    """torch.compile on the same inputs, timed in turns with the original and the optimized module.

    Args:
        original, optimized: what it is compared with.
        args, kwargs: the example inputs.
        original_s: seconds that the original took when the stages were measured. Machines drift,
            so what is carried over is the median of the peer's ratios to the original, round by
            round.
        budget_s: seconds of timing; compiling comes on top.

    Returns:
        One stage named "torch.compile"; with NaN for seconds and the reason where it fails.
    """
    named = dict(kwargs or {})
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's own: the user did not ask for it
        compiled = torch.compile(original, dynamic=False)
        try:
            error, _ = Oracle(original, args, named).judge(compiled(*args, **named))
        except Exception as fault:  # whatever a compiler raises is its result
            reason = str(fault).strip().splitlines() or [type(fault).__name__]
            return [Stage("torch.compile", float("nan"), note=f"failed: {reason[0][:80]}")]
        calls: dict[str, Callable[[], object]] = {
            "original": lambda: original(*args, **named),
            "torch.compile": lambda: compiled(*args, **named),
            "whet": lambda: optimized(*args, **named),
        }
        timings = interleaved(calls, budget_s=budget_s, min_rounds=9)
    found = timings["torch.compile"]
    ratio = faster(found, timings["original"]).ratio
    return [Stage("torch.compile", original_s / ratio, found.spread, error)]
