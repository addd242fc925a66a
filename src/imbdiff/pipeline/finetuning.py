"""Fine-tuning a pretrained text-to-image model: what its folder decides of a run, and the model that is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from imbdiff.config import CodecConfig, RunConfig
from imbdiff.data.spec import user_path
from imbdiff.data.stats import ClassStats
from imbdiff.diffusion.codec import Codec
from imbdiff.diffusion.memory import bill
from imbdiff.diffusion.model import DiffusionModel, ModelSpec, from_spec
from imbdiff.diffusion.pretrained import open_pretrained
from imbdiff.diffusion.process import Flow
from imbdiff.diffusion.prompted import PromptedBackbone
from imbdiff.diffusion.prompts import codes, prompts_of, read_names, table_of
from imbdiff.diffusion.tokens import begin, token_names
from imbdiff.methods import method_of
from imbdiff.objectives.unconditional_contrast import UnconditionalContrast
from imbdiff.presets import preset
from imbdiff.runtime.device import resolve_device, resolve_precision
from imbdiff.runtime.errors import ConfigError
from imbdiff.runtime.files import digest

LEAST_CONTRASTED = 8
"""Rows that a contrast over the batch needs to mean something."""


def resolved(config: RunConfig) -> RunConfig:
    """`config` with the folders in it by their whole paths, so that a run is continued from anywhere, and with what a
    pretrained model decides: process, codec, and the size where none is given.

    Raises:
        ConfigError: there is no such pretrained model, or it makes an option of no effect that was given.
    """
    codec, model = config.codec, config.model
    if codec.weights is not None:
        codec = replace(codec, weights=_whole(codec.weights))
    if model.pretrained is None:
        return replace(config, codec=codec)
    name = _whole(model.pretrained)
    if codec.weights == name and config.data.size is not None:  # resolved before: a run is read where it is gone too
        return replace(config, model=replace(model, pretrained=name))
    pretrained, plain = open_pretrained(name), preset(config.preset)
    process = pretrained.process((pretrained.side, pretrained.side))
    own = "flow" if isinstance(process, Flow) else "ddpm-v" if process.prediction == "v_prediction" else "ddpm"
    given = {
        "--model.backbone": model.backbone != plain.model.backbone,
        "--model.process": model.process not in (plain.model.process, own),
        "--model.dropout": model.dropout != plain.model.dropout,
        "--model.init": model.init is not None,
        "--codec": codec not in (plain.codec, CodecConfig()),
    }
    if without := [option for option, there in given.items() if there]:
        raise ConfigError(
            f"{' and '.join(without)} without effect: {name} brings its network, process and codec",
            "leave it out" if len(without) == 1 else "leave them out",
        )
    names = None if model.names is None else _whole(model.names)
    model = replace(model, pretrained=name, names=names, backbone="auto", dropout=None, process=own)  # type: ignore[arg-type]
    data = config.data if config.data.size is not None else replace(config.data, size=pretrained.side)
    return replace(config, model=model, data=data, codec=CodecConfig(kind="vae", weights=name))


def _whole(name: str) -> str:
    place = user_path(name)
    return str(place.resolve()) if place.exists() else name


def check(config: RunConfig) -> None:
    """Refuses what makes no sense with a pretrained model, before any data is read.

    Raises:
        ConfigError: with the reason.
    """
    given = [f"--model.{n}" for n in ("adapt", "rank", "prompt", "names", "checkpointing") if _changed(config, n)]
    if config.model.pretrained is None:
        if given:
            raise ConfigError(f"{given[0]} has no effect without --model.pretrained", "give that, or leave it out")
        return
    method, compared = method_of(config), config.train.compared
    if any(phase.make is not None for phase in method.phases):
        raise ConfigError(
            f"the method {config.method} makes a network of its own from parts of the model's, and a pretrained one is "
            "not cut",
            "choose a method that trains the model alone, such as cbdm, ccua or t2h",
        )
    contrasted = [o for p in method.phases for o in p.objectives() if isinstance(o, UnconditionalContrast) and o.weight]
    if contrasted and compared < LEAST_CONTRASTED:
        raise ConfigError(
            f"{contrasted[0].name} compares the rows of a batch with each other, and here there are {compared}",
            f"--train.batch_size {LEAST_CONTRASTED} --train.accumulate 1, or a method without it, such as cbdm",
        )


def _changed(config: RunConfig, name: str) -> bool:
    return getattr(config.model, name) not in (
        getattr(type(config.model)(), name), getattr(preset(config.preset).model, name),
    )  # fmt: skip


def _prompts(config: RunConfig, names: Sequence[str]) -> tuple[str, ...]:
    if open_pretrained(config.model.pretrained or "").kind == "dit-tuned":
        if given := [f"--model.{name}" for name in ("prompt", "names") if _changed(config, name)]:
            raise ConfigError(f"{given[0]} has no effect: {config.model.pretrained} takes no prompts", "leave it out")
        return tuple(names)
    words = None if config.model.names is None else read_names(config.model.names)
    return prompts_of(names, config.model.prompt, words)


def notes(config: RunConfig, names: Sequence[str], shape: tuple[int, ...]) -> list[str]:
    """What is said before anything large is loaded: prompts, names that are no words, and what training on images of
    `shape` (H, W, C) takes in memory."""
    if config.model.pretrained is None:
        return []
    words = None if config.model.names is None else read_names(config.model.names)
    unknown = codes(names, words)
    prompts = _prompts(config, names)
    found = [f"prompts: {', '.join(repr(p) for p in prompts[:3])}{', ...' if len(prompts) > 3 else ''}"]
    if prompts == tuple(names):
        found = []
    elif unknown and config.model.adapt != "tokens":
        found.append(
            f"{', '.join(unknown[:5])}{', ...' if len(unknown) > 5 else ''}: numbers or codes, of which a text encoder "
            "knows nothing; give words for them: --model.names FILE, a CSV with lines NAME,WORDS, or learn them: "
            "--model.adapt tokens"
        )
    return [*found, f"memory of training: {bill_text(config, (shape[0], shape[1]))}"]


def bill_text(config: RunConfig, size: tuple[int, int]) -> str:
    """What training takes in memory, before anything is loaded: on images of `size` (H, W)."""
    assert config.model.pretrained is not None
    pretrained, device = open_pretrained(config.model.pretrained), resolve_device(config.device)
    half = device.type == "cuda" and resolve_precision(config.train.precision, device, min(size)) == "bf16"
    model, rows = config.model, config.train.compared * method_of(config).cost
    return bill(pretrained, size, model.adapt, model.rank, half, rows).text()


def doubts(config: RunConfig) -> list[str]:
    """What the reader of a run has to know of its pretrained model."""
    if config.model.pretrained is None:
        return []
    try:
        licence = open_pretrained(config.model.pretrained).licence
    except ConfigError:  # of a run that is done
        licence = None
    return [
        f"the licence of {config.model.pretrained}: {licence or 'not named in its folder'}; it holds for what is made "
        "with it",
        "what the pretrained model was trained on is not known here: perhaps on test images, of public sets above all",
        "fine-tuning was tested with small networks of random weights of the same classes, and never measured with "
        "real pretrained weights",
    ]


def inputs(config: RunConfig, names: Sequence[str]) -> dict[str, Any]:
    """What of a pretrained model decides what training gives: contents, not paths."""
    if config.model.pretrained is None:
        return {}
    pretrained = open_pretrained(config.model.pretrained)
    rank = config.model.rank if config.model.adapt == "lora" else None
    return {
        "pretrained": [pretrained.fingerprint, pretrained.text, pretrained.scheduler], "adapt": config.model.adapt,
        "rank": rank, "prompts": digest(list(_prompts(config, names))),
    }  # fmt: skip


def pretrained_model(config: RunConfig, codec: Codec, stats: ClassStats) -> DiffusionModel:
    """The pretrained model, with new adapters where these are what is trained, and the prompts of the classes.

    Frozen weights are in bfloat16 on a GPU that trains so; on a CPU, where that is slow, in float32.

    Raises:
        ConfigError: the prompts do not tell the classes apart, the text encoders or peft are not there.
        RunError: the network cannot be loaded.
    """
    assert config.model.pretrained is not None
    pretrained, device = open_pretrained(config.model.pretrained), resolve_device(config.device)
    prompts, size, vectors = _prompts(config, stats.names), codec.image[1:], None
    if config.model.adapt == "tokens":
        tokens = token_names(stats.names)
        words = prompts_of(stats.names, "{name}", {} if config.model.names is None else read_names(config.model.names))
        prompts = prompts_of(stats.names, config.model.prompt, dict(zip(stats.names, tokens, strict=True)))
        ids, vectors = begin(pretrained, tokens, prompts, words)
        table = {"ids": ids}
    else:
        table = {} if pretrained.kind == "dit-tuned" else table_of(pretrained, prompts, device)
    half = device.type == "cuda" and resolve_precision(config.train.precision, device, min(codec.shape[1:])) == "bf16"
    arguments = {
        "pretrained": pretrained.name, "fingerprint": pretrained.fingerprint, "text": pretrained.text,
        "size": list(size), "adapt": config.model.adapt, "rank": config.model.rank,
        "half": half and config.model.adapt != "full", "checkpointing": config.model.checkpointing,
        "prompts": list(prompts),
        "table": {name: [str(rows.dtype)[6:], *rows.shape[1:]] for name, rows in table.items()},
    }  # fmt: skip
    process = pretrained.process((size[0], size[1])).to_json()
    model = from_spec(ModelSpec(pretrained.kind, arguments, codec.image, process, stats, codec), seed=config.seed)
    assert isinstance(model.backbone, PromptedBackbone)
    model.backbone.fill(table)
    if vectors is not None:
        model.backbone.learned.data.copy_(vectors)
    return model
