"""The page of `imbdiff inspect`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from imbdiff.data.arrays import ArraySource
from imbdiff.data.inspect import examine
from imbdiff.pipeline.inspection import run_estimate
from imbdiff.reporting import plots
from imbdiff.reporting.blocks import Definitions, Shelf
from imbdiff.reporting.inspection import (
    MAX_CLASSES,
    MAX_GROUPS,
    MAX_ROWS,
    Pictures,
    _changes,
    build_inspection,
    picture_size,
)
from tests.data.making import folder, noise, write

from .looking import HOSTILE, blocks_of, check_page, page_of, words


def page(source: object) -> str:
    seen = examine(source)  # type: ignore[arg-type]
    return build_inspection(seen, run_estimate(seen), "imbdiff inspect 'a b'")


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
        patch.setattr(plots, "render", lambda paint, size: "</svg>")
        return page(root)


def test_everything_that_was_found_is_on_the_page(damaged: str) -> None:
    check_page(damaged)
    text = words(damaged)
    for part in (
        "61 unusable files: a run refuses the set as it is",
        "zero<i>.png",
        "empty file (0 bytes)",
        "Files (50 of 61 files",
        "1 group of equal images in more than one split",
        "in train, test",
        "1 group of equal images under more than one class",
        "“train2”: this looks like the name of a split, not of a class",
        "12 × 40",
        "imbdiff run",
        "imbdiff inspect 'a b'",
        "a run would sample",
        "Effective number of images",
    ):
        assert part in text, part


def test_hostile_names_do_not_leave_their_place() -> None:
    names = [HOSTILE[0], "x" * 900, *HOSTILE[-3:]]
    x, y = noise(50, 8, 8, 3), np.arange(50) % 5
    ids = {"train": [f"{HOSTILE[0]}{i}" for i in range(50)]}
    html = page(ArraySource({"train": (x, y)}, names, name=HOSTILE[0], ids=ids))
    check_page(html)
    assert HOSTILE[0] in words(html)


def test_a_thousand_classes_are_capped_and_say_so() -> None:
    x, y = noise(2000, 8, 8, 3), np.concatenate([np.arange(1000), np.arange(1000) % 500])
    x[1000:1060] = x[:60]  # equal images of one class each
    html = page((x, y))
    text = words(html)
    assert html.count('class="shelf named"') == MAX_CLASSES
    assert html.count('<th scope="row"><bdi class="name"') == MAX_ROWS
    assert "Table (200 of 1,000 classes, the largest)" in text
    assert f"Shown are {MAX_GROUPS} of 60" in text
    assert len(html) < 1_000_000


def test_pictures_are_the_images_that_they_name() -> None:
    x, y = noise(12, 16, 16, 3), np.arange(12) % 2
    found = Pictures(examine((x, y)))
    made = found.decoded([("train", 7), ("train", 2), ("train", 7)])
    assert found.target.shape == (16, 16)
    for i in (7, 2):
        np.testing.assert_array_equal(made["train", i].image, x[i])
        assert made["train", i].title == f"train/{i}, {i % 2}"
    assert found.place("train/4", "train") == ("train", 4)


def test_one_can_see_whether_mirrored_images_keep_their_meaning() -> None:
    x, y = noise(12, 16, 16, 3), np.arange(12) % 2
    seen = examine((x, y))
    for flippable, own in ((False, "none"), (True, "mirror")):
        seen.report["source"]["flippable"] = flippable
        section = _changes(seen, Pictures(seen), [0, 1])
        (shelf,) = blocks_of(section, Shelf)
        shown = [[group.pictures[0] for group in one.groups] for one in shelf.sets]
        for plain, mirrored, upside, quarter in zip(*shown, strict=True):
            name = plain.title.split(",")[0]
            np.testing.assert_array_equal(plain.image, x[int(name.removeprefix("train/"))])
            np.testing.assert_array_equal(mirrored.image, np.fliplr(plain.image))
            np.testing.assert_array_equal(upside.image, np.rot90(plain.image, 2))
            np.testing.assert_array_equal(quarter.image, np.rot90(plain.image))
        assert len(shown[0]) == 2
        (options,) = blocks_of(section, Definitions)
        terms = [words(term) for term, _ in options.rows]
        assert [term.split()[1] for term in terms] == ["none", "mirror", "turns"]
        assert [term.split()[1] for term in terms if "unasked" in term] == [own]
        check_page(page_of(section))


def test_ids_that_two_splits_share_are_told_apart() -> None:
    x, y = noise(8, 8, 8, 3), np.arange(8) % 2
    data = {"train": (x, y), "test": (255 - x, y)}
    found = Pictures(examine(ArraySource(data, ids={s: [str(i) for i in range(8)] for s in data})))
    assert (found.place("3", "test"), found.place("3", "train")) == (("test", 3), ("train", 3))
    made = found.decoded([("test", 3), ("train", 3)])
    np.testing.assert_array_equal(made["test", 3].image, 255 - made["train", 3].image)


def test_a_set_without_a_single_usable_file(tmp_path: Path) -> None:
    for name in ("train/a/0.png", "train/b/1.png", "test/a/2.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(b"junk")
    text = words(page(tmp_path))
    assert "3 unusable files" in text
    assert "a run would refuse this source as it is" in text


def test_size_of_the_pictures() -> None:
    assert picture_size([(32, 20)]).shape == (32, 20)
    assert picture_size([(480, 240)]).shape == (48, 24)
    assert (picture_size([(8, 8), (9, 9)]).shape, picture_size([(8, 8), (9, 9)]).policy) == ((48, 48), "pad")
    assert picture_size([]).shape == (48, 48)


def test_a_set_without_findings_says_so_and_suspicious_labels_are_shown() -> None:
    assert "Nothing: every file can be read" in words(page((noise(40, 8, 8, 3), np.arange(40) % 2)))
    g = np.random.default_rng(0)
    base = g.normal(size=(2, 8, 8, 1))
    y = np.repeat([0, 1], 60)
    x = np.clip(128 + 40 * (base[y] + 0.4 * g.normal(size=(120, 8, 8, 1))), 0, 255).astype(np.uint8)
    y[3] = 1
    text = words(page(ArraySource({"train": (x, y)}, ["left", "right"])))
    assert "label: right near: left train/3: 10 of 10" in text
    assert "1 image among images of one other class" in text
