"""The table of codecs, and codecs as a saved model names them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imbdiff.diffusion.codec import Codec, IdentityCodec
from imbdiff.diffusion.codecs.autoencoder import AutoencoderCodec
from imbdiff.diffusion.codecs.patch import PatchCodec
from imbdiff.runtime.errors import ConfigError

CODECS: dict[str, type[Codec]] = {"identity": IdentityCodec, "patch": PatchCodec, "vae": AutoencoderCodec}

#: what a model that does not name its codec has
IDENTITY: Mapping[str, Any] = {"kind": "identity"}


def codec_from_json(described: Mapping[str, Any], image: tuple[int, int, int], folder: Path | None = None) -> Codec:
    """The codec that `Codec.to_json` described.

    Args:
        image: (C, H, W) of the images.
        folder: of the saved model, where ``codec.safetensors`` holds what the codec has in tensors.

    Raises:
        ConfigError: an unknown kind of codec.
        RunError: a file of it is missing or damaged, or does not fit.
    """
    kind = described["kind"]
    if kind not in CODECS:
        raise ConfigError(f"unknown codec {kind!r}", "this model was saved by another version of imbdiff")
    return CODECS[kind].from_json(described, image, folder)
