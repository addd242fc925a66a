"""Class names as prompts, and prompts as what a pretrained network takes: a table with a row per class, made once."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from inspect import signature
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import yaml
from torch import Tensor

from imbdiff.diffusion.codecs.autoencoder import variant_of
from imbdiff.diffusion.pretrained import Pretrained, open_pretrained, quietly
from imbdiff.runtime.errors import ConfigError
from imbdiff.runtime.tables import optional

TEMPLATE = "a photo of a {name}"


def read_names(path: str | Path) -> dict[str, str]:
    """{class name: words} of a CSV file of two columns, or of a YAML file that holds a mapping.

    Raises:
        ConfigError: it cannot be read, or is neither.
    """
    place = Path(path)
    try:
        text = place.read_text(encoding="utf-8-sig")
        if place.suffix.lower() in (".yaml", ".yml"):
            found = yaml.safe_load(text)
            rows = [list(pair) for pair in found.items()] if isinstance(found, dict) else [[]]
        else:
            rows = [row for row in csv.reader(text.splitlines()) if row]
    except (OSError, UnicodeDecodeError, yaml.YAMLError, csv.Error) as error:
        raise ConfigError(f"--model.names {path} cannot be read: {error}", "give a CSV or YAML file") from error
    if any(len(row) != 2 for row in rows):
        raise ConfigError(
            f"--model.names {path} is no table of two columns", "give lines such as `akiec,actinic keratosis`"
        )
    return {str(row[0]).strip(): str(row[1]).strip() for row in rows}


def prompts_of(names: Sequence[str], template: str, words: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """A prompt for each class.

    Args:
        template: with ``{name}``; other braces are letters.
        words: in place of some names.

    Raises:
        ConfigError: the template lacks ``{name}``, words are of unknown classes, or two classes have one prompt.
    """
    words = words or {}
    if "{name}" not in template:
        raise ConfigError(
            f"--model.prompt {template!r} does not say where the name goes", f"write {{name}} there: {TEMPLATE!r}"
        )
    # the first line of a table may be its heading
    unknown = [name for name in list(words)[len(words) > 0 and next(iter(words)) not in names :] if name not in names]
    if unknown:
        raise ConfigError(
            f"--model.names has words for {unknown[0]!r}, which is no class here", f"classes: {', '.join(names[:20])}"
        )
    said = [words.get(name) or re.sub(r"[_\s]+", " ", name).strip() for name in names]
    prompts = tuple(template.replace("{name}", one) for one in said)
    twice = [prompt for prompt, n in Counter(" ".join(p.lower().split()) for p in prompts).items() if n > 1]
    if twice:
        same = [n for n, p in zip(names, prompts, strict=True) if " ".join(p.lower().split()) == twice[0]]
        raise ConfigError(
            f"the classes {' and '.join(map(repr, same))} have one prompt, {twice[0]!r}: it would not tell them apart",
            "give them words of their own: --model.names FILE, a CSV with lines NAME,WORDS",
        )
    return prompts


def codes(names: Sequence[str], words: Mapping[str, str] | None = None) -> list[str]:
    """Names that are numbers or codes, without words in `words`: a text encoder knows nothing of them.

    Words have a vowel; a code has none, or a digit.
    """
    unsaid = [name for name in names if name not in (words or {})]
    return [name for name in unsaid if re.search(r"\d", name) or not re.search(r"[aeiouyà-ÿ]", name, re.I)]


def table_of(pretrained: Pretrained, prompts: Sequence[str], device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """What the network takes of each prompt, and of the empty one in the last row: (C + 1, ...) on the CPU.

    The pipeline's own text encoders make it, in float32 (bfloat16 above 4 GiB), and are let go of.

    Returns:
        "embeds" (C + 1, L, d); "pooled" (C + 1, p) where the network takes it; "mask" (C + 1, L) of PixArt.

    Raises:
        ConfigError: they cannot be loaded.
    """
    return _table(pretrained.name, pretrained.text, tuple(prompts), str(device))


@lru_cache(maxsize=2)
def _table(name: str, text: str, prompts: tuple[str, ...], device: str) -> dict[str, Tensor]:
    pipe = text_pipeline(open_pretrained(name))
    for part, module in pipe.components.items():
        if part.startswith("text_encoder") and module is not None:
            module.to(device).eval().requires_grad_(False)
    with torch.no_grad():
        rows = [_encoded(pipe, prompt, device) for prompt in (*prompts, "")]
    return {key: torch.cat([row[key] for row in rows]).cpu() for key in rows[0]}


def text_pipeline(pretrained: Pretrained) -> Any:
    """The pipeline without its network and autoencoder, in float32, or bfloat16 above 4 GiB.

    Raises:
        ConfigError: its text encoders cannot be loaded.
    """
    import diffusers

    optional("transformers", "pretrained", "a text encoder")
    parts = ("unet", "transformer", "vae", "safety_checker", "feature_extractor", "image_encoder")
    needed = signature(getattr(diffusers, pretrained.pipeline)).parameters.values()
    absent = [p.name for p in needed if p.default is p.empty and not any(pretrained.index.get(p.name) or ())]
    unused: dict[str, Any] = {part: None for part in (*parts, *absent) if part in pretrained.index or part in absent}
    weights = sum(f.stat().st_size for f in pretrained.folder.glob("text_encoder*/*.safetensors"))
    try:
        with quietly():
            pipe: Any = diffusers.DiffusionPipeline.from_pretrained(
                pretrained.folder, **unused, local_files_only=True, use_safetensors=True,
                # T5's eleven billion bytes in bfloat16
                torch_dtype=torch.bfloat16 if weights > 4 * 2**30 else torch.float32,
                variant=variant_of(pretrained.network),
            )  # fmt: skip
    except Exception as error:  # of diffusers and transformers, each of its own types
        raise ConfigError(
            f"the text encoders of {pretrained.name} cannot be loaded: {error}",
            "download it again, or install what it asks for",
        ) from error
    # Stable Diffusion 3 without T5 asks its network how wide that would be
    pipe.__dict__[pretrained.network.name] = SimpleNamespace(config=SimpleNamespace(**pretrained.config))
    return pipe


def _encoded(pipe: Any, prompt: str, device: str) -> dict[str, Tensor]:
    """By diffusers' own `encode_prompt`, one row."""
    kind = type(pipe).__name__
    if kind == "StableDiffusionPipeline":
        return {"embeds": pipe.encode_prompt(prompt, device, 1, False)[0]}
    if kind.startswith("PixArt"):
        embeds, mask, *_ = pipe.encode_prompt(prompt, do_classifier_free_guidance=False, device=device)
        return {"embeds": embeds, "mask": mask.half()}
    if kind == "FluxPipeline":
        embeds, pooled, _ = pipe.encode_prompt(prompt, None, device=device)
    elif kind == "StableDiffusion3Pipeline":
        embeds, _, pooled, _ = pipe.encode_prompt(prompt, None, None, device=device, do_classifier_free_guidance=False)
    else:
        embeds, _, pooled, _ = pipe.encode_prompt(prompt, device=device, do_classifier_free_guidance=False)
        if prompt == "" and pipe.config.force_zeros_for_empty_prompt:  # as it was trained without a prompt
            embeds, pooled = torch.zeros_like(embeds), torch.zeros_like(pooled)
    return {"embeds": embeds, "pooled": pooled}
