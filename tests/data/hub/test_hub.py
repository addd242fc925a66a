import json

import numpy as np
import pytest
from PIL import Image

from imbdiff.data.decode import UnusableImageError
from imbdiff.data.hub import opening as hub
from imbdiff.data.hub import stored, streamed
from imbdiff.data.hub.columns import which_splits
from imbdiff.data.sources import load
from imbdiff.runtime.errors import ConfigError, DataError
from tests.data.making import encoded, noise, write

datasets = pytest.importorskip("datasets")
COUNTS = {"train": 5, "validation": 3, "test": 2}


@pytest.fixture(autouse=True)
def _nothing_outside(tmp_path_factory, monkeypatch):
    """The library's cache and ours in folders of their own, and no network."""
    import huggingface_hub
    import huggingface_hub.constants

    monkeypatch.setenv("IMBDIFF_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("hf"))
    datasets.disable_progress_bars()

    def unreachable(*_, **__):
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", unreachable)


def rows(n, start=0, labels=None, names=("cat", "dog"), **more):
    """`n` images (noise of 5 x 6, seeds from `start`) with labels 0, 1, 0, ..."""
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(names)) if names else None}
    data = {
        "image": [{"bytes": encoded(noise(5, 6, 3, seed=start + i)), "path": None} for i in range(n)],
        "label": [i % 2 for i in range(n)] if labels is None else labels,
        **{name: values for name, (values, _) in more.items()},
    }
    features |= {name: kind for name, (_, kind) in more.items()}
    if not names:
        features["label"] = datasets.Value("string" if isinstance(data["label"][0], str) else "int64")
    return datasets.Dataset.from_dict(data, features=datasets.Features(features))


def parquet(root, **splits):
    root.mkdir(parents=True, exist_ok=True)
    for split, table in splits.items():
        table.to_parquet(root / f"{split}-00000-of-00001.parquet")
    return root


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """The same images as a folder of parquet files, an image folder, and what save_to_disk writes."""
    root = tmp_path_factory.mktemp("shelf")
    start = {"train": 0, "validation": 10, "test": 20}
    tables = {split: rows(n, start[split]) for split, n in COUNTS.items()}
    parquet(root / "parquet", **tables)
    datasets.DatasetDict(tables).save_to_disk(str(root / "saved"))
    for split, n in COUNTS.items():
        for i in range(n):
            write(
                root / "folder" / split / ("cat", "dog")[i % 2] / f"{i:02d}.png", noise(5, 6, 3, seed=start[split] + i)
            )
    return root


@pytest.mark.parametrize("form", ["parquet", "saved", "folder", "parquet?streaming=1", "folder?streaming=1"])
def test_forms(shelf, form, tmp_path):
    source = load(f"hf:{shelf}/{form}")
    assert source.kind == ("hf stream" if "streaming" in form else "hf")
    assert source.class_names == ("cat", "dog")
    assert {split: len(source.ids(split)) for split in source.splits} == {"train": 5, "val": 3, "test": 2}
    seeds = [0, 2, 4, 1, 3] if "folder" in form else [0, 1, 2, 3, 4]
    assert source.labels().tolist() == [seed % 2 for seed in seeds]
    assert source.survey().sizes == {(5, 6): 10}
    for store in ("off", tmp_path / "kept"):
        images, _ = source.read_all(cache=store)
        assert np.array_equal(np.asarray(images["train"].images), [noise(5, 6, 3, seed=seed) for seed in seeds])
        assert np.array_equal(images["val"].images[1], noise(5, 6, 3, seed=12 if "folder" in form else 11))
    assert source.scan("test").hashes[0] != source.scan("test").hashes[1]
    assert load(f"hf:{shelf}/{form}").ids() == source.ids()


def test_folders_that_are_called_like_kinds_of_files(shelf, monkeypatch):
    monkeypatch.chdir(shelf)
    assert len(load("hf:parquet").ids()) == 5


def test_files_keep_their_names(shelf):
    assert load(f"hf:{shelf}/folder").ids("val") == (
        "validation/cat/00.png",
        "validation/cat/02.png",
        "validation/dog/01.png",
    )
    assert load(f"hf:{shelf}/saved").ids("val") == ("val/0", "val/1", "val/2")


def test_nothing_is_decoded_for_labels(tmp_path):
    broken = rows(4).map(lambda _: {"image": {"bytes": b"no image", "path": None}}, features=rows(4).features)
    source = load(f"hf:{parquet(tmp_path / 'x', train=broken)}")
    assert source.labels().tolist() == [0, 1, 0, 1]
    with pytest.raises(DataError, match=r"4 of the images(?s:.)*train/0: not an image"):
        source.read()


def test_columns_by_type_name_and_option(tmp_path):
    fine = ([1, 1, 0, 0], datasets.ClassLabel(names=["x", "y"]))
    path = parquet(tmp_path / "two", train=rows(4, fine_label=fine))
    with pytest.raises(
        DataError,
        match=r"2 columns may be the labels: label, fine_label(?s:.)*image: Image(?s:.)*fine_label: ClassLabel of 2 ",
    ):
        load(f"hf:{path}")
    assert load(f"hf:{path}?label=fine_label").labels().tolist() == [1, 1, 0, 0]
    with pytest.raises(ConfigError, match=r"no column 'coarse'(?s:.)*fine_label"):
        load(f"hf:{path}?label=coarse")
    with pytest.raises(DataError, match="'label' holds no images, but ClassLabel"):
        load(f"hf:{path}?label=label&image=label")
    mask = ([{"bytes": encoded(noise(5, 6)), "path": None}] * 4, datasets.Image())
    with pytest.raises(DataError, match="2 columns may be the images: image, mask"):
        load(f"hf:{parquet(tmp_path / 'mask', train=rows(4, mask=mask))}")
    several = ([[0], [1], [0, 1], []], datasets.Sequence(datasets.Value("int64")))
    path = parquet(tmp_path / "lists", train=rows(4, tags=several))
    with pytest.raises(DataError, match="'tags' holds no single label"):
        load(f"hf:{path}?label=tags")
    texts = parquet(tmp_path / "texts", train=rows(4, names=(), labels=["b", "a", "b", "a"]))
    assert load(f"hf:{texts}").class_names == ("a", "b")
    (tmp_path / "names.json").write_text(json.dumps(["zebra", "ape"]))
    numbers = parquet(tmp_path / "numbers", train=rows(4, names=()))
    assert load(f"hf:{numbers}?names={tmp_path}/names.json").class_names == ("zebra", "ape")


def test_plain_bytes_without_the_library_s_types(tmp_path):
    import pyarrow
    import pyarrow.parquet

    (tmp_path / "x").mkdir()
    table = pyarrow.table({"img": [encoded(noise(5, 6, 3, seed=i)) for i in range(4)], "class": ["a", "b", "a", "b"]})
    pyarrow.parquet.write_table(table, tmp_path / "x" / "train.parquet")
    source = load(f"hf:{tmp_path}/x")
    assert np.array_equal(source.read().images[3], noise(5, 6, 3, seed=3))


def test_unlabelled_splits(tmp_path):
    path = parquet(tmp_path / "x", train=rows(4), test=rows(3, labels=[-1, -1, -1]))
    source = load(f"hf:{path}")
    assert source.splits == ("train",)
    assert any("test, whose 3 images have no label" in note for note in source.warnings)
    path = parquet(tmp_path / "y", train=rows(4, labels=[0, 1, -1, None]))
    with pytest.raises(DataError, match=r"2 images have no label(?s:.)*train/2(?s:.)*train/3"):
        load(f"hf:{path}")


def test_splits_by_name():
    pick = lambda names, **asked: which_splits(names, asked, "x")[0]  # noqa: E731
    assert pick(["test", "train", "dev"]) == {"train": "train", "val": "dev", "test": "test"}
    assert pick(["full"]) == {"train": "full"}
    assert pick(["a", "b"], train="a", test="b") == {"train": "a", "test": "b"}
    assert pick(["train", "valid", "val"], val="val") == {"train": "train", "val": "val"}
    assert which_splits(["train", "extra"], {}, "x")[1] == ("left out of x: the split extra",)
    with pytest.raises(DataError, match="valid and val may both be the val split"):
        pick(["train", "valid", "val"])
    with pytest.raises(DataError, match="no training split; it has: a, b"):
        pick(["a", "b"])
    with pytest.raises(ConfigError, match="no such split: test=c"):
        pick(["train", "b"], test="c")


def test_paths_outside_the_set_are_not_followed(tmp_path):
    secret = write(tmp_path / "secret.png", noise(5, 6, 3))
    (tmp_path / "x").mkdir()
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(
        pyarrow.table({"image": [{"bytes": None, "path": str(secret)}] * 4, "label": [0, 1, 0, 1]}),
        tmp_path / "x" / "train.parquet",
    )
    with pytest.raises(DataError, match=r"4 images lie outside the data set(?s:.)*secret\.png"):
        load(f"hf:{tmp_path}/x")
    with pytest.raises(DataError, match=r"secret\.png' lies outside"):
        load(f"hf:{tmp_path}/x?streaming=1").read()


def test_streams_follow_only_their_own_repository(monkeypatch):
    from imbdiff.data.hub import streamed as hub_stream

    wanted = hub.Wanted("hf:o/n", None, "o/n", None, None, None, None, None, {})
    opened = []

    class Opened:
        def __init__(self, path, mode):
            opened.append(path)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def read(self):
            return b"bytes"

    monkeypatch.setattr("datasets.utils.file_utils.xopen", Opened)
    good = ["hf://datasets/o/n@abc/cat/1.jpg", "zip://cat/1.jpg::hf://datasets/o/n@abc/all.zip"]
    for path in good:
        assert hub_stream._bytes({"bytes": None, "path": path}, wanted) == b"bytes"
    bad = ["/etc/passwd", "hf://datasets/o/other@x/1.jpg", "file:///etc/passwd", "zip://a::/etc/x.zip"]
    bad += ["https://host/x", "file://x::hf://datasets/o/n@a/b", "zip://x::file://y::hf://datasets/o/n@a/b"]
    for path in bad:
        with pytest.raises(hub.UnusableImageError, match="outside the data set"):
            hub_stream._bytes({"bytes": None, "path": path}, wanted)
    assert opened == good


def test_no_network(monkeypatch):
    with pytest.raises(DataError, match=r"hub cannot be reached(?s:.)*hf:FOLDER"):
        load("hf:uoft-cs/cifar100")
    with pytest.raises(DataError, match="hub cannot be reached"):
        load("hf:uoft-cs/cifar100?streaming=1")
    # what the library has in its cache it finds by itself
    (datasets.config.HF_DATASETS_CACHE / "uoft-cs___cifar100" / "x").mkdir(parents=True)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: {"train": rows(4)})
    assert load("hf:uoft-cs/cifar100").labels().tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("GatedRepoError", "is gated"),
        ("RepositoryNotFoundError", "no data set 'o/n'"),
        ("RevisionNotFoundError", "no revision 'v9'"),
    ],
)
def test_what_the_hub_answers(monkeypatch, kind, words):
    import huggingface_hub
    from huggingface_hub import errors

    def answer(*_, **__):
        raise getattr(errors, kind).__new__(getattr(errors, kind))

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", answer)
    with pytest.raises(DataError, match=words):
        load("hf:o/n?revision=v9")


def test_what_is_asked_of_the_hub(monkeypatch):
    """Config and revision go through; nobody's code is run."""
    import huggingface_hub

    asked = []
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *_, **more: asked.append(more))
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **more: asked.append((a, more)) or {"train": rows(4)})
    load("hf:o/n?config=small&revision=v1")
    assert asked[0]["revision"] == "v1"
    assert asked[0]["timeout"] <= 30
    assert asked[1] == (("o/n",), {"name": "small", "revision": "v1", "streaming": False})


@pytest.mark.parametrize("text", ["hf:/no/where", "hf:a/b/c", "hf:", "hf:../x"])
def test_neither_folder_nor_id(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        load(text)


def test_folders_that_hold_nothing_usable(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="cannot be loaded"):
        load(f"hf:{tmp_path}/empty")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "train.parquet").write_bytes(b"PAR1 is not enough")
    with pytest.raises(DataError, match="cannot be loaded"):
        load(f"hf:{tmp_path}/bad")
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "state.json").write_text("{")
    with pytest.raises(DataError, match="cannot be loaded"):
        load(f"hf:{tmp_path}/saved")
    path = write(tmp_path / "x.png", noise(4, 4))
    with pytest.raises(DataError, match="is a file"):
        load(f"hf:{path}")
    with pytest.raises(ConfigError, match="unknown option colour"):
        load(f"hf:{tmp_path}/empty?colour=1")


def test_streams_go_on_where_the_cache_ends(shelf, tmp_path, monkeypatch):
    from imbdiff.data import cache
    from imbdiff.data.hub import streamed as hub_stream

    monkeypatch.setattr(cache, "CHUNK_BYTES", 2 * 4 * 4 * 3)
    text = f"hf:{shelf}/parquet?streaming=1"
    load(text).read_all(size=4, cache=tmp_path, splits=("train",))
    (made,) = tmp_path.iterdir()
    whole = (made / "images.u8").read_bytes()
    lines = (made / "journal.jsonl").read_text().splitlines(keepends=True)
    (made / "journal.jsonl").write_text(lines[0] + lines[2])
    starts = []
    real = hub_stream._Opened.rows
    monkeypatch.setattr(
        hub_stream._Opened, "rows", lambda self, split, start=0: starts.append(start) or real(self, split, start)
    )
    load(text).read_all(size=4, cache=tmp_path, splits=("train",))
    assert starts == [2]
    assert (made / "images.u8").read_bytes() == whole
    monkeypatch.setattr(hub, "load_sets", lambda *_, **__: pytest.fail("opened again"))
    monkeypatch.setattr(hub_stream, "load_sets", lambda *_, **__: pytest.fail("opened again"))
    load(text).read_all(size=4, cache=tmp_path, splits=("train",))  # all is there: the set is not even opened


def test_the_extra_is_named(monkeypatch, shelf):
    import sys

    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"datasets is not installed(?s:.)*imbalanced-diffusion\[hf\]"):
        load(f"hf:{shelf}/parquet")


def test_grey_and_palette(tmp_path):
    images = [Image.fromarray(noise(5, 6, seed=i)).convert("LP"[i % 2]) for i in range(4)]
    cells = [{"bytes": encoded(image), "path": None} for image in images]
    table = rows(4).map(lambda _, i: {"image": cells[i]}, with_indices=True, features=rows(4).features)
    source = load(f"hf:{parquet(tmp_path / 'x', train=table)}")
    assert source.survey().modes == {"L": 2, "P": 2}
    assert source.read().images.shape[-1] in (1, 3)


@pytest.mark.parametrize("path", ["sub", "a\0b", "n" * 5000, "loop"])
def test_paths_of_a_stream_that_name_no_file(tmp_path, path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    wanted = hub.Wanted("hf:x", tmp_path, "", None, None, None, None, None, {})
    with pytest.raises(UnusableImageError):
        streamed._bytes({"bytes": None, "path": str(tmp_path / path)}, wanted)


@pytest.mark.parametrize(("error", "kind"), [(IsADirectoryError, UnusableImageError), (TimeoutError, DataError)])
def test_the_network_is_no_fault_of_an_image(monkeypatch, error, kind):
    import datasets.utils.file_utils

    def failing(*_):
        raise error("no")

    monkeypatch.setattr(datasets.utils.file_utils, "xopen", failing)
    wanted = hub.Wanted("hf:x", None, "o/n", None, None, None, None, None, {})
    with pytest.raises(kind):
        streamed._bytes({"bytes": None, "path": "hf://datasets/o/n@main/a.png"}, wanted)


def test_class_names_that_are_no_text():
    features = rows(2).features.copy()
    features["label"] = type("ClassLabel", (), {"names": ["a", "\ud800"]})()
    wanted = hub.Wanted("hf:x", None, "o/n", None, None, None, None, None, {})
    with pytest.raises(DataError, match=r"name 1: .*not valid text"):
        hub.columns_of(features, wanted)


def test_files_of_two_splits_with_equal_paths(tmp_path, monkeypatch):
    """Splits of the hub may lie below folders of their own in the library's cache."""
    tables = {}
    for k, split in enumerate(("train", "test")):
        paths = [write(tmp_path / split / f"{i}.png", noise(5, 6, 3, seed=10 * k + i)) for i in range(2)]
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
        tables[split] = datasets.Dataset.from_dict({"image": [str(p) for p in paths], "label": [0, 1]}, features)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr(stored, "load_sets", lambda _: tables)
    source = stored.HubSource(hub.Wanted("hf:o/n", None, "o/n", None, None, None, None, None, {}))
    assert source.ids() == ("0.png", "1.png")
    assert source.ids("test") == ("test/0.png", "test/1.png")
    assert np.array_equal(source.read("test").images[1], noise(5, 6, 3, seed=11))
