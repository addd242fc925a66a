"""Ensembles, the placebo and distillation, as trainings of a comparison."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from imbdiff.data.imageset import ImageSet
from imbdiff.recognition import fitting, jobs
from imbdiff.recognition.arms import SEED_STEP, Arm, make_arms
from imbdiff.recognition.comparison import classify
from imbdiff.recognition.decision import Ensemble, choose_decision, log_prior_of
from imbdiff.recognition.fitting import Fit, load_network
from imbdiff.recognition.jobs import Conditions, Predicted, jobs_of, train_arms
from imbdiff.recognition.losses import distillation
from imbdiff.recognition.networks import Classifier, probabilities
from imbdiff.recognition.plan import FitPlan
from imbdiff.recognition.recipes import RECIPES
from imbdiff.recognition.use import Use
from imbdiff.runtime.errors import NonFiniteLossError, RunError

from .conftest import make_prepared, make_set, tiny

PLAN = FitPlan(tiny, steps=6, batch_size=12, lr=0.05, precision="fp32")
SYNTHETIC, OTHERS = make_set((20, 20, 20), 9), make_set((20, 20, 20), 10)
BASE = Arm("balanced-softmax")
WITH = Arm("balanced-softmax", Use(prior="domain"), changes=0.5)
BOTH = Arm("balanced-softmax", members=(BASE, BASE, WITH, WITH))
STUDENT = Arm("balanced-softmax", Use(prior="domain"), teacher=Arm("balanced-softmax", members=(BASE, WITH)))


def conditions_of(prepared: Any, **options: Any) -> Conditions:
    return Conditions(**{"plan": PLAN, "prepared": prepared, "seeds": (0,), "workers": 2, **options})


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[Fit]:
    """Every training that is run."""
    seen: list[Fit] = []
    run = Fit.run
    monkeypatch.setattr(Fit, "run", lambda self: (seen.append(self), run(self))[1])
    return seen


def alone(prepared: Any, arm: Arm, images: ImageSet | None, seed: int) -> Classifier:
    """A network of `arm`, trained by itself."""
    recipe = RECIPES[arm.recipe]
    return Fit(prepared.train, PLAN, recipe, seed, "cpu", images, arm.use or Use(), arm.changes).run()


def same(a: Predicted, b: Predicted) -> bool:
    assert a.test is not None
    assert b.test is not None
    return np.array_equal(a.test, b.test) and np.array_equal(np.asarray(a.val), np.asarray(b.val))


# -- ensembles


def test_an_ensemble_gives_the_mean_of_what_single_trainings_give_and_trains_each_network_once(
    prepared: Any, fits: list[Fit]
) -> None:
    arms: dict[Arm, ImageSet | None] = {BASE: None, WITH: SYNTHETIC, BOTH: SYNTHETIC}
    notes: list[tuple[int, int]] = []
    found = train_arms(arms, conditions_of(prepared, seeds=(0, 1), progress=lambda n, of, _: notes.append((n, of))))
    trained = sorted((fit.synthetic is not None, fit.seed) for fit in fits)
    assert trained == [(kind, s) for kind in (False, True) for s in (0, 1, SEED_STEP, SEED_STEP + 1)]
    assert notes[-1] == (8, 8)
    for seed, ensemble in enumerate(found[BOTH]):
        single = [
            alone(prepared, arm, images, s)
            for arm, images in ((BASE, None), (WITH, SYNTHETIC)) for s in (seed, seed + SEED_STEP)
        ]  # fmt: skip
        for part in ("test", "val"):
            p = np.mean([probabilities(network, getattr(prepared, part)) for network in single], axis=0)
            np.testing.assert_allclose(getattr(ensemble, part), p, atol=1e-6)
        np.testing.assert_array_equal(found[BASE][seed].test, probabilities(single[0], prepared.test))
    assert not same(found[BOTH][0], found[BOTH][1])


def test_all_default_arms_share_their_networks(prepared: Any, fits: list[Fit]) -> None:
    arms = make_arms(ensemble=2)
    train_arms(dict.fromkeys(arms, SYNTHETIC), conditions_of(prepared, plan=replace(PLAN, steps=1)))
    assert len(fits) == len({network for arm in arms for network in arm.networks(0)}) == 14


def test_without_validation_images_an_ensemble_has_test_probabilities_alone() -> None:
    (found,) = train_arms({BOTH: SYNTHETIC}, conditions_of(make_prepared(None)))[BOTH]
    assert found.val is None
    np.testing.assert_allclose(np.asarray(found.test).sum(axis=1), 1, rtol=1e-5)


def test_a_failed_member_fails_the_ensemble_and_the_student_and_no_other_arm(
    prepared: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run, bad = Fit.run, [SEED_STEP]

    def broken(self: Fit) -> Classifier:
        if self.synthetic is not None and self.teacher is None and self.seed in bad:
            raise NonFiniteLossError(f"{self.name}: the loss is nan", "")
        return run(self)

    monkeypatch.setattr(Fit, "run", broken)
    student = replace(STUDENT, teacher=BOTH)
    arms: dict[Arm, ImageSet | None] = {BASE: None, WITH: SYNTHETIC, BOTH: SYNTHETIC, student: SYNTHETIC}
    for folder in (None, tmp_path):
        bad[:] = [SEED_STEP]
        found = train_arms(arms, conditions_of(prepared, folder=folder), keep_going=True)
        for arm in (BOTH, student):
            assert "the loss is nan" in found[arm][0].failed
            assert found[arm][0].test is None
        assert not found[BASE][0].failed
        assert not found[WITH][0].failed
        with pytest.raises(NonFiniteLossError, match="the loss is nan"):
            train_arms(arms, conditions_of(prepared, folder=folder))
    bad.clear()  # what failed is tried again
    again = train_arms(arms, conditions_of(prepared, folder=tmp_path), keep_going=True)
    assert not any(runs[0].failed for runs in again.values())


# -- the placebo


def test_the_placebo_sees_no_synthetic_image(prepared: Any, fits: list[Fit]) -> None:
    arm = replace(WITH, placebo=True)
    found = [train_arms({arm: images}, conditions_of(prepared))[arm][0] for images in (SYNTHETIC, OTHERS, None)]
    assert same(found[0], found[1])
    assert same(found[0], found[2])
    assert [fit.synthetic for fit in fits] == [prepared.train] * 3
    with_images = [train_arms({WITH: images}, conditions_of(prepared))[WITH][0] for images in (SYNTHETIC, OTHERS)]
    assert not same(with_images[0], with_images[1])
    assert not same(with_images[0], found[0])


# -- distillation


def test_soft_cross_entropy_and_its_gradient_by_hand() -> None:
    z = torch.tensor([[1.0, -0.5, 0.2], [0.3, 0.9, -1.0]], dtype=torch.float64, requires_grad=True)
    q = torch.tensor([[0.2, 0.5, 0.3], [0.0, 1.0, 0.0]], dtype=torch.float64)
    p = torch.stack([row.exp() / row.exp().sum() for row in z.detach()])
    loss = distillation(z, q)
    torch.testing.assert_close(loss.detach(), -(q * p.log()).sum(1))
    loss.sum().backward()
    torch.testing.assert_close(z.grad, p - q)


def _student(images: ImageSet, synthetic: ImageSet, teacher: Any, use: Use) -> list[Tensor]:
    fit = Fit(images, PLAN, RECIPES["balanced-softmax"], 3, "cpu", synthetic, use, 0.5, teacher)
    return list(fit.run().state_dict().values())


def _permuted(images: ImageSet) -> ImageSet:
    labels = np.random.default_rng(5).permutation(images.labels)
    assert not np.array_equal(labels, images.labels)
    return ImageSet(images.images, labels, images.class_names, images.ids)


def test_a_student_learns_what_its_teacher_says_of_the_changed_images_and_reads_no_label(prepared: Any) -> None:
    train, seen = prepared.train, []

    def teacher(x: Tensor) -> Tensor:
        seen.append(x.detach().clone())
        bright = torch.stack([x[..., 3 * k : 3 * k + 3].mean(dim=(1, 2, 3)) for k in range(3)], 1)
        return (5 * bright).softmax(1)

    for use, synthetic in ((Use(), SYNTHETIC), (Use(share=0.5), SYNTHETIC)):
        first = _student(train, synthetic, teacher, use)
        assert all(map(torch.equal, first, _student(train, synthetic, teacher, use)))
        assert all(map(torch.equal, first, _student(_permuted(train), _permuted(synthetic), teacher, use)))
    # under the prior per domain labels decide how often a synthetic image is seen, and nothing else
    domain = Use(prior="domain")
    assert all(map(torch.equal, _student(train, SYNTHETIC, teacher, domain),
                   _student(_permuted(train), SYNTHETIC, teacher, domain)))  # fmt: skip
    flat = _student(train, SYNTHETIC, lambda x: torch.full((len(x), 3), 1 / 3), Use())
    assert not all(map(torch.equal, first, flat))
    assert all(x.shape == (12, 1, 8, 10) and float(x.abs().max()) <= 1 for x in seen)


def test_the_network_learns_the_soft_labels(prepared: Any) -> None:
    """A teacher that calls every class by the name of the next one."""

    def teacher(x: Tensor) -> Tensor:
        bright = torch.stack([x[..., 3 * k : 3 * k + 3].mean(dim=(1, 2, 3)) for k in range(3)], 1)
        return (20 * bright).softmax(1).roll(1, dims=1)

    plan = replace(PLAN, steps=60, batch_size=24, lr=0.1)
    network = Fit(prepared.train, plan, RECIPES["ce"], synthetic=SYNTHETIC, teacher=teacher).run()
    said = probabilities(network, prepared.test).argmax(1)
    assert (said == (prepared.test.labels + 1) % 3).mean() > 0.7


def _decided_by_hand(prepared: Any, networks: list[Classifier], images: ImageSet) -> np.ndarray:
    log_prior = log_prior_of(prepared.train)
    p, val = (np.mean([probabilities(n, part) for n in networks], axis=0) for part in (images, prepared.val))
    decision = choose_decision(val, prepared.val, log_prior, prepared.claimable)
    return replace(decision, temperature=1.0).probabilities(p, log_prior)


def test_the_teacher_is_the_adjusted_ensemble_with_a_folder_and_without(
    prepared: Any, tmp_path: Path, fits: list[Fit]
) -> None:
    arms: dict[Arm, ImageSet | None] = {STUDENT: SYNTHETIC}
    found = [train_arms(arms, conditions_of(prepared, folder=folder))[STUDENT][0] for folder in (None, tmp_path)]
    assert same(*found)
    assert len(fits) == 6  # two teachers and a student, twice
    x = torch.from_numpy(prepared.test.images).permute(0, 3, 1, 2).float() / 127.5 - 1
    single = [alone(prepared, arm, images, 0) for arm, images in ((BASE, None), (WITH, SYNTHETIC))]
    expected = _decided_by_hand(prepared, single, prepared.test)
    for fit in fits[:6]:
        if fit.teacher is not None:
            np.testing.assert_allclose(fit.teacher(x).numpy(), expected, atol=1e-5)
    assert (fits[2].synthetic, fits[2].changes) == (SYNTHETIC, 0.0)
    for job in jobs_of(STUDENT.teacher or BASE, 0, SYNTHETIC, conditions_of(prepared, folder=tmp_path), keep=True):
        assert job.weights is not None
        again = load_network(job.weights, PLAN, RECIPES["balanced-softmax"], prepared.train)
        stored = job.stored()
        assert stored is not None
        np.testing.assert_array_equal(probabilities(again, prepared.test), stored.test)


def test_a_student_goes_on_with_the_teachers_that_are_there(prepared: Any, tmp_path: Path, fits: list[Fit]) -> None:
    conditions = conditions_of(prepared, folder=tmp_path)
    expected = train_arms({STUDENT: SYNTHETIC}, conditions_of(prepared))[STUDENT][0]
    fits.clear()
    teacher = STUDENT.teacher or BASE
    train_arms({teacher: SYNTHETIC}, replace(conditions, keep=(teacher.name,)))
    assert len(fits) == 2
    assert same(train_arms({STUDENT: SYNTHETIC}, conditions)[STUDENT][0], expected)
    assert len(fits) == 3
    assert same(train_arms({STUDENT: SYNTHETIC}, conditions)[STUDENT][0], expected)  # all is there
    assert len(fits) == 3
    # without their weights the teachers are trained again, whatever else is kept
    (student,) = jobs_of(STUDENT, 0, SYNTHETIC, conditions)
    assert student.path is not None
    student.path.unlink()
    lost = student.teachers[0].weights
    assert lost is not None
    lost.unlink()
    assert same(train_arms({STUDENT: SYNTHETIC}, conditions)[STUDENT][0], expected)
    assert len(fits) == 5


def test_damaged_weights_of_a_teacher_are_trained_again(prepared: Any, tmp_path: Path, fits: list[Fit]) -> None:
    conditions = conditions_of(prepared, folder=tmp_path)
    expected = train_arms({STUDENT: SYNTHETIC}, conditions)[STUDENT][0]
    (student,) = jobs_of(STUDENT, 0, SYNTHETIC, conditions)
    weights = student.teachers[1].weights
    assert student.path is not None
    assert weights is not None
    student.path.unlink()
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-40])
    with pytest.raises(RunError, match="is damaged"):
        load_network(weights, PLAN, RECIPES["balanced-softmax"], prepared.train)
    fits.clear()
    assert same(train_arms({STUDENT: SYNTHETIC}, conditions)[STUDENT][0], expected)
    assert [fit.teacher is not None for fit in fits] == [False, True]
    assert len(weights.read_bytes()) == len(whole)


def test_a_student_that_was_stopped_goes_on_to_the_same_bits(
    prepared: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "SAVE_EVERY", 0.0)
    monkeypatch.setattr(fitting, "CHECK_EVERY", 2)
    expected = train_arms({STUDENT: SYNTHETIC}, conditions_of(prepared))[STUDENT][0]
    conditions = conditions_of(prepared, folder=tmp_path)
    (student,) = jobs_of(STUDENT, 0, SYNTHETIC, conditions)
    done = {job.identity: train_arms({job.arm: job.synthetic}, replace(conditions, keep=(job.arm.name,)))[job.arm][0]
            for job in student.teachers}  # fmt: skip
    stop, gradients = threading.Event(), Fit.gradients

    def stopping(self: Fit, step: int) -> Any:
        if step == 3:
            stop.set()
        return gradients(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(Fit, "gradients", stopping)
        assert student.train(stop, done, {}) is None
    assert list((tmp_path / "checkpoints" / student.file).iterdir())
    assert same(train_arms({STUDENT: SYNTHETIC}, conditions)[STUDENT][0], expected)


def test_the_teachers_decision_is_chosen_on_validation_images_alone(
    prepared: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    real = jobs.choose_decision
    monkeypatch.setattr(jobs, "choose_decision", lambda p, val, *rest: (asked.append((p, val)), real(p, val, *rest))[1])
    weights: list[list[Tensor]] = []
    made: list[Ensemble] = []
    run = Fit.run

    def kept(self: Fit) -> Classifier:
        network = run(self)
        if self.teacher is not None:
            assert isinstance(self.teacher, Ensemble)
            made.append(self.teacher)
            weights.append(list(network.state_dict().values()))
        return network

    monkeypatch.setattr(Fit, "run", kept)
    other = SimpleNamespace(**{**vars(prepared), "test": make_set((9, 50, 31), 77)})
    for one in (prepared, other):
        train_arms({STUDENT: SYNTHETIC}, conditions_of(one))
        assert asked[-1][1] is prepared.val
        assert asked[-1][0].shape == (24, 3)
    assert made[0].decision == made[1].decision
    assert all(map(torch.equal, *weights))
    assert made[0].decision.temperature == 1.0
    # other validation images are another teacher, and another training
    turned = SimpleNamespace(**{**vars(prepared), "val": _permuted(prepared.val)})
    first, second = (jobs_of(STUDENT, 0, SYNTHETIC, conditions_of(one))[0].identity for one in (prepared, turned))
    assert first != second
    fewer = SimpleNamespace(**{**vars(prepared), "claimable": (True, True, False)})
    assert jobs_of(STUDENT, 0, SYNTHETIC, conditions_of(fewer))[0].identity != first


# -- in a comparison


def test_each_seeds_classifier_has_a_decision_of_its_own_in_every_arm_alike(prepared: Any) -> None:
    arms = (BASE, BOTH)
    plain, adjusted = (
        classify(prepared, SYNTHETIC, plan=PLAN, arms=arms, primary=BOTH.name, seeds=(0, 1), adjust=adjust)
        for adjust in (False, True)
    )
    log_prior = log_prior_of(prepared.train)
    single = train_arms(dict.fromkeys(arms, SYNTHETIC), conditions_of(prepared, seeds=(0, 1)))
    for row, other in zip(adjusted.arms, plain.arms, strict=True):
        assert [(how.tau, how.temperature) for how in other.decisions] == [(0.0, 1.0)] * 2
        if row.arm not in single:
            continue
        for found, how, scored in zip(single[row.arm], row.decisions, row.test.runs, strict=True):  # type: ignore[union-attr]
            assert how == choose_decision(found.val, prepared.val, log_prior, prepared.claimable)
            q = how.probabilities(np.asarray(found.test), log_prior)
            assert scored.accuracy == np.mean(q.argmax(1) == prepared.test.labels)
    assert any(how.tau for row in adjusted.arms for how in row.decisions)
    assert adjusted.to_json()["arms"][-1]["decisions"][0]["tau"] == adjusted.arms[-1].decisions[0].tau


def test_a_student_is_an_arm_like_others(prepared: Any) -> None:
    found = classify(prepared, SYNTHETIC, plan=PLAN, arms=(BASE, STUDENT), primary=STUDENT.name, seeds=(0,))
    assert found.verdict.primary == STUDENT.name
    assert STUDENT.name not in found.verdict.against
    # one that learns from real images alone, of a teacher that knew others, is none without synthetic images
    from_real = replace(STUDENT, use=None)
    (job,) = jobs_of(from_real, 0, SYNTHETIC, conditions_of(prepared))
    assert job.synthetic is None
    assert [teacher.synthetic for teacher in job.teachers] == [None, SYNTHETIC]
    none = classify(prepared, None, plan=PLAN, arms=(BASE, from_real), primary=STUDENT.name, seeds=(0,))
    assert from_real not in [row.arm for row in none.arms]
