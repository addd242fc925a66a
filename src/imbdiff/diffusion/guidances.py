"""The table of guidances: what each is, when to choose it, what it needs, its constants, and how it is made.

``make_guidance("entropy+classifier-free", context, {"omega": "1.2,few=0.5"})`` nests the second within the first.
Another entry of your own is ``module:PACKAGE.MODULE:NAME``, or an entry point of the group ``imbdiff.guidance``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import reduce
from typing import Any

from torch import Tensor

from imbdiff.constants import Constant, constants_of, resolve
from imbdiff.data.stats import Groups
from imbdiff.diffusion.autoguidance import Autoguidance
from imbdiff.diffusion.encoder import PrototypeEncoder
from imbdiff.diffusion.entropy_guidance import Classifier, Criterion, EntropyGuidance
from imbdiff.diffusion.guidance import ClassifierFree, Guidance, Guided, NoGuidance
from imbdiff.diffusion.model import DiffusionModel
from imbdiff.diffusion.prototype_guidance import PrototypeGuidance
from imbdiff.diffusion.scales import per_class
from imbdiff.runtime.errors import ConfigError
from imbdiff.runtime.tables import lookup


@dataclass(frozen=True)
class SamplingContext:
    """What guidances are made from.

    Attributes:
        model: that is sampled; prototype guidance needs its `guide`, autoguidance its `weak`.
        sampler, steps: a name in `schedulers.SAMPLERS`, and its number of steps.
        groups: of the classes, which scales can name; None: there are none.
        interval: (low, high) noise levels within which to guide.
        omega: strength of classifier-free guidance that the model's method evaluates with.
        classifier: (B, C, H, W) images in [-1, 1] -> (B, K) logits, for entropy guidance: the working classifier,
            never a judge.
        bf16: call the weak network under bfloat16 autocast.
    """

    model: DiffusionModel
    sampler: str
    steps: int
    groups: Groups | None = None
    interval: tuple[float, float] = (0.0, 1.0)
    omega: float = 0.0
    classifier: Classifier | None = None
    bf16: bool = False

    def scales(self, value: float | str, default: float) -> float | tuple[float, ...]:
        """A scale as it is written: one number, or one per class."""
        return per_class(value, self.model.spec.stats.names, self.groups, default)


@dataclass(frozen=True)
class NoConstants:
    """Nothing to set."""


@dataclass(frozen=True)
class ClassifierFreeConstants:
    """Of `ClassifierFree`.

    Args:
        omega: 0 is none; by class or group, few=0.5,many=1.6; None: that of the method.
    """

    omega: float | str | None = None


@dataclass(frozen=True)
class AutoguidanceConstants:
    """Of `Autoguidance`.

    Args:
        omega: 0.7 is the best on ImageNet-64 in Karras et al. 2024; by class or group, few=0.5,many=1.6.
    """

    omega: float | str = 0.7


@dataclass(frozen=True)
class PrototypeConstants:
    """Of `PrototypeGuidance`.

    Args:
        scale: s, 0.6 is the paper's best; by class or group, few=0.5,many=1.6.
        prior: whether class frequencies are in the loss (Eq. 12), as in the paper.
    """

    scale: float | str = 0.6
    prior: bool = True


@dataclass(frozen=True)
class EntropyConstants:
    """Of `EntropyGuidance`.

    Args:
        scale: omega, 0.03 in the paper's code; by class or group, few=0.5,many=1.6.
        criterion: "entropy", or "loss": the cross-entropy of the image's own class.
        every: guide at every n-th step; 5 of 30 steps in the paper's code.
    """

    scale: float | str = 0.03
    criterion: Criterion = "entropy"
    every: int = 1

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ConfigError(f"entropy guidance: every={self.every} must be at least 1")


@dataclass(frozen=True)
class GuidanceEntry:
    """One row of the table.

    Attributes:
        what: it is, in a sentence.
        when: to choose it.
        source: paper, and where its constants are from.
        make: (context, constants) -> the guidance.
        constants: a frozen dataclass, its defaults those of the source; its fields are the options.
        needs: some of "guide", "weak" and "classifier".
    """

    what: str
    when: str
    source: str
    make: Callable[[SamplingContext, Any], Guidance]
    constants: Any = NoConstants()
    needs: tuple[str, ...] = ()


def _classifier_free(context: SamplingContext, constants: ClassifierFreeConstants) -> Guidance:
    model, omega = context.model, context.omega if constants.omega is None else constants.omega
    return ClassifierFree(context.scales(omega, context.omega), model.null, model.process, context.interval)


def _autoguidance(context: SamplingContext, constants: AutoguidanceConstants) -> Guidance:
    spec, weak = context.model.spec, context.model.weak
    assert weak is not None
    weak = weak.to(next(context.model.parameters()).device)
    for what in ("shape", "process"):
        if getattr(weak.spec, what) != getattr(spec, what):
            raise ConfigError(
                f"autoguidance: the weak model's {what} is {getattr(weak.spec, what)}, not {getattr(spec, what)}",
                "use an earlier state of the same training",
            )
    if weak.spec.stats.names != spec.stats.names:
        raise ConfigError("autoguidance: the weak model knows other classes", "use an earlier state of this training")
    omega = context.scales(constants.omega, AutoguidanceConstants.omega)  # type: ignore[arg-type]
    return Autoguidance(omega, weak, context.interval, bf16=context.bf16)


def _prototype(context: SamplingContext, constants: PrototypeConstants) -> Guidance:
    guide = context.model.guide
    assert isinstance(guide, PrototypeEncoder)
    scale = context.scales(constants.scale, 0.6)
    return PrototypeGuidance(guide, scale, constants.prior, context.sampler, context.steps, context.interval)


def _entropy(context: SamplingContext, constants: EntropyConstants) -> Guidance:
    classifier, model = context.classifier, context.model
    assert classifier is not None
    options = vars(constants) | {"scale": context.scales(constants.scale, 0.03)}

    def of_model_space(z: Tensor) -> Tensor:
        return classifier(model.codec.pixels(z).clamp(-1, 1))

    return EntropyGuidance(
        classifier if model.codec.name == "identity" else of_model_space, model.process, model.num_classes, **options,
        bound=model.codec.bound, sampler=context.sampler, steps=context.steps, interval=context.interval,
    )  # fmt: skip


def _none(context: SamplingContext, constants: NoConstants) -> Guidance:
    return NoGuidance()


GUIDANCE: dict[str, GuidanceEntry] = {
    "classifier-free": GuidanceEntry(
        what="away from the model's own answer without a label",
        when="images should be clearly of their class; it costs variety, of rare classes most",
        source="Ho and Salimans 2021; interval: Kynkaanniemi et al., NeurIPS 2024; omega: that of the method",
        make=_classifier_free,
        constants=ClassifierFreeConstants(),
    ),
    "prototype": GuidanceEntry(
        what="towards the prototype of the class, by the gradient of an encoder's contrastive loss",
        when="the model was trained by DiffRC: without labels it is what gives images their class",
        source="Fu, He, Hu 2023, Eq. 13: s = 0.6",
        make=_prototype,
        constants=PrototypeConstants(),
        needs=("guide",),
    ),
    "autoguidance": GuidanceEntry(
        what="away from an earlier state of the same training, with the same label",
        when="images should be cleaner without losing variety; not tested on long tails by its authors",
        source="Karras et al., NeurIPS 2024, arXiv 2406.02507; NVlabs/edm2: omega 0.7 on ImageNet-64",
        make=_autoguidance,
        constants=AutoguidanceConstants(),
        needs=("weak",),
    ),
    "entropy": GuidanceEntry(
        what="towards images that a classifier of the training images is unsure of",
        when="images are to train that classifier further; outside of another guidance that gives them their class",
        source="Askari-Hemmat et al., TMLR 2024, arXiv 2310.00158; its code: 0.03, entropy, every 5th of 30 steps",
        make=_entropy,
        constants=EntropyConstants(),
        needs=("classifier",),
    ),
    "none": GuidanceEntry(
        what="the model's answer for the class as it is",
        when="variety matters most",
        source="",
        make=_none,
    ),
}


def guidance_entries(names: str) -> dict[str, GuidanceEntry]:
    """The entries that "a+b" names, the outermost first.

    Raises:
        ConfigError: an unknown name, or one that is given twice or left empty.
    """
    found: dict[str, GuidanceEntry] = {}
    for name in (part.strip() for part in names.split("+")):
        if not name:
            raise ConfigError(f"guidance {names!r} leaves a name empty", f"join some of {', '.join(GUIDANCE)} by +")
        if name in found:
            raise ConfigError(f"guidance {names!r} names {name} twice", "name it once")
        found[name] = lookup("guidance", GUIDANCE, name, kind=GuidanceEntry)
    return found


def guidance_needs(names: str) -> set[str]:
    """What the guidances that "a+b" names need: some of "guide", "weak" and "classifier"."""
    return {need for entry in guidance_entries(names).values() for need in entry.needs}


def known_constants(entries: Mapping[str, GuidanceEntry]) -> dict[str, Constant]:
    """The constants of these guidances by NAME.FIELD."""
    found: dict[str, Constant] = {}
    for name, entry in entries.items():
        found |= constants_of(name, entry.constants, [f.name for f in fields(entry.constants)])
    return found


def guidance_constants(names: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The constants of each guidance that "a+b" names, with `values` put in; makes nothing.

    Args:
        values: by NAME.FIELD, or by FIELD where only one of the guidances has such a field.

    Raises:
        ConfigError: an unknown or ambiguous key, a guidance that is not among `names`, or a value of the wrong type.
    """
    entries = guidance_entries(names)
    own: dict[str, dict[str, Any]] = {name: {} for name in entries}
    for key, value in resolve(known_constants(entries), values, "--sample.guidance.").items():
        name, _, field = key.rpartition(".")
        own[name][field] = value
    return {name: replace(entry.constants, **own[name]) for name, entry in entries.items()}


#: need of a guidance -> what it is, and where it comes from
NEEDS = {
    "guide": ("a guide", "train by --method diffrc"),
    "weak": ("an earlier state of the training", "train again"),
    "classifier": ("a classifier", "give SamplingContext(classifier=...)"),
}


def lacking(entries: Mapping[str, GuidanceEntry], context: SamplingContext) -> dict[str, list[str]]:
    """The guidances that cannot be made, and which of `NEEDS` each lacks."""
    model = context.model
    there = {
        "guide": isinstance(model.guide, PrototypeEncoder),
        "weak": model.weak is not None,
        "classifier": context.classifier is not None,
    }
    found = {name: [need for need in entry.needs if not there[need]] for name, entry in entries.items()}
    return {name: needs for name, needs in found.items() if needs}


def make_guidance(names: str, context: SamplingContext, values: Mapping[str, Any] | None = None) -> Guidance:
    """The guidance that "a+b" names: the first outermost, around the second.

    Args:
        names: in `GUIDANCE`, or of your own, joined by +. Shifts ("prototype", "entropy") go outside: within another
            guidance the sampler clips them.
        values: see `guidance_constants`.

    Raises:
        ConfigError: a name or value that is not known or does not fit; something that a guidance needs is missing.
    """
    entries, constants = guidance_entries(names), guidance_constants(names, values or {})
    for name, needs in lacking(entries, context).items():
        what, remedy = NEEDS[needs[0]]
        raise ConfigError(
            f"{name} guidance needs {what}, and this model comes with none", f"{remedy}, or choose another guidance"
        )
    made = [entry.make(context, constants[name]) for name, entry in entries.items() if name != "none"]
    return reduce(lambda inner, outer: Guided(outer, inner), reversed(made)) if made else NoGuidance()


def guidance_text(names: str, constants: Mapping[str, Any]) -> str:
    """Guidances with their scales, to print: "prototype 0.6 + classifier-free 0.8"."""
    scales = {name: constants.get(f"{name}.omega", constants.get(f"{name}.scale")) for name in names.split("+")}
    return " + ".join(name if scale is None else f"{name} {scale}" for name, scale in scales.items())
