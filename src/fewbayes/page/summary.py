"""The numbers of a run page: what each arm did, over its seeds, with intervals; and the verdict in plain lines.

Numpy only; reads curves that `read.py` found, draws nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from fewbayes.metrics.statistics import interval
from fewbayes.page.read import CORRUPTION, NOISE, SIMILARITY, Arm, Curve, Experiment, Run
from fewbayes.page.verdict import answer, verdict
from fewbayes.stage.definition import fidelity_dip, stages

INTERVAL = "95 % Student's t interval of the mean over seeds"
WEIGHT_NAMES = {"raw": "raw weights", "ema": "averaged weights"}
QUANTITIES = {
    "peak_similarity": "peak similarity",
    "deepest_fall": "deepest fall after the peak",
    "fidelity_dip": "fidelity dip",
    "highest_noise": "highest noise",
    "highest_corruption": "highest corruption score",
    "final_similarity": "final similarity",
    "mean_similarity": "mean similarity",
}
DIGITS = dict.fromkeys(QUANTITIES, 2) | {"highest_noise": 1}
BOUNDS = dict.fromkeys(("deepest_fall", "fidelity_dip", "highest_noise"), (0, math.inf)) | {
    "highest_corruption": (0, 1)
}
"""What a quantity can be; the others are correlations, in [-1, 1]."""
Steps = list[tuple[int, int]]
"""(first step, last step) of stretches along a training."""


def over(values: Sequence[float], within: tuple[float, float] = (-math.inf, math.inf)) -> dict[str, Any]:
    """Mean of the finite values with its interval over seeds, JSON-ready; all of them under "values", None for NaN."""
    found = interval({("", i): value for i, value in enumerate(values)}, within=within)
    listed = [value if math.isfinite(value) else None for value in values]
    return {"n": found.units, "mean": found.mean, "low": found.low, "high": found.high, "values": listed}


def run_numbers(run: Run, weights: str) -> dict[str, float]:
    """Over the checkpoints after step 0 (the base model is no checkpoint of the training); NaN where unmeasured."""
    similarity, noise, corruption = (_trained(run.curve(name, weights)) for name in (SIMILARITY, NOISE, CORRUPTION))
    falls, whole = np.maximum.accumulate(similarity) - similarity, run.curve(SIMILARITY, weights)
    found = {
        "peak_similarity": similarity.max,
        "deepest_fall": falls.max,
        "fidelity_dip": lambda: fidelity_dip(whole.steps.tolist(), whole.values.tolist())["depth"],
        "highest_noise": noise.max,
        "highest_corruption": corruption.max,
        "final_similarity": lambda: similarity[-1],
        "mean_similarity": similarity.mean,
    }
    measured = {"highest_noise": len(noise), "highest_corruption": len(corruption)}
    return {name: float(of()) if measured.get(name, len(similarity)) else math.nan for name, of in found.items()}


def _trained(curve: Curve) -> np.ndarray:
    return curve.values[curve.steps > 0]


def over_seeds(arm: Arm, metric: str, weights: str) -> tuple[np.ndarray, np.ndarray]:
    """(steps, values of shape runs x steps) at the steps that every measured run of the arm has."""
    curves = [curve for run in arm.runs if (curve := run.curve(metric, weights))]
    if not curves:
        return np.array([], dtype=int), np.zeros((0, 0))
    shared = sorted(set.intersection(*(set(curve.steps.tolist()) for curve in curves)))
    values = [[curve.values[np.searchsorted(curve.steps, step)] for step in shared] for curve in curves]
    return np.array(shared, dtype=int), np.array(values, dtype=float)


def base_level(experiment: Experiment, metric: str) -> float | None:
    """The base model, step 0: the mean over all runs, which share it up to their sampling seeds."""
    levels = [level for run in experiment.runs if (level := run.curve(metric).at(0)) is not None]
    return float(np.mean(levels)) if levels else None


def run_stages(run: Run, weights: str) -> Steps:
    """The corruption stages of a run, by the scores of its pictures; the base model is no checkpoint of it."""
    curve = run.curve(CORRUPTION, weights)
    return stages(curve.steps[curve.steps > 0].tolist(), _trained(curve).tolist())


def mean_stages(arm: Arm, weights: str) -> Steps:
    """The stages of the mean curve over seeds."""
    steps, values = over_seeds(arm, CORRUPTION, weights)
    return stages(steps[steps > 0].tolist(), values[:, steps > 0].mean(axis=0).tolist()) if len(values) else []


def summarise_experiment(experiment: Experiment) -> dict[str, Any]:
    """The table of the page as plain data, JSON-ready (None where nothing was measured)."""
    summary: dict[str, Any] = {
        "title": experiment.title,
        "subject": experiment.subject,
        "interval": INTERVAL,
        "base": {metric: base_level(experiment, metric) for metric in (SIMILARITY, NOISE)},
        "arms": [
            {
                "name": arm.name,
                "label": arm.label,
                "note": arm.note,
                "weights": {weights: _weights_summary(arm, weights) for weights in WEIGHT_NAMES if arm.has(weights)},
            }
            for arm in experiment.arms
        ],
        "differences": _differences(experiment),
        "notes": experiment.notes,
        **{key: experiment.provenance[key] for key in ("seconds",) if key in experiment.provenance},
    }
    said = verdict(experiment.runs[0]) if experiment.single else answer(summary)
    return {**summary, "verdict": [said.headline, *said.lines]}


def _weights_summary(arm: Arm, weights: str) -> dict[str, Any]:
    runs = [run for run in arm.runs if run.curve(SIMILARITY, weights) or run.curve(NOISE, weights)]
    numbers = [run_numbers(run, weights) for run in runs]
    found = [run_stages(run, weights) for run in runs]
    return {
        "n": len(runs),
        "runs": [run.name for run in runs],
        "seeds": [run.seed for run in runs],
        **{name: over([n[name] for n in numbers], BOUNDS.get(name, (-1, 1))) for name in QUANTITIES},
        "scored": sum(bool(run.curve(CORRUPTION, weights)) for run in runs),
        "stages": mean_stages(arm, weights),
        "stages_per_run": found,
        "runs_with_stage": sum(map(bool, found)),
        "ends": [looks[-1].stage for run in runs if (looks := run.looks.get(weights))],
    }


def _differences(experiment: Experiment) -> list[dict[str, Any]]:
    """Each arm less the first one, run by run at the same seed: what the seeds share cancels."""
    rows = []
    first, *others = experiment.arms
    for arm in others:
        for weights in WEIGHT_NAMES:
            if not (arm.has(weights) and first.has(weights)):
                continue
            pairs = _pairs(first, arm, weights)
            row = {name: over([there[name] - here[name] for here, there in pairs]) for name in QUANTITIES}
            told = {"arm": arm.name, "label": arm.label, "less": first.label, "weights": weights}
            rows.append({**told, **row, "n": len(pairs)})
    return rows


def _pairs(first: Arm, second: Arm, weights: str) -> list[tuple[dict[str, float], dict[str, float]]]:
    here, there = ({run.seed: run for run in arm.runs if run.seed is not None} for arm in (first, second))
    shared = [seed for seed in here if seed in there]
    return [(run_numbers(here[seed], weights), run_numbers(there[seed], weights)) for seed in shared]
