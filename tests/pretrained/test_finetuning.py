"""A pretrained model fine-tuned: the whole run, killed and continued, every method, and what is refused."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from imbdiff.cli import main
from imbdiff.config import flatten, override, to_dict
from imbdiff.diffusion.generate import generate
from imbdiff.diffusion.saved import load_model, save_model
from imbdiff.methods import METHODS
from imbdiff.pipeline import finetuning, training
from imbdiff.pipeline.folder import RunFolder
from imbdiff.pipeline.plan import check_options
from imbdiff.presets import preset
from imbdiff.runtime.errors import ConfigError, RunError
from imbdiff.training.parts import Batches
from tests.pretrained.making import model_of, opened, small

CLASSES = ("frequent", "rare", "some {odd}")


def arguments(folder: Path) -> list[str]:
    values, plain = flatten(to_dict(small(folder))), flatten(to_dict(preset("finetune")))
    given = {name: value for name, value in values.items() if value != plain[name]}
    return [word for name, value in given.items() for word in (f"--{name}", str(value))]


def test_a_run_goes_to_its_page_and_leaves_the_pretrained_weights_as_they_are(
    images: Path, folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(folders["sd"], tmp_path / "model")
    (folder / "README.md").write_text("---\nlicense: openrail-m\ntags: [a]\n---\nA card.\n")
    before = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    command = ["run", str(images), *arguments(folder), "--out", str(tmp_path / "run")]
    assert main(command) == 0
    said, page = capsys.readouterr().out, (tmp_path / "run" / "report.html").read_text()
    for text in ("openrail-m", "never measured with real pretrained weights", "perhaps on test images"):
        assert text in said
        assert text in page
    assert "'a photo of a some {odd}'" in said
    run = RunFolder(tmp_path / "run")
    assert run.saved()[1].preset == "finetune"  # that nobody named
    model = load_model(run / "model")
    assert model.backbone.own_state().keys() < model.backbone.state_dict().keys()
    assert (run / "model" / "model.safetensors").stat().st_size < sum(v.nbytes for v in before.values()) / 2
    now = {k.removeprefix("net.").replace(".base_layer", ""): v for k, v in model.backbone.state_dict().items()}
    assert all(torch.equal(now[name], value) for name, value in before.items())
    assert any(v.any() for k, v in model.backbone.own_state().items() if "lora_B" in k)
    assert model.weak is not None
    assert model.weak.backbone.net.conv_in.weight is model.backbone.net.conv_in.weight  # one copy in memory
    # the same command does nothing; a later stage needs the folder where it samples alone
    assert main(command) == 0
    assert capsys.readouterr().out.count("done before") >= 4
    shutil.move(folder, tmp_path / "moved")
    assert main(["report", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    assert main(["sample", str(tmp_path / "run"), "--number", "rare=1", "--out", str(tmp_path / "more")]) == 2
    error = capsys.readouterr().err
    assert "not there" in error
    assert "model.json" in error
    path = run / "model" / "model.json"  # the remedy
    path.write_text(path.read_text().replace(str(folder), str(tmp_path / "moved")))
    assert main(["sample", str(tmp_path / "run"), "--number", "rare=1", "--out", str(tmp_path / "more")]) == 0
    # another base is refused by its weights
    weights = tmp_path / "moved" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    with pytest.raises(RunError, match="other weights"):
        load_model(run / "model")


KILLED = """
import os, signal, sys
from pathlib import Path
import tests.pretrained.conftest
from imbdiff.pipeline import training
from tests.pretrained.making import opened
def stop(images, row):
    if images == 40:
        os.kill(os.getpid(), signal.SIGKILL)
training.train(*opened(Path(sys.argv[1]), Path(sys.argv[2])), Path(sys.argv[3]), quiet=True, on_step=stop)
"""


def test_a_killed_training_goes_on_bit_for_bit(images: Path, folders: dict[str, Path], tmp_path: Path) -> None:
    data, config = opened(images, folders["sd"])
    whole = training.train(data, config, tmp_path / "whole", quiet=True)
    words = [sys.executable, "-c", KILLED, str(images), str(folders["sd"]), str(tmp_path / "killed")]
    done = subprocess.run(words, env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}, check=False)
    assert done.returncode == -signal.SIGKILL
    checkpoints = sorted((tmp_path / "killed" / "checkpoints").rglob("*.safetensors"))
    assert checkpoints
    assert checkpoints[-1].stat().st_size < 400_000  # adapters, their average and two moments; the network has 1 MB
    again = training.train(data, config, tmp_path / "killed", quiet=True)
    for name, value in whole.backbone.own_state().items():
        assert torch.equal(value, again.backbone.own_state()[name]), name
    images_of = [generate(m, [0, 1, 2, 3], range(4), steps=2, batch_size=4) for m in (whole, again)]
    assert np.array_equal(*images_of)
    save_model(whole, tmp_path / "saved")
    loaded = load_model(tmp_path / "saved")
    assert np.array_equal(images_of[0], generate(loaded, [0, 1, 2, 3], range(4), steps=2, batch_size=4))


def test_full_fine_tuning_trains_and_saves_all_weights(images: Path, folders: dict[str, Path], tmp_path: Path) -> None:
    data, config = opened(images, folders["sd"], **{"model.adapt": "full", "train.images": 16})
    before = load_file(folders["sd"] / "unet" / "diffusion_pytorch_model.safetensors")
    model = training.train(data, config, quiet=True)
    assert model.num_parameters == sum(v.numel() for v in before.values())
    state = model.backbone.own_state()
    assert all(not torch.equal(state[f"net.{name}"], v) for name, v in before.items() if v.ndim > 1)
    save_model(model, tmp_path)
    assert np.array_equal(*[generate(m, [0], [0], steps=2, batch_size=1) for m in (model, load_model(tmp_path))])
    untouched = model_of(images, folders["sd"])  # that another model was trained does not change it
    assert torch.equal(untouched.backbone.net.conv_in.weight, before["conv_in.weight"])


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_takes_a_step_or_says_why_not(images: Path, folders: dict[str, Path], method: str) -> None:
    prepared, config = opened(images, folders["sd"], method=method)
    if METHODS[method].ada or any(phase.make is not None for phase in METHODS[method].phases):
        # the reason of the one comes before images are seen, of the other with their codec
        early = any(phase.make is not None for phase in METHODS[method].phases)
        with pytest.raises(ConfigError) as error:
            check_options(config) if early else training.codec_of(prepared, config)
        assert error.value.remedy
        return
    check_options(config)
    for phase in METHODS[method].phases:
        step = training.build_step(phase, prepared, config)
        batches = Batches(step, phase.parts, prepared.train, prepared.groups, config.train, device=torch.device("cpu"))
        loss = step(batches(0))["loss"]
        loss.backward()
        assert torch.isfinite(loss)
        names = {n for n, p in step.networks["model"].named_parameters() if p.grad is not None}
        assert names
        assert all("lora_" in name for name in names)


@pytest.mark.parametrize(
    ("values", "remedy"),
    [
        ({"model.backbone": "unet-16"}, {}),
        ({"model.process": "flow"}, {}),
        ({"codec.kind": "patch"}, {}),
        ({"model.init": "elsewhere"}, {}),
        ({"model.prompt": "a photo"}, {"model.prompt": "a photo of a {name}"}),
        ({"model.rank": 100}, {"model.rank": 16}),
        ({"method": "cm"}, {"method": "cbdm"}),
        ({"method": "diffrc"}, {"method": "ccua"}),
        ({"method": "ccua", "train.batch_size": 4}, {"method": "ccua", "train.batch_size": 8, "train.accumulate": 1}),
        ({"method": "ddpm-augmented"}, {"method": "ddpm-augmented", "method.ada": 0.0}),
        ({"data.size": 17}, {"data.size": 16}),
    ],
)
def test_refused_before_training(
    images: Path, folders: dict[str, Path], values: dict[str, object], remedy: dict[str, object]
) -> None:
    def tried(values: dict[str, object]) -> None:
        prepared, config = opened(images, folders["sd"], **values)
        check_options(config)
        training.new_model(prepared, config)

    with pytest.raises(ConfigError) as error:
        tried(values)
    assert error.value.remedy
    tried(remedy)


def test_options_of_a_pretrained_model_are_refused_without_one() -> None:
    with pytest.raises(ConfigError, match="rank"):
        check_options(override(preset("tiny"), {"model.rank": 4}))
    check_options(preset("tiny"))


def test_what_training_is_depends_on_contents(images: Path, folders: dict[str, Path], tmp_path: Path) -> None:
    moved = shutil.copytree(folders["sd"], tmp_path / "moved")
    table = tmp_path / "names.csv"
    table.write_text("rare,a cat\n")

    def key(folder: Path, **values: object) -> str:
        return training.training_inputs(*opened(images, folder, **values))

    first = key(folders["sd"])
    assert first == key(moved)
    others = [{"model.rank": 8}, {"model.prompt": "a {name}"}, {"model.names": str(table)}, {"model.adapt": "full"}]
    assert len({first, *(key(moved, **other) for other in others)}) == 5
    with (moved / "tokenizer" / "tokenizer.json").open("a") as file:
        file.write("\n")
    assert first != key(moved)
    text = finetuning.resolved(small(folders["sd"]))
    assert text == finetuning.resolved(text)  # what a run has saved is taken as it is
