"""Images <-> model space. Outside codecs and reporting, nothing knows about RGB or [-1, 1].

Three steps: `Codec.store` gives what may be kept of an image between epochs, `Codec.encode` what is noised, and
`Codec.decode` images again (the split of Karras et al., CVPR 2024, arXiv 2312.02696, whose code is NVlabs/edm2).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from imbdiff.runtime.errors import RunError
from imbdiff.runtime.files import digest


class Codec(ABC):
    """Maps images (B, C, H, W) to model space (B, c, h, w) float32 and back.

    Never an `nn.Module`: networks that it may have are no part of a model's weights, and it brings them to the device
    of what it is given. It is not changed once made, so that copies of a model share it.

    Attributes:
        what: it is, in a line.
        name: the key in `codecs.CODECS`, and the "kind" of `to_json`.
        image: (C, H, W) of the images.
        shape: (c, h, w) of one encoded image.
        bound: 1.0: values are within [-1, 1], where solvers clip predicted clean images. None: they must not clip.
        symmetries: "any": images are augmented and then stored and encoded anew at every step. "cached": storing is
            expensive; one variant is kept for each allowed mirroring or turn, and there is no other augmentation.
        random: an encoding is a distribution, of which `encode` takes a sample where it is given noise.
        chunk: images per call while decoding; the last is filled up, so that an image does not depend on how many
            others are decoded with it.
    """

    what: ClassVar[str] = ""
    name: ClassVar[str]
    image: tuple[int, int, int]
    shape: tuple[int, int, int]
    bound: float | None = None
    symmetries: Literal["any", "cached"] = "any"
    random: bool = False
    chunk: int = 64

    @property
    def stored(self) -> tuple[int, int, int]:
        """(k, h, w) of what `store` gives of an image."""
        return self.image

    def store(self, images: Tensor) -> Tensor:
        """(B, C, H, W) uint8, or float in [-1, 1] -> what `encode` takes: by default the images themselves."""
        return images

    @abstractmethod
    def encode(self, stored: Tensor, noise: Tensor | None = None) -> Tensor:
        """What `store` gave -> (B, c, h, w) float32.

        Args:
            noise: (B, c, h, w) standard normal, for codecs whose encoding is a distribution; None: its mean.
        """

    @abstractmethod
    def pixels(self, z: Tensor) -> Tensor:
        """(B, c, h, w) -> (B, C, H, W) float, where images are in [-1, 1]; not clamped. Gradients pass."""

    def to_json(self) -> dict[str, Any]:
        """What `codecs.codec_from_json` makes it from, with `tensors`."""
        return {"kind": self.name, "shape": list(self.shape)}

    def tensors(self) -> dict[str, Tensor]:
        """What is saved beside a model's weights."""
        return {}

    @classmethod
    def from_json(cls, described: Mapping[str, Any], image: tuple[int, int, int], folder: Path | None) -> Codec:
        """The codec that `to_json` described.

        Args:
            folder: of the saved model, where ``codec.safetensors`` holds the `tensors`.

        Raises:
            RunError, ConfigError: it cannot be made.
        """
        raise NotImplementedError(cls.name)

    @property
    def fingerprint(self) -> str:
        """A hash of all that decides what `encode` and `decode` give."""
        values = {k: v.detach().cpu().contiguous().numpy().tobytes().hex() for k, v in self.tensors().items()}
        return digest([self.to_json(), list(self.image), values])

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """(B, c, h, w) float -> (B, C, H, W) uint8; values out of range are clamped, then rounded.

        Raises:
            RunError: some rows are not finite.
        """
        if bad := (~z.flatten(1).isfinite().all(1)).nonzero().flatten().tolist():
            raise RunError(
                f"{len(bad)} of {len(z)} sampled images are not finite numbers (rows {', '.join(map(str, bad[:8]))})",
                "look at the training's losses; sample in float32, with weaker guidance, or with more steps",
            )
        parts = [self._in_full(part) for part in z.split(self.chunk)]
        return torch.cat(parts) if parts else z.new_zeros((0, *self.image), dtype=torch.uint8)

    def _in_full(self, z: Tensor) -> Tensor:
        x = self.pixels(F.pad(z, (0, 0) * 3 + (0, self.chunk - len(z)))) if self.chunk > len(z) else self.pixels(z)
        return x[: len(z)].float().add(1.0).mul(127.5).round().clamp_(0, 255).to(torch.uint8)


def as_pixels(images: Tensor) -> Tensor:
    """(B, C, H, W) uint8 -> float32 in [-1, 1]; what is float already, as it is."""
    return images.to(torch.float32).div_(127.5).sub_(1.0) if images.dtype == torch.uint8 else images


@dataclass(frozen=True)
class IdentityCodec(Codec):
    """Pixel space: x = image / 127.5 - 1, in [-1, 1]. Decoding an encoded image gives it back exactly.

    Attributes:
        shape: (C, H, W) of the images.
    """

    what: ClassVar[str] = "pixels in [-1, 1]; where nothing is said, up to 64 pixels a side, without a GPU 32"
    name: ClassVar[str] = "identity"
    bound: ClassVar[float | None] = 1.0  # type: ignore[misc]

    shape: tuple[int, int, int]

    @property
    def image(self) -> tuple[int, int, int]:  # type: ignore[override]
        return self.shape

    def encode(self, stored: Tensor, noise: Tensor | None = None) -> Tensor:
        return as_pixels(stored)

    def pixels(self, z: Tensor) -> Tensor:
        return z

    @classmethod
    def from_json(cls, described: Mapping[str, Any], image: tuple[int, int, int], folder: Path | None) -> Codec:
        return cls(image)
