"""Trainings of a comparison, their files, and that nothing looks at test images before a training is over."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from imbdiff.data.imageset import ImageSet, Rows
from imbdiff.recognition import jobs, loop
from imbdiff.recognition.jobs import Arm, Job, default_workers, run_all
from imbdiff.recognition.plan import FitPlan
from imbdiff.recognition.predict import probabilities
from imbdiff.recognition.recipes import RECIPES
from imbdiff.recognition.use import Use
from imbdiff.runtime.errors import ConfigError

from .conftest import make_prepared, make_set, tiny

PLAN = FitPlan(tiny, steps=10, batch_size=8)


def _job(prepared: Any, arm: Arm | None = None, synthetic: ImageSet | None = None, **options: Any) -> Job:
    plain: dict[str, Any] = {"seed": 0, "plan": PLAN, "device": "cpu", "folder": None}
    return Job(arm or Arm("ce"), prepared=prepared, synthetic=synthetic, **{**plain, **options})


def _trained(job: Job) -> dict[str, Any]:
    found = job.train(threading.Event())
    assert found is not None
    return found


# -- arms


def test_names_and_files_of_arms() -> None:
    assert Arm("ce").name == "CE"
    assert Arm("ce", Use()).name == "synthetic + CE"
    assert Arm("ce", Use(), label="mine").name == "mine"
    assert Arm("ldam-drw", Use()).file == "synthetic+ldam-drw"
    assert Arm("ce", label="../../etc/x").file == "..-..-etc-x"
    assert Arm("ce", label="a\\b:c|d\n").file == "a-b-c-d-"
    files = {Arm(name, use).file for name in RECIPES for use in (None, Use())}
    assert len(files) == 2 * len(RECIPES)
    assert not any(set(file) & set("/\\ ") for file in files)


def test_what_an_arm_says_of_itself() -> None:
    use = Use(0.5, 0.25, prior="effective")
    assert Arm("balanced-softmax", use).to_json() == {
        "name": "synthetic + balanced softmax",
        "recipe": "balanced-softmax",
        "use": use.to_json(),
        "needs_synthetic": True,
        "sampler": "natural",
        "loss": "balanced-softmax",
        "prior": "effective",
    }
    assert [Arm(n).prior for n in ("ce", "focal", "remix", "ldam")] == [None, None, "train", "train"]
    assert Arm("ce", use).prior is None
    with pytest.raises(ConfigError, match="did you mean ldam-drw"):
        Arm("ldam-drv").to_json()


# -- results


def test_result_is_what_the_networks_say_of_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = make_prepared(make_set((8, 8, 8), 1))
    kept: list[Any] = []
    train = jobs.train_classifier

    def seen(*args: Any, **options: Any) -> Any:
        kept.append(train(*args, **options))
        return kept[-1]

    monkeypatch.setattr(jobs, "train_classifier", seen)
    found = _trained(_job(prepared, looks=5))
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert set(found) == {"seed", "test", "val", "best"}
    assert found["best"]["step"] == kept[0].best_step
    cases = [
        (found["test"], kept[0].last, prepared.test),
        (found["val"], kept[0].last, prepared.val),
        (found["best"]["test"], kept[0].best, prepared.test),
        (found["best"]["val"], kept[0].best, prepared.val),
    ]
    for said, network, images in cases:
        p = probabilities(network, images)
        assert said["predicted"] == p.argmax(1).tolist()
        np.testing.assert_allclose(said["confidence"], p.max(1), atol=6e-6)
        assert p.shape == (len(images), 3)
        np.testing.assert_allclose(p.sum(1), 1, rtol=1e-5)
    without = _trained(_job(make_prepared(None)))
    assert (without["val"], without["best"]) == (None, None)
    assert without["test"] == found["test"]


def test_inputs_that_decide_and_those_that_do_not() -> None:
    prepared, synthetic = make_prepared(make_set((8, 8, 8), 1)), make_set((0, 30, 36), 9)
    arm = Arm("balanced-softmax", Use())
    given = _job(prepared, arm, synthetic)
    changed = [
        _job(prepared, Arm("ce", Use()), synthetic),
        _job(prepared, Arm("balanced-softmax", Use(0.5)), synthetic),
        _job(prepared, Arm("balanced-softmax", Use(batch_norm="separate")), synthetic),
        _job(prepared, Arm("balanced-softmax"), synthetic),
        _job(prepared, arm, make_set((0, 30, 36), 10)),
        _job(prepared, arm, synthetic, seed=1),
        _job(prepared, arm, synthetic, looks=2),
        *(
            _job(prepared, arm, synthetic, plan=replace(PLAN, **change))  # type: ignore[arg-type]
            for change in ({"steps": 11}, {"nesterov": False}, {"precision": "fp32"}, {"normalise": ((0.5,), (0.2,))})
        ),
        *(
            _job(SimpleNamespace(**{**vars(prepared), part: make_set((9, 9, 9), 4)}), arm, synthetic)
            for part in ("train", "val", "test")
        ),
    ]
    hashes = [given.input_hash(), *(job.input_hash() for job in changed)]
    assert len(set(hashes)) == len(hashes)
    same = [
        _job(prepared, replace(arm, label="another name"), synthetic),
        _job(prepared, arm, make_set((0, 30, 36), 9)),
        _job(prepared, arm, synthetic, folder=Path("elsewhere")),
    ]
    assert {job.input_hash() for job in same} == {given.input_hash()}
    # an arm without synthetic images does not depend on them
    assert _job(prepared, Arm("ce"), synthetic).input_hash() == _job(prepared, Arm("ce")).input_hash()


def test_what_was_begun_goes_on_and_leaves_no_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "SAVE_EVERY", 0.0)
    monkeypatch.setattr(loop, "CHECK_EVERY", 2)
    prepared = make_prepared(make_set((8, 8, 8), 1))
    expected = _trained(_job(prepared, Arm("crt"), looks=5))
    job = _job(prepared, Arm("crt"), looks=5, folder=tmp_path)
    steps: list[int] = []
    step = loop.Loop._step

    def counted(self: Any, stage: Any, inside: int, at: int, optimizer: Any) -> Any:
        steps.append(at)
        if at == 7:
            stop.set()
        return step(self, stage, inside, at, optimizer)

    monkeypatch.setattr(loop.Loop, "_step", counted)
    stop = threading.Event()
    assert job.train(stop) is None
    assert steps == list(range(8))
    assert not (tmp_path / "crt-seed0.json").exists()
    assert list((tmp_path / "checkpoints" / "crt-seed0").iterdir())
    steps.clear()
    stop = threading.Event()
    assert job.train(threading.Event()) == expected
    assert steps == [6, 7, 8, 9]
    assert job.stored() == expected
    assert not (tmp_path / "checkpoints" / "crt-seed0").exists()
    rows = (tmp_path / "logs" / "crt-seed0.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [2, 4, 6, 8, 10]
    # begun with other inputs: from the start
    (tmp_path / "crt-seed0.json").unlink()
    steps.clear()
    stop = threading.Event()
    assert job.train(stop) is None
    steps.clear()
    stop = threading.Event()
    other = replace(job, plan=replace(PLAN, weight_decay=0.1))
    assert other.stored() is None
    other.train(threading.Event())
    assert steps[0] == 0


def test_damaged_and_foreign_files_are_not_results(tmp_path: Path) -> None:
    prepared = make_prepared(None)
    job = _job(prepared, folder=tmp_path)
    assert job.stored() is None
    assert job.path is not None
    for text in ("", "[1, 2]", '{"input": 3}', json.dumps({"input": job.input_hash()}), "\x00"):
        job.path.write_text(text)
        assert job.stored() is None
    assert _job(prepared).stored() is None


def test_results_do_not_depend_on_workers_nor_on_the_order(tmp_path: Path) -> None:
    prepared, synthetic = make_prepared(make_set((8, 8, 8), 1)), make_set((0, 30, 36), 9)
    arms = [Arm("ce"), Arm("lws"), Arm("cutmix", Use(share=0.5)), Arm("ldam-drw", Use())]
    made = [_job(prepared, arm, synthetic, seed=seed, looks=2) for arm in arms for seed in (0, 1)]
    one = run_all(made, 1, None)
    told: list[tuple[int, int, str]] = []
    many = run_all([replace(job, folder=tmp_path) for job in made[::-1]], 4, lambda *a: told.append(a))
    assert one == many
    assert set(one) == {(arm.name, seed) for arm in arms for seed in (0, 1)}
    assert [row[:2] for row in told] == [(i, 8) for i in range(1, 9)]
    told.clear()
    assert run_all([replace(job, folder=tmp_path) for job in made], 2, lambda *a: told.append(a)) == one
    assert all(row[2].endswith("(kept)") for row in told)


def test_an_error_ends_the_others_and_keeps_what_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = make_prepared(None)
    train = jobs.train_classifier
    asked: list[Any] = []

    def broken(*args: Any, **options: Any) -> Any:
        if options["seed"] == 1:
            raise ValueError("broken")
        asked.append(options["stop"])
        return train(*args, **options)

    monkeypatch.setattr(jobs, "train_classifier", broken)
    made = [_job(prepared, seed=seed, folder=tmp_path) for seed in range(3)]
    with pytest.raises(ValueError, match="broken"):
        run_all(made, 1, None)
    assert asked[0]()
    assert made[0].stored() is not None
    assert made[2].stored() is None


def test_workers() -> None:
    assert default_workers("cuda") == 1
    assert 1 <= default_workers("cpu") <= 8


# -- who looks at what


class _Watched(Rows):
    """Images that call `seen` each time that pixels are read."""

    def __init__(self, images: np.ndarray, seen: Any) -> None:
        super().__init__([images], np.arange(len(images)))
        self.seen = seen

    def _read(self, rows: Any) -> np.ndarray:
        self.seen()
        return super()._read(rows)


@pytest.mark.parametrize("name", RECIPES)
def test_no_training_reads_test_images_and_validation_images_are_for_looks(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    training, looking, over = False, False, 0
    reads = {"test": 0, "val": 0}

    def test_read() -> None:
        assert not training, "test images are read before the training is over"
        reads["test"] += 1

    def val_read() -> None:
        assert looking or not training, "validation images are read, and not by a look"
        reads["val"] += 1

    plain = make_prepared(make_set((8, 8, 8), 1))
    watched = {}
    for part, seen in (("test", test_read), ("val", val_read)):
        given = getattr(plain, part)
        watched[part] = ImageSet(_Watched(given.images, seen), given.labels, given.class_names)  # type: ignore[arg-type]
    prepared = SimpleNamespace(**{**vars(plain), **watched})
    job = _job(prepared, Arm(name, Use()), make_set((0, 30, 36), 9), looks=2)
    job.input_hash()  # which reads all pixels, for their hash
    reads.update(test=0, val=0)
    train, look = jobs.train_classifier, loop.Loop._look

    def watch(*args: Any, **options: Any) -> Any:
        nonlocal training, over
        training = True
        found = train(*args, **options)
        training, over = False, over + 1
        return found

    def watch_look(self: Any, at: int) -> None:
        nonlocal looking
        looking = True
        look(self, at)
        looking = False

    monkeypatch.setattr(jobs, "train_classifier", watch)
    monkeypatch.setattr(loop.Loop, "_look", watch_look)
    found = _trained(job)
    assert over == 1
    # two looks; then the last and the best network, once each
    assert reads == {"test": 2, "val": 4}
    monkeypatch.setattr(loop.Loop, "_look", look)
    monkeypatch.setattr(jobs, "train_classifier", train)
    assert _trained(_job(plain, Arm(name, Use()), make_set((0, 30, 36), 9), looks=2)) == found
    # and the last network is the same where nobody looks, and whatever is in the validation images
    blind = _trained(_job(plain, Arm(name, Use()), make_set((0, 30, 36), 9)))
    assert blind["test"] == found["test"]


def test_the_global_generator_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    _trained(_job(make_prepared(make_set((8, 8, 8), 1)), Arm("remix-drw"), looks=2))
    assert torch.equal(before, torch.random.get_rng_state())
