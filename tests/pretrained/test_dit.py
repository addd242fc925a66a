"""A DiT of other classes: begun at "no class", tuned, and written as a pipeline of diffusers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from imbdiff.diffusion.saved import load_model, save_model
from imbdiff.integrations.tuned import export
from imbdiff.pipeline import training
from imbdiff.runtime.errors import ConfigError
from tests.pretrained.making import model_of, opened


def test_it_begins_as_no_class_and_is_written_for_diffusers(
    images: Path, folders: dict[str, Path], tmp_path: Path
) -> None:
    from diffusers import DiTPipeline, DiTTransformer2DModel

    data, config = opened(images, folders["dit"], method="cbdm")
    plain = DiTTransformer2DModel.from_pretrained(folders["dit"], subfolder="transformer").eval()
    start = training.new_model(data, config).eval()
    generator = torch.Generator().manual_seed(0)
    x, t = torch.randn(4, 4, 8, 8, generator=generator), torch.tensor([1.0, 300.0, 600.0, 900.0])
    y = torch.tensor([0, 1, 2, 3])
    with torch.no_grad():
        expected = plain(x, t, torch.full((4,), 10), return_dict=False)[0][:, :4]
        assert torch.allclose(start.backbone(x, t, y)[0], expected, atol=2e-6)
        seen, taps = start.backbone(x, t, y, ("mid", "quarter"), 2)
    assert seen.shape == (2, 4, 8, 8)
    assert taps["mid"].shape == (4, 16, 32)
    model = training.train(data, config, quiet=True)
    trained = {n for n in model.backbone.own_state() if "lora_" not in n}
    assert len(trained) == 4
    assert all("embedding_table" in name for name in trained)
    save_model(model, tmp_path / "model")
    own = load_model(tmp_path / "model").backbone
    export(load_model(tmp_path / "model"), "pipeline", tmp_path / "out")
    pipe = DiTPipeline.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        mine, _ = own(x, t, y)
        theirs = pipe.transformer(x, t, torch.tensor([0, 1, 2, 10]), return_dict=False)[0][:, :4]
    assert torch.allclose(mine, theirs, atol=1e-5)
    assert not torch.allclose(mine, expected, atol=1e-3)
    assert json.loads((tmp_path / "out" / "model_index.json").read_text())["id2label"]["1"] == "rare"
    with pytest.raises(ConfigError, match="DiT"):
        export(load_model(tmp_path / "model"), "lora", tmp_path / "lora")


def test_prompts_have_no_effect(images: Path, folders: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match="no prompts"):
        model_of(images, folders["dit"], **{"model.prompt": "{name}!"})
    with pytest.raises(ConfigError, match="lora"):
        model_of(images, folders["dit"], **{"model.adapt": "tokens"})
