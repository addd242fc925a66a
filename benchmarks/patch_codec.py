"""The patch codec against pixels with the same network: images per second; and whitened channels of equal weight in the
loss against weights by their variance, with which the loss is that of pixels: distance at equal images seen.

python benchmarks/patch_codec.py skin_lesions_224.zip --images 6400
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from imbdiff.config import DataConfig
from imbdiff.data.stats import ClassStats
from imbdiff.diffusion.codec import Codec, IdentityCodec
from imbdiff.diffusion.codecs.patch import PatchCodec
from imbdiff.diffusion.generate import generate
from imbdiff.diffusion.model import DiffusionModel, build_model
from imbdiff.diffusion.process import PROCESSES
from imbdiff.metrics.extractors.efficientnet import efficientnet_lite0
from imbdiff.metrics.kernel import kernel_distance
from imbdiff.pipeline.training import prepare_data
from results_file import write_result

NOTES = """The same network (unet-16, 1.1 million parameters), one thread, CPU seconds. Kernel distance
(EfficientNet-Lite0) of 140 images, 20 of a class, to the test images; of as many training images it is the last number.
A short training: which weights are ahead early, not what they end at."""
PROCESS, BATCH, DRAWN = PROCESSES["ddpm-cosine-v"], 16, 140


def trained(codec: Codec, images: np.ndarray, labels: np.ndarray, stats: ClassStats, seen: int, weight: torch.Tensor,
            seed: int) -> tuple[DiffusionModel, float]:  # fmt: skip
    """unet-16 after `seen` images, of weight (c, 1, 1) in the loss of each channel; CPU seconds of each image."""
    model = build_model("unet-16", PROCESS, codec.image, stats, codec=codec, seed=seed).train()
    optimizer, g = torch.optim.Adam(model.parameters(), 1e-3), torch.Generator().manual_seed(seed)
    began, steps = time.process_time(), seen // BATCH
    torch.manual_seed(seed)  # of dropout
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1, (step + 1) / 40) * (1 + np.cos(np.pi * step / steps)) / 2
        rows = torch.randint(len(images), (BATCH,), generator=g).numpy()
        x0 = codec.encode(torch.from_numpy(images[rows]).permute(0, 3, 1, 2))
        noise, t = torch.randn(x0.shape, generator=g), PROCESS.time_from_uniform(torch.rand(BATCH, generator=g))
        y = torch.from_numpy(labels[rows])
        error = model(PROCESS.add_noise(x0, noise, t), t, y)[0] - PROCESS.target(x0, noise, t)
        (weight * error**2).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval(), (time.process_time() - began) / (steps * BATCH)


def drawn(model: DiffusionModel, n: int, steps: int = 20) -> tuple[np.ndarray, float]:
    """(n, H, W, C) of all classes alike, and CPU seconds of each image."""
    began = time.process_time()
    images = generate(model, np.arange(n) % model.num_classes, range(n), steps=steps, batch_size=min(n, 28))
    return images, (time.process_time() - began) / n


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source")
    parser.add_argument("--images", type=int, default=6400, help="seen by each arm")
    parser.add_argument("--sizes", type=int, nargs="*", default=[64, 128], help="at which speed is measured")
    parser.add_argument("--seeds", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(1)
    speed = {}
    for size in given.sizes:
        data = prepare_data(given.source, DataConfig(size=size)).train
        for name, codec in (("patch", PatchCodec.fit(data.images, 4)), ("pixels", IdentityCodec((3, size, size)))):
            model, train = trained(codec, data.images, data.labels, data.stats, 3 * BATCH, torch.ones(1), 0)
            speed[f"{name} {size}"] = {
                "training images/s": 1 / train,
                "generated images/s": 1 / drawn(model, 8, 3)[1] * 3 / 20,
            }
    prepared = prepare_data(given.source, DataConfig(size=64))
    data, judge = prepared.train, efficientnet_lite0()
    codec = PatchCodec.fit(data.images, 4)
    variance = (codec.std**2 / (codec.std**2).mean())[:, None, None]
    real = judge.features(prepared.test.images, 64)
    rows = []
    for seed in range(given.seeds):
        for name, weight in (
            ("equal", torch.ones(1)),
            ("variance", variance),
            ("deviation", variance.sqrt() / variance.sqrt().mean()),
        ):
            model, _ = trained(codec, data.images, data.labels, data.stats, given.images, weight, seed)
            images, _ = drawn(model, DRAWN)
            rows.append(
                {"weights": name, "seed": seed, "kernel distance": kernel_distance(judge.features(images, 64), real)}
            )
            print(rows[-1], flush=True)
    floor = kernel_distance(judge.features(data.images[:: len(data) // DRAWN][:DRAWN], 64), real)
    print({k: {n: round(v, 2) for n, v in row.items()} for k, row in speed.items()}, floor)
    config = {"source": Path(given.source).name, "images": given.images, "seeds": given.seeds, "drawn": DRAWN}
    write_result(
        "patch_codec", {"speed": speed, "weights": rows, "real training images": floor}, config=config, notes=NOTES
    )


if __name__ == "__main__":
    main()
