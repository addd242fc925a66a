"""Blocks and their rendering, pictures, plots and text."""

from __future__ import annotations

import base64
import hashlib
import io
import re
import warnings
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from imbdiff.data.imageset import ImageSet
from imbdiff.reporting import plots
from imbdiff.reporting.blocks import (
    Cell,
    Column,
    Definitions,
    Figures,
    Fold,
    Group,
    Items,
    Picture,
    PictureSet,
    Section,
    Shelf,
    Table,
    Text,
    breakable,
    chip,
    code,
    fact,
    heading,
    joined,
    legend,
    link,
    missing,
    name,
    of_all,
    render,
    span,
)  # fmt: skip
from imbdiff.reporting.class_plot import Classes, class_plot
from imbdiff.reporting.pictures import in_turn, pack, page_size, sample_grid, scaled_down, spread
from imbdiff.reporting.text import clean, estimate, flatten, label, labels, number, seconds, shorten, signed
from imbdiff.runtime.errors import DataError

from .looking import HOSTILE, Tags, axes_of, check_page, page_of, words


def decode(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))))


PLOT = plots.Plot("alt", "data:image/svg+xml;base64,AA==", 1, 1)


@pytest.mark.parametrize("text", HOSTILE)
def test_text_is_escaped_in_every_kind_of_block(text: str) -> None:
    picture = Picture(np.zeros((4, 4, 1), np.uint8), text)
    plot = plots.Plot(text, PLOT.address, 1, 1)
    markup = [
        code(text),
        name(text),
        link("s", text),
        span(text, "good", text),
        fact(text, text).text,
        chip(text, text, "good").text,
    ]
    html = page_of(
        Section("s", text, []), heading(text), Text(text, "note", text), missing(text, text), legend(real=text),
        Items([Cell(text, text, text), text], "reasons"), Definitions([(text, text)]), Figures([plot]),
        Table([text, Column(text, text, text)], [[text, Cell(text, text, text)], [text, text]]),
        Shelf([PictureSet([Group([picture], [text])], text)], text, text), Fold(text, [Text(joined(markup))]),
    )  # fmt: skip
    check_page(html)
    expected = clean(text)
    assert words(html).count(re.sub(r"\s+", " ", expected)) >= 25
    found = Tags(html).tags
    assert not any(a.get("src") == "x" for _, a in found)
    assert any(a.get("aria-label") == expected for _, a in found)


def test_the_policy_allows_the_one_script_and_nothing_from_outside() -> None:
    html = page_of(None, Text("x"))
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    assert f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in html
    assert "default-src 'none'" in html


def test_rows_have_the_style_of_their_head_and_numbers_that_of_their_column() -> None:
    table = Table(["a", Column("b")], [[Cell("x", "small", "hover", "control"), Cell("1", style="bad")]], "dense")
    html = page_of(None, table)
    assert '<th scope="col">a</th><th scope="col" class="n">b</th>' in html
    assert '<tr class="control"><th scope="row" title="hover">x <small>small</small></th><td class="n bad">1<' in html
    assert '<table class="dense">' in html
    assert "<thead>" not in page_of(None, Table([], [["a", "b"]]))


def test_several_plots_are_a_grid_empty_lists_nothing_and_a_fold_may_be_open() -> None:
    assert 'class="curves"' in page_of(None, Figures([PLOT, PLOT]))
    assert 'class="curves"' not in page_of(None, Figures([PLOT]))
    assert "<ul" not in page_of(None, Items([]))
    assert "<dt" not in page_of(None, Definitions([("a", "")]))
    opened = page_of(None, Fold("more", [Text("x")], True, "box"))
    assert re.search(r'<details class="box" open><summary>more</summary>\s*<p class="">x', opened)


def test_every_tile_of_a_shelf_shows_its_picture() -> None:
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (6, 9, 3), dtype=np.uint8) for _ in range(15)]
    groups = [Group([Picture(images[i], f"a{i}"), Picture(images[i + 7], f"b{i}")]) for i in range(7)]
    shelf = Shelf([PictureSet([Group([Picture(images[14], "first")])]), PictureSet(groups)], "name")
    made = shelf.sprite
    assert made is not None
    assert (made.width, made.height, made.scale) == (9, 6, 5)
    pixels, html = decode(made.uri), page_of(None, shelf)
    assert "--w:45px;--h:30px;--z:5px" in html
    tiles = [a for t, a in Tags(html).tags if t == "i"]
    order = [images[14], *(x for pair in zip(images[:7], images[7:14], strict=True) for x in pair)]
    assert [tile["title"] for tile in tiles] == ["first", *(f"{x}{i}" for i in range(7) for x in "ab")]
    for tile, image in zip(tiles, order, strict=True):
        x, y = (int(v) for v in re.findall(r"--[xy]:(\d+)", tile["style"] or ""))
        top, left = y * 8 + 1, x * 11 + 1
        np.testing.assert_array_equal(pixels[top : top + 6, left : left + 9], image)
    assert "none" in words(page_of(None, Shelf([PictureSet([])])))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_sprite_holds_every_pixel_and_repeats_the_edge(channels: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (11, 6, 9, channels), dtype=np.uint8)
    sprite = pack(list(images), columns=4)
    pixels = decode(sprite.uri)
    assert (sprite.columns, sprite.rows, sprite.height, sprite.width) == (4, 3, 6, 9)
    for i, image in enumerate(images):
        y, x = (i // 4) * 8, (i % 4) * 11
        np.testing.assert_array_equal(pixels[y + 1 : y + 7, x + 1 : x + 10].reshape(image.shape), image)
        np.testing.assert_array_equal(pixels[y, x + 1 : x + 10].reshape(9, -1), image[0])


def test_large_images_are_scaled_down() -> None:
    assert (page_size((256, 128, 3)), page_size((8, 8, 1))) == ((64, 32), (8, 8))
    assert decode(pack([np.full((256, 128, 3), 7, np.uint8)]).uri).shape == (66, 34, 3)
    assert "256 × 128 pixels (height × width) are scaled down to 64 × 32" in scaled_down((256, 128, 3))
    assert scaled_down((64, 64, 3)) == ""


def test_what_is_shown_is_spread_or_of_every_kind_in_turn() -> None:
    assert spread(list(range(100)), 3)[::2] == [0, 99]
    assert (spread([4, 5], 3), spread([1, 2, 3], 1)) == ([4, 5], [1])
    assert in_turn(["a1", "a2", "b1", "a3", "b2"], lambda text: text[0]) == ["a1", "b1", "a2", "b2", "a3"]
    assert (of_all(30, 1000, "classes"), of_all(3, 3)) == (" (30 of 1,000 classes)", "")


def test_preview_rows_are_classes_spread_over_all_and_columns_are_samples() -> None:
    values = np.array([10, 20, 30, 200, 210], np.uint8)
    x = np.broadcast_to(values[:, None, None, None], (5, 8, 8, 1)).copy()
    images = ImageSet(x, np.array([0, 0, 0, 2, 2], np.int64), ("a", "empty", "眼"))
    picture = np.asarray(sample_grid(images, per_class=2, max_classes=5))
    left = picture.shape[1] - 2 * 43
    centres = [[picture[3 + r * 43 + 20, left + c * 43 + 20, 0] for c in range(2)] for r in range(2)]
    assert centres == [[10, 20], [200, 210]]
    labels = np.arange(100, dtype=np.int64)
    x = np.broadcast_to(labels.astype(np.uint8)[:, None, None, None], (100, 40, 40, 1)).copy()
    picture = np.asarray(sample_grid(ImageSet(x, labels, tuple(map(str, range(100)))), per_class=1, max_classes=3))
    assert [picture[3 + r * 43 + 20, -20, 0] for r in range(3)] == [0, 50, 99]
    with pytest.raises(DataError, match="nothing to preview"):
        sample_grid(ImageSet(np.zeros((0, 8, 8, 1), np.uint8), np.zeros(0, np.int64), ("a",)), 2, 2)


def test_any_class_name_can_be_painted(painted: None) -> None:
    names = ["$x", "$\\frac{1", "眼底", "a" * 200, "", "{x}", "\udcff", "_leading", "\n"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns about missing glyphs
        class_plot(Classes(range(9), names, names, [9] * 9))


def test_a_histogram_shows_its_layers_in_front_of_each_other(painted: None) -> None:
    """Of two bars on one floor the higher one, of synthetic images, comes first; dark pages have their own colours."""
    one = Classes([0], ["a"], ["g"], [50])
    made = class_plot(one, layers=[([100], "synthetic"), ([50], "real")])
    assert made == class_plot(one, layers=[([100], "synthetic"), ([50], "real")])
    svg = ElementTree.fromstring(base64.b64decode(made.address.split(",")[1]))
    style = "".join(svg.itertext())

    def bar(colour: str) -> tuple[int, float, float]:
        """Its place in the drawing, top and bottom."""
        paths = list(svg.iter("{http://www.w3.org/2000/svg}path"))
        (at,) = [i for i, path in enumerate(paths) if f"fill: {colour}" in path.get("style", "")]
        ys = [float(y) for y in re.findall(r"[\d.]+ ([\d.]+)", paths[at].get("d", ""))]
        return at, min(ys), max(ys)

    real, synthetic = bar(plots.LIGHT.real), bar(plots.LIGHT.synthetic)
    assert synthetic[0] < real[0]
    assert synthetic[2] == real[2]
    assert synthetic[1] < real[1]
    assert all(colour in style for colour in (plots.DARK.real, plots.DARK.synthetic, plots.DARK.paper))


def test_the_scale_is_logarithmic_where_the_range_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    for counts, scale in (([150, 10], "log"), ([140, 10], "linear")):
        (axes,) = axes_of(monkeypatch, lambda n=counts: class_plot(Classes([0, 1], ["a", "b"], [], n)))
        assert axes.get_yscale() == scale


@pytest.mark.parametrize("values", [[1.0], [1.0, 0.5], list(np.linspace(100, 0.1, 500))])
def test_loss_curves_of_short_and_long_logs(values: list[float], painted: None) -> None:
    assert plots.loss_curve("term", list(range(len(values))), values).address.startswith("data:image/svg+xml;base64,")


def test_text_is_cleaned_and_shortened() -> None:
    assert clean("a\x00b\u202e\udcff") == "a\ufffdb\ufffd\ufffd"
    assert clean("a:\n  b\r\tc\x07") == "a:   b  c\ufffd"
    assert clean("naïve 眼") == "naïve 眼"
    assert shorten("x" * 20, 5) == "xxxx…"
    assert (label("cat", "#1"), label("眼", "#1")) == ("cat", "#1")
    assert flatten({"a": {"b": 1, "c": [1, 2]}, "d": None}) == [("a.b", "1"), ("a.c", "1, 2"), ("d", "–")]


def test_numbers_have_the_digits_they_deserve() -> None:
    assert [number(v) for v in (0.91234, 21.4, 123.456, 12345.6, 0.00012, 0, 1200, None, float("nan"))] == [
        "0.912", "21.40", "123.5", "12,346", "0.00012", "0", "1,200", "–", "–"
    ]  # fmt: skip
    assert [signed(v) for v in (0.02, -0.02)] == ["+0.020", "−0.020"]
    assert [seconds(v) for v in (0.42, 12.3, 200, 7500)] == ["0.4 s", "12 s", "3 min 20 s", "2 h 5 min"]
    assert estimate(0.00213, 0.0018, 0.0031) == ("0.0021", "0.0018 to 0.0031")
    assert estimate(1234.6, 1200.0, 1300.0) == ("1,235", "1,200 to 1,300")
    assert estimate(-0.0312, -0.131, 0.051) == ("−0.031", "−0.131 to 0.051")
    assert estimate(0.5, None, None, 2) == ("0.50", "")
    assert estimate(None, None, None) == ("–", "")


@pytest.mark.parametrize(
    ("text", "parts"),
    [("long_class_name", ["long_", "class_", "name"]), ("a-b.c/d", ["a-", "b.", "c/", "d"]), ("plain", ["plain"]),
     ("__x", ["__", "x"]), ("<b>_&", ["&lt;b&gt;_", "&amp;"]), ("", [""])],
)  # fmt: skip
def test_names_are_broken_after_punctuation_and_not_inside_words(text: str, parts: list[str]) -> None:
    found = str(breakable(text))
    assert [part for part in found.split("<wbr>") if part] == [part for part in parts if part]


@pytest.mark.parametrize("limit", [12, 16])
def test_names_in_plots_can_be_told_apart(limit: int) -> None:
    groups = (
        [f"long_class_name_number_{k}" for k in range(12)],
        [f"{k}_another_large_name_early" for k in range(12)],
        [f"the_same_beginning_{k}_and_the_same_end" for k in range(12)],
        ["眼底病変", "眼底", "b"],
    )
    for names in groups:
        found = labels(names, range(len(names)), limit)
        assert len(set(found)) == len(names)
        assert max(map(len, found)) <= limit
    assert labels(["cat", "dog"], [0, 1]) == ["cat", "dog"]


def test_a_page_does_not_show_where_a_person_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/people/jane")
    command = "imbdiff run '/people/jane/my set' --out /people/jane/runs/a --config /srv/people/jane/x.yaml"
    html = render("report", "t", [Text("of /people/jane/images, /people/janet/b", "note", command)], [])
    text = words(html)
    assert "jane/" not in text.replace("/srv/people/jane/x.yaml", "").replace("/people/janet", "")
    assert "imbdiff run ~/'my set' --out ~/runs/a --config /srv/people/jane/x.yaml" in text
    assert "of ~/images, /people/janet/b" in text
