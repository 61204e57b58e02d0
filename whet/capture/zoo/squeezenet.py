"""SqueezeNet 1.1: fire modules, a 1x1 squeeze and then 1x1 and 3x3 expansions side by side.

Iandola et al., "SqueezeNet: AlexNet-level accuracy with 50x fewer parameters" (2016).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Fire(nn.Module):
    def __init__(self, cin: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(cin, squeeze, 1)
        self.expand1 = nn.Conv2d(squeeze, expand, 1)
        self.expand3 = nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze(x))
        return torch.cat([F.relu(self.expand1(x)), F.relu(self.expand3(x))], dim=1)


class SqueezeNet(nn.Module):
    def __init__(
        self, stem: int, stages: Sequence[Sequence[tuple[int, int]]], classes: int
    ) -> None:
        """`stages` lists the (squeeze, expand) widths of the fire modules between poolings."""
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, stem, 3, stride=2), nn.ReLU()]
        cin = stem
        for stage in stages:
            layers.append(nn.MaxPool2d(3, stride=2))
            for squeeze, expand in stage:
                layers.append(Fire(cin, squeeze, expand))
                cin = 2 * expand
        self.features = nn.Sequential(*layers)
        self.head = nn.Conv2d(cin, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        x = F.relu(self.head(x))
        return F.adaptive_avg_pool2d(x, 1).flatten(1)


def build(
    *, stem: int, stages: Sequence[Sequence[tuple[int, int]]], classes: int, image: int
) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The network and one image, (1, 3, image, image); the answer is (1, classes)."""
    return SqueezeNet(stem, stages, classes), (torch.randn(1, 3, image, image),)
