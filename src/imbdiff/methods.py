"""The table of training methods: a published recipe is a row, and nothing else in the package knows its name.

To add one: write its objective in ``objectives/`` and a row here (docs/adding-a-method.md shows it step by step).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import nn

from imbdiff.config import RunConfig
from imbdiff.diffusion.encoder import PrototypeEncoder
from imbdiff.diffusion.low_rank import LowRank, merged
from imbdiff.diffusion.model import forget_labels
from imbdiff.objectives.alignment import Alignment
from imbdiff.objectives.capacity import CapacityManipulation
from imbdiff.objectives.class_balancing import ClassBalancing
from imbdiff.objectives.denoising import Denoising
from imbdiff.objectives.dispersive import Dispersive
from imbdiff.objectives.objective import Objective
from imbdiff.objectives.overlap import ClassOverlap
from imbdiff.objectives.pair_diversity import PairDiversity
from imbdiff.objectives.prototype_contrast import PrototypeContrast, with_prototypes
from imbdiff.objectives.reweighting import EffectiveNumber, Focal, MinSNR
from imbdiff.objectives.supervised_contrast import SupervisedContrast
from imbdiff.objectives.transfer import Transfer
from imbdiff.objectives.unconditional_contrast import UnconditionalContrast
from imbdiff.recipe import Method, Phase, combine, constants, with_constants
from imbdiff.runtime.tables import lookup
from imbdiff.training.parts import Part


def _target(objectives: Callable[[], list[Objective]], part: Part | None = None, **options: Any) -> tuple[Phase, ...]:
    """The one training of a method that has no other."""
    return (Phase("target", objectives, (part or Part(),), **options),)


def _denoising() -> list[Objective]:
    return [Denoising()]


def _diffrc(label_dropout: float | None, weight: float) -> tuple[Phase, ...]:
    """DiffRC's three trainings; `label_dropout` is the target's, 1 trains it without labels; `weight` the pair-wise
    loss's lambda.

    A model that nothing trained with labels forgets its random class vectors. A target with labels keeps them to start
    from: from zero vectors a short training hardly learns them (methods' ledger).
    """
    finish = _without_labels if label_dropout == 1 else None
    return (
        Phase("source", _denoising, (Part(of="head"),), share=0.4, label_dropout=1.0, finish=finish),
        Phase(
            "target", lambda: [Denoising(), PairDiversity(gamma=0.1, weight=weight)],
            (Part(), Part("grouped", groups=8, group_size=8, of="non-head")), start="source", frozen=("source",),
            share=0.45, label_dropout=label_dropout, finish=finish,
        ),
        Phase(
            "encoder", lambda: [PrototypeContrast(tau=0.07, momentum=0.999)], share=0.15, gives="guide",
            make=PrototypeEncoder.like, finish=with_prototypes,
        ),
    )  # fmt: skip


def _without_labels(model: Any, _: Any) -> nn.Module:
    return forget_labels(model)


# fmt: off
METHODS: dict[str, Method] = {
    "ddpm": Method(
        idea="denoising alone, classes as often as they occur",
        source="Ho et al. 2020; label dropout and guidance 0.8 as the baseline of CBDM's code",
        phases=_target(_denoising, Part(distribution="natural")),
        omega=0.8, cost=1, time=1.00,
        when="the baseline",
    ),
    "ddpm-brs": Method(
        idea="batch resampling: classes by size from 1 to 0.1 in place of 1 to 1 / imbalance factor",
        source="CCUA's code (brs_factor 0.1), arXiv 2507.09052v2",
        phases=_target(_denoising, Part(distribution="tempered", factor=0.1)),
        omega=0.8, cost=1, time=1.00,
        when="the default: as cheap as DDPM, and rare classes are seen often enough to be learnt in a short run",
    ),
    "ddpm-sqrt": Method(
        idea="classes as often as the square root of their size",
        source="Mahajan et al. 2018",
        phases=_target(_denoising, Part(distribution="sqrt")),
        omega=0.8, cost=1, time=0.99,
        when="between natural and balanced",
    ),
    "ddpm-balanced": Method(
        idea="all classes equally often",
        source="class-balanced resampling; 'RS' in CBDM's tables",
        phases=_target(_denoising, Part(distribution="balanced")),
        omega=0.8, cost=1, time=0.99,
        when="mild imbalance; with a few images per class it memorises them",
    ),
    "ddpm-augmented": Method(
        idea="rows half as they occur, half of all classes alike; images rotated, scaled, stretched and moved at "
        "random, which the network takes as a condition",
        source="Karras et al. 2020 and 2022 (arXiv 2006.06676, 2206.00364: non-leaking augmentation); changes that the "
        "set allows, probability 0.5, no guidance: ours (benchmarks/benefit.py)",
        phases=_target(_denoising, Part(distribution="half-balanced")),
        omega=0.0, cost=1, time=None,
        when="images for a classifier: longer trainings on few images, which others memorise",
        ada=0.5,
    ),
    "cbdm": Method(
        idea="pull predictions for the true and a random label together at noisy times",
        source="Qin et al., CVPR 2023, arXiv 2305.00562; its code: tau 1, gamma 1/4, prior labels, guidance 1.6",
        phases=_target(lambda: [Denoising(), ClassBalancing(tau=1.0, gamma=0.25, distribution="prior")]),
        omega=1.6, cost=2, time=1.77,
        when="longer training: at short budgets it has been seen to lose to DDPM",
    ),
    "cbdm-finetune": Method(
        idea="CBDM from a trained DDPM, with comparison labels uniform over classes",
        source="CBDM's code (--finetune): from 200k DDPM steps, to 250k; guidance 2.0",
        phases=_target(lambda: [Denoising(), ClassBalancing(tau=1.0, gamma=0.25, distribution="uniform")]),
        omega=2.0, cost=2, time=1.79,
        when="a DDPM is already trained: give it as --model.init",
        init="required",
    ),
    "cbdm-ada": Method(
        idea="CBDM on images turned, scaled, stretched and moved at random, which the network takes as a condition",
        source="CBDM's code (--augm): each change with probability 0.12, 500k steps of 48; guidance 1.4",
        phases=_target(lambda: [Denoising(), ClassBalancing(tau=1.0, gamma=0.25, distribution="prior")]),
        omega=1.4, cost=2, time=1.77,
        when="few images and a long training, where CBDM would memorise them",
        ada=0.12,
        ada_range="all",
    ),
    "pd-cbdm": Method(
        idea="CBDM with comparison labels in favour of rare classes, and predictions of different classes driven apart",
        source="PD-CBDM, Mathematics 14(10) 1576, 2026: abstract alone seen; labels by 1 / images, DiffROP: ours",
        phases=_target(lambda: [Denoising(), ClassBalancing(distribution="inverse"), ClassOverlap()]),
        omega=1.6, cost=3, time=None,
        when="cbdm, where frequent classes are to learn from rare ones too, and classes get blurred",
    ),
    "ccua": Method(
        idea="push unconditional features apart, pull conditional and unconditional predictions together; resampled",
        source="Chen et al., arXiv 2507.09052v2; its U-Net code: both weights 1, tau 0.1, brs_factor 0.1, guidance 1.5",
        phases=_target(
            lambda: [Denoising(), UnconditionalContrast(tau=0.1, weight=1.0), Alignment(weight=1.0)],
            Part(distribution="tempered", factor=0.1),
        ),
        omega=1.5, cost=2, time=1.79,
        when="rare classes come out all alike, and their images are to share what frequent ones have",
    ),
    "ccua-v1": Method(
        idea="the first version: InfoNCE on unconditional features at all times, and the alignment; not resampled",
        source="Chen et al., arXiv 2507.09052v1, weights not stated there: those of the later code",
        phases=_target(
            lambda: [Denoising(), UnconditionalContrast(tau=0.1, time="none", weight=1.0), Alignment(weight=1.0)],
        ),
        omega=1.5, cost=2, time=1.79,
        when="to compare with it: what the two losses do without resampling",
    ),
    "ccua-sit": Method(
        idea="CCUA as its transformer's code has it: weak losses that count clean rows most; resampled",
        source="CCUA-SiT's code, arXiv 2507.09052v2: both weights 0.05, tau 0.1, features of block L/4, brs_factor 0.1",
        phases=_target(
            lambda: [
                Denoising(),
                UnconditionalContrast(tau=0.1, time="clean", weight=0.05),
                Alignment(time="clean", weight=0.05),
            ],
            Part(distribution="tempered", factor=0.1),
        ),
        omega=6.5, cost=2, time=None,  # its cfg_scale 7.5 is 1 + omega
        when="to repeat it: with --model.backbone sit-s --model.process flow; its text says noisy rows (ccua)",
    ),
    "dispersive": Method(
        idea="spread the features of a batch, whatever their classes; no further pass",
        source="Wang and He 2025, arXiv 2506.09027: lambda 0.5, tau 0.5; guidance as in CCUA's code",
        phases=_target(lambda: [Denoising(), Dispersive(tau=0.5, weight=0.5)]),
        omega=1.5, cost=1, time=1.02,
        when="as CCUA's contrast, at the cost of DDPM; it knows nothing of classes",
    ),
    "t2h": Method(
        idea="denoise towards a similar image of the batch, of a class at least as frequent",
        source="Zhang et al., ICLR 2024 (Oriented Calibration); its code: --transfer_mode t2h, batch 128, guidance 1.5",
        phases=_target(lambda: [Transfer(direction="t2h")]),
        omega=1.5, cost=1, time=1.00,
        when="large batches and classes that look alike; costs no pass. Worse than DDPM in a rerun at a short budget",
    ),
    "t2h-balanced": Method(
        idea="T2H with all classes equally often in the batch, so that rare images are candidates too",
        source="Zhang et al., ICLR 2024: its second component, batch resampling",
        phases=_target(lambda: [Transfer(direction="t2h")], Part(distribution="balanced")),
        omega=1.5, cost=1, time=1.01,
        when="as t2h, where rare classes hardly come up in a batch",
    ),
    "h2t": Method(
        idea="denoise towards a similar image of the batch, of a class at most as frequent",
        source="Zhang et al., ICLR 2024; its code: --transfer_mode h2t, proposed for sampling without conditions",
        phases=_target(lambda: [Transfer(direction="h2t")]),
        omega=1.5, cost=1, time=1.01,
        when="unconditional sampling from long-tailed data",
    ),
    "transfer": Method(
        idea="denoise towards any similar image of the batch: a lower-variance score, no direction",
        source="Zhang et al., ICLR 2024; its code's default --transfer_mode full",
        phases=_target(lambda: [Transfer(direction="full")]),
        omega=1.5, cost=1, time=1.00,
        when="as the control of t2h and h2t",
    ),
    "coral": Method(
        idea="supervised contrast of the middle block's features, through a projection that sampling does not see",
        source="Rodriguez et al., NeurIPS 2025, arXiv 2506.15933; its code: tau 0.1, tau_r 0.3, weight 0.5 x 0.1",
        phases=_target(lambda: [Denoising(), SupervisedContrast()]),
        omega=0.8, cost=1, time=1.01,  # stated nowhere: the guidance of the baseline; its code defaults to 0
        when="rare classes come out looking like frequent ones, and batches hold several images of a rare class",
    ),
    "diffrop": Method(
        idea="predictions at one noisy image under its own and another row's label are driven apart",
        source="Yan et al. 2024, arXiv 2402.10821 (no code); form and weight 0.1 from CCUA's code, at one x_t",
        phases=_target(lambda: [Denoising(), ClassOverlap(exact=True)]),
        omega=0.8, cost=2, time=1.78,  # stated nowhere: the guidance of the baseline
        when="rare classes come out looking like frequent ones",
    ),
    "diffrop-released": Method(
        idea="predictions of rows of different classes, each at its own noisy image, are driven apart",
        source="CCUA's transformer code (--diffrop 0.1), arXiv 2507.09052: clean rows count most, native units",
        phases=_target(lambda: [Denoising(), ClassOverlap(exact=False, time="clean")]),
        omega=0.8, cost=1, time=1.00,
        when="to repeat numbers of that code; the class plays hardly any part in it",
    ),
    "cm": Method(
        idea="low-rank capacity on top of the weights: frequent classes do without it, rare ones differ by it; merged",
        source="Hong et al., ICLR 2026: lambda 1, rank ratio 0.1; reported of its code: scale 0.5, weights 1 and 0.2",
        phases=_target(lambda: [Denoising(), CapacityManipulation()], make=LowRank(), finish=merged),
        omega=1.5, cost=2, time=2.26,
        when="rare classes are to keep a share of the network; in a rerun at a short budget it beat DDPM, CBDM and T2H",
    ),
    "cm-oc": Method(
        idea="CM, and the denoising target may lead to a similar image of a class at least as frequent (t2h)",
        source="as CM's code is reported to be released (transfer_x0=true): Hong et al., ICLR 2026, no code seen",
        phases=_target(lambda: [Transfer(direction="t2h"), CapacityManipulation()], make=LowRank(), finish=merged),
        omega=1.5, cost=2, time=2.27,
        when="to repeat what is released under that name; in the rerun behind plain cm",
    ),
    "ddpm-effective-number": Method(
        idea="weigh an image's loss by the inverse effective number of images of its class",
        source="Cui et al., CVPR 2019: beta 0.9999; label dropout and guidance as ddpm",
        phases=_target(lambda: [EffectiveNumber(beta=0.9999)]),
        omega=0.8, cost=1, time=0.99,
        when="as a baseline: re-weighting against resampling. Rare images come seldom and then weigh much: noisier",
    ),
    "ddpm-min-snr": Method(
        idea="weigh an image's loss by its signal-to-noise ratio, at most 5: no time counts more than that",
        source="Hang et al., ICCV 2023, arXiv 2303.09556: gamma 5; label dropout and guidance as ddpm",
        phases=_target(lambda: [MinSNR(gamma=5.0)]),
        omega=0.8, cost=1, time=None,
        when="as a base loss of eps networks, whose clean times otherwise count most; goes with any method by +",
    ),
    "ddpm-focal": Method(
        idea="weigh an image's loss by how hard it is among images as noisy",
        source="Focal-R of Yang et al., ICML 2021: beta 0.2, gamma 1; label dropout and guidance as ddpm",
        phases=_target(lambda: [Focal(beta=0.2, gamma=1.0)]),
        omega=0.8, cost=1, time=1.00,
        when="as a baseline that does not look at class sizes",
    ),
    "diffrc-paper": Method(
        idea="without labels: head classes first, then all, keeping their variety; classes by guidance alone",
        source="Fu, He, Hu 2023: gamma 0.1, lambda 0.5, m 0.999, tau 0.07, s 0.6, 250 steps; shares, groups: ours",
        phases=_diffrc(label_dropout=1.0, weight=0.5),
        omega=0.0, cost=1.9, time=1.40,
        when="to repeat the paper. In short trainings its guidance leaves most images in other classes than asked for",
        sampler="ddpm",
        steps=250,
        guidance="prototype+classifier-free",
        guidance_constants={"prototype.scale": 0.6},
    ),
    "diffrc": Method(
        idea="the model for all classes starts from one of the head classes and keeps its variety; labels and guidance",
        source="Fu, He, Hu 2023; class-conditional target, lambda 0.05, and the guidance of ddpm next to its own: ours",
        # a tenth of the paper's lambda: with all of it the term has 30 % of the gradient, and distances on validation
        # images are three times as large (docs/methods.md)
        phases=_diffrc(label_dropout=None, weight=0.05),
        omega=0.8, cost=1.9, time=1.40,  # there is none in the paper: that of the baseline
        when="rare classes share what the frequent ones have, and come out all alike",
        sampler="ddpm",
        steps=250,
        guidance="prototype+classifier-free",
        # the paper guides medium and tail classes; without labels frequent ones need it too
        guidance_constants={"prototype.scale": "0.6,many=0"},
    ),
}
# fmt: on


def get_method(name: str) -> Method:
    """The method of that name, or of several names joined by "+": see `imbdiff.recipe.combine`.

    Args:
        name: of a row here, ``module:PACKAGE.MODULE:NAME``, or the name of an entry point of the group
            ``imbdiff.methods``.

    Raises:
        ConfigError: there is none, or those named exclude each other.
    """
    names = name.split("+")
    found = [(one, lookup("methods", METHODS, one, kind=Method)) for one in names]
    return found[0][1] if len(names) == 1 else combine(found)


def method_of(config: RunConfig) -> Method:
    """The method of a configuration, with its constants.

    Raises:
        ConfigError: as of `get_method`; an unknown constant, or a value that it cannot have.
    """
    return with_constants(get_method(config.method), config.constants)


def with_all_constants(config: RunConfig) -> RunConfig:
    """`config` with every constant of its method by full name, those that were not given with the published value: what
    a run keeps, and what it is compared by."""
    return replace(config, constants={name: c.default for name, c in constants(method_of(config)).items()})
