"""Llama 3: RMS norms, rotary positions, grouped heads, SwiGLU, no biases, a head of its own.

Grattafiori et al., "The Llama 3 herd of models" (2024), table 3.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from whet.capture.models.gpt import language_loss
from whet.capture.zoo.llama import rotate


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int, groups: int) -> None:
        super().__init__()
        self.size = dim // heads
        self.query = nn.Linear(dim, dim, bias=False)
        self.key = nn.Linear(dim, groups * self.size, bias=False)
        self.value = nn.Linear(dim, groups * self.size, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)

    def split(self, x: Tensor) -> Tensor:
        batch, tokens, dim = x.shape
        return x.view(batch, tokens, dim // self.size, self.size).transpose(1, 2)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        q = rotate(self.split(self.query(x)), cos, sin)
        k = rotate(self.split(self.key(x)), cos, sin)
        v = self.split(self.value(x))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        made: Tensor = self.out(y.transpose(1, 2).reshape(x.shape))
        return made


class Feed(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.gate = nn.Linear(dim, hidden, bias=False)
        self.up = nn.Linear(dim, hidden, bias=False)
        self.down = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(F.silu(self.gate(x)) * self.up(x))
        return x


class Layer(nn.Module):
    def __init__(self, dim: int, heads: int, groups: int, feed: nn.Module) -> None:
        super().__init__()
        self.norm1 = nn.RMSNorm(dim, eps=1e-5)
        self.attention = Attention(dim, heads, groups)
        self.norm2 = nn.RMSNorm(dim, eps=1e-5)
        self.feed = feed

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x), cos, sin)
        x = x + self.feed(self.norm2(x))
        return x


class Llama(nn.Module):
    """`feed` makes the feed-forward part of each layer."""

    cos: Tensor
    sin: Tensor

    def __init__(
        self,
        layers: int,
        dim: int,
        heads: int,
        groups: int,
        vocabulary: int,
        tokens: int,
        feed: Callable[[], nn.Module],
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, dim)
        self.layers = nn.ModuleList(Layer(dim, heads, groups, feed()) for _ in range(layers))
        self.norm = nn.RMSNorm(dim, eps=1e-5)
        self.head = nn.Linear(dim, vocabulary, bias=False)
        size = dim // heads
        frequency = 500_000.0 ** (-torch.arange(0, size, 2).float() / size)
        angle = torch.outer(torch.arange(tokens).float(), frequency).repeat(1, 2)
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits (batch, tokens, vocabulary) of ids (batch, tokens)."""
        x: Tensor = self.tokens(ids)
        for layer in self.layers:
            x = layer(x, self.cos, self.sin)
        x = self.head(self.norm(x))
        return x


def build(
    batch: int,
    *,
    layers: int,
    dim: int,
    heads: int,
    groups: int,
    hidden: int,
    vocabulary: int,
    tokens: int,
) -> tuple[nn.Module, tuple[Tensor, ...], tuple[Tensor, ...], Callable[..., Tensor]]:
    """The decoder, ids (batch, tokens), the ids that follow, and the mean cross entropy."""
    model = Llama(layers, dim, heads, groups, vocabulary, tokens, lambda: Feed(dim, hidden))
    ids, targets = (torch.randint(vocabulary, (batch, tokens)) for _ in range(2))
    return model, (ids,), (targets,), language_loss
