"""Programs on disk: saved whole, loaded in another process without searching again.

    folder/
      plan.txt          what was decided, with the certificate of the rewrites
      source.txt        the captured graph
      graph.txt         the graph after the rewrites
      signature.json    the calling convention
      parameters.pt     parameters, buffers and constants
      region/           the compiled body, where there is one
      report.json       what was measured

A folder is written beside its place and renamed: it is there whole or not at all.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from whet.backend.artifact import Region, load_region
from whet.backend.cluster import Cluster
from whet.backend.lowered import lower
from whet.backend.packed import Kernel
from whet.errors import InputError, StoreError, WhetError
from whet.ir.graph import Graph
from whet.ir.text import parse_graph, print_graph
from whet.plan import Plan
from whet.run.engine import Bind
from whet.run.module import Optimized
from whet.run.parameters import Parameters
from whet.run.program import Program
from whet.run.record import Report
from whet.run.signature import Signature


def save(optimized: Optimized, folder: str | os.PathLike[str]) -> Path:
    """Write an optimized module into `folder`, which must not exist or hold a program.

    Raises:
        StoreError: the folder cannot be written, or holds something else.
    """
    place = Path(folder)
    if place.exists() and not (place / "plan.txt").exists() and any(place.iterdir()):
        raise StoreError(
            "a program is not written over something else", where=place,
            expected="a new folder, or one that holds a program", hint="choose another folder",
        )  # fmt: skip
    found = optimized.found
    graph: Graph = found.graph
    tensors = found.parameters.tensors()
    values = {n.name: tensors[n.name].detach() for n in graph.parameters}
    constants = {k: v for k, v in graph.constants.items() if isinstance(v, Tensor)}
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{place.name}-", dir=place.parent))
        try:
            (beside / "plan.txt").write_text(found.plan.to_text())
            (beside / "source.txt").write_text(print_graph(found.source))
            (beside / "graph.txt").write_text(print_graph(graph))
            (beside / "signature.json").write_text(json.dumps(optimized.signature.to_json()))
            (beside / "report.json").write_text(json.dumps(optimized.report.to_json(), indent=1))
            torch.save({"parameters": values, "constants": constants}, beside / "parameters.pt")
            if found.region is not None:
                _unpack(found.region, beside / "region")
            _swap(beside, place)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    except OSError as fault:
        raise StoreError(
            "the program cannot be saved", where=place, got=fault,
            hint="choose a folder that can be written, on a disk with room",
        ) from fault  # fmt: skip
    return place


def _swap(beside: Path, place: Path) -> None:
    """Rename `beside` to `place`; what was there goes only after."""
    if not place.exists():
        beside.rename(place)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{place.name}-old-", dir=place.parent))
    place.rename(old / "program")
    beside.rename(place)
    shutil.rmtree(old, ignore_errors=True)


def load(folder: str | os.PathLike[str], *, strict: bool = True) -> Optimized:
    """A saved program as a module, ready to run; nothing is searched or compiled.

    Raises:
        StoreError: the folder holds no program, or a damaged one.
        UnsupportedError: its compiled body is for another processor or another torch.
    """
    place = Path(folder)
    try:
        plan = Plan.from_text((place / "plan.txt").read_text())
        data = torch.load(place / "parameters.pt", mmap=True, weights_only=True)
        graph = parse_graph((place / "graph.txt").read_text(), data["constants"])
        signature = Signature.from_json(json.loads((place / "signature.json").read_text()))
        report = Report.from_json(json.loads((place / "report.json").read_text()))
    except FileNotFoundError as fault:
        raise StoreError(
            "there is no program in this folder", where=place, got=f"no {Path(fault.filename).name}",
            hint="whet optimize MODEL --out FOLDER writes one",
        ) from None  # fmt: skip
    except WhetError:
        raise
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        RuntimeError,
        pickle.UnpicklingError,
    ) as fault:
        raise StoreError(
            "a saved program is damaged", where=place, got=str(fault).splitlines()[0],
            hint="optimize the model again",
        ) from fault  # fmt: skip
    if graph.digest != plan.result:
        raise StoreError(
            "a saved program is damaged", where=place, got="graph.txt is another graph"
        )
    shell = _Shell(data["parameters"])
    bind = load_region(place / "region").bind if (place / "region").exists() else None
    program = assemble(
        graph, plan, Parameters(data["constants"], shell, list(data["parameters"])), bind
    )
    updates = tuple(a.name for a, _ in graph.updates)
    return Optimized(shell, program, signature, updates=updates, report=report, strict=strict)


def assemble(graph: Graph, plan: Plan, parameters: Parameters, bind: Bind | None) -> Program:
    """The program that a plan decided on, over the graph after its rewrites."""

    def planned(cluster: Cluster, kernels: list[Kernel]) -> Kernel:
        name = plan.kernels.get(cluster.key)
        return next((k for k in kernels if k.name == name), kernels[0])

    region = plan.engine == "inductor" and bind is not None
    lowered = lower(graph, planned, literals="inline" if region else "ahead")
    if region:
        return Program(lowered, parameters, bind, "inductor")
    return Program(lowered, parameters)


class _Shell(nn.Module):
    """The parameters of a saved program under their own names; it cannot compute anything else."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        for name, value in values.items():
            owner: nn.Module = self
            *path, last = name.split(".")
            for part in path:
                if part not in owner._modules:
                    owner.add_module(part, nn.Module())
                owner = owner.get_submodule(part)
            owner.register_buffer(last, value)
        self.eval()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise InputError(
            "a saved program runs only what it was made for",
            hint="optimize the model for these inputs too",
        )


def region_bytes(region: Region) -> bytes:
    """A compiled region as bytes, for the store."""
    file = io.BytesIO()
    with tempfile.TemporaryDirectory(prefix="whet-region-") as folder:
        region.save(folder)
        with zipfile.ZipFile(file, "w") as archive:
            for part in sorted(Path(folder).iterdir()):
                archive.write(part, part.name)
    return file.getvalue()


def region_from(data: bytes, folder: str | os.PathLike[str]) -> Bind:
    """The region of `region_bytes`, unpacked into `folder` and loaded.

    Raises:
        StoreError: the bytes are damaged.
    """
    try:
        _unpack(data, Path(folder))
    except (zipfile.BadZipFile, OSError) as fault:
        raise StoreError("a stored region is damaged", got=fault) from fault
    return load_region(folder).bind


def _unpack(data: bytes, folder: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        archive.extractall(folder)
