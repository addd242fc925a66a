"""Labels as people and programs write them: missing ones are refused by row, one order, nothing merged or lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import imbdiff
from imbdiff.data.labels import in_class_order, without_missing
from imbdiff.data.sources import load
from imbdiff.runtime.errors import DataError
from tests.data.making import encoded, folder, noise, write, zipped

pd = pytest.importorskip("pandas")

CERTAIN = ["nan", "NaN", "-nan", "<NA>", "NaT", "#N/A"]
WORDS = ["None", "none", "null", "NULL", "NA", "N/A", "n/a", "-"]
OTHERS = {"text": ["cat", "dog"], "numbers": ["0", "1"], "decimals": ["0.0", "1.0"], "reals": ["0.5", "1.5"]}


def table(root: Path, labels: list[str]) -> Any:
    for i in range(len(labels)):
        write(root / "im" / f"{i:02d}.png", noise(8, 8, 3, seed=i))
    rows = "".join(f"{i:02d}.png,{label}\n" for i, label in enumerate(labels))
    (root / "t.csv").write_text("filename,label\n" + rows)
    return load(f"{root}/t.csv?root={root}/im")


def folders(root: Path, labels: list[str]) -> Any:
    for i, label in enumerate(labels):
        write(root / "d" / label / f"{i:02d}.png", noise(8, 8, 3, seed=i))
    return load(root / "d")


def archive(root: Path, labels: list[str]) -> Any:
    root.mkdir(exist_ok=True)
    members = {f"{label}/{i:02d}.png": encoded(noise(8, 8, 3, seed=i)) for i, label in enumerate(labels)}
    return load(zipped(root / "d.zip", members))


def text_array(root: Path, labels: list[str]) -> Any:
    return load((noise(len(labels), 8, 8), np.array(labels)))


def npz(root: Path, labels: list[str]) -> Any:
    np.savez(root / "d.npz", x=noise(len(labels), 8, 8), y=np.array(labels))
    return load(root / "d.npz")


def parquet(root: Path, labels: list[str]) -> Any:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pytest.importorskip("datasets")
    images = [{"bytes": encoded(noise(8, 8, 3, seed=i)), "path": None} for i in range(len(labels))]
    pq.write_table(pa.table({"image": images, "label": labels}), root / "d.parquet")
    return load(root / "d.parquet")


SOURCES = [table, folders, archive, text_array, npz, parquet]


@pytest.mark.parametrize(
    ("source", "spelling"), [*((table, s) for s in CERTAIN), (text_array, "NaN"), (npz, "<NA>"), (parquet, "nan")]
)
def test_what_only_programs_write_is_refused_with_its_rows(tmp_path: Path, source: Any, spelling: str) -> None:
    with pytest.raises(DataError, match="1 image has the label") as error:
        source(tmp_path, ["cat", "dog", "cat", spelling, "dog", "cat"])
    assert repr(spelling) in error.value.message
    assert "3" in error.value.message.partition(": ")[2]  # the row
    assert source(tmp_path, ["cat", "dog", "cat", "bird", "dog", "cat"]).class_names == ("bird", "cat", "dog")


@pytest.mark.parametrize("source", [folders, archive])
def test_folders_of_missing_labels(tmp_path: Path, source: Any) -> None:
    with pytest.raises(DataError, match=r"nan/02\.png"):
        source(tmp_path / "a", ["cat", "dog", "nan"])
    assert any("none/02.png" in note for note in source(tmp_path / "b", ["cat", "dog", "none"]).warnings)


@pytest.mark.parametrize(
    ("source", "word"), [*((text_array, w) for w in WORDS), (table, "None"), (npz, "N/A"), (parquet, "null")]
)
def test_words_that_may_name_a_class_are_named_with_their_rows(tmp_path: Path, source: Any, word: str) -> None:
    found = source(tmp_path, ["cat", word, "dog", "cat"])
    assert word in found.class_names
    assert sum(repr(word) in note and "1" in note for note in found.warnings) == 1


@pytest.mark.parametrize("kind", ["numbers", "decimals", "reals"])
@pytest.mark.parametrize("word", [*WORDS, "nan"])
def test_among_numbers_every_such_word_is_a_missing_label(tmp_path: Path, kind: str, word: str) -> None:
    with pytest.raises(DataError, match="missing label"):
        table(tmp_path, [*OTHERS[kind], word] * 2)


@pytest.mark.parametrize("kind", sorted(OTHERS))
def test_labels_that_miss_nothing_are_not_remarked_upon(tmp_path: Path, kind: str) -> None:
    assert table(tmp_path, OTHERS[kind] * 2).warnings == ()


def test_to_be_measured_a_set_may_have_such_classes(tmp_path: Path) -> None:
    folder(tmp_path / "f", {"cat": 1, "nan": 1})
    found = load(tmp_path / "f", strict=False)
    assert found.class_names == ("cat", "nan")
    assert any("'nan'" in note for note in found.warnings)


MISSING: list[Any] = [
    np.array([0.0, 1.0, np.nan, 1.0]),
    [0, 1, None, 1],
    np.array(["a", "b", None, "b"], dtype=object),
    np.array(["a", "b", float("nan"), "b"], dtype=object),
    np.ma.array([0, 1, 7, 1], mask=[False, False, True, False]),
    np.ma.array(["a", "b", "?", "b"], mask=[False, False, True, False]),
    np.array(["2020-01-01", "2021-01-01", "NaT", "2021-01-01"], dtype="datetime64[D]"),
    pd.Series([0, 1, None, 1]),
    pd.Series([0, 1, pd.NA, 1], dtype="Int64"),
    pd.Series(["a", "b", pd.NA, "b"], dtype="string"),
    pd.Series(["a", "b", None, "b"], dtype="category"),
    pd.Series([pd.Timestamp(0), pd.Timestamp(1), pd.NaT, pd.Timestamp(1)], dtype=object),
]


@pytest.mark.parametrize("y", MISSING, ids=lambda y: f"{type(y).__name__} {getattr(y, 'dtype', '')}")
def test_missing_values_of_every_kind_are_refused_and_the_remedy_finds_them(y: Any) -> None:
    X = noise(4, 8, 8)
    for refuse in (lambda: load((X, y)), lambda: imbdiff.DiffusionOverSampler().fit_resample(X, y)):
        with pytest.raises(DataError, match=r"1 label is missing \(row 2\)") as error:
            refuse()
    names = {"y": y, "X": X, "np": np}
    statement, _, value = error.value.remedy.partition(": ")[2].partition("; ")
    exec(statement, names)
    kept, labels = eval(value, names)
    assert np.array_equal(kept, X[[0, 1, 3]])
    assert len(without_missing(labels, "y")) == 3


@pytest.mark.parametrize(
    "y",
    [
        np.array(["b", "a", "b", "a"], dtype=object),
        pd.Series(["b", "a", "b", "a"]),
        pd.Series(["b", "a", "b", "a"], dtype="category"),
        np.array([b"b", b"a", b"b", b"a"]),
        np.array(["b", "a", "b", "a"])[:, None],
        ["b", "a", "b", "a"],
    ],
)
def test_labels_in_other_containers_are_taken(y: Any) -> None:
    found = load((noise(4, 8, 8), y))
    assert (found.class_names, found.labels().tolist()) == (("a", "b"), [1, 0, 1, 0])


def test_nullable_integers_are_taken_and_mixed_kinds_refused_with_a_remedy_that_works() -> None:
    found = load((noise(4, 8, 8), pd.Series([10, 2, 10, 2], dtype="Int64")))
    assert found.class_names == ("2", "10")
    y: list[Any] = [1, "a", 1, "a"]
    with pytest.raises(DataError, match="some labels are text") as error:
        load((noise(4, 8, 8), np.array(y, dtype=object)))
    names: dict[str, Any] = {"y": y}
    exec(error.value.remedy.partition(": ")[2], names)
    assert load((noise(4, 8, 8), names["y"])).class_names == ("1", "a")


@pytest.mark.parametrize(
    ("labels", "order"),
    [
        (["10", "2", "1"], ["1", "2", "10"]),
        (["007", "10", "2"], ["2", "007", "10"]),
        (["01", "1", "2"], ["01", "1", "2"]),
        (["1.0", "10.0", "2.0"], ["1.0", "2.0", "10.0"]),
        (["9" * 25, "1" + "0" * 25, "3"], ["3", "9" * 25, "1" + "0" * 25]),
        (["1.5", "10.5", "2.5"], ["1.5", "10.5", "2.5"]),
        (["a10", "a2", "B"], ["B", "a10", "a2"]),
        (["1e3", "20", "3"], ["1e3", "20", "3"]),
    ],
)
def test_one_order_of_all_sources_and_no_two_texts_are_one_class(
    tmp_path: Path, labels: list[str], order: list[str]
) -> None:
    assert in_class_order(labels) == order
    every = [source(tmp_path, labels * 2) for source in SOURCES if source is not parquet or labels[0] == "007"]
    # "1.0" is how tables write 1; a folder is called what it is called
    shown = [[name.removesuffix(".0") for name in found.class_names] for found in every]
    assert shown == [[name.removesuffix(".0") for name in order]] * len(every)
    for found in every:
        where = [order.index(label) for label in labels * 2]
        assert sorted(found.labels().tolist()) == sorted(where)


def test_one_and_one_point_zero_are_one_class_and_that_is_said(tmp_path: Path) -> None:
    found = table(tmp_path, ["1", "1.0", "2", "2"])
    assert found.labels().tolist() == [0, 0, 1, 1]
    assert any("'1' and '1.0'" in note for note in found.warnings)


def test_names_of_numbers_that_no_image_has_are_left_out_with_a_note() -> None:
    found = load((noise(4, 8, 8), np.array([0, 2, 0, 2]), ["cat", "dog", "emu"]))
    assert found.class_names == ("cat", "emu")
    assert found.labels().tolist() == [0, 1, 0, 1]
    assert any("'dog'" in note for note in found.warnings)
    data = {split: (noise(4, 8, 8), np.array(y)) for split, y in (("train", [0, 2, 0, 2]), ("test", [0, 1, 2, 2]))}
    with pytest.raises(DataError, match="no training image:\n  'dog'"):  # it has images, but none to train on
        load(imbdiff.data.arrays.ArraySource(data, ["cat", "dog", "emu"]))
