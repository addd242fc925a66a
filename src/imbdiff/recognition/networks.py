"""Classifier networks: two of our own, the judge, timm's, and a user's. All take (B, C, H, W) float in [-1, 1]."""

from __future__ import annotations

import difflib
import importlib.metadata
import inspect
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
from imbdiff.runtime.errors import ConfigError
from imbdiff.runtime.files import digest, sha256_file
from imbdiff.runtime.optional import optional
from imbdiff.runtime.streams import seed_of
from imbdiff.runtime.tables import PREFIX, known, lookup

Maker = Callable[[tuple[int, int, int], int], nn.Module]
"""(shape (H, W, C), num_classes) -> a network whose input is (B, C, H, W) in [-1, 1]."""

MIN_SIDE = 8
OTHERWISE = "use one of the networks that come with this package"
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

    @classmethod
    def of(cls, module: nn.Module, num_classes: int) -> Classifier:
        """A network made elsewhere as a classifier, with its weights; a `Classifier` is returned as it is.

        Of any other network the last ``nn.Linear`` with `num_classes` outputs becomes the head, and the rest, which is
        changed in place, the body.

        Raises:
            ConfigError: there is no such layer.
        """
        if isinstance(module, Classifier):
            return module
        linear = [(n, m) for n, m in module.named_modules() if isinstance(m, nn.Linear)]
        heads = [(name, m) for name, m in linear if m.out_features == num_classes]
        if not heads:
            raise ConfigError(
                f"{type(module).__name__} has no linear layer of {num_classes} outputs that could be its head",
                "end it in nn.Linear(features, num_classes), or derive it from imbdiff.recognition.networks.Classifier",
            )
        name, head = heads[-1]
        found = cls.__new__(cls)  # without making a head: it is there already
        nn.Module.__init__(found)
        found.first, found.body, found.head = nn.Identity(), _without(module, name), head
        found.feature_dim, found.pretrained = head.in_features, False
        return found


def _without(module: nn.Module, name: str) -> nn.Module:
    """`module` with its layer `name`, as ``named_modules`` calls it, replaced by the identity, in place."""
    if not name:
        return nn.Identity()
    parent, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(parent), leaf, nn.Identity())
    return module


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
    if isinstance(name, str) and name.startswith("timm:"):
        model, question, option = name.removeprefix("timm:").partition("?")
        if not model or (question and option != "pretrained"):
            raise ConfigError(f"network {name!r} cannot be read", "write timm:NAME or timm:NAME?pretrained")
        timm = optional("timm", "timm", f"the network timm:{model}", OTHERWISE)
        if not timm.is_model(model.partition(".")[0]):
            near = ", ".join(timm.list_models(f"*{model[:6]}*")[:5])
            raise ConfigError(f"timm has no model {model!r}", f"see timm.list_models(); near: {near or 'none'}")
        return partial(_from_timm, timm, model, bool(question))
    found = name
    if isinstance(name, str):
        if not name.startswith(PREFIX) and name not in known("networks", NETWORKS):
            nearest = difflib.get_close_matches(name, NETWORKS, n=1)
            remedy = f"choose one of {', '.join(known_networks())}"
            hint = f"did you mean {nearest[0]}? Or {remedy}" if nearest else remedy
            raise ConfigError(f"unknown network {name!r}", hint)
        found = lookup("networks", NETWORKS, name)
    if not callable(found):
        raise ConfigError(
            f"a network is a name or a function (shape, num_classes) -> nn.Module, and {name!r} is a "
            f"{type(found).__name__}",
            "give the function",
        )
    return found


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
    make = _maker(name)
    called = name if isinstance(name, str) else getattr(name, "__name__", type(name).__name__)
    if min(h, w) < MIN_SIDE:
        raise ConfigError(f"images of {h} x {w} pixels are too small for {called}", f"use at least {MIN_SIDE} a side")
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
        made = make(shape, num_classes)
        network = made if isinstance(made, Classifier) else _checked(made, called, shape, num_classes)
        if head == "cosine":
            network.head = CosineHead(network.feature_dim, num_classes)
    if normalise is not None:
        network.first = Normalised(*normalise)
    return network


def _from_timm(timm: Any, model: str, pretrained: bool, shape: tuple[int, int, int], num_classes: int) -> Classifier:
    """A model of timm with a new head. Distributed weights get images standardised as they were for them; timm fits
    the first layer to the number of channels."""
    h, w, channels = shape
    why = ""
    # networks with position embeddings are made for one size and must be given it; others do not know the option
    for more in ({}, {"img_size": (h, w)}):
        try:
            body = timm.create_model(model, pretrained=pretrained, num_classes=0, in_chans=channels, **more)
            with torch.no_grad():
                features = body.eval()(torch.zeros(2, channels, h, w))
        except (RuntimeError, OSError, ValueError, TypeError, AssertionError) as error:
            why = why or _first_line(error)
            continue
        if features.ndim != 2:
            raise ConfigError(f"timm:{model} gives features {tuple(features.shape)}, not (B, D)", "choose another")
        network = Classifier(body.train(), int(features.shape[1]), num_classes)
        if pretrained:
            means = [list(body.pretrained_cfg[key]) for key in ("mean", "std")]
            if channels != len(means[0]):
                means = [[float(np.mean(values))] for values in means]
            network.first, network.pretrained = Normalised(*means), True
        return network
    raise ConfigError(f"timm:{model} cannot be made for images of {h} x {w} x {channels}: {why}", OTHERWISE)


def _checked(network: Any, name: str, shape: tuple[int, int, int], num_classes: int) -> Classifier:
    """A user's network as a classifier.

    Raises:
        ConfigError: it is not a network, does not take images of this shape, its logits are not (B, num_classes), or
            its last linear layer of `num_classes` outputs is not what makes them.
    """
    if not isinstance(network, nn.Module):
        raise ConfigError(f"{name} gives a {type(network).__name__}, not a torch.nn.Module", "return the network")
    wanted = _logits(network, name, shape, num_classes)
    classifier = Classifier.of(network, num_classes)
    try:
        same = torch.allclose(_logits(classifier, name, shape, num_classes), wanted, equal_nan=True)
    except ConfigError:
        same = False  # the rest does not run without that layer
    if not same:
        raise ConfigError(
            f"{name}: the last linear layer of {num_classes} outputs is not the one that makes the logits",
            "derive the network from imbdiff.recognition.networks.Classifier",
        )
    return classifier


def _logits(network: nn.Module, name: str, shape: tuple[int, int, int], num_classes: int) -> Tensor:
    """(2, num_classes) logits of two images in evaluation mode; the network is left as it was."""
    h, w, channels = shape
    x = torch.linspace(-1, 1, 2 * channels * h * w).reshape(2, channels, h, w)
    was = network.training
    try:
        with torch.no_grad():
            logits = network.eval()(x)
    except Exception as error:  # whatever the user's own network raises
        raise ConfigError(
            f"{name} fails on 2 images of {h} x {w} x {channels}: {type(error).__name__}: {_first_line(error)}",
            "it must take (B, C, H, W) float32 in [-1, 1]",
        ) from error
    finally:
        network.train(was)
    if not isinstance(logits, Tensor) or logits.shape != (2, num_classes):
        what = f"of shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise ConfigError(f"{name} gives {what} for 2 images", f"it must give (2, {num_classes}) logits")
    return logits


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


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
    inner = getattr(maker, "func", maker)  # of a partial
    try:
        path = inspect.getsourcefile(inner if inspect.isroutine(inner) or inspect.isclass(inner) else type(inner))
    except TypeError:
        path = None
    code = sha256_file(Path(path)) if path and Path(path).is_file() else None
    return [name_of(name), str(made), digest(weights), code]


def name_of(network: str | Maker) -> str:
    """A name to print and to hash; of a function, where it stands."""
    if isinstance(network, str):
        return network
    inner = getattr(network, "func", network)
    return f"{getattr(inner, '__module__', '')}.{getattr(inner, '__qualname__', type(inner).__qualname__)}"


# -- what a network says of images


@torch.no_grad()
def probabilities(network: Classifier, images: ImageSet, batch_size: int = 512) -> np.ndarray:
    """(N, C) float32 softmax of the logits, the prior of the images taken as flat where the loss took it so."""
    device = next(network.parameters()).device
    network.eval()
    parts: list[Tensor] = []
    for start in range(0, len(images), batch_size):
        x = to_unit(torch.from_numpy(np.array(images.images[start : start + batch_size], order="C")).to(device))
        parts.append(functional.softmax(network(x.contiguous(memory_format=torch.channels_last)).float(), dim=1).cpu())
    return torch.cat(parts).numpy() if parts else np.zeros((0, len(images.class_names)), np.float32)


def predict(network: Classifier, images: ImageSet, batch_size: int = 512) -> np.ndarray:
    """(N,) int64 predicted class of each image: that of the largest logit."""
    return probabilities(network, images, batch_size).argmax(axis=1).astype(np.int64)
