"""Several runs on one page, precision, and the torch-free parts of the folder."""

from __future__ import annotations

from pathlib import Path

import pytest

import imbdiff
from imbdiff.cli import main
from imbdiff.config import RunConfig, flatten, override
from imbdiff.pipeline.run import run


def test_two_runs_side_by_side(tmp_path: Path, config: RunConfig, monkeypatch, capsys) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    run("digits", "a", config, wanted=("train", "sample", "report"), quiet=True)
    other = override(config, {"method": "ddpm", "train.images": 64})
    run("digits", "b", other, wanted=("train", "sample", "report"), quiet=True)
    assert main(["compare", "a", "b", "--out", "both.html"]) == 0
    page = (tmp_path / "both.html").read_text()
    assert main(["compare", "a", "b", "--out", "both.html"]) == 2
    assert "--replace to replace it" in capsys.readouterr().err
    assert main(["compare", "a", "b", "--out", "both.html", "--replace"]) == 0
    assert "ddpm-brs" in page
    assert page.count("data:image/png") >= 3  # real images once, samples of each run
    assert main(["compare", "a", "nowhere"]) == 2
    assert "not a run folder" in capsys.readouterr().err


def test_a_report_of_half_a_run_says_what_is_missing(tmp_path: Path, config: RunConfig) -> None:
    run("digits", tmp_path / "run", config, wanted=("train", "report"), quiet=True)
    page = (tmp_path / "run" / "report.html").read_text()
    assert "imbdiff sample" in page
    assert "imbdiff classify" in page


def test_half_precision_trains_to_nearly_the_same_loss(config: RunConfig, tmp_path: Path) -> None:
    from imbdiff.runtime.log import read_jsonl

    losses = []
    for precision in ("fp32", "bf16"):
        short = override(config, {"train.images": 48, "train.precision": precision, "model.dropout": 0.0})
        run("digits", tmp_path / precision, short, wanted=("train",), quiet=True)
        losses.append(read_jsonl(tmp_path / precision / "log.jsonl")[0]["loss"])
    assert losses[0] != losses[1], "bf16 must have been used"
    assert losses[1] == pytest.approx(losses[0], rel=2e-2)


def test_flatten_names_every_option() -> None:
    from imbdiff.config import to_dict

    names = flatten(to_dict(imbdiff.preset("demo")))
    assert names["data.imbalance_factor"] == 50
    assert "train.lr" in names
    assert not any(isinstance(v, dict) for v in names.values())
