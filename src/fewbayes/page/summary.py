"""The numbers of a report: what each arm did, over its seeds, with intervals; and the verdict in plain lines.

Numpy only; reads curves that `read.py` found, draws nothing.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fewbayes.page.read import NOISE, SIMILARITY, Arm, Curve, Experiment, Run
from fewbayes.stage.definition import DIP_MARGIN, fidelity_dips

INTERVAL = "95% t interval of the mean over seeds"
WEIGHT_NAMES = {"raw": "raw weights", "ema": "averaged weights"}
QUANTITIES = {
    "peak_similarity": "peak similarity",
    "deepest_fall": "deepest fall after the peak",
    "highest_noise": "highest noise",
    "final_similarity": "final similarity",
    "mean_similarity": "mean similarity",
}
_T975 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


@dataclass(frozen=True)
class Interval:
    """Mean of n values with its 95% t interval; `low` and `high` are None for a single value, all for none."""

    n: int
    mean: float | None
    low: float | None
    high: float | None
    values: list[float | None]


def student_t975(freedom: int) -> float:
    """Upper 2.5 % point of Student's t: tabulated to 30 degrees of freedom, then within 0.002 by Cornish-Fisher."""
    if freedom <= len(_T975):
        return _T975[freedom - 1]
    normal = 1.959964
    return normal + (normal**3 + normal) / (4 * freedom)


def interval(values: list[float]) -> Interval:
    kept = [value for value in values if math.isfinite(value)]
    listed = [value if math.isfinite(value) else None for value in values]
    if not kept:
        return Interval(0, None, None, None, listed)
    mean = float(np.mean(kept))
    if len(kept) == 1:
        return Interval(1, mean, None, None, listed)
    half = student_t975(len(kept) - 1) * float(np.std(kept, ddof=1)) / math.sqrt(len(kept))
    return Interval(len(kept), mean, mean - half, mean + half, listed)


def run_numbers(run: Run, weights: str) -> dict[str, float]:
    """Over the checkpoints after step 0 (the base model is no checkpoint of the training); NaN where unmeasured."""
    similarity, noise = _trained(run.curve(SIMILARITY, weights)), _trained(run.curve(NOISE, weights))
    falls = np.maximum.accumulate(similarity) - similarity
    return {
        "peak_similarity": float(similarity.max()) if len(similarity) else math.nan,
        "deepest_fall": float(falls.max()) if len(similarity) else math.nan,
        "highest_noise": float(noise.max()) if len(noise) else math.nan,
        "final_similarity": float(similarity[-1]) if len(similarity) else math.nan,
        "mean_similarity": float(similarity.mean()) if len(similarity) else math.nan,
    }


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


def run_stages(run: Run, weights: str) -> list[tuple[int, int]]:
    return _stages(run.curve(SIMILARITY, weights), run.curve(NOISE, weights), run.curve(NOISE).at(0))


def mean_stages(arm: Arm, weights: str) -> list[tuple[int, int]]:
    """The stage of the mean curve over seeds."""
    mean = {}
    for metric in (SIMILARITY, NOISE):
        steps, values = over_seeds(arm, metric, weights)
        mean[metric] = Curve(steps, values.mean(axis=0) if len(values) else np.array([]))
    base = [level for run in arm.runs if (level := run.curve(NOISE).at(0)) is not None]
    return _stages(mean[SIMILARITY], mean[NOISE], float(np.mean(base)) if base else None)


def _stages(similarity: Curve, noise: Curve, base_noise: float | None) -> list[tuple[int, int]]:
    steps = np.intersect1d(similarity.steps, noise.steps)
    return fidelity_dips(
        steps,
        similarity.values[np.isin(similarity.steps, steps)],
        noise.values[np.isin(noise.steps, steps)],
        base_noise,
    )


def summarise_experiment(experiment: Experiment) -> dict[str, Any]:
    """The table of the page as plain data, JSON-ready (None where nothing was measured)."""
    summary: dict[str, Any] = {
        "title": experiment.title,
        "subject": experiment.subject,
        "interval": INTERVAL,
        "stage_margin": DIP_MARGIN,
        "base": {metric: base_level(experiment, metric) for metric in (SIMILARITY, NOISE)},
        "arms": [_arm_summary(arm) for arm in experiment.arms],
        "differences": _differences(experiment),
        "notes": experiment.notes,
    }
    return {**summary, "verdict": verdict(summary)}


def _arm_summary(arm: Arm) -> dict[str, Any]:
    rows = {weights: _weights_summary(arm, weights) for weights in WEIGHT_NAMES if arm.has(weights)}
    return {"name": arm.name, "label": arm.label, "note": arm.note, "weights": rows}


def _weights_summary(arm: Arm, weights: str) -> dict[str, Any]:
    runs = [run for run in arm.runs if run.curve(SIMILARITY, weights) or run.curve(NOISE, weights)]
    numbers = [run_numbers(run, weights) for run in runs]
    stages = [run_stages(run, weights) for run in runs]
    return {
        "n": len(runs),
        "runs": [run.name for run in runs],
        "seeds": [run.seed for run in runs],
        **{name: asdict(interval([number[name] for number in numbers])) for name in QUANTITIES},
        "stages": mean_stages(arm, weights),
        "stages_per_run": stages,
        "runs_with_stage": sum(bool(found) for found in stages),
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
            row = {name: asdict(interval([there[name] - here[name] for here, there in pairs])) for name in QUANTITIES}
            rows.append({"arm": arm.name, "label": arm.label, "less": first.label, "weights": weights, **row})
            rows[-1]["n"] = len(pairs)
    return rows


def _pairs(first: Arm, second: Arm, weights: str) -> list[tuple[dict[str, float], dict[str, float]]]:
    here, there = ({run.seed: run for run in arm.runs if run.seed is not None} for arm in (first, second))
    shared = [seed for seed in here if seed in there]
    return [(run_numbers(here[seed], weights), run_numbers(there[seed], weights)) for seed in shared]


def verdict(summary: dict[str, Any]) -> list[str]:
    """One line per arm and kind of weights, for the terminal and the head of the page."""
    lines = []
    for arm in summary["arms"]:
        for weights, row in arm["weights"].items():
            if row["n"]:
                lines.append(f"{arm['label']}, {WEIGHT_NAMES[weights]}: {_sentence(row)}")
    return lines


def _sentence(row: dict[str, Any]) -> str:
    def value(name: str, digits: int = 2) -> str:
        mean = row[name]["mean"]
        return "not measured" if mean is None else f"{round(mean, digits) + 0.0:.{digits}f}"

    found, n = row["runs_with_stage"], row["n"]
    if n == 1:
        spans = ", ".join(f"steps {first} to {last}" for first, last in row["stages_per_run"][0])
        stage = f"corruption stage at {spans}" if found else "no corruption stage by this definition"
    else:
        stage = f"corruption stage in {found} of {n} seeds" if found else f"no corruption stage in any of {n} seeds"
    return (
        f"similarity {value('peak_similarity')} at its peak, {value('final_similarity')} at the end, "
        f"deepest fall {value('deepest_fall')}, highest noise {value('highest_noise', 1)}; {stage}."
    )
