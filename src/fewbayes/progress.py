"""What a command is doing and how far it is: a bar or a spinner on a terminal, a line now and then elsewhere.

Messages of the logger go above a bar that is shown (`Messages`). Knows nothing of what is being counted.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

Advance = Callable[[int, float | None], None]  # (steps done, loss)

log = logging.getLogger("fewbayes")
GAP, PATIENT, LATER = 1.8, 600.0, 30.0
"""Seconds without a line after which a log is told what is under way; LATER once it has taken PATIENT seconds."""


class Messages(logging.StreamHandler):
    """Finds sys.stderr when a message comes: while a bar is shown, what stands there writes above it."""

    def emit(self, record: logging.LogRecord) -> None:
        _BEAT.heard()
        super().emit(record)

    @property
    def stream(self) -> Any:
        return sys.stderr

    @stream.setter
    def stream(self, _: Any) -> None:
        pass


class _Beat:
    """Says again what is under way, the innermost of it, whenever a log has been silent for a while."""

    def __init__(self) -> None:
        self._under_way: list[Callable[[], None]] = []
        self._heard = self._began = 0.0
        self._alive = False
        self._changed = threading.Condition()

    def heard(self) -> None:
        self._heard = time.monotonic()

    @contextmanager
    def telling(self, say: Callable[[], None]) -> Iterator[None]:
        with self._changed:
            if not self._alive:
                self._began, self._alive = time.monotonic(), True
                threading.Thread(target=self._run, daemon=True).start()
            self._under_way.append(say)
        self.heard()
        try:
            yield
        finally:
            with self._changed:
                self._under_way.remove(say)
                self._changed.notify()

    def _run(self) -> None:
        with self._changed:
            while self._under_way:
                now = time.monotonic()
                due = self._heard + (GAP if now - self._began < PATIENT else LATER)
                if now >= due:
                    self.heard()
                    self._under_way[-1]()
                else:
                    self._changed.wait(due - now)
            self._alive = False


_BEAT = _Beat()


@contextmanager
def doing(what: str, *, quietly: bool = False) -> Iterator[None]:
    """Says what is under way, with a spinner on a terminal and again and again elsewhere.

    quietly: not at once, and nothing on a terminal. Nothing is said where nobody listens to the logger, nor by any but
    the first of several processes.
    """
    others = os.environ.get("RANK", "0") != "0"
    if others or not log.isEnabledFor(logging.INFO) or (quietly and sys.stderr.isatty()):
        yield
    elif sys.stderr.isatty() and not type(sys.stderr).__module__.startswith("rich"):  # that stands there under a bar
        from rich.console import Console

        with Console(stderr=True).status(f"{what} ..."):
            yield
    else:
        began = time.monotonic()
        if not quietly:
            log.info("%s ...", what)
        with _BEAT.telling(lambda: log.info("%s ... %s", what, lasting(time.monotonic() - began))):
            yield


def waiting() -> AbstractContextManager[None]:
    """For what may wait for people for ever: nothing is said meanwhile."""
    return _BEAT.telling(lambda: None)


@contextmanager
def progress(total: int, start: int, show: bool, what: str = "step") -> Iterator[Advance]:
    """A function to be told of every step; it says nothing at all unless `show`. what: the one that is counted."""
    if not show:
        yield lambda done, loss: None
    elif sys.stderr.isatty():
        with _bar(total, start, what) as advance:
            yield advance
    else:
        lines = _Lines(total, start, what)
        with _BEAT.telling(lines.again):
            yield lines.advance


@contextmanager
def _bar(total: int, start: int, what: str) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[loss]}"))
    times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, *times, console=Console(stderr=True), refresh_per_second=4) as shown:
        task = shown.add_task("", total=total, completed=start, loss="")

        def advance(done: int, loss: float | None) -> None:
            shown.update(task, completed=done, loss="" if loss is None else f"loss {loss:.4f}")

        yield advance


class _Lines:
    """A count as lines, GAP seconds apart, and whenever a step takes longer than that."""

    def __init__(self, total: int, start: int, what: str):
        self._total, self._start, self._done, self._what = total, start, start, what
        self._began = self._said = self._stepped = time.monotonic()

    def advance(self, done: int, loss: float | None) -> None:
        now = self._stepped = time.monotonic()
        self._done = done
        if now - self._said >= (GAP if now - self._began < PATIENT else LATER) or done == self._total:
            shown = "" if loss is None else f", loss {loss:.4f}"
            self._print(f"{done} of {self._total}{shown}{self._left(now)}")

    def again(self) -> None:
        if self._done < self._total:
            now = time.monotonic()
            self._print(f"{self._done + 1} of {self._total} ... {lasting(now - self._stepped)}{self._left(now)}")

    def _left(self, now: float) -> str:
        if self._done in (self._start, self._total):
            return ""
        return f", {lasting((now - self._began) / (self._done - self._start) * (self._total - self._done))} left"

    def _print(self, text: str) -> None:
        self._said = time.monotonic()
        _BEAT.heard()
        print(f"{self._what} {text}", file=sys.stderr, flush=True)


def lasting(seconds: float) -> str:
    """A length of time in words."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
