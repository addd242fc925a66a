"""The stage `classify`: the arms of the comparison, over a run folder, and the classifiers that it leaves.

``classifier/model`` is the one to use, ``classifier/model-2`` and so on are those of other arms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from shutil import rmtree
from typing import Any

from imbdiff.config import ClassifyConfig, RunConfig
from imbdiff.data.imageset import ImageSet
from imbdiff.data.splits import Prepared
from imbdiff.metrics.extractors import ClassifierFeatures
from imbdiff.pipeline.training import symmetry_of
from imbdiff.recognition.arms import Arm, make_arms
from imbdiff.recognition.comparison import Classified, classify
from imbdiff.recognition.plan import FitPlan
from imbdiff.recognition.saved import DESCRIPTION, ImageClassifier, is_whole
from imbdiff.recognition.trained import working_extractor
from imbdiff.recognition.use import Use
from imbdiff.runtime.device import resolve_device
from imbdiff.runtime.files import sha256_file
from imbdiff.runtime.progress import Progress


def plan_of(prepared: Prepared, config: RunConfig) -> FitPlan:
    """How this configuration trains classifiers on these images, the working one included."""
    symmetry = symmetry_of(prepared, config)
    return FitPlan.of(config.classify, symmetry=symmetry, precision=config.train.precision)


def working_of(prepared: Prepared, config: RunConfig, folder: Path | None = None) -> ClassifierFeatures:
    """The working classifier of this configuration: by `plan_of`, on the training split alone.

    Args:
        folder: where it is kept, and read where it is there already.
    """
    plan, device = plan_of(prepared, config), str(resolve_device(config.device))
    return working_extractor(prepared.train, plan, seed=config.seed, device=device, folder=folder)


def classifier_use(options: ClassifyConfig) -> Use:
    """How synthetic images take part."""
    return Use(
        options.synthetic_weight, options.synthetic_share, options.synthetic_schedule, prior=options.synthetic_prior
    )


def classifier_arms(options: ClassifyConfig) -> tuple[Arm, ...]:
    """The arms that the options name, and those that no comparison may lack."""
    return make_arms(
        options.recipes, options.synthetic, classifier_use(options),
        ensemble=options.ensemble, changes=options.changes, leading=options.primary, distilled=options.distilled,
    )  # fmt: skip


def primary_of(options: ClassifyConfig) -> Arm:
    """The arm whose comparison is the verdict: the ensemble, or without one the network of the primary recipe."""
    leading = [a for a in classifier_arms(options) if a.needs_synthetic and a.recipe == options.primary]
    return leading[-1]


def networks_of(arms: Sequence[Arm]) -> int:
    """Networks that are trained for one seed of `arms`."""
    return len({network for arm in arms for network in arm.networks(0)})


def classification_inputs(prepared: Prepared, synthetic: ImageSet | None, config: RunConfig) -> list[Any]:
    """Everything that decides the comparison."""
    shown, train = None if synthetic is None else synthetic.fingerprint, prepared.train
    plan = plan_of(prepared, config).identity(train.shape, len(train.class_names))
    return [shown, asdict(config.classify), plan]


def classify_run(
    prepared: Prepared, synthetic: ImageSet | None, config: RunConfig, folder: Path, *, quiet: bool = False
) -> Classified:
    """Trains the arms that the configuration names; what is finished in `folder`/classifier is not trained again."""
    options = config.classify
    arms = classifier_arms(options)
    todo = networks_of([arm for arm in arms if synthetic is not None or not arm.needs_synthetic])
    with Progress("classify", todo * options.seeds, "classifiers", quiet=quiet, every=20) as progress:

        def update(done: int, total: int, note: str) -> None:
            progress.total = total  # fewer where curation left no image
            progress.update(done, note)

        return classify(
            prepared,
            synthetic,
            plan=plan_of(prepared, config),
            arms=arms,
            primary=primary_of(options).name,
            seeds=tuple(range(config.seed, config.seed + options.seeds)),
            device=str(resolve_device(config.device)),
            folder=folder / "classifier",
            progress=update,
            adjust=options.adjust,
            keep_weights=True,
        )


def save_classifiers(classifiers: Mapping[str, ImageClassifier], folder: Path) -> dict[str, str]:
    """Writes classifiers below `folder`, the first as the one to use; removes those of earlier calls.

    Returns:
        {folder's name: hash of its description}, the fact by which :func:`classifiers_whole` knows them.
    """
    written = {}
    for i, classifier in enumerate(classifiers.values()):
        name = f"model-{i + 1}" if i else "model"
        classifier.save(folder / name)
        written[name] = sha256_file(folder / name / DESCRIPTION)
    for path in folder.glob("model-[0-9]*"):
        if path.is_dir() and path.name not in written:
            rmtree(path)
    return written


def classifiers_whole(folder: Path, written: Mapping[str, str]) -> bool:
    """Whether all that :func:`save_classifiers` wrote is there, unaltered."""
    paths = {folder / name: key for name, key in written.items()}
    return bool(paths) and all(
        (path / DESCRIPTION).is_file() and sha256_file(path / DESCRIPTION) == key and is_whole(path)
        for path, key in paths.items()
    )
