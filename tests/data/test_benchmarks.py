"""Benchmarks by name: splits and groups in numbers of the literature, and layouts on look-alikes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from imbdiff.config import override
from imbdiff.data.benchmarks import BENCHMARKS, shots, thirds
from imbdiff.data.profiles import long_tail
from imbdiff.data.sources import NAMES, load
from imbdiff.data.splits import prepare
from imbdiff.data.stats import ClassStats
from imbdiff.pipeline.catalogue import as_text
from imbdiff.pipeline.folder import RunFolder
from imbdiff.pipeline.plan import against_balanced
from imbdiff.pipeline.run import Run
from imbdiff.pipeline.training import prepare_data, symmetry_of
from imbdiff.presets import preset
from imbdiff.runtime.errors import ConfigError, DataError
from tests.data.making import noise, write
from tests.data.test_cifar import cifar

WORDNET = ["n01443537", "n01629819", "n02012849", "n03126707"]


def stats(counts: list[int] | tuple[int, ...]) -> ClassStats:
    return ClassStats(tuple(f"c{k}" for k in range(len(counts))), tuple(counts))


def sizes(rule, counts) -> list[int]:
    return np.bincount(rule(stats(counts)).of_class, minlength=3).tolist()


def picture(path: Path, seed: int) -> None:
    write(path, noise(8, 8, 3, seed=seed))


def tree(root: Path, counts: dict[str, int], ending: str = "JPEG", seed: int = 0) -> Path:
    """{folder: images}; files are called by folder and number, so that 10 sorts before 2."""
    for c, (folder, n) in enumerate(counts.items()):
        for i in range(n):
            picture(root / folder / f"{Path(folder).name}_{i}.{ending}", seed=1000 * (c + seed) + i)
    return root


# -- numbers of the literature


@pytest.mark.parametrize(
    ("name", "factor", "total"),
    [
        *(("cifar10-lt", f, n) for f, n in ((10, 20431), (50, 13996), (100, 12406), (200, 11203), (1000, 9324))),
        *(("cifar100-lt", f, n) for f, n in ((10, 19573), (50, 12608), (100, 10847), (200, 9502))),
        *(("tiny-imagenet-lt", f, n) for f, n in ((10, 39072), (50, 25082), (100, 21549), (200, 18836))),
    ],
)
def test_totals_as_published(name, factor, total):
    row = BENCHMARKS[name]
    labels = np.repeat(np.arange(row.classes), row.images["train"] // row.classes)
    own = row.defaults
    kept = long_tail(labels, imbalance_factor=factor, profile=own.profile, protocol=own.protocol, order=own.order)
    assert len(kept) == total
    assert own.imbalance_factor == 100
    assert own.n_max is None


def test_groups_as_published():
    def kept(name: str) -> list[int]:
        row = BENCHMARKS[name]
        labels = np.repeat(np.arange(row.classes), row.images["train"] // row.classes)
        return np.bincount(labels[long_tail(labels, imbalance_factor=100, protocol="cifar-lt")]).tolist()

    def groups(name: str, counts: list[int]) -> tuple[list[int], str]:
        made = BENCHMARKS[name].defaults.groups(stats(counts))
        return np.bincount(made.of_class, minlength=3).tolist(), made.rule

    assert groups("cifar10-lt", kept("cifar10-lt"))[0] == [3, 3, 4]
    assert groups("cifar100-lt", kept("cifar100-lt"))[0] == [35, 35, 30]
    assert groups("tiny-imagenet-lt", kept("tiny-imagenet-lt"))[0] == [70, 70, 60]
    # as many classes at and next to the thresholds as make the published numbers, open (131, 163, 71) and closed
    # (132, 156, 77), of Places-LT
    places = [4980] * 131 + [100] + [50] * 156 + [20] * 6 + [5] * 71
    found, rule = groups("places-lt", places)
    assert found == [131, 163, 71]
    assert "> 100" in rule
    assert "< 20" in rule
    assert groups("imagenet-lt", [101] * 385 + [100, 20] + [60] * 477 + [19] * 136)[0] == [385, 479, 136]
    assert groups("inaturalist2018", [101, 100, 20, 19])[0] == [1, 2, 1]


def test_thirds():
    assert thirds(stats(range(10, 0, -1))).of_class == (0, 0, 0, 1, 1, 1, 2, 2, 2, 2)
    of_class = thirds(stats([1] * 100)).of_class
    assert (of_class[32], of_class[33], of_class[65], of_class[66]) == (0, 1, 1, 2)
    # by size, not by name: other factors leave no class below 20
    assert sizes(shots, [500, 400, 300, 200, 150, 50]) == [2, 2, 2]
    assert sizes(shots, [500, 400, 300, 200, 150, 10, 50]) == [5, 1, 1]


def test_the_table_is_complete_and_listed():
    assert all(NAMES[name] == "benchmarks" for name in BENCHMARKS)
    text = as_text()
    assert all(f"  {name} " in text for name in BENCHMARKS)


# -- names, options, errors


def test_where_the_files_are_looked_for(tmp_path, monkeypatch):
    monkeypatch.delenv("IMBDIFF_DATASETS", raising=False)
    with pytest.raises(ConfigError, match=r"no folder with its files.*\n.*root=FOLDER.*IMBDIFF_DATASETS.*Toronto"):
        load("cifar10-lt")
    cifar(tmp_path, 10, 40)
    monkeypatch.setenv("IMBDIFF_DATASETS", str(tmp_path))
    found = load("cifar10-lt")
    assert found.name == f"cifar10-lt?root={tmp_path}"
    assert load(found.name).ids() == found.ids()  # from anywhere, whatever the variable says
    monkeypatch.chdir(tmp_path.parent)
    monkeypatch.setenv("IMBDIFF_DATASETS", tmp_path.name)
    assert load("cifar10-lt").name == f"cifar10-lt?root={tmp_path}"
    monkeypatch.setenv("IMBDIFF_DATASETS", str(tmp_path))
    assert load(f"cifar10-lt?root={tmp_path}").name == f"cifar10-lt?root={tmp_path}"
    with pytest.raises(DataError, match=r"not found below .*elsewhere"):
        load(f"cifar10-lt?root={tmp_path / 'elsewhere'}")
    with pytest.raises(DataError) as caught:
        load("cifar100-lt")
    for part in (str(tmp_path), "cifar-100-python/ with train, test, meta"):
        assert part in str(caught.value)


def test_a_folder_of_a_benchmarks_name_is_pointed_at(tmp_path, monkeypatch):
    monkeypatch.delenv("IMBDIFF_DATASETS", raising=False)
    tree(tmp_path, {"cifar10/a": 4, "cifar10/b": 4}, "png")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"the folder of that name is \./cifar10"):
        load("cifar10")
    assert load("./cifar10").class_names == ("a", "b")


@pytest.mark.parametrize("name", sorted(BENCHMARKS))
def test_an_empty_folder_says_what_is_missing_and_where_one_gets_it(tmp_path, name):
    with pytest.raises(DataError) as caught:
        load(f"{name}?root={tmp_path}")
    assert f"{name} is not found below {tmp_path}; looked for:" in str(caught.value)
    assert BENCHMARKS[name].get in str(caught.value)


def test_options(tmp_path):
    cifar(tmp_path, 10, 100)
    with pytest.raises(ConfigError, match="unknown option seed"):
        load(f"cifar10-lt?seed=1&root={tmp_path}")
    assert load(f"cifar10?root={tmp_path}").defaults.imbalance_factor is None
    assert load(f"cifar10-lt?root={tmp_path}", flippable=False).flippable is False


# -- splitting by name


@pytest.fixture
def cifar100(tmp_path: Path) -> str:
    cifar(tmp_path, 100, 2000)
    return f"cifar100-lt?root={tmp_path}"


def test_the_preset_goes_with_the_name(cifar100):
    config = override(preset("cifar-lt"), {"data": {"imbalance_factor": 20}})
    prepared = prepare_data(cifar100, config.data)
    assert prepared.stats.counts == tuple(int(20 * 0.05 ** (k / 99)) for k in range(100))
    assert prepared.manifest["long_tail"]["protocol"] == "cifar-lt"
    assert len(prepared.pool) == 2000
    assert len(prepared.test) == 200
    assert symmetry_of(prepared, config) == symmetry_of(prepared, preset("tiny")) == "mirror"
    assert any("the imbalance factor is 20, and not 100" in w for w in prepared.warnings)
    assert against_balanced(prepared)


def test_the_lists_of_the_literature(cifar100):
    prepared = prepare(cifar100, imbalance_factor=10)
    labels = load(cifar100).labels()
    state, kept = np.random.RandomState(0), []
    for k in range(100):
        index = np.flatnonzero(labels == k)
        state.shuffle(index)
        kept += [f"train/{i}" for i in index[: int(20 * 0.1 ** (k / 99.0))]]
    assert list(prepared.train.ids) == kept


def test_only_benchmarks_are_measured_against_a_balanced_set():
    assert not against_balanced(prepare((noise(40, 8, 8), np.arange(40) % 2), imbalance_factor=4))


# -- layouts


@pytest.mark.parametrize("form", ["as distributed", "val in folders", "flat train"])
def test_tiny_imagenet(tmp_path, form):
    root = tmp_path / "tiny-imagenet-200"
    inner = "" if form == "flat train" else "/images"
    tree(root, {f"train/{w}{inner}": 12 for w in reversed(WORDNET)})
    (root / "wnids.txt").write_text("\n".join(reversed(WORDNET)))
    (root / "words.txt").write_text(
        "n01443537\tgoldfish, Carassius auratus\nn02012849\tcrane\nn03126707\tcrane\nn09\tx\n"
    )
    if form == "val in folders":
        tree(root, {f"val/{w}": 2 for w in WORDNET}, seed=50)
    else:
        rows = [(f"val_{i}.JPEG", WORDNET[i % 4]) for i in range(8)]
        for i, (file, _) in enumerate(rows):
            picture(root / "val" / "images" / file, 9000 + i)
        (root / "val" / "val_annotations.txt").write_text("".join(f"{f}\t{w}\t0\t32\t44\t62\n" for f, w in rows))
    source = load(f"tiny-imagenet-lt?root={tmp_path}")
    assert source.class_names == ("goldfish", "n01629819", "crane (n02012849)", "crane (n03126707)")
    assert source.splits == ("train", "test")
    files = [name.rsplit("_", 1)[1] for name in source.ids()[:4]]
    assert files == ["0.JPEG", "1.JPEG", "10.JPEG", "11.JPEG"]  # as ImageFolder sorts
    for split in source.splits:
        for name, label in zip(source.ids(split), source.labels(split), strict=True):
            if "val/images" not in name:
                assert WORDNET[label] in name
    expected = [0, 1, 2, 3] * 2 if form != "val in folders" else [0, 0, 1, 1, 2, 2, 3, 3]
    order = [int(n[len("val/images/val_") : -5]) for n in source.ids("test")] if "val in" not in form else range(8)
    assert [source.labels("test")[list(order).index(i)] for i in range(8)] == expected
    prepared = prepare(source, imbalance_factor=4)
    assert prepared.stats.counts == (12, 7, 4, 3)
    assert any("its own test images have no labels" in w for w in prepared.warnings)


def test_tiny_imagenet_next_to_another_set(tmp_path):
    tree(tmp_path, {"train/cat": 1, "train/dog": 1})
    tree(tmp_path / "tiny-imagenet-200", {f"{split}/{w}": 1 for split in ("train", "val") for w in WORDNET})
    assert load(f"tiny-imagenet-lt?root={tmp_path}").class_names == tuple(WORDNET)


def test_tiny_imagenet_that_is_not_whole(tmp_path):
    root = tree(tmp_path, {f"train/{w}/images": 2 for w in WORDNET})
    with pytest.raises(DataError, match="there is none"):
        load(f"tiny-imagenet-lt?root={tmp_path}")
    picture(root / "val" / "images" / "val_0.JPEG", 1)
    for line in ("", "val_0.JPEG\tn99999999\n", "../images/val_0.JPEG\tn01443537\n"):
        (root / "val" / "val_annotations.txt").write_text(line)
        with pytest.raises(DataError, match=r"without a class of train:\n  val/images/val_0\.JPEG"):
            load(f"tiny-imagenet-lt?root={tmp_path}")


def imagenet_lt(root: Path, lists: Path, flat: bool) -> None:
    tree(root, {f"train/{w}": n for w, n in zip(WORDNET, (8, 6, 5, 4), strict=True)})
    lines: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for k, w in enumerate(WORDNET):
        files = sorted(p.name for p in (root / "train" / w).iterdir())
        lines["val"].append(f"train/{w}/{files[-1]} {k}")
        lines["train"] += [f"train/{w}/{file} {k}" for file in files[:-1]]
        name = f"ILSVRC2012_val_{7 * k:08d}.JPEG"
        picture(root / "val" / (name if flat else f"{w}/{name}"), 500 + k)
        lines["test"].append(f"val/{w}/{name} {k}")
    lists.mkdir(parents=True, exist_ok=True)
    for split, rows in lines.items():
        (lists / f"ImageNet_LT_{split}.txt").write_text("\n".join(rows) + "\n")


@pytest.mark.parametrize("flat", [False, True])
def test_imagenet_lt(tmp_path, flat):
    root = tmp_path / "imagenet"
    imagenet_lt(root, tmp_path / "ImageNet_LT", flat)
    source = load(f"imagenet-lt?root={tmp_path}")
    assert source.class_names == tuple(WORDNET)
    assert source.ids("test")[1] == f"val/{WORDNET[1]}/ILSVRC2012_val_00000007.JPEG"
    prepared = prepare(source)
    assert prepared.stats.counts == (7, 5, 4, 3)
    assert prepared.val.labels.tolist() == prepared.test.labels.tolist() == [0, 1, 2, 3]
    assert prepared.manifest["val_from"] == prepared.manifest["test_from"] == "given"
    assert prepared.manifest["long_tail"] is prepared.pool is None
    assert np.array_equal(prepared.test.images[2], source.read("test").images[2])


def test_own_lists(tmp_path):
    imagenet_lt(tmp_path / "images", tmp_path / "my lists", flat=False)
    with pytest.raises(DataError, match=r"looked for:\n  ImageNet_LT_train\.txt, ImageNet_LT_val\.txt"):
        load(f"imagenet-lt?root={tmp_path / 'images'}")
    source = load(f"imagenet-lt?root={tmp_path / 'images'}&list={tmp_path / 'my lists'}")
    assert len(source.labels()) == 19
    with pytest.raises(DataError, match=r"looked for:\n  train/n01443537/.*\(train\)"):
        load(f"imagenet-lt?root={tmp_path}&list={tmp_path / 'my lists'}")


@pytest.mark.parametrize(
    ("split", "line", "why"),
    [
        ("train", "train/n01443537/x.JPEG", "line 20: train/n01443537/x.JPEG"),
        ("train", "../../secret.JPEG 0", "lead out of the folder:\n  '../../secret.JPEG'"),
        ("test", "val/n01443537/ILSVRC2012_val_00000000.JPEG", "line 5"),
        ("train", "train/n01443537/n01443537_7.JPEG 5", r"no image of these classes:\n  4"),
        ("train", "train/n01443537/n01443537_0.JPEG 0", "line 20: '.*_0.JPEG' is in line 1 too"),
        ("train", "train/n01443537/n01443537_0.JPEG 1", "line 20: '.*_0.JPEG' is in line 1 too"),
        ("train", "train/n01443537/n01443537_7.JPEG fish", "line 20: 'fish' is no class number"),
        ("test", "train/n01443537/n01443537_7.JPEG 4", r"without a name among the 4 class names:\n  4"),
    ],
)
def test_lists_that_are_wrong(tmp_path, split, line, why):
    imagenet_lt(tmp_path, tmp_path, flat=False)
    path = tmp_path / f"ImageNet_LT_{split}.txt"
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(DataError, match=why):
        load(f"imagenet-lt?root={tmp_path}")


@pytest.mark.parametrize("folder", ["data_256", "data_256_standard"])
def test_places_lt(tmp_path, folder):
    classes = {"a/airfield": 4, "a/apartment_building/outdoor": 3, "b/bar": 2}
    tree(tmp_path / folder, classes, "jpg")
    tree(tmp_path, {"val_256": 3}, "jpg", seed=60)
    for split in ("train", "val", "test"):
        rows = []
        for k, (name, n) in enumerate(classes.items()):
            files = [f"data_256/{name}/{Path(name).name}_{i}.jpg" for i in range(n)]
            rows += {"train": files[:-1], "val": files[-1:], "test": [f"val_256/val_256_{k}.jpg"]}[split]
            rows = [row if row.count(" ") else f"{row} {k}" for row in rows]
        place = tmp_path / "Places_LT_v2"
        place.mkdir(exist_ok=True)
        (place / f"Places_LT_{split}.txt").write_text("\n".join(rows))
    source = load(f"places-lt?root={tmp_path}")
    assert source.class_names == ("airfield", "apartment_building/outdoor", "bar")
    assert source.ids()[0] == "data_256/a/airfield/airfield_0.jpg"
    assert {split: source.labels(split).tolist() for split in source.splits} == {
        "train": [0, 0, 0, 1, 1, 2], "val": [0, 1, 2], "test": [0, 1, 2],
    }  # fmt: skip
    assert source.read("val").images.shape == (3, 8, 8, 3)


def test_inaturalist(tmp_path):
    counts = {"train_val2018/Animalia/0": 5, "train_val2018/Plantae/1": 3}
    tree(tmp_path, counts, "jpg")
    for split, rows in (("train", slice(1, None)), ("val", slice(1))):
        names = [f"{folder}/{k}_{i}.jpg {k}\n" for k, (folder, n) in enumerate(counts.items()) for i in range(n)[rows]]
        (tmp_path / f"iNaturalist18_{split}.txt").write_text("".join(names))
    source = load(f"inaturalist2018?root={tmp_path}")
    assert source.class_names == ("Animalia/0", "Plantae/1")
    assert source.splits == ("train", "test")
    assert source.labels().tolist() == [0] * 4 + [1] * 2
    assert source.ids("test") == ("train_val2018/Animalia/0/0_0.jpg", "train_val2018/Plantae/1/1_0.jpg")
    assert any("val_fraction 0" in note for note in source.defaults.notes)


def test_a_run_keeps_the_root_that_the_variable_named(tmp_path, monkeypatch):
    cifar(tmp_path / "sets", 10, 40)
    monkeypatch.setenv("IMBDIFF_DATASETS", str(tmp_path / "sets"))
    run = Run(
        RunFolder(tmp_path / "run"), "cifar10-lt", override(preset("tiny"), {"data": {"imbalance_factor": 2}}), True
    )
    run._prepare()
    assert run.source == f"cifar10-lt?root={tmp_path / 'sets'}"
    monkeypatch.delenv("IMBDIFF_DATASETS")
    assert len(load(run.source).labels()) > 0
