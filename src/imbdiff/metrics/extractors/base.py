"""What an extractor is: images -> features; and those that need nothing from outside this project.

A number made with one carries its name and fingerprint.

A *judge* is frozen and never used for curation, tuning, early stopping or guidance. A *working* extractor has seen the
training split only and may be used for those; it may not judge (``docs/metrics.md``).
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from imbdiff.data.imageset import ImageSet
from imbdiff.runtime.errors import DataError
from imbdiff.runtime.streams import torch_rng

Role = Literal["judge", "working"]
CHUNK = 4096
"""Feature rows that go through the last layer at a time."""


class Extractor(ABC):
    """Images to feature rows.

    Attributes:
        name: stands in the metric's name, ``FD[name]``.
        fingerprint: a hash of weights and preprocessing: equal fingerprints give equal features.
        role: "judge" or "working".
        dim: D, length of a feature row.
        preprocessing: what happens to an image before the network sees it, described for the protocol.
        is_fid: these are the weights that the name FID stands for.
        verified: True where this project has compared its features with published ones, False where that could not be
            done yet, None where there is nothing to compare with.
        ranking_only: the features were not learned from images like these: numbers order generators, no more.
        trained_on: hashes (:attr:`ImageSet.hashes`) of the images it learned from, so that it never judges by them.
        trained_on_note: a description of what it learned from, where the hashes are not known.
        pretrained: it learned from other images than those at hand, perhaps from some of these.
        weights_note: which weights these are, for the protocol.
        classes: names of the classes that :meth:`predict` decides between, in order; None where they are those of the
            data set at hand, or where it does not predict.
        device: where the network runs.
        max_batch: images that go through the network at a time, at most, whatever is asked for.
    """

    name: str
    fingerprint: str
    role: Role
    dim: int
    preprocessing: str = "none"
    is_fid: bool = False
    verified: bool | None = None
    ranking_only: bool = True
    trained_on: frozenset[str] = frozenset()
    trained_on_note: str = ""
    pretrained: bool = False
    weights_note: str = ""
    classes: tuple[str, ...] | None = None
    device: torch.device = torch.device("cpu")
    max_batch: int = 1024

    def features(self, images: ImageSet | np.ndarray, batch_size: int = 256) -> np.ndarray:
        """(N, D) float32 features of `images`: an ImageSet, or (N, H, W, C) uint8, in memory or memory-mapped.

        Row i depends on image i alone; the batch size, at most :attr:`max_batch`, changes it by rounding only, below
        1e-4 relative.

        Raises:
            DataError: the images are not uint8, or do not have the shape the extractor was made for.
        """
        x = images.images if isinstance(images, ImageSet) else images
        if x.ndim != 4 or x.dtype != np.uint8:
            raise DataError(
                f"extractor {self.name} takes (N, H, W, C) uint8 images, not {x.shape} {x.dtype}",
                "give values 0 to 255 as uint8, channels last",
            )
        self.check(x.shape[1:])
        step = max(1, min(batch_size, self.max_batch))
        out = np.empty((len(x), self.dim), np.float32)
        for start in range(0, len(x), step):
            rows = x[start : start + step]
            with torch.no_grad(), full_precision(self.device):
                out[start : start + len(rows)] = self._batch(rows)
        return out

    def described(self) -> dict[str, Any]:
        """Its description in the protocol of an evaluation."""
        trained_on = self.trained_on_note
        if not trained_on and self.trained_on:
            trained_on = f"{len(self.trained_on):,} images, by hash"
        keys = (
            "name",
            "fingerprint",
            "role",
            "dim",
            "preprocessing",
            "ranking_only",
            "pretrained",
            "is_fid",
            "verified",
        )
        return {
            **{key: getattr(self, key) for key in keys},
            "weights": self.weights_note,
            "trained_on": trained_on,
            "classes": "taken to be those of the data set, in order" if self.classes is None else "by name",
        }

    @abstractmethod
    def check(self, shape: tuple[int, ...]) -> None:
        """Raises DataError where images of `shape` (H, W, C) cannot be read; called before long work."""

    def predict(self, features: np.ndarray) -> np.ndarray | None:
        """(N,) int64 class of each feature row, one of :attr:`classes`; None where the extractor does not classify."""
        return None

    def probabilities(self, features: np.ndarray) -> np.ndarray | None:
        """(N, C) float32 class probabilities of feature rows, for the Inception score; None where it has none.

        The C classes need not be those of :meth:`predict`: an Inception v3 gives its own 1,008 and predicts nothing.
        """
        return None

    @abstractmethod
    def _batch(self, x: np.ndarray) -> np.ndarray:
        """(B, H, W, C) uint8 -> (B, D) float32."""


@contextlib.contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Float32 means float32: no autocast of the caller's, no TF32, which alone moves features by about 1e-3."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.autocast(device.type, enabled=False))
        if device.type == "cuda":
            cudnn = torch.backends.cudnn
            stack.enter_context(cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False))
            matmul = torch.backends.cuda.matmul
            stack.callback(setattr, matmul, "allow_tf32", matmul.allow_tf32)
            matmul.allow_tf32 = False
        yield


def as_tensor(x: np.ndarray, device: torch.device | None = None) -> Tensor:
    """`x` on `device`; copied first where it is read-only (a memory map), or strided in a way torch cannot take."""
    x = np.ascontiguousarray(x)
    return torch.from_numpy(x if x.flags.writeable else x.copy()).to(device or "cpu")


def to_unit(x: Tensor) -> Tensor:
    """(B, H, W, C) uint8 -> (B, C, H, W) float32 in [-1, 1]."""
    return x.permute(0, 3, 1, 2).float() / 127.5 - 1


def to_rgb(x: Tensor) -> Tensor:
    """(B, H, W, 1 or 3) uint8 -> (B, 3, H, W) float32 in [0, 255]; grey is repeated."""
    x = x.permute(0, 3, 1, 2).float()
    return x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x


def check_rgb(name: str, shape: tuple[int, ...], least: int = 1) -> None:
    """Raises DataError unless images of `shape` (H, W, C) are grey or RGB, with sides of at least `least`."""
    if len(shape) != 3 or shape[2] not in (1, 3) or min(shape[:2]) < least:
        raise DataError(
            f"extractor {name} reads grey or RGB images (H, W, 1 or 3) of at least {least} x {least}, not {shape}",
            "convert the images, or choose random-conv, which takes any number of channels",
        )


def same_shape(name: str, made_for: tuple[int, ...], shape: tuple[int, ...]) -> None:
    """Raises DataError unless the two (H, W, C) are equal."""
    if tuple(shape) != tuple(made_for):
        raise DataError(
            f"extractor {name} was made for images {tuple(made_for)} (H, W, C), not {tuple(shape)}",
            "compare images of that shape, or choose another extractor",
        )


def in_chunks(features: np.ndarray, function: Callable[[Tensor], Tensor], device: torch.device) -> np.ndarray:
    """(N, ...) results of `function` on rows of `features`, a few thousand at a time."""
    parts = []
    with torch.no_grad(), full_precision(device):
        for start in range(0, max(1, len(features)), CHUNK):
            rows = as_tensor(np.asarray(features[start : start + CHUNK], dtype=np.float32), device)
            parts.append(function(rows).cpu().numpy())
    return np.concatenate(parts)


def softmax(logits: Tensor) -> Tensor:
    """(N, C) float32 probabilities, computed in float64."""
    return torch.softmax(logits.double(), dim=1).float()


def hash_weights(kind: str, weights: Iterable[Tensor]) -> str:
    """SHA-256 of what kind of extractor it is, its preprocessing included, and of its weights in order."""
    h = hashlib.sha256(kind.encode())
    for w in weights:
        h.update(str(tuple(w.shape)).encode())
        h.update(w.detach().cpu().contiguous().numpy().tobytes())
    return h.hexdigest()


class RawPixels(Extractor):
    """The pixels themselves, in [-1, 1], as (H * W * C) features.

    Args:
        shape: (H, W, C) of the images.
    """

    trained_on_note = "nothing: it has no weights"
    preprocessing = "pixels / 127.5 - 1"

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.shape = tuple(shape)
        self.name, self.role, self.dim = "raw-pixels", "judge", int(np.prod(self.shape))
        self.fingerprint = hash_weights(f"raw-pixels {self.shape}", [])

    def check(self, shape: tuple[int, ...]) -> None:
        same_shape(self.name, self.shape, shape)

    def _batch(self, x: np.ndarray) -> np.ndarray:
        return x.reshape(len(x), -1).astype(np.float32) / 127.5 - 1


class RandomConv(Extractor):
    """A fixed random convolutional network: three 3x3 layers with ReLU, then the mean of each map.

    It is the same on every machine for the same `seed`, needs no weights and has seen no image, so it can be used on
    any folder; it knows nothing of what matters in the images and is for ranking only.

    Args:
        channels: C of the images, 1 or 3.
        seed: of the weights.
        dim: D, number of maps of the last layer.
        device: where it runs; the weights are sampled on the CPU and are the same everywhere.
    """

    trained_on_note = "nothing: its weights are random"
    preprocessing = "pixels / 127.5 - 1, at the size of the image"

    def __init__(self, channels: int, seed: int = 0, dim: int = 32, *, device: str | torch.device = "cpu") -> None:
        self.channels = channels
        self.name, self.role, self.dim = "random-conv", "judge", dim
        self.device = torch.device(device)
        generator = torch_rng(seed, "random-conv", channels, dim)
        widths = [channels, 16, 32, dim]
        weights = []
        for c, o in itertools.pairwise(widths):
            w = torch.randn((o, c, 3, 3), generator=generator)
            # zero sum over space and input: the features tell structure, not brightness, from the second layer on
            w = w - w.mean(dim=(1, 2, 3), keepdim=True) if c != channels else w
            weights.append(w * (2 / (9 * c)) ** 0.5)
        self.fingerprint = hash_weights(f"random-conv {channels} {dim}", weights)
        self.weights = [w.to(self.device) for w in weights]

    def check(self, shape: tuple[int, ...]) -> None:
        if shape[-1] != self.channels:
            raise DataError(
                f"extractor {self.name} was made for {self.channels} channels, the images have {shape[-1]}",
                f"make RandomConv({shape[-1]})",
            )

    def _batch(self, x: np.ndarray) -> np.ndarray:
        h = to_unit(as_tensor(x, self.device))
        for layer, weight in enumerate(self.weights):
            h = functional.relu(functional.conv2d(h, weight, stride=1 if layer == 0 else 2, padding=1))
        return h.mean(dim=(2, 3)).cpu().numpy()


class ClassifierFeatures(Extractor):
    """The last features of a classifier, and its decisions.

    Args:
        network: with `features`, (B, C, H, W) float in [-1, 1] -> (B, `feature_dim`), and the layer `head` on top.
        name: for ``FD[name]``.
        role: "judge" only if it is used for nothing else.
        shape: (H, W, C) that it was trained for.
        trained_on: hashes of the images it was trained on.
        device: where the network runs.
    """

    ranking_only = False
    preprocessing = "pixels / 127.5 - 1, at the size of the image"

    def __init__(
        self,
        network: Any,
        name: str,
        role: Role,
        *,
        shape: tuple[int, int, int],
        trained_on: frozenset[str] = frozenset(),
        device: str | torch.device = "cpu",
    ) -> None:
        self.network = network.eval().to(device)
        self.name, self.role, self.dim, self.shape = name, role, network.feature_dim, shape
        self.device, self.trained_on = torch.device(device), trained_on
        self.fingerprint = hash_weights(f"classifier {shape} {self.preprocessing}", network.state_dict().values())

    def check(self, shape: tuple[int, ...]) -> None:
        same_shape(self.name, self.shape, shape)

    def _batch(self, x: np.ndarray) -> np.ndarray:
        self.network.eval()
        return self.network.features(to_unit(as_tensor(x, self.device))).float().cpu().numpy()

    def predict(self, features: np.ndarray) -> np.ndarray:
        """(N,) int64."""
        self.network.eval()
        return in_chunks(features, lambda rows: self.network.head(rows).float().argmax(dim=1), self.device)

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """(N, C) float32: softmax of the logits."""
        self.network.eval()
        return in_chunks(features, lambda rows: softmax(self.network.head(rows).float()), self.device)
