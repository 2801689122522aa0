"""What the files of a run folder are called, and what is in them.

All are written by `folder.py`, `checkpoints.py` and whoever draws samples; each class here is one file or one row, and
the only reader's idea of it. Fields that older runs lack have defaults, so that these still open.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

from fewbayes.errors import UserError
from fewbayes.files.decode import Count, Sha256, read_json

CONFIG, MANIFEST, METRICS, STATE = "config.yaml", "manifest.json", "metrics.jsonl", "trainer_state.json"
STAGES, BEST, BEST_STATE = "stages.jsonl", "best", "best.json"
LOCK, SAMPLES, REFERENCE, POSTERIOR, REPORT = ".lock", "samples", "reference", "posterior.json", "report.html"
LISTING = "samples.json"
HELD_OUT = "held_out"
"""Folder of the image that was not trained on, where one was held out."""
APPENDED = (METRICS, STAGES)
OURS = frozenset({CONFIG, MANIFEST, METRICS, STAGES, BEST, LOCK, REFERENCE, HELD_OUT, SAMPLES, POSTERIOR, REPORT})
"""Names that no part of a result may have."""

Weights = Literal["raw", "ema"]
Status = Literal["running", "done", "failed"]


@dataclass(frozen=True)
class Start:
    """One start of a run: when, and by which command."""

    time: str
    command: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class BaseModel:
    """The model that a run began from: the name it was given by, and the fingerprint of its files."""

    sha256: Sha256
    name: str | None = None


@dataclass(frozen=True)
class Manifest:
    """manifest.json: whose run this is, and how it went.

    fingerprint: the settings that must agree for it to be continued. steps: how many the result has been trained;
    exported: which weights the result holds; stopped: the stage at which training stopped by itself. images: SHA-256
    of the training images. calibration: what was measured before the first step.
    """

    status: Status | None = None
    fingerprint: dict[str, Any] = field(default_factory=dict)
    started: str | None = None
    ended: str | None = None
    error: str | None = None
    starts: list[Start] = field(default_factory=list)
    model: BaseModel | None = None
    images: list[str] = field(default_factory=list)
    seed: int | None = None
    environment: dict[str, Any] = field(default_factory=dict)
    calibration: dict[str, float] | None = None
    steps: Count | None = None
    exported: Weights | None = None
    stopped: str | None = None


@dataclass(frozen=True)
class SealedFile:
    """What a checkpoint records of one of its files."""

    bytes: Count
    sha256: Sha256


@dataclass(frozen=True)
class TrainerState:
    """trainer_state.json of a checkpoint. files: by name inside the checkpoint; seal: SHA-256 of all else in it."""

    step: Count
    state: dict[str, Any]
    files: dict[str, SealedFile]
    seal: Sha256
    time: str | None = None


@dataclass(frozen=True)
class Best:
    """best.json: which step best/ holds, and what the stage monitor said of it."""

    step: Count
    stage: str | None = None
    seen: str | None = None
    scores: dict[str, float | None] = field(default_factory=dict)
    weights: Weights | None = None


class Row(TypedDict):
    """A row of metrics.jsonl; a value that was not finite is null. Other keys say what a value is of."""

    step: Count
    metric: str
    value: float | None
    weights: NotRequired[str]


class StageRow(TypedDict):
    """A row of stages.jsonl, in as far as a run folder cares; the stage monitor knows the rest."""

    step: Count


@dataclass(frozen=True)
class SampleRow:
    """A row of samples.json: a picture beside it and how it was made. source: the model, where it is no run's own."""

    file: str
    prompt: str | None = None
    seed: int | None = None
    weights: str | None = None
    source: str | None = None
    base: str | None = None
    kind: str | None = None
    negative_prompt: str | None = None
    sampler: str | None = None
    steps: Count | None = None
    guidance: float | None = None
    strength: float | None = None
    guidance_interval: str | None = None
    image_similarity: float | None = None
    unseen_similarity: float | None = None
    haar_noise: float | None = None


def _by_step(paths: Iterable[Path]) -> dict[int, Path]:
    found = {int(number[1]): path for path in paths if (number := re.search(r"-(\d+)$", path.name)) and path.is_dir()}
    return dict(sorted(found.items()))


def checkpoint_folders(run: str | Path) -> dict[int, Path]:
    """The checkpoints of a run by step, whole or not, oldest first."""
    return _by_step(Path(run).glob("checkpoint-*"))


def sample_folders(run: str | Path) -> dict[int, Path]:
    """The samples of a run by step, oldest first."""
    return _by_step((Path(run) / SAMPLES).glob("step-*"))


def read_manifest(folder: str | Path) -> Manifest:
    """The manifest of a run folder; UserError for what is none."""
    path = Path(folder) / MANIFEST
    cure = "restore it, or give another output_dir" if path.exists() else f"{folder} is not a run folder"
    return read_json(path, Manifest, cure=cure)


def read_best(folder: Path) -> Best | None:
    """What the best.json in a folder says; None without one that says it."""
    try:
        return read_json(folder / BEST_STATE, Best)
    except UserError:
        return None


def part_of_run(path: Path) -> tuple[Path, int] | None:
    """The run of a best/ or a checkpoint-N, and the step that lies there; None for anything else."""
    run, best = path.resolve().parent, read_best(path)
    if not (run / CONFIG).is_file():
        return None
    if best:
        return run, best.step
    number = path.name.removeprefix("checkpoint-")
    return (run, int(number)) if (path / STATE).is_file() and number.isdecimal() else None


def read_listing(folder: str | Path) -> list[SampleRow]:
    """The rows of a folder's samples.json, in the order of writing."""
    return read_json(Path(folder) / LISTING, list[SampleRow])
