"""What a backbone is: a network that predicts from noisy data, time and label, and what else it may be able to do.

The package's own are in `backbones`. One of your own is a subclass of `Backbone` with a ``forward``; each of the other
methods is needed by what its error names alone.

Labels are class ids; the null label, "no class", is C = num_classes. It is an ordinary label: batches hold it where a
label was dropped, and guidance asks for it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor, nn

from imbdiff.data.geometric import CONDITION_SIZE
from imbdiff.runtime.errors import ConfigError

Taps = dict[str, Tensor]


class VectorConditioner(nn.Module):
    """A learned vector per class, to be added to the time embedding; the null label's is the zero vector.

    That is the convention of the code bases of this field. Vectors start at N(0, 1), as torch's embeddings do.
    """

    def __init__(self, num_classes: int, dim: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(num_classes, dim))
        self.register_buffer("zero", torch.zeros(1, dim), persistent=False)

    def forward(self, labels: Tensor) -> Tensor:
        assert isinstance(self.zero, Tensor)
        return torch.cat([self.table, self.zero])[labels]


class AugmentationConditioner(nn.Linear):
    """Maps the vector (B, 9) of a geometric change to what is added to the time embedding, in a transformer to tokens.

    Without a bias, so that the zero vector, an image as it is, adds nothing. Weights start at N(0, 1), as class vectors
    do: from torch's default, a fifth of that, the network makes little of the vector in short runs.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(CONDITION_SIZE, dim, bias=False)
        nn.init.normal_(self.weight)

    def forward(self, change: Tensor) -> Tensor:
        return super().forward(change.to(self.weight.dtype))


class NoCondition(nn.Module):
    """Adds nothing to the time embedding, whatever the label; has no parameters."""

    def forward(self, labels: Tensor) -> Tensor:
        return torch.zeros((), device=labels.device)


class Backbone(nn.Module):
    """A network that predicts from noisy data, time and condition.

    Attributes:
        tap_names: layers whose features may be asked for.
        roles: role -> the layer that has it; roles may be asked for like layers.
        conditioner: maps labels (B,) in [0, C] to the network's condition, where it owns no table of its own.
        num_classes: C; the null label, "no class", is C.
        cpu_threads: at most so many are used on a CPU; None: all that there are.
        compiles: whether torch.compile is tried on it, on a GPU.
        augmentation: maps the vector of a geometric change, in networks that were built with ``augment`` in their
            arguments; None in others.
    """

    tap_names: tuple[str, ...]
    roles: Mapping[str, str] = MappingProxyType({})
    conditioner: nn.Module
    num_classes: int
    cpu_threads: int | None = None
    compiles = True

    def __init__(self) -> None:
        super().__init__()
        self.augmentation: AugmentationConditioner | None = None

    @abstractmethod
    def forward(
        self,
        x_t: Tensor,
        time: Tensor,
        labels: Tensor,
        taps: Sequence[str] = (),
        predict_rows: int | None = None,
        augment: Tensor | None = None,
    ) -> tuple[Tensor, Taps]:
        """Evaluates the network.

        Args:
            x_t: (B, c, h, w).
            time: (B,) in [0, 1000).
            labels: (B,) int64 in [0, C], C = null.
            taps: layers or roles whose features to return for all rows.
            predict_rows: how many rows need a prediction: the first ones; the others stop after the taps.
            augment: (B, 9) what was done to the images (`imbdiff.data.geometric`); None and zeros: nothing.

        Returns:
            prediction (predict_rows or B, c, h, w) and the taps, each under the name that was asked for.

        Raises:
            ConfigError: an unknown tap, or `augment` for a network that was built without a layer for it.
        """

    def check_taps(self, taps: Sequence[str]) -> None:
        """Refuses taps that are neither a layer nor a role."""
        unknown = [tap for tap in taps if tap not in self.tap_names and tap not in self.roles]
        if unknown:
            roles = ", ".join(f"{role} ({layer})" for role, layer in self.roles.items()) or "none"
            raise ConfigError(
                f"{type(self).__name__} has no tap {unknown}",
                f"it has the layers {', '.join(self.tap_names) or 'none'} and the roles {roles}",
            )

    def layer_of(self, tap: str) -> str:
        """The layer that a role or a layer's own name stands for."""
        return self.roles.get(tap, tap)

    def add_augmentation(self, h: Tensor, augment: Tensor | None) -> Tensor:
        """(B, d) an embedding, or (B, tokens, d) tokens, with the vector of the geometric changes added."""
        if augment is None:
            return h
        if self.augmentation is None:
            raise ConfigError(
                "this network was built without a layer for geometric changes (ADA)",
                "build it with augment=True, or train without: --method.ada 0",
            )
        vector = self.augmentation(augment).to(h.dtype)
        return h + (vector if h.ndim == 2 else vector[:, None])

    def cut_to_encoder(self) -> str:
        """Cuts off, in place, the second half and the condition; returns the tap at the end of what is left.

        Every parameter that is left takes part in that tap.

        Raises:
            ConfigError: this kind of network does not say how.
        """
        raise self._lacks("cut_to_encoder() -> str", "where its encoder ends")

    def low_rank_layers(self) -> list[str]:
        """Names of the layers, `nn.Conv2d` and `nn.Linear`, that get a low-rank part (`imbdiff.diffusion.low_rank`).

        Raises:
            ConfigError: this kind of network does not say which.
        """
        raise self._lacks("low_rank_layers() -> list[str]", "which of its layers take a low-rank part")

    def class_tables(self) -> list[nn.Parameter]:
        """The tables of class vectors, of C rows, or of C + 1 with the null label's: the conditioner's by default.

        Raises:
            ConfigError: this kind of network does not say where they are.
        """
        if not isinstance(self.conditioner, VectorConditioner):
            raise self._lacks("class_tables() -> list[nn.Parameter]", "where its class vectors are")
        return [self.conditioner.table]

    def own_state(self) -> dict[str, Tensor]:
        """The tensors that a saved model holds; the others it brings along when it is made."""
        return self.state_dict()

    def _lacks(self, method: str, what: str) -> ConfigError:
        name = type(self).__name__
        return ConfigError(f"{name} does not say {what}", f"add the method {method} to {name}; see `Backbone`")

    def _layers_in(self, kind: type[nn.Module], *places: str) -> list[str]:
        """Names of the modules of one kind whose names start with one of `places`."""
        return [name for name, m in self.named_modules() if name.startswith(places) and isinstance(m, kind)]


def pooled(h: Tensor) -> Tensor:
    """(B, c): the mean over pixels of (B, c, h, w), over tokens of (B, tokens, c); (B, c) as it is."""
    return h.flatten(2).mean(2) if h.ndim == 4 else h.mean(1) if h.ndim == 3 else h


def linear(width: int, out: int, generator: torch.Generator) -> nn.Linear:
    """A linear layer with torch's usual initial distribution, U(-b, b) with b = 1 / sqrt(width); drawn on the CPU."""
    layer = nn.utils.skip_init(nn.Linear, width, out)
    with torch.no_grad():
        for p in layer.parameters():
            p.uniform_(-(width**-0.5), width**-0.5, generator=generator)
    return layer
