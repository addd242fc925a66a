"""Batch normalisation with statistics of their own for synthetic rows.

Synthetic images are of another distribution than real ones; normalised together, each side moves the statistics of the
other, and those that testing uses are of a mixture that no test image comes from. An auxiliary batch normalisation for
one side, dropped after training, is AdvProp's answer (Xie et al. 2020, arXiv 1911.09665), there for adversarial images.

    split_batch_norm(network)
    with synthetic_rows(network, mask):
        logits = network(x)
    plain(network)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from imbdiff.runtime.errors import ConfigError

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class _Rows:
    """Which rows are whose: real ones first in `order`, `real` of them; `back` undoes it."""

    order: Tensor
    back: Tensor
    real: int


class SplitBatchNorm(nn.Module):
    """A main batch normalisation and an auxiliary one for the synthetic rows of a training batch.

    Each side is normalised by the statistics of its own rows and keeps running averages of its own. A side without
    rows keeps its averages. So does a side with one value per channel, a single row of a layer without positions: it
    has no variance, and is normalised by the running averages of its side. In evaluation mode, and without a mask, all
    rows go through the main one.

    Args:
        norm: becomes the main one; the auxiliary one begins as a copy of it.
        affine: the auxiliary one has weights and biases of its own, as in AdvProp, not those of the main one.
    """

    def __init__(self, norm: nn.BatchNorm1d | nn.BatchNorm2d, affine: bool = False) -> None:
        super().__init__()
        self.main = norm
        self.auxiliary = type(norm)(norm.num_features, norm.eps, norm.momentum, affine and norm.affine)
        self.auxiliary.load_state_dict({k: norm.state_dict()[k] for k in self.auxiliary.state_dict()})
        self.auxiliary.to(norm.running_mean.device).train(norm.training)  # type: ignore[union-attr]
        self.rows: _Rows | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C) or (B, C, H, W) -> the same shape."""
        if self.rows is None or not self.training:
            return self.main(x)
        if len(self.rows.order) != len(x):
            raise ValueError(f"the mask of synthetic rows has {len(self.rows.order)} rows, the batch {len(x)}")
        if self.rows.real == len(x):
            return self._side(self.main, x)
        if self.rows.real == 0:
            return self._side(self.auxiliary, x)
        sorted_rows = x.index_select(0, self.rows.order)
        sides = (
            self._side(self.main, sorted_rows[: self.rows.real]),
            self._side(self.auxiliary, sorted_rows[self.rows.real :]),
        )
        return torch.cat(sides).index_select(0, self.rows.back)

    def _side(self, norm: nn.BatchNorm1d | nn.BatchNorm2d, x: Tensor) -> Tensor:
        # torch's own forward, with the weights of the main one where the auxiliary one has none
        own = norm if norm.affine else self.main
        enough = x.numel() > x.shape[1]
        factor = 0.0
        if enough:
            norm.num_batches_tracked.add_(1)  # type: ignore[union-attr]
            factor = 1.0 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum  # type: ignore[arg-type]
        return functional.batch_norm(
            x, norm.running_mean, norm.running_var, own.weight, own.bias, enough, factor, norm.eps
        )


def split_batch_norm(network: Network, *, affine: bool = False) -> Network:
    """`network` with every batch normalisation split, in place; its output stays what it was.

    Args:
        affine: see :class:`SplitBatchNorm`.

    Raises:
        ConfigError: it has no batch normalisation, is split already, or has one of another kind or without running
            averages; nothing is changed then.
    """
    found = []
    for name, module in network.named_modules():
        if isinstance(module, SplitBatchNorm):
            raise ConfigError("the batch normalisation of this network is split already", "call plain(network) first")
        if not isinstance(module, nn.modules.batchnorm._BatchNorm):
            continue
        if type(module) not in (nn.BatchNorm1d, nn.BatchNorm2d) or module.running_mean is None:
            kind = type(module).__name__ + ("" if module.running_mean is not None else " without running averages")
            raise ConfigError(
                f"the batch normalisation {name} is of a kind that cannot be split: {kind}",
                "use a network with torch's BatchNorm1d and BatchNorm2d, or one normalisation for all images",
            )
        found.append((name, module))
    if not found or not found[0][0]:
        raise ConfigError(
            f"{type(network).__name__} has no layers of batch normalisation to split",
            "use a network with torch's BatchNorm1d and BatchNorm2d, or one normalisation for all images",
        )
    for name, module in found:
        _put(network, name, SplitBatchNorm(module, affine))  # type: ignore[arg-type]
    return network


def plain(network: Network) -> Network:
    """`network` with the main normalisations only, in place: its output in evaluation mode stays what it was.

    Names in its state dict are those from before it was split; a network that is not split is returned as it is.
    """
    for name, module in list(network.named_modules()):
        if isinstance(module, SplitBatchNorm):
            _put(network, name, module.main)
    return network


@contextmanager
def synthetic_rows(network: nn.Module, mask: Tensor | None) -> Iterator[None]:
    """Within it, training sends the rows where `mask` is True through the auxiliary normalisations of `network`.

    Args:
        network: of :func:`split_batch_norm`; any other is left alone.
        mask: (B,) bool, a row of it for each row of the batch; None: all rows are real.

    Raises:
        ValueError: the mask is not (B,) bool.
    """
    if mask is not None and (mask.ndim != 1 or mask.dtype != torch.bool):
        raise ValueError(f"the mask of synthetic rows must be (B,) bool, not {tuple(mask.shape)} {mask.dtype}")
    rows = None
    if mask is not None:
        order = torch.argsort(mask.long(), stable=True)
        rows = _Rows(order, torch.argsort(order), len(mask) - int(mask.sum()))
    layers = [m for m in network.modules() if isinstance(m, SplitBatchNorm)]
    before = [layer.rows for layer in layers]
    try:
        for layer in layers:
            layer.rows = rows
        yield
    finally:
        for layer, old in zip(layers, before, strict=True):
            layer.rows = old


def _put(network: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(network.get_submodule(parent), leaf, module)
