"""Trainings that differ in a few settings, on several subjects and seeds, run several at a time.

An arm is a few changes of a common `TrainConfig`; a training is one arm on one subject with one seed, and its run
folder is its result. What is done is not done again, and a folder that holds another training is refused. Reads no
result and draws nothing.
"""

from __future__ import annotations

import json
import logging
import shlex
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from fewbayes.errors import UserError
from fewbayes.files.atomic import atomic_write
from fewbayes.progress import progress
from fewbayes.runs.folder import RunFolder
from fewbayes.runs.provenance import environment
from fewbayes.settings.agreement import RARE_TOKEN_MARK
from fewbayes.settings.config import TrainConfig
from fewbayes.studies.executors import in_parallel
from fewbayes.studies.status import list_trainings
from fewbayes.studies.subjects import StudySubject

if TYPE_CHECKING:
    from fewbayes.models import Family

log = logging.getLogger("fewbayes")

Result = TypeVar("Result")


class Trains(Protocol):
    """What can be trained; its output_dir is the run folder."""

    @property
    def config(self) -> TrainConfig | None: ...


Work = TypeVar("Work", bound=Trains)


def taught(subject: StudySubject, **settings: Any) -> TrainConfig:
    """A training on a subject by the prompt "a photo of a <v> ..."; its folder is set by `grid`."""
    usual = {
        "instance_data_dir": str(subject.photographs),
        "instance_prompt": f"a photo of a {RARE_TOKEN_MARK} {subject.class_word}",
        "output_dir": "set by the grid",
        "center_crop": True,
    }
    return TrainConfig(**(usual | settings))


@dataclass(frozen=True)
class Arm:
    """`changes` are fields of TrainConfig that this arm sets differently from the others."""

    name: str
    label: str
    changes: Mapping[str, Any]
    note: str = ""


@dataclass(frozen=True)
class Training:
    """One cell of a grid. config: all that it is trained with; its output_dir is the run folder."""

    subject: StudySubject
    arm: Arm
    seed: int
    config: TrainConfig

    @property
    def folder(self) -> Path:
        return Path(self.config.output_dir)


def grid(
    places: Mapping[Path, StudySubject],
    settings: Callable[[StudySubject], TrainConfig],
    arms: Sequence[Arm],
    seeds: Sequence[int],
) -> list[Training]:
    """Every arm of every subject for the first seed, then the next seed: what is there can always be compared.

    places: each subject by the folder that its run folders, `<arm>-seed<k>`, stand in. settings: what all arms of a
    subject share; seed and output_dir are replaced.
    """
    made = []
    for seed in seeds:
        for place, subject in places.items():
            common = settings(subject)
            for arm in arms:
                folder = place / f"{arm.name}-seed{seed}"
                made.append(
                    Training(subject, arm, seed, replace(common, **arm.changes, seed=seed, output_dir=str(folder)))
                )
    assert len({training.folder for training in made}) == len(made), "two trainings would write into one folder"
    return made


def run(trainings: Sequence[Work], work: Callable[[Work], Result], workers: int | str | None = None) -> list[Result]:
    """`work`, a function at the top of a module, on every training, in order, several at a time; see `in_parallel`."""
    configs = [training.config for training in trainings if training.config]
    list_trainings(configs)
    with _watching(configs):
        return in_parallel(work, trainings, workers)


def train(training: Trains) -> str | None:
    """Bring a training to its end; one that is done returns at once, one of other settings is refused.

    Returns the reason where its numbers ran away: that stops no other training.
    """
    from fewbayes.training.train import NonFiniteError
    from fewbayes.training.train import train as train_config

    config = training.config
    assert config is not None
    try:
        train_config(config, family=_family(config.model), progress=False)
    except NonFiniteError as error:
        return f"{Path(config.output_dir).name}: {error}"
    return None


def experiment(
    folder: Path,
    trainings: Sequence[Training],
    *,
    title: str,
    question: str,
    facts: Mapping[str, Any],
    workers: int | str | None = None,
) -> Path:
    """Bring the trainings of one subject to their end under `folder`, and list them by arm in its `experiment.json`.

    The same call continues after an interruption. The list is what the run page reads.
    """
    began, fresh = time.perf_counter(), not any(training.folder.exists() for training in trainings)
    folder.mkdir(parents=True, exist_ok=True)
    if failed := [failure for failure in run(trainings, train, workers) if failure]:
        log.warning("%d of %d runs failed: %s", len(failed), len(trainings), "; ".join(failed))
    arms = {training.arm.name: training.arm for training in trainings}
    described: dict[str, Any] = {
        "title": title,
        "subject": trainings[0].subject.class_word,
        "question": question,
        "arms": [
            {
                "name": arm.name,
                "label": arm.label,
                "note": arm.note,
                "runs": [t.folder.relative_to(folder).as_posix() for t in trainings if t.arm.name == arm.name],
            }
            for arm in arms.values()
        ],
        "provenance": {**facts, "command": command(), **environment(None)},
    }
    if fresh:  # what was made in several goes has no length
        described["provenance"]["seconds"] = round(time.perf_counter() - began, 1)
    atomic_write(folder / "experiment.json", json.dumps(described, indent=1, default=str) + "\n")
    return folder


def is_done(run_folder: Path) -> bool:
    return (run_folder / "manifest.json").is_file() and RunFolder(run_folder).manifest.status == "done"


def _looks_done(run_folder: Path) -> bool:
    """For a bar: a damaged manifest is said by whoever needs it."""
    try:
        return is_done(run_folder)
    except (UserError, OSError):
        return False


def command() -> str:
    """What was typed, as results keep it: they name no folders of the machine that they were made on."""
    return shlex.join(["fewbayes", *map(without_path, sys.argv[1:])])


def without_path(argument: str) -> str:
    """The last name of a path: photos/dog:dog is dog:dog, --output_dir=runs/a is --output_dir=a."""
    option, equals, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
    return option + equals + (Path(value).name if "/" in value else value)


@cache
def _family(model: str) -> Family:
    """Loaded once per worker; training gives it back as it was."""
    from fewbayes.models import load_family

    return load_family(model)


@contextmanager
def _watching(configs: Sequence[TrainConfig]) -> Iterator[None]:
    """A bar, or lines in a log, over checkpoints sampled and runs done so far, read from their folders by a thread."""
    looks = [(c.max_train_steps or 0) // c.validation_steps + 1 for c in configs if c.validation_steps]
    total = len(configs) + sum(looks)
    folders = [Path(config.output_dir) for config in configs]

    def reached() -> int:
        return sum(len(list(folder.glob("samples/step-*"))) + _looks_done(folder) for folder in folders)

    start, stop = reached(), threading.Event()
    with progress(total, start, True, f"{len(configs)} trainings, look") as advance:

        def watch() -> None:
            shown = start
            while not stop.wait(1.0):
                if (now := reached()) > shown:
                    shown = now
                    advance(now, None)

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
