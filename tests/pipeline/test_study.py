"""`imbdiff study` over a run folder: what is drawn, resumed, refused, and what its commands give."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from imbdiff.cli import main
from imbdiff.config import override
from imbdiff.pipeline import curation
from imbdiff.pipeline import sampling as samples
from imbdiff.pipeline import study as study_module
from imbdiff.pipeline.folder import RunFolder
from imbdiff.pipeline.run import open_run, run
from imbdiff.pipeline.sampling import load_samples
from imbdiff.pipeline.study import check_grid, study
from imbdiff.presets import preset
from imbdiff.recognition.arms import first_of
from imbdiff.recognition.choice import Choice
from imbdiff.recognition.fitting import Fit
from imbdiff.runtime.errors import ConfigError, ImbdiffError, RunError
from imbdiff.runtime.files import read_json
from imbdiff.studying import StudyOptions

from .conftest import SMALL, write_tree

ROOT = Path(__file__).parents[2]
GRID = StudyOptions(numbers=("0.2", "0.3"), curation=("none", "diverse"), recipes=("ce",), candidates=1.5)
#: nothing here depends on how good images and classifiers are
SMALLER: dict[str, Any] = {
    "train": {"images": 32, "batch_size": 16, "preview_images": 0, "warmup_images": 0},
    "sample": {"steps": 2, "batch_size": 16, "strategy": "0.2"},
    "classify": {**SMALL["classify"], "steps": 3, "seeds": 1, "recipes": ["ce"]},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is trained and sampled."""
    folder = tmp_path_factory.mktemp("runs") / "trained"
    config = override(preset("tiny"), {**SMALL, **SMALLER})
    run("digits", folder, config, wanted=("train", "sample"), quiet=True)
    return folder


@pytest.fixture(scope="module")
def studied(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a study; a test that changes it copies it first."""
    folder = tmp_path_factory.mktemp("runs") / "studied"
    shutil.copytree(trained, folder)
    study(folder, GRID, quiet=True)
    return folder


@pytest.fixture(autouse=True)
def _no_pages(studied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages take seconds; that of `studied` was made before."""
    monkeypatch.setattr(study_module, "build_study", lambda found: "page")
    monkeypatch.setattr("imbdiff.reporting.report.build_report", lambda data: "page")


@pytest.fixture
def own(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def copied(studied: Path, tmp_path: Path) -> Path:
    shutil.copytree(studied, tmp_path / "studied")
    return tmp_path / "studied"


def result(folder: Path) -> dict[str, Any]:
    """What a study found, without what depends on where and how long."""
    found = read_json(folder / "study" / "study.json")
    return {k: v for k, v in found.items() if k not in ("run", "seconds", "command", "apply")}


def test_what_a_study_leaves(studied: Path) -> None:
    found = json.loads((studied / "study" / "study.json").read_text())
    alone = [row["name"] for row in found["rows"] if row["number"] is None]
    assert alone == ["CE", "CE + class-balanced resampling", "balanced softmax"]  # no comparison may lack them
    assert [(r["number"], r["curation"]) for r in found["rows"][3:]] == [
        ("0.2", "none"), ("0.2", "diverse"), ("0.3", "none"), ("0.3", "diverse"),
    ]  # fmt: skip
    assert found["recommendation"]["compared"] == 7
    assert set(found["test"]["numbers"]) == {found["recommendation"]["name"], found["recommendation"]["control"]}
    assert {p.name for p in (studied / "study").iterdir()} - {".lock"} == {
        "plan.json", "samples", "curation", "jobs", "study.json", "report.html",
    }  # fmt: skip
    page = re.sub(r"</?span>", "", (studied / "study" / "report.html").read_text())
    assert page.index("Recommended") < page.index(found["apply"][0].replace("&", "&amp;")) < page.index("<table")
    before = RunFolder(studied).stages()
    assert "classify" not in before
    assert read_json(studied / "samples" / "manifest.json")["counts"] == before["sample"]["counts"]


def test_the_pool_begins_with_the_runs_own_samples_and_what_it_adds_is_what_the_run_would_draw(
    studied: Path, copied: Path
) -> None:
    _, prepared = open_run(copied)
    shape, names = prepared.train.shape, prepared.train.class_names
    pool = load_samples(copied / "study" / "samples", shape, names)
    before = load_samples(copied / "samples", shape, names)
    largest = prepared.stats.counts
    top = max(largest)
    assert np.bincount(pool.labels, minlength=10).tolist() == [
        int(np.ceil(1.5 * max(0, round(0.3 * top) - n))) for n in largest
    ]
    assert first_of(pool, np.bincount(before.labels, minlength=10)).fingerprint == before.fingerprint
    assert (
        main(["sample", "--replace", str(copied), "--sample.strategy", "0.3", "--curate.candidates", "1.5", "--quiet"])
        == 0
    )
    assert load_samples(copied / "samples", shape, names).fingerprint == pool.fingerprint


def test_images_that_the_run_has_are_not_drawn_again_and_altered_ones_are(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []
    real = samples.generate_batches

    def counting(model: Any, labels: Any, seeds: Any, **options: Any) -> Any:
        drawn.append(len(labels))
        return real(model, labels, seeds, **options)

    monkeypatch.setattr(samples, "generate_batches", counting)
    plain = StudyOptions(numbers=("0.2",), curation=("none",), recipes=("ce",))
    study(own, plain, quiet=True)
    assert drawn == []
    whole = result(own)
    shutil.rmtree(own / "study")
    other, altered = sorted((own / "samples").glob("*/*.png"))[2:4]
    kept = altered.read_bytes()
    altered.write_bytes(other.read_bytes())
    study(own, plain, quiet=True)
    assert drawn == [1]
    assert result(own) == whole
    assert (own / "study" / altered.relative_to(own)).read_bytes() == kept


def test_a_study_that_was_stopped_anywhere_goes_on_to_the_same_result(
    own: Path, studied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []
    real_batches, real_curate, real_run = samples.generate_batches, curation.curate, Fit.run

    def batches(model: Any, labels: Any, seeds: Any, **options: Any) -> Any:
        drawn.append(len(labels))
        for i, found in enumerate(real_batches(model, labels, seeds, **options)):
            if i == 1 and len(drawn) == 1:
                raise KeyboardInterrupt
            yield found

    def curate(*arguments: Any, **options: Any) -> Any:
        calls.append("curate")
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real_curate(*arguments, **options)

    def train(self: Fit) -> Any:
        calls.append("train")
        if calls.count("train") == 3:
            raise KeyboardInterrupt
        return real_run(self)

    calls: list[str] = []
    monkeypatch.setattr(samples, "generate_batches", batches)
    monkeypatch.setattr(curation, "curate", curate)
    monkeypatch.setattr(Fit, "run", train)
    monkeypatch.setattr("imbdiff.recognition.jobs.default_workers", lambda device: 1)
    for _ in range(3):  # while drawing, curating and training
        with pytest.raises(KeyboardInterrupt):
            study(own, GRID, quiet=True)
        assert not (own / "study" / "study.json").exists()
    study(own, GRID, quiet=True)
    assert drawn == [drawn[0], drawn[0] - 16]  # less the first batch
    assert calls.count("curate") == 3  # one of them stopped
    assert result(own) == result(studied)
    calls.clear()
    study(own, GRID, quiet=True)
    assert calls == []
    assert len(drawn) == 2


def test_a_larger_grid_takes_over_what_a_smaller_one_did(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[str] = []
    run_fit = Fit.run

    def counting(self: Fit) -> Any:
        trained.append(self.name)
        return run_fit(self)

    monkeypatch.setattr(Fit, "run", counting)
    before = {row["name"]: row for row in result(copied)["rows"]}
    larger = StudyOptions(numbers=("0.2", "0.3", "0.4"), curation=("none", "diverse"), recipes=("ce",), candidates=1.5)
    study(copied, larger, quiet=True)
    assert trained == ["0.4: CE, weight 1, seed 0", "0.4, diverse: CE, weight 1, seed 0"]
    after = {row["name"]: row for row in result(copied)["rows"]}
    assert {name: after[name] for name in before} == before
    images = len(list((copied / "study" / "samples").glob("*/*.png")))
    study(copied, GRID, quiet=True)  # the smaller one again removes nothing
    assert len(list((copied / "study" / "samples").glob("*/*.png"))) == images


def test_the_commands_of_a_recommendation_give_its_images_and_its_classifier(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = "0.2, diverse: CE, weight 1"
    real = study_module.compare

    def compare(*arguments: Any, **options: Any) -> Any:
        return replace(real(*arguments, **options), choice=Choice(wanted, "CE", 7))

    monkeypatch.setattr(study_module, "compare", compare)
    study(copied, GRID, quiet=True)
    commands = read_json(copied / "study" / "study.json")["apply"]
    assert len(commands) == 2
    for line in commands:
        words = shlex.split(line)
        assert words[0] == "imbdiff"
        assert main([*words[1:], "--quiet"]) == 0
    opened, prepared = open_run(copied)
    kept = opened.synthetic(prepared)
    row = next(row for row in result(copied)["rows"] if row["name"] == wanted)
    assert kept is not None
    assert 0 < len(kept) == row["images"]
    saved = [p for p in (copied / "study" / "jobs").glob("*.safetensors") if ".network." not in p.name]
    (trained,) = [p for p in saved if facts(p)["arm"] == wanted]
    assert np.array_equal(load_file(copied / "classifier" / trained.name)["test"], load_file(trained)["test"])


def facts(path: Path) -> dict[str, str]:
    with safe_open(path, "np") as file:
        return dict(json.loads(file.metadata()["facts"]))


def test_a_dry_run_says_how_large_the_grid_is_and_writes_nothing(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(p for p in trained.rglob("*") if p.name != ".lock")
    options = ["--numbers", "0.2", "0.3", "--curation", "none", "--weights", "1.0", "0.5", "--recipes", "ce", "drw"]
    assert main(["study", str(trained), *options, "--seeds", "2", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "2 numbers x 1 curation x 2 recipes x 2 weights x 1 schedule = 8 arms" in said
    assert "4 arms without synthetic images" in said  # three that no comparison may lack, and drw
    assert "24 = 12 x 2 seeds, 3 steps each" in said
    assert re.search(r"time +about .* to generate and .* to train", said)
    manifest = read_json(trained / "samples" / "manifest.json")
    assert f"{sum(manifest['counts'])} at hand" in said
    assert sorted(p for p in trained.rglob("*") if p.name != ".lock") == before


def test_a_study_elsewhere(trained: Path, tmp_path: Path) -> None:
    plain = StudyOptions(numbers=("0.2",), curation=("none",), recipes=("ce",))
    assert study(trained, plain, out=tmp_path / "there", quiet=True) == tmp_path / "there" / "report.html"
    found = read_json(tmp_path / "there" / "study.json")
    assert found["command"].endswith(f"--candidates 1.5 --out {tmp_path / 'there'}")
    assert not (trained / "study").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"recipes": ("balanced-softmx",)}, "did you mean balanced-softmax"),
        ({"curation": ("no-copy",)}, "did you mean no-copies"),
        ({"weights": (1.5,)}, "--weights"),
        ({"weights": (0.0,)}, "--weights"),
        ({"schedules": ("last",)}, "--schedules"),
        ({"seeds": 0}, "--seeds"),
        ({"candidates": 0.5}, "--candidates"),
        ({"numbers": ("1.5",)}, "must be in (0, 1]"),
        ({"numbers": ("lots",)}, "'lots' is not understood"),
    ],
)
def test_options_that_make_no_sense_are_refused_without_a_run(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_grid(StudyOptions(**changes))
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        (("0.01",), "'0.01' adds no image"),
        (("0.2", "0.2"), "a number is named twice"),
        (("1.0", "auto"), "'1.0' and 'auto' add the same images"),
        (("nobody=900",), "unknown class 'nobody'"),
    ],
)
def test_numbers_that_do_not_fit_the_data_are_refused(trained: Path, numbers: tuple[str, ...], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        study(trained, StudyOptions(numbers=numbers), quiet=True)
    assert said in str(error.value)
    assert not (trained / "study").exists()


def test_a_run_that_cannot_be_studied(own: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is not a run folder"):
        study(tmp_path / "nowhere", GRID)
    split = read_json(own / "split.json")
    (own / "split.json").write_text(json.dumps({**split, "hash": "0" * 64}))
    with pytest.raises(RunError, match="other data"):
        study(own, GRID)
    (own / "split.json").write_text(json.dumps(split))
    marks = RunFolder(own).stages()
    (own / "stages.json").write_text(json.dumps({k: v for k, v in marks.items() if k != "train"}))
    with pytest.raises(RunError, match=r"not finished\n.*imbdiff run digits"):
        study(own, GRID)
    (own / "model" / "model.safetensors").unlink()
    with pytest.raises(RunError, match=r"is missing\n.*imbdiff run digits"):
        study(own, GRID)
    assert not (own / "study").exists()


def test_a_folder_of_something_else_is_left_alone(own: Path, copied: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    for place, said in ((other, "'thesis.txt'"), (own, "other files"), (other / "thesis.txt", "is a file")):
        with pytest.raises(RunError) as error:
            study(own, GRID, out=place, quiet=True)
        assert said in str(error.value)
    plan = copied / "study" / "plan.json"
    found = read_json(plan)
    plan.write_text(json.dumps({**found, "of": {**found["of"], "weights": "0" * 64}}))
    with pytest.raises(RunError, match="another model"):
        study(copied, GRID, quiet=True)
    plan.write_text("{")
    with pytest.raises(RunError, match="is damaged"):
        study(copied, GRID, quiet=True)
    assert (other / "thesis.txt").read_text() == "mine"


def test_two_commands_do_not_work_in_one_folder(own: Path, tmp_path: Path) -> None:
    for folder in (own, tmp_path / "out"):
        with RunFolder(folder).locked(), pytest.raises(RunError, match="another imbdiff command"):
            study(own, GRID, out=tmp_path / "out", quiet=True)
        assert not (tmp_path / "out" / "plan.json").exists()


def test_classes_without_validation_images_are_named_with_what_would_help(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_tree(tmp_path / "source", {"cat": 60, "dog": 40, "eel <b>": 9})
    config = override(
        preset("tiny"),
        {
            **SMALL,
            "data": {},
            "train": {**SMALL["train"], "images": 32},
            "classify": {"steps": 2, "batch_size": 8, "seeds": 1},
            "sample": {"steps": 2},
        },
    )
    run(source, tmp_path / "run", config, wanted=("train",), quiet=True)
    plain = StudyOptions(numbers=("equal=0.5",), curation=("none",), recipes=("ce",))
    study(tmp_path / "run", plain)
    said = capsys.readouterr().out
    assert "choice      none: 1 class has no validation image: 'eel <b>'" in said
    assert "none: 1 class" in said
    found = read_json(tmp_path / "run" / "study" / "study.json")
    assert found["missing"] == ["eel <b>"]
    assert found["recommendation"] is found["test"] is None
    assert "--data.val_fraction" in found["why_not"]["remedy"]
    assert "fewer than 20 images" in found["why_not"]["remedy"]


def test_every_command_on_the_page_of_studies_runs(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (ROOT / "docs" / "study.md").read_text()
    lines = [line for block in re.findall(r"^```bash\n(.*?)^```", text, re.M | re.S) for line in block.splitlines()]
    studies = [shlex.split(line) for line in lines if line.startswith("imbdiff study")]
    assert len(studies) >= 3
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(study_module, "seconds_per_classifier", lambda *arguments: 0.5)
    monkeypatch.setattr(study_module, "probe_sampling", lambda *arguments: 0.5)
    for words in studies:
        arguments = [str(own) if word == "RUN" else word for word in words[1:]]
        assert main([*arguments, *([] if "--dry-run" in words else ["--dry-run"])]) == 0, capsys.readouterr().err
    for option in ("numbers", "curation", "recipes", "weights", "schedules", "seeds", "candidates", "out"):
        assert f"`--{option}" in text, option


def test_what_is_not_understood_ends_with_status_2(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", str(trained), "--recipes", "nothing"]) == 2
    assert "unknown name 'nothing' among the recipes" in capsys.readouterr().err
    assert issubclass(RunError, ImbdiffError)


def test_a_curated_arm_has_the_first_images_that_are_kept(studied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The policy is asked about the first wanted x draw of each class, and no others."""
    work = study_module._Study.open(studied, replace(GRID, candidates=1.4), None)
    asked: list[Any] = []

    def curate_run(images: Any, wanted: Any, policy: str, *rest: Any) -> Any:
        asked.append((images, wanted, policy))
        rows = [{"file": f, "kept": i % 2 == 1, "reason": "kept"} for i, f in enumerate(images.ids)]
        return {"images": rows, "counts": {}}

    monkeypatch.setattr(study_module, "curate_run", curate_run)
    kept: dict[Path, Any] = {}
    monkeypatch.setattr(study_module, "write_json", kept.__setitem__)
    monkeypatch.setattr(study_module, "read_json", kept.__getitem__)
    wanted = (0, 0, 0, 0, 0, 0, 3, 5, 0, 0)
    arm = replace(work.grid[0], number="x", wanted=wanted, curation="diverse")
    found = work.images(arm)
    ((images, *options),) = asked
    assert np.bincount(images.labels, minlength=10).tolist() == [0, 0, 0, 0, 0, 0, 5, 7, 0, 0]
    assert options == [wanted, "diverse"]
    assert found.ids == images.ids[1::2]
    assert work.images(replace(arm, curation="none")).fingerprint == first_of(work.pool, wanted).fingerprint
    assert work.images(arm) is found
    assert len(asked) == 1


def test_every_choice_keeps_the_scores_of_all_its_candidates_and_is_counted(studied: Path) -> None:
    found = read_json(studied / "study" / "study.json")["curated"]
    assert [(row["policy"], row["number"]) for row in found] == [("diverse", "0.2"), ("diverse", "0.3")]
    _, prepared = open_run(studied)
    pool = load_samples(studied / "study" / "samples", prepared.train.shape, prepared.train.class_names)
    for row in found:
        kept = read_json(studied / "study" / "curation" / row["file"])
        images = kept["images"]
        assert row["kept"] == sum(i["kept"] for i in images) == sum(kept["counts"]["kept"])
        assert sum(row["reasons"].values()) == row["candidates"] == len(images)
        assert {i["file"] for i in images} <= set(pool.ids)
        assert {"probability", "ratio", "copy_ratio", "apart", "predicted"} <= set(images[0])
    assert len(images) == len(pool)  # of the larger number
    page = (studied / "study" / "report.html").read_text()
    assert all(f"<code>{row['file']}</code>" in page for row in found)


def test_each_reading_of_test_images_is_counted_whatever_the_grid(copied: Path) -> None:
    def readings() -> list[dict[str, Any]]:
        return list(result(copied)["readings"])

    first = readings()
    assert len(first) == 1
    assert first[0] | {"grid": ""} == {
        "recommended": result(copied)["recommendation"]["name"], "grid": "", "arms": 4,
        "control": result(copied)["recommendation"]["control"],
    }  # fmt: skip
    study(copied, GRID, quiet=True)  # the same again, and in another order, is no new reading
    study(copied, replace(GRID, numbers=("0.3", "0.2")), quiet=True)
    assert readings() == first
    study(copied, replace(GRID, numbers=("0.2",)), quiet=True)
    assert readings()[:1] == first
    assert [one["arms"] for one in readings()] == [4, 2]
