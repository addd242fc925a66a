"""Classifiers trained here that others measure with: the working classifier, which chooses, and the judge.

The working classifier saw the training split alone, so it may choose and curate; it never judges. The judge is a
network of another architecture, trained on the balanced pool before the tail was cut; it never chooses.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from imbdiff.data.imageset import ImageSet
from imbdiff.metrics.extractors import ClassifierFeatures, Extractor, RandomConv, efficientnet
from imbdiff.recognition.fitting import fit, new_network
from imbdiff.recognition.networks import Classifier, is_pretrained, predict
from imbdiff.recognition.plan import FitPlan
from imbdiff.recognition.recipes import get_recipe
from imbdiff.runtime.errors import DataError, RunError
from imbdiff.runtime.files import atomic, digest, read_json, sha256_file, write_json

if TYPE_CHECKING:
    from imbdiff.data.splits import Prepared

_log = logging.getLogger(__name__)
JUDGE = "judge-cnn"
INSTEAD = "resnet-small"
"""The network where the plan's comes with weights of other images."""
FORMAT = 4


def trained_extractor(
    images: ImageSet,
    plan: FitPlan,
    recipe: str,
    role: Literal["working", "judge"],
    name: str,
    *,
    seed: int = 0,
    device: str = "cpu",
    folder: Path | None = None,
) -> ClassifierFeatures:
    """A classifier trained on `images`, or read from `folder` where it was trained from the same inputs before."""
    identity = plan.identity(images.shape, len(images.class_names))
    key = digest([FORMAT, images.fingerprint, *identity, recipe, seed, torch.__version__, torch.device(device).type])
    weights = None if folder is None else Path(folder) / f"{role}-{key[:16]}.safetensors"
    network = None if weights is None else _read(weights, key, new_network(plan, get_recipe(recipe), images, 0))
    if network is None:
        network = fit(images, plan, recipe, seed=seed, device=device, name=f"{role} classifier")
        if weights is not None:
            with atomic(weights) as aside:
                save_file({k: v.contiguous().cpu() for k, v in network.state_dict().items()}, aside)
            write_json(weights.with_suffix(".json"), {"input": key, "weights": sha256_file(weights)})
    return ClassifierFeatures(
        network, name, role, shape=images.shape, trained_on=frozenset(images.hashes), device=device
    )  # fmt: skip


def _read(weights: Path, key: str, network: Classifier) -> Classifier | None:
    """`network` with the weights of a file; None where there is none of these inputs, or a damaged one."""
    record = weights.with_suffix(".json")
    if not weights.is_file() or not record.is_file():
        return None
    try:
        found = read_json(record)
        if found["input"] == key and found["weights"] == sha256_file(weights):
            network.load_state_dict(load_file(weights))
            return network
    except (RunError, KeyError, TypeError, RuntimeError, SafetensorError):
        pass
    _log.warning("%s is damaged: the classifier is trained again", weights)
    return None


def working_extractor(
    train: ImageSet, plan: FitPlan, *, seed: int = 0, device: str = "cpu", folder: Path | None = None
) -> ClassifierFeatures:
    """A classifier trained on `train` with balanced softmax, so that rare classes are not outvoted.

    Its logits are without the prior of the classes: it decides, and gives probabilities, as if all classes were equally
    frequent.

    Args:
        train: the training split, and nothing else.
        plan: of the classifiers of the comparison; a network of pretrained weights, which may have seen any image, is
            replaced by :data:`INSTEAD`.
        folder: where its weights are kept; with it, a repeated call reads them.
    """
    if is_pretrained(plan.network):
        plan = replace(plan, network=INSTEAD)
    name = f"working-{plan.to_json()['network']}"
    return trained_extractor(
        train, plan, "balanced-softmax", "working", name, seed=seed, device=device, folder=folder
    )  # fmt: skip


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
    if len(np.unique(pool.labels)) < len(pool.class_names):
        raise DataError("the pool has no image of some class left for the judge", "evaluate without a judge")
    if steps is None:
        steps = min(4000, max(300, math.ceil(20 * len(pool) / batch_size)))
    shift = max(1, min(pool.shape[:2]) // 8)
    plan = FitPlan(network=JUDGE, steps=steps, batch_size=batch_size, lr=0.05, shift=shift)
    extractor = trained_extractor(pool, plan, "ce", "judge", JUDGE, seed=seed, device=device, folder=folder)
    right = predict(extractor.network, test) == test.labels
    of_class = [right[test.labels == k] for k in range(len(test.class_names))]
    per_class = tuple(float(own.mean()) if len(own) else None for own in of_class)
    return Judge(extractor, float(right.mean()) if len(test) else 0.0, per_class, len(pool), left_out)


def judges(
    prepared: Prepared,
    *,
    steps: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    folder: Path | None = None,
    pretrained: bool = True,
) -> tuple[list[Extractor], Judge | None]:
    """Who may judge images of `prepared`: the trained judge where there is a balanced pool, and a random network.

    Without a pool there is no judge that learned from such images. Colour photographs then have one that learned from
    others, see :func:`judges_photographs`, before the random network; their numbers are for ranking only.
    """
    random = RandomConv(prepared.train.shape[2])
    if prepared.pool is None:
        used = pretrained and judges_photographs(prepared)
        return [*([efficientnet.efficientnet_lite0(device=device)] if used else []), random], None
    judge = train_judge(prepared.pool, prepared.test, steps=steps, seed=seed, device=device, folder=folder)
    return [judge.extractor, random], judge


def judges_photographs(prepared: Prepared) -> bool:
    """Whether EfficientNet-Lite0 judges: colour photographs, no pool to train a judge on, and the extra is there."""
    return efficientnet.installed() and prepared.pool is None and efficientnet.photographs(prepared.train.shape)
