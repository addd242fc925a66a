"""The page of `imbdiff inspect`."""

from __future__ import annotations

import base64
import html as html_text
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imbdiff.data.arrays import ArraySource
from imbdiff.data.inspect import examine
from imbdiff.pipeline.inspection import run_estimate
from imbdiff.reporting import plots
from imbdiff.reporting.gallery import Gallery, tile_target
from imbdiff.reporting.inspection import MAX_CLASSES, MAX_ROWS, build_inspection
from imbdiff.reporting.inspection_boards import MAX_PAIRS
from tests.data.making import folder, noise, write


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "render", lambda draw, size, theme: "data:image/png;base64,AA==")


def words(html: str) -> str:
    return html_text.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html)))


def page(source: object) -> str:
    seen = examine(source)  # type: ignore[arg-type]
    return build_inspection(seen, run_estimate(seen), "imbdiff inspect 'a b'")


HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("set")
    folder(root, {"train/cat": 14, "train/<b>": 9, "train/train2": 1, "test/cat": 3}, size=(12, 12))
    write(root / "train/cat/wide.png", noise(12, 40, 3))
    (root / "train/cat/zero<i>.png").write_bytes(b"")
    for i in range(60):
        (root / f"train/cat/junk{i:02d}.png").write_bytes(b"junk")
    (root / "train/<b>/copy.png").write_bytes((root / "train/cat/000.png").read_bytes())
    (root / "test/cat/copy.png").write_bytes((root / "train/cat/001.png").read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "render", lambda draw, size, theme: "data:image/png;base64,AA==")
        return page(root)


def test_everything_that_was_found_is_on_the_page(damaged: str) -> None:
    text = words(damaged)
    for part in (
        "61 unusable files: a run refuses the set as it is",
        "zero<i>.png",
        "empty file (0 bytes)",
        "Files (50 of 61; the others are in the JSON report)",
        "across splits (framed): 1; inside a split: 1.",
        "1 image under more than one class",
        "train2 : this looks like the name of a split, not of a class",
        "Classes of a single image",
        "12 × 40",
        "imbdiff run",
        "--data.size 12",
        "imbdiff inspect 'a b'",
        "a run would draw",
        "Effective number of images",
    ):
        assert part in text, part


def test_the_page_is_one_file_and_names_are_only_text(damaged: str) -> None:
    assert "<b>" not in damaged.replace("<b>3</b>", "").split("<main>")[1]
    assert "&lt;b&gt;" in damaged
    assert damaged.count("<script>") == 1
    assert not re.search(r"(src|href)=\"(?!data:|#)", damaged)
    assert "default-src 'none'" in damaged
    used = set(re.findall(r'href="#([^"]+)"', damaged))
    assert used <= set(re.findall(r'id="([^"]+)"', damaged))


def test_hostile_names_do_not_leave_their_place() -> None:
    names = [HOSTILE, "x" * 5000, "\u202eabc", "{{ 7 * 7 }}", '"><img src=x onerror=alert(1)>']
    x, y = noise(50, 8, 8, 3), np.arange(50) % 5
    html = page(
        ArraySource({"train": (x, y)}, names, name=HOSTILE, ids={"train": [f"{HOSTILE}{i}" for i in range(50)]})
    )
    assert html.count("<script>") == 1
    assert "<img src=x" not in html
    assert "\u202e" not in html
    assert "x" * 400 not in html
    assert '<bdi class="name" title="{{ 7 * 7 }}">{{ 7 * 7 }}</bdi>' in html


def test_a_thousand_classes_are_capped_and_say_so() -> None:
    x, y = noise(2000, 8, 8, 3), np.concatenate([np.arange(1000), np.arange(1000) % 500])
    x[1000:1060] = x[:60]  # equal images of one class each
    html = page((x, y))
    assert html.count('<article class="shelf">') == MAX_CLASSES
    assert html.count('<th scope="row"><bdi class="name"') == MAX_ROWS
    assert "Table (200 of 1,000 classes: the largest and the 50 smallest)" in words(html)
    assert f"Shown are {MAX_PAIRS} of 60" in words(html)
    assert len(html) < 1_000_000


def test_tiles_show_the_images_that_they_name() -> None:
    x, y = noise(12, 16, 16, 3), np.arange(12) % 2
    x[7] = x[4]
    gallery = Gallery(examine((x, y)))
    assert gallery.target.shape == (16, 16)
    sheet, tiles = gallery.sheet([("train", 7), ("train", 2), ("train", 7)], ["a", "b", "c"])
    assert sheet.sprite is not None
    assert tiles[0].column == tiles[2].column
    data = base64.b64decode(sheet.sprite.uri.partition(",")[2])
    picture = np.asarray(Image.open(io.BytesIO(data)))
    for tile, i in zip(tiles, (7, 2, 7), strict=True):
        top, left = tile.row * 18 + 1, tile.column * 18 + 1
        np.testing.assert_array_equal(picture[top : top + 16, left : left + 16], x[i])
    assert gallery.place("train/4") == ("train", 4)
    assert gallery.class_name(("train", 7)) == "1"


def test_ids_that_two_splits_share_are_told_apart() -> None:
    x, y = noise(8, 8, 8, 3), np.arange(8) % 2
    data = {"train": (x, y), "test": (255 - x, y)}
    gallery = Gallery(examine(ArraySource(data, ids={s: [str(i) for i in range(8)] for s in data})))
    assert gallery.place("3", "test") == ("test", 3)
    assert gallery.place("3", "train") == ("train", 3)


def test_a_set_without_a_single_usable_file(tmp_path: Path) -> None:
    for name in ("train/a/0.png", "train/b/1.png", "test/a/2.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(b"junk")
    text = words(page(tmp_path))
    assert "3 unusable files" in text
    assert "A run would refuse this source as it is" in text
    assert "Too few images to tell" in text


def test_size_of_the_pictures() -> None:
    assert tile_target([(32, 20)]).shape == (32, 20)
    assert tile_target([(480, 240)]).shape == (48, 24)
    assert (tile_target([(8, 8), (9, 9)]).shape, tile_target([(8, 8), (9, 9)]).policy) == ((48, 48), "pad")
    assert tile_target([]).shape == (48, 48)


def test_a_set_without_findings_says_so_and_suspicious_labels_are_shown(tmp_path: Path) -> None:
    assert "Nothing: every file can be read" in words(page((noise(40, 8, 8, 3), np.arange(40) % 2)))
    g = np.random.default_rng(0)
    base = g.normal(size=(2, 8, 8, 1))
    y = np.repeat([0, 1], 60)
    x = np.clip(128 + 40 * (base[y] + 0.4 * g.normal(size=(120, 8, 8, 1))), 0, 255).astype(np.uint8)
    y[3] = 1
    text = words(page(ArraySource({"train": (x, y)}, ["left", "right"])))
    assert "label: right near: left train/3: 10 of 10" in text
    assert "1 image among images of one other class" in text
