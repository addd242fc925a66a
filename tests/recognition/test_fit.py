from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from imbdiff.data.augment import Augmentation
from imbdiff.data.imageset import ImageSet
from imbdiff.data.samplers import BatchSampler
from imbdiff.recognition.fit import fit, train_classifier
from imbdiff.recognition.networks import Classifier, build_network
from imbdiff.recognition.plan import FitPlan
from imbdiff.recognition.predict import predict
from imbdiff.recognition.recipes import RECIPES
from imbdiff.recognition.use import Use
from imbdiff.runtime.errors import ConfigError, NonFiniteLossError
from imbdiff.runtime.streams import torch_rng

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


def _literal(
    images: ImageSet, plan: FitPlan, seed: int, law: str, prior: np.ndarray | None, weights: np.ndarray | None
) -> Classifier:
    """The loop as it is meant, step by step, with nothing but torch: what results have been made with."""
    network = build_network(plan.network, images.shape, 3, seed).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    network.train()
    x_all, y_all = torch.from_numpy(images.images.transpose(0, 3, 1, 2).copy()), torch.from_numpy(images.labels)
    own = None
    if weights is not None:  # relative to the mean over the rows of batches
        of_class = [weights[images.labels == k].mean() for k in range(3)]
        own = torch.from_numpy(weights / (weights.mean() if law == "natural" else np.mean(of_class))).float()
    sampler = BatchSampler(images.labels, plan.batch_size, law=law, seed=seed, name="classifier batch")
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0, momentum=0.9, weight_decay=5e-4, nesterov=True)
    rise = round(0.1 * plan.steps)
    for step in range(plan.steps):
        rows = torch.from_numpy(sampler.indices(step))
        draws = plan.augmentation.draw(plan.batch_size, torch_rng(seed, "classifier augmentation", step))
        x = plan.augmentation.apply(x_all[rows], draws).float() / 127.5 - 1
        logits = network(x.contiguous(memory_format=torch.channels_last))
        if prior is not None:
            logits = logits + torch.from_numpy(np.log(prior)).float()
        loss = torch.nn.functional.cross_entropy(logits, y_all[rows], reduction="none")
        loss = (loss if own is None else loss * own[rows]).mean()
        fall = 0.5 * (1 + math.cos(math.pi * (step - rise + 1) / (plan.steps - rise + 1)))
        rate = plan.learning_rate * ((step + 1) / rise if step < rise else fall)
        gradients = torch.autograd.grad(loss, list(network.parameters()))
        for p, gradient in zip(network.parameters(), gradients, strict=True):
            p.grad = gradient
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
    return network.eval()


def _same(a: Classifier, b: Classifier) -> bool:
    mine, theirs = a.state_dict(), b.state_dict()
    return list(mine) == list(theirs) and all(torch.equal(mine[k], theirs[k]) for k in mine)


@pytest.mark.parametrize("law", ["natural", "balanced"])
@pytest.mark.parametrize("balanced_softmax", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_weights_are_those_of_a_literal_loop_bit_for_bit(
    prepared: Any, law: str, balanced_softmax: bool, weighted: bool
) -> None:
    train, plan = prepared.train, replace(PLAN, steps=20)
    prior = np.array([0.7, 0.2, 0.1]) if balanced_softmax else None
    weights = np.linspace(0.2, 2, len(train)) if weighted else None
    found = fit(train, plan, law=law, prior=prior, weights=weights, seed=4)
    assert _same(found, _literal(train, plan, 4, law, prior, weights))


@pytest.mark.parametrize("name", ["ce", "balanced-softmax", "resampling"])
def test_with_synthetic_images_too(prepared: Any, name: str) -> None:
    plan, recipe = replace(PLAN, steps=20), RECIPES[name]
    synthetic = make_set((0, 30, 36), 9)
    both = ImageSet(
        np.concatenate([prepared.train.images, synthetic.images]),
        np.concatenate([prepared.train.labels, synthetic.labels]),
        NAMES,
    )
    weights = np.concatenate([np.ones(54), np.full(66, 0.25)])
    for prior_of, counts in (("train", [40, 10, 4]), ("effective", [40, 17.5, 13])):
        found = train_classifier(
            prepared.train, plan, recipe, synthetic=synthetic, use=Use(weight=0.25, prior=prior_of), seed=4
        )  # type: ignore[arg-type]
        prior = np.array(counts) / sum(counts) if name == "balanced-softmax" else None
        assert _same(found.last, _literal(both, plan, 4, recipe.law, prior, weights))
        assert found.best is None


def test_a_prior_that_is_given_takes_the_place_of_the_counts(prepared: Any) -> None:
    given = train_classifier(prepared.train, PLAN, RECIPES["ldam-drw"], prior=np.array([40, 10, 4]) / 54).last
    counted, other = (
        train_classifier(x, PLAN, RECIPES["ldam-drw"]).last for x in (prepared.train, make_set((9, 9, 9), 0))
    )
    torch.testing.assert_close(_vector(given), _vector(counted), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(_vector(given), _vector(other), rtol=1e-2, atol=1e-2)


def test_errors(prepared: Any) -> None:
    with pytest.raises(NonFiniteLossError, match=r"the fourth.*step 25"):
        fit(prepared.train, FitPlan(steps=25, batch_size=16, learning_rate=float("inf")), name="the fourth")
    with pytest.raises(ConfigError, match="0 steps"):
        FitPlan(steps=0)
