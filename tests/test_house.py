"""The rules of the house that a program can check."""

from __future__ import annotations

import importlib
import pkgutil
import re
import subprocess
from pathlib import Path

import pytest

import imbdiff

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))


def tracked() -> list[Path]:
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in done.stdout.split("\n") if name and (ROOT / name).is_file()]


@pytest.mark.parametrize("name", [m.name for m in pkgutil.walk_packages(imbdiff.__path__, "imbdiff.")])
def test_every_module_imports_and_says_what_it_is(name: str) -> None:
    if name.endswith("__main__"):
        return
    assert (importlib.import_module(name).__doc__ or "").strip(), f"{name} has no docstring"


def test_every_public_name_exists() -> None:
    for name in imbdiff.__all__:
        assert getattr(imbdiff, name) is not None
    with pytest.raises(AttributeError):
        imbdiff.nothing  # noqa: B018


def test_no_file_is_too_long() -> None:
    # a file of one idea; the trainer's loop is one
    long = {p.name: n for p in SOURCES if (n := len(p.read_text().splitlines())) > 340}
    assert not long


def test_no_machine_paths_secrets_or_large_files() -> None:
    pattern = re.compile(r"(/wo" r"rk/|/ro" r"ot/|/ho" r"me/[a-z]|(?:api|secret)_?key\s*=\s*['\"]\w)", re.I)
    for path in tracked():
        assert path.stat().st_size < 2**20, path
        assert path.suffix not in {".pt", ".pth", ".ckpt", ".pkl", ".npz"}, path
        if path.suffix in {".py", ".md", ".toml", ".yaml", ".txt", ".j2", ".json", ""}:
            assert not pattern.search(path.read_text(errors="replace")), path


def test_nothing_is_unpickled_and_no_global_generator_is_seeded() -> None:
    forbidden = re.compile(r"\btorch\.load\(|\bpickle\b|np\.random\.seed|\brandom\.seed\(|allow_pickle=True")
    for path in SOURCES:
        text = re.sub(r'""".*?"""|#[^\n]*', "", path.read_text(), flags=re.S)
        assert not forbidden.search(text), path


def test_reseeding_torch_happens_in_two_places_only() -> None:
    """Network dropout in the trainer, and weights of new networks inside a fork."""
    found = {p.name for p in SOURCES if "torch.manual_seed(" in re.sub(r"#[^\n]*", "", p.read_text())}
    assert found <= {"trainer.py", "model.py"}
