"""The toy world's measures on samples whose answer is known, and the program on a tiny budget."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from imbdiff.runtime.errors import ConfigError
from tests.benchmarks.test_harness import load

M = 7


@pytest.fixture(scope="module")
def mixture() -> ModuleType:
    return load("toy_mixture")


@pytest.fixture(scope="module")
def program() -> ModuleType:
    return load("toy_world")


def at_modes(world: Any, k: int, counts: list[int]) -> np.ndarray:
    """Points exactly on the modes of class `k`, so many on each."""
    return np.repeat(world.modes[k], counts, axis=0)


def test_world_is_a_lattice_whose_small_classes_stand_between_large_ones(mixture: ModuleType) -> None:
    world = mixture.lattice()
    assert world.modes.shape == (10, M, 2)
    for k in range(10):  # the same rows in every class, the columns apart
        np.testing.assert_allclose(world.modes[k, :, 1], np.linspace(-0.9, 0.9, M))
        assert len(set(world.modes[k, :, 0].tolist())) == 1
    columns = world.modes[:, 0, 0]
    assert np.diff(np.sort(columns)).min() > 2 * mixture.NEAR * world.sd  # no point belongs to two classes
    data = mixture.training_data(world, 0)
    assert data.stats.counts == (500, 299, 179, 107, 64, 38, 23, 13, 8, 5)
    assert data.groups.classes("few") == [7, 8, 9]
    for k in data.groups.classes("few"):
        beside = np.argsort(np.abs(columns - columns[k]))[1:3]
        assert (columns[beside] < columns[k]).sum() == 1
        assert all(data.stats.counts[j] >= 8 * data.stats.counts[k] for j in beside)


def test_training_data_are_a_draw_of_the_world(mixture: ModuleType) -> None:
    world = mixture.lattice()
    one, again, other = (mixture.training_data(world, seed) for seed in (3, 3, 4))
    assert one.train.images.shape == (1236, 1, 2, 1)
    np.testing.assert_array_equal(one.train.images, again.train.images)
    assert (one.train.images != other.train.images).mean() > 0.5
    assert len(one.test) == 0
    x = mixture.points(one.train.images)
    inside = [(world.mode(k, x[one.train.labels == k]) >= 0).mean() for k in range(10)]
    assert min(inside) > 0.98
    assert mixture.training_data(world, 3, factor=1.0).stats.counts == (500,) * 10


def test_images_hold_points_to_half_a_step(mixture: ModuleType) -> None:
    x = np.random.default_rng(0).uniform(-1, 1, (500, 2))
    images = mixture.pixels(x)
    assert images.shape == (500, 1, 2, 1)
    assert images.dtype == np.uint8
    assert np.abs(mixture.points(images) - x).max() <= 1 / 255 + 1e-12
    assert mixture.points(images)[np.argmin(x[:, 0]), 0] < -0.98  # the first pixel is the first coordinate


def test_a_fresh_sample_is_perfect(mixture: ModuleType) -> None:
    world = mixture.lattice()
    for k in (0, 9):
        truth = world.sample(k, 2000, "truth", k)
        found = mixture.measure(world, k, world.sample(k, 350, "fresh", k), world.modes[k][:2], truth)
        assert found["covered"] == found["kept"] == found["borrowed"] == 1
        assert found["precision"] > 0.99
        assert found["other class"] == 0
        assert abs(found["distance"]) < 0.01


def test_dropped_modes_are_missed_where_they_are_looked_for(mixture: ModuleType) -> None:
    world = mixture.lattice()
    shown, truth = world.modes[2][[0, 1, 4]], world.modes[2]
    for dropped, kept, borrowed in ((1, 2 / 3, 1.0), (5, 1.0, 3 / 4)):
        x = at_modes(world, 2, [0 if m == dropped else 10 for m in range(M)])
        found = mixture.measure(world, 2, x, shown, truth)
        assert found["covered"] == pytest.approx((M - 1) / M)
        assert (found["kept"], found["borrowed"]) == (pytest.approx(kept), pytest.approx(borrowed))
        assert found["precision"] == 1
    all_shown = mixture.measure(world, 2, truth, world.modes[2], truth)
    assert all_shown["borrowed"] is None


def test_half_of_the_fair_share_covers_a_mode(mixture: ModuleType) -> None:
    world = mixture.lattice()
    for n, covered in ((50, 1.0), (49, 6 / 7)):  # of 700 points, fair: 100 each
        x = at_modes(world, 0, [n, *[100] * 5, 200 - n])
        assert mixture.measure(world, 0, x, x, x)["covered"] == pytest.approx(covered)


def test_points_elsewhere_are_not_of_the_class(mixture: ModuleType) -> None:
    world = mixture.lattice()
    x, truth = world.sample(8, 400, "x"), world.sample(8, 1000, "truth")
    step = np.diff(np.sort(world.modes[:, 0, 0]))[0]
    beside = mixture.measure(world, 8, x + np.array([step, 0]), x, truth)
    between = mixture.measure(world, 8, x + np.array([0, 0.15]), x, truth)
    assert beside["precision"] == between["precision"] == 0
    assert beside["covered"] == between["covered"] == 0
    assert beside["other class"] > 0.99
    assert between["other class"] == 0
    assert beside["distance"] > 0.01


def test_distance_is_the_energy_distance_by_loops(mixture: ModuleType) -> None:
    world, g = mixture.lattice(), np.random.default_rng(1)
    x, y = g.normal(size=(6, 2)), g.normal(0.5, 2, size=(9, 2))

    def mean(pairs: list[tuple[np.ndarray, np.ndarray]]) -> float:
        return sum(float(np.hypot(*(a - b))) for a, b in pairs) / len(pairs)

    expected = 2 * mean([(a, b) for a in x for b in y])
    expected -= mean([(x[i], x[j]) for i in range(6) for j in range(6) if i != j])
    expected -= mean([(y[i], y[j]) for i in range(9) for j in range(9) if i != j])
    assert mixture.measure(world, 0, x, x, y)["distance"] == pytest.approx(expected, rel=1e-12)
    apart = mixture.measure(world, 0, np.zeros((4, 2)), x, np.full((5, 2), [0.3, 0.4]))
    assert apart["distance"] == pytest.approx(2 * 0.5)


def test_interval_is_students(program: ModuleType) -> None:
    mean, half = program.interval([1.0, 2.0, 3.0])
    assert mean == 2
    assert half == pytest.approx(4.302653 / 3**0.5, rel=1e-6)
    assert program.interval([5.0]) == (5.0, 0.0)


def test_differences_are_paired_by_seed_and_mean_over_classes(program: ModuleType) -> None:
    def result(*precision: float) -> dict[str, Any]:
        rows = [{**dict.fromkeys(program.MEASURES, 0.0), "precision": p, "borrowed": None} for p in precision]
        return {"own": rows, "none": rows}

    results = {
        "ddpm": {0: result(0.1, 0.2, 9), 1: result(0.5, 0.6, 9)},
        "x": {1: result(0.9, 0.8, 0), 0: result(0.3, 0.4, 0)},
    }
    (row,) = program.against(results, "ddpm", "own", [0, 1])
    assert row["method"] == "x"
    assert row["precision"].startswith("+0.250 ± ")  # (0.2 + 0.3) / 2
    assert row["borrowed"] == ""


def test_program_on_a_tiny_budget(
    program: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two methods, one of which starts from a trained model; then again: nothing is trained twice."""
    monkeypatch.setattr(program, "DRAWN", 14)
    monkeypatch.setattr(program, "TRUTH", 60)
    command = ["--seeds", "1", "--images", "2560", "--methods", "cbdm-finetune", program.BALANCED, "cbdm-ada"]
    command += ["--folder", str(tmp_path / "runs"), "--out", str(tmp_path), "--workers", "1"]
    program.main(command)
    assert "left out: cbdm-ada: geometric" in capsys.readouterr().out
    (text,) = tmp_path.glob("toy_world_*.md")
    stem = text.with_suffix("")
    record = json.loads(stem.with_suffix(".json").read_text())
    rows = {row["method"]: row for row in record["result"]["few, its own guidance"]}
    assert list(rows) == [program.FRESH, program.REPEATED, "cbdm-finetune", program.BALANCED]
    assert rows["cbdm-finetune"]["guidance"] == "classifier-free 2.0"
    assert rows[program.REPEATED]["borrowed"].startswith("0.000")
    assert float(rows[program.FRESH]["precision"][:5]) > 0.95 > float(rows["cbdm-finetune"]["precision"][:5])
    assert record["config"]["failed"] == {}
    for name in (".png", "_rarest.png", "_seeds.json"):
        assert stem.with_name(stem.name + name).stat().st_size > 1000
    seeds = json.loads(stem.with_name(stem.name + "_seeds.json").read_text())
    assert [len(seeds[program.BALANCED]["0"][g]) for g in ("own", "none")] == [10, 10]
    assert seeds["cbdm-finetune"]["0"]["own"] != seeds["cbdm-finetune"]["0"]["none"]  # guided and not
    assert all(row["borrowed"] is None for row in seeds[program.BALANCED]["0"]["own"])  # its training shows all modes
    assert seeds["cbdm-finetune"]["0"]["own"][9]["borrowed"] is not None

    def never(*_: object, **__: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(program, "train", never)
    found, failed = program.collect(["cbdm-finetune", program.BALANCED], [0], 2560, tmp_path / "runs", 1)
    assert list(found) == list(rows)
    assert failed == {}
    _, failed = program.collect(["cbdm-finetune"], [0], 2816, tmp_path / "runs", 1)
    assert failed == {"cbdm-finetune, seed 0": "AssertionError: trained again"}  # another budget is another job
    with pytest.raises(ConfigError, match="among the methods"):
        program.main(["--methods", "no-such"])
