"""The stage curate: what it keeps, what undoes it, what it refuses, and that it looks at training images alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from imbdiff.cli import main
from imbdiff.config import RunConfig, override
from imbdiff.data.imageset import ImageSet
from imbdiff.diffusion.model import DiffusionModel
from imbdiff.pipeline import sampling as samples
from imbdiff.pipeline.curation import candidates, curate_run
from imbdiff.pipeline.folder import RunFolder
from imbdiff.pipeline.plan import check_options, make_plan
from imbdiff.pipeline.run import STAGES, Run, open_run, run
from imbdiff.pipeline.strategy import images_to_draw
from imbdiff.pipeline.training import prepare_data
from imbdiff.presets import preset
from imbdiff.recognition import curation as choice
from imbdiff.reporting import report
from imbdiff.reporting.curated import curation as curation_section
from imbdiff.runtime.errors import ConfigError, RunError
from imbdiff.runtime.files import read_json
from imbdiff.runtime.streams import seed_of
from tests.pipeline.conftest import SMALL, write_tree
from tests.pipeline.test_run import files

POLICY = {"curate.policy": "agreement+no-copies+diverse", "curate.candidates": 2.0}
LEVELS = {"a": 40, "b": 14, "c<i>": 7}


def fake_images(
    model: Any, labels: np.ndarray, seeds: np.ndarray, *, batch_size: int, **_: Any
) -> Iterator[tuple[list[int], np.ndarray]]:
    """In place of the generator: images like those of `write_tree`, but every fourth seed gives another class."""
    for b in range(-(-len(labels) // batch_size)):
        rows = list(range(b * batch_size, min((b + 1) * batch_size, len(labels))))
        level = [60 + 60 * ((labels[i] + (seeds[i] % 4 == 0)) % 3) for i in rows]
        noise = [np.random.default_rng(int(seeds[i])).normal(0, 30, (8, 8, 1)) for i in rows]
        yield rows, np.stack([np.clip(k + n, 0, 255).astype(np.uint8) for k, n in zip(level, noise, strict=True)])


@pytest.fixture(scope="module", autouse=True)
def generator() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(samples, "generate_batches", fake_images)
        # the one section of the page that is of interest here: its plots take longer than all else
        patch.setattr(report, "build_report", lambda data: repr(curation_section(data)))
        yield


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tree(tmp_path_factory.mktemp("images") / "tree", LEVELS))


@pytest.fixture(scope="module")
def plain() -> RunConfig:
    small = {**SMALL, "data": {}, "sample": {"steps": 3, "batch_size": 16, "strategy": "0.9"}}
    return override(
        override(preset("tiny"), small), {"classify.steps": 40, "classify.seeds": 1, "evaluate.cas": False}
    )  # fmt: skip


@pytest.fixture(scope="module")
def drawn(source: str, tmp_path_factory: pytest.TempPathFactory, plain: RunConfig) -> Path:
    """A run that drew its images, without curation."""
    folder = tmp_path_factory.mktemp("drawn") / "run"
    run(source, folder, plain, wanted=("train", "sample"), quiet=True, replace=True)
    return folder


@pytest.fixture(scope="module")
def chosen(source: str, drawn: Path, tmp_path_factory: pytest.TempPathFactory, plain: RunConfig) -> Path:
    """The same run, with twice the candidates and a policy; measured and compared."""
    folder = tmp_path_factory.mktemp("chosen") / "run"
    shutil.copytree(drawn, folder)
    run(source, folder, override(plain, POLICY), quiet=True, replace=True)
    return folder


@pytest.fixture
def copy(chosen: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(chosen, tmp_path / "copy"))


def manifest_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "curation" / "manifest.json").read_text()))


def stages_of(folder: Path) -> dict[str, Any]:
    return read_json(folder / "stages.json")


def test_without_a_policy_there_is_no_stage_and_all_images_are_given_in_order(
    source: str, drawn: Path, plain: RunConfig
) -> None:
    before = files(drawn, "**/*.png", "stages.json", "samples/*.json")
    run(source, drawn, plain, wanted=("train", "sample", "curate"), quiet=True, replace=True)
    assert files(drawn, "**/*.png", "stages.json", "samples/*.json") == before
    assert not (drawn / "curation").exists()
    opened, prepared = open_run(drawn)
    every = samples.load_samples(drawn / "samples", prepared.train.shape, prepared.train.class_names)
    kept = opened.synthetic(prepared)
    assert kept is not None
    assert kept.ids == every.ids
    assert kept.fingerprint == every.fingerprint
    assert opened.report_data(prepared).curated is None


def test_a_run_keeps_what_the_policy_asks_for_and_no_more_than_is_wanted(chosen: Path) -> None:
    opened, prepared = open_run(chosen)
    manifest = manifest_of(chosen)
    wanted = images_to_draw("0.9", prepared.stats)
    assert manifest["counts"]["wanted"] == list(wanted)
    assert manifest["counts"]["candidates"] == [2 * n for n in wanted]
    kept = opened.synthetic(prepared)
    assert kept is not None
    rows = manifest["images"]
    assert list(kept.ids) == [row["file"] for row in rows if row["kept"]]
    assert all(row["predicted"] == row["label"] and not row["near_copy"] for row in rows if row["kept"])
    assert all(not row["agrees"] for row in rows if row["reason"] == "other class")
    assert any(row["reason"] == "other class" for row in rows)
    counts = np.bincount(kept.labels, minlength=3)
    assert counts.tolist() == manifest["counts"]["kept"]
    assert (counts <= np.array(wanted)).all()
    good = np.bincount([r["label"] for r in rows if r["agrees"] and not r["near_copy"]], minlength=3)
    # what the generator got wrong is dropped, and nearly nothing else
    wrong = np.array([seed_of(0, "sample", r["label"], int(r["file"][-10:-4])) % 4 == 0 for r in rows])
    assert np.array_equal(wrong, [row["reason"] == "other class" for row in rows])
    assert counts.tolist() == np.minimum(good, wanted).tolist()
    # and the later stages saw these images
    metrics = json.loads((chosen / "metrics.json").read_text())
    assert metrics["protocol"]["fingerprints"]["synthetic"] == kept.fingerprint
    assert {"curate", "evaluate", "classify"} <= set(stages_of(chosen))
    page = (chosen / "report.html").read_text()
    assert f"{len(kept)} of {len(rows)} images sampled are kept" in page


def test_the_same_again_is_skipped_and_a_lost_manifest_is_made_again(
    source: str, copy: Path, plain: RunConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    config = override(plain, POLICY)
    before = files(copy, "**/*.png", "curation/*", "metrics.json", "classifier/*", "stages.json")
    run(source, copy, config, wanted=STAGES[:-1])
    assert "curate: done before, skipped" in capsys.readouterr().out
    assert files(copy, "**/*.png", "curation/*", "metrics.json", "classifier/*", "stages.json") == before
    (copy / "curation" / "manifest.json").unlink()
    run(source, copy, config, wanted=("curate",), quiet=True, replace=True)
    assert files(copy, "curation/*") == {k: v for k, v in before.items() if k.startswith("curation")}
    assert {"evaluate", "classify"} <= set(stages_of(copy))  # it is the same choice


def test_another_policy_takes_back_what_was_built_on_the_old_one(source: str, copy: Path, plain: RunConfig) -> None:
    assert main(["curate", "--replace", str(copy), "--curate.policy", "confident=0.3", "--quiet"]) == 0
    assert set(stages_of(copy)) == {"data", "train", "sample", "curate"}
    manifest = manifest_of(copy)
    assert manifest["policy"] == "confident=0.3"
    assert all(row["probability"] >= 0.3 for row in manifest["images"] if row["kept"])
    assert len(list((copy / "curation").glob("*.safetensors"))) == 1  # the classifier was not trained again
    # back to none, with one candidate per image: all as before there was curation
    run(source, copy, plain, wanted=("sample", "curate"), quiet=True, replace=True)
    assert "curate" not in stages_of(copy)
    opened, prepared = open_run(copy)
    assert opened.synthetic(prepared) is not None


def test_more_candidates_extend_the_fewer_and_are_the_images_of_a_fresh_draw(
    source: str, drawn: Path, chosen: Path, plain: RunConfig, tmp_path: Path
) -> None:
    few, many = files(drawn, "samples/**/*.png"), files(chosen, "samples/**/*.png")
    assert len(many) == 2 * len(few)
    assert {k: many[k] for k in few} == few
    fresh = tmp_path / "fresh"
    shutil.copytree(drawn, fresh)
    shutil.rmtree(fresh / "samples")
    config = override(plain, {"curate.candidates": 2.0})
    run(source, fresh, config, wanted=("sample", "curate"), quiet=True, replace=True)
    assert files(fresh, "samples/**/*.png") == many
    # under the policy none the first ones are kept: those of a single draw, in the same order
    opened, prepared = open_run(fresh)
    kept = opened.synthetic(prepared)
    first, _ = open_run(drawn)
    alone = first.synthetic(prepared)
    assert kept is not None
    assert alone is not None
    assert kept.ids == alone.ids
    assert kept.fingerprint == alone.fingerprint
    assert not list((fresh / "curation").glob("*.safetensors"))
    # and fewer again
    run(source, fresh, plain, wanted=("sample", "curate"), quiet=True, replace=True)
    assert files(fresh, "samples/**/*.png") == few


def test_a_larger_draw_is_for_the_verb_sample(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(copy, "**/*.png", "curation/*", "config.yaml")
    assert main(["curate", "--replace", str(copy), "--curate.candidates", "3"]) == 2
    assert f"imbdiff sample {copy} --curate.candidates 3" in capsys.readouterr().err
    assert files(copy, "**/*.png", "curation/*", "config.yaml") == before
    assert main(["sample", "--replace", str(copy), "--curate.candidates", "1.5", "--quiet"]) == 0
    manifest = manifest_of(copy)
    wanted = manifest["counts"]["wanted"]
    assert manifest["counts"]["candidates"] == [-(-3 * n // 2) for n in wanted]


def test_candidates_are_rounded_up(plain: RunConfig) -> None:
    assert candidates((0, 1, 10, 3), override(plain, {"curate.candidates": 1.1})) == (0, 2, 11, 4)
    assert candidates((0, 1, 7), plain) == (0, 1, 7)


def test_samples_that_were_not_chosen_among_are_not_used(source: str, copy: Path, plain: RunConfig) -> None:
    """As after a kill between the two stages."""
    marks = stages_of(copy)
    del marks["curate"]
    (copy / "stages.json").write_text(json.dumps(marks))
    opened, prepared = open_run(copy)
    with pytest.raises(RunError, match=r"not been chosen among yet[\s\S]*imbdiff curate"):
        opened.synthetic(prepared)
    with pytest.raises(RunError, match="not been chosen among"):
        run(source, copy, override(plain, POLICY), wanted=("evaluate",), quiet=True, replace=True)
    before = files(copy, "curation/*")
    run(source, copy, override(plain, POLICY), wanted=("curate",), quiet=True, replace=True)
    assert files(copy, "curation/*") == before
    assert opened.synthetic(prepared) is not None


def altered(folder: Path, **changes: Any) -> None:
    path = folder / "curation" / "manifest.json"
    path.write_text(json.dumps({**manifest_of(folder), **changes}))


def test_the_choice_of_another_run_is_refused(copy: Path) -> None:
    opened, prepared = open_run(copy)
    rows = manifest_of(copy)["images"]
    whole = (copy / "curation" / "manifest.json").read_bytes()
    for change in ({"samples": "f" * 64}, {"images": rows[1:]}, {"images": [{**rows[0], "label": 0}, *rows[1:]]}):
        altered(copy, **change)
        with pytest.raises(RunError, match=r"manifest.json was altered, or is of another run\n.*imbdiff curate"):
            opened.synthetic(prepared)
        (copy / "curation" / "manifest.json").write_bytes(whole)
    assert opened.synthetic(prepared) is not None


def test_samples_that_do_not_fit_the_options_are_refused(
    source: str, drawn: Path, plain: RunConfig, tmp_path: Path
) -> None:
    copied = tmp_path / "copied"
    shutil.copytree(drawn, copied)
    with pytest.raises(RunError, match=r"images, the options ask for \d+ candidates"):
        run(source, copied, override(plain, {"curate.candidates": 3.0}), wanted=("curate",), quiet=True, replace=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--curate.policy", "agrement"], "did you mean agreement"),
        (["--curate.policy", "in-distribution+approximate"], "no image is both"),
        (["--curate.candidates", "0.5"], "is not in [1, 10]"),
        (["--curate.candidates", "11"], "is not in [1, 10]"),
        (["--curate.policy", "confident=1.5"], "must be in (0, 1)"),
    ],
)
def test_options_that_make_no_sense_are_refused_before_anything(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["run", "digits", "--preset", "tiny", "--out", str(out), *options]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()
    with pytest.raises(ConfigError):
        check_options(RunConfig(curate=replace(RunConfig().curate, policy="x")))


class Forbidden:
    """Stands for a split that must not be read."""

    def __getattribute__(self, name: str) -> Any:
        raise AssertionError(f"{name} of a split that curation must not see")

    def __len__(self) -> int:
        raise AssertionError("the length of a split that curation must not see")


def test_curation_reads_neither_test_nor_validation_images(
    source: str, chosen: Path, plain: RunConfig, tmp_path: Path
) -> None:
    config = override(plain, POLICY)
    prepared = prepare_data(source, config.data)
    blind = replace(prepared, val=Forbidden(), test=Forbidden(), pool=Forbidden())  # type: ignore[arg-type]
    candidates = samples.load_samples(chosen / "samples", prepared.train.shape, prepared.train.class_names)
    policy, wanted = str(POLICY["curate.policy"]), images_to_draw("0.9", prepared.stats)
    found = curate_run(candidates, wanted, policy, blind, config, tmp_path)
    assert found == manifest_of(chosen)
    # nor does it know them by what they did to anything else: test images as candidates are judged like any other
    planted = ImageSet(prepared.test.images, prepared.test.labels, prepared.test.class_names)
    seen = curate_run(planted, (99, 99, 99), "agreement", blind, config, tmp_path)
    assert not any(row["exact_copy"] for row in seen["images"])
    assert seen["classifier"]["role"] == "working"


def test_a_dry_run_counts_the_candidates(source: str, plain: RunConfig) -> None:
    prepared = prepare_data(source, plain.data)
    rows = dict(make_plan(prepared, override(plain, POLICY), source).rows)
    n = sum(images_to_draw("0.9", prepared.stats))
    assert rows["sample"].startswith(f"{2 * n} images")
    assert rows["curate"].startswith(f"at most {n} of {2 * n}, agreement+no-copies+diverse: ")
    assert "curate" not in dict(make_plan(prepared, plain, source).rows)


def test_a_dry_run_measures_the_precision_that_is_asked_for(
    source: str, plain: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared, seen = prepare_data(source, plain.data), []
    real = DiffusionModel.forward

    def forward(self: DiffusionModel, *arguments: Any, **options: Any) -> Any:
        seen.append((torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")))
        return real(self, *arguments, **options)

    monkeypatch.setattr(DiffusionModel, "forward", forward)
    for train, draw in (("fp32", "bf16"), ("bf16", "fp32")):
        seen.clear()
        make_plan(prepared, override(plain, {"train.precision": train, "sample.precision": draw}), source)
        assert set(seen) == {(True, train == "bf16"), (False, draw == "bf16")}


def test_everything_dropped_is_said_and_not_filled_up(source: str, copy: Path, plain: RunConfig) -> None:
    strict = override(plain, {**POLICY, "curate.policy": "confident=0.999999"})
    run(source, copy, strict, wanted=("curate", "evaluate", "report"), quiet=True, replace=True)
    manifest = manifest_of(copy)
    assert sum(manifest["counts"]["kept"]) < sum(manifest["counts"]["wanted"])
    assert "a larger --curate.candidates" in manifest["warnings"][0]
    assert "and were not filled up" in (copy / "report.html").read_text()


def state(folder: Path) -> dict[str, str]:
    return files(folder, "**/*.png", "curation/*", "config.yaml", "stages.json", "metrics.json", "classifier/*")


def test_a_choice_by_a_classifier_of_other_options_is_not_used(
    source: str, copy: Path, plain: RunConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    before = state(copy)
    for verb, options in (("classify", "--classify.steps 60 --classify.lr 0.05"), ("classify", "--classify.shift 2")):
        assert main([verb, str(copy), *options.split()]) == 2
        said = capsys.readouterr().err
        assert "was made with other options" in said
        words = set(options.replace("--classify.lr 0.05", "").split())
        assert words <= set(said.replace("`", " ").split())
        assert f"imbdiff curate {copy} --classify." in said
        assert state(copy) == before
    # options that it is not trained by leave it as it is
    config = override(plain, POLICY)
    for change in ({"classify.seeds": 3}, {"classify.synthetic_weight": 0.5}, {"classify.recipes": ["ce", "focal"]}):
        opened, prepared = Run(RunFolder(copy), source, override(config, change)), open_run(copy)[1]
        assert opened.curated(prepared) is not None
    assert main(["curate", "--replace", str(copy), "--classify.seeds", "4"]) == 2
    assert "--classify.seeds" in capsys.readouterr().err
    assert state(copy) == before
    assert main(["classify", "--replace", str(copy)]) == 0
    assert "classify: done before, skipped" in capsys.readouterr().out
    # the command that the message names
    assert main(["curate", "--replace", str(copy), "--classify.steps", "60", "--classify.lr", "0.05", "--quiet"]) == 0
    assert manifest_of(copy)["classifier"]["plan"]["steps"] == 60
    assert manifest_of(copy)["classifier"]["plan"]["lr"] == 0.05
    assert set(stages_of(copy)) == {"data", "train", "sample", "curate"}
    opened, prepared = open_run(copy)
    assert opened.config.classify.steps == 60
    assert opened.synthetic(prepared) is not None
    # a whole run chooses again by itself
    run(source, copy, config, wanted=("curate",), quiet=True, replace=True)
    assert manifest_of(copy)["classifier"]["plan"]["steps"] == 40


def test_numbers_that_were_not_asked_for_are_not_used(copy: Path) -> None:
    opened, prepared = open_run(copy)
    marks = RunFolder(copy).stages()
    marks["curate"]["inputs"] = "0" * 64
    RunFolder(copy).write_stages(marks)
    with pytest.raises(RunError, match=r"made with other options\n.*imbdiff curate"):
        opened.synthetic(prepared)


def test_a_policy_that_the_data_refuse_leaves_the_run_as_it_was(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = state(copy)
    real = choice.score

    def without_zones(*arguments: Any) -> Any:
        found = real(*arguments)
        found.space.zones = None
        return found

    monkeypatch.setattr(choice, "score", without_zones)
    assert main(["curate", "--replace", str(copy), "--curate.policy", "in-distribution"]) == 2
    assert "no class has two different training images" in capsys.readouterr().err
    assert state(copy) == before
    assert main(["curate", "--replace", str(copy)]) == 0
    assert "curate: done before, skipped" in capsys.readouterr().out
