"""Images that belong together (a patient's, a lesion's) are never in two splits, whatever the source."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imbdiff.data.grouping import hold_out
from imbdiff.data.inspect import examine, inspect
from imbdiff.data.sources import load
from imbdiff.data.splits import Prepared, prepare
from imbdiff.pipeline.inspection import run_estimate
from imbdiff.runtime.errors import ConfigError, DataError
from tests.data.making import encoded, folder, noise, write, zipped

Row = tuple[int, int, int]  # class, group, split (0 train, 1 val, 2 test)


def image(i: int) -> np.ndarray:
    return noise(6, 6, 3, seed=i)


def _folder(root: Path, rows: list[Row]) -> str:
    given = any(split for *_, split in rows)
    for i, (k, g, s) in enumerate(rows):
        write(root / "f" / (("train", "val", "test")[s] if given else "") / "ab"[k] / f"p{g}_{i}.png", image(i))
    return f"{root}/f?group=(p[0-9]%2B)_"


def _zip(root: Path, rows: list[Row]) -> str:
    _folder(root, rows)
    files = {str(f.relative_to(root / "f")): f.read_bytes() for f in sorted((root / "f").rglob("*.png"))}
    return f"{zipped(root / 'f.zip', files)}?group=(p[0-9]%2B)_"


def _table(root: Path, rows: list[Row]) -> str:
    with open(root / "t.csv", "w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["image", "label", "patient", "split"])
        for i, (k, g, s) in enumerate(rows):
            write(root / f"p{g}_{i}.png", image(i))
            out.writerow([f"p{g}_{i}.png", "ab"[k], f"p{g}", ("train", "val", "test")[s]])
    return f"{root}/t.csv?group=patient"


def _list(root: Path, rows: list[Row]) -> str:
    _table(root, rows)
    for s, name in enumerate(("train", "val", "test")):
        lines = [f"p{g}_{i}.png {'ab'[k]}" for i, (k, g, own) in enumerate(rows) if own == s]
        (root / f"{name}.txt").write_text("\n".join(lines))
    further = [name for s, name in ((1, "val"), (2, "test")) if any(row[2] == s for row in rows)]
    return f"{root}/train.txt?group=^(p[0-9]%2B)" + "".join(f"&{name}={root}/{name}.txt" for name in further)


def _npz(root: Path, rows: list[Row]) -> str:
    arrays = {}
    for s, name in enumerate(("train", "val", "test")):
        own = [(i, k, g) for i, (k, g, split) in enumerate(rows) if split == s]
        if own:
            arrays[f"x_{name}"] = np.stack([image(i) for i, _, _ in own])
            arrays[f"y_{name}"] = np.array([k for _, k, _ in own])
            arrays[f"patient_{name}"] = np.array([f"p{g}" for *_, g in own])
    np.savez(root / "x.npz", **arrays)
    return f"{root}/x.npz?group=patient"


def _parquet(root: Path, rows: list[Row]) -> str:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    features = datasets.Features(
        image=datasets.Image(), label=datasets.ClassLabel(names=["a", "b"]), patient=datasets.Value("string"),
        split=datasets.Value("string"),
    )  # fmt: skip
    columns = {
        "image": [{"bytes": encoded(image(i)), "path": None} for i in range(len(rows))],
        "label": [k for k, *_ in rows],
        "patient": [f"p{g}" for _, g, _ in rows],
        "split": [("train", "val", "test")[s] for *_, s in rows],
    }
    datasets.Dataset.from_dict(columns, features=features).to_parquet(root / "t.parquet")
    return f"{root}/t.parquet?group=patient"


WRITERS = {f.__name__[1:]: f for f in (_folder, _zip, _table, _list, _npz, _parquet)}


def whose(rows: list[Row], data: Prepared) -> dict[str, set[int]]:
    """The groups of each split, by the pixels of its images."""
    of = {image(i).tobytes(): g for i, (_, g, _) in enumerate(rows)}
    splits = {"train": data.train, "val": data.val, "test": data.test}
    return {s: {of[np.asarray(x).tobytes()] for x in one.images} for s, one in splits.items() if one is not None}


def check(rows: list[Row], data: Prepared) -> None:
    found = whose(rows, data)
    for a in found:
        for b in found:
            assert a == b or not found[a] & found[b], (a, b)
    assert (np.bincount(data.train.labels, minlength=2) > 0).all()


ROWS = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 12)), min_size=20, max_size=60)


@pytest.mark.parametrize("kind", WRITERS)
@given(rows=ROWS, given_splits=st.sampled_from([(), (2,), (1, 2)]), seed=st.integers(0, 5), data=st.data())
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_group_is_in_two_splits(kind, rows, given_splits, seed, data, tmp_path_factory):
    which = st.sampled_from((0, 0, *given_splits))
    full: list[Row] = [(k, g, data.draw(which)) for k, g in rows] + [(0, 20, 0), (0, 21, 0), (1, 22, 0), (1, 23, 0)]
    source = WRITERS[kind](tmp_path_factory.mktemp(kind), full)
    try:
        made = prepare(source, seed=seed, test_fraction=0.3, val_fraction=0.2)
    except DataError as error:  # nothing is left of a class, or nothing can be held out
        made, why = None, error.message
    if made is None:
        assert any(part in why for part in ("belong together", "can be held out", "no training image"))
    else:
        check(full, made)


@given(rows=ROWS, factor=st.sampled_from([None, 2, 5]), seed=st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_arrays_with_a_tail(rows, factor, seed):
    full: list[Row] = [(k, g, 0) for k, g in rows] + [(k, 20 + i, 0) for i in range(12) for k in (0, 1)]
    x, y = np.stack([image(i) for i in range(len(full))]), np.array([k for k, *_ in full])
    made = prepare((x, y), group=[g for _, g, _ in full], imbalance_factor=factor, seed=seed)
    check(full, made)
    together = prepare((x, y), group={"train": [f"g{g}" for _, g, _ in full]}, imbalance_factor=factor, seed=seed)
    assert together.manifest["digests"] == made.manifest["digests"]  # whatever groups are called


def test_as_many_are_held_out_as_asked_where_groups_allow_it():
    g = np.random.default_rng(0)
    groups = np.repeat(np.arange(200), 3).astype(str)
    labels = np.repeat(g.integers(0, 3, 200), 3)
    wanted = [round(0.2 * n) for n in np.bincount(labels)]
    chosen = hold_out(labels, groups, wanted, 0, "test", np.zeros(600, bool))
    assert (np.abs(np.bincount(labels[chosen], minlength=3) - wanted) <= 2).all()
    assert not set(groups[chosen]) & set(np.delete(groups, chosen))
    late = np.arange(600) < 300
    last = hold_out(labels, groups, wanted, 0, "test", late)
    assert late[last].sum() == 0


def test_a_class_that_is_one_group_stays_in_training():
    x, y = np.stack([image(i) for i in range(60)]), np.repeat([0, 1, 2], 20)
    group = [f"{k}-{i % 5 if k else 0}" for i, k in enumerate(y)]
    data = prepare((x, y), group=group)
    assert np.bincount(data.test.labels, minlength=3).tolist() == [0, 4, 4]
    assert any("no test image" in note for note in data.warnings)
    with pytest.raises(DataError, match="none can be held out"):
        prepare((x, y), group=y.tolist())


def test_missing_values_are_groups_of_their_own(tmp_path):
    folder(tmp_path, {"im": 40})
    words = ["", "NA", "nan", "NaT", "-", "--", "<NA>", "None", "null", "#N/A"]
    rows = [f"{i:03d}.png,{'ab'[i % 2]},{words[i % 10] if i < 30 else 'p'}" for i in range(40)]
    (tmp_path / "t.csv").write_text("image,label,lesion_id\n" + "\n".join(rows))
    groups = load(f"{tmp_path}/t.csv?root={tmp_path}/im&group=lesion_id").records["train"].groups
    assert sorted(Counter(groups).values()) == [1] * 30 + [10]


@pytest.mark.parametrize("name", ["lesion_id", "patient_id", "Slide ID", "subject", "case", "track_id", "PatientID"])
def test_a_column_that_repeats_and_is_not_used_is_said(tmp_path, name):
    folder(tmp_path, {"im": 30})
    rows = [f"{i:03d}.png,{'ab'[i // 3 % 2]},x{i // 3}" for i in range(30)]
    (tmp_path / "t.csv").write_text(f"image,label,{name}\n" + "\n".join(rows))
    source = f"{tmp_path}/t.csv?root={tmp_path}/im"
    for notes in (prepare(source).warnings, inspect(source)["warnings"]):
        assert any(repr(name) in note and f"group={name}" in note for note in notes)
    for option in (name, ""):
        data = prepare(f"{source}&group={option}")
        assert not any("not used" in note for note in data.warnings)
    grouped = prepare(f"{source}&group={name}")
    assert not set(grouped.train.groups) & set(grouped.test.groups)
    assert "whole groups" in grouped.manifest["test_from"]
    seen = examine(f"{source}&group={name}")  # inspect counts as the run does
    assert run_estimate(seen)["training"] == list(grouped.stats.counts)


@pytest.mark.parametrize("cells", [["one"] * 30, [f"x{i}" for i in range(30)], ["x", "y"] * 15])
def test_columns_that_say_nothing_of_the_kind(tmp_path, cells):
    folder(tmp_path, {"im": 30})
    rows = [f"{i:03d}.png,{'ab'[i % 2]},{cell}" for i, cell in enumerate(cells)]
    (tmp_path / "t.csv").write_text("image,label,case\n" + "\n".join(rows))
    assert not any("group=" in note for note in load(f"{tmp_path}/t.csv?root={tmp_path}/im").warnings)


def test_names_of_files_that_name_patients_are_said(tmp_path):
    for i in range(30):
        write(tmp_path / "ab"[i // 3 % 2] / f"patient{i // 3}_{i}.png", image(i))
    note = next(note for note in load(tmp_path).warnings if "group=" in note)
    option = note.split("group=")[1].split(" ")[0]
    source = load(f"{tmp_path}?group={option}")  # the advice works
    assert len(set(source.records["train"].groups)) == 10
    assert not any("group=" in note for note in source.warnings)


def test_folders_are_groups(tmp_path):
    root = folder(tmp_path, {f"{c}/{p}": 3 for c in "ab" for p in ("p1", "p2", "p3", "p4", "p5")})
    data = prepare(f"{root}?group=folder")
    assert len(set(data.test.groups)) == len(data.test) / 3 >= 2
    assert not set(data.test.groups) & set(data.train.groups)


def test_given_test_images_stay_and_training_images_of_their_groups_go(tmp_path):
    rows: list[Row] = [(i % 2, i // 4, 2 if i % 4 == 3 and i < 24 else 0) for i in range(60)]
    data = prepare(_table(tmp_path, rows))
    assert len(data.test) == 6
    assert len(data.train) + (len(data.val) if data.val else 0) == 60 - 24
    assert any("18 training images are of a group" in note for note in data.warnings)
    x, y = np.stack([image(i) for i in range(6)]), np.array([0, 0, 1, 1, 0, 1])
    parts = {"train": (x[:4], y[:4]), "test": (x[4:], y[4:])}
    with pytest.raises(DataError, match="belong together with test images"):
        prepare(load(parts, group={"train": [1, 1, 2, 3], "test": [1, 5]}))


@pytest.mark.parametrize("kind", ["folder", "table", "npz", "parquet"])
def test_groups_that_are_not_there(kind, tmp_path):
    source = WRITERS[kind](tmp_path, [(i % 2, i // 2, 0) for i in range(20)]).partition("?")[0]
    with pytest.raises(DataError, match="x9") as error:
        load(f"{source}?group=x9")
    assert error.value.remedy


def test_what_is_no_pattern(tmp_path):
    with pytest.raises(ConfigError, match="no regular expression"):
        load(f"{folder(tmp_path, {'a': 2, 'b': 2})}?group=(x")


# -- several labels


@pytest.mark.parametrize(
    "labels",
    [
        ["Effusion", "Mass", "Effusion|Mass", "No Finding"] * 5,
        ["a|b", "b|c", "d", "e"] * 5,
        ["cat;dog", "dog", "cat", "bird"] * 5,
        ["cat, dog", "dog", "cat", "bird"] * 5,
    ],
)
def test_several_labels_are_refused_with_ways_out(tmp_path, labels):
    folder(tmp_path, {"im": 20})
    with open(tmp_path / "t.csv", "w", newline="") as file:
        csv.writer(file).writerows([["image", "label"], *([f"{i:03d}.png", x] for i, x in enumerate(labels))])
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    pictures = [{"bytes": encoded(image(i)), "path": None} for i in range(20)]
    features = datasets.Features(image=datasets.Image(), label=datasets.Value("string"))
    datasets.Dataset.from_dict({"image": pictures, "label": labels}, features=features).to_parquet(
        tmp_path / "t.parquet"
    )
    marks = {c for text in labels for c in text} & set("|;,")
    single = {x for x in labels if not marks & set(x)}
    for source in (f"{tmp_path}/t.csv?root={tmp_path}/im&label=label", f"{tmp_path}/t.parquet?label=label"):
        with pytest.raises(DataError, match="have several labels") as error:
            load(source)
        assert "several=drop" in error.value.remedy
        dropped = load(f"{source}&several=drop")
        assert set(dropped.class_names) == single
        assert len(prepare(dropped).train)
        assert set(load(f"{source}&several=keep").class_names) == set(labels)
    with pytest.raises(ConfigError, match="several=x"):
        load(f"{source}&several=x")


@pytest.mark.parametrize("labels", [["black, white", "red"], ["a|b", "c"], ["a;b", "c;d"]])
def test_names_with_such_marks_are_classes(tmp_path, labels):
    folder(tmp_path, {"im": 4})
    with open(tmp_path / "t.csv", "w", newline="") as file:
        csv.writer(file).writerows([["image", "label"], *([f"{i:03d}.png", labels[i % 2]] for i in range(4))])
    assert set(load(f"{tmp_path}/t.csv?root={tmp_path}/im").class_names) == set(labels)
