"""BERT's encoder: token and position embeddings, then post-norm attention and feed-forward blocks.

Devlin et al., "BERT: pre-training of deep bidirectional transformers" (2019). Attention is written
in both ways that users write it: by the library's call, or spelled out (`spelled=True`).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int, *, spelled: bool) -> None:
        super().__init__()
        self.heads, self.spelled = heads, spelled
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)

    def split(self, x: Tensor) -> Tensor:
        batch, tokens, dim = x.shape
        return x.view(batch, tokens, self.heads, dim // self.heads).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(self.query(x)), self.split(self.key(x)), self.split(self.value(x))
        if self.spelled:
            scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
            y = torch.softmax(scores, dim=-1) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v)
        x = self.out(y.transpose(1, 2).reshape(x.shape))
        return x


class Layer(nn.Module):
    def __init__(self, dim: int, heads: int, hidden: int, *, spelled: bool) -> None:
        super().__init__()
        self.attention = Attention(dim, heads, spelled=spelled)
        self.norm1 = nn.LayerNorm(dim, eps=1e-12)
        self.up = nn.Linear(dim, hidden)
        self.down = nn.Linear(hidden, dim)
        self.norm2 = nn.LayerNorm(dim, eps=1e-12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + self.attention(x))
        x = self.norm2(x + self.down(F.gelu(self.up(x))))
        return x


class Bert(nn.Module):
    def __init__(
        self,
        layers: int,
        dim: int,
        heads: int,
        hidden: int,
        vocabulary: int,
        positions: int,
        *,
        spelled: bool,
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, dim)
        self.positions = nn.Embedding(positions, dim)
        self.norm = nn.LayerNorm(dim, eps=1e-12)
        self.layers = nn.ModuleList(
            Layer(dim, heads, hidden, spelled=spelled) for _ in range(layers)
        )

    def forward(self, ids: Tensor) -> Tensor:
        places = torch.arange(ids.shape[1], device=ids.device)
        x: Tensor = self.norm(self.tokens(ids) + self.positions(places))
        for layer in self.layers:
            x = layer(x)
        return x


def build(
    *,
    layers: int,
    dim: int,
    heads: int,
    hidden: int,
    vocabulary: int,
    tokens: int,
    spelled: bool,
) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The encoder and one sentence of ids, (1, tokens); the answer is (1, tokens, dim)."""
    model = Bert(layers, dim, heads, hidden, vocabulary, max(tokens, 512), spelled=spelled)
    return model, (torch.randint(vocabulary, (1, tokens)),)
