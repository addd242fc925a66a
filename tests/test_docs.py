"""Every command and program in README and docs runs."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import imbdiff
from imbdiff.cli import main
from imbdiff.config import override
from imbdiff.methods import get_method
from imbdiff.pipeline import training
from imbdiff.runtime.errors import ConfigError
from tests.pipeline.conftest import SMALL, write_tree

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.M | re.S)


def small(arguments: list[str]) -> list[str]:
    given = {a for a in arguments if a.startswith("--")}
    extra: list[str] = []
    for group, values in SMALL.items():
        for name, value in values.items() if isinstance(values, dict) else ():
            if f"--{group}.{name}" not in given and name != "imbalance_factor":
                extra += [f"--{group}.{name}", str(value)]
    return [*arguments, *extra]


README_COMMANDS = [
    line for block in blocks(PAGES[0], "bash") for line in block.splitlines() if line.strip() and line[0] != "."
]


def test_the_readme_has_the_commands_that_it_should() -> None:
    assert README_COMMANDS[:2] == ["make demo", "make test"]
    assert "imbdiff run path/to/folder" in README_COMMANDS


@pytest.mark.parametrize("line", README_COMMANDS)
def test_readme_commands_run(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = shlex.split(line)
    monkeypatch.chdir(tmp_path)
    write_tree(tmp_path / "path" / "to" / "folder", {"cat": 24, "dog": 9, "eel": 6})
    if words[0] == "make":
        plan = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        commands = [shlex.split(row.strip()) for row in plan.splitlines() if "/bin/imbdiff run" in row]
        if words[1] == "test":
            assert "pytest" in plan
            return
        assert len(commands) == 1
        assert main(small(commands[0][1:])) == 0
        assert (tmp_path / "runs" / "demo" / "report.html").exists()
        return
    assert words[0] == "imbdiff"
    write_tree(tmp_path / "path/to/synthetic", {"cat": 30, "dog": 30, "eel": 30})
    write_tree(tmp_path / "path/to/real", {"cat": 30, "dog": 30, "eel": 30})
    arguments = words[1:] if words[1] in ("inspect", "evaluate") else small(words[1:])
    assert main(arguments) == 0


def test_the_readme_program_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    programs = blocks(PAGES[0], "python")
    assert len(programs) == 1
    assert len([line for line in programs[0].splitlines() if line.strip()]) <= 10
    config = override(imbdiff.preset("demo"), SMALL)
    real = imbdiff.classify
    monkeypatch.setattr(imbdiff, "preset", lambda name: config, raising=False)
    monkeypatch.setattr(imbdiff, "classify", lambda *a, **k: real(*a, **k, seeds=(0, 1)), raising=False)
    exec(compile(programs[0], "README.md", "exec"), {})
    assert "synthetic images" in capsys.readouterr().out


def test_the_example_method_and_guidance_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the page says: files in a folder of one's own, or the same by an entry point; the package is not changed."""
    page = ROOT / "docs" / "adding-a-method.md"
    objective, check, guidance = blocks(page, "python")
    (tmp_path / "gaps.py").write_text(objective)
    (tmp_path / "halves.py").write_text(guidance)
    (declared,) = blocks(page, "toml")
    installed = tmp_path / "mypackage-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: mypackage\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text(
        declared.replace('."', ".").replace('"]', "]").replace("project.entry-points.", "").replace('"', "")
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    for module in ("gaps", "halves"):  # of another test in this process
        sys.modules.pop(module, None)
    exec(compile(check, page.name, "exec"), {})
    for name in ("module:gaps:LABEL_GAP", "label-gap"):
        config = override(imbdiff.preset("tiny"), {**SMALL, "method": name, "method.power": 2})
        imbdiff.run("digits", tmp_path / name[-9:], config, wanted=("train", "report"), quiet=True)
        assert "label_gap/gap" in (tmp_path / name[-9:] / "log.jsonl").read_text()
        assert "label_gap.power 2.0 (published: 1.0)" in (tmp_path / name[-9:] / "report.html").read_text()
    with pytest.raises(ConfigError, match="must be a Method"):
        get_method("module:gaps:LabelGap")
    data = training.prepare_data("digits", config.data)
    before = training.training_inputs(data, config)
    (tmp_path / "gaps.py").write_text(objective + "# changed\n")
    assert training.training_inputs(data, config) != before, "a training depends on code from outside"
    run = str(tmp_path / "label-gap")
    words = shlex.split(blocks(page, "bash")[1].replace("RUN", run))
    assert main(words[1:]) == 0
    manifest = (tmp_path / "label-gap" / "samples" / "manifest.json").read_text()
    assert '"module:halves:HALF.share": 0.9' in manifest


def test_the_example_measure_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    from imbdiff.metrics import measures
    from imbdiff.metrics.extractors import RawPixels

    (program,) = blocks(ROOT / "docs" / "metrics.md", "python")
    monkeypatch.setattr(measures, "MEASURES", dict(measures.MEASURES))
    exec(compile(program, "metrics.md", "exec"), {})
    data = imbdiff.prepare("digits", imbalance_factor=20)
    only = {"shift": measures.MEASURES["shift"]}
    judge = RawPixels(data.train.shape)
    found = imbdiff.evaluate(
        data.train, data.test, data.train, data.groups, [judge], reference_name="test", measures=only
    )
    value = next(r["value"] for r in found["numbers"] if r["scope"] == "all" and r["metric"] == "shift")
    assert value > 0
    assert {r["scope"] for r in found["numbers"]} == {"all", "many", "medium", "few"}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", page.read_text()):
        linked = page.parent / target if target else page
        assert linked.exists(), f"{page.name} links to {target}"
        if anchor:
            text = re.sub(r"^```.*?^```", "", linked.read_text(), flags=re.S | re.M)
            heads = [h.strip().lower() for h in re.findall(r"^#+ (.*)$", text, flags=re.M)]
            known = {re.sub(r"[^\w\- ]", "", h).replace(" ", "-") for h in heads}
            assert anchor in known, f"{page.name} links to #{anchor} of {linked.name}"
