"""Curves and samples of a run in a tracker of others, by accelerate: `--report_to tensorboard`, wandb or trackio.

What is shown there is a copy: metrics.jsonl and samples/ in the run folder hold it too. Knows no single metric.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import numpy as np

from fewbayes.errors import UserError
from fewbayes.runs.folder import RunFolder
from fewbayes.settings.config import TrainConfig

PLAIN = (bool, int, float, str)


def check_tracker(config: TrainConfig) -> None:
    """UserError where its package is not installed."""
    if config.report_to != "none" and find_spec(config.report_to) is None:
        raise UserError(
            f"report_to is {config.report_to}, which is not installed: pip install {config.report_to}, or leave it "
            "out; fewbayes report --live shows the run without it"
        )


class Tracker:
    """Numbers and pictures by step. made: one of accelerate's trackers, None to tell nobody."""

    def __init__(self, made: Any = None):
        self._made = made

    def number(self, step: int, metric: str, value: float | None, keys: Mapping[str, Any]) -> None:
        """One row of metrics.jsonl; what is of averaged weights has their name behind."""
        if self._made is not None and value is not None:
            averaged = "_ema" if keys.get("weights") == "ema" else ""
            self._made.log({f"{metric}{averaged}": float(value)}, step=step)

    def pictures(self, step: int, found: Mapping[str, Sequence[np.ndarray]]) -> None:
        """Samples of a step by their weights, uint8 (height, width, 3) each; not every tracker takes pictures."""
        if hasattr(self._made, "log_images"):
            for weights, pictures in found.items():
                stacked = np.stack(list(pictures))
                more = {"dataformats": "NHWC"} if self._made.name == "tensorboard" else {}
                self._made.log_images({f"samples_{weights}": stacked}, step=step, **more)


@contextmanager
def tracked(config: TrainConfig, run: RunFolder, main: bool) -> Iterator[Tracker]:
    """Inside, all that `run` logs goes to the tracker that was asked for too; main: whether this process tells it."""
    if config.report_to == "none" or not main:
        yield Tracker()
        return
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    kind: Any = LOGGER_TYPE_TO_CLASS[config.report_to]
    made = kind(run.path.name, *([str(run.path)] if kind.requires_logging_directory else []))
    getattr(made, "start", lambda: None)()  # since accelerate 1.11; before, it began when it was made
    made.store_init_configuration({name: value for name, value in config.to_dict().items() if isinstance(value, PLAIN)})
    tracker = Tracker(made)
    run.also = tracker.number
    try:
        yield tracker
    finally:
        run.also = None
        made.finish()
