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
    return {**found, "numbers": [{**entry, **changes} for entry in found["numbers"]]}


def test_runs_of_one_split_are_comparable() -> None:
    assert differences([fake.full(), other(method="ddpm")]) == []
    assert differences([fake.full(), other(metrics=None, classifier=None, manifest={})]) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"manifest": {"hash": "ff"}}, "splits differ"),
        ({"stats": ClassStats(tuple("0123456789"), (9,) * 10)}, "training images are not the same"),
        ({"metrics": with_numbers(fingerprint="another")}, "extractors behind numbers"),
        ({"metrics": with_numbers(reference="training split")}, "references behind numbers"),
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


def test_one_run_is_no_comparison() -> None:
    with pytest.raises(ConfigError, match="1 runs"):
        build_comparison([fake.full()])
