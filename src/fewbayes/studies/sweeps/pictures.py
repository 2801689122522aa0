"""Pictures of a sweep: its metrics over its values, and panels of chosen samples. Trains and scores nothing."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fewbayes.metrics.registry import Metric
from fewbayes.page.evaluation import make_scores
from fewbayes.page.evaluation.gallery import choose
from fewbayes.page.evaluation.reading import Evaluation
from fewbayes.page.evaluation.scores import Scores
from fewbayes.page.look import INK, colour, marker, save, style
from fewbayes.studies.paper.drawing import INCHES, LETTERS, Shown, pictures
from fewbayes.studies.sweeps.catalogue import Sweep, View, titled

SIDES = ("Plain", "Bayesian")
APART = 0.06
"""Between the two sides of a value, in values."""


def curves(evaluation: Evaluation, sweep: Sweep, file: Path) -> Path:
    """The five metrics over the values, and likeness against diversity; a line through what is alone stands for all."""
    scores = make_scores(evaluation, evaluation.modes[0])
    arms = {arm["name"]: arm for arm in evaluation.facts["arms"]}
    values = list(dict.fromkeys(str(arm["value"]) for arm in arms.values()))
    with style():
        figure = Figure(figsize=(INCHES, 5.6), layout="constrained")
        _head(figure, evaluation)
        places = list(figure.subplots(2, 3).flat)
        for axes, metric in zip(places, scores.metrics, strict=False):
            _over_values(axes, scores, metric, arms, values, sweep)
        _trade(places[-1], scores, arms, sweep)
        for axes in places[len(scores.metrics) : -1]:
            axes.set_axis_off()
        lines = {words: line for axes in places for line, words in zip(*axes.get_legend_handles_labels(), strict=True)}
        figure.legend(list(lines.values()), list(lines), loc="outside lower right", ncols=4)
        return save(figure, file)


def _head(figure: Figure, evaluation: Evaluation) -> None:
    facts = evaluation.facts
    tried = "; only tried out, nothing follows from it" if facts.get("quick") else ""
    models = ", ".join(dict.fromkeys(arm["model"] for arm in facts["arms"]))
    subjects, seeds = len(evaluation.subjects), len(facts["seeds"])
    extent = f"model {models}, {subjects} subject{'s' * (subjects > 1)}, {seeds} seed{'s' * (seeds > 1)}{tried}"
    says = [textwrap.fill(f"Paper: {evaluation.question}", LETTERS)] if evaluation.question else []
    figure.suptitle("\n".join([evaluation.title, extent, *says]), x=0.01, ha="left", fontsize=10)


def _over_values(
    axes: Axes, scores: Scores, metric: Metric, arms: dict[str, Any], values: list[str], sweep: Sweep
) -> None:
    cells = {line.name: line.cells[metric.name] for line in scores.lines}
    for side, words in enumerate(SIDES):
        mine = [(values.index(str(a["value"])), cells[n]) for n, a in arms.items() if a["bayes"] == side and n in cells]
        where = [place + APART * (2 * side - 1) for place, _ in mine]
        means = [_number(cell.mean) for _, cell in mine]
        if len(mine) == 1 < len(values):
            axes.axhline(means[0], color=colour(side), linestyle="--", linewidth=1, label=words)
            continue
        drawn = {"color": colour(side), "marker": marker(side), "markersize": 4, "linestyle": _line(sweep)}
        axes.plot(where, means, label=words, **drawn)
        for place, (_, cell) in zip(where, mine, strict=True):
            if cell.low is not None and cell.high is not None:
                axes.plot([place, place], [cell.low, cell.high], color=colour(side), linewidth=1, alpha=0.5)
    for name, words, line in (("base", "Base model", ":"), ("real", "Real against real", "-.")):
        if name in cells and cells[name].mean is not None and (name == "base" or metric.ceiling):
            axes.axhline(_number(cells[name].mean), color=INK, linewidth=0.6, linestyle=line, label=words)
    axes.set_xticks(range(len(values)), [_short(value) for value in values])
    axes.set_title(f"{metric.title} {metric.arrow}")
    if _line(sweep) == "-":
        axes.set_xlabel(sweep.axis)


def _trade(axes: Axes, scores: Scores, arms: dict[str, Any], sweep: Sweep) -> None:
    """Likeness against diversity, in the order of the values."""
    cells = {line.name: line.cells for line in scores.lines}
    if not {"dino", "lpips"} <= {metric.name for metric in scores.metrics}:
        axes.set_axis_off()
        return
    for side in (0, 1):
        mine = [cells[name] for name, arm in arms.items() if arm["bayes"] == side and name in cells]
        found = [[_number(each[key].mean) for each in mine] for key in ("lpips", "dino")]
        axes.plot(*found, color=colour(side), marker=marker(side), markersize=4, linewidth=1, linestyle=_line(sweep))
    axes.set_xlabel("Lpips (diversity)")
    axes.set_title("Dino against Lpips")


def _line(sweep: Sweep) -> str:
    """Between values that have an order."""
    return "none" if sweep.axis in ("recipe", "model", "where") else "-"


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _short(value: str) -> str:
    return value.rpartition("/")[2].removeprefix("paper-").replace("-", "\n", 1)


def panels(evaluation: Evaluation, view: View, file: Path) -> Path:
    """A row for each case and arm, a column for each subject, or for each picture where one subject is shown."""
    arms = [arm for arm in evaluation.arms if not view.methods or any(m in arm.name for m in view.methods)]
    subjects = evaluation.subjects[: view.subjects]
    each = view.each if view.subjects == 1 else 1
    rows: list[tuple[str, list[Shown]]] = []
    for case in view.shows:
        for arm in arms:
            shown: list[Shown] = []
            for subject in subjects:
                mine = [p for p in evaluation.pictures if (p.subject, p.arm) == (subject, arm.name)]
                for picture in choose(mine, each).get(case, []):
                    score = picture.scores.get("clip_iqa")
                    shown.append((picture.file, "", f"Clip-IQA {score:.2f}" if score is not None else ""))
            if shown:
                rows.append((f"{case}\n{textwrap.fill(arm.label, 16)}", shown))
    taught = [(files[0], name, "") for name in subjects if (files := evaluation.references.get(name))]
    rows.insert(0, ("trained on", taught[:1] if view.subjects == 1 else taught))
    with style():
        width = max(len(shown) for _, shown in rows)
        figure = Figure(figsize=(max(INCHES / 2, 1.15 * width + 1), 1.25 * len(rows) + 0.8), layout="constrained")
        title = f"{titled(file.stem.removesuffix('_pictures'))}: {view.title}"
        says = [f"Paper: {view.says}"] if view.says else []
        figure.suptitle("\n".join([title, *says]), x=0.01, ha="left", fontsize=10)
        pictures(figure, rows)
        return save(figure, file)
