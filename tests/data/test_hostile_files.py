"""Any names, any images, any damage: in folders, zip files, lists and tables. Examples: IMBDIFF_EXAMPLES=500."""

import csv
import json
import os
import shutil
import tempfile
import unicodedata
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st
from PIL import Image

import imbdiff
from imbdiff.data.decode import Target
from imbdiff.data.names import display_name
from imbdiff.data.reading import Decoding
from imbdiff.runtime.errors import DataError, ImbdiffError
from tests.data.making import encoded, noise, zipped

EXAMPLES = int(os.environ.get("IMBDIFF_EXAMPLES", "8"))
some = settings(
    max_examples=EXAMPLES, deadline=None, derandomize="IMBDIFF_EXAMPLES" not in os.environ, database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)  # fmt: skip

ODD = [
    " ", "  a", ".hidden", "__x__", "'", '"', "a,b", "a;b", "#a", "~", "-rf", "C:", "c:x", "nul", "x?y=z", "&", "a.png",
    "\u202egnp", "\u200f", "é", "e\u0301", "\ufeff", "蝴蝶", "🦋", "<b>", "%s", "{0}", "[red]", "\u2028", "a" * 60,
    "0", "00", "-1", "1.0", "nan", "None",
]  # fmt: skip
CONTROL = ["a\nb", "a\r", "\t", "\x1b[31m", "\x7f", "a\\b"]
plain = st.one_of(st.sampled_from(ODD), st.from_regex(r"[a-z]{1,8}", fullmatch=True)).filter(lambda n: n[1:2] != ":")
names = st.one_of(
    st.sampled_from(ODD), st.sampled_from(ODD * 2 + CONTROL), st.from_regex(r"[a-z]{1,8}", fullmatch=True),
    st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=12),
).filter(lambda name: name not in (".", "..") and len(name.encode()) < 100)  # fmt: skip

RGB = noise(9, 8, 3)


def made(mode):
    """(an image file, its RGB pixels) of a mode."""
    grey = RGB[..., 0]
    image = {
        "1": lambda: Image.fromarray(grey > 127),
        "L": lambda: Image.fromarray(grey),
        "P": lambda: Image.fromarray(RGB).quantize(16),
        "RGB": lambda: Image.fromarray(RGB),
        "RGBA": lambda: Image.fromarray(np.dstack([RGB, np.full((9, 8), 255, np.uint8)])),
        "LA": lambda: Image.fromarray(np.dstack([grey, np.full((9, 8), 255, np.uint8)])),
        "I;16": lambda: Image.fromarray(grey.astype(np.uint16) * 257),
        "CMYK": lambda: Image.fromarray(RGB).convert("CMYK"),
    }[mode]()
    pixels = np.repeat(grey[..., None], 3, axis=2) if mode == "I;16" else np.asarray(image.convert("RGB"))
    return encoded(image, "TIFF" if mode == "CMYK" else "PNG"), pixels


GOOD = {mode: made(mode) for mode in ("1", "L", "P", "RGB", "RGBA", "LA", "I;16", "CMYK")}
PNG = GOOD["RGB"][0]
BAD = {
    "empty": b"",
    "text": b"not an image",
    "cut in its header": PNG[:20],
    "cut in its pixels": PNG[: len(PNG) // 2],
    "float": encoded(Image.fromarray(RGB[..., 0].astype(np.float32)), "TIFF"),
    "program": b"\x7fELF" + bytes(100),
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n",
    "huge": PNG[:16] + b"\xff\xff\xff\x7f" * 2 + PNG[24:],
}
kinds = st.one_of(st.sampled_from(sorted(GOOD)), st.sampled_from(sorted(BAD)))


def trees_of(names):
    images = st.dictionaries(st.tuples(names, st.sampled_from([".png", ".JPG", ".tiff"])), kinds, max_size=4)
    return st.dictionaries(names, images, min_size=2, max_size=4)


trees = trees_of(names)
"""{class: {(name, ending): kind of the image}}"""


def files_of(tree):
    """{path: (class, kind)}, with a sound image in every class."""
    files = {}
    for label, images in tree.items():
        files[f"{label}/sound.png"] = (label, "RGB")
        for (name, ending), kind in images.items():
            files[f"{label}/{name}{ending}"] = (label, kind)
    return files


def data_of(kind):
    return GOOD[kind][0] if kind in GOOD else BAD[kind]


def hidden(path):
    return any(part.startswith((".", "__")) for part in path.split("/"))


def check(source, files, class_of=lambda path: path.split("/")[0], name_of=lambda path: path):
    """What is sound is read right, what is damaged is named, and nothing else is there."""
    event("opened")
    expected = {name_of(path): kind for path, (_, kind) in files.items()}
    opened = imbdiff.load(source)
    assert sorted(opened.ids()) == sorted(expected)
    labels = {name_of(path): unicodedata.normalize("NFC", class_of(path)) for path in files}
    assert [opened.class_names[k] for k in opened.labels()] == [labels[name] for name in opened.ids()]
    bad = {name for name, kind in expected.items() if kind in BAD}
    report = imbdiff.inspect(source)
    assert set(report["bad"]) == bad
    assert report["images"]["train"] == len(expected) - len(bad)
    if bad:
        with pytest.raises(DataError) as error:
            opened.read_all()
        assert all(display_name(name, 200) in error.value.message for name in bad)
    sound = {name: k for k, name in enumerate(opened.ids()) if name not in bad}
    x, wrong = Decoding(opened.reader, Target(9, 8, "crop"), False).many(opened.records["train"].opened)
    assert {opened.ids()[i] for i in wrong} == bad
    for name, k in sound.items():
        assert np.array_equal(x[k], GOOD[expected[name]][1]), (name, expected[name])


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class folder:
    """A new folder that is removed; pytest's is one for all examples."""

    def __enter__(self):
        self.path = Path(tempfile.mkdtemp())
        return self.path

    def __exit__(self, *_):
        shutil.rmtree(self.path)


def spellings(tree):
    """The classes that are not hidden, in one Unicode spelling."""
    return [unicodedata.normalize("NFC", name) for name in tree if not hidden(name)]


SPLITS = {"train", "val", "valid", "validation", "test"}


@some
@given(trees)
def test_folders(tree):
    assume(not SPLITS & {name.lower() for name in tree})
    with folder() as root:
        for path, (_, kind) in files_of(tree).items():
            (root / path).parent.mkdir(exist_ok=True)
            (root / path).write_bytes(data_of(kind))
        seen = spellings(tree)
        if len(set(seen)) < 2:
            with pytest.raises(DataError) as error:
                imbdiff.load(root)
            assert error.value.remedy
            return
        check(root, {path: found for path, found in files_of(tree).items() if not hidden(path)})


def unsafe(path):
    control = any(unicodedata.category(char) == "Cc" for char in path)
    drive = path[1:2] == ":" and path[0].isascii() and path[0].isalpha()
    return "\\" in path or ((control or drive) and not (hidden(path) and not drive))


@some
@given(st.one_of(trees_of(plain), trees_of(plain), trees))
def test_zip_files(tree):
    assume(not SPLITS & {name.lower() for name in tree})
    with folder() as root:
        files = files_of(tree)
        path = zipped(root / "p.zip", {name: data_of(kind) for name, (_, kind) in files.items()})
        bad = [name for name in files if unsafe(name)]
        seen = spellings(tree)
        if bad or len(set(seen)) < 2:
            with pytest.raises(DataError) as error:
                imbdiff.load(path)
            assert error.value.remedy
            assert not bad or f"{len(bad)} member" in error.value.message
            return
        check(path, {path: found for path, found in files.items() if not hidden(path)})


@some
@given(trees, st.sampled_from([",", ";", "\t"]))
def test_tables(tree, delimiter):
    with folder() as root:
        files = files_of(tree)
        rows = [[name, f"class {label}", 1] for name, (label, _) in files.items()]
        for path, (_, kind) in files.items():
            (root / path).parent.mkdir(exist_ok=True)
            (root / path).write_bytes(data_of(kind))
        path = root / "list.csv"
        with open(path, "w", newline="") as handle:
            csv.writer(handle, delimiter=delimiter).writerows([["image", "label", "weight"], *rows])
        labels = [unicodedata.normalize("NFC", row[1].strip()) for row in rows]
        if len(set(labels)) < 2:
            with pytest.raises(DataError) as error:
                imbdiff.load(path)
            assert error.value.remedy
            return
        check(path, files, lambda path: f"class {path.split('/')[0]}".strip())


@some
@given(trees)
def test_lists(tree):
    with folder() as root:
        files = {p: found for p, found in files_of(tree).items() if not set(p) & set("\n\r")}
        for path, (_, kind) in files.items():
            (root / path).parent.mkdir(exist_ok=True)
            (root / path).write_bytes(data_of(kind))
        files = {p: found for p, found in files.items() if p[0] not in "#\ufeff"}  # a comment, a mark of the encoding
        order = sorted({label for label, _ in files.values()})
        path = root / "list.txt"
        path.write_text("".join(f"{p} {order.index(label)}\n" for p, (label, _) in files.items()))
        if len(order) < 2:
            with pytest.raises(DataError):
                imbdiff.load(path)
            return
        check(path, files, lambda path: str(order.index(path.split("/")[0])))


def survives(source):
    """Whatever it holds: it is read, or an error says what is wrong and what to do."""
    try:
        opened = imbdiff.load(source)
        report = imbdiff.inspect(source)
        assert set(report["bad"]) <= {name for split in opened.splits for name in opened.ids(split)}
        json.dumps(report)
        opened.read_all(size=8)
    except ImbdiffError as refused:
        found = refused
    else:
        return
    assert found.message
    assert found.remedy


SMALL = {f"{c}/{i}.png": PNG for c in ("a", "b", "train") for i in range(2)}
edits = st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 255)), min_size=1, max_size=6)


@some
@given(st.integers(0, 2**20), edits, st.booleans(), st.booleans())
def test_damaged_zip_files(cut, flips, shorten, directory):
    with folder() as root:
        path = zipped(root / "p.zip", SMALL)
        data = bytearray(path.read_bytes())
        if shorten:
            data = data[: cut % len(data)]
        else:
            start = data.index(b"PK\1\2") if directory else 0
            for at, value in flips:
                data[start + at % (len(data) - start)] = value
        path.write_bytes(data)
        survives(path)


@settings(parent=some, max_examples=max(6, EXAMPLES // 3))
@given(st.integers(0, 2**20), edits, st.booleans(), st.booleans())
def test_damaged_parquet(cut, flips, shorten, footer):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pytest.importorskip("datasets").disable_progress_bars()
    with folder() as root:
        path = root / "t.parquet"
        cells = [{"bytes": PNG, "path": "x"}] * 8
        columns = {"image": cells, "label": [0, 0, 1, 1] * 2}
        pq.write_table(pa.table(columns), path, row_group_size=2)
        data = bytearray(path.read_bytes())
        start = len(data) - 8 - int.from_bytes(data[-8:-4], "little") if footer else 0
        if shorten:
            data = data[: cut % len(data)]
        else:
            for at, value in flips:
                data[start + at % (len(data) - start)] = value
        path.write_bytes(data)
        survives(path)


@some
@given(
    st.integers(0, 2**20), edits, st.booleans(), st.sampled_from(["t.csv", "t.tsv", "t.txt", "names.txt", "names.json"])
)
def test_damaged_lists(cut, flips, shorten, name):
    with folder() as root:
        for c in ("a", "b"):
            (root / c).mkdir()
            for i in range(3):
                (root / c / f"{i}.png").write_bytes(PNG)
        rows = [["image", "label"], *[[f"{c}/{i}.png", str(k)] for k, c in enumerate("ab") for i in range(3)]]
        (root / "t.csv").write_text("\n".join(",".join(f'"{cell}"' for cell in row) for row in rows))
        (root / "t.tsv").write_text("\n".join("\t".join(row) for row in rows))
        (root / "t.txt").write_text("\n".join(" ".join(row) for row in rows[1:]))
        (root / "names.txt").write_text("cat\ndog\n")
        (root / "names.json").write_text('{"0": "cat", "1": "dog"}')
        data = bytearray((root / name).read_bytes())
        if shorten:
            data = data[: cut % len(data)]
        else:
            for at, value in flips:
                data[at % len(data)] = value
        (root / name).write_bytes(data)
        survives(f"{root / 't.csv'}?names={root / name}" if "names" in name else root / name)


@some
@given(st.binary(max_size=300), st.sampled_from([".csv", ".tsv", ".txt", ".zip", ".parquet"]))
def test_rubbish(data, ending):
    if ending == ".parquet":
        pytest.importorskip("datasets")
    with folder() as root:
        (root / f"t{ending}").write_bytes(data)
        with pytest.raises(ImbdiffError) as error:
            imbdiff.load(root / f"t{ending}")
        assert error.value.remedy


@some
@given(st.lists(st.tuples(st.text(max_size=20), st.text(max_size=5)), max_size=5))
def test_tables_of_any_text(rows):
    """Nothing there exists; nothing outside is looked at."""
    with folder() as root:
        path = root / "t.csv"
        with open(path, "w", newline="", encoding="utf-8", errors="surrogatepass") as handle:
            csv.writer(handle).writerows([["image", "label"], *rows])
        with pytest.raises(ImbdiffError) as error:
            imbdiff.load(path)
        assert error.value.remedy
