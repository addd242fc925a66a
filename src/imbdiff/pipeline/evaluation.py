"""The stage `evaluate` of a run: judges, features, numbers, and classifiers that saw synthetic images alone."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from imbdiff.config import RunConfig
from imbdiff.data.imageset import ImageSet
from imbdiff.data.splits import Prepared
from imbdiff.metrics.evaluate import evaluate
from imbdiff.metrics.extractors import EXTRACTORS, efficientnet, make_extractors
from imbdiff.metrics.features import FeatureStore
from imbdiff.metrics.measures import choose_measures
from imbdiff.pipeline import training
from imbdiff.pipeline.plan import against_balanced
from imbdiff.pipeline.recognising import plan_of
from imbdiff.pipeline.variations import by_strength
from imbdiff.recognition.cas import classification_accuracy_score
from imbdiff.recognition.trained import judges, judges_photographs
from imbdiff.runtime.dist import Dist
from imbdiff.runtime.files import read_json, sha256_file
from imbdiff.runtime.progress import PartProgress, Progress
from imbdiff.runtime.tables import code_identity

BALANCED = "balanced training set"
"""What the second reference is called."""


def evaluation_inputs(prepared: Prepared, synthetic: ImageSet, config: RunConfig) -> list[Any]:
    """Everything that decides what the stage gives."""
    options = asdict(config.evaluate)
    named = [*config.evaluate.extractors, config.evaluate.inception_weights or ""]
    files = [Path(part) for name in named for part in (name, *name.split(":")) if part]
    files = [p for path in files for p in (sorted(path.iterdir()) if path.is_dir() else [path]) if p.is_file()]
    options["files"] = [sha256_file(p) for p in files]  # another file at the same path is another extractor
    own = [name for name in config.evaluate.extractors if name.partition(":")[0] not in EXTRACTORS]
    options["code"] = code_identity("extractors", EXTRACTORS, own)
    options["code"] += code_identity("metrics", choose_measures(), config.evaluate.measures)
    if options.pop("pretrained") and judges_photographs(prepared):
        options["code"].append(efficientnet.NAME)
    cas = [asdict(config.classify), training.symmetry_of(prepared, config)] if config.evaluate.cas else []
    return [synthetic.fingerprint, options, *cas]


def evaluate_run(
    prepared: Prepared,
    synthetic: ImageSet,
    config: RunConfig,
    folder: Path,
    *,
    device: str,
    dist: Dist,
    quiet: bool = False,
) -> dict[str, Any]:
    """Measures `synthetic` against the test split; with several processes each does its part, all return everything.

    A benchmark is measured against all images that its tail was cut from too, overall and by group. The generator saw
    some of these, and an extractor that was trained on any of them does not judge against them.

    Args:
        folder: of the run: features are kept in ``features/``, the judge in ``judge/``, the samples in ``samples/``.
    """
    options, quiet = config.evaluate, quiet or not dist.main
    measures = choose_measures(options.measures)
    more = make_extractors(options.extractors, options.inception_weights, prepared.train.shape, device)
    if not dist.main:  # the first process trains the judge, the others read it
        dist.barrier()
    ours, judge = judges(prepared, device=device, folder=folder / "judge", pretrained=options.pretrained)
    if dist.main:
        dist.barrier()
    known = {e.name for e in ours}
    extractors = [*ours, *(e for e in more if e.name not in known)]
    against = partial(
        evaluate, synthetic, groups=prepared.groups, seed=config.seed, measures=measures,
        store=FeatureStore(folder / "features", dist=dist), progress=PartProgress(quiet),
    )  # fmt: skip
    found = against(reference=prepared.test, train=prepared.train, extractors=extractors, reference_name="test")
    made = folder / "samples" / "manifest.json"
    if made.exists() and (manifest := read_json(made)).get("start") == "real":
        found["memorisation"]["sources"] = by_strength(manifest, synthetic, prepared.train, found["memorisation"])
    if against_balanced(prepared):
        pool = prepared.pool
        assert pool is not None
        able = [e for e in extractors if e.trained_on.isdisjoint(pool.hashes)]
        seen = ", ".join(e.name for e in extractors if e not in able)
        found["protocol"]["second reference"] = (
            f"{BALANCED}: the {len(pool):,} images that the tail was cut from, the literature's reference; "
            f"the generator was trained on {len(prepared.train):,} of them"
            + (f"; {seen} was trained on them and does not judge here" if seen else "")
        )
        found["protocol"]["fingerprints"][BALANCED] = pool.fingerprint
        if able:
            second = against(reference=pool, train=None, extractors=able, reference_name=BALANCED)
            found["numbers"] += [row for row in second["numbers"] if row["reference"] == BALANCED]
    used = any(e.name == efficientnet.NAME for e in extractors)
    found["protocol"]["pretrained_judge"] = "" if judge else efficientnet.note(prepared.train.shape, used)
    found["judge"] = None if judge is None else judge.to_json()
    if options.cas and dist.main:
        seeds = tuple(range(config.seed, config.seed + config.classify.seeds))
        with Progress("classifiers on synthetic images alone", 2 * len(seeds), "classifiers", quiet=quiet) as bar:
            cas, protocol = classification_accuracy_score(
                synthetic, prepared.train, prepared.test, prepared.groups, plan_of(prepared, config),
                seeds=seeds, device=device, progress=lambda done, total: bar.update(done),
            )  # fmt: skip
        cas.into(found)
        found["protocol"]["CAS"] = protocol
    return found
