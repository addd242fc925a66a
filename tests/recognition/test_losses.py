"""Losses against loops written from the papers, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss
from torch import Tensor

from imbdiff.recognition.losses import (
    LDAM_SCALE,
    balanced_softmax,
    class_counts,
    class_prior,
    class_weights,
    cross_entropy,
    focal,
    ldam,
    ldam_margins,
    log_prior,
)
from imbdiff.runtime.errors import ConfigError

PRIOR = np.array([0.6, 0.25, 0.1, 0.05])
MARGINS = np.array([0.1, 0.2, 0.35, 0.5])


def _rows(n: int = 9, c: int = 4) -> tuple[Tensor, Tensor]:
    z = 2 * torch.randn(n, c, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return z, torch.arange(n) % c


def _softmax(z: list[float], k: int) -> float:
    top = max(z)
    e = [math.exp(v - top) for v in z]
    return e[k] / sum(e)


def _each(z: Tensor, y: Tensor, of: Callable[[list[float], int], float]) -> list[float]:
    return [of(row, int(k)) for row, k in zip(z.tolist(), y.tolist(), strict=True)]


def test_cross_entropy_equals_sklearn() -> None:
    z, y = torch.randn(20, 4, generator=torch.Generator().manual_seed(0)).double(), torch.arange(20) % 4
    assert float(cross_entropy(z, y).mean()) == pytest.approx(log_loss(y.numpy(), z.softmax(1).numpy()), rel=1e-9)


def test_balanced_softmax_equals_its_formula_and_has_the_right_sign() -> None:
    z = torch.tensor([[1.0, 0.5, -1.0]]).double()
    prior = np.array([0.7, 0.2, 0.1])
    e = prior * np.exp(z[0].numpy())
    for label in range(3):
        found = balanced_softmax(z, torch.tensor([label]), torch.from_numpy(np.log(prior)))
        assert float(found) == pytest.approx(-np.log(e[label] / e.sum()), rel=1e-12)
    # at equal logits a rare class costs more, so its logit is pushed further up
    flat = torch.zeros(1, 3).double()
    rare, frequent = (balanced_softmax(flat, torch.tensor([k]), torch.from_numpy(np.log(prior))) for k in (2, 0))
    assert rare > frequent


@pytest.mark.parametrize("tau", [0.0, 0.7, 1.0, 2.0])
def test_balanced_softmax_takes_the_prior_to_the_power_tau(tau: float) -> None:
    z, y = _rows()

    def of(row: list[float], k: int) -> float:
        e = [p**tau * math.exp(v) for p, v in zip(PRIOR.tolist(), row, strict=True)]
        return -math.log(e[k] / sum(e))

    found = balanced_softmax(z, y, torch.from_numpy(np.log(PRIOR)), tau)
    np.testing.assert_allclose(found.numpy(), _each(z, y, of), rtol=1e-12)


def test_flat_prior_is_cross_entropy() -> None:
    z, y = torch.randn(6, 5), torch.arange(6) % 5
    torch.testing.assert_close(balanced_softmax(z, y, log_prior(np.full(5, 0.2))), cross_entropy(z, y))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_focal_equals_its_formula(gamma: float) -> None:
    z, y = _rows()

    def of(row: list[float], k: int) -> float:
        p = _softmax(row, k)
        return -((1 - p) ** gamma) * math.log(p)

    np.testing.assert_allclose(focal(z, y, gamma).numpy(), _each(z, y, of), rtol=1e-12)
    if gamma == 0:
        torch.testing.assert_close(focal(z, y, 0.0), cross_entropy(z, y))


def test_focal_weighs_easy_images_less_and_is_finite_at_certainty() -> None:
    easy, hard = torch.tensor([[4.0, 0.0]]).double(), torch.tensor([[0.1, 0.0]]).double()
    y = torch.tensor([0])
    share = [float(focal(z, y, 2.0) / cross_entropy(z, y)) for z in (easy, hard)]
    assert share[0] < 0.001 < 0.2 < share[1]
    certain = torch.tensor([[200.0, 0.0], [-200.0, 0.0]], requires_grad=True)
    loss = focal(certain, torch.tensor([0, 0]))
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert torch.isfinite(certain.grad).all()  # type: ignore[arg-type]


def test_ldam_equals_its_formula_with_the_margin_at_the_label_alone() -> None:
    z, y = _rows()
    z = torch.tanh(z)

    def of(row: list[float], k: int) -> float:
        e = [math.exp(30 * (v - (MARGINS[k] if j == k else 0))) for j, v in enumerate(row)]
        return -math.log(e[k] / sum(e))

    margins = torch.from_numpy(MARGINS)
    np.testing.assert_allclose(ldam(z, y, margins).numpy(), _each(z, y, of), rtol=1e-10)
    assert LDAM_SCALE == 30
    torch.testing.assert_close(ldam(z, y, torch.zeros(4).double(), 1.0), cross_entropy(z, y))
    # at equal cosines the class with the larger margin costs more
    flat = torch.zeros(4, 4).double()
    assert (ldam(flat, torch.arange(4), margins).diff() > 0).all()


@pytest.mark.parametrize(
    "loss",
    [
        lambda z, y: balanced_softmax(z, y, torch.from_numpy(np.log(PRIOR)), 0.7),
        lambda z, y: focal(z, y, 1.5),
        lambda z, y: ldam(z, y, torch.from_numpy(MARGINS), 3.0),
    ],
    ids=["balanced-softmax", "focal", "ldam"],
)
def test_gradients_equal_finite_differences(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    z, y = _rows()
    assert torch.autograd.gradcheck(lambda x: loss(x, y), (z.requires_grad_(True),))


def test_margins_fall_with_the_fourth_root_of_the_count() -> None:
    # 16, 1 and 81 images: 1/2, 1 and 1/3
    np.testing.assert_allclose(ldam_margins(np.array([16, 1, 81])), [0.25, 0.5, 0.5 / 3], rtol=1e-14)
    found = ldam_margins(np.array([5000, 50]))
    assert found[1] == 0.5
    assert found[0] == pytest.approx(0.5 * (50 / 5000) ** 0.25)
    assert ldam_margins(np.array([16, 1]), largest=0.8).tolist() == pytest.approx([0.4, 0.8])


def test_class_weights_by_hand_and_summing_to_the_number_of_classes() -> None:
    np.testing.assert_allclose(class_weights("inverse", np.array([1, 2, 4])), [12 / 7, 6 / 7, 3 / 7], rtol=1e-14)
    # effective numbers at beta = 0.9: 1 and 1.9
    np.testing.assert_allclose(class_weights("effective", np.array([1, 2]), 0.9), [3.8 / 2.9, 2 / 2.9], rtol=1e-12)
    np.testing.assert_array_equal(class_weights("none", np.array([7, 3])), [1.0, 1.0])
    counts = np.array([5000, 1077, 232.5, 50])
    for weighting in ("effective", "inverse"):
        found = class_weights(weighting, counts)
        assert found.sum() == pytest.approx(4)
        assert (np.diff(found) > 0).all()
    with pytest.raises(ConfigError, match="'square'"):
        class_weights("square", counts)


def test_effective_number_in_exact_arithmetic() -> None:
    beta, counts = Fraction(9999, 10000), [5000, 232, 1]
    numbers = [(1 - beta**n) / (1 - beta) for n in counts]
    total = sum(1 / e for e in numbers)
    expected = [float(3 / e / total) for e in numbers]
    np.testing.assert_allclose(class_weights("effective", np.array(counts)), expected, rtol=1e-11)


def test_effective_weights_between_none_and_inverse() -> None:
    counts = np.array([900, 30, 4])
    np.testing.assert_allclose(class_weights("effective", counts, 1e-12), np.ones(3), rtol=1e-9)
    np.testing.assert_allclose(
        class_weights("effective", counts, 1 - 1e-12), class_weights("inverse", counts), rtol=1e-6
    )


def test_priors_are_named() -> None:
    real, synthetic = np.array([0, 0, 0, 1]), np.array([1, 1, 1, 1])
    np.testing.assert_allclose(class_prior("train", real, synthetic, 0.5, 2), [0.75, 0.25])
    np.testing.assert_allclose(class_prior("effective", real, synthetic, 0.5, 2), [0.5, 0.5])
    np.testing.assert_allclose(class_prior("effective", real, None, 0.5, 2), [0.75, 0.25])
    np.testing.assert_array_equal(class_counts("train", real, synthetic, 0.5, 2), [3, 1])
    np.testing.assert_array_equal(class_counts("effective", real, synthetic, 0.25, 2), [3, 2])
    with pytest.raises(ConfigError, match="flat"):
        class_prior("flat", real, None, 1, 2)
    for name in ("train", "effective"):
        with pytest.raises(ConfigError, match=r"\[2\]"):
            class_counts(name, real, synthetic, 1, 3)
    # a class of synthetic images only counts as effective, and not as real
    assert class_counts("effective", real, np.array([2]), 0.5, 3).tolist() == [3, 1, 0.5]
    with pytest.raises(ConfigError, match=r"\[2\]"):
        class_counts("train", real, np.array([2]), 0.5, 3)


def test_log_prior_is_of_the_shares() -> None:
    found = log_prior(class_prior("train", np.array([0, 0, 0, 1]), None, 1, 2))
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), [math.log(0.75), math.log(0.25)], rtol=1e-6)
