"""Seeded random weights that behave like trained ones.

A model is only a test if its numbers are alive: activations that neither vanish nor explode over
fifty layers, and normalizations that really scale and shift, so that folding one wrongly shows. So
the weights of matmuls and convolutions are scaled by their fan-in, and everything else (norms'
affines, running statistics, biases, position tables) is jittered *around the constructor's value*:
a model that starts its residual branches small, as one does in training, keeps them small.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

# layer type: gain of the standard deviation over 1 / sqrt(fan in); sqrt(2) makes up for a ReLU
GAIN: tuple[tuple[type[nn.Module], float], ...] = (
    (_ConvNd, math.sqrt(2.0)),
    (nn.Linear, 1.0),
)


@torch.no_grad()
def randomize(model: nn.Module, seed: int) -> nn.Module:
    """Fill every parameter and running statistic of `model` in place from `seed`; returns `model`.

    Draws come from one generator in module order: equal models of equal seeds have equal weights,
    and the global generator is left alone.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        _fill(module, generator)
    return model


def _fill(module: nn.Module, generator: torch.Generator) -> None:
    gain = next((gain for kind, gain in GAIN if isinstance(module, kind)), None)
    for name, parameter in module.named_parameters(recurse=False):
        if isinstance(module, nn.Embedding):
            # dot products of two rows then have unit variance
            parameter.normal_(0.0, module.embedding_dim**-0.25, generator=generator)
        elif gain is not None and name == "weight":
            fan_in = parameter[0].numel()
            parameter.normal_(0.0, gain / math.sqrt(fan_in), generator=generator)
        else:
            _jitter(parameter, generator)
    if isinstance(module, _BatchNorm) and module.running_mean is not None:
        assert module.running_var is not None
        _jitter(module.running_mean, generator)
        module.running_var.uniform_(0.5, 1.5, generator=generator)


def _jitter(x: Tensor, generator: torch.Generator) -> None:
    """x * (1 ± 0.2) + 0.1 * noise: about where it was, and nowhere neutral."""
    scale = torch.empty_like(x).uniform_(0.8, 1.2, generator=generator)
    noise = torch.empty_like(x).normal_(0.0, 0.1, generator=generator)
    x.mul_(scale).add_(noise)
