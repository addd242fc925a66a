"""The page: what it says, that data stays data, that nothing is loaded, that it stays small."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from imbdiff.data.imageset import ImageSet
from imbdiff.data.stats import ClassStats, Groups
from imbdiff.reporting import plots
from imbdiff.reporting.compare import build_comparison
from imbdiff.reporting.content import ReportData
from imbdiff.reporting.measured import texts
from imbdiff.reporting.report import build_report
from imbdiff.reporting.text import clean
from imbdiff.runtime.errors import DataError

from . import fake

HOSTILE = (
    "<script>alert(1)</script>", "x" * 200, "../x", "a/b", "眼底病変", "$\\frac{1", "\u202eabc\x00\udcff", "two\nlines",
    '"><img src=x onerror=alert(1)>', "{{ 7*7 }}",
)  # fmt: skip


class Page(HTMLParser):
    """Collects tags with their attributes, and the text between them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.classes: dict[str, int] = {}
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        for name in (dict(attrs).get("class") or "").split():
            self.classes[name] = self.classes.get(name, 0) + 1

    def handle_data(self, data: str) -> None:
        self.text += data

    def count(self, tag: str) -> int:
        return sum(t == tag for t, _ in self.tags)


@pytest.fixture(scope="module")
def html() -> str:
    return build_report(fake.full())


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves the drawing of plots out: most of a page's time, and no part of what a test with this fixture is about."""
    monkeypatch.setattr(plots, "render", lambda draw, size, theme: "data:image/png;base64,AA==")


def words(html: str) -> str:
    """The text with a space for every tag."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html))


def renamed(names: tuple[str, ...]) -> ReportData:
    data = fake.full()
    assert data.train is not None
    assert data.synthetic is not None
    return replace(
        data,
        stats=ClassStats(names, data.stats.counts),
        train=ImageSet(data.train.images, data.train.labels, names, data.train.ids),
        synthetic=ImageSet(data.synthetic.images, data.synthetic.labels, names),
    )


def test_nothing_is_loaded_from_outside(html: str, page: Page) -> None:
    for tag, attributes in page.tags:
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            target = attributes.get(name)
            assert target is None or target.startswith(("data:image/png;base64,", "#")), (tag, name, target)
    assert not re.search(r"url\((?!data:image/png;base64,)|@import|https?://", html)
    policy = next(a["content"] for t, a in page.tags if t == "meta" and a.get("http-equiv"))
    assert policy is not None
    assert "default-src 'none'" in policy


def test_script_is_the_one_that_the_policy_allows(html: str) -> None:
    import base64
    import hashlib

    scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    assert len(scripts) == 1
    assert f"'sha256-{base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()}'" in html


def test_verdict_comes_first_with_every_group(page: Page) -> None:
    text = page.text
    sentence = fake.classifier()["verdict"]["sentence"]
    assert text.index("digits · CBDM") < text.index(sentence) < text.index("Images per class")
    assert "few hurt" in re.sub(r"\s+", " ", text)
    assert "−3.8 (−6.1 to −1.4)" in text
    assert any(a.get("class") == "verdict bad" for _, a in page.tags)


@pytest.mark.parametrize(
    ("outcomes", "tone"),
    [(("helped", "no difference"), "good"), (("hurt", "no difference"), "bad"), (("helped", "hurt"), "mixed"),
     (("no difference", "no difference"), "same")],
)  # fmt: skip
def test_tone_of_the_verdict_follows_its_groups(outcomes: tuple[str, str], tone: str) -> None:
    from imbdiff.reporting.tables import verdict

    groups = dict(zip("ab", ({"outcome": o, "difference": 0.0} for o in outcomes), strict=True))
    found = verdict({"verdict": {"sentence": "s", "per_group": groups}})
    assert found is not None
    assert found.tone == tone


def test_numbers_stand_with_interval_n_reference_and_extractor(html: str) -> None:
    text = words(html)
    assert "By group: judge-cnn against test" in text
    assert "all 795 / 600 21.4 19.4 to 23.4 refused 1 20.1 17.1 to 23.1" in text
    assert "Extractor judge-cnn" in text
    assert fake.EXTRACTORS[0][1][:16] in text


def test_refused_numbers_are_not_printed_but_explained(html: str) -> None:
    said = "FD: 32 features need an effective n of at least 640 in both sets, here"
    assert words(html).count(said) == 4  # once for each extractor and reference
    assert "F8, F1/8: 200 clusters" in words(html)
    assert "27.4" not in words(html)  # the value that FD of the largest group would have had


def test_arms_are_marked(html: str) -> None:
    control = re.findall(r"<tr class=\"control\">(.*?)</tr>", html, re.DOTALL)
    assert len(control) == 1
    assert "balanced softmax" in control[0]
    assert "best control" in control[0]
    assert html.count('class="badge synthetic"') == 2
    assert html.count("synthetic, judged") == 1


def test_arm_cells_are_mean_and_sd_over_seeds(html: str) -> None:
    arm = fake.classifier()["arms"][0]
    few = [run["groups"]["few"] for run in arm["runs"]]
    assert f"{np.mean(few):.3f} ± {np.std(few, ddof=1):.3f}" in words(html)


def test_every_part_may_be_missing(quick: None) -> None:
    page = Page(build_report(fake.minimal()))
    for verb in ("classify", "evaluate", "sample", "train"):
        assert f"imbdiff {verb} runs/digits" in page.text
    assert page.text.lower().count("not computed") == 2
    assert "has not been judged yet" in page.text


@pytest.mark.parametrize(
    ("part", "command"),
    [("metrics", "evaluate"), ("classifier", "classify"), ("log", "train"), ("nearest", "evaluate"),
     ("synthetic", "sample")],
)  # fmt: skip
def test_one_part_missing_names_its_command(part: str, command: str, page: Page, quick: None) -> None:
    text = Page(build_report(replace(fake.full(), **{part: () if part == "log" else None}))).text
    assert f"imbdiff {command} runs/digits" in text
    assert f"imbdiff {command} runs/digits" not in page.text


def test_run_names_are_quoted_for_the_shell(quick: None) -> None:
    text = Page(build_report(replace(fake.minimal(), run="runs/my own; rm x"))).text
    assert "imbdiff classify 'runs/my own; rm x'" in text


def test_hostile_names_stay_text(page: Page, quick: None) -> None:
    data = replace(
        renamed(HOSTILE), title="<b>t", command="imbdiff run '<script>'", warnings=("<img src=x>\x07",), method="<i>m"
    )
    html = build_report(data)
    found = Page(html)
    html.encode("utf-8")  # a lone surrogate could not be
    tags = {t for t, _ in found.tags}
    assert tags == {t for t, _ in page.tags}
    assert found.count("script") == 1
    assert not any(name.startswith("on") for _, a in found.tags for name in a)
    assert "<script>alert(1)</script>" in found.text
    assert "{{ 7*7 }}" in found.text
    assert "眼底病変" in found.text
    assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\u202a-\u202e]", html)


def test_image_strips_show_each_class_with_its_neighbours(page: Page) -> None:
    data = fake.full()
    assert page.classes["strip"] == 10
    assert page.classes["pair"] == page.classes["near"] == 80
    assert page.count("i") - page.classes["dot"] >= 160
    titles = [a["title"] for t, a in page.tags if t == "i" and "near" in (a.get("class") or "").split()]
    nearest, train = data.nearest, data.train
    assert nearest is not None
    assert train is not None
    known = {train.ids[t] for t in nearest["any_train_index"]}
    assert {re.search(r"train/\d+", t or "").group() for t in titles} <= known  # type: ignore[union-attr]
    assert not any((a.get("class") or "").split() == ["pair", "same"] for _, a in page.tags)


def test_copies_are_framed_and_counted(quick: None) -> None:
    data = fake.full()
    assert data.nearest is not None
    distances = [0.0] * 20 + data.nearest["any_distance"][20:]  # all of class 0
    page = Page(build_report(replace(data, nearest={**data.nearest, "any_distance": distances})))
    assert "8 of the synthetic images shown equal a training image exactly" in page.text
    assert sum((a.get("class") or "").split() == ["pair", "same"] for _, a in page.tags) == 8


def test_loss_terms_are_drawn_and_other_columns_are_not(page: Page) -> None:
    alts = " ".join(a.get("alt") or "" for _, a in page.tags)
    for term in ("total loss", "denoising", "class_balancing"):
        assert f"Training loss {term} against images seen" in alts
    assert "loss lr" not in alts
    assert "images_per_s" not in alts


def test_log_scale_is_offered_only_for_a_large_range(page: Page, quick: None) -> None:
    assert any(a.get("id") == "scale-log" for _, a in page.tags)
    flat = fake.minimal(ClassStats(("a", "b", "c"), (30, 25, 20)))
    assert not any(a.get("id") == "scale-log" for _, a in Page(build_report(flat)).tags)


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
        drawn=(3,) * classes,
    )  # fmt: skip


def test_ten_classes_stay_under_three_megabytes() -> None:
    assert len(build_report(noise(10, 10, (50,) * 10))) < 3e6


def test_a_thousand_classes_stay_under_ten_megabytes_and_the_cap_is_stated() -> None:
    counts = tuple(1 + (k * 37) % 1000 for k in range(1000))
    html = build_report(noise(1000, 5, counts))
    assert len(html) < 10e6
    page = Page(html)
    assert page.classes["strip"] == 30
    assert "Shown are 30 of 1,000 classes, spread evenly over the ranking by size." in re.sub(r"\s+", " ", page.text)
    shown = [a["title"] for t, a in page.tags if t == "bdi" and a.get("title")]
    sizes = [counts[int((name or "").split()[1])] for name in shown]
    assert sizes[0] == max(counts)
    assert sizes[-1] == min(counts)
    assert sizes == sorted(sizes, reverse=True)


def test_parts_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(DataError, match="3 numbers of synthetic images for 10 classes"):
        replace(fake.minimal(), drawn=(1, 2, 3))
    with pytest.raises(DataError, match="groups of 2 classes"):
        replace(fake.minimal(), groups=Groups(("a",), (0, 0), "r"))


def test_the_page_is_a_function_of_its_data(quick: None) -> None:
    assert build_report(fake.full()) == build_report(fake.full())


def test_neighbours_of_another_class_are_marked(quick: None) -> None:
    data = fake.full()
    assert data.nearest is not None
    assert data.train is not None
    last = len(data.train) - 1  # an image of class 9
    moved = [last] * 20 + data.nearest["any_train_index"][20:]
    html = build_report(replace(data, nearest={**data.nearest, "any_train_index": moved}))
    before = build_report(data)
    assert html.count(f"{data.train.ids[last]}, distance") >= 8
    assert html.count("of class 9") - before.count("of class 9") >= 8
    assert "yellow frame" in html


def enlarged(times: int) -> ReportData:
    data = fake.full()
    assert data.train is not None
    assert data.synthetic is not None

    def larger(images: ImageSet) -> ImageSet:
        x = images.images.repeat(times, axis=1).repeat(2 * times, axis=2)
        return ImageSet(x, images.labels, images.class_names, images.ids)

    return replace(data, train=larger(data.train), synthetic=larger(data.synthetic))


def test_images_scaled_down_are_said_to_be(quick: None) -> None:
    said = "not picked. Images of 72 × 144 pixels (height × width) are scaled down to 32 × 64."
    for html in (build_report(enlarged(9)), build_comparison([enlarged(9), replace(enlarged(9), title="other")])):
        assert words(html).count(said.split(". ")[1]) == 1
    assert said in words(build_report(enlarged(9)))
    assert "pixels are enlarged" not in build_report(enlarged(9))
    for html in (build_report(enlarged(4)), build_comparison([enlarged(4), replace(enlarged(4), title="other")])):
        assert "scaled down" not in html
    assert "not picked; pixels are enlarged, not smoothed. Classes" in words(build_report(enlarged(4)))


def test_sentences_are_apart(quick: None) -> None:
    data = fake.full()
    assert data.nearest is not None
    assert data.train is not None
    other = (data.train.labels == 0).nonzero()[0][0]
    html = build_report(
        replace(data, nearest={**data.nearest, "any_train_index": [other] * len(data.nearest["index"])})
    )
    assert "not a new one. Where the neighbour" in html
    for page in (html, build_comparison([data, replace(data, title="other")])):
        text = re.sub(r"<(style|script).*?</\1>", "", page, flags=re.DOTALL)
        assert not re.search(r"[a-z)]\.[A-Z]", text)


def test_several_controls_are_all_marked_where_none_was_chosen(quick: None) -> None:
    found = fake.classifier()
    names = [arm["name"] for arm in found["arms"] if not arm["needs_synthetic"]]
    found["control"] = {"arm": None, "arms": names, "chosen_by": "no validation images", "scores": {}}
    html = build_report(replace(fake.full(), classifier=found))
    assert html.count('<tr class="control">') == 3
    assert "Every arm without synthetic images is to be beaten (no validation images)" in words(html)


def test_what_measuring_and_judging_give_is_understood(quick: None) -> None:
    """The real functions' output, not an imitation of it."""
    from imbdiff.metrics.evaluate import evaluate
    from imbdiff.metrics.extractors import RandomConv
    from imbdiff.recognition.arms import ARMS, PRIMARY
    from imbdiff.recognition.scores import scores, spread
    from imbdiff.recognition.verdict import choose_control, verdict

    data = fake.full()
    train, synthetic = data.train, data.synthetic
    assert train is not None
    assert synthetic is not None
    test, _ = fake.images((30,) * 10)
    test = ImageSet(255 - test.images, test.labels, test.class_names)
    measured = evaluate(synthetic, test, train, data.groups, [RandomConv(1)], reference_name="test")
    random, claimable = np.random.default_rng(0), [True] * 9 + [False]
    predictions = {
        arm.name: np.where(random.random((2, len(test))) < 0.9 - 0.2 * arm.needs_synthetic, test.labels, 0)
        for arm in ARMS
    }
    rows = []
    for arm in ARMS:
        runs = [scores(p, test.labels, data.groups, claimable) for p in predictions[arm.name]]
        extra = {"val": None, "runs": [{"seed": i, **run} for i, run in enumerate(runs)], **spread(runs)}
        rows.append(arm.to_json() | extra)
    control = choose_control(rows, None, claimable)
    judged = verdict(
        predictions, test, data.groups, claimable, control, PRIMARY, [arm.name for arm in ARMS if arm.needs_synthetic]
    )
    classifier = {"protocol": {}, "arms": rows, "control": control, "verdict": judged}
    html = build_report(replace(data, metrics=measured, nearest=measured["memorisation"], classifier=classifier))
    text = words(html)
    assert judged["per_group"]["all"]["outcome"] == "hurt"
    assert 'class="verdict bad"' in html
    few = judged["per_group"]["few"]["difference"]
    assert f"few hurt −{-100 * few:.1f}" in text
    for entry in measured["numbers"]:
        value = texts(entry)[0]
        assert entry["refused"] or value in html_text(html), entry
    assert "synthetic, judged" in text
    assert "exact copies" in text


def html_text(html: str) -> str:
    import html as escapes

    return escapes.unescape(words(html))


def test_scopes_not_measured_say_why_and_do_not_colour_the_headline() -> None:
    from imbdiff.reporting.tables import verdict

    rows = {"all": {"outcome": "no difference", "difference": 0.0},
            "few": {"outcome": "not measured", "difference": None, "n": 13, "reason": "13 test images"}}  # fmt: skip
    found = verdict({"verdict": {"sentence": "s", "per_group": rows}})
    assert found is not None
    assert found.tone == "same"
    assert found.outcomes[1].difference == "13 test images"


def test_line_breaks_in_warnings_are_spaces() -> None:
    assert clean("a:\n  b\r\tc\x07") == "a:   b  c\ufffd"
