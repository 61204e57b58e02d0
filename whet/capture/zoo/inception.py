"""Inception-v3: blocks of parallel convolution branches, concatenated.

Szegedy et al., "Rethinking the Inception architecture for computer vision" (2016), without the
auxiliary classifier. A block is written as the paper draws it: one line a branch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Size = int | tuple[int, int]


class Conv(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(
        self, cin: int, cout: int, kernel: Size, *, stride: int = 1, padding: Size = 0
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(cin, cout, kernel, stride=stride, padding=padding, bias=False)
        self.bn = nn.BatchNorm2d(cout, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class Branches(nn.Module):
    """Every branch applied to the same input, concatenated along channels."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], dim=1)


def chain(cin: int, *convs: tuple[int, Size]) -> nn.Sequential:
    """Stride-1 convolutions that keep the image size, as (channels, kernel) each."""
    layers: list[nn.Module] = []
    for cout, kernel in convs:
        padding = kernel // 2 if isinstance(kernel, int) else (kernel[0] // 2, kernel[1] // 2)
        layers.append(Conv(cin, cout, kernel, padding=padding))
        cin = cout
    return nn.Sequential(*layers)


def pooled(cin: int, cout: int) -> nn.Sequential:
    """Average over each pixel's neighbours, then a 1x1 convolution."""
    return nn.Sequential(nn.AvgPool2d(3, stride=1, padding=1), Conv(cin, cout, 1))


class Inception(nn.Module):
    def __init__(self, c: int, blocks: Sequence[int], classes: int) -> None:
        """`c` scales every width (64 in the paper), `blocks` counts the stages' blocks."""
        super().__init__()

        def w(n: int) -> int:  # a width of the paper, scaled
            return n * c // 64

        layers: list[nn.Module] = [
            Conv(3, w(32), 3, stride=2),
            Conv(w(32), w(32), 3),
            Conv(w(32), w(64), 3, padding=1),
            nn.MaxPool2d(3, stride=2),
            Conv(w(64), w(80), 1),
            Conv(w(80), w(192), 3),
            nn.MaxPool2d(3, stride=2),
        ]
        cin = w(192)
        for pool in (w(32), w(64), w(64))[: blocks[0]]:
            layers.append(
                Branches(
                    chain(cin, (w(64), 1)),
                    chain(cin, (w(48), 1), (w(64), 5)),
                    chain(cin, (w(64), 1), (w(96), 3), (w(96), 3)),
                    pooled(cin, pool),
                )
            )
            cin = 2 * w(64) + w(96) + pool
        layers.append(
            Branches(
                Conv(cin, w(384), 3, stride=2),
                nn.Sequential(chain(cin, (w(64), 1), (w(96), 3)), Conv(w(96), w(96), 3, stride=2)),
                nn.MaxPool2d(3, stride=2),
            )
        )
        cin += w(384) + w(96)
        for n in (w(128), w(160), w(160), w(192))[: blocks[1]]:
            row, column = (1, 7), (7, 1)
            layers.append(
                Branches(
                    chain(cin, (w(192), 1)),
                    chain(cin, (n, 1), (n, row), (w(192), column)),
                    chain(cin, (n, 1), (n, column), (n, row), (n, column), (w(192), row)),
                    pooled(cin, w(192)),
                )
            )
            cin = 4 * w(192)
        layers.append(
            Branches(
                nn.Sequential(chain(cin, (w(192), 1)), Conv(w(192), w(320), 3, stride=2)),
                nn.Sequential(
                    chain(cin, (w(192), 1), (w(192), (1, 7)), (w(192), (7, 1))),
                    Conv(w(192), w(192), 3, stride=2),
                ),
                nn.MaxPool2d(3, stride=2),
            )
        )
        cin += w(320) + w(192)
        for _ in range(blocks[2]):
            n = w(384)
            layers.append(
                Branches(
                    chain(cin, (w(320), 1)),
                    nn.Sequential(
                        chain(cin, (n, 1)), Branches(chain(n, (n, (1, 3))), chain(n, (n, (3, 1))))
                    ),
                    nn.Sequential(
                        chain(cin, (w(448), 1), (n, 3)),
                        Branches(chain(n, (n, (1, 3))), chain(n, (n, (3, 1)))),
                    ),
                    pooled(cin, w(192)),
                )
            )
            cin = w(320) + 4 * n + w(192)
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(cin, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        x = self.head(x)
        return x


def build(
    *, c: int, blocks: Sequence[int], classes: int, image: int
) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The network and one image, (1, 3, image, image); the answer is (1, classes)."""
    return Inception(c, blocks, classes), (torch.randn(1, 3, image, image),)
