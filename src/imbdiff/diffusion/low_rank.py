"""Low-rank capacity that can be switched off row by row and is merged into the weights when training ends.

Capacity manipulation (CM; Hong et al., ICLR 2026) gives some layers a second, small set of weights,

    W = W_g + scale B A,      A: rank x in,  B: out x rank,  rank = max(1, round(rank_ratio min(in, out)))

(a convolution's `in` is channels x kernel area), here in the second half of a network (`Backbone.low_rank_layers`):

=========== ====================================================================================================
backbone    layers
=========== ====================================================================================================
U-Net       all convolutions of ``up_blocks``: those of the residual blocks, their shortcuts, and the up-samplers
DiT         linear layers of attention and feed-forward in the second half of the blocks
MLP         both linear layers behind the hidden layer
=========== ====================================================================================================

A starts as torch's layers do, B at zero: the network starts as it was. In a pass with `capacity` (B,) of zeros and ones
a row gets W_g x + capacity scale B (A x), so that rows with and without the low-rank part share a pass. What is saved
and sampled is the merged network, a plain `DiffusionModel`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imbdiff.diffusion.backbone import Taps
from imbdiff.diffusion.model import DiffusionModel
from imbdiff.runtime.errors import ConfigError
from imbdiff.runtime.streams import torch_rng


class Switch:
    """Which rows use the low-rank parts, while a forward pass lasts; one object for all layers of a network.

    Attributes:
        rows: (B,) 0 or 1; None: all rows do.
    """

    rows: Tensor | None = None

    def apply(self, h: Tensor) -> Tensor:
        """(n, ...) -> the same, zeros where a row is switched off. Rows are only ever cut off at the end."""
        if self.rows is None:
            return h
        return h * self.rows[: len(h)].to(h.dtype).reshape(-1, *(1,) * (h.ndim - 1))


class LowRankLayer(nn.Module):
    """A convolution (of one group, zeros around) or linear layer with a low-rank part.

    `down`, (rank, in, ...) of the same geometry, then `up`, (out, rank, ...). It takes over the parameters of `layer`.
    """

    def __init__(self, layer: nn.Module, switch: Switch, rank: int, scale: float, generator: torch.Generator) -> None:
        super().__init__()
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        weight = layer.weight
        self.weight, self.bias, self.switch, self.scale = weight, layer.bias, switch, scale
        self.geometry: dict[str, Any] | None = None
        if isinstance(layer, nn.Conv2d):
            assert (layer.groups, layer.padding_mode) == (1, "zeros"), "one group, and zeros around"
            self.geometry = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
        # the initial distribution of torch's layers, U(-b, b) with b = 1 / sqrt(in); made on the CPU, alike everywhere
        bound = weight[0].numel() ** -0.5
        down = (2 * torch.rand((rank, *weight.shape[1:]), generator=generator) - 1) * bound
        self.down = nn.Parameter(down.to(weight))
        self.up = nn.Parameter(weight.new_zeros(len(weight), rank, *[1] * (weight.ndim - 2)))
        self.train(layer.training)

    def forward(self, input: Tensor) -> Tensor:
        if self.geometry is None:
            low = self.scale * self.switch.apply(F.linear(input, self.down))
            return F.linear(input, self.weight, self.bias) + F.linear(low, self.up)
        low = self.scale * self.switch.apply(F.conv2d(input, self.down, None, **self.geometry))
        return F.conv2d(input, self.weight, self.bias, **self.geometry) + F.conv2d(low, self.up)

    @torch.no_grad()
    def plain(self, scale: float) -> nn.Conv2d | nn.Linear:
        """The layer with W_g + scale B A."""
        (out, into, *kernel), bias = self.weight.shape, self.bias is not None
        layer: nn.Conv2d | nn.Linear = nn.Linear(into, out, bias, device="meta")
        if self.geometry is not None:
            layer = nn.Conv2d(into, out, tuple(kernel), **self.geometry, bias=bias, device="meta")  # type: ignore[arg-type]
        product = self.up.double().flatten(1) @ self.down.double().flatten(1)
        weight = self.weight.double() + scale * product.reshape(self.weight.shape)
        layer.weight, layer.bias = nn.Parameter(weight.to(self.weight)), self.bias
        return layer.train(self.training)


class LowRankModel(DiffusionModel):
    """A diffusion model whose second half has low-rank capacity on top of its weights; see the module's text.

    Made by `of`. Its parameters are those of the model that it was made from, under the same names, and a ``down`` and
    an ``up`` next to the weight of every layer with a low-rank part.

    Attributes:
        scale: factor of B A.
        switch: what its layers read `capacity` from; None outside a forward pass.
    """

    scale: float
    switch: Switch

    @classmethod
    def of(cls, model: DiffusionModel, seed: int, rank_ratio: float = 0.1, scale: float = 0.5) -> LowRankModel:
        """`model` with new low-rank parts; a copy, whose predictions are bit-identical.

        Args:
            model: is left as it is. Of a model with low-rank parts the merged one is taken.
            seed: of the initial A; no global random state is read or changed.
            rank_ratio, scale: see `LowRank`.

        Raises:
            ConfigError: a backbone that does not say which layers.
        """
        plain = model.merged() if isinstance(model, LowRankModel) else model
        made = cls(plain.spec, copy.deepcopy(plain.backbone), plain.process)
        made.scale, made.switch = scale, Switch()
        for name in made.backbone.low_rank_layers():
            layer = made.backbone.get_submodule(name)
            full = min(len(layer.weight), layer.weight[0].numel())  # type: ignore[arg-type, index]
            part = (made.switch, max(1, round(rank_ratio * full)), scale, torch_rng(seed, "low_rank", name))
            made.backbone.set_submodule(name, LowRankLayer(layer, *part))
        return made.train(model.training)

    def forward(
        self, x_t: Tensor, *arguments: Any, capacity: Tensor | None = None, **options: Any
    ) -> tuple[Tensor, Taps]:
        """See `DiffusionModel.forward`. `capacity` (B,): 1 for rows with the low-rank part (None: all), 0 for others.

        Nothing of it outlives the call, also where that ends early.

        Raises:
            ConfigError: `capacity` has another number of rows than x_t.
        """
        if capacity is not None and capacity.shape != (len(x_t),):
            raise ConfigError(f"capacity of shape {tuple(capacity.shape)} for {len(x_t)} rows", "give one number a row")
        before, self.switch.rows = self.switch.rows, capacity
        try:
            return super().forward(x_t, *arguments, **options)
        finally:
            self.switch.rows = before

    def merged(self) -> DiffusionModel:
        """A plain model with W_g + scale B A, independent of this one: what is saved, exported and sampled."""
        return self._plain(self.scale)

    def base(self) -> DiffusionModel:
        """A plain model with W_g alone, independent of this one: what `capacity` 0 evaluates."""
        return self._plain(0.0)

    def _plain(self, scale: float) -> DiffusionModel:
        backbone = copy.deepcopy(self.backbone)
        for name, layer in list(backbone.named_modules()):
            if isinstance(layer, LowRankLayer):
                backbone.set_submodule(name, layer.plain(scale))
        return DiffusionModel(self.spec, backbone, self.process).train(self.training)


@dataclass(frozen=True)
class LowRank:
    """`LowRankModel.of` as what makes a phase's network, with its constants.

    Args:
        rank_ratio: rank of a layer as a share of its full rank, in (0, 1]; 0.1 as reported of the authors.
        scale: factor of B A, above 0; 0.5 as reported of the authors' release.
    """

    name: ClassVar[str] = "low_rank"

    rank_ratio: float = 0.1
    scale: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.rank_ratio <= 1:
            raise ConfigError(f"rank_ratio={self.rank_ratio} is outside (0, 1]", "use 0.1")
        if not 0 < self.scale < float("inf"):
            raise ConfigError(f"the scale {self.scale} of the low-rank part must be finite and above 0", "use 0.5")

    def __call__(self, model: DiffusionModel, seed: int) -> LowRankModel:
        return LowRankModel.of(model, seed, self.rank_ratio, self.scale)


def merged(model: LowRankModel, objectives: Sequence[nn.Module]) -> DiffusionModel:
    """`LowRankModel.merged` as a phase's last step."""
    return model.merged()
