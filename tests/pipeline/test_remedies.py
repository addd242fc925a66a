"""What an error of a verb advises is done to the folder that raised it, and then the same command goes through."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from imbdiff.cli import main
from imbdiff.config import RunConfig
from imbdiff.data.decode import parse_size
from imbdiff.pipeline.folder import RunFolder
from imbdiff.pipeline.predicting import load_classifier
from imbdiff.pipeline.strategy import parse_numbers, parse_strategy
from imbdiff.recognition.curation import parse_policy
from imbdiff.runtime.errors import ImbdiffError
from tests.pipeline.conftest import small_arguments

Words = list[str]
Tried = tuple[Words, Callable[[str], list[Words]]]
"""A command that is refused, and the commands that its remedy names."""


def printed(remedy: str) -> list[Words]:
    """Commands between backticks, as they are to be typed."""
    return [shlex.split(line)[1:] for line in re.findall(r"`(imbdiff [^`]+)`", remedy)]


def no_classifier_description(run: Path) -> Tried:
    next((run / "classifier").rglob("classifier.json")).unlink()
    return ["predict", str(run), str(run / "samples"), "--out", str(run.parent / "x.csv")], printed


def a_comparison_of_an_earlier_version(run: Path) -> Tried:
    path = run / "classifier" / "results.json"
    found = json.loads(path.read_text())
    del found["arms"][0]["members"]
    path.write_text(json.dumps(found))
    return ["report", str(run)], printed


def no_samples_to_measure(run: Path) -> Tried:
    (run / "samples" / "manifest.json").unlink()
    return [
        "evaluate",
        str(run),
        "--reference",
        "digits",
        "--out",
        str(run.parent / "x"),
        "--extractor",
        "raw-pixels",
    ], printed


def no_samples_to_evaluate(run: Path) -> Tried:
    RunFolder(run).forget("sample")
    shutil.rmtree(run / "samples")
    return ["evaluate", str(run), "--evaluate.no-cas"], printed


def more_candidates_than_there_are(run: Path) -> Tried:
    return ["curate", str(run), "--curate.candidates", "1.5"], printed


def not_chosen_among(run: Path) -> Tried:
    RunFolder(run).forget("curate")
    path = run / "config.yaml"
    path.write_text(path.read_text().replace("curate:\n  policy: none", "curate:\n  policy: no-copies"))
    return ["evaluate", str(run), "--evaluate.no-cas"], printed


def no_model(run: Path) -> Tried:
    (run / "model" / "model.safetensors").unlink()
    return ["sample", str(run), "--number", "3=1", "--out", str(run.parent / "more")], printed


def an_altered_image(run: Path) -> Tried:
    RunFolder(run).forget("evaluate")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(next((run / "samples").rglob("*.png")))

    def follow(said: str) -> list[Words]:
        next(Path(run / "samples").rglob(re.search(r"\d+\.png", said)[0])).unlink()  # type: ignore[index]
        assert "imbdiff sample" in said
        return [["sample", str(run)]]

    return ["evaluate", str(run), "--evaluate.no-cas"], follow


def no_run(run: Path) -> Tried:
    found = ["evaluate", str(run / "samples"), "--extractor", "raw-pixels", "--out", str(run.parent / "x")]

    def follow(said: str) -> list[Words]:
        found[:2] = shlex.split(said.rpartition(": imbdiff ")[2].replace("REAL", "digits"))
        return []

    return found, follow


def no_such_checkpoint(run: Path) -> Tried:
    found = ["sample", str(run), "--number", "3=1", "--out", str(run.parent / "more"), "--checkpoint", "50"]

    def follow(said: str) -> list[Words]:
        found[-1] = re.findall(r"\d+", said.partition("there are")[2])[0]
        return []

    return found, follow


def several_arms(run: Path) -> Tried:
    found = ["predict", str(run), str(run / "samples"), "--out", str(run.parent / "x.csv"), "--arm", "nothing"]

    def follow(said: str) -> list[Words]:
        found[-2:] = shlex.split(said.rpartition("such as ")[2])
        return []

    return found, follow


def a_method_that_goes_on_from_a_model(run: Path) -> Tried:
    found = ["train", "digits", *small_arguments(), "--method", "cbdm-finetune", "--out", str(run.parent / "new")]

    def follow(said: str) -> list[Words]:
        found.extend(re.search(r"--model\.init RUN\S+", said)[0].replace("RUN", str(run)).split(" ", 1))  # type: ignore[index]
        return []

    return found, follow


TRIED = [
    no_classifier_description, a_comparison_of_an_earlier_version, no_samples_to_measure, no_samples_to_evaluate,
    more_candidates_than_there_are, not_chosen_among, no_model, an_altered_image, no_run, no_such_checkpoint,
    several_arms, a_method_that_goes_on_from_a_model,
]  # fmt: skip


@pytest.mark.parametrize("tried", TRIED, ids=[tried.__name__ for tried in TRIED])
def test_the_remedy_works(
    tried: Callable[[Path], Tried], finished_once: tuple[Path, RunConfig], tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("imbdiff.reporting.report.build_report", lambda *_, **__: "<html></html>")  # has its own tests
    run = Path(shutil.copytree(finished_once[0], tmp_path / "my run"))
    words, follow = tried(run)
    assert main(words) == 2
    said = capsys.readouterr().err
    commands = follow(said)
    if follow is printed:
        assert commands, said
    for command in commands:
        assert main(command) == 0, (said, capsys.readouterr().err)
    assert main(words) == 0, (said, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("read", "wrong", "good"),
    [
        (parse_strategy, "2", r"^1\.0"),
        (parse_strategy, "equal=0", r"^1\b"),
        (parse_strategy, "effective=1", None),
        (parse_strategy, "balanced", r"equal\b"),
        (parse_policy, "confident=7", r"confident=[\d.]+"),
        (parse_policy, "confidnt", r"confident"),
        (parse_size, "32by32", r"\d+x\d+"),
        (lambda word: parse_numbers((word,), ("a", "b")), "a=many", r"a=\d+"),
    ],
)
def test_the_value_that_is_advised_is_taken(read: Callable[[str], Any], wrong: str, good: str | None) -> None:
    with pytest.raises(ImbdiffError) as caught:
        read(wrong)
    if good is None:  # a range: both its ends are near the bounds
        assert read(wrong.replace("1", "0.5"))
        return
    advised = re.search(good, caught.value.remedy)
    assert advised is not None, caught.value.remedy
    assert read(f"equal={advised[0]}" if wrong.startswith("equal") else advised[0])


def test_images_as_floats_are_taken_as_advised(finished_once: tuple[Path, RunConfig]) -> None:
    classifier = load_classifier(finished_once[0])
    images = np.random.default_rng(0).integers(0, 256, (4, *classifier.shape), np.uint8)
    with pytest.raises(ImbdiffError) as caught:
        classifier.predict(images / 255)
    advised = re.search(r"\(255 \* X\).*?\)(?= of)", caught.value.remedy)
    assert advised is not None
    taken = eval(advised[0], {"X": images / 255})
    assert classifier.predict(taken).tolist() == classifier.predict(images).tolist()
