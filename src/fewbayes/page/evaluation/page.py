"""Puts the numbers and pictures of an evaluation, or of a study of methods, on one self-contained page.

Knows nothing of encoders or training: everything comes from files that `reading` read.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes

from fewbayes.metrics.registry import Metric, in_table
from fewbayes.metrics.statistics import Estimate, grouped
from fewbayes.page.evaluation.gallery import make_gallery
from fewbayes.page.evaluation.reading import ALL, Evaluation, read_evaluation
from fewbayes.page.evaluation.scores import Difference, Scores, all_scores, tables_of, verdict, write_scores
from fewbayes.page.look import INK, WIDTH, colour, empty, inline, marker, style
from fewbayes.page.parts import Block, Card, Fold, Page, Verdict
from fewbayes.page.render import flat, number, write_page
from fewbayes.runs.layout import SAMPLES

MODES = {"sound": "All pairs, nothing dropped", "paper": "As the authors average, quirks included"}
SAID_ELSEWHERE = {"arms", "subjects", "title", "question"}
"""Parts of study.json that have a place of their own on the page."""
DOTS = (
    "A dot is the mean difference over the seeds of a subject, its line the 95 % interval over those seeds; the last "
    "group is the macro mean with the interval of the table."
)
ROW = 0.17  # inches a dot
NARROWEST = 0.01
"""The axis goes at least so far to both sides of zero: what is nothing shall not look like much."""


def write_evaluation_report(folder: Path, output: Path | None = None) -> Path:
    """Write `report.html` (default: into `folder`) and table.md, .tex, .csv and .json beside it; the page's path."""
    evaluation = read_evaluation(Path(folder))
    written = write_page(evaluation_page(evaluation), Path(folder), output)
    write_scores(evaluation, written.with_name("table"))
    return written


def evaluation_page(evaluation: Evaluation) -> Page:
    tables = all_scores(evaluation)
    first = tables[0] if tables else None
    own = [table for table in tables if table.metrics[0] in in_table("paper")]
    titled = [
        (m, m.title + f" ({table.mode})" * (len(evaluation.modes) > 1), table)
        for table in tables
        for m in table.metrics
    ]
    encoders = grouped((evaluation.encoder(t.mode, m.name) or "none needed", title) for m, title, t in titled)
    dots = dot_plots(first) if first else []
    compared = [(i, row.label, "") for i, row in enumerate(first.differences)] if first else []
    absent = grouped((reason, metric) for metric, reason in evaluation.absent.items())
    missing = [f"No value for {', '.join(metrics)}: {reason}" for reason, metrics in absent.items()]
    told = flat({key: value for key, value in evaluation.facts.items() if key not in SAID_ELSEWHERE})
    return Page(
        title=evaluation.title,
        verdict=Verdict(*_headline(evaluation, first)),
        card=_next(evaluation),
        chips=[f"{len(evaluation.subjects)} subjects"] if len(evaluation.subjects) > 1 else [],
        above=[block for table in own[:1] for block in _table(table, "")],
        sheet=make_gallery(evaluation),
        folds=[
            Fold("Differences", [block for table in tables for block in _differences(table)]),
            Fold("Subject by subject", [("text", DOTS), ("legend", compared), ("drawings", dots)] if dots else []),
            Fold(
                "More metrics",
                [block for table in tables if table not in own[:1] for block in _table(table, _title(table))],
            ),
            Fold(
                "What each column is, and how it was made",
                [
                    ("text", own[0].caption if own else ""),
                    ("facts", {m.title: m.says for m, _, _ in titled}),
                    ("heading", "Encoders, by their own names"),
                    ("facts", {name: ", ".join(columns) for name, columns in encoders.items()}),
                    ("heading", "Missing" if missing else ""),
                    ("points", missing),
                    ("heading", "How it was made" if told else ""),
                    ("facts", told),
                ],
            ),
        ],
        notes=evaluation.notes,
        arms=len(first.differences) if first else 0,
    )


def _headline(evaluation: Evaluation, first: Scores | None) -> tuple[str, list[str]]:
    """The question's answer in a line a comparison; of a plain evaluation its scores."""
    if first is None:
        return "Nothing was measured", [evaluation.question] if evaluation.question else []
    if said := verdict(first):
        found = [side for row in first.differences for side in row.sides(first.metrics).values()]
        if len(said) > 1 and found and not any(found):  # a line for each would say the same again and again
            subjects = f"intervals over {len(evaluation.subjects)} subjects all cross zero"
            return f"No clear difference in any of {len(said)} comparisons", [f"{len(found)} {subjects}."]
        return _in_short(first.differences[0], first.metrics), said
    line = next((line for line in first.lines if line.kind == "arm"), first.lines[0])
    real = next((line for line in first.lines if line.name == "real"), None)
    scores = [f"{m.title} {number(line.cells[m.name].mean, m.digits)}" for m in first.metrics]
    bounded = [m for m in first.metrics if m.ceiling and real and real.cells[m.name].mean is not None]
    if not (bounded and real):
        dino = next((m for m in first.metrics if m.name == "dino" and line.cells[m.name].mean is not None), None)
        if dino is None:
            return ", ".join(scores), []
        mine = number(line.cells[dino.name].mean, dino.digits)
        said = f"Likeness to the training images: {mine} ({dino.title}; 1 is the same picture)"
        good = next((m for m in first.metrics if m.name == "clip_iqa" and real and real.cells[m.name].mean), None)
        if good is None or real is None:
            return said, []
        mine, theirs = (number(each.cells[good.name].mean, good.digits) for each in (line, real))
        return said, [f"Quality: {mine} ({good.title}); the training images themselves have {theirs}."]
    m = next((m for m in bounded if m.name == "dino"), bounded[0])
    mine, theirs = (number(each.cells[m.name].mean, m.digits) for each in (line, real))
    more = f"{theirs} is how alike the training images are among themselves; more than that would mean copies."
    return f"Likeness to the training images: {mine} of {theirs} ({m.title})", [more]


def _next(evaluation: Evaluation) -> Card | None:
    """Of the samples of a run: what says which step to use."""
    source, pictures = (str(evaluation.facts.get(name) or "") for name in ("source", "pictures"))
    if f"/{SAMPLES}/step-" not in pictures:
        return None
    commands = [("Which step to use", f"fewbayes report {shlex.quote(source)}")]
    return Card("What next", "Scores are for comparing runs. Whether pictures are good, the run's page says.", commands)


def _in_short(row: Difference, metrics: Sequence[Metric]) -> str:
    """By the intervals of the first comparison."""
    sides = [(metric.better or 1) * side for metric, side in row.sides(metrics).items()]
    if not sides:
        return "Too few trainings for an interval"
    better, same, worse = (sides.count(side) for side in (1, 0, -1))
    return (
        f"{row.treated.label}: better than {row.control.label} in {better} of {len(sides)} metrics, worse in {worse}, "
        f"no clear difference in {same}"
    )


def _title(table: Scores) -> str:
    own = table.metrics[0] in in_table("paper")
    return ("The paper's five metrics" if own else "Beside them") + f": {MODES[table.mode].lower()}"


def _table(table: Scores, title: str) -> list[Block]:
    lines, _ = tables_of(table)
    return [("heading", title), ("text", table.caption if title else ""), ("table", lines)]


def _differences(table: Scores) -> list[Block]:
    _, rows = tables_of(table)
    return [("heading", _title(table)), ("text", table.test), ("table", rows)] if rows.rows else []


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
        figure = empty(WIDTH, 1.0 + ROW * per_group * len(groups))
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
