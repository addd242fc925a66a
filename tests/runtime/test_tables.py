"""Entries by name: of the table, of a module, of an installed package's entry points; and every way to get it wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from imbdiff.runtime.errors import ConfigError
from imbdiff.runtime.tables import imported, known, lookup

TABLE = {"one": 1, "two": 2}
PROGRAM = "THREE = 3\nTEXT = 'three'\n"


def test_entry_of_the_table_comes_first(outside: Callable[..., None]) -> None:
    outside(PROGRAM, "numbers", one="THREE", three="THREE")
    assert lookup("numbers", TABLE, "one") == 1
    assert known("numbers", TABLE) == ["one", "two", "three"]
    assert known("others", TABLE) == ["one", "two"]


@pytest.mark.parametrize("name", ["module:outside:THREE", "three"])
def test_entry_from_outside(name: str, outside: Callable[..., None]) -> None:
    outside(PROGRAM, "numbers", three="THREE")
    assert lookup("numbers", TABLE, name, kind=int) == 3


def test_a_module_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "only_here_7.py").write_text(PROGRAM)
    monkeypatch.chdir(tmp_path)
    assert lookup("numbers", TABLE, "module:only_here_7:THREE") == 3


@pytest.mark.parametrize(
    ("name", "words", "remedy"),
    [
        ("tow", "unknown name 'tow' among the numbers", "did you mean two"),
        ("xyz", "unknown name 'xyz'", "choose one of one, two, text, broken"),
        ("txt", "unknown name 'txt'", "did you mean text"),
        ("text", "text is a str, and an entry of the numbers must be a int", "builtins.int"),
        ("module:outside:TEXT", "is a str", "builtins.int"),
        ("broken", "cannot be loaded: AttributeError", "correct or remove the package"),
        ("module:outside:THREEE", "the module outside has no 'THREEE'", "did you mean THREE"),
        ("module:outside", "names no object in a module", "module:PACKAGE.MODULE:NAME"),
        ("module:nowhere_at_all:X", "ModuleNotFoundError", "PYTHONPATH"),
    ],
)
def test_what_is_refused(name: str, words: str, remedy: str, outside: Callable[..., None]) -> None:
    outside(PROGRAM, "numbers", text="TEXT", broken="MISSING")
    with pytest.raises(ConfigError, match=words) as caught:
        lookup("numbers", TABLE, name, kind=int)
    assert remedy in caught.value.remedy


def test_a_module_that_fails(outside: Callable[..., None]) -> None:
    outside("raise ValueError('not today')\n")
    with pytest.raises(ConfigError, match="ValueError: not today"):
        imported("module:outside:X", "numbers")
