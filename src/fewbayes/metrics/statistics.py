"""Intervals and tests for scores of several subjects and training seeds.

The unit of replication is one training: a (subject, seed). Pictures of one training are not independent trials, so they
are averaged before anything here is asked. Seeds of one subject share what is special in it. So an interval is
Student's t of the subjects' means. It covers the mean of all subjects from two subjects on, where a bootstrap over
subjects does not (`benchmarks/coverage.py` measures both).

It does not know metrics, arms or files; numpy and scipy only.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from fewbayes.errors import UserError

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
Units = Mapping[tuple[str, int], float | None]
"""One number for each (subject, seed); None or NaN where it could not be had."""

LEVEL = 0.95
FEWEST_SUBJECTS = 6
"""With fewer subjects a signed-rank test over subjects cannot fall below 0.05, whatever the data: 2 / 2^5 > 0.05."""
_EXACT_TIES = 13  # 2^13 sign patterns are fewer than scipy's default number of resamples
SKEWED = {
    2: (93, 93, 92, 93, 92),
    3: (92, 90, 90, 90, 89),
    4: (91, 89, 89, 89, 88),
    5: (90, 89, 89, 89, 89),
    6: (91, 90, 90, 89, 89),
    7: (91, 90, 90, 90, 89),
    8: (91, 91, 90, 90, 90),
    9: (91, 91, 90, 90, 90),
    10: (92, 91, 91, 90, 90),
    11: (91, 91, 91, 90, 90),
    12: (92, 91, 91, 91, 91),
}
"""Percent of simulated studies whose interval covers the mean of all subjects, where subjects are exponential: by
number of subjects, for 1 to 5 seeds. Where they are normal it is 95 throughout. From `benchmarks/results/coverage.json`
(a test compares), the least over seeds of 0.3, 1 and 3 times the subjects' standard deviation."""


@dataclass(frozen=True)
class Estimate:
    """A macro mean over subjects with its interval, whose bounds are None where there is a single training.

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


def interval(units: Units, *, level: float = LEVEL, within: tuple[float, float] = (-math.inf, math.inf)) -> Estimate:
    """Macro mean with Student's t interval: of subjects' means, or of the seeds where there is one subject.

    level: of the interval, in (0, 1). Exact for normal scores and as many seeds in each subject; `coverage` has the
    rest. within: what a score can be, (0, 1) for a share; the interval ends there. With one subject the interval covers
    the mean of that subject over other seeds, and of no other subject.
    """
    from scipy.special import stdtrit  # commands that only look up a palette or a table do not wait for it

    if not 0 < level < 1:
        raise UserError(f"level is {level}; it must lie between 0 and 1, say 0.95")
    groups = _by_subject(units)
    kept = sum(map(len, groups.values()))
    means, missing = np.array(list(subject_means(units).values())), len(units) - kept
    mean = float(np.mean(means)) if len(means) else None
    independent = means if len(groups) > 1 else np.concatenate([*groups.values(), np.empty(0)])
    if mean is None or len(independent) < 2:
        return Estimate(mean, None, None, len(groups), kept, missing)
    error = float(independent.std(ddof=1)) / math.sqrt(len(independent))
    half = float(stdtrit(len(independent) - 1, (1 + level) / 2)) * error
    low, high = max(mean - half, within[0]), min(mean + half, within[1])
    return Estimate(mean, low, high, len(groups), kept, missing)


def coverage(subjects: int, seeds: int) -> tuple[int, int] | None:
    """Of 100 simulated studies of this size, how many 95 % intervals cover the mean of all subjects.

    Two numbers: where subjects differ normally, and where they are exponential, so that a few stand far out. None for
    one subject, whose interval is not about others. Beyond 12 subjects or 5 seeds: the numbers of 12 and 5.
    """
    if subjects < 2:
        return None
    row = SKEWED[min(subjects, max(SKEWED))]
    return 95, row[min(max(seeds, 1), len(row)) - 1]


def grouped(pairs: Iterable[tuple[K, V]]) -> dict[K, list[V]]:
    """The second of each pair by the first, in the order in which they come."""
    groups: dict[K, list[V]] = {}
    for key, value in pairs:
        groups.setdefault(key, []).append(value)
    return groups


def _by_subject(units: Units) -> dict[str, NDArray[np.float64]]:
    groups = grouped((subject, value) for (subject, _), value in finite(units).items())
    return {subject: np.array(values) for subject, values in groups.items()}


def compare(treated: Units, control: Units, *, better: int = 1, level: float = LEVEL) -> Comparison:
    """The paired comparison of two arms. better: 1 where more is better, -1 where less is."""
    assert better in (1, -1), better
    paired = differences(treated, control)
    means = subject_means(paired)
    over = "subjects" if len(means) > 1 else "units"
    pairs = list(finite(paired).values())
    tested = (list(means.values()) if over == "subjects" else pairs) if len(pairs) > 1 else []
    return Comparison(
        difference=interval(paired, level=level),
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
    """What an interval over so many subjects and units can and cannot say, in a few sentences."""
    if units < 2:
        return "One training has no interval: repeat it with other seeds."
    if subjects == 1:
        return (
            f"One subject, {units} trainings: the interval is Student's t over training seeds, and a test is over "
            "single pairs of trainings. Both tell how far other seeds would move the mean of this subject, and nothing "
            "about other subjects."
        )
    found = coverage(subjects, units // subjects)
    assert found is not None
    said = (
        f"{subjects} subjects, {units} trainings: the interval is Student's t over the subjects' means. In simulated "
        f"studies of this size it covers the mean of all subjects in {found[0]} of 100 where subjects differ normally, "
        f"in {found[1]} of 100 where a few stand far out."
    )
    if subjects < FEWEST_SUBJECTS:
        said += f" No test over {subjects} subjects can fall below p = {2.0 ** (1 - subjects):.2g}."
    return said
