"""Weight files of others, read as tensors and nothing else. The one place that reads anything but safetensors.

``.pt``, ``.pth`` and ``.th`` files can carry code that runs when they are read. torch's restricted reader
(``weights_only=True``) rebuilds tensors, numbers, strings and containers of them and refuses everything else.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import urllib.error
import urllib.request
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from imbdiff.runtime.errors import ConfigError, DataError
from imbdiff.runtime.files import atomic

TIMEOUT = 10.0
"""Seconds without an answer after which a download is given up."""


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Name -> tensor (on the CPU) of a weight file.

    Raises:
        DataError: the file is missing or damaged, is a TorchScript program, holds something else than tensors, or a
            weight is not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"there is no weight file {path}", "check the path")
    if is_torchscript(path):
        raise DataError(
            f"{path} is a TorchScript program, not a table of weights",
            "save the state dict of the network as .safetensors and give that",
        )
    found = _restricted(path)
    weights = {k: v.detach() for k, v in found.items() if isinstance(k, str) and isinstance(v, Tensor)}
    if not weights or len(weights) != len(found):
        others = [str(k) for k in found if k not in weights]
        raise DataError(
            f"{path} does not hold a state dict: {len(weights)} tensors, besides {', '.join(others[:5]) or 'nothing'}",
            "save `network.state_dict()` alone, best as .safetensors",
        )
    for key, value in weights.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise DataError(f"{path}: weight {key} is not finite", "the training that wrote it diverged; use another")
    return weights


def load_into(network: nn.Module, weights: Mapping[str, Tensor], path: Path, what: str) -> None:
    """Puts `weights` into `network`, all of them and no other.

    Raises:
        DataError: keys or shapes differ; torch's words for the first few, and the architecture `what`.
    """
    counters = {k: v for k, v in network.state_dict().items() if k.endswith("num_batches_tracked")}
    try:
        network.load_state_dict({**counters, **weights})
    except RuntimeError as error:
        message = " ".join(str(error).split())
        raise DataError(f"{path} does not fit {what}: {message[:400]}", "give the file of that network") from error


def is_torchscript(path: Path) -> bool:
    """Whether the file is a TorchScript archive: a zip with code in addition to tensors."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.split("/")[1:2] == ["code"] for name in archive.namelist())
    except (zipfile.BadZipFile, OSError):
        return False


def download(url: str, path: Path, sha256: str, remedy: str) -> None:
    """Writes the file at `url` to `path`, aside and renamed, if its SHA-256 begins with `sha256`.

    ``HF_HUB_OFFLINE=1`` and ``IMBDIFF_OFFLINE=1`` forbid it.

    Raises:
        ConfigError: there is no network, or it is forbidden; raised within seconds, with `remedy`.
        DataError: what came is another file.
    """
    missing = f"{path.name} (SHA-256 {sha256}{'' if len(sha256) == 64 else '...'}) is not at {path}"
    if is_offline():
        raise ConfigError(f"{missing}, and downloads are switched off", remedy)
    h = hashlib.sha256()
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as answer, atomic(path) as aside, open(aside, "wb") as out:
            while block := answer.read(1 << 20):
                h.update(block)
                out.write(block)
            if not h.hexdigest().startswith(sha256):
                raise DataError(
                    f"what {url} sent has SHA-256 {h.hexdigest()}, not {sha256}", f"try again later, or {remedy}"
                )
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise ConfigError(f"{missing}, and {url} cannot be reached ({reason})", remedy) from error


def is_offline() -> bool:
    """Whether the environment forbids downloads."""
    return any(
        os.environ.get(k, "").lower() in ("1", "true", "yes", "on") for k in ("HF_HUB_OFFLINE", "IMBDIFF_OFFLINE")
    )


def require_network(url: str, what: str, remedy: str) -> None:
    """Raises ConfigError at once where `url` does not answer: libraries try again for most of a minute."""
    if is_offline():
        raise ConfigError(f"{what} is not on this machine, and downloads are switched off", remedy)
    request = urllib.request.Request(url, method="HEAD")
    try:
        with contextlib.closing(urllib.request.urlopen(request, timeout=TIMEOUT)):
            return
    except urllib.error.HTTPError:
        return  # it answers: what is wrong with the request, the library says better
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise ConfigError(f"{what} is not on this machine, and {url} cannot be reached ({reason})", remedy) from error


def _is_safetensors(path: Path) -> bool:
    """By the header: eight bytes of length, then a JSON object. The name of the file proves nothing."""
    with open(path, "rb") as handle:
        return path.suffix == ".safetensors" or handle.read(9)[8:] == b"{"


def _restricted(path: Path) -> Mapping[Any, Any]:
    try:
        if _is_safetensors(path):
            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a refusal, a damaged file, an early end: many types, one meaning
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"{path} cannot be read as weights alone: {first}",
            "it is damaged, or holds Python objects, which are never run: save `network.state_dict()` as .safetensors",
        ) from error
    if not isinstance(found, Mapping):
        raise DataError(
            f"{path} holds a {type(found).__name__}, not a state dict", "save `network.state_dict()` as .safetensors"
        )
    return found
