"""What a command is doing and how far it is: a bar or a spinner on a terminal, a line now and then elsewhere.

Messages of the logger go above a bar that is shown (`Messages`). Knows nothing of what is being counted.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Advance = Callable[[int, float | None], None]  # (steps done, loss)

log = logging.getLogger("fewbayes")
FIRST, LAST = 2.0, 30.0
"""Seconds to the first line of a count and between later ones, doubled from line to line: a log is not flooded."""


class Messages(logging.StreamHandler):
    """Finds sys.stderr when a message comes: while a bar is shown, what stands there writes above it."""

    @property
    def stream(self) -> Any:
        return sys.stderr

    @stream.setter
    def stream(self, _: Any) -> None:
        pass


@contextmanager
def doing(what: str) -> Iterator[None]:
    """Says what is under way, with a spinner on a terminal and now and then a line elsewhere.

    Nothing is said where nobody listens to the logger.
    """
    if not log.isEnabledFor(logging.INFO):
        yield
    elif sys.stderr.isatty() and not type(sys.stderr).__module__.startswith("rich"):  # that stands there under a bar
        from rich.console import Console

        with Console(stderr=True).status(f"{what} ..."):
            yield
    else:
        log.info("%s ...", what)
        ended = threading.Event()
        thread = threading.Thread(target=_tell, args=(what, ended), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def _tell(what: str, ended: threading.Event) -> None:
    passed, gap = 0.0, FIRST
    while not ended.wait(gap):
        passed, gap = passed + gap, min(LAST, 2 * gap)
        log.info("%s ... %s", what, lasting(passed))


@contextmanager
def progress(total: int, start: int, show: bool, what: str = "step") -> Iterator[Advance]:
    """A function to be told of every step; it says nothing at all unless `show`. what: the one that is counted."""
    if not show:
        yield lambda done, loss: None
    elif sys.stderr.isatty():
        with _bar(total, start, what) as advance:
            yield advance
    else:
        yield _lines(total, start, what)


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


def _lines(total: int, start: int, what: str) -> Advance:
    began = said = time.monotonic()
    gap = FIRST

    def advance(done: int, loss: float | None) -> None:
        nonlocal said, gap
        now = time.monotonic()
        if now - said >= gap or done == total:
            said, gap = now, min(LAST, 2 * gap)
            shown = "" if loss is None else f", loss {loss:.4f}"
            left = f", {lasting((now - began) / (done - start) * (total - done))} left" if done < total else ""
            print(f"{what} {done} of {total}{shown}{left}", file=sys.stderr, flush=True)

    return advance


def lasting(seconds: float) -> str:
    """A length of time in words."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
