"""Images on disk: plans of more or fewer images keep those that both have, and draw only what is missing."""

from __future__ import annotations

import copy
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from imbdiff.config import RunConfig, override
from imbdiff.data.stats import ClassStats
from imbdiff.diffusion.model import DiffusionModel, build_model
from imbdiff.diffusion.process import PROCESSES
from imbdiff.pipeline import sampling as samples
from imbdiff.pipeline.sampling import plan_in, plan_of_samples, sampling
from imbdiff.presets import preset
from imbdiff.runtime import compiling
from imbdiff.runtime.errors import RunError
from imbdiff.runtime.files import digest, sha256_file

NAMES = ("a", "b", "c")
CONFIG = override(preset("tiny"), {"sample.steps": 2, "sample.batch_size": 8, "device": "cpu"})


@pytest.fixture(scope="module")
def model() -> DiffusionModel:
    return build_model("unet-8", PROCESSES["ddpm"], (1, 8, 8), ClassStats(NAMES, (9, 5, 2)), seed=0).eval()


def plan(counts: tuple[int, ...], config: RunConfig = CONFIG, seed: int = 3) -> dict[str, Any]:
    return plan_in(Path("nowhere"), counts, NAMES, replace(config, seed=seed), "weights")


def draw(model: DiffusionModel, folder: Path, todo: dict[str, Any], config: RunConfig = CONFIG) -> dict[str, str]:
    generate(model, todo, folder, sampling(config))
    assert samples.finished(folder, todo)
    return {str(p.relative_to(folder)): sha256_file(p) for p in sorted(folder.rglob("*.png"))}


def generate(model: DiffusionModel, todo: dict[str, Any], folder: Path, how: samples.Sampling) -> None:
    samples.sample_into(model, todo, folder, how, how.guide(model), quiet=True)


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
    assert drew == [14, 20, 34]  # and nothing the last time


def test_images_of_another_plan_do_not_stay(model: DiffusionModel, tmp_path: Path, drew: list[int]) -> None:
    first = draw(model, tmp_path / "a", plan((0, 3, 3)))
    other = override(CONFIG, {"sample.guidance.omega": 3.0})
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
    assert plan_of_samples(tmp_path / "a") is None
    draw(model, tmp_path / "a", own)
    assert plan_of_samples(tmp_path / "a") == own
    for known in (None, digest(own)):
        assert len(samples.load_samples(tmp_path / "a", (8, 8, 1), NAMES, plan=known)) == 5
    with pytest.raises(RunError, match=r"a are not those of this run\n.*imbdiff sample"):
        samples.load_samples(tmp_path / "a", (8, 8, 1), NAMES, plan=digest(other))


def test_batches_are_halved_where_memory_does_not_suffice(
    model: DiffusionModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = draw(model, tmp_path / "whole", plan((3, 9, 12)))
    calls: list[int] = []
    real = DiffusionModel.forward

    def little(self: DiffusionModel, x_t: torch.Tensor, *args: Any, **options: Any) -> Any:
        calls.append(len(x_t))
        if len(x_t) > 4 and len(calls) > 2:  # the first batch of 8 fits, with both branches
            raise torch.OutOfMemoryError("no more")
        return real(self, x_t, *args, **options)

    monkeypatch.setattr(DiffusionModel, "forward", little)
    said: list[str] = []
    monkeypatch.setattr("builtins.print", said.append)
    how = sampling(CONFIG)
    samples.sample_into(model, plan((3, 9, 12)), tmp_path / "a", how, how.guide(model))
    assert samples.finished(tmp_path / "a", plan((3, 9, 12)))
    assert calls[:2] == [16, 16]
    assert set(calls[-4:]) == {4}
    assert [line.split(": ")[1] for line in said if "suffice" in line] == [
        "batches of 4 images from here on",
        "batches of 2 images from here on",
    ]
    for name in whole:
        a, b = (np.asarray(Image.open(tmp_path / at / name)).astype(int) for at in ("whole", "a"))
        assert np.abs(a - b).max() <= 1
    monkeypatch.setattr(DiffusionModel, "forward", _none)
    with pytest.raises(RunError, match="does not suffice for one image"):
        generate(model, plan((1, 0, 0)), tmp_path / "b", how)


def _none(*_: Any, **__: Any) -> Any:
    raise torch.OutOfMemoryError("no more")


@pytest.mark.parametrize("right", [True, False])
def test_a_compiled_network_draws_the_same_or_is_not_used(
    model: DiffusionModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, right: bool
) -> None:
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "propagate", False)
    torch._dynamo.reset()
    ran: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        def run(*arguments: torch.Tensor) -> Any:
            ran.append(1)
            out = graph(*arguments)
            return out if right else tuple(1.1 * x for x in out)

        return run

    monkeypatch.setattr(compiling, "BACKEND", backend)
    whole = draw(model, tmp_path / "whole", plan((3, 9, 12)))
    monkeypatch.setattr(compiling, "DEVICES", ("cpu",))
    how = replace(sampling(CONFIG), batch_size=1)  # compiled from 16 batches on
    own = copy.deepcopy(model)
    generate(own, plan((3, 9, 12)), tmp_path / "a", how)
    assert (len(ran) > 3) == right
    for name in whole:
        a, b = (np.asarray(Image.open(tmp_path / at / name)).astype(int) for at in ("whole", "a"))
        assert np.abs(a - b).max() <= 1


def test_bfloat16_is_another_plan_and_nearly_the_same_images(model: DiffusionModel, tmp_path: Path) -> None:
    other = override(CONFIG, {"sample.precision": "bf16"})
    assert plan((0, 3, 3), other) != plan((0, 3, 3))
    assert plan((0, 3, 3), other)["precision"] == "bf16"
    draw(model, tmp_path / "a", plan((0, 3, 3)))
    draw(model, tmp_path / "b", plan((0, 3, 3), other), other)
    off = []
    for path in sorted((tmp_path / "a").rglob("*.png")):
        again = tmp_path / "b" / path.relative_to(tmp_path / "a")
        off.append(np.abs(np.asarray(Image.open(path)).astype(int) - np.asarray(Image.open(again)).astype(int)))
    assert 0 < np.mean(off) < 3


def test_memory_that_does_not_suffice_while_compiling_halves_batches_too(
    model: DiffusionModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "propagate", False)
    torch._dynamo.reset()
    monkeypatch.setattr(compiling, "BACKEND", "eager")
    whole = draw(model, tmp_path / "whole", plan((3, 9, 12)))
    own = copy.deepcopy(model)
    real = own.backbone.forward

    def little(x: torch.Tensor, *args: Any, **options: Any) -> Any:
        if len(x) > 8:
            raise torch.OutOfMemoryError("no more")
        return real(x, *args, **options)

    monkeypatch.setattr(own.backbone, "forward", little)
    generate(own, plan((3, 9, 12)), tmp_path / "a", sampling(CONFIG))
    for name in whole:
        a, b = (np.asarray(Image.open(tmp_path / at / name)).astype(int) for at in ("whole", "a"))
        assert np.abs(a - b).max() <= 1


def test_a_default_batch_size_of_another_device_is_no_other_plan(
    model: DiffusionModel, tmp_path: Path, drew: list[int]
) -> None:
    drawn = draw(model, tmp_path / "a", plan((3, 9, 12)))
    drew.clear()
    bare = override(CONFIG, {"sample.batch_size": None})
    here = plan((3, 9, 12), bare)
    assert here["batch_size"] == 64
    at_a = {"names": NAMES, "identity": "weights"}
    todo = plan_in(tmp_path / "a", (3, 9, 12), config=replace(bare, seed=3), **at_a)
    assert samples.finished(tmp_path / "a", todo)
    more = plan_in(tmp_path / "a", (3, 9, 13), config=replace(bare, seed=3), **at_a)
    now = draw(model, tmp_path / "a", more, bare)
    assert sum(drew) == 1
    assert {name: now[name] for name in drawn} == drawn
    asked = override(CONFIG, {"sample.batch_size": 4})
    assert plan_in(tmp_path / "a", (3, 9, 12), config=asked, **at_a)["batch_size"] == 4
