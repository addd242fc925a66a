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
    return {**found, "numbers": [{**e, **changes} if e["reference"] == "test" else e for e in found["numbers"]]}


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
        ({"metrics": with_numbers(fingerprint="another")}, "extractors behind numbers"),
        ({"metrics": with_numbers(reference="another split")}, "references behind numbers"),
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
    name, scope, cells = arm_lines([fake.full(), other(classifier=with_classifier(accuracy=0.4321)), fake.minimal()])[0]
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
    assert found["recall(k=3)[judge-cnn] ↑ against test", "all"] == ["0.51", "0.77"]
    assert found["FD[judge-cnn] ↓ against test", "all"] == ["21.4", "21.4"]
    names = list(dict.fromkeys(name for name, _ in found))
    assert not any(name.startswith(("F8", "density")) for name in names)
    assert ("FD[judge-cnn] ↓ against test", "few") not in found  # refused in both
    order = [
        next(i for i, n in enumerate(names) if what in n) for what in ("against test", "against train", "[random-")
    ]
    assert order == sorted(order)
    refused = fake.metrics()
    next(r for r in refused["numbers"] if r["metric"] == "KD").update(value=None, refused="too few")
    assert lines(fake.full(), other(metrics=refused))["KD[judge-cnn] ↓ against test", "all"] == ["0.031", "refused"]


@pytest.mark.parametrize("changes", [{"fingerprint": "9" * 60}, {"n_reference": 17}])
def test_numbers_of_other_extractors_or_sizes_share_no_line(changes: dict[str, Any]) -> None:
    found = lines(fake.full(), other(metrics=with_numbers(**changes)))
    judge, size = (changes.get("fingerprint", fake.EXTRACTORS[0][1]))[:8], changes.get("n_reference", 600)
    name = "FD[judge-cnn] ↓ against test"
    assert found[name, f"all (extractor {fake.EXTRACTORS[0][1][:8]}, 600 images bbbbbbbb)"] == ["21.4", "-"]
    assert found[name, f"all (extractor {judge}, {size} images bbbbbbbb)"] == ["-", "21.4"]


def test_numbers_against_other_images_of_the_same_name_share_no_line() -> None:
    metrics = fake.metrics()
    metrics["protocol"]["fingerprints"]["reference"] = "dd" * 32
    found = lines(fake.full(), other(metrics=metrics))
    scope = f"all (extractor {fake.EXTRACTORS[0][1][:8]}, 600 images dddddddd)"
    assert found["FD[judge-cnn] ↓ against test", scope] == ["-", "21.4"]
    assert ("CAS ↑", "all") not in found
    assert found["agreement[judge-cnn] ↑", "all"] == ["0.91", "0.91"]  # of the synthetic images alone
