"""The working classifier: it saw the training split alone, so it may choose and curate; it never judges."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from imbdiff.data.imageset import ImageSet
from imbdiff.metrics.extractors import ClassifierFeatures
from imbdiff.recognition.fit import fit
from imbdiff.recognition.networks import build_network
from imbdiff.recognition.networks.identity import is_pretrained, network_identity
from imbdiff.recognition.plan import FitPlan
from imbdiff.runtime.errors import RunError
from imbdiff.runtime.files import atomic, digest, read_json, sha256_file, write_json

INSTEAD = "resnet-small"
"""The network where the plan's comes with weights of other images."""
_log = logging.getLogger(__name__)


def working_extractor(
    train: ImageSet, plan: FitPlan, *, seed: int = 0, device: str = "cpu", folder: Path | None = None
) -> ClassifierFeatures:
    """A classifier trained on `train` with balanced softmax, so that rare classes are not outvoted.

    Its logits are without the prior of the classes: it decides, and gives probabilities, as if all classes were equally
    frequent.

    Args:
        train: the training split, and nothing else.
        plan: of the classifiers of the comparison; a network of pretrained weights is replaced by :data:`INSTEAD`.
        folder: where its weights are kept; with it, a repeated call reads them.
    """
    if is_pretrained(plan.network):  # who knows what images it saw
        plan = replace(plan, network=INSTEAD, normalise=None)
    what = network_identity(plan.network, train.shape, len(train.class_names))
    key = digest([2, train.fingerprint, plan.to_json(), what, seed, torch.__version__, torch.device(device).type])
    weights = None if folder is None else Path(folder) / f"working-{key[:16]}.safetensors"
    network = None if weights is None else _read(weights, key, train, plan)
    if network is None:
        network = fit(train, plan, prior=train.stats.prior, seed=seed, device=device, name="working extractor")
        if weights is not None:
            with atomic(weights) as aside:
                save_file({k: v.contiguous().cpu() for k, v in network.state_dict().items()}, aside)
            write_json(weights.with_suffix(".json"), {"input": key, "weights": sha256_file(weights)})
    name = f"working-{plan.to_json()['network']}"
    return ClassifierFeatures(
        network, name, "working", shape=train.shape, trained_on=frozenset(train.hashes), device=device
    )


def _read(weights: Path, key: str, train: ImageSet, plan: FitPlan) -> torch.nn.Module | None:
    record_path = weights.with_suffix(".json")
    if not weights.is_file() or not record_path.is_file():
        return None
    try:
        record = read_json(record_path)
        if record["input"] != key or record["weights"] != sha256_file(weights):
            raise KeyError("weights")
        network = build_network(plan.network, train.shape, len(train.class_names), normalise=plan.normalise)
        network.load_state_dict(load_file(weights))
        return network
    except (RunError, KeyError, TypeError, RuntimeError):
        _log.warning("%s is damaged: the working classifier is trained again", weights)
        return None
