"""How many images of prototype guidance (DiffRC) are of the class that they were meant to be, by the trained judge.

    python benchmarks/guidance_share.py --images 24000 --per_class 16 --steps 50

Trains `diffrc-paper` (classes by guidance alone) and `diffrc` (labels and guidance) on digits, draws the same images,
from the same seeds, with several strengths, and asks the judge, a network that
guided nothing. Writes a result file.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import torch

from imbdiff.config import RunConfig, override
from imbdiff.data.imageset import ImageSet
from imbdiff.data.splits import Prepared
from imbdiff.diffusion.encoder import PrototypeEncoder
from imbdiff.diffusion.generate import generate
from imbdiff.diffusion.model import DiffusionModel
from imbdiff.metrics.agreement import share_agreeing
from imbdiff.pipeline import training
from imbdiff.pipeline.sampling import sampling
from imbdiff.presets import preset
from imbdiff.recognition.trained import Judge, train_judge
from results_file import write_result

SCALES = (0.0, 0.6, 2.0, 10.0, 16.0, 80.0)  # 8 pixels: the gradient with the length of noise is 8 times as long


def recognised(encoder: PrototypeEncoder, test: ImageSet) -> dict[str, float]:
    """Share of the test images whose nearest prototype is their class's, at three noise levels."""
    x0 = encoder.codec.encode(torch.from_numpy(test.images).permute(0, 3, 1, 2))
    found = {}
    for u in (0.0, 0.3, 0.6):
        t = encoder.process.time_from_uniform(torch.full((len(test),), u))
        noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            f = encoder.features(encoder.process.add_noise(x0, noise, t), t)
        nearest = (f @ encoder.prototypes.T).argmax(1).numpy()
        found[f"noise level {u:g}"] = round(float((nearest == test.labels).mean()), 3)
    return found


def shares(
    model: DiffusionModel, config: RunConfig, prepared: Prepared, judge: Judge, per_class: int
) -> list[dict[str, Any]]:
    """A row per setting: agreement in all classes and in each group, and how far images moved."""
    labels = np.repeat(np.arange(prepared.stats.num_classes), per_class)
    of = np.asarray(prepared.groups.of_class)[labels]
    rows, plain = [], None
    for scale in SCALES:
        how = sampling(override(config, {"sample.guidance.prototype.scale": scale}))
        began = time.monotonic()
        images = generate(
            model, labels, np.arange(len(labels)), sampler=how.sampler, steps=how.steps,
            guidance=how.guide(model, prepared.groups), batch_size=how.batch_size,
        )  # fmt: skip
        plain = images if plain is None else plain
        right = judge.extractor.predict(judge.extractor.features(images))
        row: dict[str, Any] = {"scale": scale, "sampler": how.sampler, "steps": how.steps}
        found = share_agreeing(right, labels)
        row["all"] = [round(float(v), 3) for v in (found.value, found.low, found.high)]  # type: ignore[arg-type]
        for g, name in enumerate(prepared.groups.names):
            row[name] = round(float((right == labels)[of == g].mean()), 3)
        moved = np.sqrt(np.square(images.astype(float) - plain).mean(axis=(1, 2, 3)))
        row["moved, gray levels"] = round(float(moved.mean()), 1)
        row["seconds"] = round(time.monotonic() - began, 1)
        rows.append(row)
        print(row, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=24_000, help="of training, the three phases together")
    parser.add_argument("--per_class", type=int, default=16)
    parser.add_argument("--steps", type=int, default=50, help="ancestral steps of diffrc-paper")
    parser.add_argument("--imbalance_factor", type=float, default=50.0)
    parser.add_argument("--methods", nargs="+", default=["diffrc-paper", "diffrc"])
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    began = time.monotonic()
    result: dict[str, Any] = {}
    judge = None
    for method in given.methods:
        config = override(
            preset("tiny"),
            {
                "method": method, "seed": given.seed, "device": "cpu", "data.imbalance_factor": given.imbalance_factor,
                "train.images": given.images, "sample.steps": given.steps if method == "diffrc-paper" else None,
            },
        )  # fmt: skip
        prepared = training.prepare_data("digits", config.data)
        assert prepared.pool is not None
        judge = judge or train_judge(prepared.pool, prepared.test, seed=given.seed)
        trained = time.monotonic()
        model = training.train(prepared, config, quiet=True)
        assert isinstance(model.guide, PrototypeEncoder)
        result[f"{method}: training seconds"] = round(time.monotonic() - trained)
        result[f"{method}: test images at their own prototype"] = recognised(model.guide, prepared.test)
        result[method] = shares(model, config, prepared, judge, given.per_class)
    result["judge's accuracy on the test images"] = round(judge.accuracy, 3) if judge else None
    result["seconds"] = round(time.monotonic() - began)
    notes = (
        "Share of images that the judge puts into the class asked for, with the 95 % Wilson interval; 0.1 is chance. "
        "Scale 0 of `diffrc-paper` is an unconditional model. Moved: RMS difference to the image of the same seed at "
        "scale 0. One training, one seed, a short one: an order of magnitude, not a ranking. At 8 pixels a scale "
        "8 times as large gives the gradient the length of noise; at 32 pixels in colour 55 times."
    )
    write_result("guidance_share", result, config={**vars(given), "scales": SCALES}, notes=notes)


if __name__ == "__main__":
    main()
