"""The adjustment and the temperature: where the right ones are known, and where none can be chosen."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from imbdiff.data.imageset import ImageSet
from imbdiff.recognition.decision import STRENGTHS, TEMPERATURES, Decision, Ensemble, choose_decision, log_prior_of
from imbdiff.recognition.networks import Classifier

from .conftest import NAMES, make_set

PI = np.array([0.8, 0.15, 0.05])
LOG_PI = np.log(PI)
ALL = (True, True, True)


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return np.asarray(e / e.sum(axis=1, keepdims=True))


def labelled(labels: np.ndarray) -> ImageSet:
    return ImageSet(np.zeros((len(labels), 1, 1, 1), np.uint8), labels.astype(np.int64), NAMES)


def made_up(n: int = 4000, seed: int = 0) -> tuple[np.ndarray, ImageSet]:
    """Logits z of images whose class is distributed by softmax(z), all classes alike, and the images."""
    g = np.random.default_rng(seed)
    z = g.normal(0, 1.5, (20 * n, 3))
    labels = (softmax(z).cumsum(axis=1) > g.random((len(z), 1))).argmax(axis=1)
    rows = np.concatenate([np.flatnonzero(labels == k)[:n] for k in range(3)])
    return z[rows], labelled(labels[rows])


def likelihood(q: np.ndarray, labels: np.ndarray) -> float:
    """Mean over classes of the mean log probability of a class's images, one by one."""
    of_class: dict[int, list[float]] = {}
    for row, k in zip(q, labels.tolist(), strict=True):
        of_class.setdefault(k, []).append(float(np.log(row[k])))
    return float(np.mean([np.mean(values) for values in of_class.values()]))


@pytest.mark.parametrize("tau", [-0.3, 0.0, 0.7, 1.0, 1.6])
def test_a_prior_that_is_in_the_probabilities_is_found_and_taken_off(tau: float) -> None:
    z, val = made_up()
    p = softmax(z + tau * LOG_PI)
    found = choose_decision(p, val, LOG_PI, ALL)
    assert found.tau == pytest.approx(tau, abs=0.11)
    assert found.temperature == 1.0
    exact = Decision(tau).probabilities(p, LOG_PI)
    np.testing.assert_allclose(exact, softmax(z), rtol=1e-9)


@pytest.mark.parametrize("scale", [0.5, 2.0, 4.0])
def test_known_overconfidence_is_recovered(scale: float) -> None:
    z, val = made_up()
    found = choose_decision(softmax(scale * z), val, LOG_PI, ALL)
    assert found.temperature == pytest.approx(scale)
    assert found.tau == pytest.approx(0, abs=0.1 * scale)
    # both at once: q = (p / pi^tau)^(1 / T)
    both = choose_decision(softmax(scale * z + 0.6 * LOG_PI), val, LOG_PI, ALL)
    assert both.temperature == pytest.approx(scale)
    assert both.tau == pytest.approx(0.6, abs=0.1 * scale)


@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_best_of_all_choices_and_never_worse_than_none(seed: int) -> None:
    g = np.random.default_rng(seed)
    val = labelled(np.repeat(np.arange(3), [30, 9, 4]))
    p = softmax(g.normal(0, 2, (43, 3)) + 1.5 * np.eye(3)[val.labels] + LOG_PI)
    found = choose_decision(p, val, LOG_PI, ALL)
    own = likelihood(found.probabilities(p, LOG_PI), val.labels)
    for tau in STRENGTHS:
        for temperature in TEMPERATURES:
            assert own >= likelihood(softmax((np.log(p) - tau * LOG_PI) / temperature), val.labels) - 1e-9
    assert own >= likelihood(p, val.labels) - 1e-9
    assert (found.tau, found.temperature) != (0.0, 1.0)
    assert "43 validation images" in found.chosen_by


def test_a_temperature_changes_no_decision() -> None:
    z, _ = made_up(50)
    for tau in (0.0, 1.3):
        a, b = (Decision(tau, t).probabilities(softmax(z), LOG_PI) for t in (0.25, 4.0))
        np.testing.assert_array_equal(a.argmax(axis=1), b.argmax(axis=1))
        np.testing.assert_allclose([a.sum(axis=1), b.sum(axis=1)], 1, rtol=1e-12)


def test_probabilities_of_zero_stay_finite() -> None:
    p = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], np.float32)
    for tau in STRENGTHS:
        found = Decision(tau, 0.25).probabilities(p, LOG_PI)
        assert np.isfinite(found).all()
        assert found.argmax(axis=1).tolist() == [0, 2]
    val = labelled(np.array([0, 2, 1]))
    assert np.isfinite(choose_decision(np.vstack([p, p[:1]]), val, LOG_PI, ALL).tau)


def test_equal_choices_go_to_the_one_nearest_to_none() -> None:
    val = labelled(np.repeat(np.arange(3), 5))
    flat = np.full(3, np.log(1 / 3))
    z, _ = made_up(5)
    assert choose_decision(softmax(z), val, flat, ALL).tau == 0.0  # a flat prior: every adjustment is none
    same = choose_decision(np.full((15, 3), 1 / 3), val, flat, ALL)
    assert (same.tau, same.temperature) == (0.0, 1.0)


def test_where_validation_images_do_not_tell_nothing_is_chosen_and_it_says_why() -> None:
    val = make_set((8, 8, 0), 1)
    p = softmax(np.random.default_rng(0).normal(0, 3, (16, 3)))
    for given, claimable, said in (
        (None, ALL, "there are no validation images"),
        (val.select([]), ALL, "there are no validation images"),
        (val, ALL, "no validation images of 'right'"),
        (val, (False,) * 3, "no claim can be made"),
    ):
        found = choose_decision(None if given is None else p[: len(given)], given, LOG_PI, claimable)
        assert (found.tau, found.temperature) == (0.0, 1.0)
        assert said in found.chosen_by
    assert choose_decision(p, val, LOG_PI, (True, True, False)).chosen_by == "chosen on 16 validation images"
    assert choose_decision(None, make_set((8, 8, 8), 1), LOG_PI, ALL).tau == 0.0


def test_images_of_classes_without_claims_decide_nothing() -> None:
    z, val = made_up(200)
    p = softmax(z + LOG_PI)
    mine = val.labels < 2
    p[~mine] = [0.98, 0.01, 0.01]
    found = choose_decision(p, val, LOG_PI, (True, True, False))
    p[~mine] = [0.01, 0.01, 0.98]
    assert choose_decision(p, val, LOG_PI, (True, True, False)) == found
    assert choose_decision(p, val, LOG_PI, ALL) != found


def test_the_prior_is_the_share_of_the_training_images() -> None:
    np.testing.assert_allclose(np.exp(log_prior_of(make_set((40, 10, 4), 0))), np.array([40, 10, 4]) / 54, rtol=1e-12)


class _Fixed(nn.Module):
    """Gives the same logits for every image."""

    def __init__(self, logits: list[float]) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, x: Any) -> Any:
        return self.logits.expand(len(x), -1)


def test_an_ensemble_is_the_adjusted_mean_of_probabilities() -> None:
    logits = [[3.0, 0.0, -1.0], [-1.0, 2.0, 0.5], [0.0, 0.0, 4.0]]
    networks: list[Classifier] = [_Fixed(z) for z in logits]  # type: ignore[misc]
    decision = Decision(0.8, 1.5)
    found = Ensemble(networks, decision, LOG_PI)(torch.zeros(2, 1, 4, 4))
    mean = softmax(np.array(logits)).mean(axis=0)
    powers = (mean / PI**0.8) ** (1 / 1.5)
    np.testing.assert_allclose(found.numpy(), np.tile(powers / powers.sum(), (2, 1)), rtol=1e-5)
    np.testing.assert_allclose(decision.probabilities(mean[None], LOG_PI)[0], powers / powers.sum(), rtol=1e-9)
    assert not found.requires_grad
    assert np.abs(mean - powers / powers.sum()).max() > 0.05
