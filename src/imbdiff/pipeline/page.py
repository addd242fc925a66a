"""From a run folder to what its page is made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from imbdiff.config import RunConfig, to_dict
from imbdiff.data.augment import Augmentation
from imbdiff.data.geometric import Geometric
from imbdiff.data.imageset import ImageSet
from imbdiff.data.splits import Prepared
from imbdiff.diffusion.guidances import guidance_text
from imbdiff.methods import get_method, method_of
from imbdiff.pipeline import training
from imbdiff.pipeline.folder import RunFolder, repeat_command
from imbdiff.pipeline.recognising import classifier_arms, plan_of
from imbdiff.pipeline.variations import in_words
from imbdiff.pipeline.watch import METRIC
from imbdiff.recipe import constants
from imbdiff.reporting.content import ReportData
from imbdiff.runtime.errors import RunError
from imbdiff.runtime.files import read_json
from imbdiff.runtime.log import read_jsonl


def report_data(
    folder: RunFolder, source: str, config: RunConfig, prepared: Prepared, synthetic: ImageSet | None
) -> ReportData:
    """Everything that is there *and belongs together*: what is missing or out of date is left out."""
    done = folder.stages()
    metrics = read_json(folder / "metrics.json") if "evaluate" in done else None
    plan = read_json(folder / "samples" / "manifest.json") if "sample" in done else None
    return ReportData(
        title=f"{Path(source).name}: {config.method}",
        command=repeat_command(source, folder.path, config),
        method=config.method,
        source=source,
        stats=prepared.stats,
        groups=prepared.groups,
        environment=optional(folder / "environment.json") or {},
        config=to_dict(config),
        warnings=prepared.warnings,
        manifest=prepared.manifest,
        train=prepared.train,
        synthetic=synthetic,
        log=read_jsonl(folder / "log.jsonl"),
        metrics=metrics,
        classifier=_classified(folder) if "classify" in done else None,
        timings={stage: facts["seconds"] for stage, facts in done.items()},
        run=str(folder.path),
        protocol={**protocol(folder, config, plan, metrics), "Augmentation": augmentation(prepared, config)},
    )


def _classified(folder: RunFolder) -> dict[str, Any]:
    """The comparison of a run.

    Raises:
        RunError: an earlier version made it, with other arms.
    """
    found = read_json(folder / "classifier" / "results.json")
    if any("members" not in arm for arm in found["arms"]):
        raise RunError(
            f"{folder / 'classifier' / 'results.json'} was made by an earlier version",
            f"run `{folder.command('classify', '--replace')}`",
        )
    return found


def protocol(
    folder: RunFolder, config: RunConfig, plan: dict[str, Any] | None, metrics: dict[str, Any] | None
) -> dict[str, str]:
    """What the numbers depend on, in words."""
    method = method_of(config)
    trained = "on the training split alone"
    if config.model.init is not None:
        known = optional(folder / "model" / "trained_on.json")
        saw = "saw none of the test images" if known and known["image_hashes"] else "may have seen test images"
        trained += f", from {Path(config.model.init).name}, which {saw}"
    rows = {
        "Method": f"{config.method}: {method.idea}. {method.source}",
        "Constants": constants_text(config),
        "Generator": f"{config.train.images:,} images seen, trained {trained}",
    }
    kept = optional(folder / "checkpoints" / "best" / "watched.json") if config.train.watch_images else None
    if kept is not None:
        name, n = METRIC, len(read_jsonl(folder / "watch.jsonl"))
        rows["Weights kept"] = (
            f"those after {kept['images']:,} images: {name} {kept[name]['value']:.4g}, the best of {n} measurements on "
            "validation images by a classifier that saw the training split only"
        )
    if plan is not None:
        guidance = guidance_text(plan["guidance"], plan["constants"])
        others = [f"{k} {v}" for k, v in plan["constants"].items() if k.rpartition(".")[2] not in ("omega", "scale")]
        if plan.get("boost", 1.0) != 1 or plan.get("skip", 0.0):
            others.append(f"boost {plan.get('boost', 1.0):g}, skip {plan.get('skip', 0.0):g}")
        rows["Sampler"] = f"{plan['sampler']}, {plan['steps']} steps; guidance: {guidance} (0 = none)"
        if "start" in plan:
            others.append(in_words(plan["start"], plan.get("sources", "own"), plan["strength"]))
        rows["Sampler"] += "".join(f"; {text}" for text in others)
    if metrics is not None:
        judge = metrics.get("judge")
        other = metrics["protocol"].get("pretrained_judge")
        rows["Judge"] = (
            f"{judge['name']}, trained on {judge['trained_on']:,} images before the tail was cut; "
            f"accuracy on the test images {judge['accuracy']:.3f}"
            if judge
            else other or "none that has seen balanced data; the extractors are named with the numbers"
        )
    return rows


def constants_text(config: RunConfig) -> str:
    """The method's constants, those that were changed with the published value behind them."""
    published, parts = constants(get_method(config.method)), []
    for name, constant in constants(method_of(config)).items():
        value, own = constant.default, published[name].default
        parts.append(f"{name} {value}" if value == own else f"{name} {value} (published: {own})")
    return ", ".join(parts)


def augmentation(prepared: Prepared, config: RunConfig) -> str:
    """What was done to training images, and why it may be."""
    method, symmetry = method_of(config), training.symmetry_of(prepared, config)
    changes = training.geometric(method.target, method, symmetry)
    shown = Augmentation(symmetry).describe()
    if changes is not None:
        shown = f"{changes.describe()}; the network is conditioned on these changes, and what it samples has none"
    classifiers = plan_of(prepared, config).augmentation.describe()
    most = max(network.changes for arm in classifier_arms(config.classify) for network, _ in arm.networks(0))
    if most:
        more = Geometric(most, symmetry).describe()
        classifiers += f"; with synthetic images, and in the arms that are compared with these, also {more}"
    why = f"--data.augment {config.data.augment}"
    if config.data.augment == "auto":
        why = "this source is known to allow mirroring"
        if not prepared.flippable:
            why = (
                "this source is not known to allow mirroring: --data.augment mirror or turns switches it on, where "
                "images go on showing the same; imbdiff inspect helps to choose"
            )
    return f"images shown to the generator: {shown}. To classifiers: {classifiers}. By symmetry {symmetry}: {why}"


def optional(path: Path) -> dict[str, Any] | None:
    """A JSON file that may not be there."""
    return read_json(path) if path.exists() else None
