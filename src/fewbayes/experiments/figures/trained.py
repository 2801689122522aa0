"""Models for the figures: fine-tunings as `fewbayes train` does them, stopped at milestones to be looked at.

A training is brought to its first milestone, looked at, continued from its checkpoint to the next, and so on, so that
the disk holds one checkpoint whatever the number of looks. What a look finds is kept in a file and not found again.
Knows nothing of what is looked for.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from fewbayes.config import TrainConfig
from fewbayes.experiments.figures.options import Ask
from fewbayes.experiments.methods import StudySubject
from fewbayes.experiments.runner import in_parallel
from fewbayes.families import Family, load_family
from fewbayes.runs import atomic_folder, atomic_write
from fewbayes.sample import load_for_sampling
from fewbayes.train import train

Look = Callable[[Family, "Task", int], dict[str, Any]]


@dataclass(frozen=True)
class Task:
    """One training and what is looked for in it. milestones: steps, 0 for the pretrained model; look: a function of
    (family, task, step) at the top of a module; known: whatever else it needs."""

    ask: Ask
    subject: StudySubject
    config: TrainConfig
    milestones: tuple[int, ...]
    look: Look
    known: tuple[Any, ...] = ()

    @property
    def name(self) -> str:
        return Path(self.config.output_dir).name

    @property
    def references(self) -> list[Path]:
        return sorted(Path(self.config.instance_data_dir).glob("*.png"))


def settings(ask: Ask, subject: StudySubject, count: int, seed: int, **changes: Any) -> TrainConfig:
    """Fine-tuning on the first `count` photographs, cut in the centre, without prior preservation as in section 3."""
    usual = ask.usual
    return TrainConfig(
        model=ask.model,
        instance_data_dir=str(first(ask, subject, count)),
        instance_prompt=ask.prompt(subject),
        rare_token=ask.token,
        output_dir=str(ask.folder / "runs" / f"{subject.name}-{count}-seed{seed}"),
        method=usual.method,  # pyright: ignore[reportArgumentType]
        learning_rate=usual.learning_rate,
        center_crop=True,
        max_train_steps=usual.steps,
        num_inference_steps=usual.sampler_steps,
        num_validation_images=usual.pictures,
        seed=seed,
        **({"rank": usual.rank} if usual.method == "lora" else {}),
        **changes,
    )


def first(ask: Ask, subject: StudySubject, count: int) -> Path:
    """A folder with the subject's first `count` photographs."""
    folder = ask.folder / subject.name / f"first-{count}"
    if not folder.is_dir():
        with atomic_folder(folder) as staging:
            for path in photographs(subject)[:count]:
                shutil.copyfile(path, staging / path.name)
    return folder


def photographs(subject: StudySubject) -> list[Path]:
    return sorted(subject.photographs.glob("*.png"))


def counts(subject: StudySubject, wanted: Sequence[int]) -> list[int]:
    """The wanted numbers of training images, none above what the subject has."""
    return sorted({min(count, len(photographs(subject))) for count in wanted})


def follow(tasks: Sequence[Task], workers: int | None = None) -> list[dict[int, dict[str, Any]]]:
    """What the looks found, by milestone, for each task in order."""
    return in_parallel(_followed, tasks, workers)


def _followed(task: Task) -> dict[int, dict[str, Any]]:
    found = {}
    for step in task.milestones:
        file = task.ask.folder / "looks" / task.name / f"step-{step}.json"
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(file, json.dumps(task.look(_model_at(task.config, step), task, step)) + "\n")
        found[step] = json.loads(file.read_text())
    return found


def _model_at(config: TrainConfig, step: int) -> Family:
    if step == 0:
        return pretrained(config.model)
    until = replace(config, max_train_steps=step, checkpointing_steps=500, checkpoints_total_limit=1)
    train(until, family=pretrained(config.model), progress=False)
    return on_device(load_for_sampling(config.output_dir)[0])


@cache
def pretrained(model: str) -> Family:
    """Loaded once per process; training gives it back as it was."""
    return on_device(load_family(model))


def on_device(family: Family) -> Family:
    return family.to("cuda" if torch.cuda.is_available() else "cpu")
