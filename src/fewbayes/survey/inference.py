"""What answers to comparisons can say: shares, strengths and agreement, with intervals for people and pairs that vary.

Answers of one participant are alike, and so are answers to one pair. Variances here are clustered by both (Cameron,
Gelbach and Miller, 2011, Eq. 2.3), and degrees of freedom follow Satterthwaite. numpy and scipy only; knows no files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import binomtest, t

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]
LEVEL = 0.95


@dataclass(frozen=True)
class Share:
    """A share with its interval, and the two-sided p value of a half. answers: how many it is of.

    effective: independent answers that would tell as much.
    """

    share: float
    low: float
    high: float
    p: float
    answers: int
    people: int
    pairs: int
    effective: float


def codes(names: Sequence[Any] | Codes) -> Codes:
    """Names as numbers from 0."""
    return np.unique(np.asarray(names), return_inverse=True)[1].astype(np.int64)


def clustered(scores: Floats, people: Codes, pairs: Codes) -> tuple[Floats, float]:
    """Covariance of the sum of scores (n, k) that are alike within people and within pairs; degrees of freedom.

    Never below what either clustering alone gives: the difference of three estimates can be too small by chance.
    """
    both = people * (int(pairs.max(initial=0)) + 1) + pairs
    parts, degrees = [], []
    for group in (people, pairs, codes(both)):
        count = int(group.max(initial=0)) + 1 if len(group) else 0
        sums = np.stack([np.bincount(group, column, minlength=count) for column in scores.T], axis=1)
        groups = len(np.unique(group))
        parts.append(sums.T @ sums * groups / max(groups - 1, 1))
        degrees.append(max(groups - 1, 1))
    total = parts[0] + parts[1] - parts[2]
    traces = [float(np.trace(part)) for part in (*parts, total)]
    chosen = int(np.argmax([traces[0], traces[1], traces[3]]))
    if chosen < 2:
        return parts[chosen], float(degrees[chosen])
    spread = sum(trace**2 / degree for trace, degree in zip(traces[:3], degrees, strict=True))
    return total, max(1.0, min(traces[3] ** 2 / spread, max(degrees))) if spread else float(min(degrees))


def share(values: Floats, people: Codes, pairs: Codes, level: float = LEVEL) -> Share:
    """The mean of values in [0, 1], a tie being a half: Wilson's interval, with the number of independent answers that
    the clustered variance leaves, and Student's t."""
    n, mean = len(values), float(values.mean())
    covariance, degrees = clustered((values - mean)[:, None] / n, people, pairs)
    variance, own = float(covariance[0, 0]), mean * (1 - mean)
    few = min(len(np.unique(people)), len(np.unique(pairs)))
    # Where all answers are alike there is no variance to see: then as many as there are people, or pairs if fewer.
    effective = own / variance if variance > 0 and own > 0 else float(few)
    if variance <= 0 or own <= 0:
        degrees = float(max(few - 1, 1))
    low, high = wilson(mean, effective, float(t.ppf((1 + level) / 2, degrees)))
    p = float(2 * t.sf(abs(mean - 0.5) * 2 * math.sqrt(effective), degrees))
    return Share(mean, low, high, p, n, len(np.unique(people)), len(np.unique(pairs)), effective)


def wilson(mean: float, count: float, quantile: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval of a share of `count` answers."""
    shrink = quantile**2 / count
    middle = (mean + shrink / 2) / (1 + shrink)
    half = quantile / (1 + shrink) * math.sqrt(mean * (1 - mean) / count + shrink / (4 * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def binomial(values: Floats) -> float:
    """The two-sided exact p value of a half as if all answers were independent, ties left out."""
    decided = values[values != 0.5]
    return float(binomtest(int(decided.sum()), len(decided)).pvalue) if len(decided) else 1.0


def majorities(values: Floats, people: Codes) -> float:
    """The two-sided exact sign test over people: which side each chose more often, those with neither left out."""
    sums = np.bincount(people, values - 0.5)
    decided = sums[sums != 0]
    return float(binomtest(int((decided > 0).sum()), len(decided)).pvalue) if len(decided) else 1.0


# --- a mixed model ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mixed:
    """Logistic model with effects of chance of people and pairs. share: the preference of an average person and pair,
    with its interval and p value; left: odds by which the left side is chosen; spreads in log odds."""

    share: float
    low: float
    high: float
    p: float
    left: float
    people_std: float
    pairs_std: float


def mixed(values: Floats, left: Floats, people: Codes, pairs: Codes) -> Mixed | None:
    """Laplace's approximation, its two spreads by maximum likelihood; None where it has no maximum.

    values: in [0, 1]. left: 1 where the side that `values` is about stood on the left, else 0.
    """
    counts = [int(people.max()) + 1, int(pairs.max()) + 1]
    design = np.zeros((len(values), 2 + sum(counts)))
    rows = np.arange(len(values))
    design[:, 0], design[:, 1] = 1, left - 0.5
    design[rows, 2 + people] = 1
    design[rows, 2 + counts[0] + pairs] = 1
    start = np.zeros(design.shape[1])

    def fit(log_stds: Floats) -> tuple[float, Floats, Floats]:
        precision = np.concatenate(
            [[1e-8, 1e-8], *(np.full(c, math.exp(-2 * s)) for c, s in zip(counts, log_stds, strict=True))]
        )
        beta, hessian = _logistic(design, values, precision, start)
        start[:] = beta
        line = design @ beta
        likelihood = float((values * line - np.logaddexp(0, line)).sum() - 0.5 * (precision * beta**2).sum())
        volume = np.linalg.slogdet(hessian)[1] + 2 * sum(c * s for c, s in zip(counts, log_stds, strict=True))
        return -(likelihood - 0.5 * float(volume)), beta, hessian

    found = minimize(
        lambda s: fit(s)[0], np.log([0.5, 0.5]), method="Nelder-Mead", bounds=[(-4, 2)] * 2, options={"maxfev": 80}
    )
    _, beta, hessian = fit(found.x)
    error = math.sqrt(np.linalg.inv(hessian)[0, 0])
    if not math.isfinite(error) or abs(beta[0]) > 15:
        return None
    degrees = min(counts) - 1
    half = float(t.ppf((1 + LEVEL) / 2, max(degrees, 1))) * error
    p = float(2 * t.sf(abs(beta[0]) / error, max(degrees, 1)))
    low, middle, high = (float(expit(x)) for x in (beta[0] - half, beta[0], beta[0] + half))
    people_std, pairs_std = map(float, np.exp(found.x))
    return Mixed(middle, low, high, p, float(math.exp(min(beta[1], 50))), people_std, pairs_std)


def _logistic(design: Floats, values: Floats, precision: Floats, start: Floats) -> tuple[Floats, Floats]:
    """Weights of a logistic model at the maximum of its likelihood with normal priors, by Newton; and its Hessian."""
    beta, hessian = start.copy(), np.eye(len(start))
    for _ in range(100):
        mean = expit(design @ beta)
        hessian = (design * (mean * (1 - mean))[:, None]).T @ design + np.diag(precision)
        step = np.linalg.solve(hessian, design.T @ (values - mean) - precision * beta)
        beta = beta + step * min(1.0, 2 / max(float(np.abs(step).max()), 1e-12))
        if float(np.abs(step).max()) < 1e-9:
            break
    return beta, hessian


# --- more than two arms -----------------------------------------------------------------------------------------------


def bradley_terry(first: Codes, second: Codes, values: Floats, people: Codes, pairs: Codes) -> tuple[Floats, Floats]:
    """Strengths of the arms in log odds, of mean zero, and their covariance, clustered by people and pairs.

    values: 1 where the arm `first` was preferred, 0 where `second`, 0.5 for a tie. P(i over j) = expit(s_i - s_j).
    A trace of a prior (0.01 lost and won against the mean) keeps an arm that always wins finite.
    """
    count = int(max(first.max(), second.max())) + 1
    design = np.zeros((len(values), count))
    design[np.arange(len(values)), first] += 1
    design[np.arange(len(values)), second] -= 1
    strengths, hessian = _logistic(design, values, np.full(count, 0.005), np.zeros(count))
    centre = np.eye(count) - 1 / count
    bread = centre @ np.linalg.inv(hessian)
    meat, _ = clustered(design * (values - expit(design @ strengths))[:, None], people, pairs)
    return strengths - strengths.mean(), bread @ meat @ bread.T


# --- agreement --------------------------------------------------------------------------------------------------------


def krippendorff(
    units: Sequence[Any], values: Sequence[int], scale: Literal["nominal", "ordinal"] = "nominal"
) -> float | None:
    """Krippendorff's alpha (2011, section D) of values that raters gave to units; None where nothing could differ.

    units: of each value, its unit. Units with a single value say nothing about agreement.
    """
    unit, value = codes(units), np.asarray(values, dtype=np.int64)
    if not len(value):
        return None
    options = int(value.max()) + 1
    counts = np.zeros((int(unit.max()) + 1, options))
    np.add.at(counts, (unit, value), 1)
    counts = counts[counts.sum(axis=1) > 1]
    weights = 1 / (counts.sum(axis=1) - 1)
    coincidence = np.einsum("ui,uj,u->ij", counts, counts, weights) - np.diag((counts * weights[:, None]).sum(axis=0))
    totals = coincidence.sum(axis=1)
    if scale == "nominal":
        distance = 1 - np.eye(options)
    else:
        between = np.cumsum(totals)
        middle = between - totals / 2
        distance = (middle[:, None] - middle[None, :]) ** 2
    expected = (np.outer(totals, totals) * distance).sum()
    return float(1 - (totals.sum() - 1) * (coincidence * distance).sum() / expected) if expected > 0 else None
