"""The study of jitter and path: dips and slopes by hand, invariances, and verdicts where the answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from fewbayes.metrics.statistics import Estimate
from fewbayes.studies.ladder import LadderFlags, cause, cells, dip, dips, draw, path, removal, slope, tables


def training(weights, factor, batch, raw, ema, *, subject="fish", seed=0):
    """One that was looked at in as many steps as there are values."""
    rows = [
        {"step": 50 * i, "jitter": 1.5 if i else None, "raw": {"correlation": a}, "ema": {"correlation": b}}
        for i, (a, b) in enumerate(zip(raw, ema, strict=True))
    ]
    about = {"subject": subject, "images": 1, "arm": f"{weights}-x{factor:g}-b{batch}", "seed": seed}
    return about | {"weights": weights, "factor": factor, "batch": batch, "rows": rows}


RISE, FALL = (0.1, 0.4, 0.6, 0.7), (0.1, 0.7, 0.4, 0.8)


def told(*averaged):
    """Two sizes, two subjects; of each size, what the averages did at 20 times the step."""
    found = []
    for subject in ("fish", "mug"):
        for weights, curve in zip((10**6, 4 * 10**6), averaged, strict=True):
            found.append(training(weights, 20.0, 1, FALL, curve, subject=subject))
            found.append(training(weights, 20.0, 8, RISE, RISE, subject=subject))
    return {"provenance": {"command": "fewbayes experiment ladder"}, "cells": found}


def test_a_dip_is_the_deepest_fall_from_what_was_reached_before():
    assert dip([0.1, 0.5, 0.2, 0.9, 0.7, 0.4, 0.8]) == pytest.approx(0.5)
    assert dip([0.1, 0.2, 0.2, 0.3]) == 0
    curve = np.random.default_rng(0).normal(size=20)
    assert dip(curve + 3) == pytest.approx(dip(curve))
    assert dip(2 * curve) == pytest.approx(2 * dip(curve))
    assert dip(np.repeat(curve, 3)) == pytest.approx(dip(curve))


def test_the_slope_is_per_doubling_and_within_trainings_that_all_sizes_have():
    units = {("fish", 0): 0.1, ("mug", 0): 0.4, ("mug", 1): 0.5}
    more = {unit: value + 0.06 for unit, value in units.items()}
    assert slope({1_000: units, 4_000: more}).mean == pytest.approx(0.03)
    assert slope({1_000: units, 2_000: more, 4_000: {u: v + 0.12 for u, v in units.items()}}).mean == pytest.approx(
        0.06
    )
    alone = slope({1_000: units | {("cat", 0): 0.9}, 4_000: more})
    assert (alone.mean, alone.units) == (pytest.approx(0.03), 3)
    assert slope({1_000: units}).mean is None


def test_words_follow_the_registered_rules():
    def between(mean, low, high):
        return Estimate(mean, low, high, 4, 4)

    known = {(0.01, -0.02, 0.02): "firm null", (0.01, -0.1, 0.1): "null", (0.05, 0.01, 0.1): "grows"}
    assert {each: path(between(*each)) for each in known} == known
    assert path(between(0.05, -0.01, 0.1)) == path(between(-0.05, -0.1, -0.01)) == path(slope({1: {}})) == "open"
    raw, without = {("fish", 0): 0.3, ("mug", 0): 0.31}, {("fish", 0): 0.0, ("mug", 0): 0.0}
    gone, stays = removal(raw, without), removal(raw, raw)
    assert (gone.share, stays.share) == (1, 0)
    assert cause(gone.difference, [gone, gone]) == "jitter"
    assert cause(gone.difference, [gone, stays]) == "not jitter"
    half = removal(raw, {unit: value / 2 for unit, value in raw.items()})
    assert cause(gone.difference, [gone, half]) == "in part"
    assert cause(stays.difference, [gone]) == "raw dip below 0.05"


def test_a_path_that_grows_and_jitter_are_told_from_curves(tmp_path):
    grows, none = told(RISE, FALL), told(RISE, RISE)
    assert dips(grows, "ema")[4 * 10**6, 20.0, 1] == {("fish", 0): pytest.approx(0.3), ("mug", 0): pytest.approx(0.3)}
    assert "| 20 | +0.150 (0.150 to 0.150) | +0.000 (0.000 to 0.000) | grows |" in tables(grows)
    assert "| firm null |" in tables(none)
    assert tables(none).count("| jitter |") == 2
    assert tables(grows).count("| not jitter |") == 1
    figure = draw(none)
    assert [axes.get_title() for axes in figure.axes[:2]] == ["20 x SD's step", "20 x SD's step, batch 8"]


def test_rates_are_in_units_of_stable_diffusions_own_step(tmp_path):  # 5e-6 x 23,040 over 2,304, the fan-in of tiny
    found = cells(LadderFlags(output_dir=tmp_path, subjects=("swirl_fish",), seeds=2))
    rates = {(cell.config.train_batch_size, round(cell.config.learning_rate, 7), cell.seed) for cell in found}
    once = {(1, 5e-5, 0), (1, 3e-4, 0), (1, 1e-3, 0), (8, 1e-3, 0)}
    assert rates == once | {(1, 3e-4, 1), (1, 1e-3, 1)}
    assert all(len(cell.subject.files) == 1 for cell in found)
