"""The section on quality: what the numbers say, each class against its size, tables by group, how it was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from imbdiff.data.names import counted
from imbdiff.metrics.measures import QUESTIONS
from imbdiff.metrics.numbers import Number
from imbdiff.reporting import blocks as ui
from imbdiff.reporting.class_plot import by_class
from imbdiff.reporting.copies import headline
from imbdiff.reporting.measured import (
    GroupTable,
    Measured,
    Part,
    counts_of,
    metric_of,
    printed,
    with_interval,
)  # fmt: skip
from imbdiff.reporting.text import NOTHING, clean, flatten, number

MAX_TABLES = 12
SIMILAR = 1.1
"""Sizes of two sets up to this ratio count as equal for numbers that depend on n."""

Found = Mapping[str, Any]


def quality(found: Found | None, run: str, memorisation: Found | None = None) -> ui.Section:
    """The section of `evaluate(...)`. Caps: 12 tables, 1,000 classes in a table."""
    measured = Measured.of(found)
    blocks: list[ui.Block] = []
    if memorisation is not None and memorisation.get("warnings"):
        blocks.append(
            ui.Text(ui.joined([headline(memorisation), ui.link("memorisation", "Are they copies?")]), "alert")
        )
    if measured is None:
        blocks.append(ui.missing("Not computed.", f"imbdiff evaluate {run}"))
    else:
        if measured.main.ranking_only:
            blocks.append(ui.Text(
                "There was no judge that learned from images like these. The numbers below order generators, they do "
                "not say how good the images look.", "missing"))  # fmt: skip
        blocks += [ui.Definitions(answers(measured), "answers"), *by_class(measured)]
        tables = measured.tables()
        for i, table in enumerate(tables[:MAX_TABLES]):
            blocks += _by_group(table) if i == 0 else [_folded(table)]
        if len(tables) > MAX_TABLES:
            more = counted(len(tables) - MAX_TABLES, "more table")
            blocks.append(ui.note(ui.joined([more, "of other extractors in", ui.code("metrics.json")])))
        blocks += how_measured(measured.found)
    return ui.Section("metrics", "Quality of the synthetic images", blocks, "Quality")


def answers(measured: Measured) -> list[tuple[str, str]]:
    """At most four questions with answers, each about all classes and about the rarest group, of the main extractor."""
    made = []
    for question, metrics in QUESTIONS:
        known = [n for m in metrics if (n := measured.number(m, "all")) is not None]
        first = next((n for n in known if n.value is not None), None)
        if first is not None:
            scopes = dict.fromkeys(["all", measured.rarest])
            made.append((question, " ".join(_about(measured, first.metric, s) for s in scopes).strip()))
        elif known:
            made.append((question, "There are too few images to say; the notes below say what is needed."))
    return made


def _about(measured: Measured, metric: str, scope: str) -> str:
    """A sentence with the interval, and how the number compares with that of real images."""
    own, real = measured.number(metric, scope), measured.baseline(metric, scope)
    if own is None:
        return ""
    where = "" if scope == "all" else f"In the {scope} group "
    if own.value is None:
        return f"{where}there are too few images to say."
    row = metric_of(own)
    if scope != "all":
        lead = f"{where}it is {with_interval(own)}"
    elif row.means:
        lead = f"{with_interval(own)} {row.means}"
    else:
        lead = f"{own.short}: {with_interval(own)}" + (f" ({row.what})" if row.what else "")
    return f"{lead}{_against_one(own) if metric == 'diversity' else _against(own, real)}."


def _against(own: Number, real: Number | None) -> str:
    """How the number compares with that of real images: a difference is claimed only where the intervals are apart."""
    if real is None:
        return ""
    who = metric_of(own).baseline
    if real.value is None:
        return f"; of {who} there are too few for this number"
    n = [max(1, one.n_synthetic) for one in (own, real)]
    if metric_of(own).by_n and max(n) > SIMILAR * min(n):
        return f"; {number(n[1])} {who}: {with_interval(real)}, a rough baseline, as this number depends on n"
    if own.low is None or own.high is None or real.low is None or real.high is None:
        return f"; {who}: {with_interval(real)}"
    how = (
        "lower than" if own.high < real.low else "higher than" if own.low > real.high else "not clearly different from"
    )
    return f", {how} the {with_interval(real)} of {who}"


def _against_one(own: Number) -> str:
    if own.low is None or own.high is None:
        return ""
    if own.high < 1:
        return ", less varied than real images of a class (1)"
    if own.low > 1:
        return ", further apart than real images of a class (1), which noise brings about too"
    return ", not clearly different from real images of a class (1)"


def _by_group(table: GroupTable) -> list[ui.Block]:
    text: str = "Value with its 95 % interval; arrows say which way is better."
    if table.has_baseline:
        grey = (
            "In grey, marked * below: the same for real images, which is what can be hoped for: the training images in "
            "place of the synthetic ones; for agreement and IS the reference images."
        )
        text = ui.joined([text, ui.span(grey, "baseline")])
    head = f"By group: {table.judge.name or 'an extractor that is not named'} against {table.reference}"
    return [ui.Heading(head), ui.note(text), *_table_blocks(table)]


def _folded(table: GroupTable) -> ui.Fold:
    what = f"{table.judge.name} against {table.reference}" + " (for ranking only)" * table.judge.ranking_only
    return ui.Fold(f"{what}: {table.headline}" if table.headline else what, _table_blocks(table), kind="folded")


def _table_blocks(table: GroupTable) -> list[ui.Block]:
    main, more = table.part(main=True), table.part(main=False)
    blocks: list[ui.Block] = _part_blocks(main) if main else []
    blocks += [ui.note(note) for note in table.notes]
    if more:
        names = ", ".join(head.split(" ")[0] for head, _ in more.heads)
        blocks.append(ui.Fold(f"More numbers: {names}" if names else "More numbers", _part_blocks(more)))
    return blocks


def _part_blocks(part: Part) -> list[ui.Block]:
    table = part.table
    blocks: list[ui.Block] = []
    if part.metrics:
        rows = []
        for scope in table.measured.scopes:
            small = " ".join(text for text in (table.counts(scope), table.left_out(scope)) if text)
            cells = [_cell(part, table.own(m, scope), table.real(m, scope)) for m in part.metrics]
            rows.append([ui.Cell(scope, small), *cells])
        columns = [ui.Column(head, title=what) for head, what in part.heads]
        blocks.append(ui.Table([ui.Cell("scope", "synthetic / reference images"), *columns], rows, "dense"))
    if part.refusals:
        lead = "Refused, not printed" if part.metrics else "Nothing could be printed"
        blocks += [ui.note(f"{lead}, as n does not support it:"), ui.Items(part.refusals, "reasons")]
    if part.fewer:
        blocks.append(ui.note(part.fewer))
    return blocks


def _cell(part: Part, own: Number | None, real: Number | None) -> ui.Cell:
    """A number of the synthetic images and, below it, of the real ones."""
    text = _printed(part, own, "own") if own else Markup(NOTHING)
    below = ui.span(_printed(part, real, "real"), "baseline") if real else Markup("")
    return ui.Cell(text + below, style="refused" if own and own.refused else "")


def _printed(part: Part, n: Number, style: str) -> Markup:
    mark = Markup("<sup>{}</sup>").format(part.mark(n)) if part.mark(n) else Markup("")
    if n.refused:
        return ui.span(Markup("refused") + mark, "", f"{n.refused}; {counts_of(n)}")
    value, between = printed(n)
    small = Markup(" <small>{}</small>").format(between) if between else Markup("")
    return ui.span(Markup("{}{}").format(value, mark), style, counts_of(n)) + small


_SETS = (("reference", "Reference"), ("synthetic", "Synthetic images"), ("train", "Training images"))
_RULES = (("class_mix", "Class mix"), ("groups", "Groups"), ("subsets", "Which images"), ("seed", "Seed"))
_SHOWN_ELSEWHERE = frozenset({key for key, _ in (*_SETS, *_RULES)} | {f"n_{key}" for key, _ in _SETS}) | {
    "fingerprints", "measures", "extractors", "agreement", "CAS", "memorisation",
}  # fmt: skip


def how_measured(metrics: Found) -> list[ui.Block]:
    """What the numbers depend on, so that they can be repeated; what is beyond the known parts is shown as it is."""
    protocol = metrics.get("protocol")
    if not isinstance(protocol, Mapping) or not protocol:
        return []
    rows = [(title, text) for key, title in _SETS if (text := _set(protocol, key))]
    rows += [(title, str(protocol[key])) for key, title in _RULES if protocol.get(key) is not None]
    rows.append(
        ("Intervals", "95 %; what an interval covers is with its measure below. Refused: what n cannot support.")
    )
    rows += flatten({key: value for key, value in protocol.items() if key not in _SHOWN_ELSEWHERE})
    measures = [
        (what, f"{m.get('what', '')} ({m.get('source', '')})")
        for what, m in (protocol.get("measures") or {}).items()
        if isinstance(m, Mapping)
    ]
    measures += [(key, str(protocol[key])) for key in ("agreement", "CAS", "memorisation") if protocol.get(key)]
    extractors = [e for e in protocol.get("extractors") or () if isinstance(e, Mapping)]
    blocks: list[ui.Block] = [ui.Definitions(rows)]
    for i, e in enumerate(extractors):
        blocks.append(
            ui.Fold(f"Extractor {e.get('name', '')}", [ui.Definitions(_extractor(e, metrics.get("judge")))], i == 0)
        )
    blocks.append(ui.note(_fid(extractors)))
    if measures:
        what = "Every measure, with its source and what its interval covers"
        blocks.append(ui.Fold(what, [ui.Definitions(measures)]))
    return [ui.Fold("How this was measured", blocks, open=True, kind="box")]


def _set(protocol: Found, key: str) -> str:
    """Name, size and fingerprint of a set of images."""
    n, named = protocol.get(f"n_{key}"), str(protocol.get(key) or "")
    if n is None:
        return "not given: no memorisation, no groups, no numbers of real training images" if key == "train" else named
    fingerprint = (protocol.get("fingerprints") or {}).get(key)
    text = f"{named}: {number(n)} images" if named else f"{number(n)} images"
    return text + (f", fingerprint {clean(fingerprint)[:16]}" if fingerprint else "")


def _extractor(e: Found, judge: Any) -> list[tuple[str, str]]:
    agreed = {True: "yes, they agree", False: "not yet: unverified"}
    accuracy = ""
    if isinstance(judge, Mapping) and judge.get("fingerprint") == e.get("fingerprint") and judge.get("accuracy"):
        accuracy = number(judge["accuracy"])
    rows = [
        ("Features", number(e.get("dim"))),
        ("Preprocessing", e.get("preprocessing") or ""),
        ("Weights", e.get("weights") or ""),
        ("Trained on", e.get("trained_on") or "nothing that is recorded"),
        ("Accuracy on the reference", accuracy),
        ("Fingerprint", str(e.get("fingerprint") or "")[:16]),
        ("Features compared with published ones", agreed.get(e.get("verified"), "there are none to compare with")),  # type: ignore[arg-type]
        ("Its numbers", "rank generators, no more" if e.get("ranking_only") else "measure quality"),
    ]
    return [(what, text) for what, text in rows if text]


def _fid(extractors: Sequence[Found]) -> str:
    """Whether a number here may be called FID."""
    own = next((e for e in extractors if e.get("is_fid")), None)
    if own is None:
        return (
            "No number here is an FID: that name belongs to one set of Inception weights, which were not at hand. "
            "FD[name] is the same distance with another extractor, comparable only with numbers of the same name, "
            "fingerprint and reference."
        )
    unverified = "" if own.get("verified") else " (unverified: not yet compared with published features)"
    return f"FID, FID∞ and KID are computed with the Inception weights that these names stand for{unverified}."
