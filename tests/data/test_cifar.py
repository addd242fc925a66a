"""CIFAR as its authors distribute it, made here: nothing is executed, damage is named."""

from __future__ import annotations

import importlib.util
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imbdiff.data.cifar import read_values
from imbdiff.data.profiles import profile_counts
from imbdiff.data.sources import load
from imbdiff.data.splits import prepare
from imbdiff.runtime.errors import DataError
from tests.data.making import noise

NAMES = {10: ["airplane", "auto<b>mobile", "bird", *"cdefgh", "truck"], 100: [f"thing_{k:02d}" for k in range(100)]}


def images(classes: int, n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(n, 3, 32, 32) and labels in shuffled order, every class as often."""
    labels = np.random.default_rng(seed).permutation(np.arange(n) % classes)
    return noise(n, 3, 32, 32, seed=seed), labels


def parts(classes: int, n: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The files of a distribution, without endings: n training images and classes x 2 test images."""
    x, y = images(classes, n)
    test = images(classes, 2 * classes, seed=1)
    if classes == 100:
        return {"train": (x, y), "test": test}
    cut = [slice(i * n // 5, (i + 1) * n // 5) for i in range(5)]
    return {**{f"data_batch_{i + 1}": (x[c], y[c]) for i, c in enumerate(cut)}, "test_batch": test}


def python2(value: object) -> bytes:
    """Opcodes of protocol 2 as Python 2 wrote them: strings are of bytes, labels one by one."""
    if isinstance(value, dict):
        return b"}(" + b"".join(python2(k) + python2(v) for k, v in value.items()) + b"u"
    if isinstance(value, list):
        return b"]q\x01(" + b"".join(python2(v) for v in value) + b"e"
    if isinstance(value, str):
        return b"U" + bytes([len(value)]) + value.encode("latin-1")
    if isinstance(value, np.ndarray):
        kind = b"cnumpy\ndtype\nq\x02U\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        shape = b"".join(b"J" + struct.pack("<i", side) for side in value.shape) + b"\x86"
        return array + b"(K\x01" + shape + kind + b"\x89T" + struct.pack("<i", value.size) + value.tobytes() + b"tb"
    assert isinstance(value, int)
    return b"K" + bytes([value])


def cifar(root: Path, classes: int, n: int, protocol: int = 2) -> Path:
    """protocol 0 stands for Python 2's protocol 2, as distributed."""

    def dump(path: Path, value: dict[str, object]) -> None:
        if protocol == 0:
            path.write_bytes(b"\x80\x02" + python2(value) + b".")
        else:
            path.write_bytes(pickle.dumps({k.encode(): v for k, v in value.items()}, protocol=protocol))

    folder = root / {10: "cifar-10-batches-py", 100: "cifar-100-python"}[classes]
    folder.mkdir(parents=True)
    key = {10: "labels", 100: "fine_labels"}[classes]
    more = {} if classes == 10 else {"coarse_labels": [0] * n}
    for file, (x, y) in parts(classes, n).items():
        dump(folder / file, {"batch_label": file, key: y.tolist(), "data": x.reshape(len(x), -1), **more})
    names = {10: "label_names", 100: "fine_label_names"}[classes]
    dump(folder / {10: "batches.meta", 100: "meta"}[classes], {"num_vis": 7, names: NAMES[classes]})
    return folder


@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize("protocol", [0, 2, 3, 4])
def test_the_images_in_the_official_order(tmp_path, classes, protocol):
    n = 2 * classes
    folder = cifar(tmp_path, classes, n, protocol)
    for root in (tmp_path, folder):
        source = load(f"cifar{classes}?root={root}")
        x, y = images(classes, n)
        assert source.class_names == tuple(NAMES[classes])
        assert (source.kind, source.flippable) == ("benchmark", True)
        assert source.labels("train").tolist() == y.tolist()
        assert source.labels("test").tolist() == images(classes, 2 * classes, seed=1)[1].tolist()
        assert source.ids("train")[:2] == ("train/0", "train/1")
        assert np.array_equal(source.read("train").images, x.transpose(0, 2, 3, 1))
        assert any(f"not cifar{classes} as published" in w for w in source.warnings)


def test_an_array_of_the_other_memory_order_is_read_right(tmp_path):
    x = np.asfortranarray(noise(4, 6))
    (tmp_path / "f").write_bytes(pickle.dumps({"data": x}, protocol=2))
    assert np.array_equal(read_values(tmp_path / "f")["data"], x)


class Trap:
    """What a hostile file would do if it were unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (os.system, (f"touch {self.path}",))


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_nothing_is_executed(tmp_path, protocol):
    folder = cifar(tmp_path, 10, 20, 2)
    hostile = pickle.dumps({"data": Trap(tmp_path / "trapped"), "labels": []}, protocol=protocol)
    (folder / "data_batch_3").write_bytes(hostile)
    with pytest.raises(DataError, match=r"data_batch_3 is damaged: .*which is never called"):
        load(f"cifar10-lt?root={tmp_path}")
    assert not (tmp_path / "trapped").exists()
    pickle.loads(hostile)  # it is a trap indeed
    assert (tmp_path / "trapped").exists()


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ({1, 2}, "set, which is never called"),
        (np.random.default_rng(0), "which is never called"),
        (Path("x"), "PosixPath, which is never called"),
    ],
)
def test_other_values_are_refused(tmp_path, value, why):
    (tmp_path / "f").write_bytes(pickle.dumps({"data": value}, protocol=2))
    with pytest.raises(DataError, match=why):
        read_values(tmp_path / "f")


SAMPLE = pickle.dumps({"data": np.arange(24, dtype=np.uint8).reshape(4, 6), "labels": [1, 2, 3, 300]}, protocol=2)


PLAIN = list | tuple | dict | str | bytes | int | float | np.ndarray | np.dtype


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_damaged_file_gives_an_error_of_ours_or_plain_values(tmp_path_factory, data):
    raw = bytearray(SAMPLE)
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(bytes(raw[: data.draw(st.integers(0, len(raw)))]))
    try:
        found = read_values(path)
    except DataError:
        return
    assert all(v is None or isinstance(v, PLAIN) for v in found.values())


X = noise(4, 3072)


@pytest.mark.parametrize(
    ("file", "value", "why"),
    [
        *(("data_batch_1", {"data": X, "labels": y}, "labels") for y in ([1, 2], [0, 1, 2, -1], [0, 1, 2, "3"], None)),
        ("data_batch_1", {"data": X[:, 1:], "labels": [0] * 4}, "data_batch_1 is damaged: it has no data of shape"),
        ("data_batch_1", {"data": X.astype(object), "labels": [0] * 4}, "no data of shape"),
        ("data_batch_1", {"data": X, "labels": [0, 1, 2, 10]}, "without a name"),
        ("batches.meta", {"label_names": ["a", "a"]}, "class names occur twice"),
        ("batches.meta", {"names": ["a", "b"]}, "does not hold the names"),
    ],
)
def test_damaged_files_are_named(tmp_path, file, value, why):
    (cifar(tmp_path, 10, 20) / file).write_bytes(pickle.dumps(value, protocol=2))
    with pytest.raises(DataError, match=why):
        load(f"cifar10?root={tmp_path}")


def test_a_part_that_is_missing(tmp_path):
    (cifar(tmp_path, 10, 20) / "data_batch_4").unlink()
    with pytest.raises(DataError, match=r"cifar-10-batches-py/ with data_batch_1, (.|\n)*University of Toronto"):
        load(f"cifar10-lt?root={tmp_path}")


def real(name: str) -> dict[str, np.ndarray]:
    folder = os.environ.get("IMBDIFF_DATA")
    if not folder or not (Path(folder) / f"{name}.npz").exists():
        pytest.skip(f"IMBDIFF_DATA does not name a folder with {name}.npz")
    spec = importlib.util.spec_from_file_location("imbdiff_data_load", Path(folder) / "load.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.load(name)


def test_the_real_cifar10_cut_by_name(tmp_path):
    data = real("cifar10")
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    rows = {s: (data[f"x_{s}"].transpose(0, 3, 1, 2).reshape(-1, 3072), data[f"y_{s}"]) for s in ("train", "test")}
    parts = {f"data_batch_{i + 1}": [part[10_000 * i : 10_000 * (i + 1)] for part in rows["train"]] for i in range(5)}
    for file, (x, y) in (parts | {"test_batch": rows["test"]}).items():
        (folder / file).write_bytes(pickle.dumps({"data": np.ascontiguousarray(x), "labels": y.tolist()}, protocol=2))
    (folder / "batches.meta").write_bytes(
        pickle.dumps({"label_names": list(map(str, data["class_names"]))}, protocol=2)
    )
    source = load(f"cifar10-lt?root={tmp_path}")
    assert not source.warnings  # it is as published
    prepared = prepare(source)
    assert prepared.stats.counts == (5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50)
    assert len(prepared.pool) == 50_000
    assert np.array_equal(prepared.test.images, data["x_test"])
    kept = [int(name.removeprefix("train/")) for name in prepared.train.ids]
    assert np.array_equal(prepared.train.images, data["x_train"][kept])


def test_the_ready_made_cifar100_lt_has_our_counts():
    data = real("cifar100lt100")
    assert tuple(np.bincount(data["y_train"])) == profile_counts("exponential", 500, 100, 100)
