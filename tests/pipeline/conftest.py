"""Small runs for the tests of the pipeline."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imbdiff.config import RunConfig, override
from imbdiff.pipeline.run import run
from imbdiff.presets import preset

#: a run of seconds: a U-Net on 8-pixel digits, a few steps of everything
SMALL = {
    "data": {"imbalance_factor": 20},
    "train": {
        "images": 16 * 12, "batch_size": 16, "checkpoint_images": 16 * 3, "preview_images": 0,
        "warmup_images": 0,
    },
    "sample": {"steps": 3, "batch_size": 16, "strategy": "0.2"},
    "classify": {"steps": 6, "batch_size": 16, "seeds": 2, "ensemble": 0, "synthetic_prior": "train"},
    "device": "cpu",
}  # fmt: skip


@pytest.fixture
def config() -> RunConfig:
    return override(preset("tiny"), SMALL)


def small_arguments() -> list[str]:
    """The same on the command line."""
    flat = [
        (f"{group}.{name}", value)
        for group, values in SMALL.items()
        if isinstance(values, dict)
        for name, value in values.items()
    ]
    return ["--preset", "tiny", "--device", "cpu", *(x for name, value in flat for x in (f"--{name}", str(value)))]


@pytest.fixture
def arguments() -> list[str]:
    return small_arguments()


@pytest.fixture(scope="session")
def finished_once(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunConfig]:
    """A finished run on digits, and its configuration: of all tests of a process, which leave it as it is."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    config = override(preset("tiny"), SMALL)
    run("digits", folder, config, quiet=True)
    return folder, config


@pytest.fixture
def finished(finished_once: tuple[Path, RunConfig], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunConfig]:
    """A copy of it, for one test."""
    folder = tmp_path_factory.mktemp("copies") / "small"
    shutil.copytree(finished_once[0], folder)
    return folder, finished_once[1]


def write_tree(root: Path, counts: dict[str, int], size: tuple[int, int] = (8, 8), mode: str = "L") -> Path:
    """Class folders of PNGs of noise around a class level."""
    generator = np.random.default_rng(0)
    for k, (name, n) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for i in range(n):
            shape = size if mode == "L" else (*size, 3)
            pixels = np.clip(generator.normal(60 + 60 * k, 30, shape), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root
