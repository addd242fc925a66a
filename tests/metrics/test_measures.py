"""Measures from outside the package: found by name, computed with the others, on the page, in the JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from imbdiff.config import RunConfig
from imbdiff.data.imageset import ImageSet
from imbdiff.metrics.measures import MEASURES, METRICS, PANELS, QUESTIONS, choose_measures
from imbdiff.metrics.numbers import ClassColumn, Found, Number, Origin
from imbdiff.metrics.rows import Estimate, Rows, Scope
from imbdiff.pipeline import evaluation
from imbdiff.pipeline.direct import Measuring, evaluate_any
from imbdiff.runtime.errors import ConfigError

PROGRAM = """
from imbdiff.metrics.measures import Measure, Metric
from imbdiff.metrics.rows import Estimate

def gap(fake, real, *, seed=0):
    found = abs(float(fake.array.mean()) - float(real.array.mean()))
    return {"mean gap": Estimate.of(found, None, None, fake, real), "never": Estimate.refuse("not today", fake, real)}

GAP = Measure(gap, (Metric("mean gap", "lower"), Metric("never", "none")), "difference of the means <b>", "nowhere")
TWICE = Measure(gap, (Metric("FD", "lower"),), "x", "y")
EMPTY = Measure(gap, (), "x", "y")
LIES = Measure(gap, (Metric("mean gap", "lower"),), "x", "y")
ENDLESS = Measure(lambda fake, real, *, seed: {"e": Estimate.of(float("nan"), None, None, fake, real)},
                  (Metric("e", "lower"),), "x", "y")
"""


def _set(n: int, high: int, seed: int) -> ImageSet:
    g = np.random.default_rng(seed)
    return ImageSet(g.integers(0, high, (n, 4, 4, 1), dtype=np.uint8), np.arange(n) % 2, ("a", "b"))


def test_names_are_for_people_and_json_is_structured() -> None:
    origin = Origin(metric="recall", k=3, reference="test", extractor="judge", fingerprint="f", direction="higher")
    estimate = Estimate(0.5, 0.4, 0.6, n_synthetic=9, n_reference=8, n_effective=8.0, extra={"classes_dropped": 1})
    number = Number.made(origin, "few", estimate, 2)
    assert (number.short, number.label, number.classes_left_out) == ("recall(k=3)", "recall(k=3)[judge]", 3)
    assert Number.from_json(json.loads(json.dumps(number.to_json()))) == number
    fids = [replace(origin, metric=m, k=None, is_fid=True).label for m in ("FD", "FD∞", "KD", "F8")]
    assert fids == ["FID", "FID∞", "KID", "F8[judge]"]
    found = Found(3)
    found.add(number, Scope("group", "few", np.arange(2)), "train")
    found.add(number, Scope("class", "b", np.array([1])), "synthetic")
    refused = Number.made(origin, "c", Estimate.refuse("too few"))
    found.add(refused, Scope("class", "c", np.array([2])), "synthetic")
    assert (found.numbers, found.baselines) == ([], [number])
    (column,) = [ClassColumn.from_json(json.loads(json.dumps(c.to_json()))) for c in found.columns.values()]
    assert (column.label, column.of, column.value) == ("recall(k=3)[judge]", "synthetic", [None, 0.5, None])
    assert (column.refused, column.reasons) == ([None, None, 0], ["too few"])


def test_every_metric_of_the_page_is_in_the_table() -> None:
    assert {name for _, names in QUESTIONS for name in names} <= set(METRICS)
    assert {name for names in PANELS for name in names} <= set(METRICS)
    shown = [metric.main for metric in METRICS.values()]
    assert shown == sorted(shown, reverse=True)


def _rows(n: int, seed: int, order: np.ndarray | None = None) -> Rows:
    g = np.random.default_rng(seed)
    x, p, labels = g.normal(size=(n, 3)) + seed / 4, g.dirichlet(np.ones(4), n), g.integers(0, 2, n)
    o = np.arange(n) if order is None else order
    mix = np.array([0.3, 0.7])
    return Rows.of(x[o], labels[o], mix, predicted=labels[o] * (x[o, 0] > 0), probabilities=p[o])


@pytest.mark.parametrize("name", [name for name, measure in MEASURES.items() if measure.function])
def test_what_holds_for_every_measure(name: str) -> None:
    """The order of rows changes nothing, an interval holds its value, few rows are refused with the number needed."""
    measure = MEASURES[name]
    found = measure.numbers(_rows(230, 0), _rows(210, 1), seed=0)
    assert set(found) == {metric.name for metric in measure.metrics}
    g = np.random.default_rng(2)
    mixed = measure.numbers(_rows(230, 0, g.permutation(230)), _rows(210, 1, g.permutation(210)), seed=0)
    for metric, e in found.items():
        assert e.low <= e.value <= e.high
        twin = mixed[metric]
        assert (e.value, e.low, e.high) == pytest.approx((twin.value, twin.low, twin.high), rel=1e-9)
        assert 0 < e.n_synthetic <= 230
    for fake, real in ((_rows(9, 0), _rows(210, 1)), (_rows(210, 0), _rows(9, 1))):
        if name != "agreement":
            few = measure.numbers(fake, real, seed=0).values()
            assert all(e.value is None and any(c.isdigit() for c in str(e.refused)) for e in few)
    nothing = measure.numbers(_rows(230, 0).select(np.zeros(230, bool)), _rows(210, 1), seed=0)
    assert {e.refused for e in nothing.values()} == {"no class has images in both sets"}


def test_a_measure_from_outside_is_measured_and_shown(outside: Callable[..., None], tmp_path: Path) -> None:
    name = "mean-gap"
    outside(PROGRAM, "metrics", mean_gap="GAP")
    how = Measuring(quiet=True, extractor=("raw-pixels",), measures=(name,))
    fake, real = _set(60, 100, 0), _set(80, 200, 1)
    found = evaluate_any(fake, real, how=how, out=tmp_path / "out")
    assert [Number.from_json(r).to_json() for r in json.loads(json.dumps(found["numbers"]))] == found["numbers"]
    (row,) = [r for r in found["numbers"] if r["metric"] == "mean gap" and r["scope"] == "all"]
    assert row["value"] > 0.1
    assert (row["low"], row["direction"], row["n_synthetic"]) == (None, "lower", 60)
    assert {r["refused"] for r in found["numbers"] if r["metric"] == "never"} == {"not today"}
    page = (tmp_path / "out" / "report.html").read_text()
    assert "mean gap" in page
    assert "difference of the means &lt;b&gt;" in page


def test_what_cannot_be_a_measure_is_refused(outside: Callable[..., None]) -> None:
    outside(PROGRAM, "metrics", mean_gap="GAP")
    assert choose_measures() == MEASURES
    assert [*choose_measures(("mean-gap", "frechet"))] == [*MEASURES, "mean-gap"]
    for names, words, remedy in [
        (("mean-gab",), "unknown name 'mean-gab' among the metrics", "did you mean mean-gap"),
        (("module:outside:GAPS",), "no 'GAPS'", "did you mean GAP"),
        (("module:outside:gap",), "gap is a function", "Measure"),
        (("module:outside:TWICE",), "gives the number 'FD', as another", "names of its own"),
        (("mean-gap", "module:outside:GAP"), "'mean gap', as another", "names of its own"),
        (("module:outside:EMPTY",), "gives no numbers", "a function"),
    ]:
        with pytest.raises(ConfigError, match=words) as caught:
            choose_measures(names)
        assert remedy in caught.value.remedy


def test_numbers_that_a_measure_may_not_give(outside: Callable[..., None]) -> None:
    outside(PROGRAM)
    rows = Rows.of(np.random.default_rng(0).normal(size=(9, 2)))
    lies, endless = ("module:outside:LIES", "module:outside:ENDLESS")
    with pytest.raises(ConfigError, match="the measure gap gives 'never'") as caught:
        choose_measures([lies])[lies].numbers(rows, rows, seed=0)
    assert "mean gap" in caught.value.remedy
    assert choose_measures([endless])[endless].numbers(rows, rows, seed=0)["e"].refused == "the value is nan"


def test_inputs_of_a_run_follow_the_measures(outside: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    outside(PROGRAM)
    monkeypatch.setattr(evaluation.training, "symmetry_of", lambda *_: "none")
    prepared: Any = SimpleNamespace(manifest={"hash": "x"}, pool=())

    def key(*names: str) -> list[Any]:
        asked = replace(RunConfig(), evaluate=replace(RunConfig().evaluate, measures=names))
        return evaluation.evaluation_inputs(prepared, _set(4, 9, 0), asked)

    one, two = key("module:outside:GAP"), key("module:outside:LIES")
    assert key() != one != two != key()
    outside(PROGRAM + "# changed")
    assert one[0] == key("module:outside:GAP")[0]
    assert one != key("module:outside:GAP")
