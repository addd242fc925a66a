"""What each method does to the tail, in a world of points where the right answer is known.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python benchmarks/toy_world.py --seeds 5 --workers 2

Ten classes of 500 to 5 points in columns, the same seven rows in all of them: see `toy_mixture`. Every method sees
equally many images. A seed decides the training points, the initial weights and what is drawn. Finished jobs are kept
in `--folder`: the same command continues, and with more methods or seeds trains only those. They do not know of the
code that they were made with: after a change of a method, give another folder.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from imbdiff.config import RunConfig, override
from imbdiff.data.splits import Prepared
from imbdiff.diffusion.generate import generate
from imbdiff.diffusion.guidances import guidance_text
from imbdiff.diffusion.model import DiffusionModel
from imbdiff.diffusion.saved import save_model
from imbdiff.methods import METHODS, method_of
from imbdiff.pipeline.sampling import sampling
from imbdiff.pipeline.training import train
from imbdiff.runtime.errors import ConfigError
from imbdiff.runtime.files import digest, read_json, write_json
from imbdiff.runtime.streams import seed_of
from results_file import ROOT, method_values, scrub, write_result
from toy_mixture import World, lattice, measure, points, training_data
from toy_picture import overview, rarest

BALANCED = "ddpm, balanced data"
FRESH, REPEATED = "fresh points of the true density", "training points, repeated"
REFERENCES = (FRESH, REPEATED)
MEASURES = ("covered", "kept", "borrowed", "precision", "other class", "distance")
DRAWN, TRUTH = 350, 3000
"""Points drawn of each class, 50 per mode; points of the true density that they are compared with."""
SHORT = 0.8
"""Share of the images that cbdm-finetune's DDPM sees: the rest is fine-tuning, 4 : 1 as in CBDM's code."""
LEFT_OUT = {"cbdm-ada": "geometric changes of an image of 1 x 2 pixels make no sense"}
# chosen on seeds 100 to 102, by DDPM on balanced data alone
CONSTANTS: dict[str, Any] = {
    "device": "cpu",
    "model.backbone": "mlp-fine",
    "model.process": "ddpm-cosine-v",
    "train.batch_size": 256,
    "train.lr": 4e-3,
    "train.schedule": "cosine",
}


def configuration(method: str, seed: int, images: int) -> RunConfig:
    named = method_values("ddpm" if method == BALANCED else method)
    return override(RunConfig(), {**CONSTANTS, **named, "seed": seed, "train.images": images})


def trained(method: str, seed: int, images: int, data: Prepared, folder: Path) -> DiffusionModel:
    """The model; one that starts from a trained DDPM gets one of the same seed, within the same number of images."""
    config = configuration(method, seed, images)
    if method_of(config).init == "required":
        short = round(SHORT * images)
        start = folder / "models" / f"ddpm-{seed}-{short}"
        save_model(train(data, configuration("ddpm", seed, short), quiet=True), start)
        config = override(config, {"model.init": str(start), "train.images": images - short})
    return train(data, config, quiet=True)


def job(method: str, seed: int, images: int, folder: Path) -> dict[str, Any]:
    """Trains, draws and measures, without guidance and with the method's own."""
    torch.set_num_threads(1)
    began, world = (time.monotonic(), time.process_time()), lattice()
    data = training_data(world, seed)
    seen = training_data(world, seed, factor=1.0) if method == BALANCED else data
    model = trained(method, seed, images, seen, folder)
    training = time.process_time() - began[1]
    config = configuration(method, seed, images)
    labels = np.repeat(np.arange(world.num_classes), DRAWN)
    seeds = [seed_of(seed, "toy", k, i) for k in range(world.num_classes) for i in range(DRAWN)]
    own = sampling(config)
    found: dict[str, Any] = {}
    for name, how in (("none", replace(own, guidance="none", constants={})), ("own", own)):
        x = points(
            generate(
                model, labels, seeds, sampler=how.sampler, steps=how.steps, guidance=how.guide(model), batch_size=500
            )
        )
        found[name] = rows(world, x, labels, points(seen.train.images), seen.train.labels)
        found[f"rarest {name}"] = x[labels == world.num_classes - 1].tolist()
    return {
        **found,
        "guidance": guidance_text(own.guidance, own.constants),
        "wall seconds": round(time.monotonic() - began[0], 1),
        "CPU seconds": round(time.process_time() - began[1], 1),
        "CPU seconds of training": round(training, 1),
    }


def rows(
    world: World, x: np.ndarray, labels: np.ndarray, shown: np.ndarray, shown_labels: np.ndarray
) -> list[dict[str, float | None]]:
    """The measures of every class."""
    return [
        measure(world, k, x[labels == k], shown[shown_labels == k], world.sample(k, TRUTH, "truth", k))
        for k in range(world.num_classes)
    ]


def reference(name: str, seed: int) -> dict[str, Any]:
    """What is known beforehand: new points of the true density, or the training points again and again."""
    world = lattice()
    data = training_data(world, seed).train
    shown, labels = points(data.images), np.repeat(np.arange(world.num_classes), DRAWN)
    if name == FRESH:
        x = np.concatenate([world.sample(k, DRAWN, "fresh", seed, k) for k in range(world.num_classes)])
    else:
        x = np.concatenate([np.resize(shown[data.labels == k], (DRAWN, 2)) for k in range(world.num_classes)])
    found = rows(world, x, labels, shown, data.labels)
    return {"none": found, "own": found, "guidance": "none"}


def kept_job(method: str, seed: int, images: int, folder: Path) -> dict[str, Any]:
    """`job`, or its result from the folder if it was done with the same settings."""
    world = lattice()
    settings = {
        "method": method, "seed": seed, "images": images, "constants": CONSTANTS, "drawn": DRAWN, "true": TRUTH,
        "world": [world.modes.tolist(), world.sd],
    }  # fmt: skip
    path = folder / f"{method.replace(', ', '-').replace(' ', '-')}-{seed}.json"
    if path.exists() and (old := read_json(path))["settings"] == digest(settings):
        return old
    try:
        result = job(method, seed, images, folder)
    except Exception as error:  # one method that cannot run must not cost the others
        return {"failed": f"{type(error).__name__}: {error}"}
    record = {**result, "settings": digest(settings)}
    write_json(path, record)
    return record


def group_means(result: dict[str, Any], guidance: str, classes: Sequence[int]) -> dict[str, float]:
    """Each measure's mean over the classes that have it."""
    values = {m: [result[guidance][k][m] for k in classes if result[guidance][k][m] is not None] for m in MEASURES}
    return {m: float(np.mean(v)) for m, v in values.items() if v}


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half the width of its 95 % t-interval; 0 for a single value."""
    v = np.asarray(values, dtype=np.float64)
    if len(v) < 2:
        return float(v.mean()), 0.0
    return float(v.mean()), float(stats.t.ppf(0.975, len(v) - 1) * v.std(ddof=1) / len(v) ** 0.5)


def text(values: Sequence[float], signed: bool = False, digits: int = 3) -> str:
    if not values:
        return ""
    mean, half = interval(values)
    return f"{mean:{'+' if signed else ''}.{digits}f} ± {half:.{digits}f}"


Results = dict[str, dict[int, dict[str, Any]]]


def table(results: Results, guidance: str, classes: Sequence[int]) -> list[dict[str, Any]]:
    """One row per method: mean over seeds ± half the 95 % interval."""
    made = []
    for method, by_seed in results.items():
        per_seed = [group_means(r, guidance, classes) for r in by_seed.values()]
        row: dict[str, Any] = {"method": method, "seeds": len(by_seed)}
        if guidance == "own":
            row["guidance"] = next(iter(by_seed.values()))["guidance"]
        made.append({**row, **{m: text([p[m] for p in per_seed if m in p]) for m in MEASURES}})
    return made


def against(results: Results, base: str, guidance: str, classes: Sequence[int]) -> list[dict[str, Any]]:
    """Differences to `base` on the same training points, paired by seed."""
    made = []
    for method, by_seed in results.items():
        pairs = [
            (group_means(r, guidance, classes), group_means(results[base][s], guidance, classes))
            for s, r in by_seed.items()
            if s in results[base]
        ]
        if method in (base, *REFERENCES) or not pairs:
            continue
        gaps = {m: [a[m] - b[m] for a, b in pairs if m in a and m in b] for m in MEASURES}
        made.append({"method": method, **{m: text(v, signed=True) for m, v in gaps.items()}})
    return made


def collect(
    methods: Sequence[str], seeds: Sequence[int], images: int, folder: Path, workers: int
) -> tuple[Results, dict[str, str]]:
    """Runs what is missing: the results, and why jobs failed, by "method, seed"."""
    results: Results = {name: {seed: reference(name, seed) for seed in seeds} for name in REFERENCES}
    failed: dict[str, str] = {}
    jobs = [(method, seed) for seed in seeds for method in methods]
    found: dict[tuple[str, int], dict[str, Any]] = {}

    def note(method: str, seed: int, result: dict[str, Any]) -> None:
        if "failed" in result:
            failed[f"{method}, seed {seed}"] = result["failed"]
            print(f"failed: {method}, seed {seed}: {result['failed']}", flush=True)
            return
        found[method, seed] = result
        print(f"{len(found)}/{len(jobs)} {method}, seed {seed}: {result['wall seconds']} s", flush=True)

    if workers == 1:
        for method, seed in jobs:
            note(method, seed, kept_job(method, seed, images, folder))
    else:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            asked = {pool.submit(kept_job, method, seed, images, folder): (method, seed) for method, seed in jobs}
            for done in as_completed(asked):
                note(*asked[done], done.result())
    for method in methods:
        by_seed = {seed: found[method, seed] for seed in seeds if (method, seed) in found}
        if by_seed:
            results[method] = by_seed
    return results, failed


def report(results: Results, config: dict[str, Any], out: Path) -> Path:
    """Writes the result file, the numbers of every seed and class beside it, and the pictures."""
    groups = training_data(lattice(), 0).groups
    result: dict[str, Any] = {"groups": groups.rule}
    for guidance, words in (("own", "its own guidance"), ("none", "no guidance")):
        few = groups.classes("few")
        result[f"few, {words}"] = table(results, guidance, few)
        if "ddpm" in results:
            result[f"few, {words}: difference from ddpm on the same training points"] = against(
                results, "ddpm", guidance, few
            )
        for group in ("medium", "many"):
            result[f"{group}, {words}"] = table(results, guidance, groups.classes(group))
    clocks = ("CPU seconds of training", "CPU seconds", "wall seconds")
    result["median seconds per run"] = [
        {"method": m, **{c: float(np.median([r[c] for r in by.values()])) for c in clocks}}
        for m, by in results.items()
        if m not in REFERENCES
    ]
    carried = sorted({f"{m} {s}" for m, by in results.items() for s, r in by.items() if r.get("carried")})
    if carried:
        result["taken over from an earlier result file of bit-equal seeds (method and seed)"] = ", ".join(carried)
    paths = write_result("toy_world", result, config=config, notes=NOTES, folder=out)
    stem = paths[0].with_suffix("")
    bare = {
        m: {
            str(s): {k: v for k, v in r.items() if not k.startswith(("rarest", "settings", "carried"))}
            for s, r in by.items()
        }
        for m, by in results.items()
    }
    write_json(stem.with_name(stem.name + "_seeds.json"), scrub(bare))
    few = groups.classes("few")
    values = {
        m: {g: _by_measure([group_means(r, g, few) for r in by.values()]) for g in ("own", "none")}
        for m, by in results.items()
    }
    overview(values, interval, stem.with_suffix(".png"))
    seed = min(min(by) for by in results.values())
    world, data = lattice(), training_data(lattice(), seed).train
    last = world.num_classes - 1
    drawn = {m: np.asarray(by[seed]["rarest own"]) for m, by in results.items() if "rarest own" in by.get(seed, {})}
    rarest(
        world, last, points(data.images)[data.labels == last], drawn, seed, stem.with_name(stem.name + "_rarest.png")
    )
    return paths[1]


def _by_measure(per_seed: Sequence[dict[str, float]]) -> dict[str, list[float]]:
    return {m: [p[m] for p in per_seed if m in p] for m in MEASURES}


NOTES = """\
The world and the measures: `benchmarks/toy_mixture.py`. *covered*: share of a class's seven modes that get at least \
half of their fair share of its samples; *kept* and *borrowed*: the same of the modes that its training points show \
and of those that they do not show; *precision*: share of samples within 4 sd of a mode of the wanted class; *other \
class*: share within 4 sd of another class's; *distance*: squared energy distance to the true density. 350 samples of \
a class against 3,000 true points; the first two rows say what these measures give for a perfect model and for one \
that knows its training points by heart. Mean over seeds ± half the 95 % t-interval. Where transfer works, *borrowed* \
rises and *precision* stays. What it cannot say: in two dimensions points of other classes are near at middling \
noise, where in the space of images they are far, so methods that look at neighbours (T2H) move much more here; and a \
network of which a label only shifts the features borrows rows by itself. Plot of the few group: `<this name>.png`; \
samples of the smallest class, first seed: `<this name>_rarest.png`; every seed and class: `<this name>_seeds.json`."""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="so many, from --first-seed on")
    parser.add_argument("--first-seed", type=int, default=0, help="100 and above were used to choose the constants")
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument(
        "--methods", nargs="+", help='also joined by +, with constants as "cbdm tau=0.3"; default: all, and the control'
    )
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "toy_world")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--workers", type=int, choices=(1, 2), default=2)
    given = parser.parse_args(argv)
    methods = given.methods or [BALANCED, *METHODS]
    for name in methods:
        if name != BALANCED:
            method_of(configuration(name, 0, 1))  # an unknown one is refused before anything is trained
        if name in LEFT_OUT:
            print(f"left out: {name}: {LEFT_OUT[name]}", flush=True)
    methods = [name for name in methods if name not in LEFT_OUT]
    if not methods or given.seeds < 1:
        raise ConfigError("there is nothing to train", "name a method and at least one seed")
    seeds = range(given.first_seed, given.first_seed + given.seeds)
    results, failed = collect(methods, seeds, given.images, given.folder, given.workers)
    config = {
        "seeds": list(seeds), "images": given.images, **CONSTANTS, "drawn per class": DRAWN, "true points": TRUTH,
        "left out": LEFT_OUT, "failed": failed,
    }  # fmt: skip
    print(report(results, config, given.out))


if __name__ == "__main__":
    main()
