"""CIFAR-10 classifiers: the option-A residual networks of He et al. (2016), section 4.2, in the layout of the weight
files that the field passes around (``resnet20-12fca82f.th`` and its like: ``state_dict``, keys prefixed ``module.``).

Their 64 features are a CIFAR-10 feature space where the Inception weights of FID are not at hand. A Fréchet distance in
it is ``FD[cifar-resnet56]``, never FID. They learned from the 50,000 CIFAR-10 training images: a set is compared with
test images, and a distance to training images is optimistic.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from imbdiff.metrics.extractors.base import Role, hash_weights, normalise, to_rgb
from imbdiff.metrics.extractors.classifier import ClassifierFeatures
from imbdiff.metrics.extractors.weights import load_into, read_weights
from imbdiff.runtime.errors import ConfigError, DataError

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
DEPTHS = (20, 32, 44, 56, 110)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet: what these files were trained with."""


class Block(nn.Module):
    """Two 3x3 convolutions; the shortcut takes every second pixel and pads channels with zeros (option A)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.extra = stride, outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        if self.extra or self.stride != 1:
            half = self.extra // 2
            x = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, self.extra - half))
        return functional.relu(h + x)


class CifarResNet(nn.Module):
    """ResNet-`depth` for 32 x 32 images: (depth - 2) / 6 blocks of 16, 32 and 64 maps each.

    Takes (B, 3, H, W) float, normalised; attributes as :class:`FeatureNetwork` asks for.
    """

    feature_dim = 64

    def __init__(self, depth: int, classes: int = 10) -> None:
        super().__init__()
        if depth not in DEPTHS:
            raise ConfigError(f"there is no cifar-resnet of depth {depth}", f"use one of {', '.join(map(str, DEPTHS))}")
        count = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, count, 1)
        self.layer2 = _stage(16, 32, count, 2)
        self.layer3 = _stage(32, 64, count, 2)
        self.linear = nn.Linear(64, classes)

    @property
    def head(self) -> nn.Module:
        return self.linear

    def features(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 64)."""
        h = functional.relu(self.bn1(self.conv1(x)))
        return self.layer3(self.layer2(self.layer1(h))).mean(dim=(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.features(x))


def _stage(inputs: int, outputs: int, count: int, stride: int) -> nn.Sequential:
    return nn.Sequential(*(Block(outputs if i else inputs, outputs, 1 if i else stride) for i in range(count)))


class CifarResNetFeatures(ClassifierFeatures):
    """The 64 pooled features of a :class:`CifarResNet`, and its decisions.

    Args:
        network: with its weights.
        name: for ``FD[name]``.
        role: these networks saw the balanced training images, so they judge and do not curate.
        shape: (H, W, C) of the images to come; a CIFAR network was trained for 32 x 32 RGB and takes nothing else.
        classes, trained_on_note: as of :class:`ClassifierFeatures`.
    """

    preprocessing = "pixels / 255, minus the mean and over the standard deviation of ImageNet, 32 x 32"

    def __init__(
        self,
        network: CifarResNet,
        name: str,
        role: Role = "judge",
        *,
        classes: tuple[str, ...] | None = None,
        trained_on_note: str = "",
        device: str | torch.device = "cpu",
    ) -> None:
        self.cifar = network
        print_of = hash_weights(f"cifar-resnet {self.preprocessing}", network.state_dict().values())
        super().__init__(
            network,
            name,
            role,
            print_of,
            shape=(32, 32, 3),
            classes=classes,
            trained_on_note=trained_on_note,
            device=device,
        )

    def _prepare(self, x: Tensor) -> Tensor:
        return normalise(to_rgb(x), MEAN, STD)


def cifar_resnet(
    path: str | Path, depth: int | None = None, *, device: str | torch.device = "cpu"
) -> CifarResNetFeatures:
    """The extractor ``cifar-resnetNN`` with the weights in `path`.

    Args:
        path: ``.th``, ``.pt`` or ``.safetensors``; nothing in it is run.
        depth: of the network; told from the number of blocks in the file where not given.

    Raises:
        DataError: the file does not hold such a network, or one of another number of classes than 10.
    """
    path = Path(path)
    weights = read_weights(path)
    found = depth_of(weights)
    depth = depth or found
    if depth is None:
        raise DataError(
            f"{path} does not hold a cifar-resnet ({len(weights)} tensors, first {next(iter(weights), 'none')!r})",
            "name the architecture: checkpoint:ARCH:FILE",
        )
    classes = len(weights["linear.weight"]) if "linear.weight" in weights else 10
    network = CifarResNet(depth, classes)
    load_into(network, weights, path, f"cifar-resnet{depth}")
    is_cifar10 = classes == 10
    return CifarResNetFeatures(
        network,
        f"cifar-resnet{depth}",
        # the file says nothing of its classes; ten of them are CIFAR-10's, in its order, in all files of this layout
        classes=CIFAR10 if is_cifar10 else tuple(f"class {k}" for k in range(classes)),
        trained_on_note="the 50,000 CIFAR-10 training images" if is_cifar10 else "not known",
        device=device,
    )


def depth_of(weights: dict[str, Tensor]) -> int | None:
    """The depth that the keys of a state dict tell, or None."""
    found = (re.fullmatch(r"layer1\.(\d+)\.conv1\.weight", key) for key in weights)
    blocks = {int(m.group(1)) for m in found if m}
    depth = 6 * len(blocks) + 2
    return depth if blocks and depth in DEPTHS and "linear.weight" in weights else None
