from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import psutil
import pytest

from imbdiff.data import cache
from imbdiff.data import reading as parallel
from imbdiff.data import source as encoded
from imbdiff.data.imageset import Rows
from imbdiff.data.reading import PathReader, in_chunks
from imbdiff.data.source import pixel_hash, smaller
from imbdiff.data.sources import load
from imbdiff.data.splits import prepare
from imbdiff.runtime.errors import DataError
from tests.data.making import folder, noise, write


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
    assert isinstance(other.train.images, np.ndarray)  # a small set stays in memory without an option


def test_only_large_sets_are_kept_unasked(monkeypatch, tmp_path):
    monkeypatch.setenv("IMBDIFF_CACHE", str(tmp_path / "mine"))
    assert cache.chosen(None, cache.LEAST - 1) is None
    assert cache.chosen(None, cache.LEAST) == tmp_path / "mine"
    assert cache.chosen("off", 2**50) is None
    assert cache.chosen(tmp_path, 1) == tmp_path
    monkeypatch.delenv("IMBDIFF_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.chosen(None, cache.LEAST) == tmp_path / "xdg" / "imbdiff"


def test_what_is_there_is_not_decoded_again(images, tmp_path, monkeypatch):
    first, _ = load(images).read_all(cache=tmp_path / "kept")
    monkeypatch.setattr(parallel, "decode", None)
    again, _ = load(images).read_all(cache=tmp_path / "kept")
    assert np.array_equal(np.asarray(again["train"].images), np.asarray(first["train"].images))


@pytest.mark.parametrize(
    ("damage", "redone"), [("bytes", 1), ("shorter", 5), ("no keys", 5), ("a key", 1), ("keys cut off", 5)]
)
def test_damage_is_made_good(images, tmp_path, monkeypatch, damage, redone):
    monkeypatch.setattr(cache, "CHUNK_BYTES", 8 * 8 * 3 * 10)  # 10 images a chunk
    first, _ = load(images).read_all(cache=tmp_path / "kept")
    want = np.asarray(first["train"].images)
    (place,) = stores(tmp_path / "kept")
    data, keys = place / "images.u8", place / "keys.u8"
    if damage == "shorter":
        os.truncate(data, 100)
    elif damage == "no keys":
        keys.unlink()
    elif damage == "keys cut off":
        os.truncate(keys, 16 * 12 + 5)
    else:
        with open(data if damage == "bytes" else keys, "r+b") as handle:
            handle.seek(15 * (192 if damage == "bytes" else 16) + 7)
            handle.write(b"\x00\xff\x00")
    made = []
    real = cache._make
    monkeypatch.setattr(cache, "_make", lambda *task: (made.append(task[2]), real(*task))[1])
    again, _ = load(images).read_all(cache=tmp_path / "kept")
    assert np.array_equal(np.asarray(again["train"].images), want)
    assert again["train"].hashes == first["train"].hashes == load(images).read().hashes
    assert len(made) == redone


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


def test_sets_that_agree_in_names_sizes_and_times_have_caches_of_their_own(tmp_path):
    for i, name in enumerate(("one", "other")):
        for k in range(6):
            path = write(tmp_path / name / "ab"[k % 2] / f"{k}.bmp", np.full((8, 8, 3), 10 * i + k, np.uint8))
            os.utime(path, (0, 0))
    for name in ("one", "other"):
        found = load(tmp_path / name).read_all(cache=tmp_path / "kept")[0]["train"]
        assert np.array_equal(np.asarray(found.images), load(tmp_path / name).read("train").images)


def test_a_killed_build_is_continued_and_its_workers_end(tmp_path):
    source = folder(tmp_path / "set", {"a": 240, "b": 120}, size=(32, 32))
    program = (
        "import sys; from imbdiff.data import cache, reading as parallel; from imbdiff.data.sources import load\n"
        "parallel.PROCESSES_FROM = 10; parallel.joblib.cpu_count = lambda: 2; cache.CHUNK_BYTES = 32 * 32 * 3 * 20\n"
        "load(sys.argv[1]).read_all(cache=sys.argv[2])"
    )
    for name, kills in (("calm", 0), ("stormy", 1)):
        command = [sys.executable, "-c", program, str(source), str(tmp_path / name)]
        for _ in range(kills):
            child = subprocess.Popen(command, stderr=subprocess.DEVNULL)
            while child.poll() is None:
                keys = list((tmp_path / name).rglob("keys.u8"))
                if keys and any(keys[0].read_bytes()):
                    break
                time.sleep(0.005)
            workers = psutil.Process(child.pid).children(recursive=True) if child.poll() is None else []
            child.kill()
            child.wait()
            _gone, alive = psutil.wait_procs(workers, timeout=10)
            assert not alive
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    calm, stormy = (stores(tmp_path / name)[0] for name in ("calm", "stormy"))
    for file in ("images.u8", "keys.u8"):
        assert (calm / file).read_bytes() == (stormy / file).read_bytes()


def test_a_worker_whose_parent_is_gone_already_ends():
    program = "import time; from imbdiff.data import reading as parallel; parallel._end_with(-1); time.sleep(60)"
    assert subprocess.run([sys.executable, "-c", program], timeout=50).returncode == 1


def test_two_processes_decode_once(tmp_path):
    source = folder(tmp_path / "set", {"a": 300, "b": 100}, size=(24, 24))
    program = (
        "import sys; from imbdiff.data import cache; from imbdiff.data.sources import load\n"
        "real, made = cache._make, []\n"
        "cache._make = lambda *task: (made.append(1), real(*task))[1]\n"
        "cache.CHUNK_BYTES = 24 * 24 * 3 * 20\n"
        "sets, _ = load(sys.argv[1]).read_all(cache=sys.argv[2])\n"
        "print(len(made), sets['train'].fingerprint)"
    )
    command = [sys.executable, "-c", program, str(source), str(tmp_path / "kept")]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) for _ in range(2)]
    found = [child.communicate()[0].split() for child in both]
    assert sorted(int(made) for made, _ in found) == [0, 20]
    assert found[0][1] == found[1][1] == load(source).read("train").fingerprint


def test_no_room(images, tmp_path, monkeypatch):
    class Usage:
        free = 1000

    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: Usage)
    with pytest.raises(DataError, match=r"do not fit into(.|\n)*IMBDIFF_CACHE"):
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
    assert source.scan().hashes == load(images).scan().hashes
    on_disk, _ = source.read_all(cache=tmp_path / "kept")
    assert on_disk["train"].hashes == want.hashes


@pytest.mark.parametrize("odd", [None, "size", "damaged", "deep"])
@pytest.mark.parametrize("size", [None, 6])
def test_headers_of_a_large_set_are_not_read_and_yet_all_is_found(tmp_path, monkeypatch, odd, size):
    source = folder(tmp_path / "set", {"a": 20, "b": 9})
    odd_one = source / "a" / "013.png"
    if odd == "size":
        write(odd_one, np.full((9, 8, 3), 5, np.uint8))
    elif odd == "damaged":
        odd_one.write_bytes(odd_one.read_bytes()[:-30])
    elif odd == "deep":
        write(odd_one, np.full((8, 8), 900, np.uint16))
    want = None
    with pytest.raises(DataError) if odd == "damaged" else contextlib.nullcontext():
        want = load(source).read_all(size=size, cache="off")[0]["train"]
    monkeypatch.setattr(encoded, "SAMPLE_FROM", 10)
    monkeypatch.setattr(encoded, "SAMPLE", 4)  # every seventh: not the odd one
    for cached in ("off", tmp_path / "kept", tmp_path / "kept"):
        opened = load(source)
        if want is None:
            with pytest.raises(DataError, match=r"013\.png"):
                opened.read_all(size=size, cache=cached)
        else:
            found = opened.read_all(size=size, cache=cached)[0]["train"]
            assert found.hashes == want.hashes
            assert ("_survey" in opened.__dict__) == (odd == "size" and size is None)


def test_a_cache_of_mixed_sizes_is_not_taken_for_one_of_one_size(tmp_path, monkeypatch):
    source = folder(tmp_path / "set", {"a": 20, "b": 9})
    write(source / "a" / "013.png", np.full((9, 8, 3), 5, np.uint8))
    monkeypatch.setattr(encoded, "SAMPLE_FROM", 10)
    monkeypatch.setattr(encoded, "SAMPLE", 4)
    load(source).read_all(size=8, cache=tmp_path / "kept")
    assert "different sizes" in load(source).read_all(cache=tmp_path / "kept")[1][0]


def test_results_in_order_and_errors_arrive():
    reader = PathReader(Path())
    assert list(in_chunks(lambda i: i * i, [(i,) for i in range(100)], reader, 100)) == [i * i for i in range(100)]
    with pytest.raises(ZeroDivisionError):
        list(in_chunks(lambda i: 1 // i, [(0,)], reader, 1))


@pytest.mark.parametrize("shape", [(8, 8, 1), (32, 16, 3), (14, 20, 3), (5, 3, 1), (28, 28, 1), (1, 100, 3)])
def test_small_versions_are_means_of_equal_rectangles(shape):
    x = noise(*shape)
    h, w, c = shape
    # every pixel becomes 8 x 8 equal ones, and blocks of h x w of these are averaged: exact in whole numbers
    fine = x.astype(np.int64).repeat(8, axis=0).repeat(8, axis=1).reshape(8, h, 8, w, c).sum(axis=(1, 3))
    expected = np.vectorize(lambda n: round(Fraction(int(n), h * w)))(fine)
    assert np.abs(smaller(x).astype(int) - expected).max() <= 0
    assert smaller(x).dtype == np.uint8


def test_the_mirror_image_gives_the_mirrored_means():
    for shape in ((14, 20, 3), (28, 27, 1), (33, 65, 3)):
        x = noise(*shape, seed=3)
        np.testing.assert_array_equal(smaller(np.ascontiguousarray(x[:, ::-1])), smaller(x)[:, ::-1])
        np.testing.assert_array_equal(smaller(np.ascontiguousarray(x[::-1])), smaller(x)[::-1])
        np.testing.assert_array_equal(smaller(np.ascontiguousarray(np.rot90(x))), np.rot90(smaller(x)))


def test_hashes_tell_pixels_and_sizes():
    x = noise(6, 4, 1)
    assert pixel_hash(x) == pixel_hash(x[:, ::-1][:, ::-1])
    assert len({pixel_hash(x), pixel_hash(x[::-1]), pixel_hash(x.reshape(4, 6, 1)), pixel_hash(x + 1)}) == 4
