"""The latent cache: never stale, never mixed, whatever happens to it."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from imbdiff.data import latents as module
from imbdiff.data.augment import Augmentation
from imbdiff.data.imageset import ImageSet, join
from imbdiff.data.latents import latents
from imbdiff.runtime.errors import DataError


class Halves:
    """Latents from which the image can be read off: every second pixel, divided by `by`."""

    stored = (3, 4, 4)

    def __init__(self, by: float = 8.0) -> None:
        self.by, self.seen = by, 0
        self.fingerprint = f"halves-{by}"

    def store(self, images: torch.Tensor) -> torch.Tensor:
        self.seen += len(images)
        return (images[..., ::2, ::2].float() / self.by).half()


def made(n: int = 20, seed: int = 0) -> ImageSet:
    x = np.random.default_rng(seed).integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)
    return ImageSet(x, np.zeros(n, np.int64), ("a",), tuple(f"{i:03}.png" for i in range(n)))


def expected(images: ImageSet, symmetry: str = "none", by: float = 8.0) -> np.ndarray:
    """By numpy: as it is, mirrored, upside down, both; with turns, the same with rows and columns exchanged."""
    x = np.asarray(images.images)
    out = []
    for one in x:
        flat = [one, one[:, ::-1], one[::-1], one[::-1, ::-1]]
        turned = [
            one.swapaxes(0, 1),
            one.swapaxes(0, 1)[:, ::-1],
            one.swapaxes(0, 1)[::-1],
            one.swapaxes(0, 1)[::-1, ::-1],
        ]
        out += {"none": flat[:1], "mirror": flat[:2], "turns": flat + turned}[symmetry]
    return (np.stack(out)[:, ::2, ::2].astype(np.float32) / by).astype(np.float16)


@pytest.mark.parametrize("symmetry", ["none", "mirror", "turns"])
@pytest.mark.parametrize("cache", ["off", "kept"])
def test_each_variant_is_the_latent_of_the_changed_image(tmp_path, symmetry, cache):
    codec, images = Halves(), made()
    where = cache if cache == "off" else tmp_path
    found, count = latents(images, codec, Augmentation(symmetry), cache=where, batch=7, quiet=True)
    assert np.array_equal(np.asarray(found), expected(images, symmetry))
    # a row that training takes is that of the image as `Augmentation` changes it
    augmentation = Augmentation(symmetry)
    numbers = augmentation.draw(20, torch.Generator().manual_seed(1))
    rows = np.arange(20) * count + augmentation.variant(numbers, count).numpy()
    changed = augmentation.apply(torch.from_numpy(images.images).permute(0, 3, 1, 2), numbers)
    assert np.array_equal(found[rows], Halves().store(changed).permute(0, 2, 3, 1).numpy())


def test_images_that_are_no_square_are_not_exchanged(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (3, 8, 16, 3), dtype=np.uint8)
    codec = Halves()
    codec.stored = (3, 4, 8)
    found, count = latents(ImageSet(x, np.zeros(3, np.int64), ("a",)), codec, Augmentation("turns"), cache=tmp_path)
    assert count == 4
    numbers = Augmentation("turns").draw(50, torch.Generator().manual_seed(0))
    assert set(Augmentation("turns").variant(numbers, 4).tolist()) == {0, 1, 2, 3}
    assert np.array_equal(found[3], (x[0, ::-1, ::-1][::2, ::2] / 8).astype(np.float16))


def test_nothing_is_encoded_twice_and_what_is_new_is(tmp_path):
    images, codec = made(), Halves()
    latents(images, codec, Augmentation(), cache=tmp_path)
    assert codec.seen == 20
    again = Halves()
    found, _ = latents(images.select(range(19, -1, -1)), again, Augmentation(), cache=tmp_path)  # in another order
    assert again.seen == 0
    assert np.array_equal(np.asarray(found), expected(images)[::-1])
    changed = np.array(images.images)
    changed[4, 0, 0] ^= 1  # an edited image
    edited, more = ImageSet(changed, images.labels, ("a",), images.ids), made(3, seed=9)
    both = ImageSet(join([edited.images, more.images]), np.zeros(23, np.int64), ("a",))
    third = Halves()
    found, _ = latents(both, third, Augmentation(), cache=tmp_path)
    assert third.seen == 4
    assert np.array_equal(np.asarray(found), expected(both))
    fourth = Halves()  # the mirrored ones alone are new
    found, _ = latents(images, fourth, Augmentation("mirror"), cache=tmp_path)
    assert fourth.seen == 20
    assert np.array_equal(np.asarray(found), expected(images, "mirror"))


def test_other_weights_have_latents_of_their_own(tmp_path):
    images = made()
    latents(images, Halves(8.0), Augmentation(), cache=tmp_path)
    found, _ = latents(images, Halves(16.0), Augmentation(), cache=tmp_path)
    assert np.array_equal(np.asarray(found), expected(images, by=16.0))


def files(where: Path) -> tuple[Path, Path]:
    return next(where.rglob("latents.f16")), next(where.rglob("journal.u8"))


@pytest.mark.parametrize(
    ("damage", "redone"),
    [("bytes", 1), ("shorter", 17), ("much shorter, few wanted", 0), ("no latents", 20), ("no journal", 20),
     ("a line", 1), ("journal cut off", 8)],
)  # fmt: skip
def test_damage_is_made_good(tmp_path, damage, redone):
    images, size = made(), 4 * 4 * 3 * 2
    latents(images, Halves(), Augmentation(), cache=tmp_path)
    data, journal = files(tmp_path)
    if damage in ("no latents", "no journal"):
        (data if damage == "no latents" else journal).unlink()
    elif "shorter" in damage:
        os.truncate(data, 3 * size + 5)
    elif damage == "journal cut off":
        os.truncate(journal, 32 * 12 + 9)
    else:
        path, at = (data, 15 * size + 7) if damage == "bytes" else (journal, 15 * 32 + 20)
        with open(path, "r+b") as handle:
            handle.seek(at)
            handle.write(bytes(a ^ 255 for a in path.read_bytes()[at : at + 2]))
    wanted = images.select(range(3)) if "few" in damage else images
    codec = Halves()
    found, _ = latents(wanted, codec, Augmentation(), cache=tmp_path)
    assert codec.seen == redone
    assert np.array_equal(np.asarray(found), expected(wanted))


PROGRAM = """
import os, sys
from tests.data.test_latents import *

class Dying:
    def __init__(self, handle): self.handle = handle
    def __enter__(self): return self
    def __exit__(self, *_): self.handle.close()
    def __getattr__(self, name): return getattr(self.handle, name)
    def write(self, data):
        global left
        left -= len(data)
        self.handle.write(data if left >= 0 else data[:left])
        self.handle.flush()
        if left < 0: os.kill(os.getpid(), 9)

for line in sys.stdin:
    left = int(line)
    if not os.fork():
        module.open = lambda path, mode: Dying(open(path, mode)) if mode != "rb" else open(path, mode)
        latents(made(60), Halves(), Augmentation("mirror"), cache=sys.argv[1], batch=3, quiet=True)
        os._exit(0)
    print(os.wait()[1], flush=True)
"""


def test_killed_at_twenty_points(tmp_path):
    """Killed at twenty random bytes that it writes: what the journal has is right, and is not made again."""
    images, want, draw = made(60), expected(made(60), "mirror"), random.Random(0)
    child = subprocess.Popen([sys.executable, "-c", PROGRAM, str(tmp_path)], stdin=-1, stdout=-1, text=True)
    had = []
    for _ in range(20):
        child.stdin.write(f"{draw.randrange(1200)}\n"), child.stdin.flush()
        assert child.stdout.readline() == "9\n"
        where = module._Folder(next(tmp_path.rglob("lock")).parent, (4, 4, 3))
        found = where.find([module._key(key, v) for key in images.hashes for v in range(2)])
        there = found >= 0
        had.append(int(there.sum()))
        if there.any():
            assert np.array_equal(where.stored().take(found[there]), want[there])
    child.stdin.close(), child.stdout.close(), child.wait()
    assert had == sorted(had)
    assert 60 < had[-1] < 120
    codec = Halves()
    found, _ = latents(images, codec, Augmentation("mirror"), cache=tmp_path)
    assert codec.seen == 120 - had[-1]
    assert np.array_equal(np.asarray(found), want)


def test_a_full_disk_keeps_nothing_half(tmp_path, monkeypatch):
    images = made()
    latents(images.select(range(5)), Halves(), Augmentation(), cache=tmp_path)
    data, journal = files(tmp_path)
    before = data.read_bytes(), journal.read_bytes()
    # writing to the journal, which comes second, fails as on a full disk

    def fails(path: Path, mode: str) -> object:
        return open("/dev/full" if path == journal and mode == "r+b" else path, mode)

    monkeypatch.setattr(module, "open", fails, raising=False)
    with pytest.raises(DataError, match="no space left") as error:
        latents(images, Halves(), Augmentation(), cache=tmp_path)
    monkeypatch.undo()
    assert "IMBDIFF_CACHE" in error.value.remedy
    assert (data.read_bytes(), journal.read_bytes()) == before
    found, _ = latents(images, Halves(), Augmentation(), cache="off")  # the remedy
    assert np.array_equal(np.asarray(found), expected(images))


def test_what_does_not_fit_is_refused_before_it_is_encoded(tmp_path, monkeypatch):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    codec = Halves()
    with pytest.raises(DataError, match="do not fit"):
        latents(made(), codec, Augmentation(), cache=tmp_path)
    assert codec.seen == 0


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot keep latents") as error:
        latents(made(), Halves(), Augmentation(), cache=tmp_path / "file")
    assert "IMBDIFF_CACHE" in error.value.remedy
    monkeypatch.setenv("IMBDIFF_CACHE", str(tmp_path / "other"))
    found, _ = latents(made(), Halves(), Augmentation())
    assert np.array_equal(np.asarray(found), expected(made()))
    # one that has all that is wanted is only read
    monkeypatch.setattr(module, "FileLock", None)
    codec = Halves()
    latents(made(), codec, Augmentation())
    assert codec.seen == 0


def test_an_image_whose_latent_is_not_finite_is_named(tmp_path):
    class Broken(Halves):
        def store(self, images):
            z = super().store(images)
            z[images[:, 0, 0, 0] == images.new_tensor(made().images[13, 0, 0, 0])] = float("nan")
            return z

    with pytest.raises(DataError, match=r"013\.png") as error:
        latents(made(), Broken(), Augmentation(), cache=tmp_path, batch=4)
    assert "VAE in fp32" in error.value.remedy
    codec = Halves()
    found, _ = latents(made(), codec, Augmentation(), cache=tmp_path)
    assert codec.seen == 8
    assert np.array_equal(np.asarray(found), expected(made()))
