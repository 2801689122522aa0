"""The pictures of an evaluation's page: best, average, worst and random ones of each arm, within a budget of bytes.

Best, average and worst follow the paper's appendix I. A choice by score shows what the score likes, so pictures chosen
by a seed alone stand beside them.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path

from fewbayes.metrics.registry import in_table
from fewbayes.metrics.statistics import grouped
from fewbayes.page.evaluation.reading import Evaluation, Picture
from fewbayes.page.evaluation.scores import ROWS
from fewbayes.page.parts import Column, Panel, Row, Sheet, Shot
from fewbayes.page.pictures import BUDGET, LOSSLESS, SIDES, embed, fit, weigh
from fewbayes.page.render import number

PER_CASE = 4
FEWEST_SUBJECTS = 2
KEPT = 0.9
FILTERS = ("clip_t", "dino")
RANK = "clip_iqa"
RULE = (
    "Kept: pictures among the top 90 % by Clip-T and among the top 90 % by Dino. Best: the highest Clip-IQA of those; "
    "average: the middle of that rank; worst: the lowest Clip-IQA of all pictures. Random: chosen by a hash of the "
    "file names, before any score."
)
Case = tuple[str, list[Picture]]


def make_gallery(evaluation: Evaluation, budget: int = BUDGET, seed: int = 0) -> Sheet:
    """A panel for each subject and arm, a row for each case, for as many subjects and pictures as `budget` holds.

    Pictures of a case go first, then subjects.
    """
    pictures_of = grouped(((picture.subject, picture.arm), picture) for picture in evaluation.pictures)
    subjects, present = sorted({subject for subject, _ in pictures_of}), {arm for _, arm in pictures_of}
    named = [*(arm.name for arm in evaluation.arms), *ROWS]
    arms = [name for name in named if name in present] + sorted(present - set(named))
    shown, count = subjects, PER_CASE
    while True:
        cases = {
            (subject, arm): _cases(pictures_of[subject, arm], count, seed)
            for subject in shown
            for arm in arms
            if (subject, arm) in pictures_of
        }
        files = [picture.file for rows in cases.values() for _, pictures in rows for picture in pictures]

        def weight(side: int, files: Sequence[Path] = tuple(files)) -> int:
            return weigh(files, side)

        side = fit(weight, budget)
        if weight(side) <= budget or (count == 1 and len(shown) == 1) or not shown:
            break
        if count > 1 and len(shown) <= FEWEST_SUBJECTS:
            count -= 1
        else:
            shown = shown[: max(len(shown) // 2, 1)]
    return _sheet(evaluation, cases, subjects, shown, arms, count, side)


def _cases(pictures: Sequence[Picture], count: int, seed: int) -> list[Case]:
    """Where there are no more than a case holds, all of them once."""
    chosen = choose(pictures, count, seed)
    return [("all", chosen["random"])] if len(pictures) <= count else list(chosen.items())


def _sheet(
    evaluation: Evaluation,
    cases: Mapping[tuple[str, str], list[Case]],
    subjects: Sequence[str],
    shown: Sequence[str],
    arms: Sequence[str],
    count: int,
    side: int,
) -> Sheet:
    labels = ROWS | {arm.name: arm.label for arm in evaluation.arms}
    training = {subject: evaluation.references.get(subject, ()) for subject in shown}
    first = dict(zip(shown, accumulate((len(files) for files in training.values()), initial=0), strict=False))
    small = min(side, SIDES[-1], LOSSLESS)
    panels = []
    for (subject, arm), rows in cases.items():
        names = [path.name for path in training[subject]]
        arm_name = labels.get(arm, arm)
        made = [
            Row(name, [_shot(p, f"{name} {i + 1}, {arm_name}", names, first[subject], side) for i, p in enumerate(its)])
            for name, its in rows
        ]
        columns = [Column(str(i + 1)) for i in range(max((len(row.shots) for row in made), default=0))]
        padded = [Row(row.title, [*row.shots, *[None] * (len(columns) - len(row.shots))]) for row in made]
        if any(shot for row in made for shot in row.shots):
            panels.append(Panel((shown.index(subject), arms.index(arm)), columns, padded))
    missing = [name for name in FILTERS if not any(name in p.scores for p in evaluation.pictures)]
    notes = [f"{len(shown)} of {len(subjects)} subjects are shown, to keep the page small."] * (
        len(shown) < len(subjects)
    )
    notes += [f"{count} of {PER_CASE} pictures a case are shown, to keep the page small."] * (count < PER_CASE)
    notes += [f"No picture has a score of {' and '.join(missing)}, so nothing is filtered by it."] * bool(missing)
    reduced = any(s.picture.reduced_from for panel in panels for row in panel.rows for s in row.shots if s)
    notes += [f"Pictures wider than {side} pixels are reduced to that, which hides fine noise."] * reduced
    return Sheet(
        panels,
        choosers=[("subject", list(shown)), ("arm", [labels.get(arm, arm) for arm in arms])],
        training=[p for files in training.values() for file in files if (p := embed(file, small, square=True))],
        notes=[RULE, *notes] if any(len(rows) > 1 for rows in cases.values()) else notes,
    )


def _shot(picture: Picture, place: str, training: Sequence[str], first: int, side: int) -> Shot | None:
    embedded = embed(picture.file, side)
    if embedded is None:
        return None
    likeness = picture.scores.get("nearest_ncc")
    known = picture.nearest in training and likeness is not None
    scores = [f"{m.title} {number(picture.scores[m.name])}" for m in in_table("paper") if m.name in picture.scores]
    return Shot(
        embedded,
        f"{place}, {picture.prompt or picture.file.name}, seed {picture.seed}",
        under=picture.prompt,
        more=", ".join(scores),
        near=first + training.index(picture.nearest) if known and picture.nearest else None,
        likeness=likeness if known else None,
    )


# --- which pictures ---------------------------------------------------------------------------------------------------


def choose(pictures: Sequence[Picture], count: int = 4, seed: int = 0) -> dict[str, list[Picture]]:
    """Best, average, worst and random pictures of one arm, `count` of each; without Clip-IQA the random ones alone.

    The random ones are the same whatever the scores and the order, and by name the same in every arm: arms that share
    prompts and seeds are seen side by side.
    """

    def chance_of(picture: Picture) -> bytes:
        named = f"{seed}/{picture.subject}/{picture.seed}/{picture.file.name}"
        return hashlib.sha256(named.encode()).digest()

    chance = {"random": sorted(pictures, key=chance_of)[:count]}
    ranked_by = [picture for picture in pictures if RANK in picture.scores]
    scored = sorted(ranked_by, key=lambda picture: (picture.scores[RANK], str(picture.file)))
    if not scored:
        return chance
    ranked = kept(scored)[::-1]
    start = max(0, (len(ranked) - count) // 2)
    return {"best": ranked[:count], "average": ranked[start : start + count], "worst": scored[:count]} | chance


def kept(pictures: Sequence[Picture]) -> list[Picture]:
    """Those in the top 90 % by every filter that has scores; a picture without a score of a filter is not kept."""
    found = list(pictures)
    for metric in FILTERS:
        scored = sorted((p.scores[metric] for p in pictures if metric in p.scores), reverse=True)
        if scored:
            least = scored[math.ceil(KEPT * len(scored)) - 1]
            found = [p for p in found if p.scores.get(metric, -math.inf) >= least]
    return found
