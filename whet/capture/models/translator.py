"""A translator of LSTM layers: an encoder, attention over what it read, a decoder.

After Wu et al., "Google's neural machine translation system" (2016), as FlexFlow's evaluation takes
it: Jia, Zaharia, Aiken, "Beyond data and model parallelism" (2018), section 8. Unrolled over time.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from whet.capture.models.gpt import language_loss


class Cell(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.input, self.state = nn.Linear(dim, 4 * dim), nn.Linear(dim, 4 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (batch, steps, dim) to the states, alike."""
        sums = self.input(x).view(*x.shape[:2], 4, self.dim)
        h = c = torch.zeros_like(x[:, 0])
        states = []
        for t in range(x.shape[1]):
            z = sums[:, t] + self.state(h).view(-1, 4, self.dim)
            i, f, g, o = z.unbind(1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            states.append(h)
        return torch.stack(states, dim=1)


class Translator(nn.Module):
    def __init__(self, layers: int, dim: int, vocabulary: int) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(vocabulary, dim), nn.Embedding(vocabulary, dim)
        self.encoder = nn.ModuleList(Cell(dim) for _ in range(layers))
        self.decoder = nn.ModuleList(Cell(dim) for _ in range(layers))
        self.query, self.join = nn.Linear(dim, dim, bias=False), nn.Linear(2 * dim, dim)
        self.head = nn.Linear(dim, vocabulary)

    def forward(self, ids: Tensor, before: Tensor) -> Tensor:
        """Logits (batch, steps, vocabulary) of source ids and the target's ids before each."""
        x, y = self.source(ids), self.target(before)
        for cell in self.encoder:
            x = cell(x)
        for cell in self.decoder:
            y = cell(y)
        seen = torch.softmax(self.query(y) @ x.transpose(1, 2), dim=-1) @ x
        y = torch.tanh(self.join(torch.cat([y, seen], dim=-1)))
        logits: Tensor = self.head(y)
        return logits


def build(
    batch: int, *, layers: int, dim: int, vocabulary: int, steps: int
) -> tuple[nn.Module, tuple[Tensor, ...], tuple[Tensor, ...], Callable[..., Tensor]]:
    """The translator, source and target ids (batch, steps), the true ids, the mean loss."""
    ids, before, targets = (torch.randint(vocabulary, (batch, steps)) for _ in range(3))
    return Translator(layers, dim, vocabulary), (ids, before), (targets,), language_loss
