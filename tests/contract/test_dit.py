"""A transformer on four-channel codes of one-channel images: nothing in the contract knows about pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from imbdiff.data.stats import ClassStats
from imbdiff.diffusion.backbones import BACKBONES, DiTBackbone
from imbdiff.diffusion.codec import Codec
from imbdiff.diffusion.generate import generate
from imbdiff.diffusion.guidance import ClassifierFree
from imbdiff.diffusion.model import DiffusionModel, ModelSpec
from imbdiff.diffusion.process import PROCESSES
from imbdiff.objectives.batch import noisy_batch
from imbdiff.objectives.class_balancing import ClassBalancing
from imbdiff.objectives.denoising import Denoising
from imbdiff.objectives.dispersive import Dispersive
from imbdiff.objectives.objective import Objective
from imbdiff.training.step import TrainingStep

STATS = ClassStats(("a", "b", "c"), (20, 6, 2))


@dataclass(frozen=True)
class SpaceToDepth(Codec):
    """(B, 1, 16, 16) images <-> (B, 4, 8, 8): the four pixels of a 2 x 2 square become channels."""

    name = "space-to-depth"
    image, shape, bound = (1, 16, 16), (4, 8, 8), 1.0

    def encode(self, stored: Tensor, noise: Tensor | None = None) -> Tensor:
        return F.pixel_unshuffle(stored.float() / 127.5 - 1, 2)

    def pixels(self, z: Tensor) -> Tensor:
        return F.pixel_shuffle(z, 2)


def dit(kind: str) -> DiffusionModel:
    process, codec = PROCESSES[kind], SpaceToDepth()
    name, config, _ = BACKBONES["dit-tiny"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        backbone = DiTBackbone(codec.shape, STATS.num_classes, dict(config))
    return DiffusionModel(ModelSpec(name, config, (1, 16, 16), process.to_json(), STATS, codec), backbone, process)


def images(n: int = 8) -> tuple[Tensor, Tensor]:
    """Bright bars, one place per class."""
    labels = torch.arange(n) % 3
    out = torch.full((n, 1, 16, 16), 20, dtype=torch.uint8)
    for i, y in enumerate(labels.tolist()):
        out[i, :, 5 * y : 5 * y + 4] = 230
    return out, labels


def test_the_codec_is_exact() -> None:
    pixels, _ = images()
    assert torch.equal(SpaceToDepth().decode(SpaceToDepth().encode(pixels)), pixels)


def test_it_learns_and_generates() -> None:
    model = dit("ddpm-v")
    objectives: list[Objective] = [Denoising(), ClassBalancing(weight=0.1), Dispersive(weight=0.1, tap="block1")]
    step = TrainingStep({"model": model}, objectives)
    pixels, labels = images()
    batch = noisy_batch(
        model.codec.encode(pixels), labels, process=model.process, stats=STATS, seed=0, step=0, draws=step.draws()
    )
    optimizer = torch.optim.Adam(step.parameters(), 2e-3)
    losses = []
    for i in range(8):
        out = step({"main": batch})
        optimizer.zero_grad()
        out["loss"].backward()
        if i == 0:  # data parallelism needs every parameter to take part
            assert [n for n, p in step.named_parameters() if p.requires_grad and p.grad is None] == []
            assert step.usage.passes == 1
            assert (step.usage.rows, step.usage.predicted_rows) == (16, 16)
        optimizer.step()
        losses.append(float(out["denoising/mse"]))
    assert losses[-1] < 0.9 * losses[0]

    step.eval()
    guidance = ClassifierFree(1.0, model.null, model.process)
    drawn = generate(model, [0, 1, 2], [5, 6, 7], steps=3, guidance=guidance, batch_size=3)
    assert drawn.shape == (3, 16, 16, 1)
    assert drawn.dtype == np.uint8
    assert drawn.std() > 0
