import json
import os
import re
import tarfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imbdiff.data.shards import local as module
from imbdiff.data.shards.names import braces
from imbdiff.data.sources import load
from imbdiff.runtime.errors import ConfigError, DataError, ImbdiffError
from tests.data.making import encoded, folder, noise, tarred


@pytest.fixture(autouse=True)
def _own_indexes(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("IMBDIFF_CACHE", str(tmp_path_factory.mktemp("cache")))


def samples(labels, start=0, prefix="", **more):
    """Members of samples with all-different 4 x 5 images."""
    members = {}
    for i, label in enumerate(labels, start):
        members[f"{prefix}{i:04d}.png"] = encoded(noise(4, 5, 3, seed=i))
        members[f"{prefix}{i:04d}.cls"] = str(label).encode()
        members |= {f"{prefix}{i:04d}.{ending}": data for ending, data in more.items()}
    return members


def two_shards(root):
    tarred(root / "train-0.tar", samples([0, 1, 1]))
    tarred(root / "train-1.tar", samples([1, 0], start=3))
    return root


def test_same_samples_as_webdataset_reads(tmp_path):
    import webdataset

    pattern = str(two_shards(tmp_path) / "train-{0..1}.tar")
    source = load(pattern)
    theirs = list(webdataset.WebDataset(pattern, shardshuffle=False, empty_check=False))
    assert [int(sample["cls"]) for sample in theirs] == source.labels().tolist() == [0, 1, 1, 1, 0]
    assert [sample["__key__"] + ".png" for sample in theirs] == [name.rpartition("/")[2] for name in source.ids()]
    ours = [source.reader.open(place).read() for place in source.records["train"].opened]
    assert ours == [sample["png"] for sample in theirs]
    assert source.kind == "shards"
    assert source.ids()[3] == "train-1.tar/0003.png"
    images = source.read()
    assert images.shape == (4, 5, 3)
    assert np.array_equal(images.images[4], noise(4, 5, 3, seed=4))


def test_written_by_webdataset(tmp_path):
    import webdataset

    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        for i in range(4):
            writer.write({"__key__": f"birds/x.{i}", "png": encoded(noise(4, 4, 3, seed=i)), "cls": i % 2})
    # the key ends at the first dot: all four are one sample of files that are no images
    with pytest.raises(DataError, match=r"no sample with an image(?s:.)*ending in .0.png: 1"):
        load(tmp_path / "a.tar")
    with webdataset.TarWriter(str(tmp_path / "b.tar")) as writer:
        for i in range(4):
            writer.write({"__key__": f"birds.v2/{i}", "png": encoded(noise(4, 4, 3, seed=i)), "cls": i % 2})
    assert load(tmp_path / "b.tar").ids() == tuple(f"b.tar/birds.v2/{i}.png" for i in range(4))


def test_ways_to_name_shards(tmp_path):
    two_shards(tmp_path / "s")
    wanted = load(tmp_path / "s" / "train-{0..1}.tar").ids()
    assert load(tmp_path / "s").ids() == load(tmp_path / "s" / "train-*.tar").ids() == wanted
    assert len(load(tmp_path / "s" / "train-1.tar").ids()) == 2
    assert load(tmp_path / "s" / "train-{1,0}.tar").ids() == wanted[3:] + wanted[:3]
    folder(tmp_path / "mixed", {"a": 2, "b": 2})
    tarred(tmp_path / "mixed" / "x.tar", samples([0, 1]))
    assert load(tmp_path / "mixed").kind == "folder"


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(["x", "-", "{1..3}", "{a,b}", "{08..11}", "{3..0}", "{a,{1..2}}", "{,z}"]), max_size=3))
def test_braces_as_braceexpand_has_them(parts):
    import braceexpand

    text = "".join(parts)
    assert braces(text) == list(dict.fromkeys(braceexpand.braceexpand(text)))


@settings(max_examples=40, deadline=None)
@given(st.text(alphabet="{},.a01", max_size=24))
def test_odd_braces_stand_for_something(text):
    assert braces(text)


def test_braces():
    assert braces("x-{008..011}.tar") == ["x-008.tar", "x-009.tar", "x-010.tar", "x-011.tar"]
    assert braces("{a,b}{1..2}") == ["a1", "a2", "b1", "b2"]
    assert braces("{a,b{1..2}}") == ["a", "b1", "b2"]
    assert braces("{3..1}") == ["3", "2", "1"]
    assert braces("{x}") == ["{x}"]
    with pytest.raises(ConfigError, match="more than 100,000 shards"):
        braces("{0..99999999999}")


@pytest.mark.parametrize(
    ("val", "test"), [("val-0.tar", "test-0.tar"), ("validation_a.tar", "TEST.tar"), ("dev/0.tar", "test/0.tar")]
)
def test_splits_by_name(tmp_path, val, test):
    two_shards(tmp_path)
    tarred(tmp_path / val, samples([1], start=10))
    tarred(tmp_path / test, samples([0, 0], start=20))
    source = load(f"{tmp_path}/{{train-0.tar,train-1.tar,{val},{test}}}")
    assert {split: len(source.labels(split)) for split in source.splits} == {"train": 5, "val": 1, "test": 2}


def test_splits_by_option_and_shards_of_no_split(tmp_path):
    two_shards(tmp_path)
    tarred(tmp_path / "other.tar", samples([1, 0], start=7))
    source = load(f"{tmp_path}/*.tar?test={tmp_path}/other.tar")
    assert {split: len(source.labels(split)) for split in source.splits} == {"train": 5, "test": 2}
    with pytest.raises(DataError, match=r"belongs to no split(?s:.)*other\.tar"):
        load(tmp_path)
    tarred(tmp_path / "v" / "val-0.tar", samples([1, 0]))
    assert load(tmp_path / "v" / "*.tar").splits == ("train",)  # asked for by name
    tarred(tmp_path / "v" / "test-0.tar", samples([1, 0]))
    with pytest.raises(DataError, match="none for training"):
        load(tmp_path / "v")


def test_labels_of_every_form(tmp_path):
    def shard(name, make):
        return tarred(tmp_path / name, {k: v for i in range(4) for k, v in make(i).items()})

    png = encoded(noise(4, 4, 3))
    texts = shard("t.tar", lambda i: {f"{i}.jpg": png, f"{i}.cls": ["cat", "a dog"][i % 2].encode()})
    assert load(texts).class_names == ("a dog", "cat")
    keys = shard(
        "j.tar", lambda i: {f"{i}.jpg": png, f"{i}.json": json.dumps({"label": i % 2, "dx": f"d{i % 2}"}).encode()}
    )
    assert load(keys).labels().tolist() == [0, 1, 0, 1]
    assert load(f"{keys}?label=dx").class_names == ("d0", "d1")
    captions = shard("c.tar", lambda i: {f"{i}.webp": png, f"{i}.txt": b"%d\n" % (i % 2)})
    assert load(f"{captions}?label=txt").labels().tolist() == [0, 1, 0, 1]
    with pytest.raises(DataError, match=r"4 samples or members(?s:.)*no label"):
        load(captions)
    (tmp_path / "names.txt").write_text("zebra\nape\n")
    assert load(f"{keys}?names={tmp_path}/names.txt").class_names == ("zebra", "ape")
    both = shard("b.tar", lambda i: {f"{i}.rgb.png": png, f"{i}.depth.png": png, f"{i}.cls": b"%d" % (i % 2)})
    with pytest.raises(DataError, match=r"no sample with an image|a label and no image"):
        load(both)
    assert load(f"{both}?image=rgb.png").ids()[1] == "b.tar/1.rgb.png"


def test_incomplete_samples_are_all_listed(tmp_path):
    members = samples([0, 1, 0, 1], prefix="d/")
    del members["d/0001.cls"], members["d/0002.png"]
    members |= {"d/0003.jpg": b"x", "d/9.png": b"x", "d/9.cls": b"a\nb", "README.md": b"words", "info.json": b"{}"}
    with pytest.raises(DataError) as caught:
        load(tarred(tmp_path / "x.tar", members))
    text = str(caught.value)
    assert "4 samples or members" in text
    for line in (
        "d/0001.png: no label",
        "d/0002: a label and no image",
        "d/0003: several images (png, jpg)",
        "d/9.png: a label of",
    ):
        assert line in text
    good = tarred(tmp_path / "y.tar", samples([0, 1]) | {"README.md": b"words", "info.json": b"{}"})
    assert "1 x file ending in .md" in load(good).warnings[0]


def member(name, kind=tarfile.REGTYPE, link=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def test_hostile_members_are_refused(tmp_path):
    hostile = [
        (member("../up.png"), b"x"),
        (member("/etc/abs.png"), b"x"),
        (member("a/../../b.png"), b"x"),
        (member("link.png", tarfile.SYMTYPE, "/etc/passwd"), b""),
        (member("hard.png", tarfile.LNKTYPE, "0000.png"), b""),
        (member("pipe.png", tarfile.FIFOTYPE), b""),
        (member("disk.png", tarfile.BLKTYPE), b""),
        (member("a\x1b[31m.png"), b"x"),
        (member("0000.png"), b"twice"),
    ]
    path = tarred(tmp_path / "x.tar", [*samples([0, 1]).items(), *hostile])
    with pytest.raises(DataError) as caught:
        load(path)
    text = str(caught.value)
    assert "9 samples or members" in text
    words = ["../up.png: a name that leads", "/etc/abs.png: a name that leads", "b.png: a name that leads"]
    words += ["link.png: a link", "hard.png: a link", "pipe.png: neither", "disk.png: neither"]
    words += [r"a\x1b[31m.png: a name with control", "0000.png: occurs twice"]
    for word in words:
        assert word in text
    assert "\x1b" not in text


def test_compressed_shards_are_refused(tmp_path):
    for name, mode in (("x.tar.gz", "w:gz"), ("x.tar.xz", "w:xz"), ("hidden.tar", "w:gz")):
        with tarfile.open(tmp_path / name, mode) as archive:
            archive.add(__file__, "0.png")
        with pytest.raises(DataError, match=r"compressed(?s:.)*unpack"):
            load(tmp_path / name)


@pytest.mark.parametrize("content", [b"", b"no tar at all" * 100, b"\0" * 100, b"\0" * 1024])
def test_what_is_no_shard(tmp_path, content):
    (tmp_path / "x.tar").write_bytes(content)
    with pytest.raises(DataError, match=r"x\.tar"):
        load(tmp_path / "x.tar")


def test_missing_shards_are_all_listed(tmp_path):
    two_shards(tmp_path)
    with pytest.raises(DataError, match=r"2 of the shards do not exist(?s:.)*train-2\.tar(?s:.)*train-3\.tar"):
        load(tmp_path / "train-{0..3}.tar")
    with pytest.raises(DataError, match="no shard is there"):
        load(tmp_path / "nothing-*.tar")


SHARD = samples([0, 1, 0, 1, 1])


@pytest.fixture(scope="module")
def shard_bytes(tmp_path_factory):
    return tarred(tmp_path_factory.mktemp("shard") / "x.tar", SHARD).read_bytes()


def test_a_cut_is_always_found(tmp_path, shard_bytes):
    """Also where it falls between two members, where tarfile sees an ordinary end."""
    path = tmp_path / "x.tar"
    end = len(shard_bytes.rstrip(b"\0")) // 512 * 512 + 512  # the last member's padding ends here, the mark begins
    for cut in [*range(0, end + 512, 512), 1, 700, end + 511]:
        path.write_bytes(shard_bytes[:cut])
        with pytest.raises(DataError, match=r"cut off|empty|damaged") as caught:
            load(path)
        where = re.search(r"byte (\d+)", str(caught.value))
        assert cut < 512 or cut - 1024 <= int(where.group(1)) <= cut
    path.write_bytes(shard_bytes[: end + 512])
    assert len(load(path).ids()) == 5


def test_a_damaged_header_is_not_the_end(tmp_path, shard_bytes):
    """tarfile stops without a word at a header whose sum is wrong."""
    damaged = bytearray(shard_bytes)
    place = damaged.index(b"0003.png")
    damaged[place] ^= 1
    (tmp_path / "x.tar").write_bytes(damaged)
    with pytest.raises(DataError, match=f"damaged from byte {place} on"):
        load(tmp_path / "x.tar")


def test_a_second_archive_behind_the_end_is_not_lost(tmp_path, shard_bytes):
    (tmp_path / "x.tar").write_bytes(shard_bytes + shard_bytes)
    with pytest.raises(DataError, match="two archives"):
        load(tmp_path / "x.tar")


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damage_is_told_or_does_not_matter(tmp_path_factory, shard_bytes, data):
    """Flipped bytes: an error of ours, or the samples that are there, whose images may be unusable by name."""
    damaged = bytearray(shard_bytes)
    for _ in range(data.draw(st.integers(1, 4))):
        block = data.draw(st.integers(0, len(damaged) // 512 - 1))
        damaged[512 * block + data.draw(st.integers(0, 511))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damage") / "x.tar"
    path.write_bytes(bytes(damaged))
    told = ""
    try:
        source = load(path)
        assert len(source.ids()) == 5  # none is lost silently
        source.read_all(size=4)
    except ImbdiffError as error:
        told = str(error)
    assert not told or "x.tar" in told


def test_negative_sizes_end(tmp_path):
    """Sizes below zero lead tarfile back to where it was, for ever (CVE-2025-8194)."""
    info = tarfile.TarInfo("0.png")
    block = bytearray(info.tobuf())
    block[124:136] = b"\xff" * 10 + b"\xfc\x00"  # base 256: -1024
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    (tmp_path / "x.tar").write_bytes(bytes(block) + b"\0" * 4096)
    with pytest.raises(DataError, match="damaged"):
        load(tmp_path / "x.tar")


def test_index_is_made_once_and_again_where_it_must(tmp_path, monkeypatch):
    from imbdiff.data.shards.indexes import place_of

    calls = []
    real = module.index_tar
    monkeypatch.setattr(module, "index_tar", lambda *a, **k: calls.append(a[1]) or real(*a, **k))
    two_shards(tmp_path)
    first = load(tmp_path)
    assert len(calls) == 2
    assert load(tmp_path).ids() == first.ids()
    assert len(calls) == 2
    kept = list(place_of("x").parent.iterdir())
    assert len(kept) == 2
    kept[0].write_text(kept[0].read_text().replace("0000.png", "0009.png").replace("0003.png", "0009.png"))  # damaged
    kept[1].write_bytes(b"\xff\x00")
    assert load(tmp_path).ids() == first.ids()
    assert len(calls) == 4
    tarred(tmp_path / "train-1.tar", samples([1, 0, 0, 1, 1], start=3))  # another file
    assert len(load(tmp_path).ids()) == 8
    assert len(calls) == 5
    load(f"{tmp_path}/train-0.tar?label=cls")  # another question
    assert len(calls) == 6


def test_shard_cut_after_indexing_and_bad_image(tmp_path):
    members = samples([0, 1]) | {"0001.png": b"no image"}
    path = tarred(tmp_path / "x.tar", members)
    source = load(path)
    with pytest.raises(DataError, match=r"x\.tar/0001\.png: not an image"):
        source.read_all(size=4)
    before = source.reader.stamp(source.records["train"].opened[0])
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(DataError, match=r"0000\.png: the shard has changed"):
        source.read_all(size=4)
    assert source.reader.stamp(source.records["train"].opened[0]) != before


def test_kept_on_disk(tmp_path):
    source = load(two_shards(tmp_path / "s"))
    kept, _ = source.read_all(cache=tmp_path / "kept")
    plain, _ = source.read_all(cache="off")
    assert np.array_equal(np.asarray(kept["train"].images), plain["train"].images)


def test_a_shard_that_is_written_again_is_not_read(tmp_path):
    """Of the same size, so that other images would lie where those of the index lay."""
    path = tmp_path / "a.tar"
    tarred(path, samples([0, 1, 0]))
    source = load(path)
    assert source.read().images.shape == (3, 4, 5, 3)
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1_000_000))
    bad = source.scan("train").bad
    assert set(bad) == set(source.ids())
    assert all("changed since it was indexed" in why for why in bad.values())


def test_workers_get_the_states_of_their_shards_only(tmp_path):
    reader = load(two_shards(tmp_path)).reader
    place = (str(tmp_path / "train-1.tar"), 0, 10)
    small, places = reader.bring([place, place])
    assert (list(small.states), list(places)) == ([str(tmp_path / "train-1.tar")], [place, place])
