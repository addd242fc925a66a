"""The networks that come with the package; none of them needs more than torch."""

from __future__ import annotations

import re

from torch import Tensor, nn
from torch.nn import functional

from imbdiff.recognition.networks.classifier import Classifier

NETWORKS = ("resnet-small", "resnet32", "judge-cnn")
"""Those that are offered first; :func:`parse_cifar` names the rest of a family."""
CIFAR_FAMILY = ("resnet20", "resnet32", "resnet44", "resnet56", "resnet110", "resnet32x2", "resnet32x4")
"""The depths of He et al. and the widths that are in use, for help texts; others of the pattern are known too."""
MOST_LAYERS, MOST_TIMES = 1202, 16


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


def parse_cifar(name: str) -> tuple[int, int] | None:
    """(n, times) of ``resnet{6n+2}[x{times}]``, n blocks in each of 3 stages of 16, 32 and 64 x `times` channels.

    Up to 1202 layers and 16 times as wide; None for other names.
    """
    found = re.fullmatch(r"resnet([1-9]\d{0,3})(?:x([2-9]|1\d))?", name)
    if found is None:
        return None
    layers, times = int(found[1]), int(found[2] or 1)
    if layers < 8 or (layers - 2) % 6 or layers > MOST_LAYERS or times > MOST_TIMES:
        return None
    return (layers - 2) // 6, times


def build(name: str, side: int, channels: int, num_classes: int) -> Classifier:
    """A built-in network, weights drawn from torch's global generator; `side` is the shorter one of the images."""
    if name == "resnet-small":
        return _resnet_small(side, channels, num_classes)
    if name == "judge-cnn":
        return _judge_cnn(side, channels, num_classes)
    found = parse_cifar(name)
    assert found is not None
    return _cifar_resnet(*found, channels, num_classes)


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


def _cifar_resnet(blocks: int, times: int, channels: int, num_classes: int) -> Classifier:
    """He et al.'s for CIFAR, drawn as in the code of LDAM (Cao et al. 2019): Kaiming normal, the head too."""
    inputs = 16 * times
    layers = _stem(channels, inputs, 1)
    for stage, width in enumerate((16 * times, 32 * times, 64 * times)):
        for block in range(blocks):
            layers.append(ResidualBlock(inputs, width, 2 if block == 0 and stage else 1, projection=False))
            inputs = width
    network = Classifier(nn.Sequential(*layers, *_pool()), inputs, num_classes)
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
