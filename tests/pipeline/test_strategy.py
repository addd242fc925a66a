"""How many images: compared with imbalanced-learn's definitions, restated."""

from __future__ import annotations

import numpy as np
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
        ("equal", (50, 50, 50, 50)),
        ("equal=0.1", (5, 5, 5, 5)),
        ("equal=0.001", (1, 1, 1, 1)),  # none of no class
        ("equal = 2", (100, 100, 100, 100)),
        (0.5, (0, 17, 0, 22)),
        ("0.5", (0, 17, 0, 22)),
        (1.0, (0, 42, 0, 47)),
        (0.1, (0, 0, 0, 2)),
        ({"dog": 50, "fox": 3}, (0, 42, 0, 0)),  # totals, so 42 are added to the 8 there are
        ("dog=50, fox=10", (0, 42, 0, 7)),
        (lambda stats: dict.fromkeys(stats.names, 60), (10, 52, 10, 57)),
    ],
)
def test_the_number_of_images_to_draw(strategy: object, added: tuple[int, ...]) -> None:
    assert images_to_draw(strategy, STATS) == added  # type: ignore[arg-type]


def test_a_class_name_may_hold_an_equals_sign() -> None:
    assert images_to_draw("a=b=9", ClassStats(("a=b", "c"), (4, 9))) == (5, 0)


@pytest.mark.parametrize(
    ("strategy", "added"),
    [
        # n_max (1 - beta^n) / (1 - beta^n_max), by hand: 0.9^3 = 0.729, 0.9^8 = 0.43046721, 0.9^50 = 0.00515378
        ("effective=0.9", (0, 21, 0, 11)),  # 50 x 0.56953279 / 0.99484622 = 28.62 and 50 x 0.271 / 0.99484622 = 13.62
        ("effective", (0, 2, 0, 1)),  # 0.99: 50 x 0.0772553 / 0.3949939 = 9.78 and 50 x 0.029701 / 0.3949939 = 3.76
        ("effective = 1e-9", (0, 42, 0, 47)),  # every class counts as one image: filled to the largest
        ("effective=0.999999999", (0, 0, 0, 0)),  # every image counts: nothing to add
    ],
)
def test_effective_numbers(strategy: str, added: tuple[int, ...]) -> None:
    assert images_to_draw(strategy, STATS) == added


def test_effective_numbers_never_take_away_and_fall_with_beta() -> None:
    stats = ClassStats(tuple("abcdefg"), (500, 120, 60, 17, 5, 2, 1))
    totals = []
    for beta in (0.1, 0.9, 0.99, 0.999, 0.9999):
        add = np.array(images_to_draw(f"effective={beta}", stats))
        exact = [500 * sum(beta**i for i in range(n)) / sum(beta**i for i in range(500)) for n in stats.counts]
        assert np.abs(add + np.array(stats.counts) - exact).max() <= 0.5 + 1e-9
        assert (add >= 0).all()
        assert add[0] == 0
        totals.append(add.sum())
    assert totals == sorted(totals, reverse=True)
    assert len(set(totals)) == 5


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        ("majority", "not understood"),
        ("dog", "not understood"),
        ("dog=many", "not understood"),
        ("cow=9", "unknown class 'cow'"),
        ({"dog": 7}, "7 images of class 'dog' are fewer than the 8"),
        ("effective=1", r"effective=1 must be in \(0, 1\)"),
        ("effective=0", r"effective=0 must be in \(0, 1\)"),
        ("effective=1.5", "near 0 fills every class"),
        ("effective=-0.5", r"must be in \(0, 1\)"),
        ("effective=e", "not understood"),
        ("effectiv", r"not understood[\s\S]*effective=BETA"),
        (0.0, r"must be in \(0, 1\]"),
        (1.5, r"must be in \(0, 1\]"),
    ],
)
def test_what_cannot_be_is_refused(strategy: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        images_to_draw(strategy, STATS)  # type: ignore[arg-type]
