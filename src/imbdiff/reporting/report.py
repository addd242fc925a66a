"""The report: one self-contained HTML page.

Nothing is loaded from anywhere, and a content security policy in the page makes the browser refuse if something tried:
pictures are data, styles are inline, and the only script allowed is the copy button's, by its hash. All text is escaped
by the template engine; class names, paths and messages are data.
"""

from __future__ import annotations

import base64
import hashlib
import shlex
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from imbdiff.reporting import copies, curated, plots, tables
from imbdiff.reporting.content import ReportData
from imbdiff.reporting.quality import quality
from imbdiff.reporting.recognised import recognised
from imbdiff.reporting.shares import idle_notes, term_shares
from imbdiff.reporting.sprites import scaled_down
from imbdiff.reporting.strips import MAX_CLASSES, columns, strips
from imbdiff.reporting.text import clean, flatten, label, number, shorten
from imbdiff.runtime.log import COSINE, SHARE
from imbdiff.version import __version__

__all__ = ["ReportData", "build_report"]

MAX_WARNINGS = 20
MAX_TERMS = 12
MAX_CLASS_ROWS = 1000
NOT_TERMS = frozenset(
    {"step", "images", "epoch", "lr", "learning_rate", "time", "wall", "wall_s", "seconds", "elapsed", "images_per_s"}
    | {"images_per_second", "grad_norm", "gradient_norm", "memory", "rank", "batch", "compared"}
)  # columns of the training log that are not losses


@cache
def environment() -> Environment:
    """The template engine: everything escaped, an unknown name is an error."""
    made = Environment(
        loader=PackageLoader("imbdiff.reporting"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    made.filters.update(number=number, clean=clean, shorten=shorten)
    return made


def render(template: str, **values: Any) -> str:
    """Fills a template with the page's style and script, as text that can be written as UTF-8."""
    folder = resources.files("imbdiff.reporting") / "templates"
    style, script = ((folder / name).read_text(encoding="utf-8") for name in ("style.css", "copy.js"))
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = environment().get_template(template).render(
        style=Markup(style), script=Markup(script), script_hash=allowed, version=__version__, **values
    )  # fmt: skip
    return page.encode("utf-8", "replace").decode("utf-8")


def build_report(data: ReportData) -> str:
    """The page as HTML text, UTF-8, with no reference to anything outside it.

    What was not computed is said so, with the command that computes it. Caps, all stated on the page: 30 classes of
    images spread over the size ranking, 64 pixels on the longer side of an image, 1,000 rows of classes, 12 tables of
    numbers, 12 loss curves.
    """
    classifier = data.classifier or {}
    scopes = tables.scopes(classifier, data.groups)
    columns_of_arms = tables.columns(classifier, data.groups)
    arms = tables.arm_rows(classifier, columns_of_arms)
    nearest = data.nearest or (data.metrics or {}).get("memorisation")
    return render(
        "report.html.j2",
        data=data,
        title=clean(data.title),
        run=shlex.quote(clean(data.run)),
        verdict=tables.verdict(classifier),
        facts=_facts(data),
        histograms=_histograms(data),
        classes=_class_rows(data),
        max_class_rows=MAX_CLASS_ROWS,
        **images(data),
        curated=curated.section(data),
        curves=_curves(data),
        shares=term_shares(data.log),
        quality=quality(data.metrics),
        columns_of_arms=[tables.HEADS.get(scope, clean(scope)) for scope in columns_of_arms],
        recognised=recognised(data),
        arms=arms,
        controls=tables.controls_of(classifier),
        memorisation=copies.section(data, nearest),
        arms_plot=plots.accuracy_by_group(tables.arm_points(classifier, scopes), scopes) if arms else None,
        control=classifier.get("control") or {},
        classifier_protocol=flatten(classifier.get("protocol") or {}),
        protocol=tables.protocol_rows(data),
        config=flatten(data.config),
        machine=flatten(data.environment),
        warnings=[clean(w) for w in (*data.warnings, *idle_notes(data.log))],
        max_warnings=MAX_WARNINGS,
        timings=tables.timing_rows(data.timings),
    )


def images(data: ReportData) -> dict[str, Any]:
    """What the section of images is filled with."""
    shown = strips(data)
    shape = None if data.train is None else data.train.shape
    return {
        "strips": shown,
        "strip_cap": MAX_CLASSES,
        "scaled_down": "" if shape is None else scaled_down(shape),
        "strip_columns": 0 if shape is None else columns(shape),
        "has_pairs": any(s.pairs for s in shown),
        "has_nearest": any(p.nearest for s in shown for p in s.pairs),
        "has_other": any(p.other for s in shown for p in s.pairs),
        "copies": sum(p.copy for s in shown for p in s.pairs),
    }


def _facts(data: ReportData) -> list[tuple[str, str, str]]:
    """Key figures: (value, what, small print)."""
    after = [n + m for n, m in zip(data.stats.counts, data.filled, strict=True)]
    facts = [
        (
            number(data.stats.num_classes),
            "class" if data.stats.num_classes == 1 else "classes",
            f"{min(data.stats.counts):,} to {max(data.stats.counts):,} images",
        ),
        (number(data.stats.total), "real training images", ""),
        (number(data.stats.imbalance_factor, 1), "imbalance factor", "largest class / smallest"),
    ]
    if any(data.filled):
        facts += [
            (number(sum(data.filled)), "synthetic images", ""),
            (number(max(after) / min(after), 1), "imbalance factor after", ""),
        ]
    return facts


def _histograms(data: ReportData) -> list[tuple[str, plots.Plot]]:
    """Class histogram on linear counts and, where their range is large, on logarithmic ones."""
    order = data.by_size
    arguments = (
        [label(data.stats.names[k], f"#{k}") for k in order],
        [data.stats.counts[k] for k in order],
        [data.filled[k] for k in order],
        [data.groups.names[data.groups.of_class[k]] for k in order],
    )
    made = [("linear", plots.class_histogram(*arguments, log=False))]
    if plots.is_wide(data.stats.counts):
        made.append(("log", plots.class_histogram(*arguments, log=True)))
    return made


def _class_rows(data: ReportData) -> list[tuple[str, str, int, int, int]]:
    """(name, group, real, synthetic, together) by size."""
    rows = []
    for k in data.by_size[:MAX_CLASS_ROWS]:
        real, drawn = data.stats.counts[k], data.filled[k]
        rows.append((clean(data.stats.names[k]), data.groups.names[data.groups.of_class[k]], real, drawn, real + drawn))
    return rows


def _curves(data: ReportData) -> list[plots.Plot]:
    """The total loss first, then each named term."""
    names: dict[str, None] = {}
    for row in data.log:
        names.update(
            (k, None)
            for k, v in row.items()
            if k not in NOT_TERMS and not k.startswith((SHARE, COSINE)) and plots.finite(v)
        )
    ordered = sorted(names, key=lambda name: name != "loss")[:MAX_TERMS]
    curves = []
    for name in ordered:
        rows = [row for row in data.log if plots.finite(row.get(name))]
        seen = [float(row.get("images", row.get("step", i))) for i, row in enumerate(rows)]
        curves.append(plots.loss_curve("total loss" if name == "loss" else name, seen, [row[name] for row in rows]))
    return curves
