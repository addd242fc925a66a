"""Classifier networks. All take (B, C, H, W) float in [-1, 1] and show their last features."""

from __future__ import annotations

import threading

import torch
from torch import Tensor, nn
from torch.nn import functional

from imbdiff.runtime.errors import ConfigError
from imbdiff.runtime.streams import seed_of

MIN_SIDE = 8
NETWORKS = ("resnet-small", "resnet32", "judge-cnn")
_INIT = threading.Lock()


class Classifier(nn.Module):
    """A body that gives features and a linear head.

    Attributes:
        feature_dim: D.
    """

    def __init__(self, body: nn.Module, feature_dim: int, num_classes: int) -> None:
        super().__init__()
        self.body = body
        self.feature_dim = feature_dim
        self.head = nn.Linear(feature_dim, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1] -> (B, D)."""
        return self.body(x)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1] -> (B, num_classes) logits."""
        return self.head(self.features(x))


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


def build_network(name: str, shape: tuple[int, int, int], num_classes: int, seed: int = 0) -> Classifier:
    """A network with weights drawn from `seed`; the global generator is left as it was.

    Args:
        name: "resnet-small" (one residual block per stage, the stem halves the image: made for speed on 8 to 64
            pixels), "resnet32" (He et al.'s for CIFAR, 0.46 M parameters) or "judge-cnn" (plain, no shortcuts, 32
            features: another architecture than the classifiers that it judges).
        shape: (H, W, C) of the images; H and W at least 8, need not be equal.
        num_classes: at least 2.

    Raises:
        ConfigError: an unknown name, images that are too small, or fewer than 2 classes.
    """
    h, w, channels = shape
    if name not in NETWORKS:
        raise ConfigError(f"unknown network {name!r}", f"choose one of {', '.join(NETWORKS)}")
    if min(h, w) < MIN_SIDE:
        raise ConfigError(f"images of {h} x {w} pixels are too small for {name}", f"use at least {MIN_SIDE} a side")
    if num_classes < 2:
        raise ConfigError(f"{num_classes} class cannot be classified", "at least 2 are needed")
    # torch's layers draw their weights from the global generator: one thread at a time, and it is put back after. Not
    # torch.manual_seed, which would reseed every accelerator as well
    with _INIT, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_of(seed, "network", name))
        if name == "resnet-small":
            return _resnet_small(min(h, w), channels, num_classes)
        if name == "resnet32":
            return _resnet32(channels, num_classes)
        return _judge_cnn(min(h, w), channels, num_classes)


def _stem(channels: int, width: int, stride: int) -> list[nn.Module]:
    return [nn.Conv2d(channels, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]


def _pool() -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten()]


def _resnet_small(side: int, channels: int, num_classes: int) -> Classifier:
    # the images that the blocks see are 4 to 20 pixels a side, whatever came in
    widths = [48, 96] if side < 16 else [32, 64, 128]
    layers = _stem(channels, widths[0], 2 if side <= 40 else 4)
    for stage, width in enumerate(widths):
        layers.append(ResidualBlock(widths[max(0, stage - 1)], width, 1 if stage == 0 else 2, projection=True))
    return Classifier(nn.Sequential(*layers, *_pool()), widths[-1], num_classes)


def _resnet32(channels: int, num_classes: int) -> Classifier:
    layers = _stem(channels, 16, 1)
    inputs = 16
    for width in (16, 32, 64):
        for block in range(5):
            layers.append(ResidualBlock(inputs, width, 2 if block == 0 and width > 16 else 1, projection=False))
            inputs = width
    network = Classifier(nn.Sequential(*layers, *_pool()), 64, num_classes)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
    return network


def _judge_cnn(side: int, channels: int, num_classes: int) -> Classifier:
    layers: list[nn.Module] = []
    inputs = channels
    for width in [32, 64] if side < 16 else [32, 64, 96]:
        layers += [nn.Conv2d(inputs, width, 3, 1, 1), nn.BatchNorm2d(width), nn.GELU(), nn.MaxPool2d(2)]
        inputs = width
    # 4 to 8 positions a side keep where things are; few features, so that some hundred references suffice
    layers += [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * inputs, 32), nn.BatchNorm1d(32), nn.GELU()]
    return Classifier(nn.Sequential(*layers), 32, num_classes)
