"""Pretrained text-to-image pipelines of diffusers: what a folder, or a name in the cache of the hub, holds.

Read from its descriptions alone: no weights are loaded here, and nothing is downloaded.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from imbdiff.data.spec import user_path
from imbdiff.diffusion.codecs.autoencoder import factor_of, file_hash, hub_folder, weight_files
from imbdiff.diffusion.process import Process
from imbdiff.diffusion.schedulers import process_of
from imbdiff.runtime.errors import ConfigError, nearest
from imbdiff.runtime.files import digest, read_json

#: class of a pipeline -> kind of backbone, of `imbdiff.diffusion.backbones.KINDS`
PIPELINES: dict[str, str] = {
    "StableDiffusionPipeline": "sd",
    "StableDiffusionXLPipeline": "sd",
    "StableDiffusion3Pipeline": "sd3",
    "FluxPipeline": "flux",
    "PixArtAlphaPipeline": "pixart",
    "PixArtSigmaPipeline": "pixart",
    "DiTPipeline": "dit-tuned",
}
SINGLE = (".ckpt", ".safetensors", ".bin", ".pt", ".pth")


@dataclass(frozen=True)
class Pretrained:
    """A pipeline, by its descriptions. Made by `open_pretrained`.

    Attributes:
        name: the folder or the name on the hub, as it was given.
        folder: where it is.
        index: its ``model_index.json``.
        config: of the network.
        scheduler, vae: their configurations.
    """

    name: str
    folder: Path
    index: Mapping[str, Any]
    config: Mapping[str, Any]
    scheduler: Mapping[str, Any]
    vae: Mapping[str, Any]

    @property
    def pipeline(self) -> str:
        """The class of the pipeline."""
        return str(self.index["_class_name"])

    @property
    def kind(self) -> str:
        """Of the backbone."""
        return PIPELINES[self.pipeline]

    @property
    def network(self) -> Path:
        """The folder of its network."""
        return network_of(self.folder)

    @property
    def factor(self) -> int:
        """Pixels of a side per latent."""
        return factor_of(self.vae)

    @property
    def side(self) -> int:
        """Pixels of a side of the images that it was trained on; Flux does not say, and diffusers takes 128 latents."""
        return int(self.config.get("sample_size") or 128) * self.factor

    def process(self, size: tuple[int, int]) -> Process:
        """How it noises; a flow may be shifted by the size (H, W) of the images in pixels."""
        height, width = (side // self.factor // 2 for side in size)  # Flux's tokens are 2 x 2 latents
        return process_of(self.scheduler, height * width)

    @property
    def licence(self) -> str | None:
        """As its model card names it; None: it does not."""
        card = self.folder / "README.md"
        text = card.read_text(encoding="utf-8", errors="replace") if card.exists() else ""
        front = re.match(r"---\s*\n(.*?)\n---", text, re.S)
        try:
            found = yaml.safe_load(front[1]) if front else None
        except yaml.YAMLError:
            found = None
        found = found if isinstance(found, dict) else {}
        return next((str(found[key]) for key in ("license_name", "license") if found.get(key)), None)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the network's description and weights."""
        return fingerprint_of(self.network)

    @cached_property
    def text(self) -> str:
        """A hash of the text encoders and their tokenizers."""
        parts = [p for p in sorted(self.folder.glob("text_encoder*")) if p.is_dir()]
        encoders = [[p.name, [file_hash(f) for f in sorted(p.glob("*.safetensors"))]] for p in parts]
        words = [file_hash(f) for p in sorted(self.folder.glob("tokenizer*")) for f in sorted(p.iterdir())]
        return digest([encoders, words])


def open_pretrained(name: str) -> Pretrained:
    """The pipeline in a folder that diffusers wrote, or of a name in the cache of the hub.

    Raises:
        ConfigError: there is none, or none of a class that is known; its weights are pickled, or one file; its noise
            schedule cannot be read; the network takes more than noisy latents.
    """
    place = user_path(name)
    if place.is_file() or place.suffix in SINGLE:
        raise ConfigError(
            f"{name} is a single file, not a folder as diffusers writes it",
            'convert it by diffusers: python -c "from diffusers import StableDiffusionPipeline as P; '
            f"P.from_single_file('{name}').save_pretrained('NEW')\", and give NEW",
        )
    folder = place if place.is_dir() else hub_folder(name, "a pipeline of diffusers", "")
    if not (folder / "model_index.json").exists():
        single = sorted(p.name for p in folder.iterdir() if p.suffix in SINGLE)
        raise ConfigError(
            f"{name} holds no pipeline of diffusers: model_index.json is missing"
            + (f", and {single[0]} is a single file" if single else ""),
            "give the folder of a whole pipeline; a single file is converted by diffusers: "
            "StableDiffusionPipeline.from_single_file(FILE).save_pretrained(NEW)",
        )
    index = read_json(folder / "model_index.json")
    if (kind := index.get("_class_name")) not in PIPELINES:
        raise ConfigError(f"{name} is a {kind}, which cannot be fine-tuned here", nearest(str(kind), PIPELINES, _KNOWN))
    if not (network_of(folder) / "config.json").exists() or not (folder / "vae" / "config.json").exists():
        raise ConfigError(f"{name} lacks its network or its vae/", f"download all of it again: hf download {name}")
    scheduler = folder / "scheduler" / "scheduler_config.json"
    if not scheduler.exists():
        raise ConfigError(f"{name} does not say how it noises: {scheduler} is missing", "download it again")
    config, vae = read_json(network_of(folder) / "config.json"), read_json(folder / "vae" / "config.json")
    found = Pretrained(name, folder, index, config, read_json(scheduler), vae)
    found.process((found.side, found.side))
    weight_files(found.network)
    own = int(vae["latent_channels"]) * (4 if found.kind == "flux" else 1)
    if config.get("in_channels") != own:
        raise ConfigError(
            f"the network of {name} takes {config.get('in_channels')} channels, not the {own} of latents: it is for "
            "filling gaps, enlarging or editing",
            "give the pipeline that it was made from",
        )
    return found


_KNOWN = f"known are {', '.join(PIPELINES)}"


@contextmanager
def quietly() -> Iterator[None]:
    """Within it diffusers and transformers show no bars, and warn of nothing: they do of what they write themselves."""
    from diffusers.utils import logging

    told = [logging, *([sys.modules["transformers"].utils.logging] if "transformers" in sys.modules else [])]
    before = [one.get_verbosity() for one in told]
    for one in told:
        one.set_verbosity_error()
        one.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        for one, level in zip(told, before, strict=True):
            one.set_verbosity(level)
            one.enable_progress_bar()


def network_of(folder: Path) -> Path:
    """The folder of a pipeline's network."""
    return folder / ("unet" if (folder / "unet").is_dir() else "transformer")


def fingerprint_of(network: Path) -> str:
    """A hash of the description and the weights of a network's folder."""
    config = {k: v for k, v in read_json(network / "config.json").items() if not k.startswith("_")}
    return digest([config, [file_hash(path) for path in weight_files(network)]])
