"""The page of a sweep: methods side by side, each number as its mean over seeds with an interval, and against cost."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from scipy.special import stdtrit

from imbdiff.data.names import counted
from imbdiff.metrics.numbers import Direction
from imbdiff.recognition.verdict import Comparison
from imbdiff.reporting import blocks as ui
from imbdiff.reporting.classifier import CLASS_MEAN, arms_of, pair, value_of
from imbdiff.reporting.compare import differences, made_with
from imbdiff.reporting.content import ReportData
from imbdiff.reporting.measured import ARROWS, Measured, best_of, metric_of
from imbdiff.reporting.plots import Plot, Theme, plot, style_axes, thousands
from imbdiff.reporting.study import STYLES
from imbdiff.reporting.text import NOTHING, estimate, label, number, seconds

MAX_RUNS = 200
GAIN, WITH, WITHOUT = (
    "gain by synthetic images", "accuracy with synthetic images", "accuracy without synthetic images",
)  # fmt: skip
COST = "training and sampling"
"""Names of lines."""


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep.

    Attributes:
        page: its address as seen from the sweep's page; "" where there is none.
        data: its results; None where it has none.
        failed: why it ended; "" where it did not fail.
    """

    method: str
    seed: int
    folder: str
    page: str = ""
    data: ReportData | None = None
    failed: str = ""

    @property
    def state(self) -> str:
        return "failed" if self.failed else "done" if self.data and self.data.classifier else "not finished"


@dataclass(frozen=True)
class Line:
    """One number of every run, in one scope.

    Attributes:
        part: "accuracy", "quality" or "cost".
        values: method -> seed -> value.
        decimals: None: by size.
    """

    part: str
    name: str
    scope: str
    direction: Direction
    decimals: int | None = None
    values: dict[str, dict[int, float]] = field(default_factory=dict)

    def mean(self, method: str) -> tuple[float, float | None, float | None] | None:
        """Mean and 95 % interval over seeds; no interval of a single seed, None of none.

        None without synthetic images either: runs of neighbouring seeds, and all methods, share these classifiers.
        """
        found = mean_interval(list(self.values.get(method, {}).values()))
        return (found[0], None, None) if found and self.name == WITHOUT else found

    @property
    def best(self) -> str | None:
        """The method with the best mean, of two or more; None where several have it, or it is not the methods'."""
        means = {m: found[0] for m in self.values if (found := self.mean(m))}
        best = best_of(means, "none" if self.name == WITHOUT else self.direction)
        return best[0] if len(best) == 1 else None

    def to_json(self) -> dict[str, Any]:
        return {
            "part": self.part, "name": self.name, "scope": self.scope, "direction": self.direction,
            "methods": {
                m: {"seeds": {str(s): v for s, v in own.items()},
                    **dict(zip(("mean", "low", "high"), self.mean(m) or (None,) * 3, strict=True))}
                for m, own in self.values.items()
            },
        }  # fmt: skip


def mean_interval(values: Sequence[float]) -> tuple[float, float | None, float | None] | None:
    """Mean and 95 % interval by Student's t: what other seeds would give, on the same images."""
    if not values:
        return None
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, None, None
    half = float(stdtrit(len(values) - 1, 0.975)) * statistics.stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def sweep_lines(runs: Sequence[SweepRun]) -> list[Line]:
    """Every number of every run that has results; of quality those made with what the first run's were."""
    lines: dict[tuple[str, str], Line] = {}
    first: Any = None

    def add(run: SweepRun, value: float | None, part: str, name: str, scope: str, how: Direction, *more: Any) -> None:
        if value is not None:
            line = lines.setdefault((name, scope), Line(part, name, scope, how, *more))
            line.values.setdefault(run.method, {})[run.seed] = value

    for run in runs:
        if run.data is None:
            continue
        put = partial(add, run)
        found, arms = run.data.classifier, pair(arms_of(run.data.classifier))
        for scope, row in (found["verdict"]["per_group"] if found else {}).items():
            gain = Comparison(**row).difference
            put(None if gain is None else 100 * gain, "accuracy", f"{GAIN}, points", scope, "higher", 1)
        for synthetic, name in ((True, WITH), (False, WITHOUT)):
            for arm in (arm for arm in arms if arm.synthetic is synthetic):
                for scope in ("all", CLASS_MEAN, *run.data.groups.present):
                    put(value_of(arm.mean, scope), "accuracy", name, scope, "higher", 3)
        if (measured := Measured.of(run.data.metrics)) is not None:
            table = measured.main
            first = first or made_with(table)
            for metric in table.printable(main=True) if made_with(table) == first else ():
                for scope in table.scopes:
                    if (n := table.own.get((metric, scope))) is not None:
                        put(n.value, "quality", n.label, scope, n.direction, metric_of(n).decimals)
        times = run.data.timings
        if "sample" in times:
            parts = {"training": times["train"], "sampling": times["sample"]}
            for scope, value in {COST: sum(parts.values()), **parts}.items():
                put(value, "cost", "time", scope, "lower")
    return list(lines.values())


def build_sweep(source: str, command: str, runs: Sequence[SweepRun], lines: Sequence[Line]) -> str:
    """The page as HTML text. It links to the pages of its runs, which lie beside it. At most 200 runs are listed."""
    methods = list(dict.fromkeys(run.method for run in runs))
    done = [run.data for run in runs if run.data is not None]
    failed = [run for run in runs if run.failed]
    left = sum(run.state == "not finished" for run in runs)
    text = f"{counted(len(methods), 'method')}, {counted(len({run.seed for run in runs}), 'seed')}: "
    text += f"{sum(run.state == 'done' for run in runs)} of {counted(len(runs), 'run')} done"
    text += f", {left} not finished" * bool(left) + f", {len(failed)} failed" * bool(failed)
    top: list[ui.Block] = [ui.Text(f"{text}.", "verdict bad" if failed else "verdict none")]
    found = [one for one in (outcome(line) for line in _headlines(lines)) if one]
    top += [ui.Items(found, "warnings")] if found else []
    if len(done) > 1 and (differ := differences(done, seeds=False)):
        top += [ui.Text("These runs differ in more than the method:", "alert"), ui.Items(differ)]
    sections = [
        ui.Section("numbers", "Numbers of each method", _tables(runs, lines, methods), "Numbers"),
        ui.Section("cost", "Quality and accuracy against cost", _costs(lines, methods), "Cost"),
        _runs(runs),
        ui.Section("repeat", "Repeat or continue this sweep", [ui.Text("", command=command)], "Repeat"),
    ]  # fmt: skip
    return ui.render("sweep", f"{source}: {', '.join(methods[:6])}{' and others' * (len(methods) > 6)}", top, sections)


def _headlines(lines: Sequence[Line]) -> list[Line]:
    """What leads the page and the plot: quality and accuracy, over all and in the last group."""
    shown = []
    for of in ([line for line in lines if line.part == "quality"], [line for line in lines if line.name == WITH]):
        scopes = [line.scope for line in of if line.name == of[0].name and line.scope != CLASS_MEAN]
        shown += [line for line in of if line.name == of[0].name and line.scope in (scopes[0], scopes[-1])]
    return shown


def outcome(line: Line) -> str:
    """Which method is best, and whether its interval is apart from those of all others; "" of one method."""
    if (best := line.best) is None:
        return ""
    own, others = line.mean(best), {m: line.mean(m) for m in line.values if m != best}
    assert own is not None
    alike = [m for m, other in others.items() if other is None or _meet(own, other)]
    claim = "its interval is apart from all others" if not alike else f"not clearly better than {', '.join(alike[:4])}"
    scope = "" if line.scope == "all" else f", {line.scope}"
    return f"{line.name}{scope}: best mean {best}, {_text(line, best)}: {claim}."


def _meet(one: tuple[float, float | None, float | None], other: tuple[float, float | None, float | None]) -> bool:
    """Whether intervals overlap; without one they always do."""
    if one[1] is None or one[2] is None or other[1] is None or other[2] is None:
        return True
    return one[1] <= other[2] and other[1] <= one[2]


def _printed(line: Line, method: str) -> tuple[str, str]:
    found = line.mean(method)
    if found is None:
        return NOTHING, ""
    if line.part == "cost":
        return seconds(found[0]), "" if found[1] is None else f"{seconds(max(0.0, found[1]))} to {seconds(found[2])}"
    return estimate(*found, line.decimals)


def _text(line: Line, method: str) -> str:
    value, between = _printed(line, method)
    return f"{value} ({between})" if between else value


def _tables(runs: Sequence[SweepRun], lines: Sequence[Line], methods: Sequence[str]) -> list[ui.Block]:
    if not lines:
        return [ui.Text("No run has results yet.", "missing")]
    blocks: list[ui.Block] = [ui.note(
        "Mean over seeds with its 95 % interval (Student's t): what other seeds of training and sampling would give on "
        "the same training and test images. Bold: the best mean; where intervals overlap, it is no finding. A single "
        "seed has no interval. Accuracy with synthetic images is that of the arm that is judged, without them that of "
        "the control, whose classifiers are the same for all methods; the runs' pages say what these are."
    )]  # fmt: skip
    blocks += [ui.note(shared)] if (shared := _overlap(runs)) else []
    for part in ("accuracy", "quality", "cost"):
        rows: list[ui.Cells] = []
        for line in (line for line in lines if line.part == part):
            head = ui.Cell(f"{line.name} {ARROWS.get(line.direction, '')}".rstrip())
            rows.append([head, line.scope, *(_cell(line, method) for method in methods)])
        if rows:
            heads = [ui.Column(method) for method in methods]
            blocks += [ui.heading(part.capitalize()), ui.Table([part, "scope", *heads], rows, "compare")]
    return blocks


def _overlap(runs: Sequence[SweepRun]) -> str:
    """Where runs of two seeds train classifiers of the same seed, which are alike: how to avoid it."""
    found = {r.seed: set(r.data.classifier["protocol"]["seeds"]) for r in runs if r.data and r.data.classifier}
    if len(found) < 2 or sum(map(len, found.values())) == len(set().union(*found.values())):
        return ""
    step = max(map(len, found.values()))
    apart = " ".join(str(step * i) for i in range(len(found)))
    return (
        "Classifiers take the seeds from that of the run on, so runs of neighbouring seeds share some, and intervals "
        f"of accuracy are a little too narrow: --seeds {apart} shares none."
    )


def _cell(line: Line, method: str) -> ui.Cell:
    seeds = line.values.get(method, {})
    show = seconds if line.part == "cost" else number
    title = ", ".join(f"seed {seed}: {show(value)}" for seed, value in sorted(seeds.items()))
    return ui.Cell(*_printed(line, method), title, "best" if line.best == method else "")


def _runs(runs: Sequence[SweepRun]) -> ui.Section:
    rows: list[ui.Cells] = []
    for run in runs[:MAX_RUNS]:
        page = ui.page_link(run.page, run.folder) if run.page else run.folder
        time = seconds(sum(run.data.timings.values())) if run.data else NOTHING
        tone = {"done": "", "failed": "bad"}.get(run.state, "refused")
        rows.append([page, run.method, str(run.seed), ui.Cell(run.state, run.failed, style=tone), time])
    table = ui.Table(["page", "method", ui.Column("seed"), "state", ui.Column("time")], rows)
    more = [ui.note(f"The first {MAX_RUNS} of {len(runs)} runs.")] if len(runs) > MAX_RUNS else []
    return ui.Section("runs", "The runs", [table, *more], "Runs")


def _costs(lines: Sequence[Line], methods: Sequence[str]) -> list[ui.Block]:
    cost, shown = next((line for line in lines if line.part == "cost"), None), _headlines(lines)
    if cost is None or not shown:
        return [ui.Text("No run has been measured yet.", "missing")]
    text = (
        f"Cost: minutes of {COST}, on whatever each run had. Large marks: means over seeds, with 95 % intervals; small "
        "ones: seeds. Dashed: the mean accuracy without synthetic images."
    )
    return [ui.Figures([cost_plot(lines, methods, cost, shown)]), ui.note(text)]


def cost_plot(lines: Sequence[Line], methods: Sequence[str], cost: Line, shown: Sequence[Line]) -> Plot:
    """A panel for each line of `shown`: a mark per method, its mean over seeds, against its mean cost."""
    levels = {
        line.scope: statistics.fmean([v for own in line.values.values() for v in own.values()])
        for line in lines if line.name == WITHOUT
    }  # fmt: skip

    def panel(axes: Any, line: Line, theme: Theme) -> None:
        title = f"{line.name} {ARROWS.get(line.direction, '')}, {line.scope}"
        style_axes(axes, theme, grid="both", x=f"minutes of {COST}", title=label(title, "number", 60))
        for i, method in enumerate(methods):
            (colour, marker), seeds = STYLES[i % len(STYLES)], line.values.get(method, {})
            at, height = cost.mean(method), line.mean(method)
            both = [seed for seed in seeds if seed in cost.values.get(method, {})]
            if not both or at is None or height is None:
                continue
            x, y = [cost.values[method][s] / 60 for s in both], [seeds[s] for s in both]
            axes.plot(x, y, marker, color=colour, alpha=0.35, markersize=3.5, markeredgewidth=0)
            if height[1] is not None:
                axes.plot([at[0] / 60] * 2, height[1:], color=colour, linewidth=1.4, alpha=0.8)
            axes.plot([at[0] / 60], [height[0]], marker, color=colour, markersize=7)
            axes.annotate(
                label(method, f"method {i + 1}", 28), (at[0] / 60, height[0]), (6, 4), textcoords="offset points",
                color=theme.ink, fontsize=8, parse_math=False,
            )  # fmt: skip
        if line.name == WITH and line.scope in levels:
            axes.axhline(levels[line.scope], color=theme.real, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        axes.margins(x=0.18, y=0.15)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(FuncFormatter(thousands))
        axes.yaxis.set_major_locator(MaxNLocator(5))

    def paint(figure: Figure, theme: Theme) -> None:
        across = min(2, len(shown))
        grid: Any = figure.subplots(-(-len(shown) // across), across, squeeze=False)
        for axes, line in zip(grid.ravel(), shown, strict=False):
            panel(axes, line, theme)
        for axes in grid.ravel()[len(shown) :]:
            axes.set_visible(False)

    names = "; ".join(f"{line.name}, {line.scope}" for line in shown)
    alt = f"Against the time of {COST}, of {counted(len(methods), 'method')}: {names}"
    return plot(alt, paint, 260 * -(-len(shown) // 2) + 20)
