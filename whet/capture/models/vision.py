"""Image classifiers: ResNet-50 and Inception-v3 as in the zoo, VGG-16 and AlexNet.

Simonyan and Zisserman, "Very deep convolutional networks" (2015), configuration D; Krizhevsky, "One
weird trick for parallelizing convolutional neural networks" (2014). Without dropout: a step is then
a function of its inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from whet.capture.models.gpt import wide
from whet.capture.zoo import inception, resnet


class Classifier(nn.Module):
    """Convolutions, then three fully connected layers."""

    def __init__(self, features: nn.Sequential, flat: int, wide: int, classes: int) -> None:
        super().__init__()
        self.features = features
        self.first, self.second = nn.Linear(flat, wide), nn.Linear(wide, wide)
        self.head = nn.Linear(wide, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x).flatten(1)
        x = F.relu(self.second(F.relu(self.first(x))))
        x = self.head(x)
        return x


def vgg(stages: Sequence[tuple[int, int]], wide: int, classes: int, image: int) -> nn.Module:
    """`stages`: channels and number of convolutions before each pooling."""
    layers: list[nn.Module] = []
    channels, side = 3, image
    for out, count in stages:
        for _ in range(count):
            layers += [nn.Conv2d(channels, out, 3, padding=1), nn.ReLU()]
            channels = out
        layers.append(nn.MaxPool2d(2))
        side //= 2
    return Classifier(nn.Sequential(*layers), channels * side**2, wide, classes)


def alexnet(widths: Sequence[int], wide: int, classes: int, image: int) -> nn.Module:
    """Five convolutions of the given widths, as in one column of the paper's network."""
    a, b, c, d, e = widths
    features = nn.Sequential(
        nn.Conv2d(3, a, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(a, b, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(b, c, 3, padding=1), nn.ReLU(),
        nn.Conv2d(c, d, 3, padding=1), nn.ReLU(),
        nn.Conv2d(d, e, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2),
    )  # fmt: skip
    side = image
    for kernel, stride, padding in ((11, 4, 2), (3, 2, 0), (3, 2, 0), (3, 2, 0)):
        side = (side + 2 * padding - kernel) // stride + 1
    return Classifier(features, e * side**2, wide, classes)


def label_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy, in float32 at least."""
    return F.cross_entropy(wide(logits), labels)


def build(
    batch: int, *, kind: str, image: int, classes: int, **sizes: Any
) -> tuple[nn.Module, tuple[Tensor, ...], tuple[Tensor, ...], Callable[..., Tensor]]:
    """A classifier, images (batch, 3, image, image), labels (batch,), and the mean loss."""
    if kind == "resnet":
        model: nn.Module = resnet.ResNet(groups=1, classes=classes, **sizes)
    elif kind == "inception":
        model = inception.Inception(classes=classes, **sizes)
    else:
        pages: dict[str, Callable[..., nn.Module]] = {"vgg": vgg, "alexnet": alexnet}
        model = pages[kind](image=image, classes=classes, **sizes)
    images, labels = torch.randn(batch, 3, image, image), torch.randint(classes, (batch,))
    return model, (images,), (labels,), label_loss
