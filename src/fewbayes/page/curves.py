"""Curves over training steps as inline SVG, drawn by matplotlib."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from fewbayes.page.look import INK, STAGE, WIDTH, colour, empty, inline, marker, style
from fewbayes.page.read import CORRUPTION, NOISE, SIMILARITY, Arm, Curve, Experiment
from fewbayes.page.summary import base_level, mean_stages, over_seeds
from fewbayes.stage.definition import CORRUPTED

TITLES = {
    SIMILARITY: "Likeness to the training images",
    NOISE: "Noise",
    CORRUPTION: "Corruption score",
    "loss": "Loss",
    "grad_norm": "Gradient norm",
    "kl": "KL divergence to the prior",
    "weight_std_mean": "Mean weight standard deviation",
    "lr": "Learning rate",
    "jitter": "Jitter: loss of the raw weights over their averages'",
    "guided_gain": "Disturbance that guidance leaves, at its worst noise level",
}
SIGNALS = ("loss", "grad_norm", "kl", "weight_std_mean", "lr", "jitter", "guided_gain")


def over_steps(experiment: Experiment) -> list[str]:
    """Corruption score, likeness and noise, each with all arms, those that were measured."""
    measured = [
        metric
        for metric in (CORRUPTION, SIMILARITY, NOISE)
        if any(run.curve(metric, kind) for run in experiment.runs for kind in experiment.weights)
    ]
    return [_together(experiment, metric) for metric in measured]


def signals(experiment: Experiment) -> list[str]:
    """Those signals of the training that were logged and moved, by a hundredth of their size at least."""

    def moved(metric: str) -> bool:
        logged = [curve.values for run in experiment.runs if (curve := run.curve(metric))]
        return any(np.ptp(values) > 0.01 * np.abs(values).max() for values in logged)

    return [_signal(experiment, metric) for metric in SIGNALS if moved(metric)]


def _together(experiment: Experiment, metric: str) -> str:
    """Means over seeds with bands from the least to the greatest, averaged weights dashed, the base model dotted."""
    with style():
        figure = empty(WIDTH, 2.5)
        axes = figure.subplots()
        for i, arm in enumerate(experiment.arms):
            for weights in experiment.weights:
                _draw_arm(axes, arm, metric, weights, i)
        if metric == CORRUPTION:
            axes.axhline(CORRUPTED, color=STAGE, linewidth=1.2)
        elif (level := base_level(experiment, metric)) is not None:
            _draw_base(axes, level, below=metric == NOISE)
        if experiment.single:
            for first, last in mean_stages(experiment.arms[0], "raw"):
                axes.axvspan(first, last, color=STAGE, alpha=0.22, linewidth=0, zorder=0)
        axes.set_title(TITLES[metric])
        low, high = axes.get_ylim()
        axes.set_ylim(min(low, 0.0), high if metric == NOISE else max(high, 1.0))
        axes.locator_params(axis="x", nbins=6, integer=True)
        axes.locator_params(axis="y", nbins=5)
        axes.margins(x=0.02)
        axes.set_xlabel("training steps")
        return inline(figure, f"curve-{metric}", f"{TITLES[metric]} over training steps")


def _draw_arm(axes: Axes, arm: Arm, metric: str, weights: str, index: int) -> None:
    steps, values = over_seeds(arm, metric, weights)
    if not len(values):
        return
    line, raw = colour(index), weights == "raw"
    if len(values) > 1 and raw:
        axes.fill_between(steps, values.min(0), values.max(0), color=line, alpha=0.13, linewidth=0)
    mark = marker(index) if raw else ""
    dashes = "-" if raw else (0, (3, 1.5))
    axes.plot(steps, values.mean(0), color=line, linewidth=1.7, linestyle=dashes, marker=mark, markersize=3)


def _draw_base(axes: Axes, level: float, below: bool) -> None:
    """A dotted line, its name on the side where the curves are not."""
    axes.axhline(level, color=INK, linewidth=0.9, linestyle=(0, (1, 2.5)), alpha=0.8)
    place = {"va": "top" if below else "bottom", "ha": "right", "fontsize": 8, "alpha": 0.8}
    offset = {"xytext": (-1, -3 if below else 3), "textcoords": "offset points"}
    axes.annotate("base model", (1, level), xycoords=("axes fraction", "data"), **offset, **place)


def _signal(experiment: Experiment, metric: str) -> str:
    """A metric of the training itself, averaged over short stretches of steps, one line per run."""
    with style():
        figure = empty(WIDTH, 2.1)
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
    steps, values = (
        [float(part.mean()) for part in np.array_split(whole, parts)] for whole in (curve.steps, curve.values)
    )
    return Curve(np.array(steps), np.array(values))
