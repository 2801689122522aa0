"""Puts the numbers and pictures of an evaluation, or of a study of methods, on one self-contained page.

Knows nothing of encoders or training: everything comes from files that `reading` read. The page makes no request, opens
from file://, and says all it says without JavaScript.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fewbayes.metrics.registry import Metric, in_table
from fewbayes.metrics.statistics import Estimate
from fewbayes.page.evaluation.gallery import RULE, Gallery, make_gallery
from fewbayes.page.evaluation.reading import ALL, Evaluation, read_evaluation
from fewbayes.page.evaluation.scores import Difference, Scores, all_scores, probability, verdict, write_scores
from fewbayes.page.look import INK, WIDTH, colour, inline, marker, style
from fewbayes.page.render import flat, page_of
from fewbayes.runs.folder import atomic_write

MODES = {"sound": "All pairs, nothing dropped", "paper": "As the authors average, quirks included"}
SAID_ELSEWHERE = {"arms", "subjects", "title", "question"}
"""Parts of study.json that have a place of their own on the page."""
ROW = 0.17  # inches a dot
NARROWEST = 0.01
"""The axis goes at least so far to both sides of zero: what is nothing shall not look like much."""


def write_evaluation_report(folder: Path, output: Path | None = None) -> Path:
    """Write `report.html` (default: into `folder`) and table.md, .tex, .csv and .json beside it; the page's path."""
    evaluation = read_evaluation(Path(folder))
    output = Path(output) if output else Path(folder) / "report.html"
    output.parent.mkdir(parents=True, exist_ok=True)
    write_scores(evaluation, output.with_name("table"))
    atomic_write(output, render_evaluation(evaluation))
    return output


def render_evaluation(evaluation: Evaluation) -> str:
    tables = all_scores(evaluation)
    first = tables[0] if tables else None
    gallery = make_gallery(evaluation)
    titled = [
        (m, m.title + f" ({table.mode})" * (len(evaluation.modes) > 1), table)
        for table in tables
        for m in table.metrics
    ]
    return page_of(
        "evaluation.html.j2",
        _choice_rules(gallery),
        arms=len(first.differences) if first else 0,
        evaluation=evaluation,
        tables=[_shown(table) for table in tables],
        probability=probability,
        verdict=verdict(first) if first else [],
        dots=[Markup(svg) for svg in dot_plots(first)] if first else [],
        compared=first.differences if first else [],
        gallery=gallery,
        rule=RULE,
        own=in_table("paper"),
        definitions=list(dict.fromkeys(m for m, _, _ in titled)),
        encoders=_grouped((evaluation.encoder(t.mode, m.name) or "none needed", title) for m, title, t in titled),
        absent=_grouped((reason, metric) for metric, reason in evaluation.absent.items()),
        facts=flat({key: value for key, value in evaluation.facts.items() if key not in SAID_ELSEWHERE}),
    )


def _shown(table: Scores) -> dict[str, Any]:
    own = table.metrics[0] in in_table("paper")
    title = ("The paper's five metrics" if own else "Beside them") + f": {MODES[table.mode].lower()}"
    return {"table": table, "title": title, "open": own}


def _grouped(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for key, value in pairs:
        found.setdefault(key, []).append(value)
    return found


def _choice_rules(gallery: Gallery) -> str:
    """Which panel is shown; without :has() all are."""
    shown = [
        f"html:has(#subject-{panel.subject}:checked):has(#arm-{panel.arm}:checked) "
        f"#panel-{panel.subject}-{panel.arm}{{display:block}}"
        for panel in gallery.panels
    ]
    return "\n".join(["", "@supports selector(:has(a)){.panel{display:none}", *shown, "}"])


# --- differences subject by subject, as dots with their intervals -----------------------------------------------------


def dot_plots(table: Scores) -> list[str]:
    """One drawing per metric that any difference has a number for."""
    return [
        _dots(table.differences, metric)
        for metric in table.metrics
        if any(row.cells[metric.name].difference.mean is not None for row in table.differences)
    ]


def _dots(differences: list[Difference], metric: Metric) -> str:
    """Subjects from top to bottom, in each the comparisons by colour and marker; the macro mean under a line."""
    subjects = sorted({subject for row in differences for subject in row.per_subject[metric.name]})
    groups = [*subjects, ALL] if len(subjects) > 1 else subjects
    per_group = len(differences) + 0.8
    with style():
        figure = Figure(figsize=(WIDTH, 1.0 + ROW * per_group * len(groups)), layout="constrained")
        axes = figure.subplots()
        for place, group in enumerate(groups):
            for i, row in enumerate(differences):
                cell = row.cells[metric.name].difference if group == ALL else row.per_subject[metric.name].get(group)
                if cell is not None and cell.mean is not None:
                    _dot(axes, cell, cell.mean, place * per_group + i, i, group == ALL)
        _finish(axes, metric, groups, per_group, len(differences))
        label = f"{metric.title}: difference of each subject with its interval"
        return inline(figure, f"dots-{metric.name}", label)


def _dot(axes: Axes, cell: Estimate, mean: float, height: float, index: int, heavy: bool) -> None:
    if cell.low is not None and cell.high is not None:
        width = 2.2 if heavy else 1.3
        axes.plot([cell.low, cell.high], [height] * 2, color=colour(index), linewidth=width, alpha=0.75)
    size = 6 if heavy else 4.5
    axes.plot([mean], [height], color=colour(index), marker=marker(index), markersize=size, markeredgewidth=0)


def _finish(axes: Axes, metric: Metric, groups: list[str], per_group: float, count: int) -> None:
    axes.axvline(0, color=INK, linewidth=0.8, alpha=0.7)
    if ALL in groups:
        axes.axhline((len(groups) - 1) * per_group - 0.9, color=INK, linewidth=0.4, alpha=0.5)
    axes.set_yticks([place * per_group + (count - 1) / 2 for place in range(len(groups))], groups)
    axes.set_ylim(len(groups) * per_group - 0.6, -0.9)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", visible=True)
    axes.locator_params(axis="x", nbins=5)
    axes.margins(x=0.06)
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, -NARROWEST), max(high, NARROWEST))
    axes.set_title(metric.title + {1: ", right is better", -1: ", left is better", 0: ""}[metric.better])
