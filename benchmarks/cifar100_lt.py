"""One real run on CIFAR-100-LT, imbalance factor 100: DDPM against a founding method, at the same seconds of training.

    python benchmarks/cifar100_lt.py --device cuda --minutes 4 --methods ddpm cbdm
    python benchmarks/cifar100_lt.py --images 64 --backbone unet-8 --per-class 2 --steps 2     # does it run at all

Reads `cifar100lt100.npz` of the folder that IMBDIFF_DATA names. How many images a method sees in its minutes is
measured first, on a short training of its own. As many images of every class are drawn by dpm++ in 20 steps with the
method's guidance, and measured against the 10,000 balanced test images: Fréchet distance by group in the features of a
ResNet-56 that was trained on CIFAR-10 (no image of CIFAR-100), and of a fixed random network. Grids of images go into
`--folder`.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from harness import write_result
from imbdiff import preset
from imbdiff.config import RunConfig, override
from imbdiff.data.imageset import ImageSet
from imbdiff.data.splits import Prepared
from imbdiff.diffusion.generate import generate
from imbdiff.diffusion.guidances import guidance_text
from imbdiff.methods import METHODS
from imbdiff.metrics.evaluate import evaluate
from imbdiff.metrics.extractors import Extractor, RandomConv, make_extractors
from imbdiff.pipeline import training
from imbdiff.pipeline.sampling import sampling
from imbdiff.reporting.pictures import sample_grid
from recognition_worlds import source
from results_file import ROOT, short_number

TABLES = ("numbers", "memorisation")
METRICS = ("FD", "FD∞", "KD", "precision", "recall")


def configured(given: argparse.Namespace, method: str, images: int) -> RunConfig:
    values = {
        "data.augment": "mirror", "data.val_fraction": 0.0, "model.backbone": given.backbone, "device": given.device,
        "train.batch_size": given.batch, "train.images": images, "train.preview_images": 0, "method": method,
        "train.warmup_images": min(64_000, images // 10), "sample.guidance.omega": given.omega,
    }  # fmt: skip
    return override(preset("standard"), {k: v for k, v in values.items() if v is not None})


def per_second(prepared: Prepared, given: argparse.Namespace, method: str) -> float:
    """Images per second once it runs: from two short trainings, so that compiling and starting do not count."""

    def seconds(steps: int) -> float:
        began = time.perf_counter()
        training.train(prepared, configured(given, method, steps * given.batch), quiet=True)
        if given.device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    seconds(4)
    few, more = given.probe
    return (more - few) * given.batch / max(seconds(more) - seconds(few), 1e-3)


def extractors(prepared: Prepared, given: argparse.Namespace) -> list[Extractor]:
    named = make_extractors(given.extractors, None, prepared.train.shape, given.device)
    return [*named, RandomConv(prepared.train.shape[2])]


def one(method: str, prepared: Prepared, given: argparse.Namespace) -> dict[str, Any]:
    speed = None if given.images else per_second(prepared, given, method)
    images = given.images or int(60 * given.minutes * (speed or 0) // given.batch * given.batch)
    config = configured(given, method, images)
    began = time.perf_counter()
    model = training.train(prepared, config, quiet=True)  # nothing is continued: its seconds count
    seconds = time.perf_counter() - began
    how = sampling(config)
    labels = np.repeat(np.arange(prepared.stats.num_classes), given.per_class)
    began = time.perf_counter()
    drawn = generate(
        model.to(given.device), labels, np.arange(len(labels)), sampler="dpm++", steps=given.steps,
        guidance=how.guide(model, prepared.groups), batch_size=given.draw, bf16=given.device != "cpu",
    )  # fmt: skip
    drawing = time.perf_counter() - began
    synthetic = ImageSet(drawn, labels, prepared.train.class_names)
    given.folder.mkdir(parents=True, exist_ok=True)
    sample_grid(synthetic, 10, 20).save(given.folder / f"{method}.png")
    report = evaluate(
        synthetic, prepared.test, prepared.train, prepared.groups, extractors(prepared, given),
        reference_name="test", seed=0,
    )  # fmt: skip
    numbers = [
        short_number(row)
        for row in report["numbers"]
        if row["metric"] in METRICS and row["reference"] == "test" and row["value"] is not None
    ]
    for row in numbers:
        if row["metric"].startswith("FD"):
            print(method, row["metric"], row["scope"], f"{row['value']:.3f} ({row['low']:.3f} to {row['high']:.3f})")
    return {
        "method": method, "images seen": images, "seconds of training": seconds, "images/s measured before": speed,
        "images/s of drawing": len(labels) / drawing, 
        "guidance": guidance_text(how.guidance, how.constants), "numbers": numbers,
        "memorisation": report["memorisation"]["summary"],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=["ddpm", "cbdm"], choices=METHODS, metavar="METHOD")
    parser.add_argument("--minutes", type=float, default=4.0, help="of training, of each method")
    parser.add_argument("--images", type=int, help="to see, in place of minutes")
    parser.add_argument("--backbone", default="unet-32")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--extractors", nargs="*", default=["inception"])
    parser.add_argument("--omega", type=float, help="default: the method's")
    parser.add_argument("--per-class", type=int, default=100)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--draw", type=int, default=500, help="images per network call")
    parser.add_argument("--probe", type=int, nargs=2, default=(20, 60), help="steps of the two short trainings")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "cifar100_lt")
    given = parser.parse_args()
    prepared = training.prepare_data(source("cifar100-lt", 0), configured(given, given.methods[0], 64).data)
    found = [one(method, prepared, given) for method in given.methods]
    config = {k: v for k, v in vars(given).items() if k != "folder"}
    config |= {"counts": list(prepared.stats.counts), "groups": prepared.groups.rule}
    result = {"methods": [{k: v for k, v in row.items() if k not in TABLES} for row in found]}
    for key in TABLES:
        result[key] = [{"method": row["method"], **line} for row in found for line in row[key]]
    write_result("cifar100_lt", result, config=config, notes=__doc__ or "")


if __name__ == "__main__":
    main()
