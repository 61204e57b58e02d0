"""The files of a plan, run one after the other in this process: what ranks would do, in order.

    Steps.of(folder, session).run(inputs) → results

A session makes a call of a file. Two come with whet: ONNX Runtime's, and our own importer's, which
needs no runtime.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from whet.backend.library import run_opaque
from whet.capture.onnx.staged import VERSION
from whet.errors import MissingError, WhetError
from whet.ir.interp import NATIVE, evaluate
from whet.run.parallel.exchange import COMBINE

Call = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
Session = Callable[[Path], Call]
Step = Mapping[str, Any]


def under_onnx_runtime(path: Path) -> Call:
    """ONNX Runtime on the processor.

    Raises:
        MissingError: it is not installed.
    """
    try:
        import onnxruntime
    except ImportError as fault:
        raise MissingError(
            "ONNX Runtime is not installed", hint="pip install onnxruntime"
        ) from fault
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    made = onnxruntime.InferenceSession(
        str(path), options, providers=["CPUExecutionProvider"]
    )  # fmt: skip
    names = [v.name for v in made.get_outputs()]

    def call(given: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        found = made.run(names, {k: t.contiguous().numpy() for k, t in given.items()})
        return {k: torch.from_numpy(t) for k, t in zip(names, found, strict=True)}

    return call


def under_whet(path: Path) -> Call:
    """Our own importer, and the records' reference semantics in the files' own types."""
    from whet.capture.onnx import load_onnx
    from whet.capture.onnx.file import plain, read_model

    back = load_onnx(path)
    names = [v.name for v in plain(read_model(path), (), str(path)).graph.outputs]

    def call(given: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        arguments = tuple(given[n.name] for n in back.graph.inputs)
        found = evaluate(back.graph, back.feeds(arguments), NATIVE, run_opaque)
        answer = back.answer(found, arguments)
        row = answer if isinstance(answer, tuple) else (answer,)
        return dict(zip(names, row, strict=True))

    return call


@dataclass(slots=True)
class Steps:
    """The steps of a folder."""

    folder: Path
    said: Mapping[str, Any]
    session: Session
    _calls: dict[str, Call] = field(default_factory=dict)
    _values: dict[tuple[int, str], Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path, session: Session) -> Steps:
        """Read `plan.json`.

        Raises:
            WhetError: it is missing, or of another version.
        """
        file = folder / "plan.json"
        try:
            said = json.loads(file.read_text(encoding="utf-8"))
        except OSError as fault:
            raise WhetError(
                f"{file} cannot be read", got=fault.strerror,
                hint="whet plan export PLAN FOLDER writes one",
            ) from fault  # fmt: skip
        except ValueError as fault:
            raise WhetError(f"{file} is no JSON", got=str(fault)) from fault
        if not isinstance(said, dict) or said.get("whet onnx plan") != VERSION:
            raise WhetError(
                "these are not the steps of a plan", expected=f"whet onnx plan: {VERSION}",
                got=said.get("whet onnx plan") if isinstance(said, dict) else type(said).__name__,
                where=file,
            )  # fmt: skip
        return cls(folder, said, session)

    @torch.no_grad()
    def run(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """The results of one pass.

        Args:
            inputs: whole, by name.

        Raises:
            WhetError: an input is missing or has another shape or type.
        """
        for name, want in self.said["inputs"].items():
            t = inputs.get(name)
            if t is None or list(t.shape) != want["shape"] or str(t.dtype)[6:] != want["dtype"]:
                raise WhetError(
                    f"input {name} does not fit", expected=f"{want['dtype']} {want['shape']}",
                    got="nothing" if t is None else f"{str(t.dtype)[6:]} {list(t.shape)}",
                )  # fmt: skip
        results = [
            torch.empty(r["shape"], dtype=getattr(torch, r["dtype"])) for r in self.said["results"]
        ]
        for micro in range(self.said["microbatches"]):
            self._values.clear()
            for step in self.said["steps"]:
                self._step(step, micro, inputs, results)
        return results

    def _step(
        self, step: Step, micro: int, inputs: Mapping[str, Tensor], results: Sequence[Tensor]
    ) -> None:
        values = self._values
        match step["do"]:
            case "take":
                found = _seen(inputs[step["input"]], step, micro).reshape(step["shape"])
                values[step["rank"], step["as"]] = found
            case "cut":
                whole = values[step["rank"], step["value"]]
                values[step["rank"], step["as"]] = _seen(whole, step, micro).reshape(step["shape"])
            case "give":
                there = _seen(results[step["result"]], step, micro)
                there.copy_(values[step["rank"], step["value"]].reshape(there.shape))
            case "run":
                if step["file"] not in self._calls:
                    self._calls[step["file"]] = self.session(self.folder / step["file"])
                given = {k: values[step["rank"], k] for k in step["inputs"]}
                made = self._calls[step["file"]](given)
                values.update({(step["rank"], k): made[k] for k in step["outputs"]})
            case "send":
                t = values[step["from"], step["value"]]
                if "view" in step:
                    t = t.reshape(step["view"])
                    t = t.narrow(step["axis"], step["start"], step["length"])
                values[step["to"], step["as"]] = t
            case "join":
                row = [values[step["rank"], v] for v in step["values"]]
                t = row[0] if len(row) == 1 else torch.cat(row, step["axis"])
                values[step["rank"], step["as"]] = t.reshape(step["shape"])
            case _:
                moved = _moved(step, [values[r, step["value"]] for r in step["ranks"]])
                for r, t in zip(step["ranks"], moved, strict=True):
                    values[r, step["as"]] = t.reshape(step["shape"]) if "shape" in step else t


def _seen(t: Tensor, step: Step, micro: int) -> Tensor:
    """The part of a tensor that a step says."""
    t = t.view(step["view"]) if t.is_contiguous() else t.reshape(step["view"])
    for k, (start, length) in enumerate(zip(step["start"][micro], step["length"], strict=True)):
        t = t.narrow(k, start, length)
    return t


def _moved(step: Step, row: list[Tensor]) -> list[Tensor]:
    """What the ranks of a group have after a collective, in their order."""
    if step["do"] == "all_reduce":
        return [_combined(row, step["how"])] * len(row)
    row, k = [t.reshape(step["view"]) for t in row], step["axis"]
    if step["do"] == "all_gather":
        return [torch.cat(row, k)] * len(row)
    if step["do"] == "reduce_scatter":
        return list(_combined(row, step["how"]).chunk(len(row), k))
    if step["do"] == "all_to_all":
        pieces = [t.chunk(len(row), k) for t in row]
        return [torch.cat([p[r] for p in pieces], step["join"]) for r in range(len(row))]
    raise WhetError("no such step", expected="one that whet plan export writes", got=step["do"])


def _combined(row: list[Tensor], how: str) -> Tensor:
    total = row[0]
    for t in row[1:]:
        total = COMBINE[how](total, t)
    return total
