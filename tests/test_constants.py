"""Constants of methods as options: on the command line, in YAML and in Python; wrong ones are refused before anything
is read; they are part of what a run is."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import imbdiff
from imbdiff.cli import main
from imbdiff.config import override
from imbdiff.methods import METHODS, get_method, method_of
from imbdiff.pipeline import training
from imbdiff.recipe import constants, with_constants
from imbdiff.running import read_run
from tests.pipeline.conftest import SMALL, small_arguments
from tests.test_cli import fails


def objective(config: Any, name: str) -> Any:
    return next(o for o in method_of(config).target.objectives() if o.name == name)


@pytest.mark.parametrize("name", METHODS)
def test_every_constant_has_a_type_a_text_and_can_be_set_to_its_own_value(name: str) -> None:
    method = get_method(name)
    found = constants(method)
    assert found
    assert all(c.text and c.type for c in found.values()), [n for n, c in found.items() if not c.text]
    same = with_constants(method, {full: c.default for full, c in found.items()})
    for before, after in zip(method.phases, same.phases, strict=True):
        assert [repr(o) for o in before.objectives()] == [repr(o) for o in after.objectives()]
        assert (before.parts, before.share, before.make) == (after.parts, after.share, after.make)


def test_a_constant_reaches_the_objective_by_every_way_of_writing_it() -> None:
    base = imbdiff.preset("tiny")
    for values in (
        {"method": "cbdm", "method.tau": 0.3},
        {"method": {"name": "cbdm", "tau": "0.3"}},
        {"method": {"name": "cbdm", "class_balancing": {"tau": 0.3}}},
        {"method": "cbdm", "method.class_balancing.tau": 0.3},
        {"method": "cbdm", "constants": {"tau": 0.3}},
    ):
        assert objective(override(base, values), "class_balancing").tau == 0.3
    assert objective(override(base, {"method": "cbdm"}), "class_balancing").tau == 1.0
    both = override(base, {"method": "cbdm+ccua", "method.class_balancing.tau": 0.3, "method.alignment.weight": 2})
    assert (objective(both, "class_balancing").tau, objective(both, "unconditional_contrast").tau) == (0.3, 0.1)
    assert objective(both, "alignment").weight == 2.0


def test_batches_networks_and_phases_have_constants_too() -> None:
    base = imbdiff.preset("tiny")
    ccua = method_of(override(base, {"method": "ccua", "method.factor": 0.5}))
    assert ccua.target.parts[0].factor == 0.5
    diffrc = method_of(override(base, {"method": "diffrc", "method.group_size": 4, "method.encoder.share": 0.3}))
    assert next(p for p in diffrc.target.parts if p.name == "grouped").group_size == 4
    assert [phase.share for phase in diffrc.phases] == [0.4, 0.45, 0.3]
    cm: Any = method_of(override(base, {"method": "cm", "method.rank_ratio": 0.25})).target.make
    assert (cm.rank_ratio, cm.scale) == (0.25, 0.5)


def test_another_method_or_guidance_begins_with_its_own() -> None:
    values = {"method": "cbdm", "method.tau": 0.3, "sample.guidance": "entropy", "sample.guidance.scale": 2}
    config = override(imbdiff.preset("tiny"), values)
    assert (config.constants, config.sample.constants) == ({"tau": 0.3}, {"scale": 2})
    other = override(config, {"method": "ccua", "sample": {"guidance": "autoguidance"}})
    assert (other.constants, other.sample.constants) == ({}, {})
    assert override(config, {"seed": 1}).constants


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--method", "cbdm", "--method.tua", "1"), r"unknown constant --method.tua -> did you mean --method.tau\?"),
        (("--method", "cbdm", "--method.tau", "much"), "--method.tau='much' is not valid -> expected a number"),
        (("--method", "cbdm", "--method.tau", "-1"), "tau=-1.0"),
        (("--method", "cbdm", "--method.distribution", "tail"), "expected prior or uniform or inverse"),
        (
            ("--method", "ccua", "--method.weight", "2"),
            "ambiguous -> give one of --method.uncond",
        ),
        (("--method", "cbdm", "--method.tau"), "--method.tau has no value"),
        (("--method", "diffrc", "--method.reduction", "max"), "expected sum or mean"),
        (("--method", "cm", "--method.rank_ratio", "5"), "rank_ratio=5.0"),
        (("--method", "ddpm-brs", "--method.factor", "-3"), "factor=-3.0"),
        (("--method", "diffrc", "--method.source.share", "-1"), "share=-1.0"),
        (("--method", "cbmd", "--method.tau", "1"), r"unknown name 'cbmd' among the methods -> did you mean cbdm\?"),
    ],
)
def test_wrong_ones_are_refused_before_anything_is_read(
    arguments: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import re

    from imbdiff.data import sources

    def read(*_: Any, **__: Any) -> Any:
        raise AssertionError("the source was opened")

    monkeypatch.setattr(sources, "load", read)
    assert re.search(says, fails(capsys, "run", "no-such-folder", *arguments))


def test_methods_name_prints_them_with_type_value_and_source(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "cbdm"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "--method.class_balancing.tau 1.0 (float) strength, 1 in the authors' code." in text
    assert "--method.class_balancing.distribution prior (prior or uniform or inverse)" in text
    assert main(["methods", "cm", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["constants"]["low_rank.rank_ratio"]
    assert found["default"] == 0.1
    assert "did you mean cbdm?" in fails(capsys, "methods", "cbmd")
    assert main(["methods", "entropy"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "--sample.guidance.entropy.scale 0.03 (float or str) omega, 0.03 in the paper's code" in text


def test_a_run_keeps_them_says_them_and_is_told_from_another_by_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "run")
    command = ["train", "digits", *small_arguments(), "--method", "cbdm", "--method.tau", "0.3", "--out", out]
    assert main(command) == 0
    kept = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["constants"]
    assert kept["class_balancing.tau"] == 0.3
    assert kept["class_balancing.gamma"] == 0.25
    capsys.readouterr()
    assert main(command) == 0
    assert "done before, skipped" in capsys.readouterr().out
    said = fails(capsys, *command[:-4], "--method.tau", "0.4", "--out", out)
    assert "--method.class_balancing.tau: 0.3 there, 0.4 here" in said
    assert main(["report", out]) == 0
    page = re.sub(r"</?span>", "", (tmp_path / "run" / "report.html").read_text())
    assert "class_balancing.tau 0.3 (published: 1.0)" in page
    assert "--method.class_balancing.tau 0.3" in page, "the command that repeats it"
    # from its own file, one more constant on top
    again = read_run("run", ["digits", "--config", f"{out}/config.yaml", "--method.gamma", "0.5"]).first
    made = objective(again, "class_balancing")
    assert (made.tau, made.gamma) == (0.3, 0.5)


def test_the_identity_of_a_training_depends_on_them() -> None:
    config = override(imbdiff.preset("tiny"), {**SMALL, "method": "cbdm"})
    data = training.prepare_data("digits", config.data)
    own = training.training_inputs(data, config)
    assert own == training.training_inputs(data, override(config, {"method.tau": 1.0}))
    assert own != training.training_inputs(data, override(config, {"method.tau": 0.9}))


def test_trainings_of_earlier_versions_count() -> None:
    """The hash of a training, pinned: whoever adds an option puts it into `ADDED`, or every run made before is lost."""
    config = override(imbdiff.preset("demo"), {"device": "cpu"})
    data = training.prepare_data("digits", config.data)
    assert training.training_inputs(data, config)[:12] == "6df0ed018a28"
    other = override(config, {"train.noise_levels": "logit-normal"})
    assert training.training_inputs(data, other)[:12] != "6df0ed018a28"


@pytest.mark.parametrize(
    ("method", "key"), [("ddpm", "0fbe46a61aef"), ("cbdm", "d9761e8febea"), ("cbdm-ada", "9502f9150c78")]
)
def test_trainings_from_before_changes_had_a_range_count(method: str, key: str) -> None:
    """The keys are those that version gave."""
    config = override(imbdiff.preset("tiny"), {"device": "cpu", "method": method})
    data = training.prepare_data("digits", config.data)
    assert training.training_inputs(data, config)[:12] == key
    other = override(config, {"method.ada": 0.2, "method.ada_range": "symmetry"})
    published = override(config, {"method.ada": 0.2, "method.ada_range": "all"})
    assert training.training_inputs(data, other) != training.training_inputs(data, published)
