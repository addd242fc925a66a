import csv
import json
import os

import numpy as np
import pytest

from imbdiff.data import sources
from imbdiff.data.inspect import inspect
from imbdiff.runtime.errors import ConfigError, DataError
from tests.data.making import folder, noise, write

PATHS = ["a/000.png", "a/001.png", "b c/000.png", "b c/001.png", "b c/002.png"]


@pytest.fixture
def root(tmp_path):
    return folder(tmp_path / "images", {"a": 2, "b c": 3, "d": 2})


def load(path, **options):
    return sources.load("?".join([str(path), *(["&".join(f"{k}={v}" for k, v in options.items())] if options else [])]))


def put(path, text):
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def table(path, header, *rows):
    with open(path, "w", newline="") as handle:
        csv.writer(handle, delimiter="\t" if path.suffix == ".tsv" else ",").writerows([header, *rows])
    return path


def refused(path, kind=DataError, **options):
    with pytest.raises(kind) as error:
        load(path, **options)
    assert error.value.remedy
    return error.value.message


def test_a_list_keeps_its_order_and_reads_the_files_it_names(tmp_path, root):
    lines = [(3, 1), (0, 0), (4, 1), (1, 0)]
    text = "# a comment\r\n\r\n" + "".join(f"{PATHS[i]} {k}\r\n" for i, k in lines)
    source = load(put(tmp_path / "train.txt", text), root=root)
    assert (source.kind, source.splits, source.class_names) == ("list", ("train",), ("0", "1"))
    assert source.ids() == tuple(PATHS[i] for i, _ in lines)
    assert source.labels().tolist() == [1, 0, 1, 0]
    assert np.array_equal(source.read().images[0], noise(8, 8, 3, seed=1001))
    assert any("1 line that begins with #" in note for note in source.warnings)


EACH = [(p, p[0]) for p in PATHS]


@pytest.mark.parametrize(
    ("name", "text", "options", "names"),
    [
        ("l.txt", "".join(f"{p}  \t {k} \n" for p, k in EACH), {}, ("a", "b")),
        ("t.csv", 'image, label\n"a/000.png", "x, y"\n"a/001.png", z\n' + "".join(f'{p}, z\n' for p in PATHS[2:]), {},
         ("x, y", "z")),
        ("t.txt", "dx,path,n\n" + "".join(f"k{k},{p},1\n" for p, k in EACH), {"label": "dx"}, ("ka", "kb")),
        ("t.csv", "".join(f"{k},{p}\n" for p, k in EACH), {}, ("a", "b")),  # no header
        ("t.csv", "image,path,label,dx\n" + "".join(f"x,{p},{k},y\n" for p, k in EACH),
         {"image": "path", "label": "label"}, ("a", "b")),
    ],
)  # fmt: skip
def test_forms(root, name, text, options, names):
    source = load(put(root / name, text), **options)
    assert (source.ids(), source.class_names) == (tuple(PATHS), names)


def test_further_lists_are_splits(tmp_path, root, monkeypatch):
    put(root / "train.txt", "".join(f"{p} {int(p[0] == 'b')}\n" for p in PATHS))
    put(root / "test.txt", "d/000.png 1\n")
    put(tmp_path / "val.txt", "d/001.png 0\n")
    monkeypatch.chdir(tmp_path)
    source = load(root / "train.txt", test="test.txt", val="val.txt", root=root)
    assert source.splits == ("train", "val", "test")  # each found: next to the list, in the working folder
    assert source.ids("test") == ("d/000.png",)
    assert source.labels("val").tolist() == [0]
    assert np.array_equal(source.read("test").images[0], noise(8, 8, 3, seed=2000))


@pytest.mark.parametrize("ending", [".csv", ".tsv"])
@pytest.mark.parametrize(("image", "label"), [("image_id", "dx"), ("file_name", "class"), ("Image", "label")])
def test_usual_columns_are_found(root, ending, image, label):
    rows = [[i, path, path[0], "x,y\nz"] for i, path in enumerate(PATHS)]
    source = load(table(root / f"t{ending}", ["id", image, label, "notes"], *rows))
    assert source.ids() == tuple(PATHS)
    assert source.class_names == ("a", "b")


@pytest.mark.parametrize("delimiter", [",", ";", "\t", ", "])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_delimiters_and_encodings(root, delimiter, encoding):
    lines = ["image,label".replace(",", delimiter), *(f"{p}{delimiter}Käfer{p[0]}" for p in PATHS)]
    source = load(put(root / "t.csv", "\r\n".join(lines).encode(encoding)))
    assert source.class_names == ("Käfera", "Käferb")


COLUMNS = "image,path,label,dx\na/000.png,a/000.png,a,x\n"


@pytest.mark.parametrize(
    ("name", "text", "options", "parts"),
    [
        ("l.txt", "a.png 0\nb.png\n\nc.png 1\nd.png", {},
         ("2 lines without a label", "line 2: b.png\n  line 5: d.png")),
        ("l.txt", "# nothing\n", {}, ("lists no image",)),
        ("t.csv", COLUMNS, {}, ("several columns", "image (a/000.png)\n  path (a/000.png)\n  label (a)\n  dx (x)")),
        ("t.csv", COLUMNS, {"image": "path"}, ("called label or class or dx",)),
        ("t.csv", COLUMNS, {"image": "path", "label": "Label"}, ("no column is called Label",)),
        ("t.csv", "a,b\na/000.png,a\n", {}, ("no column is called image",)),
        ("t.csv", "image,label,label\na/000.png,a,b\n", {"label": "label"}, ("several columns",)),
        ("t.csv", "image,label\na/000.png,x\na/001.png, \nd/000.png,\n", {}, ("line 3: no label\n  line 4: no label",)),
        ("t.csv", "image,label,split\na/000.png,x,train\na/001.png,y,\n", {}, ("line 3: '' is no split",)),
        ("t.csv", 'image,label\na/000.png,x\n"a/001.png,y\n', {}, ("line 3: unexpected end of data",)),
        ("t.csv", "image,label\na/000.png\na/1.png,x,y\n", {}, ("line 2: 1 cell, a/000.png\n  line 3: 3 cells",)),
        ("t.csv", b"image,label\na\xff.png,x\n", {}, ("not in UTF-8",)),
        ("t.csv", b"image,label\na\0.png,x\n", {}, ("a NUL byte in line 2",)),
        ("t.csv", "image,label\n" + "a" * 2**20, {}, ("characters in line 2",)),
        ("t.csv", "image,label\n" + "a" * 140_000, {}, ("line 2: field larger",)),
        ("t.csv", "image,label\n", {}, ("lists no image",)),
        # line numbers count lines and not rows
        ("t.csv", '# c\n\nimage,label\n"x\n\ny.png",a\n\nz.png,b\n', {},
         ("line 4: x??y.png does not exist\n  t.csv line 8: z.png does",)),
        ("l.txt", "a/000.png 0\na/001.png 0\n", {}, ("only one class, '0'",)),
        ("l.txt", "a/000.png 0\na/001.png -1\n", {}, ("out of range: [-1]",)),
        ("l.txt", "a/000.png 0\na/001.png 1\n", {"root": "nowhere"}, ("nowhere", "no folder")),
    ],
)  # fmt: skip
def test_what_is_refused(root, name, text, options, parts):
    message = refused(put(root / name, text), **options)
    for part in parts:
        assert part in message


def test_options_that_make_no_sense(root):
    path = put(root / "t.csv", COLUMNS)
    assert "both a column and lists" in refused(path, ConfigError, split="split", test="x.csv")
    assert "unknown option rot" in refused(path, ConfigError, rot="x")
    assert "No such file" in refused(root / "none.csv")
    os.mkfifo(root / "pipe.csv")
    assert "is no file" in refused(root / "pipe.csv")


def test_a_split_column(root):
    spelled = ["Train", "training", "TEST", "train", "validation"]
    rows = [[p, p[0], s, s[:2]] for p, s in zip(PATHS, spelled, strict=True)]
    path = table(root / "t.csv", ["image", "label", "split", "part"], *rows)
    for source in (load(path), load(path, split="split")):
        assert source.splits == ("train", "val", "test")
        assert source.ids() == ("a/000.png", "a/001.png", "b c/001.png")
        assert source.ids("val") == ("b c/002.png",)
    assert any("the column 'split'" in note for note in load(path).warnings)
    assert load(path, split="").splits == ("train",)
    assert "5 rows without a label or split:\n  line 2: 'Tr' is no split" in refused(path, split="part")


@pytest.mark.parametrize("ending", [".jpg", ".PNG", ".tif"])
def test_endings_are_added(tmp_path, ending):
    names = ["ISIC_1", "ISIC_2.5", "x/ISIC_3"]
    for i, name in enumerate(names):
        write(tmp_path / f"{name}{ending}", noise(8, 8, 3, seed=i))
    path = table(tmp_path / "t.csv", ["image_id", "dx"], *[[name, f"k{i % 2}"] for i, name in enumerate(names)])
    source = load(path)
    assert source.ids() == tuple(name + ending for name in names)
    assert len(source.read()) == 3
    assert any("added to 3 names" in note for note in source.warnings)
    write(tmp_path / "ISIC_1.bmp", noise(8, 8, 3))
    assert "exists as" in refused(path)


def test_all_missing_files_are_listed_with_the_root(tmp_path, root):
    path = put(tmp_path / "l.txt", "images/a/000.png 0\n" + "".join(f"a/{i}.png 1\n" for i in range(30)))
    message = refused(path)
    assert f"of the 31 files that {path} lists, 30 cannot be used below {tmp_path}:" in message
    assert "l.txt line 2: a/0.png does not exist" in message
    assert "and 10 more" in message
    assert "000.png" not in message


def test_paths_that_leave_the_root_are_all_listed(tmp_path, root):
    secret = write(tmp_path / "secret" / "0.png", noise(8, 8, 3))
    (root / "link.png").symlink_to(secret)
    (root / "inside.png").symlink_to(root / "a" / "000.png")
    (root / "linked").symlink_to(secret.parent)
    bad = [
        "../secret/0.png",
        str(secret),
        "a/../../secret/0.png",
        "link.png",
        "linked/0.png",
        "..\\secret\\0.png",
        "~/x/../../..",
    ]
    path = table(root / "t.csv", ["image", "label"], ["inside.png", "a"], *[[name, "b"] for name in bad])
    message = refused(path)
    assert f"of the 8 files that {path} lists, 7 cannot be used below {root}:" in message
    for name in bad:
        assert f"{name} leads out of the root" in message
    assert "inside.png" not in message
    good = table(root / "t.csv", ["image", "label"], ["inside.png", "a"], ["a/../b c/000.png", "b"])
    assert load(good).ids() == ("inside.png", "b c/000.png")


def test_absolute_paths_below_the_root_and_backslashes(tmp_path, root):
    real = tmp_path / "link"
    real.symlink_to(root)
    rows = [
        [str(root / "a/000.png"), "a"],
        [str(real / "a/001.png"), "a"],
        ["b c\\000.png", "b"],
        ["./b c//001.png", "b"],
    ]
    source = load(table(root / "t.csv", ["image", "label"], *rows), root=real)
    assert source.ids() == ("a/000.png", "a/001.png", "b c/000.png", "b c/001.png")


def test_what_is_no_ordinary_file_is_listed(root):
    os.mkfifo(root / "pipe.png")
    rows = [["a", "x"], ["pipe.png", "y"], ["a/000.png", "x"], ["n" * 300 + ".png", "y"]]
    message = refused(table(root / "t.csv", ["image", "label"], *rows))
    assert "pipe.png is no ordinary file" in message
    assert "a is no ordinary file" in message
    assert "File name too long" in message


def test_repeated_lines_count_once_and_contradictions_are_listed(root):
    same = "".join(f"{p} {int(p[0] == 'b')}\n" for p in [*PATHS, PATHS[0], "./a/000.png"])
    source = load(put(root / "l.txt", same))
    assert source.ids() == tuple(PATHS)
    assert any("2 lines" in note and "a/000.png" in note for note in source.warnings)
    put(root / "test.txt", "d/000.png 1\nb c/001.png 0\n")
    put(root / "l.txt", "a/000.png 0\nb c/001.png 1\na/000.png 1\n")
    message = refused(root / "l.txt", test=root / "test.txt")
    assert "2 lines give" in message
    assert "a/000.png: '0' (l.txt line 1), '1' (l.txt line 3)" in message
    assert "b c/001.png: '1' (l.txt line 2), '0' (test.txt line 2)" in message


def numbered(root, labels, **options):
    return load(put(root / "n.txt", "".join(f"{p} {k}\n" for p, k in zip(PATHS, labels, strict=False))), **options)


def test_class_numbers(root):
    assert numbered(root, [0, 2, 1, 1, 0]).labels().tolist() == [0, 2, 1, 1, 0]
    from_one = numbered(root, [1, 2, 3, 1, 2])
    assert from_one.class_names == ("1", "2", "3")
    assert from_one.labels().tolist() == [0, 1, 2, 0, 1]
    assert numbered(root, ["2.0", "0", "1.0", "0.0", "1"]).labels().tolist() == [2, 0, 1, 0, 1]
    sparse = numbered(root, [48662, 7, 47219, 7, 48662])
    assert sparse.class_names == ("7", "47219", "48662")
    assert numbered(root, ["007", "2", "10", "2", "007"]).class_names == ("2", "007", "10")


def test_class_names_from_a_file(root):
    names = put(root / "names.txt", "zebra\nant\nbee\r\n")
    assert numbered(root, [0, 2, 1, 1, 0], names=names).class_names == ("zebra", "ant", "bee")
    source = numbered(root, [1, 2, 3, 1, 2], names=names)
    assert source.class_names[source.labels()[0]] == "zebra"
    by_name = numbered(root, ["bee", "ant", "zebra", "ant", "bee"], names=names)
    assert by_name.class_names == ("zebra", "ant", "bee")
    assert by_name.labels().tolist() == [2, 1, 0, 1, 2]
    fewer = numbered(root, [0, 1, 0, 1, 0], names=names)
    assert fewer.class_names == ("zebra", "ant")
    assert any("'bee'" in note for note in fewer.warnings)
    with pytest.raises(DataError, match=r"without a name among the 3 class names:\n  3"):
        numbered(root, [0, 1, 2, 3, 0], names=names)
    put(names, "a\nb\na\n")
    with pytest.raises(DataError, match=r"class names occur twice:\n  a"):
        numbered(root, [0, 1, 2, 0, 1], names=names)


def test_class_names_from_json(root):
    names = root / "names.json"
    names.write_text(json.dumps({"10": "ten", "2": "two", "1": "one"}))
    source = numbered(root, [10, 2, 1, 1, 10], names=names)
    assert source.class_names == ("one", "two", "ten")
    assert source.labels().tolist() == [2, 1, 0, 0, 2]
    assert numbered(root, ["ten", "two", "one"], names=names).labels().tolist() == [2, 1, 0]
    names.write_text(json.dumps({"nv": "nevus", "mel": "melanoma"}))
    coded = numbered(root, ["mel", "nv", "mel"], names=names)
    assert coded.class_names == ("nevus", "melanoma")
    assert coded.labels().tolist() == [1, 0, 1]
    names.write_text(json.dumps(["x", "y"]))
    assert numbered(root, [0, 1], names=names).class_names == ("x", "y")
    for text in ('{"0": 3}', "[", "", "[" * 100_000, '["a", ""]'):
        names.write_text(text)
        with pytest.raises(DataError, match="names"):
            numbered(root, [0, 1], names=names)


def test_classes_that_only_a_test_list_has(root):
    put(root / "test.txt", "d/000.png 7\nd/001.png wolf\n")
    with pytest.raises(DataError, match=r"in test but not in train:\n  '7'\n  'wolf'"):
        numbered(root, [0, 1, 0, 1], test=root / "test.txt")


def test_damaged_images_have_the_names_of_the_list(root):
    (root / "a/001.png").write_bytes(b"")
    path = put(root / "l.txt", "".join(f"{p} {int(p[0] == 'b')}\n" for p in PATHS))
    assert inspect(path)["bad"] == {"a/001.png": "empty file (0 bytes)"}


def test_one_file_in_two_splits_keeps_its_id(tmp_path, root):
    put(root / "v.txt", "a/000.png 0\n")
    source = load(put(root / "l.txt", "a/000.png 0\na/001.png 1\n"), val=root / "v.txt")
    assert source.ids("val") == ("a/000.png",)


@pytest.mark.parametrize("names", ['["\\ud800", "b"]', '{"0": "\\udc00x", "1": "b"}'])
def test_class_names_that_are_no_text(tmp_path, root, names):
    path = put(root / "l.txt", "a/000.png 0\na/001.png 1\n")
    message = refused(path, names=put(tmp_path / "n.json", names))
    assert "cannot be written as UTF-8 text" in message
    message.encode()


def test_class_names_of_many_characters(tmp_path, root):
    path = put(root / "l.txt", "a/000.png 0\na/001.png 1\n")
    assert "1,001 characters" in refused(path, names=put(tmp_path / "n.txt", "x" * 1001 + "\nb"))


@pytest.mark.parametrize("label", [0, 1])
def test_each_list_begins_at_its_own_folder(tmp_path, label):
    """The same names in two folders are different images, with labels of their own."""
    for part, counts in (("train", {"a": 2}), ("test", {"x": 3, "a": 1})):
        folder(tmp_path / part, counts)
    path = put(tmp_path / "train" / "list.txt", "a/000.png 0\na/001.png 1\n")
    source = load(path, test=put(tmp_path / "test" / "list.txt", f"a/000.png {label}\n"))
    assert source.ids("test") == ("a/000.png",)
    assert source.labels("test").tolist() == [label]
    assert np.array_equal(source.read("test").images[0], noise(8, 8, 3, seed=1000))
    assert np.array_equal(source.read("train").images[0], noise(8, 8, 3, seed=0))
