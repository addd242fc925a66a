"""Few-step solvers against 1,000 ancestral steps: quality against steps, and images per second.

    python benchmarks/sampling.py quality --workers 2
    python benchmarks/sampling.py speed
    python benchmarks/sampling.py speed --backbone unet-32 --size 32 --device cuda --batch 256

quality: one generator of long-tailed digits (imbalance factor 20, DDPM with batch resampling), drawn by every way with
classifier-free guidance: as many images of every class, image i of one class and seed in all ways. Fréchet distance and
recall against 600 test images that no network here saw. Differences from the 1,000-step images, with intervals from
resampling images (of all ways together, class by class) and test images. What was drawn is kept; the same command goes
on.

speed: whole drawings, alternating in one process: 1,000 ancestral steps with guidance in two passes, as the field's
code writes them, against `generate`.
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from harness import Side, compare, write_result
from imbdiff import preset
from imbdiff.config import RunConfig, override
from imbdiff.data.imageset import ImageSet
from imbdiff.data.stats import ClassStats
from imbdiff.diffusion.backbones import _unet
from imbdiff.diffusion.generate import generate
from imbdiff.diffusion.guidance import ClassifierFree
from imbdiff.diffusion.model import DiffusionModel, build_model
from imbdiff.diffusion.process import DDPM
from imbdiff.diffusion.saved import load_model, save_model
from imbdiff.metrics.frechet import frechet_distance
from imbdiff.metrics.neighbours import precision_recall
from imbdiff.pipeline import training
from imbdiff.recognition.trained import judges
from imbdiff.runtime.files import digest
from results_file import ROOT

# 1,000 guided steps of thousands of images take a CPU hours with the smallest U-Net of the package:
# --backbone module:sampling:UNET_8_HALF
UNET_8_HALF = ("unet", _unet((16, 32), (1,), 1, 8, 0.1), "a quarter of unet-8's operations")
OMEGA = 0.8


@dataclass(frozen=True)
class Way:
    sampler: str
    steps: int
    interval: tuple[float, float] = (0.0, 1.0)

    @property
    def label(self) -> str:
        where = "" if self.interval == (0.0, 1.0) else f", guided in {self.interval[0]:g}-{self.interval[1]:g}"
        return f"{self.sampler} {self.steps}{where}"


REFERENCE = Way("ddpm", 1000)
WAYS = (
    REFERENCE,
    Way("ddim", 250), Way("ddim", 100), Way("ddim", 50),
    *(Way(sampler, steps) for sampler in ("dpm++", "unipc") for steps in (10, 15, 20, 25)),
    Way("dpm++", 20, (0.1, 0.9)), Way("dpm++", 20, (0.2, 0.8)), Way("dpm++", 20, (0.0, 0.7)),
)  # fmt: skip


def configured(given: argparse.Namespace) -> RunConfig:
    values = {"data.imbalance_factor": 20.0, "model.backbone": given.backbone, "train.images": given.images}
    return override(preset("demo"), {**values, "method": "ddpm-brs", "model.process": given.process})


def generator(given: argparse.Namespace) -> Path:
    """The folder of the generator; trained where it is missing."""
    config = configured(given)
    prepared = training.prepare_data("digits", config.data)
    folder = given.folder / digest([training.training_inputs(prepared, config)])[:12]
    if not (folder / "model" / "model.json").exists():
        save_model(training.train(prepared, config, folder), folder / "model")
    return folder


def draw(job: tuple[Path, Way, int]) -> None:
    folder, way, n = job
    path = folder / f"{way.label.replace(' ', '_').replace(',', '')}-{n}.npy"
    if path.exists():
        return
    torch.set_num_threads(1)
    model = load_model(folder / "model")
    parts = []
    for start in range(0, n, 250):  # kept as they come: 1,000 steps take long
        part = path.with_name(f".{path.stem}-{start}.npy")
        if not part.exists():
            seeds = np.arange(start, min(n, start + 250))
            guidance = ClassifierFree(OMEGA, model.null, model.process, way.interval)
            images = generate(
                model, seeds % model.num_classes, seeds, sampler=way.sampler, steps=way.steps, guidance=guidance,
                batch_size=250,
            )  # fmt: skip
            with open(part.with_suffix(".partial"), "wb") as handle:
                np.save(handle, images)
            part.with_suffix(".partial").rename(part)
        parts.append(part)
    np.save(path, np.concatenate([np.load(part) for part in parts]))
    for part in parts:
        part.unlink()
    print(f"drew {way.label}", flush=True)


def drawn(folder: Path, way: Way, n: int) -> np.ndarray:
    return np.load(folder / f"{way.label.replace(' ', '_').replace(',', '')}-{n}.npy")


def quality(given: argparse.Namespace) -> dict[str, Any]:
    folder = generator(given)
    dear_first = sorted(WAYS, key=lambda way: -way.steps)
    with multiprocessing.get_context("spawn").Pool(given.workers) as pool:
        pool.map(draw, [(folder, way, given.n) for way in dear_first], chunksize=1)
    prepared = training.prepare_data("digits", configured(given).data)
    _, judge = judges(prepared)
    assert judge is not None
    names, labels = prepared.train.class_names, np.arange(given.n) % len(prepared.train.class_names)
    real = judge.extractor.features(prepared.test)
    features = {
        way: judge.extractor.features(ImageSet(drawn(folder, way, given.n), labels, names)).astype(np.float64)
        for way in WAYS
    }
    values = {way: frechet_distance(x, real) for way, x in features.items()}
    recalls = {way: precision_recall(real, x, k=3)[1] for way, x in features.items()}
    again = resampled(features, labels, real, prepared.test.labels, given.bootstrap)
    table = []
    for way in WAYS:
        row: dict[str, Any] = {"way": way.label, "network calls per image": calls(way), "FD": values[way]}
        difference = values[way] - values[REFERENCE]
        spread = again[way] - again[REFERENCE]
        low, high = (2 * difference - np.quantile(spread, q) for q in (0.975, 0.025))  # the basic bootstrap
        row |= {
            "difference": difference,
            "low": low,
            "high": high,
            "high / FD of 1,000 steps": high / values[REFERENCE],
        }
        row |= {"recall": recalls[way], "recall: difference": recalls[way] - recalls[REFERENCE]}
        table.append(row)
        print({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
    return {
        "ways": table, "judge's accuracy": judge.accuracy, "features": real.shape[1], "test images": len(real),
        "parameters": load_model(folder / "model").num_parameters,
    }  # fmt: skip


def calls(way: Way) -> int:
    guided = sum(way.interval[0] <= (1 - i / way.steps) <= way.interval[1] for i in range(way.steps))
    return way.steps + guided


def resampled(
    features: dict[Way, np.ndarray], labels: np.ndarray, real: np.ndarray, real_labels: np.ndarray, times: int
) -> dict[Way, np.ndarray]:
    """Each way's distance for images and test images drawn again, class by class; the same rows in all ways."""
    draw = np.random.default_rng(0)
    found: dict[Way, list[float]] = {way: [] for way in features}

    def again(of: np.ndarray) -> np.ndarray:
        rows = [np.flatnonzero(of == k) for k in np.unique(of)]
        return np.concatenate([draw.choice(r, len(r)) for r in rows])

    for _ in range(times):
        mine, theirs = again(labels), again(real_labels)
        for way, x in features.items():
            found[way].append(frechet_distance(x[mine], real[theirs]))
    return {way: np.array(v) for way, v in found.items()}


def plain(model: DiffusionModel, n: int, steps: int = 1000) -> Callable[[], object]:
    """Ancestral sampling as the field's code writes it: two passes a step, all steps."""
    process = model.process
    assert isinstance(process, DDPM)
    device = next(model.parameters()).device
    betas = process.betas.float().to(device)
    abar = process.alphas_cumprod.float().to(device)
    before = torch.cat([torch.ones(1, device=device), abar[:-1]])

    @torch.no_grad()
    def run() -> torch.Tensor:
        x = torch.randn(n, *model.spec.shape, device=device)
        y = torch.arange(n, device=device) % model.num_classes
        for i in reversed(range(steps)):
            t = torch.full((n,), i, device=device)
            given, _ = model(x, t, y)
            free, _ = model(x, t, torch.full_like(y, model.null))
            eps = given + OMEGA * (given - free)
            x0 = ((x - (1 - abar[i]).sqrt() * eps) / abar[i].sqrt()).clamp(-1, 1)
            mean = before[i].sqrt() * betas[i] / (1 - abar[i]) * x0
            mean = mean + (1 - betas[i]).sqrt() * (1 - before[i]) / (1 - abar[i]) * x
            x = mean + (betas[i].sqrt() * torch.randn_like(x) if i else 0)
        return x.cpu()

    return run


def speed(given: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(given.threads)
    stats = ClassStats(tuple(f"class {k}" for k in range(10)), (110, 71, 46, 29, 19, 12, 8, 5, 3, 2))
    channels = 1 if given.size < 16 else 3
    model = build_model(given.backbone, DDPM(), (channels, given.size, given.size), stats).to(given.device).eval()
    n = given.batch

    def ours(way: Way) -> Callable[[], object]:
        guidance = ClassifierFree(OMEGA, model.null, model.process, way.interval)
        bf16 = given.device == "cuda"

        def run() -> None:
            generate(
                model, np.arange(n) % 10, np.arange(n), sampler=way.sampler, steps=way.steps, guidance=guidance,
                batch_size=n, bf16=bf16,
            )  # fmt: skip

        return run

    ways = [way for way in WAYS if way.steps <= 50]
    sides = [Side("1,000 ancestral steps, two passes", plain(model, n))]
    sides += [Side(way.label, ours(way)) for way in ways]
    found = compare(
        sides, repeats=given.repeats, warmup=0, memory_repeats=0, modules=[model.backbone], device=given.device
    )
    rows = []
    for i, row in enumerate(found["sides"]):
        times = None if i == 0 else 1 / found["ratios"][i - 1]["wall"]["median"]
        rows.append({
            "way": row["name"], "images/s": n / row["wall_s"]["median"], "passes": row["forwards"][0],
            "times the images/s of 1,000 steps": times,
        })  # fmt: skip
        print(rows[-1], flush=True)
    return {"ways": rows, "parameters": model.num_parameters}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["quality", "speed"])
    parser.add_argument("--n", type=int, default=5000, help="images of each way")
    parser.add_argument("--images", type=int, default=400_000, help="of the generator's training")
    parser.add_argument("--process", default="ddpm-cosine-v")
    parser.add_argument("--backbone", help="default: mlp-512 for quality, unet-8 for speed")
    parser.add_argument("--bootstrap", type=int, default=300)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--size", type=int, default=8)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "sampling")
    given = parser.parse_args()
    given.backbone = given.backbone or ("mlp-512" if given.what == "quality" else "unet-8")
    found = quality(given) if given.what == "quality" else speed(given)
    config = {k: v for k, v in vars(given).items() if k not in ("folder", "workers")}
    topic = (
        f"sampling_quality_{given.backbone.replace('-', '_')}"
        if given.what == "quality"
        else f"sampling_speed_{given.backbone.replace('-', '_')}"
    )
    write_result(topic, found, config={**config, "omega": OMEGA}, notes=QUALITY if given.what == "quality" else SPEED)


QUALITY = """One generator, one split. FD: Fréchet distance in the features of a judge of another architecture, trained
on the balanced pool. Every way draws the same number of images of every class. high: upper end of the 95 % interval of
the difference from 1,000 ancestral steps (basic bootstrap; of images and test images, not of generators)."""
SPEED = """Untrained weights: the time does not depend on them. Whole drawings of one batch, start and decoding
included; ratios of wall seconds, medians over neighbouring runs. One pass of our guidance holds both branches. On a GPU
ours runs under bfloat16 and the 1,000 steps in float32, uncompiled both."""

if __name__ == "__main__":
    main()
