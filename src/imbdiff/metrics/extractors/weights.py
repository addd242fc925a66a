"""Weight files of others, read as tensors and nothing else. The one place that reads anything but safetensors.

``.pt``, ``.pth`` and ``.th`` files can carry code that runs when they are read. torch's restricted reader
(``weights_only=True``) rebuilds tensors, numbers, strings and containers of them and refuses everything else.
"""

from __future__ import annotations

import hashlib
import os
import urllib.request
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
AS_SAFETENSORS = "save `network.state_dict()` alone as .safetensors and give that"


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Name -> tensor (on the CPU) of a weight file, whatever it is called.

    Raises:
        DataError: the file is missing or damaged, is a TorchScript program, holds something else than tensors, or a
            weight is not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"there is no weight file {path}", "check the path")
    try:
        with open(path, "rb") as handle:  # a safetensors file begins with a length of eight bytes and a JSON object
            safetensors = path.suffix == ".safetensors" or handle.read(9)[8:] == b"{"
        found: Any = load_file(path) if safetensors else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a refusal, a damaged file, an early end: many types, one meaning
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"{path} cannot be read as weights alone: {first}",
            f"it is damaged, or holds a program or Python objects, which are never run: {AS_SAFETENSORS}",
        ) from error
    values = found if isinstance(found, Mapping) else {type(found).__name__: found}
    weights = {k: v.detach() for k, v in values.items() if isinstance(k, str) and isinstance(v, Tensor)}
    if not weights or len(weights) != len(values):
        others = [str(k) for k in values if k not in weights]
        raise DataError(
            f"{path} does not hold a state dict: {len(weights)} tensors, and {', '.join(others[:5]) or 'nothing'}",
            AS_SAFETENSORS,
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


def offline() -> bool:
    """Whether ``HF_HUB_OFFLINE`` or ``IMBDIFF_OFFLINE`` forbids downloads."""
    values = (os.environ.get(name, "").lower() for name in ("HF_HUB_OFFLINE", "IMBDIFF_OFFLINE"))
    return any(value in ("1", "true", "yes", "on") for value in values)


def download(url: str, path: Path, sha256: str, remedy: str) -> Path:
    """Writes the file at `url` to `path`, aside and renamed, if it has this SHA-256.

    ``HF_HUB_OFFLINE=1`` and ``IMBDIFF_OFFLINE=1`` forbid it.

    Raises:
        ConfigError: there is no network, or it is forbidden; raised within seconds, with `remedy`.
        DataError: what came is another file.
    """
    missing = f"{path.name} (SHA-256 {sha256}) is not at {path}"
    if offline():
        raise ConfigError(f"{missing}, and downloads are switched off", remedy)
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as answer, atomic(path) as aside, open(aside, "wb") as out:
            h = hashlib.sha256()
            while block := answer.read(1 << 20):
                h.update(block)
                out.write(block)
            if h.hexdigest() != sha256:
                raise DataError(f"what {url} sent has SHA-256 {h.hexdigest()}, not {sha256}", f"try again, or {remedy}")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{missing}, and {url} cannot be read ({error})", remedy) from error
    return path
