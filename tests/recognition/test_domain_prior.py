"""The prior per domain, against exact posteriors of a world of six images; and what it asks of recipes and images."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from imbdiff.recognition.arms import Arm, make_arms
from imbdiff.recognition.choice import study
from imbdiff.recognition.comparison import classify
from imbdiff.recognition.fitting import Fit
from imbdiff.recognition.jobs import Conditions
from imbdiff.recognition.losses import BatchLoss
from imbdiff.recognition.plan import FitPlan
from imbdiff.recognition.recipes import RECIPES
from imbdiff.recognition.use import Mixture, Use
from imbdiff.reporting.answer import answer
from imbdiff.runtime.errors import ConfigError, DataError

from .conftest import make_set, tiny
from .test_arms import grid_of

CPU = torch.device("cpu")
PI = np.array([0.8, 0.15, 0.05])
#: (C, M) chances of contents in each class; and of the two ways that images look, the real one and one with artefacts
CONTENT = np.array([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.1, 0.2, 0.7]])
OTHER = np.array([[0.5, 0.4, 0.1], [0.5, 0.3, 0.2], [0.2, 0.2, 0.6]])
REAL, MADE = np.array([0.9, 0.1]), np.array([0.2, 0.8])


def world(content: np.ndarray, look: np.ndarray) -> np.ndarray:
    """(C, 2 M) chances of (content, look), the looks of one content side by side, as if look and class were apart."""
    return np.einsum("km,l->kml", content, look).reshape(3, -1)


def posterior(weights: np.ndarray) -> np.ndarray:
    """(M, C) of (C, M) joint weights."""
    return (weights / weights.sum(axis=0)).T


def minimiser(p: np.ndarray, q: np.ndarray, share: float, prior: str) -> np.ndarray:
    """(M, C) softmax of the logits that minimise the loss of a batch which has every (image, class) as often as it
    occurs: real ones by PI and p, and `share` synthetic ones by q, classes alike."""
    c, m = p.shape
    seen = np.concatenate([(1 - share) * PI[:, None] * p, share * q / c]).reshape(-1)
    x, y = torch.arange(m).repeat(2 * c), torch.arange(c).repeat_interleave(m).repeat(2)
    counts = {"train": PI, "domain": PI, "effective": (1 - share) * PI + share / c}[prior]
    apart = c * m if prior == "domain" else 0
    loss = BatchLoss(RECIPES["balanced-softmax"], counts, CPU, synthetic_rows=apart)
    own = torch.from_numpy(seen * len(seen))
    z = torch.zeros(m, c, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [z], max_iter=2000, tolerance_grad=1e-10, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(z[x], y, own, None)
        value.backward()
        return value

    optimizer.step(closure)
    return z.detach().softmax(1).numpy()


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_where_synthetic_images_are_like_real_ones_it_is_the_balanced_posterior_for_any_share(share: float) -> None:
    p = world(CONTENT, REAL)
    right = posterior(p)
    np.testing.assert_allclose(minimiser(p, p, share, "domain"), right, atol=1e-5)
    np.testing.assert_allclose(minimiser(p, p, share, "effective"), right, atol=1e-5)
    # the mixture's posterior without the prior of real rows alone: rare classes count twice
    mixture = (1 - share) * PI + share / 3
    twice = minimiser(p, p, share, "train")
    np.testing.assert_allclose(twice, posterior((mixture / PI)[:, None] * p), atol=1e-5)
    assert (twice[:, 2] > right[:, 2] + 0.02).all()


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_a_look_that_all_synthetic_images_have_says_nothing_of_the_class_per_domain(share: float) -> None:
    """q(x | k) = r(x) p(x | k): artefacts, alike in all classes."""
    p, q = world(CONTENT, REAL), world(CONTENT, MADE)
    right = posterior(p)
    np.testing.assert_allclose(minimiser(p, q, share, "domain"), right, atol=1e-5)
    mixture = (1 - share) * PI + share / 3
    seen = (1 - share) * PI[:, None] * p + share * q / 3
    found = minimiser(p, q, share, "effective")
    np.testing.assert_allclose(found, posterior(seen / mixture[:, None]), atol=1e-5)
    real, made = slice(0, None, 2), slice(1, None, 2)
    assert (found[real, 0] > right[real, 0] + 0.02).all()  # what looks real is put into the frequent class
    assert (found[made, 2] > right[made, 2] + 0.02).all()  # and what looks synthetic into a rare one


def test_other_contents_are_a_compromise_by_share_where_both_kinds_are_and_harmless_elsewhere() -> None:
    p, q = world(CONTENT, REAL), world(OTHER, MADE)
    right = posterior(p)
    few, many = minimiser(p, q, 0.1, "domain"), minimiser(p, q, 0.9, "domain")
    assert np.abs(few - right).max() > 0.005
    assert np.abs(many - right).max() > 0.1
    assert np.abs(many - posterior(q)).max() < 0.1
    # images that no synthetic one is like
    apart = minimiser(world(CONTENT, np.array([1.0, 0.0])), world(OTHER, np.array([0.0, 1.0])), 0.9, "domain")
    np.testing.assert_allclose(apart[::2], right[::2], atol=1e-5)
    np.testing.assert_allclose(apart[1::2], posterior(q)[1::2], atol=1e-5)


# -- rows


def test_the_loss_of_real_rows_has_the_prior_and_that_of_synthetic_rows_has_none() -> None:
    z = torch.tensor([[1.0, -0.5, 0.2], [0.3, 0.9, -1.0], [-0.4, 0.1, 0.6], [2.0, 0.0, -1.0]])
    y, own, counts = torch.tensor([0, 2, 1, 2]), torch.tensor([1.0, 1.0, 0.5, 0.5]), np.array([90.0, 20.0, 4.0])
    expected = 0.0
    for i, prior in enumerate((counts, counts, np.ones(3), np.ones(3))):
        e = prior / prior.sum() * np.exp(z[i].double().numpy())
        expected += float(own[i]) * -np.log(e[y[i]] / e.sum()) / 4
    loss = BatchLoss(RECIPES["balanced-softmax"], counts, CPU, synthetic_rows=2)
    assert float(loss(z, y, own, None)) == pytest.approx(expected, rel=1e-6)
    everywhere = BatchLoss(RECIPES["balanced-softmax"], counts, CPU)
    assert abs(float(everywhere(z, y, own, None)) - expected) > 0.1


def test_half_of_a_batch_is_synthetic_and_class_balanced_and_the_real_half_as_it_occurs() -> None:
    real, synthetic = make_set((40, 10, 4), 0), make_set((60, 20, 4), 9)
    mixture = Mixture(real, synthetic, Use(prior="domain"), 20, 5)
    rows = np.stack([mixture.rows(step, "natural") for step in range(270)])
    assert mixture.without_prior == mixture.synthetic_rows == 10
    assert (rows[:, :10] < len(real)).all()
    assert (rows[:, 10:] >= len(real)).all()
    labels = mixture.images.labels[rows]
    assert np.bincount(labels[:, :10].ravel()).tolist() == [2000, 500, 200]  # whole epochs of the 54
    np.testing.assert_allclose(np.bincount(labels[:, 10:].ravel()) / 2700, 1 / 3, atol=0.03)
    np.testing.assert_array_equal(mixture.counts("domain"), [40, 10, 4])
    assert Mixture(real, synthetic, Use(), 20, 5).without_prior == 0
    assert Mixture(real, None, Use(prior="domain"), 20, 5).without_prior == 0
    assert Mixture(real, synthetic, Use(prior="domain", share=0.25), 20, 5).without_prior == 5


def test_a_training_takes_the_prior_off_its_synthetic_rows_and_off_no_row_where_they_have_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[int, list[float]]] = []
    real = BatchLoss.__call__

    def watched(self: BatchLoss, logits: Tensor, y: Tensor, *rest: Any, **more: Any) -> Tensor:
        assert self.counts is not None
        seen.append((self.synthetic_rows, self.counts.tolist()))
        return real(self, logits, y, *rest, **more)

    monkeypatch.setattr(BatchLoss, "__call__", watched)
    use = Use(prior="domain", schedule="real-last")
    train, plan = make_set((40, 10, 4), 0), FitPlan(tiny, steps=10, batch_size=8)
    Fit(train, plan, RECIPES["balanced-softmax"], synthetic=make_set((9, 9, 9), 9), use=use).run()
    assert seen == [(4, [40, 10, 4])] * 8 + [(0, [40, 10, 4])] * 2


# -- what does not fit


@pytest.mark.parametrize("recipe", ["ldam-drw", "reweighting", "logit-adjustment", "mixup", "cutmix", "remix"])
def test_recipes_that_count_or_mix_otherwise_are_refused_before_training(
    recipe: str, prepared: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Fit, "run", lambda self: pytest.fail("trained"))
    plan, arm = FitPlan(tiny, 4, 8), Arm(recipe, Use(prior="domain"))
    with pytest.raises(ConfigError, match="has no prior per domain"):
        BatchLoss(RECIPES[recipe], np.array([3.0, 2, 1]), CPU, synthetic_rows=2)
    with pytest.raises(ConfigError, match="has no prior per domain"):
        classify(prepared, make_set((9, 9, 9), 9), arms=[arm], primary=arm.name, plan=plan)
    ensemble = Arm("ce", members=(Arm("ce"), arm), label="ensemble")
    with pytest.raises(ConfigError, match="has no prior per domain"):
        classify(prepared, make_set((9, 9, 9), 9), arms=[ensemble], primary="ensemble", plan=plan)


@pytest.mark.parametrize("recipe", ["ce", "balanced-softmax"])
def test_a_class_without_synthetic_images_is_refused_before_training(
    recipe: str, prepared: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Fit, "run", lambda self: pytest.fail("trained"))
    plan, part = FitPlan(tiny, 4, 8), make_set((9, 0, 9), 9)
    with pytest.raises(DataError, match="no synthetic image of 'middle'"):
        Mixture(prepared.train, part, Use(prior="domain"), 8, 0)
    with pytest.raises(DataError, match="no synthetic image of 'middle'") as error:
        Mixture(prepared.train, part, Use(prior="domain"), 8, 0)
    assert "--sample.strategy equal" in error.value.remedy
    conditions = Conditions(plan, prepared, (0,))

    def generate(arm: Arm) -> Any:
        pytest.fail("images were asked for")

    domain = [Use(prior="domain")]
    with pytest.raises(DataError, match="no synthetic image of 'left'"):
        study(conditions, grid_of(recipes=[recipe], uses=domain), generate)


def test_an_arm_whose_class_curation_emptied_is_left_out_of_a_study(prepared: Any) -> None:
    conditions, part = Conditions(FitPlan(tiny, 2, 8), prepared, (0,)), make_set((9, 0, 9), 9)
    grid = grid_of(numbers={"equal": (9, 9, 9)}, recipes=["ce"], uses=[Use(prior="domain"), Use(prior="effective")])
    rows = {row.arm.use: row for row in study(conditions, grid, lambda arm: part).rows if row.arm.use}
    assert "'middle'" in str(rows[Use(prior="domain")].reason)
    assert rows[Use(prior="domain")].val is None
    assert rows[Use(prior="effective")].val is not None


def test_an_arm_whose_class_curation_emptied_is_left_out_of_a_comparison(prepared: Any) -> None:
    """As in a study: what does not need that class is compared, and the page says what was left out and what to do."""
    plan, part = FitPlan(tiny, 2, 8), make_set((9, 0, 9), 9)
    prepared.manifest = {}
    arms = make_arms(ensemble=1)
    found = classify(prepared, part, arms=arms, primary=arms[-1].name, plan=plan, seeds=(0,), keep_weights=True)
    rows = {row.arm.name: row for row in found.arms}
    lost = {name for name, row in rows.items() if row.arm.needs_synthetic}
    assert len(lost) == 4  # two recipes, the ensemble, what is distilled from it
    assert {name for name, row in rows.items() if "'middle'" in (row.reason or "")} == lost
    assert {name for name, row in rows.items() if row.test is None} == lost
    assert not lost & set(found.classifiers)
    whole = found.verdict.per_group["all"]
    assert (whole.outcome, whole.accuracy) == ("not measured", None)
    assert "'middle'" in str(whole.reason)
    for text in ("--sample.strategy equal", "--classify.synthetic_prior effective"):
        assert text in found.verdict.remedy
    told = answer(found.to_json(), "runs/a b")
    assert told is not None
    assert told.word == "Not measured"
    assert "imbdiff sample 'runs/a b' --sample.strategy" in told.next
    arms = [Arm("balanced-softmax", Use(prior=prior)) for prior in ("domain", "effective")]
    arms = [replace(arm, label=f"{i}") for i, arm in enumerate(arms)]
    other = classify(prepared, part, arms=arms, primary="1", plan=plan, seeds=(0,))
    assert [row.arm.name for row in other.arms if row.reason] == ["0"]
    assert "'middle'" not in str(other.verdict.per_group["all"].reason)


def test_the_remedies_of_that_error_work(prepared: Any) -> None:
    plan, part = FitPlan(tiny, 2, 8), make_set((9, 0, 9), 9)
    for use, images in ((Use(prior="effective"), part), (Use(prior="domain"), make_set((9, 9, 9), 9))):
        arm = Arm("balanced-softmax", use)
        assert classify(prepared, images, arms=[arm], primary=arm.name, plan=plan, seeds=(0,)).verdict.per_group
