from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss

from imbdiff.recognition.losses import balanced_softmax, class_prior, cross_entropy, log_prior
from imbdiff.runtime.errors import ConfigError


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


def test_flat_prior_is_cross_entropy() -> None:
    z, y = torch.randn(6, 5), torch.arange(6) % 5
    torch.testing.assert_close(balanced_softmax(z, y, log_prior(np.full(5, 0.2))), cross_entropy(z, y))


def test_priors_are_named() -> None:
    real, synthetic = np.array([0, 0, 0, 1]), np.array([1, 1, 1, 1])
    np.testing.assert_allclose(class_prior("train", real, synthetic, 0.5, 2), [0.75, 0.25])
    np.testing.assert_allclose(class_prior("effective", real, synthetic, 0.5, 2), [0.5, 0.5])
    np.testing.assert_allclose(class_prior("effective", real, None, 0.5, 2), [0.75, 0.25])
    with pytest.raises(ConfigError, match="flat"):
        class_prior("flat", real, None, 1, 2)
    with pytest.raises(ConfigError, match=r"\[2\]"):
        class_prior("train", real, None, 1, 3)
