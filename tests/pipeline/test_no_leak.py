"""Whoever trains, curates or chooses sees neither pixels nor hashes of a test image; and this test would notice."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from imbdiff.config import RunConfig, override
from imbdiff.data.gather import Gather
from imbdiff.data.imageset import ImageSet
from imbdiff.data.splits import Prepared
from imbdiff.pipeline import run as run_module
from imbdiff.pipeline import training
from imbdiff.pipeline.folder import RunFolder
from imbdiff.recognition import comparison, jobs
from imbdiff.recognition import curation as choice
from imbdiff.recognition.fitting import Fit
from imbdiff.runtime.files import read_json
from imbdiff.training.trainer import Trainer

STAGES_SEEN = ("train", "sample", "curate", "classify", "report")
"""All but measuring, which compares with the test images and decides nothing."""


class Guard:
    """Knows the test images' hashes, and says who held one while test images were none of its business."""

    def __init__(self, planted: set[str]) -> None:
        self.planted = planted
        self._threads = threading.local()  # one classifier may be tested while another is trained
        self.asked: dict[str, int] = {}

    @property
    def inside(self) -> list[str]:
        if not hasattr(self._threads, "inside"):
            self._threads.inside = []
        return self._threads.inside

    def look(self, who: str, images: Any) -> None:
        self.asked[who] = self.asked.get(who, 0) + 1
        rows = np.asarray(images[: len(images)])
        seen = {hashlib.sha256(np.ascontiguousarray(x).tobytes()).hexdigest()[:32] for x in rows}
        leaked = seen & self.planted
        assert not leaked, f"{who} saw {len(leaked)} test images"

    def around(self, patch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
        """Within the function no test image may be read."""
        real: Callable[..., Any] = getattr(owner, name)

        def sealed(*args: Any, **kwargs: Any) -> Any:
            self.inside.append(name)
            try:
                return real(*args, **kwargs)
            finally:
                self.inside.pop()

        patch.setattr(owner, name, sealed)


class Sealed(ImageSet):
    """Test images that raise when they are read inside what trains, curates or chooses."""

    guard: Guard

    def __getattribute__(self, name: str) -> Any:
        if name == "images":
            guard = object.__getattribute__(self, "guard")
            assert not guard.inside, f"{guard.inside[-1]} read the test images"
            guard.asked["test images"] = guard.asked.get("test images", 0) + 1
        return super().__getattribute__(name)


def guarded(patch: pytest.MonkeyPatch, spoil: Callable[[Prepared], Prepared] = lambda p: p) -> Guard:
    """Every run from here on works on images that tell; `spoil` lets them leak first."""
    real_prepare = training.prepare_data
    guard = Guard(set())

    def prepare_data(*args: Any, **kwargs: Any) -> Prepared:
        prepared = real_prepare(*args, **kwargs)
        test = prepared.test
        guard.planted = set(test.hashes)
        sealed = Sealed(test.images, test.labels, test.class_names, test.ids)
        object.__setattr__(sealed, "guard", guard)
        sealed.__dict__["hashes"] = test.hashes
        return spoil(replace(prepared, test=sealed))

    patch.setattr(Sealed, "guard", guard, raising=False)
    patch.setattr(training, "prepare_data", prepare_data)
    # what is trained on: generators, classifiers, judge and working classifier all take their images from here
    real_gather = Gather.__init__

    def gather(self: Gather, images: Any, device: Any) -> None:
        guard.look("training", images)
        real_gather(self, images, device)

    patch.setattr(Gather, "__init__", gather)
    # what chooses among synthetic images
    real_score = choice.score

    def score(candidates: ImageSet, train: ImageSet, extractor: Any) -> Any:
        guard.look("curation", candidates.images)
        guard.look("curation", train.images)
        assert not set(extractor.trained_on) & guard.planted
        return real_score(candidates, train, extractor)

    patch.setattr(choice, "score", score)
    for owner, name in ((Trainer, "run"), (Fit, "run"), (choice, "score")):
        guard.around(patch, owner, name)
    from imbdiff.pipeline import curation

    guard.around(patch, curation, "curate")
    guard.around(patch, comparison, "choose_control")
    for module in (comparison, jobs):  # adjustment and temperature of arms, and of teachers
        guard.around(patch, module, "choose_decision")
    return guard


def executed(folder: Path, config: RunConfig, more: dict[str, Any] | None = None, stages: Any = STAGES_SEEN) -> None:
    values = {
        "curate.policy": "diverse", "curate.candidates": 1.5, "train.watch_images": 96, "sample.strategy": "equal=0.1",
        "classify.ensemble": 1, "classify.synthetic_prior": "domain", "classify.seeds": 1, **(more or {}),
    }  # fmt: skip
    run_module.Run(RunFolder(folder), "digits", override(config, values), True).execute(stages)


def test_nobody_who_trains_curates_or_chooses_sees_a_test_image(
    tmp_path: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard = guarded(monkeypatch)
    executed(tmp_path / "run", config)
    assert (tmp_path / "run" / "report.html").exists()
    assert guard.asked["training"] > 10
    assert guard.asked["curation"] >= 2
    assert guard.asked["test images"] > 0  # they are predicted in the end


def leaking(prepared: Prepared) -> Prepared:
    """One test image among the training images."""
    train, test = prepared.train, prepared.test
    planted = ImageSet(
        np.concatenate([train.images, test.images[:1]]), np.concatenate([train.labels, test.labels[:1]]),
        train.class_names, (*train.ids, "planted"),
    )  # fmt: skip
    return replace(prepared, train=planted, stats=planted.stats)


def test_one_planted_image_is_noticed(tmp_path: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    guarded(monkeypatch, leaking)
    with pytest.raises(AssertionError, match="training saw 1 test images"):
        executed(tmp_path / "run", config)


def test_reading_test_images_while_choosing_is_noticed(
    tmp_path: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared_of: list[Prepared] = []

    def remember(prepared: Prepared) -> Prepared:
        prepared_of.append(prepared)
        return prepared

    real = comparison.choose_control

    def peeks(*args: Any) -> Any:
        assert len(prepared_of[-1].test.images)
        return real(*args)

    monkeypatch.setattr(comparison, "choose_control", peeks)
    guarded(monkeypatch, remember)
    with suppress(FileNotFoundError), pytest.raises(AssertionError, match="choose_control read the test images"):
        executed(tmp_path / "run", config)


# -- other test images, the same of all that is trained or chosen


def tensors(path: Path) -> dict[str, bytes]:
    return {name: value.tobytes() for name, value in sorted(load_file(path).items())}


def decided(folder: Path) -> dict[str, Any]:
    """All that a run trained and chose."""
    found = json.loads((folder / "classifier" / "results.json").read_text())
    networks: dict[tuple[str, str], Any] = {}
    for path in (folder / "classifier").glob("*.network.safetensors"):
        with safe_open(path.with_name(path.name.replace(".network", "")), "np") as file:
            facts = json.loads(file.metadata()["facts"])
        key = (facts["arm"], facts["seed"])
        assert key not in networks
        networks[key] = tensors(path)
    kept = read_json(folder / "curation" / "manifest.json")
    return {
        "generator": tensors(folder / "model" / "model.safetensors"),
        "images": [row["file"] for row in read_json(folder / "samples" / "manifest.json")["images"]],
        "pixels": {p.name: p.read_bytes() for p in sorted((folder / "samples").glob("*/*.png"))},
        "kept": kept["images"],
        "networks": networks,
        "decisions": {arm["name"]: arm["decisions"] for arm in found["arms"]},
        "validation": {arm["name"]: arm["validation"] for arm in found["arms"]},
        "control": found["control"],
    }


def test_with_other_test_images_everything_trained_and_chosen_is_bit_identical(
    tmp_path: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = training.prepare_data

    def other(*args: Any, **kwargs: Any) -> Prepared:
        prepared = real(*args, **kwargs)
        test, g = prepared.test, np.random.default_rng(1)
        images = g.integers(0, 256, test.images[:].shape, dtype=np.uint8)
        return replace(prepared, test=ImageSet(images, g.permutation(test.labels), test.class_names))

    stages = ("train", "sample", "curate", "classify")
    executed(tmp_path / "run", config, stages=stages)
    monkeypatch.setattr(training, "prepare_data", other)
    executed(tmp_path / "other", config, stages=stages)
    first, second = decided(tmp_path / "run"), decided(tmp_path / "other")
    assert len(first["networks"]) >= 5
    assert any("synthetic" in arm for arm, _ in first["networks"])
    for what in first:
        assert first[what] == second[what], what
    results = [json.loads((tmp_path / run / "classifier" / "results.json").read_text()) for run in ("run", "other")]
    assert results[0]["arms"][0]["runs"] != results[1]["arms"][0]["runs"]  # the test images did change
