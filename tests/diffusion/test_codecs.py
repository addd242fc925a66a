"""Codecs: what every one of them must do, and model spaces that are not pixels through the whole of generating."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from imbdiff.diffusion.codec import Codec, IdentityCodec
from imbdiff.diffusion.generate import generate
from imbdiff.diffusion.model import ModelSpec, build_model
from imbdiff.diffusion.process import PROCESSES
from imbdiff.diffusion.saved import load_model, save_model
from imbdiff.diffusion.schedulers import SAMPLERS, make_scheduler
from imbdiff.runtime.errors import ConfigError, RunError
from tests.diffusion.worlds import STATS, draw, gaussian_model, standard_normal

PAIRS = [(p, s) for p in PROCESSES for s in SAMPLERS if (s == "euler") == (p == "flow") or (p, s[0]) == ("flow", "u")]
PAIRS += [("flow", "dpm++")]
WIDE = [(p, s) for p, s in PAIRS if p != "ddpm-cosine"]


class Wide(Codec):
    """Pixels times five: a model space that reaches beyond [-1, 1]."""

    name = "wide"
    image = shape = (1, 4, 4)

    def encode(self, stored: Tensor, noise: Tensor | None = None) -> Tensor:
        return 5 * IdentityCodec(self.image).encode(stored)

    def pixels(self, z: Tensor) -> Tensor:
        return z / 5


@pytest.mark.parametrize(("process", "sampler"), PAIRS)
def test_every_codec_with_every_sampler_reaches_the_known_answer(process: str, sampler: str) -> None:
    """Classes N(mu, sd^2) with the perfect network: in pixels within [-1, 1], in the wide space far outside."""
    steps = 100 if sampler in ("ddpm", "ddim") else 25
    for codec, means, sd in ((IdentityCodec((1, 4, 4)), (0.3, -0.2, 0.1), 0.1), (Wide(), (3.0, -2.0, 1.0), 0.5)):
        if codec.bound is None and process == "ddpm-cosine":
            continue
        model = gaussian_model(PROCESSES[process], means, sd, codec)
        images = generate(model, [0] * 24 + [1] * 24, range(48), sampler=sampler, steps=steps, batch_size=48)
        values = codec.encode(torch.from_numpy(images).permute(0, 3, 1, 2)).reshape(2, -1)
        for found, mean in zip(values, means, strict=False):
            assert float(found.mean()) == pytest.approx(mean, abs=0.4 * sd), codec.name
            assert float(found.std()) == pytest.approx(sd, rel=0.35), codec.name


@pytest.mark.parametrize(("process", "sampler"), WIDE)
def test_a_small_error_stays_small_without_clipping(process: str, sampler: str) -> None:
    right, off = (
        draw(sampler, PROCESSES[process], 20, standard_normal(), 0.0, 1.0, bound=None, error=error)
        for error in (0, 0.01)
    )
    assert 0 < abs(float((off - right).mean())) < 0.07


def test_eps_on_the_cosine_schedule_needs_clipping() -> None:
    """The same error moved the mean by 15; refused, and the remedy works."""
    with pytest.raises(ConfigError, match="no such bound"):
        make_scheduler("ddim", PROCESSES["ddpm-cosine"], 20, None)
    for remedy in ("ddpm-cosine-v", "flow"):
        make_scheduler("dpm++", PROCESSES[remedy], 20, None)


def test_decoding_refuses_numbers_that_are_none_by_row() -> None:
    z = torch.zeros(5, 1, 4, 4)
    z[3, 0, 2, 1] = float("nan")
    with pytest.raises(RunError, match="rows 3"):
        IdentityCodec((1, 4, 4)).decode(z)


def test_a_model_names_its_codec_and_one_that_names_none_has_pixels(tmp_path: Path) -> None:
    model = build_model("mlp", PROCESSES["flow"], (1, 4, 4), STATS).eval()
    assert not any("codec" in name for name, _ in model.named_modules())
    assert copy.deepcopy(model).codec == model.codec
    save_model(model, tmp_path)
    assert load_model(tmp_path).codec == IdentityCodec((1, 4, 4))
    described: dict[str, Any] = model.spec.to_json()
    assert described.pop("codec")["kind"] == "identity"
    assert ModelSpec.from_json(described).codec == IdentityCodec((1, 4, 4))
    with pytest.raises(ConfigError, match="unknown codec"):
        ModelSpec.from_json({**described, "codec": {"kind": "nothing"}})
    assert isinstance(model, nn.Module)
    assert np.asarray(generate(model, [0], [0], steps=2)).shape == (1, 4, 4, 1)
