"""Sweeps: ordinary runs in one folder, continued, extended, and not stopped by one that fails."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from imbdiff.cli import main
from imbdiff.config import RunConfig, override
from imbdiff.pipeline import run as runs
from imbdiff.pipeline.sweep import sweep
from imbdiff.presets import preset
from imbdiff.recognition import trained
from imbdiff.runtime.errors import ConfigError, RunError
from imbdiff.runtime.files import read_json, sha256_file

from .conftest import SMALL, write_tree

#: the least that has every stage
TINY = {
    **SMALL, "data": {"imbalance_factor": None}, "train": {**SMALL["train"], "images": 32},
    "sample": {**SMALL["sample"], "strategy": "equal=0.2"}, "evaluate": {"cas": False},
    "classify": {**SMALL["classify"], "steps": 2, "seeds": 1, "recipes": ["ce"], "synthetic": ["balanced-softmax"]},
}  # fmt: skip
METHODS = ("ddpm", "cbdm")


@pytest.fixture
def config() -> RunConfig:
    return override(preset("tiny"), TINY)


@pytest.fixture
def images(tmp_path: Path) -> str:
    return str(write_tree(tmp_path / "images", {"cat": 24, "dog": 9, "eel": 6}))


def states(folder: Path) -> dict[str, str]:
    return {row["folder"]: row["state"] for row in read_json(folder / "sweep.json")["runs"]}


def arguments(images: str, out: Path, *more: str) -> list[str]:
    flat = [
        (f"--{group}.{name}", [value] if not isinstance(value, list) else value)
        for group, values in TINY.items() if isinstance(values, dict) for name, value in values.items()
        if value is not None
    ]  # fmt: skip
    options = [str(word) for name, values in flat for word in (name, *values)]
    return ["sweep", images, "--preset", "tiny", "--device", "cpu", "--out", str(out), *options, *more]


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Exception]]:
    """Method -> what its training raises."""
    errors: dict[str, Any] = {}
    real = runs.Run._train

    def train(self: Any, prepared: Any) -> dict[str, Any]:
        if self.config.method in errors:
            raise errors[self.config.method]
        return real(self, prepared)

    monkeypatch.setattr(runs.Run, "_train", train)
    return errors  # type: ignore[return-value]


def test_its_runs_are_those_of_the_command_run(images: str, tmp_path: Path, config: RunConfig) -> None:
    out = tmp_path / "sweep"
    assert main(arguments(images, out, "--methods", *METHODS, "--seeds", "0", "3")) == 0
    assert states(out) == {"ddpm-0": "done", "cbdm-0": "done", "ddpm-3": "done", "cbdm-3": "done"}
    alone = override(config, {"method": "cbdm", "seed": 3})
    runs.run(images, tmp_path / "alone", alone, quiet=True)
    for name in ("model/model.safetensors", "classifier/results.json", "samples/manifest.json", "metrics.json"):
        assert sha256_file(out / "cbdm-3" / name) == sha256_file(tmp_path / "alone" / name), name
    found = read_json(out / "sweep.json")["numbers"]
    accuracy = next(row for row in found if row["name"].startswith("accuracy with") and row["scope"] == "all")
    classified = read_json(out / "cbdm-3" / "classifier" / "results.json")
    judged = next(arm for arm in classified["arms"] if arm["name"] == classified["verdict"]["primary"])
    assert accuracy["methods"]["cbdm"]["seeds"]["3"] == judged["mean"]["accuracy"]
    page = (out / "report.html").read_text()
    for link in re.findall(r'href="([^"#][^"]*)"', page):
        assert (out / link).exists()
    assert page.count("/report.html") == 4
    assert main(["report", str(out / "ddpm-3"), "--quiet"]) == 0
    assert main(["compare", str(out / "ddpm-0"), str(out / "cbdm-0"), "--out", str(tmp_path / "c.html")]) == 0


def test_one_that_fails_does_not_stop_the_others(
    images: str, tmp_path: Path, broken: dict[str, Exception], capsys: pytest.CaptureFixture[str]
) -> None:
    (Path(images) / "notes.txt").touch()
    broken["ddpm"] = MemoryError("not enough memory for <this>")
    words = arguments(images, tmp_path / "sweep", "--methods", *METHODS, "--seeds", "0")
    assert main(words) == 2
    said = capsys.readouterr()
    assert "1 of 2 runs failed" in said.err
    assert said.out.count("notes.txt") == 1  # both runs read the images
    assert "not enough memory" in said.err
    assert states(tmp_path / "sweep") == {"ddpm-0": "failed", "cbdm-0": "done"}
    assert "not enough memory for &lt;this&gt;" in (tmp_path / "sweep" / "report.html").read_text()
    broken.clear()
    assert main(words) == 0  # the remedy: the same command again
    assert states(tmp_path / "sweep") == {"ddpm-0": "done", "cbdm-0": "done"}
    assert "train: done before, skipped" in capsys.readouterr().out


def test_one_that_is_stopped_continues_by_the_same_command(
    images: str, tmp_path: Path, broken: dict[str, Exception], capsys: pytest.CaptureFixture[str]
) -> None:
    broken["cbdm"] = KeyboardInterrupt()  # type: ignore[assignment]
    words = arguments(images, tmp_path / "sweep", "--methods", *METHODS, "--seeds", "0")
    assert main(words) == 130
    assert states(tmp_path / "sweep") == {"ddpm-0": "done", "cbdm-0": "not finished"}
    assert (tmp_path / "sweep" / "report.html").exists()
    before = sha256_file(tmp_path / "sweep" / "ddpm-0" / "classifier" / "results.json")
    broken.clear()
    capsys.readouterr()
    assert main(words) == 0
    assert "run 1 of 2: ddpm" in capsys.readouterr().out
    assert sha256_file(tmp_path / "sweep" / "ddpm-0" / "classifier" / "results.json") == before
    assert states(tmp_path / "sweep")["cbdm-0"] == "done"


def test_more_seeds_and_methods_are_added(images: str, tmp_path: Path, config: RunConfig) -> None:
    out = tmp_path / "sweep"
    sweep(images, ["ddpm"], [0], config, out=out, quiet=True)
    page = sweep(images, ["cbdm"], [1], config, out=out, quiet=True)
    assert states(out) == {"ddpm-0": "done", "cbdm-1": "done"}
    assert page is not None
    assert "ddpm-0/report.html" in page.read_text()
    with pytest.raises(RunError, match="other options"):
        sweep(images, ["ddpm"], [0, 2], override(config, {"train.images": 48}), out=out, quiet=True)
    other = write_tree(tmp_path / "others", {"cat": 24, "dog": 9, "eel": 6})
    with pytest.raises(RunError, match=r"is of .*images, not of .*others"):
        sweep(str(other), ["ddpm"], [0], config, out=out, quiet=True)
    assert set(states(out)) == {"ddpm-0", "cbdm-1"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--methods", "ddpm", "cbmd"], "did you mean cbdm"), (["--methods", "ddpm", "ddpm"], "one twice"),
        (["--methods", "ddpm", "--seeds", "0", "0"], "one twice"), (["--seeds", "0"], "--methods"),
        (["--methods", "ddpm", "--seed", "1"], "--seeds"), (["--methods", "cbdm", "--method.tau", "1"], "--method.tau"),
        (["--methods", "ddpm", "--method", "cbdm"], "--methods"), (["--methods", "ddpm", "--seeds", "a"], "--seeds"),
        (["--methods", "ddpm", "cbdm", "--train.images", "0"], "train.images"),
        (["--methods", "ddpm", "--out", "images/cat"], "inside the images"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_refused_before_anything_begins(
    words: list[str], said: str, images: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(["sweep", "images", "--preset", "tiny", *words]) == 2
    assert said in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_a_dry_run_writes_nothing(images: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(images, tmp_path / "sweep", "--methods", *METHODS, "--seeds", "0", "1", "--dry-run")) == 0
    out = capsys.readouterr().out
    assert re.search(r"cbdm +2 x about", out)
    assert "for 4 runs" in out
    assert not (tmp_path / "sweep").exists()


def test_a_folder_of_something_else_is_left_alone(images: str, tmp_path: Path, config: RunConfig) -> None:
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match="other files"):
        sweep(images, ["ddpm"], [0], config, out=tmp_path / "sweep", quiet=True)
    (tmp_path / "two" / "ddpm-0").mkdir(parents=True)
    (tmp_path / "two" / "sweep.json").write_text("[]")
    with pytest.raises((RunError, ConfigError)):
        sweep(images, ["ddpm"], [0], config, out=tmp_path / "two", quiet=True)


def test_a_configuration_file_serves_whatever_method_it_was_of(images: str, tmp_path: Path, config: RunConfig) -> None:
    runs.run(images, tmp_path / "one", override(config, {"method": "cbdm", "method.tau": 0.5}), wanted=("train",))
    words = ["--config", str(tmp_path / "one" / "config.yaml"), "--out", str(tmp_path / "sweep"), "--seeds", "0"]
    assert main(["sweep", images, *words, "--methods", "cbdm"]) == 0
    text = (tmp_path / "sweep" / "cbdm-0" / "config.yaml").read_text()
    assert "tau: 0.5" not in text
    assert "images: 32" in text


def test_the_judge_and_shared_classifiers_are_trained_once(
    tmp_path: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits: list[str] = []
    real = trained.fit

    def fit(*args: Any, **options: Any) -> Any:
        fits.append(options["name"])
        return real(*args, **options)

    monkeypatch.setattr(trained, "fit", fit)
    config = override(config, {"data.imbalance_factor": 20})
    sweep("digits", METHODS, [0], config, out=tmp_path / "sweep", quiet=True)
    assert len(fits) == 1
    shared = [
        {path.name for path in (tmp_path / "sweep" / f"{method}-0" / "classifier").glob("[!s]*-seed0.safetensors")}
        for method in METHODS
    ]
    assert shared[0] == shared[1] != set()


def test_a_method_of_ones_own(
    images: str, tmp_path: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    program = (Path(__file__).parents[2] / "docs" / "adding-a-method.md").read_text()
    (tmp_path / "gaps.py").write_text(re.findall(r"^```python\n(.*?)^```", program, re.M | re.S)[0])
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("gaps", None)  # of another test in this process
    sweep(images, ["ddpm", "module:gaps:LABEL_GAP"], [0], config, out=tmp_path / "sweep", quiet=True)
    (own,) = [name for name in states(tmp_path / "sweep") if name.startswith("module")]
    assert states(tmp_path / "sweep")[own] == "done"
    assert "module:gaps:LABEL_GAP" in (tmp_path / "sweep" / "report.html").read_text()
    folders = [str(tmp_path / "sweep" / name) for name in states(tmp_path / "sweep")]
    assert main(["compare", *folders, "--out", str(tmp_path / "c.html")]) == 0
