"""What a study folder holds: study.json, which the server reads, and key.json, which says what nobody may see before.

study.json has questions, pictures under opaque names and the frozen plan. No arm is named in it, so the server cannot
give away what it does not know. key.json tells the arms; only `read` opens it, and study.json holds its hash.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from fewbayes.errors import UserError
from fewbayes.files.atomic import file_sha256
from fewbayes.files.decode import Count, Positive, Sha256, read_json

STUDY, KEY, SECRET, PLAN, IMAGES, DATABASE = "study.json", "key.json", "secret.json", "plan.md", "images", "answers.db"
CURE = "give a folder that `fewbayes study make` or `fewbayes study rate` wrote"
EXTRA = "pip install 'fewbayes[study]'"
LEFT, RIGHT, SAME = 0, 1, 2
"""Choices of a comparison as a participant sees it."""
Opaque = Annotated[str, Meta(pattern="^[0-9a-f]{16}$")]


@dataclass(frozen=True)
class Question:
    """What is asked of every item. shows: what stands beside the pictures. options: labels by choice."""

    name: str
    words: str
    options: list[str]
    shows: Literal["references", "prompt", ""] = ""


QUESTIONS = {
    "subject": Question("subject", "Which picture shows the subject of the photograph better?", [], "references"),
    "text": Question("text", "Which picture fits the words better?", [], "prompt"),
    "quality": Question("quality", "Which picture has the better quality?", []),
}
RATING = Question(
    "broken",
    "Are these pictures technically broken: noisy, mottled, blotchy, washed out, dissolved?",
    ["clean", "between", "broken"],
)


@dataclass(frozen=True)
class Item:
    """What is judged. sides: pictures of each side, two for a comparison and one for a rating, in an order of chance.

    block: items of one block are spread evenly over participants. before: pictures of a rating to judge against.
    """

    id: Opaque
    sides: list[list[Opaque]]
    block: Count = 0
    prompt: str = ""
    references: list[Opaque] = field(default_factory=list)
    before: list[Opaque] = field(default_factory=list)


@dataclass(frozen=True)
class Power:
    """Of simulated studies with so many participants, the share that finds a preference of `share` at p < 0.05."""

    share: float
    participants: Positive
    power: float


@dataclass(frozen=True)
class Plan:
    """What was decided before the first answer. participants: as many as are asked for; failures: allowed a participant
    in checks before results without it are told too."""

    participants: Positive
    failures: Count
    power: list[Power]
    analysis: str
    made: str = ""


@dataclass(frozen=True)
class Study:
    """study.json. per_block: items of each block that one participant sees. checks_each,
    repeats: checks, and items that come twice, for each participant."""

    kind: Literal["pairs", "rating"]
    title: str
    consent: str
    questions: list[Question]
    items: list[Item]
    checks: list[Item]
    per_block: Positive
    checks_each: Count
    repeats: Count
    seed: Count
    plan: Plan
    key_sha256: Sha256
    format: Literal[1] = 1

    @property
    def by_id(self) -> dict[str, Item]:
        return {item.id: item for item in [*self.items, *self.checks]}

    @property
    def pictures(self) -> set[str]:
        """Names of all pictures that may be served."""
        items = [*self.items, *self.checks]
        return {name for item in items for group in [*item.sides, item.references, item.before] for name in group}


@dataclass(frozen=True)
class Origin:
    """What an item is. arms, files: of each side. unit: which training of the subject, from 0; seed: of that training,
    where both sides share it. step: of a rating."""

    arms: list[str]
    case: str = ""
    subject: str = ""
    seed: int | None = None
    files: list[list[str]] = field(default_factory=list)
    unit: int = 0
    step: int | None = None


@dataclass(frozen=True)
class Key:
    """key.json. labels: of arms, in their order. items: by id. right: the side of a check that is right."""

    labels: dict[str, str]
    items: dict[str, Origin]
    right: dict[str, Count]


@dataclass(frozen=True)
class Secret:
    """secret.json: what signs participants' tokens, and the password of the admin view."""

    signing: Sha256
    admin: str


def read_study(folder: str | Path) -> tuple[Study, str]:
    """The study of a folder, and the hash of its frozen plan."""
    path = Path(folder) / STUDY
    study = read_json(path, Study, cure=CURE)
    lost = [name for name in sorted(study.pictures) if not picture_file(Path(folder), name).is_file()]
    if lost:
        raise UserError(f"{folder} has lost {len(lost)} of its pictures, {lost[0]}.png first; make the study again")
    return study, file_sha256(path)


def read_key(folder: str | Path, study: Study) -> Key:
    """What the items of a study are; UserError where the key is not the one that the study was frozen with."""
    path = Path(folder) / KEY
    key = read_json(path, Key, cure=CURE)
    if file_sha256(path) != study.key_sha256:
        raise UserError(f"{path} is not the key that {STUDY} was frozen with; put the first one back")
    return key


def read_secret(folder: str | Path) -> Secret:
    return read_json(Path(folder) / SECRET, Secret, cure=CURE)


def picture_file(folder: Path, name: str) -> Path:
    return folder / IMAGES / f"{name}.png"


def written(value: Any) -> bytes:
    """The bytes of a file of this room."""
    return msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
