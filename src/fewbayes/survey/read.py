"""`fewbayes study read`: what the answers of a study say, with intervals, checks of the result and of the answers.

Answers come from the server's database and from files of the same rows
(answers.csv of the admin view, or sheets that a model filled in); every number stands in results.json.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from fewbayes.errors import UserError
from fewbayes.fields import setting
from fewbayes.files.atomic import atomic_folder, atomic_write
from fewbayes.metrics.statistics import Estimate
from fewbayes.page.look import FAINT, INK, colour, inline, style
from fewbayes.page.parts import Fold, Page, Verdict
from fewbayes.page.render import write_page
from fewbayes.page.table import Column, Table, comma_separated, latex, markdown
from fewbayes.survey import paper
from fewbayes.survey.answers import Answer, from_database, from_files, to_csv
from fewbayes.survey.inference import Mixed, Share, wilson
from fewbayes.survey.plan import DATABASE, Key, Study, read_key, read_study
from fewbayes.survey.results import Result, result_of

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


# --- tables -----------------------------------------------------------------------------------------------------------


def estimate(found: Share | Mixed | None) -> Estimate | None:
    if found is None:
        return None
    return Estimate(found.share, found.low, found.high, 0, found.answers if isinstance(found, Share) else 0)


def tables(result: Result) -> dict[str, Table]:
    """By title, in the order of the page."""
    head = ("preferred", "case", "question")
    shares, others, trust = [], [], []
    for c in result.cells:
        name = [f"{c.arms[1]} over {c.arms[0]}", c.case, c.question]
        counts = map(float, (c.share.answers, c.share.people, c.share.pairs))
        shares.append([*name, estimate(c.share), c.adjusted, estimate(c.honest or c.share), *counts])
        others.append([*name, c.trainings, estimate(c.mixed), c.mixed.p if c.mixed else None, c.people, c.naive])
    for q in result.quality:
        first, median, third = q.seconds
        spread = f"{first:.1f} to {third:.1f}"
        left = [estimate(q.left), q.left.p]
        trust.append([q.question, q.alpha, q.consistency, float(q.repeats), *left, median, spread])
    person, alone = "% of the average person and pair (mixed model)", "p (binomial, as if independent)"
    means = ("% over trainings", person, "p (mixed model)", "p (sign test over people)", alone)
    alike = ("question", "Krippendorff's alpha", "% of repeats answered alike", "repeats")
    found = {
        "Preferences": _table(shares, *head, "%", "p (Holm)", "% without failed checks", "answers", "people", "pairs"),
        "The same by other means": _table(others, *head, *means),
        "How far answers can be trusted": _table(trust, *alike, "% left", "p (left)", "median s", "quartiles s"),
    }
    if result.strengths:
        arms = list(next(iter(result.strengths.values())))
        rows = [[arm, *(each[arm] for each in result.strengths.values())] for arm in arms]
        columns = [Column("arm"), *(Column(question, 2, better=1) for question in result.strengths)]
        found["Bradley-Terry strengths, in log odds"] = Table(columns, rows)
    found["The paper's Table 3, Bayesian over plain"] = paper_table()
    return found


def paper_table() -> Table:
    rows = []
    for (case, method), (count, row) in paper.PREFERRED.items():
        shown = [Estimate(share, *wilson(share, count), 0, count) for share in (percent / 100 for percent in row)]
        rows.append([f"{method}, {case}", *shown, float(count)])
    return _table(rows, "cell", *(f"% {question}" for question in paper.QUESTIONS), "answers (inferred)")


def _table(rows: Sequence[Sequence[Any]], *titles: str) -> Table:
    """Shares have one digit, p values three, alpha two, seconds one, and counts none."""
    columns = []
    for title in titles:
        share = title.startswith("%")
        digits = 1 if share or title.endswith(" s") else 3 if title.startswith("p ") else 2 * ("alpha" in title)
        columns.append(Column(title, digits, percent=share))
    return Table(columns, rows)


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
    write_page(page_of(study, result, found), folder)


def page_of(study: Study, result: Result, found: dict[str, Table]) -> Page:
    """The page of the results: verdicts, intervals as a drawing, tables in folds."""
    first, *said = verdicts(result)
    return Page(
        title=study.title,
        verdict=Verdict(first, said),
        chips=[f"{result.participants} participants", f"{result.answers} answers", f"plan {result.plan[:12]}"],
        above=[
            ("drawings", [drawing(result, question.name) for question in study.questions]),
            ("points", facts(result)[1:]),
        ],
        folds=[
            Fold(title, [("table", each), ("text", NOTES.get(title, ""))], open=not place)
            for place, (title, each) in enumerate(found.items())
        ],
        arms=len({cell.arms for cell in result.cells}),
    )


def drawing(result: Result, question: str) -> str:
    """Our shares and the paper's, with their intervals, one line each; half of the answers is a line."""
    pairs = list(dict.fromkeys(cell.arms for cell in result.cells))
    rows = []
    for c in (cell for cell in result.cells if cell.question == question):
        name, found = f"{c.arms[1]} over {c.arms[0]}, {c.case}", c.share
        rows.append((name, found.share, found.low, found.high, colour(pairs.index(c.arms))))
    place = paper.QUESTIONS.index(question)
    for (case, method), (count, row) in paper.PREFERRED.items():
        share = row[place] / 100
        rows.append((f"paper: {method}, {case}", share, *wilson(share, count), FAINT))
    with style():
        figure = Figure(figsize=(5, 0.7 + 0.27 * len(rows)), layout="constrained")
        axes = figure.subplots()
        axes.grid(axis="x")
        axes.axvline(50, color=INK, linewidth=0.8)
        for line, (_, share, low, high, shade) in enumerate(rows):
            axes.plot([100 * low, 100 * high], [line, line], color=shade, linewidth=2)
            axes.plot(100 * share, line, "o", color=shade, markersize=6)
        axes.set_yticks(range(len(rows)), [name for name, *_ in rows])
        axes.set_xlim(0, 100)
        axes.invert_yaxis()
        axes.set_title(question)
        axes.set_xlabel("% that prefer the first named")
        return inline(figure, f"share-{question}", f"Shares with intervals: {question}")


def unblinded_csv(answers: Sequence[Answer], key: Key) -> str:
    """All answers with what they were about, for any other program."""

    def about(answer: Answer) -> list[Any]:
        origin = key.items.get(answer.item)
        its = [origin.case, origin.subject, origin.unit, *origin.arms] if origin else ["check", "", "", "", ""]
        return [*its, key.right.get(answer.item, "")]

    return to_csv(answers, ["case", "subject", "unit", "arm 0", "arm 1", "right"], about)
