"""The table of guidances: every row makes what it says, with the constants given, and refuses what it lacks."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass, replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from imbdiff.data.stats import Groups
from imbdiff.diffusion.autoguidance import Autoguidance
from imbdiff.diffusion.encoder import PrototypeEncoder
from imbdiff.diffusion.entropy_guidance import EntropyGuidance
from imbdiff.diffusion.generate import generate
from imbdiff.diffusion.guidance import ClassifierFree, Guidance, Guided, NoGuidance, Predict
from imbdiff.diffusion.guidances import (
    GUIDANCE,
    GuidanceEntry,
    SamplingContext,
    guidance_constants,
    guidance_needs,
    make_guidance,
)
from imbdiff.diffusion.model import build_model
from imbdiff.diffusion.process import PROCESSES
from imbdiff.diffusion.prototype_guidance import PrototypeGuidance
from imbdiff.runtime.errors import ConfigError

from .worlds import STATS

GROUPS = Groups(("many", "few"), (0, 1, 1), "by hand")
EVERYTHING = {
    "classifier-free": ClassifierFree,
    "prototype": PrototypeGuidance,
    "autoguidance": Autoguidance,
    "entropy": EntropyGuidance,
    "none": NoGuidance,
}


def classifier(x0: Tensor) -> Tensor:
    return x0.flatten(1)[:, :3]


def context(process: str = "ddpm", sampler: str = "ddpm", **options: Any) -> SamplingContext:
    model, weak = (build_model("mlp", PROCESSES[process], (1, 4, 4), STATS, seed=s).eval() for s in (1, 2))
    model.guide = PrototypeEncoder.like(model, 3).eval()
    model.guide.prototypes[:] = torch.eye(3, 128)
    model.keep_weak(weak)
    made = SamplingContext(model, sampler, 20, GROUPS, (0.1, 0.9), 1.4, classifier)
    return replace(made, **options)


def test_every_row_of_the_table() -> None:
    assert list(GUIDANCE) == list(EVERYTHING)
    for name, entry in GUIDANCE.items():
        assert entry.what
        assert entry.when
        assert is_dataclass(entry.constants)
        made = make_guidance(name, context())
        assert type(made) is EVERYTHING[name]
        if name != "none":
            assert made.interval == (0.1, 0.9)  # type: ignore[attr-defined]
            assert entry.source
    assert guidance_needs("prototype+autoguidance+classifier-free") == {"guide", "weak"}
    assert guidance_needs("entropy") == {"classifier"}
    assert {f.name: f.default for f in fields(GUIDANCE["entropy"].constants)} == {
        "scale": 0.03, "criterion": "entropy", "every": 1,
    }  # fmt: skip


def test_defaults_are_those_of_the_papers_and_of_the_method() -> None:
    made: Any = {name: make_guidance(name, context()) for name in GUIDANCE}
    assert made["classifier-free"].omega == 1.4
    assert made["autoguidance"].omega == 0.7
    assert (made["prototype"].scale, made["prototype"].prior) == (0.6, True)
    assert (made["entropy"].scale, made["entropy"].every, made["entropy"].bound) == (0.03, 1, 1.0)
    assert all((made[name].sampler, made[name].steps) == ("ddpm", 20) for name in ("prototype", "entropy"))


def test_values_by_name() -> None:
    how = context()
    made: Any = make_guidance("classifier-free", how, {"omega": "1.2,few=0.5"})
    assert made.omega == (1.2, 0.5, 0.5)
    made = make_guidance("classifier-free", how, {"omega": "few=0"})
    assert made.omega == (1.4, 0, 0)  # what is not named: the method's
    made = make_guidance("autoguidance", how, {"autoguidance.omega": "b=2"})
    assert made.omega == (0.7, 2, 0.7)
    made = make_guidance("prototype", how, {"scale": 1, "prototype.prior": False})
    assert (made.scale, made.prior) == (1.0, False)
    made = make_guidance("entropy", how, {"entropy.scale": "0.1", "every": 5, "criterion": "loss"})
    assert (made.scale, made.criterion, made.every) == (0.1, "loss", 5)
    made = make_guidance("autoguidance+classifier-free", how, {"autoguidance.omega": 1, "classifier-free.omega": 2})
    assert (made.outer.omega, made.inner.omega) == (1.0, 2.0)
    assert guidance_constants("none", {}) == {"none": GUIDANCE["none"].constants}


def test_several_nest_the_first_outermost() -> None:
    how = context()
    made: Any = make_guidance("prototype+entropy+classifier-free", how)
    assert [type(g) for g in (made.outer, made.inner.outer, made.inner.inner)] == [
        PrototypeGuidance, EntropyGuidance, ClassifierFree,
    ]  # fmt: skip
    assert isinstance(make_guidance("none", how), NoGuidance)
    assert isinstance(make_guidance("classifier-free+none", how), ClassifierFree)
    # and it samples: each part changes the images, and the gradient of the outer ones goes through the inner
    labels, seeds, names = [0, 1, 2, 3], [1, 2, 3, 4], ["entropy", "prototype", "autoguidance", "classifier-free"]
    options: dict[str, Any] = {"sampler": "ddpm", "steps": 20, "batch_size": 4}
    strong = {"entropy.scale": 1.0, "prototype.scale": 10.0, "autoguidance.omega": 1.0}
    found = []
    for n in range(5):
        chosen = "+".join(names[4 - n :]) or "none"
        values = {k: v for k, v in strong.items() if k.partition(".")[0] in chosen}
        found.append(generate(how.model, labels, seeds, guidance=make_guidance(chosen, how, values), **options))
    assert all((a != b).any() for a, b in pairwise(found))


@pytest.mark.parametrize(
    ("names", "values", "message"),
    [
        ("clasifier-free", {}, "did you mean classifier-free"),
        ("entropy+", {}, "leaves a name empty"),
        ("entropy+entropy", {}, "names entropy twice"),
        ("entropy", {"entropy.skale": 1}, "did you mean --sample.guidance.entropy.scale"),
        ("none", {"omega": 1}, "known here: none"),
        ("classifier-free", {"prototype.scale": 1}, "unknown constant --sample.guidance.prototype.scale"),
        (
            "autoguidance+classifier-free",
            {"omega": 1},
            "omega is ambiguous",
        ),
        ("entropy", {"criterion": "l1"}, "expected entropy or loss"),
        ("entropy", {"every": 1.5}, "every=1.5 is not valid"),
        ("entropy", {"scale": True}, "scale=True is not valid"),
        ("entropy", {"scale": "melanoma=1"}, "no class or group"),
    ],
)
def test_what_does_not_fit_is_refused(names: str, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_guidance(names, context(), values)


def test_what_is_missing_is_named_with_a_remedy() -> None:
    how = context()
    with pytest.raises(ConfigError, match="needs a classifier"):
        make_guidance("entropy", replace(how, classifier=None))
    how.model.guide = None
    with pytest.raises(ConfigError, match="--method diffrc"):
        make_guidance("prototype", how)
    assert make_guidance("autoguidance", how).weak is how.model.weak  # type: ignore[attr-defined]
    how.model.keep_weak(context("flow", "euler").model)
    with pytest.raises(ConfigError, match="the weak model's process"):
        make_guidance("autoguidance", how)
    other = build_model("mlp", PROCESSES["ddpm"], (1, 4, 4), replace(STATS, names=("a", "b", "x")), seed=1).eval()
    how.model.keep_weak(other)
    with pytest.raises(ConfigError, match="other classes"):
        make_guidance("autoguidance", how)
    how.model.keep_weak(None)
    with pytest.raises(ConfigError, match="needs an earlier state of the training"):
        make_guidance("autoguidance", how)


@dataclass(frozen=True)
class AddConstants:
    by: float = 1.0


class Add(Guidance):
    def __init__(self, by: float) -> None:
        self.by = by

    def __call__(self, x_t: Tensor, t: Tensor, labels: Tensor, predict: Predict) -> Tensor:
        return predict(x_t, t, labels) + self.by


ADD = GuidanceEntry("adds", "never", "ours", lambda context, constants: Add(constants.by), AddConstants())


def test_an_entry_of_your_own() -> None:
    name = f"module:{__name__}:ADD"
    made: Any = make_guidance(f"{name}+classifier-free", context(), {"by": 3})
    assert isinstance(made, Guided)
    assert made.outer.by == 3.0
    assert make_guidance(name, context(), {f"{name}.by": 2}).by == 2.0  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="must be a GuidanceEntry"):
        make_guidance(f"module:{__name__}:STATS", context())
