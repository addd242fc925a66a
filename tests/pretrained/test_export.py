"""Exports are what diffusers loads, in a process that does not have this package."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from imbdiff.cli import main
from imbdiff.diffusion.adapters import adapter_state
from imbdiff.diffusion.model import DiffusionModel, from_spec
from imbdiff.diffusion.saved import load_model, save_model
from imbdiff.integrations import tuned
from imbdiff.integrations.tuned import export, model_card
from imbdiff.runtime.errors import ConfigError, RunError
from tests.pretrained.making import model_of

#: what the network of a pipeline is asked and answers in its first call, for each of the folders
PLAIN = """
import sys
sys.path.append(sys.argv[1])
import numpy as np, torch
from diffusers import DiffusionPipeline
base, lora, whole, out = sys.argv[2:6]
tuned = DiffusionPipeline.from_pretrained(base)
tuned.load_lora_weights(lora)
for i, pipe in enumerate((tuned, DiffusionPipeline.from_pretrained(whole), DiffusionPipeline.from_pretrained(base))):
    found = []
    hook = lambda m, args, options, result: found.append((*args[:2], result[0]))
    pipe.unet.register_forward_hook(hook, with_kwargs=True)
    pipe.set_progress_bar_config(disable=True)
    seed = torch.Generator().manual_seed(0)
    pipe("a photo of a rare", height=16, width=16, num_inference_steps=2, guidance_scale=1.0, generator=seed)
    x, t, prediction = found[0]
    np.savez(f"{out}/{i}.npz", x=x, t=float(t), prediction=prediction)
assert "imbdiff" not in sys.modules
"""


def trained(images: Path, folder: Path, **values: object) -> DiffusionModel:
    """As after a training: adapters that do something."""
    model = model_of(images, folder, **values).eval()
    with torch.no_grad():
        for name, p in model.backbone.named_parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name))) * 0.1)
    return model


def test_plain_diffusers_predicts_the_same(images: Path, folders: dict[str, Path], tmp_path: Path) -> None:
    model = trained(images, folders["sd"])
    save_model(model, tmp_path / "model")
    lora, whole = tmp_path / "lora", tmp_path / "whole"
    assert main(["export", str(tmp_path / "model"), "--as", "lora", "--out", str(lora)]) == 0
    assert main(["export", str(tmp_path / "model"), "--out", str(whole)]) == 0
    assert main(["export", str(tmp_path / "model"), "--out", str(whole)]) == 2
    packages = os.environ.get("IMBDIFF_PRETRAINED", str(Path(sys.prefix) / "pretrained"))
    words = [sys.executable, "-c", PLAIN, packages, str(folders["sd"]), str(lora), str(whole), str(tmp_path)]
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    subprocess.run(words, env=clean, check=True, cwd=tmp_path)
    again = load_model(tmp_path / "model").backbone
    for i, most in enumerate((1e-6, 1e-5)):
        found = np.load(tmp_path / f"{i}.npz")
        with torch.no_grad():
            own, _ = again(torch.from_numpy(found["x"]), torch.tensor([float(found["t"])]), torch.tensor([1]))
        assert np.abs(own.numpy() - found["prediction"]).max() <= most * np.abs(found["prediction"]).max()
    assert np.abs(own.numpy() - np.load(tmp_path / "2.npz")["prediction"]).max() > 1e-3  # the base alone
    card = (lora / "README.md").read_text()
    assert card.startswith("---\nlicense: unknown\nbase_model: sd\n")
    assert "| some {odd} | 10 | a photo of a some {odd} |" in card
    assert str(folders["sd"]) not in card  # no path of this machine


@pytest.mark.parametrize(
    ("kind", "form"), [("sdxl", "lora"), ("sd3", "lora"), ("flux", "lora"), ("pixart", "pipeline")]
)
def test_every_kind_is_written_and_compared(
    images: Path, folders: dict[str, Path], tmp_path: Path, kind: str, form: tuned.Form, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = trained(images, folders[kind])
    export(model, form, tmp_path / "out")  # compares
    if kind == "pixart":
        with pytest.raises(ConfigError, match="PixArt") as error:
            export(model, "lora", tmp_path / "other")
        assert "--as pipeline" in error.value.remedy
        return
    # adapters that are not the model's are noticed, and nothing is left
    monkeypatch.setattr(tuned, "adapter_state", lambda net: {k: v * 1.01 for k, v in adapter_state(net).items()})
    with pytest.raises(RunError, match="predicts otherwise"):
        export(model, "lora", tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()


def test_weights_in_bfloat16_are_written_as_exactly(images: Path, folders: dict[str, Path], tmp_path: Path) -> None:
    """As on a GPU: adapters in float32 on rounded weights; the file is for the weights as they are."""
    plain = trained(images, folders["sd"])
    model = from_spec(replace(plain.spec, config={**plain.spec.config, "half": True})).eval()
    model.backbone.load_state_dict(plain.backbone.own_state(), strict=False)
    types = {p.requires_grad: p.dtype for p in model.backbone.parameters()}
    assert types == {True: torch.float32, False: torch.bfloat16}
    x, t, y = torch.randn(2, *model.backbone.shape), torch.tensor([10.0, 600.0]), torch.tensor([0, 3])
    prediction, _ = model.backbone(x, t, y)
    prediction.float().square().mean().backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.backbone.parameters())
    expected, _ = plain.backbone(x, t, y)
    assert float((prediction - expected).detach().abs().max()) < 0.05 * float(expected.detach().abs().max())
    export(model, "lora", tmp_path / "half")
    export(plain, "lora", tmp_path / "plain")
    files = [(tmp_path / name / tuned.LORA).read_bytes() for name in ("half", "plain")]
    assert files[0] == files[1]


def test_forms_that_a_model_does_not_have(images: Path, folders: dict[str, Path], tmp_path: Path) -> None:
    model = model_of(images, folders["sd"], **{"model.adapt": "full"}).eval()
    with pytest.raises(ConfigError, match="no adapters"):
        export(model, "lora", tmp_path / "lora")
    export(model, "pipeline", tmp_path / "whole")
    assert "fine-tuned" in model_card(model, tuned.open_pretrained(str(folders["sd"])), "pipeline")
