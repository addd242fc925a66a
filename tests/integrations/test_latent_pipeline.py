"""Pipelines of latents, as diffusers' own DiTPipeline has them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DiTPipeline, DiTTransformer2DModel

from imbdiff.data.stats import ClassStats
from imbdiff.diffusion.generate import generate
from imbdiff.diffusion.guidance import ClassifierFree
from imbdiff.diffusion.process import PROCESSES
from imbdiff.diffusion.saved import load_model, save_model
from imbdiff.integrations.pipeline import from_diffusers, scheduler_for
from imbdiff.runtime.errors import RunError
from imbdiff.runtime.streams import torch_rng
from tests.diffusion.vae import save_vae

STATS = ClassStats(tuple(f"class {i}" for i in range(1000)), tuple(range(1001, 1, -1)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small one laid out as facebook/DiT-XL-2-256: 1,000 classes and a null label, a learned variance."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = DiTTransformer2DModel(
            num_attention_heads=2, attention_head_dim=8, num_layers=2, patch_size=2, sample_size=4, in_channels=4,
            out_channels=8, num_embeds_ada_norm=1000, dropout=0.0,
        )  # fmt: skip
        for p in net.parameters():  # the layers that begin at zero would hide labels
            torch.nn.init.normal_(p, std=0.2)
    vae = AutoencoderKL.from_pretrained(save_vae(tmp_path / "vae"))
    pipe = DiTPipeline(net, vae, scheduler_for(PROCESSES["ddpm"], "ddim", None))
    pipe.save_pretrained(tmp_path / "pipe")
    return tmp_path / "pipe"


def test_its_images_are_those_of_diffusers(folder, tmp_path):
    labels, seeds = [3, 999, 40], [5, 6, 7]
    pipe = DiTPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    with torch.no_grad():
        want = pipe(
            class_labels=labels, guidance_scale=2.5, num_inference_steps=6, output_type="np",
            generator=[torch_rng(seed, "image") for seed in seeds],
        ).images  # fmt: skip
    model = from_diffusers(folder, stats=STATS)
    assert model.spec.shape == (3, 16, 16)
    save_model(model, tmp_path / "saved")
    for one in (model, load_model(tmp_path / "saved")):
        found = generate(
            one,
            labels,
            seeds,
            sampler="ddim",
            steps=6,
            guidance=ClassifierFree(1.5, one.null, one.process),
            batch_size=3,
        )
        assert found.shape == (3, 16, 16, 3)
        assert np.abs(found / 255 - want).max() < 1.6 / 255
    assert np.abs(want[0] - want[1]).max() > 0.05


def test_what_is_missing_or_does_not_fit_is_refused(folder):
    vae = folder / "vae"
    config = (vae / "config.json").read_text()
    (vae / "config.json").write_text(config.replace('"latent_channels": 4', '"latent_channels": 8'))
    with pytest.raises(RunError, match="8 channels"):
        from_diffusers(folder, stats=STATS)
    (vae / "config.json").unlink()
    with pytest.raises(RunError, match="vae"):
        from_diffusers(folder, stats=STATS)
