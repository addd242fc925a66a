"""The stage `classify`: the arms of the comparison, over a run folder."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from imbdiff.config import RunConfig
from imbdiff.data.imageset import ImageSet
from imbdiff.data.splits import Prepared
from imbdiff.pipeline import stages
from imbdiff.recognition.arms import classify
from imbdiff.runtime.device import resolve_device
from imbdiff.runtime.files import digest
from imbdiff.runtime.progress import Progress


def classification_inputs(prepared: Prepared, synthetic: ImageSet | None, config: RunConfig) -> str:
    """A hash of everything that decides the comparison."""
    shown = None if synthetic is None else synthetic.fingerprint
    symmetry = stages.symmetry_of(prepared, config)
    return digest([shown, prepared.manifest["hash"], asdict(config.classify), symmetry, config.seed])


def classify_run(
    prepared: Prepared, synthetic: ImageSet | None, config: RunConfig, folder: Path, *, quiet: bool = False
) -> dict[str, Any]:
    """Trains the arms that the configuration names; what is finished in `folder`/classifier is not trained again."""
    options = config.classify
    symmetry = stages.symmetry_of(prepared, config)
    arms = 3 if synthetic is None else 5
    with Progress("classify", arms * options.seeds, "classifiers", quiet=quiet, every=20) as progress:
        return classify(
            prepared,
            synthetic,
            steps=options.steps,
            batch_size=options.batch_size,
            seeds=tuple(range(config.seed, config.seed + options.seeds)),
            network=options.network,
            synthetic_weight=options.synthetic_weight,
            prior=options.prior,
            augmentation=stages.classifier_augmentation(options, symmetry),
            device=str(resolve_device(config.device)),
            folder=folder / "classifier",
            progress=lambda done, total, note: progress.update(done, note),
        )
