"""The process in which `whet.run.farm` lets a device's kernel loose; it has a context of its own.

One JSON object a line comes in, and one goes out:

    {"do": "task", "folder"}        the group, and the device (`whet.run.launch`)
    {"do": "check", "name",
     "module"}                      compile it, call it once, look at everything, record it
    {"do": "time", "names",
     "rounds"}                      seconds of recordings, in turns
    {"do": "forget"}                the kernels, not the task

Library calls are made and timed here too, under the name `LIBRARY`: in turns with kernels, on the
same tensors, which kernels are held to. A device that answers no more takes its process with it
("gone"): what came next would be blamed for it.
"""

from __future__ import annotations

import base64
import json
import os
import pickle
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from whet.backend import aten
from whet.backend.cluster import LIBRARY
from whet.backend.lowered import example
from whet.backend.tiled import Generated
from whet.errors import first_line
from whet.ir.graph import Graph, Node
from whet.run.cuda import Cuda, Recording

GROUP = "group.pickle"
CANARY = 0xA5
ALLOWED = {torch.float64: 1e-9, torch.float32: 5e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""How far a kernel may be from the library's result, over the largest element: libraries round
operands of float32 products to tfloat32 where they may. The whole program is held to float64."""


class Launcher:
    """The tensors of one group, what library calls make of them, and kernels that are right."""

    def __init__(self) -> None:
        self.cuda: Cuda | None = None
        self.calls: dict[str, Recording] = {}
        self.want: tuple[Tensor, ...] | None = None
        self.refused = "no group"

    def forget(self) -> dict[str, Any]:
        """Lets go of kernels."""
        self.calls = {name: r for name, r in self.calls.items() if name == LIBRARY}
        return {}

    def task(self, folder: str) -> dict[str, Any]:
        """Takes in a group: its tensors, and what library calls make of them."""
        self.calls, self.want, self.refused = {}, None, "library calls do not run"
        graph, cuda, told = pickle.loads((Path(folder) / GROUP).read_bytes())
        torch.backends.cuda.matmul.fp32_precision = told["matmul"]
        torch.backends.cudnn.conv.fp32_precision = told["conv"]  # type: ignore[attr-defined]
        self.cuda = cuda
        generator = torch.Generator().manual_seed(0)
        leaves = (*graph.inputs, *graph.parameters)
        self.values = [example(n, generator).to(cuda.device) for n in leaves]
        self.given = [x.clone() for x in self.values]
        try:
            calls = library(graph, cuda.device)
            self.want = tuple(x.clone() for x in calls(self.values))
            self.calls[LIBRARY] = cuda.recorded(lambda: calls(self.values))
        except Exception as fault:
            self.want, self.refused = None, said(fault)
            raise
        return {}

    def check(self, name: str, module: str | None) -> dict[str, Any]:
        """One call, looked at from all sides; a kernel that passes is recorded, to be timed.

        Args:
            module: a pickled `Module`; None for the library's calls.
        """
        if self.want is None or self.cuda is None:
            return {"failed": "error", "reason": self.refused}
        if module is None:
            return {}
        call = Generated(pickle.loads(base64.b64decode(module)), self.cuda.device)
        call.into = [filled(x) for x in self.want]  # what is not written is found
        got = call(*self.values)
        self.cuda.wait()
        for k, (value, given) in enumerate(zip(self.values, self.given, strict=True)):
            if not torch.equal(value, given):
                value.copy_(given)
                return {"failed": "corrupt", "reason": f"wrote into operand {k}, which it reads"}
        for k, (a, b) in enumerate(zip(got, self.want, strict=True)):
            error, allowed = distance(a, b), ALLOWED.get(b.dtype, 1e-2)
            if not error <= allowed:
                reason = f"result {k} is off by {error:.1e}, {allowed:.1e} is allowed"
                return {"failed": "wrong", "reason": reason}
        self.calls[name] = self.cuda.recorded(lambda: call(*self.values))
        return {}

    def time(self, names: Sequence[str], rounds: int, **_: Any) -> dict[str, Any]:
        """Seconds of recordings by the device's clock; its cache is always written over."""
        assert self.cuda is not None
        rows = self.cuda.raced([self.calls[n].replay for n in names], rounds)
        return {"samples": dict(zip(names, rows, strict=True)), "calls": dict.fromkeys(names, 1)}

    @property
    def lost(self) -> bool:
        """Whether the device answers no more in this process."""
        try:
            if self.cuda is not None:
                self.cuda.wait()
        except Exception:  # whatever it says
            return True
        return False


def library(graph: Graph, device: torch.device) -> Callable[[Sequence[Tensor]], tuple[Tensor, ...]]:
    """A group's operators as library calls."""
    nodes = [n for n in graph.nodes if not n.is_leaf]
    calls = [(n, aten.bound(n)) for n in nodes]
    leaves = (*graph.inputs, *graph.parameters)

    made = {n: call().to(device) for n, call in calls if not n.args}

    def run(values: Sequence[Tensor]) -> tuple[Tensor, ...]:
        at: dict[Node, Any] = {**made, **dict(zip(leaves, values, strict=True))}
        for n, call in calls:
            if n.args:
                at[n] = call(*(None if a is None else at[a] for a in n.args))
        return tuple(at[n] for n in graph.results)

    return run


def filled(like: Tensor) -> Tensor:
    """Row-major memory for such a tensor, with nothing in it that a kernel would leave there."""
    raw = torch.full((like.numel() * like.element_size(),), CANARY, dtype=torch.uint8)
    return raw.to(like.device).view(like.dtype).view(like.shape)


def distance(got: Tensor, want: Tensor) -> float:
    """The largest difference, over the largest element that is expected; infinite where a whole
    number is another."""
    if not got.dtype.is_floating_point:
        return 0.0 if torch.equal(got, want) else float("inf")
    if not got.numel():
        return 0.0
    got, want = got.double().nan_to_num(0, 0, 0), want.double().nan_to_num(0, 0, 0)
    return float((got - want).abs().max()) / max(float(want.abs().max()), 1e-6)


def said(fault: Exception) -> str:
    """What a fault is, in a line."""
    return f"{type(fault).__name__}: {first_line(fault)}"


def main() -> None:
    """Answers until the pipe is closed, or the device is lost."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no answer
    launcher = Launcher()
    for line in sys.stdin:
        message = json.loads(line)
        answer: dict[str, Any]
        try:
            with torch.no_grad():
                answer = getattr(launcher, message.pop("do"))(**message)
        except Exception as fault:  # told to whoever asked, who knows what to do about it
            answer = {"failed": "error", "reason": said(fault)}
            if launcher.lost:
                answer = {"failed": "crash", "reason": said(fault), "gone": True}
        print(json.dumps(answer), file=answers, flush=True)
        if "gone" in answer:
            os._exit(1)  # nothing of the device's can be put in order


if __name__ == "__main__":
    main()
