"""Trained models as diffusers folders, and diffusers' folders as models to start from."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, DiTTransformer2DModel, UNet2DModel

from imbdiff.data.stats import ClassStats
from imbdiff.diffusion.codec import Codec
from imbdiff.diffusion.codecs.autoencoder import open_autoencoder
from imbdiff.diffusion.codecs.patch import PatchCodec
from imbdiff.diffusion.generate import generate
from imbdiff.diffusion.guidance import ClassifierFree
from imbdiff.diffusion.model import DiffusionModel, build_model
from imbdiff.diffusion.process import DDPM, PROCESSES, Flow
from imbdiff.diffusion.saved import save_model
from imbdiff.integrations.guided import ImbalancedDiffusionPipeline, described
from imbdiff.integrations.pipeline import from_diffusers, process_of, scheduler_for, to_diffusers, to_pipeline
from imbdiff.runtime.errors import ConfigError, RunError
from imbdiff.runtime.streams import torch_rng
from tests.diffusion.vae import save_vae

STATS = ClassStats(("a", "b", "c"), (50, 10, 2))
CASES = [
    ("unet-8", "ddpm", (1, 8, 8)),
    ("unet-8", "flow", (3, 7, 9)),
    ("dit-tiny", "ddpm-cosine-v", (3, 8, 8)),
    ("unet-8-adagn", "ddpm-cosine-v", (1, 8, 8)),
]
SMALL: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": (8, 16),
    "norm_num_groups": 8,
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}


def build(name: str, process: str, shape: tuple[int, int, int]) -> DiffusionModel:
    return build_model(name, PROCESSES[process], shape, STATS, seed=3).eval()


def inputs(model: DiffusionModel) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    t = model.process.time_from_uniform(torch.tensor([0.0, 0.1, 0.6, 0.99]))
    return torch.randn(4, *model.spec.shape, generator=g), t, torch.tensor([0, 1, 2, 3])


@torch.no_grad()
@pytest.mark.parametrize(("name", "process", "shape"), CASES)
def test_round_trip_predicts_exactly_the_same(
    tmp_path: Path, name: str, process: str, shape: tuple[int, int, int]
) -> None:
    model = build(name, process, shape)
    before = torch.random.get_rng_state()
    to_diffusers(model, tmp_path / "pipe")
    back = from_diffusers(tmp_path / "pipe")
    assert torch.equal(before, torch.random.get_rng_state())
    pipe = ImbalancedDiffusionPipeline.from_pretrained(tmp_path / "pipe")
    x, t, y = inputs(model)
    expected = model(x, t, y)[0]
    assert torch.equal(back(x, t, y)[0], expected)
    assert torch.equal(pipe.predict(x, model.process.model_time(t), y), expected)
    assert back.process == model.process
    assert back.spec.stats == STATS
    assert back.spec.shape == shape
    save_model(back, tmp_path / "model")  # an ordinary model again
    assert not list((tmp_path / "pipe").rglob("*.bin"))


@torch.no_grad()
def test_the_network_is_plain_diffusers(tmp_path: Path) -> None:
    """unet/ and scheduler/ load without this package, and the network takes class ids."""
    model = build("unet-8", "ddpm", (1, 8, 8))
    to_diffusers(model, tmp_path / "pipe")
    unet = UNet2DModel.from_pretrained(tmp_path / "pipe", subfolder="unet")
    x, t, y = inputs(model)
    assert torch.equal(unet(x, t, class_labels=y).sample, model(x, t, y)[0])
    assert not unet.class_embedding.weight[3].any()
    scheduler = DDIMScheduler.from_pretrained(tmp_path / "pipe", subfolder="scheduler")
    torch.testing.assert_close(scheduler.betas.double(), DDPM().betas, rtol=1e-5, atol=0)
    assert scheduler.config.prediction_type == "epsilon"


@pytest.mark.parametrize(
    ("case", "omega", "sampler"),
    [(0, 0.0, "dpm++"), (0, 0.8, "ddpm"), (1, 0.8, "euler"), (1, 0.8, "dpm++"), (2, 0.8, "dpm++")],
)
def test_the_pipeline_generates_what_generate_does(case: int, omega: float, sampler: str) -> None:
    model = build(*CASES[case])
    guidance = ClassifierFree(omega, 3, model.process)
    expected = generate(model, [0, 2, 3], [5, 6, 7], sampler=sampler, steps=4, batch_size=3, guidance=guidance)
    pipe = to_pipeline(model, sampler=sampler)
    pipe.set_progress_bar_config(disable=True)
    for _ in range(2):  # a second call starts the scheduler again
        drawn = pipe(
            class_labels=[0, 2, 3], guidance_scale=1 + omega, num_inference_steps=4, output_type="np",
            generator=[torch_rng(seed, "image") for seed in (5, 6, 7)],
        ).images  # fmt: skip
        assert abs(np.rint(drawn * 255) - expected).max() <= 1
        assert (np.rint(drawn * 255) == expected).mean() > 0.99


def test_call_options() -> None:
    pipe = to_pipeline(build("unet-8", "ddpm", (3, 7, 9)), sampler="ddpm")
    pipe.set_progress_bar_config(disable=True)
    before = torch.random.get_rng_state()
    first, second = (
        pipe([0, 1], num_inference_steps=2, generator=torch.Generator().manual_seed(1)).images for _ in range(2)
    )
    assert torch.equal(before, torch.random.get_rng_state())
    assert [image.size for image in first] == [(9, 7), (9, 7)]
    assert [np.asarray(a).tolist() for a in first] == [np.asarray(a).tolist() for a in second]
    tensor = pipe(1, num_inference_steps=2, output_type="pt", return_dict=False)[0]
    assert tensor.shape == (1, 3, 7, 9)
    assert 0 <= tensor.min() <= tensor.max() <= 1
    for bad in ([4], [-1], []):
        with pytest.raises(ConfigError, match="out of range"):
            pipe(bad)
    with pytest.raises(ConfigError, match="output_type"):
        pipe([0], output_type="jpg")


@torch.no_grad()
@pytest.mark.parametrize(("null", "whole"), [("zero", True), ("trained", False), ("none", True)])
def test_start_from_a_unet_that_diffusers_saved(tmp_path: Path, null: str, whole: bool) -> None:
    """A class-conditional U-Net with and without a null row, as a pipeline folder and alone."""
    torch.manual_seed(0)
    unet = UNet2DModel(num_class_embeds=3 if null == "none" else 4, **SMALL).eval()
    if null == "zero":
        unet.class_embedding.weight[3] = 0
    if whole:
        scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
        DDPMPipeline(unet, scheduler).save_pretrained(tmp_path)
        model = from_diffusers(tmp_path, stats=STATS)
        assert model.process == DDPM("cosine", "v_prediction")
    else:
        unet.save_pretrained(tmp_path)
        model = from_diffusers(tmp_path, stats=STATS, process=DDPM())
        with pytest.raises(ConfigError, match="holds no scheduler"):
            from_diffusers(tmp_path, stats=STATS)
    x, t, y = inputs(model)
    rows = slice(0, 3) if null == "none" else slice(0, 4)
    expected = unet(x[rows], t[rows], class_labels=y[rows]).sample
    ours = model(x[rows], t[rows], y[rows])[0]
    if null == "trained":
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)
        plain = from_diffusers(tmp_path, stats=STATS, process=DDPM())
        assert not plain.backbone.conditioner(torch.tensor([3])).any()  # the null label stays the zero vector
    else:
        assert torch.equal(ours, expected)
    model.train()
    with torch.enable_grad():
        model(x, t, y)[0].square().mean().backward()
    assert all(p.grad is not None for p in model.parameters())
    with pytest.raises(ConfigError, match="how many training images"):
        from_diffusers(tmp_path, process=DDPM())


@torch.no_grad()
def test_start_from_a_dit_with_learned_variance(tmp_path: Path) -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "sample_size": 8}
    dit = DiTTransformer2DModel(in_channels=3, out_channels=6, num_embeds_ada_norm=3, **options).eval()
    dit.save_pretrained(tmp_path)
    model = from_diffusers(tmp_path, stats=STATS, process=DDPM())
    x, t, y = inputs(model)
    assert torch.equal(model(x, t, y)[0], dit(x, timestep=t, class_labels=y).sample[:, :3])
    model.train()
    assert torch.equal(model(x, t, y)[0], model(x, t, y)[0])


def test_processes_round_trip_through_scheduler_configurations() -> None:
    for process in PROCESSES.values():
        for sampler in ("ddpm", "ddim", "dpm++", "unipc") if isinstance(process, DDPM) else ("euler", "dpm++", "unipc"):
            scheduler = scheduler_for(process, sampler)
            assert process_of(described(scheduler)) == process
    assert process_of({"trained_betas": DDPM("cosine").betas.tolist()}) == DDPM("cosine")
    assert process_of({"_class_name": "FlowMatchEulerDiscreteScheduler"}) == Flow()
    for config in (
        {"beta_schedule": "sigmoid"},
        {"num_train_timesteps": 500},
        {"prediction_type": "sample"},
        {"trained_betas": [0.1] * 500},
    ):
        with pytest.raises(ConfigError):
            process_of(config)


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no diffusers model"):
        from_diffusers(tmp_path, stats=STATS, process=DDPM())
    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"num_class_embeds": 7}, RunError, "7 class embeddings for 3 classes"),
        ({}, RunError, "0 class embeddings"),
        ({"num_class_embeds": 4, "time_embedding_type": "fourier"}, ConfigError, "fourier"),
        ({"num_class_embeds": 4, "center_input_sample": True}, ConfigError, "center_input_sample"),
        ({"num_class_embeds": 4, "out_channels": 2}, ConfigError, "out_channels"),
    ]
    for i, (options, error, message) in enumerate(cases):
        UNet2DModel(**(SMALL | options)).save_pretrained(tmp_path / str(i))
        with pytest.raises(error, match=message):
            from_diffusers(tmp_path / str(i), stats=STATS, process=DDPM())
    UNet2DModel(num_class_embeds=4, **SMALL).save_pretrained(tmp_path / "pickled", safe_serialization=False)
    with pytest.raises(RunError, match="cannot be loaded"):
        from_diffusers(tmp_path / "pickled", stats=STATS, process=DDPM())


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    for name, kind in (("mlp", "MLPBackbone"), ("unet-16-folded", "FoldedUNetBackbone")):
        with pytest.raises(ConfigError, match=kind):
            to_diffusers(build(name, "ddpm", (1, 16, 16)), tmp_path / "x")
    short = build_model("unet-8", DDPM(num_steps=100), (1, 8, 8), STATS)
    with pytest.raises(ConfigError, match="100"):
        to_diffusers(short, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "mine").write_text("keep")
    with pytest.raises(RunError, match="exists already"):
        to_diffusers(build("unet-8", "ddpm", (1, 8, 8)), tmp_path / "x")
    assert (tmp_path / "x" / "mine").read_text() == "keep"


def test_a_guide_is_left_out_with_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    from imbdiff.diffusion.encoder import PrototypeEncoder

    model = build_model("unet-8", DDPM(), (1, 8, 8), STATS).eval()
    to_pipeline(model)
    assert not [w for w in recwarn if "not exported" in str(w.message)]
    model.guide = PrototypeEncoder.like(model, 0)
    with pytest.warns(UserWarning, match="guide of this model is not exported"):
        pipe = to_pipeline(model)
    assert not [name for name, _ in pipe.unet.named_parameters() if "prototypes" in name or "head" in name]


WITHOUT_US = """
import sys
sys.modules["imbdiff"] = None  # importing it fails
import numpy as np
import torch
from diffusers import DiffusionPipeline
folder, how, where = sys.argv[1:]
options = {"custom_pipeline": folder} if how == "custom" else {}
pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True, **options)
pipe.set_progress_bar_config(disable=True)
generators = [torch.Generator().manual_seed(seed) for seed in (1, 2, 3)]
images = pipe(["b", 2, 3], guidance_scale=1.8, num_inference_steps=4, generator=generators, output_type="np").images
np.save(where, images)
pipe.save_pretrained(folder + "-again")
try:
    pipe(["nosuch"])
except Exception as error:
    assert type(error).__name__ == "ConfigError" and "nosuch" in str(error), error
else:
    sys.exit("a class that there is not was taken")
"""


@pytest.mark.parametrize(("case", "how"), [(0, "trusted"), (1, "custom"), (2, "trusted")])
def test_the_folder_loads_where_this_package_is_not(tmp_path: Path, case: int, how: str) -> None:
    """Written, read, written again and read by that: the same images, without and with this package."""
    model = build(*CASES[case])
    to_diffusers(model, str(tmp_path / "pipe"))
    pipe = ImbalancedDiffusionPipeline.from_pretrained(tmp_path / "pipe")  # no code of the folder is needed, or run
    assert type(pipe) is ImbalancedDiffusionPipeline
    pipe.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2, 3)]
    expected = pipe(
        ["b", 2, 3], guidance_scale=1.8, num_inference_steps=4, generator=generators, output_type="np"
    ).images
    (tmp_path / "program.py").write_text(WITHOUT_US)
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    folder = tmp_path / "pipe"
    for i in range(2):
        command = [sys.executable, "program.py", str(folder), how, f"{i}.npy"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        np.testing.assert_allclose(np.load(tmp_path / f"{i}.npy"), expected, atol=1e-6)
        folder = tmp_path / "pipe-again"
    assert {p.name for p in folder.iterdir()} == {p.name for p in (tmp_path / "pipe").iterdir()}
    assert from_diffusers(str(folder)).spec.stats == STATS


def test_the_model_card_tells_the_classes_and_nothing_breaks_it(tmp_path: Path) -> None:
    names = ("a|b", "x\ny", "<b>*", *(f"c{i}" for i in range(117)))
    pipe = to_pipeline(build_model("unet-8", DDPM(), (1, 8, 8), ClassStats(names, tuple(range(120, 0, -1)))))
    pipe.save_pretrained(tmp_path / "pipe")
    card = (tmp_path / "pipe" / "README.md").read_text()
    head, text = card.removeprefix("---\n").split("---\n", 1)
    assert yaml.safe_load(head)["library_name"] == "diffusers"
    rows = [line for line in text.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == 100
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 4 for row in rows)
    assert rows[2] == r"| 2 | \<b\>\* | 118 |"
    assert "20 further classes" in text


def test_what_the_hub_refuses_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    pipe = to_pipeline(build("unet-8", "ddpm", (1, 8, 8)))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="nothing was uploaded to someone/digits"):
        pipe.push_to_hub("someone/digits", token="hf_none")
    with pytest.raises(ConfigError, match="no name on the hub"):
        pipe.push_to_hub("a/b/c/d")
    uploaded: list[set[str]] = []

    def upload(*, folder_path: str, **_: Any) -> str:
        uploaded.append({p.name for p in Path(folder_path).iterdir()})
        return "address"

    made = type("Made", (), {"repo_id": "someone/digits"})
    monkeypatch.setattr(huggingface_hub, "create_repo", lambda *_, **__: made)
    monkeypatch.setattr(huggingface_hub, "upload_folder", upload)
    assert pipe.push_to_hub("someone/digits") == "address"
    assert uploaded == [{"README.md", "model_index.json", "pipeline.py", "scheduler", "unet"}]


@pytest.mark.parametrize("part", ["vqvae", "text_encoder"])
def test_a_model_whose_network_gives_no_images_is_refused(tmp_path: Path, part: str) -> None:
    """Read as one of pixels, a latent model gave four-channel images."""
    to_diffusers(build("dit-tiny", "flow", (3, 8, 8)), tmp_path / "pipe")
    from_diffusers(tmp_path / "pipe")
    (tmp_path / "pipe" / part).mkdir()
    with pytest.raises(ConfigError, match=part):
        from_diffusers(tmp_path / "pipe")


def patch_codec(_: Path, channels: int) -> Codec:
    images = np.random.default_rng(0).integers(0, 256, (20, 18, 16, channels), dtype=np.uint8)
    return PatchCodec.fit(images, 4, 5)


def latent_codec(folder: Path, channels: int) -> Codec:
    codec = open_autoencoder(save_vae(folder / "vae"), (channels, 20, 16))
    return replace(codec, mean=(0.1, 0.2, -0.3, 0.0), std=(2.0, 1.5, 0.5, 3.0))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("make", [patch_codec, latent_codec])
def test_a_network_in_the_space_of_a_codec_keeps_it(
    tmp_path: Path, make: Callable[[Path, int], Codec], channels: int
) -> None:
    """Read again, and called as a pipeline without this package's codecs: the same images."""
    codec = make(tmp_path, channels)
    model = build_model("unet-8", PROCESSES["flow"], codec.image, STATS, seed=3, codec=codec).eval()
    expected = generate(model, [0, 2], [5, 6], sampler="euler", steps=3, batch_size=2)
    to_diffusers(model, tmp_path / "pipe", sampler="euler")
    back = from_diffusers(tmp_path / "pipe")
    assert back.codec.shape == codec.shape
    assert back.spec.shape == codec.image
    assert abs(generate(back, [0, 2], [5, 6], sampler="euler", steps=3, batch_size=2).astype(int) - expected).max() <= 1
    pipe = ImbalancedDiffusionPipeline.from_pretrained(tmp_path / "pipe")
    pipe.set_progress_bar_config(disable=True)
    generators = [torch_rng(seed, "image") for seed in (5, 6)]
    drawn = pipe([0, 2], num_inference_steps=3, output_type="np", generator=generators).images
    assert drawn.shape == expected.shape
    assert abs(np.rint(drawn * 255) - expected).max() <= 1
    assert expected.std() > 5
    assert "from_patches" in (tmp_path / "pipe" / "pipeline.py").read_text()
