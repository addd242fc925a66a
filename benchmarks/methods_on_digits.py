"""The methods against each other on long-tailed digits: what each does to frequent and to rare classes.

    python benchmarks/methods_on_digits.py --workers 2

Same split, network, images seen, learning rate, sampler and number of synthetic images for all; several seeds of
initial weights and draws. Each generator is sampled without guidance and with its method's own. DDPM is trained once
more for the CPU time of the dearest method. Nothing here is chosen by looking at the test images.
A run that was finished before is not repeated: the folder may be kept.

With `--validation` the reference are images that the long tail left out, up to 60 per class, of which the judge saw
none: that is how constants are looked at. A method's constants stand behind its name.

    python benchmarks/methods_on_digits.py --validation --factors 50 --seeds 2 --methods ddpm-brs "cbdm tau=0.1"

With `--backbone mlp-512` a fully connected network stands in for the U-Net.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from imbdiff import preset
from imbdiff.config import RunConfig, override
from imbdiff.data.imageset import ImageSet
from imbdiff.data.splits import Prepared
from imbdiff.diffusion.generate import generate
from imbdiff.diffusion.guidances import guidance_text
from imbdiff.diffusion.model import DiffusionModel
from imbdiff.methods import get_method, method_of
from imbdiff.metrics.evaluate import evaluate
from imbdiff.metrics.intervals import student95
from imbdiff.metrics.measures import MEASURES
from imbdiff.metrics.numbers import Number
from imbdiff.pipeline import training
from imbdiff.pipeline.sampling import sampling
from imbdiff.recognition.trained import judges
from imbdiff.reporting.training import term_shares
from imbdiff.runtime.files import read_json, write_json
from imbdiff.runtime.log import read_jsonl
from results_file import ROOT, method_values, write_result

COMPARED = ("ddpm", "ddpm-brs", "cbdm", "ccua", "diffrc", "t2h", "coral")
LONG = "ddpm, as long as the dearest"
#: metric as `evaluate` names it -> heading
NUMBERS = {"FD∞": "FD∞", "KD": "KD", "precision(k=3)": "precision", "recall(k=3)": "recall",
           "coverage(k=5)": "coverage", "agreement": "agreement"}  # fmt: skip
SCOPES = ("all", "many", "medium", "few")


def configured(job: dict[str, Any]) -> RunConfig:
    values = {**method_values(job["method"]), "data.imbalance_factor": float(job["factor"]), "seed": job["seed"],
              "train.images": job["images"], "model.backbone": job["backbone"]}  # fmt: skip
    return override(preset("demo"), values)


def one(job: dict[str, Any]) -> dict[str, Any]:
    """Trains, draws and measures one generator, unless that was done before; gives what was found."""
    path = (
        Path(job["folder"])
        / ("validation" if job["validation"] else "test")
        / job["backbone"]
        / f"{job['factor']:g}"
        / f"{job['name'].replace(', ', '-').replace(' ', '_')}-{job['seed']}.json"
    )
    if path.exists():
        found = read_json(path)
        if {k: v for k, v in found.items() if k in job and k != "folder"} == {
            k: v for k, v in job.items() if k != "folder"
        }:
            return found
    torch.set_num_threads(1)
    config = configured(job)
    prepared = training.prepare_data("digits", config.data)
    wall, cpu = time.perf_counter(), time.process_time()
    with TemporaryDirectory() as place:
        model = training.train(prepared, config, Path(place), quiet=True)
        shares = {row.term: row.mean for row in term_shares(read_jsonl(Path(place) / "log.jsonl"))}
    found = {**job, "wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
    found["shares"] = shares
    found["drawn"] = [measured(model, prepared, config, guided, job) for guided in (False, True)]
    write_json(path, found)
    print(f"{path.parent.name} {path.stem}: {found['cpu_s']:.0f} CPU s", flush=True)
    return found


def measured(
    model: DiffusionModel, prepared: Prepared, config: RunConfig, guided: bool, job: dict[str, Any]
) -> dict[str, Any]:
    """Draws as many images of every class with the sampler that all methods share, and measures them."""
    how = replace(sampling(config), sampler="dpm++", steps=20)
    if not guided:
        how = replace(how, guidance="none", constants={})
    classes = len(prepared.train.class_names)
    labels = np.repeat(np.arange(classes), job["per_class"])
    images = generate(
        model, labels, np.arange(len(labels)), sampler=how.sampler, steps=how.steps,
        guidance=how.guide(model, prepared.groups), batch_size=100,
    )  # fmt: skip
    synthetic = ImageSet(images, labels, prepared.train.class_names)
    assert prepared.pool is not None
    reference = dropped(prepared, 60) if job["validation"] else prepared.test
    unseen = set(reference.hashes)  # images of the pool that the judge must not see
    seen = [i for i, h in enumerate(prepared.pool.hashes) if h not in unseen]
    extractors, judge = judges(replace(prepared, pool=prepared.pool.select(seen)))
    assert judge is not None
    report = evaluate(
        synthetic, reference, prepared.train, prepared.groups, extractors[:1], reference_name="held out",
        measures=MEASURES, seed=config.seed, workers=1,
    )  # fmt: skip
    rows = {}
    for row in report["numbers"]:
        name = Number.from_json(row).short
        if name in NUMBERS and row["reference"] in ("held out", "label asked for"):
            rows[f"{NUMBERS[name]} {row['scope']}"] = row["value"]
    for row in report["memorisation"]["summary"]:
        rows[f"closeness {row['scope']}"] = row["closeness"]
    return {
        "guidance": guidance_text(how.guidance, how.constants),
        "judge_accuracy": judge.accuracy,
        "n": len(labels),
        "numbers": rows,
    }


def dropped(prepared: Prepared, most: int) -> ImageSet:
    """Up to `most` images per class that are neither training nor test images: those that the long tail left out."""
    assert prepared.pool is not None
    trained = set(prepared.train.hashes)
    labels, keep, seen = prepared.pool.labels.tolist(), [], dict.fromkeys(range(len(prepared.train.class_names)), 0)
    for i, key in enumerate(prepared.pool.hashes):
        if key not in trained and seen[labels[i]] < most:
            keep.append(i)
            seen[labels[i]] += 1
    return prepared.pool.select(keep)


def jobs_of(given: argparse.Namespace) -> list[dict[str, Any]]:
    """By seed first, so that what is there at any moment can be compared."""
    common = {"folder": str(given.folder), "per_class": given.per_class, "images": given.images}
    common |= {"validation": given.validation, "backbone": given.backbone}
    return [
        {**common, "name": method, "method": method, "factor": factor, "seed": seed}
        for seed in range(given.seeds)
        for factor in given.factors
        for method in given.methods
    ]


def long_jobs(given: argparse.Namespace) -> list[dict[str, Any]]:
    """DDPM with as many images as cost it the time of the dearest method.

    By the ratios that `method_costs.py` measured with nothing else running: processor seconds grow when programs share
    a machine.
    """
    out = []
    for factor in given.factors:
        images = round(given.images * max(get_method(m.split()[0]).time or 1.0 for m in given.methods) / 100) * 100
        for job in (j for j in jobs_of(given) if j["name"] == "ddpm" and j["factor"] == factor):
            out.append({**job, "name": LONG, "images": images})
    return out


def summary(found: list[dict[str, Any]], factor: float, guided: bool) -> list[dict[str, Any]]:
    """A row per method: mean over seeds and the half-width of its 95 % interval (Student), per number."""
    table = []
    terms = sorted({term for r in found for term in r["shares"]})
    for name in dict.fromkeys(r["name"] for r in found):
        runs = [r for r in found if r["name"] == name and r["factor"] == factor]
        if not runs:
            continue
        drawn = [r["drawn"][guided] for r in runs]
        row: dict[str, Any] = {
            "method": name, "guidance": drawn[0]["guidance"], "seeds": len(runs), "images": runs[0]["images"],
            "CPU s": float(np.mean([r["cpu_s"] for r in runs])),
            "wall s": float(np.mean([r["wall_s"] for r in runs])),
        }  # fmt: skip
        for key in drawn[0]["numbers"]:
            values = [d["numbers"][key] for d in drawn]
            row[key] = spread(values)
        for term in terms:
            row[f"share {term}"] = float(np.mean([r["shares"].get(term, 0.0) for r in runs]))
        table.append(row)
    return table


def spread(values: list[float | None]) -> str:
    """Mean and half-width; "refused" where the number was refused."""
    there = [v for v in values if v is not None]
    if len(there) < len(values):
        return "refused"
    if len(there) == 1:
        return f"{there[0]:.3f}"
    half = student95(len(there) - 1) * np.std(there, ddof=1) / np.sqrt(len(there))
    return f"{np.mean(there):.3f} ± {half:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=COMPARED, metavar="METHOD")
    parser.add_argument("--backbone", default="unet-8")
    parser.add_argument("--factors", nargs="+", type=float, default=(20.0, 50.0))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=45_000)
    parser.add_argument("--per-class", type=int, default=60)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "methods_on_digits")
    parser.add_argument("--validation", action="store_true", help="measure against images that the long tail left out")
    parser.add_argument("--no-long", action="store_true", help="without DDPM for the time of the dearest method")
    parser.add_argument("--no-result", action="store_true", help="train and measure, write no result file")
    given = parser.parse_args()
    for method in given.methods:
        method_of(configured({"method": method, "factor": 50, "seed": 0, "images": 1, "backbone": given.backbone}))
    with multiprocessing.get_context("spawn").Pool(given.workers) as pool:
        found = list(pool.imap(one, jobs_of(given)))
        if "ddpm" in given.methods and not (given.no_long or given.no_result or given.validation):
            found += list(pool.imap(one, long_jobs(given)))
    if given.no_result:
        return
    result = {
        f"imbalance factor {factor:g}, {'own guidance' if guided else 'no guidance'}": summary(found, factor, guided)
        for factor in given.factors
        for guided in (False, True)
    }
    config = {k: v for k, v in vars(given).items() if k not in ("folder", "workers", "no_long", "no_result")}
    topic = "methods_on_digits_validation" if given.validation else "methods_on_digits"
    write_result(topic, result, config=config, notes=NOTES.format(reference=LEFT_OUT if given.validation else TEST))


TEST = "600 balanced test images that neither it nor any generator saw"
LEFT_OUT = "up to 60 images per class that the tail left out, which neither it nor any generator saw"
NOTES = """Judge: a network of another architecture trained on the balanced pool before the tail was cut; reference:
{reference}; per class as many synthetic images as said, weighted to the
reference's class mix. Mean over seeds of initial weights and samples, with the half-width of the 95 % interval of that
mean (Student); one split. FD∞ and KD: lower is better. CPU and wall seconds of training on one thread were taken beside
other work, and compare with nothing: method_costs has ratios. *share*: of each term in the norm of the gradient, mean
over the training. Sampler: dpm++ in 20 steps for all, also for methods whose paper uses more."""

if __name__ == "__main__":
    main()
