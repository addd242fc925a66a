import contextlib
import json
import os
from pathlib import Path

import numpy as np
import pytest

from imbdiff.data import cache, parallel
from imbdiff.data.rows import Rows
from imbdiff.data.sources import load
from imbdiff.data.splits import prepare
from imbdiff.runtime.errors import DataError
from tests.data.making import folder, write


@pytest.fixture
def images(tmp_path):
    return folder(tmp_path / "set", {"a": 30, "b": 12, "c": 5})


def stores(where: Path) -> list[Path]:
    return sorted(path.parent for path in where.rglob("images.u8"))


def test_the_same_images_as_in_memory(images, tmp_path):
    in_memory, _ = load(images).read_all(cache="off")
    on_disk, _ = load(images).read_all(cache=tmp_path / "kept")
    assert isinstance(on_disk["train"].images, Rows)
    assert np.array_equal(np.asarray(on_disk["train"].images), in_memory["train"].images)
    assert on_disk["train"].hashes == in_memory["train"].hashes
    one, other = prepare(images, cache=tmp_path / "kept"), prepare(images)
    assert one.manifest == other.manifest
    assert isinstance(one.train.images, Rows)
    assert isinstance(other.train.images, np.ndarray)  # a small set stays in memory unless told otherwise


def test_only_large_sets_are_kept_unasked(monkeypatch, tmp_path):
    monkeypatch.setenv("IMBDIFF_CACHE", str(tmp_path / "mine"))
    assert cache.chosen(None, cache.LEAST - 1) is None
    assert cache.chosen(None, cache.LEAST) == tmp_path / "mine"
    assert cache.chosen("off", 2**50) is None
    assert cache.chosen(tmp_path, 1) == tmp_path
    monkeypatch.delenv("IMBDIFF_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.default_folder() == tmp_path / "xdg" / "imbdiff"


def test_what_is_there_is_not_decoded_again(images, tmp_path, monkeypatch):
    first, _ = load(images).read_all(cache=tmp_path / "kept")
    monkeypatch.setattr(cache, "decode", None)
    again, _ = load(images).read_all(cache=tmp_path / "kept")
    assert np.array_equal(np.asarray(again["train"].images), np.asarray(first["train"].images))


@pytest.mark.parametrize("damage", ["bytes", "shorter", "torn line", "no journal", "line of another length", "rubbish"])
def test_damage_is_made_good(images, tmp_path, monkeypatch, damage):
    monkeypatch.setattr(cache, "CHUNK_BYTES", 8 * 8 * 3 * 10)  # 10 images a chunk
    first, _ = load(images).read_all(cache=tmp_path / "kept")
    want = np.asarray(first["train"].images)
    (place,) = stores(tmp_path / "kept")
    data, journal = place / "images.u8", place / "journal.jsonl"
    assert len(journal.read_text().splitlines()) == 5
    if damage == "bytes":
        with open(data, "r+b") as handle:
            handle.seek(15 * 192 + 7)
            handle.write(b"\x00\xff\x00")
    elif damage == "shorter":
        os.truncate(data, 100)
    elif damage == "torn line":
        text = journal.read_text()
        journal.write_text(text[: len(text) * 2 // 3])
    elif damage == "no journal":
        journal.unlink()
    elif damage == "line of another length":
        lines = journal.read_text().splitlines()
        journal.write_text("\n".join([json.dumps({**json.loads(lines[0]), "start": 40}), *lines[1:]]) + "\n")
    else:
        journal.write_bytes(b'\xff\xfe{]\n[1]\n{"start": "0", "hashes": 3}\n' + journal.read_bytes())
    made = []
    real = cache._make
    monkeypatch.setattr(cache, "_make", lambda *task: (made.append(task[2]), real(*task))[1])
    again, _ = load(images).read_all(cache=tmp_path / "kept")
    assert np.array_equal(np.asarray(again["train"].images), want)
    assert again["train"].hashes == first["train"].hashes
    redone = {
        "bytes": 1, "shorter": 5, "torn line": 2, "no journal": 5, "line of another length": 1, "rubbish": 0,
    }[damage]  # fmt: skip
    assert len(made) == redone
    assert len(journal.read_bytes().splitlines()) == 5 + (damage == "rubbish") * 3


def test_another_target_or_changed_file_is_another_cache(images, tmp_path):
    kept = tmp_path / "kept"
    load(images).read_all(cache=kept)
    load(images).read_all(size=6, cache=kept)
    load(images).read_all(size=6, resize="pad", cache=kept)
    assert len(stores(kept)) == 3
    path = write(images / "a" / "000.png", np.full((8, 8, 3), 7, np.uint8))
    os.utime(path, (1, 1))
    changed, _ = load(images).read_all(cache=kept)
    assert len(stores(kept)) == 4
    assert (changed["train"].images[0] == 7).all()


def test_bad_files_are_all_named_and_looked_at_again(images, tmp_path):
    whole = (images / "b" / "003.png").read_bytes()
    for name in ("a/001.png", "b/003.png"):
        (images / name).write_bytes(whole[: len(whole) - 30])
    stamp = (images / "b" / "003.png").stat().st_mtime_ns
    for _ in range(2):
        with pytest.raises(DataError, match=r"2 of the images(.|\n)*a/001\.png(.|\n)*b/003\.png"):
            load(images).read_all(cache=tmp_path / "kept")
    for name in ("a/001.png", "b/003.png"):
        (images / name).write_bytes(whole)
        os.utime(images / name, ns=(stamp, stamp))
    sets, _ = load(images).read_all(cache=tmp_path / "kept")
    assert np.array_equal(np.asarray(sets["train"].images), load(images).read("train").images)


def test_no_room(images, tmp_path, monkeypatch):
    class Usage:
        free = 1000

    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: Usage)
    with pytest.raises(DataError, match=r"do not fit into(.|\n)*--data\.cache"):
        load(images).read_all(cache=tmp_path / "kept")
    (tmp_path / "a file").write_text("")
    monkeypatch.undo()
    with pytest.raises(DataError, match="cannot keep decoded images"):
        load(images).read_all(cache=tmp_path / "a file")


def test_processes_give_what_threads_give(images, tmp_path, monkeypatch):
    want = load(images).read("train")
    monkeypatch.setattr(parallel, "PROCESSES_FROM", 10)
    monkeypatch.setattr(parallel, "CHUNK", 7)
    monkeypatch.setattr(parallel.joblib, "cpu_count", lambda: 2)
    source = load(images)
    assert source.read("train").hashes == want.hashes
    assert source.scan("train").hashes == load(images).scan("train").hashes
    on_disk, _ = source.read_all(cache=tmp_path / "kept")
    assert on_disk["train"].hashes == want.hashes


@pytest.mark.parametrize("odd", [None, "size", "damaged", "deep"])
@pytest.mark.parametrize("size", [None, 6])
def test_headers_of_a_large_set_are_not_read_and_yet_all_is_found(tmp_path, monkeypatch, odd, size):
    from imbdiff.data import encoded

    source = folder(tmp_path / "set", {"a": 20, "b": 9})
    odd_one = source / "a" / "013.png"
    if odd == "size":
        write(odd_one, np.full((9, 8, 3), 5, np.uint8))
    elif odd == "damaged":
        odd_one.write_bytes(odd_one.read_bytes()[:-30])
    elif odd == "deep":
        write(odd_one, np.full((8, 8), 900, np.uint16))
    want = None
    with pytest.raises(DataError) if odd == "damaged" or (odd == "size" and size is None) else contextlib.nullcontext():
        want = load(source).read_all(size=size, cache="off")[0]["train"]
    monkeypatch.setattr(encoded, "GUESS_FROM", 10)
    monkeypatch.setattr(encoded, "SAMPLE", 4)  # every seventh: not the odd one
    for cached in ("off", tmp_path / "kept", tmp_path / "kept"):
        opened = load(source)
        if want is None:
            with pytest.raises(DataError, match="different sizes" if odd == "size" else "013.png"):
                opened.read_all(size=size, cache=cached)
        else:
            found = opened.read_all(size=size, cache=cached)[0]["train"]
            assert found.hashes == want.hashes
            assert ("_survey" in opened.__dict__) == (odd == "size" and size is None)


def test_a_cache_of_mixed_sizes_is_not_taken_for_one_of_one_size(tmp_path, monkeypatch):
    from imbdiff.data import encoded

    source = folder(tmp_path / "set", {"a": 20, "b": 9})
    write(source / "a" / "013.png", np.full((9, 8, 3), 5, np.uint8))
    monkeypatch.setattr(encoded, "GUESS_FROM", 10)
    monkeypatch.setattr(encoded, "SAMPLE", 4)
    load(source).read_all(size=8, cache=tmp_path / "kept")
    with pytest.raises(DataError, match="different sizes"):
        load(source).read_all(cache=tmp_path / "kept")
