"""A checkpoint of the user's own: an architecture by name, and a file of weights, read and not run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from imbdiff.metrics.extractors.backbones import timm_backbone, torchvision_backbone
from imbdiff.metrics.extractors.base import Extractor, Role
from imbdiff.metrics.extractors.cifar_resnet import DEPTHS, CifarResNetFeatures, cifar_resnet
from imbdiff.metrics.extractors.classifier import ClassifierFeatures
from imbdiff.metrics.extractors.inception import inception
from imbdiff.metrics.extractors.weights import load_into, read_weights
from imbdiff.runtime.errors import ConfigError, DataError

NetworkBuilder = Callable[[tuple[int, int, int], int], nn.Module]
"""(H, W, C) and number of classes -> a network that offers what :class:`FeatureNetwork` asks for."""


def checkpoint(
    architecture: str,
    path: Path,
    shape: tuple[int, int, int],
    *,
    networks: Mapping[str, NetworkBuilder] | None = None,
    role: Role = "judge",
    classes: tuple[str, ...] | None = None,
    trained_on: frozenset[str] = frozenset(),
    trained_on_note: str = "not known: a checkpoint of the user's own",
    device: str | torch.device = "cpu",
) -> Extractor:
    """The extractor of a network of a known architecture with the weights in `path`.

    Its name tells files apart, also those of one name: ``resnet-small:model@1a2b3c4d``, the stem of the file and the
    first eight digits of the fingerprint. FID's Inception keeps its own name.

    Args:
        architecture: a name in `networks`, ``cifar-resnetNN``, ``inception``, ``timm:NAME`` or ``torchvision:NAME``.
        path: ``.safetensors``, or a state dict that torch's restricted reader takes.
        shape: (H, W, C) of the images to come.
        networks: builders of networks of this project, by name. They are passed in: the room that trains classifiers
            stands above this one.
        role: "judge" only if it is used for nothing else.
        classes: names of its classes in order; not given, they are taken to be those of the data set at hand.
        trained_on, trained_on_note: what it learned from: hashes of the images, or words.

    Raises:
        ConfigError: the architecture is not known.
        DataError: the file does not hold such a network; the first few keys that differ are named.
    """
    path, built = Path(path), networks or {}
    if architecture in built:
        weights = read_weights(path)
        network = built[architecture](shape, _count_classes(weights, path, architecture))
        load_into(network, weights, path, f"{architecture} for images {shape}")
        judge = ClassifierFeatures(
            network,
            architecture,
            role,
            shape=shape,
            classes=classes,
            trained_on=trained_on,
            trained_on_note=trained_on_note,
            device=device,
        )
        return _named(judge, architecture, path)
    if architecture in {f"cifar-resnet{d}" for d in DEPTHS}:
        found = cifar_resnet(path, int(architecture.removeprefix("cifar-resnet")), device=device)
        found = CifarResNetFeatures(
            found.cifar, architecture, role, classes=classes, trained_on_note=trained_on_note, device=device
        )
        found.trained_on = trained_on
        return _named(found, architecture, path)
    if architecture == "inception":
        of_fid = inception(path, device=device)
        return of_fid if of_fid.is_fid else _named(of_fid, of_fid.name, path)
    library, _, name = architecture.partition(":")
    if library in ("timm", "torchvision") and name:
        make = timm_backbone if library == "timm" else torchvision_backbone
        return _named(make(name, path, device=device), architecture, path)
    names = [*built, "cifar-resnet" + "|".join(map(str, DEPTHS)), "inception", "timm:NAME", "torchvision:NAME"]
    raise ConfigError(f"unknown architecture {architecture!r} of a checkpoint", f"use one of: {', '.join(names)}")


def _named(extractor: Extractor, architecture: str, path: Path) -> Extractor:
    extractor.name = f"{architecture}:{path.stem}@{extractor.fingerprint[:8]}"
    return extractor


def _count_classes(weights: Mapping[str, Tensor], path: Path, architecture: str) -> int:
    """How many classes the head in a file decides between."""
    head = weights.get("head.weight")
    if head is None or head.ndim != 2:
        raise DataError(
            f"{path} does not fit {architecture}: head.weight: {'missing' if head is None else tuple(head.shape)}; "
            f"the file has {', '.join(list(weights)[:3])}, ...",
            "name the architecture that the file was saved from",
        )
    return len(head)
