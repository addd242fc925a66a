"""Images that begin as real ones, in a run: which real ones, what is recorded of them, and how near they end."""

from __future__ import annotations

import json
import re
import shutil
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import imbdiff
from imbdiff.cli import main
from imbdiff.config import RunConfig, override
from imbdiff.data.imageset import ImageSet
from imbdiff.data.splits import Prepared
from imbdiff.data.stats import ClassStats
from imbdiff.diffusion.model import build_model
from imbdiff.diffusion.process import PROCESSES
from imbdiff.diffusion.saved import load_model
from imbdiff.metrics.memorisation import memorisation_report
from imbdiff.pipeline import sampling as samples
from imbdiff.pipeline.run import open_run
from imbdiff.pipeline.variations import by_strength, picker
from imbdiff.reporting import copies as page
from imbdiff.runtime.errors import ConfigError, RunError
from tests.pipeline.conftest import SMALL
from tests.reporting import fake
from tests.reporting.looking import blocks_of, groups_of, page_of, tables, text_of
from tests.test_cli import fails

REAL = ["--sample.start", "real", "--replace", "--quiet"]


@pytest.fixture(scope="module")
def trained(finished_once: tuple[Path, RunConfig]) -> Path:
    return finished_once[0]


@pytest.fixture(scope="module")
def prepared(trained: Path) -> Prepared:
    return open_run(trained)[1]


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


def plan_of(folder: Path, name: str = "manifest") -> dict[str, Any]:
    return json.loads((folder / f"{name}.json").read_text())


def pngs(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*.png"))}


def some(counts: tuple[int, ...], seed: int = 0) -> ImageSet:
    labels = np.repeat(np.arange(len(counts)), counts)
    images = np.random.default_rng(seed).integers(0, 256, (len(labels), 8, 8, 1)).astype(np.uint8)
    return ImageSet(images, labels, tuple("abcdef"[: len(counts)]), tuple(f"{seed}/{i}" for i in range(len(labels))))


@pytest.mark.parametrize(("n", "m"), [(1, 4), (4, 4), (6, 4), (5, 3), (12, 1)])
def test_every_source_and_strength_is_used_equally_often(n: int, m: int) -> None:
    train, strengths = some((n, 3)), [0.1 * (j + 1) for j in range(m)]
    pick = picker(train, train.class_names, 0, "own", strengths, seed=5)
    rows = [pick(i) for i in range(n * m)]
    for many in range(1, n * m + 1):
        for what, all_of in (("source", n), ("strength", m)):
            used = Counter(row[what] for row in rows[:many])
            assert max(used.values()) - (min(used.values()) if len(used) == all_of else 0) <= 1, (what, many)
    assert len({(row["source"], row["strength"]) for row in rows}) == n * m, "no pair twice"
    known = dict(zip(train.ids, train.hashes, strict=True))
    assert all(known[row["source"]] == row["source_hash"] for row in rows)
    assert {row["source"] for row in rows} == set(train.ids[:n]), "of its own class"
    every = picker(train, train.class_names, 0, "any", strengths, seed=5)
    assert {every(i)["source"] for i in range(n + 3)} == set(train.ids)
    other = picker(train, train.class_names, 0, "own", strengths, seed=6)
    assert n < 5 or [other(i)["source"] for i in range(n)] != [row["source"] for row in rows[:n]]


def test_a_class_without_training_images_or_none_given() -> None:
    train = some((3, 0, 2))
    with pytest.raises(ConfigError, match="class 'b' has no training image") as caught:
        picker(train, train.class_names, 1, "own", (0.5,), 0)
    assert "--sample.sources any" in caught.value.remedy
    assert picker(train, train.class_names, 1, "any", (0.5,), 0)(0)["source"]
    model = build_model("unet-8", PROCESSES["ddpm"], (1, 8, 8), ClassStats(("a", "b", "c"), (3, 1, 2)), seed=0).eval()
    config = override(
        imbdiff.preset("tiny"), {"sample": {"start": "real", "steps": 2, "strength": 0.0}, "device": "cpu"}
    )
    for wrong in (None, some((3, 2))):
        with pytest.raises(ConfigError, match="needs the images that the model was trained on"):
            imbdiff.sample(model, (0, 0, 2), config, train=wrong, quiet=True)
    made = imbdiff.sample(model, (0, 0, 2), config, train=train, quiet=True)
    assert sorted(made.hashes) == sorted(train.hashes[3:]), "strength 0 of pixels is the image itself"


def test_sources_are_training_images_alone(prepared: Prepared, run: Path) -> None:
    """No test image even where a plan names one."""
    assert main(["sample", str(run), *REAL, "--sample.sources", "any", "--sample.strength", "0.5,1"]) == 0
    found = plan_of(run / "samples")
    assert (found["start"], found["sources"], found["strength"]) == ("real", "any", [0.5, 1.0])
    hashes = dict(zip(prepared.train.ids, prepared.train.hashes, strict=True))
    assert all(hashes[row["source"]] == row["source_hash"] for row in found["images"])
    todo, config = plan_of(run / "samples", "plan"), override(imbdiff.preset("tiny"), {**SMALL, "sample.start": "real"})
    todo["images"][0]["source_hash"] = prepared.test.hashes[0]
    how, model = samples.sampling(config), load_model(run / "model")
    with pytest.raises(RunError, match="none of the training images"):
        samples.sample_into(model, todo, run.parent / "new", how, how.guide(model), train=prepared.train, quiet=True)
    assert not pngs(run.parent / "new")


def test_the_law_of_a_run_its_repetition_and_what_is_recorded(
    run: Path, prepared: Prepared, capsys: pytest.CaptureFixture[str]
) -> None:
    noise = plan_of(run / "samples", "plan")
    assert not {"start", "strength", "sources"} & set(noise)
    assert set(noise["images"][0]) == {"file", "label", "seed"}
    assert main(["sample", str(run)]) == 0
    assert "sample: done before, skipped" in capsys.readouterr().out
    assert main(["sample", str(run), *REAL]) == 0
    found = plan_of(run / "samples")
    label = dict(zip(prepared.train.ids, prepared.train.labels.tolist(), strict=True))
    assert all(label[row["source"]] == row["label"] for row in found["images"])
    for k in {row["label"] for row in found["images"]}:
        rows = [row for row in found["images"] if row["label"] == k]
        assert [row["strength"] for row in rows] == [(0.25, 0.5, 0.75, 1.0)[i % 4] for i in range(len(rows))]
    assert main(["sample", str(run)]) == 0
    assert "sample: done before, skipped" in capsys.readouterr().out
    assert "at strength 0.25, 0.5, 0.75, 1" in re.sub(r"</?[a-z]+>", "", (run / "report.html").read_text())
    whole, drawn = pngs(run / "samples"), plan_of(run / "samples")
    # killed: some are missing, in the middle of batches of several strengths
    for name in list(whole)[1::3]:
        (run / "samples" / name).unlink()
    (run / "samples" / "manifest.json").unlink()
    assert main(["sample", str(run), "--quiet"]) == 0
    assert (pngs(run / "samples"), plan_of(run / "samples")) == (whole, drawn)
    # a larger number keeps what there is
    assert main(["sample", str(run), "--sample.strategy", "0.3", *REAL]) == 0
    assert whole.items() < pngs(run / "samples").items()
    rows = {row["file"]: row for row in plan_of(run / "samples")["images"]}
    assert all(rows[row["file"]] == row for row in drawn["images"])
    # and with the strengths of before it is another plan
    assert main(["sample", str(run), "--sample.strength", "0.5", "--replace", "--quiet"]) == 0
    assert {row["strength"] for row in plan_of(run / "samples")["images"]} == {0.5}


def test_two_processes_make_the_same_images_as_one(
    run: Path, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = override(imbdiff.preset("tiny"), {**SMALL, "sample.start": "real", "sample.batch_size": 4})
    how, model = samples.sampling(config), load_model(run / "model")
    todo = samples.plan_in(run / "a", (3, 5, 0, 9, *[0] * 6), model.spec.stats.names, config, "x", train=prepared.train)
    samples.sample_into(model, todo, run / "a", how, how.guide(model), train=prepared.train, quiet=True)
    barrier = threading.Barrier(2, timeout=60)
    monkeypatch.setattr(samples.Dist, "current", lambda: SimpleNamespace(
        main=threading.current_thread().name == "0", rank=int(threading.current_thread().name), world=2,
        barrier=barrier.wait,
    ))  # fmt: skip
    both = [
        threading.Thread(
            target=samples.sample_into, name=str(rank), args=(load_model(run / "model"), todo, run / "b", how,
            how.guide(model)), kwargs={"train": prepared.train, "quiet": True},
        )
        for rank in range(2)
    ]  # fmt: skip
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert len(pngs(run / "a")) == 17
    assert pngs(run / "a") == pngs(run / "b")


def test_memory_that_does_not_suffice_halves_batches(
    run: Path, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    config = override(imbdiff.preset("tiny"), {**SMALL, "sample.start": "real", "sample.batch_size": 4})
    how, model = samples.sampling(config), load_model(run / "model")
    todo = samples.plan_in(run / "a", (9, *[0] * 9), model.spec.stats.names, config, "x", train=prepared.train)
    real, calls = samples.generate_batches, []

    def little(*args: Any, **options: Any) -> Any:
        for rows, images in real(*args, **options):
            calls.append(len(rows))
            if len(calls) == 2:
                raise torch.OutOfMemoryError("no more")
            yield rows, images

    monkeypatch.setattr(samples, "generate_batches", little)
    samples.sample_into(model, todo, run / "a", how, how.guide(model), train=prepared.train, quiet=True)
    assert len(calls) > 4
    asked = {row["file"]: row for row in todo["images"]}
    assert set(pngs(run / "a")) == set(asked)
    monkeypatch.undo()
    samples.sample_into(model, todo, run / "b", how, how.guide(model), train=prepared.train, quiet=True)
    for name in asked:
        a, b = (np.asarray(Image.open(run / at / name)).astype(int) for at in ("a", "b"))
        assert np.abs(a - b).max() <= 1, name


def test_images_go_further_from_their_sources_the_higher_the_strength(trained: Path, prepared: Prepared) -> None:
    model, strengths = load_model(trained / "model"), (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
    values = {**SMALL, "sample": {"steps": 8, "start": "real", "strength": strengths, "guidance": "none"}}
    config = override(imbdiff.preset("tiny"), values)
    with pytest.MonkeyPatch.context() as patch:
        plans: list[dict[str, Any]] = []
        real = samples.plan_in
        patch.setattr(samples, "plan_in", lambda *a, **k: plans.append(real(*a, **k)) or plans[-1])
        made = samples.sample(model, (90, 60, *[0] * 8), config, train=prepared.train, quiet=True)
    report = memorisation_report(made, prepared.train, prepared.test, prepared.groups)
    found = by_strength(plans[0], made, prepared.train, report)
    rows = found["rows"]
    assert [(row["strength"], row["n"]) for row in rows] == [(s, 25) for s in strengths]
    off = [row["median_distance"] for row in rows]
    assert off == sorted(off)
    assert off[0] == 0 < off[1]
    assert rows[0]["near_copies"] == rows[0]["nearest_is_source"] == 1.0
    assert rows[1]["near_copies"] > 0.2 > rows[-1]["near_copies"]
    pair = found["pairs"][5]
    difference = made.images[pair["synthetic"]] - prepared.train.images[pair["train"]].astype(float)
    assert pair["distance"] == pytest.approx(np.sqrt((difference**2).mean()) / 255, abs=1e-6)
    # on the page, never hidden: near copies are said, by strength, and shown
    metrics = {"memorisation": {**report, "sources": found}, "protocol": {"memorisation": "rule"}}
    data = replace(
        fake.minimal(prepared.stats), groups=prepared.groups, train=prepared.train, synthetic=made, metrics=metrics
    )
    section = page.copies(data)
    text = text_of(section)
    assert "Of the images at strength 0, 100 % are near copies of training images: they repeat" in text
    own = next(table for table in tables(section) if table[0][0] == "0")
    assert [row[0] for row in own] == ["0", "0.1", "0.25", "0.5", "0.75", "1"]
    assert own[0][1:] == ["25", "0.000", "100 %", "100 %"]
    assert any("exact copy" in group.caption[1] for group in groups_of(section))
    assert "Images and their sources" in page_of(section)
    assert blocks_of(section, page.ui.Fold)


def test_a_run_goes_to_its_page_beside_one_from_noise(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both on the same generator, with the same comparisons without synthetic images: the commands of the guide."""
    other = run.parent / "real"
    shutil.copytree(run, other)
    assert main(["sample", str(other), *REAL]) == 0
    assert main(["evaluate", str(other), "--quiet"]) == 0
    assert main(["classify", str(other), "--quiet"]) == 0
    rows = plan_of(other, "metrics")["memorisation"]["sources"]["rows"]
    assert sum(row["n"] for row in rows) == len(plan_of(other / "samples")["images"])
    assert "Images and their sources" in (other / "report.html").read_text()
    both = run.parent / "both.html"
    assert main(["compare", str(run), str(other), "--out", str(both)]) == 0
    text = both.read_text()
    assert "differ in more than the method" not in text, "what images begin as is compared"
    assert "sample.start" in text
    arms = [plan_of(folder / "classifier", "results")["arms"] for folder in (run, other)]
    for a, b in zip(*arms, strict=True):
        equal = [one["accuracy"] for one in a["runs"]] == [one["accuracy"] for one in b["runs"]]
        assert equal or a["name"].startswith("synthetic"), "those without synthetic images are the same"
    assert arms[0] != arms[1]


def test_more_images_beside_the_run(run: Path, prepared: Prepared, tmp_path: Path) -> None:
    extra, real = tmp_path / "extra", ["--sample.start", "real", "--quiet"]
    assert main(["sample", str(run), "--out", str(extra), "--number", "9=6", *real]) == 0
    found = plan_of(extra)
    begin = plan_of(run / "samples")["counts"][9]
    pick = picker(prepared.train, prepared.train.class_names, 9, "own", (0.25, 0.5, 0.75, 1.0), 0)
    rows = [{k: row[k] for k in ("source", "source_hash", "strength")} for row in found["images"]]
    assert rows == [pick(begin + i) for i in range(6)]
    few = pngs(extra)
    assert main(["sample", str(run), "--out", str(extra), "--number", "9=8", *real]) == 0
    assert len(pngs(extra)) == 8
    assert few.items() < pngs(extra).items()


@pytest.mark.parametrize(
    ("arguments", "says", "remedy"),
    [
        (["--sample.strength", "0.5"], "sample.strength=(0.5,) has no effect", ["--sample.start", "real"]),
        (["--sample.sources", "any"], "sample.sources='any' has no effect", ["--sample.start", "real"]),
        (["--sample.start", "real", "--sample.boost", "2"], "boost=2.0 has no effect", ["--sample.boost", "1"]),
        (["--sample.start", "real", "--sample.skip", "0.1"], "skip=0.1 has no effect", ["--sample.start", "noise"]),
    ],
)
def test_options_without_effect_are_refused_and_the_remedy_works(
    run: Path, arguments: list[str], says: str, remedy: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = pngs(run)
    text = fails(capsys, "sample", str(run), *arguments)
    assert says in text
    assert " ".join(remedy[-2:]) in text
    assert pngs(run) == before
    assert main(["sample", str(run), *arguments, *remedy, "--replace", "--quiet"]) == 0
    if "real" in remedy:  # and back
        assert "--sample.start real" in fails(capsys, "sample", str(run), "--sample.start", "noise", "--replace")
        back = ["--sample.strength", "--sample.sources", "own", "--sample.start", "noise"]
        assert main(["sample", str(run), *back, "--replace", "--quiet"]) == 0
        assert pngs(run) == before


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"start": "real", "strength": 1.5}, r"strength=.*1.5.* is not in \[0, 1\]"),
        ({"start": "real", "strength": "0.5,-1"}, r"is not in \[0, 1\]"),
        ({"start": "real", "strength": "much"}, "strength='much' is not valid"),
        ({"start": "reel"}, "expected noise or real"),
        ({"start": "real", "sources": "few"}, "expected own or any"),
    ],
)
def test_values_out_of_range(values: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        override(RunConfig(), {"sample": values})


def test_strengths_are_read_however_they_are_written() -> None:
    for text in ("0.5,1", ["0.5", "1"], (0.5, 1.0), ["0.5,1"]):
        assert override(RunConfig(), {"sample": {"start": "real", "strength": text}}).sample.strength == (0.5, 1.0)
    how = {name: samples.sampling(override(RunConfig(), {"sample": {"start": "real", "sources": name}}))
           for name in ("own", "any")}  # fmt: skip
    assert (how["own"].strength, how["any"].strength) == ((0.25, 0.5, 0.75, 1.0), (0.5, 0.75, 1.0))


def test_a_source_that_was_changed_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.pipeline.conftest import write_tree

    images = write_tree(tmp_path / "images", {"a": 20, "b": 8})
    folder = tmp_path / "run"
    config = override(imbdiff.preset("tiny"), {**SMALL, "data": {}, "train.images": 16, "sample.strategy": "0.5"})
    imbdiff.run(images, folder, config, wanted=("train",), quiet=True)
    for path in (images / "a").glob("*.png"):
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    extra = ["--out", str(tmp_path / "extra"), "--sample.start", "real"]
    for more in ([], extra):
        assert "is of other data" in fails(capsys, "sample", str(folder), "--sample.start", "real", *more)
    assert not (tmp_path / "extra").exists()
