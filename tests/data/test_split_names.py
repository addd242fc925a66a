"""What counts as a split and what as a class, in folders, zip files, tables and Parquet files alike."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from imbdiff.data.inspect import inspect
from imbdiff.data.sources import load
from imbdiff.data.split_names import assigned, looks_like_split
from imbdiff.data.splits import prepare
from imbdiff.runtime.errors import ConfigError, DataError
from tests.data.making import encoded, folder, noise, zipped

LAYOUTS = [
    ("Training", "Testing", None),
    ("train_set", "test_set", "val_set"),
    ("images_train", "images-test", "images val"),
    ("TRAIN", "Holdout", "Dev"),
    ("01_train", "03_test", "02_valid"),
    ("train2017", "test2017", "val2017"),
    ("training", "evaluation", "validation"),  # Food-11
    ("TrainingData", "TestData", "ValidationData"),
    ("trainval", "test", None),
]


def pack(path: Path, root: Path) -> Path:
    return zipped(path, {str(f.relative_to(root)): f.read_bytes() for f in sorted(root.rglob("*.png"))})


@pytest.mark.parametrize(("train", "test", "val"), LAYOUTS)
def test_folders_and_zip_files_of_any_spelling(tmp_path, train, test, val):
    counts = {f"{train}/a": 3, f"{train}/b": 2, f"{test}/a": 1, f"{test}/b": 1}
    root = folder(tmp_path / "set", {**counts, **({f"{val}/a": 2} if val else {})})
    for source in (load(root), load(pack(tmp_path / "set.zip", root))):
        assert source.class_names == ("a", "b")
        found = {split: len(source.ids(split)) for split in source.splits}
        assert found == {"train": 5, "test": 2, **({"val": 2} if val else {})}
        assert all(path.startswith(f"{test}/") for path in source.ids("test"))


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["train", "eval"], {"train": ["train"], "val": [], "test": ["eval"]}),
        (["train", "eval", "test"], {"train": ["train"], "val": ["eval"], "test": ["test"]}),
        (["Training", "PublicTest", "PrivateTest"],
         {"train": ["Training"], "val": ["PublicTest"], "test": ["PrivateTest"]}),
        (["cat", "contest", "trainer", "valley", "devil", "evaluate it"], {"train": [], "val": [], "test": []}),
    ],
)  # fmt: skip
def test_names(names, found):
    assert assigned(names) == found


def test_names_that_look_like_splits():
    for name in ("seg_train", "fold_0", "Fold1", "brain-testing", "unlabelled", "xTrain"):
        assert looks_like_split(name), name
    for name in ("cat", "contest", "strain", "positive", "2020"):
        assert not looks_like_split(name), name


@pytest.mark.parametrize(
    "names", [("fold_0", "fold_1", "fold_2"), ("seg_test", "seg_train"), ("x_test", "x_train", "pred")]
)
def test_what_looks_like_splits_is_refused_until_options_say_which(tmp_path, names):
    root = folder(tmp_path / "set", {f"{name}/{c}": 2 for name in names for c in "ab"})
    for path in (root, pack(tmp_path / "set.zip", root)):
        with pytest.raises(DataError, match="look like splits") as error:
            load(path)
        like = [name for name in names if name != "pred"]
        assert f"SOURCE?train={like[-1]}&test={like[0]}" in error.value.remedy
        source = load(f"{path}?train={like[-1]}&test={like[0]}")
        assert source.class_names == ("a", "b")
        assert {path.split("/")[0] for path in source.ids("test")} == {like[0]}
        assert load(f"{path}?split=").class_names == tuple(sorted(names))
    if len(names) == 3 and names[0] == "fold_0":
        assert len(load(f"{root}?train=fold_0,fold_1&test=fold_2").ids()) == 8


def test_folders_of_splits_inside_folders_of_splits(tmp_path):
    counts = {"seg_train/seg_train/a": 2, "seg_train/seg_train/b": 2, "seg_test/seg_test/a": 1, "seg_pred/seg_pred": 3}
    source = load(f"{folder(tmp_path, counts)}?train=seg_train&test=seg_test")
    assert (source.class_names, len(source.ids("test"))) == (("a", "b"), 1)
    assert any("seg_pred" in note for note in source.warnings)


@pytest.mark.parametrize("names", [("train", "car", "plane"), ("test", "val"), ("Train", "Bus"), ("dev", "ops")])
def test_classes_may_bear_the_names_of_splits(tmp_path, names):
    data = prepare(folder(tmp_path, dict.fromkeys(names, 6)))
    assert set(data.train.class_names) == set(names)
    assert any("look like those of splits" in note for note in data.warnings)
    assert inspect(tmp_path)["labels"]["names"]


def test_classes_of_those_names_with_folders_inside(tmp_path):
    root = folder(tmp_path, {"train/2020": 3, "train/2021": 3, "car": 4, "plane": 5})
    with pytest.raises(DataError, match="train may be a split, or a class") as error:
        load(root)
    assert "SOURCE?split=" in error.value.remedy
    assert load(f"{root}?split=").class_names == ("car", "plane", "train")
    assert load(f"{root}?train=train").class_names == ("2020", "2021")
    inside = folder(tmp_path / "more", {"train/train": 2, "train/car": 2, "test/train": 1})
    assert load(inside).class_names == ("car", "train")


def test_splits_without_class_folders_are_refused(tmp_path):
    root = folder(tmp_path, {"Training": 4, "Testing": 3})
    with pytest.raises(DataError, match="Testing, Training look like splits") as error:
        load(root)
    assert "SOURCE?split=" in error.value.remedy
    assert load(f"{root}?split=").class_names == ("Testing", "Training")


def test_folders_that_all_hold_the_same_folders_are_said(tmp_path):
    root = folder(
        tmp_path, {f"{kind}/{c}": 3 for kind in ("color", "grayscale", "segmented") for c in ("apple", "corn")}
    )
    source = load(f"{root}?byproducts=keep")
    assert source.class_names == ("color", "grayscale", "segmented")
    assert any("apple, corn" in note for note in source.warnings)


def test_two_folders_of_one_split(tmp_path):
    root = folder(tmp_path, {"train/a": 1, "train/b": 1, "valid/a": 2, "dev/a": 3, "test/a": 1})
    with pytest.raises(DataError, match="more than one val folder: dev, valid"):
        load(root)
    both = load(f"{root}?train=train&val=valid,dev&test=test")
    assert len(both.ids("val")) == 5
    with pytest.raises(DataError, match="no such folders"):
        load(f"{root}?train=train&val=vali")
    with pytest.raises(ConfigError, match="split="):
        load(f"{root}?split=fold")


# -- columns


def write_table(root: Path, head: list[str], rows: list[list[str]]) -> str:
    with open(root / "t.csv", "w", newline="") as file:
        csv.writer(file).writerows([head, *rows])
    return f"{root}/t.csv?root={root}/im"


def write_parquet(root: Path, head: list[str], rows: list[list[str]]) -> str:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    table = {name: [row[i] for row in rows] for i, name in enumerate(head) if name != "filename"}
    table["image"] = [{"bytes": encoded(noise(8, 8, 3, seed=i)), "path": None} for i in range(len(rows))]
    features = {name: datasets.Value("string") for name in table} | {"image": datasets.Image()}
    datasets.Dataset.from_dict(table, features=datasets.Features(features)).to_parquet(root / "t.parquet")
    return f"{root}/t.parquet?label=label"


@pytest.fixture(params=[write_table, write_parquet])
def written(request, tmp_path):
    folder(tmp_path, {"im": 30})

    def write(columns: dict[str, list[str]]) -> str:
        head = ["filename", "label", *columns]
        rows = [[f"{i:03d}.png", "ab"[i % 2], *(cells[i] for cells in columns.values())] for i in range(30)]
        return request.param(tmp_path, head, rows)

    return write


def third(a: str, b: str, c: str | None = None) -> list[str]:
    return [a if i < 20 else b if i < 28 or c is None else c for i in range(30)]


@pytest.mark.parametrize(
    ("columns", "counts"),
    [
        ({"split": third("train", "test")}, (20, 0, 10)),
        ({"Usage": third("Training", "PublicTest", "PrivateTest")}, (20, 8, 2)),
        ({"data_split": third("TRAIN", "holdout")}, (20, 0, 10)),
        ({"Set": third("training_set", "test_set", "val_set")}, (20, 2, 8)),
        ({"phase": third("train", "eval")}, (20, 0, 10)),
        ({"split": third("train", "test"), "subset": third("Train", "Testing")}, (20, 0, 10)),
        ({"is_train": third("1", "0")}, (20, 0, 10)),
        ({"is_valid": third("False", "True")}, (20, 10, 0)),
    ],
)
def test_columns_of_splits_are_used(written, columns, counts):
    source = load(written(columns))
    assert tuple(len(source.records[s].ids) if s in source.records else 0 for s in ("train", "val", "test")) == counts
    assert any(repr(name) in note for note in source.warnings for name in columns)


@pytest.mark.parametrize(
    "columns",
    [
        {"split": third("train", "test", "unlabeled")},
        {"split": third("train", "test", "")},
        {"fold": third("train", "test", "3")},
        {"where": third("train", "test", "other")},
        {"split": third("", "test")},
        {"split": third("train", "test"), "set": third("test", "train")},
    ],
)
def test_columns_that_leave_rows_open_are_refused(written, columns):
    path = written(columns)
    with pytest.raises(DataError, match="split") as error:
        load(path)
    assert "split=" in error.value.remedy
    assert len(load(f"{path}&split=").ids()) == 30


@pytest.mark.parametrize(
    "columns", [{"fold": [str(i % 5) for i in range(30)]}, {"Split": third("A", "B")}, {"kfold": third("x", "y", "z")}]
)
def test_columns_that_look_like_splits_and_are_not_used_are_said(written, columns):
    data = prepare(written(columns))
    assert any(repr(next(iter(columns))) in note and "not used" in note for note in data.warnings)


@pytest.mark.parametrize(
    "columns", [{"sex": third("m", "f")}, {"test": third("1", "0")}, {"dataset": third("ham", "bcn")}]
)
def test_other_columns_are_no_splits(written, columns):
    assert load(written(columns)).splits == ("train",)
    assert not any(repr(next(iter(columns))) in note for note in load(written(columns)).warnings)


def test_a_column_that_further_lists_override_is_said(tmp_path):
    folder(tmp_path, {"im": 30})
    rows = [[f"{i:03d}.png", "ab"[i % 2], third("train", "test")[i]] for i in range(28)]
    source = write_table(tmp_path, ["filename", "label", "split"], rows)
    (tmp_path / "u.csv").write_text("filename,label\n028.png,a\n029.png,b\n")
    opened = load(f"{source}&test={tmp_path}/u.csv")
    assert len(opened.ids("test")) == 2
    assert any("'split'" in note and "not used" in note for note in opened.warnings)


def test_paths_of_a_list_that_begin_with_splits_are_said(tmp_path):
    folder(tmp_path, {"train/a": 3, "train/b": 3, "test/a": 2})
    lines = [f"{p.relative_to(tmp_path)} {p.parent.name}" for p in sorted(tmp_path.rglob("*.png"))]
    (tmp_path / "l.txt").write_text("\n".join(lines))
    assert any("begin with train, test" in note for note in load(tmp_path / "l.txt").warnings)
    (tmp_path / "l.csv").write_text("path,label\n" + "\n".join(line.replace(" ", ",") for line in lines))
    assert not any("begin with" in note for note in load(f"{tmp_path}/l.csv?split=").warnings)
