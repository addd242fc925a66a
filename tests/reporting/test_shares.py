"""The table of what each loss term did, and the note on one that did nothing."""

from __future__ import annotations

from typing import Any

import pytest

from imbdiff.reporting.report import build_report
from imbdiff.reporting.shares import idle_notes, term_shares
from tests.reporting import fake


def log(share: float) -> list[dict[str, Any]]:
    rows = [{"step": i, "images": 10 * i, "loss": 1.0, "denoising/mse": 1.0, "a/b": 0.1} for i in (1, 2, 3)]
    for row, more in zip(rows[1:], (1.0, 0.5), strict=True):
        row |= {"share/denoising/mse": 1 - more * share, "share/a/b": more * share, "cosine/a/b": -0.5 * more}
    return rows


def test_means_and_ranges() -> None:
    base, term = term_shares(log(0.4))
    assert (base.term, base.cosine, base.times) == ("denoising/mse", None, 2)
    assert (term.term, term.mean, term.least, term.most) == ("a/b", pytest.approx(0.3), 0.2, 0.4)
    assert term.cosine == pytest.approx(-0.375)
    assert not term.idle
    assert term_shares([{"step": 1, "loss": 1.0}]) == []


def test_a_term_below_a_hundredth_all_the_time_is_a_note() -> None:
    assert idle_notes(log(0.4)) == []
    assert idle_notes(log(0.015)) == []  # once it was above
    (note,) = idle_notes(log(0.004))
    assert "a/b never had more than 0.40% of the gradient's norm (2 measurements)" in note


def test_the_page_shows_them_and_draws_no_curve_of_them() -> None:
    data = fake.full()
    from dataclasses import replace

    page = build_report(replace(data, log=log(0.004)))
    assert "What each loss term did" in page
    assert "next to nothing" in page
    assert "-0.38" in page
    assert "share/a/b" not in page
