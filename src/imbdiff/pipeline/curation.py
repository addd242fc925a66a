"""The stage `curate`: which of the images drawn are kept. It reads the training split and the candidates, no others.

``RUN/curation/manifest.json`` says of every candidate whether it is kept, and why; the images stay where they are.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from imbdiff.config import RunConfig, flatten, to_dict
from imbdiff.data.imageset import ImageSet
from imbdiff.data.splits import Prepared
from imbdiff.diffusion.model import DiffusionModel
from imbdiff.metrics.extractors import ClassifierFeatures
from imbdiff.pipeline import samples
from imbdiff.pipeline.folder import WORKING
from imbdiff.pipeline.recognising import plan_of
from imbdiff.pipeline.sampling import guide_of, sampling
from imbdiff.pipeline.strategy import images_to_draw
from imbdiff.recognition.curation import Curated, curate, describe, least_probability, parse_policy
from imbdiff.recognition.real_space import IN_QUANTILE, OUT_FACTOR, OUT_QUANTILE
from imbdiff.recognition.working import working_extractor
from imbdiff.runtime.device import resolve_device
from imbdiff.runtime.errors import RunError
from imbdiff.runtime.files import digest, read_json, write_json
from imbdiff.runtime.progress import Timer

if TYPE_CHECKING:
    from imbdiff.pipeline.run import Run

SCHEMA = "imbdiff-curation/1"


def chooses(config: RunConfig) -> bool:
    """Whether there is anything to choose: a policy, or more candidates than are wanted."""
    return parse_policy(config.curate.policy) != ("none",) or config.curate.draw > 1


def candidates_to_draw(wanted: Sequence[int], config: RunConfig) -> tuple[int, ...]:
    """(C,) candidates per class: images wanted x ``--curate.draw``, rounded up."""
    # 1.1 x 10 is a little more than 11 in binary: what is nearly whole is whole
    return tuple(math.ceil(n * config.curate.draw - 1e-9 * max(n, 1)) for n in wanted)


def curation_inputs(prepared: Prepared, drawn: str, config: RunConfig) -> str:
    """A hash of everything that decides the choice; `drawn` is that of the samples."""
    names = parse_policy(config.curate.policy)
    wanted = images_to_draw(config.sample.strategy, prepared.stats)
    deciding: list[Any] = [SCHEMA, drawn, list(wanted), list(names), prepared.manifest["hash"]]
    if names != ("none",):
        train = prepared.train
        deciding += [plan_of(prepared, config).identity(train.shape, len(train.class_names)), config.seed]
    return digest(deciding)


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
    candidates = samples.sample(model, candidates_to_draw(counts, config), config, guidance=guidance, quiet=quiet)
    found, _ = _choose(candidates, counts, prepared, config, None, str(resolve_device(config.device)))
    return candidates.select(found.kept)


def _choose(
    candidates: ImageSet,
    wanted: Sequence[int],
    prepared: Prepared,
    config: RunConfig,
    folder: Path | None,
    device: str,
) -> tuple[Curated, ClassifierFeatures | None]:
    """The choice, and the working classifier that it was made by, where the policy asks for one."""
    extractor = None
    if parse_policy(config.curate.policy) != ("none",):
        plan = plan_of(prepared, config)
        extractor = working_extractor(prepared.train, plan, seed=config.seed, device=device, folder=folder)
    return curate(candidates, wanted, prepared.train, config.curate.policy, extractor, seed=config.seed), extractor


def curate_run(
    prepared: Prepared, candidates: ImageSet, drawn: str, config: RunConfig, folder: Path, *, device: str
) -> dict[str, Any]:
    """The manifest of the choice among `candidates`.

    Args:
        drawn: a hash of the samples, kept so that another run's choice is recognised.
        folder: ``curation/``; the working classifier is kept there, and read where it is there already.
    """
    wanted = images_to_draw(config.sample.strategy, prepared.stats)
    names = parse_policy(config.curate.policy)
    found, extractor = _choose(candidates, wanted, prepared, config, folder, device)
    classes = len(wanted)
    rows = [
        {"file": file, "label": int(label), **row}
        for file, label, row in zip(candidates.ids, candidates.labels, found.rows(), strict=True)
    ]
    scores = found.scores
    zones = None if scores is None else scores.space.zones
    limit = None if scores is None or not np.isfinite(scores.copy_limit) else float(scores.copy_limit)
    return {
        "schema": SCHEMA,
        "samples": drawn,
        "policy": "+".join(names),
        "words": describe(config.curate.policy),
        "draw": config.curate.draw,
        "confidence": least_probability(names),
        "classifier": None
        if extractor is None
        else {
            "name": extractor.name,
            "fingerprint": extractor.fingerprint,
            "role": extractor.role,
            "trained_on": f"the {len(prepared.train):,} images of the training split, no others",
            "decides": "by balanced softmax: as if all classes were equally frequent",
            "agreement": None if scores is None or not len(rows) else float(scores.agrees.mean()),
            "plan": plan_of(prepared, config).to_json(),
        },
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
        "counts": {
            "wanted": list(wanted),
            "candidates": np.bincount(candidates.labels, minlength=classes).tolist(),
            "kept": np.bincount(candidates.labels[found.kept], minlength=classes).tolist(),
        },
        "warnings": list(found.warnings),
        "images": rows,
    }


def stage(run: Run, prepared: Prepared, candidates: Callable[[], ImageSet]) -> None:
    """Chooses, or skips what was chosen before. Under the policy none, with no more candidates than wanted, there is
    nothing to choose, and an earlier choice is taken back."""
    if not chooses(run.config):
        if run.dist.main and "curate" in run.folder.stages():
            run.folder.forget("curate")
            run.say("curate: every image drawn is kept again")
        run.dist.barrier()
        return
    drawn = _drawn(run, prepared)
    inputs = curation_inputs(prepared, drawn, run.config)
    path = run.folder / "curation" / "manifest.json"
    if not run.begin("curate", inputs, path.exists):
        return
    if run.dist.main:
        images = candidates()
        run.say(f"curate: {run.config.curate.policy}, among {len(images):,} candidates")
        with Timer() as timer:
            device = str(resolve_device(run.config.device))
            found = curate_run(prepared, images, drawn, run.config, run.folder / "curation", device=device)
        write_json(path, found)
        counts = {name: sum(values) for name, values in found["counts"].items()}
        run.say(f"curate: kept {counts['kept']:,} of {counts['candidates']:,}, wanted {counts['wanted']:,}")
        for warning in found["warnings"]:
            run.say(f"  note: {warning}")
        run.end("curate", inputs, timer.seconds, **counts)
    run.dist.barrier()


def _drawn(run: Run, prepared: Prepared) -> str:
    """The hash of the samples.

    Raises:
        RunError: nothing was drawn, or another number of candidates than the options say.
    """
    mark = run.folder.stages().get("sample")
    if mark is None:
        raise RunError(f"{run.folder / 'samples'} is not finished", f"run `imbdiff sample {run.folder.path}` first")
    wanted = candidates_to_draw(images_to_draw(run.config.sample.strategy, prepared.stats), run.config)
    if list(mark["counts"]) != list(wanted):
        raise RunError(
            f"{run.folder / 'samples'} holds {sum(mark['counts']):,} images, the options ask for {sum(wanted):,} "
            f"candidates (--curate.draw {run.config.curate.draw:g})",
            f"run `imbdiff sample {run.folder.path} --curate.draw {run.config.curate.draw:g}` first",
        )
    return str(mark["inputs"])


def curated(run: Run, prepared: Prepared) -> dict[str, Any] | None:
    """The manifest of the choice that belongs to the samples and the options; None where there is none to make.

    The options of the working classifier are those of the comparison's classifiers when the choice is made.

    Raises:
        RunError: it was not made yet, or it is of other samples, another policy or another working classifier.
    """
    if not chooses(run.config):
        return None
    place, marks = run.folder / "curation" / "manifest.json", run.folder.stages()
    again = f"run `imbdiff curate {run.folder.path}` first"
    if "curate" not in marks or not place.exists():
        raise RunError(f"the images in {run.folder / 'samples'} have not been chosen among yet", again)
    found = read_json(place)
    drawn = marks.get("sample", {}).get("inputs")
    if found.get("samples") != drawn:
        raise RunError(f"{place} is of other images than those in {run.folder / 'samples'}", again)
    policy = "+".join(parse_policy(run.config.curate.policy))
    if found.get("policy") != policy:
        raise RunError(f"{place} was made by the policy {found.get('policy')}, the options say {policy}", again)
    if marks["curate"]["inputs"] != curation_inputs(prepared, drawn, run.config):
        other = _other_options(found, prepared, run.config)
        if not other:
            raise RunError(f"{place} was made for other numbers of images than the options ask for", again)
        names = ", ".join(name for name, _ in other)
        line = shlex.join(["imbdiff", "curate", str(run.folder.path), *(word for pair in other for word in pair)])
        raise RunError(
            f"{place} was chosen by a classifier trained with other options ({names})", f"run `{line}` first"
        )
    return dict(found)


def _other_options(found: dict[str, Any], prepared: Prepared, config: RunConfig) -> list[tuple[str, str]]:
    """The options, with the values that they have now, in which the working classifier of a manifest differs."""
    if found.get("classifier") is None:
        return []
    there, here = flatten(found["classifier"]["plan"]), flatten(plan_of(prepared, config).to_json())
    options = flatten(to_dict(config))
    names = [name for name in WORKING if here[name.partition(".")[2]] != there.get(name.partition(".")[2])]
    return [(f"--{name}", str(options[name])) for name in names]


def kept_of(images: ImageSet, manifest: dict[str, Any], folder: Path) -> ImageSet:
    """The images that the manifest keeps, in drawing order.

    Raises:
        RunError: the manifest in `folder` is of other images or classes.
    """
    rows = manifest["images"]
    other = ""
    if tuple(manifest["class_names"]) != images.class_names:
        other = "classes"
    elif [(row["file"], row["label"]) for row in rows] != list(zip(images.ids, images.labels.tolist(), strict=True)):
        other = "images"
    if other:
        raise RunError(
            f"{folder / 'curation' / 'manifest.json'} is of other {other} than those in {folder / 'samples'}",
            f"run `imbdiff curate {folder}` again",
        )
    return images.select([i for i, row in enumerate(rows) if row["kept"]])
