"""Generated photographs against held-out ones, by class group, beside what the codec alone costs.

    imbdiff run skin_lesions_224.zip --out RUN
    python benchmarks/photographs.py RUN

Kernel distance (KD) of EfficientNet-Lite0's features to the test images of the group, with the standard error over
subsets of the training images: of the synthetic images, of training images, and of training images through the codec.
The last two are the floor: as far as real images are from each other, and as far as a perfect generator in the codec's
space could come. Every kind has as many images of each class as there are test images, or all where there are fewer.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch

from imbdiff.data.imageset import ImageSet
from imbdiff.diffusion.saved import load_model
from imbdiff.metrics.extractors.efficientnet import efficientnet_lite0
from imbdiff.metrics.kernel import kernel_distance
from imbdiff.pipeline.run import open_run
from imbdiff.pipeline.sampling import load_samples
from imbdiff.runtime.files import read_json
from results_file import write_result

REPEATS = 10


def some(labels: np.ndarray, wanted: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Rows: of each class as many as `wanted` has, or all."""
    n = np.bincount(wanted)
    return np.concatenate([rng.permutation(np.flatnonzero(labels == k))[: n[k]] for k in range(len(n))])


def through(codec: Any, images: np.ndarray) -> np.ndarray:
    """(N, H, W, C) uint8, encoded and decoded."""
    found = []
    for part in np.array_split(images, max(1, len(images) // 16)):
        x = torch.from_numpy(np.ascontiguousarray(part)).permute(0, 3, 1, 2)
        found.append(codec.decode(codec.encode(codec.store(x))).permute(0, 2, 3, 1).numpy())
    return np.concatenate(found)


def measured(run: Path) -> dict[str, Any]:
    opened, data = open_run(run)
    codec, extractor = load_model(run / "model").codec, efficientnet_lite0()
    names, classes = data.train.class_names, np.arange(len(data.train.class_names))
    synthetic = load_samples(run / "samples", data.train.shape, names)
    real = extractor.features(data.test)
    kinds = {
        "synthetic": synthetic,
        "training": data.train,
        "training, through the codec": ImageSet(through(codec, data.train.images), data.train.labels, names),
    }
    features = {kind: extractor.features(images) for kind, images in kinds.items()}
    scopes = {"all": classes} | {
        name: np.flatnonzero(np.asarray(data.groups.of_class) == g) for g, name in enumerate(data.groups.names)
    }
    rows = []
    for scope, own in scopes.items():
        test = np.isin(data.test.labels, own)
        row: dict[str, Any] = {"group": scope, "classes": len(own), "test images": int(test.sum())}
        for kind, images in kinds.items():
            values = []
            for repeat in range(REPEATS):
                rows_of = some(images.labels, data.test.labels, np.random.default_rng(repeat))
                x = features[kind][rows_of][np.isin(images.labels[rows_of], own)]
                values.append(1000 * kernel_distance(x, real[test]))
            row[f"1000 KD, {kind}"] = f"{np.mean(values):.0f} ± {np.std(values, ddof=1):.0f}"
        rows.append(row)
    stages = {
        name: round(mark["seconds"]) for name, mark in read_json(run / "stages.json").items() if "seconds" in mark
    }
    error = (through(codec, data.test.images).astype(float) - data.test.images) ** 2
    return {
        "codec": codec.name, "size": list(data.train.shape), "method": opened.config.method,
        "backbone": opened.config.model.backbone, "images seen": opened.config.train.images,
        "PSNR of test images through the codec": round(float(10 * np.log10(255**2 / error.mean((1, 2, 3))).mean()), 1),
        "seconds of each stage, on a busy machine": stages, "distances": rows,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = {}
    for run in given.runs:
        found[run.name] = measured(run)
        print(run.name, found[run.name], flush=True)
    write_result("photographs", found, config={"runs": [run.name for run in given.runs]})


if __name__ == "__main__":
    main()
