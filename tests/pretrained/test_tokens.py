"""A learned word for each class: where it starts, what is trained, and what plain diffusers makes of the files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from imbdiff.diffusion.pretrained import open_pretrained
from imbdiff.diffusion.prompts import table_of
from imbdiff.diffusion.saved import load_model, save_model
from imbdiff.diffusion.tokens import begin, token_names
from imbdiff.integrations.tuned import export
from imbdiff.pipeline import training
from imbdiff.runtime.errors import ConfigError
from tests.pretrained.making import model_of, opened, small

LEARNED = "text.text.embeddings.token_embedding.learned"


def test_names_of_tokens() -> None:
    found = token_names(["cat", "Wild dog", "wild_dog", "鳥", "{x}"])
    assert found == ["<cat>", "<wild-dog>", "<wild-dog-2>", "<class-3>", "<x>"]


def test_a_word_begins_as_the_words_it_stands_for(images: Path, folders: dict[str, Path], tmp_path: Path) -> None:
    table = tmp_path / "names.csv"
    table.write_text("frequent,x\nrare,y\nsome {odd},z\n")
    model = model_of(images, folders["sd"], **{"model.adapt": "tokens", "model.names": str(table)})
    assert model.spec.config["prompts"][2] == "a photo of a <some-odd>"
    expected = table_of(open_pretrained(str(folders["sd"])), [f"a photo of a {c}" for c in "xyz"])["embeds"]
    found = model.backbone.text(model.backbone.get_buffer("ids"))
    assert torch.allclose(found, expected, atol=1e-5)
    assert model.num_parameters == 3 * 32


def test_they_alone_are_trained_saved_and_exported(images: Path, folders: dict[str, Path], tmp_path: Path) -> None:
    from diffusers import DiffusionPipeline

    data, config = opened(images, folders["sd"], **{"model.adapt": "tokens", "method": "cbdm"})
    plain = small(folders["sd"], **{"model.adapt": "tokens", "method": "cbdm"})  # as a program gives it
    before = training.new_model(data, config)
    model = training.train(data, plain, quiet=True)
    state = model.backbone.own_state()
    assert set(state) == {"ids", LEARNED}
    assert (state[LEARNED] != before.backbone.own_state()[LEARNED]).any(1).all()
    save_model(model, tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    x, t, y = torch.randn(2, 4, 8, 8), torch.tensor([10.0, 500.0]), torch.tensor([1, 3])
    with torch.no_grad():
        prediction, _ = loaded.backbone(x, t, y)
        assert torch.equal(prediction, model.backbone(x, t, y)[0])
    export(loaded, "tokens", tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "README.md", "frequent.safetensors", "rare.safetensors", "some-odd.safetensors",
    ]  # fmt: skip
    pipe = DiffusionPipeline.from_pretrained(folders["sd"])
    pipe.load_textual_inversion(tmp_path / "out" / "rare.safetensors")
    with torch.no_grad():
        embeds = pipe.encode_prompt("a photo of a <rare>", "cpu", 1, False)[0]
        plain = pipe.unet(x[:1], t[:1], embeds, return_dict=False)[0]
    assert torch.allclose(plain, prediction[:1], atol=2e-6)
    with pytest.raises(ConfigError, match="words of the classes"):
        export(loaded, "pipeline", tmp_path / "other")


def test_pipelines_with_several_text_encoders_are_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match="Stable Diffusion 1 and 2") as error:
        begin(open_pretrained(str(folders["sdxl"])), ["<a>"], ["<a>"], ["a"])
    assert "lora" in error.value.remedy
