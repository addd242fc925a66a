"""The trainings of a comparison: their files, and that none looks at test images before it is over."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from imbdiff.data.imageset import ImageSet, Rows
from imbdiff.recognition import fitting
from imbdiff.recognition.arms import Arm
from imbdiff.recognition.fitting import Fit
from imbdiff.recognition.jobs import Conditions, Job, Predicted, train_arms
from imbdiff.recognition.networks import Classifier, probabilities
from imbdiff.recognition.plan import FitPlan
from imbdiff.recognition.use import Use
from imbdiff.runtime.errors import NonFiniteLossError

from .conftest import make_prepared, make_set, tiny

PLAN = FitPlan(tiny, steps=10, batch_size=8)
SYNTHETIC = make_set((0, 30, 36), 9)


def job_of(prepared: Any, arm: Arm | None = None, synthetic: ImageSet | None = None, **options: Any) -> Job:
    seed = options.pop("seed", 0)
    conditions = Conditions(**{"plan": PLAN, "prepared": prepared, **options})
    return Job(arm or Arm("ce"), seed, synthetic, conditions)


def trained(job: Job) -> Predicted:
    found = job.train(threading.Event(), {}, {})
    assert found is not None
    return found


def same(a: Predicted | None, b: Predicted | None) -> bool:
    assert a is not None
    assert b is not None
    parts = ((a.test, b.test), (a.val, b.val))
    return all(x is y or (x is not None and y is not None and np.array_equal(x, y)) for x, y in parts)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[Fit]:
    """Every training that is run."""
    seen: list[Fit] = []
    run = Fit.run

    def counted(self: Fit) -> Classifier:
        seen.append(self)
        return run(self)

    monkeypatch.setattr(Fit, "run", counted)
    return seen


def test_result_is_what_the_network_gives_for_the_images(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    prepared = make_prepared(make_set((8, 8, 8), 1))
    kept: list[Classifier] = []
    run = Fit.run
    monkeypatch.setattr(Fit, "run", lambda self: kept.append(run(self)) or kept[-1])
    job = job_of(prepared, folder=tmp_path)
    found = trained(job)
    assert same(job.stored(), found)
    for said, images in ((found.test, prepared.test), (found.val, prepared.val)):
        p = probabilities(kept[0], images)
        assert said is not None
        np.testing.assert_array_equal(said, p)
        np.testing.assert_allclose(p.sum(1), 1, rtol=1e-5)
    without = job_of(make_prepared(None), folder=tmp_path)
    assert trained(without).val is None
    assert same(without.stored(), trained(without))


def test_inputs_that_decide_and_those_that_do_not() -> None:
    prepared = make_prepared(make_set((8, 8, 8), 1))
    arm = Arm("balanced-softmax", Use())
    given = job_of(prepared, arm, SYNTHETIC)
    changed = [
        job_of(prepared, Arm("ce", Use()), SYNTHETIC),
        job_of(prepared, Arm("balanced-softmax", Use(0.5)), SYNTHETIC),
        job_of(prepared, Arm("balanced-softmax", Use(schedule="real-last")), SYNTHETIC),
        job_of(prepared, Arm("balanced-softmax")),
        job_of(prepared, arm, make_set((0, 30, 36), 10)),
        job_of(prepared, replace(arm, changes=0.5), SYNTHETIC),
        job_of(prepared, Arm("balanced-softmax", Use(prior="effective")), SYNTHETIC),
        job_of(prepared, arm, SYNTHETIC, seed=1),
        *(
            job_of(prepared, arm, SYNTHETIC, plan=replace(PLAN, **change))  # type: ignore[arg-type]
            for change in ({"steps": 11}, {"protocol": "cifar-lt"}, {"precision": "fp32"}, {"symmetry": "mirror"})
        ),
        *(
            job_of(SimpleNamespace(**{**vars(prepared), part: make_set((9, 9, 9), 4)}), arm, SYNTHETIC)
            for part in ("train", "val", "test")
        ),
    ]
    hashes = [given.identity, *(job.identity for job in changed)]
    assert len(set(hashes)) == len(hashes)
    alike = [
        job_of(prepared, replace(arm, label="another name"), SYNTHETIC),
        job_of(prepared, replace(arm, number="0.5", wanted=(0, 30, 36)), SYNTHETIC),
        job_of(prepared, arm, make_set((0, 30, 36), 9)),
        job_of(prepared, arm, SYNTHETIC, folder=Path("elsewhere"), seeds=(7,), workers=3),
    ]
    assert {job.identity for job in alike} == {given.identity}


def test_what_was_begun_goes_on_and_leaves_no_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "SAVE_EVERY", 0.0)
    monkeypatch.setattr(fitting, "CHECK_EVERY", 2)
    prepared = make_prepared(make_set((8, 8, 8), 1))
    expected = trained(job_of(prepared, Arm("crt")))
    job = job_of(prepared, Arm("crt"), folder=tmp_path)
    steps: list[int] = []
    gradients, stop = Fit.gradients, threading.Event()

    def counted(self: Fit, step: int) -> Any:
        steps.append(step)
        if step == 7:
            stop.set()
        return gradients(self, step)

    monkeypatch.setattr(Fit, "gradients", counted)
    assert job.train(stop, {}, {}) is None
    assert steps == list(range(8))
    assert job.stored() is None
    assert list((tmp_path / "checkpoints" / job.file).iterdir())
    steps.clear()
    assert same(job.train(threading.Event(), {}, {}), expected)
    assert steps == [6, 7, 8, 9]
    assert same(job.stored(), expected)
    assert not (tmp_path / "checkpoints" / job.file).exists()
    rows = (tmp_path / "logs" / f"{job.file}.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [2, 4, 6, 8, 10]


def test_finished_trainings_are_kept_whatever_they_are_called(tmp_path: Path, runs: list[Fit]) -> None:
    prepared = make_prepared(make_set((8, 8, 8), 1))
    arms = {Arm("ce"): None, Arm("ce", Use()): SYNTHETIC}
    notes: list[tuple[int, int, str]] = []
    conditions = Conditions(PLAN, prepared, (0, 1), folder=tmp_path, progress=lambda *a: notes.append(a))
    first = train_arms(arms, conditions)
    assert len(runs) == len(list(tmp_path.glob("*.safetensors"))) == len(list((tmp_path / "logs").iterdir())) == 4
    assert [row[:2] for row in notes] == [(i, 4) for i in range(1, 5)]
    notes.clear()
    again = train_arms({**arms, Arm("ce", Use(), label="other name"): SYNTHETIC}, conditions)
    assert len(runs) == 4
    assert all(note.endswith("(kept)") for _, _, note in notes)
    assert notes[-1][:2] == (4, 4)  # equal inputs are one training
    for arm, found in first.items():
        assert all(same(a, b) for a, b in zip(found, again[arm], strict=True))
    # one lost, others damaged: these alone are trained again, with the same result
    lost, *damaged = sorted(tmp_path.glob("*.safetensors"))[:3]
    lost.unlink()
    damaged[0].write_bytes(damaged[0].read_bytes()[:200])
    save_file({"test": np.zeros((90, 3), np.float32)}, damaged[1], {"input": "another"})
    repaired = train_arms(arms, conditions)
    assert len(runs) == 7
    assert all(same(a, b) for arm in arms for a, b in zip(repaired[arm], first[arm], strict=True))
    # other synthetic images: the arms without them stay
    train_arms({Arm("ce"): None, Arm("ce", Use()): make_set((0, 30, 36), 10)}, conditions)
    assert len(runs) == 9
    # and those of before are still there
    train_arms(arms, conditions)
    assert len(runs) == 9


def test_results_do_not_depend_on_workers_nor_on_the_order(tmp_path: Path) -> None:
    prepared = make_prepared(make_set((8, 8, 8), 1))
    arms = {
        Arm("ce"): None, Arm("lws"): None, Arm("cutmix", Use(share=0.5)): SYNTHETIC, Arm("ldam-drw", Use()): SYNTHETIC,
    }  # fmt: skip
    one = train_arms(arms, Conditions(PLAN, prepared, (0, 1), workers=1))
    turned = dict(reversed(arms.items()))
    many = train_arms(turned, Conditions(PLAN, prepared, (0, 1), workers=4, folder=tmp_path))
    assert list(one) == list(arms)
    assert all(same(a, b) for arm in arms for a, b in zip(one[arm], many[arm], strict=True))


@pytest.mark.parametrize("error", [ValueError("broken"), NonFiniteLossError("broken: the loss is nan", "")])
def test_an_error_ends_the_others_and_keeps_what_is_finished(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, asked = Fit.run, []

    def broken(self: Fit) -> Classifier:
        if self.seed == 1:
            raise error
        asked.append(self.stop)
        return run(self)

    monkeypatch.setattr(Fit, "run", broken)
    conditions = Conditions(PLAN, make_prepared(None), (0, 1, 2), workers=1, folder=tmp_path)
    with pytest.raises(type(error), match="broken"):
        train_arms({Arm("ce"): None}, conditions)
    assert asked[0] is not None
    assert asked[0]()
    assert len(list(tmp_path.glob("*.safetensors"))) == 1
    if isinstance(error, NonFiniteLossError):  # unless the others are to go on
        ((first, failed, third),) = train_arms({Arm("ce"): None}, conditions, keep_going=True).values()
        assert "the loss is nan" in failed.failed
        assert failed.test is None
        assert not first.failed
        assert third.test is not None


# -- who looks at what


class _Watched(Rows):
    """Images that call `seen` each time that pixels are read."""

    def __init__(self, images: np.ndarray, seen: Any) -> None:
        super().__init__([images], np.arange(len(images)))
        self.seen = seen

    def _read(self, rows: Any) -> np.ndarray:
        self.seen()
        return super()._read(rows)


@pytest.mark.parametrize("name", ["ce", "crt", "tau-norm", "logit-adjustment"])
def test_no_training_reads_validation_or_test_images(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = {"test": 0, "val": 0}
    plain = make_prepared(make_set((8, 8, 8), 1))
    watched = {}
    for part in reads:

        def seen(part: str = part) -> None:
            reads[part] += 1

        given = getattr(plain, part)
        watched[part] = ImageSet(_Watched(given.images, seen), given.labels, given.class_names)  # type: ignore[arg-type]
    prepared = SimpleNamespace(**{**vars(plain), **watched})
    job = job_of(prepared, Arm(name, Use()), SYNTHETIC)
    assert job.identity  # reads all pixels, for their hash
    reads.update(test=0, val=0)
    run = Fit.run

    def watch(self: Fit) -> Classifier:
        found = run(self)
        assert reads == {"test": 0, "val": 0}
        return found

    monkeypatch.setattr(Fit, "run", watch)
    trained(job)
    assert reads == {"test": 1, "val": 1}
