"""MobileNet-v2: inverted residuals, that is expand 1x1, depthwise 3x3, project 1x1.

Sandler et al., "MobileNetV2: inverted residuals and linear bottlenecks" (2018).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class InvertedResidual(nn.Module):
    def __init__(self, cin: int, cout: int, *, stride: int, expand: int) -> None:
        super().__init__()
        width = cin * expand
        layers: list[nn.Module] = []
        if expand != 1:
            layers += [nn.Conv2d(cin, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU6()]
        layers += [
            nn.Conv2d(width, width, 3, stride=stride, padding=1, groups=width, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU6(),
            nn.Conv2d(width, cout, 1, bias=False),
            nn.BatchNorm2d(cout),
        ]
        self.layers = nn.Sequential(*layers)
        self.residual = stride == 1 and cin == cout

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return x + y if self.residual else y


class MobileNetV2(nn.Module):
    def __init__(
        self, stem: int, stages: Sequence[tuple[int, int, int, int]], last: int, classes: int
    ) -> None:
        """`stages` rows are (expand, channels, blocks, stride of the first)."""
        super().__init__()
        layers: list[nn.Module] = [
            nn.Conv2d(3, stem, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(stem),
            nn.ReLU6(),
        ]
        cin = stem
        for expand, cout, blocks, first in stages:
            for block in range(blocks):
                stride = first if block == 0 else 1
                layers.append(InvertedResidual(cin, cout, stride=stride, expand=expand))
                cin = cout
        layers += [nn.Conv2d(cin, last, 1, bias=False), nn.BatchNorm2d(last), nn.ReLU6()]
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(last, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        x = self.head(x)
        return x


def build(
    *,
    stem: int,
    stages: Sequence[tuple[int, int, int, int]],
    last: int,
    classes: int,
    image: int,
) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The network and one image, (1, 3, image, image); the answer is (1, classes)."""
    return MobileNetV2(stem, stages, last, classes), (torch.randn(1, 3, image, image),)
