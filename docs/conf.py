"""The documentation site: `make docs` builds it into build/docs.

Its pages are README and docs/*.md as they are. What stands elsewhere is put there before they are read: the benchmarks'
results, the options of every verb, the tables of all families.
"""

from __future__ import annotations

import re
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
ROOT = DOCS.parent
sys.path.insert(0, str(ROOT / "src"))

from imbdiff.version import __version__  # noqa: E402

project, author, release = "imbalanced-diffusion", "The imbalanced-diffusion developers", __version__
copyright = author
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["gallery/*.ipynb", "gallery/*.py", "gallery/*.json", "sg_execution_times.rst"]
templates_path = ["templates"]
html_theme = "pydata_sphinx_theme"
html_title = project
html_static_path: list[str] = []
html_show_sourcelink = False
html_theme_options = {
    "navigation_with_keys": False,
    "show_toc_level": 2,
    "navbar_align": "left",
    "footer_start": ["copyright"],
    "footer_end": [],
}
html_sidebars: dict[str, list[str]] = {"index": [], "changelog": []}

myst_heading_anchors = 4
autosummary_generate = True
autodoc_typehints = "description"
autodoc_typehints_description_target = "all"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 80
napoleon_numpy_docstring = False
napoleon_use_rtype = False
default_role = "py:obj"
suppress_warnings = ["config.cache", "myst.strikethrough"]

sphinx_gallery_conf = {
    "examples_dirs": str(ROOT / "examples"),
    "gallery_dirs": "gallery",
    "filename_pattern": r"/plot_",
    "abort_on_example_error": True,
    "within_subsection_order": "FileNameSortKey",
    "download_all_examples": False,
    "show_memory": False,
    "doc_module": ("imbdiff",),
    "backreferences_dir": None,
    "reset_modules": ("matplotlib",),
    "plot_gallery": True,
}
warnings.filterwarnings("ignore", category=UserWarning, message="FigureCanvasAgg is non-interactive")


def benchmarks() -> None:
    """The benchmarks' pages and results, next to the pages that link to them."""
    home = DOCS / "benchmarks"
    (home / "results").mkdir(parents=True, exist_ok=True)
    for page in [*ROOT.glob("benchmarks/*.md"), *ROOT.glob("benchmarks/results/*.md")]:
        # metadata of files decide what is built again
        shutil.copy2(page, home / page.relative_to(ROOT / "benchmarks"))
    heading = "# Results\n\nOne page a measurement, as its program wrote it.\n"
    (home / "results" / "index.md").write_text(f"{heading}\n```{{toctree}}\n:glob:\n:maxdepth: 1\n\n*\n```\n")


def options() -> str:
    """The help of every verb."""
    from imbdiff.cli import GROUPS, HELP, VERBS, Help, _execute

    def shown(*words: str) -> str:
        try:
            _execute(*words[:1], words=list(words[1:]))
        except Help as text:
            return str(text)
        raise AssertionError(f"{words} has no help")

    parts = [f"```text\n{HELP.strip()}\n```"]
    for verb in VERBS:
        asked = "--help-all" if verb == "run" else "--help"
        parts.append(f"## `imbdiff {verb}`\n\n```text\n{shown(verb, asked)}\n```")
        if verb == "evaluate" and verb in GROUPS:
            parts.append(f"Without a run:\n\n```text\n{shown(verb, '--reference', 'REAL', '--help')}\n```")
    return "\n\n".join(parts)


def tables() -> str:
    """The tables of all families, as `imbdiff methods --json` has them."""
    from imbdiff.pipeline.catalogue import as_json

    parts = []
    for family, rows in as_json().items():
        lines = [f"## {family.capitalize()}", "", "| name | |", "|---|---|"]
        for name, row in rows.items():
            cells = [
                text if key == "idea" else f"*{key}*: {text}" for key, value in row.items() if (text := plain(value))
            ]
            lines.append(f"| `{name.replace('|', chr(92) + '|')}` | {'<br>'.join(cells)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def plain(value: Any) -> str:
    """A value as text of a table's cell."""
    return re.sub(r"([|*_<>\[\]$`\\])", r"\\\1", "" if value is None else str(value))


def complete(app: Any, name: str, source: list[str]) -> None:
    """The text of a page: what stands elsewhere, and links as they lead inside of the site."""
    if name == "index":
        source[0] = (ROOT / "README.md").read_text("utf-8") + source[0]
    elif name == "changelog":
        source[0] = (ROOT / "CHANGELOG.md").read_text("utf-8")
    elif name == "cli":
        source[0] += options()
    elif name == "tables":
        source[0] += tables()
    text = source[0].replace("](docs/", "](")
    text = re.sub(r"\]\((?:\.\./)?benchmarks(/results)?/?\)", r"](benchmarks\1/index.md)", text)
    text = text.replace("](benchmarks/index.md)", "](benchmarks/README.md)")
    text = re.sub(r"\]\((?:\.\./)+(benchmarks/[\w./-]+\.md)", r"](\1", text)
    text = text.replace("](examples)", "](gallery/index.rst)")
    source[0] = re.sub(r"\]\((examples/[\w.]+|CITATION\.cff|LICENSE)\)", r"](../\1)", text)


def setup(app: Any) -> None:
    benchmarks()
    app.connect("source-read", complete)
