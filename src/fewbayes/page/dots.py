"""Differences subject by subject, as dots with their intervals: one inline SVG per metric."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fewbayes.metrics.statistics import Estimate
from fewbayes.page.evaluation import ALL, Difference, Measure, Table
from fewbayes.page.look import INK, WIDTH, colour, inline, marker, style

ROW = 0.17  # inches a dot
NARROWEST = 0.01
"""The axis goes at least so far to both sides of zero: what is nothing shall not look like much."""


def dot_plots(table: Table) -> list[str]:
    """One drawing per metric that any difference has a number for."""
    return [
        _dots(table.differences, measure)
        for measure in table.measures
        if any(row.cells[measure.key].difference.mean is not None for row in table.differences)
    ]


def _dots(differences: list[Difference], measure: Measure) -> str:
    """Subjects from top to bottom, in each the comparisons by colour and marker; the macro mean under a line."""
    subjects = sorted({subject for row in differences for subject in row.per_subject.get(measure.key, {})})
    groups = [*subjects, ALL] if len(subjects) > 1 else subjects
    per_group = len(differences) + 0.8
    with style():
        figure = Figure(figsize=(WIDTH, 1.0 + ROW * per_group * len(groups)), layout="constrained")
        axes = figure.subplots()
        for place, group in enumerate(groups):
            for i, row in enumerate(differences):
                cell = row.cells[measure.key].difference if group == ALL else row.per_subject[measure.key].get(group)
                if cell is not None and cell.mean is not None:
                    _dot(axes, cell, place * per_group + i, i, group == ALL)
        _finish(axes, measure, groups, per_group, len(differences))
        label = f"{measure.title}: difference of each subject with its interval"
        return inline(figure, f"dots-{measure.key}", label)


def _dot(axes: Axes, cell: Estimate, height: float, index: int, heavy: bool) -> None:
    assert cell.mean is not None
    if cell.low is not None and cell.high is not None:
        axes.plot([cell.low, cell.high], [height] * 2, color=colour(index), linewidth=2.2 if heavy else 1.3, alpha=0.75)
    axes.plot(
        [cell.mean],
        [height],
        color=colour(index),
        marker=marker(index),
        markersize=6 if heavy else 4.5,
        markeredgewidth=0,
    )


def _finish(axes: Axes, measure: Measure, groups: list[str], per_group: float, count: int) -> None:
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
    better = {1: ", right is better", -1: ", left is better", 0: ""}[measure.better]
    axes.set_title(f"{measure.title}{better}")
