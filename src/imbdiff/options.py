"""Options of what follows training: drawing, choosing, measuring and classifying. Parts of a run's configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from imbdiff.runtime.errors import ConfigError


def check(condition: bool, message: str) -> None:
    """Raises ConfigError where an option makes no sense."""
    if not condition:
        raise ConfigError(message, "correct this option")


@dataclass(frozen=True)
class SampleConfig:
    """Drawing synthetic images."""

    strategy: str = "auto"
    """How many, as in imbalanced-learn: auto (fill every class to the largest), minority, not minority, not majority,
    all, a number in (0, 1] (fill to that share of the largest), effective=BETA (more for classes of fewer images, by
    their effective number), or NAME=TOTAL,NAME=TOTAL (target totals)."""
    sampler: str | None = None
    """Solver. Default: the method's where it has one, otherwise dpm++."""
    steps: int | None = None
    """Solver steps. Default: the method's where it has some and draws with its own solver, otherwise 20."""
    guidance: str | None = None
    """What guides: none, classifier-free, autoguidance, entropy, prototype, or several joined by +. Their constants are
    options too, such as --sample.guidance.entropy.scale 0.1: `imbdiff methods NAME`. Default: the method's."""
    constants: Mapping[str, Any] = field(default_factory=dict)
    """Of the guidance, where they are not as published, by name."""
    omega: float | str | None = None
    """Strength of guidance, 0 = none; by class or class group: few=0.5,many=1.6 or 1.6,few=0. Default: the method's."""
    interval: tuple[float, float] = (0.0, 1.0)
    """Noise levels within which to guide."""
    boost: float = 1.0
    """Standard deviation of the initial noise: above 1 for rarer images of a class (Boost-and-Skip), with skip."""
    skip: float = 0.0
    """Share of the noisiest times that are left out (Boost-and-Skip)."""
    batch_size: int | None = None
    """Images per network call. Default: 64 on a CPU, 512 on a GPU; halved where memory does not suffice."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the network's calls; the solver stays in float32."""

    def __post_init__(self) -> None:
        check(self.steps is None or self.steps >= 1, f"sample.steps={self.steps} must be at least 1")
        check(
            self.batch_size is None or self.batch_size >= 1,
            f"sample.batch_size={self.batch_size} must be at least 1",
        )
        check(0 < self.boost < float("inf"), f"sample.boost={self.boost} must be above 0")
        check(0 <= self.skip < 1, f"sample.skip={self.skip} must be in [0, 1)")
        low, high = self.interval
        check(0 <= low <= high <= 1, f"sample.interval={self.interval} must be 0 <= low <= high <= 1")


@dataclass(frozen=True)
class CurateConfig:
    """Choosing among synthetic images."""

    policy: str = "none"
    """Which are kept: none (all), agreement, confident (confident=0.8: least probability), in-distribution,
    approximate, not-out, no-copies, diverse, or several joined by +, such as agreement+no-copies."""
    draw: float = 1.0
    """Candidates to generate per image wanted."""

    def __post_init__(self) -> None:
        check(1 <= self.draw <= 10, f"curate.draw={self.draw} must be in 1..10")


@dataclass(frozen=True)
class FitConfig:
    """Training one classifier: the same for all that are compared, and for the one that chooses among images."""

    network: str = "resnet-small"
    """Classifier network: resnet-small, resnet20, resnet32, resnet56, resnet32x4, timm:NAME, or
    module:PACKAGE.MODULE:FUNCTION."""
    steps: int = 500
    """Optimizer steps of every classifier, in every arm."""
    batch_size: int = 128
    """Images per step."""
    lr: float = 0.1
    """Learning rate of SGD."""
    weight_decay: float = 5e-4
    """Of SGD."""
    warmup: float = 0.1
    """Share of the steps over which the learning rate rises."""
    protocol: Literal["imbdiff", "cifar-lt"] = "imbdiff"
    """imbdiff: the rate then falls along a half cosine, with Nesterov momentum. cifar-lt, as the literature of CIFAR-LT
    has it: times 0.01 at 80 % and 0.0001 at 90 % of the steps, plain momentum, black borders where images are shifted,
    pixels standardised by CIFAR's mean and deviation, float32."""
    shift: int = 1
    """Move training images by up to this many pixels at random."""
    policy: Literal["none", "autoaugment-cifar"] = "none"
    """Further augmentation."""
    erase: int = 0
    """Side in pixels of a grey square put over training images at random (cutout)."""

    def __post_init__(self) -> None:
        check(self.steps >= 1, f"classify.steps={self.steps} must be at least 1")
        check(self.batch_size >= 2, f"classify.batch_size={self.batch_size} must be at least 2")
        check(self.lr > 0, f"classify.lr={self.lr} must be above 0")
        check(self.weight_decay >= 0, f"classify.weight_decay={self.weight_decay} must be at least 0")
        check(0 <= self.warmup <= 1, f"classify.warmup={self.warmup} must be in [0, 1]")
        known = ("imbdiff", "cifar-lt")
        check(self.protocol in known, f"classify.protocol={self.protocol!r} must be one of {', '.join(known)}")
        check(self.shift >= 0, f"classify.shift={self.shift} must be at least 0")
        check(self.erase >= 0, f"classify.erase={self.erase} must be at least 0")


@dataclass(frozen=True)
class ClassifyConfig(FitConfig):
    """Training the classifiers of the comparison."""

    recipes: tuple[str, ...] = ("ce", "resampling", "balanced-softmax")
    """Recipes without synthetic images: what these have to beat. Those of the default, and those of `synthetic`, are
    always in. `imbdiff methods` lists all."""
    synthetic: tuple[str, ...] = ("ce", "balanced-softmax")
    """Recipes with synthetic images."""
    primary: str = "balanced-softmax"
    """The one of them whose comparison is the verdict: say so before you see a result."""
    seeds: int = 3
    """Classifiers per arm."""
    synthetic_weight: float = 1.0
    """Weight of a synthetic image in the loss."""
    synthetic_share: float | None = None
    """Share of every batch that is synthetic. Default: their share of all images."""
    synthetic_schedule: Literal["mixed", "real-last"] = "mixed"
    """When synthetic images are seen: always, or not in the last fifth of the steps."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.seeds >= 1, f"classify.seeds={self.seeds} must be at least 1")
        check(0 < self.synthetic_weight <= 1, "classify.synthetic_weight must be in (0, 1]")
        share = self.synthetic_share
        check(share is None or 0 < share < 1, f"classify.synthetic_share={share} must be in (0, 1)")
        check(len(self.recipes) > 0, "classify.recipes must name at least one recipe")
        check(
            self.primary in self.synthetic,
            f"classify.primary={self.primary!r} is none of classify.synthetic={list(self.synthetic)}",
        )


@dataclass(frozen=True)
class StudyOptions:
    """The grid of a study: every number with every curation, recipe, weight and schedule."""

    numbers: tuple[str, ...] = ("0.25", "0.5", "1.0")
    """How many images, each a word of --sample.strategy: 0.5, auto, effective=0.9, NAME=TOTAL,NAME=TOTAL."""
    curation: tuple[str, ...] = ("none", "agreement")
    """Which of them are kept, each a --curate.policy."""
    recipes: tuple[str, ...] = ("ce", "balanced-softmax")
    """Recipes with synthetic images; `imbdiff methods` lists them."""
    weights: tuple[float, ...] = (1.0,)
    """Weights of a synthetic image in the loss, in (0, 1]."""
    schedules: tuple[Literal["mixed", "real-last"], ...] = ("mixed",)
    """When synthetic images are seen, each a --classify.synthetic_schedule."""
    seeds: int | None = None
    """Classifiers per arm. Default: the run's --classify.seeds."""
    draw: float = 1.5
    """Candidates per image wanted, where they are curated."""

    def __post_init__(self) -> None:
        for weight in self.weights:
            check(0 < weight <= 1, f"--weights {weight:g} is not in (0, 1]")
        for schedule in self.schedules:
            check(schedule in ("mixed", "real-last"), f"--schedules {schedule!r} must be mixed or real-last")
        check(self.seeds is None or self.seeds >= 1, f"--seeds {self.seeds} must be at least 1")
        check(1 <= self.draw <= 10, f"--draw {self.draw:g} is not in 1..10")


@dataclass(frozen=True)
class EvaluateConfig:
    """Measuring the synthetic images."""

    extractors: tuple[str, ...] = ()
    """More judges beside the trained one and the random network, such as inception, timm:NAME, hf:NAME."""
    inception_weights: str | None = None
    """File with the weights of FID's Inception network; with it, FID is computed."""
    measures: tuple[str, ...] = ()
    """Measures of your own beside the built-in ones, as module:PACKAGE.MODULE:NAME or the name of an entry point."""
    cas: bool = True
    """Train classifiers on the synthetic images alone and test them on real ones."""
    balanced: bool | None = None
    """Also measure against the balanced set that the tail was cut from, the literature's reference. Default: for
    benchmarks."""
    batch_size: int = 256
    """Images per network call."""

    def __post_init__(self) -> None:
        check(self.batch_size >= 1, f"evaluate.batch_size={self.batch_size} must be at least 1")


@dataclass(frozen=True)
class WatchConfig:
    """Measuring while the diffusion model trains, on validation images, and keeping the best weights."""

    every: int = 0
    """Images between two measurements; 0: none."""
    samples: int = 512
    """Images to draw each time, the same labels and seeds."""
    metric: Literal["KD", "FD∞", "agreement"] = "KD"
    """What decides, by a classifier that saw the training split only, against validation images."""

    def __post_init__(self) -> None:
        check(self.every >= 0, f"watch.every={self.every} must be at least 0")
        check(self.samples >= 20, f"watch.samples={self.samples} must be at least 20")
