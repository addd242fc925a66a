"""The page of a sweep: means and intervals over seeds, the best by each number's own direction, links, what failed."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from imbdiff.reporting.answer import arm_text
from imbdiff.reporting.classifier import arms_of, pair
from imbdiff.reporting.sweep import (
    COST,
    WITH,
    WITHOUT,
    Line,
    SweepRun,
    build_sweep,
    cost_plot,
    mean_interval,
    outcome,
    sweep_lines,
)

from . import fake
from .looking import HOSTILE, axes_of, check_page, words


def run(method: str, seed: int, accuracy: float = 0.8, distance: float = 20.0, minutes: float = 4.0) -> SweepRun:
    """A run whose judged arm has that accuracy over all, and whose FD over all is that distance."""
    data = fake.full()
    found = copy.deepcopy(dict(data.classifier or {}))
    name = next(arm.name for arm in pair(arms_of(found)) if arm.synthetic)
    next(arm for arm in found["arms"] if arm_text(arm["name"]) == name)["mean"]["accuracy"] = accuracy
    found["protocol"]["seeds"] = [3 * seed + i for i in range(3)]
    metrics = copy.deepcopy(dict(data.metrics or {}))
    for row in metrics["numbers"]:
        if (row["metric"], row["scope"], row["reference"], row["extractor"]) == ("FD", "all", "test", "judge-cnn"):
            row["value"] = distance
    times = {"train": 60 * minutes - 10, "sample": 10.0, "classify": 1000.0 * seed}
    folder = f"{method}-{seed}"
    data = replace(data, method=method, classifier=found, metrics=metrics, timings=times)
    return SweepRun(method, seed, folder, f"{folder}/report.html", data)


RUNS = [
    run("ddpm", 0, 0.70, 30.0, 2), run("cbdm", 0, 0.80, 20.0, 4), run("ddpm", 1, 0.72, 31.0, 2.2),
    run("cbdm", 1, 0.82, 22.0, 4.2), run("ddpm", 2, 0.71, 32.0, 2.1), run("cbdm", 2, 0.81, 21.0, 4.4),
]  # fmt: skip


def line(runs: list[SweepRun], name: str, scope: str = "all") -> Line:
    return next(one for one in sweep_lines(runs) if one.name.startswith(name) and one.scope == scope)


@pytest.mark.parametrize("values", [[0.5, 0.7], [1.0, 2.0, 4.0], [3.0, 3.0, 3.0], list(np.linspace(-1, 5, 9))])
def test_the_interval_is_students(values: list[float]) -> None:
    found = mean_interval(values)
    assert found is not None
    scale = stats.sem(values)
    low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), scale) if scale else (values[0],) * 2
    np.testing.assert_allclose(found, (np.mean(values), low, high))


def test_one_seed_has_no_interval_and_none_has_no_number() -> None:
    assert mean_interval([0.5]) == (0.5, None, None)
    assert mean_interval([]) is None


def test_the_interval_holds_the_mean_in_95_of_100_sweeps() -> None:
    random = np.random.default_rng(0)
    held = [
        low <= 1.0 <= high for _, low, high in (mean_interval(random.normal(1, 2, 3).tolist()) for _ in range(2000))
    ]  # type: ignore[misc,operator]
    assert 0.935 < np.mean(held) < 0.965


@pytest.mark.parametrize(
    ("direction", "best"), [("higher", "b"), ("lower", "a"), ("nearer 1", "c"), ("none", None)]
)  # fmt: skip
def test_the_best_is_by_the_numbers_own_direction(direction: Any, best: str | None) -> None:
    values = {"a": {0: 0.1, 1: 0.2}, "b": {0: 4.0, 1: 5.0}, "c": {0: 1.3}}
    assert Line("quality", "x", "all", direction, values=values).best == best
    assert Line("quality", "x", "all", direction, values={"a": {0: 1.0}}).best is None


def test_every_number_keeps_its_method_and_seed() -> None:
    found = line(RUNS, WITH)
    assert found.values == {"ddpm": {0: 0.70, 1: 0.72, 2: 0.71}, "cbdm": {0: 0.80, 1: 0.82, 2: 0.81}}
    assert (found.best, line(RUNS, "FD[judge").best) == ("cbdm", "cbdm")
    assert line(RUNS, "FD[judge").values["ddpm"] == {0: 30.0, 1: 31.0, 2: 32.0}
    cost = line(RUNS, "time", COST)
    assert cost.values["ddpm"] == {0: 120, 1: 132, 2: pytest.approx(126)}  # classifiers cost nothing here
    assert cost.best == "ddpm"
    few = line(RUNS, "gain", "few")
    verdict = (RUNS[0].data.classifier or {})["verdict"]["per_group"]["few"]  # type: ignore[union-attr]
    assert few.values["ddpm"][0] == pytest.approx(100 * verdict["difference"])
    json.dumps([one.to_json() for one in sweep_lines(RUNS)], allow_nan=False)


def test_classifiers_that_all_methods_share_are_not_compared() -> None:
    found = line(RUNS, WITHOUT)
    assert found.best is None
    assert (found.mean("ddpm") or ())[1:] == (None, None)


def test_numbers_of_another_extractor_are_left_out() -> None:
    other = run("ccua", 0)
    metrics = {**other.data.metrics, "numbers": [  # type: ignore[union-attr,dict-item]
        {**row, "fingerprint": "9" * 60} for row in other.data.metrics["numbers"]  # type: ignore[union-attr,index]
    ]}  # fmt: skip
    found = line([*RUNS, replace(other, data=replace(other.data, metrics=metrics))], "FD[judge")  # type: ignore[type-var]
    assert set(found.values) == {"ddpm", "cbdm"}
    assert "ccua" in line([*RUNS, other], WITH).values


def test_what_is_best_is_claimed_where_intervals_are_apart() -> None:
    assert "cbdm, 0.810" in outcome(line(RUNS, WITH))
    assert "apart from all others" in outcome(line(RUNS, WITH))
    alike = [*RUNS, *(run("ccua", seed, 0.78 + 0.02 * seed) for seed in range(3))]
    assert "not clearly better than ccua" in outcome(line(alike, WITH))
    assert "apart" not in outcome(line(RUNS[:2], WITH))  # of one seed nothing is known
    assert outcome(line([RUNS[0], RUNS[2]], WITH)) == ""


def check(html: str) -> str:
    """The page without its links to pages beside it, which are returned as text."""
    targets = re.findall(r'href="([^"#][^"]*)"', html)
    check_page(re.sub(r'href="[^"#][^"]*"', 'href="#runs"', html))
    return " ".join(targets)


def test_the_page() -> None:
    runs = [*RUNS, SweepRun("ccua", 0, "ccua-0", failed="no <memory> left"), SweepRun("ccua", 1, "ccua-1")]
    html = build_sweep("digits", "imbdiff sweep digits", runs, sweep_lines(runs))
    targets, text = check(html), words(html)
    assert targets.split() == [one.page for one in RUNS]
    assert "6 of 8 runs done, 1 not finished, 1 failed" in text
    assert "no &lt;memory&gt; left" in html
    assert "ddpm cbdm ccua" in text
    assert "imbdiff sweep digits" in text
    assert html.count('class="plot"') == 1
    assert "differ in more than the method" not in text
    other = replace(RUNS[0], method="x", data=replace(RUNS[0].data, manifest={"hash": "ff"}))  # type: ignore[type-var]
    assert "differ in more than the method" in words(build_sweep("x", "", [*RUNS, other], sweep_lines(RUNS)))


def test_a_page_of_nothing_yet_and_of_one_run() -> None:
    none = [SweepRun("ddpm", 0, "ddpm-0"), SweepRun("cbdm", 0, "cbdm-0")]
    html = build_sweep("digits", "again", none, sweep_lines(none))
    check(html)
    assert "0 of 2 runs done" in words(html)
    assert 'class="plot"' not in html
    check(build_sweep("digits", "again", RUNS[:1], sweep_lines(RUNS[:1])))
    bare = [SweepRun("ddpm", 0, "ddpm-0", data=fake.minimal())]
    assert "0 of 1 run done" in words(build_sweep("digits", "again", bare, sweep_lines(bare)))


@pytest.mark.parametrize("name", HOSTILE)
def test_names_are_data(name: str) -> None:
    runs = [
        *RUNS,
        replace(run("x", 0), method=name, folder=name, page=f"{name.encode('ascii', 'replace').decode()}/r.html"),
    ]
    check(build_sweep(name, name, runs, sweep_lines(runs)))


def test_seeds_that_share_classifiers_are_said_with_seeds_that_share_none() -> None:
    assert "share none" not in words(build_sweep("d", "", RUNS, sweep_lines(RUNS)))
    near = copy.deepcopy(RUNS)
    for one in near:
        one.data.classifier["protocol"]["seeds"] = list(range(one.seed, one.seed + 3))  # type: ignore[union-attr,index]
    assert "--seeds 0 3 6 shares none" in words(build_sweep("d", "", near, sweep_lines(near)))


def test_the_plot_puts_a_method_at_its_mean_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = sweep_lines(RUNS)
    shown, cost = [line(RUNS, "FD[judge"), line(RUNS, WITH)], line(RUNS, "time", COST)
    axes = axes_of(monkeypatch, lambda: cost_plot(lines, ["ddpm", "cbdm"], cost, shown))
    marks = [(one.get_xdata()[0], one.get_ydata()[0]) for one in axes[1].lines if one.get_markersize() == 7]
    assert marks == [pytest.approx((2.1, 0.71)), pytest.approx((4.2, 0.81))]
    assert [text.get_text() for text in axes[0].texts] == ["ddpm", "cbdm"]
