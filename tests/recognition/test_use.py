"""Which rows a step sees, and how they are counted and weighed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from imbdiff.data.samplers import BatchSampler
from imbdiff.recognition.use import Mixture, Use, joined
from imbdiff.runtime.errors import ConfigError

from .conftest import make_set

REAL = make_set((40, 10, 4), 0)
SYNTHETIC = make_set((0, 30, 36), 9)


def _mixture(**use: Any) -> Mixture:
    return Mixture(REAL, SYNTHETIC, Use(**use), 20, 5)


def test_both_kinds_in_one_set_the_real_ones_first() -> None:
    both = joined(REAL, SYNTHETIC)
    np.testing.assert_array_equal(both.images[:54], REAL.images)
    np.testing.assert_array_equal(both.images[54:], SYNTHETIC.images)
    np.testing.assert_array_equal(both.labels, np.concatenate([REAL.labels, SYNTHETIC.labels]))
    assert both.ids[53:55] == ("real/53", "synthetic/0")


@pytest.mark.parametrize("distribution", ["natural", "balanced", "sqrt"])
def test_without_synthetic_images_batches_are_those_of_the_sampler_of_that_name(distribution: str) -> None:
    sampler = BatchSampler(REAL.labels, 20, distribution=distribution, seed=5, name="classifier batch")
    empty = SYNTHETIC.select([])
    for mixture in (Mixture(REAL, None, Use(), 20, 5), Mixture(REAL, empty, Use(share=0.5), 20, 5)):
        assert mixture.relative_weights(distribution) is None
        for step in range(6):
            np.testing.assert_array_equal(mixture.rows(step, distribution), sampler.indices(step))


@pytest.mark.parametrize("distribution", ["natural", "balanced"])
def test_without_a_share_both_kinds_are_drawn_as_one_set(distribution: str) -> None:
    labels = np.concatenate([REAL.labels, SYNTHETIC.labels])
    sampler = BatchSampler(labels, 20, distribution=distribution, seed=5, name="classifier batch")
    for step in range(6):
        np.testing.assert_array_equal(_mixture().rows(step, distribution), sampler.indices(step))


@pytest.mark.parametrize(("share", "rows"), [(0.5, 10), (0.1, 2), (0.33, 7), (0.95, 19)])
@pytest.mark.parametrize("distribution", ["natural", "balanced"])
def test_a_share_is_kept_in_every_batch(share: float, rows: int, distribution: str) -> None:
    mixture = _mixture(share=share)
    seen = set()
    for step in range(60):
        found = mixture.rows(step, distribution)
        assert found.shape == (20,)
        assert (found >= 54).sum() == rows
        assert (found[: 20 - rows] < 54).all()  # the real ones first
        seen |= set(found.tolist())
        only = mixture.rows(step, distribution, real_only=True)
        assert only.shape == (20,)
        assert (only < 54).all()
    if distribution == "natural":  # epochs: every image comes
        assert seen == set(range(54 + 66))


def test_shares_that_leave_a_kind_out_are_refused() -> None:
    for share, rows in ((0.01, 0), (0.99, 20)):
        with pytest.raises(ConfigError, match=f"{rows} of 20 rows"):
            _mixture(share=share)


def test_real_rows_of_the_last_steps_continue_the_stream_of_real_images() -> None:
    sampler = BatchSampler(REAL.labels, 20, seed=5, name="classifier batch")
    mixture = _mixture()
    for step in range(6):
        np.testing.assert_array_equal(mixture.rows(step, "natural", real_only=True), sampler.indices(step))


def test_another_phase_has_a_stream_of_its_own() -> None:
    mixture = _mixture(share=0.5)
    for real_only in (False, True):
        a = mixture.rows(3, "balanced", real_only=real_only)
        b = mixture.rows(3, "balanced", real_only=real_only, name=" crt")
        assert not np.array_equal(a, b)
        np.testing.assert_array_equal(a, mixture.rows(3, "balanced", real_only=real_only))
    # the two kinds of a batch are drawn apart: here both are of the same images
    for distribution in ("natural", "balanced"):
        real, synthetic = np.split(Mixture(REAL, REAL, Use(share=0.5), 20, 5).rows(3, distribution), 2)
        assert not np.array_equal(real, synthetic - 54)


def test_class_balanced_batches_with_synthetic_images() -> None:
    """As one set every class is as frequent; with a share it is so within each kind, over the classes that it has."""

    def frequencies(mixture: Mixture) -> np.ndarray:
        rows = np.concatenate([mixture.rows(step, "balanced") for step in range(400)])
        return np.bincount(mixture.images.labels[rows], minlength=3) / len(rows)

    np.testing.assert_allclose(frequencies(_mixture()), [1 / 3] * 3, atol=0.025)
    # half of the rows are real, a third of each class; the other half are of the two classes with synthetic images
    np.testing.assert_allclose(frequencies(_mixture(share=0.5)), [1 / 6, 5 / 12, 5 / 12], atol=0.025)


def test_effective_counts_by_hand() -> None:
    np.testing.assert_array_equal(_mixture(weight=0.5).counts("train"), [40, 10, 4])
    np.testing.assert_array_equal(_mixture(weight=0.5).counts("effective"), [40, 10 + 15, 4 + 18])
    # 15 real and 5 synthetic rows: a third as many as the 54 real images, so 18 images' worth, 30 : 36, times 0.5
    found = _mixture(weight=0.5, share=0.25).counts("effective")
    np.testing.assert_allclose(found, [40, 10 + 0.5 * 18 * 30 / 66, 4 + 0.5 * 18 * 36 / 66], rtol=1e-12)
    np.testing.assert_array_equal(_mixture(share=0.25).counts("train"), [40, 10, 4])
    np.testing.assert_array_equal(Mixture(REAL, None, Use(), 20, 5).counts("effective"), [40, 10, 4])
    # a class of synthetic images only counts as effective, and not as real
    mixture = Mixture(REAL.select(range(50)), SYNTHETIC, Use(weight=0.5), 20, 5)
    assert mixture.counts("effective").tolist() == [40, 25, 18]
    with pytest.raises(ConfigError, match=r"classes \[2\]"):
        mixture.counts("train")


def test_weights_of_images_are_relative_to_their_mean_by_hand() -> None:
    mean = (54 + 0.25 * 66) / 120
    assert _mixture(weight=0.25).relative_weights("natural").tolist() == pytest.approx(  # type: ignore[union-attr]
        [1 / mean] * 54 + [0.25 / mean] * 66
    )
    real = _mixture(weight=0.25).relative_weights("natural", real_only=True)
    assert real is not None
    assert real[:54].tolist() == [1.0] * 54
    shared = _mixture(weight=0.25, share=0.5).relative_weights("natural")
    assert shared is not None
    assert (shared[0], shared[-1]) == pytest.approx((1 / 0.625, 0.25 / 0.625))
    # where classes are sampled equally often: of class 0 all are real, of the others 30 of 40 and 36 of 40 synthetic
    balanced = _mixture(weight=0.25).relative_weights("balanced")
    assert balanced is not None
    assert balanced[0] == pytest.approx(3 / (1 + (10 + 0.25 * 30) / 40 + (4 + 0.25 * 36) / 40))
    assert Mixture(REAL, None, Use(), 20, 5).relative_weights("natural") is None


def test_descriptions() -> None:
    assert Use().describe() == "weight 1"
    said = Use(0.3, 0.25, "real-last", 0.1, "effective").describe()
    assert said == "weight 0.3, 25% of every batch, last 10% of the steps: real images only, prior: effective"


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"weight": 0}, "0 is not positive"),
        ({"weight": float("nan")}, "nan"),
        ({"share": 0.0}, "share 0.0"),
        ({"share": 1.0}, "share 1.0"),
        ({"schedule": "last"}, "'last'"),
        ({"last": 1.0}, "last share 1.0"),
        ({"prior": "flat"}, "'flat'"),
    ],
)
def test_errors(wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        Use(**wrong)
