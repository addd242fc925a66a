"""Fine-tuned models for diffusers: adapters as a LoRA file, or a whole pipeline with merged weights.

Neither needs this package to be used. What was written is loaded again by diffusers and compared with the model, at the
end of every export.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
import yaml

from imbdiff.diffusion.adapters import adapter_state, merged
from imbdiff.diffusion.model import DiffusionModel, from_spec
from imbdiff.diffusion.pretrained import Pretrained, open_pretrained, quietly
from imbdiff.diffusion.prompted import PromptedBackbone, TunedDiTBackbone, load_network
from imbdiff.diffusion.prompts import text_pipeline
from imbdiff.diffusion.saved import save_tensors
from imbdiff.diffusion.tokens import token_names
from imbdiff.integrations.guided import cell
from imbdiff.integrations.pipeline import new_folder, to_diffusers
from imbdiff.runtime.errors import ConfigError, RunError
from imbdiff.runtime.files import atomic, write_json, write_text

LORA = "pytorch_lora_weights.safetensors"
#: largest difference of predictions, relative to the largest of them: sums in another order, and merged weights
EXACT, MERGED = 1e-6, 1e-5

Form = Literal["lora", "pipeline", "tokens"]


def export(model: DiffusionModel, form: Form, folder: str | Path) -> None:
    """Writes `model` for diffusers, whole or not at all.

    Args:
        form: "lora": a file that `load_lora_weights` of the pretrained pipeline reads, of megabytes. "tokens": a file
            for each class, for `load_textual_inversion`. "pipeline": a folder for `DiffusionPipeline.from_pretrained`;
            of a model that was not pretrained, see `to_diffusers`.

    Raises:
        RunError: `folder` exists already, or what was written gives other predictions.
        ConfigError: diffusers has no such form of this model.
    """
    backbone = model.backbone
    if not isinstance(backbone, PromptedBackbone):
        if form != "pipeline":
            raise ConfigError(f"this model was trained from nothing: it has no {form}", "use --as pipeline")
        to_diffusers(model, folder)
        return
    folder = new_folder(folder)
    pretrained, stats = open_pretrained(str(model.spec.config["pretrained"])), model.spec.stats
    if model.spec.config["half"]:  # what is written goes onto the weights as they are in the folder, not rounded
        whole = from_spec(replace(model.spec, config={**model.spec.config, "half": False}))
        whole.backbone.load_state_dict(backbone.own_state(), strict=False)
        export(whole.eval(), form, folder)
        return
    with atomic(folder) as aside, quietly():
        if form == "tokens":
            found, most = _write_tokens(model, pretrained, aside), EXACT
        elif backbone.adapt == "tokens":
            raise ConfigError("the words of the classes were trained, not the network", "use --as tokens")
        elif form == "lora":
            found, most = _difference(backbone, _write_lora(backbone, pretrained, aside)), EXACT
        else:
            found, most = _difference(backbone, _write_pipeline(backbone, pretrained, aside, stats.names)), MERGED
        write_text(aside / "README.md", model_card(model, pretrained, form))
        if not found <= most:
            raise RunError(
                f"what was written predicts otherwise than the model: {found:.1e} of the largest value, at most "
                f"{most:g} was expected",
                "the versions of diffusers and peft may not fit each other: pip install --upgrade diffusers peft",
            )


def _write_lora(backbone: PromptedBackbone, pretrained: Pretrained, folder: Path) -> Any:
    """Writes the file; the network as diffusers makes it of that."""
    import diffusers

    kind, part = getattr(diffusers, pretrained.pipeline), pretrained.network.name
    if backbone.adapt != "lora":
        raise ConfigError("all weights of this model were trained: it has no adapters", "use --as pipeline")
    if not hasattr(kind, "save_lora_weights"):
        raise ConfigError(f"diffusers loads no LoRA files into a {pretrained.pipeline}", "use --as pipeline")
    folder.mkdir(parents=True)
    kind.save_lora_weights(folder, **{f"{part}_lora_layers": adapter_state(backbone.net)})
    network = load_network(pretrained.network, torch.float32)
    network.load_lora_adapter(folder, weight_name=LORA, prefix=part)
    return network


@torch.no_grad()
def _write_tokens(model: DiffusionModel, pretrained: Pretrained, folder: Path) -> float:
    """Writes a file for each class: diffusers takes one token of each. The largest difference of what the text encoder
    makes of the prompts when diffusers has read them, relative to the largest value."""
    backbone = model.backbone
    if not isinstance(backbone, PromptedBackbone) or backbone.adapt != "tokens":
        raise ConfigError("no words of the classes were trained", "use --as lora or --as pipeline")
    folder.mkdir(parents=True)
    pipe = text_pipeline(pretrained)
    for token, vector in zip(token_names(model.spec.stats.names), backbone.learned, strict=True):
        path = folder / f"{token[1:-1]}.safetensors"
        save_tensors({token: vector}, path)
        pipe.load_textual_inversion(path)
    prompts = [*model.spec.config["prompts"], ""]
    found = torch.cat([pipe.encode_prompt(prompt, "cpu", 1, False)[0] for prompt in prompts])
    own = backbone.text(backbone.get_buffer("ids"))
    return float((found - own).abs().max() / own.abs().max())


def _widen(net: Any, classes: int, pretrained: Pretrained) -> None:
    """Tables of as many rows as before, behind the classes those of "no class": `DiTPipeline` takes row 1000."""
    rows = pretrained.config["num_embeds_ada_norm"] + 1
    if classes >= rows:
        raise ConfigError(
            f"{classes} classes are more than the {rows - 1} of a {pretrained.pipeline}", "leave some out"
        )
    for embedder in TunedDiTBackbone.embedders(net):
        table = embedder.embedding_table.weight
        wide = torch.cat([table[:classes], table[-1:].expand(rows - classes, -1)])
        embedder.embedding_table = torch.nn.Embedding.from_pretrained(wide)


def _write_pipeline(backbone: PromptedBackbone, pretrained: Pretrained, folder: Path, names: Sequence[str]) -> Any:
    """Writes the folder, all but the network as it is in the pretrained one; the network as it is read from there."""
    folder.mkdir(parents=True)
    for name in (name for name, value in pretrained.index.items() if isinstance(value, list)):
        if (pretrained.folder / name).is_dir() and name != pretrained.network.name:
            shutil.copytree(pretrained.folder / name, folder / name)
    index, net = dict(pretrained.index), merged(backbone.net)
    if isinstance(backbone, TunedDiTBackbone):
        index["id2label"] = {str(k): name for k, name in enumerate(names)}
        _widen(net, len(names), pretrained)
    write_json(folder / "model_index.json", index)
    place = folder / pretrained.network.name
    net.save_pretrained(place, safe_serialization=True)
    return load_network(place, torch.float32)


@torch.no_grad()
def _difference(backbone: PromptedBackbone, network: Any) -> float:
    """The largest difference between predictions of the model and of `network`, relative to the largest of them."""
    own = copy.deepcopy(backbone).eval()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((2, *own.shape), generator=generator)
    arguments = x, torch.tensor([100.0, 700.0]), torch.tensor([0, own.num_classes])
    expected, _ = own(*arguments)
    own.net = network.eval()
    found, _ = own(*arguments)
    return float((found - expected).abs().max() / expected.abs().max())


def model_card(model: DiffusionModel, pretrained: Pretrained, form: Form) -> str:
    """What README.md says: licence, what it was made from, how to use it, the prompts of at most 100 classes."""
    stats, prompts = model.spec.stats, model.spec.config["prompts"]
    base = pretrained.name if not Path(pretrained.name).is_absolute() else Path(pretrained.name).name
    front = {"license": pretrained.licence or "unknown", "base_model": base, "library_name": "diffusers"}
    files = [f"{token[1:-1]}.safetensors" for token in token_names(stats.names)] if form == "tokens" else []
    load = [f'pipe.load_textual_inversion("THIS FOLDER/{name}")' for name in files[:100]]
    load += ['pipe.load_lora_weights("THIS FOLDER")'] if form == "lora" else []
    place = "THIS FOLDER" if form == "pipeline" else base
    use = [f'pipe = DiffusionPipeline.from_pretrained("{place}")', *load]
    asked = "[0]" if pretrained.kind == "dit-tuned" else repr(prompts[0])
    rows = [f"| {cell(n)} | {k} | {cell(p)} |" for n, k, p in zip(stats.names, stats.counts, prompts, strict=True)]
    more = [f"\nand {len(rows) - 100} more classes"] if len(rows) > 100 else []
    return "\n".join([
        "---", yaml.safe_dump(front, sort_keys=False, allow_unicode=True).strip(), "---", "",
        f"{base}, fine-tuned by imbalanced-diffusion on {stats.total} images of {stats.num_classes} classes.", "",
        "```python", "from diffusers import DiffusionPipeline", *use,
        f"image = pipe({asked}, guidance_scale=1.8).images[0]", "```", "",
        "| class | training images | prompt |", "|---|---|---|", *rows[:100], *more, "",
        "Images may be copies of training images; how good they are was not measured by this export.", "",
    ])  # fmt: skip
