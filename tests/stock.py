"""A stock network with random weights, and what its first block sees of random clips."""

from __future__ import annotations

import torch
from torch import Tensor

from models.kwt import KWT
from models.kwt_weights import KWTConfig


def random_kwt(config: KWTConfig) -> KWT:
    """Every parameter drawn alike, norms and biases too."""
    torch.manual_seed(0)
    model = KWT(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.requires_grad_(requires_grad=False)


def random_clips(config: KWTConfig, count: int) -> Tensor:
    """Embedded clips (count, N, C)."""
    return torch.randn(count, config.tokens, config.channels, generator=torch.Generator().manual_seed(1))
