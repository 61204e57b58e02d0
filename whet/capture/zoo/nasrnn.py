"""NASRNN: a recurrent cell found by search, sixteen matmuls joined by a tree of small functions.

Zoph and Le, "Neural architecture search with reinforcement learning" (2017), the cell that graph
optimizers have since been measured on. Unrolled over time, with the same weights at every step or
with each step's own.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Cell(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.inputs = nn.ModuleList(nn.Linear(dim, dim, bias=False) for _ in range(8))
        self.states = nn.ModuleList(nn.Linear(dim, dim, bias=False) for _ in range(8))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        t = [a(x) + b(h) for a, b in zip(self.inputs, self.states, strict=True)]
        first = torch.relu(t[0]) + torch.sigmoid(t[3])
        second = torch.sigmoid(t[1]) + torch.tanh(t[2])
        third = torch.sigmoid(t[4]) * torch.tanh(t[5])
        fourth = torch.sigmoid(t[6]) * torch.relu(t[7])
        left = torch.sigmoid(second) + torch.tanh(third)
        right = torch.tanh(first) * torch.tanh(fourth)
        return torch.tanh(torch.tanh(left) * torch.tanh(right))


class NASRNN(nn.Module):
    def __init__(self, dim: int, steps: int, *, shared: bool) -> None:
        super().__init__()
        self.steps = steps
        self.cells = nn.ModuleList(Cell(dim) for _ in range(1 if shared else steps))

    def forward(self, xs: Tensor, h: Tensor) -> Tensor:
        for step in range(self.steps):
            h = self.cells[step % len(self.cells)](xs[step], h)
        return h


def build(*, dim: int, steps: int, shared: bool) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The network, its inputs (steps, 1, dim) and first state (1, dim); answers the last state."""
    return NASRNN(dim, steps, shared=shared), (torch.randn(steps, 1, dim), torch.randn(1, dim))
