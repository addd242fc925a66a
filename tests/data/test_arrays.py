import io
import zipfile

import numpy as np
import pytest

from imbdiff.data.arrays import ArraySource
from imbdiff.data.imageset import ImageSet
from imbdiff.data.sources import load
from imbdiff.runtime.errors import DataError
from tests.data.making import arrays, noise


def save(path, **content):
    np.savez(path, **content)
    return path


def test_digits_are_the_real_ones():
    from sklearn.datasets import load_digits

    source = load("digits")
    truth = load_digits()
    images = source.read()
    assert (source.kind, source.balanced, source.flippable, source.splits) == ("digits", True, False, ("train",))
    assert images.shape == (8, 8, 1)
    assert images.ids[17] == "digits/0017"
    assert np.array_equal(images.labels, truth.target)
    assert np.array_equal(np.round(images.images[..., 0] * (16 / 255)), truth.images)
    assert (images.images.min(), images.images.max()) == (0, 255)


@pytest.mark.parametrize("shape", [(20, 6, 5), (20, 6, 5, 1), (20, 6, 5, 3)])
def test_pairs_of_arrays(shape):
    x = noise(*shape)
    images = load((x, np.arange(20) % 2)).read()
    assert np.array_equal(images.images.reshape(shape), x)
    assert images.class_names == ("0", "1")
    assert images.ids[3] == "train/3"


def test_rgba_arrays_are_put_on_white():
    x = np.zeros((4, 6, 6, 4), np.uint8)
    images = load((x, np.array([0, 1, 0, 1]))).read()
    assert images.shape == (6, 6, 3)
    assert (images.images == 255).all()


def test_string_labels_and_gaps_become_classes():
    x = noise(4, 6, 6)
    source = load((x, np.array(["dog", "cat", "dog", "ant"])))
    assert source.class_names == ("ant", "cat", "dog")
    assert source.labels().tolist() == [2, 1, 2, 0]
    source = load((x, np.array([7, 3, 7, 30])))
    assert (source.class_names, source.labels().tolist()) == (("3", "7", "30"), [1, 0, 1, 2])


def test_an_image_set_keeps_ids_and_names():
    given = ImageSet(noise(4, 6, 6, 1), np.array([1, 0, 1, 0]), ("x", "y"), ("p", "q", "r", "s"))
    assert load(given).read().fingerprint == given.fingerprint
    assert load(given).read().ids == given.ids
    source = load(given)
    assert load(source) is source


def test_arrays_are_resized_by_the_same_policy():
    x = noise(4, 12, 6, 3)
    y = np.array([0, 1, 0, 1])
    assert load((x, y)).read(size=(4, 8)).shape == (4, 8, 3)
    with pytest.warns(UserWarning, match="100 x 50"):
        assert load((noise(4, 100, 50), y)).read().shape == (64, 32, 1)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (noise(4, 3, 8, 8), [0, 1, 0, 1], "channels seem to come first"),
        (noise(4, 1, 8, 8), [0, 1, 0, 1], "channels seem to come first"),
        (noise(4, 3, 32, 3), [0, 1, 0, 1], "channels seem to come first"),
        (noise(4, 64), [0, 1, 0, 1], r"shape \(4, 64\)"),
        (noise(4, 8, 8, 5), [0, 1, 0, 1], r"shape \(4, 8, 8, 5\)"),
        (noise(4, 8, 8) / 255, [0, 1, 0, 1], "float64, not uint8"),
        (noise(4, 8, 8).astype(np.int64), [0, 1, 0, 1], "int64, not uint8"),
        (noise(0, 8, 8), [], "empty"),
        (noise(4, 8, 8), [0, 1, 0], "there are 4 images"),
        (noise(4, 8, 8), [0.0, 1.0, 0.0, 1.0], "float64, neither integers"),
        (noise(4, 8, 8), np.eye(4)[:, :2], "one-hot"),
        (noise(4, 8, 8), [0, -1, 0, 1], r"out of range: \[-1\]"),
        (noise(4, 8, 8), [1, 1, 1, 1], "only one class, '1'"),
        (noise(4, 8, 8), np.array([0, 1, None, 1], dtype=object), r"missing \(row 2\)"),
    ],
)
def test_unusable_arrays(x, y, message):
    with pytest.raises(DataError, match=message) as error:
        load((x, np.asarray(y)))
    assert error.value.remedy


def test_other_things_are_no_source():
    for thing in ((1, 2, 3), 7, None):
        with pytest.raises(DataError, match="no source"):
            load(thing)


@pytest.mark.parametrize(
    "keys",
    [("x_train", "y_train", "x_test", "y_test"), ("train_images", "train_labels", "test_images", "test_labels")],
)
def test_npz_with_splits(tmp_path, keys):
    (x, y), (x2, y2) = arrays([5, 4]), arrays([2, 2])
    source = load(save(tmp_path / "a.npz", **dict(zip(keys, (x, y[:, None], x2, y2), strict=True))))
    assert (source.kind, set(source.splits)) == ("npz", {"train", "test"})
    assert source.labels().tolist() == y.tolist()
    assert np.array_equal(source.read("test").images[..., 0], x2)


@pytest.mark.parametrize("keys", [("images", "labels"), ("x", "y"), ("X", "y")])
def test_npz_with_one_pair(tmp_path, keys):
    x, y = arrays([5, 4])
    names = np.array(["no", "yes"])
    source = load(save(tmp_path / "a.npz", **dict(zip(keys, (x, y), strict=True)), class_names=names, other=x))
    assert source.class_names == ("no", "yes")
    assert np.array_equal(source.read().images[..., 0], x)
    assert any("other" in note for note in source.warnings)


X, Y = arrays([5, 4])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"x_train": X}, "no y_train"),
        ({"y": Y}, "no images"),
        ({"foo": X, "bar": Y}, "the arrays bar, foo"),
        ({"x_train": X, "y_train": Y, "x_test": X}, "no y_test"),
        ({"x": X, "y": Y + 1, "class_names": np.array(["a", "b"])}, "without a name"),
        ({"x": X, "y": Y - 1, "class_names": np.array(["a", "b"])}, r"out of range: \[-1\]"),
        ({"x": X, "y": Y, "class_names": np.array(["a", "a"])}, "twice"),
        ({"x": X, "y": Y, "class_names": np.array([1, 2])}, "not .C,. strings"),
        ({"x": X, "y": Y.astype(float)}, "y labels|neither integers"),
        ({"x": X.astype(np.float32), "y": Y}, "float32, not uint8"),
        ({"x": noise(9, 3, 8, 8), "y": Y}, "channels seem to come first"),
        ({"x": X, "y": Y[:-1]}, "there are 9 images"),
        ({"x": X, "y": Y.astype(object)}, "Python objects"),
        ({"x": np.array(list(X), dtype=object), "y": Y}, "Python objects"),
        ({"x_train": X, "y_train": Y, "x_test": X, "y_test": Y + 5}, "in test but not in train:\n  '5'\n  '6'"),
    ],
)
def test_unusable_npz(tmp_path, content, message):
    with pytest.raises(DataError, match=message) as error:
        load(save(tmp_path / "a.npz", **content))
    assert error.value.remedy
    assert "a.npz" in error.value.message


def test_objects_are_never_unpickled(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "exploded"), "w"))

    np.savez(tmp_path / "a.npz", x=X, y=np.array([Bomb()] * 9, dtype=object))
    with pytest.raises(DataError):
        load(tmp_path / "a.npz")
    assert not (tmp_path / "exploded").exists()


def test_npz_layout_with_training_images_is_taken(tmp_path):
    source = load(save(tmp_path / "a.npz", images=X, labels=Y, x_test=X[:2], y_test=Y[:2]))
    assert (source.splits, len(source.ids())) == (("train",), len(X))
    assert any("x_test, y_test" in note for note in source.warnings)


def test_npz_whose_class_names_are_no_array(tmp_path):
    path = save(tmp_path / "a.npz", x=X, y=Y)
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("class_names", b"a b")
    with pytest.raises(DataError, match="class_names has shape"):
        load(path)


@pytest.mark.parametrize("names", [np.array(["3", "5"]), np.array([3, 5]), [3, 5], {0: 3, 1: 5}])
def test_class_names_and_ids_of_other_types(names):
    source = ArraySource({"train": (X, Y)}, names, ids={"train": np.arange(len(X))})
    assert source.class_names == ("3", "5")
    assert source.ids()[:2] == ("0", "1")


def test_damaged_npz(tmp_path):
    path = save(tmp_path / "a.npz", x=X, y=Y)
    whole = path.read_bytes()
    for part in (b"", b"hello", whole[: len(whole) // 2]):
        path.write_bytes(part)
        with pytest.raises(DataError, match=r"no readable \.npz"):
            load(path)


def test_npz_that_promises_more_than_it_holds(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (10**9, 1000, 1000)})
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        file.writestr("x.npy", header.getvalue())
        file.writestr("y.npy", header.getvalue())
    with pytest.raises(DataError, match="no readable"):
        load(tmp_path / "a.npz")
