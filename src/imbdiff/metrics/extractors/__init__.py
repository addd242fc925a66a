"""Extractors: images -> feature rows. :func:`make_extractor` makes one from its name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from imbdiff.metrics.extractors.base import (
    ClassifierFeatures,
    Extractor,
    RandomConv,
    RawPixels,
    Role,
    to_unit,
)
from imbdiff.metrics.extractors.efficientnet import NAME, efficientnet_lite0
from imbdiff.metrics.extractors.inception import InceptionFeatures, load_inception
from imbdiff.metrics.extractors.pretrained import Backbone, hf_backbone, timm_backbone
from imbdiff.runtime.code import called
from imbdiff.runtime.errors import ConfigError
from imbdiff.runtime.tables import lookup

__all__ = [
    "EXTRACTORS",
    "Backbone",
    "ClassifierFeatures",
    "Extractor",
    "InceptionFeatures",
    "RandomConv",
    "RawPixels",
    "Role",
    "make_extractor",
    "make_extractors",
    "to_unit",
]

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Entry:
    """One row of the table of extractors.

    Attributes:
        form: how it is asked for; capitals stand for what the user fills in.
        what: it is, in a sentence.
        needs: files, packages or network.
        number: what a Fréchet distance in its features is called.
        make: (what stands after the colon, shape of the images, device) -> the extractor.
    """

    form: str
    what: str
    needs: str
    number: str
    make: Callable[[str, Shape, str | torch.device], Extractor]


EXTRACTORS = {
    "random-conv": Entry(
        "random-conv", "fixed random convolutional network, 32 features; ranks only", "nothing", "FD[random-conv]",
        lambda _, shape, device: RandomConv(shape[2], device=device),
    ),
    "raw-pixels": Entry(
        "raw-pixels", "the pixels themselves; ranks only", "nothing", "FD[raw-pixels]",
        lambda _, shape, device: RawPixels(shape),
    ),
    "inception": Entry(
        "inception[:FILE]", "the Inception v3 of FID, 2,048 features; FID only for the known file",
        "its weights, in a file, cached or downloaded (96 MB)", "FID",
        lambda file, _, device: load_inception(file or None, device=device),
    ),
    NAME: Entry(
        NAME, "pretrained on ImageNet, 1,280 features; ranks only. By default for colour photographs, where installed",
        "the extra judge (17 MB), which brings the weights", f"FD[{NAME}]",
        lambda _, shape, device: efficientnet_lite0(device=device),
    ),
    "timm": Entry(
        "timm:NAME", "a backbone of timm; ranks only", "the extra timm, weights or network", "FD[timm:NAME]",
        lambda name, _, device: timm_backbone(name, device=device),
    ),
    "hf": Entry(
        "hf:NAME",
        "a transformers image model such as facebook/dinov2-small, or a folder with one; ranks only",
        "the extra hf, the folder or network", "FD[hf:NAME]",
        lambda name, _, device: hf_backbone(name, device=device),
    ),
}  # fmt: skip
"""What there is, for ``imbdiff methods`` and the documentation. A user's own: ``module:PACKAGE.MODULE:FUNCTION``, or an
entry point of the group ``imbdiff.extractors``: a function (shape (H, W, C), device) -> :class:`Extractor`."""


def make_extractor(
    spec: str, shape: Shape, *, device: str | torch.device = "cpu", inception_weights: str | Path | None = None
) -> Extractor:
    """The extractor that `spec` names, checked against the images to come before any long work.

    Args:
        spec: one of the forms in :data:`EXTRACTORS`.
        shape: (H, W, C) of the images.
        inception_weights: for ``inception``, in place of torch's cache.

    Raises:
        ConfigError: there is no such extractor (the nearest name is given), or what it needs is missing.
        DataError: a file is not what it should be, or images of `shape` do not fit.
    """
    kind, colon, rest = spec.strip().partition(":")
    entry = EXTRACTORS.get(kind)
    if entry is None:
        own: Any = lookup("extractors", EXTRACTORS, spec.strip())
        extractor = called(f"the extractor {spec}", own, shape, device)
        if not isinstance(extractor, Extractor):
            raise ConfigError(f"{spec} gives a {type(extractor).__name__}", "it must give an Extractor")
    else:
        if bool(colon) != bool(rest) or (bool(rest) != (":" in entry.form) and kind != "inception"):
            raise ConfigError(f"extractor {spec!r} cannot be read", f"write {entry.form}")
        if kind == "inception" and inception_weights is not None:
            rest = rest or str(inception_weights)
        extractor = entry.make(rest, shape, device)
    extractor.check(shape)
    return extractor


def make_extractors(
    names: Sequence[str], inception_weights: str | None, shape: Shape, device: str | torch.device
) -> list[Extractor]:
    """The extractors that `names` ask for; FID's Inception too where `inception_weights` are given.

    Raises:
        ConfigError, DataError: a name, a file or the shape (H, W, C) of the images is wrong; before any long work.
    """
    wanted = list(dict.fromkeys(names))
    if inception_weights is not None and not any(name.startswith("inception") for name in wanted):
        wanted.insert(0, "inception")
    make = partial(make_extractor, shape=shape, device=device, inception_weights=inception_weights)
    return [make(name) for name in wanted]
