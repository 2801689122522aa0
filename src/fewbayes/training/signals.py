"""Ctrl-C and SIGTERM while a model trains: the first ends training after its step, the second at once.

Knows neither steps nor files; what is on the disk is told by whoever installs it.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

SAME = 0.5
"""Seconds within which a second signal is the first again: a launcher passes on what the terminal has sent already."""


class Interrupted(KeyboardInterrupt):
    """Training ended because somebody asked for it; the message says what is saved. signal: SIGINT or SIGTERM."""

    def __init__(self, message: str, number: int = signal.SIGINT):
        super().__init__(message)
        self.signal = number


class Signals:
    """Inside, `asked` tells whether training is to end after its step; outside, signals are what they were.

    on_disk: says what a run that ends now leaves. While not `patient`, when no step is under way, and at the second
    signal, Interrupted is raised at once.
    """

    def __init__(self, on_disk: Callable[[], str]):
        self.patient = False
        self.number = signal.SIGINT
        self._on_disk = on_disk
        self._first: float | None = None
        self._before: dict[int, Any] = {}

    @property
    def asked(self) -> bool:
        return self._first is not None

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():  # Python hears signals nowhere else
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
                    self._before[number] = signal.signal(number, self._heard)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _heard(self, number: int, _: FrameType | None) -> None:
        if self._first is not None and time.monotonic() - self._first < SAME:
            return
        if self.asked or not self.patient:
            raise Interrupted(f"Stopped at once. {self._on_disk()}", number)
        self._first, self.number = time.monotonic(), signal.Signals(number)
        # os.write: a signal may have interrupted a write to the same stream
        os.write(2, b"\nStopping after this step, with a checkpoint. Once more stops at once.\n")
