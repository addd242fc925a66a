"""What is made of a network's features: one vector per image, and a linear layer from a generator of its own."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def pooled(h: Tensor) -> Tensor:
    """(B, c): the mean over pixels of (B, c, h, w), over tokens of (B, tokens, c); (B, c) as it is."""
    return h.flatten(2).mean(2) if h.ndim == 4 else h.mean(1) if h.ndim == 3 else h


def linear(width: int, out: int, generator: torch.Generator) -> nn.Linear:
    """A linear layer with torch's usual initial law, U(-b, b) with b = 1 / sqrt(width); drawn on the CPU."""
    layer = nn.utils.skip_init(nn.Linear, width, out)
    with torch.no_grad():
        for p in layer.parameters():
            p.uniform_(-(width**-0.5), width**-0.5, generator=generator)
    return layer
