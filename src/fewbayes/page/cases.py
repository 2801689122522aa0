"""Which pictures of an arm are shown as its best, average and worst case, and at random.

The rule is that of the paper's appendix I: keep the top 90 % by Clip-T and by Dino, rank what is left by Clip-IQA; the
best case is the top of that rank, the average case its middle, and the worst case has the lowest Clip-IQA of all
pictures. A choice by score shows what the score likes, so a panel chosen by a seed alone stands beside it.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

from fewbayes.page.evaluation import Picture

KEPT = 0.9
FILTERS = ("clip_t", "dino")
RANK = "clip_iqa"
RULE = (
    "Kept: pictures among the top 90 % by Clip-T and among the top 90 % by Dino. Best: the highest Clip-IQA of those; "
    "average: the middle of that rank; worst: the lowest Clip-IQA of all pictures. Random: chosen by a hash of the "
    "file names, before any score."
)


@dataclass(frozen=True)
class Case:
    name: str
    pictures: list[Picture]


def choose(pictures: Sequence[Picture], count: int = 4, seed: int = 0) -> list[Case]:
    """Best, average, worst and random pictures of one arm, `count` of each; without Clip-IQA the random ones alone."""
    chance = Case("random", at_random(pictures, count, seed))
    scored = [picture for picture in pictures if RANK in picture.scores]
    if not scored:
        return [chance]
    ranked = sorted(kept(scored), key=_by_rank, reverse=True)
    start = max(0, (len(ranked) - count) // 2)
    return [
        Case("best", ranked[:count]),
        Case("average", ranked[start : start + count]),
        Case("worst", sorted(scored, key=_by_rank)[:count]),
        chance,
    ]


def kept(pictures: Sequence[Picture]) -> list[Picture]:
    """Those in the top 90 % by every filter that has scores; a picture without a score of a filter is not kept."""
    found = list(pictures)
    for metric in FILTERS:
        scored = sorted((p.scores[metric] for p in pictures if metric in p.scores), reverse=True)
        if scored:
            least = scored[math.ceil(KEPT * len(scored)) - 1]
            found = [p for p in found if p.scores.get(metric, -math.inf) >= least]
    return found


def at_random(pictures: Sequence[Picture], count: int, seed: int) -> list[Picture]:
    """Ranked by a hash of seed and name: the same whatever the scores and the order."""
    return sorted(pictures, key=lambda picture: _hash(seed, picture))[:count]


def _by_rank(picture: Picture) -> tuple[float, str]:
    return picture.scores[RANK], str(picture.file)


def _hash(seed: int, picture: Picture) -> bytes:
    named = f"{seed}/{picture.subject}/{picture.arm}/{picture.seed}/{picture.file.name}"
    return hashlib.sha256(named.encode()).digest()
