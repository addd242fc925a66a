"""The documentation site: built without a warning, its examples run, every link inside of it leads somewhere."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import imbdiff
from imbdiff.cli import VERBS
from imbdiff.methods import METHODS

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("plot_*.py"))


class Page(HTMLParser):
    """Links, names that links may lead to, and pictures of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.names: set[str] = set()
        self.text = path.read_text("utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        of = dict(attrs)
        self.names |= {name for name in (of.get("id"), of.get("name") if tag == "a" else None) if name}
        self.links += [link for link in (of.get("href"), of.get("src")) if link]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Page]:
    pytest.importorskip("sphinx_gallery")
    pytest.importorskip("myst_parser")
    out = tmp_path_factory.mktemp("site").resolve()
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "docs", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "MPLBACKEND": "agg"})
    assert done.returncode == 0, done.stderr[-4000:]
    return {path: Page(path) for path in sorted(out.rglob("*.html")) if "_static" not in path.parts}


def test_every_link_inside_leads_somewhere(site: dict[Path, Page]) -> None:
    broken = []
    for path, page in site.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            named = target not in site or not parts.fragment or unquote(parts.fragment) in site[target].names
            if not (target.exists() and named):
                broken.append((path.name, link))
    assert not broken


def test_the_pages_hold_what_they_promise(site: dict[Path, Page]) -> None:
    named = {str(path.relative_to(min(site, key=lambda p: len(p.parts)).parent)): page for path, page in site.items()}
    for page in (ROOT / "docs").glob("*.md"):
        assert f"{page.stem}.html" in named
    for name in set(imbdiff.__all__) - {"__version__"}:
        assert f"generated/imbdiff.{name}.html" in named, f"{name} is not in docs/api.md"
    assert all(f"imbdiff {verb}" in named["cli.html"].text for verb in VERBS)
    assert all(f">{method}<" in named["tables.html"].text for method in METHODS)
    assert "class:" not in named["tables.html"].text
    types = re.sub(r"<[^>]+>", "", named["generated/imbdiff.train.html"].text)
    assert "RunConfig" in types
    assert "DiffusionModel" in types
    for example in EXAMPLES:
        text = named[f"gallery/{example.stem}.html"].text
        assert "sphx-glr-script-out" in text
        assert "gallery" in text


def test_the_notebook_is_the_first_example() -> None:
    """One program in two forms: `python docs/notebook.py` made the notebook."""
    cells = json.loads((ROOT / "examples" / "first_steps.ipynb").read_text())["cells"]
    code = ["".join(cell["source"]).strip() for cell in cells if cell["cell_type"] == "code"]
    blocks = re.split(r"^# %%\n(?:#.*\n)*", EXAMPLES[0].read_text(), flags=re.M)[1:]
    assert code == [block.strip() for block in blocks]
    assert any(output.get("data", {}).get("image/png") for cell in cells for output in cell.get("outputs", []))
