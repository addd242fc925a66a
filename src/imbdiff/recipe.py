"""What a training method is made of, how methods are combined, and their constants: `imbdiff.methods` is the table.

The constants of a method are the fields of its objectives, of how its batches are sampled, of its networks and phases.
They are options, see `imbdiff.constants`: ``--method cbdm --method.tau 0.3``, ``method: {name: cbdm, tau: 0.3}`` in
YAML, ``override(config, {"method.tau": 0.3})`` in Python.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

from torch import nn

from imbdiff.constants import Constant, constants_of, resolve
from imbdiff.diffusion.model import DiffusionModel
from imbdiff.objectives.denoising import Denoising
from imbdiff.objectives.objective import Objective
from imbdiff.runtime.errors import ConfigError
from imbdiff.training.parts import Part


@dataclass(frozen=True)
class Phase:
    """One training within a method.

    Attributes:
        name: names its folder of checkpoints.
        objectives: makes the objectives; the network that is trained is called "model" in their requests.
        parts: how the parts of a batch are sampled.
        start: the phase whose result this one starts from, None for new weights.
        frozen: phases whose results take part without being trained, under their phase's name as network.
        share: of the run's images that this phase sees.
        make: the network to train, from the model that it starts from and a seed; default: that model itself.
        finish: what the phase gives, from the averaged network and the trained objectives; default: that network.
        label_dropout: in place of the configured one; 1 trains without labels.
        gives: "model", to sample from or for later phases; "guide", what guides the sampling of the last model.
    """

    name: str
    objectives: Callable[[], list[Objective]]
    parts: tuple[Part, ...] = (Part(),)
    start: str | None = None
    frozen: tuple[str, ...] = ()
    share: float = 1.0
    make: Callable[[DiffusionModel, int], nn.Module] | None = None
    finish: Callable[[Any, Sequence[Objective]], nn.Module] | None = None
    label_dropout: float | None = None
    gives: Literal["model", "guide"] = "model"

    def __post_init__(self) -> None:
        if not 0 < self.share < float("inf"):
            raise ConfigError(f"the phase {self.name!r}: share={self.share} must be finite and above 0")


@dataclass(frozen=True)
class Method:
    """A recipe.

    Attributes:
        idea: one line.
        source: the publication, or code, that its constants are from.
        phases: trained in order.
        omega: strength of classifier-free guidance that the source evaluates with.
        cost: training cost in forward passes per image, against 1 for DDPM; of a combination an upper bound, since
            passes that several losses ask for are made once.
        time: measured time of training on an image, against 1 for DDPM: digits on a CPU (benchmarks/method_costs.py,
            in benchmarks/results); None of a combination.
        when: when to choose it.
        init: "any" starts from new weights; "required" needs a saved model to start from.
        sampler, steps: what the source samples with, where that is part of the method; None: the package's own.
        guidance: what the source's sampling is guided by: names of `imbdiff.diffusion.guidances`, joined by +.
        guidance_constants: of these, by NAME.FIELD, where they differ from the table's; omega stands by itself.
        ada: probability of each geometric change of an image (ADA), which the network takes as a condition; 0.12 in
            CBDM's code, 0: none.
        ada_range: of these changes: "symmetry", those that leave the meaning of this data set's images as it is, or
            "all", every rotation and mirroring, as published; see `imbdiff.data.geometric`.
    """

    idea: str
    source: str
    phases: tuple[Phase, ...]
    omega: float
    cost: float
    when: str
    init: Literal["any", "required"] = "any"
    sampler: str | None = None
    steps: int | None = None
    guidance: str = "classifier-free"
    guidance_constants: Mapping[str, Any] = field(default_factory=dict)
    ada: float = 0.0
    ada_range: Literal["symmetry", "all"] = "symmetry"
    time: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.ada <= 1:
            raise ConfigError(f"ada={self.ada} is outside [0, 1]", "give a probability")
        if self.ada_range not in ("symmetry", "all"):
            raise ConfigError(f"ada_range={self.ada_range!r} is not known", "choose symmetry or all")

    @property
    def target(self) -> Phase:
        """The phase that gives the model that is sampled."""
        return next(phase for phase in reversed(self.phases) if phase.gives == "model")

    @property
    def guided(self) -> bool:
        """Whether it trains a guide for sampling."""
        return any(phase.gives == "guide" for phase in self.phases)

    @property
    def needs(self) -> str:
        """What it needs next to images and labels."""
        found = []
        if self.init == "required":
            found.append("a trained model (--model.init)")
        if any(part.of == "head" for phase in self.phases for part in phase.parts):
            found.append("many-shot classes and others")
        return ", ".join(found)


def combine(named: Sequence[tuple[str, Method]]) -> Method:
    """One method of the objectives of several: "cbdm+ccua" trains with the losses of both, in merged passes.

    The denoising loss is taken once, or replaced by the one loss that replaces it (T2H, re-weighting). The rows are
    sampled as by the one method that does not sample naturally. Of a method with several phases, the others join the
    one whose model is sampled. Guidance, sampler and steps are those of the first.

    Raises:
        ConfigError: they exclude each other; the message says in what.
    """
    names = [name for name, _ in named]
    if len(set(names)) != len(names):
        raise ConfigError(f"a method is named twice in {'+'.join(names)}", "name each once")
    staged = [(name, m) for name, m in named if len(m.phases) > 1]
    if len(staged) > 1:
        raise ConfigError(
            f"{' and '.join(name for name, _ in staged)} have several phases of training each",
            "combine one of them with methods of one phase",
        )
    _, host = (staged or list(named))[0]
    first = named[0][1]
    target = host.target
    joined = [(name, m.target) for name, m in named]
    phase = replace(
        target,
        objectives=lambda: _objectives(joined),
        parts=_parts(joined),
        **{field: _only(joined, field, words) for field, words in _SINGLE.items()},
    )
    if phase.label_dropout == 1:
        unlabelled = next(name for name, m in named if m.target.label_dropout == 1)
        raise ConfigError(f"{unlabelled} trains without labels and is not combined", "combine the others")
    _objectives(joined)  # refuses what does not go together
    return Method(
        idea=" + ".join(m.idea for _, m in named),
        source="; ".join(m.source for _, m in named),
        phases=tuple(phase if p is target else p for p in host.phases),
        omega=first.omega,
        cost=host.cost + target.share * sum(m.cost - 1 for _, m in named if m is not host),
        when="a combination of methods",
        init="required" if any(m.init == "required" for _, m in named) else "any",
        sampler=first.sampler or host.sampler,
        steps=first.steps or host.steps,
        guidance=host.guidance,
        guidance_constants=host.guidance_constants,
        ada=max(m.ada for _, m in named),
        ada_range=max((m for _, m in named), key=lambda m: m.ada).ada_range,
    )


_SINGLE = {"make": "a network of its own", "finish": "a last step of its own", "label_dropout": "a label dropout"}


def _only(joined: Sequence[tuple[str, Phase]], field: str, words: str) -> Any:
    having = [(name, getattr(phase, field)) for name, phase in joined if getattr(phase, field) is not None]
    if any(value != having[0][1] for _, value in having):
        raise ConfigError(f"{' and '.join(name for name, _ in having)} each bring {words}", "take one of them")
    return having[0][1] if having else None


def _parts(joined: Sequence[tuple[str, Phase]]) -> tuple[Part, ...]:
    found: dict[str, tuple[str, Part]] = {}
    for name, phase in joined:
        for part in phase.parts:
            if part == Part():
                found.setdefault(part.name, ("", part))
                continue
            owner, other = found.get(part.name, ("", Part()))
            if owner and other != part:
                raise ConfigError(
                    f"{owner} samples its rows {other.text}, {name} samples them {part.text}: one is possible",
                    "take one of them",
                )
            found[part.name] = (name, part)
    return tuple(part for _, part in found.values())


def _objectives(joined: Sequence[tuple[str, Phase]]) -> list[Objective]:
    """The objectives of all; the same one once, and of the losses that stand for the denoising loss one."""
    found: dict[str, tuple[str, Objective]] = {}
    for name, phase in joined:
        for objective in phase.objectives():
            owner, other = found.setdefault(objective.name, (name, objective))
            fields = dataclasses.fields(other)
            pairs = {f.name: (getattr(other, f.name), getattr(objective, f.name)) for f in fields if f.init}
            differ = ", ".join(f"{key} {a} and {b}" for key, (a, b) in pairs.items() if a != b)
            if differ:
                raise ConfigError(
                    f"{owner} and {name} both bring {objective.name}, with other constants: {differ}",
                    "take one of them",
                )
    bases = [(name, o) for name, o in found.values() if o.base and type(o) is not Denoising]
    if len(bases) > 1:
        raise ConfigError(
            f"{' and '.join(name for name, _ in bases)} each replace the denoising loss", "take one of them"
        )
    return [o for _, o in found.values() if not (bases and type(o) is Denoising)]


def constants(method: Method) -> dict[str, Constant]:
    """All constants of a method by full name, in the order of its phases."""
    found = constants_of("training", method, ["ada", "ada_range"], base=True)
    for phase in method.phases:
        for objective in phase.objectives():
            names = [f.name for f in dataclasses.fields(objective) if f.init and f.name not in objective.wiring]
            found |= constants_of(objective.name, objective, names, base=objective.base)
        for part in phase.parts:
            found |= constants_of(part.name, part, part.constants, base=True)
        if phase.make is not None and dataclasses.is_dataclass(phase.make):
            found |= constants_of(phase.make.name, phase.make, [f.name for f in dataclasses.fields(phase.make)])
        if len(method.phases) > 1:
            found |= constants_of(phase.name, phase, ["share"])
    return found


def with_constants(method: Method, values: Mapping[str, Any]) -> Method:
    """`method` with some of its constants changed.

    Args:
        values: by full name, or by field where that is not ambiguous.

    Raises:
        ConfigError: as of `resolve`; a value out of range, named by the objective's own check.
    """
    if not values:
        return method
    changed = resolve(constants(method), values, "--method.")
    phases = [_phase(phase, changed) for phase in method.phases]
    for phase in phases:
        phase.objectives()  # refuses values out of range now
    return _changed(replace(method, phases=tuple(phases)), "training", changed)


def _phase(phase: Phase, changed: Mapping[str, Any]) -> Phase:
    make = phase.make
    if make is not None and dataclasses.is_dataclass(make):
        make = _changed(make, make.name, changed)
    parts = tuple(_changed(part, part.name, changed) for part in phase.parts)
    objectives = partial(_new_objectives, phase.objectives, changed)
    return replace(_changed(phase, phase.name, changed), objectives=objectives, parts=parts, make=make)


def _new_objectives(make: Callable[[], list[Objective]], changed: Mapping[str, Any]) -> list[Objective]:
    return [_changed(objective, objective.name, changed) for objective in make()]


def _changed(value: Any, owner: str, changed: Mapping[str, Any]) -> Any:
    own = {name.rpartition(".")[2]: v for name, v in changed.items() if name.rpartition(".")[0] == owner}
    return replace(value, **{f.name: own[f.name] for f in dataclasses.fields(value) if f.name in own})
