"""Atomic files: a reader sees the old file or the whole new one, whatever happens in between."""

from __future__ import annotations

import errno
import hashlib
import math
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imbdiff.runtime.errors import RunError
from imbdiff.runtime.files import atomic, digest, read_json, sha256_file, write_bytes, write_json, write_text


def test_writes_and_makes_folders(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "x.txt"
    write_text(path, "grün\n")
    assert path.read_bytes() == "grün\n".encode()
    assert sha256_file(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    with atomic(tmp_path / "a" / "folder") as aside:
        aside.mkdir()
        (aside / "one").write_text("1")
    assert sorted(str(p.relative_to(tmp_path / "a")) for p in (tmp_path / "a").rglob("*")) == [
        "b", "b/x.txt", "folder", "folder/one",
    ]  # fmt: skip


def test_the_old_file_stands_until_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "x"
    write_text(path, "old")
    with atomic(path) as aside:
        aside.write_text("new")
        assert path.read_text() == "old"
        assert aside.parent == path.parent  # a rename across file systems is a copy
    assert path.read_text() == "new"


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit(1), OSError(errno.EACCES, "no")])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_an_exception_leaves_the_old_file(tmp_path: Path, error: BaseException, kind: str) -> None:
    path = tmp_path / "x"
    write_text(path, "old")
    with pytest.raises(type(error)) as caught, atomic(path) as aside:  # noqa: PT012
        if kind == "folder":
            aside.mkdir()
            (aside / "part").write_text("half")
        else:
            aside.write_text("half")
        raise error
    assert caught.value is error
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize(
    "where", [(Path, "write_bytes"), (os, "fsync"), (os, "replace"), (Path, "mkdir")], ids=lambda where: where[1]
)
def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, where: tuple[Any, str]) -> None:
    path = tmp_path / "x"
    write_text(path, "old")

    def full(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(*where, full)
    with pytest.raises(RunError) as caught:
        write_bytes(path, b"new")
    monkeypatch.undo()
    assert str(path) in caught.value.message
    assert "free some space" in caught.value.remedy
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_full_disk_wrapped_by_a_library(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no space left"), atomic(tmp_path / "x") as aside:  # noqa: PT012
        aside.write_text("half")
        raise RuntimeError("Error while serializing: IoError(No space left on device (os error 28))")
    assert list(tmp_path.iterdir()) == []


def test_json(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    value = {"ß": [1, 2.5, None, True], "b": {"c": "d"}}
    write_json(path, value)
    assert read_json(path) == value
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError):
            write_json(path, {"x": bad})
    assert read_json(path) == value


def test_json_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="does not exist"):
        read_json(tmp_path / "none.json")
    for data in (b"", b'{"a": ', b"\xff\xfe\x00"):
        (tmp_path / "bad.json").write_bytes(data)
        with pytest.raises(RunError, match=r"bad\.json is damaged"):
            read_json(tmp_path / "bad.json")


@given(st.dictionaries(st.text(max_size=4), st.integers() | st.text(max_size=4), max_size=6), st.randoms())
def test_digest_does_not_depend_on_order(value: dict[str, object], random: object) -> None:
    items = list(value.items())
    random.shuffle(items)  # type: ignore[attr-defined]
    assert digest({"in": dict(items), "x": 1}) == digest({"x": 1, "in": value})


def test_digest_differs_between_values() -> None:
    values = [1, "1", 1.5, None, [], {}, [1, 2], [2, 1], {"a": 1}, {"a": "1"}, {"a": 2}, {"b": 1}, ["a", 1], True]
    assert len({digest(v) for v in values}) == len(values)
