"""How far a run is: a bar on a terminal, a line now and then elsewhere. Knows nothing of what is being counted."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[int, float | None], None]  # (steps done, loss)


@contextmanager
def progress(total: int, start: int, show: bool) -> Iterator[Advance]:
    """A function to be told of every step; it says nothing at all unless `show`."""
    if not show:
        yield lambda done, loss: None
    elif sys.stderr.isatty():
        with _bar(total, start) as advance:
            yield advance
    else:
        yield _lines(total, start)


@contextmanager
def _bar(total: int, start: int) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("step"), BarColumn(), MofNCompleteColumn(), TextColumn("loss {task.fields[loss]}"))
    times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, *times, console=Console(stderr=True), refresh_per_second=4) as shown:
        task = shown.add_task("", total=total, completed=start, loss="-")

        def advance(done: int, loss: float | None) -> None:
            shown.update(task, completed=done, loss="-" if loss is None else f"{loss:.4f}")

        yield advance


def _lines(total: int, start: int, every: float = 30.0) -> Advance:
    began = said = time.monotonic()

    def advance(done: int, loss: float | None) -> None:
        nonlocal said
        now = time.monotonic()
        if now - said >= every or done == total:
            said = now
            left = (now - began) / (done - start) * (total - done)
            shown = "" if loss is None else f", loss {loss:.4f}"
            print(f"step {done} of {total}{shown}, {left / 60:.1f} minutes left", file=sys.stderr, flush=True)

    return advance
