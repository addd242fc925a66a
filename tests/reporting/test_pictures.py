"""Sprites, previews, plots and the text in them."""

from __future__ import annotations

import base64
import io
import warnings

import numpy as np
import pytest
from PIL import Image

from imbdiff.data.imageset import ImageSet
from imbdiff.reporting import plots
from imbdiff.reporting.content import spread
from imbdiff.reporting.sprites import pack, page_size, sample_grid
from imbdiff.reporting.strips import columns, neighbours
from imbdiff.reporting.text import clean, flatten, label, number, seconds, shorten, signed
from imbdiff.runtime.errors import DataError


def decode(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))))


@pytest.mark.parametrize("channels", [1, 3])
def test_sprite_holds_every_pixel_unchanged(channels: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (11, 6, 9, channels), dtype=np.uint8)
    sprite = pack(list(images), columns=4)
    sheet = decode(sprite.uri)
    assert (sprite.columns, sprite.rows) == (4, 3)
    assert sheet.shape[:2] == (3 * 8, 4 * 11)
    for i, image in enumerate(images):
        y, x = (i // 4) * 8, (i % 4) * 11
        np.testing.assert_array_equal(sheet[y + 1 : y + 7, x + 1 : x + 10].reshape(image.shape), image)
        np.testing.assert_array_equal(sheet[y, x + 1 : x + 10].reshape(9, -1), image[0])  # the border repeats the edge


def test_large_images_are_scaled_down_and_small_ones_are_not() -> None:
    assert page_size((256, 128, 3)) == (64, 32)
    assert page_size((8, 8, 1)) == (8, 8)
    assert decode(pack([np.full((256, 128, 3), 7, np.uint8)]).uri).shape == (66, 34, 3)


def test_columns_shrink_with_the_size_of_an_image() -> None:
    assert columns((8, 8, 1)) == columns((32, 32, 3)) == 8
    assert 3 <= columns((64, 64, 3)) < columns((48, 48, 3)) <= 8


def test_grid_rows_are_classes_and_columns_are_samples() -> None:
    values = np.array([10, 20, 30, 200, 210], np.uint8)
    x = np.broadcast_to(values[:, None, None, None], (5, 8, 8, 1)).copy()
    images = ImageSet(x, np.array([0, 0, 0, 2, 2], np.int64), ("a", "empty", "眼"))
    picture = np.asarray(sample_grid(images, per_class=2, max_classes=5))
    gap, tile = 3, 40
    assert picture.shape[0] == gap + 2 * (tile + gap)
    left = picture.shape[1] - 2 * (tile + gap)
    centres = [[picture[gap + r * 43 + 20, left + c * 43 + 20, 0] for c in range(2)] for r in range(2)]
    assert centres == [[10, 20], [200, 210]]


def test_grid_of_many_classes_is_capped_and_spread() -> None:
    labels = np.arange(100, dtype=np.int64)
    x = np.broadcast_to(labels.astype(np.uint8)[:, None, None, None], (100, 40, 40, 1)).copy()
    picture = np.asarray(sample_grid(ImageSet(x, labels, tuple(map(str, range(100)))), per_class=1, max_classes=3))
    assert [picture[3 + r * 43 + 20, -20, 0] for r in range(3)] == [0, 50, 99]


def test_grid_of_nothing_is_refused() -> None:
    with pytest.raises(DataError, match="nothing to preview"):
        sample_grid(ImageSet(np.zeros((0, 8, 8, 1), np.uint8), np.zeros(0, np.int64), ("a",)), 2, 2)


def test_any_class_name_can_be_drawn() -> None:
    names = ["$x", "$\\frac{1", "眼底", "a" * 200, "", "{x}", "\udcff", "_leading", "\n"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns about missing glyphs
        plots.class_histogram([label(n, f"#{k}") for k, n in enumerate(names)], [9] * 9, [1] * 9, names, False)


def test_histogram_shows_real_below_and_synthetic_on_top() -> None:
    """The bottom of a half-filled bar has the colour of real images, its top that of synthetic ones."""
    picture = Image.open(
        io.BytesIO(base64.b64decode(plots.class_histogram(["a"], [50], [50], ["g"], False).light.split(",")[1]))
    )
    rgb = np.asarray(picture.convert("RGB")).astype(int)
    column = rgb[:, rgb.shape[1] // 2]

    def rows(colour: str) -> np.ndarray:
        wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
        return np.flatnonzero(np.abs(column - wanted).sum(1) < 30)

    real, synthetic = rows(plots.LIGHT.real), rows(plots.LIGHT.synthetic)
    assert len(real) > 100
    assert abs(len(real) - len(synthetic)) <= 8  # 50 and 50 images
    assert synthetic.max() < real.min() + 4


def test_a_plot_is_a_function_of_its_data() -> None:
    assert plots.loss_curve("a", [1, 2], [3.0, 4.0]) == plots.loss_curve("a", [1, 2], [3.0, 4.0])


def test_loss_curve_survives_gaps_and_short_logs() -> None:
    for values in ([], [1.0], [1.0, float("nan"), 0.5], list(np.linspace(100, 0.1, 500))):
        assert plots.loss_curve("term", list(range(len(values))), values).light.startswith("data:image/png")


def test_spread_keeps_both_ends() -> None:
    assert spread(list(range(100)), 3)[::2] == [0, 99]
    assert spread([4, 5], 3) == [4, 5]
    assert spread([1, 2, 3], 1) == [1]


def test_neighbours_are_those_among_all_classes() -> None:
    found = neighbours(
        {
            "index": [3, 9],
            "train_index": [1, 1],
            "distance": [0.9, 0.9],
            "any_train_index": [7, 5],
            "any_distance": [0.5, 0],
        }
    )
    assert {k: (v.index, v.distance) for k, v in found.items()} == {3: (7, 0.5), 9: (5, 0.0)}
    assert neighbours(None) == {}


def test_names_are_cleaned_and_shortened() -> None:
    assert clean("a\x00b\u202e\udcff") == "a\ufffdb\ufffd\ufffd"
    assert clean("naïve 眼") == "naïve 眼"
    assert shorten("x" * 20, 5) == "xxxx…"
    assert label("cat", "#1") == "cat"
    assert label("眼", "#1") == "#1"


def test_numbers_and_durations() -> None:
    assert [number(v) for v in (0.91234, 21.4, 123.456, 12345.6, 0.00012, 0, 1200, None, float("nan"))] == [
        "0.912", "21.40", "123.5", "12,346", "0.00012", "0", "1,200", "–", "–"
    ]  # fmt: skip
    assert [signed(v) for v in (0.02, -0.02)] == ["+0.020", "−0.020"]
    assert [seconds(v) for v in (0.42, 12.3, 200, 7500)] == ["0.4 s", "12 s", "3 min 20 s", "2 h 5 min"]
    assert flatten({"a": {"b": 1, "c": [1, 2]}, "d": None}) == [("a.b", "1"), ("a.c", "1, 2"), ("d", "–")]
