"""The page of a run and that of an evaluation: what they show, caps, missing parts, text that is data."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from imbdiff.data.imageset import ImageSet
from imbdiff.data.stats import ClassStats, Groups
from imbdiff.metrics.evaluate import evaluate
from imbdiff.metrics.extractors import RandomConv
from imbdiff.metrics.numbers import Number
from imbdiff.reporting import report
from imbdiff.reporting.blocks import Figures, Shelf
from imbdiff.reporting.content import ReportData
from imbdiff.reporting.images import images
from imbdiff.reporting.measured import printed
from imbdiff.reporting.report import build_evaluation, build_report
from imbdiff.reporting.training import idle_notes, term_shares, training

from . import fake
from .looking import HOSTILE, Tags, blocks_of, check_page, groups_of, tables, text_of, words


@pytest.fixture
def full() -> ReportData:
    return fake.full()


def test_a_whole_page_is_one_file_whose_verdict_comes_first(painted: None, full: ReportData) -> None:
    html = build_report(full)
    check_page(html)
    text = words(html)
    assert full.classifier is not None
    sentence = full.classifier["verdict"]["sentence"]
    assert text.index("digits · CBDM") < text.index("Yes.") < text.index(sentence) < text.index("images per class")
    assert len(html) < 1_000_000
    assert re.findall(r'<section id="(\w+)"', html) == [
        "classes", "images", "memorisation", "classifier", "metrics", "training", "protocol", "warnings", "repeat"
    ]  # fmt: skip


def test_hostile_names_stay_text_and_the_page_is_a_function_of_its_data(full: ReportData) -> None:
    assert full.train is not None
    assert full.synthetic is not None
    assert full.metrics is not None
    train, synthetic = (ImageSet(x.images, x.labels, HOSTILE, x.ids) for x in (full.train, full.synthetic))
    data = replace(
        full, stats=ClassStats(HOSTILE, full.stats.counts), train=train, synthetic=synthetic, title="<b>t",
        command="imbdiff run '<script>'", warnings=("<img src=x>\x07",), method="<i>m", config={"<u>": "<s>"},
        metrics=fake.measured(train, synthetic, train),
    )  # fmt: skip
    html = build_report(data)
    check_page(html)
    assert {t for t, _ in Tags(html).tags} - {"wbr"} == {t for t, _ in Tags(build_report(full)).tags}
    text = words(html)
    for shown in ("<script>alert(1)</script>", "{{ 7*7 }}", "眼底病変", "<b>t", "<img src=x>\ufffd", "<u>", "<s>"):
        assert shown in text
    assert html == build_report(data)


def test_every_part_may_be_missing() -> None:
    text = words(build_report(replace(fake.minimal(), run="runs/my own; rm x")))
    for verb in ("classify", "evaluate", "sample", "train"):
        assert f"imbdiff {verb} 'runs/my own; rm x'" in text
    assert "has not been judged yet" in text


@pytest.mark.parametrize(
    ("part", "command"),
    [("metrics", "evaluate"), ("classifier", "classify"), ("log", "train"), ("synthetic", "sample")],
)
def test_one_part_missing_names_its_command(part: str, command: str, full: ReportData) -> None:
    text = words(build_report(replace(full, **{part: () if part == "log" else None})))
    assert f"imbdiff {command} runs/digits" in text
    assert f"imbdiff {command} runs/digits" not in words(build_report(full))


def test_classes_are_tabled_by_size(full: ReportData) -> None:
    (rows,) = tables(report._classes(full, "RUN"))
    assert rows[0] == ["0", "many", "110", "20", "130"]
    assert rows[-1] == ["9", "few", "2", "20", "22"]


def test_each_class_is_shown_with_the_nearest_training_images(full: ReportData) -> None:
    shelves = blocks_of(images(full, "RUN"), Shelf)
    assert [shelf.name for shelf in shelves] == list("0123456789")
    assert shelves[3].note == "medium · 29 real + 20 synthetic"
    found, train, synthetic = full.memorisation, full.train, full.synthetic
    assert found is not None
    assert train is not None
    assert synthetic is not None
    nearest = dict(zip(found["index"], found["any_train_index"], strict=True))
    for k, shelf in enumerate(shelves):
        real, made = shelf.sets
        assert (len(real.groups), len(made.groups)) == (min(6, fake.COUNTS[k]), 6)
        for group in made.groups:
            own, below = group.pictures
            i = int(own.title.split(": ")[1])
            np.testing.assert_array_equal(own.image, synthetic.images[i])
            np.testing.assert_array_equal(below.image, train.images[nearest[i]])
            assert train.ids[nearest[i]] in below.title


def test_copies_and_neighbours_of_another_class_are_framed(full: ReportData) -> None:
    assert full.train is not None
    assert full.metrics is not None
    found, last = dict(full.metrics["memorisation"]), len(full.train) - 1  # an image of class 9
    found["any_distance"] = [0.0] * 20 + found["any_distance"][20:]
    found["any_train_index"] = [last] * 20 + found["any_train_index"][20:]
    section = images(replace(full, metrics={"memorisation": found}), "RUN")
    framed = [group.frame for shelf in blocks_of(section, Shelf) for group in shelf.sets[1].groups]
    assert framed == ["copied"] * 6 + [""] * 54
    others = [p for group in groups_of(section) for p in group.pictures if p.frame == "near other"]
    assert len(others) >= 6
    assert others[0].title.endswith("of class 9")
    assert "6 of the synthetic images shown equal a training image exactly" in text_of(section)


def noise(classes: int, per_class: int, counts: tuple[int, ...]) -> ReportData:
    """Incompressible 64-pixel colour images: the worst case for the size of the page."""
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(classes), per_class).astype(np.int64)
    names = tuple(f"class {k}" for k in range(classes))
    images = ImageSet(random.integers(0, 256, (len(labels), 64, 64, 3), dtype=np.uint8), labels, names)
    stats = ClassStats(names, counts)
    rows = list(range(len(labels)))
    near = {"index": rows, "any_train_index": rows, "any_distance": [0.1] * len(rows)}
    old = fake.full().metrics
    assert old is not None
    pairs = [{**row, "synthetic": i, "train": i} for i, row in enumerate(old["memorisation"]["pairs"][:40])]
    metrics = {**fake.metrics(names, counts), "memorisation": {**old["memorisation"], **near, "pairs": pairs}}
    return replace(fake.trained(stats, 4, 2), train=images, synthetic=images, metrics=metrics, log=fake.log())


def test_a_thousand_classes_stay_small_and_the_caps_are_stated() -> None:
    assert len(build_report(noise(10, 10, (50,) * 10))) < 3e6
    counts = tuple(1 + (k * 37) % 1000 for k in range(1000))
    data = noise(1000, 5, counts)
    html = build_report(data)
    assert len(html) < 10e6
    shelves = blocks_of(images(data, "RUN"), Shelf)
    sizes = [counts[int(shelf.name.split()[1])] for shelf in shelves]
    assert (len(sizes), sizes[0], sizes[-1]) == (30, max(counts), min(counts))
    assert sizes == sorted(sizes, reverse=True)
    for said in ("(30 of 1,000 classes)", "the 200 smallest of 1,000", "1,000 classes sorted"):
        assert said in words(html) or said in html


def log(share: float) -> list[dict[str, Any]]:
    rows = [{"step": i, "images": 10 * i, "loss": 1.0, "denoising/mse": 1.0, "a/b": 0.1} for i in (1, 2, 3)]
    for row, more in zip(rows[1:], (1.0, 0.5), strict=True):
        row |= {"share/denoising/mse": 1 - more * share, "share/a/b": more * share, "cosine/a/b": -0.5 * more}
    return rows


def test_losses_are_plotted_and_other_columns_are_not(full: ReportData) -> None:
    for data, names in ((full, ["total loss", "denoising", "class_balancing"]),
                        (replace(full, log=log(0.004)), ["total loss", "denoising/mse", "a/b"])):  # fmt: skip
        (figures,) = blocks_of(training(data, "RUN"), Figures)
        assert [re.sub(r"Training loss (.*) against.*", r"\1", plot.alt) for plot in figures.plots] == names


def test_what_each_term_did_is_measured_and_one_that_did_nothing_is_a_warning(full: ReportData) -> None:
    base, term = term_shares(log(0.4))
    assert (base.term, base.cosine, base.times) == ("denoising/mse", None, 2)
    assert (term.term, term.mean, term.least, term.most) == ("a/b", pytest.approx(0.3), 0.2, 0.4)
    assert term.cosine == pytest.approx(-0.375)
    assert term_shares([{"step": 1, "loss": 1.0}]) == []
    assert idle_notes(log(0.4)) == idle_notes(log(0.015)) == []  # once it was above
    (note,) = idle_notes(log(0.004))
    assert "a/b never had more than 0.40%" in note
    idle = replace(full, log=log(0.004))
    assert note in words(build_report(idle))
    shares, times = tables(training(idle, "RUN"))
    assert shares[1] == ["a/b next to nothing", "0.3 %", "0.2 to 0.4 %", "-0.38"]
    assert times[0][:2] == ["prepare", "0.8 s"]
    assert times[-1][:2] == ["total", "4 min 25 s"]


def test_the_protocol_has_what_the_numbers_depend_on(full: ReportData) -> None:
    text = text_of(report._protocol(full))
    for part in ("305 in 10 classes, imbalance factor 55.0", "305 train, 60 val, 600 test", "DPM-Solver++, 20 steps"):
        assert part in text


@pytest.fixture(scope="module")
def sets() -> tuple[ImageSet, ImageSet, ImageSet]:
    train, synthetic = fake.images()
    return train, synthetic, ImageSet(255 - train.images, train.labels, train.class_names)


def test_with_training_images_the_page_of_an_evaluation_has_pictures_and_copies(sets: tuple[ImageSet, ...]) -> None:
    """The real function's output, not an imitation of it."""
    train, synthetic, test = sets
    negative = ImageSet(255 - synthetic.images, synthetic.labels, synthetic.class_names)
    copies = []
    for fakes in (train, negative):
        found = evaluate(fakes, test, train, Groups.default(train.stats), [RandomConv(1)], reference_name="b/test")
        html = build_evaluation(found, title="a <b>", command="imbdiff evaluate a", synthetic=fakes, train=train)
        check_page(html)
        assert re.findall(r'<section id="(\w+)"', html) == ["metrics", "images", "memorisation", "repeat"]
        text = words(html)
        assert "By group: random-conv against b/test" in text
        for row in found["numbers"]:
            n = Number.from_json(row)
            assert n.refused or printed(n)[0] in text, row
        assert "imbdiff evaluate RUN" not in html
        copies.append("images are near copies" in html[html.index('id="metrics"') : html.index('id="images"')])
    assert copies == [True, False]


def test_without_training_images_or_classes_nothing_is_invented(sets: tuple[ImageSet, ...]) -> None:
    one = [ImageSet(s.images, np.zeros_like(s.labels), ("all",)) for s in sets]
    found = evaluate(one[1], one[2], None, None, [RandomConv(1)], reference_name="real")
    html = build_evaluation(found, title="t", command="c", synthetic=one[1])
    assert re.findall(r'<section id="(\w+)"', html) == ["metrics", "images", "repeat"]
    assert "no training images were given" in words(html)
    for other in ("Each class, from the largest", "In grey"):
        assert other not in words(html)
    assert 'id="images"' not in build_evaluation(found, title="t", command="c")


def test_pictures_are_of_classes_that_have_synthetic_images(full: ReportData) -> None:
    assert full.synthetic is not None
    part = replace(full, synthetic=full.synthetic.select(np.flatnonzero(np.isin(full.synthetic.labels, (3, 8)))))
    section = images(part, "RUN")
    assert [shelf.name for shelf in blocks_of(section, Shelf)] == ["3", "8"]
    assert "(2 of 10 classes)" in text_of(section)
    assert len(blocks_of(images(replace(full, synthetic=None), "RUN"), Shelf)) == 10
