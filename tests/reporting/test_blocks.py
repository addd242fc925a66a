"""Blocks and their rendering, pictures, plots and text."""

from __future__ import annotations

import base64
import hashlib
import io
import re
import warnings

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
    Heading,
    Images,
    Items,
    Picture,
    PictureSet,
    Row,
    Shelf,
    Table,
    Text,
    code,
    fact,
    joined,
    legend,
    link,
    missing,
    name,
    of_all,
    sheet,
    span,
)  # fmt: skip
from imbdiff.reporting.pictures import fitting, pack, page_size, sample_grid, spread
from imbdiff.reporting.text import clean, flatten, label, number, seconds, shorten, signed
from imbdiff.runtime.errors import DataError

from .looking import HOSTILE, Tags, check_page, page_of, words


def decode(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))))


@pytest.mark.parametrize("text", HOSTILE)
def test_text_is_escaped_in_every_kind_of_block(text: str) -> None:
    picture = Picture(np.zeros((4, 4, 1), np.uint8), text)
    plot = plots.Plot(text, "data:image/png;base64,AA==", "data:image/png;base64,AA==", 1, 1)
    markup = [code(text), name(text), link("s", text), span(text, "good", text), fact(text, text).text]
    html = page_of(
        Heading(text), Text(text, "note", text), missing(text, text), legend(real=text),
        Items([Cell(text, text, text), text], "reasons"), Definitions([(text, text)]),
        Table([text, Column(text, text, text)], [Row([text, Cell(text, text, text)], "first"), [text, text]]),
        Figures([plot]), Images([Shelf([PictureSet([Group([picture], [text])], text, text)], text, text)]),
        Fold(text, [Text(joined(markup))]),
    )  # fmt: skip
    check_page(html)
    expected = clean(text)
    assert words(html).count(re.sub(r"\s+", " ", expected)) >= 25
    found = Tags(html).tags
    assert not any(a.get("src") == "x" for _, a in found)
    assert any(a.get("aria-label") == expected for _, a in found)


def test_the_policy_allows_the_one_script_and_nothing_from_outside() -> None:
    html = page_of(Text("x"))
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    assert f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in html
    assert "default-src 'none'" in html


def test_numbers_are_aligned_by_their_column_and_cells_keep_style_and_title() -> None:
    table = Table(["a", Column("b")], [Row([Cell("x", "small", "hover", "odd"), "1"], "control")], "dense")
    html = page_of(table)
    assert '<th scope="col">a</th><th scope="col" class="n">b</th>' in html
    assert re.search(
        r'<tr class="control"><th scope="row" class="odd" title="hover">x <small>small</small></th><td class="n">1<',
        html,
    )
    assert '<table class="dense">' in html
    assert "<thead>" not in page_of(Table([], [["a", "b"]]))


def test_several_plots_are_a_grid_or_are_switched() -> None:
    plot = plots.Plot("alt", "data:image/png;base64,AA==", "data:image/png;base64,AA==", 1, 1)
    assert 'class="curves"' in page_of(Figures([plot, plot]))
    switched = page_of(Figures([plot, plot], ("linear", "log")))
    assert [a["id"] for t, a in Tags(switched).tags if t == "input"] == ["view-1", "view-2"]
    assert "<input" not in page_of(Figures([plot], ("linear",)))


def test_a_fold_is_open_where_it_is_said_to_be() -> None:
    assert "<details" in page_of(Fold("more", [Text("x")]))
    opened = page_of(Fold("more", [Text("x")], True, "box"))
    assert re.search(r'<details class="box" open><summary>more</summary>\s*<p class="">x', opened)
    assert "<ul" not in page_of(Items([]))


def test_every_tile_of_a_shelf_shows_its_picture() -> None:
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (6, 9, 3), dtype=np.uint8) for _ in range(15)]
    groups = [Group([Picture(images[i], f"a{i}"), Picture(images[i + 7], f"b{i}")]) for i in range(7)]
    shelf = Shelf([PictureSet([Group([Picture(images[14], "first")])]), PictureSet(groups)], "name")
    made = sheet(shelf)
    assert made is not None
    assert (made.width, made.height, made.scale) == (45, 30, 5)
    pixels = decode(made.sprite.uri)
    tiles = [a for t, a in Tags(page_of(Images([shelf]))).tags if t == "i"]
    order = [images[14], *(x for pair in zip(images[:7], images[7:14], strict=True) for x in pair)]
    assert [tile["title"] for tile in tiles] == ["first", *(f"{x}{i}" for i in range(7) for x in "ab")]
    for tile, image in zip(tiles, order, strict=True):
        x, y = (int(v) for v in re.findall(r"--[xy]:(\d+)", tile["style"] or ""))
        top, left = y * 8 + 1, x * 11 + 1
        np.testing.assert_array_equal(pixels[top : top + 6, left : left + 9], image)
    assert sheet(Shelf([PictureSet([])])) is None
    assert "none" in words(page_of(Images([Shelf([PictureSet([])])])))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_sprite_holds_every_pixel_and_repeats_the_edge(channels: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (11, 6, 9, channels), dtype=np.uint8)
    sprite = pack(list(images), columns=4)
    pixels = decode(sprite.uri)
    assert (sprite.columns, sprite.rows, sprite.height, sprite.width) == (4, 3, 6, 9)
    assert pixels.shape[:2] == (3 * 8, 4 * 11)
    for i, image in enumerate(images):
        y, x = (i // 4) * 8, (i % 4) * 11
        np.testing.assert_array_equal(pixels[y + 1 : y + 7, x + 1 : x + 10].reshape(image.shape), image)
        np.testing.assert_array_equal(pixels[y, x + 1 : x + 10].reshape(9, -1), image[0])


def test_large_images_are_scaled_down_and_fewer_fit() -> None:
    assert page_size((256, 128, 3)) == (64, 32)
    assert page_size((8, 8, 1)) == (8, 8)
    assert decode(pack([np.full((256, 128, 3), 7, np.uint8)]).uri).shape == (66, 34, 3)
    assert fitting((8, 8, 1), 50_000, 3, 8) == fitting((32, 32, 3), 50_000, 3, 8) == 8
    assert 3 <= fitting((64, 64, 3), 50_000, 3, 8) < fitting((48, 48, 3), 50_000, 3, 8) <= 8


def test_preview_rows_are_classes_and_columns_are_samples() -> None:
    values = np.array([10, 20, 30, 200, 210], np.uint8)
    x = np.broadcast_to(values[:, None, None, None], (5, 8, 8, 1)).copy()
    images = ImageSet(x, np.array([0, 0, 0, 2, 2], np.int64), ("a", "empty", "眼"))
    picture = np.asarray(sample_grid(images, per_class=2, max_classes=5))
    left = picture.shape[1] - 2 * 43
    assert picture.shape[0] == 3 + 2 * 43
    centres = [[picture[3 + r * 43 + 20, left + c * 43 + 20, 0] for c in range(2)] for r in range(2)]
    assert centres == [[10, 20], [200, 210]]


def test_a_preview_of_many_classes_is_spread_and_of_nothing_is_refused() -> None:
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
        shown = [label(n, f"#{k}") for k, n in enumerate(names)]
        plots.class_histogram(shown, [9] * 9, [([9] * 9, "real")], names, False)


def test_a_histogram_shows_its_layers_in_front_of_each_other(painted: None) -> None:
    """The bottom of a half-filled bar has the colour of real images, its top that of synthetic ones."""
    made = plots.class_histogram(["a"], [50], [([100], "synthetic"), ([50], "real")], ["g"], False)
    assert made == plots.class_histogram(["a"], [50], [([100], "synthetic"), ([50], "real")], ["g"], False)
    picture = Image.open(io.BytesIO(base64.b64decode(made.light.split(",")[1])))
    rgb = np.asarray(picture.convert("RGB")).astype(int)
    column = rgb[:, rgb.shape[1] // 2]

    def rows(colour: str) -> np.ndarray:
        wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
        return np.flatnonzero(np.abs(column - wanted).sum(1) < 30)

    real, synthetic = rows(plots.LIGHT.real), rows(plots.LIGHT.synthetic)
    assert len(real) > 100
    assert abs(len(real) - len(synthetic)) <= 8
    assert synthetic.max() < real.min() + 4


def test_loss_curves_survive_gaps_and_short_logs(painted: None) -> None:
    for values in ([], [1.0], [1.0, float("nan"), 0.5], list(np.linspace(100, 0.1, 500))):
        assert plots.loss_curve("term", list(range(len(values))), values).light.startswith("data:image/png")


def test_text_is_cleaned_shortened_and_counted() -> None:
    assert clean("a\x00b\u202e\udcff") == "a\ufffdb\ufffd\ufffd"
    assert clean("a:\n  b\r\tc\x07") == "a:   b  c\ufffd"
    assert clean("naïve 眼") == "naïve 眼"
    assert shorten("x" * 20, 5) == "xxxx…"
    assert (label("cat", "#1"), label("眼", "#1")) == ("cat", "#1")
    assert (of_all(30, 1000, "classes"), of_all(3, 3)) == (" (30 of 1,000 classes)", "")
    assert spread(list(range(100)), 3)[::2] == [0, 99]
    assert (spread([4, 5], 3), spread([1, 2, 3], 1)) == ([4, 5], [1])


def test_numbers_and_durations() -> None:
    assert [number(v) for v in (0.91234, 21.4, 123.456, 12345.6, 0.00012, 0, 1200, None, float("nan"))] == [
        "0.912", "21.40", "123.5", "12,346", "0.00012", "0", "1,200", "–", "–"
    ]  # fmt: skip
    assert [signed(v) for v in (0.02, -0.02)] == ["+0.020", "−0.020"]
    assert [seconds(v) for v in (0.42, 12.3, 200, 7500)] == ["0.4 s", "12 s", "3 min 20 s", "2 h 5 min"]
    assert flatten({"a": {"b": 1, "c": [1, 2]}, "d": None}) == [("a.b", "1"), ("a.c", "1, 2"), ("d", "–")]
