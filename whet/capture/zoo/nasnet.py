"""NASNet-A: cells found by search, that combine the two previous cells in five pairs.

Zoph et al., "Learning transferable architectures for scalable image recognition" (2018), figure 4.
Every pair is a sum of two small operations on the previous cell `h` or the one before it, `p`; the
cell's answer is the concatenation of the pairs that no other pair used.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Separable(nn.Module):
    """ReLU, depthwise k x k, pointwise, batch norm: twice, the first with the stride."""

    def __init__(self, channels: int, kernel: int, *, stride: int = 1) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for step in (stride, 1):
            depthwise = nn.Conv2d(
                channels, channels, kernel, step, kernel // 2, groups=channels, bias=False
            )
            pointwise = nn.Conv2d(channels, channels, 1, bias=False)
            norm = nn.BatchNorm2d(channels)
            nn.init.constant_(norm.weight, 0.5)  # sums of many branches stay in scale
            layers += [nn.ReLU(), depthwise, pointwise, norm]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(x)
        return x


class Squeeze(nn.Module):
    """ReLU, 1x1 convolution, batch norm; with stride 2 where the image must shrink as well."""

    def __init__(self, cin: int, cout: int, *, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(cin, cout, 1, stride=stride, bias=False)
        self.bn = nn.BatchNorm2d(cout)
        nn.init.constant_(self.bn.weight, 0.7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(F.relu(x)))
        return x


class Normal(nn.Module):
    def __init__(self, before: int, previous: int, channels: int, *, shrink: bool) -> None:
        super().__init__()
        self.p = Squeeze(before, channels, stride=2 if shrink else 1)
        self.h = Squeeze(previous, channels)
        self.h3 = Separable(channels, 3)
        self.p3, self.h5 = Separable(channels, 3), Separable(channels, 5)
        self.p5, self.q3 = Separable(channels, 5), Separable(channels, 3)

    def forward(self, p: Tensor, h: Tensor) -> Tensor:
        p, h = self.p(p), self.h(h)
        pairs = [
            self.h3(h) + h,
            self.p3(p) + self.h5(h),
            F.avg_pool2d(h, 3, stride=1, padding=1) + p,
            F.avg_pool2d(p, 3, stride=1, padding=1) + F.avg_pool2d(p, 3, stride=1, padding=1),
            self.p5(p) + self.q3(p),
        ]
        return torch.cat([p, *pairs], dim=1)


class Reduction(nn.Module):
    def __init__(self, before: int, previous: int, channels: int, *, shrink: bool) -> None:
        super().__init__()
        self.p = Squeeze(before, channels, stride=2 if shrink else 1)
        self.h = Squeeze(previous, channels)
        self.p7, self.h5 = Separable(channels, 7, stride=2), Separable(channels, 5, stride=2)
        self.q7, self.p5 = Separable(channels, 7, stride=2), Separable(channels, 5, stride=2)
        self.s3 = Separable(channels, 3)

    def forward(self, p: Tensor, h: Tensor) -> Tensor:
        p, h = self.p(p), self.h(h)
        a = self.p7(p) + self.h5(h)
        b = F.max_pool2d(h, 3, stride=2, padding=1) + self.q7(p)
        c = F.avg_pool2d(h, 3, stride=2, padding=1) + self.p5(p)
        d = F.max_pool2d(h, 3, stride=2, padding=1) + self.s3(a)
        e = F.avg_pool2d(a, 3, stride=1, padding=1) + b
        return torch.cat([b, c, d, e], dim=1)


class NASNet(nn.Module):
    """A stem and then, for each letter of `cells`, a normal (N) or a reduction (R) cell."""

    def __init__(self, cells: str, stem: int, channels: int, classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, stem, 3, stride=2, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(stem)
        self.cells = nn.ModuleList()
        before = previous = stem
        shrink = False  # the cell before the previous one is still at the larger image
        for letter in cells:
            if letter == "R":
                channels *= 2
                self.cells.append(Reduction(before, previous, channels, shrink=shrink))
                before, previous, shrink = previous, 4 * channels, True
            else:
                self.cells.append(Normal(before, previous, channels, shrink=shrink))
                before, previous, shrink = previous, 6 * channels, False
        self.head = nn.Linear(previous, classes)

    def forward(self, x: Tensor) -> Tensor:
        p = h = self.bn(self.stem(x))
        for cell in self.cells:
            p, h = h, cell(p, h)
        h = F.adaptive_avg_pool2d(F.relu(h), 1).flatten(1)
        x = self.head(h)
        return x


def build(
    *, cells: str, stem: int, channels: int, classes: int, image: int
) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The network and one image, (1, 3, image, image); the answer is (1, classes)."""
    return NASNet(cells, stem, channels, classes), (torch.randn(1, 3, image, image),)
