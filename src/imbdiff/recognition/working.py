"""The working classifier: it saw the training split alone, so it may choose and curate; it never judges."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from imbdiff.data.imageset import ImageSet
from imbdiff.metrics.extractors import ClassifierFeatures
from imbdiff.recognition.fit import fit
from imbdiff.recognition.kept import keep_network, kept_network
from imbdiff.recognition.networks.identity import is_pretrained, plan_identity
from imbdiff.recognition.plan import FitPlan
from imbdiff.runtime.files import digest

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
        plan: of the classifiers of the comparison; a network of pretrained weights is replaced by :data:`INSTEAD`.
        folder: where its weights are kept; with it, a repeated call reads them.
    """
    if is_pretrained(plan.network):  # who knows what images it saw
        plan = replace(plan, network=INSTEAD, normalise=None)
    key = digest(
        [2, train.fingerprint, *plan_identity(plan, train), seed, torch.__version__, torch.device(device).type]
    )
    weights = None if folder is None else Path(folder) / f"working-{key[:16]}.safetensors"
    found = None if weights is None else kept_network(weights, key, plan, train, "the working classifier")
    network = None if found is None else found[0]
    if network is None:
        network = fit(train, plan, prior=train.stats.prior, seed=seed, device=device, name="working extractor")
        if weights is not None:
            keep_network(weights, network, key)
    name = f"working-{plan.to_json()['network']}"
    return ClassifierFeatures(
        network, name, "working", shape=train.shape, trained_on=frozenset(train.hashes), device=device
    )
