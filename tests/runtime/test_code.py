"""Code that a name stands for: run where the user named it, refused where a file did, and its errors told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from imbdiff.cli import main
from imbdiff.pipeline.folder import RunFolder
from imbdiff.runtime.code import code_in
from imbdiff.runtime.errors import ConfigError
from tests.pipeline.conftest import small_arguments

PROGRAM = """
from pathlib import Path
from torch import nn
Path("it-ran").touch()

def net(shape, num_classes):
    h, w, c = shape
    return nn.Sequential(nn.Flatten(), nn.Linear(h * w * c, 8), nn.ReLU())

def broken(shape, num_classes):
    raise KeyError("a slip")

class Late(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.calls = net((8, 8, 1), 2), 0
    def forward(self, x):
        self.calls += 1
        if self.calls > 3:
            raise IndexError("a late slip")
        return self.inner(x)

def late(shape, num_classes):
    return Late()
"""
SMALL = [
    *small_arguments(),
    "--train.images",
    "32",
    "--classify.seeds",
    "1",
    "--classify.recipes",
    "ce",
    "--classify.primary",
    "ce",
]
NET = ["--classify.network", "module:outside:net"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outside: Callable[..., None]) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    outside(PROGRAM)
    return tmp_path


def ran(here: Path) -> bool:
    import sys

    sys.modules.pop("outside", None)
    mark = here / "it-ran"
    found = mark.exists()
    mark.unlink(missing_ok=True)
    return found


def test_names_in_words_and_files() -> None:
    text = "network: module:a.b:c\nmethod: cbdm+module:d:e\nsource: 'module:f:g?root=x'\nnothing: submodule:x:y"
    assert code_in(text) == {"module:a.b:c", "module:d:e", "module:f:g"}


def test_code_in_a_configuration_is_refused_unless_allowed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "theirs.yaml").write_text("classify: {network: 'module:outside:net'}\n")
    words = ["train", "digits", *SMALL, "--out", "run", "--config", "theirs.yaml", "--quiet"]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "theirs.yaml" in said
    assert "module:outside:net" in said
    assert not ran(here)
    assert not (here / "run").exists()
    assert main([*words, "--allow-code"]) == 0
    assert ran(here)
    assert main(["report", "run"]) == 0  # from now on it is this user's run


def test_a_run_that_was_typed_goes_on_and_one_from_elsewhere_does_not(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "digits", *SMALL, *NET, "--out", "run", "--quiet"]) == 0
    assert ran(here)
    (here / "run").rename(here / "moved")
    assert main(["report", "moved"]) == 0
    assert ran(here)
    monkeypatch.setenv("XDG_STATE_HOME", str(here / "of-another-user"))
    assert main(["report", "moved"]) == 2
    assert "--allow-code" in capsys.readouterr().err
    assert not ran(here)
    assert main(["train", "digits", *SMALL, *NET, "--out", "moved", "--quiet"]) == 0  # typed
    assert ran(here)
    assert main(["report", "moved", "--allow-code"]) == 0


def test_a_seal_is_of_the_names(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "digits", *SMALL, *NET, "--out", "run", "--quiet"]) == 0
    config = here / "run" / "config.yaml"
    config.write_text(config.read_text().replace("module:outside:net", "module:outside:late"))
    ran(here)
    assert main(["report", "run"]) == 2
    assert "module:outside:late" in capsys.readouterr().err
    assert not ran(here)
    (here / "run" / ".allowed").write_text("")
    assert main(["report", "run"]) == 2
    assert not ran(here)


def test_programs_run_what_they_are_given(here: Path) -> None:
    from imbdiff.runtime.tables import imported

    assert imported("module:outside:net", "networks").__name__ == "net"


@pytest.mark.parametrize(
    ("name", "slip"),
    [("module:outside:broken", "KeyError"), ("module:outside:late", "IndexError"), ("module:os:system", "TypeError")],
)
def test_code_that_fails_is_an_error_and_no_traceback(
    name: str, slip: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["run", "digits", *SMALL, "--sample.strategy", "9=7", "--classify.network", name, "--out", "run"]
    assert main([*words, "--quiet"]) == 2
    said = capsys.readouterr().err
    assert slip in said
    assert name in said or "outside.py, line" in said
    assert "Traceback" not in said


def test_passwords_in_addresses_are_not_repeated() -> None:
    error = ConfigError("https://me:secret@host/a.parquet holds a password", "leave https://me:secret@host out")
    assert "secret" not in str(error) + error.message + error.remedy
    assert "host/a.parquet" in error.message


def test_numbers_beyond_what_computers_count_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("seed", "data.split_seed", "train.images"):
        words = ["run", "digits", f"--{name}", "99999999999999999999999", "--out", str(tmp_path / "run")]
        assert main(words) == 2
        assert name in capsys.readouterr().err
    assert not RunFolder(tmp_path / "run").exists
