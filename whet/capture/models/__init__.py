"""Models to be parallelized: whole training steps at full size, on the meta device.

    job = models.load("gpt3_175b", batch=1536, dtype=torch.bfloat16)
    joint = capture_joint(job.module, job.inputs, job.loss, job.targets)

Each is plain PyTorch, written without a thought of how it will be split. `scale="small"` is the
same architecture at a size at which every rank of a plan can be computed, with real tensors.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from whet.errors import CaptureError

SCALES = ("full", "small")


@dataclass(frozen=True, slots=True)
class Job:
    """A model in training mode and what one step takes.

    Attributes:
        name: as in the table.
        module: on the meta device at full scale.
        inputs: what the module takes; the first dim of each is the batch.
        targets: what the loss takes besides the module's answer; likewise.
        loss: (answer, *targets) → one number.
        batch: samples of one step.
        summary: one line.
    """

    name: str
    module: nn.Module
    inputs: tuple[Tensor, ...]
    targets: tuple[Tensor, ...]
    loss: Callable[..., Tensor]
    batch: int
    summary: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One row: `page.build(batch, **sizes)` gives module, inputs, targets and loss."""

    page: str
    summary: str
    full: Mapping[str, Any]
    small: Mapping[str, Any]


_GPT = dict(layers=2, dim=32, heads=4, vocabulary=64, tokens=8)
_LLAMA = dict(layers=2, dim=32, heads=4, groups=2, hidden=64, vocabulary=64, tokens=8)

# fmt: off
MODELS: Mapping[str, Entry] = {
    "bert_large": Entry("bert", "BERT-large, 24 layers of 1024, 512 tokens",
        dict(layers=24, dim=1024, heads=16, vocabulary=30528, tokens=512), _GPT),
    "gpt3_2.7b": Entry("gpt", "GPT-3 2.7B, 32 layers of 2560, 2048 tokens",
        dict(layers=32, dim=2560, heads=32, vocabulary=51200, tokens=2048), _GPT),
    "gpt3_175b": Entry("gpt", "GPT-3 175B, 96 layers of 12288, 2048 tokens",
        dict(layers=96, dim=12288, heads=96, vocabulary=51200, tokens=2048), _GPT),
    "llama3_8b": Entry("llama", "Llama-3 8B, 32 layers of 4096, 8192 tokens",
        dict(layers=32, dim=4096, heads=32, groups=8, hidden=14336, vocabulary=128256,
             tokens=8192), _LLAMA),
    "llama3_70b": Entry("llama", "Llama-3 70B, 80 layers of 8192, 8192 tokens",
        dict(layers=80, dim=8192, heads=64, groups=8, hidden=28672, vocabulary=128256,
             tokens=8192), _LLAMA),
    "mixtral_8x7b": Entry("mixtral", "Mixtral 8x7B, 32 layers of 8 experts, 4096 tokens",
        dict(layers=32, dim=4096, heads=32, groups=8, hidden=14336, experts=8, top=2,
             vocabulary=32000, tokens=4096),
        dict(_LLAMA, experts=4, top=2)),
    "resnet50": Entry("vision", "ResNet-50, 224x224 images",
        dict(kind="resnet", depths=(3, 4, 6, 3), channels=64, width=64, classes=1000, image=224),
        dict(kind="resnet", depths=(1, 1), channels=8, width=8, classes=16, image=16)),
    "inception_v3": Entry("vision", "Inception-v3, 299x299 images",
        dict(kind="inception", c=64, blocks=(3, 4, 2), classes=1000, image=299),
        dict(kind="inception", c=4, blocks=(1, 1, 1), classes=8, image=75)),
    "vgg16": Entry("vision", "VGG-16, 224x224 images",
        dict(kind="vgg", stages=((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)), wide=4096,
             classes=1000, image=224),
        dict(kind="vgg", stages=((8, 1), (16, 1)), wide=32, classes=16, image=8)),
    "alexnet": Entry("vision", "AlexNet, 224x224 images",
        dict(kind="alexnet", widths=(64, 192, 384, 256, 256), wide=4096, classes=1000, image=224),
        dict(kind="alexnet", widths=(8, 16, 16, 16, 16), wide=32, classes=16, image=64)),
    "nmt_lstm": Entry("translator", "LSTM translator of 4 layers of 1024, 40 steps",
        dict(layers=4, dim=1024, vocabulary=32000, steps=40),
        dict(layers=2, dim=16, vocabulary=32, steps=3)),
    "dlrm": Entry("recommender", "DLRM, 26 tables of a million rows of 64",
        dict(dense=13, tables=26, table=1_000_000, bottom=(512, 256, 64), top=(1024, 512, 256)),
        dict(dense=4, tables=3, table=32, bottom=(16, 8), top=(16, 8))),
}
# fmt: on


def names() -> tuple[str, ...]:
    """Every name `load` knows."""
    return tuple(MODELS)


def load(
    name: str, batch: int = 8, *, scale: str = "full", dtype: torch.dtype = torch.float32
) -> Job:
    """One step of a model.

    Args:
        name: one of `names()`.
        batch: samples of a step.
        scale: "full" on the meta device, or "small" with seeded weights.
        dtype: of the weights.

    Raises:
        CaptureError: no such model or scale.
    """
    entry = MODELS.get(name)
    if entry is None:
        near = difflib.get_close_matches(name, MODELS, n=3, cutoff=0.4)
        raise CaptureError(
            f"there is no model named {name!r}",
            expected="one of " + ", ".join(MODELS),
            got=repr(name),
            hint="did you mean " + " or ".join(near) + "?" if near else None,
        )
    if scale not in SCALES:
        raise CaptureError(
            "a model comes in two scales", expected=" or ".join(SCALES), got=repr(scale)
        )
    page = importlib.import_module(f"{__name__}.{entry.page}")
    with torch.random.fork_rng(devices=[]), torch.device("meta" if scale == "full" else "cpu"):
        torch.manual_seed(0)
        made = page.build(batch, **(entry.full if scale == "full" else entry.small))
    module, inputs, targets, loss = made
    module = module.to(dtype).train()
    inputs = tuple(x.to(dtype) if x.is_floating_point() else x for x in inputs)
    return Job(name, module, inputs, targets, loss, batch, entry.summary)
