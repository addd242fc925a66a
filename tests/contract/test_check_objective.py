"""`check_objective` passes what is right and names what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from imbdiff.diffusion.process import Process
from imbdiff.objectives.batch import NoisyBatch
from imbdiff.objectives.denoising import Denoising
from imbdiff.objectives.objective import Objective
from imbdiff.objectives.requests import Answer, Labels, Request, Rows
from imbdiff.objectives.supervised_contrast import SupervisedContrast
from imbdiff.runtime.errors import ConfigError
from imbdiff.testing import STATS, check_objective

from .cases import CASES, KINDS, encoder, low_rank

#: under every process what is as published, and one of its variants under flow
FULL = [case for case, of in CASES.items() if of.objectives[0][0].name == case]
VARIANTS = [
    "effective_number images",
    "focal published",
    "class_balancing eps",
    "unconditional_contrast none",
    "alignment clean",
    "transfer full",
    "supervised_contrast wholly",
    "overlap released",
    "dispersive cosine",
    "capacity anchor",
    "pair_diversity null",
    "prototype_contrast alike",
]
#: their draws or blocks name rows of the batch
ORDERED = ("sampled_balancing",)


@pytest.mark.parametrize("case", [*FULL, *VARIANTS])
def test_right_ones_pass(case: str) -> None:
    of, (objective,) = CASES[case], CASES[case].make()
    builds = {"low rank": low_rank, "encoder": encoder}

    def build(name: str, process: Process) -> nn.Module:
        return builds[of.network](process)

    check_objective(
        objective,
        processes=KINDS if case in FULL else ("flow",),
        networks=("model", "source") if objective.part == "grouped" else ("model",),
        equivariant=case not in ORDERED,
        ratio=False,  # tests/objectives/test_ratio.py
        **({} if of.network == "mlp" else {"build": build}),
    )


def row_mse(x: Tensor) -> Tensor:
    return x.square().flatten(1).mean(1)


class Base(Denoising):
    """The denoising loss with a place for what is wrong."""

    name = "broken"

    def change(self, term: Tensor, batch: NoisyBatch) -> Tensor:
        return term

    def terms(self, batch: NoisyBatch, answers: Sequence[Answer]) -> dict[str, Tensor]:
        return {"mse": self.change(row_mse(answers[0].pred - batch.target), batch)}


class ReadsTorch(Base):
    def change(self, term: Tensor, batch: NoisyBatch) -> Tensor:
        return term * torch.rand(len(term))


class Forgets(Base):
    """Draws nothing from the global generator, and yet the same batch gives another loss."""

    calls = 0

    def change(self, term: Tensor, batch: NoisyBatch) -> Tensor:
        Forgets.calls += 1
        return term * (1 + 0.1 * (Forgets.calls % 7))


class RowsByValue(Base):
    def requests(self, batch: NoisyBatch) -> Sequence[Request]:
        noisy = (batch.noise_level > 0.5).nonzero().flatten()
        return [Request(), Request("null", Rows("noisy", noisy))]


class SkipsDropped(Base):
    """As released code does it: no second pass where all labels of the batch were dropped."""

    def requests(self, batch: NoisyBatch) -> Sequence[Request]:
        return [Request()] if bool(batch.dropped.all()) else [Request(), Request("null")]


class NotFiniteAtNoNoise(Base):
    def change(self, term: Tensor, batch: NoisyBatch) -> Tensor:
        return term / batch.noise_level


class NotFiniteAtAllNoise(Base):
    def change(self, term: Tensor, batch: NoisyBatch) -> Tensor:
        return term / (1 - batch.noise_level - 1e-3).clamp_min(0)


class NotFiniteAlone(Base):
    """The spread over rows: 0 for a single one."""

    def change(self, term: Tensor, batch: NoisyBatch) -> Tensor:
        return term / term.var(correction=0)


class NotFiniteWithoutLabels(Base):
    def change(self, term: Tensor, batch: NoisyBatch) -> Tensor:
        return (term * ~batch.dropped).sum() / (~batch.dropped).sum()


class PerPixel(Base):
    def terms(self, batch: NoisyBatch, answers: Sequence[Answer]) -> dict[str, Tensor]:
        return {"mse": (answers[0].pred - batch.target).square()}


class Shorter(Base):
    def change(self, term: Tensor, batch: NoisyBatch) -> Tensor:
        return term[: len(term) // 2]


class DeadParameter(Base):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 3)


class NoGradient(Base):
    def requests(self, batch: NoisyBatch) -> Sequence[Request]:
        return [Request(grad=False)]

    def change(self, term: Tensor, batch: NoisyBatch) -> Tensor:
        return term.clone().requires_grad_()


class ByPosition(Base):
    def change(self, term: Tensor, batch: NoisyBatch) -> Tensor:
        return term * torch.arange(len(term))


class FullyFrozen(Base):
    """Right: own parameters that are not trained, as prototypes are, need no gradient; own labels depend on values."""

    name = "frozen_parameter"

    def __init__(self) -> None:
        super().__init__()
        self.prototypes = nn.Parameter(torch.ones(3), requires_grad=False)

    def requests(self, batch: NoisyBatch) -> Sequence[Request]:
        return [Request(), Request(Labels("next", (batch.labels + 1) % STATS.num_classes))]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (ReadsTorch, "reads the global random state"),
        (Forgets, "the same batch gives another loss"),
        (RowsByValue, "requests depend on the values"),
        (SkipsDropped, "requests depend on the values"),
        (NotFiniteAtNoNoise, "no noise at all.*not finite"),
        (NotFiniteAtAllNoise, "nothing but noise.*not finite"),
        (NotFiniteAlone, "one row.*not finite"),
        (NotFiniteWithoutLabels, "all labels dropped.*not finite"),
        (DeadParameter, "head.weight gets no gradient"),
        (NoGradient, "no gradient flows"),
        (ByPosition, "permuting the rows changes"),
    ],
)
def test_wrong_ones_fail(make: Callable[[], Objective], says: str) -> None:
    with pytest.raises(AssertionError, match=says):
        check_objective(make())


@pytest.mark.parametrize("make", [PerPixel, Shorter])
def test_terms_of_another_shape_are_refused(make: Callable[[], Objective]) -> None:
    with pytest.raises(ConfigError, match="broken/mse has shape"):
        check_objective(make())


def test_own_parameters_may_be_frozen_and_own_labels_may_differ() -> None:
    check_objective(FullyFrozen(), processes=("ddpm",), ratio=False)


def test_the_objective_itself_is_left_as_it_was() -> None:
    objective = SupervisedContrast(width=128)
    before = {n: p.clone() for n, p in objective.named_parameters()}
    state = torch.random.get_rng_state()
    check_objective(objective, processes=("flow",))
    assert all(torch.equal(p, before[n]) and p.grad is None for n, p in objective.named_parameters())
    assert torch.equal(state, torch.random.get_rng_state())
