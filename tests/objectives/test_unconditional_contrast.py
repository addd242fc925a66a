"""CCUA's contrast: the formula, InfoNCE in disguise, what it pushes and how hard, and what it costs."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from imbdiff.diffusion.process import PROCESSES
from imbdiff.objectives.alignment import Alignment
from imbdiff.objectives.denoising import Denoising
from imbdiff.objectives.unconditional_contrast import UnconditionalContrast
from imbdiff.runtime.errors import ConfigError
from imbdiff.testing import check_objective
from tests.contract.cases import make_batches, make_step
from tests.contract.oracles import Raw, cosine

from .against_formula import KINDS, Largest, answer, assert_follows, example, gradients, leaf


def formula(raw: Raw, network: Any, tau: float = 0.1, time: str = "noise", block: int = 0) -> dict[str, Tensor]:
    h = [raw.call(network, i, raw.null)[1] for i in range(raw.n)]
    total = torch.zeros((), dtype=torch.float64)
    for i in range(raw.n):
        inside = torch.ones((), dtype=torch.float64)
        for j in range(raw.n):
            if j != i and (not block or i // block == j // block):
                inside = inside + ((cosine(h[i], h[j]) - 1) / tau).exp()
        total = total + {"noise": raw.level[i], "none": 1.0, "clean": 1 - raw.level[i]}[time] * inside.log()
    return {"repel": total / raw.n}


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_formula(kind: str) -> None:
    assert_follows(UnconditionalContrast(), kind, formula)


@pytest.mark.parametrize("switch", [{"tau": 0.5}, {"time": "none"}, {"time": "clean"}, {"block": 4}])
def test_switches_are_their_formulas(switch: dict[str, Any]) -> None:
    with_switch = assert_follows(UnconditionalContrast(**switch), "flow", lambda r, n: formula(r, n, **switch))
    plain = assert_follows(UnconditionalContrast(), "flow", formula)
    assert abs(with_switch["repel"] / plain["repel"] - 1) > 1e-3, "a switch that switches nothing"


def test_conforms() -> None:
    check_objective(UnconditionalContrast())
    check_objective(UnconditionalContrast(time="none"), processes=("flow",))
    check_objective(UnconditionalContrast(block=5), processes=("flow",), equivariant=False)  # blocks speak of an order


def repel(h: Tensor, time: Any = "none", **options: Any) -> Tensor:
    batch = example()
    assert len(h) == len(batch)
    return UnconditionalContrast(time=time, **options).terms(batch, [answer(batch, mid=h)])["repel"]


def test_it_is_infonce_whose_positive_is_its_anchor() -> None:
    """Value and gradient of -log(e^(1/tau) / (e^(1/tau) + sum)), by PyTorch's cross-entropy over [positive, others]."""
    h, again = leaf(16, 6), leaf(16, 6)
    z, tau = F.normalize(again, dim=1), 0.1
    cos = z @ z.T
    logits = torch.cat([(z * z.detach()).sum(1, keepdim=True), cos], 1) / tau
    logits[:, 1:].fill_diagonal_(-math.inf)
    nce = F.cross_entropy(logits, torch.zeros(16, dtype=torch.long), reduction="none")
    assert torch.allclose(repel(h), nce, rtol=1e-9)
    (to_h,), (to_again,) = gradients(repel(h).sum(), h), gradients(nce.sum(), again)
    assert torch.allclose(to_h, to_again, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("cos", [0.0, 0.5, 0.9, 1.0])
def test_known_values_at_equal_cosines(cos: float) -> None:
    """log(1 + 15 e^((c - 1) / 0.1)) of 16 vectors at the same cosine from each other."""
    gram = torch.full((16, 16), cos, dtype=torch.float64).fill_diagonal_(1.0)
    values, vectors = torch.linalg.eigh(gram)
    h = vectors * values.clamp_min(0).sqrt()
    value = math.log(1 + 15 * math.exp((cos - 1) / 0.1))
    assert torch.allclose(repel(h), torch.full((16,), value, dtype=torch.float64), rtol=1e-6)
    assert torch.allclose(repel(3 * h), repel(h), rtol=1e-9), "the length of a feature vector should not matter"


def test_a_step_against_the_gradient_lowers_cosines() -> None:
    base = torch.ones(16, 6, dtype=torch.float64)
    h = (base + 0.1 * leaf(16, 6).detach()).requires_grad_()

    def mean_cosine(x: Tensor) -> float:
        z = F.normalize(x.detach(), dim=1)
        return float((z @ z.T).mean())

    (to_h,) = gradients(repel(h).sum(), h)
    assert mean_cosine(h - 0.1 * to_h) < mean_cosine(h) - 1e-3


def test_weights_follow_the_noise_level() -> None:
    level = torch.linspace(0, 0.9, 16)
    batch = replace(example(), noise_level=level)
    h = leaf(16, 6).detach()
    for time, weight in (("noise", level), ("clean", 1 - level)):
        terms = UnconditionalContrast(time=time, tau=1.0).terms(batch, [answer(batch, mid=h)])  # type: ignore[arg-type]
        assert torch.allclose(terms["repel"], weight.double() * repel(h, tau=1.0), rtol=1e-6)


def test_rows_with_dropped_labels_take_part() -> None:
    """The features are unconditional, so it does not matter whether a label was dropped."""
    h = leaf(16, 6).detach()
    some, everything = example(), example(dropped=torch.ones(16, dtype=torch.bool))
    values = [UnconditionalContrast().terms(b, [answer(b, mid=h)])["repel"] for b in (some, everything)]
    assert torch.equal(*values)


def test_blocks_do_not_see_each_other() -> None:
    h = leaf(16, 6)
    (to_h,) = gradients(repel(h, block=4, tau=1.0)[:4].sum(), h)
    assert to_h[:4].abs().min() > 0
    assert not to_h[4:].any()


def test_memory_is_rows_by_rows_and_not_by_features() -> None:
    batch, h = example(), torch.randn(16, 1, 32, 32, requires_grad=True)
    with Largest() as seen:
        UnconditionalContrast().terms(batch, [answer(batch, mid=h)])["repel"].sum().backward()
    assert seen.numel == h.numel()  # 16 x 1024; all differences would be 16 x 16 x 1024


def test_bfloat16_features_lose_nothing_more() -> None:
    """Under autocast a product in bfloat16 would round cosines near 1 to 1 or 0.996."""
    h = 1 + 0.05 * torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    exact = repel(h.double())
    with torch.autocast("cpu", torch.bfloat16):
        found = repel(h)
    assert found.dtype == torch.float32
    assert torch.allclose(found.double(), exact, rtol=1e-4)


def test_the_rows_stop_at_the_tap_and_are_shared_with_alignment() -> None:
    for objectives, rows, predicted in (
        ([Denoising(), UnconditionalContrast()], 32, 16),
        ([Denoising(), UnconditionalContrast(), Alignment()], 32, 32),
    ):
        step = make_step(objectives, PROCESSES["ddpm"])
        step(make_batches(step, PROCESSES["ddpm"]))
        assert (step.usage.passes, step.usage.rows, step.usage.predicted_rows) == (1, rows, predicted)


@pytest.mark.parametrize("options", [{"tau": 0.0}, {"block": -1}, {"time": "late"}])
def test_what_makes_no_sense_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="unconditional_contrast"):
        UnconditionalContrast(**options)
