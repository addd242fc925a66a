"""The page of `imbdiff evaluate FAKE --reference REAL`: any two sets of images, no run, perhaps no classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from imbdiff.data.imageset import ImageSet
from imbdiff.data.stats import ClassStats, Groups
from imbdiff.reporting import copies
from imbdiff.reporting.compare import RunStrip, image_strip
from imbdiff.reporting.content import ReportData, spread
from imbdiff.reporting.quality import quality
from imbdiff.reporting.report import images, render
from imbdiff.reporting.sprites import scaled_down
from imbdiff.reporting.text import clean, number

MAX_STRIPS = 12


def build_evaluation(
    found: Mapping[str, Any],
    *,
    title: str,
    command: str,
    synthetic: ImageSet | None = None,
    train: ImageSet | None = None,
) -> str:
    """The page as HTML text, UTF-8, with no reference to anything outside it.

    Args:
        found: what :func:`imbdiff.metrics.evaluate.evaluate` gave, with or without training images, groups and classes.
        title: the page's heading.
        command: the command line that repeats it.
        synthetic: the measured images, for the pictures; all of them, as memorisation names them by their place.
        train: the training images, for the pictures of what is nearest to them.
    """
    data = _data(found, title, command, synthetic, train)
    nearest = found.get("memorisation")
    return render(
        "evaluation.html.j2",
        data=data,
        run="RUN",
        title=clean(title),
        facts=_facts(found),
        quality=quality(found),
        memorisation=copies.section(data, nearest),
        not_looked_up="" if nearest else "Copies were not looked for: no training images were given (--train).",
        with_train=train is not None,
        samples=[] if train is not None or synthetic is None else _samples(synthetic),
        small="" if synthetic is None else scaled_down(synthetic.shape),
        **images(data),
    )


def _data(
    found: Mapping[str, Any], title: str, command: str, synthetic: ImageSet | None, train: ImageSet | None
) -> ReportData:
    """As a run's page has it; where there are no training images, the reference's counts stand for theirs."""
    classes = found.get("classes") or {}
    names = tuple(str(name) for name in classes.get("names") or ("all",))
    counts = classes.get("n_train") or classes.get("n_reference") or (1,) * len(names)
    stats = ClassStats(names, tuple(max(1, int(n)) for n in counts))
    drawn = tuple(int(n) for n in classes.get("n_synthetic") or ())
    group = classes.get("group")
    known = tuple(dict.fromkeys(group or ("all classes",)))
    of_class = tuple(known.index(g) for g in group) if group else (0,) * len(names)
    rule = str((found.get("protocol") or {}).get("groups") or "no groups")
    return ReportData(
        title, command, "", "", stats, Groups(known, of_class, rule), drawn=drawn, train=train, synthetic=synthetic,
        nearest=found.get("memorisation"), metrics=found,
    )  # fmt: skip


def _facts(found: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Key figures: (value, what, small print)."""
    protocol = found.get("protocol") or {}
    facts = [
        (number(protocol.get("n_synthetic")), "synthetic images", clean(protocol.get("synthetic") or "")),
        (number(protocol.get("n_reference")), "reference images", clean(protocol.get("reference") or "")),
    ]
    if protocol.get("n_train") is not None:
        facts.append((number(protocol["n_train"]), "training images", clean(protocol.get("train") or "")))
    n = len((found.get("classes") or {}).get("names") or ())
    return [*facts, (number(n), "classes", "")] if n > 1 else facts


def _samples(synthetic: ImageSet) -> list[tuple[str, RunStrip]]:
    """A few synthetic images of at most 12 classes, spread over the labels."""
    shown = spread(range(len(synthetic.class_names)), MAX_STRIPS)
    names = [synthetic.class_names[k] for k in shown]
    return [(clean(name), image_strip("synthetic", synthetic, name)) for name in names]
