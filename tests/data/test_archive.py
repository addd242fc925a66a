import shutil
import stat
import struct
import tracemalloc
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from imbdiff.data import archive
from imbdiff.data.inspect import inspect
from imbdiff.data.sources import load
from imbdiff.runtime.errors import DataError
from tests.data.making import encoded, folder, noise, zipped

PIXELS = {f"{name}/{i}.png": noise(8, 8, 3, seed=10 * k + i) for k, name in enumerate(["cat", "dog"]) for i in range(3)}
FILES = {name: encoded(x) for name, x in PIXELS.items()}


def refused(path):
    with pytest.raises(DataError) as error:
        load(path)
    assert error.value.remedy
    return error.value.message


def test_a_zip_is_read_as_the_folder_that_was_packed(tmp_path):
    counts = {"train/a": 3, "train/b": 2, "val/a": 1, "test/b": 2}
    root = folder(tmp_path / "set", counts)
    (root / "train" / "a" / "notes.txt").write_text("x")
    packed = shutil.make_archive(str(tmp_path / "set"), "zip", root)
    one, other = load(root), load(packed)
    assert other.kind == "zip"
    assert (one.splits, one.class_names) == (other.splits, other.class_names)
    for split in one.splits:
        assert one.ids(split) == other.ids(split)
        assert one.read(split).fingerprint == other.read(split).fingerprint
    assert [w.replace(str(root), "") for w in one.warnings] == [w.replace(packed, "") for w in other.warnings] != []


def test_a_folder_that_lies_alone_is_stepped_into(tmp_path):
    members = {f"./photos/2020//{name}": data for name, data in FILES.items()}
    extra = {"photos/": b"", "__MACOSX/photos/._0.png": b"x", "__MACOSX/b.png": b"x", "photos/2020/cat/.DS_Store": b""}
    source = load(zipped(tmp_path / "p.zip", {"README": b"", **extra, **members}))
    assert source.ids() == tuple(FILES)
    assert any("photos/2020/" in note for note in source.warnings)
    text = "\n".join(source.warnings)
    assert "2 hidden files" in text  # __MACOSX counts once
    assert "1 file that is no image: README" in text
    assert np.array_equal(source.read().images, np.stack(list(PIXELS.values())))


@pytest.mark.parametrize("top", ["train", "Stuff/cat"])
def test_what_is_not_stepped_into(tmp_path, top):
    members = {f"{top}/{name}": data for name, data in FILES.items()}
    source = load(zipped(tmp_path / "p.zip", members))
    assert source.class_names == ("cat", "dog")
    assert source.ids()[0] == ("train/cat/0.png" if top == "train" else "cat/0.png")


@pytest.mark.parametrize(("top", "empty"), [("cat", "dog/"), ("photos/cat", "photos/dog/"), ("cat", "dog/a/")])
def test_an_empty_folder_next_to_a_class_is_a_class(tmp_path, top, empty):
    members = {f"{top}/{name}": data for name, data in FILES.items()}
    with pytest.raises(DataError, match="no training image:\n  'dog'"):
        load(zipped(tmp_path / "p.zip", {**members, empty: b""}))


BAD_NAMES = {
    "../cat/1.png": "leads out",
    "cat/../../1.png": "leads out",
    "/cat/1.png": "absolute",
    "C:/cat/1.png": "absolute",
    "cat\\1.png": "backslashes",
    "cat/\x1b[31m.png": "control characters",
    "cat/a\nb.png": "control characters",
    "__MACOSX/../../x": "leads out",
    "x" * 5000: "5,000 characters",
}


def test_all_unsafe_names_are_listed(tmp_path):
    message = refused(zipped(tmp_path / "p.zip", FILES | dict.fromkeys(BAD_NAMES, b"x")))
    assert message.startswith(f"{len(BAD_NAMES)} members of")
    rows = message.splitlines()[1:]
    for row, why in zip(rows, BAD_NAMES.values(), strict=True):
        assert why in row
    assert "\x1b" not in message


def test_control_characters_in_names(tmp_path):
    path = zipped(tmp_path / "p.zip", FILES | {"cat/ok.png?.exe": b"x"})
    path.write_bytes(path.read_bytes().replace(b"ok.png?.exe", b"ok.png\0.exe"))
    assert "cat/ok.png: control characters" in refused(path)
    hidden = zipped(tmp_path / "q.zip", FILES | {"__MACOSX/._Icon\r": b"x"})
    assert len(load(hidden).labels()) == 6


def test_links_pipes_and_encrypted_members_are_listed(tmp_path):
    members = list(FILES.items())
    for name, kind in (("cat/link.png", stat.S_IFLNK), ("dogs", stat.S_IFLNK), ("cat/pipe.png", stat.S_IFIFO)):
        info = zipfile.ZipInfo(name)
        info.external_attr = (kind | 0o777) << 16
        members.append((info, b"/etc/passwd"))
    path = zipped(tmp_path / "p.zip", [*members, ("cat/secret.png", b"x")])
    data = bytearray(path.read_bytes())
    at = data.rindex(b"cat/secret.png") - 46 + 8  # the flags, in the directory
    data[at] |= 1
    path.write_bytes(data)
    rows = refused(path).splitlines()[1:]
    assert [row.strip() for row in rows] == [
        "cat/link.png: a symbolic link",
        "dogs: a symbolic link",
        "cat/pipe.png: neither a file nor a folder",
        "cat/secret.png: encrypted",
    ]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_duplicate_members(tmp_path):
    path = zipped(tmp_path / "p.zip", [*FILES.items(), ("cat/0.png", b"x"), ("dog/./0.png", b"y")])
    message = refused(path)
    assert "cat/0.png: more than one" in message
    assert "dog/./0.png: more than one" in message


def test_bombs_are_refused_before_they_are_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "LARGEST", 1000)
    monkeypatch.setattr(archive, "RATIO_FROM", 400)
    monkeypatch.setattr(archive, "LARGEST_RATIO", 20)
    big = {"cat/large.png": bytes(noise(1001)), "cat/zeros.png": bytes(900), "cat/small.png": bytes(399)}
    message = refused(zipped(tmp_path / "p.zip", FILES | big))
    assert "cat/large.png: unpacks to 1,001 bytes, more than 1,000" in message
    assert "cat/zeros.png: unpacks from" in message
    assert "small" not in message
    # what is no image is never unpacked
    assert len(load(zipped(tmp_path / "q.zip", FILES | {"cat/film.mp4": bytes(5000)})).labels()) == 6


def test_a_member_that_unpacks_to_more_than_it_says_takes_no_memory(tmp_path):
    zeros = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = b"".join(zeros.compress(bytes(2**20)) for _ in range(60)) + zeros.flush()
    path = zipped(tmp_path / "p.zip", FILES | {"cat/bomb.png": b"?"})
    data = path.read_bytes()
    with zipfile.ZipFile(path) as found:
        info = found.getinfo("cat/bomb.png")
    body = info.header_offset + 30 + len("cat/bomb.png")
    tail = bytearray(data[body + info.compress_size :])
    tail[tail.rindex(b"cat/bomb.png") - 26 : tail.rindex(b"cat/bomb.png") - 22] = struct.pack("<I", len(packed))
    moved = len(packed) - info.compress_size
    end = tail.rindex(b"PK\5\6") + 16
    tail[end : end + 4] = struct.pack("<I", struct.unpack_from("<I", tail, end)[0] + moved)
    path.write_bytes(data[:body] + packed + tail)
    source = load(path)
    tracemalloc.start()
    bad = source.scan().bad
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert set(bad) == {"cat/bomb.png"}
    assert "CRC" in bad["cat/bomb.png"]
    assert most < 8 * 2**20


def test_methods_that_unpack_without_limit_are_refused(tmp_path):
    path = zipped(tmp_path / "p.zip", FILES)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_BZIP2) as found:
        found.writestr("cat/b.png", b"x")
        found.writestr("cat/notes.txt", b"x")
    message = refused(path)
    assert "cat/b.png: packed by method 12" in message
    assert "notes" not in message


def test_damaged_members_are_unusable_images_of_their_names(tmp_path):
    path = tmp_path / "p.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as made:
        for name, data in FILES.items():
            made.writestr(name, data)
    data = path.read_bytes().replace(FILES["dog/1.png"], FILES["dog/1.png"][:-1] + b"?")
    at = data.index(FILES["cat/2.png"]) - 30 - len("cat/2.png")
    path.write_bytes(data[:at] + b"????" + data[at + 4 :])
    report = inspect(path)
    assert set(report["bad"]) == {"dog/1.png", "cat/2.png"}
    assert "CRC" in report["bad"]["dog/1.png"]
    with pytest.raises(DataError, match=r"2 of the images(.|\n)*cat/2\.png(.|\n)*dog/1\.png"):
        load(path).read()


@pytest.mark.parametrize("data", [b"", b"PK\3\4", b"no archive" * 100])
def test_what_is_no_zip_file(tmp_path, data):
    path = tmp_path / "p.zip"
    path.write_bytes(data)
    assert "no readable zip file" in refused(path)


def test_archives_without_classes(tmp_path):
    assert "only one class, 'cat'" in refused(zipped(tmp_path / "p.zip", {"cat/1.png": FILES["cat/0.png"]}))
    assert "No such file" in refused(tmp_path / "nothing.zip")
    assert "no class folder with images" in refused(zipped(tmp_path / "p.zip", {}))


def test_names_in_utf8_without_the_flag(tmp_path):
    path = zipped(tmp_path / "p.zip", {f"{k}/1.png": FILES["cat/0.png"] for k in ("K\u00e4fer", "b")})
    data = bytearray(path.read_bytes())
    for signature, flags in ((b"PK\1\2", 8), (b"PK\3\4", 6)):
        at = data.find(signature)
        while at >= 0:
            data[at + flags + 1] &= ~8
            at = data.find(signature, at + 1)
    path.write_bytes(data)
    source = load(path)
    assert source.class_names == ("K\u00e4fer", "b")
    assert len(source.read()) == 2


def test_folders_nested_deeper_than_the_stack(tmp_path):
    deep = "cat/" + "d/" * 1500 + "1.png"
    source = load(zipped(tmp_path / "p.zip", FILES | {deep: FILES["cat/0.png"]}))
    assert deep in source.ids()


def test_many_threads_read_one_archive(tmp_path):
    many = {f"{c}/{i}.png": encoded(noise(16, 16, 3, seed=i)) for i in range(150) for c in "ab"}
    reader = load(zipped(tmp_path / "p.zip", many)).reader
    with ThreadPoolExecutor(8) as threads:
        read = list(threads.map(lambda name: reader.open(name).read(), list(many) * 4))
    assert read == list(many.values()) * 4
    other = load(zipped(tmp_path / "q.zip", many | {"a/0.png": many["b/1.png"]})).reader
    assert [name for name in many if reader.stamp(name) != other.stamp(name)] == ["a/0.png"]


def test_an_archive_that_changes_is_not_mixed_up(tmp_path):
    path = zipped(tmp_path / "p.zip", FILES)
    source = load(path)
    archive._opened.cache_clear()  # as in a new worker process
    zipped(path, FILES | {"cat/9.png": b"x"})
    bad = source.scan().bad
    assert set(bad) == set(FILES)
    assert "changed" in bad["cat/0.png"]
    assert "changed" in source.reader.stamp("cat/0.png")
