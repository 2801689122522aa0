"""How far the trainings of a study are: done, running, failed and not begun, and the time that is left.

Read from the list that a study leaves beside its run folders, and from these: it disturbs nobody, and knows nothing of
where the work runs.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from fewbayes.errors import UserError
from fewbayes.fields import setting
from fewbayes.files.atomic import atomic_write
from fewbayes.files.decode import read_json
from fewbayes.runs.folder import read_metrics
from fewbayes.runs.layout import MANIFEST, METRICS, read_manifest
from fewbayes.settings.config import TrainConfig
from fewbayes.settings.flags import parse_command
from fewbayes.studies import study

LIST = "trainings.json"
"""Run folders, relative to the file's own folder, and their numbers of steps."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    folder: Path = setting(positional=True)
    """Folder of a study."""


@dataclass(frozen=True)
class Progress:
    """One training. seconds: it took, where it is done after one start; silent: since a sign of life; failure: why."""

    folder: Path
    state: str
    step: int
    steps: int
    seconds: float | None = None
    silent: float | None = None
    failure: str = ""


def list_trainings(configs: Sequence[TrainConfig]) -> None:
    """Leave the list that `progress` reads, in the folder that all run folders lie in."""
    folders = [Path(config.output_dir).resolve() for config in configs]
    common = Path(os.path.commonpath([folder.parent for folder in folders]))
    common.mkdir(parents=True, exist_ok=True)
    known = _listed(common / LIST)
    new = {f.relative_to(common).as_posix(): c.max_train_steps or 0 for f, c in zip(folders, configs, strict=True)}
    atomic_write(common / LIST, json.dumps(known | new, indent=1) + "\n")


def progress(folder: Path) -> list[Progress]:
    """All trainings of the studies under a folder. UserError where there is none."""
    lists = sorted(folder.resolve().rglob(LIST)) if folder.is_dir() else []
    if not lists:
        raise UserError(f"{folder} holds no study; give the output_dir of one, which keeps a {LIST}")
    return [_of(file.parent / name, steps) for file in lists for name, steps in _listed(file).items()]


def _listed(file: Path) -> dict[str, int]:
    return read_json(file, dict[str, int], cure="run the study's command again") if file.is_file() else {}


def _of(run: Path, steps: int) -> Progress:
    if not (run / MANIFEST).is_file():
        return Progress(run, "not begun", 0, steps)
    manifest = read_manifest(run)
    if manifest.status == "done":
        timed = len(manifest.starts) == 1 and manifest.started and manifest.ended
        seconds = (_when(manifest.ended) - _when(manifest.started)).total_seconds() if timed else None
        return Progress(run, "done", steps, steps, seconds)
    if manifest.status == "failed":
        return Progress(run, "failed", 0, steps, failure=manifest.error or "no reason is kept")
    written = run / METRICS if (run / METRICS).is_file() else run / MANIFEST
    rows = read_metrics(run / METRICS) if (run / METRICS).is_file() else []
    return Progress(run, "begun", rows[-1]["step"] if rows else 0, steps, silent=time.time() - written.stat().st_mtime)


def _when(told: str | None) -> datetime:
    return datetime.fromisoformat(told or "")


def told(folder: Path, found: Sequence[Progress]) -> list[str]:
    """The lines of `fewbayes experiment status`."""
    count = Counter(one.state for one in found)
    shares = [f"{count[state]} {state}" for state in ("done", "begun", "failed", "not begun") if count[state]]
    lines = [f"{len(found)} trainings: {', '.join(shares)}"]
    lines += [f"  {one.folder.relative_to(folder.resolve())}: {_words(one)}" for one in found if _words(one)]
    paces = [one.seconds / one.steps for one in found if one.seconds and one.steps]
    left = sum(one.steps - one.step for one in found if one.state != "done")
    if left and paces:
        each = sum(paces) / len(paces)
        lines.append(f"left: {left} steps, {left * each / 60:.0f} minutes of one worker at {each:.2f} s a step")
    if count["failed"] or count["begun"]:
        lines.append("The study's command again continues what was cut off and tries what failed.")
    return lines


def _words(one: Progress) -> str:
    if one.state == "begun" and one.silent is not None:
        return f"step {one.step} of {one.steps}, last sign of life {one.silent / 60:.0f} minutes ago"
    return one.failure


@study("status", "how far the trainings of a study are")
def run_status(arguments: Sequence[str]) -> list[Path]:
    """Prints it; writes no file."""
    asked = parse_command(Asked, arguments, "experiment status", "How far the trainings of a study are.")
    print(*told(asked.folder, progress(asked.folder)), sep="\n")
    return []
