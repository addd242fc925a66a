from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from imbdiff.data.imageset import ImageSet
from imbdiff.data.stats import Groups
from imbdiff.metrics.memorisation import memorisation_report
from imbdiff.reporting.content import ReportData
from imbdiff.reporting.copies import MAX_CLASSES, MAX_PAIRS, MAX_WARNINGS, section
from imbdiff.reporting.report import environment
from tests.reporting import fake

HOSTILE = "<script>alert(1)</script>"


def _html(data: ReportData, found: dict[str, Any]) -> str:
    return environment().get_template("memorisation.html.j2").render(memorisation=section(data, found))


def _noise(n: int, classes: int, seed: int, size: int = 8) -> ImageSet:
    g = np.random.default_rng(seed)
    names = tuple(f"{HOSTILE} {k}" for k in range(classes))
    return ImageSet(g.integers(0, 256, (n, size, size, 3), dtype=np.uint8), np.arange(n) % classes, names)


def _data(train: ImageSet, synthetic: ImageSet) -> ReportData:
    return replace(
        fake.minimal(train.stats), groups=Groups.default(train.stats), train=train, synthetic=synthetic
    )  # fmt: skip


def test_copies_are_said_tabled_and_shown() -> None:
    train, held = _noise(60, 3, 0), _noise(30, 3, 1)
    fresh = _noise(60, 3, 2)
    mixed = ImageSet(
        np.where((fresh.labels == 2)[:, None, None, None], train.images, fresh.images), fresh.labels, fresh.class_names
    )
    data = _data(train, mixed)
    found = memorisation_report(mixed, train, held, data.groups)
    html = _html(data, found)
    shown = section(data, found)
    assert shown is not None
    assert shown.alarm
    assert len(shown.warnings) == 1
    assert "Copied training images: 33 % of 60 synthetic images are near copies of training images; 0 % of 30" in html
    assert "100 % [84, 100]" in html
    assert 'class="alert"' in html
    assert html.count("exact copy<") + html.count("exact copy\n") == html.count('class="copied"') == 4
    assert all(p.near_copy for p in shown.pairs[:4])
    every = section(_data(train, train), memorisation_report(train, train, held, data.groups))
    assert every is not None
    of_class = [p.training.title.split(", ")[1] for p in every.pairs]
    assert all(len(set(of_class[i : i + 3])) == 3 for i in range(0, 12, 3))  # in turn, not one class first
    assert HOSTILE not in html
    assert "&lt;script&gt;" in html


def test_real_images_give_no_alarm_and_missing_numbers_no_section() -> None:
    train, held, fresh = _noise(60, 3, 0), _noise(30, 3, 1), _noise(60, 3, 2)
    data = _data(train, fresh)
    html = _html(data, memorisation_report(fresh, train, held, data.groups))
    assert "No class stands out: 0 % of 60 synthetic images" in html
    assert 'class="alert"' not in html
    assert 'class="copied"' not in html
    alone = _html(data, memorisation_report(fresh, train, None, data.groups))
    assert "no real images were held out to compare with" in alone
    assert section(data, None) is None
    assert section(data, {"index": [], "any_train_index": [], "any_distance": []}) is None


def test_features_are_a_sentence() -> None:
    train, held, fresh = _noise(60, 3, 0), _noise(30, 3, 1), _noise(60, 3, 2)
    data = _data(train, fresh)
    g = np.random.default_rng(0)
    table = {"extractor": "judge <b>", "synthetic": g.normal(size=(60, 4)), "train": g.normal(size=(60, 4)),
             "held_out": g.normal(size=(30, 4))}  # fmt: skip
    html = _html(data, memorisation_report(fresh, train, held, data.groups, features=table))
    assert "In the feature space of judge &lt;b&gt;: near copies" in html


@pytest.mark.parametrize("size", [8, 64])
def test_caps_are_kept_and_stated(size: int) -> None:
    train = _noise(300, 150, 0, size)
    data = _data(train, train)
    found = memorisation_report(train, train, None, data.groups)
    shown = section(data, found)
    assert shown is not None
    assert len(shown.classes) == MAX_CLASSES
    assert shown.left_out == 50
    assert len(shown.warnings) == MAX_WARNINGS + 1
    assert "11 more warnings" in shown.warnings[-1]
    assert len(shown.pairs) == (MAX_PAIRS if size == 8 else 12)
    assert len({p.name for p in shown.pairs}) == 1  # names are cut, but
    assert len({p.synthetic.title for p in shown.pairs}) == len(shown.pairs)
    html = _html(data, found)
    assert "(100 of 150: those that are warned of, then the rarest)" in html
    assert len(html) < 700_000


def test_the_pictures_are_those_of_the_pair() -> None:
    train, fresh = _noise(30, 3, 0), _noise(12, 3, 2)
    copied = ImageSet(
        np.concatenate([fresh.images, train.images[7:8, :, ::-1]]), np.append(fresh.labels, 1), fresh.class_names
    )
    data = _data(train, copied)
    shown = section(data, memorisation_report(copied, train, None, data.groups))
    assert shown is not None
    first = shown.pairs[0]
    assert first.near_copy
    assert "synthetic: 12," in first.synthetic.title
    assert "training image: 7," in first.training.title
    assert "mirrored" in first.said
    assert (first.synthetic.column, first.training.column) == (0, 1)
