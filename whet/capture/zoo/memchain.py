"""A chain of memory-bound operators: norm, scale and shift, GELU, softmax, residual.

Not one matmul: eager execution streams the whole matrix through memory at every operator, a fused
program reads it once and writes it once.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Link(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        # a scale well over one makes the softmax choose: its answer is then far from uniform
        self.scale = nn.Parameter(torch.full((dim,), 4.0))
        self.shift = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        y = F.gelu(self.norm(x) * self.scale + self.shift)
        return x + torch.softmax(y, dim=-1)


def build(*, links: int, rows: int, dim: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The chain and the matrix, (rows, dim), that it maps row by row."""
    return nn.Sequential(*(Link(dim) for _ in range(links))), (torch.randn(rows, dim),)
