"""DiffRC from the command's side: three trainings in one run, its guide kept with the model, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import imbdiff
from imbdiff import cli
from imbdiff.config import RunConfig, override
from imbdiff.data.stats import Groups
from imbdiff.diffusion.encoder import PrototypeEncoder
from imbdiff.diffusion.generate import generate
from imbdiff.diffusion.guidance import ClassifierFree, Guided
from imbdiff.diffusion.model import DiffusionModel
from imbdiff.diffusion.prototype_guidance import PrototypeGuidance
from imbdiff.diffusion.saved import load_model, saved_identity
from imbdiff.methods import METHODS
from imbdiff.objectives.pair_diversity import PairDiversity
from imbdiff.pipeline import sampling as samples
from imbdiff.pipeline import training
from imbdiff.pipeline.folder import RunFolder
from imbdiff.pipeline.page import protocol
from imbdiff.pipeline.plan import check_fit, check_options
from imbdiff.pipeline.sampling import sampling
from imbdiff.recipe import Phase
from imbdiff.runtime.errors import ConfigError, RunError
from imbdiff.runtime.files import read_json
from imbdiff.runtime.log import read_jsonl
from imbdiff.training.loop import Loop
from imbdiff.training.parts import Part
from imbdiff.training.trainer import Trainer
from tests.pipeline.conftest import SMALL

ROWS = ("diffrc", "diffrc-paper")


def config_of(method: str, **options: Any) -> RunConfig:
    made = override(imbdiff.preset("tiny"), {**SMALL, "method": method})
    return override(made, {"train.images": 16 * 20, "sample.strategy": "0.1", **options})


@pytest.fixture(scope="module", params=ROWS)
def done(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp("diffrc") / request.param
    imbdiff.run("digits", folder, config_of(request.param), wanted=("train", "sample"), quiet=True)
    return request.param, folder


def test_three_trainings_that_see_the_runs_images_together(done: tuple[str, Path]) -> None:
    _, folder = done
    source, encoder, target = (read_jsonl(folder / f"log{n}.jsonl") for n in ("-source", "-encoder", ""))
    assert [rows[-1]["images"] for rows in (source, target, encoder)] == [128, 144, 48]
    assert "denoising/mse" in source[0]
    assert "pair_diversity/kl" not in source[0]
    assert all(row["pair_diversity/kl"] > 0 for row in target[1:])
    assert "prototype_contrast/loss" in encoder[0]
    assert "denoising/mse" not in encoder[0]


def test_the_guide_is_kept_with_the_model_and_changes_the_images(done: tuple[str, Path]) -> None:
    name, folder = done
    model = load_model(folder / "model")
    assert isinstance(model.guide, PrototypeEncoder)
    lengths = model.guide.prototypes.norm(dim=1)
    assert bool(((lengths - 1).abs() < 1e-5).logical_or(lengths == 0).all())
    assert int((lengths > 0).sum()) >= 5
    how = sampling(config_of(name))
    guidance = how.guide(model)
    assert isinstance(guidance, Guided)
    assert isinstance(guidance.outer, PrototypeGuidance)
    groups = Groups.default(model.spec.stats).of_class
    scale = 0.6 if name == "diffrc-paper" else tuple(0.0 if g == 0 else 0.6 for g in groups)
    assert (guidance.outer.scale, guidance.outer.prior) == (scale, True)
    assert isinstance(guidance.inner, ClassifierFree)
    assert guidance.inner.omega == (0.0 if name == "diffrc-paper" else 0.8)
    assert (guidance.outer.sampler, guidance.outer.steps) == (how.sampler, how.steps) == ("ddpm", 3)
    free = sampling(override(config_of(name), {"sample.guidance": "classifier-free"}))
    assert isinstance(free.guide(model), ClassifierFree)

    def drawn(scale: float) -> np.ndarray:
        strong = sampling(override(config_of(name), {"sample.guidance.scale": scale}))
        return generate(model, [9] * 4, range(4), sampler=how.sampler, steps=3, guidance=strong.guide(model))

    assert not np.array_equal(drawn(0.0), drawn(40.0))


def test_what_was_drawn_says_how(done: tuple[str, Path]) -> None:
    name, folder = done
    found = read_json(folder / "samples" / "manifest.json")
    assert found["guidance"] == "prototype+classifier-free"
    assert found["constants"]["prototype.scale"] == (0.6 if name == "diffrc-paper" else "0.6,many=0")
    assert found["constants"]["prototype.prior"]
    assert sum(found["counts"]) == len(found["images"]) > 0
    how = sampling(override(config_of(name), {"sample.guidance.prior": False}))
    assert not samples.finished(folder / "samples", {**found, **how.to_json()})


def test_a_model_without_labels_knows_none(done: tuple[str, Path]) -> None:
    name, folder = done
    model = load_model(folder / "model")
    x = torch.randn(10, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    t = torch.full((10,), 500)
    with torch.no_grad():
        given = model(x, t, torch.arange(10))[0]
        null = model(x, t, torch.full((10,), 10))[0]
    assert torch.equal(given, null) == (name == "diffrc-paper")


@pytest.mark.parametrize("name", ROWS)
def test_the_target_starts_from_the_source(name: str) -> None:
    """With class vectors of zero where it learns no labels; random ones where it does: from zero they grow slowly."""
    config = config_of(name)
    prepared = training.prepare_data("digits", config.data)
    phases = {phase.name: phase for phase in METHODS[name].phases}
    step = training.build_step(phases["source"], prepared, config)
    finish = phases["source"].finish
    source = finish(step.networks["model"], step.active) if finish else step.networks["model"]
    target = training.build_step(phases["target"], prepared, config, {"source": source})
    assert target.networks["source"] is source
    assert not any(p.requires_grad for p in source.parameters())
    model = target.networks["model"]
    assert isinstance(model, DiffusionModel)
    assert all(p.requires_grad for p in model.parameters())
    vectors = model.backbone.conditioner.table.detach().norm(dim=1)  # type: ignore[operator, union-attr]
    assert bool((vectors == 0).all()) if name == "diffrc-paper" else bool((vectors > 1).all())
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), source.parameters(), strict=True))


class StoppedError(Exception):
    pass


def test_stopped_between_phases_it_goes_on_with_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of("diffrc-paper", **{"train.images": 16 * 6})
    prepared = training.prepare_data("digits", config.data)
    real, write, stepped, last = Trainer.run, Loop._write, set(), [""]

    def stopping(self: Trainer) -> Any:
        assert self.files.log is not None
        result = real(self)
        if self.files.log.path.name == last[0]:
            raise StoppedError
        return result

    def counting(self: Loop, *args: Any) -> Any:
        assert self.files.log is not None
        stepped.add(self.files.log.path.name)
        return write(self, *args)

    monkeypatch.setattr(Trainer, "run", stopping)
    monkeypatch.setattr(Loop, "_write", counting)
    whole = training.train(prepared, config, tmp_path / "a", quiet=True)
    for end, expected in (
        ("log-source.jsonl", {"log-source.jsonl"}),
        ("log.jsonl", {"log.jsonl"}),  # phases that were finished take no step
        ("", {"log-encoder.jsonl"}),
    ):
        stepped.clear()
        last[0] = end
        if end:
            with pytest.raises(StoppedError):
                training.train(prepared, config, tmp_path / "b", quiet=True)
        else:
            again = training.train(prepared, config, tmp_path / "b", quiet=True)
        assert stepped == expected
    assert samples.weights_identity(again) == samples.weights_identity(whole)


def test_a_new_run_from_a_guided_model_does_not_carry_its_guide(done: tuple[str, Path]) -> None:
    _, folder = done
    config = config_of("ddpm", **{"model.init": str(folder), "data.imbalance_factor": 20.0})
    prepared = training.prepare_data("digits", config.data)
    assert training.new_model(prepared, config).guide is None


def test_a_lost_guide_is_noticed(done: tuple[str, Path], tmp_path: Path) -> None:
    import shutil

    _, folder = done
    shutil.copytree(folder / "model", tmp_path / "model")
    (tmp_path / "model" / "guide.safetensors").unlink()
    (tmp_path / "model" / "guide.json").unlink()
    with pytest.raises(RunError, match="guide"):
        load_model(tmp_path / "model")


@pytest.mark.parametrize("lost", ["guide.json", "guide.safetensors"])
def test_a_run_that_lost_its_guide_makes_it_again(
    done: tuple[str, Path], lost: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    name, folder = done
    shutil.copytree(folder, tmp_path / "run")
    monkeypatch.setattr(Loop, "_write", None)  # all phases are there, finished: nothing is trained
    before = saved_identity(folder / "model")
    (tmp_path / "run" / "model" / lost).unlink()
    imbdiff.run("digits", tmp_path / "run", config_of(name), wanted=("train",), quiet=True)
    assert isinstance(load_model(tmp_path / "run" / "model").guide, PrototypeEncoder)
    assert saved_identity(tmp_path / "run" / "model") == before


@pytest.mark.parametrize("damage", ["lost", "cut"])
def test_a_new_run_does_not_need_the_guide_of_the_model_it_starts_from(
    done: tuple[str, Path], damage: str, tmp_path: Path
) -> None:
    import shutil

    _, folder = done
    shutil.copytree(folder / "model", tmp_path / "model")
    weights = tmp_path / "model" / "guide.safetensors"
    weights.unlink() if damage == "lost" else weights.write_bytes(b"1234")
    config = config_of("ddpm", **{"model.init": str(tmp_path / "model")})
    prepared = training.prepare_data("digits", config.data)
    assert training.new_model(prepared, config).guide is None
    with pytest.raises(RunError, match="guide"):
        load_model(tmp_path / "model")


def test_the_page_says_how_the_guide_was_used(done: tuple[str, Path]) -> None:
    name, folder = done
    config = config_of(name)
    plan = read_json(folder / "samples" / "manifest.json")
    scale = "0.6" if name == "diffrc-paper" else "0.6,many=0"
    row = f"ddpm, 3 steps; guidance: prototype {scale} + classifier-free {METHODS[name].omega:.1f} (0 = none)"
    assert protocol(RunFolder(folder), config, plan, None)["Sampler"].startswith(row)
    constants = {**plan["constants"], "prototype.scale": 2.0, "prototype.prior": False}
    found = protocol(RunFolder(folder), config, {**plan, "constants": constants}, None)["Sampler"]
    assert "prototype 2.0" in found
    assert "prototype.prior False" in found
    other = config_of("cbdm")
    todo = samples.plan_in(Path("nowhere"), [1], ["a"], other, "x")
    assert "prototype" not in protocol(RunFolder(folder), other, todo, None)["Sampler"]


def test_plans_of_other_methods_say_nothing_of_prototypes() -> None:
    plain = samples.plan_in(Path("nowhere"), [1], ["a"], config_of("cbdm"), "x")
    assert set(plain) == {
        "identity", "class_names", "counts", "sampler", "steps", "guidance", "constants", "interval", "batch_size",
        "images",
    }  # fmt: skip
    assert plain["constants"] == {"classifier-free.omega": 1.6}
    guided = samples.plan_in(Path("nowhere"), [1], ["a"], config_of("cbdm+diffrc"), "x")
    assert guided["constants"]["prototype.scale"] == "0.6,many=0"


def test_a_guide_is_refused_where_there_is_none() -> None:
    for now in (True, False):
        check_options(config_of("cbdm+diffrc", **{"sample.guidance.scale": 3}), training=now)
        with pytest.raises(ConfigError, match="needs a guide, and the method ddpm trains none"):
            check_options(config_of("ddpm", **{"sample.guidance": "prototype"}), training=now)
        with pytest.raises(ConfigError, match=r"unknown constant --sample.guidance.prototype\.scale"):
            check_options(config_of("ddpm", **{"sample.guidance.prototype.scale": 2}), training=now)
    check_options(config_of("ddpm"))


def test_sampling_again_with_a_guide_that_there_is_none_of_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_of("ddpm")
    RunFolder(tmp_path).save_config("digits", config)
    (tmp_path / "split.json").write_text('{"class_names": ["a", "b"], "counts": {"train": [9, 1]}}')
    before = (tmp_path / "config.yaml").read_bytes()
    assert cli.main(["sample", "--replace", str(tmp_path), "--sample.guidance", "prototype"]) != 0
    assert "the method ddpm trains none" in capsys.readouterr().err
    assert (tmp_path / "config.yaml").read_bytes() == before


def test_a_model_without_labels_is_not_watched() -> None:
    watched = {"train.watch_images": 64}
    with pytest.raises(ConfigError, match="without labels"):
        check_options(config_of("diffrc-paper", **watched))
    check_options(config_of("diffrc-paper"))
    check_options(config_of("diffrc-paper", **watched), training=False)
    check_options(config_of("diffrc", **watched))


def test_the_methods_steps_go_with_its_sampler() -> None:
    def drawn(**options: Any) -> tuple[str, int]:
        how = sampling(config_of("diffrc", **{"sample.steps": None, **options}))
        return how.sampler, how.steps

    assert drawn() == ("ddpm", 250)
    assert drawn(**{"sample.sampler": "ddpm"}) == ("ddpm", 250)
    assert drawn(**{"sample.sampler": "dpm++"}) == ("dpm++", 20)
    assert drawn(**{"sample.sampler": "dpm++", "sample.steps": 30}) == ("dpm++", 30)
    assert drawn(**{"model.process": "flow"}) == ("euler", 250)
    assert drawn(**{"model.process": "flow", "sample.sampler": "dpm++"}) == ("dpm++", 20)


def test_every_phase_is_checked_before_the_first_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    """For users of `train`, who do not pass the command's checks: the last phases' parts cannot be drawn here."""
    config = config_of("diffrc")
    prepared = training.prepare_data("digits", config.data)
    monkeypatch.setattr(Trainer, "run", None)
    all_head = replace(prepared, groups=Groups(("many", "medium", "few"), (0,) * 10, "by hand"))
    with pytest.raises(ConfigError, match="samples from non-head classes"):
        training.train(all_head, config, quiet=True)
    with pytest.raises(ConfigError, match="8 class groups of part 'grouped'"):
        training.train(prepared, override(config, {"train.accumulate": 16}), quiet=True)


def test_a_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {"data.imbalance_factor": 20, "classify.steps": 2, "classify.seeds": 1, "sample.batch_size": 8}
    arguments = ["run", "digits", "--out", str(tmp_path / "run"), "--preset", "tiny", "--method", "diffrc-paper"]
    arguments += [x for name, value in options.items() for x in (f"--{name}", str(value))]
    assert cli.main([*arguments, "--device", "cpu", "--dry_run"]) in (0, None)
    said = capsys.readouterr().out
    assert "diffrc-paper: without labels" in said
    assert "ddpm, 250 steps" in said
    assert not (tmp_path / "run").exists()


def test_data_without_head_classes_are_refused_before_training() -> None:
    config = config_of("diffrc")
    prepared = training.prepare_data("digits", config.data)
    check_fit(prepared, config)
    for of_class, missing in (([1] * 10, "head"), ([0] * 10, "non-head")):
        flat = replace(prepared, groups=Groups(("many", "medium", "few"), tuple(of_class), "by hand"))
        with pytest.raises(ConfigError, match=f"samples from {missing} classes, and there are none \\(by hand\\)"):
            check_fit(flat, config)
        check_fit(flat, override(config, {"method": "ddpm"}))


def test_groups_that_cannot_be_divided_or_are_too_small_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of("diffrc")
    prepared = training.prepare_data("digits", config.data)
    with pytest.raises(ConfigError, match="8 class groups of part 'grouped'"):
        check_fit(prepared, config, world=16)
    target = METHODS["diffrc"].target
    small: Phase = replace(target, parts=(Part(), Part("grouped", groups=8, group_size=2)))
    phases = tuple(small if phase is target else phase for phase in METHODS["diffrc"].phases)
    monkeypatch.setitem(METHODS, "diffrc", replace(METHODS["diffrc"], phases=phases))
    with pytest.raises(ConfigError, match="groups of 2 rows"):
        check_fit(prepared, config)
    with pytest.raises(ConfigError, match="groups of 2 rows"):
        training.build_step(replace(small, start=None, frozen=()), prepared, config)
    assert PairDiversity.smallest_group == 3
