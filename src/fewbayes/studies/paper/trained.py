"""Models for the figures: fine-tunings as `fewbayes train` does them, stopped at milestones to be looked at.

A training is brought to its first milestone, looked at, continued from its checkpoint to the next, and so on, so that
the disk holds one checkpoint whatever the number of looks. What a look finds is kept in a file and not found again.
Knows nothing of what is looked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from PIL import Image

from fewbayes.models import Family, load_family
from fewbayes.runs.opening import open_model
from fewbayes.settings.config import TrainConfig
from fewbayes.studies.executors import in_parallel
from fewbayes.studies.memo import remember
from fewbayes.studies.paper.denoise import Guided
from fewbayes.studies.paper.options import Ask
from fewbayes.studies.subjects import StudySubject
from fewbayes.studies.trajectory import open_pictures
from fewbayes.training.train import NonFiniteError, train

Look = Callable[[Family, "Task", int], dict[str, Any]]
Found = dict[int, dict[str, Any]]


@dataclass(frozen=True)
class Task:
    """One training and what is looked for in it. milestones: steps, 0 for the pretrained model; look: a function of
    (family, task, step) at the top of a module; known: whatever else it needs; guided: whether the family that a look
    is given is the guided one."""

    ask: Ask
    subject: StudySubject
    config: TrainConfig
    milestones: tuple[int, ...]
    look: Look
    known: tuple[Any, ...] = ()
    guided: bool = False

    @property
    def name(self) -> str:
        return Path(self.config.output_dir).name

    def picture(self, step: int, kind: str) -> str:
        """The name of a picture."""
        return f"{self.name}-step-{step}-{'guided-' * self.guided}{kind}"

    @property
    def references(self) -> list[Image.Image]:
        return open_pictures(Path(self.config.instance_data_dir))


def settings(ask: Ask, subject: StudySubject, count: int, seed: int, **changes: Any) -> TrainConfig:
    """Fine-tuning on the first `count` photographs, cut in the centre, without prior preservation as in section 3."""
    usual = ask.usual
    return TrainConfig(
        model=ask.model,
        instance_data_dir=str(subject.first(count).photographs),
        instance_prompt=ask.prompt(subject),
        rare_token=ask.token,
        output_dir=str(ask.folder / "runs" / f"{subject.name}-{count}-seed{seed}"),
        method=usual.method,  # pyright: ignore[reportArgumentType]
        learning_rate=usual.learning_rate,
        center_crop=True,
        max_train_steps=usual.steps,
        num_inference_steps=usual.sampler_steps,
        num_validation_images=usual.pictures,
        guidance_scale=ask.guidance,
        sampler=ask.sampler,
        seed=seed,
        **({"rank": usual.rank} if usual.method == "lora" else {}),
        **changes,
    )


def on_one_photograph(ask: Ask, milestones: tuple[int, ...], look: Look) -> list[Task]:
    """Every subject and seed, trained on the subject's first photograph."""
    seeds = range(ask.seeds)
    return [Task(ask, s, settings(ask, s, 1, seed), milestones, look) for s in ask.subjects for seed in seeds]


def rows_along(
    ask: Ask, milestones: tuple[int, ...], look: Look, over: Callable[[list[dict[str, Any]]], dict[str, Any]]
) -> dict[str, Any]:
    """Of trainings on one photograph, a row by milestone: what was found `over` all of them. Notes as `follow` has."""
    found, notes = follow(on_one_photograph(ask, milestones, look), ask.workers)
    rows = [{"step": step} | each_way([looks[step] for _, looks in found], over) for step in milestones]
    return {"rows": rows, "pictures_of": found[0][0].subject.name, "notes": notes}


def ranged(values: Sequence[float], counted: str) -> dict[str, float]:
    """Mean and range; counted: what there are so many of."""
    return {"mean": fmean(values), "low": min(values), "high": max(values), counted: len(values)}


def counts(subject: StudySubject, wanted: Sequence[int]) -> list[int]:
    """The wanted numbers of training images, none above what the subject has."""
    return sorted({min(count, len(subject.files)) for count in wanted})


def follow(tasks: Sequence[Task], workers: int | str | None = None) -> tuple[list[tuple[Task, Found]], list[str]]:
    """What the looks found, by milestone, of each task in order; and notes on those left out since numbers ran away.

    What a look finds of the guided model, where guidance is asked for, stands in the same under "guided".
    """
    found = list(zip(tasks, in_parallel(_followed, tasks, workers), strict=True))
    notes = left_out([task.name for task, looks in found if looks is None], len(tasks))
    return [(task, looks) for task, looks in found if looks is not None], notes


def left_out(failed: Sequence[str], of: int) -> list[str]:
    """Notes for the figure; nothing can be shown where all have failed."""
    if len(failed) == of:
        raise NonFiniteError(f"the numbers of every run ran away ({', '.join(failed)}); take a lower learning_rate")
    return [f"Left out, since their numbers ran away: {', '.join(failed)}."] if failed else []


def each_way(found: Sequence[dict[str, Any]], over: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
    """`over` of what was found, and in the same, under "guided", of what was found with guidance."""
    guided = [one["guided"] for one in found if "guided" in one]
    return over(found) | ({"guided": over(guided)} if guided else {})


def _followed(task: Task) -> Found | None:
    def look(step: int) -> dict[str, Any]:
        family, scale = _model_at(task.config, step), task.ask.guidance
        found = task.look(family, task, step)
        if scale > 1:
            guided = Guided(family, scale)
            found["guided"] = task.look(guided, replace(task, guided=True), step)  # pyright: ignore[reportArgumentType]
        return found

    looks = task.ask.folder / "looks" / task.name  # of the model and settings that the folder is of
    try:
        return {step: remember(looks / f"step-{step}.json", {}, partial(look, step)) for step in task.milestones}
    except NonFiniteError:
        return None


def _model_at(config: TrainConfig, step: int) -> Family:
    if step == 0:
        return pretrained(config.model)
    until = replace(config, max_train_steps=step, checkpointing_steps=500, checkpoints_total_limit=1)
    train(until, family=pretrained(config.model), progress=False)
    return on_device(open_model(config.output_dir)[0])


@cache
def pretrained(model: str) -> Family:
    """Loaded once per process; training gives it back as it was."""
    return on_device(load_family(model))


def on_device(family: Family) -> Family:
    return family.to("cuda" if torch.cuda.is_available() else "cpu")
