"""What the files of an evaluation are called, and what is in their rows. Knows no metric; standard library only."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any, Literal

METRICS, IMAGES, FACTS = "metrics.jsonl", "images.jsonl", "evaluation.json"
Mode = Literal["sound", "paper"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of metrics.jsonl: the value of a metric, or the reason why it has none.

    row: whose pictures ("samples", "base", "real", and others in a study). average: over subjects, where it is of
    several. black, unreadable: pictures that are not scored. n: what the value is a mean of.
    """

    metric: str
    value: float | None = None
    mode: Mode = "sound"
    row: str = "samples"
    n: int = 0
    subject: str | None = None
    arm: str | None = None
    seed: int | None = None
    black: int | None = None
    unreadable: int | None = None
    encoder: str | None = None
    encoder_sha256: str | None = None
    preprocessing: str | None = None
    average: Literal["macro", "micro"] | None = None
    note: str | None = None
    reason: str | None = None

    def plain(self) -> dict[str, Any]:
        return _plain(self, ("value", "subject", "arm", "seed", "encoder"))


@dataclass(frozen=True, kw_only=True)
class PictureRow:
    """A row of images.jsonl: the score of a picture, or what keeps it from being scored.

    sample: which of its prompt. reference: file of the likest reference, where the score is of that one. row: as of a
    `Row`, where a study says it.
    """

    file: str
    metric: str
    value: float | None = None
    subject: str | None = None
    arm: str | None = None
    seed: int | None = None
    prompt: str | None = None
    prompt_id: int | None = None
    sample: int | None = None
    image_seed: int | None = None
    sha256: str | None = None
    encoder: str | None = None
    reference: str | None = None
    reason: str | None = None
    row: str | None = None

    def plain(self) -> dict[str, Any]:
        of_picture = ("prompt", "prompt_id", "sample", "image_seed") if self.sha256 else ()
        return _plain(self, ("value", "subject", "arm", "seed", "encoder", *of_picture))


def _plain(row: Row | PictureRow, always: Collection[str]) -> dict[str, Any]:
    """As it is written: of what a row need not say, nothing where there is nothing."""
    return {key: value for key, value in asdict(row).items() if value is not None or key in always}
