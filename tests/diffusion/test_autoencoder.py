"""The codec "vae", with autoencoders made here from a configuration, and with a pretrained one where there is one."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from imbdiff.data.augment import Augmentation
from imbdiff.data.imageset import ImageSet
from imbdiff.data.latents import latents
from imbdiff.data.stats import ClassStats
from imbdiff.diffusion.codecs.autoencoder import AutoencoderCodec, open_autoencoder
from imbdiff.diffusion.model import build_model
from imbdiff.diffusion.process import PROCESSES
from imbdiff.diffusion.saved import load_model, save_model
from imbdiff.runtime.errors import ConfigError, RunError
from tests.diffusion.vae import KINDS, pictures, save_vae

TAESD = Path(os.environ.get("IMBDIFF_DATA", "")) / "taesd"


@pytest.fixture
def kl(tmp_path):
    return save_vae(tmp_path / "vae", "AutoencoderKL")


@pytest.mark.parametrize("kind", KINDS)
def test_the_steps_are_those_of_diffusers(tmp_path, kind):
    import diffusers

    codec = open_autoencoder(save_vae(tmp_path, kind), (3, 16, 24))
    net = getattr(diffusers, kind).from_pretrained(tmp_path).eval()
    x = pictures(5, (16, 24))
    stored = codec.store(x)
    assert stored.dtype == torch.float16
    assert stored.shape == (5, *codec.stored)
    with torch.no_grad():
        found = net.encode(x.float() / 127.5 - 1)
        z = found.latent_dist.mean if kind == "AutoencoderKL" else found[0]
        assert codec.shape == tuple(z.shape[1:])
        assert torch.allclose(codec.encode(stored), z, atol=2e-3)
        images = ((net.decode(codec.encode(stored)).sample + 1) * 127.5).clamp(0, 255)
    assert (codec.decode(codec.encode(stored)).float() - images).abs().max() <= 0.51
    assert codec.random == (kind == "AutoencoderKL")
    assert codec.bound is None
    assert codec.symmetries == "cached"


def test_an_encoding_is_a_sample_of_the_posterior(kl):
    codec = open_autoencoder(kl, (3, 16, 16))
    stored = codec.store(pictures(2)[:1]).expand(4000, -1, -1, -1)
    z = codec.encode(stored, torch.randn(4000, *codec.shape, generator=torch.Generator().manual_seed(0)))
    mean, std = stored[0, :4].float(), stored[0, 4:].float().exp()
    assert torch.allclose(z.mean(0), mean, atol=0.08 * float(std.max()))
    assert torch.allclose(z.std(0), std, rtol=0.08)


@pytest.mark.parametrize("kind", KINDS[:2])
def test_whitened_latents_have_mean_0_and_variance_1(tmp_path, kind):
    codec = open_autoencoder(save_vae(tmp_path / "vae", kind), (3, 16, 16))
    x = pictures(60)
    images = ImageSet(x.permute(0, 2, 3, 1).numpy(), np.zeros(60, np.int64), ("a",))
    rows, count = latents(images, codec, Augmentation("mirror"), cache=tmp_path, quiet=True)
    white = codec.whitened(rows)
    stored = torch.from_numpy(np.asarray(rows)).permute(0, 3, 1, 2)
    z = white.encode(stored, torch.randn(len(stored), *white.shape, generator=torch.Generator().manual_seed(0)))
    assert count == 2
    assert z.mean((0, 2, 3)).abs().max() < 0.05
    assert (z.std((0, 2, 3)) - 1).abs().max() < 0.05
    same = white.decode(white.encode(stored)).int() - codec.decode(codec.encode(stored)).int()
    assert same.abs().max() <= 1
    assert white.fingerprint == codec.fingerprint  # the cache is of both


def test_no_image_depends_on_its_neighbours(kl):
    codec = open_autoencoder(kl, (3, 16, 16))
    object.__setattr__(codec, "__class__", type("Small", (AutoencoderCodec,), {"chunk": 4}))
    x = pictures(11).contiguous(memory_format=torch.channels_last)
    stored = codec.store(x)
    assert torch.equal(torch.cat([codec.store(x[i : i + 1]) for i in range(11)]), stored)
    images = codec.decode(codec.encode(stored))
    assert torch.equal(torch.cat([codec.decode(codec.encode(stored[i : i + 1])) for i in range(11)]), images)


def test_batches_are_bounded():
    pixels = {
        side: AutoencoderCodec((3, side, side), "", "", {}, (), (), Path()).chunk * side**2 for side in (64, 224, 512)
    }
    assert max(pixels.values()) <= 512 * 512
    assert all(pixels.values())


def test_grey_images_are_repeated_and_turned_back(kl):
    grey = pictures(3)[:, :1]
    codec, colour = open_autoencoder(kl, (1, 16, 16)), open_autoencoder(kl, (3, 16, 16))
    stored = codec.store(grey)
    assert torch.equal(stored, colour.store(grey.expand(-1, 3, -1, -1)))
    images = codec.decode(codec.encode(stored))
    assert images.shape == (3, 1, 16, 16)
    with torch.no_grad():
        want = (colour.pixels(colour.encode(stored)).mean(1, keepdim=True) + 1) * 127.5
    assert (images - want).abs().max() <= 0.51
    assert "grey" in codec.notes[0]
    assert not colour.notes


def model_with(codec):
    stats = ClassStats(("a", "b"), (7, 3))
    return build_model("dit-tiny", PROCESSES["flow"], codec.image, stats, codec=codec).eval()


def test_it_is_no_part_of_the_model_and_shared_by_copies(kl):
    codec = open_autoencoder(kl, (3, 16, 16))
    model = model_with(codec)
    assert not [name for name, _ in model.named_parameters() if "codec" in name]
    assert copy.deepcopy(model).codec is codec


def test_a_saved_model_works_where_the_autoencoder_is_gone(tmp_path, kl):
    codec = open_autoencoder(kl, (3, 16, 16))
    images = ImageSet(pictures(9).permute(0, 2, 3, 1).numpy(), np.zeros(9, np.int64), ("a",))
    codec = codec.whitened(latents(images, codec, Augmentation(), cache="off")[0])
    save_model(model_with(codec), tmp_path / "model")
    shutil.rmtree(kl)
    before = torch.get_rng_state()
    loaded = load_model(tmp_path / "model").codec
    stored = codec.store(pictures(2))
    assert torch.equal(loaded.store(pictures(2)), stored)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(loaded.decode(loaded.encode(stored)), codec.decode(codec.encode(stored)))
    assert loaded.fingerprint == codec.fingerprint
    assert loaded == codec
    for damage in (b"damaged", None):
        path = tmp_path / "model" / "codec.safetensors"
        path.unlink() if damage is None else path.write_bytes(damage)
        from imbdiff.diffusion.codecs.autoencoder import _load

        _load.cache_clear()
        with pytest.raises(RunError, match=r"codec\.safetensors"):
            load_model(tmp_path / "model").codec.store(pictures(1))


def test_a_pipelines_folder_is_taken_by_its_vae(tmp_path):
    save_vae(tmp_path / "pipe" / "vae", "AutoencoderTiny")
    (tmp_path / "pipe" / "model_index.json").write_text("{}")
    assert open_autoencoder(tmp_path / "pipe", (3, 16, 16)).kind == "AutoencoderTiny"


def test_weights_change_the_fingerprint_and_so_does_the_size(tmp_path):
    one, other = (save_vae(tmp_path / str(i), "AutoencoderKL", seed=i) for i in range(2))
    found = [open_autoencoder(f, s).fingerprint for f in (one, other) for s in ((3, 16, 16), (3, 32, 32), (1, 16, 16))]
    assert len(set(found)) == 6
    assert open_autoencoder(shutil.copytree(one, tmp_path / "moved"), (3, 16, 16)).fingerprint == found[0]


@pytest.mark.parametrize(
    ("side", "remedies"), [((18, 16), ("16", "24x16")), ((30, 30), ("28", "32")), ((3, 3), ("4",))]
)
def test_sizes_that_do_not_divide_are_refused_with_the_nearest(kl, side, remedies):
    with pytest.raises(ConfigError, match="multiple of 4") as error:
        open_autoencoder(kl, (3, *side))
    given = error.value.remedy.split("--data.size ")[1].split(" or ")
    for size in given:  # the remedy works
        h, _, w = size.partition("x")
        open_autoencoder(kl, (3, int(h), int(w or h)))
    if side == (30, 30):
        assert given == list(remedies)


def test_pickled_weights_are_refused_and_can_be_converted(tmp_path, kl):
    from diffusers import AutoencoderKL

    AutoencoderKL.from_pretrained(kl).save_pretrained(tmp_path / "old", safe_serialization=False)
    assert list((tmp_path / "old").glob("*.bin"))
    with pytest.raises(ConfigError, match="pickled") as error:
        open_autoencoder(tmp_path / "old", (3, 16, 16))
    program = error.value.remedy.split('-c "')[1].split('"')[0].replace("NEW", str(tmp_path / "new"))
    exec(program)
    assert torch.equal(open_autoencoder(tmp_path / "new", (3, 16, 16)).store(pictures(1)),
                       open_autoencoder(kl, (3, 16, 16)).store(pictures(1)))  # fmt: skip


def test_half_precision_weights_compute_in_float32(tmp_path, kl):
    from diffusers import AutoencoderKL

    net = AutoencoderKL.from_pretrained(kl, torch_dtype=torch.float16)
    net.save_pretrained(tmp_path / "half", variant="fp16")
    codec = open_autoencoder(tmp_path / "half", (3, 16, 16))
    assert {p.dtype for p in codec.tensors().values()} == {torch.float32}
    assert torch.allclose(codec.store(pictures(2)), open_autoencoder(kl, (3, 16, 16)).store(pictures(2)), atol=0.05)


def test_what_is_no_autoencoder_is_refused(tmp_path, kl):
    def refused(weights, match, kind=ConfigError):
        with pytest.raises(kind, match=match) as error:
            open_autoencoder(weights, (3, 16, 16)).store(pictures(1))
        assert error.value.remedy
        return error.value

    config = json.loads((kl / "config.json").read_text())
    other = shutil.copytree(kl, tmp_path / "other")
    (other / "config.json").write_text(json.dumps({**config, "_class_name": "UNet2DModel"}))
    refused(other, "UNet2DModel")
    (other / "config.json").unlink()
    refused(other, "config.json")
    refused(kl / "diffusion_pytorch_model.safetensors", "is a file")
    refused(tmp_path / "nowhere", "no folder")
    lacking = shutil.copytree(kl, tmp_path / "lacking")
    (lacking / "diffusion_pytorch_model.safetensors").unlink()
    refused(lacking, "holds no")
    (lacking / "my_vae.safetensors").write_bytes(b"")
    refused(lacking, "my_vae")
    damaged = shutil.copytree(kl, tmp_path / "damaged")
    (damaged / "diffusion_pytorch_model.safetensors").write_bytes(b"\0" * 100)
    refused(damaged, "cannot be loaded", RunError)
    from safetensors.torch import load_file, save_file

    part = load_file(kl / "diffusion_pytorch_model.safetensors")
    part.pop("encoder.conv_in.weight")
    save_file(part, damaged / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    refused(damaged, "lack 1 tensors", RunError)


def test_a_name_on_the_hub_is_refused_at_once_where_it_is_not_in_the_cache(tmp_path, kl):
    """In a process that may reach no network: a connection would fail the test."""
    home = tmp_path / "hub" / "models--stabilityai--sd-vae-ft-mse"
    program = (
        "import shutil, socket, sys, time\n"
        "from pathlib import Path\n"
        "def no(*_): raise SystemExit('a connection was tried')\n"
        "socket.socket.connect = socket.create_connection = socket.getaddrinfo = no\n"
        "from imbdiff.diffusion.codecs.autoencoder import open_autoencoder\n"
        "from imbdiff.runtime.errors import ConfigError\n"
        "began = time.process_time()\n"
        "try: open_autoencoder('stabilityai/sd-vae-ft-mse', (3, 16, 16))\n"
        "except ConfigError as error: print(error)\n"
        "assert time.process_time() - began < 5\n"
        "home = Path(sys.argv[1])\n"
        "shutil.copytree(sys.argv[2], home / 'snapshots' / 'abc')\n"  # as `hf download` leaves it
        "(home / 'refs').mkdir()\n"
        "(home / 'refs' / 'main').write_text('abc')\n"
        "print(open_autoencoder('stabilityai/sd-vae-ft-mse', (3, 16, 16)).shape)\n"
    )
    where = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub")}
    found = subprocess.run(
        [sys.executable, "-c", program, str(home), str(kl)], env=where, capture_output=True, text=True
    )
    assert "hf download stabilityai/sd-vae-ft-mse" in found.stdout, found.stdout + found.stderr
    assert "(4, 4, 4)" in found.stdout, found.stdout + found.stderr


def test_generated_numbers_that_are_not_finite_are_refused(kl):
    codec = open_autoencoder(kl, (3, 16, 16))
    z = torch.zeros(3, *codec.shape)
    z[1, 0, 0, 0] = float("nan")
    with pytest.raises(RunError, match="not finite"):
        codec.decode(z)


@pytest.mark.skipif(not TAESD.exists(), reason="no pretrained autoencoder: set IMBDIFF_DATA")
def test_a_pretrained_one_gives_photographs_back():
    from sklearn.datasets import load_sample_image

    x = torch.from_numpy(load_sample_image("flower.jpg")[120:376, 200:456].copy()).permute(2, 0, 1)[None]
    codec = open_autoencoder(TAESD, (3, 256, 256))
    assert codec.shape == (4, 32, 32)
    y = codec.decode(codec.encode(codec.store(x)))
    psnr = 10 * torch.log10(255**2 / ((x.float() - y.float()) ** 2).mean())
    assert psnr > 21
