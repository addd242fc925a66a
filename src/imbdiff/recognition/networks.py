"""Classifier networks: our own, timm's, and a user's. All take (B, C, H, W) float in [-1, 1]."""

from __future__ import annotations

import importlib.metadata
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from imbdiff.data.imageset import ImageSet
from imbdiff.metrics.extractors import to_unit
from imbdiff.recognition.heads import CosineHead
from imbdiff.runtime.code import called
from imbdiff.runtime.errors import ConfigError
from imbdiff.runtime.files import digest, sha256_file
from imbdiff.runtime.streams import seed_of
from imbdiff.runtime.tables import known, lookup, optional

Maker = Callable[[tuple[int, int, int], int], nn.Module]
"""(shape (H, W, C), num_classes) -> a :class:`Classifier`, or a body: (B, C, H, W) in [-1, 1] -> (B, D) features."""

MIN_SIDE = 8
_INIT = threading.Lock()


class Classifier(nn.Module):
    """A body that gives features and a head, linear unless it is replaced.

    Args:
        body: (B, C, H, W) -> (B, feature_dim).
        feature_dim: D.
        num_classes: of the head.

    Attributes:
        first: what is done to the images before the body; nothing, or :class:`Normalised`.
        pretrained: whether it began from weights that others trained, which may have seen the test images.
    """

    def __init__(self, body: nn.Module, feature_dim: int, num_classes: int) -> None:
        super().__init__()
        self.first: nn.Module = nn.Identity()
        self.body = body
        self.feature_dim = feature_dim
        self.head: nn.Module = nn.Linear(feature_dim, num_classes)
        self.pretrained = False

    def features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1] -> (B, D)."""
        return self.body(self.first(x))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1] -> (B, num_classes) logits."""
        return self.head(self.features(x))


class Normalised(nn.Module):
    """The literature's standardisation of each channel: ((x + 1) / 2 - mean) / std for x in [-1, 1].

    Args:
        mean, std: of pixels in [0, 1], one per channel or one for all.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor([float(v) for v in values]).reshape(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1] -> the same shape, standardised."""
        return ((x + 1) / 2 - self.mean) / self.std


# -- our own


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch normalisation and a shortcut (He et al. 2016).

    Args:
        inputs, outputs: channels.
        stride: of the first convolution.
        projection: shortcut by a 1x1 convolution (option B); otherwise by sub-sampling and zero channels (option A).
    """

    def __init__(self, inputs: int, outputs: int, stride: int, projection: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = (
                nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
                if projection
                else ZeroPadShortcut(stride, outputs - inputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        h = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(h)) + self.shortcut(x))


class ZeroPadShortcut(nn.Module):
    """Option A of He et al.: every `stride`-th pixel, with `extra` channels of zeros, half before and half after."""

    def __init__(self, stride: int, extra: int) -> None:
        super().__init__()
        self.stride, self.extra = stride, extra

    def forward(self, x: Tensor) -> Tensor:
        before = self.extra // 2
        return functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.extra - before))


def _stem(channels: int, width: int, stride: int) -> list[nn.Module]:
    return [nn.Conv2d(channels, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]


def _pool() -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten()]


def resnet_small(shape: tuple[int, int, int], num_classes: int) -> Classifier:
    """One residual block per stage; the stem halves the image: made for speed on 8 to 64 pixels."""
    # the images that the blocks see are 4 to 20 pixels a side, whatever came in
    side = min(shape[:2])
    widths = [48, 96] if side < 16 else [32, 64, 128]
    layers = _stem(shape[2], widths[0], 2 if side <= 40 else 4)
    for stage, width in enumerate(widths):
        layers.append(ResidualBlock(widths[max(0, stage - 1)], width, 1 if stage == 0 else 2, projection=True))
    return Classifier(nn.Sequential(*layers, *_pool()), widths[-1], num_classes)


def cifar_resnet(shape: tuple[int, int, int], num_classes: int, *, blocks: int, times: int = 1) -> Classifier:
    """He et al.'s for CIFAR: 6 `blocks` + 2 layers in 3 stages of 16, 32 and 64 x `times` channels, option A.

    All weights, the head's too, are drawn Kaiming normal, as in the code of LDAM (Cao et al. 2019).
    """
    inputs = 16 * times
    layers = _stem(shape[2], inputs, 1)
    for stage, width in enumerate((16 * times, 32 * times, 64 * times)):
        for block in range(blocks):
            layers.append(ResidualBlock(inputs, width, 2 if block == 0 and stage else 1, projection=False))
            inputs = width
    network = Classifier(nn.Sequential(*layers, *_pool()), inputs, num_classes)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
    return network


def judge_cnn(shape: tuple[int, int, int], num_classes: int) -> Classifier:
    """Plain, without shortcuts, 32 features: another architecture than the classifiers that it judges."""
    layers: list[nn.Module] = []
    inputs = shape[2]
    for width in [32, 64] if min(shape[:2]) < 16 else [32, 64, 96]:
        layers += [nn.Conv2d(inputs, width, 3, 1, 1), nn.BatchNorm2d(width), nn.GELU(), nn.MaxPool2d(2)]
        inputs = width
    # 4 to 8 positions a side keep where things are; few features, so that some hundred references suffice
    layers += [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * inputs, 32), nn.BatchNorm1d(32), nn.GELU()]
    return Classifier(nn.Sequential(*layers), 32, num_classes)


NETWORKS: dict[str, Maker] = {
    "resnet-small": resnet_small,
    "resnet20": partial(cifar_resnet, blocks=3),
    "resnet32": partial(cifar_resnet, blocks=5),
    "resnet56": partial(cifar_resnet, blocks=9),
    "resnet32x4": partial(cifar_resnet, blocks=5, times=4),
    "judge-cnn": judge_cnn,
}


# -- by name


def known_networks() -> tuple[str, ...]:
    """The names and patterns of names, for help texts."""
    return (*known("networks", NETWORKS), "timm:NAME[?pretrained]", "module:PACKAGE.MODULE:FUNCTION")


def is_pretrained(name: str | Maker) -> bool:
    """Whether the network's weights come from images that are not known here: those of a library."""
    return isinstance(name, str) and name.startswith("timm:") and name.endswith("?pretrained")


def check_network(name: str | Maker) -> None:
    """Refuses a name that :func:`build_network` does not know, without building anything.

    Raises:
        ConfigError: it is unknown, with what is near it, or a library is missing.
    """
    _maker(name)


def _maker(name: str | Maker) -> Maker:
    if not isinstance(name, str):
        return name
    if not name.startswith("timm:"):
        found = lookup("networks", NETWORKS, name)
        if not callable(found):
            raise ConfigError(
                f"the network {name} is a {type(found).__name__}", "name a function (shape, num_classes) -> nn.Module"
            )
        return found
    model, question, pretrained = name.removeprefix("timm:").partition("?")
    if not model or (question and pretrained != "pretrained"):
        raise ConfigError(f"network {name!r} cannot be read", "write timm:NAME or timm:NAME?pretrained")
    timm = optional("timm", "timm", f"the network timm:{model}", "use one of the networks that come with this package")
    if not timm.is_model(model.partition(".")[0]):
        near = ", ".join(timm.list_models(f"*{model[:6]}*")[:5])
        raise ConfigError(f"timm has no model {model!r}", f"see timm.list_models(); near: {near or 'none'}")
    return partial(_from_timm, timm, model, bool(pretrained))


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
        name: of :data:`NETWORKS`, "timm:NAME" (an extra; random weights, with "?pretrained" those that timm
            distributes), "module:PACKAGE.MODULE:FUNCTION" or, in Python, the function itself, see :data:`Maker`, whose
            weights it draws from torch's global generator or brings with it.
        shape: (H, W, C) of the images; H and W at least 8, need not be equal.
        num_classes: at least 2.
        head: "linear", or "cosine" (:class:`CosineHead`), which takes the place of the network's own.
        normalise: (mean, std) of pixels in [0, 1], per channel or one for all; see :class:`Normalised`.

    Raises:
        ConfigError: an unknown name, images that are too small, fewer than 2 classes, a library that is not there, or
            a network that does not give features of such images.
    """
    h, w, channels = shape
    make = _maker(name)
    if min(h, w) < MIN_SIDE:
        raise ConfigError(
            f"images of {h} x {w} pixels are too small for {name_of(name)}", f"use at least {MIN_SIDE} a side"
        )
    if num_classes < 2:
        raise ConfigError(f"{num_classes} class cannot be classified", "at least 2 are needed")
    if normalise is not None and len(normalise[0]) not in (1, channels):
        raise ConfigError(
            f"images of {channels} channels cannot be standardised by {len(normalise[0])} means",
            "give one per channel, or one for all",
        )
    # torch's layers draw their weights from the global generator: one thread at a time, and it is put back after. Not
    # torch.manual_seed, which would reseed every accelerator as well
    with _INIT, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_of(seed, "network", name if isinstance(name, str) else "own"))
        made = called(f"the network {name_of(name)}", make, shape, num_classes)
        network = made if isinstance(made, Classifier) else _with_head(made, name_of(name), shape, num_classes)
        if head == "cosine":
            network.head = CosineHead(network.feature_dim, num_classes)
    if normalise is not None:
        network.first = Normalised(*normalise)
    return network


def _with_head(body: nn.Module, name: str, shape: tuple[int, int, int], num_classes: int) -> Classifier:
    """A body with a new head.

    Raises:
        ConfigError: it is no module, or does not give (B, D) features of images of this shape.
    """
    h, w, channels = shape
    try:
        with torch.no_grad():
            features = body.eval()(torch.zeros(2, channels, h, w))
    except Exception as error:  # whatever the network raises
        raise ConfigError(
            f"{name} fails on 2 images of {h} x {w} x {channels}: {type(error).__name__}: {error}",
            "it must be a torch.nn.Module that takes (B, C, H, W) float32 in [-1, 1]",
        ) from error
    if not isinstance(features, Tensor) or features.ndim != 2:
        what = f"{tuple(features.shape)}" if isinstance(features, Tensor) else f"a {type(features).__name__}"
        raise ConfigError(f"{name} gives {what}, not (B, D) features", "end it before its own classification layer")
    return Classifier(body.train(), int(features.shape[1]), num_classes)


def _from_timm(timm: Any, model: str, pretrained: bool, shape: tuple[int, int, int], num_classes: int) -> Classifier:
    """A model of timm with a new head. Distributed weights get images standardised as they were for them; timm fits
    the first layer to the number of channels."""
    h, w, channels = shape
    refused: Exception | None = None
    # networks with position embeddings are made for one size and must be given it; others do not know the option
    for more in ({}, {"img_size": (h, w)}):
        try:
            body = timm.create_model(model, pretrained=pretrained, num_classes=0, in_chans=channels, **more)
            network = _with_head(body, f"timm:{model}", shape, num_classes)
        except (ConfigError, RuntimeError, OSError, ValueError, TypeError, AssertionError) as error:
            refused = refused or error
            continue
        if pretrained:
            means = [list(body.pretrained_cfg[key]) for key in ("mean", "std")]
            if channels != len(means[0]):
                means = [[float(np.mean(values))] for values in means]
            network.first, network.pretrained = Normalised(*means), True
        return network
    why = refused.message if isinstance(refused, ConfigError) else refused
    raise ConfigError(f"timm:{model} cannot be made for images of {h} x {w} x {channels}: {why}", "choose another")


def network_identity(name: str | Maker, shape: tuple[int, int, int], num_classes: int) -> str | list[Any]:
    """What tells two networks apart in caches.

    Of those that come with this package it is the name, of timm's also its version; of a user's, what they are:
    structure, first weights, and the file of their code, which decides what the forward pass does.
    """
    if isinstance(name, str) and name in NETWORKS:
        return name
    if isinstance(name, str) and name.startswith("timm:"):
        return [name, importlib.metadata.version("timm")]
    made = build_network(name, shape, num_classes, 0)
    weights = [[k, digest(v.detach().cpu().float().flatten().tolist())] for k, v in made.state_dict().items()]
    maker: Any = _maker(name)
    module = sys.modules.get(getattr(getattr(maker, "func", maker), "__module__", ""))  # of a partial, what it calls
    path = getattr(module, "__file__", None)
    return [name_of(name), str(made), digest(weights), sha256_file(Path(path)) if path else None]


def name_of(network: str | Maker) -> str:
    """A name to print and to hash; of a function, where it stands."""
    if isinstance(network, str):
        return network
    inner = getattr(network, "func", network)
    return f"{getattr(inner, '__module__', '')}.{getattr(inner, '__qualname__', type(inner).__qualname__)}"


# -- predictions


@torch.no_grad()
def probabilities(network: Classifier, images: ImageSet, batch_size: int = 512) -> np.ndarray:
    """(N, C) float32 softmax of the logits, the prior of the images taken as flat where the loss took it so."""
    device = next(network.parameters()).device
    network.eval()
    parts = [np.zeros((0, len(images.class_names)), np.float32)]
    for start in range(0, len(images), batch_size):
        x = to_unit(torch.from_numpy(np.array(images.images[start : start + batch_size], order="C")).to(device))
        logits = network(x.contiguous(memory_format=torch.channels_last)).float()
        parts.append(functional.softmax(logits, dim=1).cpu().numpy())
    return np.concatenate(parts)


def predict(network: Classifier, images: ImageSet, batch_size: int = 512) -> np.ndarray:
    """(N,) int64 predicted class of each image: that of the largest logit."""
    return probabilities(network, images, batch_size).argmax(axis=1).astype(np.int64)
