"""A mixture of experts: residual feed-forward layers in which each token uses two of eight.

Shazeer et al., "Outrageously large neural networks" (2017), dispatched densely: every expert reads
every token and the router's weights, zero outside the top two, choose afterwards. Shapes are
static, so the model traces.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Expert(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(dim, hidden)
        self.down = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(F.gelu(self.up(x)))
        return x


class Mixture(nn.Module):
    def __init__(self, dim: int, hidden: int, experts: int, top: int) -> None:
        super().__init__()
        self.top = top
        self.norm = nn.LayerNorm(dim)
        self.router = nn.Linear(dim, experts, bias=False)
        self.experts = nn.ModuleList(Expert(dim, hidden) for _ in range(experts))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        scores = torch.softmax(self.router(y), dim=-1)
        best, which = torch.topk(scores, self.top, dim=-1)
        best = best / best.sum(dim=-1, keepdim=True)
        weights = torch.zeros_like(scores).scatter(-1, which, best)
        for i, expert in enumerate(self.experts):
            x = x + weights[:, i : i + 1] * expert(y)
        return x


class MoE(nn.Module):
    def __init__(self, layers: int, dim: int, hidden: int, experts: int, top: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(Mixture(dim, hidden, experts, top) for _ in range(layers)))
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.layers(x))
        return x


def build(
    *, layers: int, dim: int, hidden: int, experts: int, top: int, tokens: int
) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The layers and the tokens they read, (tokens, dim); the answer has the same shape."""
    return MoE(layers, dim, hidden, experts, top), (torch.randn(tokens, dim),)
