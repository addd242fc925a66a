"""The stage `curate`: which of the sampled images are kept. It reads the training split and the candidates, no others.

``RUN/curation/manifest.json`` says of every candidate whether it is kept, and why; the images stay where they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imbdiff.config import RunConfig
from imbdiff.data.imageset import ImageSet
from imbdiff.data.splits import Prepared
from imbdiff.diffusion.model import DiffusionModel
from imbdiff.metrics.extractors import ClassifierFeatures
from imbdiff.pipeline.recognising import plan_of, working_of
from imbdiff.pipeline.sampling import guide_of, sample, sampling
from imbdiff.pipeline.strategy import images_to_draw
from imbdiff.recognition.curation import Curated, curate, describe, parse_policy
from imbdiff.recognition.real_space import IN_QUANTILE, OUT_FACTOR, OUT_QUANTILE

SCHEMA = "imbdiff-curation/2"


def chooses(config: RunConfig) -> bool:
    """Whether there is anything to choose: a policy, or more candidates than are wanted."""
    return parse_policy(config.curate.policy) != ("none",) or config.curate.candidates > 1


def candidates(wanted: Sequence[int], config: RunConfig) -> tuple[int, ...]:
    """(C,) candidates per class: images wanted times ``--curate.candidates``, rounded up."""
    # 1.1 x 10 is a little more than 11 in binary: what is nearly whole is whole
    return tuple(math.ceil(n * config.curate.candidates - 1e-9 * max(n, 1)) for n in wanted)


def curation_inputs(prepared: Prepared, plan: str, config: RunConfig) -> list[Any]:
    """Everything that decides the choice; `plan` is the digest of the samples' plan."""
    names = parse_policy(config.curate.policy)
    wanted = images_to_draw(config.sample.strategy, prepared.stats)
    deciding: list[Any] = [SCHEMA, plan, list(wanted), list(names)]
    if names != ("none",):
        train = prepared.train
        deciding += [plan_of(prepared, config).identity(train.shape, len(train.class_names))]
    return deciding


def sample_curated(
    model: DiffusionModel, prepared: Prepared, counts: Sequence[int], config: RunConfig, *, quiet: bool = False
) -> ImageSet:
    """Generates candidates and keeps at most `counts` (C,) images of each class, as ``config.curate`` says; no folder.

    Args:
        prepared: its training split alone is read.

    Raises:
        ConfigError: an unknown policy.
    """
    parse_policy(config.curate.policy)
    guidance = guide_of(sampling(config), model, prepared, config)
    offered = candidates(counts, config)
    images = sample(model, offered, config, guidance=guidance, train=prepared.train, quiet=quiet)
    found, _ = choose(images, counts, config.curate.policy, prepared, config)
    return images.select(found.kept)


def choose(
    images: ImageSet,
    wanted: Sequence[int],
    policy: str,
    prepared: Prepared,
    config: RunConfig,
    folder: Path | None = None,
) -> tuple[Curated, ClassifierFeatures | None]:
    """The choice among candidates, and the working classifier that made it, where the policy asks for one.

    Args:
        folder: where that classifier is kept, and read where it is there already.
    """
    extractor = None
    if parse_policy(policy) != ("none",):
        extractor = working_of(prepared, config, folder)
    return curate(images, wanted, prepared.train, policy, extractor, seed=config.seed), extractor


def curate_run(
    images: ImageSet, wanted: Sequence[int], policy: str, prepared: Prepared, config: RunConfig, folder: Path
) -> dict[str, Any]:
    """The manifest of :func:`choose`: the policy, the classifier, counts, and every candidate with its scores."""
    found, extractor = choose(images, wanted, policy, prepared, config, folder)
    scores, classifier, limit = found.scores, None, None
    zones = None if scores is None else scores.space.zones
    if extractor is not None and scores is not None:
        classifier = {
            "name": extractor.name,
            "fingerprint": extractor.fingerprint,
            "role": extractor.role,
            "trained_on": f"the {len(prepared.train):,} images of the training split, no others",
            "decides": "by balanced softmax: as if all classes were equally frequent",
            "agreement": float(scores.agrees.mean()) if len(images) else None,
            "plan": plan_of(prepared, config).to_json(),
        }
        limit = float(scores.copy_limit) if np.isfinite(scores.copy_limit) else None
    counts = [np.bincount(labels, minlength=len(wanted)) for labels in (images.labels, images.labels[found.kept])]
    rows = zip(images.ids, images.labels.tolist(), found.rows(), strict=True)
    return {
        "schema": SCHEMA,
        "policy": "+".join(parse_policy(policy)),
        "words": describe(policy),
        "classifier": classifier,
        "zones": None
        if zones is None
        else {
            "in-distribution": zones.inner,
            "out": zones.outer,
            "quantiles": [IN_QUANTILE, OUT_QUANTILE],
            "factor": OUT_FACTOR,
        },
        "copy_limit": limit,
        "class_names": list(prepared.train.class_names),
        "counts": {"wanted": list(wanted), "candidates": counts[0].tolist(), "kept": counts[1].tolist()},
        "warnings": list(found.warnings),
        "images": [{"file": file, "label": label, **row} for file, label, row in rows],
    }
