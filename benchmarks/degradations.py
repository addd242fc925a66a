"""What the distances say of images that are known to be worse: CIFAR-10.

    python benchmarks/degradations.py DATA_FOLDER

10,000 training images (1,000 of each class, by image hash) stand for synthetic ones; the reference is the 10,000 test
images. FD against the test images should be near 0 for the images
as they are, and grow with every step of blur, noise, JPEG compression, dropped classes (measured without labels) and
shuffled labels (measured per class, mean over the classes).

DATA_FOLDER holds cifar10.npz (x_train, y_train, x_test, y_test) or that file's loader.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter
from threadpoolctl import threadpool_limits

from harness import write_result
from imbdiff.data.imageset import ImageSet
from imbdiff.data.nearest import hash_keys
from imbdiff.metrics.extractors import make_extractor
from imbdiff.metrics.features import FeatureStore
from imbdiff.metrics.frechet import frechet
from imbdiff.metrics.kernel import kernel
from imbdiff.metrics.neighbours import neighbour_measures
from imbdiff.metrics.rows import Rows


def cifar10(folder: Path) -> dict[str, np.ndarray]:
    """The arrays x_train, y_train, x_test, y_test; by the folder's own load.py where there is one."""
    loader = folder / "load.py"
    if not loader.exists():
        with np.load(folder / "cifar10.npz") as z:
            return {name: z[name] for name in z.files}
    spec = importlib.util.spec_from_file_location("load", loader)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.load("cifar10")


def blurred(sigma: float) -> Callable[[np.ndarray], np.ndarray]:
    return _each(lambda image: image.filter(ImageFilter.GaussianBlur(sigma)))


def compressed(quality: int) -> Callable[[np.ndarray], np.ndarray]:
    def through(image: Image.Image) -> Image.Image:
        data = io.BytesIO()
        image.save(data, "JPEG", quality=quality)
        return Image.open(data)

    return _each(through)


def noisy(sigma: float) -> Callable[[np.ndarray], np.ndarray]:
    def add(x: np.ndarray) -> np.ndarray:
        noise = np.random.default_rng(0).normal(0, sigma, x.shape)
        return np.clip(np.round(x + noise), 0, 255).astype(np.uint8)

    return add


def _each(change: Callable[[Image.Image], Image.Image]) -> Callable[[np.ndarray], np.ndarray]:
    return lambda x: np.stack([np.asarray(change(Image.fromarray(image))) for image in x])


IMAGES: list[tuple[str, str, Callable[[np.ndarray], np.ndarray]]] = [
    *(("blur", f"sigma {s} pixels", blurred(s)) for s in (0.5, 1.0, 2.0)),
    *(("noise", f"sigma {s} of 255", noisy(s)) for s in (8, 16, 32)),
    *(("JPEG", f"quality {q}", compressed(q)) for q in (90, 50, 10)),
]


def measured(fake: Rows, real: Rows) -> dict[str, Any]:
    """The numbers of one pair of sets, as columns."""
    found = {**frechet(fake, real), **kernel(fake, real), **neighbour_measures(fake, real)}
    row: dict[str, Any] = {}
    for name, e in found.items():
        row[name] = None if e.value is None else float(f"{e.value:.4g}")
        if name in ("FD∞", "KD"):
            row[f"{name} interval"] = None if e.value is None else f"{e.low:.4g} to {e.high:.4g}"
    return row


def per_class(x: np.ndarray, z: np.ndarray, keys: list[str], real: Rows) -> dict[str, Any]:
    """Means over the classes of FD∞ and KD; a class of 1,000 images does not allow FD with 64 features."""
    fake, rows = Rows.of(x, z, hashes=keys), []
    for k in range(10):
        mix = np.eye(10)[k]
        a, b = fake.mixed(mix), real.mixed(mix)
        found = {**frechet(a, b), **kernel(a, b)}
        rows.append([found["FD"].value, found["FD∞"].value, found["KD"].value])
    mean = [None if any(r[i] is None for r in rows) else float(np.mean([r[i] for r in rows])) for i in range(3)]
    return {name: None if v is None else float(f"{v:.4g}") for name, v in zip(("FD", "FD∞", "KD"), mean, strict=True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--per-class", type=int, default=1000)
    parser.add_argument("--extractor", default="inception", help="a name of `imbdiff methods`")
    parser.add_argument("--features", type=Path, help="folder that keeps features for a next time")
    given = parser.parse_args()
    start, d = time.monotonic(), cifar10(given.data)
    judge = make_extractor(given.extractor, (32, 32, 3))
    classes = tuple(map(str, range(10)))
    train, test = (ImageSet(d[f"x_{s}"], d[f"y_{s}"], classes) for s in ("train", "test"))
    # by the hash of the pixels, so that it does not depend on the order of the file
    order = np.lexsort((hash_keys(train.hashes), d["y_train"]))
    rank = np.arange(len(order)) - np.searchsorted(d["y_train"][order], d["y_train"][order])
    rows = order[rank < given.per_class]
    images, labels = d["x_train"][rows], d["y_train"][rows]
    names = [train.hashes[i] for i in rows.tolist()]
    zeros = np.zeros(len(rows), np.int64)
    store = FeatureStore(given.features)
    x_test = store.features(ImageSet(d["x_test"], np.zeros(len(d["x_test"]), np.int64), ("any",)), judge)
    real = Rows.of(x_test, np.zeros(len(x_test), np.int64), hashes=test.hashes)
    real_classes = Rows.of(x_test, d["y_test"], hashes=test.hashes)
    table: list[dict[str, Any]] = []

    def add(what: str, step: str, row: dict[str, Any]) -> None:
        table.append({"what": what, "step": step, **row})
        print(f"{time.monotonic() - start:6.0f} s", table[-1], flush=True)

    def shuffling(what: str, x: np.ndarray, z: np.ndarray, hashes: list[str], against: Rows) -> None:
        for share in (0.0, 0.05, 0.2, 0.5, 1.0):
            g, mixed = np.random.default_rng(0), z.copy()
            wrong = np.flatnonzero(g.permutation(len(z)) < share * len(z))
            mixed[wrong] = mixed[g.permutation(wrong)]
            add(what, f"{share:.0%}", per_class(x, mixed, hashes, against))

    def features(x: np.ndarray) -> np.ndarray:
        return store.features(ImageSet(x, np.zeros(len(x), np.int64), ("any",)), judge)

    clean = features(images)
    with threadpool_limits(limits=2):
        add("none", "training images", measured(Rows.of(clean, zeros, hashes=names), real))
        for what, step, change in IMAGES:
            found = features(change(images))
            add(what, step, measured(Rows.of(found, zeros, hashes=names), real))
        for dropped in (1, 3, 5, 8):
            keep = labels >= dropped
            part = [n for n, kept in zip(names, keep, strict=True) if kept]
            fake = Rows.of(clean[keep], zeros[keep], hashes=part)
            add("dropped classes", f"{dropped} of 10", measured(fake, real))
        shuffling("shuffled labels, mean over classes", clean, labels, names, real_classes)
        # the same with images that the judge has not seen: test images, one half against the other
        half = np.arange(len(x_test)) % 2 == 0
        half = half[np.argsort(np.argsort(hash_keys(test.hashes)))]
        keys = list(test.hashes)
        other = Rows.of(x_test[~half], d["y_test"][~half], hashes=[k for k, h in zip(keys, half, strict=True) if not h])
        own = [k for k, h in zip(keys, half, strict=True) if h]
        shuffling("shuffled labels, halves of the test images", x_test[half], d["y_test"][half], own, other)
    grows = {}
    for what in dict.fromkeys(row["what"] for row in table[1:]):
        steps = [row for row in table if row["what"] == what]
        values = [row["FD∞"] for row in ([] if "labels" in what else table[:1]) + steps]
        grows[what] = bool(np.all(np.diff(values) > 0))
    result = {
        "FD∞ grows with every step": grows,
        "seconds": round(time.monotonic() - start),
        "table": table,
    }
    notes = (
        f"Against the 10,000 test images, features of {judge.name}. FD is the plain distance at this n, FD∞ "
        "extrapolated to endless samples with its 95 % interval. Dropped classes: measured without labels, or they "
        "would be left out of the reference too. Shuffled labels: that share of the images changed labels among "
        "themselves. The same is shown for one half of the test images against the other."
    )
    write_result("degradations", result, config={"per_class": given.per_class, "extractor": judge.name}, notes=notes)


if __name__ == "__main__":
    main()
