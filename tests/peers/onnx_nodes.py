"""ONNX's own node tests, through our importer.

    python -m tests.peers.onnx_nodes [--write FILE] [NAME …]

Every case of `onnx.backend.test.case.node` and of the wheel's data/{simple,pytorch-operator,
pytorch-converted} is imported and computed twice: by the operators' records, and by the module that
stands for the original. A case passes if both agree with the expected outputs within the case's own
tolerance; is refused if the importer says why it does not take it; anything else is wrong.

The node tests feed shapes, axes and scales as inputs. Where the importer refuses because something
static hangs on an input, the import is tried again with that input fixed, as its message says; the
table tells how many cases needed that. One float32 input at least must stay.
"""

from __future__ import annotations

import argparse
import functools
import glob
import os
import platform
import re
import sys
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from whet.backend.library import run_opaque
from whet.capture.onnx import load_onnx
from whet.errors import CaptureError
from whet.ir.interp import NATIVE, evaluate

KINDS = ("simple", "pytorch-operator", "pytorch-converted")


@dataclass(frozen=True)
class Case:
    """One case: a model and pairs of inputs and expected outputs."""

    name: str
    model: Any
    data: Sequence[tuple[Sequence[Any], Sequence[Any]]]
    rtol: float
    atol: float

    @property
    def operator(self) -> str:
        """What the case is about; of a case of several nodes, what its name says."""
        nodes = self.model.graph.node
        name = self.name.removeprefix("test_").partition("_")[0]
        return str(nodes[0].op_type) if len(nodes) == 1 else f"({name})"

    @property
    def counts(self) -> bool:
        """Whether it has float32 inputs, no other floats, and fixed shapes."""
        inputs = list(self.model.graph.input)
        kinds = [i.type.WhichOneof("value") for i in (*inputs, *self.model.graph.output)]
        if set(kinds) != {"tensor_type"}:
            return False
        elements = {i.type.tensor_type.elem_type for i in inputs}
        others = {10, 11, 14, 15, 16, 8} | set(range(17, 30))
        sizes = [
            d.WhichOneof("value") == "dim_value"
            for i in (*inputs, *self.model.graph.output)
            for d in i.type.tensor_type.shape.dim
        ]
        shaped = all(
            i.type.tensor_type.HasField("shape") for i in (*inputs, *self.model.graph.output)
        )
        return 1 in elements and not elements & others and all(sizes) and shaped


@dataclass(frozen=True)
class Outcome:
    """What became of a case: "pass", "fixed" (a pass with inputs fixed), "refused" or "wrong"."""

    case: Case
    kind: str
    reason: str = ""

    @property
    def passed(self) -> bool:
        return self.kind in ("pass", "fixed")


def cases() -> Iterator[Case]:
    """All of them, each once."""
    import onnx

    for c in _collected():
        yield Case(c.name, c.model, c.data_sets, c.rtol, c.atol)
    root = Path(onnx.__file__).parent / "backend" / "test" / "data"
    for kind in KINDS:
        for file in sorted(glob.glob(str(root / kind / "*" / "model.onnx"))):
            folder = Path(file).parent
            model = onnx.load(file)
            data = [_data_set(model, d) for d in sorted(folder.glob("test_data_set_*"))]
            yield Case(folder.name, model, data, 1e-3, 1e-7)


@functools.cache
def _collected() -> list[Any]:
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return list(collect_testcases(None))


def _data_set(model: Any, folder: Path) -> tuple[list[Any], list[Any]]:
    def load(what: str, infos: Any) -> list[Any]:
        return [
            _value(folder / f"{what}_{k}.pb", info)
            for k, info in enumerate(infos)
            if (folder / f"{what}_{k}.pb").exists()
        ]

    return load("input", model.graph.input), load("output", model.graph.output)


def _value(file: Path, info: Any) -> Any:
    import onnx
    import onnx.numpy_helper

    if info.type.WhichOneof("value") == "sequence_type":
        sequence = onnx.SequenceProto()
        sequence.ParseFromString(file.read_bytes())
        return onnx.numpy_helper.to_list(sequence)
    tensor = onnx.TensorProto()
    tensor.ParseFromString(file.read_bytes())
    return onnx.numpy_helper.to_array(tensor)


def run(case: Case) -> Outcome:
    """Import and compute one case; fixes an input where a refusal says that values hang on it."""
    source = case.model.SerializeToString()
    names = [i.name for i in case.model.graph.input]
    fixed: set[str] = set()
    for inputs, outputs in case.data:
        given = dict(zip(names, inputs, strict=False))
        while True:
            try:
                values = {n: _tensor(given[n]) for n in fixed}
                captured = load_onnx(source, fixed=values)
                break
            except CaptureError as refusal:
                reason = refusal.summary + (f": {refusal.got}" if refusal.got else "")
                named = re.search(r"depends on input (\S+)", reason)
                if named is None or named[1] not in given or named[1] in fixed:
                    return Outcome(case, "refused", reason)
                fixed.add(named[1])
        free = tuple(_tensor(given[n.name]) for n in captured.graph.inputs)
        found = evaluate(captured.graph, captured.feeds(free), NATIVE, run_opaque)
        answers = {
            "records": captured.answer(found, free),
            "module": captured.module(*free),
        }
        for what, answer in answers.items():
            several = answer if isinstance(answer, tuple) else (answer,)
            if wrong := _difference(several, outputs, case):
                return Outcome(case, "wrong", f"by its {what}: {wrong}")
    if (
        not any(
            i.type.tensor_type.elem_type == 1 for i in case.model.graph.input if i.name not in fixed
        )
        and case.counts
    ):
        return Outcome(case, "refused", "every float32 input would have to be fixed")
    return Outcome(case, "fixed" if fixed else "pass")


def _tensor(value: Any) -> Tensor:
    if hasattr(value, "SerializeToString"):
        import onnx.numpy_helper

        value = onnx.numpy_helper.to_array(value)
    array = np.ascontiguousarray(value).reshape(np.shape(value))
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())


def _difference(found: Sequence[Tensor], expected: Sequence[Any], case: Case) -> str:
    for k, (got, want) in enumerate(zip(found, expected, strict=True)):
        right = _tensor(want)
        if tuple(got.shape) != tuple(right.shape) or got.dtype != right.dtype:
            want_type = f"{right.dtype}{list(right.shape)}"
            return f"output {k} is {got.dtype}{list(got.shape)}, not {want_type}"
        a, b = got.detach().to(torch.float64), right.to(torch.float64)
        # A case's tolerance is meant for float32: of a shorter type the last place may differ.
        last = 2 * torch.finfo(got.dtype).eps if got.dtype.is_floating_point else 0.0
        if not torch.allclose(a, b, rtol=max(case.rtol, last), atol=case.atol, equal_nan=True):
            worst = (a - b).abs().nan_to_num(nan=float("inf")).max()
            return f"output {k} is off by {worst:.1e}"
    return ""


def attempt(case: Case) -> Outcome:
    """`run`, any other error being a wrong outcome."""
    try:
        return run(case)
    except Exception as fault:
        text = str(fault).splitlines() or [""]
        return Outcome(case, "wrong", f"{type(fault).__name__}: {text[0]}")


def table(outcomes: Sequence[Outcome]) -> str:
    """Pass rate by operator, then every miss with its reason."""
    import onnx

    versions = {"onnx": onnx, "torch": torch, "numpy": np}
    lines = [
        "ONNX node tests through whet's importer",
        "command: python -m tests.peers.onnx_nodes --write bench/results/onnx-nodes.txt",
        ", ".join(f"{name} {module.__version__}" for name, module in versions.items())
        + f", Python {platform.python_version()}",
        "",
    ]
    for title, chosen in (
        ("float32 inputs and fixed shapes", [o for o in outcomes if o.case.counts]),
        ("all cases", list(outcomes)),
    ):
        kinds = Counter(o.kind for o in chosen)
        passed = kinds["pass"] + kinds["fixed"]
        lines.append(
            f"{title}: {passed} of {len(chosen)} pass ({passed / max(len(chosen), 1):.1%}), "
            f"{kinds['fixed']} of them with some inputs fixed; {kinds['refused']} refused; "
            f"{kinds['wrong']} wrong"
        )
    by_operator: dict[str, list[Outcome]] = defaultdict(list)
    for o in outcomes:
        by_operator[o.case.operator].append(o)
    lines += ["", f"{'operator':<28}{'pass':>6}{'of':>6}   float32 and fixed shapes"]
    for name in sorted(by_operator):
        own = by_operator[name]
        counted = [o for o in own if o.case.counts]
        share = f"{sum(o.passed for o in counted)} of {len(counted)}" if counted else "-"
        lines.append(f"{name:<28}{sum(o.passed for o in own):>6}{len(own):>6}   {share}")
    lines += ["", "misses"]
    for name in sorted(by_operator):
        for o in by_operator[name]:
            if not o.passed:
                mark = "*" if o.case.counts else " "
                lines.append(f" {mark} {o.case.name}: {o.kind}: {' '.join(o.reason.split())[:200]}")
    lines += ["", "* counts: float32 inputs and fixed shapes"]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run the cases that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m tests.peers.onnx_nodes")
    parser.add_argument("names", nargs="*", help="only these cases")
    parser.add_argument("--write", help="a file for the table")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    outcomes = [attempt(c) for c in cases() if not args.names or c.name in args.names]
    text = table(outcomes)
    if args.write:
        file = Path(args.write)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    sys.stdout.write(text)
    return int(any(o.kind == "wrong" for o in outcomes))


if __name__ == "__main__":
    raise SystemExit(main())
