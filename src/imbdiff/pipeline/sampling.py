"""How images are sampled: what the configuration says, with everything settled that it leaves to the method."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from imbdiff.config import RunConfig
from imbdiff.data.splits import Prepared
from imbdiff.data.stats import ClassStats, Groups
from imbdiff.diffusion.encoder import PrototypeEncoder
from imbdiff.diffusion.guidance import Guidance
from imbdiff.diffusion.guidances import (
    GUIDANCE,
    SamplingContext,
    guidance_constants,
    guidance_entries,
    guidance_needs,
    guidance_option,
    make_guidance,
)
from imbdiff.diffusion.model import DiffusionModel
from imbdiff.diffusion.scales import per_class, scale_table
from imbdiff.diffusion.schedulers import SAMPLERS
from imbdiff.methods import method_of
from imbdiff.runtime.device import resolve_device
from imbdiff.runtime.dist import Dist
from imbdiff.runtime.errors import ConfigError
from imbdiff.runtime.files import digest
from imbdiff.runtime.tables import code_identity

Classifier = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Sampling:
    """How images are drawn, with everything settled that a configuration leaves to the method.

    Attributes:
        guidance: names of guidances, joined by +; the first is the outermost.
        constants: every constant of these by NAME.FIELD.
    """

    sampler: str
    steps: int
    guidance: str
    constants: Mapping[str, Any]
    interval: tuple[float, float]
    batch_size: int
    boost: float = 1.0
    skip: float = 0.0
    precision: Literal["fp32", "bf16"] = "fp32"

    def guide(
        self,
        model: DiffusionModel,
        groups: Groups | None = None,
        classifier: Classifier | None = None,
        *,
        partial: bool = False,
    ) -> Guidance:
        """The guidance for `model`.

        Args:
            groups: of its classes, by which scales may be given; default: those of its class counts.
            classifier: for guidances that need one.
            partial: leave out guidances of which something is missing, as while a model is still being trained.

        Raises:
            ConfigError: a class or group that there is not, or something that a guidance needs is missing.
        """
        context = SamplingContext(
            model=model, sampler=self.sampler, steps=self.steps, interval=self.interval, classifier=classifier,
            groups=groups or Groups.default(model.spec.stats), bf16=self.precision == "bf16",
        )  # fmt: skip
        names, constants = self.guidance, dict(self.constants)
        if partial:
            missing = self.missing(model, classifier)
            kept = [n for n in guidance_entries(names) if n not in missing]
            names = "+".join(kept) or "none"
            constants = {k: v for k, v in constants.items() if k.rpartition(".")[0] in kept}
        return make_guidance(names, context, constants)

    def missing(self, model: DiffusionModel, classifier: Classifier | None = None) -> dict[str, str]:
        """The guidances that `model` cannot serve, and what each lacks: "guide", "weak" or "classifier"."""
        there = {
            "guide": isinstance(model.guide, PrototypeEncoder),
            "weak": model.weak is not None,
            "classifier": classifier is not None,
        }
        lacking = {n: ", ".join(x for x in e.needs if not there[x]) for n, e in guidance_entries(self.guidance).items()}
        return {name: what for name, what in lacking.items() if what}

    def to_json(self) -> dict[str, Any]:
        """What decides the images, for the plan that they are drawn by; defaults that say nothing are left out."""
        plain = asdict(self)
        quiet = {"boost": 1.0, "skip": 0.0, "precision": "fp32"}
        kept = {k: v for k, v in plain.items() if quiet.get(k) != v}
        return {**kept, "interval": list(self.interval), "constants": dict(self.constants)}

    @property
    def text(self) -> str:
        """The guidance with its constants, in words."""
        return guidance_text(self.guidance, self.constants)

    def check(self, stats: ClassStats, groups: Groups) -> None:
        """Refuses scales that are no numbers or out of range, and those of classes or groups that there are not.

        Raises:
            ConfigError: naming the value, or the nearest name.
        """
        for name, value in self.constants.items():
            if name.endswith((".omega", ".scale")) and isinstance(value, int | float | str):
                scale = per_class(value, stats.names, groups)
                scale_table(scale, stats.num_classes, least=-1.0 if name.endswith(".omega") else 0.0)


def guidance_text(names: str, constants: Mapping[str, Any]) -> str:
    """Guidances with their scales, to print: "prototype 0.6 + classifier-free 0.8"."""
    scales = {name: constants.get(f"{name}.omega", constants.get(f"{name}.scale")) for name in names.split("+")}
    return " + ".join(name if scale is None else f"{name} {scale}" for name, scale in scales.items())


def sampling(config: RunConfig) -> Sampling:
    """What the configuration says; where it leaves that open, what the method says, and otherwise dpm++ in 20 steps.

    A method's number of steps goes with its sampler; another one takes 20.

    Raises:
        ConfigError: an unknown guidance, one that the method cannot serve, or constants that do not fit.
    """
    method, options = method_of(config), config.sample
    own = method.sampler
    if own in ("ddpm", "ddim") and config.model.process == "flow":
        own = "euler"
    own = own or "dpm++"
    sampler = options.sampler or own
    entries = guidance_entries(options.guidance or method.guidance)
    names = "+".join(entries)
    given = {k: v for k, v in method.guidance_constants.items() if k.rpartition(".")[0] in entries}
    if "classifier-free" in entries:
        given.setdefault("classifier-free.omega", method.omega)
    # of one that is there under both names, the later counts
    own_constants = {guidance_option(names, key): value for key, value in options.constants.items()}
    found = guidance_constants(names, {**given, **own_constants})
    return Sampling(
        sampler=sampler,
        steps=options.steps or (method.steps if sampler == own else None) or 20,
        guidance=names,
        constants={f"{name}.{k}": v for name, values in found.items() for k, v in asdict(values).items()},
        interval=options.interval,
        batch_size=options.batch_size or (64 if resolve_device(config.device).type == "cpu" else 512),
        boost=options.boost,
        skip=options.skip,
        precision=options.precision,
    )


def check_needs(config: RunConfig) -> None:
    """Refuses guidances that the configured method's model will not have what they need for.

    Raises:
        ConfigError: with what to do.
    """
    how, method = sampling(config), method_of(config)
    needs = guidance_needs(how.guidance)
    if "guide" in needs and not method.guided:
        raise ConfigError(
            f"the guidance {how.guidance} needs a guide, and the method {config.method} trains none",
            "leave it out, or train by diffrc or diffrc-paper",
        )


def working_logits(prepared: Prepared, config: RunConfig, folder: Path | None = None) -> Classifier:
    """The working classifier, which saw the training split alone, as guidances take one: images -> (B, C) logits.

    Args:
        folder: where its weights are kept; with it, a repeated call reads them.
    """
    from imbdiff.pipeline.recognising import plan_of
    from imbdiff.recognition.working import working_extractor

    plan = plan_of(prepared, config)
    device, dist = str(resolve_device(config.device)), Dist.current()
    if not dist.main:  # the first process makes it, the others read it
        dist.barrier()
    extractor = working_extractor(prepared.train, plan, seed=config.seed, device=device, folder=folder)
    if dist.main:
        dist.barrier()
    return extractor.network.requires_grad_(False).eval()


def guide_of(
    how: Sampling, model: DiffusionModel, prepared: Prepared, config: RunConfig, folder: Path | None = None
) -> Guidance:
    """The guidance for `model` with the class groups of its data, and the working classifier where it takes one.

    Args:
        folder: where the working classifier is kept, see `working_logits`.
    """
    asks = "classifier" in guidance_needs(how.guidance)
    return how.guide(model, prepared.groups, working_logits(prepared, config, folder) if asks else None)


def sampling_identity(how: Sampling, prepared: Prepared, config: RunConfig) -> list[str]:
    """What decides the images beside the plan and the weights: the working classifier, and code from outside."""
    from imbdiff.pipeline.recognising import plan_of

    found = code_identity("guidance", GUIDANCE, how.guidance.split("+"))
    found += code_identity("samplers", SAMPLERS, [how.sampler])
    if "classifier" in guidance_needs(how.guidance):
        plan = plan_of(prepared, config)
        train = prepared.train
        found.append(digest([train.fingerprint, *plan.identity(train.shape, len(train.class_names)), config.seed]))
    return found


def without_guidance(how: Sampling) -> Sampling:
    """The same without any guidance."""
    return replace(how, guidance="none", constants={})
