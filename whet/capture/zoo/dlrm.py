"""A recommendation model: embedded categories and dense features, joined by their dot products.

Naumov et al., "Deep learning recommendation model for personalization" (2019).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class DLRM(nn.Module):
    rows: Tensor
    columns: Tensor

    def __init__(
        self, dense: int, tables: int, table: int, bottom: Sequence[int], top: Sequence[int]
    ) -> None:
        super().__init__()
        dim, vectors = bottom[-1], tables + 1
        self.tables = nn.ModuleList(nn.Embedding(table, dim) for _ in range(tables))
        self.bottom = layers(dense, bottom)
        self.top = layers(dim + vectors * (vectors - 1) // 2, top)
        self.head = nn.Linear(top[-1], 1)
        rows, columns = torch.tril_indices(vectors, vectors, offset=-1)
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("columns", columns, persistent=False)

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        x = self.bottom(dense)
        embedded = [table(ids[:, i]) for i, table in enumerate(self.tables)]
        vectors = torch.stack([x, *embedded], dim=1)
        products = vectors @ vectors.transpose(1, 2)
        pairs = products[:, self.rows, self.columns]
        y = self.top(torch.cat([x, pairs], dim=1))
        return torch.sigmoid(self.head(y))


def layers(width: int, widths: Sequence[int]) -> nn.Sequential:
    """Linear and ReLU for each of `widths`."""
    stack: list[nn.Module] = []
    for out in widths:
        stack += [nn.Linear(width, out), nn.ReLU()]
        width = out
    return nn.Sequential(*stack)


def build(
    *,
    dense: int,
    tables: int,
    table: int,
    bottom: Sequence[int],
    top: Sequence[int],
    batch: int,
) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The model, features (batch, dense) and ids (batch, tables); the answer is (batch, 1)."""
    model = DLRM(dense, tables, table, bottom, top)
    return model, (torch.randn(batch, dense), torch.randint(table, (batch, tables)))
