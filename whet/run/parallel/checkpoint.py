"""Checkpoints through torch.distributed.checkpoint, restorable under a different plan.

    parameter NAME, optimizer.STATE NAME    a whole tensor, of which each rank writes boxes
    progress                                the step, and the optimizer's numbers

What is written does not know of the plan: parts of a parameter, flat pieces of them under ZeRO, are
boxes of the whole tensor, and another plan reads other boxes. A checkpoint is a folder `step-N`;
it is whole when torch has written its `.metadata`, which comes last.

Private protocol of torch: `distributed._checkpointable._Checkpointable`, by which an object says
what it holds of a tensor. Tested on torch 2.13.
"""

from __future__ import annotations

import math
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
)
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.state_dict_loader import load as load_
from torch.distributed.checkpoint.state_dict_saver import save as save_

from whet.errors import WhetError
from whet.parallel.cut import known
from whet.parallel.parts import Box, boxes, rows, starts
from whet.parallel.program import Key
from whet.run.parallel.runner import Runner
from whet.run.parallel.weights import Weights

KEPT = 2  # checkpoints, the newest


class Shards(torch.Tensor):
    """What one rank holds of a tensor, as torch's checkpoints ask for it: only tensors are asked.

    It has the whole tensor's shape and no data of its own.
    """

    held: dict[tuple[int, ...], Tensor]

    @staticmethod
    def of(shape: tuple[int, ...], dtype: torch.dtype) -> Shards:
        """Nothing of a tensor."""
        made: Shards = torch.Tensor._make_wrapper_subclass(Shards, shape, dtype=dtype)
        made.held = {}
        return made

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        raise WhetError("parts of a tensor are not computed with", got=func)

    def holds(self, box: Box, t: Tensor) -> None:
        """One box, as a tensor that shares memory with what is trained."""
        self.held[box.start] = t

    def _chunks(self) -> Iterator[ChunkStorageMetadata]:
        for start, t in self.held.items():
            yield ChunkStorageMetadata(torch.Size(start), t.shape)

    def __create_write_items__(self, fqn: str, _: object) -> list[WriteItem]:
        return [
            WriteItem(
                MetadataIndex(fqn, c.offsets), WriteItemType.SHARD,
                tensor_data=TensorWriteData(c, TensorProperties(self.dtype), self.shape),
            )
            for c in self._chunks()
        ]  # fmt: skip

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return list(self._chunks())

    def __get_tensor_shard__(self, index: MetadataIndex) -> Tensor:
        assert index.offset is not None
        return self.held[tuple(index.offset)]


def state(runner: Runner, rank: int) -> dict[str, Any]:
    """Everything that a rank would write or read."""
    found: dict[str, Any] = {}

    def shards(name: str, key: Key, t: Tensor) -> Shards:
        if name not in found:
            found[name] = Shards.of(tuple(map(known, key.node.shape)), t.dtype)
        made = found[name]
        assert isinstance(made, Shards)
        return made

    for (s, _), row in runner.weights.items():
        if rank not in runner.ranks[s]:
            continue
        for w in row:
            own = w.own[rank]
            optimizer = _optimizer(runner, rank, own)
            flat = {f"parameter {{}}": own.detach()}  # noqa: F541
            for name, t in optimizer.state[own].items():
                if isinstance(t, Tensor) and t.shape == own.shape:
                    flat[f"optimizer.{name} {{}}"] = t
                else:
                    found.setdefault("progress", {})[name] = t
            for key, box, low, high in pieces(w, rank):
                for name, t in flat.items():
                    part = t.narrow(0, low, high - low).view(box.shape)
                    shards(name.format(key.node.name), key, t).holds(box, part)
    for s, env in runner.frozen.items():
        for key, parts in env.items():
            t = parts[rank]
            stage, grid = runner.program.stages[s], runner.grids[s]
            rows_ = rows(
                tuple(map(known, key.node.shape)), runner.marks(s, key.node), key.at, stage.axes
            )
            first = starts(rows_, grid.at(rank, 0), stage.axes)
            for box in boxes(rows_, first, len(key.node.shape), 0, max(1, t.numel())):
                part = t.view(-1).narrow(0, box.offset, math.prod(box.shape)).view(box.shape)
                shards(f"parameter {key.node.name}", key, t).holds(box, part)
    return found


def pieces(w: Weights, rank: int) -> Iterator[tuple[Key, Box, int, int]]:
    """(parameter, box of it, from, to) of the flat piece that a rank updates."""
    sizes, begin = dict(w.stage.axes), w.start(rank)
    at = 0
    for key in w.bucket.parameters:
        shape = tuple(map(known, key.node.shape))
        count = math.prod(key.at.shape(shape, sizes))
        low, high = max(begin, at), min(begin + w.length, at + count)
        if low < high:
            rows_ = rows(shape, w.marks.get(key.node, ()), key.at, w.stage.axes)
            first = starts(rows_, w.grid.at(rank, 0), w.stage.axes)
            for box in boxes(rows_, first, len(shape), low - at, high - at):
                there = low - begin + box.offset
                yield key, box, there, there + math.prod(box.shape)
        at += count


def _optimizer(runner: Runner, rank: int, own: torch.nn.Parameter) -> torch.optim.Optimizer:
    for o in runner.optimizers[rank]:
        if o.param_groups[0]["params"][0] is own:
            return o
    raise AssertionError("a parameter has an optimizer")


def save(runner: Runner, rank: int, folder: Path, step: int) -> Path:
    """Write a checkpoint of all ranks; older ones but `KEPT` go.

    Args:
        folder: holds the checkpoints of a run.
        step: how many steps have been taken.
    """
    path = folder / f"step-{step}"
    given = state(runner, rank)
    given["progress"] = {**given.get("progress", {}), "at": step}
    with _quiet():
        save_(given, checkpoint_id=str(path), no_dist=not dist.is_initialized())
    if rank == 0:
        for old in checkpoints(folder)[:-KEPT]:
            shutil.rmtree(old, ignore_errors=True)
    return path


def checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints of a run, the oldest first."""
    found = [p for p in folder.glob("step-*") if (p / ".metadata").is_file()]
    return sorted(found, key=lambda p: int(p.name.removeprefix("step-")))


def restore(runner: Runner, rank: int, path: Path) -> int:
    """Read a checkpoint, whatever plan wrote it; the number of steps that it has taken.

    Raises:
        WhetError: it is of another model or optimizer.
    """
    for o in runner.optimizers.get(rank, ()):
        _prepare(o)
    given = state(runner, rank)
    given["progress"] = {**given.get("progress", {}), "at": 0}
    try:
        with _quiet():
            load_(given, checkpoint_id=str(path), no_dist=not dist.is_initialized())
    except Exception as fault:
        raise WhetError(
            f"{path} does not restore under this plan", got=str(fault).strip().splitlines()[-1],
            hint="it has to be of the same model and the same optimizer",
        ) from fault  # fmt: skip
    progress = given["progress"]
    for o in runner.optimizers.get(rank, ()):
        for p in o.param_groups[0]["params"]:
            for name, t in o.state[p].items():
                if name in progress:
                    o.state[p][name] = _like(progress[name], t)
    return int(progress["at"])


def _like(value: Any, t: Any) -> Any:
    return (
        value.clone() if isinstance(value, Tensor) else type(t)(value) if t is not None else value
    )


def _prepare(optimizer: torch.optim.Optimizer) -> None:
    """Give an optimizer the state that it makes at its first step."""
    for p in optimizer.param_groups[0]["params"]:
        before = p.detach().clone()
        p.grad = torch.zeros_like(p)
        optimizer.step()
        p.grad = None
        p.detach().copy_(before)


class _quiet(warnings.catch_warnings):  # noqa: N801
    """Without torch's warnings about its own storage."""

    def __enter__(self) -> Any:
        found = super().__enter__()
        warnings.simplefilter("ignore")
        return found
