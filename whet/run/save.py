"""Programs on disk: saved whole, loaded in another process without searching again.

    folder/
      manifest.json     size and checksum of every other file
      plan.txt          what was decided, with the certificate of the rewrites
      source.txt        the captured graph
      graph.txt         the graph after the rewrites
      signature.json    the calling convention
      parameters.pt     parameters, buffers and constants
      region/           the compiled body, where there is one
      report.json       what was measured
      journal-N.jsonl   every candidate of the N-th search

A folder is written beside its place and renamed: it is there whole or not at all. Every byte is
checked as it is loaded. A program on library calls runs wherever torch does, whatever packs its
weights there; a compiled body needs the processor and the version of torch it was made for. Of a
program on a device the region is its recipe (`whet.run.recipe`): kernels are said again as they
were decided, and recorded at the first call.
"""

from __future__ import annotations

import ctypes
import inspect
import io
import json
import mmap
import os
import pickle
import shutil
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from whet.backend.artifact import Region, load_region
from whet.backend.artifact import Runner as RegionRunner
from whet.backend.cluster import Cluster
from whet.backend.lowered import lower
from whet.backend.packed import Kernel
from whet.errors import InputError, StoreError, UnsupportedError, WhetError, first_line
from whet.ir.graph import Graph
from whet.ir.text import parse_graph, print_graph
from whet.plan import Plan
from whet.run.calling import Runner
from whet.run.module import Found, Optimized
from whet.run.native import MANIFEST as NATIVE
from whet.run.native import Native, prologue
from whet.run.parameters import Parameters
from whet.run.program import Program
from whet.run.record import Report
from whet.run.signature import Signature

if TYPE_CHECKING:
    from whet.run.cuda import Cuda
    from whet.run.recipe import Recipe

FORMAT = 1
MANIFEST = "manifest.json"
CompiledBody = RegionRunner | Runner


def save(optimized: Optimized, folder: str | os.PathLike[str]) -> Path:
    """Write an optimized module into `folder`, which must not exist or hold a program.

    Raises:
        StoreError: the folder cannot be written, or holds something else; or the calls that the
            program is for cannot be written down.
    """
    place = Path(os.path.abspath(folder))
    found = vars(optimized).get("found")
    if not isinstance(found, Found):
        raise StoreError("only what whet.optimize returned can be saved", got=repr(optimized))
    try:
        if place.exists() and not (place / MANIFEST).exists() and any(place.iterdir()):
            raise StoreError(
                "a program is not written over something else", where=place,
                expected="a new folder, or one that holds a program", hint="choose another folder",
            )  # fmt: skip
        place.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{place.name}-", dir=place.parent))
        try:
            _write(optimized, found, beside)
            _put(beside, place)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    except OSError as fault:
        raise StoreError(
            "the program cannot be saved", where=place, got=fault,
            hint="choose a folder that can be written, on a disk with room",
        ) from fault  # fmt: skip
    return place


def _write(optimized: Optimized, found: Found, folder: Path) -> None:
    try:
        signature = optimized.signature.to_json()
        signature["forward"] = _written(optimized.__signature__)
        call = json.dumps(signature)
    except (TypeError, ValueError, NotImplementedError) as fault:
        raise StoreError(
            "the arguments or results of this model cannot be written down",
            expected="tensors, numbers, text, flags and None, in tuples, lists and dicts",
            got=fault,
        ) from fault
    (folder / "plan.txt").write_text(found.plan.to_text())
    (folder / "source.txt").write_text(print_graph(found.source))
    (folder / "graph.txt").write_text(print_graph(found.graph))
    (folder / "signature.json").write_text(call)
    (folder / "report.json").write_text(json.dumps(optimized.report.to_json(), indent=1))
    for number, journal in enumerate(found.journals, 1):
        (folder / f"journal-{number}.jsonl").write_text(journal)
    torch.save(_tensors(optimized, found), folder / "parameters.pt")
    if found.region is not None:
        _unpack(found.region, folder / "region")
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    sums = {str(p.relative_to(folder)): [p.stat().st_size, _checksum(p)] for p in files}
    (folder / MANIFEST).write_text(json.dumps({"format": FORMAT, "files": sums}, indent=1))


def _tensors(optimized: Optimized, found: Found) -> dict[str, Any]:
    """The model's whole state by name, and constants; tied names hold one object."""
    watched = found.parameters.tensors()
    needed = {n.name for g in (found.source, found.graph) for n in g.parameters}
    original = optimized.original
    live: dict[str, Tensor] = dict(original.named_parameters(remove_duplicate=False))
    trained = sorted(live)
    live |= original.named_buffers(remove_duplicate=False)
    kept = original.state_dict().keys()
    live = {n: t for n, t in live.items() if n in needed or n in kept}
    live |= {n: t for n, t in watched.items() if n in needed}
    objects = {id(t): t.detach() for t in live.values()}
    constants = {**found.source.constants, **found.graph.constants}
    return {
        "parameters": {name: objects[id(t)] for name, t in live.items()},
        "trained": [name for name in trained if name in live],
        "hidden": [name for name in live if name not in kept],
        "constants": {k: v for k, v in constants.items() if isinstance(v, Tensor)},
    }


def _put(beside: Path, place: Path) -> None:
    """Rename `beside` to `place`; what was there takes its name, at one stroke on Linux."""
    if not place.exists():
        beside.rename(place)
    elif not _exchange(beside, place):
        old = Path(tempfile.mkdtemp(prefix=f".{place.name}-", dir=place.parent))
        place.rename(old / "program")
        beside.rename(place)
        shutil.rmtree(old, ignore_errors=True)


def _exchange(a: Path, b: Path) -> bool:
    """Swap two folders' names by one call of Linux; whether it could."""
    if sys.platform != "linux":
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    return rename is not None and not rename(here, os.fsencode(a), here, os.fsencode(b), exchange)


def _checksum(file: Path) -> int:
    """CRC-32 of a file: against damage, not against malice."""
    if not file.stat().st_size:
        return 0
    with (
        open(file, "rb") as source,
        mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        return zlib.crc32(data)


def load(
    folder: str | os.PathLike[str], *, strict: bool = True, device: Cuda | None = None
) -> Optimized:  # fmt: skip
    """A saved program as a module, ready to run; nothing is searched or compiled.

    Its parameters and buffers are there under the names of the saved model, and may be changed.

    Args:
        folder: where `save` put it.
        strict: other calls than it was made for are errors at once. The original is not saved,
            so they are errors in any case.
        device: what runs a program that was made for one; the current CUDA device by default.

    Raises:
        StoreError: the folder holds no program, or a damaged one.
        UnsupportedError: its compiled body is for another processor or another torch; or it is for
            a device, and there is none, or one that is too small.
    """
    place = Path(folder)
    _check(place)
    try:
        plan = Plan.from_text((place / "plan.txt").read_text())
        cuda = _device(device) if plan.engine == "cuda" else None
        data = torch.load(
            place / "parameters.pt", mmap=True, weights_only=True,
            map_location=cuda.device if cuda else None,
        )  # fmt: skip
        source = parse_graph((place / "source.txt").read_text(), data["constants"])
        graph = parse_graph((place / "graph.txt").read_text(), data["constants"])
        call = json.loads((place / "signature.json").read_text())
        signature, forward = Signature.from_json(call), _read(call["forward"])
        report = Report.from_json(json.loads((place / "report.json").read_text()))
        if (source.digest, graph.digest) != (plan.source, plan.result):
            raise ValueError("its graphs are not those of its plan")
    except (
        OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, EOFError,
        NotImplementedError, pickle.UnpicklingError, zipfile.BadZipFile, WhetError,
    ) as fault:  # fmt: skip
        if isinstance(fault, UnsupportedError):
            raise
        raise StoreError(
            "a saved program cannot be read", where=place,
            got=first_line(fault),
            hint="optimize the model again with this version of whet",
        ) from fault  # fmt: skip
    shell = _Shell(*(data[k] for k in ("parameters", "trained", "hidden")))
    compiled = (place / "region").exists()
    parameters = Parameters(data["constants"], shell, [n.name for n in graph.parameters])
    try:
        if cuda is not None:
            program = _on(cuda, place / "region", graph, parameters)
        else:
            body = load_body(place / "region") if compiled else None
            program = assemble(graph, plan, parameters, body)
    except InputError as fault:  # packed weights that the compiled body was not made for
        raise StoreError(
            "a saved program cannot be put together again", where=place, got=fault.got,
            hint="optimize the model again on this machine",
        ) from fault  # fmt: skip
    new = Optimized(
        shell, program, signature, updates=tuple(a.name for a, _ in graph.updates),
        report=report, strict=strict, forward=forward,
    )  # fmt: skip
    region = _pack(place / "region") if compiled else None
    vars(new)["found"] = Found(source, graph, plan, region, parameters)
    return new


def _device(given: Cuda | None) -> Cuda:
    """What runs a program that was made for a device.

    Raises:
        UnsupportedError: nothing does.
    """
    from whet.run.cuda import Cuda

    if given is None and not torch.cuda.is_available():
        raise UnsupportedError(
            "this program is for an NVIDIA GPU", expected="one that torch finds", got="none here",
            hint="optimize the model again on this machine",
        )  # fmt: skip
    return given or Cuda("cuda")


def _on(cuda: Cuda, folder: Path, graph: Graph, parameters: Parameters) -> Program:
    """The program of a recipe, on a device."""
    from whet.run.launched import Launched
    from whet.run.recipe import Recipe
    from whet.store import Store

    with torch.no_grad():
        return Launched(cuda, Store.memory()).again(Recipe.load(folder), graph, parameters)


def _check(place: Path) -> None:
    """Every file is there, and is what was written.

    Raises:
        StoreError: one is not, or there is no program.
    """
    try:
        manifest = json.loads((place / MANIFEST).read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise StoreError(
            "there is no program in this folder", where=place, got=f"no {MANIFEST}",
            hint="whet optimize MODEL --out FOLDER writes one",
        ) from None  # fmt: skip
    except (OSError, ValueError) as fault:
        raise StoreError("a saved program is damaged", where=place / MANIFEST, got=fault) from fault
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise StoreError(
            "a program saved by another version of whet", where=place / MANIFEST,
            expected=f"format {FORMAT}", got=str(manifest)[:80],
            hint="optimize the model again with this version of whet",
        )  # fmt: skip
    for name, (size, checksum) in manifest["files"].items():
        try:
            got = (place / name).stat().st_size
            wrong = f"{got} bytes" if got != size else None
            if wrong is None and _checksum(place / name) != checksum:
                wrong = "other bytes"
        except OSError as fault:
            wrong = fault.strerror or str(fault)
        if wrong is not None:
            raise StoreError(
                "a saved program is damaged", where=place / name,
                expected=f"{size} bytes, as they were written", got=wrong,
                hint="copy the folder again, or optimize the model again",
            )  # fmt: skip


def load_body(folder: str | os.PathLike[str]) -> CompiledBody:
    """A compiled body, whichever engine it is for.

    Raises:
        StoreError: there is none, or a damaged one.
        UnsupportedError: it was built for another torch or another processor.
    """
    if (Path(folder) / NATIVE).exists():
        return Runner.load(folder)
    return load_region(folder)


def assemble(
    graph: Graph, plan: Plan, parameters: Parameters, body: CompiledBody | None
) -> Program:
    """The program that a plan decided on, over the graph after its rewrites.

    Raises:
        InputError: the parameters are not what the compiled body was made for.
    """
    if plan.engine == "native" and isinstance(body, Runner):
        lowered = prologue(graph, body.native, plan.kernels, parameters.tensors())
        return Program(lowered, parameters, body.bind, "native")

    def planned(cluster: Cluster, kernels: list[Kernel]) -> Kernel:
        name = plan.kernels.get(cluster.key)
        return next((k for k in kernels if k.name == name), kernels[0])

    region = plan.engine == "inductor" and body is not None
    lowered = lower(graph, planned, literals="inline" if region else "ahead")
    if region:
        assert body is not None
        return Program(lowered, parameters, body.bind, "inductor")
    return Program(lowered, parameters)


class _Shell(nn.Module):
    """The state of a saved program under its own names; it cannot compute anything else.

    Args:
        values: by name.
        trained: which are parameters; the others are buffers.
        hidden: which are not part of the state dictionary.
    """

    def __init__(
        self, values: Mapping[str, Tensor], trained: Sequence[str], hidden: Sequence[str]
    ) -> None:
        super().__init__()
        made: dict[int, Tensor] = {}  # tied names hold one object here, too
        for name, value in values.items():
            owner: nn.Module = self
            *path, last = name.split(".")
            for part in path:
                if part not in owner._modules:
                    owner.add_module(part, nn.Module())
                owner = owner.get_submodule(part)
            if name in trained:
                plain = nn.Parameter(value, requires_grad=False)
                owner._parameters[last] = cast(nn.Parameter, made.setdefault(id(value), plain))
            else:
                owner.register_buffer(last, value, persistent=name not in hidden)
        self.eval()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise InputError(
            "a saved program runs only what it was made for; the original is not in it",
            hint="optimize the model for these inputs too",
        )


def _written(forward: inspect.Signature) -> list[list[object]] | None:
    """Names, kinds and defaults of a call's parameters; None where a default is no plain value."""
    rows: list[list[object]] = []
    for p in forward.parameters.values():
        plain = p.default is p.empty or isinstance(p.default, bool | int | float | str | None)
        if not plain:
            return None
        rows.append([p.name, p.kind.name, *([] if p.default is p.empty else [p.default])])
    return rows


def _read(rows: list[list[Any]] | None) -> inspect.Signature | None:
    if rows is None:
        return None
    kinds = {k.name: k for k in inspect._ParameterKind}
    return inspect.Signature(
        [
            inspect.Parameter(name, kinds[kind], default=default[0] if default else inspect._empty)
            for name, kind, *default in rows
        ]
    )


def region_bytes(region: Region | Native | Recipe) -> bytes:
    """A compiled body as bytes, for the store."""
    with tempfile.TemporaryDirectory(prefix="whet-region-") as folder:
        region.save(folder)
        return _pack(Path(folder))


def _pack(folder: Path) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for part in sorted(folder.iterdir()):
            archive.write(part, part.name)
    return file.getvalue()


def region_from(data: bytes, folder: str | os.PathLike[str]) -> CompiledBody:
    """The body of `region_bytes`, unpacked into `folder` and loaded.

    Raises:
        StoreError: the bytes are damaged.
    """
    try:
        _unpack(data, Path(folder))
    except (zipfile.BadZipFile, OSError) as fault:
        raise StoreError("a stored region is damaged", got=fault) from fault
    return load_body(folder)


def _unpack(data: bytes, folder: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        archive.extractall(folder)
