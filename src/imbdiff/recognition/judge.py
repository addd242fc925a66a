"""The judge: a network of another architecture, trained on the balanced pool before the tail was cut."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from imbdiff.data.imageset import ImageSet
from imbdiff.metrics.extractors import ClassifierFeatures, Extractor, RandomConv
from imbdiff.recognition.fitting import fit
from imbdiff.recognition.networks import Classifier, predict
from imbdiff.recognition.plan import FitPlan
from imbdiff.recognition.working import keep_network, kept_network
from imbdiff.runtime.errors import DataError
from imbdiff.runtime.files import digest

if TYPE_CHECKING:
    from imbdiff.data.splits import Prepared

JUDGE = "judge-cnn"


@dataclass(frozen=True, eq=False)
class Judge:
    """A trained judge.

    Attributes:
        extractor: its last features and its decisions.
        accuracy: on the test images, none of which it was trained on.
        per_class: (C,) accuracy per class, None where there is no test image.
        trained_on: number of images.
        left_out: images of the pool that are exact copies of a test image.
    """

    extractor: ClassifierFeatures
    accuracy: float
    per_class: tuple[float | None, ...]
    trained_on: int
    left_out: int

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.extractor.name,
            "fingerprint": self.extractor.fingerprint,
            "accuracy": self.accuracy,
            "per_class": list(self.per_class),
            "trained_on": self.trained_on,
            "left_out": self.left_out,
        }


def train_judge(
    pool: ImageSet,
    test: ImageSet,
    *,
    steps: int | None = None,
    batch_size: int = 128,
    seed: int = 0,
    device: str = "cpu",
    folder: Path | None = None,
) -> Judge:
    """Trains the judge on `pool` less the exact copies of test images; reads it from `folder` if it is there already.

    Args:
        pool: all images that are not test, before the long tail was cut.
        test: what the judge will compare with; its accuracy on it is reported.
        steps: optimizer steps; None means 20 epochs, but at least 300 and at most 4,000 steps.

    Raises:
        DataError: no image is left to train on, or a class has none.
    """
    test_hashes = set(test.hashes)
    keep = [i for i, h in enumerate(pool.hashes) if h not in test_hashes]
    left_out = len(pool) - len(keep)
    if left_out:
        pool = pool.select(keep)
    if not len(pool) or len(np.unique(pool.labels)) < len(pool.class_names):
        raise DataError("the pool has no image of some class left for the judge", "evaluate without a judge")
    if steps is None:
        steps = min(4000, max(300, math.ceil(20 * len(pool) / batch_size)))
    shift = max(1, min(pool.shape[:2]) // 8)
    plan = FitPlan(network=JUDGE, steps=steps, batch_size=batch_size, lr=0.05, shift=shift)
    key = digest([2, pool.fingerprint, plan.to_json(), seed, torch.__version__, torch.device(device).type])
    weights = None if folder is None else Path(folder) / f"judge-{key[:16]}.safetensors"
    stored = None if weights is None else kept_network(weights, key, plan, pool, "test", "judge")
    if stored is None:
        network = fit(pool, plan, seed=seed, device=device, name="judge")
        extractor = _extractor(network, pool, device)
        judge = Judge(extractor, *_graded(network, test), len(pool), left_out)
        if weights is not None:
            keep_network(weights, network, key, test=test.fingerprint, judge=judge.to_json())
        return judge
    extractor, record = _extractor(stored[0], pool, device), stored[1]
    if record["test"] != test.fingerprint:
        return Judge(extractor, *_graded(extractor.network, test), len(pool), left_out)  # type: ignore[arg-type]
    found = record["judge"]
    return Judge(extractor, found["accuracy"], tuple(found["per_class"]), len(pool), left_out)


def _graded(network: Classifier, test: ImageSet) -> tuple[float, tuple[float | None, ...]]:
    """Accuracy on the test images, overall (0 without any) and per class (None without any)."""
    right = predict(network, test) == test.labels
    of_class = [right[test.labels == k] for k in range(len(test.class_names))]
    return float(right.mean()) if len(test) else 0.0, tuple(float(r.mean()) if len(r) else None for r in of_class)


def judges(
    prepared: Prepared, *, steps: int | None = None, seed: int = 0, device: str = "cpu", folder: Path | None = None
) -> tuple[list[Extractor], Judge | None]:
    """Who may judge images of `prepared`: the trained judge where there is a balanced pool, and a random network.

    Without a pool nothing but the fixed random network is left, whose numbers are for ranking only.
    """
    random = RandomConv(prepared.train.shape[2])
    if prepared.pool is None:
        return [random], None
    judge = train_judge(prepared.pool, prepared.test, steps=steps, seed=seed, device=device, folder=folder)
    return [judge.extractor, random], judge


def _extractor(network: torch.nn.Module, pool: ImageSet, device: str) -> ClassifierFeatures:
    return ClassifierFeatures(
        network, JUDGE, "judge", shape=pool.shape, trained_on=frozenset(pool.hashes), device=device
    )
