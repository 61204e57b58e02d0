"""DLRM, as in the zoo, with large tables: trained on clicks.

Naumov et al., "Deep learning recommendation model for personalization" (2019).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from whet.capture.models.gpt import wide
from whet.capture.zoo.dlrm import DLRM


def click_loss(chance: Tensor, clicked: Tensor) -> Tensor:
    """Mean squared error of the predicted chances."""
    return F.mse_loss(wide(chance)[:, 0], wide(clicked))


def build(
    batch: int, *, dense: int, tables: int, table: int, bottom: Sequence[int], top: Sequence[int]
) -> tuple[nn.Module, tuple[Tensor, ...], tuple[Tensor, ...], Callable[..., Tensor]]:
    """The model, features (batch, dense) and ids (batch, tables), clicks, and their loss."""
    model = DLRM(dense, tables, table, bottom, top)
    inputs = torch.randn(batch, dense), torch.randint(table, (batch, tables))
    return model, inputs, (torch.rand(batch),), click_loss
