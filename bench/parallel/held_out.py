"""Models at a size that two processes of a host train in a fraction of a second.

Simulated steps are compared with real ones on them; `whet machine measure` has seen none.
Each function takes the batch, as `whet parallelize bench.parallel.held_out:bert` asks.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from whet.capture.models import bert as bert_page
from whet.capture.models import llama as llama_page
from whet.capture.models import recommender, vision

BATCHES = {"bert": 16, "llama": 16, "vgg": 32, "dlrm": 1024, "chain": 256}


def bert(batch: int) -> tuple[Any, ...]:
    """An encoder of four layers."""
    return bert_page.build(batch, layers=4, dim=256, heads=4, vocabulary=1024, tokens=64)


def llama(batch: int) -> tuple[Any, ...]:
    """A decoder of three layers with grouped heads."""
    return llama_page.build(
        batch, layers=3, dim=192, heads=6, groups=2, hidden=512, vocabulary=2048, tokens=96
    )


def vgg(batch: int) -> tuple[Any, ...]:
    """Convolutions, then wide products."""
    return vision.build(
        batch, kind="vgg", stages=((32, 1), (64, 2), (128, 2)), wide=1024, classes=100, image=32
    )


def dlrm(batch: int) -> tuple[Any, ...]:
    """Tables and two stacks of products."""
    return recommender.build(
        batch, dense=13, tables=8, table=20_000, bottom=(256, 128, 64), top=(512, 256)
    )


def chain(batch: int) -> tuple[Any, ...]:
    """Products of one size, one behind the other, with norms between them."""
    import torch

    rows: list[nn.Module] = []
    for _ in range(6):
        rows += [nn.Linear(1024, 1024), nn.LayerNorm(1024), nn.GELU()]
    x, t = torch.randn(batch, 1024), torch.randn(batch, 1024)
    return nn.Sequential(*rows), (x,), (t,), nn.functional.mse_loss
