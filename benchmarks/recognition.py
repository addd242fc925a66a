"""Do synthetic images help a classifier of a long tail? All arms, over triples of split, generator and classifier.

    python benchmarks/recognition.py digits-50 digits-20 fashion lesions --workers 2
    python benchmarks/recognition.py cifar100-lt --workers 1 --device cuda     # the full grid, for a GPU

Declared before any result was seen, and not changed since:

* Control: the arm without synthetic images of the highest balanced accuracy on validation images, mean over triples.
* Candidate: the way of using synthetic images (method x recipe x curation x use) of the highest balanced accuracy on
  the same validation images.
* Primary comparison: candidate against control, accuracy on the test images of the few-shot group, world digits-50.
* All else is secondary: corrected by Holm for the number of comparisons in its table, or called exploratory.

Test predictions are read when both have been chosen. What was finished is kept; the same command goes on.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from imbdiff.data.imageset import ImageSet
from imbdiff.data.splits import Prepared
from imbdiff.diffusion.generate import generate
from imbdiff.pipeline.sampling import sampling
from imbdiff.pipeline.strategy import images_to_draw
from imbdiff.recognition.arms import Arm
from imbdiff.recognition.curation import curate
from imbdiff.recognition.intervals import holm
from imbdiff.recognition.jobs import Conditions, train_arms
from imbdiff.recognition.plan import FitPlan, literature
from imbdiff.recognition.scores import scores
from imbdiff.recognition.trained import working_extractor
from imbdiff.recognition.use import Use
from imbdiff.runtime.files import digest, read_json
from nested_intervals import nested_interval, nested_p
from recognition_worlds import KEPT, WORLDS, configured, generator, prepared
from results_file import write_result

CONTROLS = ("ce", "resampling", "ldam-drw", "balanced-softmax", "logit-adjustment")
CURATED = "agreement"
"""Near-copy removal is not part of it: of classes of two to five images it leaves next to nothing (it is in `MORE`)."""
DRAW = 1.5
"""Candidates per image wanted."""
SCOPES = ("all", "many", "medium", "few")


@dataclass(frozen=True)
class Way:
    """A way of using synthetic images: how many, which, and how."""

    recipe: str
    curation: str = "none"
    use: Use = field(default_factory=Use)
    number: float = 1.0

    @property
    def label(self) -> str:
        parts = [self.recipe]
        if self.use != Use():
            parts.append(self.use.describe().removeprefix("weight 1, "))
        if self.number != 1:
            parts.append(f"{self.number:.0%} of the images")
        if self.curation != "none":
            parts.append(f"curated: {self.curation}")
        return ", ".join(parts)


BASIC = tuple(Way(recipe, curation) for recipe in ("ce", "balanced-softmax") for curation in ("none", CURATED))
"""Of every method."""
MORE = (
    Way("balanced-softmax", use=Use(weight=0.3)),
    Way("balanced-softmax", use=Use(schedule="real-last")),
    Way("balanced-softmax", use=Use(share=0.25)),
    Way("balanced-softmax", number=0.3),
    Way("balanced-softmax", curation="agreement+diverse"),
    Way("balanced-softmax", curation="agreement+no-copies"),
    Way("ldam-drw"),
)
"""Of the method in `MORE_OF` too: what the rough trials suggested to try."""
MORE_OF = "ddpm-brs"
LEFT_OUT = "left-out real images"
"""In place of synthetic images: real ones that the long tail left out. No user has them: they show what a perfect
generator would bring, and are never a candidate."""
MORE_IN = ("digits-50", "cifar10-lt", "cifar100-lt")
"""Worlds where these are tried."""


@dataclass(frozen=True)
class Trials:
    """How classifiers of a world are trained.

    Attributes:
        plan: of every classifier.
        seeds: classifiers per triple and arm.
        strategy: how many synthetic images are wanted.
    """

    plan: FitPlan
    seeds: int
    strategy: str = "auto"


TRIALS = {
    "digits-50": Trials(FitPlan(steps=500), 2),
    "digits-20": Trials(FitPlan(steps=500), 1),
    # half of the largest
    "fashion": Trials(FitPlan(steps=500, shift=2, symmetry="mirror"), 1, strategy="0.5"),
    # 202 images of every class that has fewer
    "lesions": Trials(FitPlan(steps=400, batch_size=64, shift=2, symmetry="turns"), 1,
                      strategy="0.065"),
    "cifar100-lt": Trials(literature(), 3),
    "cifar10-lt": Trials(literature(200 * 97), 3),
}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """An arm of the study: a recipe alone, or with the images of a method used in some way."""

    arm: Arm
    method: str | None = None
    way: Way | None = None

    @property
    def name(self) -> str:
        return self.arm.name


def cells_of(world: str, methods: Sequence[str] | None = None) -> list[Cell]:
    found = [Cell(Arm(recipe)) for recipe in CONTROLS]
    for method in methods or WORLDS[world].methods:
        for way in (*BASIC, *(MORE if method == MORE_OF and world in MORE_IN else ())):
            found.append(Cell(Arm(way.recipe, way.use, f"{method}: {way.label}"), method, way))
    if world.startswith("digits"):
        ways = (Way("ce"), Way("balanced-softmax"), Way("balanced-softmax", number=0.1))
        found += [Cell(Arm(way.recipe, way.use, f"{LEFT_OUT}: {way.label}"), LEFT_OUT, way) for way in ways]
    return found


def left_out(data: Prepared) -> ImageSet:
    """Images of the pool that are neither training nor validation images, by class; test images are not in it."""
    assert data.pool is not None
    assert data.val is not None
    seen = {*data.train.hashes, *data.val.hashes}
    rows = [i for i, h in enumerate(data.pool.hashes) if h not in seen]
    return data.pool.select(sorted(rows, key=lambda i: (int(data.pool.labels[i]), i)))  # type: ignore[union-attr]


def candidates(world: str, method: str, triple: int, data: Prepared, device: str) -> ImageSet:
    """DRAW times the images wanted of each class, in drawing order; with dpm++ in 20 steps for every method."""
    model, _ = generator(world, method, triple, device)
    counts = [int(np.ceil(DRAW * n)) for n in images_to_draw(TRIALS[world].strategy, data.stats)]
    config = configured(world, method, triple)
    how = replace(sampling(config), sampler="dpm++", steps=20)
    labels = np.repeat(np.arange(len(counts)), counts)
    # a stored draw belongs to these weights and this way of drawing
    facts = read_json(KEPT / "generators" / world / f"{method}-{triple}" / "facts.json")
    key = digest([facts["identity"], counts, repr(how), config.seed, device])
    path = KEPT / "candidates" / world / f"{method}-{triple}-{key[:12]}.npz"
    if not path.exists():
        seeds = np.arange(len(labels)) + 1_000_000 * triple
        images = generate(
            model.to(device), labels, seeds, sampler=how.sampler, steps=how.steps, guidance=how.guide(model),
            batch_size=100,
        )  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path.with_suffix(".partial.npz"), images=images)
        path.with_suffix(".partial.npz").rename(path)
        print(f"{world} {method} {triple}: drew {len(labels)} images", flush=True)
    with np.load(path) as stored:
        images = stored["images"]
    return ImageSet(images, labels.astype(np.int64), data.train.class_names)


def triple_results(world: str, triple: int, given: argparse.Namespace) -> tuple[Prepared, dict[Any, Any], list[Any]]:
    """Trains all arms of a triple: (its data, {(cell, seed): result}, what curation did)."""
    trials, data = TRIALS[world], prepared(world, triple)
    wanted = images_to_draw(trials.strategy, data.stats)
    working = working_extractor(data.train, trials.plan, seed=triple, device=given.device, folder=KEPT / "working")
    arms: dict[Arm, ImageSet | None] = {}
    notes = []
    pools: dict[str, ImageSet] = {}
    for cell in cells_of(world, given.methods):
        images = None
        if cell.method is not None and cell.way is not None:
            if cell.method == LEFT_OUT:
                pools[LEFT_OUT] = left_out(data)
            elif cell.method not in pools:
                pools[cell.method] = candidates(world, cell.method, triple, data, given.device)
            numbers = [round(cell.way.number * n) for n in wanted]
            found = curate(pools[cell.method], numbers, data.train, cell.way.curation, working, seed=triple)
            images = pools[cell.method].select(found.kept)
            if cell.way.curation == CURATED and found.scores is not None:
                s = found.scores
                of_class = np.asarray(data.groups.of_class)[pools[cell.method].labels]
                few = of_class == data.groups.names.index("few")
                notes.append({
                    "method": cell.method, "triple": triple, "candidates": len(s.agrees),
                    "agree": float(s.agrees.mean()), "agree few": float(s.agrees[few].mean()),
                    "near copies": float(s.near_copy.mean()), "near copies few": float(s.near_copy[few].mean()),
                    "kept": len(found.kept), "wanted": sum(numbers),
                })  # fmt: skip
        arms[cell.arm] = images
    print(f"{world}, triple {triple}: {len(arms) * trials.seeds} classifiers", flush=True)
    conditions = Conditions(
        trials.plan, data, tuple(100 * triple + seed for seed in range(trials.seeds)), given.device,
        folder=KEPT / "classifiers" / world / str(triple), workers=given.workers,
        progress=lambda now, n, note: print(f"  {now}/{n} {note}", flush=True) if now % 20 == 0 else None,
    )  # fmt: skip
    done = train_arms(arms, conditions)
    results = {(arm.name, seed): found for arm, own in done.items() for seed, found in enumerate(own)}
    return data, results, _unique(notes)


def _unique(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for i, row in enumerate(rows) if row not in rows[:i]]


def balanced(found: Any, data: Prepared, part: str) -> dict[str, float | None]:
    """Balanced accuracy, and accuracy per scope, of one network's predictions of validation or test images."""
    images = data.val if part == "val" else data.test
    assert images is not None
    got = scores(getattr(found, part).predicted, images.labels, data.groups, data.claimable)
    return {"balanced": got.balanced_accuracy, "all": got.accuracy, **got.groups}


def choose(names: Sequence[str], validation: dict[str, float]) -> str:
    """The best on validation images; of equal ones the first. It gets no test result."""
    return max(names, key=lambda name: validation[name])


def study(world: str, given: argparse.Namespace) -> dict[str, Any]:
    triples = range(given.triples or WORLDS[world].triples)
    runs = [triple_results(world, t, given) for t in triples]
    cells, seeds = cells_of(world, given.methods), range(TRIALS[world].seeds)
    validation = {
        c.name: float(
            np.mean([balanced(found[c.name, s], data, "val")["balanced"] for data, found, _ in runs for s in seeds])
        )
        for c in cells
    }
    control = choose([c.name for c in cells if c.method is None], validation)
    candidate = choose([c.name for c in cells if c.method not in (None, LEFT_OUT)], validation)
    # from here on test images
    shared = WORLDS[world].file is not None
    table = []
    for cell in cells:
        values = [balanced(found[cell.name, s], data, "test") for data, found, _ in runs for s in seeds]
        row: dict[str, Any] = {"arm": cell.name, "validation": 100 * validation[cell.name]}
        for scope in SCOPES:
            of_triple = [
                np.mean([v[scope] for v in values[i * len(seeds) : (i + 1) * len(seeds)]]) for i in range(len(runs))
            ]
            sd = f" ± {100 * np.std(of_triple, ddof=1):.1f}" if len(runs) > 1 else ""
            row[scope] = f"{100 * np.mean(of_triple):.1f}{sd}"
        table.append(row)
    differences = {c.name: {s: against(c.name, control, runs, seeds, s, shared) for s in SCOPES} for c in cells}
    secondary = [(c.name, s) for c in cells if c.method not in (None, LEFT_OUT) for s in ("all", "few")
                 if not (c.name == candidate and s == "few")]  # fmt: skip
    corrected = dict(zip(secondary, holm([differences[n][s]["p"] for n, s in secondary])[0], strict=True))
    rows = []
    for cell in cells:
        if cell.method is None:
            continue
        row = {"arm": cell.name}
        for s in ("all", "few"):
            d = differences[cell.name][s]
            row[f"{s}: difference"] = f"{d['difference']:+.1f} ({d['low']:+.1f} to {d['high']:+.1f})"
            other = "no method" if cell.method == LEFT_OUT else "primary" if world == "digits-50" else d["p"]
            row[f"{s}: p (Holm)"] = corrected.get((cell.name, s), other)
        rows.append(row)
    tests = {s: [int(counted(data, s)) for data, _, _ in runs] for s in SCOPES}
    return {
        "counts": [list(data.stats.counts) for data, _, _ in runs][:1],
        "groups": runs[0][0].groups.rule,
        "test images per triple": tests,
        "validation images per triple": [0 if data.val is None else len(data.val) for data, _, _ in runs],
        "control, chosen on validation": control,
        "candidate, chosen on validation": candidate,
        "candidate against control, points": differences[candidate],
        "arms: accuracy on test images, mean over triples ± their standard deviation": table,
        "with synthetic images against the control, points (95 % interval over triples)": rows,
        "what curation saw": summary([note for _, _, notes in runs for note in notes]),
    }


def counted(data: Prepared, scope: str) -> int:
    return int(rows_of(data, scope).sum())


def rows_of(data: Prepared, scope: str) -> np.ndarray:
    """(N,) which test images belong to a scope."""
    usable = np.asarray(data.claimable)[data.test.labels]
    if scope == "all":
        return usable
    return usable & (np.asarray(data.groups.of_class)[data.test.labels] == data.groups.names.index(scope))


def against(
    name: str, control: str, runs: Sequence[Any], seeds: Sequence[int], scope: str, shared: bool
) -> dict[str, Any]:
    """Difference in accuracy, in points, with its interval over triples, and its p-value."""
    triples = []
    for data, found, _ in runs:
        mine = rows_of(data, scope)
        labels = data.test.labels[mine]

        def right(arm: str, of: Any = found, mine: np.ndarray = mine, labels: np.ndarray = labels) -> np.ndarray:
            return np.array([of[arm, s].test.predicted[mine] == labels for s in seeds]).astype(int)

        triples.append((right(name) - right(control), labels))
    images = [np.arange(len(labels)) for _, labels in triples] if shared else None
    centre, low, high = nested_interval(triples, images=images)
    p = nested_p(triples, images=images) if name != control else 1.0
    return {"difference": 100 * centre, "low": 100 * low, "high": 100 * high, "p": p}


def summary(notes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over triples, per method."""
    table = []
    for method in dict.fromkeys(note["method"] for note in notes):
        own = [note for note in notes if note["method"] == method]
        numbers = {k: float(np.mean([n[k] for n in own])) for k in own[0] if k not in ("method", "triple")}
        table.append({"method": method, **{k: round(v, 3) for k, v in numbers.items()}})
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("worlds", nargs="+", choices=WORLDS)
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help="default: the world's")
    parser.add_argument("--triples", type=int, help="default: the world's")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--no-result", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for world in given.worlds:
        found = study(world, given)
        print(found["control, chosen on validation"], "|", found["candidate, chosen on validation"], flush=True)
        if given.no_result:
            continue
        plan = {"classifier": TRIALS[world].plan.to_json(), "classifiers per triple": TRIALS[world].seeds,
                "strategy": TRIALS[world].strategy, "generator": str(WORLDS[world])}  # fmt: skip
        config = {
            "worlds": given.worlds,
            "methods": given.methods,
            "triples": given.triples,
            "device": given.device,
            **plan,
        }
        write_result(f"recognition_{world.replace('-', '_')}", found, config=config, notes=NOTES)


NOTES = """Every triple has its own split (where the data bring no test images), generator, candidates, curation and
classifiers. Intervals: Student over triples, never narrower than what drawing test images anew gives; with one triple,
a bootstrap of test images and classifier seeds, which is conditional on that split and generator. Splits of digits draw
from the same 1,797 images, so triples are not wholly independent. Curation by a classifier that saw the training split
alone; the shares of near copies are of the method's candidates."""

if __name__ == "__main__":
    main()
