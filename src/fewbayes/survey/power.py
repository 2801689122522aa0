"""How many participants a study needs: simulated studies, read as real ones are."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit

from fewbayes.survey.inference import Codes, Floats, Share, share
from fewbayes.survey.plan import Power

PEOPLE_STD, PAIRS_STD = 0.5, 0.8
"""How people and pairs differ, in log odds of the preference: assumed, as the paper tells no spread."""
ALPHA = 0.05
SHARES, PARTICIPANTS = (0.55, 0.60, 0.65, 0.70), (10, 20, 40, 80, 160)


def simulate(
    chance: np.random.Generator,
    preference: float,
    participants: int,
    pairs: int,
    each: int,
    people_std: float = PEOPLE_STD,
    pairs_std: float = PAIRS_STD,
) -> tuple[Floats, Codes, Codes]:
    """Answers (0 or 1), people and pairs of one study of one question, each person answering `each` of the pairs.

    preference: the share over all people and pairs. The log odds of an answer are an intercept plus normal effects of
    person and pair.
    """
    each = min(each, pairs)
    people = np.repeat(np.arange(participants), each)
    shown = np.concatenate([(np.arange(each) + n * each) % pairs for n in range(participants)])
    effects = people_std * chance.standard_normal(participants)[people]
    effects = effects + pairs_std * chance.standard_normal(pairs)[shown]
    line = intercept(preference, math.hypot(people_std, pairs_std)) + effects
    return (chance.random(len(people)) < expit(line)).astype(np.float64), people, shown


@cache
def intercept(preference: float, std: float) -> float:
    """The log odds whose mean preference is `preference` where effects of that standard deviation are added."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    weights = weights / weights.sum()
    return float(brentq(lambda line: float(weights @ expit(line + std * nodes)) - preference, -20, 20))  # pyright: ignore


def studies(
    seed: int, count: int, preference: float, participants: int, pairs: int, each: int, **stds: float
) -> list[Share]:
    """What is read off `count` simulated studies."""
    chance = np.random.default_rng([seed, participants, pairs, round(1000 * preference)])
    return [share(*simulate(chance, preference, participants, pairs, each, **stds)) for _ in range(count)]


def power_table(pairs: int, each: int, planned: int, seed: int = 0, count: int = 200) -> list[Power]:
    """The share of `count` simulated studies with p < 0.05, by preference and participants."""
    found: list[Power] = []
    for preference in SHARES:
        for people in sorted({*PARTICIPANTS, planned}):
            seen = [one.p < ALPHA for one in studies(seed, count, preference, people, pairs, each)]
            found.append(Power(preference, people, sum(seen) / count))
    return found
