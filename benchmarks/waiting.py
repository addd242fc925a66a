"""How long training waits for images that lie on disk, and what a step costs then against images in memory.

    python benchmarks/waiting.py --files 10000

The files are those of `preparing.py`, brought to 32 pixels. Both sides train the same network on the same batches, in
turns, in one process; "waited" is the time in which the loop had nothing to do because the thread that reads ahead had
not finished. The last row asks for the batches alone, without a network and without reading ahead.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from imbdiff import preset
from imbdiff.config import override
from imbdiff.data.gather import Gather
from imbdiff.data.imageset import Rows
from imbdiff.data.samplers import BatchSampler
from imbdiff.pipeline import training
from imbdiff.runtime.log import read_jsonl
from preparing import generate
from results_file import write_result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="as of preparing.py")
    parser.add_argument("--no-result", action="store_true")
    given = parser.parse_args()
    base = given.folder or Path(tempfile.mkdtemp())
    root = base / f"{given.files}"
    if not root.exists():
        generate(root, given.files)
    train = {"images": given.steps * given.batch, "batch_size": given.batch}
    config = override(preset("small"), {"data": {"size": 32}, "train": train, "device": "cpu"})
    data = {
        where: training.prepare_data(root, config.data, cache=cache)
        for where, cache in (("memory", "off"), ("disk", str(base / "cache32")))
    }
    assert isinstance(data["disk"].train.images, Rows)
    seconds: dict[str, list[float]] = {"memory": [], "disk": []}
    waited = []
    for i in range(given.repeats):
        for where, prepared in data.items():
            with tempfile.TemporaryDirectory() as folder:
                training.train(prepared, override(config, {"seed": i}), Path(folder), quiet=True)
                rows = read_jsonl(Path(folder) / "log.jsonl")
            seconds[where].append((rows[-1]["seconds"] - rows[0]["seconds"]) / (len(rows) - 1))
            if where == "disk":
                waited.append((rows[-1]["waited"] - rows[0]["waited"]) / (rows[-1]["seconds"] - rows[0]["seconds"]))
    train_set = data["disk"].train
    sampler = BatchSampler(train_set.labels, given.batch, distribution="natural", seed=0, name="waiting")
    gather = Gather(train_set.images, torch.device("cpu"))
    began = time.perf_counter()
    for step in range(200):
        gather.rows(sampler.indices(step))
    alone = (time.perf_counter() - began) / 200
    result = [
        {"images": "memory", "ms per step": round(1e3 * float(np.median(seconds["memory"])), 2)},
        {"images": "disk", "ms per step": round(1e3 * float(np.median(seconds["disk"])), 2),
         "share of time waiting": round(float(np.median(waited)), 5)},
        {"images": "disk, batches alone", "ms per step": round(1e3 * alone, 2)},
    ]  # fmt: skip
    print(result)
    if not given.no_result:
        config_row = {k: v for k, v in vars(given).items() if k not in ("folder", "no_result")}
        write_result("waiting", {"measured": result}, config=config_row, notes=(__doc__ or "").split("\n\n", 2)[2])


if __name__ == "__main__":
    main()
