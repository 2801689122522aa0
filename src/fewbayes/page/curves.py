"""Curves over training steps as inline SVG, drawn by matplotlib.

Each artist carries a class, by which the page shows and hides it.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fewbayes.metrics.statistics import interval
from fewbayes.page.look import EMA, INK, STAGE, WIDTH, colour, inline, marker, style
from fewbayes.page.read import CORRUPTION, NOISE, SIMILARITY, Arm, Curve, Experiment
from fewbayes.page.summary import base_level, mean_stages, over_seeds, run_stages
from fewbayes.stage.definition import CORRUPTED

FEWEST_FOR_BAND = 3
TITLES = {
    SIMILARITY: "Image similarity",
    NOISE: "Noise (Haar)",
    CORRUPTION: "Corruption score",
    "loss": "Loss",
    "grad_norm": "Gradient norm",
    "kl": "KL divergence to the prior",
    "weight_std_mean": "Mean weight standard deviation",
    "lr": "Learning rate",
}


def together(experiment: Experiment, metric: str, weights: str) -> str:
    """All arms in one panel: mean over seeds with its 95% band, thin lines per seed, the base model dotted."""
    with style():
        figure = Figure(figsize=(WIDTH, 2.5), layout="constrained")
        axes = figure.subplots()
        for i, arm in enumerate(experiment.arms):
            _draw_arm(axes, arm, metric, weights, colour(i), marker(i))
        if metric == CORRUPTION:
            axes.axhline(CORRUPTED, color=STAGE, linewidth=0.9)
        else:
            _draw_base(axes, base_level(experiment, metric), metric)
        _finish(axes, metric, _limits(experiment, metric))
        axes.set_xlabel("training steps")
        return inline(figure, f"together-{metric}-{weights}", f"{TITLES[metric]} over training steps, all arms")


def by_itself(experiment: Experiment, index: int) -> str:
    """One arm: similarity above, noise below, raw and averaged weights, its corruption stage shaded."""
    arm = experiment.arms[index]
    weights = [kind for kind in experiment.weights if arm.has(kind)]
    rows = [(run, kind) for run in arm.runs for kind in weights if len(arm.runs) > 1 and run_stages(run, kind)]
    with style():
        heights = [1.7, 1.3] + ([0.12 + 0.1 * len(rows)] if rows else [])
        figure = Figure(figsize=(WIDTH, sum(heights) + 1.0), layout="constrained")
        panels = figure.subplots(len(heights), 1, sharex=True, gridspec_kw={"height_ratios": heights})
        for axes, metric in zip(panels, (SIMILARITY, NOISE), strict=False):
            for kind in reversed(weights):
                _draw_arm(axes, arm, metric, kind, colour(index) if kind == "raw" else EMA, marker(index))
                _shade(axes, arm, kind)
            _draw_base(axes, base_level(experiment, metric), metric)
            _finish(axes, metric, _limits(experiment, metric))
        if rows:
            _draw_timeline(panels[2], rows, index)
        panels[-1].set_xlabel("training steps")
        return inline(figure, f"arm-{index}", f"{arm.label}: image similarity and noise over training steps")


def training_signal(experiment: Experiment, metric: str) -> str:
    """A metric of the training itself, averaged over short stretches of steps, one line per run."""
    with style():
        figure = Figure(figsize=(WIDTH, 2.1), layout="constrained")
        axes = figure.subplots()
        for i, arm in enumerate(experiment.arms):
            for run in arm.runs:
                curve = _thinned(run.curve(metric))
                axes.plot(curve.steps, curve.values, color=colour(i), linewidth=1, alpha=0.8)
        axes.set_title(TITLES.get(metric, metric))
        axes.set_xlabel("training steps")
        axes.locator_params(nbins=6)
        axes.ticklabel_format(useOffset=False)
        return inline(figure, f"signal-{metric}", f"{TITLES.get(metric, metric)} over training steps")


def _thinned(curve: Curve, most: int = 80) -> Curve:
    if not curve:  # a signal that this arm does not have, as a plain run has no deviations
        return curve
    parts = min(most, len(curve.steps))
    steps = [float(part.mean()) for part in np.array_split(curve.steps, parts)]
    values = [float(part.mean()) for part in np.array_split(curve.values, parts)]
    return Curve(np.array(steps), np.array(values))


def _draw_arm(axes: Axes, arm: Arm, metric: str, weights: str, line: str, mark: str) -> None:
    steps, values = over_seeds(arm, metric, weights)
    if not len(values):
        return
    tag = f"w-{weights}"
    if len(values) > 1:
        for run in arm.runs:
            curve = run.curve(metric, weights)
            axes.plot(curve.steps, curve.values, color=line, linewidth=0.7, alpha=0.35, gid=tag)
    if len(values) >= FEWEST_FOR_BAND:
        found = [interval({("", run): value for run, value in enumerate(column)}) for column in values.T]
        low, high = (np.array([getattr(one, end) for one in found], dtype=float) for end in ("low", "high"))
        axes.fill_between(steps, low, high, color=line, alpha=0.13, linewidth=0, gid=tag)
    axes.plot(
        steps, values.mean(axis=0), color=line, linewidth=1.9, marker=mark, markersize=3, markeredgewidth=0, gid=tag
    )


def _draw_base(axes: Axes, level: float | None, metric: str) -> None:
    """A dotted line, its name on the side where the curves are not."""
    if level is None:
        return
    below = metric == NOISE
    axes.axhline(level, color=INK, linewidth=0.9, linestyle=(0, (1, 2.5)), alpha=0.8)
    axes.annotate(
        "base model",
        (1, level),
        xycoords=("axes fraction", "data"),
        xytext=(-1, -3 if below else 3),
        va="top" if below else "bottom",
        textcoords="offset points",
        ha="right",
        fontsize=8,
        alpha=0.8,
    )


def _shade(axes: Axes, arm: Arm, weights: str) -> None:
    for first, last in mean_stages(arm, weights):
        axes.axvspan(first, last, color=STAGE, alpha=0.22, linewidth=0, zorder=0, gid=f"w-{weights}")


def _draw_timeline(axes: Axes, rows: Sequence[tuple], index: int) -> None:
    """One bar per run that went through a stage, in the colour of its weights."""
    axes.grid(False)
    for row, (run, kind) in enumerate(rows):
        for first, last in run_stages(run, kind):
            shade = colour(index) if kind == "raw" else EMA
            axes.plot([first, last], [row, row], color=shade, linewidth=4, solid_capstyle="butt", gid=f"w-{kind}")
    axes.set_yticks([])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_title("Corruption stage, seed by seed", fontsize=9, fontweight="normal", pad=4)


def _limits(experiment: Experiment, metric: str) -> tuple[float, float]:
    """One scale for all panels of a metric, set by the lines and not by the bands."""
    curves = [run.curve(metric, weights).values for run in experiment.runs for weights in experiment.weights]
    values = np.concatenate([*curves, np.array([base_level(experiment, metric) or 0.0])])
    low, high = min(0.0, float(values.min())), float(values.max())
    if metric != NOISE:
        return low - 0.03, max(high + 0.05, 1.0)
    return low, (high or 1.0) * 1.08


def _finish(axes: Axes, metric: str, limits: tuple[float, float]) -> None:
    axes.set_title(TITLES[metric])
    axes.set_ylim(*limits)
    axes.locator_params(axis="x", nbins=6, integer=True)
    axes.locator_params(axis="y", nbins=5)
    axes.margins(x=0.02)
