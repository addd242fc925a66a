"""Pretrained models begin with real images too: what DA-Fusion does, by prompts in the place of its tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from imbdiff.diffusion.generate import generate
from imbdiff.diffusion.guidance import ClassifierFree
from tests.pretrained.making import model_of, opened


@pytest.mark.parametrize("kind", ["sd", "flux"])
def test_images_begin_as_real_ones(images: Path, folders: dict[str, Path], kind: str) -> None:
    model = model_of(images, folders[kind]).eval()
    train = opened(images, folders[kind])[0].train
    real, labels = np.asarray(train.images)[:3], train.labels[:3]
    x = torch.from_numpy(real).permute(0, 3, 1, 2)
    expected = model.codec.decode(model.codec.encode(model.codec.store(x))).permute(0, 2, 3, 1).numpy()
    guidance = ClassifierFree(1.0, model.num_classes, model.process)
    sampler = "euler" if kind == "flux" else "dpm++"
    options: dict[str, Any] = {"sampler": sampler, "steps": 4, "batch_size": 2, "guidance": guidance, "start": real}
    assert np.array_equal(generate(model, labels, [0, 1, 2], strength=0.0, **options), expected)
    off = []
    for strength in (0.1, 0.5):
        found = generate(model, labels, [0, 1, 2], strength=strength, **options)
        assert found.shape == real.shape
        off.append(np.mean((found.astype(float) - expected) ** 2))
    assert 0 < off[0] < off[1]
