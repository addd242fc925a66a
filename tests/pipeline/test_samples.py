"""Images on disk: plans of more or fewer images keep those that both have, and draw only what is missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from imbdiff.config import RunConfig, override
from imbdiff.data.stats import ClassStats
from imbdiff.diffusion.model import DiffusionModel, build_model
from imbdiff.diffusion.process import PROCESSES
from imbdiff.pipeline import samples
from imbdiff.presets import preset
from imbdiff.runtime.errors import RunError
from imbdiff.runtime.files import digest, sha256_file

NAMES = ("a", "b", "c")
CONFIG = override(preset("tiny"), {"sample.steps": 2, "sample.batch_size": 8, "device": "cpu"})


@pytest.fixture(scope="module")
def model() -> DiffusionModel:
    return build_model("unet-8", PROCESSES["ddpm"], (1, 8, 8), ClassStats(NAMES, (9, 5, 2)), seed=0).eval()


def plan(counts: tuple[int, ...], config: RunConfig = CONFIG, seed: int = 3) -> dict[str, Any]:
    return samples.plan(counts, NAMES, samples.sampling(config), seed, "weights")


def draw(model: DiffusionModel, folder: Path, todo: dict[str, Any], config: RunConfig = CONFIG) -> dict[str, str]:
    samples.draw(model, todo, folder, samples.sampling(config), quiet=True)
    assert samples.finished(folder, todo)
    return {str(p.relative_to(folder)): sha256_file(p) for p in sorted(folder.rglob("*.png"))}


@pytest.fixture
def drew(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each drawing asked for."""
    asked: list[int] = []
    real = samples.generate_batches

    def spy(model: Any, labels: Any, seeds: Any, **options: Any) -> Any:
        asked.append(len(labels))
        return real(model, labels, seeds, **options)

    monkeypatch.setattr(samples, "generate_batches", spy)
    return asked


def test_a_larger_plan_draws_what_is_missing_and_a_smaller_one_removes(
    model: DiffusionModel, tmp_path: Path, drew: list[int]
) -> None:
    few = draw(model, tmp_path / "a", plan((0, 5, 9)))
    many = draw(model, tmp_path / "a", plan((2, 12, 20)))
    assert drew == [14, 20]
    assert {name: many[name] for name in few} == few
    assert draw(model, tmp_path / "b", plan((2, 12, 20))) == many  # bit for bit those of a fresh draw
    assert draw(model, tmp_path / "a", plan((0, 5, 9))) == few
    assert drew == [14, 20, 34, 0]


def test_images_of_another_plan_do_not_stay(model: DiffusionModel, tmp_path: Path, drew: list[int]) -> None:
    first = draw(model, tmp_path / "a", plan((0, 3, 3)))
    other = override(CONFIG, {"sample.omega": 3.0})
    second = draw(model, tmp_path / "a", plan((0, 3, 3), other), other)
    third = draw(model, tmp_path / "a", plan((0, 3, 3), seed=4))
    assert drew == [6, 6, 6]
    assert not set(first.values()) & set(second.values())
    assert not set(first.values()) & set(third.values())


def test_a_kill_while_the_plan_changes_is_mended(model: DiffusionModel, tmp_path: Path, drew: list[int]) -> None:
    many = draw(model, tmp_path / "a", plan((2, 12, 20)))
    (tmp_path / "a" / "manifest.json").unlink()
    for name in list(many)[::3]:
        (tmp_path / "a" / name).unlink()
    broken = tmp_path / "a" / list(many)[1]
    broken.write_bytes(broken.read_bytes()[:40])
    assert not samples.finished(tmp_path / "a", plan((2, 12, 20)))
    assert draw(model, tmp_path / "a", plan((2, 12, 20))) == many
    assert drew == [34, 13]
    rows = json.loads((tmp_path / "a" / "manifest.json").read_text())["images"]
    assert {row["file"]: row["sha256"] for row in rows} == many


def test_images_are_known_by_the_plan_that_they_were_drawn_by(model: DiffusionModel, tmp_path: Path) -> None:
    own, other = plan((0, 3, 2)), plan((0, 3, 2), seed=4)
    assert samples.drawn_inputs(tmp_path / "a") is None
    draw(model, tmp_path / "a", own)
    assert samples.drawn_inputs(tmp_path / "a") == digest(own) != digest(other)
    for inputs in (None, digest(own)):
        assert len(samples.load_samples(tmp_path / "a", (8, 8, 1), NAMES, inputs=inputs)) == 5
    with pytest.raises(RunError, match=r"a are not those that this run drew\n.*imbdiff sample"):
        samples.load_samples(tmp_path / "a", (8, 8, 1), NAMES, inputs=digest(other))
