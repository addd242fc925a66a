"""`imbdiff inspect`: what a run would sample, what is written, and what is refused."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from imbdiff.cli import main
from imbdiff.config import RunConfig, override
from imbdiff.data.arrays import ArraySource
from imbdiff.data.geometric import Geometric
from imbdiff.data.inspect import examine
from imbdiff.data.sources import load
from imbdiff.data.splits import prepare
from imbdiff.data.symmetry import SYMMETRIES
from imbdiff.pipeline.inspection import run_estimate
from imbdiff.pipeline.strategy import images_to_draw
from imbdiff.pipeline.training import symmetry_of
from imbdiff.runtime.errors import DataError
from tests.data.making import arrays, folder, noise


def test_the_estimate_is_what_a_run_would_split_and_sample(tmp_path: Path) -> None:
    folder(tmp_path / "x", {"a": 50, "b": 23, "c": 4})
    folder(tmp_path / "y", {"train/a": 30, "train/b": 21, "test/a": 4, "test/b": 3})
    for source in (str(tmp_path / "x"), str(tmp_path / "y"), "digits"):
        estimate = run_estimate(examine(source))
        made = prepare(source)
        assert estimate["training"] == list(made.stats.counts)
        assert estimate["sampled"] == list(images_to_draw(RunConfig().sample.strategy, made.stats))
        assert estimate["test"] == len(made.test)
        assert estimate["validation"] == (len(made.val) if made.val else 0)
        assert estimate["cost"] is None


def test_the_estimate_follows_the_defaults_of_the_source() -> None:
    from imbdiff.data.source import Defaults

    source = ArraySource({"train": arrays([60, 60, 60]), "test": (noise(9, 6, 6), np.arange(9) % 3)})
    source.defaults = Defaults(imbalance_factor=10.0)
    estimate = run_estimate(examine(source))
    assert estimate["training"] == list(prepare(source).stats.counts)
    assert max(estimate["training"]) >= 9 * min(estimate["training"])


@pytest.mark.parametrize("flippable", [False, True])
def test_which_changes_a_run_makes_of_images_is_said_and_how_to_have_others(flippable: bool) -> None:
    source = load(ArraySource({"train": arrays([60, 40])}), flippable=flippable)
    seen = examine(source)
    rows = dict(run_estimate(seen)["rows"])
    made = prepare(source)
    unasked = symmetry_of(made, RunConfig())
    assert seen.report["source"]["flippable"] == flippable
    assert SYMMETRIES[unasked].always in rows["changed at random while training"]
    assert Geometric(0.5, unasked).describe().split(",")[0].removeprefix("rotated ") == SYMMETRIES[unasked].rotated
    # the options that are named give another symmetry each
    named = re.findall(r"--data\.augment (\w+)", rows["to change that"])
    config = [override(RunConfig(), {"data.augment": name}) for name in named]
    assert {symmetry_of(made, one) for one in config} == set(SYMMETRIES) - {unasked}


def test_unusable_files_are_said_and_a_class_without_images_is_refused(tmp_path: Path) -> None:
    folder(tmp_path, {"a": 9, "b": 6})
    (tmp_path / "a" / "000.png").write_bytes(b"")
    estimate = run_estimate(examine(tmp_path))
    assert sum(estimate["training"]) + estimate["test"] + estimate["validation"] == 14
    assert "would refuse" in estimate["rows"][0][0]
    assert "1 unusable file" in estimate["rows"][0][1]
    for file in (tmp_path / "b").iterdir():
        file.write_bytes(b"junk")
    assert run_estimate(examine(tmp_path))["refused"] == "no usable training image of b"


def test_page_and_report_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder(tmp_path / "set", {"a": 9, "b": 6})
    before = sorted(p.name for p in (tmp_path / "set").rglob("*"))
    out, page = tmp_path / "new" / "out", tmp_path / "pages" / "one.html"
    assert main(["inspect", str(tmp_path / "set"), "--out", str(out), "--page", str(page)]) == 0
    text = capsys.readouterr().out.replace("\n", "")
    for path in (out / "report.html", out / "inspection.json", page):
        assert path.exists()
        assert str(path) in text
    assert (out / "report.html").read_text() == page.read_text()
    html = re.sub(r"<span>(--[^<]*)</span>", r"\1", page.read_text())
    repeat = next(text for text in re.findall(r"<code>(.*?)</code>", html) if f"--page {page}" in text)
    page.unlink()
    assert main(shlex.split(repeat)[1:]) == 0
    assert page.exists()
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "set"), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((out / "inspection.json").read_text())
    assert printed["run"]["sampled"] == list(
        images_to_draw(RunConfig().sample.strategy, prepare(tmp_path / "set").stats)
    )
    assert sorted(p.name for p in (tmp_path / "set").rglob("*")) == before


def test_places_that_cannot_be_written_are_refused_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imbdiff.pipeline.inspection.examine", lambda *a, **k: pytest.fail("inspected"))
    (tmp_path / "file").write_text("x")
    assert main(["inspect", "digits", "--page", str(tmp_path)]) == 2
    assert "is a folder" in capsys.readouterr().err
    assert main(["inspect", "digits", "--out", str(tmp_path / "file")]) == 2
    assert "cannot be made" in capsys.readouterr().err
    assert main(["inspect", "digits", "--out", str(tmp_path / "file" / "x")]) == 2
    assert "cannot be made" in capsys.readouterr().err
    assert main(["inspect", "digits", "--page="]) == 2
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "report.html").write_text("the page of a run")
    assert main(["inspect", "digits", "--out", str(tmp_path / "run")]) == 2
    assert "--out, or --replace" in capsys.readouterr().err
    assert main(["inspect", "digits", "--page", str(tmp_path / "file")]) == 2
    assert "--page, or --replace" in capsys.readouterr().err


def test_the_cost_is_measured_only_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    import imbdiff.pipeline.plan as plan

    asked = []

    def measured(prepared: object, config: object, source: str) -> plan.Plan:
        asked.append((prepared.train.shape, config.preset, source))  # type: ignore[attr-defined]
        return plan.Plan((("train", "long"), ("source", source)), 12.5)

    monkeypatch.setattr(plan, "make_plan", measured)
    seen = examine(arrays([40, 30]))
    assert run_estimate(seen)["cost"] is None
    assert asked == []
    cost = run_estimate(seen, cost=True)["cost"]
    assert cost == {"rows": [["train", "long"], ["source", seen.source.name]], "seconds": 12.5}
    assert asked[0][0] == (6, 6, 1)

    def refuse(*_: object) -> None:
        raise DataError("no", "way")

    monkeypatch.setattr(plan, "make_plan", refuse)
    assert "no" in run_estimate(seen, cost=True)["cost"]["refused"]


def test_without_the_cost_torch_is_not_loaded() -> None:
    program = "from imbdiff.cli import main; import sys; assert main(['inspect', 'digits', '--json']) == 0; " + (
        "assert 'torch' not in sys.modules and 'matplotlib' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]
