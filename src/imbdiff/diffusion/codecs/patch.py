"""The codec "patch": square blocks of pixels in the basis of their principal components, whitened.

Of every block of f x f pixels, p in [-1, 1]^D with D = C f^2, the k strongest components are kept:

    z = diag(1 / s) U^T (p - m),        p ~ m + U diag(s) z

m and the orthonormal U (D, k) are the mean and the first eigenvectors of the blocks of the training images, s their
standard deviations. One matrix product, no network: encoding costs nothing beside a training step, so that images are
augmented first and encoded at every step. Before whitening white noise stays white, and with k = D images come back
exactly. PSNR by k and f, and what a judge sees of it: docs/photographs.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from imbdiff.data.imageset import Rows
from imbdiff.diffusion.codec import Codec, as_pixels
from imbdiff.runtime.errors import ConfigError, RunError

MOST = 1000
"""Images that a basis is fitted on at most, evenly spaced: 50 gave within 0.1 dB of 2,000."""
LEAST_STD = 1e-3
"""Of a component, in units of [-1, 1]: a quarter of a step of 8 bits, for components that never vary."""


@dataclass(frozen=True, eq=False)
class PatchCodec(Codec):
    """See the module; made by `fit`.

    Attributes:
        image: (C, H, W) of the images; blocks reach over the right and lower border, where the border is repeated.
        factor: f, the side of a block.
        mean: (D,) of the blocks, in the order of `torch.nn.functional.pixel_unshuffle`.
        basis: (D, k), orthonormal.
        std: (k,) of the components.
        psnr: in dB, of decoded training images.
    """

    what: ClassVar[str] = "blocks of pixels in the basis of their principal components, whitened; for larger images"
    name: ClassVar[str] = "patch"

    image: tuple[int, int, int]
    factor: int
    mean: Tensor
    basis: Tensor
    std: Tensor
    psnr: float
    _on: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict, repr=False)

    @property
    def shape(self) -> tuple[int, int, int]:  # type: ignore[override]
        _, height, width = self.image
        return self.basis.shape[1], -(-height // self.factor), -(-width // self.factor)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PatchCodec) and other.fingerprint == self.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __deepcopy__(self, memo: Any) -> PatchCodec:
        return self

    @classmethod
    def fit(cls, images: np.ndarray | Rows, factor: int, channels: int | None = None) -> PatchCodec:
        """The codec of a training set. Sums are of whole numbers, exact in any order.

        Args:
            images: (N, H, W, C) uint8, N >= 1.
            factor: f.
            channels: k; None: f^2, a number for every pixel: a third of what an image in colour has, all of a grey one.

        Raises:
            ConfigError: more channels than a block has values.
        """
        n, height, width, depth = images.shape
        values = depth * factor**2
        k = min(factor**2, values) if channels is None else channels
        if not 1 <= k <= values:
            raise ConfigError(
                f"--codec.latent_channels {k}: a block of {factor} x {factor} pixels has {values} values",
                f"give at most {values}",
            )
        rows = np.unique(np.linspace(0, n - 1, min(n, MOST)).round().astype(np.int64))
        count, total, squares = 0, torch.zeros(values, dtype=torch.float64), torch.zeros(values, values).double()
        for part in np.array_split(rows, -(-len(rows) // 32)):
            x = torch.from_numpy(np.ascontiguousarray(images[part])).permute(0, 3, 1, 2).double()
            blocks = _blocks(x, factor).permute(0, 2, 3, 1).reshape(-1, values)
            count, total, squares = count + len(blocks), total + blocks.sum(0), squares + blocks.T @ blocks
        mean = total / count
        variance, vectors = torch.linalg.eigh((squares / count - torch.outer(mean, mean)) / 127.5**2)
        variance, vectors = variance.flip(0).clamp_min(0), vectors.flip(1)
        largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
        basis, std = (vectors * largest.sign())[:, :k], variance[:k].sqrt().clamp_min(LEAST_STD)
        psnr = -10 * math.log10(max(float(variance[k:].sum()) / values / 4, 1 / (12 * 255**2)))
        return cls((depth, height, width), factor, (mean / 127.5 - 1).float(), basis.float(), std.float(), psnr)

    def _matrices(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        key = (like.device, like.dtype)
        if key not in self._on:
            into, back = (self.basis / self.std).T, self.basis * self.std
            self._on[key] = (into.to(like).contiguous(), back.to(like).contiguous(), self.mean.to(like))
        return self._on[key]

    def encode(self, stored: Tensor, noise: Tensor | None = None) -> Tensor:
        x = _blocks(as_pixels(stored), self.factor)
        into, _, mean = self._matrices(x)
        with torch.autocast(x.device.type, enabled=False):
            return torch.einsum("kd,bdhw->bkhw", into, x - mean[:, None, None])

    def pixels(self, z: Tensor) -> Tensor:
        _, back, mean = self._matrices(z)
        with torch.autocast(z.device.type, enabled=False):
            return from_patches(z, back, mean, self.factor, self.image[1:])

    def to_json(self) -> dict[str, Any]:
        return {**super().to_json(), "factor": self.factor, "psnr": round(self.psnr, 2)}

    def tensors(self) -> dict[str, Tensor]:
        return {"mean": self.mean, "basis": self.basis, "std": self.std}

    @classmethod
    def from_json(cls, described: Mapping[str, Any], image: tuple[int, int, int], folder: Path | None) -> PatchCodec:
        path = Path(folder or ".") / "codec.safetensors"
        try:
            found, f = load_file(path), int(described["factor"])
        except (FileNotFoundError, SafetensorError) as error:
            raise RunError(f"{path} is missing or damaged: {error}", "restore it, or train again") from error
        k, values = int(described["shape"][0]), image[0] * f**2
        shapes = {name: tuple(t.shape) for name, t in found.items()}
        if shapes != {"mean": (values,), "basis": (values, k), "std": (k,)}:
            raise RunError(f"{path} does not fit its model: {shapes}", "restore it, or train again")
        return cls(image, f, found["mean"], found["basis"], found["std"], float(described.get("psnr", 0)))


def _blocks(x: Tensor, factor: int) -> Tensor:
    """(B, C, H, W) -> (B, C f^2, ceil(H / f), ceil(W / f)); the border is repeated where a block reaches over it."""
    height, width = x.shape[-2:]
    if height % factor or width % factor:
        x = F.pad(x, (0, -width % factor, 0, -height % factor), mode="replicate")
    return F.pixel_unshuffle(x, factor)


def from_patches(z: Tensor, weight: Tensor, bias: Tensor, factor: int, size: tuple[int, int]) -> Tensor:
    """(B, k, h, w) -> (B, C, *size): each block of pixels is weight (C factor^2, k) times its numbers, plus bias."""
    x = torch.einsum("dk,bkhw->bdhw", weight, z) + bias[:, None, None]
    return F.pixel_shuffle(x, factor)[..., : size[0], : size[1]]
