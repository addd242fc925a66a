"""The codec "vae": a pretrained autoencoder of diffusers, from a folder or from the cache of the hub.

edm2's three steps: what is stored of an image is the mean and log standard deviation of its posterior (an
AutoencoderTiny and an AutoencoderDC have the mean alone), once, in float16; `encode` samples and whitens, per channel,
to mean 0 and variance 1 over the training set; `decode` undoes both. The network computes in float32, also where its
weights were saved in half precision, in batches of one fixed size: what an image is encoded to does not depend on its
neighbours, and memory is bounded. It is no part of the model's modules: not trained, averaged, counted or checkpointed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from imbdiff.data.imageset import Rows
from imbdiff.data.spec import user_path
from imbdiff.diffusion.codec import Codec, as_pixels
from imbdiff.runtime.errors import ConfigError, RunError
from imbdiff.runtime.files import digest, read_json, sha256_file

CLASSES = ("AutoencoderKL", "AutoencoderTiny", "AutoencoderDC")
FILE = "codec.safetensors"
"""Of a saved model: a codec's tensors."""
WEIGHTS = "diffusion_pytorch_model"
PICKLED = (".bin", ".pt", ".pth", ".ckpt")
_VAE = " (of a whole pipeline: --include 'vae/*')"
PIXELS = 2 * 256 * 256
"""Of a batch: Stable Diffusion's autoencoder takes about 1.1 GB for an image of 256 pixels."""
LARGEST_UNASKED = 256
"""Longer side in pixels of images whose size is not asked for."""


@dataclass(frozen=True)
class AutoencoderCodec(Codec):
    """See the module. Made by `open_autoencoder`, and whitened by `whitened`.

    Attributes:
        image: (C, H, W) of the images; grey ones are repeated to three channels, and averaged afterwards.
        weights: the folder or the name on the hub, as it was given.
        network: a hash of the autoencoder's configuration and weights.
        config: of the autoencoder, with its class as ``_class_name``.
        mean, std: per channel of the latents.
        place: where the weights are: a folder of diffusers, or the ``codec.safetensors`` of a saved model.
    """

    what: ClassVar[str] = "latents of a pretrained autoencoder of diffusers"
    name: ClassVar[str] = "vae"
    symmetries: ClassVar[Any] = "cached"  # type: ignore[misc]

    image: tuple[int, int, int]
    weights: str
    network: str
    config: Mapping[str, Any]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    place: Path = field(compare=False)

    @property
    def kind(self) -> str:
        return str(self.config["_class_name"])

    @property
    def factor(self) -> int:
        """Pixels of a side per latent."""
        return factor_of(self.config)

    @property
    def shape(self) -> tuple[int, int, int]:  # type: ignore[override]
        _, height, width = self.image
        return int(self.config["latent_channels"]), height // self.factor, width // self.factor

    @property
    def random(self) -> bool:  # type: ignore[override]
        return self.kind == "AutoencoderKL"

    @property
    def stored(self) -> tuple[int, int, int]:
        """(k, h, w) of what is stored of an image."""
        c, h, w = self.shape
        return 2 * c if self.random else c, h, w

    @cached_property
    def fingerprint(self) -> str:
        """Of everything that decides what is stored of given pixels; the whitening does not."""
        return digest([self.name, self.network, list(self.image), "float32", "float16"])

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of a run has to know."""
        if self.image[0] == self.config["in_channels"]:
            return ()
        return ("the autoencoder is for colour: grey images are repeated to three channels, and turned back",)

    @property
    def chunk(self) -> int:  # type: ignore[override]
        """Images per call of the network."""
        return max(1, min(32, PIXELS // (self.image[1] * self.image[2])))

    def __deepcopy__(self, memo: Any) -> AutoencoderCodec:
        return self

    @torch.no_grad()
    def store(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, k, h, w) float16: the posterior's mean, and its log standard deviation if it has one."""
        net, channels = self.autoencoder(images.device), int(self.config["in_channels"])

        def encoded(x: Tensor) -> Tensor:
            found = net.encode(as_pixels(x).expand(-1, channels, -1, -1))
            if self.random:
                return torch.cat([found.latent_dist.mean, found.latent_dist.logvar / 2], 1)
            return found.latents if self.kind == "AutoencoderTiny" else found.latent

        return torch.cat([encoded(x)[:n].half() for x, n in self._filled(images)])

    def encode(self, stored: Tensor, noise: Tensor | None = None) -> Tensor:
        """(B, k, h, w) float16 -> (B, c, h, w) float32, whitened; the posterior's mean where there is no `noise`."""
        c = self.shape[0]
        z = stored[:, :c].float()
        if noise is not None and self.random:
            z = z + stored[:, c:].float().exp() * noise
        mean, std = self._constants(z)
        return (z - mean) / std

    def pixels(self, z: Tensor) -> Tensor:
        mean, std = self._constants(z)
        x = self.autoencoder(z.device).decode(z.float() * std + mean).sample
        return x.mean(1, keepdim=True) if self.image[0] != x.shape[1] else x

    def whitened(self, rows: Rows) -> AutoencoderCodec:
        """The codec with per-channel mean and standard deviation of `rows` (N, h, w, k), as they are sampled."""
        c = self.shape[0]
        total, square = np.zeros(c), np.zeros(c)
        for start in range(0, len(rows), 1024):
            x = np.asarray(rows[start : start + 1024], dtype=np.float64)
            total += x[..., :c].sum((0, 1, 2))
            square += (x[..., :c] ** 2).sum((0, 1, 2)) + (np.exp(2 * x[..., c:]).sum((0, 1, 2)) if self.random else 0)
        n = len(rows) * self.shape[1] * self.shape[2]
        mean = total / n
        std = np.sqrt(np.maximum(square / n - mean**2, 0))
        return replace(self, mean=tuple(mean.tolist()), std=tuple(np.where(std > 1e-6, std, 1.0).tolist()))

    def as_trained(self) -> AutoencoderCodec:
        """The codec whose latents are shifted and scaled as the autoencoder's own configuration says: as the network of
        its pipeline was trained on them."""
        c, scale = self.shape[0], float(self.config.get("scaling_factor") or 1.0)
        mean = self.config.get("latents_mean") or (float(self.config.get("shift_factor") or 0.0),) * c
        std = self.config.get("latents_std") or (1.0,) * c
        return replace(self, mean=tuple(map(float, mean)), std=tuple(float(s) / scale for s in std))

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.name,
            "weights": self.weights,
            "network": self.network,
            "config": dict(self.config),
            "mean": list(self.mean),
            "std": list(self.std),
        }

    def tensors(self) -> dict[str, Tensor]:
        """The network's weights: a saved model works where the folder that they came from does not exist."""
        return dict(self.autoencoder().state_dict())

    @classmethod
    def from_json(cls, described: Mapping[str, Any], image: tuple[int, int, int], folder: Path | None) -> Codec:
        if folder is None:
            raise RunError("an autoencoder is read from the folder of a saved model", "give that")
        values = {name: described[name] for name in ("weights", "network", "config")}
        return cls(image, **values, mean=tuple(described["mean"]), std=tuple(described["std"]), place=folder / FILE)

    def _constants(self, like: Tensor) -> list[Tensor]:
        return [torch.tensor(x, dtype=torch.float32, device=like.device)[:, None, None] for x in (self.mean, self.std)]

    def _filled(self, x: Tensor) -> Iterator[tuple[Tensor, int]]:
        """Batches of the one size, the last filled up, and how many rows of each count."""
        for part in x.split(self.chunk):
            full = torch.cat([part, part[:1].expand(self.chunk - len(part), -1, -1, -1)])
            yield full.contiguous(memory_format=torch.contiguous_format), len(part)

    def autoencoder(self, device: torch.device | str = "cpu") -> Any:
        """The network of diffusers, which all codecs of these weights share."""
        return _load(self.place, self.network, self.kind, json.dumps(self.config)).to(device)


def open_autoencoder(weights: str | Path, image: tuple[int, int, int]) -> AutoencoderCodec:
    """The codec of a folder that diffusers wrote (also a pipeline's, with ``vae/``), or of a name on the hub.

    Nothing is downloaded: a name on the hub has to be in its cache. The latents are not whitened yet.

    Args:
        image: (C, H, W) of the images.

    Raises:
        ConfigError: there is no such autoencoder, or not of a kind that is known; its weights are pickled; it does not
            suit the images.
    """
    folder = _found(str(weights))
    config = read_json(folder / "config.json")
    if config.get("_class_name") not in CLASSES:
        raise ConfigError(
            f"{folder} holds a network of the class {config.get('_class_name')}, not an autoencoder",
            f"give one of {', '.join(CLASSES)}",
        )
    network = digest([config, [file_hash(path) for path in weight_files(folder)]])
    c = int(config.get("latent_channels", 4))
    codec = AutoencoderCodec(image, str(weights), network, config, (0.0,) * c, (1.0,) * c, folder)
    taken, factor = config.get("in_channels", 3), codec.factor
    if image[0] != taken and (image[0], taken) != (1, 3):
        raise ConfigError(
            f"the autoencoder {weights} is for images of {taken} channels, these have {image[0]}",
            "use --data.channels, or another autoencoder",
        )
    if any(side % factor for side in image[1:]):
        below, above = ([max(1, side // factor + up) * factor for side in image[1:]] for up in (0, 1))
        sizes = [str(s[0]) if s[0] == s[1] else f"{s[0]}x{s[1]}" for s in (below, above)]
        raise ConfigError(
            f"{image[1]}x{image[2]} pixels are not a multiple of {factor}, the factor of the autoencoder {weights}",
            f"use --data.size {sizes[0]} or {sizes[1]}",
        )
    return codec


def size_for(weights: str | Path, height: int, width: int) -> tuple[int, int]:
    """(height, width) to bring images of that size to for an autoencoder, where none is asked for: about their own, at
    most 256 pixels, and a multiple of twice its factor, so that a transformer can cut latents into 2 x 2.

    Raises:
        ConfigError: see `open_autoencoder`.
    """
    multiple = 2 * factor_of(read_json(_found(str(weights)) / "config.json"))
    scale = min(1.0, LARGEST_UNASKED / max(height, width))
    tall, wide = (max(1, int(side * scale + 0.5) // multiple) * multiple for side in (height, width))
    return tall, wide


def factor_of(config: Mapping[str, Any]) -> int:
    """Pixels of a side per latent, of an autoencoder's configuration."""
    return int(2 ** (len(config.get("encoder_block_out_channels") or config["block_out_channels"]) - 1))


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    return _hash(path, path.stat().st_size, path.stat().st_mtime_ns)


@lru_cache(maxsize=64)
def _hash(path: Path, size: int, changed: int) -> str:
    """Of a file: a run asks several times for that of weights of hundreds of megabytes."""
    return sha256_file(path)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a diffusers folder: the whole weights, or those of half precision.

    Raises:
        ConfigError: there are none.
    """
    for variant in ("", ".fp16"):
        found = sorted(
            {*folder.glob(f"{WEIGHTS}{variant}.safetensors"), *folder.glob(f"{WEIGHTS}{variant}-*.safetensors")}
        )
        if found:
            return found
    pickled = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLED)
    single = sorted(path.name for path in folder.glob("*.safetensors"))
    kind = read_json(folder / "config.json").get("_class_name", "AutoencoderKL")
    if pickled:
        raise ConfigError(
            f"the weights in {folder} are pickled ({pickled[0]}), and such a file can run any program: it is not read",
            "take safetensors; or, if you trust the file, convert it: "
            f"python -c \"from diffusers import {kind}; {kind}.from_pretrained('{folder}').save_pretrained('NEW')\", "
            "and give NEW",
        )
    raise ConfigError(
        f"{folder} holds no {WEIGHTS}.safetensors" + (f", only {single[0]}" if single else ""),
        f"download it again, or convert a single file by diffusers: {kind}.from_single_file(FILE).save_pretrained(NEW)",
    )


def variant_of(folder: Path) -> str | None:
    """What `from_pretrained` has to be asked for, of half precision where there is no other."""
    return "fp16" if weight_files(folder)[0].name.startswith(f"{WEIGHTS}.fp16") else None


def _found(weights: str) -> Path:
    """The folder of config.json."""
    place = user_path(weights)
    if place.is_file():
        raise ConfigError(
            f"{weights} is a file, not a folder as diffusers writes it",
            "convert it by diffusers: AutoencoderKL.from_single_file(FILE).save_pretrained(NEW), and give NEW",
        )
    if not place.is_dir():
        place = hub_folder(weights)
    for folder in (place, place / "vae"):
        if (folder / "config.json").exists():
            return folder
    raise ConfigError(f"{weights} holds no autoencoder: there is no config.json, and none in vae/", "give its folder")


def hub_folder(name: str, what: str = "an autoencoder", part: str = _VAE) -> Path:
    """The folder of a name on the hub, in its cache.

    Args:
        what: the folder may be of instead; for messages.
        part: of the download, that suffices.

    Raises:
        ConfigError: it is not there.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise ConfigError(f"there is no folder {name}", f"give the folder of {what}, or USER/NAME of the hub")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError) as error:
        raise ConfigError(
            f"there is no folder {name}, and nothing of that name in the hub's cache on this machine (nothing is "
            "downloaded unasked)",
            f"where there is a network: hf download {name}{part}; or copy its "
            "folder, with config.json and safetensors, to this machine, and give the path",
        ) from error


@lru_cache(maxsize=2)
def _load(place: Path, network: str, kind: str, config: str) -> Any:
    """The network in float32, its weights fixed. `network`, its hash, is there so that it is read again if it changed.

    Raises:
        RunError: its weights are damaged, missing, or of another network.
    """
    import diffusers
    from diffusers.utils import logging

    made, before = getattr(diffusers, kind), logging.get_verbosity()
    logging.set_verbosity_error()  # it warns of options that its own classes write into config.json
    try:
        if place.name == FILE:
            with torch.random.fork_rng(devices=[]):
                net = made.from_config(json.loads(config))
            net.load_state_dict(load_file(place))
            missing = []
        else:
            net, about = made.from_pretrained(
                place, use_safetensors=True, local_files_only=True, torch_dtype=torch.float32,
                output_loading_info=True,
                variant=variant_of(place),
            )  # fmt: skip
            missing = sorted(about["missing_keys"])
    except Exception as error:  # of diffusers, accelerate and safetensors, each of its own types
        raise RunError(
            f"the autoencoder in {place} cannot be loaded: {error}", "its weights are damaged: restore them"
        ) from error
    finally:
        logging.set_verbosity(before)
    if missing:
        raise RunError(f"the weights in {place} lack {len(missing)} tensors, such as {missing[0]}", "restore them")
    return net.eval().requires_grad_(False)
