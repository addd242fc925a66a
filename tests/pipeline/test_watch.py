"""Measuring while training: on validation images, by a working extractor, and the best weights become the model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from imbdiff.config import RunConfig, override
from imbdiff.data.splits import Prepared, prepare
from imbdiff.diffusion.model import DiffusionModel
from imbdiff.diffusion.saved import load_model
from imbdiff.pipeline import watch as watch_module
from imbdiff.pipeline.recognising import plan_of
from imbdiff.pipeline.run import run
from imbdiff.pipeline.training import build_step, prepare_data
from imbdiff.pipeline.watch import Watch
from imbdiff.presets import preset
from imbdiff.recognition.trained import working_extractor
from imbdiff.runtime.errors import DataError, RunError
from imbdiff.runtime.log import read_jsonl
from tests.pipeline.conftest import SMALL


@pytest.fixture(scope="module", autouse=True)
def few() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(watch_module, "SAMPLES", 40)
        yield


@pytest.fixture(scope="module")
def config() -> RunConfig:
    return override(
        override(preset("tiny"), SMALL),
        {"train.images": 320, "train.watch_images": 64, "classify.steps": 20, "sample.steps": 2},
    )


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory, config: RunConfig) -> Path:
    folder = tmp_path_factory.mktemp("watched") / "run"
    run("digits", folder, config, wanted=("train",), quiet=True)
    return folder


def test_measures_every_so_many_images_and_keeps_the_best(watched: Path, config: RunConfig) -> None:
    rows = read_jsonl(watched / "watch.jsonl")
    assert [row["images"] for row in rows] == [64, 128, 192, 256, 320]
    for row in rows:
        assert row["KD"]["low"] < row["KD"]["value"] < row["KD"]["high"]
        assert 0 <= row["agreement"]["value"] <= 1
    best = min(rows, key=lambda row: row["KD"]["value"])
    kept = json.loads((watched / "checkpoints/best/watched.json").read_text())
    assert kept["images"] == best["images"]
    model, saved = load_model(watched / "model"), load_model(watched / "checkpoints/best")
    for (name, a), b in zip(model.state_dict().items(), saved.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_the_page_says_which_weights_were_kept(watched: Path, config: RunConfig) -> None:
    run("digits", watched, config, wanted=("report",), quiet=True)
    kept = json.loads((watched / "checkpoints/best/watched.json").read_text())
    assert f"those after {kept['images']} images: KD" in (watched / "report.html").read_text()


def test_watching_changes_nothing_of_training_itself(watched: Path, config: RunConfig, tmp_path: Path) -> None:
    off = override(config, {"train.watch_images": 0})
    run("digits", tmp_path / "off", off, wanted=("train",), quiet=True)
    logs = [(folder / "log.jsonl").read_text().splitlines() for folder in (watched, tmp_path / "off")]
    losses = [[json.loads(line)["loss"] for line in log] for log in logs]
    assert losses[0] == losses[1]
    with pytest.raises(RunError, match=r"train\.watch_images"):
        run("digits", watched, off, wanted=("train",), quiet=True)


def test_extractor_and_reference_are_not_those_that_judge(config: RunConfig) -> None:
    prepared = prepare_data("digits", config.data)
    extractor = working_extractor(prepared.train, plan_of(prepared, config), seed=config.seed, device="cpu")
    assert extractor.role == "working"
    assert extractor.trained_on == frozenset(prepared.train.hashes)
    assert prepared.val is not None
    watch = Watch(prepared, config, Path("nowhere"))
    watch._extractor = extractor
    seen: list[int] = []
    original = extractor.features
    extractor.features = lambda x, *a, **k: seen.append(len(x)) or original(x, *a, **k)  # type: ignore[method-assign,func-returns-value]
    model = build_model(prepared, config)
    numbers = watch.measure(watch.sample(model))
    assert seen == [40, len(prepared.val)]
    assert numbers["KD"].n_reference == len(prepared.val)
    assert watch.measure(watch.sample(model)) == numbers


def build_model(prepared: Prepared, config: RunConfig) -> DiffusionModel:
    from imbdiff.methods import get_method

    model = build_step(get_method(config.method).phases[0], prepared, config).networks["model"]
    assert isinstance(model, DiffusionModel)
    return model.eval()


def test_a_repeated_measurement_takes_its_place_in_the_log(tmp_path: Path, config: RunConfig) -> None:
    prepared = prepare_data("digits", config.data)
    watch = Watch(prepared, config, tmp_path)
    model = build_model(prepared, config)
    for seen in (64, 128, 192, 128):  # killed after 192, resumed from a checkpoint at 64
        watch(model, seen)
    assert [row["images"] for row in read_jsonl(tmp_path / "watch.jsonl")] == [64, 128]
    log: list[str] = []
    watch.log = log.append
    assert watch.best_of(model) is not model
    assert "after 64 images" in log[0]


def test_weights_whose_images_are_copies_are_not_kept(tmp_path: Path, config: RunConfig, monkeypatch: Any) -> None:
    prepared, said = prepare_data("digits", config.data), list[str]()
    watch = Watch(prepared, config, tmp_path, log=said.append)
    model = build_model(prepared, config)
    watch(model, 64)
    training = prepared.train.select(np.arange(40))
    monkeypatch.setattr(Watch, "sample", lambda *_: training)
    watch(model, 128)
    rows = read_jsonl(tmp_path / "watch.jsonl")
    assert [row["near_copies"] for row in rows] == [0.0, 1.0]
    assert "not kept, after 128 images" in said[-1]
    watch.best_of(model)
    assert "after 64 images" in said[-1]


def test_guidance_that_a_model_in_training_cannot_serve_is_logged_once(tmp_path: Path, config: RunConfig) -> None:
    config = override(config, {"sample.guidance": "autoguidance+classifier-free"})
    prepared, said = prepare_data("digits", config.data), list[str]()
    watch = Watch(prepared, config, tmp_path, log=said.append)
    model = build_model(prepared, config)
    for seen in (64, 128):
        watch(model, seen)
    assert said == ["watch: while training, images are sampled without this guidance: autoguidance (needs weak)"]
    rows = read_jsonl(tmp_path / "watch.jsonl")
    assert [row["without_guidance"] for row in rows] == [{"autoguidance": "weak"}] * 2


def test_too_few_validation_images_are_refused_before_training(tmp_path: Path, config: RunConfig) -> None:
    images = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 1), dtype=np.uint8)
    prepared = prepare((images, np.repeat([0, 1], 15)))
    with pytest.raises(DataError, match="at least 20 validation images, here are 0"):
        Watch(prepared, config, tmp_path)
