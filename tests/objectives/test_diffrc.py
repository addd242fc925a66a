"""DiffRC's pair-wise diversity and its prototypes: known values, groups that are too small, what has no gradient, and
exact continuation. Formulas are in `tests.contract.oracles`."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from imbdiff.data.stats import ClassStats
from imbdiff.diffusion.encoder import PrototypeEncoder
from imbdiff.diffusion.model import build_model
from imbdiff.diffusion.process import PROCESSES
from imbdiff.objectives.batch import NoisyBatch, class_counts, class_prior
from imbdiff.objectives.denoising import Denoising
from imbdiff.objectives.pair_diversity import PairDiversity
from imbdiff.objectives.prototype_contrast import PrototypeContrast, with_prototypes
from imbdiff.runtime.errors import ConfigError
from imbdiff.training.parts import Part, check_groups
from imbdiff.training.step import TrainingStep
from imbdiff.training.trainer import Trainer
from tests.contract.cases import LABELS, STATS, N, encoder, make_batches, make_step, step_of
from tests.contract.oracles import prototypes
from tests.training.test_trainer import CONFIG, StopError, data, stop_at
from tests.training.test_trainer import trainer as of_a_model

from .answers import answer, example, leaf, raw_of


@pytest.mark.parametrize("case", ["pair_diversity", "prototype_contrast"])
def test_counts_and_frequencies_are_copied_to_a_device_once(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert class_counts(STATS, cpu).tolist() == list(STATS.counts)
    assert class_prior(STATS, cpu).tolist() == pytest.approx([n / sum(STATS.counts) for n in STATS.counts])
    assert class_counts(ClassStats(STATS.names, STATS.counts[::-1]), cpu).tolist() == list(STATS.counts[::-1])
    step = step_of(case, "ddpm")
    batches = make_batches(step, PROCESSES["ddpm"])
    step(batches)

    def refused(*_: Any, **__: Any) -> Any:
        raise AssertionError("made anew, and copied to the device, in every step")

    monkeypatch.setattr(torch, "tensor", refused)
    monkeypatch.setattr(torch, "from_numpy", refused)
    step(batches)


# -- pairs


def grouped(**fields: Any) -> NoisyBatch:
    return example("ddpm", PairDiversity(), **fields)


def kl(objective: PairDiversity, batch: NoisyBatch, target: Tensor, source: Tensor) -> Tensor:
    return objective.terms(batch, [answer(batch, x) for x in (target, source)])["kl"]


def test_no_gradient_reaches_the_source_even_if_it_could() -> None:
    batch, x, y = grouped(), leaf(16, 1, 2, 3), leaf(16, 1, 2, 3, seed=1)
    to_x, to_y = torch.autograd.grad(kl(PairDiversity(), batch, x, y).sum(), [x, y], allow_unused=True)
    assert float(to_x.abs().max()) > 1e-6
    assert to_y is None
    process = PROCESSES["ddpm"]
    networks = {name: make_step([Denoising()], process).networks["model"] for name in ("model", "teacher")}
    step = TrainingStep(networks, [PairDiversity(source="teacher")])
    step({"grouped": batch})["loss"].backward()
    assert all(p.grad is None for p in step.networks["teacher"].parameters())


def test_groups_of_one_or_two_and_rows_in_none_give_nothing() -> None:
    group = torch.tensor([0, 1, 1, 2, 2, 2, *([-1] * 10)])
    x, y = leaf(16, 1, 2, 3), leaf(16, 1, 2, 3, seed=1)
    value = kl(PairDiversity(), grouped(group=group), x, y)
    assert torch.allclose(value[:3], torch.zeros(3).double(), atol=1e-15)
    assert bool((value[3:6] > 1e-6).all())
    assert bool((value[6:] == 0).all())
    (grad,) = torch.autograd.grad(value.sum(), x)
    assert bool((grad[6:] == 0).all())
    assert bool((grad[3:6] != 0).any())


def test_a_known_value() -> None:
    """Three images: the source finds the others alike, the target one of them equal and one opposite."""
    batch = grouped(group=torch.tensor([0, 0, 0, *([-1] * 13)]), labels=torch.full((16,), 1))
    up = torch.ones(16, 1, 2, 3, dtype=torch.float64)
    clean = up.clone()
    clean[2] = -1.0

    def eps(x0: Tensor) -> Tensor:
        a, s = (c.reshape(-1, 1, 1, 1) for c in batch.process.coefficients(batch.t))
        return (batch.x_t - a * x0) / s

    p = 1 / (1 + math.exp(-2 / (1 + 0.1 * 12)))  # of the equal one against the opposite one
    expected = p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p))
    value = kl(PairDiversity(gamma=0.1, reduction="mean"), batch, eps(clean), eps(up))
    assert float(value[0]) == pytest.approx(expected, rel=1e-6)
    assert float(value[2]) == pytest.approx(0.0, abs=1e-9)  # to the third both are equally far


def test_groups_that_are_too_small_are_refused() -> None:
    check_groups([Part(), Part("grouped", groups=2, group_size=3)], [Denoising(), PairDiversity()])
    check_groups([Part()], [PairDiversity(weight=0.0)])
    for parts in ([Part()], [Part("grouped")], [Part("grouped", groups=8, group_size=2)]):
        with pytest.raises(ConfigError, match="fewer than 3"):
            check_groups(parts, [PairDiversity()])


# -- prototypes


def answered(objective: PrototypeContrast, batch: NoisyBatch, f: Tensor) -> Tensor:
    return objective.terms(batch, [answer(batch, features=f)])["loss"]


def prepared(**options: Any) -> PrototypeContrast:
    objective = PrototypeContrast(**options)
    objective.prepare({"model": encoder(PROCESSES["ddpm"])})
    return objective.double()


def features(seed: int = 1, n: int = N) -> Tensor:
    return F.normalize(torch.randn(n, 128, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=1)


def test_one_image_per_step_is_equation_11() -> None:
    """c <- m c + (1 - m) f, from 0, its direction alone used."""
    objective = prepared(momentum=0.9, clean=False)
    batch = example()
    one = replace(batch, labels=torch.full((1,), 2), t=batch.t[:1])
    c = torch.zeros(128, dtype=torch.float64)
    for seed in range(5):
        f = features(seed, 1)
        answered(objective, one, f)
        c = 0.9 * c + 0.1 * f[0]
    assert torch.allclose(objective.sums[2], c)
    assert torch.allclose(objective.prototypes()[2], c / c.norm())
    assert float(objective.sums[[0, 1, 3]].abs().max()) == 0


def test_a_class_that_comes_later_starts_as_its_mean_however_little_it_weighs() -> None:
    """At nothing but noise the weight of an image is 4e-5, under a flow 4e-15."""
    for kind, t in (("ddpm", torch.full((N,), 999)), ("flow", torch.full((N,), 1 - 2.0**-24))):
        objective, batch = prepared(), replace(example(kind), t=t)
        answered(objective, replace(batch, labels=torch.where(LABELS == 3, 2, LABELS)), features(0))
        assert float(objective.prototypes()[3].norm()) == 0
        answered(objective, batch, features(1))
        mean = features(1)[LABELS == 3].mean(0)
        assert torch.allclose(objective.prototypes()[3], mean / mean.norm(), rtol=1e-6), kind
    objective, batch, sums = prepared(), example(), [torch.zeros(128, dtype=torch.float64)] * 4
    for seed, labels in enumerate((torch.where(LABELS == 3, 2, LABELS), LABELS)):
        answered(objective, replace(batch, labels=labels), features(seed))
        sums = prototypes(raw_of("ddpm", replace(batch, labels=labels)), list(features(seed)), sums)
    assert torch.allclose(objective.sums, torch.stack(sums), rtol=1e-9, atol=1e-15)


def test_prototypes_have_no_gradient_and_stand_still_in_evaluation() -> None:
    objective, batch, f = prepared(), example(), features()
    answered(objective, batch, f)
    assert not objective.sums.requires_grad
    before = objective.sums.clone()
    answered(objective.eval(), batch, f.flip(0))
    assert torch.equal(before, objective.sums)
    answered(objective.train(), batch, f.flip(0))
    assert not torch.equal(before, objective.sums)


def test_finish_gives_the_encoder_what_it_was_trained_with() -> None:
    step = TrainingStep({"model": encoder(PROCESSES["ddpm"])}, [PrototypeContrast(tau=0.2)]).double()
    step(make_batches(step, PROCESSES["ddpm"]))
    (objective,), net = step.active, step.networks["model"]
    assert isinstance(objective, PrototypeContrast)
    assert isinstance(net, PrototypeEncoder)
    assert float(net.prototypes.abs().max()) == 0
    done = with_prototypes(net, [objective])
    assert torch.equal(done.prototypes, objective.prototypes())
    assert done.tau == 0.2
    assert not any(p.requires_grad for p in done.parameters())


def test_prototypes_of_a_network_without_them_are_refused() -> None:
    with pytest.raises(ConfigError, match="PrototypeEncoder"):
        make_step([PrototypeContrast()], PROCESSES["ddpm"])


def test_a_stopped_training_continues_with_the_same_prototypes(tmp_path: Path) -> None:
    def training(folder: Path, **options: Any) -> Trainer:
        made = of_a_model(folder, replace(CONFIG, accumulate=2), **options)
        model = build_model("mlp", PROCESSES["ddpm"], (1, 4, 4), data().stats)
        made.step = TrainingStep({"model": PrototypeEncoder.like(model, 1)}, [PrototypeContrast()])
        made.parts, made.finish = [type(made.parts[0])()], with_prototypes
        return made

    whole = training(tmp_path / "a").run()
    assert isinstance(whole, PrototypeEncoder)
    assert torch.allclose(whole.prototypes.norm(dim=1), torch.ones(3), rtol=1e-5)
    with pytest.raises(StopError):
        training(tmp_path / "b", on_preview=stop_at(16 * 10)).run()
    for _ in range(2):  # continued, and read back
        again = training(tmp_path / "b").run().state_dict()
        assert whole.state_dict().keys() == again.keys()
        assert all(torch.equal(v, again[k]) for k, v in whole.state_dict().items())
