"""The patch codec against pixels with one network: quality at equal CPU time (images per second: patch_codec.py).

    python benchmarks/patch_codec_quality.py LESIONS.zip --cpu-minutes 30 --seeds 0 1 2

LESIONS.zip: photographs with a test split, such as skin lesions of 224 pixels. One thread. Every side trains as many
images as its share of the CPU time holds, measured before, and generates as many images of each class as the test split
has. Kernel distance (KD) of EfficientNet-Lite0's features to the test images; difference between sides by seed, with
Student's interval over seeds, and the distances of two floors: real training images, and test images through the codec.
What was trained and generated is kept in runs/latents; the same command goes on.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import torch
from scipy import stats

from imbdiff import preset
from imbdiff.config import RunConfig, override
from imbdiff.data.imageset import ImageSet
from imbdiff.data.splits import Prepared
from imbdiff.diffusion.generate import generate
from imbdiff.diffusion.model import DiffusionModel
from imbdiff.diffusion.saved import load_model, save_model
from imbdiff.metrics.extractors.efficientnet import efficientnet_lite0
from imbdiff.metrics.kernel import kernel_distance
from imbdiff.pipeline import training
from imbdiff.runtime.files import read_json, write_json
from results_file import ROOT, write_result

KEPT = ROOT / "runs" / "latents"
SIDES: dict[str, dict[str, Any]] = {
    "pixels": {"codec.kind": "identity"},
    "patch": {"codec.kind": "patch", "codec.factor": 4, "codec.latent_channels": 16},
}
"""Besides what is common."""


def configured(side: str, size: int, backbone: str, seed: int = 0, images: int = 16_000) -> RunConfig:
    common = {
        "method": "ddpm-brs", "data.size": size, "data.augment": "turns", "model.backbone": backbone, "seed": seed,
        "train.images": images, "train.batch_size": 32, "train.precision": "fp32", "train.preview_images": 0,
        "train.checkpoint_images": images, "device": "cpu",
    }  # fmt: skip
    return override(preset("small"), {**common, **SIDES[side]})


def drawn(model: DiffusionModel, labels: np.ndarray, seed: int, batch: int = 32) -> np.ndarray:
    return generate(model, labels, np.arange(len(labels)) + 10_000 * seed, sampler="dpm++", steps=20, batch_size=batch)


def made(side: str, seed: int, data: Prepared, given: argparse.Namespace) -> tuple[np.ndarray, dict[str, Any]]:
    """Images of one generator, as many of each class as the test split has, and what they cost."""
    folder = KEPT / f"{given.size}-{given.cpu_minutes:g}" / f"{side}-{seed}"
    if not (folder / "images.npy").exists():
        rate_of = KEPT / f"{given.size}-{given.cpu_minutes:g}" / f"{side}.json"
        if not rate_of.exists():  # of steps after the first, on this machine
            began = time.process_time()
            training.train(data, configured(side, given.size, given.backbone, images=32 * 5), folder / "a", quiet=True)
            middle = time.process_time()
            training.train(data, configured(side, given.size, given.backbone, images=32 * 25), folder / "b", quiet=True)
            took = (time.process_time() - middle) - (middle - began)
            write_json(rate_of, {"CPU s per image": took / (32 * 20)})
        images = int(60 * given.cpu_minutes / read_json(rate_of)["CPU s per image"]) // 32 * 32
        config = configured(side, given.size, given.backbone, seed, images)
        began = time.process_time()
        model = training.train(data, config, folder / "training", quiet=True)
        spent = time.process_time() - began
        save_model(model, folder / "model")
        began = time.process_time()
        x = drawn(load_model(folder / "model"), np.sort(data.test.labels), seed)
        cost = {"training images": images, "training CPU s": spent, "generating CPU s": time.process_time() - began}
        write_json(folder / "cost.json", cost)
        np.save(folder / "images.npy", x)
    return np.load(folder / "images.npy"), read_json(folder / "cost.json")


def quality(given: argparse.Namespace) -> dict[str, Any]:
    data = training.prepare_data(given.source, configured("pixels", given.size, given.backbone).data)
    extractor, names, labels = efficientnet_lite0(), data.train.class_names, np.sort(data.test.labels)
    real, rare = extractor.features(data.test), np.asarray(data.groups.of_class) == len(data.groups.names) - 1
    few = {"synthetic": rare[labels], "real": rare[data.test.labels]}

    def distances(images: np.ndarray, own: np.ndarray) -> dict[str, float]:
        x = extractor.features(ImageSet(images, own, names))
        return {
            "all": 1000 * kernel_distance(x, real),
            "few": 1000 * kernel_distance(x[rare[own]], real[few["real"]]),
        }

    rows, values = [], {side: {"all": [], "few": []} for side in SIDES}
    for seed in given.seeds:
        for side in SIDES:
            images, cost = made(side, seed, data, given)
            found = distances(images, labels)
            rows.append({"side": side, "seed": seed, **{f"1000 KD, {k}": v for k, v in found.items()}, **cost})
            print(rows[-1], flush=True)
            for scope, value in found.items():
                values[side][scope].append(value)
    compared = []
    for scope in ("all", "few"):
        d = np.array(values["patch"][scope]) - np.array(values["pixels"][scope])
        low, high = stats.t.interval(0.95, len(d) - 1, d.mean(), stats.sem(d)) if len(d) > 1 else (np.nan, np.nan)
        compared.append({"scope": scope, "patch - pixels": float(d.mean()), "low": float(low), "high": float(high)})
    codec = load_model(KEPT / f"{given.size}-{given.cpu_minutes:g}" / f"patch-{given.seeds[0]}" / "model").codec
    pixels = torch.from_numpy(np.ascontiguousarray(data.test.images)).permute(0, 3, 1, 2)
    through = codec.decode(codec.encode(codec.store(pixels))).permute(0, 2, 3, 1).numpy()
    draw = np.random.default_rng(0).permutation(len(data.train))[: len(data.test)]
    floors = [
        {"floor": "training images", **distances(data.train.images[draw], data.train.labels[draw])},
        {"floor": "test images through the patch codec", **distances(through, data.test.labels)},
    ]
    return {"generators": rows, "difference in 1000 KD": compared, "floors, 1000 KD": floors}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--backbone", default="unet-16")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--cpu-minutes", type=float, default=30)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = quality(given)
    for key, table in found.items():
        print(key, table, sep="\n  ", flush=True)
    config = {k: v for k, v in vars(given).items() if k != "source"}
    write_result("patch_codec_quality", found, config=config)


if __name__ == "__main__":
    main()
