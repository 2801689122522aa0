"""`fewbayes study read`: what the answers of a study say, with intervals, checks of the result and of the answers.

Only here are items and arms put together. Answers come from the server's database and from files of the same rows
(answers.csv of the admin view, or sheets that a model filled in); every number stands in results.json.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from fewbayes.errors import UserError
from fewbayes.fields import setting
from fewbayes.files.atomic import atomic_folder, atomic_write
from fewbayes.metrics.statistics import Estimate, holm, interval
from fewbayes.page.table import Column, Table, comma_separated, latex, markdown
from fewbayes.survey import paper
from fewbayes.survey.answers import Answer, from_database, from_files
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
from fewbayes.survey.plan import DATABASE, SAME, Key, Origin, Study, read_key, read_study

INTERVALS = (
    "Intervals are 95 %, clustered by participants and by pairs: they cover other participants and other pairs of the "
    "same trainings. For other trainings see the column over trainings."
)


@dataclass(frozen=True, kw_only=True)
class Read:
    """What the answers of a study say: shares, tests, agreement, tables and a page."""

    study: Path = setting(positional=True)
    """The study folder, with its key."""
    output_dir: str
    """A new folder for tables, numbers and the page."""
    database: str | None = setting(None, value="URL")
    """Where the server kept answers. None: answers.db in the study folder, if it is there."""
    answers: tuple[Path, ...] = setting((), several=True, value="FILE")
    """More answers: answers.csv of the admin view, or JSON of one rater's sheets, {"0": 2, "1": 0, ...}."""


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


def run_read(asked: Read) -> Path:
    """Write the results; returns their folder."""
    study, plan = read_study(asked.study)
    key = read_key(asked.study, study)
    answers = from_files(asked.answers, study)
    if asked.database or (asked.study / DATABASE).is_file():
        answers = from_database(asked.study, plan, asked.database) + answers
    answers = [answer for answer in answers if answer.item in study.by_id]
    if not answers:
        raise UserError(f"{asked.study} has no answers yet; serve it, or name a file of answers with --answers")
    with atomic_folder(asked.output_dir, new=True) as folder:
        if study.kind == "rating":
            from fewbayes.survey.rate import write_ratings

            write_ratings(folder, study, key, answers)
        else:
            write_results(folder, study, key, result_of(study, key, plan, answers), answers)
    return Path(asked.output_dir)


# --- numbers ----------------------------------------------------------------------------------------------------------


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
        told = [Estimate(*map(float, each), 0, len(mine)) for each in bounds]
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


# --- tables -----------------------------------------------------------------------------------------------------------


def estimate(found: Share | Mixed | None) -> Estimate | None:
    if found is None:
        return None
    return Estimate(found.share, found.low, found.high, 0, found.answers if isinstance(found, Share) else 0)


def tables(result: Result) -> dict[str, Table]:
    """By title, in the order of the page."""
    several = len({cell.arms for cell in result.cells}) > 1
    shown = lambda cell: [f"{cell.arms[1]} over {cell.arms[0]}", cell.case, cell.question]
    head = [Column("preferred"), Column("case"), Column("question")]
    percent = lambda title: Column(title, 1, percent=True)
    found = {
        "Preferences": Table(
            [*head, percent("%"), Column("p (Holm)", 3), percent("% without failed checks"), *map(_count, COUNTS)],
            [
                [
                    *shown(c),
                    estimate(c.share),
                    c.adjusted,
                    estimate(c.honest or c.share),
                    *map(float, (c.share.answers, c.share.people, c.share.pairs)),
                ]
                for c in result.cells
            ],
        ),
        "The same by other means": Table(
            [
                *head,
                percent("% over trainings"),
                percent("% of the average person and pair (mixed model)"),
                Column("p (mixed model)", 3),
                Column("p (sign test over people)", 3),
                Column("p (binomial, as if independent)", 3),
            ],
            [
                [*shown(c), c.trainings, estimate(c.mixed), c.mixed.p if c.mixed else None, c.people, c.naive]
                for c in result.cells
            ],
        ),
        "How far answers can be trusted": Table(
            [
                Column("question"),
                Column("Krippendorff's alpha", 2),
                percent("% of repeats answered alike"),
                _count("repeats"),
                percent("% left"),
                Column("p (left)", 3),
                Column("median s", 1),
                Column("quartiles s"),
            ],
            [
                [
                    q.question,
                    q.alpha,
                    q.consistency,
                    float(q.repeats),
                    estimate(q.left),
                    q.left.p,
                    q.seconds[1],
                    f"{q.seconds[0]:.1f} to {q.seconds[2]:.1f}",
                ]
                for q in result.quality
            ],
        ),
    }
    if several and result.strengths:
        questions = list(result.strengths)
        found["Bradley-Terry strengths, in log odds"] = Table(
            [Column("arm"), *(Column(question, 2, better=1) for question in questions)],
            [[arm, *(result.strengths[q][arm] for q in questions)] for arm in result.strengths[questions[0]]],
        )
    found["The paper's Table 3, Bayesian over plain"] = paper_table()
    return found


COUNTS = ("answers", "people", "pairs")


def _count(title: str) -> Column:
    return Column(title, 0)


def paper_table() -> Table:
    rows = []
    for (case, method), row in paper.PREFERRED.items():
        count = paper.answers(case, method)
        shown = [Estimate(percent / 100, *paper.interval(percent, count), 0, count) for percent in row]
        rows.append([f"{method}, {case}", *shown, float(count)])
    return Table(
        [Column("cell"), *(Column(f"{q} %", 1, percent=True) for q in paper.QUESTIONS), _count("answers (inferred)")],
        rows,
    )


NOTES = {
    "Preferences": INTERVALS,
    "The same by other means": "The binomial test takes all answers for independent, which they are not.",
    "How far answers can be trusted": "Alpha is 1 for full agreement, 0 for chance. A left share of 50 % is no bias.",
    "The paper's Table 3, Bayesian over plain": (
        "The paper tells percentages alone. Its intervals here are what sampling leaves open if all answers of a cell "
        "are independent; the number of answers is the one nearest to 101 that fits all three percentages of a row."
    ),
}


def facts(result: Result) -> list[str]:
    """What stands above the tables."""
    failed = sum(count > 0 for count in result.failed.values())
    return [
        f"{result.participants} participants, {result.answers} first answers to pairs.",
        f"{failed} of {len(result.failed)} participants who saw a check failed one or more; "
        f"{len(result.excluded)} failed more than the plan allows, and one column leaves them out.",
        f"Frozen plan: {result.plan}.",
    ]


def verdicts(result: Result) -> list[str]:
    """One sentence for each cell."""
    said = []
    for cell in result.cells:
        found, (first, second) = cell.share, cell.arms
        shown = f"{100 * found.share:.0f} % ({100 * found.low:.0f} to {100 * found.high:.0f})"
        if cell.adjusted < 0.05:
            winner, loser = (second, first) if found.share > 0.5 else (first, second)
            words = f"people prefer {winner} to {loser}"
        else:
            words = f"no preference between {first} and {second} is shown"
        said.append(f"{cell.question}, {cell.case}: {words}; {shown} for {second}.")
    return said


def write_results(folder: Path, study: Study, key: Key, result: Result, answers: Sequence[Answer]) -> None:
    found = tables(result)
    parts = [f"## {title}\n\n{markdown(table)}\n\n{NOTES.get(title, '')}".rstrip() for title, table in found.items()]
    lines = "\n".join(f"- {line}" for line in [*facts(result), *verdicts(result)])
    atomic_write(folder / "results.md", "\n\n".join([f"# {study.title}", lines, *parts]) + "\n")
    atomic_write(folder / "results.csv", comma_separated(found["Preferences"]))
    caption = f"Preferences of {result.participants} participants, in per cent with 95 % intervals."
    atomic_write(folder / "results.tex", latex([found["Preferences"]], caption) + "\n")
    atomic_write(folder / "results.json", json.dumps(asdict(result), indent=1) + "\n")
    atomic_write(folder / "answers.csv", unblinded_csv(answers, key))


def unblinded_csv(answers: Sequence[Answer], key: Key) -> str:
    """All answers with what they were about, for any other program."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    names = [field.name for field in fields(Answer)]
    writer.writerow([*names, "case", "subject", "unit", "arm 0", "arm 1", "right"])
    for answer in answers:
        origin = key.items.get(answer.item)
        about = [origin.case, origin.subject, origin.unit, *origin.arms] if origin else ["check", "", "", "", ""]
        right = key.right.get(answer.item, "")
        writer.writerow([*(getattr(answer, name) for name in names), *about, *[""] * (5 - len(about)), right])
    return buffer.getvalue()
