"""The page and the tables of `imbdiff evaluate FAKE --reference REAL`."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from imbdiff.data.imageset import ImageSet
from imbdiff.metrics.evaluate import evaluate
from imbdiff.metrics.extractors import RandomConv
from imbdiff.reporting import plots
from imbdiff.reporting.evaluation import build_evaluation
from imbdiff.reporting.numbers import numbers_table

from . import fake


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "render", lambda draw, size, theme: "data:image/png;base64,AA==")


def words(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html))


def page(found: dict[str, Any], **images: Any) -> str:
    return build_evaluation(found, title="a <b>", command="imbdiff evaluate a --reference b", **images)


def printed(found: dict[str, Any], width: int = 160) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    for table in numbers_table(found):
        console.print(table)
    return console.export_text()


@pytest.fixture(scope="module")
def sets() -> tuple[ImageSet, ImageSet]:
    train, synthetic = fake.images()
    return train, synthetic


def test_with_training_images_the_page_has_pictures_and_copies(sets: tuple[ImageSet, ImageSet]) -> None:
    from imbdiff.data.stats import Groups

    train, synthetic = sets
    test = ImageSet(255 - train.images, train.labels, train.class_names)
    groups = Groups.default(train.stats)
    found = evaluate(synthetic, test, train, groups, [RandomConv(1)], reference_name="b/test")
    html = page(found, synthetic=synthetic, train=train)
    text = words(html)
    for part in ('id="metrics"', 'id="images"', 'id="memorisation"', 'id="repeat"'):
        assert html.count(part) == 1
    assert "a &lt;b&gt;" in html
    assert "By group: random-conv against b/test" in text
    assert "imbdiff evaluate RUN" not in text
    assert "classifier was trained" not in text
    assert not re.search(r"https?://|url\((?!data:)", html)


def test_copies_are_said_beside_the_numbers(sets: tuple[ImageSet, ImageSet]) -> None:
    train, synthetic = sets
    test = ImageSet(255 - train.images, train.labels, train.class_names)
    pages = [
        page(evaluate(s, test, train, None, [RandomConv(1)], reference_name="b"), synthetic=s, train=train)
        for s in (train, ImageSet(255 - synthetic.images, synthetic.labels, synthetic.class_names))
    ]
    quality = [html[html.index('id="metrics"') : html.index('id="images"')] for html in pages]
    assert ["near copies of training images" in part for part in quality] == [True, False]


def test_without_training_images_or_classes_nothing_is_invented(sets: tuple[ImageSet, ImageSet]) -> None:
    one = [ImageSet(s.images, np.zeros_like(s.labels), ("all",)) for s in sets]
    found = evaluate(one[1], one[0], None, None, [RandomConv(1)], reference_name="real")
    html = page(found, synthetic=one[1])
    text = words(html)
    assert 'id="memorisation"' not in html
    assert "Copies were not looked for: no training images were given" in text
    assert "Each class, from the largest" not in text
    assert "In grey" not in text
    assert "not given: no memorisation" in text
    assert "Synthetic images Drawn at random" in text
    assert 'id="images"' in html
    assert 'id="images"' not in page(found)


def test_the_page_is_one_file_for_hostile_names() -> None:
    found = fake.metrics(("<script>alert(1)</script>", "$x", "\u202eb"), (9, 5, 1))
    html = page(found)
    assert html.count("<script>") == 1
    assert "&lt;script&gt;alert(1)" in html
    assert "\u202e" not in html


def test_the_terminal_shows_the_main_numbers_by_group() -> None:
    text = printed(fake.metrics())
    assert "judge-cnn against test" in text
    assert "random-conv" not in text  # it only ranks, and there is a judge
    recall = next(line for line in text.splitlines() if "recall(k=3) ↑" in line)
    assert re.findall(r"\d\.\d\d", recall) == ["0.51", "0.88", "0.39", "0.27", "0.15"]
    assert "0.46 to 0.56" in text
    distance = next(line for line in text.splitlines() if "FD ↓" in line)
    assert distance.count("refused 1") == 3
    assert "1 FD: 32 features need an effective n of at least 640" in text


def test_the_terminal_shows_rankings_where_there_is_nothing_else() -> None:
    found = fake.metrics()
    found["numbers"] = [r for r in found["numbers"] if r["extractor"] == "random-conv"]
    found["yardsticks"] = []
    text = printed(found)
    assert "random-conv against test" in text
    assert "rank generators" in text
    assert "real" not in text.splitlines()[2]
    assert numbers_table({"numbers": []}) == []
