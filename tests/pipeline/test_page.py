"""What the page of a run says of how images were changed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from imbdiff.config import RunConfig, override
from imbdiff.data.splits import Prepared
from imbdiff.pipeline.page import augmentation
from imbdiff.pipeline.training import prepare_data


@pytest.fixture(scope="module")
def digits() -> Prepared:
    return prepare_data("digits", override(RunConfig(), {"data.imbalance_factor": 20}).data)


def parts(prepared: Prepared, **values: object) -> tuple[str, str, str]:
    """Of the generator, of the classifiers, and why."""
    text = augmentation(prepared, override(RunConfig(), {name.replace("__", "."): v for name, v in values.items()}))
    generator, rest = text.split(". To classifiers: ")
    return (generator, *rest.split(". By symmetry "))  # type: ignore[return-value]


def test_the_page_says_what_generator_and_classifiers_see(digits: Prepared) -> None:
    generator, classifiers, why = parts(digits, method="ddpm", classify__changes=0)
    assert "rotated" not in generator
    assert "rotated" not in classifiers
    assert why.startswith("none")
    assert "--data.augment mirror" in why
    generator, classifiers, _ = parts(digits, method="ddpm-augmented", classify__changes=0.25)
    assert "rotated by up to 15 degrees" in generator
    assert "conditioned on these changes" in generator
    assert "probability 0.5" in generator
    assert "mirrored" not in generator
    assert "probability 0.25" in classifiers


def test_what_is_allowed_decides_how_images_are_changed(digits: Prepared) -> None:
    mirrored = replace(digits, flippable=True)
    for prepared, how, angle in ((mirrored, "auto", "15 degrees"), (digits, "mirror", "15 degrees"),
                                 (digits, "turns", "any angle")):  # fmt: skip
        generator, classifiers, why = parts(prepared, method="ddpm-augmented", data__augment=how)
        for text in (generator, classifiers):
            assert angle in text
            assert "mirrored" in text
        assert why.split(":")[0] == ("mirror" if how == "auto" else how)
        assert "not known" not in why
    generator, *_ = parts(digits, method="cbdm-ada")
    assert "any angle" in generator, "as published, whatever the set allows"
