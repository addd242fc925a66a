"""The recipes: published ways of training a classifier on a long tail, as rows of a table.

A recipe holds nothing about synthetic images (:mod:`imbdiff.recognition.use`), nor of network, steps, learning rate and
augmentation, which are the same for all that are compared (:class:`imbdiff.recognition.plan.FitPlan`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from imbdiff.runtime.errors import ConfigError
from imbdiff.runtime.tables import lookup

Loss = Literal["cross-entropy", "balanced-softmax", "focal", "ldam"]
Mixing = Literal["none", "mixup", "cutmix", "remix"]
Second = Literal["none", "crt", "lws", "tau-norm"]


_KINDS = {"loss": Loss, "mixing": Mixing, "second": Second}


@dataclass(frozen=True)
class Recipe:
    """One way of training.

    Attributes:
        label: as printed.
        idea: in a few words.
        source: where it was published.
        loss: per row, see :mod:`imbdiff.recognition.losses`.
        tau: strength of the prior in balanced softmax, and of `adjust`.
        gamma: of the focal loss.
        sampler: distribution over classes that batches are sampled by.
        weighted, beta: classes weigh by the inverse effective number of their images in the loss.
        deferred: share of the steps before `sampler` and `weighted` begin; until then natural and no weights. 0.8 is
            LDAM-DRW's 160 of 200 epochs.
        head: "linear", or "cosine", which LDAM needs.
        mixing: of images and labels inside a batch.
        second: what is done to the head after the body is trained, with class-balanced batches.
        second_share: share of the steps that this takes.
        adjust: tau log(prior) is subtracted from the logits when deciding, not in training.

    Raises:
        ConfigError: an unknown loss, mixing or second part, or LDAM without cosines.
    """

    label: str
    idea: str
    source: str
    loss: Loss = "cross-entropy"
    tau: float = 1.0
    gamma: float = 1.0
    sampler: str = "natural"
    weighted: bool = False
    beta: float = 0.9999
    deferred: float = 0.0
    head: Literal["linear", "cosine"] = "linear"
    mixing: Mixing = "none"
    second: Second = "none"
    second_share: float = 0.1
    adjust: bool = False

    def __post_init__(self) -> None:
        for name, kinds in _KINDS.items():
            if getattr(self, name) not in get_args(kinds):
                raise ConfigError(
                    f"the recipe {self.label!r} has {name}={getattr(self, name)!r}",
                    f"use one of: {', '.join(get_args(kinds))}",
                )

        if self.loss == "ldam" and self.head != "cosine":
            raise ConfigError(f"the recipe {self.label!r} has the loss of LDAM and no cosines", 'use head="cosine"')

    @property
    def needs_prior(self) -> bool:
        """Whether the counts of the classes enter, in training or when deciding."""
        counted = self.loss in ("balanced-softmax", "ldam") or self.weighted or self.adjust
        return counted or self.mixing == "remix"


CUI = "Cui et al. 2019 (arXiv 1901.05555)"
CAO = "Cao et al. 2019 (arXiv 1906.07413)"
KANG = "Kang et al. 2020 (arXiv 1910.09217)"

RECIPES: dict[str, Recipe] = {
    "ce": Recipe("CE", "cross-entropy on the images as they are", "the reference of every comparison"),
    "resampling": Recipe(
        "CE + class-balanced resampling", "classes sampled equally often", f"as in {KANG}", sampler="balanced"
    ),
    "sqrt-resampling": Recipe(
        "CE + square-root resampling", "classes sampled in proportion to sqrt(n)", f"as in {KANG}", sampler="sqrt"
    ),
    "reweighting": Recipe(
        "class-balanced CE", "classes weighted by the inverse effective number", CUI, weighted=True
    ),
    "drw": Recipe("CE-DRW", "class weights after 80 % of the steps", CAO, weighted=True, deferred=0.8),
    "drs": Recipe("CE-DRS", "class-balanced batches after 80 % of the steps", CAO, sampler="balanced", deferred=0.8),
    "focal": Recipe("focal", "hard images weigh more", "Lin et al. 2017 (arXiv 1708.02002)", loss="focal"),
    "cb-focal": Recipe("class-balanced focal", "focal with class weights", CUI, loss="focal", weighted=True),
    "ldam": Recipe("LDAM", "larger margins for rarer classes", CAO, loss="ldam", head="cosine"),
    "ldam-drw": Recipe(
        "LDAM-DRW", "LDAM, and class weights after 80 % of the steps", CAO,
        loss="ldam", head="cosine", weighted=True, deferred=0.8,
    ),
    "balanced-softmax": Recipe(
        "balanced softmax", "the prior in the softmax of training; logit adjustment in training at tau = 1",
        "Ren et al. 2020 (arXiv 2007.10740); Menon et al. 2021 (arXiv 2007.07314)", loss="balanced-softmax",
    ),
    "logit-adjustment": Recipe(
        "logit adjustment, post hoc", "cross-entropy, and log prior taken off the logits when deciding",
        "Menon et al. 2021 (arXiv 2007.07314)", adjust=True,
    ),
    "crt": Recipe("cRT", "the head trained again on class-balanced batches, the body fixed", KANG, second="crt"),
    "lws": Recipe("LWS", "a scale per class of the head learned on class-balanced batches", KANG, second="lws"),
    "tau-norm": Recipe("tau-norm", "class weights of the head divided by their norm to the power tau", KANG,
                       second="tau-norm", second_share=0.0),
    "mixup": Recipe("mixup", "images and labels mixed in pairs", "Zhang et al. 2018 (arXiv 1710.09412)",
                    mixing="mixup"),
    "cutmix": Recipe("CutMix", "a box of one image put into another", "Yun et al. 2019 (arXiv 1905.04899)",
                     mixing="cutmix"),
    "remix": Recipe("Remix", "mixup whose label is the rarer class where counts differ by 3 times",
                    "Chou et al. 2020 (arXiv 2007.03943)", mixing="remix"),
    "remix-drw": Recipe("Remix-DRW", "Remix, and class weights after 80 % of the steps",
                        "Chou et al. 2020 (arXiv 2007.03943)", mixing="remix", weighted=True, deferred=0.8),
}  # fmt: skip


def get_recipe(name: str) -> Recipe:
    """The recipe of that name.

    Args:
        name: in the table, ``module:PACKAGE.MODULE:NAME`` of a `Recipe`, or an entry point of the group
            ``imbdiff.recipes``.

    Raises:
        ConfigError: there is none.
    """
    return lookup("recipes", RECIPES, name, kind=Recipe)
