"""Realistic inputs for the page, made from scikit-learn's digits: the "synthetic" images are noisy real ones."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import cache
from typing import Any

import numpy as np
from sklearn.datasets import load_digits

from imbdiff.data.imageset import ImageSet
from imbdiff.data.stats import ClassStats, Groups
from imbdiff.metrics.memorisation import memorisation_report
from imbdiff.recognition.arms import ARMS, PRIMARY
from imbdiff.recognition.decision import Decision
from imbdiff.recognition.scores import mean_of, scores, sd_of
from imbdiff.recognition.verdict import choose_control, verdict
from imbdiff.reporting.content import ReportData
from imbdiff.runtime.streams import rng

COUNTS = (110, 71, 46, 29, 19, 12, 8, 5, 3, 2)


def images(counts: tuple[int, ...] = COUNTS, drawn: int = 20) -> tuple[ImageSet, ImageSet]:
    """A long-tailed training set of digits, and `drawn` noisy copies per class."""
    random = np.random.default_rng(0)
    x, y = load_digits(return_X_y=True)
    x = (x.reshape(-1, 8, 8, 1) * 255 / 16).astype(np.uint8)
    kept = np.concatenate([np.flatnonzero(y == k)[:n] for k, n in enumerate(counts)])
    names = tuple(str(k) for k in range(len(counts)))
    train = ImageSet(x[kept], y[kept].astype(np.int64), names, tuple(f"train/{i}" for i in kept))
    fake, labels = [], []
    for k in range(len(counts)):
        own = train.images[train.labels == k]
        picked = own[random.integers(len(own), size=drawn)].astype(int)
        fake.append(np.clip(picked + random.normal(0, 28, picked.shape), 0, 255).astype(np.uint8))
        labels += [k] * drawn
    return train, ImageSet(np.concatenate(fake), np.array(labels, dtype=np.int64), names)


def log(rows: int = 400) -> list[dict[str, Any]]:
    random = np.random.default_rng(1)
    out: list[dict[str, Any]] = []
    for i in range(rows):
        base = 0.08 + 0.9 * np.exp(-i / 30) + 0.02 * abs(random.normal())
        balance = 0.004 + 0.02 * np.exp(-i / 80) * (1 + 0.2 * random.normal())
        out.append({"step": i * 10, "images": i * 640, "loss": base + balance, "denoising": base,
                    "class_balancing": balance, "lr": 2e-4, "seconds": 0.1 * i})  # fmt: skip
    return out


SCOPES = {"all": (795, 600), "many": (120, 180), "medium": (372, 240), "few": (303, 180)}
EXTRACTORS = (("judge-cnn", "3f9ac1d2e4b5a6978812" * 3, False, 64), ("random-conv", "77aa01" * 10, True, 512))
VALUES = {
    # number: (direction, value of "all" and what is added per smaller group, value of real images, half width)
    "FD": ("lower", 21.4, 6.0, 5.0, 2.0), "FD∞": ("lower", 20.1, 6.0, 4.0, 3.0),
    "KD": ("lower", 0.031, 0.01, 0.004, 0.006),
    "precision": ("higher", 0.82, -0.05, 0.93, 0.04), "recall": ("higher", 0.51, -0.12, 0.88, 0.05),
    "density": ("higher", 0.86, -0.05, 0.98, 0.09), "coverage": ("higher", 0.74, -0.08, 0.9, 0.04),
    "F8": ("higher", 0.8, -0.1, 0.95, 0.03), "F1/8": ("higher", 0.9, -0.02, 0.96, 0.02),
    "diversity": ("nearer 1", 0.88, -0.06, 0.99, 0.03),
    "agreement": ("higher", 0.91, -0.04, 0.97, 0.02),
}  # fmt: skip
K = {"precision": 3, "recall": 3, "density": 5, "coverage": 5}
AGAINST_TRAIN = ("FD", "FD∞", "KD", "precision", "recall", "density", "coverage")


def _reason(number: str, n: int) -> str | None:
    """Why the number of a scope with n images is refused here: Fréchet distances of small groups."""
    if number == "FD" and n < 400:
        return f"32 features need an effective n of at least 640 in both sets, here {n}; use FD∞"
    if number == "F8" or number == "F1/8":
        return f"200 clusters (20 a class) need at least 1000 images in both sets; here {n} and {n}"
    return None


def _record(
    number: str, scope: str, n: tuple[int, int], step: int, reference: str, who: int, real: bool
) -> dict[str, Any]:
    name, fingerprint, ranking_only, _ = EXTRACTORS[who]
    direction, value, more, yard, half = VALUES[number]
    n = (n[0] // 3, n[1]) if real else n
    refused = _reason(number, min(n))
    value = yard if real else value + step * more
    return {
        "metric": number, "k": K.get(number), "is_fid": False, "scope": scope, "value": None if refused else value,
        "low": None if refused else value - half, "high": None if refused else value + half, "refused": refused,
        "n_synthetic": n[0], "n_reference": n[1], "n_effective": float(min(n)), "direction": direction,
        "reference": reference, "extractor": name, "fingerprint": fingerprint, "ranking_only": ranking_only,
        "judge_saw_reference": reference == "train" and who == 0, "classes_left_out": 0,
        "extra": {"small_sample": number == "FD∞" and n[0] < 400} if number == "FD∞" else {},
    }  # fmt: skip


def _cas(scope: str, n: tuple[int, int], step: int, real: bool) -> dict[str, Any]:
    value = 0.9 if real else 0.87 - 0.06 * step
    return {
        **_record("agreement", scope, n, step, "test", 0, real), "metric": "CAS", "value": value, "low": value - 0.03,
        "high": value + 0.03, "extractor": "resnet, trained on other images", "fingerprint": "d5de" * 10,
    }  # fmt: skip


def metrics(names: tuple[str, ...] = tuple("0123456789"), counts: tuple[int, ...] = COUNTS) -> dict[str, Any]:
    """Numbers in the form of `evaluate`: two extractors, two references; FD refused for small groups, F8 for all."""
    numbers, baselines = [], []
    for who in range(len(EXTRACTORS)):
        for step, (scope, n) in enumerate(SCOPES.items()):
            for number in VALUES:
                if number == "agreement" and who == 1:
                    continue
                asked = ("label asked for", "labels of the test images") if number == "agreement" else ("test", "test")
                numbers.append(_record(number, scope, n, step, asked[0], who, False))
                baselines.append(_record(number, scope, n, step, asked[1], who, True))
                if number in AGAINST_TRAIN:
                    numbers.append(_record(number, scope, (n[0], 305), step, "train", who, False))
    for step, (scope, n) in enumerate(SCOPES.items()):
        numbers.append(_cas(scope, n, step, False))
        baselines.append(_cas(scope, n, step, True))
    return {
        "schema": "imbdiff-metrics/1",
        "protocol": {
            "class_mix": "weighted to the class mix of the reference",
            "measures": {"frechet": {"what": "squared Fréchet distance", "source": "Heusel et al. 2017"}},
            "agreement": "share put into the class asked for", "memorisation": "nearest training images",
            "reference": "test", "n_reference": 600, "n_synthetic": 795, "n_train": sum(counts), "groups": "by rank",
            "extractors": [
                {"name": name, "fingerprint": fingerprint, "role": "judge", "dim": dim, "preprocessing": "none",
                 "weights": "", "trained_on": "" if ranking else "1,197 images, by hash", "ranking_only": ranking,
                 "is_fid": False, "verified": None}
                for name, fingerprint, ranking, dim in EXTRACTORS
            ],
            "fingerprints": {"synthetic": "aa" * 32, "reference": "bb" * 32, "train": "cc" * 32},
            "subsets": "by hash", "seed": 0, "CAS": "accuracy on real images",
        },
        "numbers": numbers,
        "baselines": baselines,
        "classes": classes(names, counts),
        "memorisation": None,
    }  # fmt: skip


def classes(names: tuple[str, ...], counts: tuple[int, ...]) -> dict[str, Any]:
    """Columns over the classes: quality falls with the training count; recall is refused for the smallest tenth."""
    c, random = len(names), np.random.default_rng(3)
    share = np.log(np.maximum(counts, 1) + 1) / np.log(max(counts) + 1)
    smallest = np.argsort(np.asarray(counts), kind="stable")[: max(1, c // 10)]
    columns = []
    for of, number, reference in (
        ("synthetic", "agreement", "label asked for"), ("reference", "agreement", "labels of the test images"),
        ("synthetic", "KD", "test"), ("train", "KD", "test"), ("synthetic", "recall", "test"),
        ("train", "recall", "test"), ("synthetic", "FD∞", "test"),
    ):  # fmt: skip
        direction, value, _, yard, half = VALUES[number]
        mine = yard + 0 * share if of != "synthetic" else value * (0.7 + 0.3 * share)
        mine = np.clip(mine + 0.1 * half * random.normal(size=c), 0, 1)
        known = np.ones(c, bool)
        if number == "recall":
            known[smallest] = False
        if number == "FD∞":
            known[:] = False
        some: list[list[Any]] = [
            [float(v) if k else None for v, k in zip(values, known, strict=True)]
            for values in (mine, np.clip(mine - half, 0, 1), np.clip(mine + half, 0, 1))
        ]
        name, fingerprint, ranking_only, _ = EXTRACTORS[0]
        columns.append({
            "of": of, "metric": number, "k": K.get(number), "is_fid": False, "reference": reference, "extractor": name,
            "fingerprint": fingerprint, "direction": direction, "ranking_only": ranking_only,
            "judge_saw_reference": False, "value": some[0], "low": some[1], "high": some[2],
            "n_synthetic": [90] * c, "n_reference": [60] * c, "n_effective": [60.0] * c,
            "refused": [None if k else 0 for k in known], "reasons": [] if known.all() else ["too few; here 4"],
        })  # fmt: skip
    third = max(1, c // 3)
    order = np.argsort(-np.asarray(counts), kind="stable")
    group = np.empty(c, dtype=object)
    group[order] = ["many"] * third + ["medium"] * (c - 2 * third) + ["few"] * third if c > 2 else ["many"] * c
    return {"names": list(names), "group": group.tolist(), "n_synthetic": [90] * c, "n_reference": [60] * c,
            "n_train": list(counts), "metrics": columns}  # fmt: skip


def minimal(stats: ClassStats | None = None) -> ReportData:
    """The least that a page can be made of."""
    stats = stats or ClassStats(tuple(str(k) for k in range(10)), COUNTS)
    return ReportData("digits", "imbdiff run digits", "ddpm", "digits", stats, Groups.default(stats), run="runs/digits")


def measured(train: ImageSet, synthetic: ImageSet, held: ImageSet | None, **more: Any) -> dict[str, Any]:
    """Made-up numbers, and what is really found about copies."""
    found = memorisation_report(synthetic, train, held, Groups.default(train.stats), **more)
    return {**metrics(train.class_names, train.stats.counts), "memorisation": found}


@cache
def full() -> ReportData:
    """A page with every part but curation."""
    train, synthetic = images()
    return replace(
        trained(train.stats),
        title="digits · CBDM · imbalance factor 55",
        command="imbdiff run digits --method cbdm --data.imbalance-factor 50 --seed 0 --out runs/digits",
        method="cbdm",
        environment={"python": "3.11.9", "torch": "2.13.0", "cpu": {"model": "a CPU", "cores": 2}, "gpu": None},
        config={"train": {"steps": 2500, "batch_size": 64, "lr": 2e-4}, "sample": {"scheduler": "dpm++", "steps": 20}},
        warnings=("class '9' has 2 training images: it is left out of per-class claims",
                  "class '8' has 3 training images: it is left out of per-class claims"),
        manifest={"counts": {"train": list(COUNTS), "val": [6] * 10, "test": [60] * 10, "pool": None},
                  "hash": "9d3b" * 16, "seed": 0, "long_tail": {"profile": "exponential", "imbalance_factor": 50},
                  "test_from": "60 images per class", "val_from": "images that the profile dropped"},
        train=train,
        synthetic=synthetic,
        log=log(),
        metrics=measured(train, synthetic, train),
        timings={"prepare": 0.8, "train": 212.4, "sample": 31.0, "evaluate": 12.6, "classify": 8.1},
        protocol={"Sampler": "DPM-Solver++, 20 steps"},
    )  # fmt: skip


def decided(seeds: int = 3) -> list[dict[str, Any]]:
    """How each seed's classifier decides: τ 0.2, 0.4 and so on."""
    return [asdict(Decision(0.2 * (i + 1), 1.5, "chosen on 107 validation images")) for i in range(seeds)]


def trained(stats: ClassStats, per_class: int = 30, seeds: int = 3, controls: bool = False) -> ReportData:
    """Real results of made-up networks: the rarer the class, the worse, less so with synthetic images; too sure.

    Args:
        controls: no arm without synthetic images was chosen, all of them are to be beaten.
    """
    c, random = stats.num_classes, np.random.default_rng(4)
    groups = Groups.default(stats)
    labels = np.repeat(np.arange(c), per_class)
    test = ImageSet(np.zeros((len(labels), 2, 2, 1), np.uint8), labels, stats.names)
    size = np.log(np.array(stats.counts) + 1) / np.log(max(stats.counts) + 1)

    def network(arm: Any) -> tuple[np.ndarray, np.ndarray]:
        p = np.clip(0.5 + 0.45 * size + 0.1 * arm.needs_synthetic * (1 - size), 0, 0.99)[labels]
        right = random.random(len(labels)) < p
        return np.where(right, labels, (labels + 1) % c), np.clip(p + random.normal(0.08, 0.1, len(p)), 1 / c, 1)

    rows, predictions = [], {}
    for arm in ARMS:
        made = [network(arm) for _ in range(seeds)]
        predictions[arm.name] = np.array([one[0] for one in made])
        own = [scores(one[0], labels, groups, (True,) * c, one[1]) for one in made]
        runs = [{"seed": i, **one.to_json()} for i, one in enumerate(own)]
        decisions = decided(seeds)
        means = {"mean": mean_of(own).to_json(), "sd": sd_of(own).to_json()}
        rows.append({**arm.to_json(), "runs": runs, **means, "decisions": decisions})
    alone = {arm.name: 0.5 + 0.1 * (arm.recipe == "balanced-softmax") for arm in ARMS if not arm.needs_synthetic}
    control = choose_control(alone, None if controls else test, (True,) * c)
    made_of = [arm.name for arm in ARMS if arm.needs_synthetic]
    judged = verdict(predictions, test, groups, (True,) * c, control, PRIMARY, made_of)
    found = {"protocol": {"steps": 500, "n_test": len(test)}, "arms": rows}
    found |= {"control": asdict(control), "verdict": asdict(judged)}
    return replace(minimal(stats), groups=groups, classifier=found)


HOSTILE = "<script>alert(1)</script>"
REASONS = ("kept", "other class", "low probability", "near copy", "exact copy", "out", "approximate", "surplus")


def curated(classes: int = 4, per_class: int = 16, size: int = 8) -> ReportData:
    """Class k has 3 + k real images and `per_class` candidates, of the reasons in turn; class 0 has none."""
    names = tuple(f"{HOSTILE} {k}" for k in range(classes))
    stats = ClassStats(names, tuple(3 + k for k in range(classes)))
    labels = np.repeat(np.arange(1, classes), per_class).astype(np.int64)
    images = rng(0, "test").integers(0, 256, (len(labels), size, size, 3), dtype=np.uint8)
    candidates = ImageSet(images, labels, names, tuple(f"{k}/{i:06d}.png" for i, k in enumerate(labels)))
    rows: list[dict[str, Any]] = []
    for i, k in enumerate(labels.tolist()):
        reason = REASONS[i % len(REASONS)]
        rows.append({
            "file": candidates.ids[i], "label": k, "kept": reason == "kept", "reason": reason, "predicted": 0,
            "agrees": False, "probability": 0.123, "distance": 1.0, "ratio": 4.56, "zone": "out", "copy_ratio": 0.789,
            "near_copy": False, "exact_copy": False, "apart": None,
        })  # fmt: skip
    kept = np.bincount(labels[[row["kept"] for row in rows]], minlength=classes)
    manifest = {
        "policy": "agreement", "words": f"Kept are images {HOSTILE}.", "images": rows, "class_names": list(names),
        "classifier": {"name": "working-x", "trained_on": "the training split", "decides": "as if flat", "plan": {}},
        "zones": {"in-distribution": 1.11, "out": 2.22}, "copy_limit": 0.33, "warnings": [f"short:\n  {HOSTILE}"],
        "counts": {
            "wanted": [0, *[3] * (classes - 1)], "candidates": [0, *[per_class] * (classes - 1)], "kept": kept.tolist(),
        },
    }  # fmt: skip
    return replace(
        minimal(stats), groups=Groups.by_quantile(stats), curated={**manifest, "candidates": candidates}
    )  # fmt: skip


GROUPS = ("many", "medium", "few")


def _accuracies(base: float, seeds: int = 3, sd: float = 0.012) -> dict[str, Any]:
    values = [round(base + sd * (i - 1), 4) for i in range(seeds)]
    by_group = {g: round(base + d, 4) for g, d in zip(GROUPS, (0.13, 0.02, -0.16), strict=True)}
    return {
        "mean": {"balanced": base, "accuracy": base + 0.01, "groups": by_group},
        "sd": {"balanced": sd, "accuracy": sd, "groups": dict.fromkeys(GROUPS, 2 * sd)},
        "seeds": values,
    }


def _arm(name: str, base: float) -> dict[str, Any]:
    return {
        "name": name, "number": None, "wanted": 0, "images": 0, "short": 0, "curation": None, "recipe": name,
        "label": name, "use": None, "reason": None, "validation": _accuracies(base),
        "decisions": decided(),
    }  # fmt: skip


def _cell(number: str, wanted: int, images: int, curation: str, label: str, base: float, use: str) -> dict[str, Any]:
    return {
        "name": f"{number}, {curation}: {label}, {use}", "number": number, "wanted": wanted, "images": images,
        "short": 4 if images < wanted else 0, "curation": curation, "recipe": label, "label": label,
        "use": {"words": use}, "reason": None, "validation": _accuracies(base),
        "decisions": decided(),
    }  # fmt: skip


def compared(n: int, outcome: str, *numbers: float) -> dict[str, Any]:
    difference, low, high = numbers or (None, None, None)
    row = {"outcome": outcome, "difference": difference, "low": low, "high": high, "n": n, "reason": None}
    return {**row, "against": "balanced softmax", "p": 0.01, "p_adjusted": 0.02, "corrected": True}


def study(weights: tuple[str, ...] = ("weight 1", "weight 0.5"), **changes: Any) -> dict[str, Any]:
    """A grid of 3 numbers, 2 curations, 2 recipes and the weights; the best cell adds 4,200 images."""
    rows = [_arm("CE", 0.61), _arm("CE + class-balanced resampling", 0.63), _arm("balanced softmax", 0.66)]
    random = np.random.default_rng(0)
    for number, wanted in (("0.25", 900), ("0.5", 2300), ("1.0", 5400)):
        for curation, share in (("none", 1.0), ("agreement+no-copies", 0.8)):
            for label, gain in (("CE", 0.0), ("balanced softmax", 0.03)):
                for use in weights:
                    base = 0.62 + gain + wanted / 5400 * 0.05 + 0.01 * (share < 1) + random.normal(0, 0.004)
                    rows.append(_cell(number, wanted, int(share * wanted), curation, label, round(base, 4), use))
    best = max(rows, key=lambda r: r["validation"]["mean"]["balanced"])
    scopes = {
        "all": compared(2000, "helped", 0.031, 0.012, 0.051),
        "many": compared(700, "no difference", -0.004, -0.018, 0.009),
        "medium": compared(700, "helped", 0.021, 0.001, 0.04),
        "few": {**compared(12, "not measured"), "reason": "fewer than 20 test images"},
    }
    found = {
        "schema": "imbdiff-study/1",
        "run": "runs/digits-ddpm-0",
        "source": "digits",
        "grid": {"numbers": ["0.25", "0.5", "1.0"], "seeds": 3},
        "protocol": {"network": "resnet-small", "steps": 500, "seeds": [0, 1, 2], "n_val": 110, "n_test": 2000},
        "groups": list(GROUPS),
        "rows": rows,
        "missing": [],
        "recommendation": {
            "name": best["name"], "score": best["validation"]["mean"]["balanced"], "control": "balanced softmax",
            "control_score": 0.66, "compared": len(rows), "equal": [], "rule": "the highest",
        },
        "test": {
            "numbers": {best["name"]: _accuracies(0.7654), "balanced softmax": _accuracies(0.7321)}, "scopes": scopes,
        },
        "curated": [],
        "readings": [{}],
        "why_not": None,
        "apply": ["imbdiff sample RUN --sample.strategy 1.0", "imbdiff classify RUN --classify.synthetic ce"],
        "command": "imbdiff study runs/digits-ddpm-0 --numbers 0.25 0.5 1.0",
        "seconds": 1234.5,
    }  # fmt: skip
    return {**found, **changes}
