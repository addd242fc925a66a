"""What grows with classes, feature rows and processes, and what does not.

    python benchmarks/scaling.py classes
    python benchmarks/scaling.py rows
    python benchmarks/scaling.py processes --backbone unet-32-small --size 32 --batch 16

classes: a training step of CBDM and CCUA with 10 to 10,000 classes, the network otherwise the same.
rows: Fréchet distance, precision and recall of 10^4 and 10^5 feature rows, with intervals; 10^6 projected.
processes: DDPM's training on two cores: a plain loop and ours with two threads, and ours on two processes.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from harness import Side, compare, peak_rss, spread, write_result
from imbdiff.config import TrainConfig
from imbdiff.data.imageset import ImageSet
from imbdiff.data.stats import Groups
from imbdiff.diffusion.model import build_model
from imbdiff.diffusion.process import DDPM
from imbdiff.methods import METHODS
from imbdiff.metrics.frechet import frechet
from imbdiff.metrics.neighbours import CAP, neighbour_measures
from imbdiff.metrics.rows import Rows
from imbdiff.runtime.device import make_accelerator
from imbdiff.runtime.log import read_jsonl
from imbdiff.training.parts import Batches
from imbdiff.training.step import TrainingStep
from imbdiff.training.update import Update
from plain_loops import field


def long_tail(classes: int, size: int, channels: int = 1) -> ImageSet:
    counts = np.maximum(1, (50 * 0.01 ** (np.arange(classes) / max(classes - 1, 1))).astype(int))
    labels = np.repeat(np.arange(classes), counts).astype(np.int64)
    images = np.random.default_rng(0).integers(0, 256, (len(labels), size, size, channels)).astype(np.uint8)
    return ImageSet(images, labels, tuple(f"class {k}" for k in range(classes)))


def update_of(method: str, classes: int, batch: int) -> Callable[[], object]:
    data, phase = long_tail(classes, 8), METHODS[method].phases[0]
    model = build_model("unet-8", DDPM(), (1, 8, 8), data.stats)
    config = TrainConfig(images=batch * 10_000, batch_size=batch)
    step = TrainingStep({"model": model}, phase.objectives())
    batches = Batches(step, phase.parts, data, Groups.by_quantile(data.stats), config, device=torch.device("cpu"))
    update = Update(step, batches, config, make_accelerator("cpu"))
    update.wrap(print)
    number = iter(range(10**9))

    def run() -> None:
        for _ in range(3):
            now = next(number)
            update.gradients(now)
            update.apply(now)

    return run


def classes(given: argparse.Namespace) -> dict[str, Any]:
    found = {}
    for method in ("cbdm", "ccua"):
        sides = [Side(f"{method}, {c:,} classes", update_of(method, c, 64)) for c in (10, 100, 1000, 10_000)]
        result = compare(sides, repeats=given.repeats, memory_repeats=0)
        wall = [side["wall_s"] for side in result["sides"]]
        times = [1.0, *(ratio["wall"]["median"] for ratio in result["ratios"])]
        found[method] = [
            {"side": side.name, "ms per step": 1000 * w["median"] / 3, "fastest": 1000 * w["min"] / 3, "times 10": t}
            for side, w, t in zip(sides, wall, times, strict=True)
        ]  # fmt: skip
        print(*found[method], sep="\n", flush=True)
    return found


def rows(given: argparse.Namespace) -> dict[str, Any]:
    """The measures as `evaluate` takes them: blocks of rows, and intervals; neighbours of at most `CAP` rows."""
    table = []
    for n in given.rows:
        draw = np.random.default_rng(n)
        real, fake = (Rows.of(draw.standard_normal((n, given.features), np.float32)) for _ in range(2))
        row: dict[str, Any] = {"rows of each set": n, "features": given.features, "neighbours of": min(n, CAP)}
        for name, measure in (("FD with interval", frechet), ("precision, recall", neighbour_measures)):
            began = time.perf_counter()
            with peak_rss() as peak:
                measure(fake, real)
            row[f"{name}: s"], row[f"{name}: MB"] = time.perf_counter() - began, peak[0] / 1e6
        print(row, flush=True)
        table.append(row)
    few, many = table[0], table[-1]
    projected: dict[str, Any] = {"rows of each set": "10^6, projected"}
    for key in (
        "FD with interval: s",
        "precision, recall: s",
    ):  # the part that grows with rows, and the part that does not
        slope = (many[key] - few[key]) / (many["rows of each set"] - few["rows of each set"])
        projected[key] = many[key] + slope * (1e6 - many["rows of each set"])
    return {"rows": [*table, projected]}


def processes(given: argparse.Namespace) -> dict[str, Any]:
    """Seconds per image of DDPM's training, alternating; ours as the runs' logs have them, without the start."""
    data = long_tail(10, given.size, 1 if given.size < 16 else 3)
    plain = build_model(given.backbone, DDPM(), (data.shape[2], given.size, given.size), data.stats)
    step = field(plain, data, given.batch, "cpu", "ddpm")
    torch.set_num_threads(2)
    steps = max(2, given.images // given.batch)
    seconds: dict[str, list[float]] = {"plain loop, 2 threads": [], "1 process of 2 threads": [], "2 processes": []}
    with tempfile.TemporaryDirectory() as place:
        np.savez(Path(place) / "images.npz", images=data.images, labels=data.labels)
        for repeat in range(given.repeats):
            step()
            began = time.perf_counter()
            for _ in range(steps):
                step()
            seconds["plain loop, 2 threads"].append((time.perf_counter() - began) / steps / given.batch)
            for count, name in ((1, "1 process of 2 threads"), (2, "2 processes")):
                folder = Path(place) / f"{repeat}-{count}"
                torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
                command = [
                    sys.executable, *(torchrun if count > 1 else []), "-m", "imbdiff", "train",
                    str(Path(place) / "images.npz"), "--preset", "tiny",
                    "--method", "ddpm", "--data.val_fraction", "0",
                    "--model.backbone", given.backbone, "--train.batch_size", str(given.batch), "--device", "cpu",
                    "--train.images", str(2 * steps * given.batch), "--train.preview_images", "0",
                    "--out", str(folder),
                ]  # fmt: skip
                environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"} | (
                    {"OMP_NUM_THREADS": "2"} if count == 1 else {}
                )
                done = subprocess.run(command, env=environment, capture_output=True, text=True)
                if done.returncode:
                    raise SystemExit(done.stderr)
                log = read_jsonl(folder / "log.jsonl")
                first, last = log[len(log) // 2 - 1], log[-1]
                spent = (last["seconds"] - first["seconds"]) / (last["images"] - first["images"])
                seconds[name].append(spent)
            print({k: [round(1000 * s, 2) for s in v] for k, v in seconds.items()}, "ms per image", flush=True)
    two = seconds["2 processes"]
    return {
        **{f"ms per image, {name}": spread(1000 * s for s in v) for name, v in seconds.items()},
        **{f"{name} / 2 processes": spread(a / b for a, b in zip(v, two, strict=True)) for name, v in seconds.items()},
        "parameters": plain.num_parameters,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["classes", "rows", "processes"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--features", type=int, default=512)
    parser.add_argument("--images", type=int, default=1280, help="per repeat of `processes`")
    parser.add_argument("--backbone", default="unet-8")
    parser.add_argument("--size", type=int, default=8)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--no-result", action="store_true")
    given = parser.parse_args()
    found = {"classes": classes, "rows": rows, "processes": processes}[given.what](given)
    if not given.no_result:
        config = {k: v for k, v in vars(given).items() if k != "no_result"}
        topic = f"scaling_{given.what}"
        if given.what == "processes":
            topic += f"_{given.backbone.replace('-', '_')}"
        write_result(topic, found, config=config, notes=__doc__ or "")


if __name__ == "__main__":
    main()
