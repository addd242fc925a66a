"""The Inception v3 of December 2015 that FID is defined by (Szegedy et al. 2015; Heusel et al. 2017), in torch.

It is not the published Inception v3 to the letter. The TensorFlow graph of 2015-12-05 pools averages without counting
the padding, takes the maximum in place of the average in the very last block, and has 1,008 outputs. Names of layers
are those of the weight files that torch-fidelity and pytorch-fid distribute, so that these load as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

SIDE = 299
FEATURES = 2048
OUTPUTS = 1008


class Conv(nn.Module):
    """Convolution without bias, batch normalisation (eps 0.001), ReLU."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int | tuple[int, int],
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.bn(self.conv(x)), inplace=True)


def _average(x: Tensor) -> Tensor:
    """3x3 mean at stride 1 over the pixels that exist."""
    return functional.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class MixedA(nn.Module):
    """35 x 35 (Mixed_5b to 5d): 1x1, 5x5, double 3x3, pooled."""

    def __init__(self, inputs: int, pool: int) -> None:
        super().__init__()
        self.branch1x1 = Conv(inputs, 64, 1)
        self.branch5x5_1 = Conv(inputs, 48, 1)
        self.branch5x5_2 = Conv(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = Conv(inputs, 64, 1)
        self.branch3x3dbl_2 = Conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = Conv(96, 96, 3, padding=1)
        self.branch_pool = Conv(inputs, pool, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.branch1x1(x)
        b = self.branch5x5_2(self.branch5x5_1(x))
        c = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([a, b, c, self.branch_pool(_average(x))], 1)


class MixedB(nn.Module):
    """35 x 35 to 17 x 17 (Mixed_6a)."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.branch3x3 = Conv(inputs, 384, 3, stride=2)
        self.branch3x3dbl_1 = Conv(inputs, 64, 1)
        self.branch3x3dbl_2 = Conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = Conv(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        a = self.branch3x3(x)
        b = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([a, b, functional.max_pool2d(x, 3, stride=2)], 1)


class MixedC(nn.Module):
    """17 x 17 (Mixed_6b to 6e): 7x7 as 1x7 and 7x1, once and twice, with `width` maps between them."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        row, column = (1, 7), (7, 1)
        along, down = (0, 3), (3, 0)
        self.branch1x1 = Conv(inputs, 192, 1)
        self.branch7x7_1 = Conv(inputs, width, 1)
        self.branch7x7_2 = Conv(width, width, row, padding=along)
        self.branch7x7_3 = Conv(width, 192, column, padding=down)
        self.branch7x7dbl_1 = Conv(inputs, width, 1)
        self.branch7x7dbl_2 = Conv(width, width, column, padding=down)
        self.branch7x7dbl_3 = Conv(width, width, row, padding=along)
        self.branch7x7dbl_4 = Conv(width, width, column, padding=down)
        self.branch7x7dbl_5 = Conv(width, 192, row, padding=along)
        self.branch_pool = Conv(inputs, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.branch1x1(x)
        b = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        c = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        c = self.branch7x7dbl_5(self.branch7x7dbl_4(c))
        return torch.cat([a, b, c, self.branch_pool(_average(x))], 1)


class MixedD(nn.Module):
    """17 x 17 to 8 x 8 (Mixed_7a)."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.branch3x3_1 = Conv(inputs, 192, 1)
        self.branch3x3_2 = Conv(192, 320, 3, stride=2)
        self.branch7x7x3_1 = Conv(inputs, 192, 1)
        self.branch7x7x3_2 = Conv(192, 192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3 = Conv(192, 192, (7, 1), padding=(3, 0))
        self.branch7x7x3_4 = Conv(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        a = self.branch3x3_2(self.branch3x3_1(x))
        b = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([a, b, functional.max_pool2d(x, 3, stride=2)], 1)


class MixedE(nn.Module):
    """8 x 8 (Mixed_7b, 7c): 3x3 split into 1x3 and 3x1.

    Args:
        maximum: pool by maximum, as the graph does in Mixed_7c, where the paper has an average.
    """

    def __init__(self, inputs: int, maximum: bool) -> None:
        super().__init__()
        self.maximum = maximum
        self.branch1x1 = Conv(inputs, 320, 1)
        self.branch3x3_1 = Conv(inputs, 384, 1)
        self.branch3x3_2a = Conv(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3_2b = Conv(384, 384, (3, 1), padding=(1, 0))
        self.branch3x3dbl_1 = Conv(inputs, 448, 1)
        self.branch3x3dbl_2 = Conv(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = Conv(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3dbl_3b = Conv(384, 384, (3, 1), padding=(1, 0))
        self.branch_pool = Conv(inputs, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.branch1x1(x)
        b = self.branch3x3_1(x)
        c = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = functional.max_pool2d(x, 3, stride=1, padding=1) if self.maximum else _average(x)
        parts = [a, self.branch3x3_2a(b), self.branch3x3_2b(b), self.branch3x3dbl_3a(c), self.branch3x3dbl_3b(c)]
        return torch.cat([*parts, self.branch_pool(pooled)], 1)


class InceptionV3(nn.Module):
    """(B, 3, 299, 299) float in [-1, 1) -> (B, 2048), the last pooling layer ("pool3"). `fc` makes the 1,008 logits."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Conv(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = Conv(32, 32, 3)
        self.Conv2d_2b_3x3 = Conv(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = Conv(80, 192, 3)
        self.Mixed_5b = MixedA(192, pool=32)
        self.Mixed_5c = MixedA(256, pool=64)
        self.Mixed_5d = MixedA(288, pool=64)
        self.Mixed_6a = MixedB(288)
        self.Mixed_6b = MixedC(768, width=128)
        self.Mixed_6c = MixedC(768, width=160)
        self.Mixed_6d = MixedC(768, width=160)
        self.Mixed_6e = MixedC(768, width=192)
        self.Mixed_7a = MixedD(768)
        self.Mixed_7b = MixedE(1280, maximum=False)
        self.Mixed_7c = MixedE(2048, maximum=True)
        self.fc = nn.Linear(FEATURES, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = functional.max_pool2d(x, 3, stride=2)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))
        x = functional.max_pool2d(x, 3, stride=2)
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
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
