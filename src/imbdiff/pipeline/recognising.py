"""The stage `classify`: the arms of the comparison, over a run folder."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from imbdiff.config import ClassifyConfig, RunConfig
from imbdiff.data.augment import Augmentation
from imbdiff.data.imageset import ImageSet
from imbdiff.data.source import Symmetry
from imbdiff.data.splits import Prepared
from imbdiff.pipeline.training import symmetry_of
from imbdiff.recognition.arms import classify, make_arms
from imbdiff.recognition.jobs import Arm
from imbdiff.recognition.networks.identity import network_identity
from imbdiff.recognition.plan import CIFAR_PIXELS, FitPlan
from imbdiff.recognition.use import Use
from imbdiff.runtime.device import resolve_device
from imbdiff.runtime.files import digest
from imbdiff.runtime.progress import Progress


def classifier_augmentation(options: ClassifyConfig, symmetry: Symmetry) -> Augmentation:
    """What is done to the training images of classifiers: more than a generator may see."""
    return Augmentation.of(
        symmetry, shift=options.shift, jitter=options.jitter, erase=options.erase, border=options.border,
        policy=options.policy,
    )  # fmt: skip


def plan_of(prepared: Prepared, config: RunConfig) -> FitPlan:
    """How this configuration trains classifiers on these images, the working one included."""
    return classifier_plan(config.classify, symmetry=symmetry_of(prepared, config))


def classifier_plan(options: ClassifyConfig, *, symmetry: Symmetry = "none", steps: int | None = None) -> FitPlan:
    """How every classifier of the comparison is trained, and those beside it; `steps` in place of the options'."""
    return FitPlan(
        network=options.network, steps=steps or options.steps, batch_size=options.batch_size,
        learning_rate=options.lr, weight_decay=options.weight_decay, schedule=options.schedule, warmup=options.warmup,
        nesterov=options.schedule == "cosine",  # the literature's recipe has none
        augmentation=classifier_augmentation(options, symmetry),
        normalise=CIFAR_PIXELS if options.normalise == "cifar" else None, precision=options.precision,
    )  # fmt: skip


def classifier_use(options: ClassifyConfig) -> Use:
    """How synthetic images take part."""
    return Use(
        weight=options.synthetic_weight, share=options.synthetic_share, schedule=options.synthetic_schedule,
        last=options.synthetic_last, batch_norm=options.synthetic_norm, prior=options.prior,
    )  # fmt: skip


def classifier_arms(options: ClassifyConfig) -> tuple[Arm, ...]:
    """The arms that the options name, and those that no comparison may lack."""
    return make_arms(options.recipes, options.synthetic, classifier_use(options))


def classification_inputs(prepared: Prepared, synthetic: ImageSet | None, config: RunConfig) -> str:
    """A hash of everything that decides the comparison."""
    shown = None if synthetic is None else synthetic.fingerprint
    symmetry = symmetry_of(prepared, config)
    train = prepared.train
    what = network_identity(config.classify.network, train.shape, len(train.class_names))
    return digest([shown, prepared.manifest["hash"], asdict(config.classify), what, symmetry, config.seed])


def classify_run(
    prepared: Prepared, synthetic: ImageSet | None, config: RunConfig, folder: Path, *, quiet: bool = False
) -> dict[str, Any]:
    """Trains the arms that the configuration names; what is finished in `folder`/classifier is not trained again."""
    options = config.classify
    arms = classifier_arms(options)
    todo = sum(synthetic is not None or not arm.needs_synthetic for arm in arms)
    with Progress("classify", todo * options.seeds, "classifiers", quiet=quiet, every=20) as progress:
        return classify(
            prepared,
            synthetic,
            plan=plan_of(prepared, config),
            arms=arms,
            primary=next(arm.name for arm in arms if arm.needs_synthetic and arm.recipe == options.primary),
            seeds=tuple(range(config.seed, config.seed + options.seeds)),
            looks=options.looks,
            device=str(resolve_device(config.device)),
            folder=folder / "classifier",
            progress=lambda done, total, note: progress.update(done, note),
        )
