import pytest

from imbdiff.data.sources import load, parse
from imbdiff.data.spec import Spec
from imbdiff.runtime.errors import ConfigError, DataError
from tests.data.making import folder


def test_parts_of_a_source():
    spec = Spec.parse("hf:org/name?label=fine_label&revision=1", ("hf",))
    assert (spec.scheme, spec.rest, spec.options) == ("hf", "org/name", {"label": "fine_label", "revision": "1"})
    plain = Spec.parse("photos/cats", ("hf",))
    assert (plain.scheme, plain.rest, plain.options) == ("", "photos/cats", {})
    assert Spec.parse(r"C:\photos", ("hf",)).rest == r"C:\photos"
    assert Spec.parse("a.csv?root=a%26b%20c").options == {"root": "a&b c"}


def test_a_path_that_exists_is_a_path(tmp_path):
    odd = folder(tmp_path / "what?root=x", {"a": 2, "b": 2})
    assert load(odd).class_names == ("a", "b")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x?root", "cannot be read"),
        ("x?a=1&a=2", "given twice"),
        ("digits?root=1", "unknown option root"),
    ],
)
def test_options_that_make_no_sense(text, says):
    with pytest.raises(ConfigError, match=says):
        load(text)


def test_options_of_a_folder_are_refused(tmp_path):
    folder(tmp_path / "set", {"a": 2, "b": 2})
    with pytest.raises(ConfigError, match="take byproducts, group"):
        load(f"{tmp_path / 'set'}?label=x")
    with pytest.raises(DataError, match="does not exist"):
        load("nowhere?label=x")


def test_absolute_paths_can_be_opened_from_anywhere(tmp_path, monkeypatch):
    folder(tmp_path / "data" / "my set", {"a": 2, "b": 2})
    (tmp_path / "lists").mkdir()
    (tmp_path / "org").mkdir()
    monkeypatch.chdir(tmp_path)
    here = str(tmp_path)
    wanted = {
        "data/my set": f"{here}/data/my set",
        "digits": "digits",
        "cifar100-lt?root=data": f"cifar100-lt?root={here}/data",
        "lists/{0..3}.tar?val=lists/v*.tar": f"{here}/lists/{{0..3}}.tar?val={here}/lists/v*.tar",
        "hf:data": f"hf:{here}/data",
        "hf:data?test=data&root=data": f"hf:{here}/data?test=data&root={here}/data",
        "{lists,data}/x.tar": f"{here}/{{lists,data}}/x.tar",
        "x" * 300: "x" * 300,
        "hf:org/name?label=a b": "hf:org/name?label=a b",
        "nowhere/x.csv": "nowhere/x.csv",
    }
    for text, absolute in wanted.items():
        assert Spec.parse(text, ("hf",)).absolute() == absolute
        assert Spec.parse(absolute, ("hf",)).absolute() == absolute
    odd = Spec.parse("x.csv?root=a%26b+c")
    assert odd.options == {"root": "a&b+c"}
    assert Spec.parse(odd.absolute()).options == odd.options


def test_a_built_in_name_is_no_path_also_where_a_folder_is_called_so(tmp_path, monkeypatch):
    monkeypatch.chdir(folder(tmp_path, {"digits/a": 3, "digits/b": 3, "cifar10/a": 1}))
    for text in ("digits", "cifar10?root=nowhere"):
        assert parse(text).absolute() == text
    assert load("digits").kind == "digits"
    assert parse("./digits").absolute() == str(tmp_path / "digits")
    assert load(parse("./digits").absolute()).kind == "folder"


@pytest.mark.parametrize(
    "text",
    ["~nobody-of-that-name/x", "x.csv?root=~nobody-of-that-name", "a\0b", "a\0.tar", "\udcff", "x" * 5000, "y" * 300],
)
@pytest.mark.parametrize("ending", ["", ".csv", ".zip", ".tar", ".npz"])
def test_names_that_cannot_be_a_path(text, ending):
    with pytest.raises((ConfigError, DataError)):
        load(text + ending)


def test_what_a_run_is_called_after():
    found = {
        text: Spec.parse(text, ("hf",)).short for text in ("a/b.tar.gz", "cifar100-lt?root=/x/y", "hf:org/name", ".")
    }
    assert found == {
        "a/b.tar.gz": "b.tar",
        "cifar100-lt?root=/x/y": "cifar100-lt",
        "hf:org/name": "name",
        ".": "source",
    }
