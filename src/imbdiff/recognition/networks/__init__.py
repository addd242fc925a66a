"""Classifier networks. All take (B, C, H, W) float in [-1, 1] and show their last features."""

from __future__ import annotations

import difflib
import threading
from collections.abc import Sequence

import torch

from imbdiff.recognition.networks.built_in import (
    CIFAR_FAMILY,
    NETWORKS,
    ResidualBlock,
    ZeroPadShortcut,
    build,
    parse_cifar,
)
from imbdiff.recognition.networks.classifier import Classifier, CosineHead, Normalised
from imbdiff.recognition.networks.foreign import (
    Maker,
    check_library,
    find_maker,
    from_library,
    from_maker,
    parse_library,
    probe,
)
from imbdiff.runtime.errors import ConfigError
from imbdiff.runtime.streams import seed_of

__all__ = [
    "HEADS",
    "MIN_SIDE",
    "NETWORKS",
    "Classifier",
    "CosineHead",
    "Maker",
    "Normalised",
    "ResidualBlock",
    "ZeroPadShortcut",
    "build_network",
    "check_network",
    "known_networks",
]

MIN_SIDE = 8
HEADS = ("linear", "cosine")
_INIT = threading.Lock()


def known_networks() -> tuple[str, ...]:
    """Names and patterns of names, for help texts."""
    names = dict.fromkeys((*NETWORKS, *CIFAR_FAMILY))
    return (
        *names,
        "timm:NAME[?pretrained]",
        "torchvision:NAME[?pretrained]",
        "module:PACKAGE.MODULE:FUNCTION",
    )


def check_network(name: str | Maker) -> None:
    """Refuses a name that :func:`build_network` does not know, without building anything.

    Libraries and modules that the name asks for are imported.

    Raises:
        ConfigError: what is near it, or how to write it.
    """
    if not isinstance(name, str):
        if not callable(name):
            raise ConfigError(f"a network is a name or a function, not a {type(name).__name__}")
        return
    if name in NETWORKS or parse_cifar(name):
        return
    library = parse_library(name)
    if library:
        check_library(*library[:2])
        return
    if name.startswith("module:"):
        find_maker(name)
        return
    near = difflib.get_close_matches(name, dict.fromkeys((*NETWORKS, *CIFAR_FAMILY)), n=1)
    remedy = f"choose one of {', '.join(known_networks())}, or another resnet{{6n+2}}[x{{times as wide}}]"
    raise ConfigError(f"unknown network {name!r}", f"did you mean {near[0]}? Or {remedy}" if near else remedy)


def build_network(
    name: str | Maker,
    shape: tuple[int, int, int],
    num_classes: int,
    seed: int = 0,
    *,
    head: str = "linear",
    normalise: tuple[Sequence[float], Sequence[float]] | None = None,
) -> Classifier:
    """A network with weights drawn from `seed`; the global generator is left as it was.

    Args:
        name: "resnet-small" (one residual block per stage, the stem halves the image: made for speed on 8 to 64
            pixels), "judge-cnn" (plain, no shortcuts, 32 features: another architecture than the classifiers that it
            judges), "resnet20", "resnet32", "resnet56" and any other ``resnet{6n+2}[x{times}]`` (He et al.'s for
            CIFAR, shortcuts of option A; resnet32 has 0.46 M parameters, resnet32x4 is four times as wide),
            "timm:NAME" and "torchvision:NAME" (extras; random weights, with "?pretrained" those that the library
            distributes), "module:PACKAGE.MODULE:FUNCTION" or, in Python, the function itself: (shape, num_classes) ->
            a network, whose weights it draws from torch's global generator or brings with it.
        shape: (H, W, C) of the images; H and W at least 8, need not be equal.
        num_classes: at least 2.
        head: "linear", or "cosine" (:class:`CosineHead`), which takes the place of the network's own.
        normalise: (mean, std) of pixels in [0, 1], per channel or one for all; see :class:`Normalised`.

    Raises:
        ConfigError: an unknown name, images that are too small, fewer than 2 classes, a library that is not there, or
            a network that does not give such logits.
    """
    h, w, channels = shape
    check_network(name)
    if head not in HEADS:
        raise ConfigError(f"unknown head {head!r} of a classifier", f"choose one of {', '.join(HEADS)}")
    called = name if isinstance(name, str) else getattr(name, "__name__", type(name).__name__)
    if min(h, w) < MIN_SIDE:
        raise ConfigError(f"images of {h} x {w} pixels are too small for {called}", f"use at least {MIN_SIDE} a side")
    if num_classes < 2:
        raise ConfigError(f"{num_classes} class cannot be classified", "at least 2 are needed")
    first = None if normalise is None else Normalised(*normalise)
    if first is not None and first.mean.shape[1] not in (1, channels):
        raise ConfigError(
            f"images of {channels} channels cannot be standardised by {first.mean.shape[1]} means",
            "give one per channel, or one for all",
        )
    # torch's layers draw their weights from the global generator: one thread at a time, and it is put back after. Not
    # torch.manual_seed, which would reseed every accelerator as well
    with _INIT, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_of(seed, "network", name if isinstance(name, str) else "own"))
        network = _build(name, called, shape, num_classes)
        if head == "cosine":
            network.head = CosineHead(network.feature_dim, num_classes)
    own = not isinstance(network, Classifier)
    if own and head == "cosine":
        _check_own_head(network, called, shape, num_classes)
    if first is not None:
        if own:
            raise ConfigError(
                f"{called} brings its own features, before which images cannot be standardised",
                "standardise in its forward, or derive it from imbdiff.recognition.networks.Classifier",
            )
        network.first = first
    return network


def _build(name: str | Maker, called: str, shape: tuple[int, int, int], num_classes: int) -> Classifier:
    if not isinstance(name, str):
        return from_maker(name, called, shape, num_classes)
    library = parse_library(name)
    if library:
        return from_library(*library, shape, num_classes)
    if name.startswith("module:"):
        return from_maker(find_maker(name), name, shape, num_classes)
    return build(name, min(shape[:2]), shape[2], num_classes)


def _check_own_head(network: Classifier, called: str, shape: tuple[int, int, int], num_classes: int) -> None:
    """Whether a network that is not ours uses the head that was put on it: without weights all cosines are 0."""
    weight = network.head.weight
    assert isinstance(weight, torch.Tensor)
    with torch.no_grad():
        kept = weight.clone()
        weight.zero_()
        zero = not probe(network, called, shape, num_classes).any()
        weight.copy_(kept)
    if not zero:
        raise ConfigError(
            f"{called} does not make its logits with its `head`, which a cosine head would replace",
            "return head(features(x)) in its forward, or use a linear head",
        )
