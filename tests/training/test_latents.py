"""Training on latents: which are taken, and that training never runs the autoencoder."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from imbdiff.config import TrainConfig
from imbdiff.data.augment import Augmentation
from imbdiff.data.geometric import Geometric
from imbdiff.data.imageset import ImageSet
from imbdiff.data.latents import latents
from imbdiff.data.stats import Groups
from imbdiff.diffusion.codec import Codec
from imbdiff.diffusion.codecs import autoencoder
from imbdiff.diffusion.model import DiffusionModel, build_model
from imbdiff.diffusion.process import PROCESSES
from imbdiff.objectives.denoising import Denoising
from imbdiff.runtime.dist import Dist
from imbdiff.runtime.errors import ConfigError
from imbdiff.runtime.streams import torch_rng
from imbdiff.training.parts import Batches, Part
from imbdiff.training.step import TrainingStep
from tests.diffusion.vae import pictures, save_vae

SIZE = 8


@pytest.fixture(scope="module", params=["AutoencoderKL", "AutoencoderTiny"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[ImageSet, Codec]:
    x = pictures(40).permute(0, 2, 3, 1).numpy()
    images = ImageSet(x, np.arange(40) % 3, ("a", "b", "c"), tuple(map(str, range(40))))
    folder = save_vae(tmp_path_factory.mktemp("vae"), request.param)
    codec = autoencoder.open_autoencoder(folder, (3, 16, 16))
    return images, codec.whitened(latents(images, codec, Augmentation("turns"), cache="off")[0])


def batches(world: tuple[ImageSet, Codec], dist: Dist | None = None, **options: object) -> Batches:
    images, codec = world
    model: DiffusionModel = build_model("mlp", PROCESSES["flow"], (3, 16, 16), images.stats, codec=codec)
    config = TrainConfig(batch_size=SIZE, accumulate=2)
    options = {"augmentation": Augmentation("turns"), **options}
    return Batches(
        TrainingStep({"model": model}, [Denoising()]), [Part()], images, Groups.default(images.stats), config,
        device=torch.device("cpu"), seed=5, dist=dist, **options,
    )  # fmt: skip


@pytest.mark.parametrize("cache", ["off", "kept"])
def test_a_batch_is_what_encoding_its_changed_images_gives(world, cache, tmp_path, monkeypatch):
    images, codec = world
    monkeypatch.setenv("IMBDIFF_CACHE", "off" if cache == "off" else str(tmp_path))
    made = batches(world)
    # from here on the autoencoder is not there
    with monkeypatch.context() as m:
        m.setattr(autoencoder, "_load", None)
        found = [made(step, micro)["main"] for step in range(3) for micro in range(2)]
    for n, batch in enumerate(found):
        step, share = n // 2, slice(n % 2 * 4, n % 2 * 4 + 4)
        index = made.parts[0].indices(step)[0]
        drawn = Augmentation("turns").draw(SIZE, torch_rng(5, "augment", "main", step))
        x = torch.from_numpy(images.images[index]).permute(0, 3, 1, 2)
        noise = torch.randn((SIZE, *codec.shape), generator=torch_rng(5, "codec", "main", step))
        want = codec.encode(codec.store(Augmentation("turns").apply(x, drawn)), noise)
        assert torch.equal(batch.x0, want[share])
        assert batch.labels.tolist() == images.labels[index][share].tolist()
    variants = {tuple(row.tolist()) for batch in found for row in batch.x0[:, :, 0, 0]}
    assert len(variants) > 15


def test_two_processes_see_the_batch_of_one(world, tmp_path, monkeypatch):
    monkeypatch.setenv("IMBDIFF_CACHE", str(tmp_path))

    class Half(Dist):
        def barrier(self) -> None:
            pass

    whole = [batches(world)(0, micro)["main"].x0 for micro in range(2)]
    halves = []
    for rank in range(2):
        halves += [batches(world, Half(rank, 2))(0, micro)["main"].x0 for micro in range(2)]
    assert torch.equal(torch.cat(whole), torch.cat(halves))


@pytest.mark.parametrize(
    ("options", "why"),
    [({"geometric": Geometric()}, "rotated"), ({"augmentation": Augmentation("mirror", shift=2)}, "shifted")],
)
def test_changes_that_latents_cannot_take_are_refused_before_anything_is_encoded(world, options, why, monkeypatch):
    monkeypatch.setattr(autoencoder, "_load", None)
    with pytest.raises(ConfigError, match=why) as error:
        batches(world, **options)
    assert error.value.remedy
