"""Images <-> model space. Outside this file and reporting, nothing knows about RGB or [-1, 1]."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor


class Codec(ABC):
    """Maps uint8 images (B, C, H, W) to model space (B, c, h, w) float32 and back."""

    #: (c, h, w) of one encoded image
    shape: tuple[int, int, int]

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """(B, C, H, W) uint8 -> (B, c, h, w) float32."""

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """(B, c, h, w) float -> (B, C, H, W) uint8; values out of range are clamped, then rounded."""


@dataclass(frozen=True)
class IdentityCodec(Codec):
    """Pixel space: x = image / 127.5 - 1, in [-1, 1]. Decoding an encoded image gives it back exactly.

    Attributes:
        shape: (C, H, W) of the images.
    """

    shape: tuple[int, int, int]

    def encode(self, images: Tensor) -> Tensor:
        return images.to(torch.float32).div_(127.5).sub_(1.0)

    def decode(self, z: Tensor) -> Tensor:
        return z.float().add(1.0).mul(127.5).round().clamp_(0, 255).to(torch.uint8)
