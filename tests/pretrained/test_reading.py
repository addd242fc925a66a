"""What is read of a pipeline's folder, the prompts, and what is refused with a remedy that works."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from imbdiff.diffusion.pretrained import open_pretrained
from imbdiff.diffusion.process import DDPM, Flow
from imbdiff.diffusion.prompts import codes, prompts_of, read_names, table_of
from imbdiff.runtime.errors import ConfigError


def test_kinds_sizes_and_processes(folders: dict[str, Path]) -> None:
    stable = DDPM("scaled_linear", ends=(0.00085, 0.012))
    for kind, process in (("sd", stable), ("sdxl", stable), ("sd3", Flow(shift=3.0)), ("pixart", DDPM())):
        found = open_pretrained(str(folders[kind]))
        assert (found.side, found.factor) == (16, 2)
        assert found.process((16, 16)) == process, kind
    flux = open_pretrained(str(folders["flux"]))
    assert flux.side == 256
    # 16 tokens of 256 at least: diffusers goes on along the line below
    assert flux.process((16, 16)).shift == pytest.approx(2.718281828 ** (0.5 + 0.65 * (16 - 256) / 3840), rel=1e-5)


def test_fingerprints_follow_contents(folders: dict[str, Path], tmp_path: Path) -> None:
    a, b = open_pretrained(str(folders["sd"])), open_pretrained(str(folders["sdxl"]))
    assert len({a.fingerprint, b.fingerprint, a.text, b.text}) == 4
    moved = open_pretrained(str(shutil.copytree(folders["sd"], tmp_path / "moved")))
    assert (moved.fingerprint, moved.text) == (a.fingerprint, a.text)


def test_a_table_is_what_the_text_encoder_gives_and_ends_with_the_empty_prompt(folders: dict[str, Path]) -> None:
    from transformers import CLIPTextModel, CLIPTokenizer

    found = open_pretrained(str(folders["sd"]))
    table = table_of(found, ["a photo of a cat", "x"])
    tokenizer = CLIPTokenizer.from_pretrained(found.folder / "tokenizer")
    text = CLIPTextModel.from_pretrained(found.folder / "text_encoder")
    ids = tokenizer(["a photo of a cat", "x", ""], padding="max_length", max_length=77, truncation=True)["input_ids"]
    with torch.no_grad():
        expected = text(torch.tensor(ids))[0]
    assert torch.allclose(table["embeds"], expected, atol=1e-6)
    assert not torch.allclose(expected[0], expected[1], atol=1e-3)
    xl = table_of(open_pretrained(str(folders["sdxl"])), ["x"])
    assert not xl["embeds"][-1].any()  # as SDXL says of its empty prompt
    assert not xl["pooled"][-1].any()


def test_prompts() -> None:
    assert prompts_of(["cat", "wild_dog"], "a {size} photo of {name}") == (
        "a {size} photo of cat",
        "a {size} photo of wild dog",
    )
    assert prompts_of(["akiec", "nv"], "{name}", {"akiec": "actinic keratosis"})[0] == "actinic keratosis"
    assert codes(["007", "nv", "cat", "mel2", "fjord"], {"nv": "mole"}) == ["007", "mel2"]
    with pytest.raises(ConfigError, match="one prompt") as error:
        prompts_of(["wild_dog", "Wild dog"], "a {name}")
    assert "--model.names" in error.value.remedy
    assert prompts_of(["wild_dog", "Wild dog"], "a {name}", {"Wild dog": "dingo"}) == ("a wild dog", "a dingo")
    with pytest.raises(ConfigError, match="no class"):
        prompts_of(["cat"], "{name}", {"cat": "a cat", "dgo": "a dog"})


def test_names_come_from_csv_and_yaml(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('name,words\nnv,"mole, common"\n')
    (tmp_path / "a.yaml").write_text("nv: mole, common\n7: seven\n")
    assert read_names(tmp_path / "a.csv") == {"name": "words", "nv": "mole, common"}
    assert read_names(tmp_path / "a.yaml") == {"nv": "mole, common", "7": "seven"}
    assert prompts_of(["nv"], "{name}", read_names(tmp_path / "a.csv")) == ("mole, common",)  # the heading is no class
    for text in ("a,b,c\n", "only\n"):
        (tmp_path / "b.csv").write_text(text)
        with pytest.raises(ConfigError):
            read_names(tmp_path / "b.csv")
    with pytest.raises(ConfigError):
        read_names(tmp_path / "missing.csv")


def test_folders_that_cannot_be_used(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))

    def changed(name: str, path: str, **values: object) -> Path:
        folder = shutil.copytree(folders["sd"], tmp_path / name)
        file = folder / path
        file.write_text(json.dumps({**json.loads(file.read_text()), **values}))
        return folder

    def message(name: object) -> str:
        with pytest.raises(ConfigError) as error:
            open_pretrained(str(name))
        assert error.value.remedy
        return str(error.value)

    assert "hf download nobody/nothing" in message("nobody/nothing")
    (tmp_path / "model.safetensors").write_text("")
    assert "from_single_file" in message(tmp_path / "model.safetensors")
    (tmp_path / "single").mkdir()
    (tmp_path / "single" / "v1-5.ckpt").write_text("")
    assert "v1-5.ckpt" in message(tmp_path / "single")
    assert "StableDiffusionPipeline" in message(changed("other", "model_index.json", _class_name="StableDiffusionPipe"))
    assert "sigmoid" in message(changed("noise", "scheduler/scheduler_config.json", beta_schedule="sigmoid"))
    assert "9 channels" in message(changed("inpaint", "unet/config.json", in_channels=9))
    pickled = shutil.copytree(folders["sd"], tmp_path / "pickled")
    weights = pickled / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    assert "pickled" in message(pickled)
    shutil.rmtree(pickled / "vae")
    assert "vae" in message(pickled)


@pytest.mark.parametrize("kind", ["sd", "sd3", "flux"])
def test_the_bill_counts_what_a_pass_keeps(images: Path, folders: dict[str, Path], kind: str) -> None:
    """Of shapes alone, against a pass on the CPU: its own hook, on numbers."""
    from imbdiff.diffusion import memory
    from tests.pretrained.making import model_of

    found = open_pretrained(str(folders[kind]))
    own = memory.bill(found, (16, 16), "lora", 4, False, 3)
    backbone = model_of(images, folders[kind]).backbone
    params = list(backbone.net.parameters())
    assert own.trained == sum(p.numel() for p in params if p.requires_grad)
    assert own.frozen == 4 * sum(p.numel() for p in params if not p.requires_grad)
    pointers, kept = {p.data_ptr() for p in params}, {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        if x.data_ptr() not in pointers:
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    rows = {n: b[:1] for n, b in backbone.named_buffers(recurse=False)}
    usual = memory._given(found)
    longer = usual["embeds"].shape[1] / rows["embeds"].shape[1]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        out = backbone._call(torch.randn(1, *backbone.shape), torch.zeros(1), rows)
    assert out.requires_grad
    assert 0.5 < own.image / sum(kept.values()) < max(2.0, 1.5 * longer)
    assert own.total == own.frozen + 20 * own.trained + 3 * own.image
    half = memory.bill(found, (16, 16), "lora", 4, True, 3)
    assert (half.frozen, half.trained) == (own.frozen // 2, own.trained)
    assert memory.bill(found, (32, 32), "lora", 4, False, 1).image > 1.5 * own.image or kind in ("flux", "sd3")
    whole = memory.bill(found, (16, 16), "full", 4, False, 1)
    assert (whole.frozen, whole.trained) == (0, own.frozen // 4)


def test_the_bill_of_stable_diffusion_one() -> None:
    """Adapters of rank 16 on its attention are 3,188,736 numbers; its network has 859,520,964 parameters."""
    from imbdiff.diffusion.memory import bill
    from imbdiff.diffusion.pretrained import Pretrained

    config = {
        "_class_name": "UNet2DConditionModel", "attention_head_dim": 8, "block_out_channels": [320, 640, 1280, 1280],
        "cross_attention_dim": 768, "sample_size": 64,
    }  # fmt: skip
    vae = {"block_out_channels": [1] * 4, "latent_channels": 4}
    found = Pretrained("SD", Path(), {"_class_name": "StableDiffusionPipeline"}, config, {}, vae)
    own = bill(found, (512, 512), "lora", 16, True, 4)
    assert (own.trained, own.frozen) == (3_188_736, 2 * 859_520_964)
    assert "8 GB" in own.text()
