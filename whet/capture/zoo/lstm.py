"""A stacked LSTM with its cell written out, unrolled over time.

Hochreiter and Schmidhuber, "Long short-term memory" (1997).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Cell(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.input = nn.Linear(dim, 4 * dim)
        self.state = nn.Linear(dim, 4 * dim)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        i, f, g, o = (self.input(x) + self.state(h)).chunk(4, dim=-1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c


class LSTM(nn.Module):
    def __init__(self, layers: int, dim: int) -> None:
        super().__init__()
        self.cells = nn.ModuleList(Cell(dim) for _ in range(layers))

    def forward(self, xs: Tensor) -> Tensor:
        for cell in self.cells:
            h = c = torch.zeros_like(xs[0])
            outputs = []
            for x in xs.unbind():
                h, c = cell(x, h, c)
                outputs.append(h)
            xs = torch.stack(outputs)
        return xs


def build(*, layers: int, dim: int, steps: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The network and a sequence, (steps, 1, dim); the answer is the last layer's, alike."""
    return LSTM(layers, dim), (torch.randn(steps, 1, dim),)
