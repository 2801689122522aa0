"""What diagnosis.json holds. Knows no models, so that a page reads it without them."""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict

from fewbayes.files.decode import Count
from fewbayes.stage.monitor import Stage

RESULT = "diagnosis.json"


class Group(TypedDict):
    """A folder of pictures/: one model at one setting."""

    name: str
    title: str
    files: list[str]
    sampler: NotRequired[str]
    steps: NotRequired[Count]
    guidance: NotRequired[float]
    strength: NotRequired[float]
    step: NotRequired[Count]


class Settings(TypedDict):
    """What was asked; files and folders by their names alone."""

    source: str
    base: str
    prompt: str
    images: list[str]
    seeds: list[int]
    weights: str | None


class Losses(TypedDict):
    """Mean losses on the training images at fixed times."""

    t: list[float]
    loss: list[float | None]


class Reading(TypedDict):
    """What the probes found, in as far as a page shows it."""

    losses: NotRequired[Losses | None]


Samples = dict[str, list[float | None] | float | None]
"""Statistics of a group's pictures: a number each, or one of the group."""


class Row(TypedDict):
    """A checkpoint of a timeline."""

    step: Count
    stage: Stage
    seen: Stage
    scores: dict[str, float | None]


class Told(TypedDict):
    """diagnosis.json. stage: None where nothing could be sampled."""

    stage: Stage | None
    cause: str | None
    verdict: list[str]
    evidence: list[str]
    options: list[str]
    notes: list[str]
    scores: dict[str, float | None]
    timeline: list[Row]
    pictures: list[Group]
    settings: Settings
    numbers: dict[str, dict[str, float | None]]
    readings: dict[str, Reading]
    samples: dict[str, Samples]
    seconds: float
    environment: dict[str, Any]
    keep: NotRequired[Count | None]
