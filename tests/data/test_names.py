import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imbdiff.data.names import display_name, safe_class_dir, safe_class_dirs

SAFE = re.compile(r"[A-Za-z0-9_+][A-Za-z0-9._ +-]{0,72}")


@pytest.mark.parametrize("name", ["cat", "T-shirt", "Ankle boot", "class_07", "0", "v1.2"])
def test_ordinary_names_stay(name):
    assert safe_class_dir(name) == name


@pytest.mark.parametrize(
    "name",
    ["../x", "a/b", "a\\b", "<script>", "x" * 200, "Käfer", "蝴蝶", "", ".", "..", ".hidden", "-rf", "CON", "nul.txt",
     "train", "Test", "a\nb", "a\0b", " x", "x ", "x.", "a:b", "~", "cat-0123abcd", "\ud800"],
)  # fmt: skip
def test_other_names_become_one_safe_component(name, tmp_path):
    folder = safe_class_dir(name)
    assert folder != name
    assert SAFE.fullmatch(folder)
    assert not folder.endswith((".", " "))
    assert safe_class_dir(folder) != folder or not re.search(r"-[0-9a-f]{8}$", folder)
    (tmp_path / folder).mkdir()
    assert [p.name for p in tmp_path.iterdir()] == [folder]


def test_what_can_be_read_is_kept():
    assert safe_class_dir("T-shirt/top").startswith("T-shirt_top-")
    assert safe_class_dir("Café").startswith("Cafe-")
    assert safe_class_dir("<script>").startswith("script-")


@settings(max_examples=25)
@given(st.lists(st.text(max_size=80), unique=True, max_size=12))
def test_different_classes_get_different_folders(names):
    folders = safe_class_dirs(names)
    assert len({folder.casefold() for folder in folders}) == len(names)
    assert all(SAFE.fullmatch(folder) for folder in folders)


def test_names_that_differ_only_in_case():
    assert len({folder.lower() for folder in safe_class_dirs(["Cat", "cat", "dog"])}) == 3
    assert safe_class_dirs(["Cat", "dog"]) == ("Cat", "dog")


def test_display_names_fit_one_line():
    assert display_name("a\n\x1b[31mb") == "a??[31mb"
    assert len(display_name("x" * 200)) == 60
