"""Runs side by side."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest

from imbdiff.data.stats import ClassStats
from imbdiff.reporting.compare import arm_lines, build_comparison, differences, metric_lines
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
        for name, scope, cells in metric_lines(runs)
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
    name, scope, cells = arm_lines([fake.full(), other(classifier=with_classifier(accuracy=0.4321)), fake.minimal()])[1]
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
