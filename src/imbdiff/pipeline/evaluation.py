"""The stage `evaluate` of a run: judges, features, numbers, and classifiers that saw synthetic images alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from imbdiff.config import RunConfig
from imbdiff.data.imageset import ImageSet
from imbdiff.data.splits import Prepared
from imbdiff.metrics.evaluate import evaluate
from imbdiff.metrics.extractors import EXTRACTORS, Extractor, make_extractors
from imbdiff.metrics.features import FeatureStore, OnProgress
from imbdiff.metrics.measures import Measure, choose_measures
from imbdiff.pipeline import training
from imbdiff.pipeline.plan import against_balanced
from imbdiff.pipeline.recognising import plan_of
from imbdiff.recognition.cas import classification_accuracy_score
from imbdiff.recognition.trained import judges
from imbdiff.runtime.dist import Dist
from imbdiff.runtime.files import sha256_file
from imbdiff.runtime.progress import PartProgress, Progress
from imbdiff.runtime.tables import code_identity

BALANCED = "balanced training set"
"""What the second reference is called."""


def evaluation_inputs(prepared: Prepared, synthetic: ImageSet, config: RunConfig) -> list[Any]:
    """Everything that decides what the stage gives."""
    options = {k: v for k, v in asdict(config.evaluate).items() if k not in ("batch_size", "measures")}
    options["files"] = [_contents(n) for n in (*config.evaluate.extractors, config.evaluate.inception_weights or "")]
    own = [name for name in config.evaluate.extractors if name.partition(":")[0] not in EXTRACTORS]
    options["code"] = code_identity("extractors", EXTRACTORS, own)
    named = config.evaluate.measures
    options["measures"] = [list(named), code_identity("metrics", choose_measures(), named)]
    cas = [asdict(config.classify), training.symmetry_of(prepared, config)] if config.evaluate.cas else []
    return [synthetic.fingerprint, options, *cas]


def _contents(name: str) -> list[str]:
    """Hashes of the files that an extractor's name mentions: another file at the same path is another extractor."""
    found: list[str] = []
    for path in (Path(part) for part in (name, *name.split(":")) if part):
        if path.is_file():
            found.append(sha256_file(path))
        elif path.is_dir():
            found += [sha256_file(p) for p in sorted(path.iterdir()) if p.is_file()]
    return found


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

    Args:
        folder: of the run: features are kept in ``features/``, the judge in ``judge/``.
    """
    options = config.evaluate
    measures = choose_measures(config.evaluate.measures)
    more = make_extractors(options.extractors, options.inception_weights, prepared.train.shape, device)
    if not dist.main:  # the first process trains the judge, the others read it
        dist.barrier()
    ours, judge = judges(prepared, device=device, folder=folder / "judge")
    if dist.main:
        dist.barrier()
    known = {e.name for e in ours}
    extractors = [*ours, *(e for e in more if e.name not in known)]
    quiet = quiet or not dist.main
    store, watching = FeatureStore(folder / "features", dist=dist), PartProgress(quiet)
    found = evaluate(
        synthetic, prepared.test, prepared.train, prepared.groups, extractors,
        reference_name="test", seed=config.seed, store=store, measures=measures, progress=watching,
    )  # fmt: skip
    if against_balanced(prepared):
        _add_balanced(found, prepared, synthetic, extractors, measures, config.seed, store, watching)
    found["judge"] = None if judge is None else judge.to_json()
    if config.evaluate.cas and dist.main:
        _add_cas(found, prepared, synthetic, config, device, quiet)
    return found


def _add_balanced(
    found: dict[str, Any],
    prepared: Prepared,
    synthetic: ImageSet,
    extractors: Sequence[Extractor],
    measures: Mapping[str, Measure],
    seed: int,
    store: FeatureStore,
    progress: OnProgress,
) -> None:
    """Numbers against all images that the tail was cut from, overall and by group, besides the test split.

    The generator saw some of these images, and who was trained on any of them does not judge against them.
    """
    assert prepared.pool is not None
    seen = [e.name for e in extractors if not e.trained_on.isdisjoint(prepared.pool.hashes)]
    able = [e for e in extractors if e.name not in seen]
    who = f"; {', '.join(seen)} was trained on them and does not judge here" if seen else ""
    found["protocol"]["second reference"] = (
        f"{BALANCED}: the {len(prepared.pool):,} images that the tail was cut from, the literature's reference; "
        f"the generator was trained on {len(prepared.train):,} of them{who}"
    )
    found["protocol"]["fingerprints"][BALANCED] = prepared.pool.fingerprint
    if able:
        more = evaluate(
            synthetic, prepared.pool, None, prepared.groups, able,
            reference_name=BALANCED, seed=seed, store=store, measures=measures, progress=progress,
        )  # fmt: skip
        found["numbers"] += [row for row in more["numbers"] if row["reference"] == BALANCED]


def _add_cas(
    found: dict[str, Any],
    prepared: Prepared,
    synthetic: ImageSet,
    config: RunConfig,
    device: str,
    quiet: bool,
) -> None:
    options = config.classify
    plan = plan_of(prepared, config)
    seeds = tuple(range(config.seed, config.seed + options.seeds))
    with Progress("classifiers on synthetic images alone", 2 * len(seeds), "classifiers", quiet=quiet) as bar:
        cas, protocol = classification_accuracy_score(
            synthetic, prepared.train, prepared.test, prepared.groups, plan,
            seeds=seeds, device=device, progress=lambda done, total: bar.update(done),
        )  # fmt: skip
    cas.into(found)
    found["protocol"]["CAS"] = protocol
