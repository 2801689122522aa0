"""What the paper's figures are drawn with: on white, about a thousand pixels wide, ours beside what is known of theirs.

`told` is always what figN.json holds. Knows none of the figures.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from PIL import Image

from fewbayes.page.look import colour, marker

INCHES, MARKER = 9.0, 4
LETTERS, SMALL_LETTERS = 105, 135
"""In a line, of the title's and of the notes' size."""
SOFT = "#5b6068"
"""Of the notes at the foot."""
MARKED = 1.5
"""A value is marked where it is so many times another."""
CHANGED = 0.2
"""Of a correlation or a slope: less is no change."""
Told = dict[str, Any]
Panel = Figure | SubFigure
Shown = tuple[Path, str, str]
"""A picture, its title, and the line below it."""


def canvas(told: Told, seen: str, height: float, notes: Sequence[str] = (), *, tuned: bool = True) -> Figure:
    """An empty figure under its title, how it was made and what is seen in it; at its foot the paper's words and notes.

    tuned: whether fine-tunings are behind it.
    """
    figure = Figure(figsize=(INCHES, height), layout="constrained")
    name = told["figure"].replace("fig", "Fig. ")
    made_with = _fine_tunings(told["asked"]) if tuned else f"model {told['asked']['model']}, no fine-tuning"
    head = [f"{name}: {told['title']}", made_with, textwrap.fill(f"Seen here: {seen}", LETTERS)]
    figure.suptitle("\n".join(head), x=0.01, ha="left", fontsize=10)
    if foot := "\n".join(textwrap.fill(line, SMALL_LETTERS) for line in _foot(told, notes)):
        figure.supxlabel(foot, x=0.01, ha="left", fontsize=8, color=SOFT)
    return figure


def _fine_tunings(asked: Told) -> str:
    method = f"{asked['method']} rank {asked['rank']}" if asked["rank"] else asked["method"]
    seeds = f"{asked['seeds']} seed{'s' * (asked['seeds'] > 1)}"
    said = [f"model {asked['model']}", method, f"rate {asked['learning_rate']:g}", *asked["subjects"], seeds]
    tried = "; only tried out, nothing follows from it" if asked["quick"] else ""
    return textwrap.fill(", ".join(said) + tried, LETTERS)


def _foot(told: Told, notes: Sequence[str]) -> list[str]:
    says, of = told["paper"].get("says"), told.get("pictures_of")
    pictures = [f"Pictures of {of}, first seed; numbers are means over runs."] if of else []
    return ([f"Paper: {says}"] if says else []) + pictures + [*notes, *told.get("notes", [])]


def parts(figure: Panel, heights: Sequence[float]) -> list[SubFigure]:
    """Figures within the figure, from top to bottom."""
    return list(figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0])


def pictures(figure: Panel, rows: Sequence[tuple[str, Sequence[Shown]]], columns: int = 0) -> None:
    """Rows of pictures, each row behind its label. columns: at least so many, for rows of other panels beside these."""
    most = max(columns, *(len(shown) for _, shown in rows))
    for line, (label, shown) in zip(figure.subplots(len(rows), most, squeeze=False), rows, strict=True):
        for axes, (file, title, below) in zip(line, shown, strict=False):
            with Image.open(file) as image:
                axes.imshow(np.asarray(image.convert("RGB")), interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            axes.grid(False)
            axes.spines[:].set_visible(False)
            axes.set_title(title, fontsize=8, fontweight="normal", loc="center")
            axes.set_xlabel(below, fontsize=8)
        for axes in line[len(shown) :]:
            axes.set_axis_off()
        line[0].set_ylabel(label, fontsize=8)


def by_step(runs: Sequence[Told], key: str) -> tuple[np.ndarray, np.ndarray]:
    """The steps at which any run has a number, and runs x those steps, NaN where a run has none."""
    steps = sorted({step for run in runs for step in run["steps"]})
    known = [dict(zip(run["steps"], run[key], strict=False)) for run in runs]
    values = np.array([[np.nan if (v := of.get(step)) is None else v for step in steps] for of in known], dtype=float)
    there = ~np.isnan(values).all(axis=0)
    return np.array(steps)[there], values[:, there]


def band(axes: Axes, runs: Sequence[Told], key: str, label: str, i: int) -> None:
    """Mean line and the range of the runs; where a run has no number, the others speak."""
    steps, values = by_step(runs, key)
    low, middle, high = (np.asarray(of(values, axis=0)) for of in (np.nanmin, np.nanmean, np.nanmax))
    axes.plot(steps, middle, color=colour(i), marker=marker(i), markersize=MARKER, linewidth=1.6, label=label)
    if len(runs) > 1:
        axes.fill_between(steps, low, high, color=colour(i), alpha=0.18, linewidth=0)


def bounds(found: Told, digits: int = 2) -> str:
    """A mean with its interval or range, where it has one that is wider than nothing."""
    said = f"{found['mean']:.{digits}f}"
    if found["low"] is None or found["low"] == found["high"]:
        return said
    return f"{said} [{found['low']:.{digits}f}, {found['high']:.{digits}f}]"


def state(step: int) -> str:
    return iterations(step) if step else "pretrained"


def at_guidance(told: Told) -> str:
    return f"guidance {told['asked']['guidance_scale']:g}"


def iterations(step: int) -> str:
    return f"{step} iteration{'s' * (step > 1)}"
