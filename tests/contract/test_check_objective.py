"""`check_objective` passes what is right and names what is wrong."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from imbdiff.diffusion.process import Process
from imbdiff.objectives.batch import NoisyBatch
from imbdiff.objectives.denoising import Denoising
from imbdiff.objectives.objective import Objective
from imbdiff.objectives.requests import Labels, Request, Rows
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
        ratio=False,  # tests/objectives/test_comparisons.py
        **({} if of.network == "mlp" else {"build": build}),
    )


Change = Callable[[Tensor, NoisyBatch], Tensor]
Asked = Callable[[NoisyBatch], list[Request]]


class Broken(Denoising):
    """The denoising loss with a changed term, other requests, or a parameter that nothing reads."""

    name = "broken"

    def __init__(
        self, change: Change = lambda term, batch: term, asked: Asked = lambda batch: [Request()], dead: bool = False
    ) -> None:
        super().__init__()
        self.change, self.asked = change, asked
        self.head = nn.Linear(3, 3) if dead else None

    def requests(self, batch: NoisyBatch) -> Sequence[Request]:
        return self.asked(batch)

    def weighted(self, batch: NoisyBatch, error: Tensor) -> Tensor:
        return self.change(error, batch)


CALLS = itertools.count()


def rows_by_value(batch: NoisyBatch) -> list[Request]:
    return [Request(), Request("null", Rows("noisy", (batch.noise_level > 0.5).nonzero().flatten()))]


def skips_dropped(batch: NoisyBatch) -> list[Request]:
    """As released code does it: no second pass where all labels of the batch were dropped."""
    return [Request()] if bool(batch.dropped.all()) else [Request(), Request("null")]


class FullyFrozen(Broken):
    """Right: own parameters that are not trained, as prototypes are, need no gradient; own labels depend on values."""

    name = "frozen_parameter"

    def __init__(self) -> None:
        super().__init__()
        self.prototypes = nn.Parameter(torch.ones(3), requires_grad=False)

    def requests(self, batch: NoisyBatch) -> Sequence[Request]:
        return [Request(), Request(Labels("next", (batch.labels + 1) % STATS.num_classes))]


@pytest.mark.parametrize(
    ("objective", "says"),
    [
        (Broken(lambda e, b: e * torch.rand(len(e))), "reads the global random state"),
        (Broken(lambda e, b: e * (1 + 0.1 * (next(CALLS) % 7))), "the same batch gives another loss"),
        (Broken(asked=rows_by_value), "requests depend on the values"),
        (Broken(asked=skips_dropped), "requests depend on the values"),
        (Broken(lambda e, b: e / b.noise_level), "no noise at all.*not finite"),
        (Broken(lambda e, b: e / (1 - b.noise_level - 1e-3).clamp_min(0)), "nothing but noise.*not finite"),
        (Broken(lambda e, b: e / e.var(correction=0)), "one row.*not finite"),
        (Broken(lambda e, b: (e * ~b.dropped).sum() / (~b.dropped).sum()), "all labels dropped.*not finite"),
        (Broken(dead=True), "head.weight gets no gradient"),
        (Broken(lambda e, b: e.clone().requires_grad_(), lambda b: [Request(grad=False)]), "no gradient flows"),
        (Broken(lambda e, b: e * torch.arange(len(e))), "permuting the rows changes"),
    ],
)
def test_wrong_ones_fail(objective: Objective, says: str) -> None:
    with pytest.raises(AssertionError, match=says):
        check_objective(objective)


def test_terms_of_another_shape_are_refused() -> None:
    for change in (lambda e, b: e[:, None].expand(-1, 3), lambda e, b: e[: len(e) // 2]):
        with pytest.raises(ConfigError, match="broken/mse has shape"):
            check_objective(Broken(change))


def test_own_parameters_may_be_frozen_and_own_labels_may_differ() -> None:
    check_objective(FullyFrozen(), processes=("ddpm",), ratio=False)


def test_the_objective_itself_is_left_as_it_was() -> None:
    objective = SupervisedContrast(width=128)
    before = {n: p.clone() for n, p in objective.named_parameters()}
    state = torch.random.get_rng_state()
    check_objective(objective, processes=("flow",))
    assert all(torch.equal(p, before[n]) and p.grad is None for n, p in objective.named_parameters())
    assert torch.equal(state, torch.random.get_rng_state())
