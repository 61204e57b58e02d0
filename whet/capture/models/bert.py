"""BERT: an encoder with post-norm layers, trained to fill in tokens.

Devlin et al., "BERT: pre-training of deep bidirectional transformers" (2019).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from whet.capture.models.gpt import language_loss


class Layer(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim) for _ in range(4))
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def split(self, x: Tensor) -> Tensor:
        batch, tokens, dim = x.shape
        return x.view(batch, tokens, self.heads, dim // self.heads).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self.split(f(x)) for f in (self.query, self.key, self.value))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        x = self.norm1(x + self.out(y))
        x = self.norm2(x + self.down(F.gelu(self.up(x))))
        return x


class Bert(nn.Module):
    def __init__(self, layers: int, dim: int, heads: int, vocabulary: int, tokens: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, dim)
        self.positions = nn.Embedding(tokens, dim)
        self.norm = nn.LayerNorm(dim)
        self.layers = nn.ModuleList(Layer(dim, heads) for _ in range(layers))
        self.transform, self.norm_out = nn.Linear(dim, dim), nn.LayerNorm(dim)
        self.head = nn.Linear(dim, vocabulary)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits (batch, tokens, vocabulary) of ids (batch, tokens)."""
        x = self.norm(self.tokens(ids) + self.positions.weight)
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.head(self.norm_out(F.gelu(self.transform(x))))
        return logits


def build(
    batch: int, *, layers: int, dim: int, heads: int, vocabulary: int, tokens: int
) -> tuple[nn.Module, tuple[Tensor, ...], tuple[Tensor, ...], Callable[..., Tensor]]:
    """The encoder, ids (batch, tokens), the true ids, and the mean cross entropy."""
    model = Bert(layers, dim, heads, vocabulary, tokens)
    ids, targets = (torch.randint(vocabulary, (batch, tokens)) for _ in range(2))
    return model, (ids,), (targets,), language_loss
