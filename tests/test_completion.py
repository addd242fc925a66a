"""Completion in a shell: what the script that the command prints offers, in the shell itself."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from imbdiff.cli import GROUPS, VERBS, main
from imbdiff.methods import METHODS
from imbdiff.presets import PRESETS

ASK = {
    "bash": 'COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _imbdiff; printf "%s\\n" "${COMPREPLY[@]}"',
    "zsh": 'COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); emulate ksh; _imbdiff; printf "%s\\n" "${COMPREPLY[@]}"',
}


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("completion")
    for shell in ASK:
        with redirect_stdout(io.StringIO()) as printed:
            assert main(["--completion", shell]) == 0
        (folder / shell).write_text(printed.getvalue())
    return folder


def offered(scripts: Path, *words: str, shell: str = "bash") -> set[str]:
    command = [shell, *(["-f"] if shell == "zsh" else []), "-c", f"source {scripts / shell}; {ASK[shell]}", "x", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert not done.stderr
    return set(done.stdout.split())


def test_verbs(scripts: Path) -> None:
    assert offered(scripts, "imbdiff", "") == set(VERBS)
    assert offered(scripts, "imbdiff", "re") == {"report", "reference"}


@pytest.mark.parametrize("verb", VERBS)
def test_options_of_every_verb_are_those_of_its_help(
    verb: str, scripts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([verb, "--help-all" if verb in ("run", "train", "sweep") else "--help"])
    text = capsys.readouterr().out
    if verb == "evaluate":
        main([verb, "--reference", "x", "--help"])
        text += capsys.readouterr().out
    listed = set(re.findall(r"^  (--[a-z][\w.-]*)", text, re.M))
    found = offered(scripts, "imbdiff", verb, "-")
    assert listed or verb == "doctor"
    assert found - {"--help"} == listed
    if verb in GROUPS:
        assert "--quiet" in found
        assert offered(scripts, "imbdiff", verb, "here", "--qu") == {"--quiet"}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("run", "here", "--method", ""), set(METHODS)),
        (("train", "here", "--preset", "sm"), {name for name in PRESETS if name.startswith("sm")}),
        (("run", "--data.resize", ""), {"auto", "crop", "pad", "stretch"}),
        (("sample", "RUN", "--sample.sampler", "d"), {"ddpm", "ddim", "dpm++"}),
        (("methods", "cb"), {name for name in METHODS if name.startswith("cb")}),
        (("run", "--out", ""), set()),  # a name of a file, which the shell completes
        (("compare", "runs/"), set()),
    ],
)
def test_values(words: tuple[str, ...], expected: set[str], scripts: Path) -> None:
    assert offered(scripts, "imbdiff", *words) == expected


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_zsh_has_the_same(scripts: Path) -> None:
    for words in (("imbdiff", "r"), ("imbdiff", "run", "--data.s"), ("imbdiff", "run", "--method", "cc")):
        assert offered(scripts, *words, shell="zsh") >= offered(scripts, *words) != set()  # zsh itself filters them


def test_another_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--completion"], ["--completion", "fish"]):
        assert main(words) == 2
        assert "--completion bash" in capsys.readouterr().err
