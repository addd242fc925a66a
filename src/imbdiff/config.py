"""Configuration: frozen dataclasses, and the rules that refuse what contradicts itself.

A run's configuration is a `RunConfig`. It comes from a preset, a YAML file and overrides by name, in this order, and is
saved in full as ``config.yaml`` in the run folder. Importing this module costs no more than the standard library.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

from imbdiff.options import ClassifyConfig as ClassifyConfig
from imbdiff.options import CurateConfig as CurateConfig
from imbdiff.options import EvaluateConfig as EvaluateConfig
from imbdiff.options import FitConfig as FitConfig
from imbdiff.options import SampleConfig as SampleConfig
from imbdiff.options import StudyOptions as StudyOptions
from imbdiff.options import WatchConfig as WatchConfig
from imbdiff.options import check as _check
from imbdiff.runtime.errors import ConfigError

T = TypeVar("T")


def _override(config: T, values: Mapping[str, Any], where: str = "") -> T:
    """`config` with some fields replaced: {"seed": 1, "train": {"lr": 1e-3}} or {"train.lr": 1e-3}.

    Raises:
        ConfigError: an unknown name (with the nearest known one) or a value of the wrong type.
    """
    known = {f.name: f for f in dataclasses.fields(config)}  # type: ignore[arg-type]
    hints = get_type_hints(type(config))
    nested: dict[str, dict[str, Any]] = {}
    direct: dict[str, Any] = {}
    for key, value in values.items():
        head, _, rest = str(key).partition(".")
        if head not in known:
            import difflib

            near = difflib.get_close_matches(head, known, n=1)
            hint = f"did you mean {where}{near[0]}?" if near else f"known here: {', '.join(known)}"
            raise ConfigError(f"unknown option {where}{key}", hint)
        if get_origin(hints[head]) is Mapping:  # names that only a later check knows
            if not rest and not isinstance(value, Mapping):
                raise ConfigError(f"{where}{head} is a group of options, not {value!r}")
            new, old = ({rest: value} if rest else value), direct.get(head, getattr(config, head))
            direct[head] = {**{k: v for k, v in old.items() if k not in new}, **new}  # what is new comes last
        elif rest:
            nested.setdefault(head, {})[rest] = value
        elif dataclasses.is_dataclass(hints[head]):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{where}{head} is a group of options, not {value!r}")
            nested.setdefault(head, {}).update(value)
        else:
            direct[head] = convert(value, hints[head], where + head)
    for head, inner in nested.items():
        direct[head] = _override(getattr(config, head), inner, f"{where}{head}.")
    return dataclasses.replace(config, **direct)  # type: ignore[type-var]


def convert(value: Any, hint: Any, name: str) -> Any:
    """`value` as the type that `hint` says: int, float, bool, str, None, Literal, tuples of them, and unions.

    Text is read as a number where one is wanted. A whole number is taken for a float, and 2.0 for an int.

    Raises:
        ConfigError: it is of another type; `name` is the option's.
    """
    options = get_args(hint) if get_origin(hint) is not None and type(None) in get_args(hint) else (hint,)
    for option in options:
        if option is type(None):
            if value is None:
                return None
        elif get_origin(option) is Literal:
            if value in get_args(option):
                return value
        elif get_origin(option) is tuple:
            inner = get_args(option)
            if inner[-1] is Ellipsis and isinstance(value, list | tuple):
                return tuple(convert(v, inner[0], name) for v in value)
            if isinstance(value, list | tuple) and len(value) == len(inner):
                return tuple(convert(v, h, name) for v, h in zip(value, inner, strict=True))
        elif option is float:
            if isinstance(value, int | float) and not isinstance(value, bool):
                return float(value)
            if isinstance(value, str):  # YAML reads 1e-4 as text
                try:
                    return float(value)
                except ValueError:
                    pass
        elif option is bool:
            if isinstance(value, bool):
                return value
            if isinstance(value, str) and value.lower() in ("true", "false"):
                return value.lower() == "true"
        elif option is int:
            if isinstance(value, int) and not isinstance(value, bool):
                return value
            if isinstance(value, str) and value.lstrip("+-").isdigit():
                return int(value)
            if isinstance(value, float) and value.is_integer():
                return int(value)
        elif isinstance(value, option):
            return value
    choices = [str(c) for o in options if get_origin(o) is Literal for c in get_args(o)]
    expected = " or ".join(choices) if choices else str(getattr(hint, "__name__", hint))
    raise ConfigError(f"{name}={value!r} is not valid", f"expected {expected}")


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"train": {"lr": 1}} -> {"train.lr": 1}."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


#: options of training that change how it is watched or where it fits, not what it aims at; they may differ on resume
NOT_DECISIVE = ("checkpoint_images", "preview_images", "log_images", "compile")


@dataclass(frozen=True)
class DataConfig:
    """Which images, at which size, split how."""

    size: int | None = None
    """Side in pixels to bring all images to. Default: as they are, up to 64."""
    resize: Literal["crop", "pad", "stretch"] = "crop"
    """How: scale the short side and crop, scale the long side and pad, or stretch."""
    imbalance_factor: float | None = None
    """Make a balanced set long-tailed: largest / smallest class count. 100 and 0.01 mean the same. Default: the
    benchmark's, otherwise as it is."""
    profile: Literal["exponential", "pareto", "step"] | None = None
    """Shape of the tail that imbalance_factor makes. Default: the benchmark's, otherwise exponential."""
    protocol: Literal["imbdiff", "cifar-lt"] | None = None
    """cifar-lt draws exactly the image lists of the CIFAR-LT literature. Default: the source's, otherwise imbdiff."""
    test_fraction: float = 0.2
    """Share of each class held out for testing where the source has no test split."""
    test_per_class: int | None = None
    """Instead: so many test images of each class."""
    val_fraction: float = 0.1
    """Share held out for choosing between classifiers, from classes that can spare it."""
    split_seed: int = 0
    """Seed of the split."""
    cache: str | None = None
    """Folder for the decoded images of large sets, or off. Default: the user's cache folder, from 512 MiB."""
    augment: Literal["auto", "none", "mirror", "turns"] = "auto"
    """What leaves the meaning of the images as it is and is done to them at random in all training: nothing, mirroring,
    or mirroring and quarter turns. auto: mirroring where the source is known to allow it, otherwise nothing."""

    def __post_init__(self) -> None:
        _check(self.size is None or 4 <= self.size <= 1024, f"data.size={self.size} must be in 4..1024")
        _check(0 < self.test_fraction < 1, f"data.test_fraction={self.test_fraction} must be in (0, 1)")
        _check(self.split_seed >= 0, f"data.split_seed={self.split_seed} must be at least 0")
        _check(
            self.test_per_class is None or self.test_per_class >= 1,
            f"data.test_per_class={self.test_per_class} must be at least 1",
        )
        _check(0 <= self.val_fraction < 1, f"data.val_fraction={self.val_fraction} must be in [0, 1)")
        _check(
            self.imbalance_factor is None or self.imbalance_factor > 0,
            f"data.imbalance_factor={self.imbalance_factor} must be above 0",
        )


@dataclass(frozen=True)
class ModelConfig:
    """The diffusion model."""

    backbone: str = "auto"
    """A name that `imbdiff methods` lists; auto chooses by image size."""
    dropout: float | None = None
    """Dropout inside the network. Default: the backbone's, 0.1."""
    process: Literal["ddpm", "ddpm-v", "ddpm-cosine", "ddpm-cosine-v", "flow"] = "ddpm"
    """How images are noised and what the network predicts."""
    init: str | None = None
    """Folder of a saved model to start from."""

    def __post_init__(self) -> None:
        _check(self.dropout is None or 0 <= self.dropout < 1, f"model.dropout={self.dropout} must be in [0, 1)")


@dataclass(frozen=True)
class TrainConfig:
    """Training the diffusion model. Amounts of training are in images seen."""

    images: int = 2_000_000
    """Images to see in all."""
    batch_size: int = 64
    """Images per optimizer step, over all processes and accumulated micro-batches."""
    accumulate: int = 1
    """Micro-batches per step: more need less memory."""
    branch_rows: float = 1.0
    """Share of the rows on which the further branches of CBDM, alignment and CM are evaluated, chosen in proportion to
    their weight and without bias: 0.4 saves about a third of the time of a step. 1: all."""
    lr: float = 2e-4
    """Learning rate of Adam."""
    schedule: Literal["constant", "cosine"] = "constant"
    """After the warm-up."""
    warmup_images: int = 64_000
    """Images over which the learning rate rises linearly; at most a tenth of the run."""
    ada: float | None = None
    """Probability of each geometric change (ADA), of which the network is told; 0.12 in CBDM. Default: the method's."""
    label_dropout: float = 0.1
    """Share of rows trained without their label, for classifier-free guidance."""
    dropout_per: Literal["sample", "batch"] = "sample"
    """One coin per row, or one for the batch as the released code of this field does it."""
    ema_half_life: float = 0.02
    """Half-life of the averaged weights, as a share of the run."""
    weak_at: float = 0.0625
    """Share of the training after which the averaged weights are kept as autoguidance's weak model; 0: they are not."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of the diffusion model's training and the classifiers'. auto: bf16 on a GPU that has it, and from 16 pixels on a
    CPU with units for it (AMX); fp32 elsewhere."""
    checkpoint_images: int | None = None
    """Images between checkpoints; default: a twentieth of the run."""
    preview_images: int | None = None
    """Images between preview grids; default: a fifth of the run; 0: none."""
    log_images: int | None = None
    """Images between lines of the log; default: a two-hundredth of the run."""
    deterministic: bool = False
    """On a GPU: deterministic algorithms only, at some cost in speed. A CPU repeats to the bit anyway."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the networks, if the gradients of one batch then equal those without: wrong ones are a known fault of
    torch.compile. auto: on a GPU, going on without where they differ; on: stop there."""

    def __post_init__(self) -> None:
        _check(self.images >= 1, f"train.images={self.images} must be at least 1")
        _check(self.batch_size >= 1, f"train.batch_size={self.batch_size} must be at least 1")
        _check(self.accumulate >= 1, f"train.accumulate={self.accumulate} must be at least 1")
        _check(
            self.batch_size % self.accumulate == 0,
            f"train.batch_size={self.batch_size} is not a multiple of train.accumulate={self.accumulate}",
        )
        _check(0 < self.branch_rows <= 1, f"train.branch_rows={self.branch_rows} must be in (0, 1]")
        _check(0 < self.lr < 1, f"train.lr={self.lr} must be in (0, 1)")
        _check(0 <= self.label_dropout <= 1, f"train.label_dropout={self.label_dropout} must be in [0, 1]")
        _check(self.ada is None or 0 <= self.ada <= 1, f"train.ada={self.ada} must be in [0, 1]")
        _check(0 < self.ema_half_life <= 1, f"train.ema_half_life={self.ema_half_life} must be in (0, 1]")
        _check(0 <= self.weak_at < 1, f"train.weak_at={self.weak_at} must be in [0, 1)")
        _check(self.warmup_images >= 0, f"train.warmup_images={self.warmup_images} must be at least 0")
        for name in ("checkpoint_images", "log_images"):
            value = getattr(self, name)
            _check(value is None or value >= 1, f"train.{name}={value} must be at least 1")
        _check(self.preview_images is None or self.preview_images >= 0, "train.preview_images must be at least 0")

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return -(-self.images // self.batch_size)

    @property
    def compared(self) -> int:
        """Rows that a loss which compares rows sees at a time: all processes' rows of one micro-batch."""
        return self.batch_size // self.accumulate


@dataclass(frozen=True)
class RunConfig:
    """Everything that one run does."""

    preset: str = "tiny"
    """What the other defaults are taken from; `imbdiff methods` lists them. If none is named: tiny, small or standard,
    by image size and device; the defaults shown here are those of tiny."""
    method: str = "ddpm-brs"
    """Training method; `imbdiff methods` lists them. Its constants are options too, such as --method.tau 0.3:
    `imbdiff methods NAME` lists them."""
    constants: Mapping[str, Any] = field(default_factory=dict)
    """Of the method, where they are not as published, by name: see `imbdiff.recipe`."""
    seed: int = 0
    """Seed of everything but the split."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    track: tuple[str, ...] = ()
    """Trackers that get every line of the log too: tensorboard, wandb, mlflow and others that accelerate knows."""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    watch: WatchConfig = field(default_factory=WatchConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    curate: CurateConfig = field(default_factory=CurateConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    classify: ClassifyConfig = field(default_factory=ClassifyConfig)


def override(config: T, values: Mapping[str, Any]) -> T:
    """`config` with some fields replaced: {"seed": 1, "train": {"lr": 1e-3}}, or by dotted names, {"train.lr": 1e-3}.

    A method's constants stand behind its name, {"method": "cbdm", "method.tau": 0.3} or {"method": {"name": "cbdm",
    "tau": 0.3}}, those of a guidance behind "sample.guidance". Another method than that of `config` begins with its own
    published ones.

    Raises:
        ConfigError: an unknown name (with the nearest known one) or a value of the wrong type.
    """
    if not isinstance(config, RunConfig):
        return _override(config, values)
    values = _named(values, "method", "constants")
    if isinstance(values.get("sample"), Mapping):
        values = {**values, "sample": _named(values["sample"], "guidance", "constants")}
    values = _named(values, "sample.guidance", "sample.constants")
    made: RunConfig = config
    if values.get("method", made.method) != made.method and made.constants:
        made = dataclasses.replace(made, constants={})
    inner, own = values.get("sample"), made.sample
    guidance = inner.get("guidance", own.guidance) if isinstance(inner, Mapping) else own.guidance
    if values.get("sample.guidance", guidance) != own.guidance and own.constants:
        made = dataclasses.replace(made, sample=dataclasses.replace(own, constants={}))
    return cast(T, _override(made, values))


def _named(values: Mapping[str, Any], name: str, constants: str) -> dict[str, Any]:
    """{name: {"name": X, "tau": 1}} and {name: X, name.tau: 1} as {name: X, constants: {"tau": 1}}."""
    made: dict[str, Any] = {}
    found: dict[str, Any] = dict(values.get(constants) or {})
    for key, value in values.items():
        if key == name and isinstance(value, Mapping):
            for inner, v in value.items():
                if inner == "name":
                    made[name] = v
                elif isinstance(v, Mapping):
                    found.update({f"{inner}.{k}": x for k, x in v.items()})
                else:
                    found[str(inner)] = v
        elif str(key).startswith(name + "."):
            found[str(key)[len(name) + 1 :]] = value
        elif key != constants:
            made[key] = value
    return {**made, constants: found} if found else made


def to_dict(config: Any) -> dict[str, Any]:
    """Nested dictionaries of plain values, for YAML and hashes."""
    plain = dataclasses.asdict(config)
    plain["constants"], plain["sample"]["constants"] = dict(config.constants), dict(config.sample.constants)
    plain["track"] = list(config.track)
    plain["sample"]["interval"] = list(plain["sample"]["interval"])
    for name in ("extractors", "measures"):
        plain["evaluate"][name] = list(plain["evaluate"][name])
    for name in ("recipes", "synthetic"):
        plain["classify"][name] = list(plain["classify"][name])
    return plain
