"""The working classifier: it saw the training split alone, so it may choose and curate; it never judges."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from imbdiff.data.imageset import ImageSet
from imbdiff.metrics.extractors import ClassifierFeatures
from imbdiff.recognition.fitting import fit
from imbdiff.recognition.networks import Classifier, build_network, is_pretrained
from imbdiff.recognition.plan import FitPlan
from imbdiff.runtime.errors import RunError
from imbdiff.runtime.files import atomic, digest, read_json, sha256_file, write_json

_log = logging.getLogger(__name__)
INSTEAD = "resnet-small"
"""The network where the plan's comes with weights of other images."""


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
    classes = len(train.class_names)
    identity = plan.identity(train.shape, classes)
    key = digest([3, train.fingerprint, *identity, seed, torch.__version__, torch.device(device).type])
    weights = None if folder is None else Path(folder) / f"working-{key[:16]}.safetensors"
    found = None if weights is None else kept_network(weights, key, plan, train)
    if found is None:
        network = fit(train, plan, "balanced-softmax", seed=seed, device=device, name="working classifier")
        if weights is not None:
            keep_network(weights, network, key)
    else:
        network = found[0]
    name = f"working-{plan.to_json()['network']}"
    return ClassifierFeatures(
        network, name, "working", shape=train.shape, trained_on=frozenset(train.hashes), device=device
    )


def keep_network(weights: Path, network: Classifier, key: str, **facts: Any) -> None:
    """Writes `weights` and a JSON record next to it: the hash `key` of all inputs, the file's checksum and `facts`."""
    with atomic(weights) as aside:
        save_file({k: v.contiguous().cpu() for k, v in network.state_dict().items()}, aside)
    write_json(weights.with_suffix(".json"), {"input": key, "weights": sha256_file(weights), **facts})


def kept_network(
    weights: Path, key: str, plan: FitPlan, images: ImageSet, *facts: str
) -> tuple[Classifier, dict[str, Any]] | None:
    """A network that was kept, and its record, which must hold `facts`.

    None where there is none of these inputs, or a damaged one, which is reported.

    Args:
        plan, images: what it was made for.
    """
    record_path = weights.with_suffix(".json")
    if not weights.is_file() or not record_path.is_file():
        return None
    try:
        record = read_json(record_path)
        if record["input"] != key or record["weights"] != sha256_file(weights) or set(facts) - set(record):
            raise KeyError("weights")
        network = build_network(plan.network, images.shape, len(images.class_names), normalise=plan.normalise)
        network.load_state_dict(load_file(weights))
        return network, record
    except (RunError, KeyError, TypeError, RuntimeError):
        _log.warning("%s is damaged: the classifier is trained again", weights)
        return None
