"""The rules of the house that a program can check."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import torch

import imbdiff

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))


def tracked() -> list[Path]:
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in done.stdout.split("\n") if name and (ROOT / name).is_file()]


def test_every_module_imports_and_says_what_it_is() -> None:
    for module in pkgutil.walk_packages(imbdiff.__path__, "imbdiff."):
        if not module.name.endswith("__main__"):
            text = (importlib.import_module(module.name).__doc__ or "").strip()
            assert len(text) > 10, f"{module.name} does not say what it is"


def test_every_public_name_exists() -> None:
    for name in imbdiff.__all__:
        assert getattr(imbdiff, name) is not None
    with pytest.raises(AttributeError):
        imbdiff.nothing  # noqa: B018


def test_no_file_is_too_long() -> None:
    # a file of one whole idea: neither two, nor half of one
    long = {p.name: n for p in SOURCES if (n := len(p.read_text().splitlines())) > 500}
    assert not long


def imports() -> dict[str, set[str]]:
    """module -> the modules of the package that it imports, also inside functions; not those for type checkers."""
    of = {".".join(p.relative_to(ROOT / "src").with_suffix("").parts).removesuffix(".__init__"): p for p in SOURCES}
    found: dict[str, set[str]] = {}
    for name, path in of.items():
        tree = ast.parse(path.read_text())
        for node in [n for n in ast.walk(tree) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.dump(n.test)]:
            node.body = [ast.Pass()]
        wanted: set[str] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                wanted |= {a.name for a in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                wanted |= {node.module, *(f"{node.module}.{a.name}" for a in node.names)}
        packages = {n for n in wanted if f"{n}." in " ".join(of) + " "}  # what is imported lies below them
        found[name] = (wanted & of.keys()) - packages - {name}
    return found


def test_no_modules_import_each_other_in_a_circle() -> None:
    left = imports()
    while ends := [name for name, wanted in left.items() if not wanted & left.keys()]:
        for name in ends:
            del left[name]
    assert not left, f"in or before a circle: {sorted(left)}"


def test_no_machine_paths_secrets_or_large_files() -> None:
    pattern = re.compile(r"(/wo" r"rk/|/ro" r"ot/|/ho" r"me/[a-z]|(?:api|secret)_?key\s*=\s*['\"]\w)", re.I)
    for path in tracked():
        assert path.stat().st_size < 2**20, path
        assert path.suffix not in {".pt", ".pth", ".ckpt", ".pkl", ".npz"}, path
        if path.suffix in {".py", ".md", ".toml", ".yaml", ".txt", ".j2", ".json", ""}:
            assert not pattern.search(path.read_text(errors="replace")), path


def test_floats_of_hypothesis_are_not_subnormal() -> None:
    """It refuses to generate subnormal numbers in a process that flushes them to zero, as runs on a CPU do."""
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for call in re.findall(r"\bst\.floats\(([^()]*)\)", path.read_text()):
            assert "allow_subnormal=False" in call, (path, call)


@pytest.mark.parametrize("time", ["first", "second"])
def test_flushing_denormal_numbers_ends_with_the_test(time: str) -> None:
    tiny = torch.tensor([1e-310], dtype=torch.float64)
    assert (tiny * 1.5).item() > 0, time
    torch.set_flush_denormal(True)


def test_what_is_imported_is_declared() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [name for extra, listed in declared["optional-dependencies"].items() if extra != "dev" for name in listed]
    names = [*declared["dependencies"], *extras]
    known = {re.split(r"[<>=\[ ]", name)[0].lower().replace("_", "-") for name in names}
    known.add("markupsafe")  # a part of jinja2's interface: what its templates take as escaped
    of_module = packages_distributions()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules = [node.module]
            for module in {m.split(".")[0] for m in modules} - set(sys.stdlib_module_names) - {"imbdiff"}:
                found = {d.lower().replace("_", "-") for d in of_module.get(module, [module])}
                assert found & known, (path, module)


def test_nothing_is_unpickled_and_no_global_generator_is_seeded() -> None:
    """One file reads weight files of others, with torch's restricted reader only (tests/metrics/extractors).

    CIFAR's python version is read by an unpickler that calls nothing but what makes arrays (tests/data/test_cifar.py).
    """
    forbidden = re.compile(
        r"\b(torch|jit|hub|pkl|joblib|dill)\.load(_state_dict_from_url)?\(|\bu?n?pickle\b|np\.random\.seed|\brandom\.seed\("
        r"|allow_pickle=True|weights_only=False|trust_remote_code=True"
    )
    allowed = re.compile(r"\btorch\.load\(path, map_location=\"cpu\", weights_only=True\)")
    restricted = re.compile(r"import pickle\n|\(pickle\.Unpickler\)|raise pickle\.UnpicklingError")
    readers, unpicklers = [], []
    for path in SOURCES:
        text = re.sub(r'""".*?"""|#[^\n]*', "", path.read_text(), flags=re.S)
        text, count = allowed.subn("", text)
        readers += [path.name] * count
        if path.name == "cifar.py":
            text, count = restricted.subn("", text)
            unpicklers += [path.name] * count
        assert not forbidden.search(text), path
    assert readers == ["weights.py"]
    assert unpicklers == ["cifar.py"] * 3


def test_reseeding_torch_happens_in_two_places_only() -> None:
    """Network dropout in the trainer's updates, and weights of new networks inside a fork."""
    found = {p.name for p in SOURCES if "torch.manual_seed(" in re.sub(r"#[^\n]*", "", p.read_text())}
    assert found == {"update.py", "model.py"}


def test_every_objective_goes_through_the_conformance_checks_and_has_a_formula() -> None:
    """A new loss cannot be forgotten: the cases are what `check_objective` and the formulas are held against."""
    import inspect

    import imbdiff.objectives
    from imbdiff.objectives.objective import Objective
    from tests.contract.cases import CASES

    found = {
        name
        for module in pkgutil.iter_modules(imbdiff.objectives.__path__)
        for name, kind in vars(importlib.import_module(f"imbdiff.objectives.{module.name}")).items()
        # a class without terms of its own is a base class
        if inspect.isclass(kind) and issubclass(kind, Objective) and kind.terms is not Objective.terms
    }
    assert {"Denoising", "ClassBalancing", "UnconditionalContrast", "Transfer"} <= found
    missing = found - {of.objectives[0][0].__name__ for of in CASES.values() if len(of.objectives) == 1}
    assert not missing, f"{missing} have no formula and no case in tests/contract/cases.py"
