"""The numbers of a study of pairs: answers and arms are put together here and nowhere else.

Knows the statistics by name (`inference.py`), and no table.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fewbayes.errors import UserError
from fewbayes.metrics.statistics import Estimate, holm, interval
from fewbayes.survey.answers import Answer
from fewbayes.survey.inference import (
    Mixed,
    Share,
    binomial,
    bradley_terry,
    codes,
    krippendorff,
    majorities,
    mixed,
    share,
)
from fewbayes.survey.plan import SAME, Key, Origin, Study


@dataclass(frozen=True)
class Row:
    """A first answer to a comparison, unblinded. value: 1 where the second of the two arms was preferred, 0.5 a tie.

    left: 1 where the second arm stood on the left.
    """

    answer: Answer
    origin: Origin
    arms: tuple[str, str]
    value: float
    left: float


@dataclass(frozen=True)
class Cell:
    """Two arms in one case and question. share: of answers that prefer the second arm; honest: without participants
    who failed checks; units: by training; naive, people: p values of the exact tests."""

    arms: tuple[str, str]
    case: str
    question: str
    share: Share
    honest: Share | None
    adjusted: float
    trainings: Estimate
    naive: float
    people: float
    mixed: Mixed | None


@dataclass(frozen=True)
class Quality:
    """Of the answers to one question: agreement (Krippendorff's alpha), the share of repeated pairs answered as at
    first, the share of answers that took the left side, and seconds that answers took."""

    question: str
    alpha: float | None
    consistency: float | None
    repeats: int
    left: Share
    seconds: tuple[float, float, float]


@dataclass(frozen=True)
class Result:
    """All that is read off a study of pairs. failed: failed checks by participant, of those who saw one."""

    plan: str
    participants: int
    answers: int
    failed: dict[str, int]
    excluded: list[str]
    cells: list[Cell]
    strengths: dict[str, dict[str, Estimate]]
    quality: list[Quality]


def result_of(study: Study, key: Key, plan: str, answers: Sequence[Answer]) -> Result:
    """answers: to items and checks, repeats too, of any participants."""
    rows = [unblinded(answer, key) for answer in answers if answer.item in key.items and not answer.repeat]
    if not rows:
        raise UserError("there are answers to checks alone; wait for more participants")
    failed = failures(study, key, answers)
    excluded = sorted(person for person, count in failed.items() if count > study.plan.failures)
    groups: dict[tuple[tuple[str, str], str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.arms, row.origin.case, row.answer.question), []).append(row)
    order = {name: i for i, name in enumerate(key.labels)}
    places = {question.name: i for i, question in enumerate(study.questions)}
    names = sorted(groups, key=lambda each: (order[each[0][0]], order[each[0][1]], each[1], places[each[2]]))
    shares = {name: _share(groups[name]) for name in names}
    adjusted = holm({str(name): shares[name].p for name in names})
    cells = [_cell(name, groups[name], shares[name], excluded, adjusted[str(name)] or 0.0) for name in names]
    return Result(
        plan,
        len({answer.participant for answer in answers}),
        len(rows),
        failed,
        excluded,
        cells,
        _strengths(rows, list(key.labels)) if len(key.labels) > 2 else {},
        [_quality(question.name, answers, key) for question in study.questions],
    )


def unblinded(answer: Answer, key: Key) -> Row:
    """An answer with what it was about; arms in the order of the key."""
    origin = key.items[answer.item]
    names = list(key.labels)
    first, second = sorted(origin.arms, key=names.index)
    value = 0.5 if answer.choice == SAME else float(origin.arms[answer.choice] == second)
    return Row(answer, origin, (first, second), value, float(origin.arms[answer.left] == second))


def failures(study: Study, key: Key, answers: Iterable[Answer]) -> dict[str, int]:
    """Checks failed by each participant who saw one: the noise was taken for the better picture.

    By the question of quality, or the first of the study where it does not ask for it.
    """
    asked = next((each.name for each in study.questions if each.name == "quality"), study.questions[0].name)
    found: Counter[str] = Counter()
    for answer in answers:
        if answer.item in key.right and answer.question == asked:
            found[answer.participant] += int(answer.choice != key.right[answer.item])
    return dict(found)


def _columns(rows: Sequence[Row]) -> tuple[Any, Any, Any]:
    """Values, and who and what they are of as numbers."""
    return (
        np.array([row.value for row in rows]),
        codes([row.answer.participant for row in rows]),
        codes([row.answer.item for row in rows]),
    )


def _share(rows: Sequence[Row]) -> Share:
    return share(*_columns(rows))


def _cell(
    name: tuple[tuple[str, str], str, str], rows: list[Row], found: Share, excluded: list[str], adjusted: float
) -> Cell:
    values, people, pairs = _columns(rows)
    kept = [row for row in rows if row.answer.participant not in excluded]
    units: dict[tuple[str, int], list[float]] = {}
    for row in rows:
        units.setdefault((row.origin.subject, row.origin.unit), []).append(row.value)
    model = (
        mixed(values, np.array([row.left for row in rows]), people, pairs)
        if min(found.people, found.pairs) > 2
        else None
    )
    return Cell(
        *name,
        found,
        _share(kept) if kept and excluded else None,
        adjusted,
        interval({unit: float(np.mean(each)) for unit, each in units.items()}, within=(0, 1)),
        binomial(values),
        majorities(values, people),
        model,
    )


def _strengths(rows: Sequence[Row], arms: list[str]) -> dict[str, dict[str, Estimate]]:
    """Bradley-Terry strengths by question and arm, all cases together, in log odds."""
    found: dict[str, dict[str, Estimate]] = {}
    for question in dict.fromkeys(row.answer.question for row in rows):
        mine = [row for row in rows if row.answer.question == question]
        if len({arm for row in mine for arm in row.arms}) < len(arms):
            continue
        values, people, pairs = _columns(mine)
        first, second = (np.array([arms.index(row.arms[i]) for row in mine]) for i in (1, 0))
        strengths, covariance = bradley_terry(first, second, values, people, pairs)
        half = 1.96 * np.sqrt(np.diag(covariance))
        bounds = zip(strengths, strengths - half, strengths + half, strict=True)
        told = [Estimate(float(s), float(low), float(high), 0, len(mine)) for s, low, high in bounds]
        found[question] = dict(zip(arms, told, strict=True))
    return found


def _quality(question: str, answers: Sequence[Answer], key: Key) -> Quality:
    mine = [answer for answer in answers if answer.question == question and answer.item in key.items]
    firsts = [answer for answer in mine if not answer.repeat]
    decided = [answer for answer in firsts if answer.choice != SAME]
    before = {(answer.participant, answer.item): answer.choice for answer in firsts}
    again = [answer for answer in mine if answer.repeat and (answer.participant, answer.item) in before]
    same = [before[answer.participant, answer.item] == answer.choice for answer in again]
    people, pairs = codes([a.participant for a in decided]), codes([a.item for a in decided])
    left = np.array([float(answer.choice == answer.left) for answer in decided])
    quartiles = np.percentile([answer.milliseconds / 1000 for answer in mine], [25, 50, 75])
    return Quality(
        question,
        krippendorff([answer.item for answer in decided], [answer.choice for answer in decided]),
        float(np.mean(same)) if same else None,
        len(same),
        share(left, people, pairs),
        (float(quartiles[0]), float(quartiles[1]), float(quartiles[2])),
    )
