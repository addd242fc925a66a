"""Runs side by side."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from imbdiff.data.stats import ClassStats
from imbdiff.reporting.compare import build_comparison, differences
from imbdiff.reporting.content import ReportData
from imbdiff.runtime.errors import ConfigError

from . import fake


def other(**changes: Any) -> ReportData:
    return replace(fake.full(), title="other", **changes)


def with_numbers(**changes: Any) -> dict[str, Any]:
    found = fake.metrics()
    return {**found, "numbers": [{**e, **changes} if e["reference"] == "test" else e for e in found["numbers"]]}


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
        ({"classifier": {**fake.classifier(), "protocol": {"steps": 1}}}, "different steps"),
    ],
)
def test_what_makes_runs_incomparable_is_said(changes: dict[str, Any], said: str) -> None:
    found = differences([fake.full(), other(**changes)])
    assert len(found) == 1
    assert said in found[0]
    assert said in build_comparison([fake.full(), other(**changes)])


def test_each_run_keeps_its_column() -> None:
    better = fake.classifier()
    better["arms"][0]["mean"]["accuracy"] = 0.4321
    html = build_comparison([fake.full(), other(classifier=better), replace(fake.minimal(), title="bare <run>")])
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html))
    first = fake.classifier()["arms"][0]["mean"]["accuracy"]
    assert re.search(rf"CE all {first:.3f} ± [\d.]+ 0\.432 ± [\d.]+ –", text)
    assert "bare &lt;run&gt;" in html
    assert not re.search(r"https?://|url\((?!data:)", html)


def lines(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html))


def test_a_number_that_both_runs_have_is_one_line() -> None:
    higher = fake.metrics()
    for entry in higher["numbers"]:
        if (
            (entry["metric"], entry["extractor"]) == ("recall", "judge-cnn")
            and entry["scope"] == "all"
            and entry["reference"] == "test"
        ):
            entry.update(value=0.77, low=0.7, high=0.8)
    text = lines(build_comparison([fake.full(), other(metrics=higher)]))
    assert "recall(k=3)[judge-cnn] ↑ against test all 0.51 0.46 to 0.56 0.77 0.70 to 0.80" in text
    assert "FD[judge-cnn] ↓ against test all 21.4 19.4 to 23.4 21.4 19.4 to 23.4 FD∞" in text  # refused in all groups
    assert "F8[" not in text
    assert text.index("FD[judge-cnn] ↓ against test") < text.index("against train") < text.index("[random-conv]")


@pytest.mark.parametrize("changes", [{"fingerprint": "9" * 60}, {"n_reference": 17}])
def test_numbers_of_other_extractors_or_sizes_share_no_line(changes: dict[str, Any]) -> None:
    text = lines(build_comparison([fake.full(), other(metrics=with_numbers(**changes))]))
    own = fake.EXTRACTORS[0][1][:8]
    assert f"against test (extractor {own}, images bbbbbbbb) all, 600 reference images 21.4 19.4 to 23.4 –" in text
    size = changes.get("n_reference", 600)
    assert f"all, {size} reference images – 21.4 19.4 to 23.4" in text


def test_numbers_against_other_images_of_the_same_name_share_no_line() -> None:
    found = fake.metrics()
    found["protocol"]["fingerprints"]["reference"] = "dd" * 32
    text = lines(build_comparison([fake.full(), other(metrics=found)]))
    assert "images dddddddd) all, 600 reference images – 21.4" in text
    assert "CAS ↑ all 0.87 0.84 to 0.90 0.87" not in text
    assert "agreement[judge-cnn] ↑ all 0.91 0.89 to 0.93 0.91" in text  # of the synthetic images alone


def test_one_run_is_no_comparison() -> None:
    with pytest.raises(ConfigError, match="1 runs"):
        build_comparison([fake.full()])
