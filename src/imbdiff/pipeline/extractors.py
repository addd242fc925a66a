"""Extractors by name, with this project's classifier networks among the architectures that a checkpoint may have."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from imbdiff.metrics.extractors import Extractor
from imbdiff.metrics.extractors.catalogue import make_extractor
from imbdiff.recognition.networks import NETWORKS, build_network


def make_extractors(
    names: Sequence[str], inception_weights: str | None, shape: tuple[int, int, int], device: str
) -> list[Extractor]:
    """The extractors that `names` ask for; FID's Inception too where `inception_weights` are given.

    Raises:
        ConfigError, DataError: a name, a file or the shape (H, W, C) of the images is wrong; before any long work.
    """
    wanted = list(dict.fromkeys(names))
    if inception_weights is not None and not any(name.startswith("inception") for name in wanted):
        wanted.insert(0, "inception")
    weights = None if inception_weights is None else Path(inception_weights)
    networks = {name: partial(build_network, name) for name in NETWORKS}
    return [make_extractor(name, shape, device=device, inception_weights=weights, networks=networks) for name in wanted]
