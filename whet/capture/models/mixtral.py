"""Mixtral: a Llama-style decoder whose feed-forward parts are mixtures of experts.

Jiang et al., "Mixtral of experts" (2024). Tokens are dispatched as Lepikhin et al., "GShard" (2020)
write it: by products with a dispatch tensor, a fixed number of places for each expert in each group
of tokens, so that all shapes are static. A token that finds no place is passed by.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from whet.capture.models.gpt import language_loss
from whet.capture.models.llama import Llama

GROUP = 1024  # tokens that share the places of the experts
SLACK = 1.25  # places for each token that evenly spread tokens would need


class Mixture(nn.Module):
    def __init__(self, dim: int, hidden: int, experts: int, top: int) -> None:
        super().__init__()
        self.experts, self.top = experts, top
        self.router = nn.Linear(dim, experts, bias=False)
        self.gate = nn.Parameter(torch.randn(experts, dim, hidden) * dim**-0.5)
        self.up = nn.Parameter(torch.randn(experts, dim, hidden) * dim**-0.5)
        self.down = nn.Parameter(torch.randn(experts, hidden, dim) * hidden**-0.5)

    def dispatch(self, x: Tensor, places: int) -> Tensor:
        """(group, token, expert, place): the weight of a token at its place, 0 elsewhere."""
        scores = torch.softmax(self.router(x), dim=-1)
        rest, taken, weights = scores, torch.zeros_like(scores[:, :1]), torch.zeros_like(scores)
        total = torch.zeros_like(scores[..., :1])
        slots = torch.arange(places, device=x.device)
        found = torch.zeros((*scores.shape, places), dtype=x.dtype, device=x.device)
        for _ in range(self.top):
            best = rest.amax(dim=-1, keepdim=True)
            chosen = (rest >= best).to(x.dtype)
            at = torch.cumsum(chosen, dim=1) - chosen + taken
            taken = taken + chosen.sum(dim=1, keepdim=True)
            weights = scores * chosen
            total = total + weights.sum(dim=-1, keepdim=True)
            found = found + weights[..., None] * (at[..., None] == slots).to(x.dtype)
            rest = rest * (1 - chosen)
        return found / total[..., None]

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, dim = x.shape
        group = min(GROUP, tokens)
        y = x.reshape(batch * (tokens // group), group, dim)
        places = max(1, int(SLACK * group * self.top / self.experts))
        weights = self.dispatch(y, places)
        sent = torch.einsum("gsec,gsd->egcd", (weights > 0).to(x.dtype), y)
        hidden = F.silu(torch.einsum("egcd,edh->egch", sent, self.gate))
        hidden = hidden * torch.einsum("egcd,edh->egch", sent, self.up)
        done = torch.einsum("egch,ehd->egcd", hidden, self.down)
        return torch.einsum("gsec,egcd->gsd", weights, done).reshape(x.shape)


def build(
    batch: int,
    *,
    layers: int,
    dim: int,
    heads: int,
    groups: int,
    hidden: int,
    experts: int,
    top: int,
    vocabulary: int,
    tokens: int,
) -> tuple[nn.Module, tuple[Tensor, ...], tuple[Tensor, ...], Callable[..., Tensor]]:
    """The decoder, ids (batch, tokens), the ids that follow, and the mean cross entropy."""
    model = Llama(
        layers, dim, heads, groups, vocabulary, tokens,
        lambda: Mixture(dim, hidden, experts, top),
    )  # fmt: skip
    ids, targets = (torch.randint(vocabulary, (batch, tokens)) for _ in range(2))
    return model, (ids,), (targets,), language_loss
