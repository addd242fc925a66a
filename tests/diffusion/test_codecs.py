"""Codecs: what every one of them must do, and model spaces that are not pixels through the whole of generating."""

from __future__ import annotations

import copy
import os
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from imbdiff.diffusion.codec import Codec, IdentityCodec
from imbdiff.diffusion.codecs.patch import LEAST_STD, PatchCodec
from imbdiff.diffusion.generate import generate
from imbdiff.diffusion.model import ModelSpec, build_model
from imbdiff.diffusion.process import PROCESSES
from imbdiff.diffusion.saved import load_model, save_model, save_tensors, saved_identity
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


def gentle(channels: int, height: int, width: int, n: int = 200) -> np.ndarray:
    """(n, height, width, channels) uint8: smooth images with a little noise, well within the range of 8 bits."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    a, b, c = rng.normal(size=(3, n, 1, 1, channels))
    smooth = 128 + 12 * (a + b * y[..., None] / height + c * x[..., None] / width)
    return (smooth + rng.normal(0, 2, (n, height, width, channels))).round().clip(0, 255).astype(np.uint8)


def as_batch(images: np.ndarray) -> Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2)


@pytest.mark.parametrize(("process", "sampler"), PAIRS)
def test_every_codec_with_every_sampler_reaches_the_known_answer(process: str, sampler: str) -> None:
    """Classes N(mu, sd^2) with the perfect network: in pixels within [-1, 1], in the wide space far outside."""
    steps = 100 if sampler in ("ddpm", "ddim") else 25
    pixels, lossless = IdentityCodec((1, 4, 4)), PatchCodec.fit(gentle(1, 4, 4), 2)
    narrow, far = (0.3, -0.2, 0.1), (3.0, -2.0, 1.0)
    for codec, means, sd in ((pixels, narrow, 0.1), (Wide(), far, 0.5), (lossless, (1.5, -1.2, 0.5), 0.2)):
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


# -- the patch codec


@pytest.mark.parametrize(("shape", "factor"), [((3, 16, 16), 4), ((1, 16, 16), 2), ((3, 13, 18), 4), ((3, 16, 16), 8)])
def test_with_all_components_images_come_back_exactly(shape: tuple[int, int, int], factor: int) -> None:
    """Sides that are no multiples of the block, too; and images unlike those that it was fitted on."""
    codec = PatchCodec.fit(gentle(*shape), factor, channels=shape[0] * factor**2)
    other = torch.randint(0, 256, (70, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    z = codec.encode(codec.store(other))
    assert z.dtype == torch.float32
    assert z.shape[1:] == codec.shape
    assert torch.equal(codec.decode(z), other)
    assert torch.equal(codec.encode(other[3:4])[0], z[3])
    assert torch.equal(codec.decode(z[3:4])[0], other[3])


def test_it_is_whitened_principal_components() -> None:
    """Against numpy's covariance of the blocks, cut out one by one."""
    images = gentle(3, 16, 16)
    codec = PatchCodec.fit(images, 4, 10)
    blocks = np.array([
        image[i : i + 4, j : j + 4].transpose(2, 0, 1).ravel() / 127.5 - 1
        for image in images for i in range(0, 16, 4) for j in range(0, 16, 4)
    ])  # fmt: skip
    values = np.sort(np.linalg.eigvalsh(np.cov(blocks.T, bias=True)))[::-1]
    np.testing.assert_allclose(codec.std.double() ** 2, np.maximum(values[:10], LEAST_STD**2), rtol=1e-4)
    np.testing.assert_allclose(codec.mean, blocks.mean(0), atol=1e-6)
    z = codec.encode(as_batch(images)).permute(1, 0, 2, 3).flatten(1)
    torch.testing.assert_close(torch.cov(z, correction=0), torch.eye(10), atol=2e-3, rtol=0)
    error = (codec.pixels(codec.encode(as_batch(images))) - (as_batch(images) / 127.5 - 1)).double()
    assert codec.psnr == pytest.approx(float(-10 * torch.log10((error**2).mean() / 4)), abs=0.05)
    torch.testing.assert_close(codec.basis.T @ codec.basis, torch.eye(10), atol=1e-5, rtol=0)  # white stays white
    constant = PatchCodec.fit(np.full((4, 8, 8, 3), 90, np.uint8), 4)
    assert constant.encode(torch.full((1, 3, 8, 8), 90, dtype=torch.uint8)).abs().max() < 1e-2


def test_it_is_saved_with_the_model_and_part_of_its_identity(tmp_path: Path) -> None:
    codec = PatchCodec.fit(gentle(3, 16, 16), 4)
    assert codec == PatchCodec.fit(gentle(3, 16, 16), 4)
    assert codec != PatchCodec.fit(gentle(3, 16, 16, 100), 4)
    model = build_model("unet-8", PROCESSES["flow"], (3, 16, 16), STATS, codec=codec).eval()
    save_model(model, tmp_path)
    assert load_model(tmp_path).codec == codec
    assert generate(model, [0, 1], [0, 1], steps=2, batch_size=2).shape == (2, 16, 16, 3)
    identity = saved_identity(tmp_path)
    other = PatchCodec.fit(gentle(3, 16, 16, 100), 4)
    save_tensors(other.tensors(), tmp_path / "codec.safetensors")
    assert saved_identity(tmp_path) != identity
    (tmp_path / "codec.safetensors").unlink()
    with pytest.raises(RunError, match=r"codec\.safetensors"):
        load_model(tmp_path)
    with pytest.raises(ConfigError, match="48 values"):
        PatchCodec.fit(gentle(3, 16, 16), 4, 49)


@pytest.mark.skipif("IMBDIFF_DATA" not in os.environ, reason="needs the skin lesions")
@pytest.mark.parametrize(("factor", "channels", "least"), [(4, 4, 30.0), (4, 16, 38.0), (8, 32, 36.0)])
def test_real_photographs_keep_their_detail(factor: int, channels: int, least: float) -> None:
    with zipfile.ZipFile(Path(os.environ["IMBDIFF_DATA"]) / "skin_lesions_224.zip") as archive:
        names = [name for name in sorted(archive.namelist()) if name.endswith((".jpg", ".png"))][::12][:64]
        images = np.stack([
            np.asarray(Image.open(BytesIO(archive.read(name))).convert("RGB").resize((128, 128))) for name in names
        ])  # fmt: skip
    codec = PatchCodec.fit(images[::2], factor, channels)
    new = as_batch(images[1::2])
    error = (codec.decode(codec.encode(new)).double() - new.double()).square().mean()
    assert float(10 * torch.log10(255**2 / error)) > least
