"""What grows with classes, feature rows and processes, and what does not.

    python benchmarks/scaling.py classes
    python benchmarks/scaling.py rows
    python benchmarks/scaling.py processes

classes: a training step of CBDM and CCUA with 10 to 10,000 classes, the network otherwise the same.
rows: moments, Fréchet distance, precision and recall of 10^4 and 10^5 feature rows; 10^6 projected.
processes: the demo's training on one process with two threads, and on two processes with one.
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
from imbdiff.metrics.frechet import frechet_distance
from imbdiff.metrics.neighbours import CAP
from imbdiff.metrics.precision_recall import precision_recall
from imbdiff.metrics.statistics import Moments
from imbdiff.runtime.device import make_accelerator
from imbdiff.runtime.dist import Dist
from imbdiff.runtime.log import read_jsonl
from imbdiff.training.parts import make_loaders
from imbdiff.training.step import TrainingStep
from imbdiff.training.update import Update


def long_tail(classes: int, size: int) -> ImageSet:
    counts = np.maximum(1, (50 * 0.01 ** (np.arange(classes) / max(classes - 1, 1))).astype(int))
    labels = np.repeat(np.arange(classes), counts).astype(np.int64)
    images = np.random.default_rng(0).integers(0, 256, (len(labels), size, size, 1)).astype(np.uint8)
    return ImageSet(images, labels, tuple(f"class {k}" for k in range(classes)))


def update_of(method: str, classes: int, batch: int) -> Callable[[], object]:
    data, phase = long_tail(classes, 8), METHODS[method].phases[0]
    model = build_model("unet-8", DDPM(), (1, 8, 8), data.stats)
    config = TrainConfig(images=batch * 10_000, batch_size=batch)
    step = TrainingStep({"model": model}, phase.objectives())
    loaders = make_loaders(
        phase.parts, data, Groups.by_quantile(data.stats), batch, seed=0, dist=Dist(), device=torch.device("cpu")
    )
    update = Update(step, loaders, config, make_accelerator("cpu"), codec=model.codec, process=model.process)
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
    table = []
    for n in given.rows:
        draw = np.random.default_rng(n)
        real, fake = (draw.standard_normal((n, given.features), np.float32) for _ in range(2))
        row: dict[str, Any] = {"rows of each set": n, "features": given.features}
        work = {
            "moments and FD": (lambda a, b: frechet_distance(Moments.of(a), Moments.of(b)), n),
            "precision, recall (k = 3)": (precision_recall, min(n, given.most)),
        }
        for name, (function, most) in work.items():
            began = time.perf_counter()
            with peak_rss() as peak:
                function(real[:most], fake[:most])
            row[f"{name}: s"], row[f"{name}: MB"] = time.perf_counter() - began, peak[0] / 1e6
        row["precision, recall: rows"] = min(n, given.most)
        print(row, flush=True)
        table.append(row)
    large = table[-1]
    scale = 1e6 / large["rows of each set"]
    projected = {
        "rows of each set": "10^6, projected: moments in proportion to rows; neighbours use the same capped rows",
        "moments and FD: s": scale * large["moments and FD: s"],
        "precision, recall (k = 3): s": large["precision, recall (k = 3): s"],
    }
    return {"rows": [*table, projected]}


def processes(given: argparse.Namespace) -> dict[str, Any]:
    """Seconds of training as the log has them, alternating."""
    images, seconds = given.images, {1: [], 2: []}  # type: ignore[var-annotated]
    for _ in range(given.repeats):
        for count in (1, 2):
            with tempfile.TemporaryDirectory() as place:
                folder = Path(place) / "run"
                command = ["-m", "imbdiff", "train", "digits", "--preset", "demo", "--out", str(folder),
                           "--train.images", str(images), "--train.preview_images", "0"]  # fmt: skip
                launch = [sys.executable] if count == 1 else [
                    sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]  # fmt: skip
                environment = {
                    **os.environ,
                    "OMP_WAIT_POLICY": "PASSIVE",
                    "OMP_NUM_THREADS": "2" if count == 1 else "1",
                }
                subprocess.run([*launch, *command], check=True, env=environment, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)  # fmt: skip
                log = read_jsonl(folder / "log.jsonl")
                half = log[len(log) // 2]  # without the start
                seconds[count].append((log[-1]["seconds"] - half["seconds"]) / (log[-1]["images"] - half["images"]))
        print({k: [round(1000 * s, 3) for s in v] for k, v in seconds.items()}, "ms per image", flush=True)
    ratio = [a / b for a, b in zip(seconds[1], seconds[2], strict=True)]
    return {
        "ms per image, 1 process of 2 threads": spread(1000 * s for s in seconds[1]),
        "ms per image, 2 processes of 1 thread": spread(1000 * s for s in seconds[2]),
        "times as fast on two processes": spread(ratio),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["classes", "rows", "processes"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--features", type=int, default=512)
    parser.add_argument("--most", type=int, default=CAP, help="rows that neighbour metrics use at most")
    parser.add_argument("--images", type=int, default=6400)
    parser.add_argument("--no-result", action="store_true")
    given = parser.parse_args()
    found = {"classes": classes, "rows": rows, "processes": processes}[given.what](given)
    if not given.no_result:
        config = {k: v for k, v in vars(given).items() if k != "no_result"}
        write_result(f"scaling_{given.what}", found, config=config, notes=__doc__ or "")


if __name__ == "__main__":
    main()
