"""What an error advises is done to the input that raised it, and then the images are read."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imbdiff.data.plain import align, read_any
from imbdiff.data.sources import load
from imbdiff.data.splits import prepare
from imbdiff.runtime.errors import ImbdiffError
from tests.data.making import folder, noise

Tried = tuple[Callable[[], Any], Callable[[str], Any]]
"""What raises, and what follows the remedy."""
X, Y = noise(8, 6, 6, 3), np.array([0, 1] * 4)


def _table(root: Path, text: str, name: str = "t.csv", encoding: str = "utf-8") -> str:
    if not (root / "im").exists():
        folder(root / "im", {"": 4})
    (root / name).write_text(text, encoding=encoding)
    return str(root / name)


def _rows(*cells: str) -> str:
    return "".join(f"{i:03d}.png,{cell}\n" for i, cell in enumerate(cells))


def two_label_columns(root: Path) -> Tried:
    source = _table(root, "image,label,dx\n" + _rows("a,b", "c,d", "a,d", "c,b")) + f"?root={root}/im"
    return lambda: load(source), lambda said: load(f"{source}&{re.search('label=', said)[0]}dx")  # type: ignore[index]


def no_usual_columns(root: Path) -> Tried:
    source = _table(root, "f,k\n" + _rows(*"abab")) + f"?root={root}/im"
    return lambda: load(source), lambda said: load(f"{source}&image=f&label=k")


def images_elsewhere(root: Path) -> Tried:
    source = _table(root, "image,label\n" + _rows(*"abab"))
    return lambda: load(source), lambda said: load(f"{source}?{re.search('root=', said)[0]}{root}/im")  # type: ignore[index]


def header_in_a_list(root: Path) -> Tried:
    source = _table(root, "image,label\n" + _rows(*"abab"), "t.txt")

    def follow(said: str) -> Any:
        ending = re.search(r"\.csv", said)[0]  # type: ignore[index]
        return load(str(shutil.copy(source, root / f"t{ending}")) + f"?root={root}/im")

    return lambda: load(f"{source}?root={root}/im"), follow


def another_encoding(root: Path) -> Tried:
    text = "image,label\n" + _rows(*["café", "b"] * 2)
    source = _table(root, text, encoding="latin-1") + f"?root={root}/im"
    return lambda: load(source), lambda said: load(_table(root, text) + f"?root={root}/im")


def a_comma_in_a_cell(root: Path) -> Tried:
    text = "image,label\n" + _rows("x, y", "b", "b", "b")
    source = _table(root, text) + f"?root={root}/im"
    return lambda: load(source), lambda said: (_table(root, text.replace("x, y", '"x, y"')), load(source))[1]


def labels_in_test_alone(root: Path) -> Tried:
    source = _table(root, _rows(*"abab")) + f"?root={root}/im&test=test.csv"
    _table(root, _rows(*"abc"), "test.csv")
    return lambda: load(source), lambda said: (_table(root, _rows(*"ab"), "test.csv"), load(source))[1]


def empty_class_folder(root: Path) -> Tried:
    folder(root / "d", {"a": 2, "b": 2, "c": 0})
    (root / "d" / "c").mkdir(exist_ok=True)
    return lambda: load(root / "d"), lambda said: ((root / "d" / "c").rmdir(), load(root / "d"))[1]


def classes_deeper(root: Path) -> Tried:
    folder(root / "d", {"inner/a": 2, "inner/b": 2})
    return lambda: load(root / "d"), lambda said: load(said.rpartition("give ")[2])


def more_for_the_test_than_there_are(root: Path) -> Tried:
    folder(root / "d", {"a": 4, "b": 8})
    return lambda: prepare(root / "d", test_per_class=5), lambda said: prepare(root / "d", test_fraction=0.3)


def tiny_images(root: Path) -> Tried:
    folder(root / "d", {"a": 4, "b": 8}, size=(3, 3))
    return lambda: prepare(root / "d"), lambda said: prepare(root / "d", size=8)


def channels_first(root: Path) -> Tried:
    x = X.transpose(0, 3, 1, 2)
    return lambda: load((x, Y)), lambda said: load((eval(said.partition(": ")[2], {"x": x, "np": np}), Y))


def floats_from_0_to_1(root: Path) -> Tried:
    x = X / 255

    def follow(said: str) -> Any:
        return load((eval(said.partition("0..1 ")[2], {"x": x, "np": np}), Y))

    return lambda: load((x, Y)), follow


def flat_rows(root: Path) -> Tried:
    x = X[..., 0].reshape(8, 36)
    return lambda: load((x, Y)), lambda said: load(
        (eval(said.rpartition(": ")[2], {"x": x, "height": 6, "width": 6}), Y)
    )


def one_hot(root: Path) -> Tried:
    y = np.eye(2, dtype=int)[Y]
    return lambda: load((X, y)), lambda said: load((X, eval(said.partition(": ")[2], {"y": y, "np": np})))


def unlabelled_as_minus_one(root: Path) -> Tried:
    y = np.where(np.arange(8) == 3, -1, Y)
    return lambda: load((X, y)), lambda said: load(eval(said.partition(": ")[2], {"X": X, "y": y}))


def labels_of_bools(root: Path) -> Tried:
    y = Y.astype(bool)
    return lambda: load((X, y)), lambda said: load((X, eval(said.partition(": ")[2], {"y": y, "np": np})))


def npz_of_objects(root: Path) -> Tried:
    def save(names: np.ndarray) -> str:
        np.savez(root / "d.npz", x=X, y=Y, class_names=names)
        return str(root / "d.npz")

    names = np.array(["cat", "dog"], dtype=object)
    source = save(names)
    return lambda: load(source), lambda said: load(save(np.array(names, dtype=str)))


def npz_of_other_keys(root: Path) -> Tried:
    np.savez(root / "d.npz", data=X, target=Y)

    def follow(said: str) -> Any:
        keys = re.findall(r"\b[xy]_train\b", said)
        np.savez(root / "d.npz", **dict(zip(keys, (X, Y), strict=True)))
        return load(root / "d.npz")

    return lambda: load(root / "d.npz"), follow


def npz_called_npy(root: Path) -> Tried:
    np.savez(root / "d.npz", x=X)
    shutil.copy(root / "d.npz", root / "d.npy")
    return lambda: read_any(root / "d.npy"), lambda said: read_any((root / "d.npy").rename(root / f"e{said[-4:]}"))


def other_class_names(root: Path) -> Tried:
    a, b = (
        load(folder(root / place, names)).read() for place, names in (("a", {"x": 1, "y": 1}), ("b", {"u": 1, "v": 1}))
    )

    def follow(said: str) -> Any:
        (root / "b" / "u").rename(root / "b" / "x")
        again = load(root / "b").read()
        return align(again, a.class_names, "b", "a")

    return lambda: align(b, a.class_names, "b", "a"), follow


def a_damaged_file(root: Path) -> Tried:
    folder(root / "d", {"a": 6, "b": 6})
    (root / "d" / "a" / "000.png").write_bytes(b"\0\0\0\x18ftypheic")
    return lambda: prepare(root / "d"), lambda said: ((root / "d/a/000.png").unlink(), prepare(root / "d"))[1]


def several_labels_of_one_image(root: Path) -> Tried:
    text = "image,label\n" + _rows(*"abab")
    source = _table(root, text + "000.png,b\n") + f"?root={root}/im"
    return lambda: load(source), lambda said: (_table(root, text), load(source))[1]


TRIED = [
    two_label_columns,
    no_usual_columns,
    images_elsewhere,
    header_in_a_list,
    another_encoding,
    a_comma_in_a_cell,
    labels_in_test_alone,
    empty_class_folder,
    classes_deeper,
    more_for_the_test_than_there_are,
    tiny_images,
    channels_first,
    floats_from_0_to_1,
    flat_rows,
    one_hot,
    unlabelled_as_minus_one,
    labels_of_bools,
    npz_of_objects,
    npz_of_other_keys,
    npz_called_npy,
    other_class_names,
    a_damaged_file,
    several_labels_of_one_image,
]


@pytest.mark.parametrize("tried", TRIED)
def test_the_remedy_works_on_the_input_that_raised_the_error(tmp_path: Path, tried: Callable[[Path], Tried]) -> None:
    refused, follow = tried(tmp_path)
    with pytest.raises(ImbdiffError) as error:
        refused()
    assert error.value.remedy
    assert follow(error.value.remedy) is not None
