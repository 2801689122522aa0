"""Intervals and tests for scores of several subjects and training seeds.

The unit of replication is one training: a (subject, seed). Pictures of one training are not independent trials, so they
are averaged before anything here is asked. Seeds lie within subjects, so an interval resamples subjects first and the
seeds of each resampled subject then, and its width can tell of other subjects only where there are several.

It does not know metrics, arms or files; numpy and scipy only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewbayes.errors import UserError

Units = Mapping[tuple[str, int], float | None]
"""One number for each (subject, seed); None or NaN where it could not be had."""

LEVEL = 0.95
DRAWS = 10_000
FEWEST_SUBJECTS = 6
"""With fewer subjects a signed-rank test over subjects cannot fall below 0.05, whatever the data: 2 / 2^5 > 0.05."""
_EXACT_TIES = 13  # 2^13 sign patterns are fewer than scipy's default number of resamples


@dataclass(frozen=True)
class Estimate:
    """A macro mean over subjects with its percentile interval, whose bounds are None where nothing could be resampled.

    missing: units left out because their value is None or not finite.
    """

    mean: float | None
    low: float | None
    high: float | None
    subjects: int
    units: int
    missing: int = 0


@dataclass(frozen=True)
class Comparison:
    """Treated less control over shared (subject, seed) pairs.

    win_rate: share of subjects whose mean difference points the better way, a tie counting half. p: two-sided
    signed-rank test over `p_over`: "subjects", their mean differences, wherever there are two or more, since seeds of
    one subject share what is special in it; "units", the single pairs of trainings, for one subject, of which alone
    it then speaks. smallest_p: the least that so many can give, whatever the data. A single pair has none of the three.
    """

    difference: Estimate
    win_rate: float | None
    p: float | None
    p_over: str
    smallest_p: float | None


def finite(units: Units) -> dict[tuple[str, int], float]:
    """The units that have a number, in one order whatever order they came in."""
    return {key: float(value) for key, value in sorted(units.items()) if value is not None and math.isfinite(value)}


def differences(treated: Units, control: Units) -> dict[tuple[str, int], float | None]:
    """Treated less control where both were run; None where one of the two has no number."""
    shared = sorted(treated.keys() & control.keys())
    known, against = finite(treated), finite(control)
    return {key: known[key] - against[key] if key in known and key in against else None for key in shared}


def subject_means(units: Units) -> dict[str, float]:
    """The mean over seeds of each subject."""
    return {subject: float(values.mean()) for subject, values in _by_subject(units).items()}


def macro_mean(units: Units) -> float | None:
    """The mean over subjects of their means over seeds: a subject with more seeds counts no more than another."""
    means = subject_means(units)
    return float(np.mean(list(means.values()))) if means else None


def bootstrap(units: Units, *, level: float = LEVEL, draws: int = DRAWS, seed: int = 0) -> Estimate:
    """Macro mean with the percentile interval of the two-stage cluster bootstrap: subjects, then seeds within them.

    level: of the interval, in (0, 1). The same numbers in any order give the same interval.
    """
    if not 0 < level < 1:
        raise UserError(f"level is {level}; it must lie between 0 and 1, say 0.95")
    groups = list(_by_subject(units).values())
    kept = sum(map(len, groups))
    missing = len(units) - kept
    if kept < 2:
        return Estimate(macro_mean(units), None, None, len(groups), kept, missing)
    low, high = np.quantile(_resampled(groups, draws, seed), [(1 - level) / 2, (1 + level) / 2])
    return Estimate(macro_mean(units), float(low), float(high), len(groups), kept, missing)


def _resampled(groups: list[NDArray[np.float64]], draws: int, seed: int) -> NDArray[np.float64]:
    """Macro means of `draws` resamples."""
    rng = np.random.default_rng(seed)
    chosen = rng.integers(len(groups), size=(draws, len(groups)))
    means = np.empty(chosen.shape)
    for index, values in enumerate(groups):
        places = chosen == index
        picks = rng.integers(len(values), size=(int(places.sum()), len(values)))
        means[places] = values[picks].mean(axis=1)
    return means.mean(axis=1)


def _by_subject(units: Units) -> dict[str, NDArray[np.float64]]:
    groups: dict[str, list[float]] = {}
    for (subject, _), value in finite(units).items():
        groups.setdefault(subject, []).append(value)
    return {subject: np.array(values) for subject, values in groups.items()}


def compare(
    treated: Units, control: Units, *, better: int = 1, level: float = LEVEL, draws: int = DRAWS, seed: int = 0
) -> Comparison:
    """The paired comparison of two arms. better: 1 where more is better, -1 where less is."""
    assert better in (1, -1), better
    paired = differences(treated, control)
    means = subject_means(paired)
    over = "subjects" if len(means) > 1 else "units"
    pairs = list(finite(paired).values())
    tested = (list(means.values()) if over == "subjects" else pairs) if len(pairs) > 1 else []
    return Comparison(
        difference=bootstrap(paired, level=level, draws=draws, seed=seed),
        win_rate=win_rate(means, better) if tested else None,
        p=signed_rank(tested),
        p_over=over,
        smallest_p=2.0 ** (1 - len(tested)) if tested else None,
    )


def win_rate(means: Mapping[str, float], better: int = 1) -> float | None:
    """Share of subjects on the better side of zero, ties as half; None without subjects."""
    if not means:
        return None
    signs = np.sign(better * np.array(list(means.values())))
    return float(((signs + 1) / 2).mean())


def signed_rank(values: list[float]) -> float | None:
    """Two-sided Wilcoxon signed-rank p value, zeros left out; None without values.

    Exact while there are 50 values at most and no ties, by all sign patterns with ties up to 13 values, by the normal
    limit beyond.
    """
    from scipy.stats import PermutationMethod, wilcoxon

    if not values:
        return None
    moved = np.array(sorted(value for value in values if value != 0.0))
    if not len(moved):
        return 1.0
    tied = len(np.unique(np.abs(moved))) < len(moved)
    method: Any = "asymptotic" if tied or len(moved) > 50 else "exact"
    if tied and len(moved) <= _EXACT_TIES:
        method = PermutationMethod()
    result: Any = wilcoxon(moved, method=method)
    return float(result.pvalue)


def holm(p: Mapping[str, float | None]) -> dict[str, float | None]:
    """Holm's step-down adjustment for testing all of them; what has no p value is not counted (Holm, 1979)."""
    known = sorted((value, name) for name, value in p.items() if value is not None)
    adjusted: dict[str, float | None] = dict.fromkeys(p)
    running = 0.0
    for rank, (value, name) in enumerate(known):
        running = max(running, min(1.0, (len(known) - rank) * value))
        adjusted[name] = running
    return adjusted


def reading(subjects: int, units: int) -> str:
    """What an interval over so many subjects and units can and cannot say, in a sentence."""
    if units < 2:
        return "One training has no interval: repeat it with other seeds."
    if subjects == 1:
        return (
            "One subject: the interval resamples training seeds alone, and a test is over single pairs of trainings. "
            "They say how far other seeds on the same photographs would move the mean, and nothing about other "
            "subjects."
        )
    if subjects < FEWEST_SUBJECTS:
        within = "no seeds are resampled within them" if units == subjects else "seeds are resampled within them"
        return (
            f"{subjects} subjects: the interval resamples so few subjects ({within}) that it tells how far these "
            "differ rather than where the mean of all subjects lies, and it covers that mean in clearly less than "
            f"95 of 100 studies. No test over {subjects} subjects can fall below p = {2.0 ** (1 - subjects):.2g}."
        )
    return f"{subjects} subjects, {units} trainings: subjects are resampled, then the seeds of each."
