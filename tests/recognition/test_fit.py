from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from imbdiff.data.augment import Augmentation
from imbdiff.data.imageset import ImageSet
from imbdiff.recognition.fit import fit
from imbdiff.recognition.networks import Classifier
from imbdiff.recognition.plan import FitPlan
from imbdiff.recognition.predict import predict
from imbdiff.runtime.errors import ConfigError, NonFiniteLossError

from .conftest import NAMES, make_set

PLAN = FitPlan(steps=25, batch_size=16, augmentation=Augmentation(shift=1))


def _vector(network: Classifier) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1) for p in network.parameters()])


def test_same_seed_same_bits_other_seed_other_weights(prepared: Any) -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    a = _vector(fit(prepared.train, PLAN, seed=3))
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(2)
    assert torch.equal(a, _vector(fit(prepared.train, PLAN, seed=3)))
    assert not torch.equal(a, _vector(fit(prepared.train, PLAN, seed=4)))


def test_images_that_may_not_be_written_to_are_copied(prepared: Any, recwarn: pytest.WarningsRecorder) -> None:
    """torch warns once per process: the tensors themselves are looked at."""
    given: list[bool] = []
    real = torch.from_numpy

    def seen(x: np.ndarray) -> torch.Tensor:
        given.append(x.flags.writeable)
        return real(x)

    x, y = prepared.train.images.copy(), prepared.train.labels.copy()
    x.flags.writeable = y.flags.writeable = False
    frozen = ImageSet(x, y, NAMES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "from_numpy", seen)
        predict(fit(frozen, FitPlan(steps=1, batch_size=8)), frozen)
    assert all(given)
    assert not [w for w in recwarn if "not writable" in str(w.message)]


def test_learns(prepared: Any) -> None:
    network = fit(make_set((40, 40, 40), 5), FitPlan(steps=60, batch_size=32), seed=0)
    assert (predict(network, prepared.test) == prepared.test.labels).mean() > 0.9


def test_weight_zero_is_leaving_the_images_without_influence() -> None:
    good = make_set((20, 20, 20), 5)
    wrong = ImageSet(good.images, (good.labels + 1) % 3, NAMES)
    both = ImageSet(np.concatenate([good.images, wrong.images]), np.concatenate([good.labels, wrong.labels]), NAMES)
    plan = FitPlan(steps=60, batch_size=32)
    test = make_set((20, 20, 20), 6)
    kept = fit(both, plan, weights=np.repeat([1.0, 0.0], 60))
    other = fit(both, plan, weights=np.repeat([0.0, 1.0], 60))
    assert (predict(kept, test) == test.labels).mean() > 0.9
    assert (predict(other, test) == test.labels).mean() < 0.2


def test_equal_weights_of_any_size_change_nothing(prepared: Any) -> None:
    n = len(prepared.train)
    plain = _vector(fit(prepared.train, PLAN))
    assert torch.equal(plain, _vector(fit(prepared.train, PLAN, weights=np.full(n, 8.0))))


def test_learning_rate_rises_then_falls_to_almost_nothing() -> None:
    plan = FitPlan(steps=100, learning_rate=0.2, warmup=0.1)
    rates = [plan.rate(s) for s in range(100)]
    assert rates[9] == pytest.approx(0.2)
    assert rates[:10] == sorted(rates[:10])
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert 0 < rates[-1] < 1e-3


def test_errors(prepared: Any) -> None:
    with pytest.raises(NonFiniteLossError, match=r"the fourth.*step 25"):
        fit(prepared.train, FitPlan(steps=25, batch_size=16, learning_rate=float("inf")), name="the fourth")
    with pytest.raises(ConfigError, match="0 steps"):
        FitPlan(steps=0)
