"""GPT: a decoder with learned positions, pre-norm layers and a head tied to the embedding.

Radford et al., "Language models are unsupervised multitask learners" (2019); sizes as in Brown et
al., "Language models are few-shot learners" (2020), table 2.1.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def split(self, x: Tensor) -> Tensor:
        batch, tokens, dim = x.shape
        return x.view(batch, tokens, self.heads, dim // self.heads).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = map(self.split, self.qkv(x).chunk(3, dim=-1))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        made: Tensor = self.out(y.transpose(1, 2).reshape(x.shape))
        return made


class Feed(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.up = nn.Linear(dim, 4 * dim)
        self.down = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(F.gelu(self.up(x), approximate="tanh"))
        return x


class Layer(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = Attention(dim, heads, causal=True)
        self.norm2 = nn.LayerNorm(dim)
        self.feed = Feed(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        x = x + self.feed(self.norm2(x))
        return x


class GPT(nn.Module):
    def __init__(self, layers: int, dim: int, heads: int, vocabulary: int, tokens: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, dim)
        self.positions = nn.Embedding(tokens, dim)
        self.layers = nn.ModuleList(Layer(dim, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)
        nn.init.normal_(self.tokens.weight, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits (batch, tokens, vocabulary) of ids (batch, tokens)."""
        x = self.tokens(ids) + self.positions.weight
        for layer in self.layers:
            x = layer(x)
        return F.linear(self.norm(x), self.tokens.weight)


def language_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross entropy over all tokens, in float32 at least."""
    return F.cross_entropy(wide(logits).flatten(0, -2), targets.flatten())


def wide(x: Tensor) -> Tensor:
    """In float32, if it was narrower."""
    return x if x.dtype == torch.float64 else x.float()


def build(
    batch: int, *, layers: int, dim: int, heads: int, vocabulary: int, tokens: int
) -> tuple[nn.Module, tuple[Tensor, ...], tuple[Tensor, ...], Callable[..., Tensor]]:
    """The decoder, ids (batch, tokens), the ids that follow, and the mean cross entropy."""
    model = GPT(layers, dim, heads, vocabulary, tokens)
    ids, targets = (torch.randint(vocabulary, (batch, tokens)) for _ in range(2))
    return model, (ids,), (targets,), language_loss
