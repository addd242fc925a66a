"""The feature store and reference folders: extracted once, continued, and never taken for other images' features."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imbdiff.data.imageset import ImageSet
from imbdiff.metrics import features as features_module
from imbdiff.metrics.extractors import Extractor, RandomConv
from imbdiff.metrics.features import FeatureStore, is_reference, load_reference, make_reference
from imbdiff.runtime.errors import ConfigError, DataError, RunError


class Counting(Extractor):
    """Mean and maximum of an image; counts the images it has seen."""

    name, fingerprint, role, dim = "counting", "f" * 64, "judge", 2

    def __init__(self, fail_after: int | None = None) -> None:
        self.seen, self.fail_after = 0, fail_after

    def check(self, shape: tuple[int, ...]) -> None: ...

    def _batch(self, x: np.ndarray) -> np.ndarray:
        if self.fail_after is not None and self.seen >= self.fail_after:
            raise KeyboardInterrupt
        self.seen += len(x)
        z = x.astype(np.float32).reshape(len(x), -1)
        return np.stack([z.mean(1), z.max(1)], axis=1)


def _set(n: int = 50, seed: int = 0, low: int = 0) -> ImageSet:
    g = np.random.default_rng(seed)
    labels = np.sort(g.integers(0, 3, n))
    return ImageSet(g.integers(low, 256, (n, 6, 6, 1), dtype=np.uint8), labels, ("a", "b", "c"))


def test_extracted_once_and_never_taken_for_other_images_or_weights(tmp_path: Path) -> None:
    images, e, store = _set(), Counting(), FeatureStore(tmp_path, batch_size=8)
    first = store.features(images, e)
    np.testing.assert_array_equal(FeatureStore(tmp_path, batch_size=16).features(images, e), first)
    assert e.seen == 50
    np.testing.assert_array_equal(first[:, 0], images.images.reshape(50, -1).astype(np.float32).mean(1))
    store.features(_set(seed=1), e)
    assert e.seen == 100
    p = np.random.default_rng(0).permutation(50)
    np.testing.assert_array_equal(store.features(images.select(p), e), first[p])
    assert e.seen == 150
    e.fingerprint = "0" * 64
    store.features(images, e)
    assert e.seen == 200


def test_a_damaged_or_swapped_file_is_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store, e = FeatureStore(tmp_path, batch_size=8), Counting()
    good = np.array(store.features(_set(), e))
    (path,) = tmp_path.glob("*.npz")
    FeatureStore(tmp_path / "other").features(_set(seed=5), e)
    (foreign,) = (tmp_path / "other").glob("*.npz")
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[whole.index(good.tobytes()) + 9] ^= 1
    for damaged in (whole[:-4], bytes(flipped), foreign.read_bytes()):
        before = e.seen
        path.write_bytes(damaged)
        np.testing.assert_array_equal(store.features(_set(), e), good)
        assert e.seen == before + 50
        assert "damaged" in caplog.text


def test_an_extraction_that_was_stopped_or_had_no_space_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features_module, "BLOCK", 8)
    store = FeatureStore(tmp_path, batch_size=8)
    with pytest.raises(KeyboardInterrupt):
        store.features(_set(), Counting(fail_after=16))

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", full)
        with pytest.raises(RunError, match="no space left while writing"):
            store.features(_set(), Counting())
    rest = Counting()
    seen: list[tuple[int, int]] = []
    found = store.features(_set(), rest, lambda done, n: seen.append((done, n)))
    assert rest.seen == 50 - 16
    assert seen[-1] == (50, 50)
    np.testing.assert_array_equal(found, FeatureStore().features(_set(), Counting()))
    assert not [p for p in tmp_path.iterdir() if p.suffix != ".npz"]


TWO = """
import sys, pathlib, torch, numpy as np
torch.distributed.init_process_group("gloo")
rank = torch.distributed.get_rank()
from imbdiff.metrics import features
from imbdiff.metrics.features import FeatureStore
from imbdiff.runtime.dist import Dist
from tests.metrics.test_features import Counting, _set
features.BLOCK = 8
dist, root = Dist.current(), pathlib.Path(sys.argv[1])
images, alone = _set(51), FeatureStore().features(_set(51), Counting())
e = Counting()
for folder in (None, root / "shared", root / f"own-{rank}"):
    e.seen = 0
    rows = FeatureStore(folder, 8, dist).features(images, e)
    assert np.array_equal(rows, alone), (rank, folder)
    assert e.seen == (32 if rank == 0 else 19), e.seen  # whole blocks
    torch.distributed.barrier()
    if folder is not None:
        e.seen = 0
        again = FeatureStore(folder, 8, dist).features(images, e)
        assert np.array_equal(again, alone) and e.seen == 0
torch.distributed.destroy_process_group()
"""


def test_two_processes_share_the_work_and_a_folder_or_not(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    (tmp_path / "two.py").write_text(TWO)
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{root / 'src'}{os.pathsep}{root}"}
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*start, str(tmp_path / "two.py"), str(tmp_path)]
    done = subprocess.run(command, env=env, cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]


def test_features_that_are_not_finite_name_the_image(tmp_path: Path) -> None:
    class Broken(Counting):
        def _batch(self, x: np.ndarray) -> np.ndarray:
            z = super()._batch(x)
            z[x.reshape(len(x), -1).max(1) == 0] = np.nan
            return z

    images = _set(low=1)
    images.images[17] = 0
    with pytest.raises(DataError, match="image '17'"):
        FeatureStore(tmp_path, batch_size=8).features(images, Broken())
    assert not list(tmp_path.glob("*.npz"))


def test_reference_folder_gives_the_same_features(tmp_path: Path) -> None:
    images, e = _set(), RandomConv(1)
    folder = make_reference(images, [e, Counting()], tmp_path / "ref", name="my test")
    assert is_reference(folder)
    assert not is_reference(tmp_path)
    stored = load_reference(folder)
    assert (stored.name, stored.class_names, stored.shape, len(stored)) == ("my test", ("a", "b", "c"), (6, 6, 1), 50)
    assert stored.hashes == images.hashes
    np.testing.assert_array_equal(FeatureStore().features(stored, e), FeatureStore().features(images, e))
    with np.load(folder / "random-conv.moments.npz") as z:
        x = e.features(images).astype(np.float64)
        np.testing.assert_allclose(z["mu"], x.mean(0), rtol=1e-12)
        np.testing.assert_allclose(z["sigma"], np.cov(x, rowvar=False), rtol=1e-10, atol=1e-16)


def test_reference_of_other_weights_or_altered_is_refused(tmp_path: Path) -> None:
    images, e = _set(), RandomConv(1)
    folder = make_reference(images, [e], tmp_path / "ref", name="my test")
    stored = load_reference(folder)
    with pytest.raises(DataError, match="no features of this counting, but those of random-conv"):
        stored.stored(Counting())
    with pytest.raises(DataError, match="other weights"):
        stored.stored(RandomConv(1, seed=1))
    data = bytearray((folder / "random-conv.npy").read_bytes())
    data[-1] ^= 1
    (folder / "random-conv.npy").write_bytes(bytes(data))
    with pytest.raises(DataError, match="is not what"):
        stored.stored(e)
    record: dict[str, Any] = json.loads((folder / "reference.json").read_text())
    for key, value in (
        ("labels", record["labels"][:-1]), ("labels", [9] * 50), ("format", 2), ("shape", None), ("shape", [8, 8]),
        ("shape", ["8", "8", "1"]), ("extractors", [1]), ("extractors", {"a": {}}), ("size", "8 wide"),
        ("hashes", [1] * 50),
    ):  # fmt: skip
        (folder / "reference.json").write_text(json.dumps({**record, key: value}))
        with pytest.raises(DataError, match="no usable reference"):
            load_reference(folder)


def test_reference_refuses_other_things_and_other_images_before_any_work(tmp_path: Path) -> None:
    images, e = _set(), Counting()
    (tmp_path / "x").write_text("mine")
    with pytest.raises(RunError, match="not a reference folder"):
        make_reference(images, [e], tmp_path, name="r")
    with pytest.raises(DataError, match="two images"):
        make_reference(_set(1), [e], tmp_path / "r", name="r")
    with pytest.raises(DataError, match="3 channels"):
        make_reference(images, [e, RandomConv(3)], tmp_path / "r", name="r")
    with pytest.raises(ConfigError, match="two extractors have one name: counting"):
        make_reference(images, [e, Counting()], tmp_path / "r", name="r")
    assert e.seen == 0
    assert not (tmp_path / "r").exists()
    make_reference(images, [e], tmp_path / "r", name="mine", size=6, resize="pad")
    stored = load_reference(tmp_path / "r")
    assert (stored.size, stored.resize) == (6, "pad")
    make_reference(images, [e], tmp_path / "r", name="mine")  # the same again
    seen = e.seen
    with pytest.raises(RunError, match=r"reference of other images \(mine: 50 images\)"):
        make_reference(_set(seed=1), [e], tmp_path / "r", name="other")
    assert e.seen == seen
