"""A Llama-style decoder: RMS norms, rotary positions, grouped heads, SwiGLU, a key-value cache.

Touvron et al., "LLaMA" (2023); Ainslie et al., "GQA" (2023); Su et al., "RoFormer" (2021).
Prefill reads a whole prompt under the causal mask; decode reads one token against the cache of
those before it. Both answer with the hidden states and the keys and values of what was read.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair of channels (c, c + half) by its position's angle."""
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-b, a], dim=-1) * sin


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

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        q = rotate(self.split(self.query(x)), cos, sin)
        key = rotate(self.split(self.key(x)), cos, sin)
        value = self.split(self.value(x))
        if past is None:
            k, v = key, value
        else:
            k, v = torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=past is None, enable_gqa=True)
        return self.out(y.transpose(1, 2).reshape(x.shape)), key, value


class Layer(nn.Module):
    def __init__(self, dim: int, heads: int, groups: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.RMSNorm(dim, eps=1e-5)
        self.attention = Attention(dim, heads, groups)
        self.norm2 = nn.RMSNorm(dim, eps=1e-5)
        self.gate = nn.Linear(dim, hidden, bias=False)
        self.up = nn.Linear(dim, hidden, bias=False)
        self.down = nn.Linear(hidden, dim, bias=False)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        y, key, value = self.attention(self.norm1(x), cos, sin, past)
        x = x + y
        y = self.norm2(x)
        x = x + self.down(F.silu(self.gate(y)) * self.up(y))
        return x, key, value


class Llama(nn.Module):
    cos: Tensor
    sin: Tensor

    def __init__(
        self,
        layers: int,
        dim: int,
        heads: int,
        groups: int,
        hidden: int,
        vocabulary: int,
        positions: int,
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, dim)
        self.layers = nn.ModuleList(Layer(dim, heads, groups, hidden) for _ in range(layers))
        self.norm = nn.RMSNorm(dim, eps=1e-5)
        size = dim // heads
        frequency = 10_000.0 ** (-torch.arange(0, size, 2).float() / size)
        angle = torch.outer(torch.arange(positions).float(), frequency).repeat(1, 2)
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    def forward(
        self, ids: Tensor, keys: Tensor | None = None, values: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """ids (batch, tokens); keys and values of the past (layers, batch, groups, past, size)."""
        start = 0 if keys is None else keys.shape[3]
        cos = self.cos[start : start + ids.shape[1]]
        sin = self.sin[start : start + ids.shape[1]]
        x: Tensor = self.tokens(ids)
        news = []
        for i, layer in enumerate(self.layers):
            past = None if keys is None or values is None else (keys[i], values[i])
            x, key, value = layer(x, cos, sin, past)
            news.append((key, value))
        keys, values = (torch.stack(new) for new in zip(*news, strict=True))
        return self.norm(x), keys, values


def build(
    *,
    layers: int,
    dim: int,
    heads: int,
    groups: int,
    hidden: int,
    vocabulary: int,
    tokens: int,
    cache: int,
) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The decoder and `tokens` ids, (1, tokens); with `cache` > 0 the past of so many too."""
    model = Llama(layers, dim, heads, groups, hidden, vocabulary, positions=1024)
    ids = torch.randint(vocabulary, (1, tokens))
    if cache == 0:
        return model, (ids,)
    shape = (layers, 1, groups, cache, dim // heads)
    return model, (ids, torch.randn(shape), torch.randn(shape))
