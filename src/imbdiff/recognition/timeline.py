"""The parts of a classifier's training: which steps train what, on which rows."""

from __future__ import annotations

from dataclasses import dataclass

from imbdiff.recognition.plan import FitPlan
from imbdiff.recognition.recipes import Recipe
from imbdiff.recognition.use import Use
from imbdiff.runtime.errors import ConfigError


@dataclass(frozen=True)
class Stage:
    """A part of the steps.

    Attributes:
        name: of random streams and checkpoints; "" for the first.
        steps: how many.
        trains: "all", "head", "new head" (drawn anew) or "scale" (of the head, per class).
        law: over classes.
        real_only: from this step of the stage on, no synthetic rows.
    """

    name: str
    steps: int
    trains: str
    law: str
    real_only: int


def stages_of(plan: FitPlan, recipe: Recipe, use: Use, synthetic: bool) -> list[Stage]:
    """The parts of a training; together they take `plan.steps`, whatever the recipe.

    Where synthetic images are not seen to the end, the last `use.last` of *all* steps see real ones only; under
    head-last they train the head alone, which for recipes with a second phase of the head is that phase.

    Raises:
        ConfigError: recipe and use do not fit each other.
    """
    if synthetic and use.batch_norm == "separate" and recipe.mixing != "none":
        raise ConfigError(
            f"{recipe.label} mixes real and synthetic images, so that they have no batch statistics of their own",
            "use --classify.synthetic_norm shared, or a recipe that does not mix images",
        )
    total = plan.steps
    ends = synthetic and use.schedule != "mixed"
    real_from = total - round(total * use.last) if ends else total
    again = recipe.second in ("crt", "lws")
    body, law = total, "natural" if again else recipe.law
    if again:
        body -= round(total * recipe.second_share)
    if ends and use.schedule == "head-last":
        body = real_from
    found = [Stage("", body, "all", law, min(body, real_from))]
    if body == total:
        return found
    if again:
        trains = "new head" if recipe.second == "crt" else "scale"
        return [*found, Stage(f" {recipe.second}", total - body, trains, "balanced", max(0, real_from - body))]
    return [*found, Stage(" head", total - body, "head", recipe.law, 0)]
