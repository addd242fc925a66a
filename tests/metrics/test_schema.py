"""metrics.json is what its schema says, refusals included; and the schema refuses what it should not be."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator

from imbdiff.data.imageset import ImageSet
from imbdiff.data.stats import Groups
from imbdiff.metrics.evaluate import SCHEMA, evaluate
from imbdiff.metrics.extractors import RandomConv
from imbdiff.metrics.schema import load_schema

NAMES = ("a", "b", "c")


def _set(counts: tuple[int, ...], seed: int) -> ImageSet:
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts).astype(np.int64)
    return ImageSet(random.integers(0, 256, (len(labels), 8, 8, 1), dtype=np.uint8), labels, NAMES[: len(counts)])


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    train = _set((60, 30, 4), 0)
    return evaluate(
        _set((70, 60, 30), 1), _set((60, 60, 12), 2), train, Groups.default(train.stats), [RandomConv(1)],
        reference_name="test",
    )  # fmt: skip


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    schema = load_schema()
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def test_what_evaluate_gives_is_valid(found: dict[str, Any], validator: Draft202012Validator) -> None:
    validator.validate(json.loads(json.dumps(found, allow_nan=False)))
    assert any(row["refused"] for row in found["numbers"])
    assert any(row["value"] is not None for row in found["numbers"])
    assert load_schema()["properties"]["schema"]["const"] == SCHEMA
    for column in found["classes"]["metrics"]:  # what a JSON Schema cannot say
        lists = {name: len(v) for name, v in column.items() if isinstance(v, list) and name != "reasons"}
        assert set(lists.values()) == {3}, lists
        assert all(place is None or place < len(column["reasons"]) for place in column["refused"])


def test_one_class_without_training_images_is_valid(validator: Draft202012Validator) -> None:
    validator.validate(evaluate(_set((30,), 1), _set((30,), 2), None, None, [RandomConv(1)], reference_name="real"))


def test_with_a_classifier_and_a_judge_it_is_valid(found: dict[str, Any], validator: Draft202012Validator) -> None:
    from imbdiff.metrics.rows import Estimate
    from imbdiff.metrics.tables import number_row

    common = {key: found["numbers"][0][key] for key in ("reference", "extractor", "fingerprint", "ranking_only")}
    common |= {"judge_saw_reference": False, "classes_left_out": 1}
    row = number_row("CAS", "all", Estimate(0.5, 0.4, 0.6, None, 30, 60, 60.0), "higher", common)
    judge = {"name": "j", "fingerprint": "f", "accuracy": 0.9, "per_class": [1.0, None], "trained_on": 3, "left_out": 0}
    validator.validate({**found, "numbers": [*found["numbers"], row], "judge": judge})
    validator.validate({**found, "judge": None})


def _value(found: dict[str, Any]) -> dict[str, Any]:
    return next(row for row in found["numbers"] if row["value"] is not None)


def _refused(found: dict[str, Any]) -> dict[str, Any]:
    return next(row for row in found["numbers"] if row["refused"])


BROKEN: dict[str, Callable[[dict[str, Any]], Any]] = {
    "another schema": lambda f: f.update(schema="imbdiff-metrics/0"),
    "no fingerprint": lambda f: _value(f).pop("fingerprint"),
    "no n": lambda f: _value(f).pop("n_reference"),
    "a negative n": lambda f: _value(f).update(n_synthetic=-1),
    "neither value nor reason": lambda f: _value(f).update(value=None),
    "value and reason": lambda f: _value(f).update(refused="too few"),
    "an empty reason": lambda f: _refused(f).update(refused=""),
    "an interval of nothing": lambda f: _refused(f).update(low=0.1),
    "a text for a number": lambda f: _value(f).update(value="0.5"),
    "a direction of its own": lambda f: _value(f).update(direction="up"),
    "a key of its own": lambda f: _value(f).update(sigma=1),
    "no numbers": lambda f: f.update(numbers=[]),
    "no yardsticks": lambda f: f.pop("yardsticks"),
    "no memorisation": lambda f: f.pop("memorisation"),
    "a copy share above one": lambda f: f["memorisation"]["summary"][0].update(near_copy_share=1.5),
    "columns of unknown images": lambda f: f["classes"]["metrics"][0].update(of="test"),
    "a column without values": lambda f: f["classes"]["metrics"][0].pop("value"),
    "no extractor": lambda f: f["protocol"].update(extractors=[]),
    "an extractor that works": lambda f: f["protocol"]["extractors"][0].update(role="helper"),
    "no fingerprint of the reference": lambda f: f["protocol"]["fingerprints"].pop("reference"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_broken_is_refused(what: str, found: dict[str, Any], validator: Draft202012Validator) -> None:
    broken = copy.deepcopy(found)
    BROKEN[what](broken)
    assert not validator.is_valid(broken)
