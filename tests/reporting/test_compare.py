"""Runs side by side."""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from imbdiff.data.stats import ClassStats
from imbdiff.metrics.numbers import Direction
from imbdiff.reporting.blocks import Cell
from imbdiff.reporting.classifier import ADJUSTMENT
from imbdiff.reporting.compare import (
    _marked,
    arm_lines,
    build_comparison,
    differences,
    differing,
    metric_lines,
    same_but_seed,
)
from imbdiff.reporting.content import ReportData
from imbdiff.runtime.errors import ConfigError

from . import fake
from .looking import check_page, words


def other(**changes: Any) -> ReportData:
    return replace(fake.full(), title="other", **changes)


def with_numbers(**changes: Any) -> dict[str, Any]:
    found = fake.metrics()
    judge = [r["extractor"] == "judge-cnn" and r["reference"] != "train" for r in found["numbers"]]
    return {
        **found,
        "numbers": [{**r, **changes} if own else r for r, own in zip(found["numbers"], judge, strict=True)],
    }


def with_classifier(**changes: Any) -> dict[str, Any]:
    found = copy.deepcopy(dict(fake.full().classifier or {}))
    found["arms"][0]["mean"] |= changes
    return found


def lines(*runs: ReportData) -> dict[tuple[str, str], list[str]]:
    """Values of each line, "-" where a run has none."""
    return {
        (name, scope): [cells[i].text if i in cells else "-" for i in range(len(runs))]
        for name, scope, _, cells in metric_lines(runs)
    }


def test_runs_of_one_split_are_comparable() -> None:
    assert differences([fake.full(), other(method="ddpm")]) == []
    assert differences([fake.full(), other(metrics=None, classifier=None, manifest={})]) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"manifest": {"hash": "ff"}}, "splits differ"),
        ({"stats": ClassStats(tuple("0123456789"), (9,) * 10)}, "training images are not the same"),
        ({"metrics": with_numbers(fingerprint="another")}, "extractors or references differ"),
        ({"metrics": with_numbers(n_reference=5)}, "extractors or references differ"),
        ({"metrics": with_numbers(n_synthetic=5)}, "different numbers of synthetic images"),
        ({"classifier": {**with_classifier(), "protocol": {"steps": 1}}}, "different steps"),
    ],
)
def test_what_makes_runs_incomparable_is_said(changes: dict[str, Any], said: str) -> None:
    (found,) = differences([fake.full(), other(**changes)])
    assert said in found


def test_the_page_of_three_runs() -> None:
    runs = [fake.full(), other(manifest={"hash": "ff"}), replace(fake.minimal(), title="bare <run>", run="<x>")]
    html = build_comparison(runs)
    check_page(html)
    text = words(html)
    assert text.index("These runs differ in more than the method") < text.index("The splits differ")
    assert "bare <run>" in text
    assert "255,360 255,360 –" in text
    for command in (run.command for run in runs):
        assert command in text
    bare = replace(fake.minimal(), title="other")
    twins = words(build_comparison([bare, replace(bare, run="b")]))
    assert "other (runs/digits)" in twins
    for verb in ("classify RUN", "evaluate RUN", "sample RUN"):
        assert f"imbdiff {verb}" in twins
    with pytest.raises(ConfigError, match="1 runs"):
        build_comparison([fake.full()])


def test_each_run_keeps_its_column() -> None:
    name, scope, _, cells = arm_lines(
        [fake.full(), other(classifier=with_classifier(accuracy=0.4321)), fake.minimal()]
    )[1]
    first = with_classifier()["arms"][0]["mean"]["accuracy"]
    assert (name, scope) == ("CE", "all")
    assert {i: cell.text for i, cell in cells.items()} == {0: f"{first:.3f}", 1: "0.432"}
    assert cells[0].small.startswith("± ")


def test_a_number_that_both_runs_have_is_one_line() -> None:
    higher = fake.metrics()
    for row in higher["numbers"]:
        if (row["metric"], row["scope"], row["reference"]) == ("recall", "all", "test"):
            row.update(value=0.77, low=0.7, high=0.8)
    found = lines(fake.full(), other(metrics=higher))
    assert found["recall(k=3)[judge-cnn] ↑", "all"] == ["0.51", "0.77"]
    assert found["FD[judge-cnn] ↓", "all"] == ["21.4", "21.4"]
    assert not any(name.startswith(("F8", "density")) for name, _ in found)
    assert ("FD[judge-cnn] ↓", "few") not in found  # refused in both
    refused = fake.metrics()
    next(r for r in refused["numbers"] if r["metric"] == "KD").update(value=None, refused="too few")
    assert lines(fake.full(), other(metrics=refused))["KD[judge-cnn] ↓", "all"] == ["0.031", "refused"]


@pytest.mark.parametrize("what", ["extractor", "n", "images"])
def test_numbers_of_other_extractors_or_references_are_left_out(what: str) -> None:
    metrics = with_numbers(**{"extractor": {"fingerprint": "9" * 60}, "n": {"n_reference": 17}}.get(what, {}))
    if what == "images":
        metrics["protocol"]["fingerprints"]["reference"] = "dd" * 32
    found = lines(fake.minimal(), fake.full(), other(metrics=metrics))
    assert found["FD[judge-cnn] ↓", "all"] == ["-", "21.4", "-"]


def configured(title: str, method: str = "ddpm", **options: Any) -> ReportData:
    config = {"method": method, "seed": 0, "train": {"images": 4000}, "classify": {"steps": 100}} | options
    return replace(fake.full(), title=title, method=method, config=config)


def test_every_option_that_differs_is_listed_and_those_of_the_method_do_not_count() -> None:
    runs = [configured("a"), configured("b", "cbdm", seed=3, train={"images": 320}, data={"size": 64})]
    assert [row[0] for row in differing(runs)] == ["method", "seed", "train.images", "data.size"]
    assert {row[0]: row[1:] for row in differing(runs)}["train.images"] == ["4000", "320"]
    said = " ".join(differences(runs))
    assert "train.images differs: 4000, 320" in said
    assert "data.size" in said
    assert "seed" not in said
    text = words(build_comparison(runs))
    assert text.index("Every option that differs") < text.index("train.images 4000 320")
    assert differences([configured("a"), configured("b", "cbdm", seed=1)]) == []


def test_seeds_of_one_method_are_one_row_with_their_mean() -> None:
    runs = [configured("a"), configured("b", "cbdm"), configured("c", seed=1)]
    assert same_but_seed(runs) == [[0, 2], [1]]
    assert same_but_seed([other(), other()]) == [[0, 1]]
    assert same_but_seed([fake.minimal(), fake.minimal()]) == [[0], [1]]
    found = copy.deepcopy(dict(fake.full().classifier or {}))
    primary = next(arm for arm in found["arms"] if arm["name"] == found["verdict"]["primary"])
    before = primary["mean"]["accuracy"]
    primary["mean"]["accuracy"] = before + 0.1
    runs[2] = replace(runs[2], classifier=found)
    text = words(build_comparison(runs))
    assert f"a, c 2 {before + 0.05:.3f} ± {0.1 / 2**0.5:.3f}" in text


@pytest.mark.parametrize(
    ("direction", "values", "best"),
    [("higher", ("0.9", "0.8"), [0]), ("lower", ("1,234", "99"), [1]), ("nearer 1", ("0.8", "1.1"), [1]),
     ("lower", ("refused", "99"), []), ("lower", ("−0.1", "0.1"), [0]), ("none", ("1", "2"), []),
     ("higher", ("0.9", "0.9"), [0, 1])],
)  # fmt: skip
def test_the_best_of_a_row_is_marked(direction: Direction, values: tuple[str, str], best: list[int]) -> None:
    made = _marked({i: Cell(text) for i, text in enumerate(values)}, direction)
    assert [i for i, cell in made.items() if cell.style == "best"] == best


def test_calibration_is_better_where_it_is_lower_and_no_adjustment_is_best() -> None:
    how = {scope: direction for _, scope, direction, _ in arm_lines([fake.full()])}
    assert (how["all"], how["ECE"], how[ADJUSTMENT]) == ("higher", "lower", "none")


def test_pictures_are_of_classes_that_have_synthetic_images() -> None:
    run = fake.full()
    assert run.synthetic is not None
    one = replace(run, synthetic=run.synthetic.select(np.flatnonzero(run.synthetic.labels == 6)))
    html = build_comparison([one, replace(one, title="other")])
    assert re.findall(r'<h3><bdi class="name" title="(\w+)"', html) == ["6"]


def test_measured_and_all_refused_is_not_the_same_as_not_measured() -> None:
    refused = {**fake.metrics(), "numbers": [{**r, "value": None, "refused": "few"} for r in fake.metrics()["numbers"]]}
    runs = [replace(fake.full(), metrics=refused), other(metrics=refused)]
    text = words(build_comparison(runs))
    assert "Measured, but no number is printed" in text
    assert "imbdiff evaluate RUN" not in text
