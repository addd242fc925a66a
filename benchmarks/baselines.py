"""Long-tail recipes without synthetic images: the baselines that any claim has to beat.

    python benchmarks/baselines.py fashion-lt --seeds 3 --workers 2
    python benchmarks/baselines.py cifar10-lt --steps 600
    python benchmarks/baselines.py cifar100-lt --device cuda --seeds 3       # the literature's 200 epochs, in full
    python benchmarks/baselines.py cifar100-lt --precision bf16               # in full, on a CPU with bfloat16 units
    python benchmarks/baselines.py cifar100-lt --recipes ce --stop-after 450  # its first epochs

Data: files of the folder that IMBDIFF_DATA names. CIFAR is trained by the
literature's recipe (`imbdiff.recognition.plan.literature`); --steps shortens all of it, its learning rate included. The
test images are the balanced test set, looked at once per network; nothing is chosen. What was finished is kept.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from imbdiff.data.benchmarks import shots, thirds
from imbdiff.data.splits import GroupRule, Prepared, prepare
from imbdiff.recognition.arms import Arm
from imbdiff.recognition.comparison import ArmResult, Summary
from imbdiff.recognition.fitting import CHECK_EVERY, Fit
from imbdiff.recognition.jobs import Conditions, train_arms
from imbdiff.recognition.networks import predict
from imbdiff.recognition.plan import FitPlan, literature
from imbdiff.recognition.recipes import RECIPES, get_recipe
from imbdiff.recognition.scores import scores
from recognition_worlds import KEPT, arrays
from results_file import write_result


@dataclass(frozen=True)
class Task:
    """A data set and how classifiers of it are trained.

    Attributes:
        file: of IMBDIFF_DATA.
        split: arguments of `prepare`.
        plan: of every classifier.
        recipes: compared by default.
        published: what others report, for the table.
    """

    file: str
    split: dict[str, Any]
    groups: GroupRule | None
    plan: FitPlan
    recipes: tuple[str, ...]
    published: dict[str, str]


SHORT = ("ce", "balanced-softmax", "ldam-drw")
TASKS = {
    "fashion-lt": Task(
        "fashion_mnist", {"size": 16, "imbalance_factor": 100.0, "val_fraction": 0.0}, None,
        FitPlan("resnet-small", 1000, shift=2, symmetry="mirror"),
        ("ce", "resampling", "reweighting", "focal", "balanced-softmax", "ldam-drw", "crt", "remix"), {},
    ),
    "cifar10-lt": Task(
        "cifar10", {"imbalance_factor": 100.0, "protocol": "cifar-lt", "val_fraction": 0.0}, thirds,
        literature(200 * 97), SHORT,
        {"ce": "70.4-70.5 (plain recipe)", "balanced-softmax": "77.7 (logit adjustment)", "ldam-drw": "77.0"},
    ),
    "cifar100-lt": Task(
        "cifar100lt100", {"val_fraction": 0.0}, shots, literature(200 * 85), SHORT,
        {"ce": "38.3 (plain recipe)", "balanced-softmax": "43.9 (logit adjustment)", "ldam-drw": "42.0"},
    ),
}  # fmt: skip


def opened(name: str) -> Prepared:
    """The splits of a task, from an .npz that is made where it is missing."""
    task = TASKS[name]
    path = KEPT / "data" / f"{task.file}-whole.npz"
    if not path.exists():
        found = arrays(task.file)
        path.parent.mkdir(parents=True, exist_ok=True)
        names = np.array([str(n) for n in found["class_names"]])
        np.savez(path, **{k: found[k] for k in ("x_train", "y_train", "x_test", "y_test")}, class_names=names)
    return prepare(path, groups=task.groups, **task.split)


def first_steps(data: Prepared, plan: FitPlan, name: str, steps: int, device: str) -> dict[str, Any]:
    """The first steps of a training by `plan`, its learning rate that of the whole schedule."""
    more = iter(range(steps // CHECK_EVERY))
    began = time.perf_counter()
    network = Fit(data.train, plan, get_recipe(name), device=device, stop=lambda: next(more, None) is None).run()
    seconds = time.perf_counter() - began
    result = scores(predict(network, data.test), data.test.labels, data.groups, data.claimable)
    done = min(plan.steps, (steps // CHECK_EVERY + 1) * CHECK_EVERY)
    return {
        "recipe": get_recipe(name).label, "steps done": done, "of": plan.steps, "seconds": seconds,
        "accuracy": result.accuracy, **result.groups,
    }  # fmt: skip


def table(name: str, data: Prepared, plan: FitPlan, given: argparse.Namespace) -> list[dict[str, Any]]:
    """A row per recipe: means and standard deviations over seeds, in points."""
    arms = [Arm(recipe) for recipe in given.recipes or TASKS[name].recipes]
    folder = given.folder / name / (str(plan.steps) + ("" if plan.precision == "fp32" else f"-{plan.precision}"))
    seeds = tuple(range(given.seeds))
    conditions = Conditions(
        plan, data, seeds, given.device, folder=folder, workers=given.workers,
        progress=lambda now, total, note: print(f"{now}/{total} {note}", flush=True),
    )  # fmt: skip
    done = train_arms(dict.fromkeys(arms), conditions)
    rows = []
    for arm in arms:
        row = ArmResult(arm, test=Summary.of(done[arm], "test", data)).to_json(seeds)
        shown: dict[str, Any] = {"recipe": arm.name, "top-1": points(row, "accuracy")}
        shown |= {group: points(row, "groups", group) for group in row["mean"]["groups"]}
        shown |= {"sd of groups": points(row, "group_sd"), "macro-F1": points(row, "macro_f1")}
        shown |= {"ECE": points(row, "ece"), "published top-1": TASKS[name].published.get(arm.recipe, "-")}
        rows.append(shown)
        for key, value in shown.items():
            print(f"  {key}: {value}", flush=True)
    return rows


def points(row: dict[str, Any], *keys: str) -> str:
    mean, sd = row["mean"], row["sd"]
    for key in keys:
        mean, sd = mean[key], None if sd is None else sd[key]
    if mean is None:
        return "-"
    return f"{100 * mean:.1f}" + ("" if sd is None else f" ± {100 * sd:.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, metavar="RECIPE", help="default: the task's")
    parser.add_argument("--steps", type=int, help="default: the recipe's, 200 epochs for CIFAR")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--workers", type=int, help="networks at a time; default: one per core")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="the literature's is fp32")
    parser.add_argument("--stop-after", type=int, help="train so many steps of the schedule only")
    parser.add_argument("--folder", type=Path, default=KEPT / "baselines")
    given = parser.parse_args()
    data = opened(given.task)
    plan = TASKS[given.task].plan
    plan = replace(plan, steps=given.steps or plan.steps, precision=given.precision)
    if given.stop_after:
        torch.set_num_threads(1)
        names = given.recipes or TASKS[given.task].recipes
        result = {"first steps": [first_steps(data, plan, name, given.stop_after, given.device) for name in names]}
    else:
        result = {"recipes": table(given.task, data, plan, given)}
    config = {k: v for k, v in vars(given).items() if k not in ("folder", "workers")}
    shown = {"plan": plan.to_json(), "counts": list(data.stats.counts), "test images": len(data.test),
             "groups": data.groups.rule}  # fmt: skip
    write_result(f"baselines_{given.task.replace('-', '_')}", result, config={**config, **shown}, notes=NOTES)


NOTES = """Accuracy on the balanced test images in per cent, after the last step; mean and standard deviation over
seeds of weights and batches (none with one seed). Groups: accuracy over their test images; "sd of groups" is the
balance figure of the field. One split. Published figures are for the literature's full schedule."""

if __name__ == "__main__":
    main()
