"""How often a 95 % interval covers the mean of all subjects, for five rules and every size of study that we show.

A study is simulated as a subject effect plus a seed effect within the subject, with a true mean of zero. Subjects are
normal, or exponential (very skewed); seeds are normal, of 0.3, 1 or 3 times the subjects' standard deviation. Writes,
for each rule and size, the share of studies whose interval holds zero, and its mean width relative to the rule "t over
subjects".

    python benchmarks/coverage.py --output benchmarks/results/coverage.json
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri, stdtrit

Bounds = tuple[NDArray[np.float64], NDArray[np.float64]]
SUBJECTS, SEEDS = range(2, 13), range(1, 6)
RATIOS = (0.3, 1.0, 3.0)
"""Standard deviation of seeds within a subject, over that of subjects."""
SHAPES = ("normal", "exponential")
LEVEL = 0.95
DRAWS = 400


def studies(
    count: int, subjects: int, seeds: int, ratio: float, shape: str, rng: np.random.Generator
) -> NDArray[np.float64]:
    """(count, subjects, seeds) scores whose true mean is zero."""
    effect = rng.normal(size=(count, subjects)) if shape == "normal" else rng.exponential(size=(count, subjects)) - 1
    return effect[..., None] + ratio * rng.normal(size=(count, subjects, seeds))


def _around(mean: NDArray[np.float64], error: NDArray[np.float64], freedom: NDArray[np.float64] | float) -> Bounds:
    half = stdtrit(freedom, (1 + LEVEL) / 2) * error
    return mean - half, mean + half


def t_over_subjects(scores: NDArray[np.float64], _: np.random.Generator) -> Bounds:
    """Student's t of the subjects' means; degrees of freedom: subjects less one. The rule of `statistics.interval`."""
    means = scores.mean(2)
    count = means.shape[1]
    return _around(means.mean(1), means.std(1, ddof=1) / np.sqrt(count), count - 1)


def t_over_trainings(scores: NDArray[np.float64], _: np.random.Generator) -> Bounds:
    """Student's t of all trainings, as though seeds of one subject were independent."""
    flat = scores.reshape(len(scores), -1)
    return _around(flat.mean(1), flat.std(1, ddof=1) / np.sqrt(flat.shape[1]), flat.shape[1] - 1)


def welch(scores: NDArray[np.float64], _: np.random.Generator) -> Bounds:
    """Spread of seeds within each subject alone (subjects fixed), Welch-Satterthwaite degrees of freedom."""
    _, subjects, seeds = scores.shape
    parts = scores.var(2, ddof=1) / seeds
    freedom = parts.sum(1) ** 2 / (parts**2 / (seeds - 1)).sum(1)
    return _around(scores.mean((1, 2)), np.sqrt(parts.sum(1)) / subjects, freedom)


def _resampled(scores: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """(studies, draws) means of the two-stage bootstrap: subjects with return, then the seeds of each."""
    count, subjects, seeds = scores.shape
    rows = np.arange(count)[:, None, None, None]
    chosen = rng.integers(subjects, size=(count, DRAWS, subjects, 1))
    return scores[rows, chosen, rng.integers(seeds, size=(count, DRAWS, subjects, seeds))].mean((2, 3))


def percentile(scores: NDArray[np.float64], rng: np.random.Generator) -> Bounds:
    """Percentiles of the two-stage bootstrap."""
    low, high = np.quantile(_resampled(scores, rng), [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=1)
    return low, high


def bca(scores: NDArray[np.float64], rng: np.random.Generator) -> Bounds:
    """The same, corrected for bias and acceleration (Efron, 1987); acceleration by leaving out one subject."""
    means, draws = scores.mean(2), np.sort(_resampled(scores, rng), axis=1)
    below = (draws < means.mean(1)[:, None]).mean(1) + (draws == means.mean(1)[:, None]).mean(1) / 2
    bias = ndtri(np.clip(below, 0.5 / DRAWS, 1 - 0.5 / DRAWS))
    away = means - means.mean(1)[:, None]  # proportional to mean of the leave-one-out values, less each
    squares = np.maximum((away**2).sum(1), np.finfo(float).tiny)
    acceleration = (away**3).sum(1) / (6 * squares**1.5)
    bounds = []
    for level in ((1 - LEVEL) / 2, (1 + LEVEL) / 2):
        shifted = bias + ndtri(level)
        place = ndtr(bias + shifted / (1 - acceleration * shifted)) * (DRAWS - 1)
        bounds.append(draws[np.arange(len(draws)), np.clip(place.round().astype(int), 0, DRAWS - 1)])
    return bounds[0], bounds[1]


RULES: dict[str, Callable[[NDArray[np.float64], np.random.Generator], Bounds]] = {
    "t over subjects": t_over_subjects,
    "t over trainings": t_over_trainings,
    "Welch": welch,
    "percentile": percentile,
    "BCa": bca,
}


def measured(rule: str, scores: NDArray[np.float64], rng: np.random.Generator) -> dict[str, float]:
    """Coverage of zero and mean width of a rule over studies."""
    low, high = RULES[rule](scores, rng)
    return {"coverage": float(((low <= 0) & (high >= 0)).mean()), "width": float((high - low).mean())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--studies", type=int, default=1_000, help="of a cell, for the rules that resample")
    parser.add_argument("--many", type=int, default=40_000, help="of a cell, for those that do not")
    asked = parser.parse_args()
    cells = []
    for subjects in SUBJECTS:
        for seeds in SEEDS:
            for shape in SHAPES:
                for ratio in RATIOS:
                    rng = np.random.default_rng([subjects, seeds, SHAPES.index(shape), round(10 * ratio)])
                    many = studies(asked.many, subjects, seeds, ratio, shape, rng)
                    found = {}
                    for rule in RULES:
                        if rule == "Welch" and seeds == 1:  # it has no spread to look at
                            continue
                        some = many[: asked.studies] if rule in ("percentile", "BCa") else many
                        found[rule] = measured(rule, some, rng)
                    unit = found["t over subjects"]["width"]
                    for numbers in found.values():
                        numbers["width"] = round(numbers["width"] / unit, 3)
                        numbers["coverage"] = round(numbers["coverage"], 4)
                    cells.append({"subjects": subjects, "seeds": seeds, "shape": shape, "ratio": ratio, "rules": found})
        print(f"{subjects} subjects", flush=True)
    facts = {"level": LEVEL, "studies": asked.studies, "many": asked.many, "draws": DRAWS}
    lines = ",\n".join(json.dumps(cell) for cell in cells)
    asked.output.write_text(f'{{"facts": {json.dumps(facts)}, "cells": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
