"""Benchmarks are measured against the test split and, as the literature does, against the balanced training set."""

from __future__ import annotations

import numpy as np

from imbdiff.config import override
from imbdiff.data.arrays import ArraySource
from imbdiff.data.splits import Prepared, prepare
from imbdiff.metrics.extractors import RandomConv, RawPixels
from imbdiff.pipeline import evaluation
from imbdiff.pipeline.evaluation import BALANCED, evaluate_run
from imbdiff.presets import preset
from imbdiff.runtime.dist import Dist


def prepared_set() -> Prepared:
    generator = np.random.default_rng(0)
    y = np.arange(300) % 3
    x = (generator.integers(0, 128, (300, 8, 8)) + 40 * y[:, None, None]).astype(np.uint8)
    source = ArraySource({"train": (x[:180], y[:180]), "test": (x[180:], y[180:])}, kind="benchmark")
    return prepare(source, imbalance_factor=5)


def test_both_references_stand_next_to_the_numbers(tmp_path, monkeypatch):
    prepared = prepared_set()
    judge, seen = RandomConv(1, dim=8), RawPixels((8, 8, 1))
    seen.trained_on = frozenset(prepared.pool.hashes[:1])
    monkeypatch.setattr(evaluation, "judges", lambda *a, **k: ([seen, judge], None))
    config = override(preset("tiny"), {"evaluate": {"cas": False}, "device": "cpu"})
    # the "synthetic" images are the balanced set itself: its distance to that is 0, to the test images it is not
    found = evaluate_run(prepared, prepared.pool, config, tmp_path, device="cpu", dist=Dist(), quiet=True)
    rows = [row for row in found["numbers"] if row["reference"] == BALANCED]
    assert {row["n_reference"] for row in rows if row["scope"] == "all"} == {len(prepared.pool)} == {180}
    assert {row["extractor"] for row in rows} == {judge.name}
    assert not any(row["judge_saw_reference"] for row in rows)
    assert {row["scope"] for row in rows} >= {"all", *prepared.groups.present}
    said = found["protocol"]["second reference"]
    assert "the 180 images that the tail was cut from" in said
    assert f"the generator was trained on {len(prepared.train)} of them; {seen.name} was trained on them" in said
    assert found["protocol"]["fingerprints"][BALANCED] == prepared.pool.fingerprint

    def value(metric: str, reference: str) -> float:
        return next(
            row["value"]
            for row in found["numbers"]
            if (row["metric"], row["extractor"], row["scope"], row["reference"])
            == (metric, judge.name, "all", reference)
        )

    assert abs(value("FD", BALANCED)) < 1e-3
    assert value("precision", BALANCED) == 1 > value("precision", "test")
