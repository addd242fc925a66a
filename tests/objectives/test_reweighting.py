"""Re-weighted denoising: by the effective number of images, and by how hard a row is."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from imbdiff.data.stats import ClassStats
from imbdiff.objectives.denoising import Denoising
from imbdiff.objectives.reweighting import EffectiveNumber, Focal, MinSNR, effective_number_weights
from imbdiff.runtime.errors import ConfigError
from imbdiff.testing import check_objective
from tests.contract.oracles import Raw, mse

from .against_formula import KINDS, answer, assert_follows, example, gradients, leaf


def errors(raw: Raw, network: Any) -> list[Tensor]:
    return [mse(raw.call(network, i, raw.given[i])[0], raw.target(i, raw.x0[i], raw.noise[i])) for i in range(raw.n)]


def effective_number(raw: Raw, network: Any, beta: float = 0.9999, mean: str = "classes") -> dict[str, Tensor]:
    w = []
    for n in raw.counts:
        w.append(1 / sum(beta**k for k in range(n)))  # (1 - beta^n) / (1 - beta) as the series that it is
    if mean == "classes":
        scale = len(w) / sum(w)
    else:
        scale = sum(raw.counts) / sum(n * v for n, v in zip(raw.counts, w, strict=True))
    rows = [scale * w[y] * e for y, e in zip(raw.labels, errors(raw, network), strict=True)]
    return {"mse": sum(rows, torch.zeros((), dtype=torch.float64)) / raw.n}


def focal(
    raw: Raw, network: Any, beta: float = 0.2, gamma: float = 1.0, against: str = "noise_level", width: float = 0.05
) -> dict[str, Tensor]:
    e = errors(raw, network)
    total = torch.zeros((), dtype=torch.float64)
    for i in range(raw.n):
        r = float(e[i].detach())
        if against == "noise_level":
            near = [math.exp(-(((raw.level[i] - s) / width) ** 2) / 2) for s in raw.level]
            r /= sum(w * float(x.detach()) for w, x in zip(near, e, strict=True)) / sum(near)
        sigmoid, one = 1 / (1 + math.exp(-beta * math.sqrt(r))), 1 / (1 + math.exp(-beta))
        total = total + ((2 * sigmoid - 1) / (2 * one - 1)) ** gamma * e[i]
    return {"mse": total / raw.n}


def min_snr(raw: Raw, network: Any, gamma: float = 5.0) -> dict[str, Tensor]:
    """min(SNR, gamma) times the squared error of the clean image that each prediction implies (Eq. 8 of the paper)."""
    total = torch.zeros((), dtype=torch.float64)
    for i in range(raw.n):
        clean = raw.clean(i, raw.call(network, i, raw.given[i])[0])
        snr = (raw.a[i] / raw.s[i]) ** 2
        total = total + min(snr, gamma) * mse(clean, raw.x0[i])
    return {"mse": total / raw.n}


@pytest.mark.parametrize("kind", KINDS)
def test_min_snr_is_the_formula_in_units_of_the_clean_image(kind: str) -> None:
    assert_follows(MinSNR(), kind, min_snr)
    assert_follows(MinSNR(gamma=1.0), kind, lambda r, n: min_snr(r, n, 1.0))


def test_min_snr_conforms_and_caps_clean_times_alone() -> None:
    check_objective(MinSNR())
    batch = example("ddpm")
    t = torch.tensor([10, 900])
    batch = replace(batch, t=t, x0=batch.x0[:2], noise=torch.zeros_like(batch.x0[:2]), x_t=batch.x_t[:2])
    error = MinSNR().terms(batch, [answer(batch, torch.ones_like(batch.x0))])["mse"]
    assert float(error[0]) < 0.02  # eps: SNR is 600 there, and counts 5
    assert float(error[1]) == 1.0
    for gamma in (0.0, math.inf, -1.0):
        with pytest.raises(ConfigError, match="gamma"):
            MinSNR(gamma=gamma)


@pytest.mark.parametrize("kind", KINDS)
def test_effective_number_is_the_formula(kind: str) -> None:
    assert_follows(EffectiveNumber(), kind, effective_number)
    for switch in ({"beta": 0.9}, {"mean": "images"}):
        assert_follows(EffectiveNumber(**switch), kind, lambda r, n, s=switch: effective_number(r, n, **s))  # type: ignore[arg-type, misc]


@pytest.mark.parametrize("kind", KINDS)
def test_focal_is_the_formula(kind: str) -> None:
    values = [assert_follows(Focal(), kind, focal)["mse"]]
    for switch in ({"beta": 2.0, "gamma": 2.0}, {"against": "nothing"}, {"width": 0.5}):
        values.append(assert_follows(Focal(**switch), kind, lambda r, n, s=switch: focal(r, n, **s))["mse"])  # type: ignore[arg-type, misc]
    assert len({round(v, 6) for v in values}) == 4, "switches that switch nothing"


def test_they_conform() -> None:
    check_objective(EffectiveNumber())
    check_objective(Focal())
    check_objective(Focal(against="nothing", gamma=2.0), processes=("flow",))


def test_weights_between_none_and_inverse_frequency() -> None:
    counts = (500, 100, 5)
    assert effective_number_weights(counts, 0.0) == [1, 1, 1]
    inverse = [1 / n for n in counts]
    assert effective_number_weights(counts, 1.0) == pytest.approx([3 * w / sum(inverse) for w in inverse])
    assert effective_number_weights(counts, 1 - 1e-9) == pytest.approx(effective_number_weights(counts, 1.0), rel=1e-5)
    for beta in (0.9, 0.99, 0.9999):
        w = effective_number_weights(counts, beta)
        assert sum(w) == pytest.approx(3)
        assert w[2] > w[1] >= w[0] > 0
    # beyond 1 / (1 - beta) images more do not count: (1 - 0.9^500) and (1 - 0.9^100) are both 1
    assert effective_number_weights(counts, 0.9)[0] == pytest.approx(effective_number_weights(counts, 0.9)[1], rel=1e-4)
    assert effective_number_weights((7, 7, 7), 0.999) == pytest.approx([1, 1, 1])


def terms(objective: Any, prediction: Tensor, **fields: Any) -> Tensor:
    batch = example(**fields)
    return objective.terms(batch, [answer(batch, prediction)])["mse"]


def test_balanced_classes_leave_the_denoising_loss_as_it_is() -> None:
    prediction = leaf(*example().x0.shape).detach()
    plain = terms(Denoising(), prediction)
    for mean in ("classes", "images"):
        even = ClassStats(("a", "b", "c", "d"), (9, 9, 9, 9))
        found = terms(EffectiveNumber(mean=mean), prediction, stats=even)  # type: ignore[arg-type]
        assert torch.allclose(found, plain, rtol=1e-6)
    assert torch.equal(terms(Focal(gamma=0.0), prediction), plain)


def test_dropped_labels_keep_the_weight_of_their_class() -> None:
    prediction = leaf(*example().x0.shape).detach()
    values = [
        terms(EffectiveNumber(), prediction, dropped=torch.full((16,), d), condition=torch.full((16,), 4 if d else 0))
        for d in (False, True)
    ]
    assert torch.equal(*values)


def test_one_objective_serves_sets_of_other_sizes() -> None:
    """The weights are kept per device; another data set must not get those of the first."""
    objective, prediction = EffectiveNumber(), leaf(*example().x0.shape).detach()
    first = terms(objective, prediction)
    other = terms(objective, prediction, stats=ClassStats(("a", "b", "c", "d"), (5, 5, 5, 500)))
    assert not torch.allclose(first, other)
    assert torch.equal(terms(objective, prediction), first)


@pytest.mark.parametrize("against", ["noise_level", "nothing"])
def test_focal_gradients_are_those_of_denoising_times_a_factor_that_grows_with_the_error(against: Any) -> None:
    batch = replace(example(), noise_level=torch.full((16,), 0.5))  # so that all are compared with all
    noise = torch.randn(batch.x0.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    size = torch.linspace(0.1, 2, 16, dtype=torch.float64)[:, None, None, None]
    prediction = (batch.target + size * noise.sign()).requires_grad_()  # row i errs by size_i in every pixel
    found = Focal(against=against).terms(batch, [answer(batch, prediction)])["mse"]
    plain = Denoising().terms(batch, [answer(batch, prediction)])["mse"]
    ratio = gradients(found.sum(), prediction)[0] / gradients(plain.sum(), prediction)[0]
    factor = ratio.flatten(1).mean(1)
    assert torch.allclose(ratio, factor[:, None, None, None].expand_as(ratio))
    assert (factor.diff() > 0).all()
    usual = float(plain.detach().mean().sqrt()) if against == "noise_level" else 1.0
    assert torch.allclose(factor, size.flatten() / usual, rtol=0.02)  # nearly in proportion at beta = 0.2


def test_focal_against_the_noise_level_does_not_re_weight_times() -> None:
    """Errors that depend on the noise level alone are no reason to weigh any row more; as published they are."""
    batch = replace(example(), noise_level=(torch.arange(16) // 4) * 0.3)
    size = (0.1 + batch.noise_level.double())[:, None, None, None]
    prediction = (batch.target + size).requires_grad_()
    plain = Denoising().terms(batch, [answer(batch, prediction)])["mse"]
    relative = Focal().terms(batch, [answer(batch, prediction)])["mse"]
    published = Focal(against="nothing").terms(batch, [answer(batch, prediction)])["mse"]
    assert torch.allclose(relative, plain, rtol=1e-4)
    assert float((published / plain).detach().max() / (published / plain).detach().min()) > 5


def test_no_error_at_all_stays_finite() -> None:
    batch = example()
    for against in ("noise_level", "nothing"):
        prediction = batch.target.clone().requires_grad_()
        found = Focal(against=against).terms(batch, [answer(batch, prediction)])["mse"]  # type: ignore[arg-type]
        assert not found.any()
        assert not gradients(found.sum(), prediction)[0].any()


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (EffectiveNumber, {"beta": 1.5}),
        (EffectiveNumber, {"mean": "rows"}),
        (Focal, {"beta": 0.0}),
        (Focal, {"gamma": -1.0}),
        (Focal, {"width": 0.0}),
        (Focal, {"against": "time"}),
    ],
)
def test_what_makes_no_sense_is_refused(make: Any, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=make.name):
        make(**options)
