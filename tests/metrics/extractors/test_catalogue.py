"""Extractors by name."""

from __future__ import annotations

import pytest

from imbdiff.metrics.extractors import EXTRACTORS, RandomConv, RawPixels, make_extractor
from imbdiff.runtime.errors import ConfigError, DataError

SHAPE = (16, 12, 1)


def test_the_free_ones() -> None:
    assert isinstance(make_extractor("random-conv", SHAPE), RandomConv)
    found = make_extractor(" raw-pixels ", SHAPE)
    assert isinstance(found, RawPixels)
    assert found.dim == 16 * 12
    assert make_extractor("random-conv", (9, 9, 3)).fingerprint == RandomConv(3).fingerprint


@pytest.mark.parametrize(
    ("spec", "hint"),
    [
        ("randomconv", "did you mean random-conv?"),
        ("inceptoin", "did you mean inception or inception:FILE?"),
        ("cifar-resnet", "did you mean cifar-resnet:FILE?"),
        ("random-conv:3", "did you mean random-conv?"),
        ("Timm:resnet18", "did you mean timm:NAME?"),
        ("zzz", "There are: random-conv, raw-pixels"),
    ],
)
def test_an_unknown_name_gets_the_nearest_and_the_list(spec: str, hint: str) -> None:
    with pytest.raises(ConfigError, match="unknown extractor") as caught:
        make_extractor(spec, SHAPE)
    assert hint in caught.value.remedy
    assert all(e.form in caught.value.remedy for e in EXTRACTORS)


@pytest.mark.parametrize(
    "spec", ["timm:", "inception:", "hf:", "checkpoint:", "checkpoint:judge-cnn", "checkpoint:timm:x"]
)
def test_a_form_without_its_end(spec: str) -> None:
    with pytest.raises(ConfigError, match="names no"):
        make_extractor(spec, SHAPE)


def test_missing_files_and_odd_shapes_are_found_at_once() -> None:
    with pytest.raises(DataError, match="no weight file"):
        make_extractor("cifar-resnet:/nonexistent/net.th", (32, 32, 3))
    with pytest.raises(ConfigError, match="Inception weights"):
        make_extractor("inception", (32, 32, 3), inception_weights="/nonexistent/w.pth")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="shape"):
        make_extractor("random-conv", (32, 32))  # type: ignore[arg-type]
