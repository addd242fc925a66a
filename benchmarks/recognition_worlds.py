"""The data sets of the recognition study, and their generators: trained once per (world, method, triple), and kept.

    python benchmarks/recognition_worlds.py digits-50 --workers 2

A *triple* is a number that sets the split, the weights and draws of the generator, and those of the classifiers. Worlds
other than digits read `fashion_mnist.npz` and `ham10000_sub32.npz` in the folder that IMBDIFF_DATA names.
"""

from __future__ import annotations

import argparse
import importlib.util
import multiprocessing
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from imbdiff import preset
from imbdiff.config import RunConfig, override
from imbdiff.data.splits import Prepared
from imbdiff.diffusion.model import DiffusionModel
from imbdiff.diffusion.saved import load_model, save_model
from imbdiff.methods import METHODS
from imbdiff.pipeline import training
from imbdiff.runtime.files import read_json, write_json
from results_file import ROOT

KEPT = ROOT / "runs" / "recognition"


@dataclass(frozen=True)
class World:
    """A data set, and how generators of it are trained.

    Attributes:
        file: of IMBDIFF_DATA; None: the digits that are built in.
        per_class: training images of each class that the split is cut from, drawn anew for each triple; None: all.
        preset, overrides: of the run's configuration.
        methods: that are compared here.
        triples: how many.
    """

    file: str | None
    per_class: int | None
    preset: str
    overrides: dict[str, Any] = field(default_factory=dict)
    methods: tuple[str, ...] = ("ddpm", "ddpm-brs", "cbdm", "ccua", "diffrc")
    triples: int = 5

    @property
    def fixed_split(self) -> bool:
        """Triples share the split: the data bring their own test images and are used whole."""
        return self.file is not None and self.per_class is None


WORLDS = {
    "digits-20": World(None, None, "demo", {"data.imbalance_factor": 20.0, "train.images": 30_000}),
    "digits-50": World(None, None, "demo", {"data.imbalance_factor": 50.0, "train.images": 45_000}),
    "fashion": World(
        "fashion_mnist", 400, "tiny",
        {"data.imbalance_factor": 100.0, "data.size": 16, "train.images": 30_000},
        methods=("ddpm", "cbdm"), triples=3,
    ),
    # the field's protocol, for a GPU: hours per generator
    "cifar100-lt": World(
        "cifar100lt100", None, "standard", {"data.augment": "mirror"},
        methods=("ddpm", "ddpm-brs", "cbdm", "ccua", "diffrc", "t2h", "coral"), triples=3,
    ),
    "cifar10-lt": World(
        "cifar10", None, "standard",
        {"data.augment": "mirror", "data.imbalance_factor": 100.0},
        methods=("ddpm", "ddpm-brs", "cbdm", "ccua", "diffrc", "t2h", "coral"), triples=3,
    ),
    "lesions": World(
        "ham10000_sub32", None, "small", {"model.backbone": "unet-8", "train.images": 6_000}, triples=1
    ),
}  # fmt: skip


def configured(world: str, method: str, triple: int) -> RunConfig:
    """The run's configuration of one generator."""
    made = WORLDS[world]
    seeds = {"method": method, "seed": triple, "data.split_seed": 0 if made.fixed_split else triple}
    return override(preset(made.preset), {**made.overrides, **seeds})


def arrays(name: str) -> dict[str, np.ndarray]:
    """x_train, y_train, x_test, y_test, class_names of a file of IMBDIFF_DATA, by the folder's own load.py."""
    folder = Path(os.environ.get("IMBDIFF_DATA", ""))
    if not (folder / "load.py").exists():
        raise SystemExit(f"{name}: IMBDIFF_DATA names no folder with load.py and {name}.npz")
    spec = importlib.util.spec_from_file_location("load", folder / "load.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.load(name)


def source(world: str, triple: int) -> str:
    """What a run is given: "digits", or an .npz of the world's training and test images, made where it is missing."""
    made = WORLDS[world]
    if made.file is None:
        return "digits"
    path = KEPT / "data" / (f"{world}.npz" if made.fixed_split else f"{world}-{triple}.npz")
    if not path.exists():
        found = arrays(made.file)
        keep = np.arange(len(found["y_train"]))
        if made.per_class is not None:
            draw = np.random.default_rng([20, triple])
            of_class = [np.flatnonzero(found["y_train"] == k) for k in np.unique(found["y_train"])]
            keep = np.sort(np.concatenate([draw.choice(rows, made.per_class, replace=False) for rows in of_class]))
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{os.getpid()}-{path.name}")
        np.savez(
            aside, x_train=found["x_train"][keep], y_train=found["y_train"][keep], x_test=found["x_test"],
            y_test=found["y_test"], class_names=np.array([str(name) for name in found["class_names"]]),
        )  # fmt: skip
        aside.rename(path)
    return str(path)


def prepared(world: str, triple: int) -> Prepared:
    """The splits of a triple: the same for every method."""
    config = configured(world, WORLDS[world].methods[0], triple)
    return training.prepare_data(source(world, triple), config.data)


def generator(world: str, method: str, triple: int, device: str = "cpu") -> tuple[DiffusionModel, float]:
    """The trained generator and its training's CPU seconds; trained if it is not there yet, on a CPU by one thread."""
    folder = KEPT / "generators" / world / f"{method}-{triple}"
    config, data = override(configured(world, method, triple), {"device": device}), prepared(world, triple)
    identity = training.training_inputs(data, config)
    facts = read_json(folder / "facts.json") if (folder / "facts.json").exists() else None
    if facts is None or facts["identity"] != identity:
        torch.set_num_threads(1)
        began = time.process_time()
        model = training.train(data, config, folder, quiet=True)
        save_model(model, folder / "model")
        facts = {"identity": identity, "cpu_s": time.process_time() - began, "parameters": model.num_parameters}
        write_json(folder / "facts.json", facts)
        print(f"{world} {method} {triple}: {facts['cpu_s']:.0f} CPU s", flush=True)
    return load_model(folder / "model"), facts["cpu_s"]


def one(job: tuple[str, str, int]) -> None:
    torch.set_num_threads(1)
    generator(*job)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("worlds", nargs="+", choices=WORLDS)
    parser.add_argument("--methods", nargs="+", choices=METHODS, metavar="METHOD", help="default: the world's")
    parser.add_argument("--triples", type=int, help="default: the world's")
    parser.add_argument("--workers", type=int, default=1)
    given = parser.parse_args()
    jobs = [
        (world, method, triple)
        for world in given.worlds
        for triple in range(given.triples or WORLDS[world].triples)
        for method in given.methods or WORLDS[world].methods
    ]
    with multiprocessing.get_context("spawn").Pool(given.workers) as pool:
        for _ in pool.imap_unordered(one, jobs):
            pass


if __name__ == "__main__":
    main()
