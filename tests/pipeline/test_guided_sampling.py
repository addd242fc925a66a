"""Guidance by name, by class and group, and what it needs of a run: the weak model, the working classifier."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import imbdiff
from imbdiff.cli import main
from imbdiff.config import override
from imbdiff.data.stats import ClassStats, Groups
from imbdiff.diffusion.model import build_model
from imbdiff.diffusion.process import PROCESSES
from imbdiff.diffusion.saved import load_model, save_model, saved_identity
from imbdiff.pipeline import training
from imbdiff.pipeline.plan import probe_sampling
from imbdiff.pipeline.sampling import doubles, sample, sampling
from imbdiff.pipeline.watch import preview_grid
from imbdiff.runtime.errors import ConfigError, RunError
from tests.pipeline.conftest import SMALL
from tests.test_cli import fails


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    config = override(imbdiff.preset("tiny"), {**SMALL, "sample.strategy": "0.1"})
    imbdiff.run("digits", folder, config, wanted=("train", "sample"), quiet=True)
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


def images(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted((folder / "samples").rglob("*.png"))}


def test_the_weak_model_is_an_earlier_average_of_the_same_training(trained: Path) -> None:
    model = load_model(trained / "model")
    assert model.weak is not None
    assert not torch.equal(*(next(m.backbone.parameters()) for m in (model, model.weak)))
    assert model.weak.spec == model.spec
    assert not model.weak.training
    config = override(imbdiff.preset("tiny"), {**SMALL, "train.images": 16 * 12})
    data = training.prepare_data("digits", config.data)
    again = training.train(data, config, quiet=True)
    assert again.weak is not None
    pairs = zip(again.weak.backbone.parameters(), model.weak.backbone.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_a_training_that_goes_on_has_the_same_weak_model(trained: Path, tmp_path: Path) -> None:
    from imbdiff.training.loop import Loop

    class StoppedError(Exception):
        pass

    config = override(imbdiff.preset("tiny"), {**SMALL})
    data = training.prepare_data("digits", config.data)
    write = Loop._write

    def stopping(self: Any, sums: Any, counted: int, done: int, seconds: float) -> Any:
        if done > 7:
            raise StoppedError
        return write(self, sums, counted, done, seconds)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loop, "_write", stopping)
        with pytest.raises(StoppedError):
            training.train(data, config, tmp_path, quiet=True)
    model = training.train(data, config, tmp_path, quiet=True)
    save_model(model, tmp_path / "model")
    assert saved_identity(tmp_path / "model") == saved_identity(trained / "model")


def test_a_lost_or_foreign_weak_model_is_noticed(run: Path) -> None:
    (run / "model" / "weak.safetensors").unlink()
    with pytest.raises(RunError, match=r"weak\.safetensors does not exist"):
        load_model(run / "model")


def test_autoguidance_and_scales_by_group_change_the_images_they_name(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of digits at factor 20 the classes 5 to 9 are filled: 5 and 6 are medium, the others few."""
    plain = {}
    for omega in ("0", "0,few=2"):
        assert main(["sample", "--replace", str(run), "--sample.guidance.omega", omega, "--quiet"]) == 0
        plain[omega] = images(run)
    of = json.loads((run / "samples" / "manifest.json").read_text())
    assert of["constants"] == {"classifier-free.omega": "0,few=2"}
    data = training.prepare_data("digits", override(imbdiff.preset("tiny"), SMALL).data)
    group = {name: data.groups.names[g] for name, g in zip(data.train.class_names, data.groups.of_class, strict=True)}
    for file, before in plain["0"].items():
        changed = plain["0,few=2"][file] != before
        assert changed == (group[Path(file).parent.name] == "few"), file
    weak = ["--sample.guidance", "autoguidance", "--sample.guidance.omega", "0.5"]
    assert main(["sample", "--replace", str(run), *weak, "--quiet"]) == 0
    assert images(run) != plain["0"]
    page = (run / "report.html").read_text()
    assert "guidance: autoguidance 0.5" in page


def test_entropy_guidance_takes_the_working_classifier(run: Path) -> None:
    assert main(["sample", "--replace", str(run), "--sample.guidance.omega", "0", "--quiet"]) == 0
    before = images(run)
    guided = ["--sample.guidance", "entropy+classifier-free", "--sample.guidance.entropy.scale", "0.5", "--quiet"]
    assert main(["sample", "--replace", str(run), "--sample.guidance.omega", "0", *guided]) == 0
    assert images(run) != before
    assert list((run / "curation").glob("working-*.safetensors"))


def test_boost_and_skip_are_options(run: Path) -> None:
    before = images(run)
    assert main(["sample", "--replace", str(run), "--sample.boost", "2", "--sample.skip", "0.2", "--quiet"]) == 0
    assert images(run) != before
    assert json.loads((run / "samples" / "manifest.json").read_text())["boost"] == 2.0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--sample.guidance", "autogidance"), r"unknown name 'autogidance' among the guidance -> did you mean autog"),
        (("--sample.guidance", "prototype"), "needs a guide, and the method ddpm-brs trains none"),
        (("--sample.guidance", "none", "--sample.guidance.omega", "1"), "omega"),
        (("--sample.guidance.omega", "fwe=1"), r"no class or group 'fwe' -> did you mean few\?"),
        (("--sample.guidance.omega", "-2"), "-2"),
        (("--sample.guidance.scale", "1"), "scale"),
        (("--sample.guidance.omega", "much"), "much"),
        (("--sample.guidance.omega", "few=-3"), "at least -1"),
        (("--sample.guidance", "entropy", "--sample.guidance.scale", "-1"), "must be at least 0|-1"),
        (("--sample.guidance", "entropy", "--sample.guidance.every", "0"), "every=0 must be at least 1"),
        (("--sample.skip", "1"), "sample.skip=1.0"),
        (("--sample.boost", "0"), "sample.boost=0.0"),
        (("--sample.sampler", "dpm"), r"unknown name 'dpm' among the samplers -> did you mean"),
    ],
)
def test_wrong_guidance_is_refused_and_nothing_is_lost(
    run: Path, arguments: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    import re

    before = images(run)
    assert re.search(says, fails(capsys, "sample", str(run), *arguments))
    assert images(run) == before


def test_a_guidance_with_a_hyphen_and_a_later_value_can_be_set(run: Path) -> None:
    guided = ["sample", "--replace", str(run), "--sample.guidance", "autoguidance+classifier-free", "--quiet"]
    more = ["--sample.guidance.classifier-free.omega", "0.5", "--sample.guidance.autoguidance.omega", "0.2"]
    assert main([*guided, *more]) == 0
    found = json.loads((run / "samples" / "manifest.json").read_text())["constants"]
    assert found == {"autoguidance.omega": 0.2, "classifier-free.omega": 0.5}
    assert main(["sample", "--replace", str(run), "--sample.guidance.autoguidance.omega", "0.3", "--quiet"]) == 0
    assert json.loads((run / "samples" / "manifest.json").read_text())["constants"]["autoguidance.omega"] == 0.3
    assert main(["sample", "--replace", str(run), "--sample.guidance", "none", "--quiet"]) == 0, (
        "its constants go with a guidance"
    )


def test_images_of_entropy_guidance_depend_on_the_working_classifier(run: Path) -> None:
    from imbdiff.pipeline.sampling import sampling_identity

    config = override(imbdiff.preset("tiny"), {**SMALL, "sample.guidance": "entropy+classifier-free"})
    data = training.prepare_data("digits", config.data)
    other = override(config, {"classify.steps": 7})
    one, two = (sampling_identity(sampling(c), data, c) for c in (config, other))
    assert one != two
    plain = override(config, {"sample.guidance": "classifier-free"})
    assert sampling_identity(sampling(plain), data, plain) == []


def test_diffrc_guides_medium_and_few_where_labels_allow_it() -> None:
    of = {name: sampling(override(imbdiff.preset("tiny"), {"method": name})) for name in ("diffrc", "diffrc-paper")}
    assert of["diffrc"].constants["prototype.scale"] == "0.6,many=0"
    assert of["diffrc-paper"].constants["prototype.scale"] == 0.6
    own = sampling(override(imbdiff.preset("tiny"), {"method": "diffrc", "sample.guidance.scale": 2}))
    assert own.constants["prototype.scale"] == 2
    assert np.isclose(own.constants["classifier-free.omega"], 0.8)
    none = sampling(override(imbdiff.preset("tiny"), {"method": "diffrc", "sample.guidance.omega": None}))
    assert np.isclose(none.constants["classifier-free.omega"], 0.8), "None is the method's"


def test_whether_a_step_takes_twice_as_many_rows_is_read_off_the_guidance() -> None:
    model = build_model("unet-8", PROCESSES["ddpm"], (1, 8, 8), ClassStats(("a", "b"), (200, 5)), seed=0)
    for omega, twice in ((0, False), ("0.0", False), ("0,few=0", False), ("0,few=1", True), (0.5, True)):
        how = sampling(override(imbdiff.preset("tiny"), {"sample.guidance.omega": omega}))
        assert doubles(how.guide(model)) == twice, omega
    assert not doubles(replace(how, guidance="none", constants={}).guide(model))


def test_previews_probe_and_sampling_take_the_class_groups_of_the_data(tmp_path: Path) -> None:
    """A source's own rule names groups that the default does not have: here "head" and "tail"."""
    groups = Groups(("head", "tail"), (0, 1), "ours")
    config = override(imbdiff.preset("tiny"), {"sample.guidance.omega": "0,tail=1", "sample.steps": 2, "device": "cpu"})
    model = build_model("unet-8", PROCESSES["ddpm"], (1, 8, 8), ClassStats(("a", "b"), (200, 5)), seed=0).eval()
    assert preview_grid(model, config, groups)
    assert len(sample(model, (0, 2), config, groups=groups, quiet=True)) == 2
    assert probe_sampling(model, config, torch.device("cpu"), groups) > 0
    with pytest.raises(ConfigError, match="no class or group 'tail'"):
        preview_grid(model, config)


def test_guidances_from_outside_are_listed(outside: Any, capsys: pytest.CaptureFixture[str]) -> None:
    program = """
from dataclasses import dataclass
from imbdiff.diffusion.guidance import NoGuidance
from imbdiff.diffusion.guidances import GuidanceEntry

@dataclass(frozen=True)
class Constants:
    \"\"\"Of it.

    Args:
        length: how far it goes.
    \"\"\"

    length: float = 3.0

OURS = GuidanceEntry(what="far away", when="now", source="here", make=lambda *_: NoGuidance(), constants=Constants())
"""
    outside(program, "guidance", far="OURS")
    assert main(["methods", "module:outside:OURS+entropy"]) == 0
    text = capsys.readouterr().out
    assert "--sample.guidance.module:outside:OURS.length 3.0" in text
    assert "how far it goes" in text
    assert "--sample.guidance.entropy.scale 0.03" in text
    assert main(["methods", "far"]) == 0
    assert "--sample.guidance.far.length 3.0" in capsys.readouterr().out
    assert main(["methods", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["guidance"]["far"] == {"idea": "from outside: outside:OURS"}
