"""Answers: one format for people and models, from the server's database and from files."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from fewbayes.errors import UserError
from fewbayes.files.decode import parse_json, read_text, typed
from fewbayes.survey.plan import EXTRA, Study


@dataclass(frozen=True)
class Answer:
    """One answer. left: the side that stood on the left. choice: the side that was chosen, or the option of a rating.

    milliseconds: from seeing the question to the answer. key: of the client, by which a repeated request is known.
    received: seconds since 1970, in UTC.
    """

    participant: str
    trial: int
    question: str
    item: str
    repeat: bool
    left: int
    choice: int
    milliseconds: int
    key: str
    received: int = 0


NAMES = tuple(field.name for field in fields(Answer))


def to_csv(
    answers: Sequence[Answer], more: Sequence[str] = (), of: Callable[[Answer], Sequence[Any]] = lambda _: ()
) -> str:
    """A row for each answer. more, of: further columns, and what an answer has in them."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([*NAMES, *more])
    writer.writerows([*(getattr(answer, name) for name in NAMES), *of(answer)] for answer in answers)
    return buffer.getvalue()


def from_database(folder: Path, plan: str, url: str | None) -> list[Answer]:
    try:
        from fewbayes.survey.store import Store
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is not installed; {EXTRA}") from None
    store = Store(folder, plan, url)
    answers = store.answers()
    store.close()
    return answers


def from_files(files: Sequence[Path], study: Study) -> list[Answer]:
    """Answers of CSV files as `to_csv` writes them, and of JSON files that one rater filled in for numbered rows."""
    return [answer for file in files for answer in (_csv(file) if file.suffix == ".csv" else _sheet(file, study))]


def _csv(file: Path) -> list[Answer]:
    rows = list(csv.DictReader(io.StringIO(read_text(file, 2**27))))
    if not rows or set(NAMES) - rows[0].keys():
        raise UserError(f"{file} has no columns {', '.join(NAMES)}; give answers.csv of the admin view")
    plain = [{name: row[name] for name in NAMES} for row in rows]
    for row in plain:
        row["repeat"] = {"True": True, "False": False}.get(row["repeat"], row["repeat"])
        for name in ("trial", "left", "choice", "milliseconds", "received"):
            row[name] = int(row[name]) if str(row[name]).isdigit() else row[name]
    return [typed(row, Answer, f"{file}, row {number}") for number, row in enumerate(plain, start=1)]


Choice = Annotated[int, Meta(ge=0, le=9)]


def _sheet(file: Path, study: Study) -> list[Answer]:
    """{"0": 2, "1": 0, ...}: choices by the number of the row; the file's name is the rater's."""
    given = typed(parse_json(read_text(file), str(file)), dict[str, Choice], str(file))
    question = study.questions[0]
    lost = [str(i) for i in range(len(study.items)) if given.get(str(i), 9) >= len(question.options)]
    if lost:
        least, most = 0, len(question.options) - 1
        raise UserError(f"{file}: rows {', '.join(lost[:10])} have no choice from {least} to {most}")
    return [
        Answer(file.stem, i, question.name, item.id, False, 0, given[str(i)], 0, f"{i:016x}")
        for i, item in enumerate(study.items)
    ]
