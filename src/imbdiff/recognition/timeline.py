"""The parts of a classifier's training: which steps train what, on which rows."""

from __future__ import annotations

from dataclasses import dataclass

from imbdiff.recognition.plan import FitPlan
from imbdiff.recognition.recipes import Recipe
from imbdiff.recognition.use import Use


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
    """The parts of a training; together they take `plan.steps`, whatever the recipe."""
    ends_real = synthetic and use.schedule != "mixed"
    second = round(plan.steps * recipe.second_share) if recipe.second in ("crt", "lws") else 0
    head = round(plan.steps * use.last) if ends_real and use.schedule == "head-last" and not second else 0
    body = plan.steps - second - head
    real_from = body - round(body * use.last) if ends_real and use.schedule == "real-last" else body
    law = "natural" if recipe.second in ("crt", "lws") else recipe.law
    found = [Stage("", body, "all", law, real_from)]
    if second:
        trains = "new head" if recipe.second == "crt" else "scale"
        found.append(Stage(f" {recipe.second}", second, trains, "balanced", 0 if ends_real else second))
    if head:
        found.append(Stage(" head", head, "head", recipe.law, 0))
    return found
