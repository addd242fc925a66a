"""Networks without classes: one that never takes a label, and one that forgets those that it was never trained with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from imbdiff.diffusion.backbones import DiTBackbone
from imbdiff.diffusion.conditioner import Conditioner, VectorConditioner
from imbdiff.diffusion.model import DiffusionModel
from imbdiff.runtime.errors import ConfigError


class NoCondition(Conditioner):
    """Adds nothing to the time embedding, whatever the label; has no parameters."""

    def forward(self, labels: Tensor) -> Tensor:
        return torch.zeros((), device=labels.device)


def label_tables(model: DiffusionModel) -> list[Any]:
    """The networks' tables of class vectors that are not the null label's: parameters of C rows, or of C + 1."""
    backbone = model.backbone
    if isinstance(backbone, DiTBackbone):
        return [block.norm1.emb.class_embedder.embedding_table.weight for block in backbone.net.transformer_blocks]
    if isinstance(backbone.conditioner, VectorConditioner):
        return [backbone.conditioner.table]
    raise ConfigError(f"{type(backbone).__name__} has no table of class vectors that is known here")


@torch.no_grad()
def forget_labels(model: DiffusionModel) -> DiffusionModel:
    """Makes every label mean "no class": in place, and returned.

    For models trained without labels, whose class vectors are still the random ones that they began with. Vectors that
    are added to the time embedding become zero; a DiT's become its null label's.
    """
    for table in label_tables(model):
        c = model.num_classes
        if len(table) == c + 1:
            table[:c] = table[c:]
        else:
            table.zero_()
    return model
