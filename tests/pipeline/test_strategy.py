"""How many images: compared with imbalanced-learn's definitions, restated."""

from __future__ import annotations

import pytest

from imbdiff.data.stats import ClassStats
from imbdiff.pipeline.strategy import images_to_draw
from imbdiff.runtime.errors import ConfigError

STATS = ClassStats(("cat", "dog", "eel", "fox"), (50, 8, 50, 3))


@pytest.mark.parametrize(
    ("strategy", "added"),
    [
        ("auto", (0, 42, 0, 47)),
        ("not majority", (0, 42, 0, 47)),
        ("all", (0, 42, 0, 47)),
        ("minority", (0, 0, 0, 47)),
        ("not minority", (0, 42, 0, 0)),
        (0.5, (0, 17, 0, 22)),
        ("0.5", (0, 17, 0, 22)),
        (1.0, (0, 42, 0, 47)),
        (0.1, (0, 0, 0, 2)),
        ({"dog": 50, "fox": 3}, (0, 42, 0, 0)),  # totals, so 42 are added to the 8 there are
        ("dog=50, fox=10", (0, 42, 0, 7)),
        (lambda stats: dict.fromkeys(stats.names, 60), (10, 52, 10, 57)),
    ],
)
def test_the_number_of_images_to_add(strategy: object, added: tuple[int, ...]) -> None:
    assert images_to_draw(strategy, STATS) == added  # type: ignore[arg-type]


def test_a_class_name_may_hold_an_equals_sign() -> None:
    assert images_to_draw("a=b=9", ClassStats(("a=b", "c"), (4, 9))) == (5, 0)


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        ("majority", "not understood"),
        ("dog", "not understood"),
        ("dog=many", "not understood"),
        ("cow=9", "unknown class 'cow'"),
        ({"dog": 7}, "7 images of class 'dog' are fewer than the 8"),
        (0.0, r"must be in \(0, 1\]"),
        (1.5, r"must be in \(0, 1\]"),
    ],
)
def test_what_cannot_be_is_refused(strategy: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        images_to_draw(strategy, STATS)  # type: ignore[arg-type]
