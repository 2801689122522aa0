"""Answers in a database: SQLite in the study folder, or any that SQLAlchemy reaches by a URL, such as PostgreSQL.

An answer is committed to the disk before it is acknowledged. The same key again finds the first answer; a second
answer to the same question is refused by the database itself. No address, agent or name of a person has a column here.
"""

from __future__ import annotations

import contextlib
import threading
import time
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError

from fewbayes.errors import UserError
from fewbayes.survey.answers import NAMES, Answer
from fewbayes.survey.plan import DATABASE

METADATA = sa.MetaData()
_NUMBER = sa.BigInteger().with_variant(sa.Integer, "sqlite")
FROZEN = sa.Table("frozen", METADATA, sa.Column("study", sa.String(64), primary_key=True))
PARTICIPANTS = sa.Table(
    "participants",
    METADATA,
    sa.Column("number", _NUMBER, primary_key=True, autoincrement=True),
    sa.Column("participant", sa.String(32), nullable=False, unique=True),
    sa.Column("begun", sa.BigInteger, nullable=False),
    sqlite_autoincrement=True,
)
ANSWERS = sa.Table(
    "answers",
    METADATA,
    sa.Column("place", _NUMBER, primary_key=True, autoincrement=True),
    sa.Column("participant", sa.ForeignKey("participants.participant", ondelete="CASCADE"), nullable=False),
    sa.Column("trial", sa.Integer, nullable=False),
    sa.Column("question", sa.String(32), nullable=False),
    sa.Column("item", sa.String(16), nullable=False),
    sa.Column("repeat", sa.Boolean, nullable=False),
    sa.Column("left", sa.Integer, nullable=False),
    sa.Column("choice", sa.Integer, nullable=False),
    sa.Column("milliseconds", sa.Integer, nullable=False),
    sa.Column("key", sa.String(36), nullable=False),
    sa.Column("received", sa.BigInteger, nullable=False),
    sa.UniqueConstraint("participant", "trial", "question"),
    sa.UniqueConstraint("participant", "key"),
    sqlite_autoincrement=True,
)
_COLUMNS = [ANSWERS.c[name] for name in NAMES]
MOST_AT_ONCE = 500
"""Answers of one commit."""
Added = Literal["new", "again", "other", "gone"]


class Store:
    """The answers of one study. study: the hash of its frozen plan; a database of another one is refused."""

    def __init__(self, folder: Path, study: str, url: str | None = None) -> None:
        self.writing: Any = contextlib.nullcontext()
        try:
            self.engine = sa.create_engine(url or f"sqlite:///{folder / DATABASE}", pool_size=20, max_overflow=20)
            if self.engine.dialect.name not in ("sqlite", "postgresql"):
                raise UserError(f"database is of {self.engine.dialect.name}; it must be sqlite or postgresql")
            if self.engine.dialect.name == "sqlite":
                self.writing = threading.Lock()  # it takes one writer at a time; waiting here never times out
                event.listen(self.engine, "connect", _durable)
            METADATA.create_all(self.engine)
        except (ArgumentError, NoSuchModuleError, ImportError, DBAPIError) as error:
            reason = str(getattr(error, "orig", error)).strip()
            raise UserError(
                f"the database cannot be opened ({reason}); give a URL such as "
                "postgresql+psycopg://USER@HOST/NAME, or none for a file in the study folder"
            ) from None
        self.insert: Any = postgresql.insert if self.engine.dialect.name == "postgresql" else sqlite.insert
        with self.engine.begin() as connection:
            connection.execute(self.insert(FROZEN).values(study=study).on_conflict_do_nothing())
            held = connection.execute(sa.select(FROZEN.c.study)).scalars().all()
            if held != [study]:
                raise UserError(
                    "the database holds another plan's answers; give the study as it was, or a new database"
                )

        self.waiting: SimpleQueue[tuple[Answer, Future[tuple[Added, Answer]]] | None] = SimpleQueue()
        self.writer = threading.Thread(target=self._write, daemon=True)
        self.writer.start()

    def begin(self, participant: str) -> int:
        """The number of a new participant, from 0."""
        with self.writing, self.engine.begin() as connection:
            row = sa.insert(PARTICIPANTS).values(participant=participant, begun=int(time.time()))
            return connection.execute(row.returning(PARTICIPANTS.c.number)).scalar_one() - 1

    def add(self, answer: Answer) -> tuple[Added, Answer]:
        """Keeps an answer, and waits until it is kept; see `submit`."""
        return self.submit(answer).result()

    def submit(self, answer: Answer) -> Future[tuple[Added, Answer]]:
        """What becomes of an answer, once it is on the disk. "again": it was kept before, under its key. "other": the
        question has another answer. "gone": the participant has withdrawn."""
        future: Future[tuple[Added, Answer]] = Future()
        self.waiting.put((replace(answer, received=int(time.time())), future))
        return future

    def _write(self) -> None:
        """Commits whatever waits, all at once: a commit takes as long for one answer as for many."""
        goes_on = True
        while goes_on:
            taken = [self.waiting.get()]
            while len(taken) < MOST_AT_ONCE and not self.waiting.empty():
                taken.append(self.waiting.get())
            goes_on = None not in taken
            batch = [each for each in taken if each and each[1].set_running_or_notify_cancel()]
            try:
                with self.writing, self.engine.begin() as connection:
                    done = [self._insert(connection, answer) for answer, _ in batch]
            except Exception as error:
                for _, future in batch:
                    future.set_exception(error)
                continue
            for (_, future), told in zip(batch, done, strict=True):
                future.set_result(told)

    def _insert(self, connection: sa.Connection, answer: Answer) -> tuple[Added, Answer]:
        values = [sa.literal(getattr(answer, name), ANSWERS.c[name].type) for name in NAMES]
        person = PARTICIPANTS.c.participant == answer.participant
        row = self.insert(ANSWERS).from_select(NAMES, sa.select(*values).where(person)).on_conflict_do_nothing()
        if connection.execute(row.returning(ANSWERS.c.place)).scalar() is not None:
            return "new", answer
        asked = (ANSWERS.c.trial == answer.trial) & (ANSWERS.c.question == answer.question)
        mine = (ANSWERS.c.participant == answer.participant) & (asked | (ANSWERS.c.key == answer.key))
        kept = [Answer(**each._mapping) for each in connection.execute(sa.select(*_COLUMNS).where(mine))]
        if not kept:
            return "gone", answer
        told = next((each for each in kept if each.key == answer.key), kept[0])
        alike = (told.trial, told.question, told.choice, told.key)
        return ("again" if alike == (answer.trial, answer.question, answer.choice, answer.key) else "other"), told

    def answered(self, participant: str) -> list[tuple[int, str]]:
        """Trial and question of all answers of a participant."""
        chosen = sa.select(ANSWERS.c.trial, ANSWERS.c.question).where(ANSWERS.c.participant == participant)
        with self.engine.connect() as connection:
            return [(trial, question) for trial, question in connection.execute(chosen)]

    def withdraw(self, participant: str) -> int:
        """Deletes a participant and all that they answered; how many answers that were."""
        with self.writing, self.engine.begin() as connection:
            deleted = connection.execute(sa.delete(ANSWERS).where(ANSWERS.c.participant == participant)).rowcount
            connection.execute(sa.delete(PARTICIPANTS).where(PARTICIPANTS.c.participant == participant))
        return deleted

    def counts(self) -> dict[str, Any]:
        """Participants, those who answered, answers in all and by question, and when the last one came."""
        with self.engine.connect() as connection:
            count = sa.func.count
            answered = sa.select(count(), count(ANSWERS.c.participant.distinct()), sa.func.max(ANSWERS.c.received))
            answers, people, last = connection.execute(answered.select_from(ANSWERS)).one()
            begun = connection.execute(sa.select(count()).select_from(PARTICIPANTS)).scalar_one()
            by = sa.select(ANSWERS.c.question, count()).group_by(ANSWERS.c.question).order_by(ANSWERS.c.question)
            questions = {row[0]: row[1] for row in connection.execute(by)}
        return {"begun": begun, "people": people, "answers": answers, "questions": questions, "last": last}

    def answers(self) -> list[Answer]:
        """All answers in the order of keeping."""
        with self.engine.connect() as connection:
            rows = connection.execute(sa.select(*_COLUMNS).order_by(ANSWERS.c.place))
            return [Answer(**row._mapping) for row in rows]

    def close(self) -> None:
        """Keeps what still waits."""
        self.waiting.put(None)
        self.writer.join()
        self.engine.dispose()


def _durable(connection: Any, _: Any) -> None:
    """Every commit of SQLite is on the disk before it returns, and readers never wait for it."""
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=20000", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")
