"""The zoo: the models whet is measured on, one page of plain PyTorch each, with random weights.

    model = zoo.load("resnet50")
    model.module(*model.inputs)

The table below is all there is to know: a name, the page that builds it, its kind, its full size
(what is benchmarked) and a small size of the same architecture (what the tests run). A page is
imported when its model is asked for.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from whet.capture.zoo.weights import randomize
from whet.errors import CaptureError

Scale = Literal["full", "small"]
SCALES: tuple[Scale, ...] = ("full", "small")


@dataclass(frozen=True, slots=True)
class ZooModel:
    """A model in eval mode with example inputs, the kind of network it is, and one line on it."""

    name: str
    module: nn.Module
    inputs: tuple[Tensor, ...]
    kind: str
    summary: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One row: `page.build(**full)` or `page.build(**small)` gives the module and its inputs."""

    page: str
    kind: str
    summary: str
    full: Mapping[str, Any]
    small: Mapping[str, Any]


# fmt: off
ZOO: Mapping[str, Entry] = {
    "resnet50": Entry(
        "resnet", "cnn", "ResNet-50, one 224x224 image",
        full=dict(depths=(3, 4, 6, 3), channels=64, width=64, groups=1, classes=1000, image=224),
        small=dict(depths=(1, 2), channels=8, width=8, groups=1, classes=10, image=32)),
    "resnext50": Entry(
        "resnet", "cnn", "ResNeXt-50 32x4d, one 224x224 image",
        full=dict(depths=(3, 4, 6, 3), channels=64, width=128, groups=32, classes=1000, image=224),
        small=dict(depths=(1, 2), channels=8, width=16, groups=4, classes=10, image=32)),
    "nasnet_a": Entry(
        "nasnet", "cnn", "NASNet-A of 6 cells, one 224x224 image",
        full=dict(cells="RNRNRN", stem=32, channels=32, classes=1000, image=224),
        small=dict(cells="RN", stem=8, channels=4, classes=10, image=16)),
    "inception_v3": Entry(
        "inception", "cnn", "Inception-v3, one 299x299 image",
        full=dict(c=64, blocks=(3, 4, 2), classes=1000, image=299),
        small=dict(c=4, blocks=(1, 1, 1), classes=10, image=75)),
    "squeezenet": Entry(
        "squeezenet", "cnn", "SqueezeNet 1.1, one 224x224 image",
        full=dict(stem=64, classes=1000, image=224, stages=(
            ((16, 64), (16, 64)),
            ((32, 128), (32, 128)),
            ((48, 192), (48, 192), (64, 256), (64, 256)))),
        small=dict(stem=8, classes=10, image=32, stages=(((4, 8), (4, 8)), ((4, 8),)))),
    "mobilenet_v2": Entry(
        "mobilenet", "cnn", "MobileNet-v2, one 224x224 image",
        full=dict(stem=32, last=1280, classes=1000, image=224, stages=(
            (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2),
            (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))),
        small=dict(stem=8, last=32, classes=10, image=32, stages=((1, 8, 1, 1), (4, 12, 2, 2)))),
    "bert_base": Entry(
        "bert", "transformer", "BERT base, 12 layers of 768, 128 tokens",
        full=dict(layers=12, dim=768, heads=12, hidden=3072, vocabulary=30522, tokens=128,
                  spelled=False),
        small=dict(layers=2, dim=32, heads=4, hidden=64, vocabulary=50, tokens=10,
                   spelled=False)),
    "bert_1024": Entry(
        "bert", "transformer", "BERT, 8 layers of 1024, 64 tokens, attention spelled out",
        full=dict(layers=8, dim=1024, heads=16, hidden=4096, vocabulary=30522, tokens=64,
                  spelled=True),
        small=dict(layers=2, dim=32, heads=4, hidden=64, vocabulary=50, tokens=10,
                   spelled=True)),
    "vit_b16": Entry(
        "vit", "transformer", "ViT-B/16, one 224x224 image",
        full=dict(layers=12, dim=768, heads=12, hidden=3072, image=224, patch=16, classes=1000),
        small=dict(layers=2, dim=32, heads=4, hidden=64, image=16, patch=4, classes=10)),
    "llama_prefill": Entry(
        "llama", "transformer", "Llama-style decoder, 8 layers of 1024, a prompt of 128 tokens",
        full=dict(layers=8, dim=1024, heads=16, groups=4, hidden=2816, vocabulary=8192,
                  tokens=128, cache=0),
        small=dict(layers=2, dim=32, heads=4, groups=2, hidden=48, vocabulary=50,
                   tokens=10, cache=0)),
    "llama_decode": Entry(
        "llama", "transformer", "the same decoder, one token against a cache of 512",
        full=dict(layers=8, dim=1024, heads=16, groups=4, hidden=2816, vocabulary=8192,
                  tokens=1, cache=512),
        small=dict(layers=2, dim=32, heads=4, groups=2, hidden=48, vocabulary=50,
                   tokens=1, cache=9)),
    "moe": Entry(
        "moe", "transformer", "mixture of experts, 4 layers of 8 experts, 64 tokens",
        full=dict(layers=4, dim=512, hidden=1024, experts=8, top=2, tokens=64),
        small=dict(layers=2, dim=24, hidden=32, experts=4, top=2, tokens=10)),
    "dlrm": Entry(
        "dlrm", "recommender", "DLRM-like recommendation model, batch 128",
        full=dict(dense=13, tables=26, table=10_000, bottom=(512, 256, 64),
                  top=(1024, 512, 256), batch=128),
        small=dict(dense=5, tables=3, table=40, bottom=(16, 8), top=(16, 12), batch=6)),
    "nasrnn": Entry(
        "nasrnn", "recurrent", "NASRNN cell of 512 over 5 steps, each with its own weights",
        full=dict(dim=512, steps=5, shared=False),
        small=dict(dim=24, steps=3, shared=False)),
    "nasrnn_shared": Entry(
        "nasrnn", "recurrent", "NASRNN cell of 512 over 5 steps, one set of weights",
        full=dict(dim=512, steps=5, shared=True),
        small=dict(dim=24, steps=3, shared=True)),
    "lstm": Entry(
        "lstm", "recurrent", "LSTM, 2 layers of 512 over 16 steps",
        full=dict(layers=2, dim=512, steps=16),
        small=dict(layers=2, dim=24, steps=4)),
    "memchain": Entry(
        "memchain", "memory", "norm, GELU, softmax and residual chain over 16384x1024",
        full=dict(links=4, rows=16384, dim=1024),
        small=dict(links=2, rows=40, dim=48)),
}
# fmt: on


def names() -> tuple[str, ...]:
    """Every name `load` knows, in the order of the table."""
    return tuple(ZOO)


def load(
    name: str, *, seed: int = 0, scale: Scale = "full", dtype: torch.dtype = torch.float32
) -> ZooModel:
    """Build a model of the zoo, in eval mode, with seeded weights and inputs.

    Args:
        name: one of `names()`.
        seed: equal seeds give equal weights and inputs; the global generator is left as it was.
        scale: "full", the size that is benchmarked, or "small", the same architecture for tests.
        dtype: of the weights and of the floating-point inputs, drawn in float32 and then cast.

    Under `torch.device("meta")` nothing is allocated: enough to count parameters and FLOPs.

    Raises:
        CaptureError: for an unknown name, with the nearest ones, or an unknown scale.
    """
    entry = ZOO.get(name)
    if entry is None:
        near = difflib.get_close_matches(name, ZOO, n=3, cutoff=0.4)
        raise CaptureError(
            f"the zoo has no model named {name!r}",
            expected="one of " + ", ".join(ZOO),
            got=repr(name),
            hint="did you mean " + " or ".join(near) + "?" if near else None,
        )
    if scale not in SCALES:
        raise CaptureError(
            "a zoo model comes in two scales", expected=" or ".join(SCALES), got=repr(scale)
        )
    page = importlib.import_module(f"{__name__}.{entry.page}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module, inputs = page.build(**(entry.full if scale == "full" else entry.small))
    module = randomize(module, seed).to(dtype).eval()
    inputs = tuple(x.to(dtype) if x.is_floating_point() else x for x in inputs)
    return ZooModel(name, module, inputs, entry.kind, entry.summary)
