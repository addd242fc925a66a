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
from imbdiff.metrics.memorisation import memorisation_report
from imbdiff.metrics.numbers import Number
from imbdiff.reporting import report
from imbdiff.reporting.blocks import Figures, Images
from imbdiff.reporting.compare import build_comparison
from imbdiff.reporting.content import ReportData
from imbdiff.reporting.measured import printed
from imbdiff.reporting.report import build_evaluation, build_report, idle_notes, neighbours, term_shares
from imbdiff.runtime.errors import DataError

from . import fake
from .looking import HOSTILE, Tags, blocks_of, check_page, pictures, tables, text_of, words


@pytest.fixture(scope="module")
def full() -> ReportData:
    return fake.full()


def renamed(data: ReportData, names: tuple[str, ...]) -> ReportData:
    assert data.train is not None
    assert data.synthetic is not None
    return replace(
        data,
        stats=ClassStats(names, data.stats.counts),
        train=ImageSet(data.train.images, data.train.labels, names, data.train.ids),
        synthetic=ImageSet(data.synthetic.images, data.synthetic.labels, names),
    )


def test_a_whole_page_is_one_file_whose_verdict_comes_first(painted: None, full: ReportData) -> None:
    html = build_report(full)
    check_page(html)
    text = words(html)
    sentence = fake.classifier()["verdict"]["sentence"]
    assert text.index("digits · CBDM") < text.index(sentence) < text.index("Images per class")
    assert "few hurt −3.8 (−6.1 to −1.4)" in text
    assert 'class="verdict bad"' in html
    assert len(html) < 1_000_000
    anchors = re.findall(r'<section id="(\w+)"', html)
    assert anchors == [
        "classes", "images", "memorisation", "classifier", "metrics", "training", "protocol", "warnings", "repeat"
    ]  # fmt: skip


def test_hostile_names_stay_text_and_the_page_is_a_function_of_its_data(full: ReportData) -> None:
    data = replace(
        renamed(full, HOSTILE), title="<b>t", command="imbdiff run '<script>'", warnings=("<img src=x>\x07",),
        method="<i>m", metrics=fake.metrics(HOSTILE), config={"<u>": "<s>"},
    )  # fmt: skip
    html = build_report(data)
    check_page(html)
    assert {t for t, _ in Tags(html).tags} == {t for t, _ in Tags(build_report(full)).tags}
    text = words(html)
    for shown in ("<script>alert(1)</script>", "{{ 7*7 }}", "眼底病変", "<b>t", "<img src=x>\ufffd", "<u>", "<s>"):
        assert shown in text
    assert html == build_report(data)


def test_every_part_may_be_missing() -> None:
    text = words(build_report(fake.minimal()))
    for verb in ("classify", "evaluate", "sample", "train"):
        assert f"imbdiff {verb} runs/digits" in text
    assert text.lower().count("not computed") == 2
    assert "has not been judged yet" in text
    assert "imbdiff classify 'runs/my own; rm x'" in words(
        build_report(replace(fake.minimal(), run="runs/my own; rm x"))
    )


@pytest.mark.parametrize(
    ("part", "command"),
    [("metrics", "evaluate"), ("classifier", "classify"), ("log", "train"), ("nearest", "evaluate"),
     ("synthetic", "sample")],
)  # fmt: skip
def test_one_part_missing_names_its_command(part: str, command: str, full: ReportData) -> None:
    text = words(build_report(replace(full, **{part: () if part == "log" else None})))
    assert f"imbdiff {command} runs/digits" in text
    assert f"imbdiff {command} runs/digits" not in words(build_report(full))


def test_parts_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(DataError, match="3 numbers of synthetic images for 10 classes"):
        replace(fake.minimal(), sampled=(1, 2, 3))
    with pytest.raises(DataError, match="groups of 2 classes"):
        replace(fake.minimal(), groups=Groups(("a",), (0, 0), "r"))


def test_classes_are_tabled_by_size_and_shown_on_two_scales_where_their_range_is_large(full: ReportData) -> None:
    section = report._classes(full, "RUN")
    (rows,) = tables(section)
    assert rows[0] == ["0", "many", "110", "0", "110"]
    assert rows[-1] == ["9", "few", "2", "108", "110"]
    (figures,) = blocks_of(section, Figures)
    assert list(figures.switch) == ["linear", "log"]
    flat = fake.minimal(ClassStats(("a", "b", "c"), (30, 25, 20)))
    (figures,) = blocks_of(report._classes(flat, "RUN"), Figures)
    assert len(figures.plots) == 1


def test_each_class_is_shown_with_the_nearest_training_images(full: ReportData) -> None:
    section = report._images(full, "RUN")
    (images,) = blocks_of(section, Images)
    assert [shelf.name for shelf in images.shelves] == list("0123456789")
    assert images.shelves[3].note == "medium · 29 real + 81 synthetic"
    data, train = full.nearest, full.train
    assert data is not None
    assert train is not None
    near = neighbours(data)
    shown = 0
    for k, shelf in enumerate(images.shelves):
        real, synthetic = shelf.sets
        assert len(real.groups) == min(8, fake.COUNTS[k])
        for group in synthetic.groups:
            own, below = group.pictures
            i = int(own.title.split(": ")[1])
            np.testing.assert_array_equal(own.image, full.synthetic.images[i])  # type: ignore[union-attr]
            np.testing.assert_array_equal(below.image, train.images[near[i].index])
            assert train.ids[near[i].index] in below.title
            shown += 1
    assert shown == 80


def test_copies_and_neighbours_of_another_class_are_framed(full: ReportData) -> None:
    assert full.nearest is not None
    assert full.train is not None
    last = len(full.train) - 1  # an image of class 9
    found = {**full.nearest, "any_distance": [0.0] * 20 + list(full.nearest["any_distance"][20:])}
    found["any_train_index"] = [last] * 20 + list(full.nearest["any_train_index"][20:])
    section = report._images(replace(full, nearest=found), "RUN")
    (images,) = blocks_of(section, Images)
    framed = [group.frame for shelf in images.shelves for group in shelf.sets[1].groups]
    assert framed == ["copied"] * 8 + [""] * 72
    others = [p for p in pictures(section) if p.frame == "near other"]
    assert len(others) >= 8
    assert others[0].title.endswith("of class 9")
    text = text_of(section)
    assert "8 of the synthetic images shown equal a training image exactly" in text
    assert "not a new one. Where the neighbour" in text
    assert neighbours(None) == {}
    rows = {"index": [3], "train_index": [1], "distance": [0.9], "any_train_index": [7], "any_distance": [0.5]}
    assert neighbours(rows)[3] == report.Neighbour(7, 0.5)


def noise(classes: int, per_class: int, counts: tuple[int, ...]) -> ReportData:
    """Incompressible 64-pixel colour images: the worst case for the size of the page."""
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(classes), per_class).astype(np.int64)
    names = tuple(f"class {k}" for k in range(classes))
    images = ImageSet(random.integers(0, 256, (len(labels), 64, 64, 3), dtype=np.uint8), labels, names)
    stats = ClassStats(names, counts)
    rows = list(range(len(labels)))
    near = {"index": rows, "any_train_index": rows, "any_distance": [0.1] * len(rows)}
    return replace(
        fake.full(), stats=stats, groups=Groups.default(stats), train=images, synthetic=images, nearest=near,
        sampled=(3,) * classes, metrics=fake.metrics(names, counts),
    )  # fmt: skip


def test_a_thousand_classes_stay_small_and_the_caps_are_stated() -> None:
    assert len(build_report(noise(10, 10, (50,) * 10))) < 3e6
    counts = tuple(1 + (k * 37) % 1000 for k in range(1000))
    data = noise(1000, 5, counts)
    html = build_report(data)
    assert len(html) < 10e6
    (images,) = blocks_of(report._images(data, "RUN"), Images)
    sizes = [counts[int(shelf.name.split()[1])] for shelf in images.shelves]
    assert (len(sizes), sizes[0], sizes[-1]) == (30, max(counts), min(counts))
    assert sizes == sorted(sizes, reverse=True)
    assert "Shown are 30 of 1,000 classes, spread evenly over the ranking by size." in words(html)


def test_images_scaled_down_are_said_to_be(full: ReportData) -> None:
    def enlarged(times: int) -> ReportData:
        def larger(images: ImageSet | None) -> ImageSet:
            assert images is not None
            x = images.images.repeat(times, axis=1).repeat(2 * times, axis=2)
            return ImageSet(x, images.labels, images.class_names, images.ids)

        return replace(full, train=larger(full.train), synthetic=larger(full.synthetic))

    large, small = enlarged(9), enlarged(4)
    said = "Images of 72 × 144 pixels (height × width) are scaled down to 32 × 64."
    for html in (build_report(large), build_comparison([large, replace(large, title="other")])):
        assert words(html).count(said) == 1
    for html in (build_report(small), build_comparison([small, replace(small, title="other")])):
        assert "scaled down" not in html
    assert "not picked; pixels are enlarged, not smoothed. Classes" in words(build_report(small))


def log(share: float) -> list[dict[str, Any]]:
    rows = [{"step": i, "images": 10 * i, "loss": 1.0, "denoising/mse": 1.0, "a/b": 0.1} for i in (1, 2, 3)]
    for row, more in zip(rows[1:], (1.0, 0.5), strict=True):
        row |= {"share/denoising/mse": 1 - more * share, "share/a/b": more * share, "cosine/a/b": -0.5 * more}
    return rows


def test_losses_are_plotted_and_other_columns_are_not(full: ReportData) -> None:
    (figures,) = blocks_of(report._training(full, "RUN"), Figures)
    names = [re.sub(r"Training loss (.*) against.*", r"\1", plot.alt) for plot in figures.plots]
    assert names == ["total loss", "denoising", "class_balancing"]
    with_shares = report._training(replace(full, log=log(0.004)), "RUN")
    assert not any("share/" in plot.alt for figures in blocks_of(with_shares, Figures) for plot in figures.plots)
    assert tables(with_shares)[0][1] == ["a/b next to nothing", "0.3 %", "0.2 to 0.4 %", "-0.38"]


def test_what_each_term_did_is_measured_and_one_that_did_nothing_is_a_warning() -> None:
    base, term = term_shares(log(0.4))
    assert (base.term, base.cosine, base.times) == ("denoising/mse", None, 2)
    assert (term.term, term.mean, term.least, term.most) == ("a/b", pytest.approx(0.3), 0.2, 0.4)
    assert term.cosine == pytest.approx(-0.375)
    assert term_shares([{"step": 1, "loss": 1.0}]) == []
    assert idle_notes(log(0.4)) == idle_notes(log(0.015)) == []  # once it was above
    (note,) = idle_notes(log(0.004))
    assert "a/b never had more than 0.40% of the gradient's norm (2 measurements)" in note
    assert note in words(build_report(replace(fake.minimal(), log=log(0.004))))


def test_time_per_stage_and_protocol(full: ReportData) -> None:
    rows = tables(report._training(full, "RUN"))[-1]
    assert rows[0][:2] == ["prepare", "0.8 s"]
    assert rows[-1][:2] == ["total", "4 min 25 s"]
    text = text_of(report._protocol(full))
    for part in ("305 in 10 classes, imbalance factor 55.0", "305 train, 60 val, 600 test", "DPM-Solver++, 20 steps"):
        assert part in text


@pytest.fixture(scope="module")
def sets() -> tuple[ImageSet, ImageSet, ImageSet]:
    train, synthetic = fake.images()
    return train, synthetic, ImageSet(255 - train.images, train.labels, train.class_names)


def test_with_training_images_the_page_of_an_evaluation_has_pictures_and_copies(sets: tuple[ImageSet, ...]) -> None:
    train, synthetic, test = sets
    negative = ImageSet(255 - synthetic.images, synthetic.labels, synthetic.class_names)
    copies = []
    for images in (train, negative):
        found = evaluate(images, test, train, Groups.default(train.stats), [RandomConv(1)], reference_name="b/test")
        html = build_evaluation(found, title="a <b>", command="imbdiff evaluate a", synthetic=images, train=train)
        check_page(html)
        assert re.findall(r'<section id="(\w+)"', html) == ["metrics", "images", "memorisation", "repeat"]
        assert "By group: random-conv against b/test" in words(html)
        assert "imbdiff evaluate RUN" not in html
        copies.append("near copies of training images" in html[html.index('id="metrics"') : html.index('id="images"')])
    assert copies == [True, False]


def test_without_training_images_or_classes_nothing_is_invented(sets: tuple[ImageSet, ...]) -> None:
    one = [ImageSet(s.images, np.zeros_like(s.labels), ("all",)) for s in sets]
    found = evaluate(one[1], one[2], None, None, [RandomConv(1)], reference_name="real")
    html = build_evaluation(found, title="t", command="c", synthetic=one[1])
    text = words(html)
    assert re.findall(r'<section id="(\w+)"', html) == ["metrics", "images", "repeat"]
    assert "Copies were not looked for: no training images were given" in text
    assert "not given: no memorisation" in text
    for other in ("Each class, from the largest", "In grey"):
        assert other not in text
    assert 'id="images"' not in build_evaluation(found, title="t", command="c")


def test_what_measuring_gives_is_understood(full: ReportData, sets: tuple[ImageSet, ...]) -> None:
    """The real functions' output, not an imitation of it."""
    train, synthetic, test = sets
    measured = evaluate(synthetic, test, train, full.groups, [RandomConv(1)], reference_name="test")
    text = words(build_report(replace(full, metrics=measured, nearest=measured["memorisation"])))
    for row in measured["numbers"]:
        n = Number.from_json(row)
        assert n.refused or printed(n)[0] in text, row
    assert "exact copies" in text
    nearest = memorisation_report(synthetic, train, None, full.groups)
    assert "no real images were held out" in words(build_report(replace(full, nearest=nearest)))
