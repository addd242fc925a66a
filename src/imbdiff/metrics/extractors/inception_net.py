"""The Inception v3 of December 2015 that FID is defined by (Szegedy et al. 2015; Heusel et al. 2017), in torch.

It is not the published Inception v3 to the letter. The TensorFlow graph of 2015-12-05 pools averages without counting
the padding, takes the maximum in place of the average in the very last block, and has 1,008 outputs. Names of layers
are those of the weight files that torch-fidelity and pytorch-fid distribute, so that these load as they are.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

SIDE = 299
FEATURES = 2048
OUTPUTS = 1008

Kernel = int | tuple[int, int]
ROW, COLUMN = (1, 7), (7, 1)
REDUCTION = ("Mixed_6a", "Mixed_7a")
"""Blocks that halve the side: the last convolution of a branch, and the pooling, have stride 2 and no padding."""


def _blocks() -> dict[str, dict[str, Sequence[tuple[int, Kernel]]]]:
    """Block -> branch -> (channels, kernel) of its convolutions, one after the other; all at stride 1, padded."""

    def block_35(pool: int) -> dict[str, Sequence[tuple[int, Kernel]]]:
        return {
            "branch1x1": [(64, 1)],
            "branch5x5": [(48, 1), (64, 5)],
            "branch3x3dbl": [(64, 1), (96, 3), (96, 3)],
            "branch_pool": [(pool, 1)],
        }

    def block_17(width: int) -> dict[str, Sequence[tuple[int, Kernel]]]:
        return {
            "branch1x1": [(192, 1)],
            "branch7x7": [(width, 1), (width, ROW), (192, COLUMN)],
            "branch7x7dbl": [(width, 1), (width, COLUMN), (width, ROW), (width, COLUMN), (192, ROW)],
            "branch_pool": [(192, 1)],
        }

    # the last two convolutions of the 3x3 branches, a row and a column, stand side by side
    block_8: dict[str, Sequence[tuple[int, Kernel]]] = {
        "branch1x1": [(320, 1)],
        "branch3x3": [(384, 1), (384, (1, 3)), (384, (3, 1))],
        "branch3x3dbl": [(448, 1), (384, 3), (384, (1, 3)), (384, (3, 1))],
        "branch_pool": [(192, 1)],
    }
    return {
        "Mixed_5b": block_35(32),
        "Mixed_5c": block_35(64),
        "Mixed_5d": block_35(64),
        "Mixed_6a": {"branch3x3": [(384, 3)], "branch3x3dbl": [(64, 1), (96, 3), (96, 3)]},
        "Mixed_6b": block_17(128),
        "Mixed_6c": block_17(160),
        "Mixed_6d": block_17(160),
        "Mixed_6e": block_17(192),
        "Mixed_7a": {
            "branch3x3": [(192, 1), (320, 3)],
            "branch7x7x3": [(192, 1), (192, ROW), (192, COLUMN), (192, 3)],
        },
        "Mixed_7b": block_8,
        "Mixed_7c": block_8,
    }


class Conv(nn.Module):
    """Convolution without bias, batch normalisation (eps 0.001), ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: Kernel, stride: int = 1, padded: bool = True) -> None:
        super().__init__()
        sides = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (sides[0] // 2, sides[1] // 2) if padded else 0
        self.conv = nn.Conv2d(inputs, outputs, sides, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.bn(self.conv(x)), inplace=True)


class Block(nn.Module):
    """One block: branches of convolutions on the same input, their outputs and a pooled one joined along channels."""

    def __init__(self, name: str, inputs: int, branches: dict[str, Sequence[tuple[int, Kernel]]]) -> None:
        super().__init__()
        self.name, self.outputs = name, 0 if "branch_pool" in branches else inputs
        self.paths: list[tuple[str, list[str], list[str]]] = []
        for branch, layers in branches.items():
            names = [branch] if len(layers) == 1 else [f"{branch}_{i}" for i in range(1, len(layers) + 1)]
            fork = name in ("Mixed_7b", "Mixed_7c") and len(layers) > 1
            if fork:
                names[-2:] = [f"{names[-2]}a", f"{names[-2]}b"]
            width = inputs
            for i, (own, (outputs, kernel)) in enumerate(zip(names, layers, strict=True)):
                reduces = name in REDUCTION and i == len(layers) - 1
                self.add_module(own, Conv(width, outputs, kernel, 2 if reduces else 1, not reduces))
                width = width if fork and i == len(layers) - 2 else outputs
            ends = names[-2:] if fork else names[-1:]
            self.outputs += sum(layers[-1 - i][0] for i in range(len(ends)))
            self.paths.append((branch, names[: -len(ends)], ends))

    def forward(self, x: Tensor) -> Tensor:
        outputs = []
        for branch, names, ends in self.paths:
            h = self._pooled(x) if branch == "branch_pool" else x
            for name in names:
                h = self.get_submodule(name)(h)
            outputs += [self.get_submodule(name)(h) for name in ends]
        if self.name in REDUCTION:
            outputs.append(functional.max_pool2d(x, 3, stride=2))
        return torch.cat(outputs, 1)

    def _pooled(self, x: Tensor) -> Tensor:
        if self.name == "Mixed_7c":
            return functional.max_pool2d(x, 3, stride=1, padding=1)
        return functional.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class InceptionV3(nn.Module):
    """(B, 3, 299, 299) float in [-1, 1) -> (B, 2048), the last pooling layer ("pool3"). `fc` makes the 1,008 logits."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Conv(3, 32, 3, stride=2, padded=False)
        self.Conv2d_2a_3x3 = Conv(32, 32, 3, padded=False)
        self.Conv2d_2b_3x3 = Conv(32, 64, 3)
        self.Conv2d_3b_1x1 = Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = Conv(80, 192, 3, padded=False)
        width = 192
        self.blocks = list(_blocks())
        for name, branches in _blocks().items():
            block = Block(name, width, branches)
            self.add_module(name, block)
            width = block.outputs
        self.fc = nn.Linear(FEATURES, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = functional.max_pool2d(x, 3, stride=2)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))
        x = functional.max_pool2d(x, 3, stride=2)
        for name in self.blocks:
            x = self.get_submodule(name)(x)
        return x.mean(dim=(2, 3))


def resize_like_tf1(x: Tensor, height: int = SIDE, width: int = SIDE) -> Tensor:
    """Bilinear resize of TensorFlow 1: output pixel i samples the input at i * (input side / output side).

    Today's libraries sample at (i + 1/2) * scale - 1/2, so that centres of pixels meet. The old rule shifts the image
    and does not smooth when it shrinks; FID is defined with it, and another resize gives another FID (Parmar, Zhang
    and Zhu 2022).

    Args:
        x: (B, C, H, W) float.
    """
    for dim, size in ((3, width), (2, height)):
        side = x.shape[dim]
        # the product is rounded to float32, as the graph does
        at = torch.arange(size, dtype=torch.float32, device=x.device) * torch.tensor(side / size, dtype=torch.float32)
        low = at.long().clamp_max(side - 1)
        share = (at - low).view((-1, 1) if dim == 2 else (1, -1)).to(x.dtype)
        first = x.index_select(dim, low)
        x = first + (x.index_select(dim, (low + 1).clamp_max(side - 1)) - first) * share
    return x
