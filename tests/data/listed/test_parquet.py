import contextlib
import json
import os

import numpy as np
import pytest

from imbdiff.data import sources
from imbdiff.data.decode import UnusableImageError
from imbdiff.data.listed import parquet
from imbdiff.runtime.errors import ConfigError, DataError
from tests.data.making import encoded, folder, noise

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

PIXELS = [noise(8, 8, 3, seed=i) for i in range(11)]
CELLS = [encoded(x) for x in PIXELS]
LABELS = [0, 1, 2, 1, 0, 2, 1, 1, 0, 2, 1]
NAMES = ["cat", "dog", "wolf"]


def hub(features):
    return {"huggingface": json.dumps({"info": {"features": features}})}


def written(path, columns, metadata=None, **options):
    made = pa.table(columns)
    pq.write_table(made.replace_schema_metadata(metadata) if metadata else made, path, **options)
    return path


def refused(source, kind=DataError):
    with pytest.raises(kind) as error:
        sources.load(source)
    assert error.value.remedy
    return error.value.message


@pytest.fixture(params=["struct", "binary"])
def cells(request):
    return CELLS if request.param == "binary" else [{"bytes": cell, "path": None} for cell in CELLS]


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_images_in_cells(tmp_path, cells, rows, monkeypatch):
    monkeypatch.setattr(parquet, "BATCH", 2)
    features = {"label": {"names": NAMES, "_type": "ClassLabel"}, "img": {"_type": "Image"}}
    columns = {"note": list("abcdefghijk"), "img": cells, "label": LABELS}
    source = sources.load(written(tmp_path / "t.parquet", columns, hub(features), row_group_size=rows))
    assert (source.kind, source.class_names) == ("parquet", tuple(NAMES))
    assert source.labels().tolist() == LABELS
    assert source.ids()[3] == "t.parquet:3"
    assert np.array_equal(source.read().images, np.stack(PIXELS))
    for row in (7, 2, 10, 2, 3, 0):  # in any order
        assert source.reader.open((0, row)).read() == CELLS[row]


def test_a_label_column_that_only_the_metadata_names(tmp_path):
    features = {"fine": {"names": NAMES, "_type": "ClassLabel"}}
    path = written(tmp_path / "t.parquet", {"image": CELLS, "fine": LABELS, "other": LABELS}, hub(features))
    assert sources.load(path).class_names == tuple(NAMES)
    features["other"] = features["fine"]
    message = refused(written(path, {"image": CELLS, "fine": LABELS, "other": LABELS}, hub(features)))
    assert "'fine', 'other'" in message
    assert "image (...)" in message
    assert sources.load(f"{path}?label=other").class_names == tuple(NAMES)


@pytest.mark.parametrize("metadata", [None, {"huggingface": "{"}, {"huggingface": "[]"}, hub({"label": {"names": 3}})])
def test_metadata_that_say_nothing(tmp_path, metadata):
    path = written(tmp_path / "t.parquet", {"image": CELLS, "label": LABELS}, metadata)
    assert sources.load(path).class_names == ("0", "1", "2")


def test_splits_across_files_and_columns(tmp_path):
    features = hub({"label": {"names": NAMES, "_type": "ClassLabel"}})
    train = written(tmp_path / "a.parquet", {"image": CELLS[:8], "label": LABELS[:8]}, features)
    written(tmp_path / "b.parquet", {"image": CELLS[8:], "label": LABELS[8:]}, features)
    source = sources.load(f"{train}?test=b.parquet")
    assert np.array_equal(source.read("test").images, np.stack(PIXELS[8:]))
    assert source.read("train").images.shape == (8, 8, 8, 3)
    parts = ["train", "test"] * 5 + ["train"]
    both = sources.load(written(tmp_path / "c.parquet", {"image": CELLS, "label": LABELS, "split": parts}))
    assert np.array_equal(both.read("test").images, np.stack(PIXELS[1::2]))
    written(tmp_path / "b.parquet", {"image": CELLS[8:], "label": LABELS[8:]})
    assert "name their classes differently" in refused(f"{train}?test=b.parquet")
    written(tmp_path / "b.parquet", {"image": ["x.png"], "label": [0]})
    assert "others paths" in refused(f"{train}?test=b.parquet&names={put_names(tmp_path)}")


def put_names(tmp_path):
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    return tmp_path / "names.txt"


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())])
def test_paths_in_cells(tmp_path, kind):
    root = folder(tmp_path / "images", {"a": 2, "b": 2})
    paths = ["b/001.png", "a/000.png", "a/001.png", "b/000.png"]
    labels = pa.array(["y", "x", "x", "y"], kind)
    source = sources.load(f"{written(tmp_path / 't.parquet', {'path': paths, 'class': labels})}?root={root}")
    assert (source.kind, source.class_names) == ("list", ("x", "y"))
    assert source.ids() == tuple(paths)
    assert np.array_equal(source.read().images[0], noise(8, 8, 3, seed=1001))


@pytest.mark.parametrize("labels", [[0.0, 1.0, 1.0], [False, True, True], pa.array([0, 1, 1], pa.uint8())])
def test_numbers_of_all_kinds_are_labels(tmp_path, labels):
    source = sources.load(written(tmp_path / "t.parquet", {"image": CELLS[:3], "label": labels}))
    assert source.labels().tolist() == [0, 1, 1]


@pytest.mark.parametrize("labels", [[0, None, 1, -1], [0.0, float("nan"), 1.0, None], ["a", None, "b", ""]])
def test_missing_labels(tmp_path, labels):
    features = hub({"label": {"names": ["a", "b"], "_type": "ClassLabel"}})
    message = refused(written(tmp_path / "t.parquet", {"image": CELLS[:4], "label": labels}, features))
    assert "2 rows without a label:\n  row 1\n  row 3" in message


def test_labels_that_are_lists(tmp_path):
    assert "holds list<" in refused(written(tmp_path / "t.parquet", {"image": CELLS[:2], "label": [[0], [1]]}))


def test_cells_without_an_image_are_named(tmp_path):
    cells = [{"bytes": c, "path": "x"} for c in CELLS]
    cells[2] = {"bytes": None, "path": "far/away.png"}
    cells[5], cells[7] = None, {"bytes": b"no image", "path": None}
    source = sources.load(written(tmp_path / "t.parquet", {"image": cells, "label": LABELS}))
    bad = source.all_bad()
    assert set(bad) == {"t.parquet:2", "t.parquet:5", "t.parquet:7"}
    assert "far/away.png" in bad["t.parquet:2"]
    with pytest.raises(DataError, match="3 of the images"):
        source.read()


def test_a_struct_with_a_path_of_another_kind(tmp_path):
    cells = [{"bytes": c, "path": 7} for c in CELLS[:-1]] + [{"bytes": None, "path": 7}]
    source = sources.load(written(tmp_path / "t.parquet", {"image": cells, "label": LABELS}))
    assert set(source.all_bad()) == {"t.parquet:10"}


def test_files_that_are_no_parquet(tmp_path):
    path = written(tmp_path / "t.parquet", {"image": CELLS, "label": LABELS})
    whole = path.read_bytes()
    for data in (b"", b"PAR1", whole[:-5], os.urandom(1000)):
        path.write_bytes(data)
        assert "no readable Parquet file" in refused(path)
    assert "No such file" in refused(tmp_path / "none.parquet")
    assert "has no rows" in refused(
        written(path, {"image": pa.array([], pa.binary()), "label": pa.array([], pa.int8())})
    )


def test_damage_in_the_data_is_found_in_the_rows_it_hits(tmp_path):
    path = written(
        tmp_path / "t.parquet",
        {"image": CELLS, "label": LABELS},
        row_group_size=4,
        compression="none",
        use_dictionary=False,
    )
    data = path.read_bytes()
    path.write_bytes(data.replace(CELLS[5], bytes(len(CELLS[5]))))
    assert set(sources.load(path).all_bad()) == {"t.parquet:5"}


def test_a_footer_that_promises_more_rows_than_there_are(tmp_path):
    path = written(tmp_path / "t.parquet", {"image": CELLS, "label": LABELS})
    data = path.read_bytes()
    for at in range(len(data) - 8 - int.from_bytes(data[-8:-4], "little"), len(data) - 8):
        if data[at] == 2 * len(CELLS):  # as Thrift writes the number
            path.write_bytes(data[:at] + bytes([2 * len(CELLS) + 2]) + data[at + 1 :])
            with contextlib.suppress(OSError):
                if pq.read_metadata(path).num_rows == len(CELLS) + 1:
                    break
    else:
        pytest.fail("the number of rows is not in the footer")
    assert "11 cells in 12 rows" in refused(path)


def test_a_table_that_changes_is_not_mixed_up(tmp_path):
    path = written(tmp_path / "t.parquet", {"image": CELLS, "label": LABELS})
    source = sources.load(path)
    before = source.reader.stamp((0, 1))
    written(path, {"image": CELLS[::-1], "label": LABELS, "more": LABELS})
    with pytest.raises(UnusableImageError, match="changed"):
        source.reader.open((0, 1))
    assert sources.load(path).reader.stamp((0, 1)) != before


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    import sys

    path = written(tmp_path / "t.parquet", {"image": CELLS, "label": LABELS})
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    monkeypatch.delattr(pa, "parquet")
    with pytest.raises(ConfigError) as error:
        sources.load(path)
    assert "imbalanced-diffusion[hf]" in error.value.remedy


def test_memory_does_not_grow_with_the_file(tmp_path):
    """One row group of 15 MB in pages of 1.6 MB: what is in memory is a page and a few rows."""
    rng = np.random.default_rng(0)
    cells = [rng.bytes(100_000) for _ in range(150)]
    path = written(
        tmp_path / "t.parquet", {"image": cells, "label": [i % 2 for i in range(150)]}, compression="none",
        use_dictionary=False, write_batch_size=16,
    )  # fmt: skip
    del cells
    reader = sources.load(path).reader
    pool = pa.default_memory_pool()
    most = 0
    for row in range(150):
        reader.open((0, row))
        most = max(most, pool.bytes_allocated())
    assert most < 8 * 2**20


def test_one_huge_label_is_neither_repeated_nor_shown(tmp_path):
    """300 rows whose codes mean one text of 2 MB: half a gigabyte, were each row given its own."""
    labels = pa.DictionaryArray.from_arrays([0] * 299 + [1], ["a" * 2_000_000, "b"])
    path = tmp_path / "t.parquet"
    columns = {"image": CELLS[:1] * 300, "label": labels}
    written(path, columns, compression="zstd", store_schema=False)  # it is plain text to who reads it
    assert pq.read_schema(path).field("label").type == pa.string()
    plain = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(plain)
    pa.set_memory_pool(pool)
    try:
        message = refused(path)
    finally:
        pa.set_memory_pool(plain)
    assert "one of 2,000,000 bytes" in message
    assert len(message) < 500
    assert 2_000_000 < pool.max_memory() < 32 * 2**20
    path = written(path, {"image": CELLS[:2], "label": ["x" * 1001, "y"]})
    assert "1 label of more than 1,000 characters" in refused(path)
    path = written(path, {"image": CELLS[:2], "label": ["x" * 1000, "y"]})
    assert sources.load(path).class_names == ("x" * 1000, "y")


def test_columns_that_claim_too_much_text_are_not_read(tmp_path, monkeypatch):
    path = written(tmp_path / "t.parquet", {"image": CELLS[:2], "label": ["x" * 9000, "y"]}, use_dictionary=False)
    monkeypatch.setattr(parquet, "LONGEST_TEXT", 2)  # 8 KiB in all
    monkeypatch.setattr(parquet.ParquetTable, "_cells", lambda *_: pytest.fail("read"))
    assert "more text than labels" in refused(path)


@pytest.mark.parametrize("rows", [1, 100])
def test_cells_that_are_too_large_are_unusable(tmp_path, cells, rows, monkeypatch):
    large = CELLS[0] + bytes(100_000)
    cells[4] = {"bytes": large, "path": None} if isinstance(cells[4], dict) else large
    path = written(tmp_path / "t.parquet", {"image": cells, "label": LABELS}, row_group_size=rows, compression="none")
    assert not sources.load(path).all_bad()
    monkeypatch.setattr(parquet, "LARGEST", 100_000)
    bad = sources.load(path).all_bad()
    assert set(bad) == {"t.parquet:4"}
    assert "more than 0 MiB" in bad["t.parquet:4"]


def test_row_groups_that_unpack_to_far_more_are_unusable(tmp_path, monkeypatch):
    cells = [*CELLS[:4], *(cell + bytes(50_000) for cell in CELLS[4:8])]
    path = written(
        tmp_path / "t.parquet", {"image": cells, "label": LABELS[:8]}, row_group_size=4, compression="zstd",
        use_dictionary=False,
    )  # fmt: skip
    assert not sources.load(path).all_bad()
    monkeypatch.setattr(parquet, "LARGEST", 150_000)
    bad = sources.load(path).all_bad()
    assert set(bad) == {f"t.parquet:{i}" for i in range(4, 8)}
    assert "unpacks to far more" in bad["t.parquet:5"]


def test_class_names_that_are_no_text(tmp_path):
    features = hub({"label": {"names": ["a", "b\ud800", "c"], "_type": "ClassLabel"}})
    message = refused(written(tmp_path / "t.parquet", {"image": CELLS, "label": LABELS}, features))
    assert r"name 1: 'b\ud800' is not valid text" in message
    message.encode()


def test_equal_ids_of_two_tables(tmp_path):
    (tmp_path / "v").mkdir()
    for at, part in (("t.parquet", slice(0, 6)), ("v/t.parquet", slice(6, 11))):
        written(tmp_path / at, {"image": CELLS[part], "label": LABELS[part]})
    source = sources.load(f"{tmp_path / 't.parquet'}?test={tmp_path / 'v' / 't.parquet'}")
    assert source.ids()[:2] == ("t.parquet:0", "t.parquet:1")
    assert source.ids("test") == tuple(f"test/t.parquet:{i}" for i in range(5))
    assert np.array_equal(source.read("test").images, np.stack(PIXELS[6:]))
