"""Networks that were never trained with labels, and forget those that they began with."""

from __future__ import annotations

import torch

from imbdiff.diffusion.model import DiffusionModel


@torch.no_grad()
def forget_labels(model: DiffusionModel) -> DiffusionModel:
    """Makes every label mean "no class": in place, and returned.

    For models trained without labels, whose class vectors are still the random ones that they began with. Vectors that
    are added to the time embedding become zero; a DiT's become its null label's.

    Raises:
        ConfigError: the backbone does not say where its class vectors are.
    """
    for table in model.backbone.class_tables():
        c = model.num_classes
        if len(table) == c + 1:
            table[:c] = table[c:]
        else:
            table.zero_()
    return model
