import functools
import http.server
import json
import threading

import numpy as np
import pytest

from imbdiff.data.datasets_source import expanded, which_splits
from imbdiff.data.sources import load
from imbdiff.runtime.errors import ConfigError, DataError
from tests.data.making import encoded, noise, tarred, write

datasets = pytest.importorskip("datasets")
COUNTS = {"train": 5, "validation": 3, "test": 2}


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch, tmp_path_factory):
    import huggingface_hub

    datasets.disable_progress_bars()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "hf")

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


@pytest.mark.parametrize("form", ["parquet", "saved", "folder"])
def test_forms(shelf, form, tmp_path):
    source = load(f"hf:{shelf}/{form}")
    assert source.kind == "hf"
    assert source.class_names == ("cat", "dog")
    assert {split: len(source.ids(split)) for split in source.splits} == {"train": 5, "val": 3, "test": 2}
    seeds = [0, 2, 4, 1, 3] if "folder" in form else [0, 1, 2, 3, 4]
    assert source.labels().tolist() == [seed % 2 for seed in seeds]
    assert source.survey().sizes == {(5, 6): 10}
    for store in ("off", tmp_path / "kept"):
        images, _ = source.read_all(cache=store)
        assert np.array_equal(np.asarray(images["train"].images), [noise(5, 6, 3, seed=seed) for seed in seeds])
        assert np.array_equal(images["val"].images[1], noise(5, 6, 3, seed=12 if "folder" in form else 11))
    assert load(f"hf:{shelf}/{form}").ids() == source.ids()


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
        match=r"2 columns may be the labels: label, fine_label(?s:.)*image: Image(?s:.)*fine_label: ClassLabel",
    ):
        load(f"hf:{path}")
    assert load(f"hf:{path}?label=fine_label").labels().tolist() == [1, 1, 0, 0]
    with pytest.raises(DataError, match=r"column 'coarse' is not there(?s:.)*fine_label"):
        load(f"hf:{path}?label=coarse")
    with pytest.raises(DataError, match="'label' is not there or holds no images"):
        load(f"hf:{path}?label=label&image=label")
    mask = ([{"bytes": encoded(noise(5, 6)), "path": None}] * 4, datasets.Image())
    found = load(f"hf:{parquet(tmp_path / 'mask', train=rows(4, mask=mask))}")
    assert np.array_equal(found.read().images[3], noise(5, 6, 3, seed=3))
    assert any("not used: 'mask'" in note for note in found.warnings)
    with pytest.raises(DataError, match="2 columns may be the images: image, other"):
        load(f"hf:{parquet(tmp_path / 'other', train=rows(4, other=mask))}")
    several = ([[0], [1], [0, 1], []], datasets.Sequence(datasets.Value("int64")))
    path = parquet(tmp_path / "lists", train=rows(4, tags=several))
    with pytest.raises(DataError, match="'tags' is not there or holds no labels"):
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
    assert which_splits(["train", "extra"], {}, "x")[1] == ["left out of x: the splits extra"]
    with pytest.raises(DataError, match="valid and val may both be the val split"):
        pick(["train", "valid", "val"])
    with pytest.raises(DataError, match=r"no training split(.|\n)*it has: a, b"):
        pick(["a", "b"])
    with pytest.raises(DataError, match="no such splits"):
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
    with pytest.raises(DataError, match=r"leads out of the data set: .*secret\.png"):
        load(f"hf:{tmp_path}/x").read()


def test_no_network(monkeypatch, tmp_path):
    with pytest.raises(DataError, match=r"cannot be loaded: ConnectionError(?s:.)*hf:FOLDER"):
        load("hf:uoft-cs/cifar100")
    # what the library has in its cache it finds by itself
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    (tmp_path / "uoft-cs___cifar100" / "x").mkdir(parents=True)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: {"train": rows(4)})
    assert load("hf:uoft-cs/cifar100").labels().tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize("kind", ["GatedRepoError", "RepositoryNotFoundError", "RevisionNotFoundError"])
def test_what_the_hub_refuses(monkeypatch, kind):
    import huggingface_hub
    from huggingface_hub import errors

    def answer(*_, **__):
        raise getattr(errors, kind).__new__(getattr(errors, kind))

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", answer)
    with pytest.raises(DataError, match=kind):
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
    assert asked[1] == (("o/n",), {"name": "small", "revision": "v1"})


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
    with pytest.raises(DataError, match="no such folder"):
        load(f"hf:{path}")
    with pytest.raises(ConfigError, match="unknown option colour"):
        load(f"hf:{tmp_path}/empty?colour=1")


def test_the_extra_is_named(monkeypatch, shelf):
    import sys

    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"datasets is not installed(?s:.)*imbalanced-diffusion\[hf\]"):
        load(f"hf:{shelf}/parquet")


def shard(path, start, n, label=".cls"):
    """Noise of the seeds from `start`, with labels 0, 1, 0, ..."""
    items = []
    for i in range(start, start + n):
        text = json.dumps({"label": "ab"[i % 2], "age": i}) if label == ".json" else str(i % 2)
        items += [(f"{i:04d}.png", encoded(noise(5, 6, 3, seed=i))), (f"{i:04d}{label}", text.encode())]
    return tarred(path, items)


def test_shards(tmp_path):
    shard(tmp_path / "s" / "train-00.tar", 0, 4)
    shard(tmp_path / "s" / "train-01.tar", 4, 3)
    shard(tmp_path / "s" / "test-00.tar", 10, 2)
    whole = load(tmp_path / "s")
    named = load(f"{tmp_path}/s/train-{{00..01}}.tar?test={tmp_path}/s/test-*.tar")
    for source in (whole, named):
        assert (source.kind, source.class_names, source.splits) == ("webdataset", ("0", "1"), ("train", "test"))
        assert source.labels().tolist() == [0, 1, 0, 1, 0, 1, 0]
        assert source.ids()[5] == "train/0005.png"
        assert np.array_equal(source.read("test").images, [noise(5, 6, 3, seed=i) for i in (10, 11)])
    with pytest.raises(DataError, match=r"no file is called .*nothing-\*\.tar"):
        load(f"{tmp_path}/s/nothing-*.tar")
    with pytest.raises(DataError, match="cannot be opened"):
        load(f"{tmp_path}/s/train-{{00..09}}.tar")
    (tmp_path / "x.tar.gz").write_bytes(b"x")
    with pytest.raises(DataError, match="is compressed"):
        load(tmp_path / "x.tar.gz")


def test_labels_of_shards_in_json(tmp_path):
    path = shard(tmp_path / "train.tar", 0, 4, ".json")
    assert load(path).class_names == ("a", "b")
    assert load(f"{path}?label=json.age").class_names == ("0", "1", "2", "3")
    with pytest.raises(DataError, match=r"column 'json\.sex' is not there(?s:.)*json\.age"):
        load(f"{path}?label=json.sex")


def test_patterns_of_files(tmp_path):
    assert expanded("https://h/{1..2}/x-{08..10}") == [
        f"https://h/{k}/x-{n}" for k in (1, 2) for n in ("08", "09", "10")
    ]
    with pytest.raises(DataError, match="more than 100,000 files"):
        expanded("x-{000000..999999}.tar")


def test_files_at_an_address(tmp_path):
    """Shards and Parquet files that a server gives, with an error where it does not."""
    shard(tmp_path / "train.tar", 0, 4)
    rows(4).to_parquet(tmp_path / "train.parquet")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    handler.log_message = lambda *_: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        host = f"http://127.0.0.1:{server.server_port}"
        for file in ("train.tar", "train.parquet"):
            assert np.array_equal(load(f"{host}/{file}").read().images[3], noise(5, 6, 3, seed=3))
        with pytest.raises(DataError, match="cannot be loaded"):
            load(f"{host}/other.parquet")
        server.shutdown()
    with pytest.raises(ConfigError, match="password"):
        load("https://me:secret@host/x.tar")


def test_parquet_files(tmp_path):
    path = tmp_path / "train.parquet"
    rows(5).to_parquet(path)
    rows(2, 10).to_parquet(tmp_path / "other.parquet")
    source = load(f"{path}?test={tmp_path}/other.parquet")
    assert (source.kind, source.class_names, source.splits) == ("parquet", ("cat", "dog"), ("train", "test"))
    assert np.array_equal(source.read("test").images[1], noise(5, 6, 3, seed=11))
    rows(2, names=("dog", "cat")).to_parquet(tmp_path / "other.parquet")
    with pytest.raises(DataError, match=r"class names of test and train differ"):
        load(f"{path}?test={tmp_path}/other.parquet")


def test_bombs_are_refused_by_what_the_footer_says(tmp_path, monkeypatch):
    import pyarrow
    import pyarrow.parquet

    from imbdiff.data import datasets_source

    monkeypatch.setattr(datasets_source, "LARGEST", 2**20)
    table = pyarrow.table({"image": [bytes(2**20)] * 4, "label": [0, 1, 0, 1]})
    pyarrow.parquet.write_table(table, tmp_path / "train.parquet", compression="zstd", use_dictionary=False)
    for text in (f"{tmp_path}/train.parquet", f"hf:{tmp_path}"):
        with pytest.raises(DataError, match="decompression bomb"):
            load(text)


@pytest.mark.parametrize("damage", ["cut", "no archive", "no pair"])
def test_damaged_shards(tmp_path, damage):
    path = shard(tmp_path / "train.tar", 0, 4)
    data = path.read_bytes()
    if damage == "no pair":
        tarred(path, [("a.png", encoded(noise(5, 6, 3))), ("b.cls", b"1")])
    else:
        path.write_bytes(data[: len(data) // 4 - 100] if damage == "cut" else b"no archive" * 100)
    with pytest.raises(DataError) as error:
        load(path)
    assert error.value.remedy


@pytest.mark.parametrize("form", ["jsonl", "csv"])
@pytest.mark.parametrize("inside", ["", "train/"])
def test_a_folder_whose_metadata_say_the_labels_names_the_source_that_reads_it(tmp_path, form, inside):
    rows = [(f"{i}.png", "ab"[i % 2]) for i in range(6)]
    for i, (name, _) in enumerate(rows):
        write(tmp_path / "d" / inside / name, noise(8, 8, 3, seed=i))
    if form == "jsonl":
        text = "".join(json.dumps({"file_name": name, "label": label}) + "\n" for name, label in rows)
    else:
        text = "file_name,label\n" + "".join(f"{name},{label}\n" for name, label in rows)
    (tmp_path / "d" / inside / f"metadata.{form}").write_text(text)
    with pytest.raises(DataError) as error:
        load(tmp_path / "d")
    named = next(word for word in error.value.remedy.replace(",", "").split() if word.startswith("hf:"))
    found = load(named)
    assert found.class_names == ("a", "b")
    assert found.labels().tolist() == [0, 1, 0, 1, 0, 1]


@pytest.mark.parametrize("form", ["parquet", "struct", "shards"])
@pytest.mark.parametrize("word", ["_mask", "-thumb", "_64x64"])
def test_by_products_by_the_names_of_files(tmp_path, form, word):
    """Every other row is a mask or the like of the image before it, as it is in a folder that was packed."""
    names = [f"{i // 2:02d}{word * (i % 2)}.png" for i in range(12)]
    cells = [{"bytes": encoded(noise(5, 6, 3, seed=i)), "path": name} for i, name in enumerate(names)]
    labels = [i // 2 % 2 for i in range(12)]
    if form == "shards":
        members = {name: cell["bytes"] for name, cell in zip(names, cells, strict=True)}
        members |= {name.replace(".png", ".cls"): str(k).encode() for name, k in zip(names, labels, strict=True)}
        path = tarred(tmp_path / "a.tar", dict(sorted(members.items())))
    else:
        typed = {} if form == "struct" else {"image": datasets.Image(), "label": datasets.Value("int64")}
        table = datasets.Dataset.from_dict(
            {"image": cells, "label": labels}, features=datasets.Features(typed) if typed else None
        )
        table.to_parquet(path := tmp_path / "a.parquet")
    found, kept = load(path), load(f"{path}?byproducts=keep")
    assert (len(found.ids()), len(kept.ids())) == (6, 12)
    assert any("left out" in note and "byproducts=keep" in note for note in found.warnings)
    assert any("may be masks" in note for note in kept.warnings)
    images = found.read()
    assert np.array_equal(images.images, [noise(5, 6, 3, seed=i) for i in range(0, 12, 2)])
    assert images.labels.tolist() == labels[::2]
