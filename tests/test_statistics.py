"""Intervals cover what they promise, tests agree with textbooks, and no order of the numbers changes anything."""

import json
import math
import runpy
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbayes.metrics.statistics import (
    FEWEST_SUBJECTS,
    SKEWED,
    compare,
    coverage,
    differences,
    finite,
    holm,
    interval,
    reading,
    signed_rank,
    subject_means,
    win_rate,
)

UNITS = {("cat", 0): 1.0, ("cat", 1): 3.0, ("mug", 0): 10.0}
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def drawn(subjects: int, seeds: int, rng: np.random.Generator, between: float = 1.0, within: float = 1.0):
    centre = rng.normal(0, between, subjects)
    return {(f"s{i}", k): float(centre[i] + rng.normal(0, within)) for i in range(subjects) for k in range(seeds)}


def test_a_subject_with_more_seeds_counts_no_more_than_another():
    assert subject_means(UNITS) == {"cat": 2.0, "mug": 10.0}
    assert interval(UNITS).mean == 6.0
    assert interval({}).mean is None


def test_numbers_that_are_not_there_are_left_out_and_counted():
    units = UNITS | {("mug", 1): None, ("mug", 2): math.nan, ("mug", 3): math.inf}
    assert list(finite(units)) == list(UNITS)
    found = interval(units)
    assert (found.mean, found.units, found.missing, found.subjects) == (6.0, 3, 3, 2)


def test_pairs_share_subject_and_seed():
    control = {("cat", 0): 0.5, ("cat", 2): 9.0, ("mug", 0): None}
    assert differences(UNITS, control) == {("cat", 0): 0.5, ("mug", 0): None}


def test_equal_numbers_have_an_interval_of_no_width():
    found = interval({(s, k): 0.7 for s in "abc" for k in range(3)})
    assert found.low == found.high == pytest.approx(0.7)


def test_one_training_has_a_mean_and_no_interval():
    found = interval({("cat", 0): 0.7})
    assert (found.mean, found.low, found.high) == (0.7, None, None)
    assert interval({}).mean is None


def test_the_interval_is_students_t_of_the_subjects_means():
    """Means 1, 2, 6 of mean 3 and variance 7; Student's t of two degrees of freedom is 4.303."""
    units = {("a", 0): 0.5, ("a", 1): 1.5, ("b", 0): 2.0, ("c", 0): 4.0, ("c", 1): 8.0}
    found = interval(units)
    assert found.mean == pytest.approx(3)
    assert found.high == pytest.approx(3 + 4.3027 * math.sqrt(7 / 3), rel=1e-4)
    assert found.low == pytest.approx(3 - 4.3027 * math.sqrt(7 / 3), rel=1e-4)


def test_one_subject_has_students_t_of_its_seeds():
    found = interval({("cat", k): value for k, value in enumerate((1.0, 2.0, 6.0))})
    assert found.high == pytest.approx(3 + 4.3027 * math.sqrt(7 / 3), rel=1e-4)


def test_an_interval_ends_where_a_score_can_go_no_further():
    found = interval({(s, 0): value for s, value in zip("abc", (0.0, 0.1, 0.9), strict=True)}, within=(0, 1))
    assert (found.low, found.high) == (0, 1)


def test_intervals_are_reproducible_and_do_not_depend_on_the_order():
    units = drawn(5, 3, np.random.default_rng(1))
    turned = dict(sorted(units.items(), reverse=True))
    assert interval(units) == interval(turned)
    control = drawn(5, 3, np.random.default_rng(2))
    assert compare(units, control) == compare(turned, dict(sorted(control.items(), reverse=True)))


@pytest.mark.parametrize(("subjects", "seeds"), [(2, 3), (3, 5), (4, 5), (12, 3)])
@pytest.mark.parametrize("within", [0.3, 3.0])
def test_the_interval_covers_the_mean_of_all_subjects(subjects, seeds, within):
    rng = np.random.default_rng(3)
    found = [interval(drawn(subjects, seeds, rng, within=within)) for _ in range(800)]
    covered = np.mean([e.low <= 0 <= e.high for e in found if e.low is not None and e.high is not None])
    assert 0.93 <= covered <= 0.97  # four standard errors either way would be 0.03; the seed is fixed


def simulated(rule: str, subjects: int, seeds: int, ratio: float) -> float:
    """Coverage by a rule of the script whose results are kept."""
    script = runpy.run_path(str(BENCHMARKS / "coverage.py"))
    rng = np.random.default_rng(0)
    return script["measured"](rule, script["studies"](400, subjects, seeds, ratio, "normal", rng), rng)["coverage"]


@pytest.mark.parametrize(
    ("rule", "most"), [("percentile", 0.88), ("BCa", 0.88), ("Welch", 0.5), ("t over trainings", 0.7)]
)
def test_every_narrower_rule_falls_short_for_four_subjects_of_five_seeds(rule, most):
    assert simulated(rule, 4, 5, 0.3) <= most
    assert simulated("t over subjects", 4, 5, 0.3) >= 0.92


def test_the_script_measures_the_very_interval_that_is_shown():
    script = runpy.run_path(str(BENCHMARKS / "coverage.py"))
    rng = np.random.default_rng(1)
    scores = script["studies"](20, 4, 3, 1.0, "exponential", rng)
    low, high = script["t_over_subjects"](scores, rng)
    for study, bottom, top in zip(scores, low, high, strict=True):
        found = interval({(f"s{i}", k): float(v) for i, row in enumerate(study) for k, v in enumerate(row)})
        assert (found.low, found.high) == (pytest.approx(bottom), pytest.approx(top))


def test_the_coverage_that_is_told_is_the_one_that_was_measured():
    cells = json.loads((BENCHMARKS / "results/coverage.json").read_text())["cells"]
    worst: dict[tuple[str, int, int], int] = {}
    for cell in cells:
        key = (cell["shape"], cell["subjects"], cell["seeds"])
        percent = round(100 * cell["rules"]["t over subjects"]["coverage"])
        worst[key] = min(worst.get(key, 100), percent)
    for subjects, row in SKEWED.items():
        for seeds, skewed in enumerate(row, 1):
            assert coverage(subjects, seeds) == (
                worst["normal", subjects, seeds],
                worst["exponential", subjects, seeds],
            )
            assert coverage(subjects, seeds) == (95, skewed)
            assert skewed >= 88
    assert coverage(1, 5) is None
    assert coverage(30, 9) == coverage(12, 5)


def test_one_subject_covers_its_own_mean_and_not_that_of_all_subjects():
    """What `reading` warns of: seeds alone cannot speak for subjects."""
    rng = np.random.default_rng(4)
    own, everyone = [], []
    for _ in range(300):
        centre = rng.normal(0, 3)
        found = interval({("one", k): float(centre + rng.normal()) for k in range(12)})
        assert found.low is not None
        assert found.high is not None
        own.append(found.low <= centre <= found.high)
        everyone.append(found.low <= 0 <= found.high)
    assert np.mean(own) > 0.92
    assert np.mean(everyone) < 0.5
    assert "nothing about other subjects" in reading(1, 12)


def test_reading_says_less_for_fewer_subjects():
    assert "no interval" in reading(1, 1)
    assert "2 subjects" in reading(2, 6)
    assert "p = 0.5" in reading(2, 6)
    assert "in 95 of 100 where subjects differ normally, in 88 of 100" in reading(4, 20)
    assert reading(30, 150).startswith("30 subjects, 150 trainings")


def test_ties_count_half_in_the_win_rate_and_less_can_be_better():
    means = {"a": 1.0, "b": 2.0, "c": -1.0, "d": 0.0}
    assert win_rate(means) == pytest.approx(2.5 / 4)
    assert win_rate(means, better=-1) == pytest.approx(1.5 / 4)
    assert win_rate({}) is None


def test_signed_rank_agrees_with_a_count_by_hand():
    assert signed_rank([1.0, 2.0, 3.0]) == pytest.approx(2 / 8)
    assert signed_rank([-1.0, 2.0, 3.0]) == pytest.approx(4 / 8)
    assert signed_rank([5.0]) == 1.0
    assert signed_rank([0.0, 0.0]) == 1.0
    assert signed_rank([]) is None


def test_signed_rank_with_ties_counts_every_sign_pattern():
    assert signed_rank([1.0, 1.0, 1.0]) == pytest.approx(2 / 8)
    assert signed_rank([0.0, 1.0, 1.0, 2.0]) == pytest.approx(2 / 8)  # a zero is left out


def test_signed_rank_of_darwins_plants():
    """Height differences in eighths of an inch of 15 pairs of plants (Darwin 1876; Fisher 1935); exact p is 0.0413."""
    plants = [49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48]
    assert signed_rank([float(value) for value in plants]) == pytest.approx(0.0413, abs=5e-5)


def test_holm_adjusts_as_the_textbook_does():
    adjusted = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert adjusted == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})
    assert holm({"a": 0.6, "b": None, "c": 0.9}) == {"a": 1.0, "b": None, "c": 1.0}
    assert holm({}) == {}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_never_lowers_a_p_value_and_keeps_their_order(values):
    names = [f"m{i}" for i in range(len(values))]
    adjusted = holm(dict(zip(names, values, strict=True)))
    for name, value in zip(names, values, strict=True):
        found = adjusted[name]
        assert found is not None
        assert value <= found <= 1
    ordered = sorted(names, key=lambda name: values[int(name[1:])])
    assert [adjusted[name] for name in ordered] == sorted(v for v in adjusted.values() if v is not None)


@pytest.mark.parametrize("subjects", [2, 3, 5, 6, 10])
def test_the_test_errs_in_no_more_than_five_of_a_hundred_studies_of_nothing(subjects):
    """The true mean difference is nought, but each subject has one of its own that its seeds share."""
    rng = np.random.default_rng(5)
    null = [drawn(subjects, 3, rng, between=1.0, within=0.5) for _ in range(400)]
    p = [compare(units, dict.fromkeys(units, 0.0)).p for units in null]
    assert np.mean([value is not None and value < 0.05 for value in p]) <= 0.07


def test_subjects_are_tested_wherever_there_are_two_and_seeds_for_one_alone():
    for subjects, over, smallest in (
        (1, "units", 1 / 4),
        (2, "subjects", 1 / 2),
        (FEWEST_SUBJECTS, "subjects", 1 / 32),
    ):
        units = {(f"s{i}", k): 1 + i + k / 10 for i in range(subjects) for k in range(3)}
        found = compare(units, dict.fromkeys(units, 0.0))
        assert (found.p_over, found.smallest_p, found.win_rate) == (over, smallest, 1.0)
        assert found.p == pytest.approx(smallest)


def test_pairing_removes_what_the_arms_share():
    rng = np.random.default_rng(6)
    control = drawn(10, 3, rng, between=10, within=5)
    treated = {key: value + 0.1 for key, value in control.items()}
    found = compare(treated, control)
    assert found.difference.mean == pytest.approx(0.1)
    assert found.difference.low == pytest.approx(0.1)
    alone = interval(treated)
    assert alone.high is not None
    assert alone.low is not None
    assert alone.high - alone.low > 1


def test_a_level_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"level is 95; it must lie between 0 and 1"):
        interval(UNITS, level=95)
