"""Constants that make no sense are refused by name."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from imbdiff.objectives.alignment import Alignment
from imbdiff.objectives.capacity import CapacityManipulation
from imbdiff.objectives.class_balancing import ClassBalancing
from imbdiff.objectives.dispersive import Dispersive
from imbdiff.objectives.overlap import ClassOverlap
from imbdiff.objectives.pair_diversity import PairDiversity
from imbdiff.objectives.prototype_contrast import PrototypeContrast
from imbdiff.objectives.reweighting import EffectiveNumber, Focal, MinSNR
from imbdiff.objectives.supervised_contrast import SupervisedContrast
from imbdiff.objectives.transfer import Transfer
from imbdiff.objectives.unconditional_contrast import UnconditionalContrast
from imbdiff.runtime.errors import ConfigError

from .answers import answer, example

WRONG: list[tuple[Any, dict[str, Any]]] = [
    (ClassBalancing, {"distribution": "tail"}),
    (ClassBalancing, {"rows": 0.0}),
    (ClassBalancing, {"rows": math.nan}),
    (ClassBalancing, {"gamma": math.inf}),
    (ClassBalancing, {"space": "x0"}),
    (Alignment, {"time": "late"}),
    (UnconditionalContrast, {"tau": 0.0}),
    (UnconditionalContrast, {"block": -1}),
    (Transfer, {"direction": "tail"}),
    (Transfer, {"tau": math.nan}),
    (SupervisedContrast, {"tau": 0}),
    (SupervisedContrast, {"width": 0}),
    (Dispersive, {"tau": 0.0}),
    (Dispersive, {"distance": "l1"}),
    (ClassOverlap, {"time": "late"}),
    (CapacityManipulation, {"consistency": -1.0}),
    (CapacityManipulation, {"diversity": math.inf}),
    (CapacityManipulation, {"bound": math.nan}),
    (PairDiversity, {"gamma": math.inf}),
    (PairDiversity, {"temperature": 0.0}),
    (PairDiversity, {"reduction": "max"}),
    (PrototypeContrast, {"tau": math.nan}),
    (PrototypeContrast, {"momentum": 1.0}),
    (EffectiveNumber, {"beta": 1.5}),
    (EffectiveNumber, {"mean": "rows"}),
    (Focal, {"beta": 0.0}),
    (Focal, {"gamma": -1.0}),
    (Focal, {"width": 0.0}),
    (Focal, {"against": "time"}),
    (MinSNR, {"gamma": math.inf}),
]


@pytest.mark.parametrize(("make", "options"), WRONG, ids=lambda x: getattr(x, "__name__", str(x)))
def test_constants_out_of_range_are_refused(make: Any, options: dict[str, Any]) -> None:
    ((_, value),) = options.items()
    with pytest.raises(ConfigError, match=str(value)):
        make(**options)


def test_a_projection_of_unknown_width_is_refused() -> None:
    batch = example()
    with pytest.raises(ConfigError, match="no projection"):
        SupervisedContrast().terms(batch, [answer(batch, mid=torch.ones(16, 4))])
    with pytest.raises(ConfigError, match="width"):
        SupervisedContrast().prepare({"model": nn.Linear(2, 2)})
